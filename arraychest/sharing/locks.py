"""Locks between processes: byte ranges of one file, held by the kernel for whoever opened it.

A waiter sleeps in the kernel, and a process that dies, however it dies, lets go of what it held.
They belong to one opening of the file, so that two chests in one process exclude each other too;
see `platform.locks`.

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
import hashlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextvars import Context
from types import TracebackType
from typing import Any, Self

from arraychest.errors import ChestFormatError, ClosedChestError, DeadlockError
from arraychest.platform.folders import NO_FILE
from arraychest.platform.locks import ByteLocks, lock_file, open_byte_locks
from arraychest.sharing.contexts import current_context
from arraychest.sharing.interrupts import Lock, let_through
from arraychest.sharing.open_folder import OpenFolder

FILE_NAME = "locks"

COMMIT, NUMBERS, ATTACHED, PRIVATE = 0, 1, 2, 3
SESSION = 1 << 32
KEY = 1 << 60
PACK = 1 << 62
_SESSIONS = 1 << 32

# A forked child shares its parent's openings, and with them the locks: as long as it kept one, a
# lock of a parent that died would stay.
_open_files: weakref.WeakSet[LockFile] = weakref.WeakSet()


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
    ClosedChestError
        The folder was closed, as its chest is.
    OSError
        The folder is gone, or cannot be written to.
    """

    def __init__(self, folder: OpenFolder, *, create: bool = True) -> None:
        try:
            self._open(folder, create=create)
        except OSError as error:
            if folder.fd < 0:
                raise ClosedChestError("the chest is closed") from error
            raise

    def _open(self, folder: OpenFolder, *, create: bool) -> None:
        folder.check()
        try:
            self._bytes: ByteLocks = open_byte_locks(folder.fd, FILE_NAME, create=create)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            path = os.path.join(folder.path, FILE_NAME)
            raise ChestFormatError(
                f"expected a file with one name at {path}, found something else"
            ) from error
        _open_files.add(self)
        self._held = {COMMIT: Lock(), NUMBERS: Lock()}

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""
        self._bytes.close()

    def __del__(self) -> None:
        if hasattr(self, "_bytes"):
            self.close()

    def unlink(self, folder: OpenFolder) -> None:
        """Remove the file, of a folder that turned out not to be a chest."""
        with contextlib.suppress(OSError):
            os.unlink(FILE_NAME, dir_fd=folder.fd)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._bytes.fd < 0

    @property
    def identity(self) -> tuple[int, int]:
        """The file, whatever leads to it: its device and inode."""
        status = os.fstat(self._bytes.fd)
        return status.st_dev, status.st_ino

    @property
    def has_name(self) -> bool:
        """Whether the file is still there: a lock on one that was removed keeps nobody out."""
        return os.fstat(self._bytes.fd).st_nlink > 0

    @property
    def owner(self) -> int:
        """The user who owns the file."""
        return os.fstat(self._bytes.fd).st_uid

    def take(self, byte: int, *, shared: bool = False) -> None:
        """Wait for a lock and hold it.  A lock held already is changed to the kind asked for."""
        self._bytes.take(byte, shared=shared)

    def try_take(self, byte: int) -> bool:
        """Hold a lock unless somebody else does; False if so."""
        return self._bytes.try_take(byte)

    def let_go(self, byte: int) -> None:
        """Undo `take`."""
        self._bytes.let_go(byte)

    def is_held(self, byte: int) -> bool:
        """Whether somebody else holds a lock."""
        return self._bytes.is_held(byte, 1)

    def any_session(self) -> bool:
        """Whether any other session is alive."""
        return self._bytes.is_held(SESSION, _SESSIONS)

    @contextlib.contextmanager
    def holding(self, byte: int) -> Iterator[None]:
        """Hold `COMMIT` or `NUMBERS`; the threads of this chest exclude each other, too."""
        with self._held[byte]:
            try:
                with let_through():
                    self.take(byte)
                yield
            finally:
                if not self.is_closed:
                    self.let_go(byte)


def hold_folder(fd: int, *, shared: bool = True) -> bool:
    """Lock an open folder, for as long as it is open; False if another opening holds it against us.

    A file system that has no such locks grants them all.
    """
    try:
        return lock_file(fd, shared=shared, wait=False)
    except OSError:
        return True


