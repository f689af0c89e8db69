"""Bytes, row and unlink as one: values go into files and the catalog, and come out mapped.

`store` has the parts and commits: `writing` writes a value to a file of its own, `packs` writes
small ones together, `mapped_files` are written to through maps, `linking` takes over files of other
chests, and `reading` turns a row into a value.  `generations` gives each value its number, `access`
says who else may use the folder, and `sweeping` removes what sessions leave that died.
`file_names` says which file a value lies in.  `block_writer` writes blocked arrays; `quota` and
`eviction` see to how much is stored.  Nothing here knows what is in RAM, and nothing here imports
`memory`.
"""
