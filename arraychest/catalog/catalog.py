"""The catalog: an SQLite database that alone says what a chest holds.

This is the specification of the chest's format, version 5::

    PATH/
      catalog.sqlite           this database, in WAL mode (beside it -wal and -shm while in use)
      locks                    its bytes are locks between processes (see `locks`); empty
      commits                  the commit counter (see `commit_counter`); a cache
      reserve                  room for deletions on a full disk (see `files`); never read
      data/HH/STEM-GEN.npy     one value; HH = GEN mod 256 and GEN in hexadecimal, STEM for people
      data/HH/STEM-GEN.b2nd    one value, compressed (see `formats.b2nd`)
      packs/GEN.pack           many small values; GEN in hexadecimal
      spare/SESSION/           files waiting to be overwritten; never read
      quarantine/              what `repair` took out of use; never read

``PRAGMA application_id`` is ``0x41436873`` ("AChs"), ``PRAGMA user_version`` the format's version.

==========  =======  =========================================================================
table       column   meaning
==========  =======  =========================================================================
entry       key      canonical code of the key (see `keys`); primary key
            seq      place in the order of insertion; unique, kept when a key is overwritten
            exact    exact code of the key, NULL where the canonical one says it all
            form     dtype, shape, order and kind (see `form.form_text`)
            gen      generation: a number that no other value of the chest ever had
            pack     the pack that holds the value; NULL: a file of its own
            offset   where in the file the value's first byte lies; 0 in a file of its own: it is
                     compressed; 1: it is a folder of blocks (see `manifest`)
            stored   size in bytes: of the whole file, of all files of a folder, or of the value in
                     its pack
            stamp    the number in the file's trailer, or in the manifest; NULL for a packed value
pack        id       its generation, which names its file
            stamp    the number in its header
            bytes    up to where it is written; what lies behind is nobody's
            live     bytes of it that entries use, each rounded up to 64
            sealed   1: never append to it again
            own      bytes of it that are no values: header and directories
checksum    file     the generation of a value in a file of its own, or a pack's id
            start    the first byte that the sums are of
            bytes    how many bytes they are of
            sums     zlib.crc32 of each piece of them, 4 bytes each, little-endian: of 1 MiB, or of
                     4 KiB in a pack; empty for a file that is written in place (``"r+"``); a
                     compressed value has its own in its file
digest      gen      the generation of a value
            part     0, or of a value tree the number of an array in it, counted from 1
            digest   what the array contains (see `digests`)
cost        gen      the generation of a value
            seconds  how long it took to compute
            expires  when it is no longer good, in seconds since 1970; NULL: never
change      n        the number of a commit; only the last `_CHANGES` are kept
            session  who made it
            keys     canonical codes of the keys it changed (`pack_codes`); NULL: too many to say
            gone     files that went out of use with it, separated by NUL; NULL once they are gone
session     number   a writer that has not ended cleanly, or not yet
meta        name     ``id`` (of the chest), ``session`` (counts writers; a generation is
            value    ``session << 32`` plus a counter)
==========  =======  =========================================================================

`checksum` may lag behind (see `storage.checksums`).  What a value file says of itself (see
`formats.directory`) is read only by `repair`, where this database is lost or wrong.

A value's bytes are complete in its file before its row commits, and its file goes only after the
row is gone: at any moment every row names complete bytes.  A file without a row is an orphan: what
a session had not committed, or not removed yet, when it died.  The next writer sweeps it.

Several processes may write.  Whoever changes the database holds a lock (`locks.COMMIT`), has read
every change before its own, and tells of its own by the commit counter.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import os
import pathlib
import secrets
import sqlite3
import sys
import threading
import uuid
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from arraychest.catalog.record import EXACT, KEY, SEQ, STAMP, Cost, Facts, RawRow, Row
from arraychest.errors import ChestFormatError, CorruptEntryError, SpillError
from arraychest.formats.checksums import Extent
from arraychest.sharing.open_folder import CATALOG_NAME, OpenFolder

P = ParamSpec("P")
T = TypeVar("T")

FORMAT_VERSION = 5
FILE_NAME = CATALOG_NAME
_APPLICATION_ID = 0x41436873

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entry(
    key BLOB PRIMARY KEY NOT NULL, seq INTEGER NOT NULL, exact BLOB, form TEXT NOT NULL,
    gen INTEGER NOT NULL, pack INTEGER, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
    stamp INTEGER) WITHOUT ROWID;
CREATE UNIQUE INDEX entry_seq ON entry(seq);
CREATE TABLE pack(
    id INTEGER PRIMARY KEY, stamp INTEGER NOT NULL, bytes INTEGER NOT NULL,
    live INTEGER NOT NULL, sealed INTEGER NOT NULL, own INTEGER NOT NULL);
CREATE TABLE checksum(
    file INTEGER NOT NULL, start INTEGER NOT NULL, bytes INTEGER NOT NULL, sums BLOB NOT NULL,
    PRIMARY KEY(file, start)) WITHOUT ROWID;
CREATE TABLE digest(
    gen INTEGER NOT NULL, part INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY(gen, part)) WITHOUT ROWID;
CREATE TABLE cost(gen INTEGER PRIMARY KEY, seconds REAL NOT NULL, expires REAL);
CREATE TABLE change(n INTEGER PRIMARY KEY, session INTEGER NOT NULL, keys BLOB, gone BLOB);
CREATE TABLE session(number INTEGER PRIMARY KEY);
CREATE TABLE meta(name TEXT PRIMARY KEY NOT NULL, value) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
COMMIT;
"""

