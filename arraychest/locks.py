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
from collections.abc import Iterator

from arraychest.errors import ChestFormatError

FILE_NAME = "locks"

COMMIT, NUMBERS, ATTACHED, PRIVATE = 0, 1, 2, 3
SESSION = 1 << 32
KEY = 1 << 60
PACK = 1 << 62
_SESSIONS = 1 << 32

# struct flock on 64-bit Linux: type, whence, start, length, process id (0 for these locks).
_FLOCK = struct.Struct("hh4xqqi4x")
_REFUSED = (errno.EAGAIN, errno.EACCES)


class LockFile:
    """One opening of a chest's lock file.  Closing it lets go of every lock taken through it.

    Parameters
    ----------
    root
        The chest's folder.
    create
        Whether the file is made where it is missing.

    Raises
    ------
    ChestFormatError
        Something else lies in its place.
    OSError
        The folder is gone, or cannot be written to.
    """

    def __init__(self, root: str, *, create: bool = True) -> None:
        path = os.path.join(root, FILE_NAME)
        # NOFOLLOW: a stranger's chest may hold a link to a file of ours in its place.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags | (os.O_CREAT if create else 0), 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise ChestFormatError(f"expected a file at {path}, found something else") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(self._fd)
            raise ChestFormatError(f"expected a file with one name at {path}, found another")
        self._held = {COMMIT: threading.Lock(), NUMBERS: threading.Lock()}

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def unlink(self, root: str) -> None:
        """Remove the file, of a folder that turned out not to be a chest."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(root, FILE_NAME))

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


def key_byte(code: bytes) -> int:
    """The byte that stands for a key, by its canonical code.

    Two keys of one byte (one pair in 2^59) wait for each other, and nothing worse.
    """
    return KEY + (int.from_bytes(hashlib.blake2b(code, digest_size=8).digest(), "little") >> 5)
