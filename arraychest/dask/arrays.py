"""dask arrays over arrays that a chest has stored."""

from __future__ import annotations

import weakref
from typing import Any

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks
from dask.base import tokenize

from arraychest.blocked import BlockedArray
from arraychest.blocks import regular
from arraychest.compressed import CompressedArray
from arraychest.errors import ValueTypeError
from arraychest.handle import Handle

# Opened arrays of this process, by the files that they are of: a task that reads a block of an
# array finds it mapped by the task before.
_opened: weakref.WeakValueDictionary[tuple[str, Any, int], Any] = weakref.WeakValueDictionary()
# Kept open whoever uses them, the last ones first.
_recent: list[Any] = []
_MOST_RECENT = 16


class StoredArray:
    """A stored array as dask reads it: by its place, block by block.

    It pickles to a few hundred bytes, and opens the file where it is first read.

    Parameters
    ----------
    handle
        Of the array; see `Chest.handle`.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.shape = handle.shape
        self.dtype = handle.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._array()[index])

    def _array(self) -> Any:
        handle = self._handle
        which = handle.path, handle.key, handle.generation
        array = _opened.get(which)
        if array is None:
            _opened[which] = array = handle.array()
            _recent.append(array)
            del _recent[:-_MOST_RECENT]
        return array

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...] | None:
        """The sizes of what is read at a time, along each dimension; None if any part may be."""
        if not (self._handle.is_compressed or self._handle.kind == "blocked"):
            return None
        array = self._array()
        if isinstance(array, BlockedArray):
            return array.chunks
        # Decompressed whole where it is asked for to be written to.
        return regular(self.shape, array.chunks) if isinstance(array, CompressedArray) else None

    def __dask_tokenize__(self) -> Any:
        handle = self._handle
        return "arraychest", handle.path, handle.key, handle.generation

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArray, (self._handle,)


def to_dask(handle: Handle, chunks: Any = "auto") -> da.Array:
    """A dask array over a stored array; see `Chest.to_dask`."""
    if handle.kind not in ("array", "blocked"):
        raise ValueTypeError(
            f"expected an array under key {handle.key!r:.200}, found a value of kind {handle.kind}"
        )
    stored = StoredArray(handle)
    if handle.kind == "blocked" and chunks == "auto":
        chunks = stored.chunks
    # Blocks of whole chunks of the file: a chunk is decompressed once.
    chunks = normalize_chunks(
        chunks, shape=stored.shape, dtype=stored.dtype, previous_chunks=stored.chunks
    )
    return da.from_array(
        stored,
        chunks=chunks,
        name=f"arraychest-{tokenize(stored, chunks)}",
        lock=False,
        fancy=False,
        inline_array=True,
        meta=np.empty((0,) * stored.ndim, stored.dtype),
    )
