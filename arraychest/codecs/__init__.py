"""How one value lies in a file: plain ``.npy`` (`npy`), or packed with others (`pack`).

A codec turns an array into buffers to write and a mapped file back into an array.  It opens,
writes and removes nothing itself.
"""
