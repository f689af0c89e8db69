"""Which stored entries go first where a chest may take no more of the disk.

What is removed is a file as a whole: a large value, or a pack of small ones.  When it was last used
says its time of modification: a fault sets it, as a write does.  So every process knows of it, it
outlives them all, and costs no commit.

What has expired goes first.  Then, by ``"lru"``, what was not used for the longest time; by
``"cost"``, what takes up most bytes for most time, for each second that it would take to compute it
again.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from arraychest.catalog.record import PACK, STORED, Cost, Pack, RawRow, Row
from arraychest.sharing.interrupts import Lock
from arraychest.storage.file_names import file_name, pack_name
from arraychest.storage.quota import EvictBy
from arraychest.storage.store import Store

# A look at all files gives so many to remove, at most.
_MOST_CANDIDATES = 65_536

# Rows that are read at a time.
_PAGE = 1024

# What nobody has timed counts as if it could be had again at this rate, in bytes per second: that
# of a network, or of a simple computation.
_BYTES_PER_SECOND = 100e6

# A pack's time is set at most once in so long, in seconds: its values are faulted in by the
# thousand.
_PACK_SECONDS = 1.0


class Candidate(NamedTuple):
    """A file that may be removed: of one value, whose row it is, or a pack."""

    used: int
    name: str
    nbytes: int
    row: Row | None
    pack: Pack | None


class Evictor:
    """Finds the files of one chest that go first.

    Called by whoever commits, one thread at a time, without the chest's lock.
    """

    def __init__(self, by: EvictBy) -> None:
        self._by = by
        self._queue: deque[Candidate] = deque()
        self._scans = 0

    def begin(self) -> None:
        """Allow two more looks at all files: in the second those spared in the first go."""
        self._scans = 2

    def oldest(self, store: Store, lock: Lock, nbytes: int) -> list[Candidate]:
        """The files that go first, with at least so many bytes; none if there are none."""
        found: list[Candidate] = []
        while nbytes > 0:
            if not self._queue:
                if not self._scans or found:
                    break
                self._scans -= 1
                everything = heapq.nsmallest(_MOST_CANDIDATES, self._ranked(store, lock))
                self._queue.extend(candidate for _, _, candidate in everything)
                if not everything:
                    break
            candidate = self._queue.popleft()
            # Used since, or gone.
            if _used(store, candidate.name) == candidate.used:
                found.append(candidate)
                nbytes -= candidate.nbytes
        return found

    def _ranked(self, store: Store, lock: Lock) -> list[tuple[float, str, Candidate]]:
        """All files, each with a number that is the lower the sooner it goes, and its name."""
        with lock:
            packs = {known.id: known for known in store.catalog.packs()}
            costs = store.catalog.facts.costs()
        now = time.time()
        # What is known of the values of each pack: how long they took, and whether one is good yet.
        seconds: dict[int, float] = {}
        good: set[int] = set()
        found: list[tuple[Candidate, Cost | None]] = []
        for row in self._rows(store, lock):
            cost = costs.get(row.generation)
            if row.pack is not None:
                taken = (
                    row.stored / _BYTES_PER_SECOND
                    if cost is None or cost.seconds is None
                    else cost.seconds
                )
                seconds[row.pack] = seconds.get(row.pack, 0.0) + taken
                if cost is None or not cost.has_expired(now):
                    good.add(row.pack)
                continue
            name = file_name(row)
            used = _used(store, name)
            if used is not None:
                found.append((Candidate(used, name, row.stored, row, None), cost))
        for known in packs.values():
            name = pack_name(known.id)
            used = _used(store, name)
            if used is not None:
                expires = None if known.id in good or known.id not in seconds else 0.0
                cost = Cost(seconds.get(known.id, 0.0), expires)
                found.append((Candidate(used, name, known.bytes, None, known), cost))
        return [(self._rank(each, cost, now), each.name, each) for each, cost in found]

    def _rank(self, candidate: Candidate, cost: Cost | None, now: float) -> float:
        if cost is not None and cost.has_expired(now):
            return -math.inf
        if self._by == "lru":
            return candidate.used
        seconds = None if cost is None else cost.seconds
        if seconds is None:
            seconds = candidate.nbytes / _BYTES_PER_SECOND
        age = max(now - candidate.used / 1e9, 0.0) + 1.0
        return -age * candidate.nbytes / max(seconds, 1e-6)

    def _rows(self, store: Store, lock: Lock) -> Iterator[Row]:
        at = 0
        while True:
            with lock:
                rows = store.catalog.rows_after(at, _PAGE)
            if not rows:
                return
            for row in map(Row._make, rows):
                at = row.seq
                yield row


def _used(store: Store, name: str) -> int | None:
    """When a file was used last, in nanoseconds; None if it is not there."""
    try:
        return store.files.stat(name).st_mtime_ns
    except OSError:
        return None


class Uses:
    """Notes when files were used.  Called under the chest's lock."""

    def __init__(self) -> None:
        self._packs: dict[int, float] = {}

    def note(self, store: Store, raw: RawRow) -> None:
        """A stored value was faulted in.  Some 2 us; says nothing where it may not."""
        identity = raw[PACK]
        if identity is not None:
            now = time.monotonic()
            if now - self._packs.get(identity, -_PACK_SECONDS) < _PACK_SECONDS:
                return
            self._packs[identity] = now
        touch(store, raw)


def touch(store: Store, raw: RawRow) -> None:
    """Note that the file of a stored value is used now; nothing happens where it may not."""
    with contextlib.suppress(OSError):
        store.files.touch(file_name(Row._make(raw)))


def freed_by(raw: RawRow | None) -> int:
    """Bytes on disk that are freed at once where an entry goes."""
    return 0 if raw is None or raw[PACK] is not None else raw[STORED]