def is_at(fd: int, path: str, parent: int | None = None) -> bool:
    """Whether the folder that is open is the one that lies there, under no link."""
    try:
        there = os.stat(path, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


class _Hold:
    """The lock of a key that a thread or task has, and which it may take again.

    Attributes
    ----------
    context, thread
        Whose it is, as long as that task lasts, and the thread in which that took it.
    loop
        The event loop of asyncio that ran then, if one did.
    depth
        How many times it was taken and not yet let go of.
    is_edited
        Whether an edit of the key is one of them.
    """

    __slots__ = ("__weakref__", "context", "depth", "file", "is_edited", "loop", "place", "thread")

    def __init__(self, file: LockFile, place: _Place, context: Context) -> None:
        self.file = file
        self.place = place
        self.context = weakref.ref(context)
        self.thread = _this_thread()
        self.loop = _running_loop()
        self.depth = 1
        self.is_edited = False

    def blocks_this_thread(self) -> bool:
        """Whether it can only be let go of by a task that this thread runs.

        A task that has ended, as one of `asyncio.to_thread` has, left that to another one.
        """
        return self.thread is _this_thread() and self.context() is not None


# A lock file, by device and inode, and a byte of it.
_Place = tuple[int, int, int]

# What is held in this process, by any of its chests; as long as its `KeyLock` lives.
_holds: weakref.WeakValueDictionary[_Place, _Hold] = weakref.WeakValueDictionary()
_holds_lock = threading.RLock()

# A number is given again to another thread; an object that still lives is not.
_threads = threading.local()


def _this_thread() -> object:
    try:
        return _threads.mark
    except AttributeError:
        _threads.mark = object()
        return _threads.mark


def _running_loop() -> object:
    asyncio = sys.modules.get("asyncio")  # who runs a loop has imported it
    if asyncio is not None:
        with contextlib.suppress(RuntimeError):
            return asyncio.get_running_loop()
    return None


# How long a task waits before it looks again whether a lock is free; each time twice as long.
_FIRST_WAIT_SECONDS = 0.001
_MAX_WAIT_SECONDS = 0.05


class KeyLock:
    """A lock on one key of a chest, between threads, tasks and processes; see `Chest.lock`.

    Who holds it is the thread or task that took it, as `contexts` tells them apart.  It may take it
    again, also by another `KeyLock` and by another chest on the same folder, and has let go of it
    once it has released it as many times.

    Parameters
    ----------
    folder
        The chest's.
    code
        The key's canonical code.
    key
        The key, for messages.
    chest
        What would close the folder if nobody needed it any more.
    """

    def __init__(self, folder: OpenFolder, code: bytes, key: Any, chest: object = None) -> None:
        self._folder = folder
        self._chest = chest
        self._byte = key_byte(code)
        self._key = key
        # Each holder has an opening of the file of its own, and so waits for the others.
        self._held: list[_Hold] = []

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; returns whether it was taken, which it always is if `blocking`.

        Raises
        ------
        DeadlockError
            Another task of this thread holds the lock, and could never let go of it while the
            thread waits: use ``async with``.
        """
        mine = LockFile(self._folder)
        try:
            place = (*mine.identity, self._byte)
            context = current_context()
            with _holds_lock:
                hold = _holds.get(place)
                if hold is not None and hold.file.is_closed:
                    hold = None  # an interrupt came before it was taken for good
                if hold is not None and hold.context() is context:
                    hold.depth += 1
                    self._held.append(hold)
                    mine.close()
                    return True
                if blocking and hold is not None and hold.blocks_this_thread():
                    raise DeadlockError(
                        f"expected the lock of key {self._key!r:.200} to be free or held by another"
                        " thread, found that another task of this thread holds it: wait for it "
                        "with `async with chest.lock(key)`"
                    )
            if blocking:
                mine.take(self._byte)
            elif not mine.try_take(self._byte):
                mine.close()
                return False
            hold = _Hold(mine, place, context)
            with _holds_lock:
                _holds[place] = hold
            self._held.append(hold)
        except BaseException:
            mine.close()
            if self._held and self._held[-1].file is mine:
                self._held.pop()
            raise
        return True

    def release(self) -> None:
        """Let go of the lock; raises RuntimeError if it is not held."""
        if not self._held:
            raise RuntimeError("expected a lock that is held, found one that is not")
        hold = self._held.pop()
        with _holds_lock:
            hold.depth -= 1
            if hold.depth:
                return
            if _holds.get(hold.place) is hold:
                del _holds[hold.place]
        if not hold.file.is_closed:
            # To close the file is not enough.  A child that was forked while this thread opened the
            # file has the same opening, and nobody there knows of it.
            hold.file.let_go(self._byte)
        hold.file.close()

    @contextlib.contextmanager
    def for_edit(self) -> Iterator[None]:
        """Hold the lock for the one edit of the key that there may be.

        Raises
        ------
        DeadlockError
            Its holder edits the key already; or as `acquire`.
        """
        with self:
            hold = self._held[-1]
            if hold.is_edited:
                raise DeadlockError(
                    f"expected no edit of key {self._key!r:.200} within another one by the same "
                    "thread or task, found one: each would undo what the other does"
                )
            hold.is_edited = True
            try:
                yield
            finally:
                hold.is_edited = False

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

    async def __aenter__(self) -> Self:
        """Take the lock in a task of asyncio; other tasks go on while it waits.

        It looks 20 times a second, and more often at first, whether the lock is free.

        Raises
        ------
        DeadlockError
            Who holds the lock waits for the event loop to end.
        """
        import asyncio  # whoever calls this has imported it; others should not pay for it

        pause = _FIRST_WAIT_SECONDS
        while not self.acquire(blocking=False):
            self._check_loop()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_WAIT_SECONDS)
        return self

    def _check_loop(self) -> None:
        status = os.stat(FILE_NAME, dir_fd=self._folder.fd)
        with _holds_lock:
            hold = _holds.get((status.st_dev, status.st_ino, self._byte))
        if (
            hold is not None
            and hold.blocks_this_thread()
            and hold.loop is not _running_loop()
            and not hold.file.is_closed
        ):
            raise DeadlockError(
                f"expected the lock of key {self._key!r:.200} to be free or held by a task of "
                "this event loop, found that what started the loop holds it"
            )

    async def __aexit__(
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
    global _holds, _holds_lock
    # The parent's: another of its threads may have been changing them.
    _holds, _holds_lock = weakref.WeakValueDictionary(), threading.RLock()
    for each in list(_open_files):
        each.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
