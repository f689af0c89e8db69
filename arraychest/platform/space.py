"""Space on the disk: reserved before it is written, and put on stable storage."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from arraychest.platform.choice import IS_MACOS, PORTABLE

HAS_FALLOCATE = hasattr(os, "posix_fallocate") and not PORTABLE

# Of file systems that cannot reserve.
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}

# macOS, sys/fcntl.h: allocate behind the end of the file, in one piece or in any, all or nothing.
_F_PREALLOCATE, _F_FULLFSYNC = 42, 51
_F_ALLOCATECONTIG, _F_ALLOCATEALL = 2, 4
_F_PEOFPOSMODE = 3
# fstore_t: flags, mode, offset, length, and how much was allocated.
_FSTORE = struct.Struct("Iiqqq")

_ZEROS = bytes(1 << 20)


def reserve(fd: int, offset: int, nbytes: int) -> None:
    """Make sure that `nbytes` bytes can be written at `offset`, where the file system can say so.

    The file is that long then.  What was in it stays; what was not is zero.

    Raises
    ------
    OSError
        ENOSPC, EFBIG or EDQUOT: nothing was written.

    Notes
    -----
    Linux has ``posix_fallocate``, macOS ``F_PREALLOCATE``.  Where there is neither, zeros are
    written behind the end of the file, which takes as long as writing the values.
    """
    if nbytes <= 0:
        return
    if HAS_FALLOCATE:
        try:
            os.posix_fallocate(fd, offset, nbytes)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    elif not (IS_MACOS and _preallocate(fd, offset + nbytes)):
        _write_zeros(fd, offset + nbytes)


def _preallocate(fd: int, end: int) -> bool:
    """macOS: allocate up to a new end of the file; False where the file system cannot."""
    more = end - os.fstat(fd).st_size
    if more <= 0:
        return True
    for flags in (_F_ALLOCATECONTIG | _F_ALLOCATEALL, _F_ALLOCATEALL):
        try:
            fcntl.fcntl(fd, _F_PREALLOCATE, _FSTORE.pack(flags, _F_PEOFPOSMODE, 0, more, 0))
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            if flags == _F_ALLOCATEALL:
                raise
        else:
            break
    os.ftruncate(fd, end)
    return True


def _write_zeros(fd: int, end: int) -> None:
    start = at = os.fstat(fd).st_size
    disk = os.fstatvfs(fd)
    if end - start > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before it takes minutes
    try:
        while at < end:
            at += os.pwrite(fd, _ZEROS[: end - at], at)
    except OSError:
        os.ftruncate(fd, start)
        raise


def sync(fd: int) -> None:
    """Put a file, or the names in a folder, on stable storage.

    On macOS ``fsync`` leaves it in the disk's own memory, which a power cut empties.
    """
    if IS_MACOS:
        try:
            fcntl.fcntl(fd, _F_FULLFSYNC)
        except OSError as error:
            if error.errno not in {*_CANNOT, errno.ENOTTY}:
                raise
        else:
            return
    os.fsync(fd)
