"""The types of other packages that a chest takes apart by itself, without pickle.

One module for each package.  `arraychest.registry` imports it when a type of its package is met,
in a value that is put or in one that is read, and it registers what it knows when it is imported.
"""
