"""The schema of the catalog, an SQLite database that alone says what a chest holds.

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
in_place    gen      the generation of a value whose file an editor writes into, or did when it
                     died: the checksums in the file are not to be trusted
digest      gen      the generation of a value
            part     0, or of a value tree the number of an array in it, counted from 1
            digest   what the array contains (see `digests`)
cost        gen      the generation of a value
            seconds  how long it took to compute; NULL: no function has
            expires  when it is no longer good, in seconds since 1970; NULL: never
            at       when it was computed, in seconds since 1970; NULL: that is not known
renamed     gen      the generation of a value whose key was changed
            key      the canonical code of the key that its file says
expiry      expires  when some value of a key is no longer good; `cost` says of the one that is
                     there now
            key      the canonical code of the key
change      n        the number of a commit; only the last ones are kept (see `changes`)
            session  who made it
            keys     canonical codes of the keys it changed (see `changes.pack_codes`); NULL: too
                     many to say
            gone     files that went out of use with it, separated by NUL; NULL once they are gone
session     number   a writer that has not ended cleanly, or not yet
meta        name     ``id`` (of the chest), ``session`` (counts writers; a generation is
            value    ``session << 32`` plus a counter)
==========  =======  =========================================================================

Checksums lie in the files themselves (see `formats.checksums`).  What a value file says of itself
(see `formats.directory`) is read only by `repair`, where this database is lost or wrong.

A value's bytes are complete in its file before its row commits, and its file goes only after the
row is gone: at any moment every row names complete bytes.  A file without a row is an orphan: what
a session had not committed, or not removed yet, when it died.  The next writer sweeps it.

Several processes may write.  Whoever changes the database holds a lock (`locks.COMMIT`), has read
every change before its own, and tells of its own by the commit counter.
"""

from __future__ import annotations

import functools
import sqlite3
import uuid
from typing import Any

from arraychest.errors import ChestFormatError
from arraychest.sharing.open_folder import CATALOG_NAME

FORMAT_VERSION = 5
FILE_NAME = CATALOG_NAME
APPLICATION_ID = 0x41436873

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
CREATE TABLE in_place(gen INTEGER PRIMARY KEY);
CREATE TABLE digest(
    gen INTEGER NOT NULL, part INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY(gen, part)) WITHOUT ROWID;
CREATE TABLE cost(gen INTEGER PRIMARY KEY, seconds REAL, expires REAL, at REAL);
CREATE TABLE renamed(gen INTEGER PRIMARY KEY, key BLOB NOT NULL);
CREATE TABLE expiry(
    expires REAL NOT NULL, key BLOB NOT NULL, PRIMARY KEY (expires, key)
) WITHOUT ROWID;
CREATE TABLE change(n INTEGER PRIMARY KEY, session INTEGER NOT NULL, keys BLOB, gone BLOB);
CREATE TABLE session(number INTEGER PRIMARY KEY);
CREATE TABLE meta(name TEXT PRIMARY KEY NOT NULL, value) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
COMMIT;
"""

# Keys that come in no order fall on as many pages as there are, each of which goes into the log
# with every commit, and into the database whenever the log is full.  For 100,000 such rows in
# batches of 2,048 SQLite's own 4 KiB and 4 MiB cost 12 us a row; these, in batches four times as
# large and in the order of the keys, 4 us.  Larger pages would make a commit of one row dear.
_PAGE_BYTES = 8192
LOG_PAGES = 2048


def make(connection: sqlite3.Connection) -> None:
    """Make the tables of a new catalog in an empty database."""
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(_SCHEMA)
    set_meta(connection, "id", uuid.uuid4().hex)


def set_meta(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Set a value of the table ``meta``."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def identity_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """A database's application id, and the version of its format; both are 0 in a new one."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(application), int(version)


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether anything is in a database."""
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return int(count) > 0


def check_identity(connection: sqlite3.Connection, path: str) -> None:
    """Check that a database is a catalog of this format.

    Raises
    ------
    ChestFormatError
        It is not.
    """
    application, version = identity_of(connection)
    if application != APPLICATION_ID:
        raise ChestFormatError(f"expected an arraychest catalog at {path}, found another database")
    if version != FORMAT_VERSION:
        hint = "open it with a newer arraychest" if version > FORMAT_VERSION else "from a preview"
        raise ChestFormatError(
            f"expected format {FORMAT_VERSION} at {path}, found format {version}: {hint}"
        )


def check_schema(connection: sqlite3.Connection, path: str) -> None:
    """Check that a catalog consists of these tables and of nothing else, to the letter.

    A stranger's view, trigger, check, default or indexed expression may do anything, or never end.

    Raises
    ------
    ChestFormatError
        It consists of something else.
    """
    found = _schema_of(connection)
    if found != _our_schema():
        odd = sorted(set(found) ^ set(_our_schema()))
        raise ChestFormatError(f"expected a catalog of ours at {path}, found {str(odd[:3])[:500]}")


def _schema_of(connection: sqlite3.Connection) -> list[str]:
    """What a database consists of, as SQL, whatever the spaces in it."""
    sql = "SELECT coalesce(sql, type || ' ' || name) FROM sqlite_master"
    return sorted(" ".join(str(row[0]).split()) for row in connection.execute(sql))


@functools.cache
def _our_schema() -> list[str]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(_SCHEMA)
        return _schema_of(connection)
    finally:
        connection.close()
