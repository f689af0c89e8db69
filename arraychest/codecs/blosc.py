"""The Blosc2 codec: arrays as chunks that are compressed one by one, and how to choose the codec.

Only here is Blosc2 imported, and only when a large array is met: its import takes three times as
long as NumPy's.

Every call names its number of threads; Blosc2's own setting, which is the whole process's, is left
as it is.  A child that was forked after its parent had used Blosc2's threads would wait for ever
for threads that it does not have: it does without.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from arraychest.codecs import frame
from arraychest.codecs.frame import CODECS, FILTERS, Layout

if TYPE_CHECKING:
    import blosc2

# A block is what a window is read by, and should stay in the first cache of a core while it is
# decompressed.  One that is longer in the last dimension serves rows as well: of a 2-D float32
# array, blocks of 64 x 64 in chunks of 4 MiB give a window of 64 x 64 in 58 us and a row in 352;
# blocks of 32 x 128 in 60 and 258; of 16 x 256 in 62 and 212, and compress 1 % worse.
BLOCK_BYTES = 16 << 10
_ELONGATION = 4

# A chunk is what is compressed at a time: large enough that starting threads on it is nothing,
# small enough that a few of them are no matter for the budget.
CHUNK_BYTES = 4 << 20

# Bytes a second that a disk sustains, as many do once the page cache has no more room.
DEVICE_SPEED = 0.3e9

# Less is not worth the time.
LEAST_RATIO = 1.2

# What is sampled: so many pieces of so many bytes.  At 1 GB/s, 4 x 16 KiB with two filters take
# 0.13 ms, while a spill of 32 MiB takes 6 ms.
_PIECES = 4
_PIECE_BYTES = 16 << 10

# Codecs worth a try: what is stronger takes five times as long and gains a tenth.
_FAST, _STRONG = ("lz4", 1), ("zstd", 1)


class Choice(NamedTuple):
    """A codec, how hard it tries, and the filters before it; numbers are Blosc2's."""

    codec: int
    clevel: int
    filters: tuple[int, ...]
    filters_meta: tuple[int, ...]


# Whether Blosc2 was given threads in this process, and whether in one that this is a fork of.
_threaded = False
_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = _forked or _threaded


os.register_at_fork(after_in_child=_after_fork_in_child)


def threads() -> int:
    """How many threads to compress with: one for each core that this process may run on."""
    if _forked:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_be_framed(array: np.ndarray) -> bool:
    """Whether a frame can hold an array: plain elements, and some of them."""
    return (
        array.dtype.kind in "biufcmM" and array.size > 0 and 1 <= array.ndim <= frame.MAX_DIMENSIONS
    )


# --- how an array is divided --------------------------------------------------------------------


