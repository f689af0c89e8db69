"""Memory over storage: put, get and delete, and everything that changes values.

`engine` is the way of one value.  `session` opens and closes the folder, `flusher` moves values
from memory to storage in the background, `commit` is how they are stored, and `following` notes
what other processes have committed.  `transaction`, `drafts` (edit and create), `append`, `blocks`
and `update` are further ways to change values, and `handle` is a value that another process can
open.  The engine knows memory and storage; `Chest` and the parts beside it know the engine.
"""
