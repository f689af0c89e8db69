"""The Blosc2 frame, but for what is in its chunks: its bytes follow from the array's layout alone.

A frame is a header, the chunks one after another, an index of their offsets (itself a chunk), and
a trailer.  Header, index and trailer are written here, byte for byte as Blosc2 writes them for an
array without attributes, its index uncompressed.  So a reader that knows the layout and the chunks'
sizes compares what a file says with what it must say, instead of believing it: Blosc2 itself
checks nothing.

References
----------
README_CFRAME_FORMAT, README_CHUNK_FORMAT and README_B2ND_METALAYER of C-Blosc2.
"""

from __future__ import annotations

import itertools
import math
import operator
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Blosc2's own numbers of its codecs, by name.
CODECS = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5}

# Blosc2's own numbers of the filters that a frame of ours may have, by name.  Not "delta", with
# which a block cannot be read without another; not those of a user's own making.
FILTERS = {
    "nofilter": 0, "shuffle": 1, "bitshuffle": 2, "trunc_prec": 4, "bytedelta": 35,
    "int_trunc": 36,
}  # fmt: skip

CODEC_NAMES = {number: name for name, number in CODECS.items()}
FILTER_NAMES = {number: name for name, number in FILTERS.items()}

# Of the codecs as a chunk's flags tell them: lz4 and lz4hc make the same streams.
_STREAMS = {0: 0, 1: 1, 2: 1, 4: 3, 5: 4}

# Filters that one chunk can have; they are applied from the first to the last.
_SLOTS = 6

# Blosc2 allows so many, and an element of no more bytes than a byte can tell.
MAX_DIMENSIONS = 8
MAX_ITEMSIZE = 255

# Bytes that a chunk begins with: its own header.
CHUNK_HEADER_BYTES = 32

# A chunk of random bytes is stored as it is, behind its header.
_MEMCPYED = 0x02
# Stands in the index for a chunk of zero bytes, which takes no place in the frame.
_ZEROS = 0x81 << 56


