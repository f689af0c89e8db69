"""New files that begin with the bytes of another: their blocks shared, or copied."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from arraychest.platform.choice import IS_LINUX, IS_MACOS, PORTABLE

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# linux/fs.h: share the blocks of another file.
_FICLONE = 0x40049409

HAS_SENDFILE = IS_LINUX and hasattr(os, "sendfile") and not PORTABLE
_COPIED_BYTES = 1 << 20


def clone(source: int, nbytes: int, folder: int, name: str) -> tuple[int, bool]:
    """Make a file that shares the first `nbytes` bytes of another, where the file system can.

    A write to a shared block needs room for a block of its own, and through a map it is SIGBUS
    where there is none: so only where there is room for all of them.

    Parameters
    ----------
    source
        The other file, open.
    folder, name
        Where the new one lies.

    Returns
    -------
    tuple
        A descriptor to read and write it, and whether it has the bytes; it is empty otherwise.

    Notes
    -----
    ``FICLONE`` on Linux (Btrfs, XFS), ``fclonefileat`` on macOS (APFS).
    """
    if IS_MACOS and _has_room(source, nbytes) and _clone_file(source, folder, name):
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.ftruncate(fd, nbytes)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=folder)
            raise
        return fd, True
    fd = os.open(name, _NEW, 0o666, dir_fd=folder)
    return fd, IS_LINUX and _share_blocks(source, fd, nbytes)


def _has_room(fd: int, nbytes: int) -> bool:
    free = os.fstatvfs(fd)
    return free.f_bavail * free.f_frsize >= 2 * nbytes


def _share_blocks(source: int, fd: int, nbytes: int) -> bool:
    try:
        if not _has_room(fd, nbytes):
            return False
        fcntl.ioctl(fd, _FICLONE, source)
        os.ftruncate(fd, nbytes)
    except OSError:
        return False
    return True


def _clone_file(source: int, folder: int, name: str) -> bool:
    """macOS: make a file that shares all blocks of another."""
    call = ctypes.CDLL(None, use_errno=True).fclonefileat
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    return bool(call(source, folder, os.fsencode(name), 0) == 0)


def copy(source: int, fd: int, nbytes: int) -> None:
    """Copy the first `nbytes` bytes of a file to the begin of another one, or as many as it has."""
    left = min(nbytes, os.fstat(source).st_size)
    at = 0
    while left > 0:
        if HAS_SENDFILE:
            count = os.sendfile(fd, source, at, left)
        else:
            count = os.pwrite(fd, os.pread(source, min(left, _COPIED_BYTES), at), at)
        if not count:
            raise OSError(errno.EIO, "the file ended while it was copied")
        left -= count
        at += count
