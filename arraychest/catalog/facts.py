"""What the catalog knows of values beside their rows.

The tables are ``in_place``, ``digest``, ``cost``, ``renamed`` and ``expiry``; `schema` says what
they hold.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence

from arraychest.catalog.changes import ChangeFeed
from arraychest.catalog.connection import Database, grouped, in_room
from arraychest.catalog.record import GENERATION, KEY, Cost, Facts, RawRow

# The tables of what is known of a value by its generation.
_BY_GENERATION = ("in_place", "digest", "cost", "renamed")

# SQLite lets anything be anywhere; what is no fact, or too long to be one, is as good as missing.
_GOOD_DIGEST = "AND typeof(digest) = 'blob' AND length(digest) < 100"
_GOOD_COST = (
    "AND (seconds IS NULL OR typeof(seconds) = 'real' AND seconds BETWEEN 0 AND 1e300)"
    " AND typeof(expires) IN ('real', 'null') AND typeof(at) IN ('real', 'null')"
)


class FactTables:
    """The facts in one catalog.

    Parameters
    ----------
    database
        The catalog's.
    changes
        Where others are told of what changes.
    """

    def __init__(self, database: Database, changes: ChangeFeed) -> None:
        self.database = database
        self._changes = changes

    def of(self, generation: int) -> Facts:
        """What is known of a value.  Some 8 us."""
        digests = self.database.read(
            f"SELECT part, digest FROM digest WHERE gen = ? {_GOOD_DIGEST}", generation
        )
        costs = self.database.read(
            f"SELECT seconds, expires, at FROM cost WHERE gen = ? {_GOOD_COST}", generation
        )
        cost = Cost(*costs[0]) if costs else None
        return Facts(generation, dict(digests), cost, self.written_as(generation))

    def written_as(self, generation: int) -> bytes | None:
        """The key that a value's file says, where its key was changed since."""
        sql = "SELECT key FROM renamed WHERE gen = ? AND typeof(key) = 'blob'"
        rows = self.database.read(sql, generation)
        return rows[0][0] if rows else None

    def costs(self) -> dict[int, Cost]:
        """What the values took to compute, by generation, of all that were computed."""
        sql = f"SELECT gen, seconds, expires, at FROM cost WHERE true {_GOOD_COST}"
        return {generation: Cost(*cost) for generation, *cost in self.database.read(sql)}

    def next_expiry(self, now: float) -> float | None:
        """When the next value expires after `now`, as far as is noted; None: none does."""
        sql = "SELECT expires FROM expiry WHERE expires > ? ORDER BY expires LIMIT 1"
        rows = self.database.read(sql, now)
        return rows[0][0] if rows and type(rows[0][0]) is float else None

    def expired(self, now: float) -> list[tuple[bytes, bytes | None]]:
        """Canonical and exact codes of the keys whose values are no longer good.

        O(what has expired and was not removed yet).
        """
        return self.database.read(
            "SELECT DISTINCT entry.key, entry.exact FROM expiry"
            " JOIN entry ON entry.key = expiry.key"
            " JOIN cost ON cost.gen = entry.gen WHERE expiry.expires <= ?"
            " AND typeof(cost.expires) = 'real' AND cost.expires <= ?",
            now,
            now,
        )

    @in_room()
    def note_expiry(self, row: RawRow, expires: float | None, change: int | None) -> None:
        """Note until when a stored value is good; None: for ever.  Others are told."""
        with self._changes.telling(change, [row]) as connection:
            generation = row[GENERATION]
            connection.execute(
                "INSERT INTO cost VALUES (?, NULL, ?, NULL)"
                " ON CONFLICT (gen) DO UPDATE SET expires = excluded.expires",
                (generation, expires),
            )
            if expires is not None:
                add_expiry(connection, expires, row[KEY])

    @in_room()
    def add_digest(self, code: bytes, generation: int, part: int, digest: bytes) -> None:
        """Note what a key's value contains, unless it is gone, or written to in place."""
        with self.database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO digest SELECT ?, ?, ? WHERE EXISTS ("
                "SELECT 1 FROM entry WHERE key = ? AND gen = ?) AND NOT EXISTS ("
                "SELECT 1 FROM in_place WHERE gen = ?)",
                (generation, part, digest, code, generation, generation),
            )

    @in_room()
    def note_written_in_place(self, generation: int, change: int | None) -> None:
        """Note that an editor is about to write into a value's file.

        No checksum or digest of the value is trusted from here on.  Others are told (see
        `ChangeFeed.telling`): they may have the file mapped, and know what it contains.
        """
        with self._changes.telling(change, ()) as connection:
            connection.execute("INSERT OR REPLACE INTO in_place VALUES (?)", (generation,))
            connection.execute("DELETE FROM digest WHERE gen = ?", (generation,))

    def is_written_in_place(self, generation: int) -> bool:
        """Whether `note_written_in_place` was called for a value that is still there."""
        sql = "SELECT count(*) FROM in_place WHERE gen = ?"
        return bool(self.database.read(sql, generation)[0][0])

    def may_have_changed(self, code: bytes, generation: int) -> bool:
        """Whether the file of this value of a key may have been written to.

        It may where the key has another value now: the last step of an edit in place makes it one.
        """
        sql = "SELECT count(*) FROM entry WHERE key = ? AND gen = ?"
        is_there = self.database.read(sql, code, generation)[0][0]
        return not is_there or self.is_written_in_place(generation)


