"""The order of insertion, in which a chest is iterated, and how many keys it has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from arraychest.catalog.record import SEQ
from arraychest.memory.memtable import Index
from arraychest.memory.slot import Batch, Slot


class KeyOrder:
    """The keys of one chest in the order of insertion.  Called under the chest's lock.

    Parameters
    ----------
    index
        The chest's.
    """

    def __init__(self, index: Index) -> None:
        self._index = index

    def count(self, deleted: Iterable[Slot]) -> int:
        """Number of keys.  O(1), but O(n) the first time in a catalog that was reopened.

        Parameters
        ----------
        deleted
            The deleted slots whose rows are still in the catalog.  No commit may be under way
            unless the index `is_counted`.
        """
        index = self._index
        if not index.complete:
            index.cut_fresh()
        if not index.is_counted:
            assert index.stored.catalog is not None
            unsaved = sum(slot.raw is None for slot in index.slots.values())
            batches = index.resident.batches
            without_slot = sum(len(batch.keys) - len(batch.replaced) for batch in batches)
            index.counted = index.stored.catalog.count() + unsaved + without_slot
            # What was put anew since has its row counted.
            index.counted -= sum(not self._has_row(slot.key) for slot in deleted)
            index.is_counted = True
        return index.counted + len(index.resident.fresh)

    def _has_row(self, key: Any) -> bool:
        """Whether a row of this key, as known here, is committed."""
        index = self._index
        slot = index.slots.get(key)
        if slot is not None:
            return slot.raw is not None
        known = index.rows.get(key)
        return key in known.replaced if isinstance(known, Batch) else known is not None

    def known_keys(self, *, descending: bool) -> list[Any]:
        """Every key that is known here, in the order of insertion.  O(n log n)."""
        return [key for _, key in self._places(descending, unsaved=False)]

    def last_known_key(self) -> Any:
        """The key of the highest place that is known here; raises StopIteration if there is none.

        O(1), but O(n log n) for the first of many in a row.
        """
        index = self._index
        index.settle_all()
        with index.holding():
            for key in list(index.rows):
                index.find(key)
        if not index.in_order:
            in_order = sorted(index.slots.items(), key=lambda item: item[1].seq)
            index.slots.clear()
            index.slots.update(in_order)
            index.in_order = True
        return next(reversed(index.slots))

    def unsaved_keys(self, *, descending: bool) -> list[tuple[int, Any]]:
        """Place and key of whatever has no row in the catalog, in the order of insertion."""
        return self._places(descending, unsaved=True)

    def _places(self, descending: bool, *, unsaved: bool) -> list[tuple[int, Any]]:
        index = self._index
        if not index.complete or index.puts + len(index.resident.fresh) > index.last_place:
            # Its places may come behind what others have put.
            index.cut_fresh()
        places = [
            (slot.seq, key) for key, slot in index.slots.items() if not unsaved or slot.raw is None
        ]
        if not unsaved:
            places += [
                (row[SEQ], key) for key, row in index.rows.items() if not isinstance(row, Batch)
            ]
        for batch in index.resident.batches:
            found = zip(batch.places, batch.keys, strict=True)
            # What replaces a stored value has its row in the catalog.
            places += (each for each in found if not unsaved or each[1] not in batch.replaced)
        places += zip(itertools.count(index.puts + 1), index.resident.fresh)
        places.sort(key=lambda place: place[0], reverse=descending)
        return places

    def deleted(self) -> dict[Any, int | None]:
        """Keys whose deletion is not committed yet, and the place of what is there now."""
        return {key: self._place_of(key) for key in self._index.tombstones}

    def _place_of(self, key: Any) -> int | None:
        index = self._index
        slot = index.slots.get(key)
        if slot is not None:
            return slot.seq
        row = index.rows.get(key)
        return None if row is None or isinstance(row, Batch) else row[SEQ]
