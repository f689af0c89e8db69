"""dask arrays over arrays that a chest has stored."""

from __future__ import annotations

import functools
from typing import Any

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks
from dask.base import tokenize

from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.source import read_part
from arraychest.engine.handle import Handle
from arraychest.errors import ValueTypeError
from arraychest.storage.block_writer import regular


@functools.lru_cache(maxsize=16)
def _opened(handle: Handle) -> Any:
    """The array of a handle: a task that reads a block of it finds it open by the task before."""
    return handle.array()


class StoredArray:
    """A stored array as dask reads it: by its place, block by block.

    It pickles to a few hundred bytes, and opens the file where it is first read.  What a task has
    read takes RAM for as long as the task's result does: a worker is paused for what it has
    resident, and pages of maps are counted.

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
        array = _opened(self._handle)
        return read_part(array, index, by_blocks=isinstance(array, BlockedArray))

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...] | None:
        """The sizes of what is read at a time, along each dimension; None if any part may be."""
        if not (self._handle.is_compressed or self._handle.kind == "blocked"):
            return None
        array = _opened(self._handle)
        if isinstance(array, BlockedArray):
            return array.chunks
        # Decompressed whole where it is asked for to be written to.
        return regular(self.shape, array.chunks) if isinstance(array, CompressedArray) else None

    def __dask_tokenize__(self) -> Any:
        return "arraychest", *self._handle.token

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
        inline_array=True,
        meta=np.empty((0,) * stored.ndim, stored.dtype),
    )
