"""Who owns the memory of an array, and whether anybody else holds it."""

from __future__ import annotations

import mmap
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arraychest.formats.tree import Tree
from arraychest.platform.maps import is_map


def owner_of(array: np.ndarray) -> Any:
    """The object that owns the buffer of `array`: the last one along ``.base``."""
    owner: Any = array
    while True:
        lender: Any
        if isinstance(owner, np.ndarray):
            lender = owner.base
        elif isinstance(owner, memoryview):
            lender = owner.obj  # again a view, maybe
        else:
            return owner
        if lender is None:
            return owner
        owner = lender


def owned_bytes(owner: Any) -> int:
    """Bytes that stay in RAM as long as `owner` lives; our own maps of files are not RAM."""
    if isinstance(owner, np.ndarray | np.generic):
        return owner.nbytes
    if is_map(owner):
        return 0
    if isinstance(owner, mmap.mmap):
        return len(owner)
    try:
        return memoryview(owner).nbytes
    except TypeError:
        interface = getattr(owner, "__array_interface__", None)
        if interface is None:
            return 0
        return int(np.asarray(owner).nbytes)


def is_held(arrays: Sequence[np.ndarray | Tree]) -> list[bool]:
    """Whether anything but the list refers to each of its arrays."""
    return [count > _ALONE for count in map(sys.getrefcount, arrays)]


# What the loop above sees of an array that only the list refers to: it differs between versions of
# Python.
_ALONE = next(map(sys.getrefcount, [np.empty(0)]))


def nothing() -> None:
    """No array is held by anybody."""


def frozen(array: np.ndarray) -> Callable[[], np.ndarray | None]:
    """Make an array read-only; what gives it again as long as anybody holds it or a view of it."""
    owner = array if array.base is None else array.base
    array.flags.writeable = False
    if owner is array or not isinstance(owner, np.ndarray) or owner.base is not None:
        return weakref.ref(array)
    # A view keeps the owner of the memory, and not the array that it was made of.
    owner.flags.writeable = False
    held, dtype, shape, strides = weakref.ref(owner), array.dtype, array.shape, array.strides

    def again() -> np.ndarray | None:
        memory = held()
        return None if memory is None else np.ndarray(shape, dtype, memory, 0, strides)

    return again
