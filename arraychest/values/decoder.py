"""From a structure to the value; nothing in it is trusted."""

from __future__ import annotations

import datetime as dt
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arraychest.errors import CorruptEntryError, PickleRefusedError, UnreadableValueError
from arraychest.formats.form import parse_form
from arraychest.values import registry
from arraychest.values.keys import decode_key
from arraychest.values.limits import (
    BY_KEY_CODE,
    C16,
    CONTAINERS,
    F8,
    I8,
    MAX_DEPTH,
    MAX_HASHED,
    SIZE,
    Measure,
    deeper,
)
from arraychest.values.scalars import scalar_of

_UNFINISHED: Any = object()


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


class _Decoder:
    def __init__(self, data: bytes, parts: Sequence[Any], allow_pickle: bool) -> None:
        self._data = data
        self.at = 0
        self._parts = parts
        self._allow_pickle = allow_pickle
        self._met: list[Any] = []
        self._measure = Measure()

    def node(self, depth: int = MAX_DEPTH) -> Any:
        data, at = self._data, self.at
        tag = data[at : at + 1]
        self.at = at + 1
        if tag == b"s":
            return self._take().decode("utf-8", "surrogatepass")
        if tag == b"f":
            self.at += 8
            return F8.unpack_from(data, at + 1)[0]
        if tag == b"i":
            self.at += 8
            return I8.unpack_from(data, at + 1)[0]
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
            return complex(*C16.unpack_from(self._data, self.at - 16))
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
            if type(value) not in BY_KEY_CODE:
                raise ValueError(f"a {type(value).__name__} in place of a date or path")
            return value
        if tag == b"h":
            value = self.node(deeper(depth))
            if type(value) is not dt.datetime:
                raise ValueError(f"a {type(value).__name__} in place of a datetime")
            return value.timetz()
        if tag in (b"r", b"x"):
            ends = [self.node(deeper(depth)) for _ in range(3)]
            return range(*ends) if tag == b"r" else slice(*ends)
        if tag in (b"B", b"S"):
            long = self._long()
            return long if tag == b"B" else long.decode("utf-8", "surrogatepass")
        raise ValueError(f"a node {tag!r}")

    def _number(self) -> int:
        self.at += 4
        return int(SIZE.unpack_from(self._data, self.at - 4)[0])

    def _take(self) -> bytes:
        (length,) = SIZE.unpack_from(self._data, self.at)
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
        values = self._run(deeper(depth))
        value: Any
        if tag in _HASHING and self._measure.elements - before > MAX_HASHED:
            raise ValueError(f"more than {MAX_HASHED} elements to hash")
        if tag == b"d":
            value = dict(zip(values, self._run(deeper(depth)), strict=True))
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
        tree = self.node(deeper(depth))
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
_OF_CONTAINERS: dict[bytes, Callable[[Any], Any]] = {tag: kind for kind, tag in CONTAINERS.items()}
