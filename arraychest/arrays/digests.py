"""What an array contains, in 17 bytes; and a memory of the digests of arrays that cannot change.

A digest covers dtype, shape and the elements in C order, bit for bit: 0.0 and -0.0 differ, and so
do two NaNs.  Where in memory the elements lie, and in which order, does not count; nor do bytes
that mean nothing (between the fields of a structured dtype, and in a long double).

Its first byte names the hash function.  The others are the hash of a header (dtype, shape)
followed by the elements, if these are no more than one leaf; else by the hashes of the leaves.  A
leaf is a box of the array that is a run of its elements in C order, see `_Cut`.  The leaves depend
on shape and dtype alone, so that every machine comes to the same digest, on any number of threads.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from arraychest.arrays.lazy import LazyArray
from arraychest.errors import ValueTypeError
from arraychest.formats.form import DESCRIBED, describe, form_text
from arraychest.parallel import default_threads, in_order
from arraychest.platform.maps import is_map

# A leaf is at most so large, unless it is a single element.  Smaller ones would cost more in calls
# than in hashing (1.2 us against 9 us for xxh3), and the lines of an array in Fortran order, of
# which 16 are read at a time, would no longer fit into the cache if they were larger.
LEAF_BYTES = 256 << 10

# Leaves that a thread works on at a time: as many as are read together, so that each cache line of
# 64 bytes is read once, where elements that follow each other lie far apart.
_GROUP = 16
_LINE_BYTES = 64

# The most that is decompressed at a time by each thread.
_COMPRESSED_BYTES = 64 << 20

# What is copied at a time from one order of elements to another: it stays in the second cache.
_TILE_BYTES = 128 << 10


class _Algorithm(NamedTuple):
    """A hash function, and from how many bytes on further threads gain more than they cost."""

    letter: bytes
    new: Callable[..., Any]
    threads_from: int


@functools.cache
def _algorithm() -> _Algorithm:
    try:
        import xxhash
    except ImportError:
        # With the processor's instructions for it, faster than blake2b and md5.
        new = functools.partial(hashlib.sha256, usedforsecurity=False)
        return _Algorithm(b"s", new, 2 << 20)
    # One thread hashes as fast as memory is read.
    return _Algorithm(b"x", xxhash.xxh3_128, 64 << 20)


def array_digest(array: np.ndarray | LazyArray) -> bytes:
    """What an array contains, in 17 bytes.

    Parameters
    ----------
    array
        An ndarray, a memmap, or a compressed or blocked array; these have the digest of the plain
        array that has their elements.

    Raises
    ------
    TypeError
        It has Python objects (or StringDType's strings) as elements, or it is of a subclass, of
        which the elements may be only a part.
    ValueTypeError
        Its dtype has metadata, of which nobody knows what it means: ``array.astype(plain_dtype)``.

    Notes
    -----
    From 2 MiB on, on as many threads as there are cores, up to four: with SHA-256, 1.6 GB/s each.
    With the package `xxhash` (the extra ``fast``), as fast as memory is read, and on threads from
    64 MiB on.  A contiguous array is not copied, others are, some megabytes at a time: 1 to 4 GB/s
    on each thread.  A compressed array is decompressed 64 MiB at a time by each thread.

    xxh3 is no cryptographic hash: who chooses both arrays can make their digests equal.
    """
    kind = type(array)
    if kind is not np.ndarray:
        if kind is np.memmap:
            array = np.asarray(array)
        elif not issubclass(kind, LazyArray):
            raise TypeError(f"expected a plain array, or a stored one, found {kind.__name__}")
    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError(f"expected an array without Python objects to digest, found {dtype}")
    letter, new, threads_from = _algorithm()
    whole = new(_header(dtype, array.shape))
    nbytes = array.size * dtype.itemsize
    if nbytes:
        mask = _mask(dtype)
        if nbytes <= LEAF_BYTES or array.size == 1:
            data = np.ascontiguousarray(np.asarray(array).view(_raw(dtype)))
            whole.update(_bytes(data) if mask is None else _masked(data.copy(), mask))
        else:
            leaves = _Leaves(array, new, mask)
            nthreads = default_threads() if nbytes >= threads_from else 1
            for _ in in_order(leaves.hash, leaves.groups(), nthreads):
                pass
            whole.update(leaves.digests)
    return letter + bytes(whole.digest()[:16])


def dtype_text(dtype: np.dtype) -> str:
    """A text that no other dtype has; the same in every process.

    Raises
    ------
    ValueTypeError
        It has metadata.
    """
    try:
        _, text = describe(dtype)
    except ValueTypeError:
        if dtype.metadata is not None:
            raise
    else:
        return f"{'a' * dtype.isalignedstruct}{text}"
    # What would come back from a .npy file as another: of a class of its own, with overlapping
    # fields, a record.
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return f"?{shape}{dtype_text(base)}"
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in (type(dtype), dtype.type)]
    if dtype.fields is None:
        return f"?{kinds} {dtype.str} {dtype!r}"
    fields = [(name, *map(str, dtype.fields[name][1:])) for name in dtype.names or ()]
    texts = [dtype_text(dtype.fields[name][0]) for name in dtype.names or ()]
    return f"?{kinds} {dtype.itemsize} {dtype.isalignedstruct} {fields} {texts}"


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    if id(dtype) in DESCRIBED:
        text = form_text(dtype, shape, "C", "array")
    else:
        text = f"{','.join(map(str, shape)) or '-'} C {dtype_text(dtype)}"
        if id(dtype) in DESCRIBED:  # now
            text = form_text(dtype, shape, "C", "array")
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(4, "little") + data


# --- bytes that mean something ------------------------------------------------------------------

# Of the 16 bytes of the x87's long double, 10; elsewhere all.
_EXTENDED_BYTES = 10 if np.finfo(np.longdouble).nmant == 63 else np.dtype(np.longdouble).itemsize


def _mask(dtype: np.dtype) -> np.ndarray | None:
    """255 for each byte of an element that means something, else 0; None if all do."""
    if dtype.names is None and dtype.char not in "gG":
        return None
    mask = _element_mask(dtype)
    return None if mask.all() else mask


def _element_mask(dtype: np.dtype) -> np.ndarray:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.tile(_element_mask(base), math.prod(shape))
    if dtype.fields is not None:
        mask = np.zeros(dtype.itemsize, np.uint8)
        for name in dtype.names or ():
            field, offset = dtype.fields[name][:2]
            mask[offset : offset + field.itemsize] |= _element_mask(field)
        return mask
    mask = np.full(dtype.itemsize, 255, np.uint8)
    if dtype.char in "gG":
        number = mask.reshape(-1, np.dtype(np.longdouble).itemsize)
        number[:, _EXTENDED_BYTES:] = 0
        if not dtype.isnative:
            number[:] = number[:, ::-1]
    return mask


def _masked(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The bytes of an array that is ours; those that mean nothing are zeroed in place."""
    found = _bytes(data)
    # A few kilobytes at a time: NumPy's loops have a cost for each row.
    repeats = min(-(-4096 // len(mask)), data.size)
    row = np.tile(mask, repeats)
    whole = len(found) // len(row) * len(row)
    rows = found[:whole].reshape(-1, len(row))
    np.bitwise_and(rows, row, out=rows)
    rest = found[whole:]
    np.bitwise_and(rest, row[: len(rest)], out=rest)
    return found


def _bytes(contiguous: np.ndarray) -> np.ndarray:
    return contiguous.reshape(-1).view(np.uint8)


def _raw(dtype: np.dtype) -> np.dtype:
    # NumPy copies structured elements field by field, and not what is between the fields.
    return np.dtype((np.void, dtype.itemsize))


# --- leaves -------------------------------------------------------------------------------------


class _Cut(NamedTuple):
    """How an array is cut into leaves.

    A leaf is all of the dimensions after `axis`, at most `step` along `axis`, and 1 along those
    before it: as many elements as fit into it.

    Attributes
    ----------
    axis, step
        See above.
    grid
        How many leaves there are along each dimension up to `axis`.
    """

    axis: int
    step: int
    grid: tuple[int, ...]


def _cut(shape: Sequence[int], most: int) -> _Cut:
    """Cut an array that has more than `most` elements."""
    inner = 1
    for axis in reversed(range(len(shape))):
        if inner * shape[axis] > most:
            step = most // inner
            return _Cut(axis, step, (*shape[:axis], -(-shape[axis] // step)))
        inner *= shape[axis]
    raise AssertionError((shape, most))


class _Leaves:
    """The leaves of an array, hashed group by group, on any number of threads."""

    def __init__(
        self, array: np.ndarray | LazyArray, new: Callable[..., Any], mask: np.ndarray | None
    ) -> None:
        raw = _raw(array.dtype)
        self._array = array if isinstance(array, LazyArray) else array.view(raw)
        self._raw = raw
        self._new = new
        self._mask = mask
        self._cut = _cut(array.shape, max(LEAF_BYTES // array.dtype.itemsize, 1))
        self.digests = np.empty((*self._cut.grid, 16), np.uint8)

    def groups(self) -> Iterator[tuple[range, ...]]:
        """Which leaves are worked on together, along each dimension of the grid."""
        extents = self._extents()
        along = [
            [range(at, min(at + extent, count)) for at in range(0, count, extent)]
            for extent, count in zip(extents, self._cut.grid, strict=True)
        ]
        return itertools.product(*along)

    def _extents(self) -> list[int]:
        array, (axis, step, grid) = self._array, self._cut
        if isinstance(array, LazyArray):
            # A chunk each, if there is room.
            left = max(_COMPRESSED_BYTES // LEAF_BYTES, 1)
            sides = array.largest_chunk
            wanted = [*sides[:axis], -(-sides[axis] // step)]
            order = list(reversed(range(axis + 1)))
        else:
            # First those that are next to each other in memory.
            left = max(_GROUP, _LINE_BYTES // array.itemsize)
            wanted = list(grid)
            order = sorted(range(axis + 1), key=lambda at: abs(array.strides[at]))
        extents = [1] * (axis + 1)
        for at in order:
            extents[at] = min(wanted[at], left)
            left = max(left // extents[at], 1)
        return extents

    def hash(self, group: tuple[range, ...]) -> None:
        """Hash a group of leaves."""
        axis, step, _ = self._cut
        *outer, last = group
        n = self._array.shape[axis]
        start = last.start * step
        box = (
            *[slice(each.start, each.stop) for each in outer],
            slice(start, min(last.stop * step, n)),
            *[slice(0, inner) for inner in self._array.shape[axis + 1 :]],
        )
        block: np.ndarray = self._array[box]
        own = False
        if isinstance(self._array, LazyArray):
            own = block.flags.writeable
            block = block.view(self._raw)
        corner: tuple[Any, ...] = (0,) * axis
        first = block[(*corner, slice(0, step))]
        if not first.flags.c_contiguous or (self._mask is not None and not own):
            copy = np.empty(block.shape, self._raw)
            _copy(copy, block)
            block = copy
        new, mask = self._new, self._mask
        if mask is not None:
            _masked(block, mask)
        for where in itertools.product(*[range(len(each)) for each in outer]):
            lines = block[where]
            for at, number in enumerate(last):
                leaf = lines[at * step : (at + 1) * step]
                place = (*[each[i] for each, i in zip(outer, where, strict=True)], number)
                digest = new(_bytes(leaf)).digest()[:16]
                self.digests[place] = np.frombuffer(digest, np.uint8)


def _copy(to: np.ndarray, of: np.ndarray) -> None:
    """Copy an array to one in another order, tile by tile: each cache line comes once."""
    if of.nbytes <= _TILE_BYTES or of.size == 1:
        to[...] = of
        return
    axis = max(range(of.ndim), key=of.shape.__getitem__)
    half = of.shape[axis] // 2
    for part in (slice(0, half), slice(half, None)):
        where = (*[slice(None)] * axis, part)
        _copy(to[where], of[where])


# --- the memory of digests ----------------------------------------------------------------------


class _Reference(weakref.ref):
    """A weak reference that knows under which number it is kept."""

    __slots__ = ("number",)
    number: int


class _Remembered(NamedTuple):
    reference: _Reference
    digest: bytes
    # Those of an array can be assigned to, also where its elements cannot.
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


# By id: arrays cannot be hashed.  An entry goes when its array does, before the id is another's.
# Each change is one operation of a dict, which is atomic.
_remembered: dict[int, _Remembered] = {}


def _forget(reference: _Reference, remembered: dict[int, _Remembered] = _remembered) -> None:
    # `remembered` as a default: at interpreter exit the module's names may be gone before.
    remembered.pop(reference.number, None)


def known(array: np.ndarray | LazyArray) -> bytes | None:
    """The digest that was remembered of this very array; None where there is none to be trusted.

    Notes
    -----
    Less than a microsecond; safe from any thread.
    """
    found = _remembered.get(id(array))
    if found is None or found.reference() is not array:
        return None
    if found.strides is not None and not (
        array.dtype is found.dtype
        and array.shape == found.shape
        and array.strides == found.strides
        and _is_frozen(array)
    ):
        _remembered.pop(id(array), None)
        return None
    return found.digest


def remember(array: np.ndarray | LazyArray, digest: bytes) -> None:
    """Remember the digest of an array for as long as the array lives, if it cannot change.

    It cannot if it is compressed, or if it and every array that it is a view of is read-only, and
    the buffer belongs to an array, to `bytes` or to a map of a chest's file.

    Notes
    -----
    An array that is found writeable later is not trusted any more.  Two things are not noticed: an
    array that is made writeable, written to and made read-only again in between, and a writeable
    view that was taken before the array was made read-only.
    """
    if isinstance(array, LazyArray):
        strides = None
    elif _is_frozen(array):
        strides = array.strides
    else:
        return
    reference = _Reference(array, _forget)
    reference.number = id(array)
    _remembered[id(array)] = _Remembered(reference, digest, array.dtype, array.shape, strides)


def digest_of(array: np.ndarray | LazyArray) -> bytes:
    """The digest of an array: the remembered one, or else computed, and remembered.

    Raises
    ------
    TypeError, ValueTypeError
        As `array_digest` raises them.
    """
    found = known(array)
    if found is None:
        found = array_digest(array)
        remember(array, found)
    return found


def _is_frozen(array: Any) -> bool:
    """Whether nobody can write to an array, nor to what it is a view of."""
    lender: Any
    while True:
        if isinstance(array, np.ndarray):
            flags = array.flags
            if flags.writeable:
                return False
            lender = array.base
            if lender is None:
                return flags.owndata
        elif isinstance(array, memoryview):
            lender = array.obj
        else:
            # Made by `map_file` in mode "r", or else the arrays above it would be writeable.
            return type(array) is bytes or is_map(array)
        array = lender
