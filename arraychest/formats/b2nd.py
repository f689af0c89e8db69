"""The file of a compressed array: a Blosc2 frame, and behind it what a reader checks it against.

Layout: the frame, which `blosc2.open` reads and behind which it looks at nothing; then the *record*
(all little-endian)::

    uint64  the stamp in the file's trailer: another array's frame and record are not this file's
    uint8   codec, level, number of filters, number of dimensions
    uint8   each filter, then what each is told
    uint32  chunks, then blocks, along each dimension
    uint32  size of each chunk, 0 for one of zero bytes
    uint32  zlib.crc32 of each chunk from its begin to the end of its head, then to the end of each
            of its blocks; none for a chunk of zeros
    uint32  size of the record; crc32 of all of it before this

The shape and the dtype are the catalog's to say.  Nothing is handed to Blosc2 before it was
checked: header, index and trailer of the frame are compared with what they must be, a chunk's
header with its layout, and a block with its checksum before it is decompressed for the first time.
A checksum continues the one before it.  So a window checks the few blocks that it needs, each from
the checksum before it, and a whole chunk is checked by one call with the last of its checksums.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from arraychest.formats import blosc, frame
from arraychest.formats.blosc import CHUNK_BYTES, ChunkCodec, FrameReader, Touched
from arraychest.formats.frame import Layout
from arraychest.parallel import in_order

_CHANGED = "expected bytes with their checksum, found another checksum"

# What takes less than one byte for so many is read by one thread.
_DENSE = 4

# Less is decompressed as fast by one thread as two are started.
_FEW_BLOCKS = 32

_FIRST = struct.Struct("<QBBBB")
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
    stamp
        Of the file.
    """

    layout: Layout
    sizes: list[int]
    sums: np.ndarray
    stamp: int


def sums_of(layout: Layout, chunk: bytes | memoryview) -> list[int]:
    """The checksums of a chunk: up to the end of its head, and of each of its blocks.

    Raises
    ------
    ValueError
        It is none of this layout.
    """
    view = memoryview(chunk)
    found, crc = [], 0
    for start, end in itertools.pairwise([0, *frame.block_limits(layout, view)]):
        crc = zlib.crc32(view[start:end], crc)
        found.append(crc)
    return found


def write(
    array: np.ndarray,
    layout: Layout,
    nthreads: int,
    put: Callable[[int, Sequence[bytes]], object],
    stamp: int,
) -> int:
    """Write frame and record of an array, chunk by chunk, and return their size in bytes.

    Parameters
    ----------
    put
        Writes buffers one after another at an offset; the header, which tells of all chunks, comes
        last.
    stamp
        Of the file.
    """
    codec = ChunkCodec(layout)

    def encode(where: tuple[slice, ...]) -> tuple[bytes, list[int]]:
        chunk = codec.compressed(array[where])
        return chunk, sums_of(layout, chunk) if chunk else []

    sizes: list[int] = []
    at = len(frame.header(layout, [0] * layout.nchunks))
    sums: list[int] = []
    for chunk, found in in_order(encode, layout.slices(), nthreads):
        sizes.append(len(chunk))
        if chunk:
            put(at, [chunk])
            at += len(chunk)
            sums += found
    tail = [frame.index(sizes), frame.TRAILER]
    end = at + sum(map(len, tail))
    record = encoded(Record(layout, sizes, np.array(sums, "<u4"), stamp))
    put(at, [*tail, record])
    put(0, [frame.header(layout, sizes)])
    return end + len(record)


# Bytes in RAM for each thread that compresses: a chunk as it is, one as Blosc2 makes it, and two
# compressed ones.
WORKING_BYTES = 4 * CHUNK_BYTES


