"""What is in RAM: how much may be, which values are, and which of them leaves next.

`budget` is what the machine allows, `memtable` knows the keys, `slot` is one value, and `pool`
keeps the values that are not stored yet.  Nothing here writes a file or imports `storage`.
"""
