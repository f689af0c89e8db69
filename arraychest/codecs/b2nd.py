"""The file of a compressed array: a Blosc2 frame, and behind it what a reader checks it against.

Layout: the frame, which `blosc2.open` reads and behind which it looks at nothing; then the *record*
(all little-endian)::

    uint8   codec, level, number of filters, number of dimensions
    uint8   each filter, then what each is told
    uint32  chunks, then blocks, along each dimension
    uint32  size of each chunk, 0 for one of zero bytes
    uint32  zlib.crc32 of each piece of 8 KiB of the frame
    uint32  size of the record; crc32 of all of it before this

The shape and the dtype are the catalog's to say.  Nothing is handed to Blosc2 before it was
checked: header, index and trailer of the frame are compared with what they must be, a chunk's
header with its layout, and every piece of the file with its checksum before it is read first.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from arraychest.codecs import frame
from arraychest.codecs.blosc import FrameReader, chunks_of
from arraychest.codecs.frame import Layout

# What is checked before a window can be read: its blocks, of some kilobytes each, lie in a few.
PIECE_BYTES = 8 << 10

_FIRST = struct.Struct("<BBBB")
_LAST = struct.Struct("<II")


class Record(NamedTuple):
    """What is needed to check a frame.

    Attributes
    ----------
    layout
        How the array lies in it.
    sizes
        Of its chunks.
    sums
        Of its pieces.
    """

    layout: Layout
    sizes: list[int]
    sums: list[int]


class Summing:
    """Checksums of the pieces of a file that is written from its beginning on, part by part."""

    def __init__(self) -> None:
        self.sums: list[int] = []
        self._rest = b""

    def add(self, data: bytes) -> None:
        """Note the next bytes of the file."""
        view = memoryview(data)
        if self._rest:
            taken = PIECE_BYTES - len(self._rest)
            self._rest += bytes(view[:taken])
            view = view[taken:]
            if len(self._rest) < PIECE_BYTES:
                return
            self.sums.append(zlib.crc32(self._rest))
        whole = len(view) // PIECE_BYTES * PIECE_BYTES
        self.sums += [
            zlib.crc32(view[at : at + PIECE_BYTES]) for at in range(0, whole, PIECE_BYTES)
        ]
        self._rest = bytes(view[whole:])

    def ended(self) -> list[int]:
        """All sums, the last one of what was left."""
        return [*self.sums, zlib.crc32(self._rest)] if self._rest else self.sums


def write(
    layout: Layout, chunks: Iterable[bytes], put: Callable[[int, Sequence[bytes]], object]
) -> int:
    """Write frame and record, chunk by chunk, and return their size in bytes.

    Parameters
    ----------
    chunks
        As `blosc.compressed` gives them.
    put
        Writes buffers one after another at an offset; the header, which tells of all chunks, comes
        last.
    """
    sizes: list[int] = []
    at = len(frame.header(layout, [0] * layout.nchunks))
    summing = Summing()
    summing.add(bytes(at))
    # The first piece, whose sum waits for the header.
    first = bytearray(at)
    for chunk in chunks:
        sizes.append(len(chunk))
        if chunk:
            frame.check_chunk(layout, memoryview(chunk))
            put(at, [chunk])
            at += len(chunk)
            summing.add(chunk)
            first += chunk[: PIECE_BYTES - len(first)]
    tail = [frame.index(sizes), frame.TRAILER]
    for part in tail:
        summing.add(part)
        first += part[: PIECE_BYTES - len(first)]
    head = frame.header(layout, sizes)
    first[: len(head)] = head
    sums = summing.ended()
    sums[0] = zlib.crc32(first)
    end = at + sum(map(len, tail))
    record = encoded(Record(layout, sizes, sums))
    put(at, [*tail, record])
    put(0, [head])
    return end + len(record)


def encoded(record: Record) -> bytes:
    """A record's bytes."""
    layout = record.layout
    ndim = len(layout.shape)
    body = _FIRST.pack(layout.codec, layout.clevel, len(layout.filters), ndim)
    body += bytes(layout.filters) + bytes(layout.filters_meta)
    numbers = [*layout.chunks, *layout.blocks, *record.sizes, *record.sums]
    body += np.array(numbers, "<u4").tobytes()
    body += struct.pack("<I", len(body) + _LAST.size)
    return body + struct.pack("<I", zlib.crc32(body))