def geometry(shape: Sequence[int], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks for an array of this shape.

    Blocks are near to squares in the last two dimensions that have room, longer along the last;
    chunks are blocks, doubled in the same way.
    """
    whole = tuple(shape)
    blocks = _grown((1,) * len(whole), whole, itemsize, BLOCK_BYTES, _ELONGATION)
    # Blocks at the edge of a chunk are filled up: a chunk is a number of whole blocks.
    room = tuple(-(-n // b) * b for n, b in zip(whole, blocks, strict=True))
    chunks = _grown(blocks, room, itemsize, CHUNK_BYTES, 1)
    return chunks, blocks


def _grown(
    start: Sequence[int], room: Sequence[int], itemsize: int, nbytes: int, elongation: int
) -> tuple[int, ...]:
    sizes = list(start)
    while math.prod(sizes) * itemsize * 2 <= nbytes:
        # From the last on: an outer dimension only once those within are taken whole, but for two.
        open_ = [at for at in reversed(range(len(sizes))) if sizes[at] < room[at]][:2]
        if not open_:
            break
        inner, outer = open_[0], open_[-1]
        at = inner if sizes[inner] < elongation * sizes[outer] or inner == outer else outer
        sizes[at] = min(2 * sizes[at], room[at])
    return tuple(sizes)


def layout_of(array: np.ndarray, choice: Choice) -> Layout:
    """How a C-contiguous array is laid out; of one in Fortran order, take the transpose."""
    chunks, blocks = geometry(array.shape, array.dtype.itemsize)
    return Layout(array.dtype, array.shape, chunks, blocks, *choice)


# --- which codec --------------------------------------------------------------------------------


def named(name: str) -> Choice:
    """The choice that a codec's name stands for: its fastest level of use, with shuffle.

    Raises
    ------
    ValueError
        There is no codec of this name.
    """
    if name not in CODECS:
        raise ValueError(f"expected one of the codecs {', '.join(CODECS)}, found {name!r}")
    level = {"lz4hc": 5, "zlib": 3, "blosclz": 5}.get(name, 1)
    return Choice(CODECS[name], level, (FILTERS["shuffle"],), (0,))


def chosen(array: np.ndarray, device_speed: float = DEVICE_SPEED) -> Choice | None:
    """The choice that writes and reads an array back soonest; None: as it is.

    Pieces from different places are compressed.  The stronger codec is tried only where the faster
    one finds something to compress, so that noise costs little.

    Parameters
    ----------
    device_speed
        Bytes a second that are written and read.
    """
    data = _sampled(array)
    best, shortest = None, 2 * len(data) / device_speed
    for name, level in (_FAST, _STRONG):
        for filter_name in ("shuffle", "bitshuffle"):
            choice = Choice(CODECS[name], level, (FILTERS[filter_name],), (0,))
            stored, seconds = _tried(data, choice, array.dtype.itemsize)
            if stored * LEAST_RATIO > len(data):
                continue
            total = seconds + 2 * stored / device_speed
            if total < shortest:
                best, shortest = choice, total
        if best is None:
            return None
    return best


def _sampled(array: np.ndarray) -> bytes:
    flat = array.reshape(-1).view(np.uint8)
    itemsize = array.dtype.itemsize
    # In the middle of each of so many equal parts: the edges of a field are often empty.
    part = len(flat) // _PIECES
    size = min(_PIECE_BYTES, part) // itemsize * itemsize
    starts = [(at * part + (part - size) // 2) // itemsize * itemsize for at in range(_PIECES)]
    return b"".join(flat[start : start + size].data for start in starts)


def _tried(data: bytes, choice: Choice, itemsize: int) -> tuple[int, float]:
    """Bytes that data take, and seconds to compress and to decompress them on all threads."""
    import blosc2

    given = _cparams(choice, itemsize, 1, _PIECE_BYTES)
    start = time.perf_counter()
    # In one call: making a context takes as long as 10 kB.
    found = blosc2.compress2(data, cparams=given)
    blosc2.decompress2(found, nthreads=1)
    return len(found), (time.perf_counter() - start) / threads()


def _cparams(choice: Choice, itemsize: int, nthreads: int, block_bytes: int = 0) -> blosc2.CParams:
    import blosc2

    return blosc2.CParams(
        codec=blosc2.Codec(choice.codec),
        clevel=choice.clevel,
        typesize=itemsize,
        nthreads=nthreads,
        blocksize=block_bytes,
        filters=[blosc2.Filter(number) for number in choice.filters],
        filters_meta=list(choice.filters_meta),
    )


# --- chunk by chunk -----------------------------------------------------------------------------


def compressed(array: np.ndarray, layout: Layout, nthreads: int) -> Iterator[bytes]:
    """The chunks of an array, compressed, in the order in which they lie in a frame.

    An empty one stands for zero bytes.  Memory: one chunk as it is and one compressed.
    """
    global _threaded
    import blosc2

    nthreads = min(nthreads, 1) if _forked else nthreads
    _threaded = _threaded or nthreads > 1
    choice = Choice(layout.codec, layout.clevel, layout.filters, layout.filters_meta)
    # One context for all, which starts its threads once.  It arranges a chunk by blocks.
    one: Any = blosc2.uninit(
        layout.chunks,
        dtype=layout.dtype,
        chunks=layout.chunks,
        blocks=layout.blocks,
        cparams=_cparams(choice, layout.dtype.itemsize, nthreads),
    )
    edge: np.ndarray | None = None
    for where in layout.slices():
        part = array[where]
        if part.shape != layout.chunks:
            # What a chunk is filled up with compresses to nothing.
            edge = np.zeros(layout.chunks, layout.dtype) if edge is None else edge
            edge[...] = np.zeros((), layout.dtype)
            edge[tuple(slice(0, n) for n in part.shape)] = part
            part = edge
        one[...] = np.ascontiguousarray(part)
        chunk: bytes = one.schunk.get_chunk(0)
        yield b"" if frame.is_zeros(chunk) else chunk


class FrameReader:
    """Reads parts of the array in a frame that lies in memory, or is mapped.  Safe from threads.

    A context of Blosc2 belongs to one thread at a time: each read takes one that is free, or makes
    one (60 us).  They have no threads of their own, so that a forked child may go on with them.

    Parameters
    ----------
    data
        Bytes of the frame, and possibly more behind it; they stay as long as this lives.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._free: list[Any] = []

    def read(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part of the array, all of whose steps are 1: a new array in C order."""
        import blosc2

        # A list's own methods are atomic.
        try:
            array = self._free.pop()
        except IndexError:
            array = blosc2.ndarray_from_cframe(self._data, copy=False)
            array.schunk.dparams = blosc2.DParams(nthreads=1)
        found = np.empty([each.stop - each.start for each in where], array.dtype)
        # `array[where]` takes 40 us more to find out that this is what is meant.
        array.get_slice_numpy(
            found, (tuple([each.start for each in where]), tuple([each.stop for each in where]))
        )
        self._free.append(array)
        return found


def touched(layout: Layout, where: Sequence[slice]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The chunks that a part of the array lies in: their numbers, and what of each; steps are 1."""
    pieces = []
    stride = layout.nchunks
    for each, n, c in zip(where, layout.grid, layout.chunks, strict=True):
        stride //= n
        pieces.append(
            [
                (at * stride, slice(max(each.start - at * c, 0), min(each.stop - at * c, c)))
                for at in range(each.start // c, -(-each.stop // c))
            ]
        )
    for group in itertools.product(*pieces):
        yield sum([number for number, _ in group]), tuple([inside for _, inside in group])


def blocks_of(layout: Layout, inside: Sequence[slice]) -> Iterator[int]:
    """The numbers of the blocks of a chunk that a part of it lies in; steps are 1."""
    pieces = []
    stride = layout.nblocks
    for each, c, b in zip(inside, layout.chunks, layout.blocks, strict=True):
        stride //= -(-c // b)
        pieces.append(range(each.start // b * stride, -(-each.stop // b) * stride, stride))
    return map(sum, itertools.product(*pieces))
