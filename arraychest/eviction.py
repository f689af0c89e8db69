"""Which stored entries go first where a chest may take no more of the disk.

What is removed is a file as a whole: a large value, or a pack of small ones.  The least recently
used one is that with the oldest time of modification: a fault sets it, as a write does.  So every
process knows of it, it outlives them all, and costs no commit.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from arraychest.catalog import Pack
from arraychest.entry import PACK, STORED, RawRow, Row
from arraychest.loader import file_name, pack_name
from arraychest.store import Store

# A look at all files gives so many to remove, at most.
_MOST_CANDIDATES = 65_536

# Rows that are read at a time.
_PAGE = 1024

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
    """Finds the least recently used files of one chest.

    Called by whoever commits, one thread at a time, without the chest's lock.
    """

    def __init__(self) -> None:
        self._queue: deque[Candidate] = deque()
        self._scans = 0

    def begin(self) -> None:
        """Allow two more looks at all files: in the second those spared in the first go."""
        self._scans = 2

    def oldest(self, store: Store, lock: threading.Lock, nbytes: int) -> list[Candidate]:
        """The least recently used files, with at least so many bytes; none if there are none."""
        found: list[Candidate] = []
        while nbytes > 0:
            if not self._queue:
                if not self._scans or found:
                    break
                self._scans -= 1
                everything = heapq.nsmallest(
                    _MOST_CANDIDATES, self._all(store, lock), key=lambda each: each.used
                )
                self._queue.extend(everything)
                if not everything:
                    break
            candidate = self._queue.popleft()
            # Used since, or gone.
            if _used(store, candidate.name) == candidate.used:
                found.append(candidate)
                nbytes -= candidate.nbytes
        return found

    def _all(self, store: Store, lock: threading.Lock) -> Iterator[Candidate]:
        with lock:
            packs = store.catalog.packs()
        for known in packs:
            name = pack_name(known.id)
            used = _used(store, name)
            if used is not None:
                yield Candidate(used, name, known.bytes, None, known)
        at = 0
        while True:
            with lock:
                rows = store.catalog.rows_after(at, _PAGE)
            if not rows:
                return
            for row in map(Row._make, rows):
                at = row.seq
                if row.pack is None:
                    name = file_name(row)
                    used = _used(store, name)
                    if used is not None:
                        yield Candidate(used, name, row.stored, row, None)


def _used(store: Store, name: str) -> int | None:
    """When a file was used last, in nanoseconds; None if it is not there."""
    try:
        return os.stat(store.files.path(name), follow_symlinks=False).st_mtime_ns
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
        os.utime(store.files.path(file_name(Row._make(raw))), follow_symlinks=False)


def freed_by(raw: RawRow | None) -> int:
    """Bytes on disk that are freed at once where an entry goes."""
    return 0 if raw is None or raw[PACK] is not None else raw[STORED]
