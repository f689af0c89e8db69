"""Values that are good until a time: once it has come, their keys are absent.

The engine asks at each look-up that takes its lock, which costs one comparison in a chest whose
values do not expire.  A value that expires is never handed out without that look-up.  What has
expired is deleted; in a chest that may not be written to it is hidden.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

from arraychest.memory.memtable import Index
from arraychest.memory.slot import Slot
from arraychest.storage.store import Store
from arraychest.values.keys import decode_key


class Expiry:
    """When values of one chest expire.  Called under the chest's lock.

    Attributes
    ----------
    due
        When something may have expired, in seconds since 1970; infinite: never.
    is_used
        Whether a value of this chest expires, as far as is known.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.due = math.inf
        self.is_used = False
        # Of what is in RAM; the numbers keep keys from being compared.
        self._in_ram: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()

    def note(self, key: Any, expires: float) -> None:
        """A value that was put, or touched, is good until then."""
        heapq.heappush(self._in_ram, (expires, next(self._numbers), key))
        self.due = min(self.due, expires)
        self.is_used = True

    def look(self, store: Store, now: float) -> None:
        """Others have committed, or the chest was opened: look when something expires."""
        if self._index.hidden:
            # Some may have been put anew.
            self._index.hidden.clear()
            self.due = now
        if store.catalog.facts.next_expiry(0.0) is not None:
            self.is_used = True
            self.due = min(self.due, store.catalog.facts.next_expiry(now) or math.inf)
            if store.catalog.facts.expired(now):
                self.due = now

    def expires(self, store: Store, generation: int) -> bool:
        """Whether a stored value is good for a time only."""
        if not self.is_used:
            return False
        cost = store.catalog.facts.of(generation).cost
        return cost is not None and cost.expires is not None

    def remove(
        self, store: Store | None, now: float, delete: Callable[[Slot], None] | None
    ) -> None:
        """Remove what has expired: by `delete`, or None: hide it."""
        index = self._index
        found: dict[Any, None] = {}
        while self._in_ram and self._in_ram[0][0] <= now:
            _, _, key = heapq.heappop(self._in_ram)
            slot = index.find(key)
            cost = None if slot is None or slot.array is None else slot.cost
            if cost is not None and cost.has_expired(now):
                found[key] = None
        if store is not None:
            for code, exact in store.catalog.facts.expired(now):
                key = decode_key(code, exact)
                slot = index.find(key)
                # In RAM there may be a newer value.
                if slot is not None and slot.array is None:
                    found[key] = None
        for key in found:
            slot = index.find(key)
            if delete is None:
                index.hidden.add(key)
            elif slot is not None:
                delete(slot)
        self.due = self._in_ram[0][0] if self._in_ram else math.inf
        if store is not None:
            self.due = min(self.due, store.catalog.facts.next_expiry(now) or math.inf)


def time_after(seconds: float | dt.timedelta | None) -> float | None:
    """The time so long from now, in seconds since 1970."""
    if isinstance(seconds, dt.timedelta):
        seconds = seconds.total_seconds()
    if seconds is None:
        return None
    if not 0 < seconds < math.inf:
        raise ValueError(f"expected expires_after to be positive, found {seconds}")
    return time.time() + seconds
