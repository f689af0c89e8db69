"""Taking a value apart to store it."""

from __future__ import annotations

import pickle
import struct
from typing import Any, NamedTuple

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.errors import ValueTypeError
from arraychest.formats.form import DESCRIBED, describe
from arraychest.values import registry
from arraychest.values.encoder import Encoder
from arraychest.values.limits import LONG, SIZE, check_size

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
    check_size(len(encoder.out))
    return Taken(bytes(encoder.out), encoder.parts)


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


class _Storing(Encoder):
    """Takes a value apart to store it."""

    def __init__(self, allow_pickle: bool) -> None:
        super().__init__()
        self._allow_pickle = allow_pickle
        self.parts: list[np.ndarray] = []
        self._part_of: dict[int, int] = {}

    def array(self, array: Any, depth: int) -> None:
        if type(array) is BlockedArray:
            raise ValueTypeError(
                "expected an array that can be stored within another value, found a blocked one: "
                "store it under a key of its own"
            )
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
        self.out += b"a" + SIZE.pack(number)

    def long(self, tag: bytes, data: bytes) -> None:
        self.out += tag + SIZE.pack(self._part(np.frombuffer(data, np.uint8)))

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
        if len(data) >= LONG:
            self.long(b"P", data)
        else:
            self.out += b"p" + SIZE.pack(len(data)) + data
        self.out += struct.pack(f"<{len(buffers) + 1}I", len(buffers), *buffers)
        self._end(value, depth, b"p")

    def _part(self, array: np.ndarray) -> int:
        self.parts.append(array)
        return len(self.parts) - 1


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _refusal(value: Any) -> str:
    if _name(value) == "dask.array.core.Array":
        return (
            "expected a value, found a dask array, which is still to be computed: "
            "arraychest.dask.store(x, chest, key) stores it block by block, and x.compute() is an "
            "array in RAM"
        )
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
