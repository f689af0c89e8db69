"""Locks that the kernel holds: on single bytes of a file, and on a file as a whole.

A waiter sleeps in the kernel, and a process that dies, however it dies, lets go of what it held.

Locks on bytes belong to one *opening* of the file, so that two chests in one process exclude each
other, too.  On Linux the kernel has such locks (fcntl(2), ``F_OFD_SETLKW``).  POSIX has only record
locks, which belong to the process: two of its openings do not exclude each other, and closing any
descriptor of the file lets go of all locks on it.  `RecordLocks` makes up for that: the openings of
a file in one process share one descriptor, which is closed with the last of them, and a table says
which opening holds what.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
import threading
import time
from typing import Protocol

from arraychest.platform.choice import PORTABLE

HAS_OPENING_LOCKS = hasattr(fcntl, "F_OFD_SETLKW") and not PORTABLE

# NOFOLLOW and NONBLOCK: a stranger's chest may hold a link or a pipe in its place.
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_REFUSED = (errno.EAGAIN, errno.EACCES)

# Between two looks at a lock that the kernel will not let us wait for.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.05


# --- on bytes ------------------------------------------------------------------------------


class ByteLocks(Protocol):
    """One opening of a lock file.  Closing it lets go of every lock taken through it.

    Attributes
    ----------
    fd
        A descriptor of the file, to ask the system about it; -1 once it is closed.
    """

    fd: int

    def take(self, byte: int, *, shared: bool) -> None:
        """Wait for a lock and hold it.  One that is held already is changed to the kind asked."""

    def try_take(self, byte: int) -> bool:
        """Hold a lock alone unless another opening holds it; False if so."""

    def let_go(self, byte: int) -> None:
        """Undo `take`."""

    def is_held(self, byte: int, count: int) -> bool:
        """Whether another opening holds a lock on one of `count` bytes."""

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""


def open_byte_locks(folder: int, name: str, *, create: bool) -> ByteLocks:
    """Open a lock file.

    Parameters
    ----------
    folder, name
        Where it lies.
    create
        Whether it is made where it is missing; it follows the umask.

    Raises
    ------
    OSError
        It is missing, or cannot be opened; ELOOP where something else lies in its place.
    """
    flags = _FLAGS | (os.O_CREAT if create else 0)
    if HAS_OPENING_LOCKS:
        fd = os.open(name, flags, 0o666, dir_fd=folder)
        try:
            _check_kind(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return OpeningLocks(fd)
    return RecordLocks(_shared_file(folder, name, flags))


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise OSError(errno.ELOOP, "expected a file with one name")


# `struct flock` in the order and with the padding that the system's C compiler gives it.
if sys.platform == "darwin":
    _FLOCK = struct.Struct("qqihh")  # start, length, process, type, whence

    def _pack(kind: int, byte: int, count: int) -> bytes:
        return _FLOCK.pack(byte, count, 0, kind, os.SEEK_SET)

    def _kind_of(packed: bytes) -> int:
        return int(_FLOCK.unpack(packed)[3])

else:
    _FLOCK = struct.Struct("hhqqi0q")  # type, whence, start, length, process

    def _pack(kind: int, byte: int, count: int) -> bytes:
        return _FLOCK.pack(kind, os.SEEK_SET, byte, count, 0)

    def _kind_of(packed: bytes) -> int:
        return int(_FLOCK.unpack(packed)[0])


class OpeningLocks:
    """Locks that belong to one opening of the file; Linux has them.

    Parameters
    ----------
    fd
        Is closed with this.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self, byte: int, *, shared: bool) -> None:
        """See `ByteLocks`."""
        self._set(fcntl.F_OFD_SETLKW, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte)

    def try_take(self, byte: int) -> bool:
        """See `ByteLocks`."""
        try:
            self._set(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return False
        return True

    def let_go(self, byte: int) -> None:
        """See `ByteLocks`."""
        self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def is_held(self, byte: int, count: int) -> bool:
        """See `ByteLocks`."""
        found = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, _pack(fcntl.F_WRLCK, byte, count))
        return _kind_of(found) != fcntl.F_UNLCK

    def close(self) -> None:
        """See `ByteLocks`."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _set(self, command: int, kind: int, byte: int) -> None:
        fcntl.fcntl(self.fd, command, _pack(kind, byte, 1))


class _SharedFile:
    """A lock file that this process has open, and which of its openings holds what.

    Attributes
    ----------
    fds
        Its descriptors: the first is used; the others were opened at the same moment by another
        thread, and cannot be closed before all locks are let go of.
    users
        How many openings there are; under `_registering`.
    holders
        For each byte the openings that hold it, or wait in the kernel for it, and whether shared.
        Under `changed`.
    """

    def __init__(self, fd: int) -> None:
        self.fds = [fd]
        self.users = 0
        self.changed = threading.Condition(threading.RLock())
        self.holders: dict[int, dict[RecordLocks, bool]] = {}

    def is_refused(self, byte: int, user: RecordLocks, *, shared: bool) -> bool:
        """Whether another opening of this process keeps one from holding a byte."""
        others = list(self.holders.get(byte, {}).items())
        return any([other is not user and not (shared and kind) for other, kind in others])

    def put_back(self, byte: int, user: RecordLocks, before: bool | None) -> None:
        """Note what an opening holds now; the kernel's lock goes with the last of them."""
        with self.changed:
            holders = self.holders.setdefault(byte, {})
            if before is None:
                holders.pop(user, None)
            else:
                holders[user] = before
            if not holders:
                del self.holders[byte]
                fcntl.lockf(self.fds[0], fcntl.LOCK_UN, 1, byte)
            self.changed.notify_all()


