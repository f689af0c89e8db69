"""What is in RAM: how much may be, which values are, and which of them leaves next.

`budget` is what the machine allows, `memtable` knows the keys, and `key_order` their order;
`stored_keys` looks up what the catalog has of them.  `slot` is one value, `pool` keeps the values
that are not stored yet, and `views` those that are stored and kept open.  Nothing here writes a
file or imports `storage`.
"""
