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
``g``    NumPy scalar: length, its form (see `entry.form_text`); length, its bytes
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

from __future__ import annotations

import datetime as dt
import pathlib
import pickle
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from arraychest import registry
from arraychest.compressed import CompressedArray
from arraychest.entry import DESCRIBED, describe, form_text, parse_form
from arraychest.errors import (
    CorruptEntryError,
    KeyTypeError,
    PickleRefusedError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.keys import decode_key, encode_key
from arraychest.scalars import array_of_scalar, scalar_of

# Values nest at most so deep: both ways recurse, with up to four calls for a level, and a
# stranger's file must not be able to exhaust the stack.
MAX_DEPTH = 100

# The structure around the arrays is not larger, in bytes: it is decoded at each get.
MAX_STRUCTURE_BYTES = 64 << 20

# The keys of a dict, or the elements of a set, are of so many elements at most, tuples in them
# counted as often as they are met: so many are hashed at each get, in some seconds, while each
# reference to a tuple from another could double what a stranger's file makes of a few bytes.
MAX_HASHED = 1 << 27

# Strings and bytes of so many bytes are parts, as arrays are, and do not count as structure.
_LONG = 64 * 1024

_SIZE = struct.Struct("<I")
_I8 = struct.Struct("<q")
_F8 = struct.Struct("<d")
_C16 = struct.Struct("<dd")

_BY_KEY_CODE = frozenset({
    dt.datetime, dt.date, dt.timedelta, uuid.UUID,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
})  # fmt: skip
_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", dict: b"d", set: b"e", frozenset: b"z"}
_UNFINISHED: Any = object()

# Buffers of pickled objects below so many bytes stay in the pickle.
_IN_BAND = 4096


class Taken(NamedTuple):
    """A value that was taken apart.

    Attributes
    ----------
    structure
        All but the parts; see above.
    parts
        The arrays, each object once, as they are in the value; and, as arrays of bytes, what is
        long.
    """

    structure: bytes
    parts: list[np.ndarray]


def is_of_registered_dtype(dtype: np.dtype) -> bool:
    """Whether arrays of a dtype are taken apart by what is registered for its class.

    Only where the catalog could not describe it: then nobody looks for registered types in vain.
    """
    if id(dtype) in DESCRIBED:
        return False
    try:
        describe(dtype)
    except ValueTypeError:
        return registry.of_type(type(dtype)) is not None
    return False


class _TooDeepError(ValueTypeError):
    def __init__(self) -> None:
        super().__init__(f"expected a value nested at most {MAX_DEPTH} deep, found one deeper")


class _Measure:
    """Counts the containers of a value as they begin, and what each amounts to.

    A container that is met again counts in full: nesting that goes by way of references is as deep
    for whoever hashes the value, and C's stack knows no limit then.
    """

    __slots__ = ("_least_left", "_open", "_sizes", "elements")

    def __init__(self) -> None:
        # How many elements were met, and the least depth that was left at any of them.
        self.elements = 0
        self._least_left = MAX_DEPTH
        # By the number of a container that is complete: its elements and its levels.
        self._sizes: list[tuple[int, int]] = []
        # Of those that are not: their number, and what was measured before.
        self._open: list[tuple[int, int, int]] = []

    def begin(self) -> int:
        """A container begins; returns its number."""
        sizes = self._sizes
        number = len(sizes)
        self._open.append((number, self.elements, self._least_left))
        sizes.append((0, 0))
        self._least_left = MAX_DEPTH
        return number

    def end(self, depth: int, tag: bytes) -> None:
        """The container is complete that began last, at this depth."""
        number, elements, outer = self._open.pop()
        left = self._least_left
        if left >= depth:
            left = depth - 1
        # A frozenset knows its hash.
        self._sizes[number] = 1 if tag == b"z" else self.elements - elements + 1, depth - left
        self._least_left = left
        if outer < left:
            self._least_left = outer

    def again(self, number: int, depth: int) -> None:
        """A container is met once more."""
        elements, levels = self._sizes[number]
        if levels > depth:
            raise _TooDeepError
        self.elements += elements
        self._least_left = min(self._least_left, depth - levels)


class Encoder:
    """Takes values apart; a class below says what becomes of the arrays, and of other objects.

    Attributes
    ----------
    out
        The structure so far.
    keeps_aliases
        Whether what is in a value twice is in it once, and a second time by its number.
    """

    keeps_aliases = True

    def __init__(self) -> None:
        self.out = bytearray()
        # The numbers of containers by id, and what keeps the ids from being given to others: what
        # `to_tree` makes is gone in a moment.
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []
        self._met_arrays: list[Any] = []
        self._measure = _Measure()
        self._open: set[int] = set()

    def array(self, array: Any, depth: int) -> None:
        """Encode an ndarray or a `CompressedArray`."""
        raise NotImplementedError

    def long(self, tag: bytes, data: bytes) -> None:
        """Encode many bytes: of a str if `tag` is ``S``."""
        raise NotImplementedError

    def other(self, value: Any, depth: int) -> None:
        """Encode what is none of the kinds above."""
        raise NotImplementedError

    def node(self, value: Any, depth: int = MAX_DEPTH) -> None:
        """Encode a value.

        Raises
        ------
        ValueTypeError
            It, or something in it, cannot be.
        """
        out = self.out
        kind = type(value)
        if kind is str:
            data = value.encode("utf-8", "surrogatepass")
            if len(data) >= _LONG:
                self.long(b"S", data)
            else:
                out += b"s" + _SIZE.pack(len(data)) + data
        elif kind is float:
            out += b"f" + _F8.pack(value)
        elif kind is int:
            if -(1 << 63) <= value < 1 << 63:
                out += b"i" + _I8.pack(value)
            else:
                data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                out += b"I" + _SIZE.pack(len(data)) + data
        elif value is None:
            out += b"-"
        elif kind is bool:
            out += b"1" if value else b"0"
        elif kind is np.ndarray or kind is CompressedArray:
            self.array(value, depth)
        elif kind in _CONTAINERS:
            self._container(_CONTAINERS[kind], value, depth)
        elif kind is bytes:
            if len(value) >= _LONG:
                self.long(b"B", value)
            else:
                out += b"b" + _SIZE.pack(len(value)) + value
        elif kind is complex:
            out += b"c" + _C16.pack(value.real, value.imag)
        elif isinstance(value, np.generic):
            self._scalar(value, depth)
        else:
            self._rare(value, kind, depth)

    def _rare(self, value: Any, kind: type, depth: int) -> None:
        if kind in _BY_KEY_CODE:
            try:
                canonical, exact = encode_key(value)
            except KeyTypeError:
                self._unusual(value, depth)  # a datetime with a zone of its own kind
                return
            code = canonical if exact is None else exact
            self.out += b"k" + _SIZE.pack(len(code)) + code
        elif kind is dt.time:
            self.out += b"h"
            # In a year with the clocks of today.
            self.node(dt.datetime.combine(dt.date(2000, 1, 1), value), _deeper(depth))
        elif kind is range or kind is slice:
            self.out += b"r" if kind is range else b"x"
            for each in (value.start, value.stop, value.step):
                self.node(each, _deeper(depth))
        elif value is Ellipsis:
            self.out += b"."
        elif kind is np.memmap:
            self.array(value, depth)
        else:
            self._unusual(value, depth)

    def _unusual(self, value: Any, depth: int) -> None:
        known = registry.of_type(type(value))
        if known is None:
            self.other(value, depth)
        elif self._begin(value):
            self.registered(known, value, depth)
        else:
            self._again(value, depth)

    def registered(self, known: registry.Registered, value: Any, depth: int) -> None:
        """Encode a value of a registered type; see `_begin`."""
        name = known.name.encode()
        self.out += b"R" + _SIZE.pack(len(name)) + name
        self.node(known.to_tree(value), _deeper(depth))
        self._end(value, depth, b"R")

    def _scalar(self, value: np.generic, depth: int) -> None:
        dtype = value.dtype
        if type(value) is not dtype.type or dtype.hasobject:
            self._unusual(value, depth)
            return
        array = array_of_scalar(value)
        try:
            describe(array.dtype)
        except ValueTypeError:
            if registry.of_type(type(value)) is None:
                raise
            self._unusual(value, depth)
            return
        form = form_text(array.dtype, array.shape, "C", "scalar").encode()
        data = array.tobytes()
        self.out += b"g" + _SIZE.pack(len(form)) + form + _SIZE.pack(len(data)) + data

    def _begin(self, value: Any) -> bool:
        """Count a container; False where it was met before, and its number was written."""
        identity = id(value)
        if identity in self._open:
            raise ValueTypeError(
                f"expected a value that does not contain itself, found a {type(value).__name__} "
                "that does"
            )
        if self.keeps_aliases:
            number = self._numbers.setdefault(identity, len(self._numbers))
            if number < len(self._met):
                self.out += b"m" + _SIZE.pack(number)
                return False
            self._met.append(value)
            self._measure.begin()
        _check_size(len(self.out))
        self._open.add(identity)
        return True

    def _again(self, value: Any, depth: int) -> None:
        """`_begin` returned False."""
        self._measure.again(self._numbers[id(value)], depth)

    def _end(self, value: Any, depth: int, tag: bytes) -> None:
        """A container that `_begin` counted is complete."""
        self._open.discard(id(value))
        if self.keeps_aliases:
            self._measure.end(depth, tag)

    def _container(self, tag: bytes, value: Any, depth: int) -> None:
        if not self._begin(value):
            self._again(value, depth)
            return
        self.out += tag
        deeper = _deeper(depth)
        before = self._measure.elements
        # As it is now: other threads, or a `to_tree`, may change it meanwhile.
        if tag == b"d":
            keys, values = list(value), list(value.values())
            if len(keys) != len(values):
                raise ValueTypeError("expected a dict that nobody changes while it is put")
            self._run(keys, deeper)
            self._check_hashed(before)
            self._run(values, deeper)
        elif tag in (b"e", b"z"):
            self._set(value, deeper)
            self._check_hashed(before)
        else:
            self._run(list(value), deeper)
        self._end(value, depth, tag)

    def _check_hashed(self, before: int) -> None:
        if self._measure.elements - before > MAX_HASHED:
            raise ValueTypeError(
                f"expected at most {MAX_HASHED} elements in the keys of a dict or in a set, each "
                "as often as it is met, found more"
            )

    def _run(self, values: Sequence[Any], depth: int) -> None:
        out, count = self.out, len(values)
        out += _SIZE.pack(count)
        if not count:
            return
        self._measure.elements += count
        kinds = set(map(type, values))
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is float:
            out += b"f" + struct.pack(f"<{count}d", *values)
            return
        if kind is int and min(values) >= -(1 << 63) and max(values) < 1 << 63:
            out += b"i" + struct.pack(f"<{count}q", *values)
            return
        if kind is str:
            texts = [each.encode("utf-8", "surrogatepass") for each in values]
            if max(map(len, texts)) < _LONG:
                out += b"s" + struct.pack(f"<{count}I", *map(len, texts)) + b"".join(texts)
                return
        out += b"*"
        node = self.node
        for each in values:
            node(each, depth)

    def _set(self, values: Iterable[Any], depth: int) -> None:
        if self.keeps_aliases:
            self._run(list(values), depth)
            return
        # In an order that is the same in every process.
        out, codes = self.out, []
        for each in values:
            self.out = bytearray()
            try:
                self.node(each, depth)
                codes.append(bytes(self.out))
            finally:
                self.out = out
        out += _SIZE.pack(len(codes)) + b"*" + b"".join(sorted(codes))


def _deeper(depth: int) -> int:
    if depth == 0:
        raise _TooDeepError
    return depth - 1


def _check_size(nbytes: int) -> None:
    """Raise ValueTypeError where a structure has too many bytes."""
    if nbytes > MAX_STRUCTURE_BYTES:
        raise ValueTypeError(
            f"expected at most {MAX_STRUCTURE_BYTES >> 20} MiB around the arrays of a value, "
            "found more: keep numbers in arrays"
        )


class _Storing(Encoder):
    """Takes a value apart to store it."""

    def __init__(self, allow_pickle: bool) -> None:
        super().__init__()
        self._allow_pickle = allow_pickle
        self.parts: list[np.ndarray] = []
        self._part_of: dict[int, int] = {}

    def array(self, array: Any, depth: int) -> None:
        number = self._part_of.get(id(array))
        if number is None:
            dtype = array.dtype
            if dtype.hasobject and dtype.kind in "OV":
                self.other(array, depth)
                return
            if is_of_registered_dtype(dtype):
                known = registry.of_type(type(dtype))
                if known is not None and self._begin(array):
                    self.registered(known, array, depth)
                elif known is not None:
                    self._again(array, depth)
                return
            describe(dtype)
            number = self._part(np.asarray(array))
            self._part_of[id(array)] = number
            # What a `to_tree` made would be gone, and its id be another's.
            self._met_arrays.append(array)
        self.out += b"a" + _SIZE.pack(number)

    def long(self, tag: bytes, data: bytes) -> None:
        self.out += tag + _SIZE.pack(self._part(np.frombuffer(data, np.uint8)))

    def other(self, value: Any, depth: int) -> None:
        if not self._allow_pickle:
            raise ValueTypeError(_refusal(value))
        if self._begin(value):
            self._pickled(value, depth)
        else:
            self._again(value, depth)

    def registered(self, known: registry.Registered, value: Any, depth: int) -> None:
        """Encode a value of a registered type; pickled where it is one that `to_tree` refuses."""
        if self._allow_pickle:
            try:
                tree = known.to_tree(value)
            except ValueTypeError:
                self._pickled(value, depth)
                return
            known = known._replace(to_tree=lambda _: tree)
        super().registered(known, value, depth)

    def _pickled(self, value: Any, depth: int) -> None:
        buffers: list[int] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _IN_BAND:
                return True
            # The object may go on to write to its own.
            buffers.append(self._part(np.frombuffer(bytes(raw), np.uint8)))
            return False

        try:
            data = pickle.dumps(value, protocol=5, buffer_callback=keep)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueTypeError(f"{_name(value)} cannot be pickled: {error}") from error
        if len(data) >= _LONG:
            self.long(b"P", data)
        else:
            self.out += b"p" + _SIZE.pack(len(data)) + data
        self.out += struct.pack(f"<{len(buffers) + 1}I", len(buffers), *buffers)
        self._end(value, depth, b"p")

    def _part(self, array: np.ndarray) -> int:
        self.parts.append(array)
        return len(self.parts) - 1


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _refusal(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.dtype.hasobject and type(value) is np.ndarray:
        found = f"an array of Python objects, dtype {value.dtype}"
    else:
        found = _name(value)
        if isinstance(value, np.ndarray):
            found += " (np.asarray(value) drops the subclass)"
    return (
        "expected an array, a NumPy scalar, None, bool, number, str, bytes, date or time, or a "
        f"list, tuple, set or dict of these, found {found}: `arraychest.register` says how to take "
        "such a value apart; with allow_pickle=True it would be pickled"
    )


def take_apart(value: Any, *, allow_pickle: bool) -> Taken:
    """Take a value apart; `put_together` undoes it.

    Nothing is copied, but what is pickled.  Some 0.3 us a number, string or list.

    Raises
    ------
    ValueTypeError
        It, or something in it, would come back as something else, or not at all.
    """
    encoder = _Storing(allow_pickle)
    try:
        encoder.node(value)
    except RecursionError as error:
        raise ValueTypeError("expected a value less deeply nested, found no stack left") from error
    _check_size(len(encoder.out))
    return Taken(bytes(encoder.out), encoder.parts)


def put_together(structure: bytes, parts: Sequence[Any], *, allow_pickle: bool) -> Any:
    """The value that was taken apart, with these parts in it.

    Parameters
    ----------
    parts
        Arrays, or `CompressedArray`.

    Raises
    ------
    CorruptEntryError
        It is no structure, or `from_tree` does not take what is in it.
    PickleRefusedError
        An object in it was pickled, and may not be unpickled.
    UnreadableValueError
        A type in it is not registered here.
    """
    decoder = _Decoder(structure, parts, allow_pickle)
    try:
        value = decoder.node()
        if decoder.at != len(structure):
            raise ValueError(f"{len(structure) - decoder.at} bytes more")
    except (CorruptEntryError, PickleRefusedError, UnreadableValueError):
        raise
    except (struct.error, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise CorruptEntryError(f"expected a value tree, found something else: {error}") from error
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: as Python says, arrays in them by dtype and elements."""
    if one is other:
        return True
    if isinstance(one, _ARRAYS) or isinstance(other, _ARRAYS):
        both = isinstance(one, _ARRAYS) and isinstance(other, _ARRAYS)
        return both and one.dtype == other.dtype and bool(np.array_equal(one, other))
    kind = type(one)
    if kind is type(other):
        if kind is list or kind is tuple:
            return len(one) == len(other) and all(map(same, one, other))
        if kind is dict:
            return len(one) == len(other) and all(
                key in other and same(value, other[key]) for key, value in one.items()
            )
        known = None if kind.__module__ == "builtins" else registry.of_type(kind)
        if known is not None:
            return same(known.to_tree(one), known.to_tree(other))
    return bool(one == other)


_ARRAYS = (np.ndarray, np.generic, CompressedArray)


class _Decoder:
    def __init__(self, data: bytes, parts: Sequence[Any], allow_pickle: bool) -> None:
        self._data = data
        self.at = 0
        self._parts = parts
        self._allow_pickle = allow_pickle
        self._met: list[Any] = []
        self._measure = _Measure()

    def node(self, depth: int = MAX_DEPTH) -> Any:
        data, at = self._data, self.at
        tag = data[at : at + 1]
        self.at = at + 1
        if tag == b"s":
            return self._take().decode("utf-8", "surrogatepass")
        if tag == b"f":
            self.at += 8
            return _F8.unpack_from(data, at + 1)[0]
        if tag == b"i":
            self.at += 8
            return _I8.unpack_from(data, at + 1)[0]
        if tag == b"a":
            return self._part()
        if tag in _OF_CONTAINERS:
            return self._container(tag, depth)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"m":
            number = self._number()
            value = self._met[number]
            if value is _UNFINISHED:
                raise ValueError("a value contains itself")
            self._measure.again(number, depth)
            return value
        if tag == b"R":
            return self._registered(depth)
        if tag in (b"p", b"P"):
            return self._pickled(tag, depth)
        return self._rare(tag, depth)

    def _rare(self, tag: bytes, depth: int) -> Any:
        if tag == b"b":
            return self._take()
        if tag == b"c":
            self.at += 16
            return complex(*_C16.unpack_from(self._data, self.at - 16))
        if tag == b"I":
            return int.from_bytes(self._take(), "little", signed=True)
        if tag == b"g":
            form = parse_form(self._take().decode())
            data = self._take()
            if form.kind != "scalar" or form.nbytes != len(data):
                raise ValueError(f"{len(data)} bytes of a scalar")
            return scalar_of(np.ndarray(form.shape, form.dtype, data))
        if tag == b"k":
            value = decode_key(self._take(), None)
            if type(value) not in _BY_KEY_CODE:
                raise ValueError(f"a {type(value).__name__} in place of a date or path")
            return value
        if tag == b"h":
            value = self.node(_deeper(depth))
            if type(value) is not dt.datetime:
                raise ValueError(f"a {type(value).__name__} in place of a datetime")
            return value.timetz()
        if tag in (b"r", b"x"):
            ends = [self.node(_deeper(depth)) for _ in range(3)]
            return range(*ends) if tag == b"r" else slice(*ends)
        if tag in (b"B", b"S"):
            long = self._long()
            return long if tag == b"B" else long.decode("utf-8", "surrogatepass")
        raise ValueError(f"a node {tag!r}")

    def _number(self) -> int:
        self.at += 4
        return int(_SIZE.unpack_from(self._data, self.at - 4)[0])

    def _take(self) -> bytes:
        (length,) = _SIZE.unpack_from(self._data, self.at)
        start = self.at + 4
        self.at = end = start + length
        if end > len(self._data):
            raise ValueError(f"{length} bytes, beyond its end")
        return self._data[start:end]

    def _part(self) -> Any:
        return self._parts[self._number()]

    def _long(self) -> bytes:
        return np.asarray(self._part()).tobytes()

    def _begin(self) -> int:
        self._met.append(_UNFINISHED)
        return self._measure.begin()

    def _end(self, number: int, value: Any, depth: int, tag: bytes) -> Any:
        self._met[number] = value
        self._measure.end(depth, tag)
        return value

    def _container(self, tag: bytes, depth: int) -> Any:
        number, before = self._begin(), self._measure.elements
        values = self._run(_deeper(depth))
        value: Any
        if tag in _HASHING and self._measure.elements - before > MAX_HASHED:
            raise ValueError(f"more than {MAX_HASHED} elements to hash")
        if tag == b"d":
            value = dict(zip(values, self._run(_deeper(depth)), strict=True))
            if len(value) != len(values):
                raise ValueError("a key twice in a dict")
        else:
            value = values if tag == b"l" else _OF_CONTAINERS[tag](values)
        return self._end(number, value, depth, tag)

    def _run(self, depth: int) -> list[Any]:
        count = self._number()
        if not count:
            return []
        self._measure.elements += count
        data, start = self._data, self.at + 1
        kind = data[self.at : start]
        if kind in (b"f", b"i"):
            self.at = start + 8 * count
            # Before memory is taken for whatever a stranger says.
            if self.at > len(data):
                raise ValueError(f"{count} numbers, beyond its end")
            return list(struct.unpack_from(f"<{count}{'d' if kind == b'f' else 'q'}", data, start))
        if count > len(data) - self.at:
            raise ValueError(f"{count} elements, beyond its end")
        if kind == b"s":
            at = start + 4 * count
            texts = []
            for length in struct.unpack_from(f"<{count}I", data, start):
                texts.append(data[at : at + length].decode("utf-8", "surrogatepass"))
                at += length
            self.at = at
            if at > len(data):
                raise ValueError(f"{count} strings, beyond its end")
            return texts
        if kind != b"*":
            raise ValueError(f"a run of {kind!r}")
        self.at = start
        node = self.node
        return [node(depth) for _ in range(count)]

    def _registered(self, depth: int) -> Any:
        number = self._begin()
        name = self._take().decode()
        tree = self.node(_deeper(depth))
        known = registry.of_name(name)
        if known is None:
            raise UnreadableValueError(
                f"expected a registered type, found {name!r:.200}: import the package that it is "
                "from, or whatever calls `arraychest.register` for it"
            )
        try:
            value = known.from_tree(tree)
        except (CorruptEntryError, PickleRefusedError, UnreadableValueError, RecursionError):
            raise
        except Exception as error:
            # Also ours: an AbsentKeyError of another chest would say that the key is not here.
            raise CorruptEntryError(
                f"expected what {name} was taken apart into, found something else: {error}"
            ) from error
        return self._end(number, value, depth, b"R")

    def _pickled(self, tag: bytes, depth: int) -> Any:
        number = self._begin()
        data = self._take() if tag == b"p" else self._long()
        buffers = [self._part() for _ in range(self._counted())]
        if not self._allow_pickle:
            raise PickleRefusedError(
                "an object in it was pickled: open the chest with allow_pickle=True if you trust "
                "who wrote it"
            )
        try:
            value = pickle.loads(  # noqa: S301  # asked for
                data, buffers=map(np.asarray, buffers)
            )
        except (pickle.UnpicklingError, EOFError) as error:
            raise CorruptEntryError(f"expected a pickled object: {error}") from error
        except (AttributeError, ImportError) as error:
            raise UnreadableValueError(
                f"an object in it was pickled, and its class is not here: {error}"
            ) from error
        return self._end(number, value, depth, tag)

    def _counted(self) -> int:
        count = self._number()
        if count > len(self._parts):
            raise ValueError(f"{count} buffers")
        return count


_HASHING = frozenset({b"d", b"e", b"z"})
_CONSTANTS: dict[bytes, Any] = {b"-": None, b"0": False, b"1": True, b".": Ellipsis}
_OF_CONTAINERS: dict[bytes, Callable[[Any], Any]] = {tag: kind for kind, tag in _CONTAINERS.items()}
