"""Storing what a writer was given: bytes, then the commit, then what memory knows is brought up.

While a value is being written its key may be overwritten or deleted: then what was written is
thrown away.  A deletion takes effect in memory at once and in the catalog with the next commit;
until then a *tombstone* says that the key's row does not count.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from arraychest.arrays import digests, provenance
from arraychest.arrays.ownership import is_held
from arraychest.arrays.provenance import Source
from arraychest.catalog.record import (
    GENERATION,
    KEY,
    PACK,
    SEQ,
    STORED,
    Cost,
    Facts,
    Pack,
    RawRow,
    Row,
)
from arraychest.engine.following import Follower
from arraychest.errors import ArrayChestError, QuotaError, SpillError
from arraychest.files.room import FULL
from arraychest.formats import npy, tree
from arraychest.formats.b2nd import WORKING_BYTES
from arraychest.formats.compression import Compression, How
from arraychest.formats.form import Form, Kind, form_text
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Batch, Slot
from arraychest.sharing.interrupts import Condition, Lock
from arraychest.storage.eviction import Candidate, Evictor, freed_by, touch
from arraychest.storage.quota import FILE_OVERHEAD, SMALL_OVERHEAD, Quota
from arraychest.storage.reading import pack_name, value_name
from arraychest.storage.store import Store
from arraychest.values.file_stems import fitting_stem
from arraychest.values.keys import PLAIN_TYPES, decode_key, encode_key, lookup_of

logger = logging.getLogger("arraychest")

# Deleted entries that wait for a commit at most.  A commit rewrites each page of the catalog that
# one of them lies on, so that many together cost a fifth of what few do: 6.1 us each when 4,096
# out of 100,000 are deleted at a time, 2.5 when 16,384 are, 1.2 when 65,536.
_DOOMED_ENTRIES = 32_768

# Bytes of files that wait for a commit to be removed.
_DOOMED_BYTES = 4 << 20

# A commit of deletions for which there is no room is tried with so many times fewer.
_FEWER = 16

# A pack is compacted by itself once this share of it is dead.
COMPACTION_SHARE = 0.5

_VERSION = operator.attrgetter("version")


class Job(NamedTuple):
    """Values to store together: slots, each with the version that was picked, or a batch.

    With `compact` it is a pack to compact; a job without anything commits the deletions that wait.
    """

    slots: list[Slot]
    versions: Sequence[int]
    arrays: list[Any]
    nbytes: int = 0
    small: bool = False
    batch: Batch | None = None
    compact: int | None = None
    # Of `arrays`: their slots may have values of other kinds by the time that these are written.
    kinds: Sequence[Kind] = ()

    @property
    def only_deletes(self) -> bool:
        """Whether there is nothing to store."""
        return not self.arrays and self.compact is None


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
    """Stores values of one chest and notes on their slots what became of them.

    Parameters
    ----------
    index, resident
        The chest's.
    open_store
        Gives the store, creating it at the first call.
    on_overflow
        Called with each key whose value was spilled, in the thread that stored it.
    quota
        How much may be stored; None: any amount.
    compression
        What is compressed.
    key_to_filename
        What the file of a key's value is called; None: as the key.

    Attributes
    ----------
    lock, changed
        The chest's lock, and the condition on it that is notified of every change of state.
    commit_lock
        Held by whoever commits; taken before `lock`.
    compacting
        Packs that have become sparse.
    source
        Gives what digests of stored arrays are asked for at, as long as it is there.
    before_commit
        Gives what is called before each commit, without a lock, as long as it is there.
    """

    def __init__(
        self,
        index: Index,
        resident: Pool,
        open_store: Callable[[], Store],
        on_overflow: Callable[[Any], object] | None,
        quota: Quota | None,
        compression: Compression,
        key_to_filename: Callable[[Any], str] | None = None,
    ) -> None:
        self.index = index
        self.resident = resident
        self.open_store = open_store
        self.counters = Counters()
        self.source: Callable[[], Source | None] = _nobody
        self.before_commit: Callable[[], Callable[[], object] | None] = _nobody
        self.compacting: set[int] = set()
        self._on_overflow = on_overflow
        self._quota = quota
        self.compression = compression
        self._key_to_filename = key_to_filename
        self._evictor = Evictor("lru" if quota is None else quota.evict_by)
        # Bytes that writers were granted and have not committed yet.
        self._reserved = 0
        self._doomed: dict[Slot, None] = {}
        self._doomed_bytes = 0
        # Those that a commit under way deletes: they wait as the others do, until it is over.
        self._leaving: list[Slot] = []
        self._follower = Follower(index, resident, self._doomed, self.doom, self._bury)
        # Once something was committed.
        self._store: Store | None = None
        self.make_locks()

    def make_locks(self) -> None:
        """Make new locks: at first, and in a forked child, which has no other thread."""
        self.lock = Lock()
        self.changed = Condition(self.lock)
        self.commit_lock = Lock()

    # --- beside other processes ----------------------------------------------------------------

    def leave_to_parent(self) -> None:
        """In a forked child: what is not stored yet is the parent's to store.

        Called under the lock.  Deletions that were not committed hold here, too, as long as nothing
        else is stored under their keys; the next commit of this process tells the catalog of them.
        """
        index = self.index
        index.settle_all()
        # Whatever was being written is written by the parent.
        # What its parent was about to delete at the fork, it deletes.
        self._doomed.update(dict.fromkeys(self._leaving))
        self._leaving = []
        for slot in (*self.resident.slots(), *self._doomed):
            slot.writing = -1
        self.resident.leave_to_parent()
        index.tombstones.clear()
        index.tombstones.update(Counter(slot.key for slot in self._doomed))
        self._follower.inherited = set(self._doomed)
        self.compacting.clear()
        self._reserved = 0

    def follow(self, store: Store) -> bool:
        """Note what others have committed; whether anything was.  Called under the lock."""
        return self._follower.follow(store)

    def forget(self, store: Store) -> None:
        """Look everything up again: the catalog was repaired.  Called under the lock."""
        store.catalog.database.end_snapshot()
        self._follower.forget()
        store.reread_packs()
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
        self._store = store = self.open_store()
        store.begin()
        with self.commit_lock, store.exclusive():
            with self.lock:
                store.distrust_stored()
                self._follower.follow(store, alone=True)
                if self._quota is not None:
                    store.stored_bytes()
            store.keep_reserve()
            yield store

    # --- overwritten and deleted: called under the lock ---------------------------------------

    def let_go(self, slot: Slot) -> None:
        """Take a slot out of RAM whose value was deleted or overwritten.

        A write of it that is under way is thrown away by whoever commits it.
        """
        if slot.array is not None:
            self.resident.remove(slot)
        self.resident.drop_copy(slot)
        slot.value = slot.view = None

    def doom(self, slot: Slot) -> None:
        """Forget a slot that has left the index: its entry and its file go with a later commit."""
        self.let_go(slot)
        slot.version = -1
        raw = slot.raw
        if raw is not None:
            self._note_doomed(slot, raw)
        elif slot.writing < 0:
            return
        tombstones, key = self.index.tombstones, slot.key
        tombstones[key] = tombstones[key] + 1 if key in tombstones else 1

    def _note_doomed(self, slot: Slot, raw: RawRow) -> None:
        self._doomed[slot] = None
        if raw[PACK] is None:
            self._doomed_bytes += raw[STORED]

    @property
    def doomed(self) -> list[Slot]:
        """Deleted slots whose rows are still in the catalog."""
        return [*self._doomed, *self._leaving]

    @property
    def deletions_wait(self) -> bool:
        """Whether there are any such slots."""
        return bool(self._doomed)

    @property
    def deletions_due(self) -> bool:
        """Whether there are so many that they should be committed."""
        return len(self._doomed) >= _DOOMED_ENTRIES or self._doomed_bytes >= _DOOMED_BYTES

    def doomed_rows(self) -> int:
        """Rows of the catalog that do not count: deleted, not yet committed so, and not replaced
        by a later value of the same key.
        """
        return sum(not self.index.has_row(slot.key) for slot in self._doomed)

    def _bury(self, slot: Slot) -> None:
        tombstones = self.index.tombstones
        left = tombstones.get(slot.key, 0) - 1
        if left > 0:
            tombstones[slot.key] = left
        else:
            tombstones.pop(slot.key, None)

    def written(self, slot: Slot) -> None:
        """The write of a slot is over, whatever came of it."""
        if slot.writing < 0:
            return
        slot.writing = -1
        if slot.version < 0:  # deleted meanwhile
            if slot.raw is None:
                self._bury(slot)
            elif slot not in self._doomed:
                self._note_doomed(slot, slot.raw)

    # --- storing: called by a writer, without the lock ----------------------------------------

    def store(self, job: Job) -> None:
        """Store the values of a job and commit them, with all deletions that wait.

        Raises
        ------
        OSError, ArrayChestError
            Nothing was committed, and memory is as it was.
        """
        if job.only_deletes:
            self._commit_deletions()
            return
        if self._quota is None or not job.arrays:
            self._write_and_commit(job)
            return
        overhead = SMALL_OVERHEAD if job.small else FILE_OVERHEAD
        nbytes = sum([array.nbytes for array in job.arrays]) + overhead * len(job.arrays)
        with self.lock:
            freed = sum(freed_by(slot.raw) for slot in job.slots)
            if job.batch is not None:
                freed += sum(map(freed_by, job.batch.replaced.values()))
        self.reserve_disk(nbytes, freed, keep=True)
        try:
            self._write_and_commit(job)
        finally:
            with self.lock:
                self._reserved -= nbytes

    def _commit_deletions(self) -> None:
        """Commit the deletions that wait: together or, on a full disk, as many as it takes.

        What a commit takes grows with how many there are; the first of them may make room.
        """
        most = None
        while True:
            with self.lock:
                waiting = len(self._doomed)
            if not waiting and most is not None:
                return
            count = waiting if most is None else min(most, waiting)
            try:
                self._commit(Job([], [], []), [], most)
            except OSError as error:
                if error.errno not in FULL or count <= 1:
                    raise
                most = max(1, count // _FEWER)
            else:
                if most is None:
                    return
                most *= _FEWER

    def _take_doomed(self, most: int | None) -> list[Slot]:
        """Deleted slots to commit now; of many those with the largest files."""
        slots = list(self._doomed)
        if most is not None and most < len(slots):
            slots = heapq.nlargest(most, slots, key=lambda slot: freed_by(slot.raw))
        for slot in slots:
            del self._doomed[slot]
            if slot.raw is not None and slot.raw[PACK] is None:
                self._doomed_bytes -= slot.raw[STORED]
        if not self._doomed:
            self._doomed_bytes = 0
        return slots

    def _write_and_commit(self, job: Job) -> None:
        store = self.open_store()
        rows: list[RawRow]
        if job.batch is not None:
            rows = store.append(*_batch_values(job.batch))
        elif job.small:
            rows = store.append(*_small_values(job))
        else:
            rows = self._write_all(store, job)
        try:
            spilled = self._commit(job, rows)
        finally:
            if job.small:
                store.append_settled(rows)
        self.tell_overflow(spilled)

    def _write_all(self, store: Store, job: Job) -> list[RawRow]:
        """Write each value of a job to a file of its own; where one fails none is left."""
        rows: list[RawRow] = []
        written = (
            self._write(slot.key, slot.seq, array, kind, slot.compression)
            # Not in a loop of this function: its variable would keep the last array, which would
            # then look held by a user.
            for slot, array, kind in zip(job.slots, job.arrays, job.kinds, strict=True)
        )
        try:
            # As far as it comes: `extend` keeps what it has when an iterator fails.
            rows.extend(written)
        except BaseException:
            store.files.remove([value_name(Row._make(row)) for row in rows], keep_spares=False)
            raise
        return rows

    def _write(
        self, key: Any, seq: int, array: np.ndarray | Tree, kind: Kind, asked: How | None
    ) -> Row:
        """Write a value to a file of its own, compressed where that is worth it."""
        store = self.open_store()
        named = self.named(key)
        form, text = _form_of(array, kind)
        text += named
        code = encode_key(self.stored_key(key))
        if isinstance(array, Tree):
            choices = [
                # A frame for a few bytes would be larger than they are.
                self.compression.choice(part, "array", asked)
                if part.nbytes >= PACK_THRESHOLD
                else None
                for part in array.parts
            ]
            if not any(choices):
                return store.write(code, seq, list(array.buffers()), form, text)
            with self._threads_to_compress() as nthreads:
                return store.compress_tree(code, seq, array, choices, nthreads, named)
        choice = self.compression.choice(array, kind, asked)
        if choice is None:
            return store.write(code, seq, npy.payload(array, form), form, text)
        with self._threads_to_compress() as nthreads:
            return store.compress(code, seq, array, form, text, choice, nthreads)

    def stored_key(self, key: Any) -> Any:
        """The key under which the value of `key` is stored, or will be.

        It is the one that was put first where two keys are equal and have different codes.
        """
        if type(key) in PLAIN_TYPES:
            return key
        lookup = lookup_of(key)
        if lookup is None or lookup.group is None:
            return key
        with self.lock:
            slot = self.index.find(key)
            return key if slot is None else slot.key

    def named(self, key: Any) -> str:
        """What follows in the text of a form where the user has a name for the file.

        Raises
        ------
        TypeError
            It is no str; so it is with whatever the user's function raises.
        """
        if self._key_to_filename is None:
            return ""
        name = self._key_to_filename(key)
        if not isinstance(name, str):
            raise TypeError(
                f"expected key_to_filename to return a str, found {type(name).__name__} "
                f"for key {key!r:.100}"
            )
        return "\n" + fitting_stem(name)

    @contextlib.contextmanager
    def _threads_to_compress(self) -> Iterator[int]:
        """How many there may be; what they work in is charged meanwhile."""
        with self.lock:
            nthreads = self.compression.nthreads
            if self.resident.has_large_ones(2):
                # Another writer takes the next one at the same time: each a half of the threads
                # compress by a tenth more than all of them for each.
                nthreads = max(1, nthreads // 2)
            self.resident.working += nthreads * WORKING_BYTES
        try:
            yield nthreads
        finally:
            with self.lock:
                self.resident.working -= nthreads * WORKING_BYTES
                self.changed.notify_all()

    def tell_overflow(self, spilled: Iterable[Any]) -> None:
        """Call `on_overflow` with each of these keys, whose values were spilled."""
        if self._on_overflow is not None:
            for key in spilled:
                try:
                    self._on_overflow(key)
                except Exception:
                    logger.exception("on_overflow failed for key %r", key)

    def _commit(self, job: Job, rows: list[RawRow], most: int | None = None) -> list[Any]:
        """Commit rows whose bytes are written; returns the keys that were stored.

        With them go the deletions that wait, `most` of them at most.
        """
        with self.committing() as store:
            unused: list[str] = []
            if self._quota is not None and self._quota.evicts and rows:
                # Others may have taken the room that was made before these were written.
                try:
                    overhead = 0 if rows[0][PACK] is None else SMALL_OVERHEAD * len(rows)
                    self.evict(store, overhead + sum(row[STORED] for row in rows))
                except QuotaError:
                    names = [value_name(Row._make(row)) for row in rows if row[PACK] is None]
                    store.files.remove(names, keep_spares=False)
                    raise
            with self.lock:
                slots, versions, arrays = job.slots, job.versions, job.arrays
                batch = job.batch
                if batch is not None and batch.slots is not None:
                    slots, versions, batch = batch.slots, batch.numbers, None
                if any(map(operator.ne, versions, map(_VERSION, slots))):
                    # Overwritten or deleted since it was picked: what was written is thrown away.
                    fresh = [s.version == v for s, v in zip(slots, versions, strict=True)]
                    unused = [
                        value_name(Row._make(row))
                        for row, keep in zip(rows, fresh, strict=True)
                        if not keep and row[PACK] is None
                    ]
                    slots = list(itertools.compress(slots, fresh))
                    versions = list(itertools.compress(versions, fresh))
                    arrays = list(itertools.compress(arrays, fresh))
                    rows = list(itertools.compress(rows, fresh))
                if any(slot.seq != row[SEQ] for slot, row in zip(slots, rows, strict=False)):
                    # Another process has given the key a place meanwhile.
                    rows = [
                        Row._make(row)._replace(seq=slot.seq)
                        for slot, row in zip(slots, rows, strict=True)
                    ]
                before = self._doomed_bytes
                deletions = self._leaving = self._take_doomed(most)
                doomed_bytes = before - self._doomed_bytes
                # A batch has no slots: only what was put with a cost has something to say.
                facts = [
                    known
                    for slot, array, row in zip(slots, arrays, rows, strict=False)
                    if (slot.cost is not None or not job.small)
                    and (known := facts_of(row[GENERATION], array, slot.cost)) is not None
                ]
                replaced = [slot.raw for slot in slots if slot.raw is not None]
                if batch is not None:
                    replaced += batch.replaced.values()
                deleted = [slot.raw for slot in deletions if slot.raw is not None]
            try:
                unused += store.commit(rows, replaced, deleted, facts=facts)
            except BaseException:
                with self.lock:
                    store.catalog.database.end_snapshot()
                    self._doomed.update(dict.fromkeys(deletions))
                    self._doomed_bytes += doomed_bytes
                    self._leaving = []
                store.files.remove(unused)
                raise
            with self.lock:
                store.catalog.database.end_snapshot()
                self._leaving = []
                for slot in deletions:
                    slot.raw = None
                    if slot.writing < 0:  # otherwise whoever writes it does
                        self._bury(slot)
                self._publish(batch, slots, versions, arrays, rows)
                self._note_sparse_packs(store, replaced, deleted)
                self.changed.notify_all()
            # Last: who had looked up an old row before finds it changed when its file is gone.
            store.files.remove(unused)
            store.catalog.database.raise_interrupt()
        return [slot.key for slot in slots] if job.batch is None else job.batch.keys

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
            overtaken = [slot for slot in self._doomed if slot.key in keys]
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
        for slot in overtaken:
            del self._doomed[slot]
            slot.raw = None
            if slot.writing < 0:
                self._bury(slot)
        costs = {each.generation: each.cost for each in facts}
        for slot, new, row in placed:
            self.let_go(slot)
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
            self.doom(slot)
        self.changed.notify_all()
        return unused

    def _publish(
        self,
        batch: Batch | None,
        slots: Sequence[Slot],
        versions: Sequence[int],
        arrays: list[Any],
        rows: list[RawRow],
    ) -> None:
        """Values were committed: drop them from RAM, but know them while users still hold them."""
        self.counters.spills += len(rows)
        if batch is not None and batch.slots is None:
            self.counters.bytes_spilled += batch.nbytes
            self.index.publish(batch, rows)
            return
        self.counters.bytes_spilled += sum([array.nbytes for array in arrays])
        if batch is not None and batch.slots is not None:
            # Somebody asked for one of them during the commit.
            slots, versions = batch.slots, batch.numbers
        remove = self.resident.remove
        current = []
        for slot, version, row in zip(slots, versions, rows, strict=True):
            slot.raw = row
            current.append(slot.version == version)
            if current[-1]:
                remove(slot)
                slot.value = None
                slot.writing = -1
            else:
                self.written(slot)
        # A weak reference for each, held or not, would be as dear as all the rest.
        held = map(operator.and_, current, is_held(arrays))
        for at in itertools.compress(range(len(rows)), held):
            if slots[at].kind in ("array", "pickle"):
                slots[at].view = weakref.ref(arrays[at])
                if rows[at][PACK] is None:
                    code, generation = rows[at][KEY], rows[at][GENERATION]
                    provenance.note(arrays[at], self.source, code, generation, 0)

    def write_directly(
        self, key: Any, array: np.ndarray | Tree, kind: Kind, asked: How | None = None
    ) -> Row:
        """Write a value that never enters RAM to a file of its own, for `place` to commit.

        Parameters
        ----------
        asked
            How to compress it; None: as the chest does.

        Raises
        ------
        SpillError
            Nothing of it is left.
        """
        try:
            self.reserve_disk_for(key, array.nbytes)
            return self._write(key, self.index.puts, array, kind, asked)
        except ArrayChestError:
            raise
        except OSError as error:
            raise SpillError(f"the value of key {key!r} could not be stored: {error}") from error

    def append_directly(
        self, keys: list[Any], arrays: Sequence[np.ndarray | Tree], kinds: list[Kind]
    ) -> list[Row]:
        """Write small values that never enter RAM to a pack, for `place` to commit.

        Until `Store.append_settled` is called with one of the rows the pack stays.

        Raises
        ------
        OSError
            Nothing of them is left.
        """
        nbytes = sum([array.nbytes for array in arrays])
        self.reserve_disk(nbytes + SMALL_OVERHEAD * len(arrays))
        same = None if set(kinds) == {"array"} else kinds
        keys = [self.stored_key(key) for key in keys]
        places = [self.index.puts] * len(keys)
        rows = self.open_store().append(*_columns(keys, places, arrays, same))
        return [Row._make(row) for row in rows]

    def count_spill(self, nbytes: int) -> None:
        """Note that a value was stored.  Called under the lock."""
        self.counters.spills += 1
        self.counters.bytes_spilled += nbytes

    # --- how much may be stored --------------------------------------------------------------

    def reserve_disk_for(self, key: Any, nbytes: int) -> None:
        """Make room for a value with a file of its own; see `reserve_disk`."""
        if self._quota is None:
            return
        with self.lock:
            slot = self.index.find(key)
            freed = 0 if slot is None else freed_by(slot.raw)
        self.reserve_disk(nbytes + FILE_OVERHEAD, freed)

    def reserve_disk(self, nbytes: int, freed: int = 0, *, keep: bool = False) -> None:
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
            with self.committing() as store:
                # What evicts makes room once more when it commits.
                others = 0 if self._quota.evicts else self._reserved
                self.evict(store, nbytes - freed + others)
                if keep:
                    with self.lock:
                        self._reserved += nbytes

    def evict(self, store: Store, nbytes: int) -> None:
        """Remove the least recently used entries until so many bytes more fit.

        Called in `committing`, without the lock.

        Raises
        ------
        QuotaError
            As `reserve_disk`.
        """
        quota = self._quota
        if quota is None:
            return
        with self.lock:
            used = store.stored_bytes()
        # What was deleted goes with the next commit.
        limit = quota.nbytes + self._doomed_bytes
        if used + nbytes <= limit or nbytes <= 0:
            return
        if quota.evicts and nbytes <= quota.nbytes:
            self._evictor.begin()
            # A little more than is needed, so that not every commit brings another one.
            wanted = limit - nbytes - quota.nbytes // 128
            while used + nbytes > limit:
                candidates = self._evictor.oldest(store, self.lock, used - max(wanted, 0))
                if not candidates:
                    break
                for group in _grouped_by_kind(candidates):
                    self._evict(store, group)
                with self.lock:
                    used = store.stored_bytes()
            store.catalog.database.raise_interrupt()
        if used + nbytes > limit:
            raise quota.refusal(nbytes, used)

    def _evict(self, store: Store, candidates: Sequence[Candidate]) -> None:
        """Remove these from the chest, apart from what is in use: many values, or one pack."""
        known = candidates[0].pack
        if known is not None and (
            # Now, or at this moment by another process.
            store.is_appended_to(known.id) or not store.begin_compaction(known.id)
        ):
            return
        try:
            with self.lock:
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
                unused = self.place(store, (), deleted=keys)
                self.counters.evictions += len(keys)
            store.files.remove(unused, keep_spares=False)
        finally:
            if known is not None:
                store.end_compaction(known.id)

    def _evictable(self, row: Row) -> Slot | None:
        """The slot of a row, unless something newer than the row is on its way."""
        slot = None
        # One that cannot be read is for `repair`.
        with contextlib.suppress(ValueError):
            slot = self.index.find(decode_key(row.key, row.exact))
        if slot is None or slot.array is not None or slot.writing >= 0:
            return None
        raw = slot.raw
        return slot if raw is not None and raw[GENERATION] == row.generation else None

    # --- compaction ------------------------------------------------------------------------

    def _note_sparse_packs(self, store: Store, *freed: list[RawRow]) -> None:
        touched = {row[PACK] for rows in freed for row in rows if row[PACK] is not None}
        if touched:
            self.compacting |= touched.intersection(store.sparse_packs(COMPACTION_SHARE))

    def compact_pack(self, identity: int) -> None:
        """Move what lives in a pack to the open one and remove it.

        Raises
        ------
        OSError, CorruptEntryError
            What was not moved stays where it is.
        """
        with self.committing() as store:
            known = False
            try:
                with self.lock:
                    known = store.begin_compaction(identity)
                    steps = list(store.move_steps(identity)) if known else []
                if known and not steps:
                    store.drop_pack(identity)
                for rows in steps:
                    moved = {row.generation: row for row in store.move(rows)}
                    with self.lock:
                        store.catalog.database.end_snapshot()
                        self.index.moved(rows, moved)
                        for slot in self._doomed:
                            if slot.raw is not None:
                                slot.raw = moved.get(slot.raw[GENERATION], slot.raw)
                    if store.has_pack(identity):
                        store.catalog.database.raise_interrupt()
            except BaseException:
                # Interrupted, some may have moved in the catalog that are not noted here.
                with self.lock:
                    self.forget(store)
                raise
            finally:
                if known:
                    store.end_compaction(identity)
                if known and not store.has_pack(identity):
                    store.files.remove([pack_name(identity)])
            store.catalog.database.raise_interrupt()


def _grouped_by_kind(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """The values' files as one, and each pack by itself."""
    files = [each for each in candidates if each.pack is None]
    if files:
        yield files
    for each in candidates:
        if each.pack is not None:
            yield [each]


