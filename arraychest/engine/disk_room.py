"""How much a chest may take of the disk: room is made before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from arraychest.catalog.record import GENERATION, Row
from arraychest.engine.commit import Committer
from arraychest.memory.slot import Slot
from arraychest.storage.eviction import Candidate, Evictor, freed_by, touch
from arraychest.storage.quota import FILE_OVERHEAD, Quota
from arraychest.storage.store import Store
from arraychest.values.keys import decode_key


class DiskRoom:
    """Makes room on disk for what one chest is about to store.

    Parameters
    ----------
    committer
        The chest's.
    quota
        How much may be stored; None: any amount.

    Attributes
    ----------
    is_limited
        Whether there is a quota.
    evicts
        Whether what was not used for long is removed to make room.
    """

    def __init__(self, committer: Committer, quota: Quota | None) -> None:
        self._committer = committer
        self._quota = quota
        self.is_limited = quota is not None
        self.evicts = quota is not None and quota.evicts
        self._evictor = Evictor("lru" if quota is None else quota.evict_by)
        # Bytes that writers were granted and have not committed yet.
        self._reserved = 0

    def reserve_for(self, key: Any, nbytes: int) -> None:
        """Make room for a value with a file of its own; see `reserve`."""
        if self._quota is None:
            return
        with self._committer.lock:
            slot = self._committer.index.find(key)
            freed = 0 if slot is None else freed_by(slot.raw)
        self.reserve(nbytes + FILE_OVERHEAD, freed)

    def reserve(self, nbytes: int, freed: int = 0, *, keep: bool = False) -> None:
        """Make room for so many bytes before they are written.  No lock is held.

        Parameters
        ----------
        freed
            Bytes of what they replace.
        keep
            Whether the room counts as taken until the caller has committed.

        Raises
        ------
        QuotaError
            There is no room for them, and nothing, or not enough, that may be removed.
        """
        if self._quota is not None:
            with self._committer.committing() as store:
                # What evicts makes room once more when it commits.
                others = 0 if self._quota.evicts else self._reserved
                self.evict(store, nbytes - freed + others)
                if keep:
                    with self._committer.lock:
                        self._reserved += nbytes

    @contextlib.contextmanager
    def reserved(self, nbytes: int, freed: int) -> Iterator[None]:
        """As `reserve`; the room counts as taken until the block has ended, with the commit."""
        self.reserve(nbytes, freed, keep=True)
        try:
            yield
        finally:
            with self._committer.lock:
                self._reserved -= nbytes

    def evict(self, store: Store, nbytes: int) -> None:
        """Remove the least recently used entries until so many bytes more fit.

        Called in `committing`, without the lock.

        Raises
        ------
        QuotaError
            As `reserve`.
        """
        quota = self._quota
        if quota is None:
            return
        with self._committer.lock:
            used = store.stored_bytes()
        # What was deleted goes with the next commit.
        limit = quota.nbytes + self._committer.deletions.nbytes
        if used + nbytes <= limit or nbytes <= 0:
            return
        if quota.evicts and nbytes <= quota.nbytes:
            self._evictor.begin()
            # A little more than is needed, so that not every commit brings another one.
            wanted = limit - nbytes - quota.nbytes // 128
            while used + nbytes > limit:
                candidates = self._evictor.oldest(
                    store, self._committer.lock, used - max(wanted, 0)
                )
                if not candidates:
                    break
                for group in _grouped_by_kind(candidates):
                    self._evict(store, group)
                with self._committer.lock:
                    used = store.stored_bytes()
            store.catalog.database.raise_interrupt()
        if used + nbytes > limit:
            raise quota.refusal(nbytes, used)

    def _evict(self, store: Store, candidates: Sequence[Candidate]) -> None:
        """Remove these from the chest, apart from what is in use: many values, or one pack."""
        known = candidates[0].pack
        if known is not None and (
            # Now, or at this moment by another process.
            store.packs.is_appended_to(known.id) or not store.packs.begin_compaction(known.id)
        ):
            return
        try:
            with self._committer.lock:
                rows = [each.row for each in candidates if each.row is not None]
                if known is not None:
                    rows = store.catalog.rows_in(known.id)
                slots = [slot for slot in map(self._evictable, rows) if slot is not None]
                used = [slot for slot in slots if slot.hits != slot.seen]
                if known is not None and used:
                    slots = []
                for slot in used:
                    # Gets that went to no disk, since it was last looked at: a second chance.
                    slot.seen = slot.hits
                    if slot.raw is not None:
                        touch(store, slot.raw)
                keys = [slot.key for slot in slots if slot not in used]
                if not keys:
                    return
                unused = self._committer.place(store, (), deleted=keys)
                self._committer.counters.evictions += len(keys)
            store.files.remove(unused, keep_spares=False)
        finally:
            if known is not None:
                store.packs.end_compaction(known.id)

    def _evictable(self, row: Row) -> Slot | None:
        """The slot of a row, unless something newer than the row is on its way."""
        slot = None
        # One that cannot be read is for `repair`.
        with contextlib.suppress(ValueError):
            slot = self._committer.index.find(decode_key(row.key, row.exact))
        if slot is None or slot.array is not None or slot.writing >= 0:
            return None
        raw = slot.raw
        return slot if raw is not None and raw[GENERATION] == row.generation else None

    def leave_to_parent(self) -> None:
        """In a forked child: whatever was granted was granted to the parent."""
        self._reserved = 0


def _grouped_by_kind(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """The values' files as one, and each pack by itself."""
    files = [each for each in candidates if each.pack is None]
    if files:
        yield files
    for each in candidates:
        if each.pack is not None:
            yield [each]
