"""The tree codec: a value tree as one run of bytes, its arrays among them.

::

    4 bytes   "ATr1"
    4 bytes   how many bytes the head has (all numbers are little-endian)
    4 bytes   zlib.crc32 of the head
    head      how many parts there are (4 bytes); of each how many bytes the text of its form has
              (4 bytes), the text (see `form.form_text`), where it begins and how many bytes it
              has (8 bytes each), and 1 if it is compressed (1 byte); then the structure around
              them (see `arraychest.values`)
    parts     in this order, each from a multiple of 64 on: the elements of the array, or frame and
              record of a compressed one (see `b2nd`)

To the catalog it is an array of bytes, in a file of its own or in a pack.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from arraychest.formats import b2nd, pack
from arraychest.formats.form import Form, form_text, parse_form
from arraychest.formats.frame import Layout

_PREFIX = struct.Struct("<4sII")
_MAGIC = b"ATr1"
_COUNT = struct.Struct("<I")
_PLACE = struct.Struct("<QQB")

_ALIGN = pack.ALIGN
_BYTE: Final = np.dtype(np.uint8)
_NO_PARTS = _COUNT.pack(0)

# Where a part begins, how many bytes it has, and whether it is compressed.
Place = tuple[int, int, bool]


class _Layout(NamedTuple):
    texts: list[bytes]
    places: list[Place]
    nbytes: int
    own_bytes: int


class Tree:
    """A value tree as a chest keeps it: a structure, and the arrays in it.

    Attributes
    ----------
    structure
        All that is not in `parts`; see `arraychest.values`.
    parts
        Arrays that are contiguous in C or Fortran order; of a stored tree, what a get gives.
    base
        None where there are no parts: then it owns all its bytes, as an array without a base does.
    """

    __slots__ = ("__weakref__", "_layout", "base", "parts", "structure")

    def __init__(self, structure: bytes, parts: Sequence[Any]) -> None:
        self.structure = structure
        self.parts = parts
        self.base = parts or None
        self._layout: _Layout | None = None

    @property
    def layout(self) -> _Layout:
        """Where everything lies while nothing is compressed."""
        known = self._layout
        if known is None:
            texts = [form_text(p.dtype, p.shape, _order(p), "array").encode() for p in self.parts]
            end = sum(
                [_COUNT.size + len(text) + _PLACE.size for text in texts],
                start=_PREFIX.size + _COUNT.size + len(self.structure),
            )
            places = []
            for part in self.parts:
                start = _aligned(end)
                end = start + part.nbytes
                places.append((start, part.nbytes, False))
            own_bytes = end - sum([part.nbytes for part in self.parts])
            self._layout = known = _Layout(texts, places, end, own_bytes)
        return known

    @property
    def nbytes(self) -> int:
        """Bytes of the whole while nothing is compressed."""
        return int(self.layout.nbytes)

    @property
    def own_bytes(self) -> int:
        """Bytes that are in no part."""
        return self.layout.own_bytes

    def itself(self) -> Tree:
        """The tree: what keeps it, where a weak reference would not."""
        return self

    def buffers(self) -> Iterator[bytes | memoryview]:
        """Its bytes, nothing compressed; no part is copied."""
        layout = self.layout
        head = self._head(layout.places)
        yield head
        end = len(head)
        for part, (start, nbytes, _) in zip(self.parts, layout.places, strict=True):
            yield bytes(start - end)
            if nbytes:
                yield _bytes_of(part)
            end = start + nbytes

    def tobytes(self) -> bytes:
        """Its bytes, nothing compressed."""
        return b"".join(self.buffers())

    def _head(self, places: Sequence[Place]) -> bytes:
        body = _NO_PARTS
        if places:
            texts = self.layout.texts
            body = _COUNT.pack(len(texts)) + b"".join([
                _COUNT.pack(len(text)) + text + _PLACE.pack(*place)
                for text, place in zip(texts, places, strict=True)
            ])  # fmt: skip
        body += self.structure
        return _PREFIX.pack(_MAGIC, len(body), zlib.crc32(body)) + body

    def compress(
        self,
        layouts: Sequence[Layout | None],
        nthreads: int,
        put: Callable[[int, Sequence[bytes | memoryview]], object],
        stamp: int,
    ) -> int:
        """Write it with some parts compressed, and return its size in bytes.

        Parameters
        ----------
        layouts
            Of each part; None: it is written as it is.
        put
            Writes buffers one after another at an offset; the head comes last.
        stamp
            Of the file.
        """
        end = len(self._head(self.layout.places))
        places = []
        for part, layout in zip(self.parts, layouts, strict=True):
            start = _aligned(end)
            if layout is None:
                if part.nbytes:
                    put(start, [_bytes_of(part)])
                end = start + part.nbytes
            else:

                def put_part(at: int, buffers: Sequence[bytes], start: int = start) -> None:
                    put(start + at, buffers)

                end = start + b2nd.write(in_c_order(part), layout, nthreads, put_part, stamp)
            places.append((start, end - start, layout is not None))
        put(0, [self._head(places)])
        return end


def parse(base: np.ndarray, opened: Callable[[np.ndarray, Form], Any]) -> Tree:
    """The tree that lies in an array of bytes; its parts are views of it.

    Parameters
    ----------
    opened
        Makes what a get gives of a compressed part: of its bytes and its form.

    Raises
    ------
    ValueError, TypeError
        The bytes are no tree, or not whole.
    """
    if base.dtype != _BYTE or base.ndim != 1:
        raise ValueError(f"expected a value tree, found an array of {base.dtype}")
    data = base.data
    if len(data) < _PREFIX.size:
        raise ValueError(f"expected a value tree, found {len(data)} bytes")
    magic, length, crc = _PREFIX.unpack_from(data)
    end = _PREFIX.size + length
    if magic != _MAGIC or end > len(data):
        raise ValueError(f"expected a value tree, found {bytes(data[:12])!r}")
    head = bytes(data[_PREFIX.size : end])
    if zlib.crc32(head) != crc:
        raise ValueError("expected the checksum of a value tree, found another")
    parts = []
    try:
        (count,) = _COUNT.unpack_from(head)
        at = _COUNT.size
        for _ in range(count):
            (size,) = _COUNT.unpack_from(head, at)
            at += _COUNT.size
            form = parse_form(head[at : at + size].decode())
            at += size
            start, nbytes, compressed = _PLACE.unpack_from(head, at)
            at += _PLACE.size
            if (
                form.kind != "array"
                or not end <= start <= start + nbytes <= len(data)
                or start % _ALIGN
                or not (compressed or nbytes == form.nbytes)
            ):
                raise ValueError(f"expected an array of a value tree, found {form} at {start}")
            end = start + nbytes
            if compressed:
                parts.append(opened(base[start:end], form))
            else:
                parts.append(pack.view(base, form, start))
    except struct.error as error:
        raise ValueError("expected the head of a value tree, found less") from error
    return Tree(head[at:], parts)


def form_of(nbytes: int) -> Form:
    """What the catalog says of a tree of so many bytes."""
    return Form(_BYTE, (nbytes,), "C", "tree")


def in_c_order(part: np.ndarray) -> np.ndarray:
    """A part as a C-contiguous array: of one in Fortran order, its transpose."""
    return part if part.flags.c_contiguous else part.T


def _aligned(at: int) -> int:
    return (at + _ALIGN - 1) & -_ALIGN


def _order(part: np.ndarray) -> Literal["C", "F"]:
    return "C" if part.flags.c_contiguous else "F"


def _bytes_of(part: np.ndarray) -> memoryview:
    return in_c_order(part).reshape(-1).view(np.uint8).data
