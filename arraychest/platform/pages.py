"""Pages of mapped files: read ahead, and taken out of this process."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any

from arraychest.platform.choice import IS_LINUX, IS_MACOS, PORTABLE

_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# From Linux 5.4 on; an older one refuses it, and pages stay until their map ends.
_MADV_PAGEOUT = 21

_HAS_FADVISE = hasattr(os, "posix_fadvise") and not PORTABLE

# macOS, sys/fcntl.h: read ahead; `struct radvisory` is an offset and a count.
_F_RDADVISE = 44
_RADVISORY = struct.Struct("qi0q")
_MOST_ADVISED = (1 << 31) - 1


def will_read(fd: int, offset: int, nbytes: int) -> None:
    """Tell the system that a part of a file is read soon; OSError if it does not want to know."""
    if _HAS_FADVISE:
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_WILLNEED)
    elif IS_MACOS:
        fcntl.fcntl(fd, _F_RDADVISE, _RADVISORY.pack(offset, min(nbytes, _MOST_ADVISED)))


def release_pages(address: int, nbytes: int) -> None:
    """Take the pages of a read-only map out of this process; what is touched is read again."""
    _madvise(address, nbytes, mmap.MADV_DONTNEED)


def page_out(address: int, nbytes: int) -> None:
    """Take the clean pages of a map out of this process; what was written to a private one stays.

    Elsewhere than on Linux the system does that itself where it needs memory.
    """
    if IS_LINUX:
        _madvise(address, nbytes, _MADV_PAGEOUT)


# --- how many there are --------------------------------------------------------------------


def resident_bytes() -> tuple[int, int]:
    """What this process has in RAM, as dask reads it, and how much of it are pages of files."""
    return _resident_bytes()


def anonymous_bytes() -> int | None:
    """Memory of this process that no file backs, in bytes; None where the system does not say.

    Not the resident set size: that counts mapped files too, which the kernel takes back at will.
    """
    return _anonymous_bytes()


def _resident_by_statm() -> tuple[int, int]:
    with open("/proc/self/statm", "rb") as file:
        _, resident, of_files, *_ = file.read().split()
    return int(resident) * mmap.PAGESIZE, int(of_files) * mmap.PAGESIZE


def _anonymous_by_status() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return None


# macOS, sys/resource.h: `struct rusage_info_v0` is 16 bytes and 10 numbers; these two are bytes in
# RAM, and those of them that no file backs.
_RUSAGE_NUMBERS, _RESIDENT, _FOOTPRINT = 10, 6, 7


def _usage_on_macos() -> tuple[int, int]:
    found = ctypes.create_string_buffer(16 + 8 * _RUSAGE_NUMBERS)
    call: Any = ctypes.CDLL(None, use_errno=True).proc_pid_rusage
    if call(os.getpid(), 0, ctypes.byref(found)):
        raise OSError(ctypes.get_errno(), "proc_pid_rusage failed")
    numbers = struct.unpack_from(f"{_RUSAGE_NUMBERS}Q", found, 16)
    return numbers[_RESIDENT], numbers[_FOOTPRINT]


def _resident_on_macos() -> tuple[int, int]:
    resident, footprint = _usage_on_macos()
    return resident, max(0, resident - footprint)


def _anonymous_on_macos() -> int | None:
    return _usage_on_macos()[1]


def _resident_by_psutil() -> tuple[int, int]:
    import psutil

    found = psutil.Process().memory_info()
    # Where nobody says how much of it are pages of files, it may be all.
    return found.rss, getattr(found, "shared", found.rss)


def _anonymous_by_psutil() -> int | None:
    resident, of_files = _resident_by_psutil()
    return resident - of_files or None


_resident_bytes: Callable[[], tuple[int, int]] = _resident_by_psutil
_anonymous_bytes: Callable[[], int | None] = _anonymous_by_psutil
if IS_LINUX and os.path.exists("/proc/self/statm"):
    _resident_bytes, _anonymous_bytes = _resident_by_statm, _anonymous_by_status
elif IS_MACOS:
    _resident_bytes, _anonymous_bytes = _resident_on_macos, _anonymous_on_macos