# --- a value as the store takes it -------------------------------------------------------------


def _nobody() -> None:
    """Where nobody has said."""


def facts_of(generation: int, array: np.ndarray | Tree, cost: Cost | None) -> Facts | None:
    """What is known of a value that is stored now; None if nothing is."""
    parts = enumerate(array.parts, 1) if isinstance(array, Tree) else [(0, array)]
    found = {}
    for number, part in parts:
        # Whatever fits into a pack is digested as soon as it is looked up.
        if part.nbytes >= PACK_THRESHOLD and (digest := digests.known(part)) is not None:
            found[number] = digest
    return Facts(generation, found, cost) if found or cost is not None else None


def _form_of(array: np.ndarray | Tree, kind: Kind) -> tuple[Form, str]:
    if isinstance(array, Tree):
        form = tree.form_of(array.nbytes)
        return form, form_text(*form)
    flags = array.flags
    order: Any = "C" if flags.c_contiguous or not flags.f_contiguous else "F"
    dtype, shape = array.dtype, array.shape
    return Form(dtype, shape, order, kind), form_text(dtype, shape, order, kind)


# What `Store.append` takes, column by column.
_Columns = tuple[
    list[bytes],
    Sequence[int],
    list[bytes | None],
    list[str],
    list[bytes] | list[np.ndarray],
    list[int],
]


