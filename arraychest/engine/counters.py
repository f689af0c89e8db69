"""The account that a chest publishes of itself, put together in a bounded time.

What is counted as it happens is read off.  What would have to be looked for in all slots, or in the
whole catalog, is looked for in a part of them each time, and so is complete after some rounds.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import operator
from typing import Any

from arraychest.catalog.record import PACK, SEQ, STORED
from arraychest.engine.commit import Committer
from arraychest.errors import ArrayChestError
from arraychest.memory.budget import Budget
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Slot
from arraychest.monitor.published import MOST_TEXT, Counts
from arraychest.storage.store import Store
from arraychest.text import key_text

# Slots looked at each time: some 2 ms, a half of it under the chest's lock.
_SLOTS = 16_384

# Rows of the catalog read each time, under the lock: some 3 ms.
_ROWS = 2048

_BUSIEST = 8

_HITS = operator.attrgetter("hits")


class Account:
    """What one chest has done, and what it holds.  One thread at a time.

    Parameters
    ----------
    index, resident, committer
        The chest's.
    """

    def __init__(self, index: Index, resident: Pool, committer: Committer) -> None:
        self._index = index
        self._resident = resident
        self._committer = committer
        # Hits of each group of `_SLOTS` slots, and which one's turn it is.
        self._hits: list[int] = []
        self._turn = 0
        self._most_hits = 0
        self._busiest: list[Slot] = []
        # How far the catalog is read: the last row's place, rows, and bytes of files of their own.
        self._at = self._rows = self._nbytes = 0
        # The commit counter when that began, and when the last full count did.
        self._began_at = self._counted_at = -1
        self._counted: tuple[int, int] | None = None

    def take(self, store: Store | None, budget: Budget) -> dict[str, Any]:
        """What `published.Published` has of these names.  The lock is not held."""
        index, resident, counters = self._index, self._resident, self._committer.counters
        with self._committer.lock:
            slots = self._next_slots()
            known = [index.slots.get(slot.key) for slot in self._busiest]
            gone_hits = index.hits
            charged, values = resident.charged, resident.count
            stored = None if store is None else self._stored(store)
        self._hits[self._turn :] = [sum(map(_HITS, slots)), *self._hits[self._turn + 1 :]]
        # A group may lose slots to another between two looks.
        self._most_hits = max(self._most_hits, gone_hits + sum(self._hits))
        candidates = dict.fromkeys([slot for slot in known if slot is not None] + slots)
        busiest = heapq.nlargest(_BUSIEST, candidates, key=_HITS)
        self._busiest = [slot for slot in busiest if slot.hits]
        return {
            "budget": budget.bytes,
            "charged": charged,
            "resident": values,
            "stored_bytes": None if stored is None else stored[1],
            "stored": None if stored is None else stored[0],
            "counts": Counts(
                hits=self._most_hits,
                misses=counters.misses,
                absent=counters.absent,
                puts=counters.puts,
                deletes=counters.deletes,
                spills=counters.spills,
                faults=counters.faults,
                evictions=counters.evictions,
                bytes_spilled=counters.bytes_spilled,
                bytes_faulted=counters.bytes_faulted,
            ),
            "busiest": [[key_text(slot.key)[:MOST_TEXT], slot.hits] for slot in self._busiest],
        }

    def _next_slots(self) -> list[Slot]:
        slots = self._index.slots
        groups = max(1, -(-len(slots) // _SLOTS))
        del self._hits[groups:]
        self._turn = (self._turn + 1) % groups
        self._hits += [0] * (groups - len(self._hits))
        first = self._turn * _SLOTS
        return list(itertools.islice(slots.values(), first, first + _SLOTS))

    def _stored(self, store: Store) -> tuple[int, int] | None:
        """Stored values and bytes of their files, as of the last time that all were counted."""
        word = store.counter.words[0]
        if self._counted_at == word:
            return self._counted
        if not self._at:
            self._began_at, self._rows, self._nbytes = word, 0, 0
        # What cannot be read is told to whoever asks for it.
        with contextlib.suppress(ArrayChestError, OSError):
            rows = store.catalog.rows_after(self._at, _ROWS)
            self._rows += len(rows)
            self._nbytes += sum([row[STORED] for row in rows if row[PACK] is None])
            if len(rows) == _ROWS:
                self._at = rows[-1][SEQ]
            else:
                self._at = 0
                packs = sum([pack.bytes for pack in store.catalog.packs()])
                self._counted = self._rows, self._nbytes + packs
                self._counted_at = self._began_at
        return self._counted
