"""From a value to its structure; what becomes of arrays and other objects is left open."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.errors import KeyTypeError, ValueTypeError
from arraychest.formats.form import describe, form_text
from arraychest.values import registry
from arraychest.values.keys import encode_key
from arraychest.values.limits import (
    BY_KEY_CODE,
    C16,
    CONTAINERS,
    F8,
    I8,
    LONG,
    MAX_DEPTH,
    MAX_HASHED,
    SIZE,
    Measure,
    check_size,
    deeper,
)
from arraychest.values.scalars import array_of_scalar


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
        self._measure = Measure()
        self._open: set[int] = set()

    def array(self, array: Any, depth: int) -> None:
        """Encode an ndarray or a `LazyArray`."""
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
            if len(data) >= LONG:
                self.long(b"S", data)
            else:
                out += b"s" + SIZE.pack(len(data)) + data
        elif kind is float:
            out += b"f" + F8.pack(value)
        elif kind is int:
            if -(1 << 63) <= value < 1 << 63:
                out += b"i" + I8.pack(value)
            else:
                data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                out += b"I" + SIZE.pack(len(data)) + data
        elif value is None:
            out += b"-"
        elif kind is bool:
            out += b"1" if value else b"0"
        elif kind is np.ndarray or kind is CompressedArray or kind is BlockedArray:
            self.array(value, depth)
        elif kind in CONTAINERS:
            self._container(CONTAINERS[kind], value, depth)
        elif kind is bytes:
            if len(value) >= LONG:
                self.long(b"B", value)
            else:
                out += b"b" + SIZE.pack(len(value)) + value
        elif kind is complex:
            out += b"c" + C16.pack(value.real, value.imag)
        elif isinstance(value, np.generic):
            self._scalar(value, depth)
        else:
            self._rare(value, kind, depth)

    def _rare(self, value: Any, kind: type, depth: int) -> None:
        if kind in BY_KEY_CODE:
            try:
                canonical, exact = encode_key(value)
            except KeyTypeError:
                self._unusual(value, depth)  # a datetime with a zone of its own kind
                return
            code = canonical if exact is None else exact
            self.out += b"k" + SIZE.pack(len(code)) + code
        elif kind is dt.time:
            self.out += b"h"
            # In a year with the clocks of today.
            self.node(dt.datetime.combine(dt.date(2000, 1, 1), value), deeper(depth))
        elif kind is range or kind is slice:
            self.out += b"r" if kind is range else b"x"
            for each in (value.start, value.stop, value.step):
                self.node(each, deeper(depth))
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
        self.out += b"R" + SIZE.pack(len(name)) + name
        self.node(known.to_tree(value), deeper(depth))
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
        self.out += b"g" + SIZE.pack(len(form)) + form + SIZE.pack(len(data)) + data

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
                self.out += b"m" + SIZE.pack(number)
                return False
            self._met.append(value)
            self._measure.begin()
        check_size(len(self.out))
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
        inner = deeper(depth)
        before = self._measure.elements
        # As it is now: other threads, or a `to_tree`, may change it meanwhile.
        if tag == b"d":
            keys, values = list(value), list(value.values())
            if len(keys) != len(values):
                raise ValueTypeError("expected a dict that nobody changes while it is put")
            self._run(keys, inner)
            self._check_hashed(before)
            self._run(values, inner)
        elif tag in (b"e", b"z"):
            self._set(value, inner)
            self._check_hashed(before)
        else:
            self._run(list(value), inner)
        self._end(value, depth, tag)

    def _check_hashed(self, before: int) -> None:
        if self._measure.elements - before > MAX_HASHED:
            raise ValueTypeError(
                f"expected at most {MAX_HASHED} elements in the keys of a dict or in a set, each "
                "as often as it is met, found more"
            )

    def _run(self, values: Sequence[Any], depth: int) -> None:
        out, count = self.out, len(values)
        out += SIZE.pack(count)
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
            if max(map(len, texts)) < LONG:
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
        out += SIZE.pack(len(codes)) + b"*" + b"".join(sorted(codes))
