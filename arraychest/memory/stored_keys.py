"""The keys that the catalog has, and their rows."""

from __future__ import annotations

import contextlib
from typing import Any

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.record import EXACT, KEY, SEQ, RawRow
from arraychest.errors import ArrayChestError, ClosedChestError, CorruptEntryError
from arraychest.values.keys import decode_key, encode_key, equals, lookup_of, marked_codes

# Rows read with one that was asked for after its neighbour.
_READ_AHEAD = 64

# Entries that one step of an iteration reads from the catalog.
_PAGE = 1024


class StoredKeys:
    """Looks keys up in the catalog.  Every method is called under the chest's lock.

    Attributes
    ----------
    catalog
        The chest's; None as long as nothing is stored, and once the chest is closed.
    """

    def __init__(self) -> None:
        self.catalog: Catalog | None = None
        # The place of the row that was looked up last.
        self._last_found = -1

    def find(self, key: Any) -> RawRow | None:
        """The row of a key that equals this one, which may be of any type; None if there is none.

        Raises
        ------
        CorruptEntryError
        """
        if self.catalog is None:
            return None
        if type(key) is str:
            return self.catalog.find(b"s" + key.encode("utf-8", "surrogatepass"))
        lookup = lookup_of(key)
        if lookup is None:
            return None
        raw = self.catalog.find(lookup.canonical)
        if raw is not None and (lookup.is_certain or _is_row_of(raw, key)):
            return raw
        if lookup.group is None:
            return None
        others = self.catalog.find_between(*marked_codes(lookup.group))
        if lookup.canonical != lookup.group:
            raw = self.catalog.find(lookup.group)
            others = others if raw is None else [raw, *others]
        return next((raw for raw in others if _is_row_of(raw, key)), None)

    def next_rows(self, raw: RawRow) -> list[RawRow]:
        """The rows behind one that was just found, where its neighbour was found before.

        Whoever asks in the order of insertion is about to ask for the next ones: a row of a group
        costs a quarter of a look-up.
        """
        before, self._last_found = self._last_found, raw[SEQ]
        if self.catalog is None or raw[SEQ] != before + 1:
            return []
        # What cannot be read is told when one of them is asked for.
        with contextlib.suppress(ArrayChestError, OSError):
            found = self.catalog.rows_after(raw[SEQ], _READ_AHEAD)
            if found:
                self._last_found = found[-1][SEQ]
            return found
        return []

    def find_all(self, codes: list[bytes]) -> list[RawRow]:
        """The rows of those of these canonical codes that have one."""
        assert self.catalog is not None
        return self.catalog.find_all(codes)

    def of_keys(self, keys: list[Any]) -> dict[Any, RawRow]:
        """The rows of those of these keys that are stored, by the key of each."""
        asked = {encode_key(key).canonical: key for key in keys}
        rows = {}
        for raw in self.find_all(list(asked)):
            key = asked[raw[KEY]]
            if raw[EXACT] is not None or type(key) is not str:
                # A row that cannot be decoded is about to be overwritten.
                with contextlib.suppress(ValueError):
                    key = decode_key(raw[KEY], raw[EXACT])
            rows[key] = raw
        return rows

    def page(self, after: int, *, descending: bool) -> list[tuple[int, bytes, bytes | None]]:
        """Place and codes of the next entries, among them such as wait to be deleted."""
        if self.catalog is None:
            raise ClosedChestError("the chest is closed")
        return self.catalog.page(after, _PAGE, descending=descending)


def _is_row_of(raw: RawRow, key: Any) -> bool:
    try:
        return equals(decode_key(raw[KEY], raw[EXACT]), key)
    except CorruptEntryError as error:
        raise CorruptEntryError(f"catalog row of key {key!r}: {error}") from error
