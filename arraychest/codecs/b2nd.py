"""The file of a compressed array: a Blosc2 frame, and behind it what a reader checks it against.

Layout: the frame, which `blosc2.open` reads and behind which it looks at nothing; then the *record*
(all little-endian)::

    uint8   codec, level, number of filters, number of dimensions
    uint8   each filter, then what each is told
    uint32  chunks, then blocks, along each dimension
    uint32  size of each chunk, 0 for one of zero bytes
    uint32  zlib.crc32 of each chunk's head, then of each of its blocks; none for one of zeros
    uint32  size of the record; crc32 of all of it before this

The shape and the dtype are the catalog's to say.  Nothing is handed to Blosc2 before it was
checked: header, index and trailer of the frame are compared with what they must be, a chunk's
header with its layout, and a block with its checksum before it is decompressed for the first time.
A checksum of each chunk as a whole would take longer than the decompression of a window.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from arraychest.codecs import blosc, frame
from arraychest.codecs.blosc import FrameReader
from arraychest.codecs.frame import Layout

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
        Of head and blocks of each chunk that is not empty.
    """

    layout: Layout
    sizes: list[int]
    sums: list[int]


def sums_of(layout: Layout, chunk: bytes | memoryview) -> list[int]:
    """The checksums of a chunk: of its head, and of each of its blocks."""
    view = memoryview(chunk)
    starts, ends = frame.extents(layout, view)
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    head = zlib.crc32(view[: frame.head_bytes(layout, view)])
    return [head, *[zlib.crc32(view[start:end]) for start, end in pairs]]


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
    sums: list[int] = []
    for chunk in chunks:
        sizes.append(len(chunk))
        if chunk:
            frame.check_chunk(layout, memoryview(chunk))
            put(at, [chunk])
            at += len(chunk)
            sums += sums_of(layout, chunk)
    tail = [frame.index(sizes), frame.TRAILER]
    end = at + sum(map(len, tail))
    record = encoded(Record(layout, sizes, sums))
    put(at, [*tail, record])
    put(0, [frame.header(layout, sizes)])
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
    if frame_size(layout, sizes) != nbytes or len(sums) != _nsums(layout, sizes):
        raise ValueError(
            f"expected a frame of {frame_size(layout, sizes)} bytes, found {nbytes} and "
            f"{len(sums)} checksums"
        )
    return Record(layout, sizes, sums)


def _nsums(layout: Layout, sizes: Sequence[int]) -> int:
    return (1 + layout.nblocks) * sum(size > 0 for size in sizes)


def frame_size(layout: Layout, sizes: Sequence[int]) -> int:
    """Bytes of a frame with chunks of these sizes."""
    return frame.frame_bytes(len(frame.header(layout, [0] * len(sizes))), sizes)


class CheckedReader:
    """Reads parts of the array in a file, each block checked when it is read first.

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
        self.layout, sizes, self._sums = decoded(view, dtype, shape)
        nbytes = frame_size(self.layout, sizes)
        head = frame.header(self.layout, sizes)
        tail = frame.index(sizes) + frame.TRAILER
        if bytes(view[: len(head)]) != head or bytes(view[nbytes - len(tail) : nbytes]) != tail:
            raise ValueError("expected header, index and trailer of this frame, found others")
        self._view = view[:nbytes]
        self._sizes = sizes
        self._starts = list(itertools.accumulate(sizes, initial=len(head)))
        # Where the sums of each chunk begin.
        each = (1 + self.layout.nblocks for _ in sizes)
        counted = (n if size else 0 for n, size in zip(each, sizes, strict=True))
        self._sums_at = list(itertools.accumulate(counted, initial=0))
        # Chunks of which all is good, and of others where their blocks lie and which are good.
        # Two threads may check one block at a time, and find the same.
        self._good = bytearray(size == 0 for size in sizes)
        self._begun: dict[int, tuple[list[int], list[int], bytearray]] = {}
        self._reader = FrameReader(data[:nbytes])

    def read(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part of the array, all of whose steps are 1: a new array in C order.

        Raises
        ------
        ValueError
            Bytes that it needs have changed since they were written.
        """
        for number, inside in blosc.touched(self.layout, where):
            if not self._good[number]:
                self._check(number, inside)
        return self._reader.read(where)

    def _check(self, number: int, inside: tuple[slice, ...]) -> None:
        """Check the blocks of a chunk that a part of it lies in."""
        begun = self._begun.get(number) or self._begin(number)
        starts, ends, good = begun
        sums_at = self._sums_at[number] + 1
        at = self._starts[number]
        for block in blosc.blocks_of(self.layout, inside):
            if not good[block]:
                start, end = at + starts[block], at + ends[block]
                self._compare(start, end, sums_at + block)
                good[block] = 1
        if all(good):
            self._good[number] = 1
            self._begun.pop(number, None)

    def _begin(self, number: int) -> tuple[list[int], list[int], bytearray]:
        at = self._starts[number]
        chunk = self._view[at : at + self._sizes[number]]
        frame.check_chunk(self.layout, chunk)
        self._compare(at, at + frame.head_bytes(self.layout, chunk), self._sums_at[number])
        starts, ends = frame.extents(self.layout, chunk)
        self._begun[number] = found = starts.tolist(), ends.tolist(), bytearray(len(starts))
        return found

    def _compare(self, start: int, end: int, number: int) -> None:
        if zlib.crc32(self._view[start:end]) != self._sums[number]:
            raise ValueError(
                f"expected bytes {start} to {end} with their checksum, found another checksum"
            )
