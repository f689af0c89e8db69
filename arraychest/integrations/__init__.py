"""The types of other packages that a chest takes apart by itself, without pickle.

There is one module for each package.  `arraychest.values.registry` imports it when a type of its
package is met, in a value that is put or in one that is read, and the module registers its types
when it is imported.
"""
