"""Commits: one step that changes the catalog, and what memory learns of it.

Commits of one chest follow one another under `commit_lock`; take it before `lock`, which is the
chest's, and is never held while a value is read or written.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from arraychest.catalog.record import Facts, Pack, Row
from arraychest.engine.deletions import Deletions
from arraychest.engine.following import Follower
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Slot
from arraychest.sharing.interrupts import Condition, Lock
from arraychest.storage.store import Store
from arraychest.values.keys import encode_key

logger = logging.getLogger("arraychest")


class Counters:
    """What `Chest.stats` and `live` count up."""

    __slots__ = (
        "absent",
        "bytes_faulted",
        "bytes_spilled",
        "deletes",
        "evictions",
        "faults",
        "misses",
        "puts",
        "spills",
    )

    def __init__(self) -> None:
        self.misses = 0
        self.absent = 0
        self.spills = 0
        self.faults = 0
        self.puts = 0
        self.deletes = 0
        self.evictions = 0
        self.bytes_spilled = 0
        self.bytes_faulted = 0


class Committer:
    """Commits what is written to one chest, and keeps up with what others commit.

    Parameters
    ----------
    index, resident
        The chest's.
    open_store
        Gives the store, creating it at the first call.
    counts_bytes
        Whether the bytes of all value files have to be known at a commit.

    Attributes
    ----------
    lock, changed
        The chest's lock, and the condition on it that is notified of every change of state.
    commit_lock
        Held by whoever commits; taken before `lock`.
    before_commit
        Gives what is called before each commit, without a lock, as long as it is there.
    """

    def __init__(
        self,
        index: Index,
        resident: Pool,
        open_store: Callable[[], Store],
        *,
        counts_bytes: bool,
    ) -> None:
        self.index = index
        self.resident = resident
        self.open_store = open_store
        self.counters = Counters()
        self.deletions = Deletions(index, resident)
        self.before_commit: Callable[[], Callable[[], object] | None] = _nobody
        self._counts_bytes = counts_bytes
        self._follower = Follower(index, resident, self.deletions)
        self.make_locks()

    def make_locks(self) -> None:
        """Make new locks: at first, and in a forked child, which has no other thread."""
        self.lock = Lock()
        self.changed = Condition(self.lock)
        self.commit_lock = Lock()

    def leave_to_parent(self) -> None:
        """In a forked child: what is not stored yet is the parent's to store.

        Called under the lock.
        """
        self.index.settle_all()
        # Whatever was being written is written by the parent.
        for slot in self.resident.slots():
            slot.writing = -1
        self.resident.leave_to_parent()
        self.deletions.leave_to_parent()

    def follow(self, store: Store) -> bool:
        """Note what others have committed; whether anything was.  Called under the lock."""
        return self._follower.follow(store)

    def forget(self, store: Store) -> None:
        """Look everything up again: the catalog was repaired.  Called under the lock."""
        store.catalog.database.end_snapshot()
        self._follower.forget()
        store.packs.reread()
        self.index.others_committed()

    @contextlib.contextmanager
    def committing(self) -> Iterator[Store]:
        """Keep everybody else from committing, and know all that they have.

        The lock is not held.

        Raises
        ------
        OSError, ArrayChestError
            The folder cannot be written to; nothing was changed.
        """
        # Not behind it: an interrupt there would look like a commit that failed.
        tell = self.before_commit()
        if tell is not None:
            tell()
        store = self.open_store()
        store.begin()
        with self.commit_lock, store.access.exclusive():
            with self.lock:
                store.distrust_stored()
                self._follower.follow(store, alone=True)
                if self._counts_bytes:
                    store.stored_bytes()
            store.keep_reserve()
            yield store

    def place(
        self,
        store: Store,
        rows: Iterable[tuple[Any, Row]],
        *,
        deleted: Iterable[Any] = (),
        adopted: Sequence[Pack] = (),
        facts: Sequence[Facts] = (),
    ) -> list[str]:
        """Commit values that are written and never were in RAM, as one step.

        Called in `committing`, under the lock: nobody can overwrite or delete a key between the
        commit and what memory learns of it.  Returns the files to remove, without the lock.

        Parameters
        ----------
        rows
            Keys, each once, and their rows; place and exact code are filled in here.
        deleted
            Keys to delete, each once, that are not among these.
        adopted, facts
            See `Store.commit`.

        Raises
        ------
        OSError
            Nothing was committed; the files of `rows` are removed.
        """
        index = self.index
        placed = []
        with index.holding():
            for key, row in rows:
                slot, new = index.slot_for_put(key)
                code = encode_key(slot.key)
                if row.key != code.canonical and row.key == encode_key(key).canonical:
                    # Another process has just stored an equal key with another code.
                    index.rename(slot, key)
                    code = encode_key(key)
                # Another chest's row may have come under a code that says the same in other words.
                row = row._replace(key=code.canonical, exact=code.exact, seq=slot.seq)
                placed.append((slot, new, row))
            leaving = [slot for slot in map(index.find, deleted) if slot is not None]
        # Deleted before they were put: their rows go with this commit.
        overtaken: list[Slot] = []
        keys = {slot.key for slot, _, _ in placed} | {slot.key for slot in leaving}
        if not keys.isdisjoint(index.tombstones):
            overtaken = self.deletions.of_keys(keys)
        try:
            unused = store.commit(
                [row for _, _, row in placed],
                [slot.raw for slot, _, _ in placed if slot.raw is not None],
                [slot.raw for slot in (*leaving, *overtaken) if slot.raw is not None],
                adopted,
                facts,
            )
        finally:
            store.catalog.database.end_snapshot()
        self.deletions.overtaken(overtaken)
        costs = {each.generation: each.cost for each in facts}
        for slot, new, row in placed:
            self.deletions.let_go(slot)
            slot.cost = costs.get(row.generation)
            index.puts += 1
            self.counters.puts += 1
            slot.version = index.puts
            slot.raw = row
            if new:
                index.add(slot)
        for slot in leaving:
            slot.raw = None
            index.delete(slot)
            self.deletions.add(slot)
        self.changed.notify_all()
        return unused


def _nobody() -> None:
    """Where nobody has said."""