def add_facts(connection: sqlite3.Connection, facts: Facts) -> None:
    """Note what is known of a value, within a transaction."""
    for part, digest in facts.digests.items():
        connection.execute(
            "INSERT OR REPLACE INTO digest VALUES (?, ?, ?)", (facts.generation, part, digest)
        )
    if facts.written_as is not None:
        connection.execute(
            "INSERT OR REPLACE INTO renamed VALUES (?, ?)", (facts.generation, facts.written_as)
        )
    if facts.cost is not None:
        connection.execute(
            "INSERT OR REPLACE INTO cost VALUES (?, ?, ?, ?)", (facts.generation, *facts.cost)
        )


def add_expiry(connection: sqlite3.Connection, expires: float, code: bytes) -> None:
    """Note when a key's value expires, within a transaction; forget what is long over."""
    connection.execute("INSERT OR IGNORE INTO expiry VALUES (?, ?)", (expires, code))


def forget_expired(connection: sqlite3.Connection, now: float) -> None:
    """Forget what expired before, whose entries are gone, within a transaction."""
    connection.execute(
        "DELETE FROM expiry WHERE expires <= ? AND NOT EXISTS (SELECT 1 FROM entry JOIN cost"
        " ON cost.gen = entry.gen WHERE entry.key = expiry.key AND cost.expires <= ?)",
        (now, now),
    )


def forget_facts(connection: sqlite3.Connection, generations: Sequence[int]) -> None:
    """Forget what is known of values that are no more, within a transaction."""
    for table in _filled_tables(connection) if generations else ():
        for group in grouped(sorted(generations)):
            marks = ",".join("?" * len(group))
            connection.execute(f"DELETE FROM {table} WHERE gen IN ({marks})", group)


def forget_strays(connection: sqlite3.Connection) -> None:
    """Forget all that is known of values that are not there, within a transaction."""
    for table in _filled_tables(connection):
        connection.execute(f"DELETE FROM {table} WHERE gen NOT IN (SELECT gen FROM entry)")


def forget_all(connection: sqlite3.Connection) -> None:
    """Forget all that is known of any value, within a transaction."""
    for table in ("expiry", *_BY_GENERATION):
        connection.execute(f"DELETE FROM {table}")


def _filled_tables(connection: sqlite3.Connection) -> list[str]:
    """Those that are not empty: mostly all are, and need not be searched."""
    found = [
        connection.execute(f"SELECT EXISTS(SELECT 1 FROM {table})").fetchone()[0]
        for table in _BY_GENERATION
    ]
    return list(itertools.compress(_BY_GENERATION, found))
