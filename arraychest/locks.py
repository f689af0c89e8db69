"""Locks between processes: byte ranges of one file, held by the kernel for whoever opened it.

They are *open file description* locks (fcntl(2), ``F_OFD_SETLKW``): a waiter sleeps in the kernel,
and a process that dies, however it dies, lets go of what it held.  Unlike the older POSIX locks
they belong to one opening of the file and not to the process, so that two chests in one process
exclude each other too.

======================  ==================================================================
bytes                   who holds them
======================  ==================================================================
`COMMIT`                whoever changes the catalog
`NUMBERS`               whoever takes places in the order of insertion
`ATTACHED`              shared: every chest that may write; alone: whoever empties the folder
`PRIVATE`               the one process whose temporary chest it is
``SESSION + number``    the session of that number, as long as it lives
``KEY + hash``          whoever locked or edits a key
``PACK + id``           the session that appends to a pack, or compacts it
======================  ==================================================================
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import struct
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from arraychest.errors import ChestFormatError
from arraychest.opened import OpenFolder

FILE_NAME = "locks"

COMMIT, NUMBERS, ATTACHED, PRIVATE = 0, 1, 2, 3
SESSION = 1 << 32
KEY = 1 << 60
PACK = 1 << 62
_SESSIONS = 1 << 32

# struct flock on 64-bit Linux: type, whence, start, length, process id (0 for these locks).
_FLOCK = struct.Struct("hh4xqqi4x")
# A forked child shares its parent's openings, and with them the locks: as long as it kept one, a
# lock of a parent that died would stay.
_open_files: weakref.WeakSet[LockFile] = weakref.WeakSet()

_REFUSED = (errno.EAGAIN, errno.EACCES)


class LockFile:
    """One opening of a chest's lock file.  Closing it lets go of every lock taken through it.

    Parameters
    ----------
    folder
        The chest's.
    create
        Whether the file is made where it is missing.

    Raises
    ------
    ChestFormatError
        Something else lies in its place.
    OSError
        The folder is gone, or cannot be written to.
    """

    def __init__(self, folder: OpenFolder, *, create: bool = True) -> None:
        folder.check()
        path = os.path.join(folder.path, FILE_NAME)
        # NOFOLLOW: a stranger's chest may hold a link to a file of ours in its place.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            flags |= os.O_CREAT if create else 0
            self._fd = os.open(FILE_NAME, flags, 0o666, dir_fd=folder.fd)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise ChestFormatError(f"expected a file at {path}, found something else") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            self.close()
            raise ChestFormatError(f"expected a file with one name at {path}, found another")
        _open_files.add(self)
        self._held = {COMMIT: threading.Lock(), NUMBERS: threading.Lock()}

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def unlink(self, folder: OpenFolder) -> None:
        """Remove the file, of a folder that turned out not to be a chest."""
        with contextlib.suppress(OSError):
            os.unlink(FILE_NAME, dir_fd=folder.fd)

    @property
    def has_name(self) -> bool:
        """Whether the file is still there: a lock on one that was removed keeps nobody out."""
        return os.fstat(self._fd).st_nlink > 0

    @property
    def owner(self) -> int:
        """The user who owns the file."""
        return os.fstat(self._fd).st_uid

    def take(self, byte: int, *, shared: bool = False) -> None:
        """Wait for a lock and hold it.  A lock held already is changed to the kind asked for."""
        self._set(fcntl.F_OFD_SETLKW, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte)

    def try_take(self, byte: int) -> bool:
        """Hold a lock unless somebody else does; False if so."""
        try:
            self._set(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return False
        return True

    def let_go(self, byte: int) -> None:
        """Undo `take`."""
        self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def is_held(self, byte: int) -> bool:
        """Whether somebody else holds a lock."""
        return self._is_held(byte, 1)

    def any_session(self) -> bool:
        """Whether any other session is alive."""
        return self._is_held(SESSION, _SESSIONS)

    @contextlib.contextmanager
    def holding(self, byte: int) -> Iterator[None]:
        """Hold `COMMIT` or `NUMBERS`; the threads of this chest exclude each other, too."""
        with self._held[byte]:
            self.take(byte)
            try:
                yield
            finally:
                if self._fd >= 0:
                    self.let_go(byte)

    def _is_held(self, byte: int, count: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, count, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)

    def _set(self, command: int, kind: int, byte: int) -> None:
        fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def hold_file(fd: int, *, shared: bool = False) -> None:
    """Wait for a lock on an open file as a whole."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))


def let_go_of_file(fd: int) -> None:
    """Undo `hold_file`, for a file that stays mapped: a map keeps its opening, and so the lock."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def hold_folder(fd: int, *, shared: bool = True) -> bool:
    """Lock an open folder, for as long as it is open; False if another opening holds it against us.

    A file system that has no such locks grants them all.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_at(fd: int, path: str, parent: int | None = None) -> bool:
    """Whether the folder that is open is the one that lies there, under no link."""
    try:
        there = os.stat(path, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


class KeyLock:
    """A lock on one key of a chest, between threads and processes; see `Chest.lock`.

    Parameters
    ----------
    folder
        The chest's.
    code
        The key's canonical code.
    """

    def __init__(self, folder: OpenFolder, code: bytes) -> None:
        self._folder = folder
        self._byte = key_byte(code)
        # Each holder has an opening of the file of its own, and so waits for the others.
        self._held: LockFile | None = None

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; returns whether it was taken, which it always is if `blocking`."""
        mine = LockFile(self._folder)
        try:
            if blocking:
                mine.take(self._byte)
            elif not mine.try_take(self._byte):
                mine.close()
                return False
        except BaseException:
            mine.close()
            raise
        self._held = mine
        return True

    def release(self) -> None:
        """Let go of the lock; raises RuntimeError if it is not held."""
        mine, self._held = self._held, None
        if mine is None:
            raise RuntimeError("expected a lock that is held, found one that is not")
        mine.close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def key_byte(code: bytes) -> int:
    """The byte that stands for a key, by its canonical code.

    Two keys of one byte (one pair in 2^59) wait for each other, and nothing worse.
    """
    return KEY + (int.from_bytes(hashlib.blake2b(code, digest_size=8).digest(), "little") >> 5)


def _after_fork_in_child() -> None:
    for each in list(_open_files):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
