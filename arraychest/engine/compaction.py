"""Compaction: what lives in a pack with holes moves to the open one, and the pack goes."""

from __future__ import annotations

from collections.abc import Iterable

from arraychest.catalog.record import GENERATION, PACK, RawRow
from arraychest.engine.commit import Committer
from arraychest.storage.file_names import pack_name
from arraychest.storage.store import Store

# A pack is compacted by itself once this share of it is dead.
COMPACTION_SHARE = 0.5


class Compactor:
    """Compacts the packs of one chest.

    Parameters
    ----------
    committer
        The chest's.

    Attributes
    ----------
    sparse
        Packs that should be compacted.  Changed under the chest's lock.
    """

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self.sparse: set[int] = set()

    def note_sparse(self, store: Store, *freed: Iterable[RawRow]) -> None:
        """A commit has freed these rows: note which packs have become sparse."""
        touched = {row[PACK] for rows in freed for row in rows if row[PACK] is not None}
        if touched:
            self.sparse |= touched.intersection(store.packs.sparse(COMPACTION_SHARE))

    def compact_pack(self, identity: int) -> None:
        """Move what lives in a pack to the open one and remove it.

        Raises
        ------
        OSError, CorruptEntryError
            What was not moved stays where it is.
        """
        with self._committer.committing() as store:
            known = False
            try:
                with self._committer.lock:
                    known = store.packs.begin_compaction(identity)
                    steps = list(store.move_steps(identity)) if known else []
                if known and not steps:
                    store.drop_pack(identity)
                for rows in steps:
                    moved = {row.generation: row for row in store.move(rows)}
                    with self._committer.lock:
                        store.catalog.database.end_snapshot()
                        self._committer.index.moved(rows, moved)
                        for slot in self._committer.deletions.waiting:
                            if slot.raw is not None:
                                slot.raw = moved.get(slot.raw[GENERATION], slot.raw)
                    if store.packs.has(identity):
                        store.catalog.database.raise_interrupt()
            except BaseException:
                # Interrupted, some may have moved in the catalog that are not noted here.
                with self._committer.lock:
                    self._committer.forget(store)
                raise
            finally:
                if known:
                    store.packs.end_compaction(identity)
                if known and not store.packs.has(identity):
                    store.files.remove([pack_name(identity)])
            store.catalog.database.raise_interrupt()