# Commits whose changes are kept for others to read.  Whoever has missed more forgets all it knew,
# and looks each key up again when it is asked for.
_CHANGES = 64

# A commit of more keys than this does not say which: to look each up would take others longer than
# to forget what they know.
_MOST_TOLD = 4096

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


class WithRoom(Protocol):
    """Does something that writes, and does it again where that makes room: `Files.with_room`."""

    def __call__(self, action: Callable[[], T], *, frees: bool = False) -> T:
        """`frees`: whether the action makes room itself."""


def _once(action: Callable[[], T], *, frees: bool = False) -> T:  # noqa: ARG001  # as above
    """Where nothing is held in reserve."""
    return action()


_Method = Callable[Concatenate["Catalog", P], T]


def _in_room(*, removes: bool = False) -> Callable[[_Method[P, T]], _Method[P, T]]:
    """Run what is one transaction again where the disk was full and there is room now.

    Parameters
    ----------
    removes
        Whether it makes room, unless it puts rows: then it may take what is kept for that.
    """

    def decorate(method: _Method[P, T]) -> _Method[P, T]:
        @functools.wraps(method)
        def run(self: Catalog, /, *args: P.args, **kwargs: P.kwargs) -> T:
            def attempt() -> T:
                try:
                    return method(self, *args, **kwargs)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EIO):
                        raise
                    if not self._begin_log_again():
                        raise
                return method(self, *args, **kwargs)

            puts = kwargs.get("rows") or kwargs.get("updated")
            return self._with_room(attempt, frees=removes and not puts)

        return run

    return decorate


class Pack(NamedTuple):
    """One row of the table ``pack``."""

    id: int
    stamp: int
    bytes: int
    live: int
    sealed: int
    own: int


