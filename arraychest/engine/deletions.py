"""Deletions that wait for a commit.

A deletion takes effect in memory at once, and in the catalog with the next commit; until then a
*tombstone* says that the key's row does not count.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

from arraychest.catalog.record import PACK, STORED, RawRow
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Slot
from arraychest.storage.eviction import freed_by

# Deleted entries that wait for a commit at most.  A commit rewrites each page of the catalog that
# one of them lies on, so that many together cost a fifth of what few do: 6.1 us each when 4,096
# out of 100,000 are deleted at a time, 2.5 when 16,384 are, 1.2 when 65,536.
_MOST_ENTRIES = 32_768

# Bytes of files that wait for a commit to be removed.
_MOST_BYTES = 4 << 20


class Deletions:
    """The deleted slots of one chest whose rows are still in the catalog.

    Every method is called under the chest's lock.

    Parameters
    ----------
    index, resident
        The chest's.

    Attributes
    ----------
    waiting
        The slots that wait for a commit, in the order of their deletion.
    nbytes
        Bytes of the files that go with them.
    inherited
        In a forked child, the slots that the parent deleted before the fork: what has been stored
        under their keys since is not deleted by that.
    """

    def __init__(self, index: Index, resident: Pool) -> None:
        self._index = index
        self._resident = resident
        self.waiting: dict[Slot, None] = {}
        self.nbytes = 0
        self.inherited: set[Slot] = set()
        # Those that a commit under way deletes: they wait as the others do, until it is over.
        self._leaving: list[Slot] = []

    @property
    def all(self) -> list[Slot]:
        """Deleted slots whose rows are still in the catalog."""
        return [*self.waiting, *self._leaving]

    @property
    def are_due(self) -> bool:
        """Whether there are so many that they should be committed."""
        return len(self.waiting) >= _MOST_ENTRIES or self.nbytes >= _MOST_BYTES

    def let_go(self, slot: Slot) -> None:
        """Take a slot out of RAM whose value was deleted or overwritten.

        A write of it that is under way is thrown away by whoever commits it.
        """
        if slot.array is not None:
            self._resident.remove(slot)
        self._resident.drop_copy(slot)
        slot.value = slot.view = None

    def add(self, slot: Slot) -> None:
        """Forget a slot that has left the index: its entry and its file go with a later commit."""
        self.let_go(slot)
        slot.version = -1
        raw = slot.raw
        if raw is not None:
            self._wait(slot, raw)
        elif slot.writing < 0:
            return
        tombstones, key = self._index.tombstones, slot.key
        tombstones[key] = tombstones[key] + 1 if key in tombstones else 1

    def _wait(self, slot: Slot, raw: RawRow) -> None:
        self.waiting[slot] = None
        if raw[PACK] is None:
            self.nbytes += raw[STORED]

    def written(self, slot: Slot) -> None:
        """The write of a slot is over, whatever came of it."""
        if slot.writing < 0:
            return
        slot.writing = -1
        if slot.version < 0:  # deleted meanwhile
            if slot.raw is None:
                self.end(slot)
            elif slot not in self.waiting:
                self._wait(slot, slot.raw)

    # --- beside a commit -----------------------------------------------------------------------

    def begin(self, most: int | None) -> list[Slot]:
        """The slots that a commit deletes now; of more than `most` those with the largest files."""
        slots = list(self.waiting)
        if most is not None and most < len(slots):
            slots = heapq.nlargest(most, slots, key=lambda slot: freed_by(slot.raw))
        self._leaving = slots
        for slot in slots:
            del self.waiting[slot]
            if slot.raw is not None and slot.raw[PACK] is None:
                self.nbytes -= slot.raw[STORED]
        if not self.waiting:
            self.nbytes = 0
        return slots

    def undo(self) -> None:
        """The commit failed: its deletions wait for another one."""
        for slot in self._leaving:
            self.waiting[slot] = None
            if slot.raw is not None and slot.raw[PACK] is None:
                self.nbytes += slot.raw[STORED]
        self._leaving = []

    def done(self) -> None:
        """The commit has deleted what `begin` returned."""
        self._are_gone(self._leaving)
        self._leaving = []

    def of_keys(self, keys: Container[Any]) -> list[Slot]:
        """The slots of these keys that wait."""
        return [slot for slot in self.waiting if slot.key in keys]

    def overtaken(self, slots: Sequence[Slot]) -> None:
        """A commit of something else has deleted the rows of these, too."""
        for slot in slots:
            del self.waiting[slot]
            if slot.raw is not None and slot.raw[PACK] is None:
                self.nbytes = max(0, self.nbytes - slot.raw[STORED])
        self._are_gone(slots)

    def _are_gone(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.raw = None
            if slot.writing < 0:  # otherwise whoever writes it does
                self.end(slot)

    def end(self, slot: Slot) -> None:
        """Nothing in the catalog is left of a deleted slot."""
        tombstones = self._index.tombstones
        left = tombstones.get(slot.key, 0) - 1
        if left > 0:
            tombstones[slot.key] = left
        else:
            tombstones.pop(slot.key, None)

    # --- fork ----------------------------------------------------------------------------------

    def leave_to_parent(self) -> None:
        """In a forked child: what its parent was about to delete at the fork, it deletes.

        The deletions hold here, too, as long as nothing else is stored under their keys; the next
        commit of this process tells the catalog of them.
        """
        self.waiting.update(dict.fromkeys(self._leaving))
        self._leaving = []
        for slot in self.waiting:
            slot.writing = -1
        tombstones = self._index.tombstones
        tombstones.clear()
        tombstones.update(Counter(slot.key for slot in self.waiting))
        self.inherited = set(self.waiting)
