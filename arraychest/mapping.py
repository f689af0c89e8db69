"""Read-only and private maps of whole files that hold no descriptor while they live.

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
from typing import Any

import numpy as np


def map_file(fd: int, nbytes: int, *, private: bool = False) -> np.ndarray:
    """Map the first `nbytes` bytes of an open file.

    Parameters
    ----------
    fd
        The file; it may be closed at once, the map needs it no longer.
    nbytes
        At least 1.  What lies beyond the end of the file must not be touched until the file has
        grown so far.
    private
        Whether the array is writable, each written page being copied for this map alone.

    Returns
    -------
    numpy.ndarray
        Shape ``(nbytes,)``, uint8, read-only unless `private`.  The map ends with the last view
        of it.

    Raises
    ------
    OSError
        The map could not be made; ENOMEM when the process has as many as the system allows.
    """
    if sys.version_info >= (3, 13):
        access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
        # The length is checked against the file's size by the caller; a pack is mapped beyond it.
        if nbytes <= os.fstat(fd).st_size:
            return np.frombuffer(_Held(fd, nbytes, access=access, trackfd=False), np.uint8)
    return np.asarray(_Map(fd, nbytes, private))


def is_map(owner: object) -> bool:
    """Whether the owner of an array's buffer is a map made here: backed by a file, not by RAM."""
    return isinstance(owner, _Map | _Held)


class _Held(mmap.mmap):
    """A map of ours, told apart from those that a user made."""


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


class _Map:
    """A map that ends when its last view dies; NumPy reads it by the array interface."""

    __slots__ = ("__array_interface__", "_address", "_nbytes")

    def __init__(self, fd: int, nbytes: int, private: bool) -> None:
        self._address = None
        protection = mmap.PROT_READ | mmap.PROT_WRITE if private else mmap.PROT_READ
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        address = _mmap(None, nbytes, protection, flags, fd, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._address = address
        self._nbytes = nbytes
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, not private),
            "version": 3,
        }

    def __del__(self, munmap: Any = _munmap) -> None:
        # `munmap` as a default: at interpreter exit the module's names may be gone before.
        if self._address is not None:
            munmap(self._address, self._nbytes)
