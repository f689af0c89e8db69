"""Several processes in one folder: locks that the kernel holds, and a counter of commits.

`locks` says what each byte of the lock file means, `commit_counter` tells at the cost of one read
of memory whether anybody has committed, and `mounts` knows network file systems.  Nothing here
knows what the folder holds.
"""
