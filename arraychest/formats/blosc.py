"""The Blosc2 codec: arrays as chunks that are compressed one by one, and how to choose the codec.

Only here is Blosc2 imported, and only when a large array is met: its import takes three times as
long as NumPy's.

Blosc2's own threads are never used: of children that were forked after a call of Blosc2 with two
threads, a quarter waited in their own first one for good.  Many chunks are worked on by threads of
ours (see `parallel`), which also arrange and check them; no setting of Blosc2 that is the whole
process's is changed for longer than a call.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from arraychest.formats import frame
from arraychest.formats.frame import CODECS, FILTERS, Layout

# A block is what a read decompresses at the least.  A window touches few blocks where they are
# about square, a row where they are wide, a column where they are tall, and each read decompresses
# less where blocks are small.  Microseconds for a window of 64 x 64, a row and a column of
# 16384 x 16384 heights in float32, compressed by lz4-9 behind shuffle and bytedelta; stored bytes
# for one byte; milliseconds to write 128 MiB, by one thread of a busy machine:
#
#     blocks      chunks     window    row   column   size   write
#      2 x 2048   32 x 16384    482    122  107,000  0.433     261
#      8 x  512   64 x  2048    181    492   33,100  0.428
#     16 x  256   64 x  2048    136    907   16,400  0.424
#     64 x   64   64 x  8192    106  3,140    8,500  0.423
#     16 x  128   64 x  2048    120  1,084   11,900  0.448
#      8 x  256   64 x  2048    129    589   19,400  0.451     270
#     10 x  160   80 x  1280     83    615   10,700  0.462     282
#
# Blocks of 4 KiB take a tenth more room.
_BLOCK_ROWS = 10
BLOCK_BYTES = 6 << 10

# A chunk is what is compressed at a time: large enough that handing it to a thread is nothing,
# small enough that a few of them are no matter for the budget.  Blosc2 looks at each block of every
# chunk that a read touches: chunks of 2 MiB, of whole rows, take a window and a column of blocks of
# 8 x 128 from 95 us and 12 ms to 235 us and 37 ms.
CHUNK_BYTES = 512 << 10

# Bytes a second that a disk sustains, as many do once the page cache has no more room.
DEVICE_SPEED = 0.3e9

# Less is not worth the time.
LEAST_RATIO = 1.2

# What is smaller may take so much longer: the times of a sample are no more exact than that.
_SLACK = 1.05

# Where the fastest codec finds less than this, others seldom find enough.
_HOPELESS_RATIO = 1.15

# So many blocks are sampled.  Noise is known for such by so many bytes of each after 0.07 ms, what
# is compressed after 0.6 ms, while 32 MiB take 4 ms to write as they are, and 30 ms compressed.
_SAMPLES = 4
_PROBE_BYTES = 4 << 10


class Choice(NamedTuple):
    """A codec, how hard it tries, and the filters before it; numbers are Blosc2's."""

    codec: int
    clevel: int
    filters: tuple[int, ...]
    filters_meta: tuple[int, ...]


def may_be_framed(array: np.ndarray) -> bool:
    """Whether a frame can hold an array: plain elements, and some of them."""
    return (
        array.dtype.kind in "biufcmM" and array.size > 0 and 1 <= array.ndim <= frame.MAX_DIMENSIONS
    )


# --- how an array is divided --------------------------------------------------------------------