class Catalog:
    """The catalog of one chest.

    One connection reads and one writes.  The caller serialises the calls that read (with the
    chest's lock) and, apart from those, the calls that write.

    Parameters
    ----------
    folder
        The chest's.
    writable
        Whether this chest may write; a catalog that is missing is made then.
    durable
        Whether a commit returns only once it is on stable storage.
    with_room
        Makes room on a full disk.

    Attributes
    ----------
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
        self._writable = writable
        self._durable = durable
        self._snapshot = False
        self.on_snapshot: Callable[[], object] = _nobody_else
        self._held_back: BaseException | None = None
        # The number of this writer, once it has begun; and the commit of it that told of files
        # gone, if that was its last.
        self.session = 0
        self._told_gone = self._telling = 0
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
        self._find = self._reader.cursor()

    @property
    def path(self) -> str:
        """The database's file, where it was found last."""
        return f"{self._folder.path}/{FILE_NAME}"

    # --- opening and closing ---------------------------------------------------------------

    def _connect(self) -> None:
        with self._reading, self._writing, self._translate_errors():
            if self._writable:
                self._writer = self._open_writer()
            reader = None
            try:
                self._reader = reader = self._open_reader()
                self._check_format()
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
            application, version = _identity(connection)
            if not application and not version and not _tables(connection):
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
                self._set_meta(connection, "id", uuid.uuid4().hex)
            _check_identity(self.path, *_identity(connection))
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            # NORMAL keeps the catalog whole through a power cut, though the last commits may be
            # gone; FULL syncs each commit.
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        if self._writable:
            return _connect_in(self._folder)
        connection = None
        try:
            connection = _connect_in(self._folder, "mode=ro")
            _identity(connection)
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

    def _check_format(self) -> None:
        _check_identity(self.path, *_identity(self._reader))
        # To the letter: a stranger's view, trigger, check, default or indexed expression may do
        # anything, or never end.
        found = _schema(self._reader)
        if found != _our_schema():
            odd = sorted(set(found) ^ set(_our_schema()))
            raise ChestFormatError(
                f"expected a catalog of ours at {self.path}, found {str(odd[:3])[:500]}"
            )

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
        self._writable = self._snapshot = False
        self.on_snapshot = _nobody_else
        with self._reading, self._translate_errors():
            try:
                self._reader = self._open_reader()
            except SpillError:
                # A fork cannot fail: reading from this one says what is wrong.
                self._reader = sqlite3.connect(":memory:", isolation_level=None)
        self._find = self._reader.cursor()

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
                fcntl.lockf(fd, fcntl.LOCK_SH, count, first)

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

    def find(self, key: bytes) -> RawRow | None:
        """The row of a key, by its canonical code.  O(log n), some 3 us."""
        if self._writable and not self._snapshot:
            self._begin_snapshot()
        try:
            # Not bytes: see `_put_rows`.
            found = self._find.execute(_FIND, (bytearray(key),)).fetchone()
        except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:
            raise CorruptEntryError(f"catalog {self.path}: {error}") from error
        return None if found is None else _checked(found, self.path)

    def find_all(self, keys: list[bytes]) -> list[RawRow]:
        """The rows of those of these keys that have one.  Some 1 us a key."""
        if self._writable and not self._snapshot:
            self._begin_snapshot()
        found = []
        for group in _grouped(sorted(keys)):
            marks = ",".join("?" * len(group))
            found += self._read(
                f"SELECT * FROM entry WHERE key IN ({marks})", *map(bytearray, group)
            )
        # One without a place can only be overwritten.
        return [_checked(raw, self.path) for raw in found if type(raw[SEQ]) is int]

    def find_between(self, first: bytes, last: bytes) -> list[RawRow]:
        """The rows of the canonical codes from `first` up to `last`, itself left out; by place."""
        if self._writable and not self._snapshot:
            self._begin_snapshot()
        found = self._read(
            "SELECT * FROM entry WHERE key >= ? AND key < ? ORDER BY seq",
            bytearray(first),
            bytearray(last),
        )
        return [_checked(raw, self.path) for raw in found]

    def _begin_snapshot(self) -> None:
        # One read transaction for many look-ups: opening and ending one takes as long as the
        # look-up.
        self._end_interrupted()
        self._reader.execute("BEGIN")
        self._snapshot = True
        self.on_snapshot()

    def end_snapshot(self) -> None:
        """Let the next read see what has been committed."""
        if self._snapshot:
            self._snapshot = False
            if self._reader.in_transaction:  # SQLite may have ended it for an error of its own
                self._reader.execute("ROLLBACK")

    def _end_interrupted(self) -> None:
        """End a transaction that an interrupt left behind at its begin or at its end."""
        if not self._snapshot and self._reader.in_transaction:
            self._reader.execute("ROLLBACK")

    def count(self) -> int:
        """Number of entries.  O(n): a scan of the smallest index."""
        return int(self._read("SELECT count(*) FROM entry")[0][0])

    def last_seq(self) -> int:
        """The highest place in the order of insertion; 0 if there is none."""
        last = self._read("SELECT coalesce(max(seq), 0) FROM entry")[0][0]
        if type(last) is not int or last > _LAST_PLACE:
            raise ChestFormatError(f"expected numbers in {self.path}, found {last!r:.80} as a seq")
        return max(last, 0)

    def page(
        self, after: int, count: int, *, descending: bool = False
    ) -> list[tuple[int, bytes, bytes | None]]:
        """``(seq, key, exact)`` of the next `count` entries in the order of insertion."""
        compare, order = ("<", "DESC") if descending else (">", "ASC")
        return self._read(
            f"SELECT seq, key, exact FROM entry WHERE seq {compare} ? ORDER BY seq {order} LIMIT ?",
            after,
            count,
        )

    def rows_after(self, seq: int, count: int) -> list[RawRow]:
        """The next `count` rows in the order of insertion.  Some 1 us each."""
        rows = self._read("SELECT * FROM entry WHERE seq > ? ORDER BY seq LIMIT ?", seq, count)
        # A row without a key or a place cannot be asked for.
        fit = [row for row in rows if type(row[KEY]) is bytes and type(row[SEQ]) is int]
        return [_checked(row, self.path) for row in fit]

    def packs(self) -> list[Pack]:
        """Every pack."""
        packs = [Pack._make(row) for row in self._read("SELECT * FROM pack ORDER BY id")]
        for each in packs:
            if any(type(value) is not int for value in each) or not (
                0 <= each.bytes < _FAR and 0 <= each.live < _FAR
            ):
                raise ChestFormatError(f"expected numbers in {self.path}, found {each!r:.200}")
        return packs

    def rows_in(self, pack: int) -> list[Row]:
        """The entries of one pack by offset.  O(n) in all entries: only compaction asks."""
        rows = self._read("SELECT * FROM entry WHERE pack = ? ORDER BY offset", pack)
        return [Row._make(_checked(row, self.path)) for row in rows]

    def file_generations(self) -> set[int]:
        """The generations of all values in files of their own.  O(n): only a sweep asks."""
        return {row[0] for row in self._read("SELECT gen FROM entry WHERE pack IS NULL")}

    def pack_ids(self) -> set[int]:
        """The ids of all packs."""
        return {row[0] for row in self._read("SELECT id FROM pack")}

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

    def raw_rows(self, after: bytes, count: int) -> list[tuple[Any, ...]]:
        """The next rows in the order of their keys as they are, whatever is in them."""
        return self._read(
            "SELECT * FROM entry WHERE key > ? AND typeof(key) = 'blob' ORDER BY key LIMIT ?",
            after,
            count,
        )

    def stray_rows(self) -> list[tuple[Any, ...]]:
        """Rows whose key is no bytes, or that lie in a pack that is not there."""
        return self._read(
            "SELECT * FROM entry WHERE typeof(key) <> 'blob' "
            "OR (pack NOTNULL AND pack NOT IN (SELECT id FROM pack))"
        )

    def pack_with_rows(self, identity: int) -> tuple[Pack | None, list[tuple[Any, ...]]]:
        """A pack and what lies in it by offset, as of one moment.  O(n) in all entries."""
        self._read("BEGIN")
        try:
            packs = [each for each in self.packs() if each.id == identity]
            rows = self._read("SELECT * FROM entry WHERE pack = ? ORDER BY offset", identity)
        finally:
            self._read("ROLLBACK")
        return (packs[0] if packs else None), rows

    def raw_row(self, key: Any) -> tuple[Any, ...] | None:
        """The row of a key as it is."""
        mark, value = _any_key(key)
        rows = self._read(f"SELECT * FROM entry WHERE key IS {mark}", value)
        return rows[0] if rows else None

    def stored_bytes(self) -> int:
        """Bytes of the files that hold the values.  O(n)."""
        own = self._read(
            "SELECT coalesce(sum(stored), 0) FROM entry "
            f"WHERE pack IS NULL AND stored BETWEEN 0 AND {_FAR}"
        )
        packed = self._read(
            f"SELECT coalesce(sum(bytes), 0) FROM pack WHERE bytes BETWEEN 0 AND {_FAR}"
        )
        return int(own[0][0] + packed[0][0])

    def last_commit(self) -> int:
        """The number of the last commit; 0 if there is none."""
        last = self._read("SELECT coalesce(max(n), 0) FROM change")[0][0]
        if type(last) is not int or not 0 <= last < _FAR:
            raise ChestFormatError(f"expected a number in {self.path}, found {last!r:.80} as n")
        return last

    def changes_since(self, commit: int, session: int) -> tuple[int, list[bytes] | None]:
        """The last commit's number, and which keys other sessions' commits since have changed.

        None if that is not known: any may have.
        """
        rows = self._read("SELECT n, session, keys FROM change WHERE n > ? ORDER BY n", commit)
        if not rows:
            return commit, []
        last = rows[-1][0]
        # The first one's own are still there if none in between was dropped.
        known = len(rows) == last - commit
        changed: dict[bytes, None] = {}
        for _, by, keys in rows:
            if by == session:
                continue
            codes = None if keys is None else unpack_codes(keys)
            if codes is None:
                known = False
            else:
                changed.update(dict.fromkeys(codes))
        return last, list(changed) if known else None

    def last_session(self) -> int:
        """The number of the session that began last; 0 if none did."""
        return self._session_of(self._read("SELECT value FROM meta WHERE name = 'session'"))

    def _session_of(self, rows: list[Any]) -> int:
        number = rows[0][0] if rows else 0
        if type(number) is not int or not 0 <= number < _LAST_SESSION:
            raise ChestFormatError(
                f"expected a number in {self.path}, found {number!r:.80} as its last session"
            )
        return number

    def sessions(self) -> list[int]:
        """The sessions that have not ended cleanly, or not yet."""
        return [row[0] for row in self._read("SELECT number FROM session") if type(row[0]) is int]

    def gone_files(self, session: int) -> list[str]:
        """Files that a session's commits put out of use and that it may not have removed."""
        rows = self._read("SELECT gone FROM change WHERE session = ? AND gone NOTNULL", session)
        names = b"\0".join(bytes(row[0]) for row in rows if type(row[0]) is bytes)
        return [os.fsdecode(name) for name in names.split(b"\0") if name]

    def meta(self, name: str) -> Any:
        """A value of the table ``meta``; None if it is not there."""
        rows = self._read("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    def _read(self, sql: str, *parameters: Any) -> list[Any]:
        with self._reading, self._translate_errors():
            if self._writable:
                self._end_interrupted()
            # Closed whatever happens: a statement not read to its end keeps an old snapshot.
            with contextlib.closing(self._reader.cursor()) as cursor:
                return cursor.execute(sql, parameters).fetchall()

    # --- writing ---------------------------------------------------------------------------

    @_in_room(removes=True)
    def begin_session(self) -> int:
        """Note that a writer is at work, and return its number."""
        with self._transaction() as connection:
            # Read in the transaction, so that nobody else gets the same number.
            sql = "SELECT value FROM meta WHERE name = 'session'"
            last = self._session_of(connection.execute(sql).fetchall())
            self.session = (last or secrets.randbelow(_FIRST_SESSIONS)) + 1
            self._set_meta(connection, "session", self.session)
            connection.execute("INSERT INTO session VALUES (?)", (self.session,))
        return self.session

    @_in_room(removes=True)
    def end_sessions(self, numbers: Sequence[int]) -> None:
        """Note that nothing of these sessions is left to sweep."""
        with self._transaction() as connection:
            for number in numbers:
                connection.execute("DELETE FROM session WHERE number = ?", (number,))
                connection.execute("UPDATE change SET gone = NULL WHERE session = ?", (number,))

    @_in_room(removes=True)
    def commit(
        self,
        *,
        deleted: Sequence[RawRow] = (),
        rows: Sequence[RawRow] = (),
        updated: Sequence[RawRow] = (),
        packs: Sequence[Pack] = (),
        dropped_packs: Sequence[int] = (),
        dropped_files: Sequence[int] = (),
        forgotten: Sequence[int] = (),
        facts: Sequence[Facts] = (),
        change: int | None = None,
        gone: Sequence[str] = (),
    ) -> None:
        """Change the catalog in one transaction.

        Parameters
        ----------
        deleted
            Entries that go.
        rows
            Entries to insert, or to put in the place of the same key's.
        updated
            Entries that take the place of the same key's, and have its place in the order.
        packs, dropped_packs
            Packs to insert or update, and packs (their ids) to forget.
        dropped_files
            Generations of values in files of their own that are no more.
        forgotten
            Generations of values that are no more.
        facts
            What is known of values in `rows`.
        change
            The number of this commit, where others are to know of it.
        gone
            Files that it puts out of use.

        Raises
        ------
        OSError
            Nothing was changed.
        """
        with self._transaction() as connection:
            # In the order of the B-trees: what lies on one page is changed together.
            for group in _grouped(sorted([row[SEQ] for row in deleted])):
                marks = ",".join("?" * len(group))
                connection.execute(f"DELETE FROM entry WHERE seq IN ({marks})", group)
            _put_rows(connection, rows, "INSERT OR REPLACE", "")
            _put_rows(connection, updated, "INSERT", _UPDATE)
            for pack in packs:
                connection.execute("INSERT OR REPLACE INTO pack VALUES (?,?,?,?,?,?)", pack)
            for identity in dropped_packs:
                connection.execute("DELETE FROM pack WHERE id = ?", (identity,))
            for group in _grouped(sorted([*dropped_packs, *dropped_files])):
                marks = ",".join("?" * len(group))
                connection.execute(f"DELETE FROM checksum WHERE file IN ({marks})", group)
            for table in self._tables_of_facts(connection) if forgotten else ():
                for group in _grouped(sorted(forgotten)):
                    marks = ",".join("?" * len(group))
                    connection.execute(f"DELETE FROM {table} WHERE gen IN ({marks})", group)
            for each in facts:
                _add_facts(connection, each)
            if change is not None:
                self._tell(connection, change, [*deleted, *rows, *updated], gone)

    @staticmethod
    def _tables_of_facts(connection: sqlite3.Connection) -> list[str]:
        """Those that are not empty: mostly all are, and need not be searched."""
        found = [
            connection.execute(f"SELECT EXISTS(SELECT 1 FROM {table})").fetchone()[0]
            for table in _FACTS
        ]
        return list(itertools.compress(_FACTS, found))

    def _tell(
        self,
        connection: sqlite3.Connection,
        n: int,
        changed: Sequence[RawRow] | None,
        gone: Sequence[str],
    ) -> None:
        keys = None
        if changed is not None and len(changed) <= _MOST_TOLD:
            keys = pack_codes([row[KEY] for row in changed])
        # What this session's last commit put out of use is removed before the next one begins.
        if self._told_gone:
            connection.execute("UPDATE change SET gone = NULL WHERE n = ?", (self._told_gone,))
        self._telling = n if gone else 0
        names = b"\0".join(map(os.fsencode, gone)) if gone else None
        connection.execute("INSERT INTO change VALUES (?, ?, ?, ?)", (n, self.session, keys, names))
        connection.execute("DELETE FROM change WHERE n <= ? AND gone IS NULL", (n - _CHANGES,))

    @_in_room(removes=True)
    def amend(
        self,
        *,
        deleted: Sequence[Any],
        rows: Sequence[RawRow],
        packs: Sequence[Pack],
        dropped_packs: Sequence[int],
        change: int | None,
    ) -> None:
        """What a repair changes, in one transaction; keys and ids may be anything."""
        with self._transaction() as connection:
            for key in deleted:
                mark, value = _any_key(key)
                connection.execute(f"DELETE FROM entry WHERE key IS {mark}", (value,))
            for row in rows:
                connection.execute("INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?)", row)
            for pack in packs:
                connection.execute("INSERT OR REPLACE INTO pack VALUES (?,?,?,?,?,?)", pack)
            for identity in dropped_packs:
                connection.execute("DELETE FROM pack WHERE id IS ?", (identity,))
            connection.execute(
                "DELETE FROM checksum WHERE file NOT IN (SELECT gen FROM entry WHERE pack IS NULL)"
                " AND file NOT IN (SELECT id FROM pack)"
            )
            for table in self._tables_of_facts(connection):
                connection.execute(f"DELETE FROM {table} WHERE gen NOT IN (SELECT gen FROM entry)")
            if change is not None:
                self._tell(connection, change, None, ())

    @_in_room()
    def begin_at(self, session: int) -> None:
        """Let the next session's number be higher than this one."""
        with self._transaction() as connection:
            self._set_meta(connection, "session", session)

    @_in_room()
    def add_sums(self, extents: Sequence[tuple[Extent, bytes]]) -> None:
        """Note the checksums of these, unless they are gone or written to in place meanwhile."""
        with self._transaction() as connection:
            for extent, sums in extents:
                there = "pack WHERE id = ?"
                row = [extent.file, extent.start, extent.nbytes, sums, extent.file]
                if extent.key is not None:
                    there = "entry WHERE gen = ? AND key = ?"
                    row.append(extent.key)
                connection.execute(
                    "INSERT OR IGNORE INTO checksum SELECT ?, ?, ?, ? "
                    f"WHERE EXISTS (SELECT 1 FROM {there})",
                    row,
                )

    def sums_of(self, file: int) -> list[tuple[int, int, bytes]]:
        """``(start, bytes, sums)`` of what is known of a file, by its generation or pack."""
        rows = self._read(
            "SELECT start, bytes, sums FROM checksum WHERE file = ? ORDER BY start", file
        )
        for start, nbytes, sums in rows:
            if not (type(start) is type(nbytes) is int and type(sums) is bytes):
                raise ChestFormatError(f"expected checksums in {self.path}, found {rows!r:.200}")
        return rows

    @_in_room()
    def note_written_in_place(self, generation: int, change: int | None) -> None:
        """Note that a value's file changes while it is stored: no sums of it are right.

        Others are told (see `commit`): they may have the file mapped, and know what it contains.
        """
        with self._transaction() as connection:
            connection.execute("DELETE FROM checksum WHERE file = ?", (generation,))
            connection.execute("INSERT INTO checksum VALUES (?, 0, 0, x'')", (generation,))
            connection.execute("DELETE FROM digest WHERE gen = ?", (generation,))
            if change is not None:
                self._tell(connection, change, (), ())

    def is_written_in_place(self, generation: int) -> bool:
        """Whether `note_written_in_place` was called for a value."""
        sql = "SELECT count(*) FROM checksum WHERE file = ? AND start = 0 AND sums = x''"
        return bool(self._read(sql, generation)[0][0])

    def facts_of(self, generation: int) -> Facts:
        """What is known of a value.  Some 8 us."""
        digests = self._read(
            f"SELECT part, digest FROM digest WHERE gen = ? {_GOOD_DIGEST}", generation
        )
        costs = self._read(
            f"SELECT seconds, expires FROM cost WHERE gen = ? {_GOOD_COST}", generation
        )
        return Facts(generation, dict(digests), Cost(*costs[0]) if costs else None)

    @_in_room()
    def add_digest(self, code: bytes, generation: int, part: int, digest: bytes) -> None:
        """Note what a key's value contains, unless it is gone, or written to in place."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO digest SELECT ?, ?, ? WHERE EXISTS ("
                "SELECT 1 FROM entry WHERE key = ? AND gen = ?) AND NOT EXISTS ("
                "SELECT 1 FROM checksum WHERE file = ? AND start = 0 AND sums = x'')",
                (generation, part, digest, code, generation, generation),
            )

    def costs(self) -> dict[int, Cost]:
        """What the values took to compute, by generation, of all that were computed."""
        rows = self._read(f"SELECT gen, seconds, expires FROM cost WHERE true {_GOOD_COST}")
        return {generation: Cost(seconds, expires) for generation, seconds, expires in rows}

    @_in_room(removes=True)
    def clear(self, gone: Sequence[str]) -> None:
        """Remove every entry and pack; the commit's number is 1, and these files go with it."""
        with self._transaction() as connection:
            for table in ("entry", "pack", "checksum", "change", *_FACTS):
                connection.execute(f"DELETE FROM {table}")
            self._tell(connection, 1, None, gone)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._writer
        assert connection is not None, "a reader commits nothing"
        with self._writing, self._translate_errors():
            ending = False
            self._telling = self._told_gone
            try:
                connection.execute("BEGIN IMMEDIATE")
                # SQLite goes on with a file that was removed, without a word.
                self._folder.check()
                yield connection
                ending = True
                connection.execute("COMMIT")
                self._told_gone = self._telling
            except BaseException as error:
                if ending and not connection.in_transaction and not isinstance(error, Exception):
                    self._held_back, self._told_gone = error, self._telling
                    return
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

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

    @staticmethod
    def _set_meta(connection: sqlite3.Connection, name: str, value: Any) -> None:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


_FIND = "SELECT * FROM entry WHERE key = ?"
_FACTS = ("digest", "cost")

# SQLite lets anything be anywhere; what is no fact, or too long to be one, is as good as missing.
_GOOD_DIGEST = "AND typeof(digest) = 'blob' AND length(digest) < 100"
_GOOD_COST = (
    "AND typeof(seconds) = 'real' AND seconds BETWEEN 0 AND 1e300"
    " AND typeof(expires) IN ('real', 'null')"
)


# Unlike a replacement it leaves the index of places alone: a fifth less of the time.
_UPDATE = (
    "ON CONFLICT(key) DO UPDATE SET exact = excluded.exact, form = excluded.form, "
    "gen = excluded.gen, pack = excluded.pack, offset = excluded.offset, "
    "stored = excluded.stored, stamp = excluded.stamp"
)


def _put_rows(
    connection: sqlite3.Connection, rows: Sequence[RawRow], how: str, conflict: str
) -> None:
    # Of each bytes and None Python asks who adapts it to SQLite, which takes a third of an
    # insertion: a bytearray is taken as it is, and mostly there is neither exact code nor stamp.
    short: list[RawRow] = []
    long: list[RawRow] = []
    # In the order of the B-tree, as above.
    for row in sorted(rows):
        (long if row[EXACT] is not None or row[STAMP] is not None else short).append(row)
    for group in _grouped(short):
        marks = ",".join(["(?,?,NULL,?,?,?,?,?,NULL)"] * len(group))
        values = [
            value
            for key, seq, _, form, generation, pack, offset, stored, _ in group
            for value in (bytearray(key), seq, form, generation, pack, offset, stored)
        ]
        connection.execute(f"{how} INTO entry VALUES {marks} {conflict}", values)
    for group in _grouped(long):
        marks = ",".join(["(?,?,?,?,?,?,?,?,?)"] * len(group))
        flat = list(itertools.chain.from_iterable(group))
        connection.execute(f"{how} INTO entry VALUES {marks} {conflict}", flat)


def _add_facts(connection: sqlite3.Connection, facts: Facts) -> None:
    for part, digest in facts.digests.items():
        connection.execute(
            "INSERT OR REPLACE INTO digest VALUES (?, ?, ?)", (facts.generation, part, digest)
        )
    if facts.cost is not None:
        connection.execute(
            "INSERT OR REPLACE INTO cost VALUES (?, ?, ?)", (facts.generation, *facts.cost)
        )


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _any_key(key: Any) -> tuple[str, Any]:
    """How to name a key that `take_any_text` has read: SQLite takes no text that is none."""
    if isinstance(key, str):
        return "CAST(? AS TEXT)", key.encode("utf-8", "surrogateescape")
    return "?", key


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
            application, _ = _identity(connection)
            return application != _APPLICATION_ID and _tables(connection) > 0
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
    if application != _APPLICATION_ID.to_bytes(4, "big"):
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


def _identity(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(application), int(version)


# Generations, with the session's number in their upper half, stay within SQLite's 64 bits, as do
# places in the order of insertion.
_LAST_SESSION = (1 << 31) - 2
_LAST_PLACE = 1 << 62

# A chest's first session has any number below this, so that generations of two chests differ: a
# file of one is never taken for a file of the other.
_FIRST_SESSIONS = 1 << 29

# Times that a folder is looked for that is moved at this moment.
_MOST_LOOKS = 10

# No offset and no size is larger: sums of them stay within 64 bits.
_FAR = 1 << 50


def _checked(raw: RawRow, path: str) -> RawRow:
    """A row with what its columns should hold; SQLite itself lets anything be anywhere.

    Of a row that holds something else its key and its place are left, so that it can be deleted.
    """
    key, seq, exact, form, generation, pack, offset, stored, _ = raw
    if type(key) is not bytes or type(seq) is not int:
        raise CorruptEntryError(f"expected a key and its place in {path}, found {key!r:.80}")
    if (
        type(generation) is int
        and (pack is None or type(pack) is int)
        and type(offset) is type(stored) is int
        and 0 <= offset < _FAR
        and 0 <= stored < _FAR
        and type(form) is str
        and (exact is None or type(exact) is bytes)
    ):
        return raw
    return key, seq, None, "", -1, None, 0, 0, None


def _schema(connection: sqlite3.Connection) -> list[str]:
    """What a database consists of, as SQL, whatever the spaces in it."""
    sql = "SELECT coalesce(sql, type || ' ' || name) FROM sqlite_master"
    return sorted(" ".join(str(row[0]).split()) for row in connection.execute(sql))


@functools.cache
def _our_schema() -> list[str]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(_SCHEMA)
        return _schema(connection)
    finally:
        connection.close()


def _tables(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return int(count)


def _check_identity(path: str, application: int, version: int) -> None:
    if application != _APPLICATION_ID:
        raise ChestFormatError(f"expected an arraychest catalog at {path}, found another database")
    if version != FORMAT_VERSION:
        hint = "open it with a newer arraychest" if version > FORMAT_VERSION else "from a preview"
        raise ChestFormatError(
            f"expected format {FORMAT_VERSION} at {path}, found format {version}: {hint}"
        )


def pack_codes(codes: Sequence[bytes]) -> bytes:
    """Many codes as one: how many there are, their lengths (4 bytes each), then all of them."""
    return array("I", [len(codes), *map(len, codes)]).tobytes() + b"".join(codes)


def unpack_codes(data: object) -> list[bytes] | None:
    """Undo `pack_codes`; None if these bytes are nothing that it makes."""
    if type(data) is not bytes or len(data) < 4:
        return None
    count = int.from_bytes(data[:4], sys.byteorder)
    if 4 * (count + 1) > len(data):
        return None
    lengths = array("I", data[4 : 4 * (count + 1)])
    ends = list(itertools.accumulate(lengths, initial=4 * (count + 1)))
    if ends[-1] != len(data):
        return None
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def _grouped(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start = 0
    for size in _GROUPS:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


# What an open connection to a database with a log holds, in shared mode: bytes of the database, and
# one of the log's index (SQLite's file format, "WAL-index"; SHARED_FIRST and DMS in its sources).
_SQLITE_LOCKS = (("", 0x40000002, 510), ("-shm", 128, 1))

# SQLite has locks for all connections of a process.  A child that was forked while another thread
# held one would wait for it for good with its first statement, also in a database of its own: no
# statement may be running at a fork.
_alive: weakref.WeakSet[Catalog] = weakref.WeakSet()
_registering = threading.Lock()
# Descriptors that `read_head` has opened, by device and inode of the file; under `_registering`.
_heads: dict[tuple[int, int], list[int]] = {}
# In a forked child: databases to which connections of its parent's stay open for good, and what it
# has locked of them.
_inherited: set[tuple[int, int] | None] = set()
_locked: list[tuple[int, int, int]] = []
_forking: list[Catalog] = []


def _before_fork() -> None:
    # Later than the chests' hook, as this module was imported earlier: whoever waits for one of
    # these locks may hold a chest's, but not the other way round.
    _registering.acquire()
    _forking[:] = _alive
    for catalog in _forking:
        catalog._reading.acquire()
        catalog._writing.acquire()


def _after_fork() -> None:
    while _forking:
        catalog = _forking.pop()
        catalog._writing.release()
        catalog._reading.release()
    _registering.release()


def _after_fork_in_child() -> None:
    # Of databases that this child's parent has inherited itself: also where it has closed their
    # chests SQLite goes on as if they were locked.
    for fd, count, first in _locked:
        with contextlib.suppress(OSError):
            fcntl.lockf(fd, fcntl.LOCK_SH, count, first)
    _after_fork()


def has_inherited() -> bool:
    """Whether connections to a catalog were inherited at a fork; see `Catalog.reopen_in_child`."""
    return bool(_inherited)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
