"""What differs between operating systems: one module for each mechanism.

Each module looks once, when it is imported, for what the system has, and otherwise takes what POSIX
has.  Nothing else in the package names a call that only some systems have.

Free-threaded Python
--------------------
What follows takes no lock, and is all that does not.  It is right with the interpreter lock and
without it (Python 3.14t), since there, too, one operation of a dict, a list or an OrderedDict is
atomic, and a reference is read and written whole.  Everything else changes under the chest's lock.

- A hit (`Chest.__getitem__`): a look-up in a dict of slots, and a read of a slot's value, which is
  only ever replaced by another complete one.  Either the old value or the new one is found.
- The counts of hits, misses and absent keys: some may be lost, which `Stats` says.  They choose
  what leaves RAM first, and nothing depends on them.
- The commit counter's word (`sharing.commit_counter`): 8 aligned bytes of mapped memory.  Who reads
  the old number has asked before the commit ended.
- What is remembered of arrays (`arrays.digests`), memory that is used again (`formats.blosc`), and
  blocks that are kept open (`storage.reading`): two threads that miss both do the work.
"""
