"""Value trees: what is no array, taken apart into a structure and the arrays in it.

A value tree is None, a bool, number, str, bytes, date, time, UUID, path, slice, range, NumPy scalar
or array, a list, tuple, set, frozenset or dict of value trees, or a value of a registered type (see
`registry`).  It comes back type for type, and what is in it twice (the same list, the same array)
is in it twice again.

The structure is one node.  A node is a tag and what follows it; numbers are little-endian, a length
has 4 bytes:

=======  ===========================================================================================
tag      what follows
=======  ===========================================================================================
``-``    None; ``0`` False; ``1`` True; ``.`` Ellipsis: nothing
``i``    int of 8 bytes; ``I`` any other: length, bytes
``f``    float, 8 bytes; ``c`` complex, 16 bytes
``s``    str: length, UTF-8 (surrogates kept); ``S`` a long one: the number of its part
``b``    bytes: length, they; ``B`` many: the number of their part
``k``    datetime, date, timedelta, UUID, path: length, its exact code (see `keys`)
``h``    time of a day: the node of a datetime that has it
``g``    NumPy scalar: length, its form (see `form.form_text`); length, its bytes
``a``    array: the number of its part (4 bytes)
``r``    range: the nodes of start, stop and step; ``x`` slice: the same
``l``    list: a run; ``t`` tuple; ``e`` set; ``z`` frozenset
``d``    dict: a run of keys, a run of values
``R``    value of a registered type: length, name; the node of its tree
``p``    pickled object: length, bytes; how many buffers, and of each the number of its part;
         ``P`` a long one: the number of its part; how many buffers, ...
``m``    the same object as before: its number (4 bytes), of all lists, tuples, sets, dicts,
         registered values and pickled objects, counted as they begin
=======  ===========================================================================================

A run is a length and, unless that is 0, one byte: ``f``, floats of 8 bytes; ``i``, ints of 8 bytes;
``s``, the lengths of strings, then their UTF-8, end to end; ``*``, nodes.
"""