def decoded(data: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> Record:
    """The record that bytes end with, and which fits an array of this kind.

    Raises
    ------
    ValueError
        There is none: what was expected, and what was found.
    """
    if len(data) < _LAST.size:
        raise ValueError(f"expected a record behind the frame, found {len(data)} bytes in all")
    size, crc = _LAST.unpack_from(data, len(data) - _LAST.size)
    if not _FIRST.size + _LAST.size <= size <= len(data):
        raise ValueError(f"expected the size of a record, found {size}")
    body = data[len(data) - size :]
    if zlib.crc32(body[:-4]) != crc:
        raise ValueError("expected a record with its checksum, found another checksum")
    codec, level, nfilters, ndim = _FIRST.unpack_from(body)
    at = _FIRST.size + 2 * nfilters
    if ndim != len(shape) or (size - at) % 4 or size < at + 8 * ndim + _LAST.size:
        raise ValueError(f"expected a record of {len(shape)} dimensions, found one of {ndim}")
    filters = tuple(body[_FIRST.size : _FIRST.size + nfilters])
    meta = tuple(body[_FIRST.size + nfilters : at])
    numbers = np.frombuffer(body, "<u4", (size - at - _LAST.size) // 4, at).tolist()
    chunks, blocks = tuple(numbers[:ndim]), tuple(numbers[ndim : 2 * ndim])
    layout = Layout(dtype, shape, chunks, blocks, codec, level, filters, meta)
    frame.check(layout)
    nchunks = layout.nchunks
    left = numbers[2 * ndim :]
    sizes, sums = left[:nchunks], left[nchunks:]
    if len(sizes) != nchunks:
        raise ValueError(f"expected the sizes of {nchunks} chunks, found {len(sizes)}")
    nbytes = len(data) - size
    if frame_size(layout, sizes) != nbytes or len(sums) != -(-nbytes // PIECE_BYTES):
        raise ValueError(
            f"expected a frame of {frame_size(layout, sizes)} bytes, found {nbytes} and "
            f"{len(sums)} checksums"
        )
    return Record(layout, sizes, sums)


def frame_size(layout: Layout, sizes: Sequence[int]) -> int:
    """Bytes of a frame with chunks of these sizes."""
    return frame.frame_bytes(len(frame.header(layout, [0] * len(sizes))), sizes)


class CheckedReader:
    """Reads parts of the array in a file, each piece checked when it is read first.

    Safe from many threads.

    Parameters
    ----------
    data
        The bytes of frame and record.
    dtype, shape
        What the catalog says of the array.

    Raises
    ------
    ValueError
        They are not those of such an array: here, or at a read.
    """

    def __init__(self, data: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        view = data.data
        self._record = decoded(view, dtype, shape)
        layout, sizes, sums = self._record
        self.layout = layout
        nbytes = frame_size(layout, sizes)
        self._view = view[:nbytes]
        self._sums = sums
        # One byte for each piece and each chunk that was found good.  Two threads may check one
        # at a time, and find the same.
        self._good = bytearray(len(sums))
        self._good_chunks = bytearray(len(sizes))
        head = frame.header(layout, sizes)
        self._starts = list(itertools.accumulate(sizes, initial=len(head)))
        tail = frame.index(sizes) + frame.TRAILER
        if (
            bytes(self._view[: len(head)]) != head
            or bytes(self._view[nbytes - len(tail) :]) != tail
        ):
            raise ValueError("expected header, index and trailer of this frame, found others")
        self._reader = FrameReader(data[:nbytes])

    def read(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part of the array, all of whose steps are 1: a new array in C order.

        Raises
        ------
        ValueError
            Bytes that it needs have changed since they were written.
        """
        for number in chunks_of(self.layout, where):
            if not self._good_chunks[number]:
                self._check_chunk(number)
        return self._reader.read(where)

    def _check_chunk(self, number: int) -> None:
        size = self._record.sizes[number]
        start = self._starts[number]
        for piece in range(start // PIECE_BYTES, -(-(start + size) // PIECE_BYTES)):
            if not self._good[piece]:
                at = piece * PIECE_BYTES
                if zlib.crc32(self._view[at : at + PIECE_BYTES]) != self._sums[piece]:
                    raise ValueError(
                        f"expected bytes {at} to {at + PIECE_BYTES} with their checksum, found "
                        "another checksum"
                    )
                self._good[piece] = 1
        if size:
            frame.check_chunk(self.layout, self._view[start : start + size])
        self._good_chunks[number] = 1