def encoded(record: Record) -> bytes:
    """A record's bytes."""
    layout = record.layout
    ndim = len(layout.shape)
    body = _FIRST.pack(record.stamp, layout.codec, layout.clevel, len(layout.filters), ndim)
    body += bytes(layout.filters) + bytes(layout.filters_meta)
    body += np.array([*layout.chunks, *layout.blocks, *record.sizes], "<u4").tobytes()
    body += record.sums.tobytes()
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
    stamp, codec, level, nfilters, ndim = _FIRST.unpack_from(body)
    at = _FIRST.size + 2 * nfilters
    if ndim != len(shape) or (size - at) % 4 or size < at + 8 * ndim + _LAST.size:
        raise ValueError(f"expected a record of {len(shape)} dimensions, found one of {ndim}")
    filters = tuple(body[_FIRST.size : _FIRST.size + nfilters])
    meta = tuple(body[_FIRST.size + nfilters : at])
    numbers = np.frombuffer(body, "<u4", (size - at - _LAST.size) // 4, at)
    chunks, blocks = numbers[:ndim].tolist(), numbers[ndim : 2 * ndim].tolist()
    layout = Layout(dtype, shape, tuple(chunks), tuple(blocks), codec, level, filters, meta)
    frame.check(layout)
    nchunks = layout.nchunks
    left = numbers[2 * ndim :]
    sizes, sums = left[:nchunks].tolist(), left[nchunks:].copy()
    if len(sizes) != nchunks:
        raise ValueError(f"expected the sizes of {nchunks} chunks, found {len(sizes)}")
    nbytes = len(data) - size
    if frame_size(layout, sizes) != nbytes or len(sums) != _nsums(layout, sizes):
        raise ValueError(
            f"expected a frame of {frame_size(layout, sizes)} bytes, found {nbytes} and "
            f"{len(sums)} checksums"
        )
    return Record(layout, sizes, sums, stamp)


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
    stamp
        Of the file.
    nthreads
        How many threads read many chunks.

    Raises
    ------
    ValueError
        They are not those of such an array: here, or at a read.
    """

    def __init__(
        self,
        data: np.ndarray,
        dtype: np.dtype,
        shape: tuple[int, ...],
        stamp: int,
        nthreads: int,
    ) -> None:
        view = data.data
        self.layout, sizes, self._sums, found = decoded(view, dtype, shape)
        if found != stamp:
            raise ValueError("expected the record of this file, found another's")
        nbytes = frame_size(self.layout, sizes)
        head = frame.header(self.layout, sizes)
        tail = frame.index(sizes) + frame.TRAILER
        if bytes(view[: len(head)]) != head or bytes(view[nbytes - len(tail) : nbytes]) != tail:
            raise ValueError("expected header, index and trailer of this frame, found others")
        self._view = view[:nbytes]
        self._sizes = sizes
        self._stamp = stamp
        self._starts = list(itertools.accumulate(sizes, initial=len(head)))
        # What compresses well is decompressed as fast as memory takes it, and a second thread waits
        # for the interpreter lock: milliseconds for 256 MiB at 35 : 1 and at 2 : 1, by one thread
        # and by two: 91 and 106; 478 and 268.
        dense = _DENSE * nbytes >= math.prod(shape) * dtype.itemsize
        self._nthreads = nthreads if dense else 1
        # Where the sums of each chunk begin.
        each = 1 + self.layout.nblocks
        counted = (each if size else 0 for size in sizes)
        self._sums_at = list(itertools.accumulate(counted, initial=0))
        # Chunks of which all is good, and of others where their blocks lie, and which are good.
        # Two threads may check one block at a time, and find the same.
        self._good = bytearray(size == 0 for size in sizes)
        self._begun: dict[int, tuple[list[int], bytearray]] = {}
        self._frame = FrameReader(data[:nbytes])
        self._codec = ChunkCodec(self.layout)

    @property
    def stored(self) -> int:
        """Bytes of the frame."""
        return len(self._view)

    @property
    def token(self) -> bytes:
        """What tells this array from all others: a hash of the record, which has the stamp of the
        file and the checksums of what is in the array.
        """
        record = Record(self.layout, self._sizes, self._sums, self._stamp)
        return hashlib.blake2b(encoded(record), digest_size=16).digest()

    def read(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part of the array, all of whose steps are 1: a new array in C order.

        Raises
        ------
        ValueError, RuntimeError
            Bytes that it needs have changed since they were written.
        """
        out = np.empty([each.stop - each.start for each in where], self.layout.dtype)
        self.read_into(out, where)
        return out

    def read_into(self, out: np.ndarray, where: tuple[slice, ...]) -> None:
        """A part of the array, as `read` gives it, into an array of its shape and dtype."""
        boxes = blosc.touched(self.layout, where)
        # Where most of a chunk is wanted it is decompressed whole, and many of them by several
        # threads; Blosc2 goes from chunk to chunk and from block to block with one, but leaves out
        # what is not wanted.
        most = max(self.layout.nblocks // 2, _FEW_BLOCKS)
        if not any([box.nblocks >= most for box in boxes]):
            for number, _, blocks in boxes:
                if not self._good[number]:
                    self._check(number, blocks)
            self._frame.read_into(out, where)
            return
        read = functools.partial(self._read_box, out, where, most)
        for _ in in_order(read, boxes, min(self._nthreads, len(boxes))):
            pass

    def _read_box(
        self,
        out: np.ndarray,
        where: tuple[slice, ...],
        most: int,
        box: Touched,
    ) -> None:
        """Write what a chunk holds of a part of the array to its place in it."""
        number, inside, blocks = box
        there = tuple([
            slice(c + i.start, c + i.stop)
            for c, i in zip(self.layout.corner(number), inside, strict=True)
        ])  # fmt: skip
        mine = out[
            tuple([
                slice(t.start - w.start, t.stop - w.start)
                for t, w in zip(there, where, strict=True)
            ])
        ]  # fmt: skip
        whole = box.nblocks >= most
        if not self._good[number]:
            # Also what the last chunk is filled up with: all of it is decompressed.
            if whole:
                self._check_whole(number)
            else:
                self._check(number, blocks)
        if whole:
            corner = [each.start for each in inside]
            self._codec.decompress(self._chunk(number), mine, corner)
        else:
            self._frame.read_into(mine, there)

    def damage(self, told: Callable[[int], object] | None = None) -> tuple[int, int] | None:
        """From which byte to which chunks have changed since they were written; None: none has.

        Every byte is compared with its checksum, and `told` is called with the bytes of each chunk.
        """
        bad = []
        for number, good in enumerate(self._good):
            if not good:
                try:
                    self._check_whole(number)
                except ValueError:
                    bad.append(number)
            if told is not None:
                told(self._sizes[number])
        return (self._starts[bad[0]], self._starts[bad[-1] + 1]) if bad else None

    def _chunk(self, number: int) -> memoryview:
        at = self._starts[number]
        return self._view[at : at + self._sizes[number]]

    def _check(self, number: int, blocks: tuple[range, ...]) -> None:
        """Check some blocks of a chunk; `blocks` as `Touched` has them."""
        begun = self._begun.get(number) or self._begin(number)
        limits, good = begun
        before = self._sums_at[number]
        chunk, sums, crc32 = self._chunk(number), self._sums, zlib.crc32
        for block in map(sum, itertools.product(*blocks)):
            if not good[block]:
                data = chunk[limits[block] : limits[block + 1]]
                if crc32(data, sums[before + block]) != sums[before + block + 1]:
                    raise ValueError(_CHANGED)
                good[block] = 1
        if 0 not in good:
            self._good[number] = 1
            self._begun.pop(number, None)

    def _check_whole(self, number: int) -> None:
        chunk = self._chunk(number)
        frame.block_limits(self.layout, chunk)
        if zlib.crc32(chunk) != self._sums[self._sums_at[number + 1] - 1]:
            raise ValueError(_CHANGED)
        self._good[number] = 1
        self._begun.pop(number, None)

    def _begin(self, number: int) -> tuple[list[int], bytearray]:
        chunk = self._chunk(number)
        limits = frame.block_limits(self.layout, chunk)
        if zlib.crc32(chunk[: limits[0]]) != self._sums[self._sums_at[number]]:
            raise ValueError(_CHANGED)
        self._begun[number] = found = limits, bytearray(len(limits) - 1)
        return found
