"""The connections to the catalog's database: transactions, errors, and what happens at a fork.

One connection reads and one writes.  What SQLite raises leaves here as an error of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import pathlib
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from arraychest.catalog.schema import (
    APPLICATION_ID,
    FILE_NAME,
    check_identity,
    check_schema,
    has_tables,
    identity_of,
    make,
)
from arraychest.errors import ChestFormatError, SpillError
from arraychest.platform.locks import share_as_process
from arraychest.sharing.open_folder import OpenFolder

P = ParamSpec("P")
T = TypeVar("T")

# Rows that one statement takes.  `executemany` lets go of the interpreter lock at every row and,
# beside a thread that computes, waits up to 5 ms to have it back (measured: 2,500 us a row); one
# statement of many rows lets go once.  Few sizes, so that SQLite's compiled statements are reused.
_GROUPS = (1024, 128, 16, 1)

# Wait for another process's checkpoint or recovery so long before giving up, in seconds.
_BUSY_SECONDS = 30

# Keys that come in no order fall on as many pages as there are, each of which goes into the log
# with every commit, and into the database whenever the log is full.  For 100,000 such rows in
# batches of 2,048 SQLite's own 4 KiB and 4 MiB cost 12 us a row; these, in batches four times as
# large and in the order of the keys, 4 us.  Larger pages would make a commit of one row dear.
_PAGE_BYTES = 8192
_LOG_PAGES = 2048

# A text or blob in the database is not longer, in bytes.  SQLite would take memory for whatever
# length a stranger's database claims, up to 1 GB.
_LONGEST = 256 << 20

# Of the database, kept in memory by each connection: the B-tree of some 300,000 entries.
_CACHE_KIB = 16 * 1024

# Where SQLite finds no room it says the first; the others, with no word of why, where the index of
# its log cannot grow, and where a user's share of the disk is used up.
_FULL = sqlite3.SQLITE_FULL
_MAYBE_FULL = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

# Times that a folder is looked for that is moved at this moment.
_MOST_LOOKS = 10


class WithRoom(Protocol):
    """Does something that writes, and does it again where that makes room: `Files.with_room`."""

    def __call__(self, action: Callable[[], T], *, frees: bool = False) -> T:
        """`frees`: whether the action makes room itself."""


def _once(action: Callable[[], T], *, frees: bool = False) -> T:  # noqa: ARG001  # as above
    """Where nothing is held in reserve."""
    return action()


class Database:
    """The database of one chest's catalog.

    The caller serialises the calls that read (with the chest's lock) and, apart from those, the
    calls that write.

    Parameters
    ----------
    folder
        The chest's.
    writable
        Whether this chest may write; a database that is missing is made then.
    durable
        Whether a commit returns only once it is on stable storage.
    with_room
        Makes room on a full disk.

    Attributes
    ----------
    cursor
        Reads one row at a time for the fastest look-up; its errors are those of SQLite.
    snapshot
        Whether a read transaction is open for many look-ups.
    on_snapshot
        Called when a look-up begins a snapshot, which should be ended in a moment: as long as one
        is open no process can reuse SQLite's log, which grows with every commit.
    """

    def __init__(
        self,
        folder: OpenFolder,
        *,
        writable: bool,
        durable: bool,
        with_room: WithRoom = _once,
    ) -> None:
        self._with_room = with_room
        self._folder = folder
        self.writable = writable
        self._durable = durable
        self.snapshot = False
        self.on_snapshot: Callable[[], object] = _nobody_else
        self._held_back: BaseException | None = None
        self._writer: sqlite3.Connection | None = None
        # The database, by device and inode, as long as a connection to it is open.
        self.inode: tuple[int, int] | None = None
        # Each held while a statement runs that the chest's lock does not keep a fork from.
        self._reading, self._writing = threading.Lock(), threading.Lock()
        with _registering:
            _alive.add(self)
        if writable:
            _make_file(folder)
        try:
            self._note_inode(_status_of(FILE_NAME, folder.fd))
            self._connect()
        except BaseException:
            self._note_inode(None)
            raise
        if folder.identity is None:
            folder.identify()
        self.cursor = self._reader.cursor()

    @property
    def path(self) -> str:
        """The database's file, where it was found last."""
        return f"{self._folder.path}/{FILE_NAME}"

    # --- opening and closing ---------------------------------------------------------------

    def _connect(self) -> None:
        with self._reading, self._writing, self._translate_errors():
            if self.writable:
                self._writer = self._open_writer()
            reader = None
            try:
                self._reader = reader = self._open_reader()
                check_identity(self._reader, self.path)
                check_schema(self._reader, self.path)
            except BaseException:
                for connection in (reader, self._writer):
                    if connection is not None:
                        connection.close()
                raise

    def _note_inode(self, status: os.stat_result | None) -> None:
        """Note which file is open, before it is, or that none is any more; see `read_head`.

        Not called with a lock of this catalog held: a fork takes those later.
        """
        with _registering:
            self.inode = None if status is None else (status.st_dev, status.st_ino)
            _close_unused_heads()

    def _open_writer(self) -> sqlite3.Connection:
        connection = _connect_in(self._folder)
        try:
            if identity_of(connection) == (0, 0) and not has_tables(connection):
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = WAL")
                make(connection)
            check_identity(connection, self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            # NORMAL keeps the catalog whole through a power cut, though the last commits may be
            # gone; FULL syncs each commit.
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            # As `platform.space.sync` does on macOS; elsewhere these mean nothing.
            connection.execute(f"PRAGMA fullfsync = {int(self._durable)}")
            connection.execute(f"PRAGMA checkpoint_fullfsync = {int(self._durable)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        if self.writable:
            return _connect_in(self._folder)
        connection = None
        try:
            connection = _connect_in(self._folder, "mode=ro")
            identity_of(connection)
        except sqlite3.OperationalError:
            # A read-only medium has no place for WAL's index.  Nobody writes there either, so
            # the file may be read as it stands, unless commits wait in a log beside it.
            if connection is not None:
                connection.close()
            fd = self._folder.fd
            if os.access(".", os.W_OK, dir_fd=fd) or _has_log(fd):
                raise
            connection = _connect_in(self._folder, "mode=ro&immutable=1")
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close both connections; the log is merged into the database by the last one."""
        with self._reading, self._writing:
            try:
                self.end_snapshot()
            finally:
                try:
                    self._reader.close()
                finally:
                    if self._writer is not None:
                        self._writer.close()
        self._note_inode(None)

    def reopen_in_child(self) -> None:
        """Read through a connection of this process's own after a fork.

        SQLite forbids to use, and even to close, one that was opened before the fork: the old
        ones are kept for good, also when the interpreter ends.
        """
        for inherited in (self._reader, self._writer):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        if self.inode not in _inherited:
            self._lock_again()
            _inherited.add(self.inode)
        self._writer = None
        self.writable = self.snapshot = False
        self.on_snapshot = _nobody_else
        with self._reading, self._translate_errors():
            try:
                self._reader = self._open_reader()
            except SpillError:
                # A fork cannot fail: reading from this one says what is wrong.
                self._reader = sqlite3.connect(":memory:", isolation_level=None)
        self.cursor = self._reader.cursor()

    def _lock_again(self) -> None:
        """Take the locks that SQLite believes to hold in this process, and only the parent has.

        A fork copies what SQLite knows of its locks, and not the locks.  Without them whoever
        closes the catalog last among the others removes its log, also while this process commits
        to it.  They belong to the process: these descriptors stay open, as closing any one of a
        file lets go of all locks on it.
        """
        if not self._folder.is_ours():
            return  # what lies there now is another chest's
        for suffix, first, count in _SQLITE_LOCKS:
            with contextlib.suppress(FileNotFoundError):
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(FILE_NAME + suffix, flags, dir_fd=self._folder.fd)
                _locked.append((fd, count, first))
                share_as_process(fd, first, count)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise OSError(
                errno.ENOMEM, "the catalog asks for too much memory", self.path
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            system = isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError)
            # What stands where a number should, or text that is none, is this error, too.
            if system and "decode" not in str(error):
                self._folder.check()
                # What an operating system would say: full, unreadable, locked.
                told = f"catalog {self.path}: {error}"
                code = getattr(error, "sqlite_errorcode", None)
                if code == _FULL:
                    raise OSError(errno.ENOSPC, told) from error
                if code in _MAYBE_FULL:
                    raise OSError(errno.EIO, told) from error
                raise OSError(told) from error
            # UnicodeDecodeError: SQLite's message quotes what it could not read.
            raise ChestFormatError(
                f"expected an arraychest catalog at {self.path}, found a file that SQLite "
                f"cannot read: {error}; `arraychest.repair` makes a new one from the values' files"
            ) from error

    # --- reading ---------------------------------------------------------------------------

    def read(self, sql: str, *parameters: Any) -> list[Any]:
        """All rows that a statement gives."""
        with self._reading, self._translate_errors():
            if self.writable:
                self._end_interrupted()
            # Closed whatever happens: a statement not read to its end keeps an old snapshot.
            with contextlib.closing(self._reader.cursor()) as cursor:
                return cursor.execute(sql, parameters).fetchall()

    def begin_snapshot(self) -> None:
        """Open one read transaction for many look-ups.

        To open and end one takes as long as a look-up.
        """
        self._end_interrupted()
        self._reader.execute("BEGIN")
        self.snapshot = True
        self.on_snapshot()

    def end_snapshot(self) -> None:
        """Let the next read see what has been committed."""
        if self.snapshot:
            self.snapshot = False
            if self._reader.in_transaction:  # SQLite may have ended it for an error of its own
                self._reader.execute("ROLLBACK")

    def _end_interrupted(self) -> None:
        """End a transaction that an interrupt left behind at its begin or at its end."""
        if not self.snapshot and self._reader.in_transaction:
            self._reader.execute("ROLLBACK")

    def take_any_text(self) -> None:
        """Read text that is no UTF-8, too: as str with surrogates, which nothing else has."""
        self._reader.text_factory = _decoded

    def problems(self) -> list[str]:
        """What SQLite finds wrong with the database as such.  O(n), some 1 us an entry."""
        try:
            with self._reading:
                found = self._reader.execute("PRAGMA integrity_check(10)").fetchall()
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [str(line) for (line,) in found if line != "ok"]

    # --- writing ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction of the connection that writes.

        What interrupts it behind its commit is kept for `raise_interrupt`.
        """
        connection = self._writer
        assert connection is not None, "a reader commits nothing"
        with self._writing, self._translate_errors():
            ending = False
            try:
                connection.execute("BEGIN IMMEDIATE")
                # SQLite goes on with a file that was removed, without a word.
                self._folder.check()
                yield connection
                ending = True
                connection.execute("COMMIT")
            except BaseException as error:
                if ending and not connection.in_transaction and not isinstance(error, Exception):
                    self._held_back = error
                    return
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def in_room(self, action: Callable[[], T], *, frees: bool) -> T:
        """Do what is one transaction, and do it again where the disk was full and has room now.

        Parameters
        ----------
        frees
            Whether it makes room: then it may take what is kept for that.
        """

        def attempt() -> T:
            try:
                return action()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EIO) or not self._begin_log_again():
                    raise
            return action()

        return self._with_room(attempt, frees=frees)

    def _begin_log_again(self) -> bool:
        """Let the next commit overwrite SQLite's log from its begin, so that it needs no room.

        That cannot be, and nothing fails, where somebody reads what is in it, or where the
        database itself would have to grow.  False if there is nothing in the log.
        """
        assert self._writer is not None
        with self._writing, contextlib.suppress(sqlite3.Error):
            _, pages, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            return bool(pages > 0 and moved == pages)
        return False

    def raise_interrupt(self) -> None:
        """Raise what interrupted a commit right behind its end.

        Whoever commits calls this once it has noted what is committed: memory would tell
        something else than the catalog otherwise.
        """
        error, self._held_back = self._held_back, None
        if error is not None:
            raise error


class _Holder(Protocol):
    """What reads or changes a database."""

    @property
    def database(self) -> Database: ...


H = TypeVar("H", bound=_Holder)
_Method = Callable[Concatenate[H, P], T]


def in_room(*, removes: bool = False) -> Callable[[_Method[H, P, T]], _Method[H, P, T]]:
    """Run a method that is one transaction by `Database.in_room`.

    Parameters
    ----------
    removes
        Whether it makes room, unless it puts rows.
    """

    def decorate(method: _Method[H, P, T]) -> _Method[H, P, T]:
        @functools.wraps(method)
        def run(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
            puts = kwargs.get("rows") or kwargs.get("updated")
            action = functools.partial(method, self, *args, **kwargs)
            return self.database.in_room(action, frees=removes and not puts)

        return run

    return decorate


def grouped(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Items in as few groups as there are statements for them."""
    start = 0
    for size in _GROUPS:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _nobody_else() -> None:
    """What a snapshot calls for in a chest that no other process uses."""


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # A stranger's database must not run functions or views of its own making.
        connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_in(folder: OpenFolder, asked: str = "mode=rw") -> sqlite3.Connection:
    """Connect to the catalog in a folder.

    SQLite finds files by their path only: what lies there is compared with what the folder holds.

    Parameters
    ----------
    asked
        How, as SQLite's URIs tell it.  None of these ways makes a file.

    Raises
    ------
    SpillError
        The catalog is not the one that was opened before.
    sqlite3.Error
        There is none, or it cannot be opened.
    """
    for _ in range(_MOST_LOOKS):
        folder.check()
        path = f"{folder.where()}/{FILE_NAME}"
        ours, before = _status_of(FILE_NAME, folder.fd), _status_of(path)
        if ours is None or before is None or not os.path.samestat(ours, before):
            continue
        try:
            connection = _connect(f"{pathlib.Path(path).as_uri()}?{asked}")
        except sqlite3.OperationalError:
            after = _status_of(path)
            if after is not None and os.path.samestat(ours, after):
                raise
            continue  # moved meanwhile
        after = _status_of(path)
        if after is not None and os.path.samestat(ours, after):
            return connection
        connection.close()
    raise sqlite3.OperationalError("unable to open database file: its folder cannot be found")


def _status_of(name: str, folder: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None


def _has_log(folder: int) -> bool:
    """Whether commits wait beside the database in an open folder."""
    status = _status_of(f"{FILE_NAME}-wal", folder)
    return status is not None and status.st_size > 0


def _make_file(folder: OpenFolder) -> None:
    """Make an empty catalog if there is none.

    SQLite would make one that only its owner may write to; this one follows the umask, and SQLite
    gives the files beside it the mode that it has.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # An existing one is not opened: to close it would let go of SQLite's locks on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(FILE_NAME, flags | os.O_EXCL, 0o666, dir_fd=folder.fd))


def is_foreign(folder: OpenFolder) -> bool:
    """Whether what lies in the catalog's place is a database of another program, and readable."""
    try:
        connection = _connect_in(folder)
        try:
            application, _ = identity_of(connection)
            return application != APPLICATION_ID and has_tables(connection)
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError):
        return False


def found_version(folder: OpenFolder) -> int | None:
    """The version of the format that the catalog in a folder says it has; None if it says none."""
    try:
        head = read_head(folder, 100)
    except OSError:
        return None
    # As SQLite writes its header: user version and application id, big-endian.
    application, version = head[68:72], head[60:64]
    if application != APPLICATION_ID.to_bytes(4, "big"):
        return None
    return int.from_bytes(version, "big")


def read_head(folder: OpenFolder, count: int) -> bytes:
    """The first bytes of the catalog in a folder, as they lie in its file.

    SQLite's locks on a file belong to the process, which loses them all where it closes any
    descriptor of that file ("How To Corrupt An SQLite Database File", 2.2).  Without them another
    process that closes the catalog takes itself for the last, and removes the log to which this one
    goes on writing.  So where a chest of this process has the file open, the descriptor stays open
    as long, and serves whoever asks next.

    Raises
    ------
    OSError
        There is no catalog, or it cannot be read.
    """
    with _registering:
        status = os.stat(FILE_NAME, dir_fd=folder.fd, follow_symlinks=False)
        kept = _heads.get((status.st_dev, status.st_ino))
        if kept:
            return os.pread(kept[0], count, 0)
        # NONBLOCK and NOFOLLOW: a stranger's chest may hold a pipe or a link in its place.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(FILE_NAME, flags, dir_fd=folder.fd)
        status = os.fstat(fd)
        _heads.setdefault((status.st_dev, status.st_ino), []).append(fd)
        try:
            return os.pread(fd, count, 0)
        finally:
            _close_unused_heads()


def _close_unused_heads() -> None:
    """Close what `read_head` has opened, unless it is a database that this process has open."""
    in_use = {each.inode for each in _alive} | _inherited
    for inode in _heads.keys() - in_use:
        for fd in _heads.pop(inode):
            os.close(fd)


# What an open connection to a database with a log holds, in shared mode: bytes of the database, and
# one of the log's index (SQLite's file format, "WAL-index"; SHARED_FIRST and DMS in its sources).
_SQLITE_LOCKS = (("", 0x40000002, 510), ("-shm", 128, 1))

# SQLite has locks for all connections of a process.  A child that was forked while another thread
# held one would wait for it for good with its first statement, also in a database of its own: no
# statement may be running at a fork.
_alive: weakref.WeakSet[Database] = weakref.WeakSet()
_registering = threading.Lock()
# Descriptors that `read_head` has opened, by device and inode of the file; under `_registering`.
_heads: dict[tuple[int, int], list[int]] = {}
# In a forked child: databases to which connections of its parent's stay open for good, and what it
# has locked of them.
_inherited: set[tuple[int, int] | None] = set()
_locked: list[tuple[int, int, int]] = []
_forking: list[Database] = []


def _before_fork() -> None:
    # Later than the chests' hook, as this module was imported earlier: whoever waits for one of
    # these locks may hold a chest's, but not the other way round.
    _registering.acquire()
    _forking[:] = _alive
    for database in _forking:
        database._reading.acquire()
        database._writing.acquire()


def _after_fork() -> None:
    while _forking:
        database = _forking.pop()
        database._writing.release()
        database._reading.release()
    _registering.release()


def _after_fork_in_child() -> None:
    # Of databases that this child's parent has inherited itself: also where it has closed their
    # chests SQLite goes on as if they were locked.
    for fd, count, first in _locked:
        with contextlib.suppress(OSError):
            share_as_process(fd, first, count)
    _after_fork()


def has_inherited() -> bool:
    """Whether connections to a catalog were inherited at a fork; see `Database.reopen_in_child`."""
    return bool(_inherited)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
