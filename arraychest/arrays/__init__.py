"""What a get returns: maps of files, lazy arrays, and how they are indexed and drawn.

`mmap` maps a file without holding a descriptor.  `lazy` with `compressed` and `blocked` reads an
array part by part.  `ownership` tells who owns a buffer, `digests` what an array contains, and
`provenance` which stored value an array is.  Nothing here knows a key, a catalog or a chest.
"""
