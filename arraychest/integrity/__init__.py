"""Whether all is well on disk, and what to do where it is not: `inspection`, `repair`, `rebuild`.

An inspection asks one module for each kind of file: `value_files`, `block_files`, `pack_files` and
`stray_files`.  What they find they note in a `Survey`.  The folder is built on the engine.
"""