def geometry(shape: Sequence[int], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks for an array of this shape.

    A block is some rows high and wider than high (see `_blocks`).  A chunk has about as many blocks
    along each of the last two dimensions, and more along the outer ones where those are short.
    """
    blocks = _blocks(shape, itemsize)
    totals = [-(-n // b) for n, b in zip(shape, blocks, strict=True)]
    counts = [1] * len(blocks)
    room = CHUNK_BYTES // (math.prod(blocks) * itemsize)
    while 2 * math.prod(counts) <= room:
        open_ = [at for at in reversed(range(len(counts))) if counts[at] < totals[at]][:2]
        if not open_:
            break
        at = min(open_, key=counts.__getitem__)
        counts[at] = min(2 * counts[at], totals[at])
    # Of about the same size: what the last one lacks is filled up.
    even = [-(-total // -(-total // count)) for total, count in zip(totals, counts, strict=True)]
    return tuple([b * count for b, count in zip(blocks, even, strict=True)]), blocks


def _blocks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Blocks of about `BLOCK_BYTES`, of `_BLOCK_ROWS` rows where there are so many.

    From the last dimension on: those within are taken whole until they make a row of the block; the
    next ones are its rows.  A dimension is divided evenly, so that little has to be filled up.
    """
    sizes = [1] * len(shape)
    room = max(BLOCK_BYTES // itemsize, 1)
    taken, in_rows = 1, False
    for at in reversed(range(len(shape))):
        n = shape[at]
        rows = 1 if in_rows else min(_BLOCK_ROWS, math.prod(shape[:at]))
        wanted = room / rows / taken
        count = max(round(n / max(wanted, 1)), 1)
        size = -(-n // count)
        if count > 1 and size >= 8 and taken < 8:
            size = -(-size // 8) * 8  # bitshuffle takes eight elements at a time
        sizes[at] = size
        taken *= size
        if count > 1 and in_rows:
            break
        in_rows = in_rows or count > 1 or 2 * taken * rows > room
    return tuple(sizes)


def fitting(choice: Choice, dtype: np.dtype) -> Choice | None:
    """A choice as it is for elements of this dtype; None where they cannot have its filters.

    What truncates (``"trunc_prec"``, ``"int_trunc"``) does so with floats of 4 and 8 bytes, or with
    integers, in this machine's byte order.
    """
    numbers = set(choice.filters)
    if FILTERS["trunc_prec"] in numbers and not (
        dtype.kind == "f" and dtype.itemsize in (4, 8) and dtype.isnative
    ):
        return None
    if FILTERS["int_trunc"] in numbers and not (dtype.kind in "iu" and dtype.isnative):
        return None
    delta = FILTERS["bytedelta"]
    pairs = [
        # It has to be told the size of an element, and knows none of one byte.
        (number, dtype.itemsize if number == delta and not meta else meta)
        for number, meta in zip(choice.filters, choice.filters_meta, strict=True)
        if number != delta or dtype.itemsize > 1
    ]
    return choice._replace(
        filters=tuple([number for number, _ in pairs]),
        filters_meta=tuple([meta for _, meta in pairs]),
    )


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


def chosen(
    array: np.ndarray, nthreads: int = 1, device_speed: float = DEVICE_SPEED
) -> Choice | None:
    """The choice that writes and reads an array back soonest; None: as it is.

    Blocks from different places are compressed.  Stronger codecs are tried only where the fastest
    one finds something to compress, so that noise costs little.  What is stronger than these takes
    five times as long and gains a tenth.

    Parameters
    ----------
    nthreads
        How many will compress.
    device_speed
        Bytes a second that are written and read.
    """
    blocks = _sampled(array)
    shuffle, bitshuffle = (FILTERS["shuffle"],), (FILTERS["bitshuffle"],)
    if all(_is_noise(blocks, array.itemsize, filters) for filters in (shuffle, bitshuffle)):
        return None
    data, block_bytes = b"".join(blocks), len(blocks[0])
    tried: list[tuple[float, int, Choice]] = []

    def attempt(name: str, level: int, filters: tuple[int, ...]) -> int:
        choice = fitting(Choice(CODECS[name], level, filters, (0,) * len(filters)), array.dtype)
        assert choice is not None
        stored, seconds = _tried(data, choice, array.itemsize, block_bytes)
        tried.append((seconds / nthreads + 2 * stored / device_speed, stored, choice))
        return stored

    best = bitshuffle if attempt("lz4", 1, shuffle) > attempt("lz4", 1, bitshuffle) else shuffle
    attempt("lz4", 9, best)
    attempt("zstd", 1, best)
    if array.dtype.itemsize > 1:
        attempt("lz4", 9, (*shuffle, FILTERS["bytedelta"]))
    shortest = min(total for total, _, _ in tried)
    if shortest >= 2 * len(data) / device_speed:
        return None
    fast = [(stored, choice) for total, stored, choice in tried if total <= shortest * _SLACK]
    stored, choice = min(fast)
    return choice if stored * LEAST_RATIO <= len(data) else None


def _sampled(array: np.ndarray) -> list[bytes]:
    """Blocks from different places of an array, as they will be compressed."""
    _, blocks = geometry(array.shape, array.itemsize)
    found = []
    for number in range(_SAMPLES):
        # In the middle of each of so many equal parts, along each dimension in another order: the
        # edges of a field are often empty.
        where = []
        for at, (n, b) in enumerate(zip(array.shape, blocks, strict=True)):
            part = (number * (2 * at + 1) + at) % _SAMPLES
            start = min((2 * part + 1) * n // (2 * _SAMPLES), n - b)
            where.append(slice(start, start + b))
        found.append(array[tuple(where)].tobytes())
    return found


def _is_noise(blocks: list[bytes], itemsize: int, filters: tuple[int, ...]) -> bool:
    """Whether the fastest codec makes nothing of a part of each block."""
    import blosc2

    size = min(_PROBE_BYTES, len(blocks[0])) // itemsize * itemsize
    data = b"".join([block[:size] for block in blocks])
    choice = Choice(CODECS["lz4"], 1, filters, (0,))
    found = blosc2.compress2(data, **_cparams(choice, itemsize, len(data)))
    return len(found) * _HOPELESS_RATIO > len(data)


def _tried(data: bytes, choice: Choice, itemsize: int, block_bytes: int) -> tuple[int, float]:
    """Bytes that data take, and seconds to compress and to decompress them."""
    import blosc2

    given = _cparams(choice, itemsize, block_bytes)
    # Of this thread: others that compute at the same time are no concern of the codec.
    start = time.thread_time()
    # In one call: making a context takes as long as 10 kB.
    found = blosc2.compress2(data, **given)
    blosc2.decompress2(found, nthreads=1)
    return len(found), time.thread_time() - start


def _cparams(choice: Choice, itemsize: int, block_bytes: int) -> dict[str, Any]:
    """What `blosc2.compress2` takes: 16 us less a call than `blosc2.CParams`."""
    import blosc2

    return {
        "codec": blosc2.Codec(choice.codec),
        "clevel": choice.clevel,
        "typesize": itemsize,
        "nthreads": 1,
        "blocksize": block_bytes,
        "filters": [blosc2.Filter(number) for number in choice.filters],
        "filters_meta": list(choice.filters_meta),
    }


# --- chunk by chunk -----------------------------------------------------------------------------


class _Released:
    """Lets Blosc2 release the interpreter lock during its calls, which is a setting of all of it.

    Held during a chunk it would stop every other thread for some milliseconds.  The calls made here
    have a context each, so that nothing of theirs is shared.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child: no other thread is left."""
        self._lock = threading.Lock()
        self._count = 0
        self._before = False

    def __enter__(self) -> None:
        import blosc2

        with self._lock:
            self._count += 1
            if self._count == 1:
                self._before = blosc2.set_releasegil(True)

    def __exit__(self, *_: object) -> None:
        import blosc2

        with self._lock:
            self._count -= 1
            if not self._count:
                blosc2.set_releasegil(self._before)


_released = _Released()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_released.forget)


class ChunkCodec:
    """Compresses and decompresses the chunks of one array.  Safe from many threads.

    Memory: for each thread that works at a time one chunk as it is, and one compressed.
    """

    def __init__(self, layout: Layout) -> None:
        choice = Choice(layout.codec, layout.clevel, layout.filters, layout.filters_meta)
        self._layout = layout
        self._cparams = _cparams(choice, layout.dtype.itemsize, layout.block_bytes)
        counts = [-(-c // b) for c, b in zip(layout.chunks, layout.blocks, strict=True)]
        self._room_shape = (*counts, *layout.blocks)
        # Fresh memory costs as much as to fill it; a list's own methods are atomic.
        self._rooms: list[np.ndarray] = []

    @contextlib.contextmanager
    def _room(self) -> Iterator[np.ndarray]:
        """A chunk as Blosc2 has it: block after block."""
        try:
            room = self._rooms.pop()
        except IndexError:
            room = np.empty(self._layout.chunk_bytes, np.uint8)
        yield room
        self._rooms.append(room)

    def _parts(
        self, room: np.ndarray, box: np.ndarray, corner: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Views of a chunk and of a box within it, of the same shape and elements.

        Together they are all of the box, which begins at `corner` of the chunk.
        """
        blocks = room.view(self._layout.dtype).reshape(self._room_shape)
        ndim = box.ndim
        sides = [
            list(_runs(start, n, b))
            for start, n, b in zip(corner, box.shape, self._layout.blocks, strict=True)
        ]
        order = [at + half for at in range(ndim) for half in (0, ndim)]
        for group in itertools.product(*sides):
            inside = blocks[
                tuple([run.blocks for run in group]) + tuple([run.inside for run in group])
            ].transpose(order)
            # To divide a dimension in two takes no copy.
            yield inside, box[tuple([run.box for run in group])].reshape(inside.shape)

    def compressed(self, box: np.ndarray) -> bytes:
        """A chunk of what it holds of the array; empty if it is all zero bytes."""
        import blosc2

        with self._room() as room:
            if any(n % b for n, b in zip(box.shape, self._layout.blocks, strict=True)) or (
                box.size * box.itemsize < room.size
            ):
                room.fill(0)  # what a chunk is filled up with compresses to nothing
            for inside, part in self._parts(room, box, [0] * box.ndim):
                inside[...] = part
            with _released:
                chunk: bytes = blosc2.compress2(room, **self._cparams)
        return b"" if frame.is_zeros(chunk) else chunk

    def decompress(self, chunk: memoryview, out: np.ndarray, corner: Sequence[int]) -> None:
        """Write a part of a chunk, which is one that `frame.block_limits` has taken.

        Parameters
        ----------
        out
            Where to; its shape says of how large a part.
        corner
            Where in the chunk the part begins.

        Raises
        ------
        ValueError, RuntimeError
            Its blocks are not what the codec makes.
        """
        import blosc2

        if not len(chunk):
            out[...] = np.zeros((), out.dtype)
            return
        with self._room() as room:
            with _released:
                blosc2.decompress2(chunk, dst=room, nthreads=1)
            for inside, part in self._parts(room, out, corner):
                part[...] = inside


class _Run(NamedTuple):
    """Blocks along one dimension of which the same elements are wanted, and where those go."""

    blocks: slice
    inside: slice
    box: slice


def _runs(start: int, n: int, b: int) -> Iterator[_Run]:
    """`n` elements from `start` on, by blocks of `b`: a part of one, whole ones, a part of one."""
    at = 0
    while at < n:
        number, inner = divmod(start + at, b)
        count = max((n - at) // b, 1) if not inner else 1
        size = min(b - inner, n - at)
        taken = count * size
        yield _Run(slice(number, number + count), slice(inner, inner + size), slice(at, at + taken))
        at += taken


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

    def read_into(self, out: np.ndarray, where: tuple[slice, ...]) -> None:
        """Write a part of the array, all of whose steps are 1, to an array of its shape."""
        import blosc2

        # A list's own methods are atomic.
        try:
            array = self._free.pop()
        except IndexError:
            array = blosc2.ndarray_from_cframe(self._data, copy=False)
            array.schunk.dparams = blosc2.DParams(nthreads=1)
        # Blosc2 writes to memory without gaps, in C order.
        found = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        # `array[where]` takes 40 us more to find out that this is what is meant.
        array.get_slice_numpy(
            found, (tuple([each.start for each in where]), tuple([each.stop for each in where]))
        )
        self._free.append(array)
        if found is not out:
            out[...] = found


class Touched(NamedTuple):
    """What of one chunk a part of the array lies in.

    Attributes
    ----------
    number
        The chunk's.
    inside
        Where in the chunk, along each dimension.
    blocks
        Numbers of blocks along each dimension; one of each adds up to the number of a block.
    """

    number: int
    inside: tuple[slice, ...]
    blocks: tuple[range, ...]

    @property
    def nblocks(self) -> int:
        """How many blocks it touches."""
        return math.prod(map(len, self.blocks))


def touched(layout: Layout, where: Sequence[slice]) -> list[Touched]:
    """The chunks that a part of the array lies in; all steps are 1."""
    sides = []
    sizes = zip(
        where,
        layout.chunks,
        layout.blocks,
        layout.chunk_strides,
        layout.block_strides,
        strict=True,
    )
    for each, c, b, chunk_stride, block_stride in sizes:
        side = []
        for at in range(each.start // c, (each.stop - 1) // c + 1):
            low, high = max(each.start - at * c, 0), min(each.stop - at * c, c)
            numbers = range(
                low // b * block_stride, ((high - 1) // b + 1) * block_stride, block_stride
            )
            side.append((at * chunk_stride, slice(low, high), numbers))
        sides.append(side)
    found = []
    for group in itertools.product(*sides):
        numbers, insides, blocks = zip(*group, strict=True)
        found.append(Touched(sum(numbers), insides, blocks))
    return found
