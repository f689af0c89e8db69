"""Which keys each commit changed, and which sessions are at work: what processes tell each other.

The change feed is kept in the tables ``change`` and ``session``; `schema` says what they hold.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import sqlite3
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from arraychest.catalog.connection import Database, in_room
from arraychest.catalog.record import FAR, KEY, RawRow
from arraychest.catalog.schema import set_meta
from arraychest.errors import ChestFormatError

# Commits whose changes are kept for others to read.  Whoever has missed more forgets all it knew,
# and looks each key up again when it is asked for.
_CHANGES = 64

# A commit of more keys than this does not say which: to look each up would take others longer than
# to forget what they know.
_MOST_TOLD = 4096

# Generations, with the session's number in their upper half, stay within SQLite's 64 bits.
_LAST_SESSION = (1 << 31) - 2

# A chest's first session has any number below this, so that generations of two chests differ: a
# file of one is never taken for a file of the other.
_FIRST_SESSIONS = 1 << 29


class ChangeFeed:
    """The changes and sessions of one catalog.

    Parameters
    ----------
    database
        The catalog's.

    Attributes
    ----------
    session
        The number of this writer, once it has begun; 0 before.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.session = 0
        # The commit of this session that told of files gone, if that was its last.
        self._told_gone = 0

    def last_commit(self) -> int:
        """The number of the last commit; 0 if there is none."""
        last = self.database.read("SELECT coalesce(max(n), 0) FROM change")[0][0]
        if type(last) is not int or not 0 <= last < FAR:
            raise ChestFormatError(
                f"expected a number in {self.database.path}, found {last!r:.80} as n"
            )
        return last

    def since(self, commit: int, session: int) -> tuple[int, list[bytes] | None]:
        """The last commit's number, and which keys other sessions' commits since have changed.

        None if that is not known: any may have.
        """
        rows = self.database.read(
            "SELECT n, session, keys FROM change WHERE n > ? ORDER BY n", commit
        )
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

    @contextlib.contextmanager
    def telling(
        self, commit: int | None, changed: Sequence[RawRow] | None, gone: Sequence[str] = ()
    ) -> Iterator[sqlite3.Connection]:
        """A transaction that tells others what it changes.

        Parameters
        ----------
        commit
            The number of this commit; None: nobody is told.
        changed
            Rows, as they were or as they are now, of the keys that it changes; None: any may have.
        gone
            Files that it puts out of use.
        """
        with self.database.transaction() as connection:
            yield connection
            if commit is not None:
                self._tell(connection, commit, changed, gone)
        if commit is not None:
            self._told_gone = commit if gone else 0

    def _tell(
        self,
        connection: sqlite3.Connection,
        commit: int,
        changed: Sequence[RawRow] | None,
        gone: Sequence[str],
    ) -> None:
        keys = None
        if changed is not None and len(changed) <= _MOST_TOLD:
            keys = pack_codes([row[KEY] for row in changed])
        # What this session's last commit put out of use is removed before the next one begins.
        if self._told_gone:
            connection.execute("UPDATE change SET gone = NULL WHERE n = ?", (self._told_gone,))
        names = b"\0".join(map(os.fsencode, gone)) if gone else None
        connection.execute(
            "INSERT INTO change VALUES (?, ?, ?, ?)", (commit, self.session, keys, names)
        )
        connection.execute("DELETE FROM change WHERE n <= ? AND gone IS NULL", (commit - _CHANGES,))

    def gone_files(self, session: int) -> list[str]:
        """Files that a session's commits put out of use and that it may not have removed."""
        rows = self.database.read(
            "SELECT gone FROM change WHERE session = ? AND gone NOTNULL", session
        )
        names = b"\0".join(bytes(row[0]) for row in rows if type(row[0]) is bytes)
        return [os.fsdecode(name) for name in names.split(b"\0") if name]

    def sessions(self) -> list[int]:
        """The sessions that have not ended cleanly, or not yet."""
        return [
            row[0]
            for row in self.database.read("SELECT number FROM session")
            if type(row[0]) is int
        ]

    def last_session(self) -> int:
        """The number of the session that began last; 0 if none did."""
        return self._session_of(self.database.read("SELECT value FROM meta WHERE name = 'session'"))

    def _session_of(self, rows: list[Any]) -> int:
        number = rows[0][0] if rows else 0
        if type(number) is not int or not 0 <= number < _LAST_SESSION:
            raise ChestFormatError(
                f"expected a number in {self.database.path}, found {number!r:.80} as its last "
                "session"
            )
        return number

    @in_room(removes=True)
    def begin_session(self) -> int:
        """Note that a writer is at work, and return its number."""
        with self.database.transaction() as connection:
            # Read in the transaction, so that nobody else gets the same number.
            sql = "SELECT value FROM meta WHERE name = 'session'"
            last = self._session_of(connection.execute(sql).fetchall())
            self.session = (last or secrets.randbelow(_FIRST_SESSIONS)) + 1
            set_meta(connection, "session", self.session)
            connection.execute("INSERT INTO session VALUES (?)", (self.session,))
        return self.session

    @in_room(removes=True)
    def end_sessions(self, numbers: Sequence[int]) -> None:
        """Note that nothing of these sessions is left to sweep."""
        with self.database.transaction() as connection:
            for number in numbers:
                connection.execute("DELETE FROM session WHERE number = ?", (number,))
                connection.execute("UPDATE change SET gone = NULL WHERE session = ?", (number,))

    @in_room()
    def begin_at(self, session: int) -> None:
        """Let the next session's number be higher than this one."""
        with self.database.transaction() as connection:
            set_meta(connection, "session", session)


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
