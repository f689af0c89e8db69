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

# As NumPy names them: read-only; private and writable; shared and writable.
MmapMode = Literal["r", "c", "r+"]


def map_file(fd: int, nbytes: int, mode: MmapMode = "r") -> np.ndarray:
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
            return np.frombuffer(_Held(fd, nbytes, access=access, trackfd=False), np.uint8)
    return np.asarray(_Map(fd, nbytes, mode))


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
_MAP_FIXED = 0x10


class _Map:
    """A map that ends when its last view dies; NumPy reads it by the array interface."""

    __slots__ = ("__array_interface__", "_address", "_nbytes")

    def __init__(self, fd: int, nbytes: int, mode: MmapMode) -> None:
        self._address = None
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
