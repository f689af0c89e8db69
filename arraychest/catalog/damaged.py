"""The catalog's rows as they are, whatever is in them, for `verify` and `repair`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import in_room
from arraychest.catalog.facts import forget_strays
from arraychest.catalog.record import Pack, RawRow


class DamagedRows:
    """The rows of a catalog that may hold anything.

    Parameters
    ----------
    catalog
        Whose rows these are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.database = catalog.database

    def after(self, key: bytes, count: int) -> list[tuple[Any, ...]]:
        """The next rows in the order of their keys as they are, whatever is in them."""
        return self.database.read(
            "SELECT * FROM entry WHERE key > ? AND typeof(key) = 'blob' ORDER BY key LIMIT ?",
            key,
            count,
        )

    def of(self, key: Any) -> tuple[Any, ...] | None:
        """The row of a key as it is."""
        mark, value = _any_key(key)
        rows = self.database.read(f"SELECT * FROM entry WHERE key IS {mark}", value)
        return rows[0] if rows else None

    def strays(self) -> list[tuple[Any, ...]]:
        """Rows whose key is no bytes, or that lie in a pack that is not there."""
        return self.database.read(
            "SELECT * FROM entry WHERE typeof(key) <> 'blob' "
            "OR (pack NOTNULL AND pack NOT IN (SELECT id FROM pack))"
        )

    def in_pack(self, identity: int) -> tuple[Pack | None, list[tuple[Any, ...]]]:
        """A pack and what lies in it by offset, as of one moment.  O(n) in all entries."""
        self.database.read("BEGIN")
        try:
            packs = [each for each in self._catalog.packs() if each.id == identity]
            rows = self.database.read(
                "SELECT * FROM entry WHERE pack = ? ORDER BY offset", identity
            )
        finally:
            self.database.read("ROLLBACK")
        return (packs[0] if packs else None), rows

    @in_room(removes=True)
    def amend(
        self,
        *,
        deleted: Sequence[Any],
        rows: Sequence[RawRow],
        packs: Sequence[Pack],
        dropped_packs: Sequence[int],
        change: int | None,
    ) -> None:
        """Change in one transaction what a repair changes; keys and ids may be anything."""
        with self._catalog.changes.telling(change, None) as connection:
            for key in deleted:
                mark, value = _any_key(key)
                connection.execute(f"DELETE FROM entry WHERE key IS {mark}", (value,))
            for row in rows:
                connection.execute("INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?)", row)
            for pack in packs:
                connection.execute("INSERT OR REPLACE INTO pack VALUES (?,?,?,?,?,?)", pack)
            for identity in dropped_packs:
                connection.execute("DELETE FROM pack WHERE id IS ?", (identity,))
            forget_strays(connection)


def _any_key(key: Any) -> tuple[str, Any]:
    """How to name a key that was read as any text: SQLite takes no text that is no UTF-8."""
    if isinstance(key, str):
        return "CAST(? AS TEXT)", key.encode("utf-8", "surrogateescape")
    return "?", key
