"""Checksums of stored bytes: `zlib.crc32` of each piece of a file, so that damage is located.

They are computed in the background, once nothing waits to be stored: inline they would halve the
speed of a spill (crc32 3.7 GB/s, a write to the page cache 5 to 10).  So a value has none for a
moment after it was stored, and keeps none if its process dies in this moment.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Of a file that holds one value.
PIECE_BYTES = 1 << 20

# Of a pack: damage to one piece puts all values in doubt that lie in it.
PACK_PIECE_BYTES = 4096


class Extent(NamedTuple):
    """Bytes of a value file that have no checksum yet.

    Attributes
    ----------
    file
        Generation of the value, or the pack's id.
    name
        The file, relative to the chest.
    start, nbytes
        Which bytes.
    key
        Canonical code of the value's key; None for a pack.
    """

    file: int
    name: str
    start: int
    nbytes: int
    key: bytes | None

    @property
    def piece(self) -> int:
        """Bytes that each sum is of; the last one's may be fewer."""
        return PACK_PIECE_BYTES if self.key is None else PIECE_BYTES


def sums(fd: int, start: int, nbytes: int, piece: int) -> Iterator[int]:
    """The sum of each piece of a part of an open file; fewer where the file ends before.

    They are read, not mapped: a file that is truncated meanwhile would be a bus error.
    """
    buffer = np.empty(max(piece, PIECE_BYTES), np.uint8).data
    end = start + nbytes
    while start < end:
        wanted = min(len(buffer), end - start)
        count = 0
        while count < wanted:
            read = os.preadv(fd, [buffer[count:wanted]], start + count)
            if not read:
                break
            count += read
        for at in range(0, count, piece):
            yield zlib.crc32(buffer[at : min(at + piece, count)])
        if count < wanted:
            return
        start += count


def packed(found: list[int]) -> bytes:
    """Sums as the catalog keeps them."""
    return np.array(found, "<u4").tobytes()


def unpacked(data: bytes) -> list[int]:
    """Undo `packed`."""
    values: list[int] = np.frombuffer(data, "<u4").tolist()
    return values


def of_bytes(data: bytes, piece: int) -> list[int]:
    """The sum of each piece of these bytes."""
    view = memoryview(data)
    return [zlib.crc32(view[at : at + piece]) for at in range(0, len(data), piece)]
