"""Checksums of stored bytes: four bytes for each MiB of a value, computed before it is written.

The checksum of a piece is `zlib.crc32` over 509 sums: sum ``j`` is that of the 64-bit words ``j``,
``j + 509``, ``j + 1018``, … of the piece, modulo 2**64.  NumPy adds them at some 30 GB/s, where
`zlib.crc32` of the bytes themselves runs at 3 to 4, and the fold takes 1 us for each MiB.

What it detects:

- *Every single flipped bit, for certain.*  It changes one sum by a power of two, so the bits in
  which old and new sum differ are a run of ones.  A CRC with a primitive polynomial of degree 32
  misses no run of ones that is shorter than 2**32 - 1 bits.
- *Any damage to one word, any burst, and any block of up to 4,072 bytes,* as far as the fold tells
  509 sums from 509 others: each of these words is in a sum of its own, so a sum changes for
  certain, and one change in 2**32 has the same fold.
- *Zeroed, torn, swapped and shifted blocks,* in the same way.  509 is a prime, and no power of
  two: a page, a sector or a word that has moved adds to other sums than before, and many equal
  words whose changes would cancel out in each page do not cancel out in all of the sums.

What it does not detect: words that have changed places over a multiple of 4,072 bytes; that a
multiple of 16,288 bytes is zeroed of which each word is 2.0 or -0.0 as float64 (only their highest
bits are set, so four of them add up to 0 or 2**64); and what somebody has forged.

A value in a pack has the `zlib.crc32` of its own bytes: it is small, and NumPy's calls would take
longer than its bytes.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from arraychest.parallel import in_order

# Bytes that one checksum is of; the last one's may be fewer.
PIECE_BYTES = 1 << 20

# Bytes of a checksum where it is stored.
PACKED_BYTES = 4

# What one thread reads before its progress is told.
GROUP_BYTES = 2 << 20

# How many sums of words a piece has.  A prime just below the 512 words of a page.
_SUMS = 509
_WORD_BYTES = 8


def checksum(piece: Any) -> int:
    """The checksum of these bytes: any buffer that lies in one piece.  Some 35 us for a MiB."""
    data = np.frombuffer(piece, np.uint8)
    whole = data.size // _WORD_BYTES
    words = data[: whole * _WORD_BYTES].view("<u8")
    rows = whole // _SUMS
    sums = np.add.reduce(words[: rows * _SUMS].reshape(rows, _SUMS), axis=0, dtype="<u8")
    rest = words[rows * _SUMS :]
    sums[: rest.size] += rest
    # What is no whole word counts as one that zeros complete.
    tail = int.from_bytes(data[whole * _WORD_BYTES :].tobytes(), "little")
    sums[rest.size] += np.uint64(tail)
    return zlib.crc32(sums)


def of_buffers(buffers: Iterable[bytes | memoryview]) -> bytes:
    """The checksums of bytes that lie end to end in these buffers."""
    found: list[int] = []
    pending = bytearray()
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        at = 0
        if pending:
            at = PIECE_BYTES - len(pending)
            pending += view[:at]
            if len(pending) < PIECE_BYTES:
                continue
            found.append(checksum(pending))
            pending = bytearray()
        while len(view) - at >= PIECE_BYTES:
            found.append(checksum(view[at : at + PIECE_BYTES]))
            at += PIECE_BYTES
        pending += view[at:]
    if pending:
        found.append(checksum(pending))
    return _packed(found)


def of_file(fd: int, start: int, nbytes: int, nthreads: int = 1) -> bytes:
    """The checksums of a part of an open file; fewer where the file ends before."""
    return _packed([each for group in in_groups(fd, start, nbytes, nthreads) for each in group])


def in_groups(fd: int, start: int, nbytes: int, nthreads: int = 1) -> Iterator[list[int]]:
    """The checksums of a part of an open file, those of `GROUP_BYTES` at a time.

    The bytes are read, not mapped: a file that is truncated meanwhile would be a bus error.
    """
    end = start + nbytes
    starts = range(start, end, GROUP_BYTES)
    # One buffer for each thread: its pages take as long to make as to read a MiB.
    own = threading.local()

    def group(at: int) -> list[int]:
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(min(PIECE_BYTES, max(nbytes, 1))))
        return _of_group(fd, at, min(GROUP_BYTES, end - at), own.buffer)

    return in_order(group, starts, nthreads if len(starts) > 1 else 1)


def _of_group(fd: int, start: int, nbytes: int, buffer: memoryview) -> list[int]:
    found = []
    while nbytes:
        wanted = min(len(buffer), nbytes)
        count = 0
        while count < wanted:
            read = os.preadv(fd, [buffer[count:wanted]], start + count)
            if not read:
                break
            count += read
        if count:
            found.append(checksum(buffer[:count]))
        if count < wanted:
            break
        start += count
        nbytes -= count
    return found


def of_values(values: Sequence[Any]) -> bytes:
    """The checksum of each of these small values, which lie in one pack."""
    return _packed(list(map(zlib.crc32, values)))


def count(nbytes: int) -> int:
    """How many checksums a value of so many bytes has."""
    return -(-nbytes // PIECE_BYTES)


def unpacked(data: bytes) -> list[int]:
    """Checksums as numbers."""
    values: list[int] = np.frombuffer(data, "<u4").tolist()
    return values


def _packed(found: list[int]) -> bytes:
    return np.array(found, "<u4").tobytes()
