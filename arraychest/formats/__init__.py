"""The bytes of one value: how an array, a value tree or a batch of small values lies in a file.

`form` is what an array is without its bytes; `npy`, `pack`, `frame`, `b2nd`, `tree` and `manifest`
are the kinds of files, `directory` is what a file says of the values in it, and `compression`
chooses a codec.  A module here turns arrays into buffers to write, and a mapped file back into
arrays.  It opens, writes and removes nothing, and knows neither a chest nor its catalog.
"""
