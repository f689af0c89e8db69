"""What differs between operating systems: one module for each mechanism.

Each module looks once, when it is imported, for what the system has, and otherwise takes what POSIX
has.  Nothing else in the package names a call that only some systems have.
"""