# By device and inode.  Re-entrant, as the garbage collector may close an opening at any moment.
_shared_files: dict[tuple[int, int], _SharedFile] = {}
_registering = threading.RLock()


def _shared_file(folder: int, name: str, flags: int) -> _SharedFile:
    """The file, which is opened only if this process does not have it open: see `_SharedFile`."""
    with _registering:
        known = None
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            # Before it is opened: it may be another name of a file that we hold locks on.
            _check_kind(status)
            known = _shared_files.get((status.st_dev, status.st_ino))
        if known is None:
            fd = os.open(name, flags, 0o666, dir_fd=folder)
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino)
            known = _shared_files.get(identity)
            if known is not None:
                known.fds.append(fd)  # it was moved here since we looked
            else:
                try:
                    _check_kind(status)
                except BaseException:
                    os.close(fd)
                    raise
                known = _shared_files[identity] = _SharedFile(fd)
        known.users += 1
        return known


class RecordLocks:
    """Locks that belong to one opening of the file, made of locks that belong to the process.

    Parameters
    ----------
    file
        Already counts this as one of its users.
    """

    def __init__(self, file: _SharedFile) -> None:
        self._file = file
        self.fd = file.fds[0]

    def take(self, byte: int, *, shared: bool) -> None:
        """See `ByteLocks`."""
        file = self._file
        with file.changed:
            while file.is_refused(byte, self, shared=shared):
                file.changed.wait()
            holders = file.holders.setdefault(byte, {})
            before = holders.get(self)
            holders[self] = shared
        try:
            _wait_for(self.fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, byte)
        except BaseException:
            file.put_back(byte, self, before)
            raise
        if before is not None and shared:
            with file.changed:
                file.changed.notify_all()  # others may share it now

    def try_take(self, byte: int) -> bool:
        """See `ByteLocks`."""
        file = self._file
        with file.changed:
            if file.is_refused(byte, self, shared=False):
                return False
            holders = file.holders.setdefault(byte, {})
            before = holders.get(self)
            holders[self] = False
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BaseException as error:
            file.put_back(byte, self, before)
            if isinstance(error, OSError) and error.errno in _REFUSED:
                return False
            raise
        return True

    def let_go(self, byte: int) -> None:
        """See `ByteLocks`."""
        self._file.put_back(byte, self, None)

    def is_held(self, byte: int, count: int) -> bool:
        """See `ByteLocks`."""
        file = self._file
        with file.changed:
            for held, holders in list(file.holders.items()):
                if byte <= held < byte + count and any(each is not self for each in list(holders)):
                    return True
        # What this process holds itself the kernel does not tell.
        found = fcntl.fcntl(self.fd, fcntl.F_GETLK, _pack(fcntl.F_WRLCK, byte, count))
        return _kind_of(found) != fcntl.F_UNLCK

    def close(self) -> None:
        """See `ByteLocks`."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        file = self._file
        with file.changed:
            for byte, holders in list(file.holders.items()):
                if self in holders:
                    file.put_back(byte, self, None)
        with _registering:
            file.users -= 1
            if file.users:
                return
            for identity, each in list(_shared_files.items()):
                if each is file:
                    del _shared_files[identity]
            for each_fd in file.fds:
                os.close(each_fd)


def _wait_for(fd: int, kind: int, byte: int) -> None:
    """Wait for a record lock.

    The kernel refuses to wait where two processes would wait for each other (EDEADLK).  It does not
    know of threads: another one may let go of what the other process waits for.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            fcntl.lockf(fd, kind, 1, byte)
        except OSError as error:
            if error.errno != errno.EDEADLK:
                raise
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _after_fork_in_child() -> None:
    # A child has none of its parent's record locks, and the parent's threads may have been changing
    # the table.  What is open is closed by who opened it.
    global _registering
    _registering = threading.RLock()
    for file in list(_shared_files.values()):
        file.changed = threading.Condition(threading.RLock())
        file.holders = {}


os.register_at_fork(after_in_child=_after_fork_in_child)


# --- on a file as a whole ------------------------------------------------------------------


def lock_file(fd: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder, for as long as it is open or mapped.

    Returns
    -------
    bool
        False if another opening of it holds it against us; never if `wait`.

    Raises
    ------
    OSError
        The file system has no such locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_file(fd: int) -> None:
    """Undo `lock_file`, for a file that stays mapped: a map keeps its opening, and so the lock."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def share_as_process(fd: int, first: int, count: int) -> None:
    """Take a shared record lock for this process, as SQLite does; OSError if another has it alone.

    It is let go of where the process closes any descriptor of the file.
    """
    fcntl.lockf(fd, fcntl.LOCK_SH, count, first)
