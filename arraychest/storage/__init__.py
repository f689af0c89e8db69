"""Bytes, row and unlink as one: values go into files and the catalog, and come out mapped.

`store` writes a value, commits its row and then removes what it replaced.  `reading` turns a row
into a value, and `block_writer` writes blocked arrays.  `quota` and `eviction` see to what
is stored.  Nothing here knows what is in RAM, and nothing here imports `memory`.
"""
