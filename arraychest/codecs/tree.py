"""The tree codec: a value that is no array as one run of bytes, its arrays among them.

::

    4 bytes   "ATr1"
    4 bytes   how many bytes the head has (all numbers are little-endian)
    4 bytes   zlib.crc32 of the head
    head      how many parts there are (4 bytes); of each how many bytes its form's text has
              (4 bytes), the text (see `entry.form_text`) and how many bytes it has (8 bytes);
              then the structure around them (see `valuetree`)
    parts     each from the next multiple of 64 on

To all that stores it, it is an array of bytes: mapped, packed and checked as any other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from arraychest.codecs import pack
from arraychest.entry import Form, form_text, parse_form

_PREFIX = struct.Struct("<4sII")
_MAGIC = b"ATr1"
_COUNT = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_ALIGN = pack.ALIGN

# The structure around the arrays is not larger, in bytes: it is decoded at each get.
MAX_STRUCTURE_BYTES = 64 << 20

_BYTE = np.dtype(np.uint8)


class Tree:
    """A value tree as a chest keeps it.

    Attributes
    ----------
    structure
        All that is not in `parts`, encoded; see `valuetree`.
    parts
        The arrays, each once, and the bytes of what is large: plain arrays, contiguous in C or
        Fortran order.
    nbytes
        Bytes of the whole as it is stored.
    """

    __slots__ = ("__weakref__", "_head", "nbytes", "parts", "structure")

    # As of an array that owns its bytes.
    base = None

    def __init__(self, structure: bytes, parts: Sequence[np.ndarray]) -> None:
        self.structure = structure
        self.parts = parts
        self._head = _COUNT.pack(len(parts))
        if parts:
            forms = []
            for part in parts:
                text = form_text(part.dtype, part.shape, _order(part), "array").encode()
                forms += [_COUNT.pack(len(text)), text, _SIZE.pack(part.nbytes)]
            self._head += b"".join(forms)
        end = _PREFIX.size + len(self._head) + len(structure)
        for part in parts:
            end = _aligned(end) + part.nbytes
        self.nbytes = end

    @property
    def own_bytes(self) -> int:
        """Bytes that are in no part."""
        return self.nbytes - sum([part.nbytes for part in self.parts])

    @property
    def form(self) -> Form:
        """What the catalog says of it."""
        return Form(_BYTE, (self.nbytes,), "C", "tree")

    def buffers(self) -> Iterator[bytes | memoryview]:
        """Its bytes; no part is copied."""
        head = self._head + self.structure
        yield _PREFIX.pack(_MAGIC, len(head), zlib.crc32(head)) + head
        at = _PREFIX.size + len(head)
        for part in self.parts:
            yield bytes(-at % _ALIGN)
            at = _aligned(at) + part.nbytes
            if part.nbytes:
                flat = part if part.flags.c_contiguous else part.T
                yield flat.reshape(-1).view(np.uint8).data

    def tobytes(self) -> bytes:
        """Its bytes, copied together."""
        return b"".join(self.buffers())


def parse(base: np.ndarray) -> Tree:
    """The tree that lies in an array of bytes; its parts are views of it.

    Raises
    ------
    ValueError, TypeError
        The bytes are no tree, or not whole.
    """
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
    try:
        (count,) = _COUNT.unpack_from(head)
        at = _COUNT.size
        parts = []
        for _ in range(count):
            (size,) = _COUNT.unpack_from(head, at)
            at += _COUNT.size
            form = parse_form(head[at : at + size].decode())
            at += size
            (nbytes,) = _SIZE.unpack_from(head, at)
            at += _SIZE.size
            start = _aligned(end)
            end = start + nbytes
            if form.kind != "array" or form.nbytes != nbytes or end > len(data):
                raise ValueError("expected the arrays of a value tree, found less")
            parts.append(pack.view(base, form, start))
    except struct.error as error:
        raise ValueError("expected the head of a value tree, found less") from error
    return Tree(head[at:], parts)


def _aligned(at: int) -> int:
    return (at + _ALIGN - 1) & -_ALIGN


def _order(part: np.ndarray) -> Literal["C", "F"]:
    return "C" if part.flags.c_contiguous else "F"
