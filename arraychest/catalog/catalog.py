"""The catalog: which key has which value, and where that value lies.

`schema` is the specification of the database that this reads and changes.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from arraychest.catalog.changes import ChangeFeed
from arraychest.catalog.connection import Database, grouped, in_room
from arraychest.catalog.facts import (
    FactTables,
    add_expiry,
    add_facts,
    forget_all,
    forget_expired,
    forget_facts,
)
from arraychest.catalog.record import (
    EXACT,
    FAR,
    GENERATION,
    KEY,
    SEQ,
    STAMP,
    Facts,
    Pack,
    RawRow,
    Row,
    checked,
)
from arraychest.errors import ChestFormatError, CorruptEntryError

# Places in the order of insertion stay within SQLite's 64 bits.
_LAST_PLACE = 1 << 62

_FIND = "SELECT * FROM entry WHERE key = ?"

# Unlike a replacement it leaves the index of places alone: a fifth less of the time.
_UPDATE = (
    "ON CONFLICT(key) DO UPDATE SET exact = excluded.exact, form = excluded.form, "
    "gen = excluded.gen, pack = excluded.pack, offset = excluded.offset, "
    "stored = excluded.stored, stamp = excluded.stamp"
)


class Catalog:
    """The catalog of one chest.

    The caller serialises the calls as `Database` says.

    Parameters
    ----------
    database
        The catalog's.

    Attributes
    ----------
    database
        The connections to it.
    changes
        What each commit changed, and the sessions.
    facts
        What is known of values beside their rows.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.changes = ChangeFeed(database)
        self.facts = FactTables(database, self.changes)

    # --- reading ---------------------------------------------------------------------------

    def find(self, key: bytes) -> RawRow | None:
        """The row of a key, by its canonical code.  O(log n), some 3 us."""
        database = self.database
        if database.writable and not database.snapshot:
            database.begin_snapshot()
        try:
            # Not bytes: see `_put_rows`.
            found = database.cursor.execute(_FIND, (bytearray(key),)).fetchone()
        except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:
            raise CorruptEntryError(f"catalog {database.path}: {error}") from error
        return None if found is None else checked(found, database.path)

    def find_all(self, keys: list[bytes]) -> list[RawRow]:
        """The rows of those of these keys that have one.  Some 1 us a key."""
        database = self.database
        if database.writable and not database.snapshot:
            database.begin_snapshot()
        found = []
        for group in grouped(sorted(keys)):
            marks = ",".join("?" * len(group))
            found += database.read(
                f"SELECT * FROM entry WHERE key IN ({marks})", *map(bytearray, group)
            )
        # One without a place can only be overwritten.
        return [checked(raw, database.path) for raw in found if type(raw[SEQ]) is int]

    def find_between(self, first: bytes, last: bytes) -> list[RawRow]:
        """The rows of the canonical codes from `first` up to `last`, itself left out; by place."""
        database = self.database
        if database.writable and not database.snapshot:
            database.begin_snapshot()
        found = database.read(
            "SELECT * FROM entry WHERE key >= ? AND key < ? ORDER BY seq",
            bytearray(first),
            bytearray(last),
        )
        return [checked(raw, database.path) for raw in found]

    def count(self) -> int:
        """Number of entries.  O(n): a scan of the smallest index."""
        return int(self.database.read("SELECT count(*) FROM entry")[0][0])

    def last_seq(self) -> int:
        """The highest place in the order of insertion; 0 if there is none."""
        last = self.database.read("SELECT coalesce(max(seq), 0) FROM entry")[0][0]
        if type(last) is not int or last > _LAST_PLACE:
            raise ChestFormatError(
                f"expected numbers in {self.database.path}, found {last!r:.80} as a seq"
            )
        return max(last, 0)

    def page(
        self, after: int, count: int, *, descending: bool = False
    ) -> list[tuple[int, bytes, bytes | None]]:
        """``(seq, key, exact)`` of the next `count` entries in the order of insertion."""
        compare, order = ("<", "DESC") if descending else (">", "ASC")
        return self.database.read(
            f"SELECT seq, key, exact FROM entry WHERE seq {compare} ? ORDER BY seq {order} LIMIT ?",
            after,
            count,
        )

    def rows_after(self, seq: int, count: int) -> list[RawRow]:
        """The next `count` rows in the order of insertion.  Some 1 us each."""
        rows = self.database.read(
            "SELECT * FROM entry WHERE seq > ? ORDER BY seq LIMIT ?", seq, count
        )
        # A row without a key or a place cannot be asked for.
        fit = [row for row in rows if type(row[KEY]) is bytes and type(row[SEQ]) is int]
        return [checked(row, self.database.path) for row in fit]

    def packs(self) -> list[Pack]:
        """Every pack."""
        packs = [Pack._make(row) for row in self.database.read("SELECT * FROM pack ORDER BY id")]
        for each in packs:
            if any(type(value) is not int for value in each) or not (
                0 <= each.bytes < FAR and 0 <= each.live < FAR
            ):
                raise ChestFormatError(
                    f"expected numbers in {self.database.path}, found {each!r:.200}"
                )
        return packs

    def rows_in(self, pack: int) -> list[Row]:
        """The entries of one pack by offset.  O(n) in all entries: only compaction asks."""
        rows = self.database.read("SELECT * FROM entry WHERE pack = ? ORDER BY offset", pack)
        return [Row._make(checked(row, self.database.path)) for row in rows]

    def file_generations(self) -> set[int]:
        """The generations of all values in files of their own.  O(n): only a sweep asks."""
        return {row[0] for row in self.database.read("SELECT gen FROM entry WHERE pack IS NULL")}

    def pack_ids(self) -> set[int]:
        """The ids of all packs."""
        return {row[0] for row in self.database.read("SELECT id FROM pack")}

    def stored_bytes(self) -> int:
        """Bytes of the files that hold the values.  O(n)."""
        own = self.database.read(
            "SELECT coalesce(sum(stored), 0) FROM entry "
            f"WHERE pack IS NULL AND stored BETWEEN 0 AND {FAR}"
        )
        packed = self.database.read(
            f"SELECT coalesce(sum(bytes), 0) FROM pack WHERE bytes BETWEEN 0 AND {FAR}"
        )
        return int(own[0][0] + packed[0][0])

    def meta(self, name: str) -> Any:
        """A value of the table ``meta``; None if it is not there."""
        rows = self.database.read("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    # --- writing ---------------------------------------------------------------------------

    @in_room(removes=True)
    def commit(
        self,
        *,
        deleted: Sequence[RawRow] = (),
        rows: Sequence[RawRow] = (),
        updated: Sequence[RawRow] = (),
        packs: Sequence[Pack] = (),
        dropped_packs: Sequence[int] = (),
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
        changed = [*deleted, *rows, *updated]
        with self.changes.telling(change, changed, gone) as connection:
            # In the order of the B-trees: what lies on one page is changed together.
            for group in grouped(sorted([row[SEQ] for row in deleted])):
                marks = ",".join("?" * len(group))
                connection.execute(f"DELETE FROM entry WHERE seq IN ({marks})", group)
            _put_rows(connection, rows, "INSERT OR REPLACE", "")
            _put_rows(connection, updated, "INSERT", _UPDATE)
            for pack in packs:
                connection.execute("INSERT OR REPLACE INTO pack VALUES (?,?,?,?,?,?)", pack)
            for identity in dropped_packs:
                connection.execute("DELETE FROM pack WHERE id = ?", (identity,))
            forget_facts(connection, forgotten)
            if facts:
                codes = {row[GENERATION]: row[KEY] for row in (*rows, *updated)}
                for each in facts:
                    add_facts(connection, each)
                    expires = None if each.cost is None else each.cost.expires
                    if expires is not None and each.generation in codes:
                        add_expiry(connection, expires, codes[each.generation])
            if deleted:
                forget_expired(connection, time.time())

    @in_room(removes=True)
    def clear(self, gone: Sequence[str]) -> None:
        """Remove every entry and pack; the commit's number is 1, and these files go with it."""
        with self.changes.telling(1, None, gone) as connection:
            for table in ("entry", "pack", "change"):
                connection.execute(f"DELETE FROM {table}")
            forget_all(connection)


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
    for group in grouped(short):
        marks = ",".join(["(?,?,NULL,?,?,?,?,?,NULL)"] * len(group))
        values = [
            value
            for key, seq, _, form, generation, pack, offset, stored, _ in group
            for value in (bytearray(key), seq, form, generation, pack, offset, stored)
        ]
        connection.execute(f"{how} INTO entry VALUES {marks} {conflict}", values)
    for group in grouped(long):
        marks = ",".join(["(?,?,?,?,?,?,?,?,?)"] * len(group))
        flat = list(itertools.chain.from_iterable(group))
        connection.execute(f"{how} INTO entry VALUES {marks} {conflict}", flat)