@dataclass(frozen=True)
class Layout:
    """How an array lies in a frame.

    Attributes
    ----------
    dtype
        Of the elements.
    shape, chunks, blocks
        Of the array, of what is compressed at a time, and of the parts that a window is read by.
        A chunk at the edge is filled up to its whole size.
    codec, clevel
        Blosc2's number of the codec, and how hard it tries, from 0 to 9.
    filters, filters_meta
        Blosc2's numbers of up to six filters, the last applied last, and what each is told.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    blocks: tuple[int, ...]
    codec: int
    clevel: int
    filters: tuple[int, ...]
    filters_meta: tuple[int, ...]

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    @cached_property
    def nchunks(self) -> int:
        """Number of chunks."""
        return math.prod(self.grid)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of a block before it is compressed."""
        return math.prod(self.blocks) * self.dtype.itemsize

    @cached_property
    def nblocks(self) -> int:
        """Number of blocks in each chunk; those at the edge of a chunk are filled up, too."""
        return math.prod(-(-c // b) for c, b in zip(self.chunks, self.blocks, strict=True))

    @cached_property
    def chunk_head(self) -> tuple[bytes, bytes]:
        """Of the header of each chunk: its itemsize, bytes and bytes per block; its pipeline."""
        sizes = struct.pack("<Bii", self.dtype.itemsize, self.chunk_bytes, self.block_bytes)
        filters = _filters(self.filters) + bytes((self.codec, 0)) + _filters(self.filters_meta)
        return sizes, filters

    @cached_property
    def chunk_strides(self) -> tuple[int, ...]:
        """By how much the number of a chunk grows along each dimension."""
        return _strides(self.grid)

    @cached_property
    def block_strides(self) -> tuple[int, ...]:
        """By how much the number of a block in its chunk grows along each dimension."""
        return _strides([-(-c // b) for c, b in zip(self.chunks, self.blocks, strict=True)])

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk before it is compressed, with what it is filled up with."""
        return self.nblocks * self.block_bytes

    def corner(self, number: int) -> tuple[int, ...]:
        """Where in the array a chunk begins."""
        at = []
        for count, c in zip(reversed(self.grid), reversed(self.chunks), strict=True):
            number, place = divmod(number, count)
            at.append(place * c)
        return tuple(reversed(at))

    def slices(self) -> Iterator[tuple[slice, ...]]:
        """What each chunk holds of the array, in the order in which they lie in the frame."""
        ranges = [
            [slice(at, min(at + c, n)) for at in range(0, n, c)]
            for n, c in zip(self.shape, self.chunks, strict=True)
        ]
        return itertools.product(*ranges)


def _strides(counts: Sequence[int]) -> tuple[int, ...]:
    behind = itertools.accumulate(reversed(counts[1:]), operator.mul, initial=1)
    return tuple(behind)[::-1]


def check(layout: Layout) -> None:
    """Refuse a layout that Blosc2 could not have, whoever wrote it.

    Raises
    ------
    ValueError
        It says what was expected, and what was found.
    """
    ndim = len(layout.shape)
    if not 1 <= ndim <= MAX_DIMENSIONS:
        raise ValueError(f"expected 1 to {MAX_DIMENSIONS} dimensions, found {ndim}")
    if not 1 <= layout.dtype.itemsize <= MAX_ITEMSIZE or layout.dtype.hasobject:
        raise ValueError(f"expected elements of 1 to {MAX_ITEMSIZE} bytes, found {layout.dtype}")
    if len(layout.chunks) != ndim or len(layout.blocks) != ndim:
        raise ValueError(
            f"expected chunks and blocks of {ndim} dimensions, found {layout.chunks} and "
            f"{layout.blocks}"
        )
    for n, c, b in zip(layout.shape, layout.chunks, layout.blocks, strict=True):
        if not 1 <= b <= c or n < 1:
            raise ValueError(
                f"expected blocks within chunks, and elements to be in them, found blocks "
                f"{layout.blocks}, chunks {layout.chunks} and shape {layout.shape}"
            )
    if layout.chunk_bytes >= 1 << 31:
        raise ValueError(f"expected chunks of less than 2 GiB, found {layout.chunks}")
    check_choice(layout.codec, layout.clevel, layout.filters, layout.filters_meta)


def check_choice(
    codec: int, clevel: int, filters: tuple[int, ...], filters_meta: tuple[int, ...]
) -> None:
    """Refuse a codec or filters that a frame of ours does not have; see `Layout`.

    Raises
    ------
    ValueError
        It says what was expected, and what was found.
    """
    if codec not in _STREAMS or not 0 <= clevel <= 9:
        raise ValueError(
            f"expected one of the codecs {', '.join(CODECS)} at a level from 0 to 9, found number "
            f"{codec} at {clevel}"
        )
    if (
        len(filters) > _SLOTS
        or len(filters) != len(filters_meta)
        or not set(filters) <= set(FILTERS.values())
    ):
        raise ValueError(
            f"expected up to {_SLOTS} filters of {', '.join(FILTERS)}, found numbers {filters}"
        )


def header(layout: Layout, sizes: Sequence[int]) -> bytes:
    """The header of a frame whose chunks take so many bytes each; 0: it is all zero bytes."""
    array = _array_layer(layout)
    nchunks = len(sizes)
    layers_at = 0x6B
    header_bytes = layers_at + 5 + len(array)
    parts = [
        b"\x9e\xa8b2frame\0",
        b"\xd2", struct.pack(">i", header_bytes),
        b"\xcf", struct.pack(">Q", frame_bytes(header_bytes, sizes)),
        # Version 2 of the format with offsets of 64 bits; contiguous; codec; how blocks are split.
        b"\xa4", bytes((0x12, 0, layout.codec | layout.clevel << 4, 2)),
        b"\xd3", struct.pack(">q", nchunks * layout.chunk_bytes),
        b"\xd3", struct.pack(">q", sum(sizes)),
        b"\xd2", struct.pack(">i", layout.dtype.itemsize),
        b"\xd2", struct.pack(">i", layout.block_bytes),
        b"\xd2", struct.pack(">i", layout.chunk_bytes),
        # Threads to compress and to decompress with: the reader's own choice.
        b"\xd1", struct.pack(">h", 1), b"\xd1", struct.pack(">h", 1),
        b"\xc2",
        b"\xd8\x06", _filters(layout.filters), bytes((layout.codec, 0)),
        _filters(layout.filters_meta), bytes(2),
        # One metalayer: the names' offsets, then the contents.
        b"\x93\xcd", struct.pack(">H", 0x11), b"\xde", struct.pack(">H", 1),
        b"\xa4b2nd", b"\xd2", struct.pack(">i", layers_at),
        b"\xdc", struct.pack(">H", 1),
        b"\xc6", struct.pack(">I", len(array)), array,
    ]  # fmt: skip
    return b"".join(parts)


def _filters(numbers: Sequence[int]) -> bytes:
    return bytes(numbers) + bytes(_SLOTS - len(numbers))


def _array_layer(layout: Layout) -> bytes:
    ndim = len(layout.shape)
    text = layout.dtype.str.encode()
    parts = [b"\x97\0", bytes((ndim, 0x90 | ndim))]
    parts += [b"\xd3" + struct.pack(">q", n) for n in layout.shape]
    for sizes in (layout.chunks, layout.blocks):
        parts.append(bytes((0x90 | ndim,)))
        parts += [b"\xd2" + struct.pack(">i", n) for n in sizes]
    # 0: the dtype is told as NumPy does.
    parts += [b"\0\xdb", struct.pack(">I", len(text)), text]
    return b"".join(parts)


def index(sizes: Sequence[int]) -> bytes:
    """The chunk behind the others that says where each begins, from the end of the header."""
    nbytes = 8 * len(sizes)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    offsets = [start if size else _ZEROS for start, size in zip(starts, sizes, strict=True)]
    # Version 5; not compressed; elements of 8 bytes, all of them in one block.
    head = struct.pack("<BBBBiii", 5, 1, 0x07, 8, nbytes, nbytes, CHUNK_HEADER_BYTES + nbytes)
    return head + bytes((0, 0, 0, 0, 0, 0, 1, 0)) + bytes(8) + np.array(offsets, "<u8").tobytes()


# No attributes, no fingerprint.
TRAILER = bytes.fromhex("940193cd0006de0000dc0000ce00000023d8") + bytes(17)


def frame_bytes(header_bytes: int, sizes: Sequence[int]) -> int:
    """Size of a frame with a header so long and such chunks."""
    end = header_bytes + sum(sizes) + CHUNK_HEADER_BYTES + 8 * len(sizes)
    return end + len(TRAILER)


def is_zeros(chunk: bytes) -> bool:
    """Whether a chunk, as Blosc2 gives it, is one of zero bytes: it takes no place in a frame."""
    return len(chunk) == CHUNK_HEADER_BYTES and chunk[31] >> 4 & 7 == 1


def block_limits(layout: Layout, chunk: memoryview) -> list[int]:
    """Where each block of a chunk begins in it, and where the last ends; before it is its head.

    A chunk that is not one of this layout is refused, before Blosc2 believes what it says.  Looked
    at are its header and where the blocks begin; what lies in the blocks is for the codec, which is
    told how many bytes there are to read and to write.

    Raises
    ------
    ValueError
        It says what was expected, and what was found.
    """
    size = len(chunk)
    if size < CHUNK_HEADER_BYTES:
        raise ValueError(f"expected a chunk's header of {CHUNK_HEADER_BYTES} bytes, found {size}")
    head = bytes(chunk[:CHUNK_HEADER_BYTES])
    sizes, pipeline = layout.chunk_head
    cbytes = int.from_bytes(head[12:16], "little")
    flags = head[2]
    if head[0] != 5 or flags & 0x05 != 0x05 or head[3:12] != sizes or cbytes != size:
        itemsize, nbytes, block = struct.unpack("<Bii", head[3:12])
        raise ValueError(
            f"expected a chunk of itemsize {layout.dtype.itemsize}, {layout.chunk_bytes} bytes in "
            f"blocks of {layout.block_bytes}, compressed to {size}; found {itemsize}, {nbytes}, "
            f"{block} and {cbytes}"
        )
    if head[31]:
        # A dictionary, blocks that lie elsewhere, or one value for all.
        raise ValueError(f"expected a chunk of compressed blocks, found flags {head[31]:#x}")
    if flags & _MEMCPYED:
        if size != CHUNK_HEADER_BYTES + layout.chunk_bytes:
            raise ValueError(f"expected {layout.chunk_bytes} bytes as they are, found {size}")
        return list(range(CHUNK_HEADER_BYTES, size + 1, layout.block_bytes))
    if head[16:30] != pipeline or flags >> 5 != _STREAMS[layout.codec]:
        raise ValueError("expected the codec and the filters of the frame, found others")
    first = CHUNK_HEADER_BYTES + 4 * layout.nblocks
    if size < first:
        raise ValueError(f"expected the places of {layout.nblocks} blocks, found {size} bytes")
    starts: list[int] = np.frombuffer(chunk, "<i4", layout.nblocks, CHUNK_HEADER_BYTES).tolist()
    # In this order, as one thread makes them.
    if starts[0] != first or starts[-1] > size - 4 or starts != sorted(starts):
        raise ValueError(
            f"expected blocks one behind another that begin at bytes {first} to {size - 4}, "
            f"found some at {min(starts)} to {max(starts)}"
        )
    starts.append(size)
    return starts