def _batch_values(batch: Batch) -> _Columns:
    return _columns(batch.keys, batch.places, batch.arrays, None)


def _small_values(job: Job) -> _Columns:
    slots = job.slots
    kinds = None if set(job.kinds) == {"array"} else list(job.kinds)
    return _columns([slot.key for slot in slots], [slot.seq for slot in slots], job.arrays, kinds)


def _columns(
    keys: list[Any],
    seqs: Sequence[int],
    arrays: Sequence[np.ndarray | Tree],
    kinds: list[Kind] | None,
) -> _Columns:
    """`kinds`: None where all are arrays."""
    exact: list[bytes | None] = [None] * len(keys)
    codes = _codes_of_strings(keys) if set(map(type, keys)) == {str} else None
    if codes is None:
        pairs = [encode_key(key) for key in keys]
        codes = [pair.canonical for pair in pairs]
        exact = [pair.exact for pair in pairs]
    if kinds is None:
        plain: list[Any] = list(arrays)
        dtype, shape, nbytes = plain[0].dtype, plain[0].shape, plain[0].nbytes
        if (
            # Mostly all are of one form, which is then worked out once, and export their bytes.
            dtype.kind in "biufc"
            and all([array.dtype is dtype and array.shape == shape for array in plain])
            and all([array.flags.c_contiguous for array in plain])
        ):
            texts = [form_text(dtype, shape, "C", "array")] * len(keys)
            return codes, seqs, exact, texts, plain, [nbytes] * len(keys)
    each: list[Kind] = ["array"] * len(keys) if kinds is None else kinds
    forms = [_form_of(array, kind) for array, kind in zip(arrays, each, strict=True)]
    texts = [text for _, text in forms]
    data = [
        array.tobytes() if isinstance(array, Tree) else array.tobytes(form.order)
        for array, (form, _) in zip(arrays, forms, strict=True)
    ]
    return codes, seqs, exact, texts, data, list(map(len, data))


def _codes_of_strings(keys: list[str]) -> list[bytes] | None:
    """The canonical codes of many str in a third of the time; None if there is a NUL in one."""
    codes = ("s" + "\0s".join(keys)).encode("utf-8", "surrogatepass").split(b"\0")
    return codes if len(codes) == len(keys) else None
