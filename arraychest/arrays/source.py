"""What dask reads of a stored array that is given to it: parts, and never the whole."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

from arraychest.arrays.ownership import owner_of
from arraychest.platform.maps import copied_out, is_map

# What is smaller is copied out of its map: that takes less RAM than the pages around it.
_VIEW_BYTES = 1 << 20


class Source:
    """A lazy array as `dask.array.from_array` takes it: by its place, and block by block.

    dask copies an array that it is given, lest somebody changes it afterwards.  A lazy array never
    changes, so this is what dask gets for a copy.  It has none of the methods of an array by which
    dask, or NumPy, would read it whole.

    Parameters
    ----------
    array
        A `BlockedArray` or a `CompressedArray` that lies in a place of its own.

    Attributes
    ----------
    shape, dtype, ndim
        As the array's.
    chunks
        What is read at a time, which dask's own blocks are made of.

    Notes
    -----
    It pickles to a few hundred bytes: who unpickles it must reach the file by the same path.  What
    is read takes RAM as long as somebody has it, and none of the pages around it.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = len(array.shape)
        self.chunks = array.chunks

    def __getitem__(self, index: Any) -> np.ndarray:
        return read_part(
            self._array, index, by_blocks=any(isinstance(sizes, tuple) for sizes in self.chunks)
        )

    def __dask_tokenize__(self) -> Any:
        return self._array.__dask_tokenize__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, self._array.by_place()


def _unpickled(make: Any, arguments: tuple[Any, ...]) -> Source:
    return Source(make(*arguments))


def copy_of(array: Any, order: Literal["C", "F", "A", "K"]) -> Any:
    """A lazy array in RAM, the caller's own; for dask what reads it.

    Called by the array's `copy`.  A compressed part of a tree has no place of its own: dask gets a
    copy of it, as everybody does.
    """
    asking = sys._getframe(2)
    if (
        asking.f_code.co_name == "from_array"
        and asking.f_globals.get("__name__") == "dask.array.core"
        and array.by_place() is not None
    ):
        return Source(array)
    found = np.asarray(array)
    return found if order == array.order and found.flags.writeable else found.copy(order)


def read_part(array: Any, index: Any, *, by_blocks: bool) -> np.ndarray:
    """A part of a stored array, which keeps no pages of its file resident but its own.

    Parameters
    ----------
    by_blocks
        Whether each block of the array is mapped by itself, and goes with the part.  The map of an
        array stays, and its pages would.
    """
    part = np.asarray(array[index])
    if not is_map(owner_of(part)):
        return part
    if by_blocks and part.flags.forc and part.nbytes >= _VIEW_BYTES:
        return part
    return copied_out(part)
