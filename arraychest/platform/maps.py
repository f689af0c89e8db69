"""Maps of whole files that hold no descriptor while they live.

``mmap.mmap`` keeps a duplicate of the descriptor for its own ``resize`` and ``flush``: twenty live
views are twenty open files, and a limit of 256 or 1024 ends a program that holds many.  From
Python 3.13 on, ``trackfd=False`` leaves it out; before that, the C library's ``mmap`` is called
directly.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any, Literal

import numpy as np

from arraychest.platform.pages import release_pages

# So much of a map may be resident while a part of it is copied.
_COPIED_BYTES = 4 << 20

# How a chest gives its arrays, as NumPy names it: read-only; or private and writable.
MmapMode = Literal["r", "c"]

# How a file is mapped: also shared and writable.
MapMode = Literal["r", "c", "r+"]


def map_file(fd: int, nbytes: int, mode: MapMode = "r", *, steady: bool = False) -> np.ndarray:
    """Map the first `nbytes` bytes of an open file.

    Parameters
    ----------
    fd
        The file; it may be closed at once, the map needs it no longer.
    nbytes
        At least 1.  What lies beyond the end of the file must not be touched until the file has
        grown so far.
    mode
        ``"r"``: the array is read-only.  ``"c"``: it is writable, each written page being copied
        for this map alone.  ``"r+"``: what is written reaches the file.
    steady
        Whether nobody can write to the file, by another map or in another way; see `is_steady`.

    Returns
    -------
    numpy.ndarray
        Shape ``(nbytes,)``, uint8.  The map ends with the last view of it.

    Raises
    ------
    OSError
        The map could not be made; ENOMEM when the process has as many as the system allows.
    """
    if sys.version_info >= (3, 13) and mode != "r+":
        access = mmap.ACCESS_COPY if mode == "c" else mmap.ACCESS_READ
        # The length is checked against the file's size by the caller; a pack is mapped beyond it.
        if nbytes <= os.fstat(fd).st_size:
            held = _Held(fd, nbytes, access=access, trackfd=False)
            held.steady = steady
            return np.frombuffer(held, np.uint8)
    return np.asarray(_Map(fd, nbytes, mode, steady))


def detach(base: np.ndarray, fd: int) -> None:
    """Cut a map made with ``"r+"`` off from its file: what is written from here on is private.

    Whoever still holds a view of it reads what was there, and can harm nobody by writing to it.

    Parameters
    ----------
    base
        What `map_file` returned.
    fd
        The same file.

    Raises
    ------
    OSError
        The map is as it was.
    """
    held: Any = base
    while isinstance(held, np.ndarray):
        held = held.base
    held.detach(fd)


def release(array: np.ndarray) -> None:
    """Take the pages of a read-only map out of this process; what is touched again is read again.

    A page that was read counts in the process's resident size for as long as its map lives.

    Parameters
    ----------
    array
        The map that `map_file` returned, or a view of it.  Nothing happens to any other array: its
        bytes are nowhere else.
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    # What was written to a private map is in its pages only.
    if is_map(array.base) and not array.flags.writeable:
        release_pages(array.ctypes.data, array.nbytes)


def copied_out(part: np.ndarray) -> np.ndarray:
    """A read-only copy of a part of a map, whose pages are released while they are copied.

    The kernel maps 16 pages where one is touched: of rows of 4 KiB, 6 MB would keep 100 MB
    resident.
    """
    copy = np.empty_like(part)
    _copy_out(copy, part)
    copy.flags.writeable = False
    return copy


def _copy_out(copy: np.ndarray, part: np.ndarray) -> None:
    reach = [abs(step) * (n - 1) for step, n in zip(part.strides, part.shape, strict=True)]
    if sum(reach) <= _COPIED_BYTES or not part.size:
        copy[...] = part
        release(part)
        return
    axis = reach.index(max(reach))
    n = part.shape[axis]
    step = max(1, min(n // 2, _COPIED_BYTES // abs(part.strides[axis])))
    for start in range(0, n, step):
        where = (slice(None),) * axis + (slice(start, start + step),)
        _copy_out(copy[where], part[where])


def is_map(owner: object) -> bool:
    """Whether the owner of an array's buffer is a map made here: backed by a file, not by RAM."""
    return isinstance(owner, _Map | _Held)


def is_steady(owner: object) -> bool:
    """Whether the owner of an array's buffer is a map made here whose bytes nobody can change."""
    return isinstance(owner, _Map | _Held) and owner.steady


class _Held(mmap.mmap):
    """A map of ours, told apart from those that a user made."""

    steady: bool


_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10


class _Map:
    """A map that ends when its last view dies; NumPy reads it by the array interface."""

    __slots__ = ("__array_interface__", "_address", "_nbytes", "steady")

    def __init__(self, fd: int, nbytes: int, mode: MapMode, steady: bool) -> None:
        self._address = None
        self.steady = steady
        protection = mmap.PROT_READ if mode == "r" else mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_PRIVATE if mode == "c" else mmap.MAP_SHARED
        self._nbytes = nbytes
        self._address = address = self._map(None, protection, flags, fd)
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, mode == "r"),
            "version": 3,
        }

    def _map(self, at: int | None, protection: int, flags: int, fd: int) -> int:
        address = _mmap(at, self._nbytes, protection, flags, fd, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(address)

    def detach(self, fd: int) -> None:
        # In place and in one step: a view that is being read or written at this moment goes on.
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        self._map(self._address, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd)

    def __del__(self, munmap: Any = _munmap) -> None:
        # `munmap` as a default: at interpreter exit the module's names may be gone before.
        # There is no address where Ctrl-C came before the first line of `__init__`.
        if (address := getattr(self, "_address", None)) is not None:
            munmap(address, self._nbytes)
