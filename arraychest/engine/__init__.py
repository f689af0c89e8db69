"""Memory over storage: put, get and delete, and everything that changes values.

`engine` is what one open chest does; its parts are `session` (what is open, and whether it may be
used), `get`, `put`, `scan` (which keys there are) and `value_facts`.  Under them `flusher` decides
what leaves RAM, `saving` stores it, `commit` changes the catalog and memory in one step, and
`deletions`, `disk_room`, `compaction`, `failures` and `following` (what other processes commit)
each do what their names say.  `opening` and `fork` are the beginning of a session.  `transaction`,
`drafts` (edit and create), `in_place`, `append`, `blocks`, `rename` and `update` are further ways
to change values; `handle` is a value that another process can open.  The engine knows memory and
storage; `Chest` and the parts beside it know the engine.
"""
