"""Saving: what a writer was given becomes files and a commit, and then leaves RAM.

While a value is being written its key may be overwritten or deleted: then what was written is
thrown away.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from arraychest.arrays import provenance
from arraychest.arrays.ownership import is_held
from arraychest.arrays.provenance import Source
from arraychest.catalog.record import GENERATION, KEY, PACK, SEQ, STORED, RawRow, Row
from arraychest.engine.columns import (
    batch_columns,
    columns,
    facts_of,
    form_of_value,
    small_columns,
)
from arraychest.engine.commit import Committer, logger
from arraychest.engine.compaction import Compactor
from arraychest.engine.disk_room import DiskRoom
from arraychest.engine.job import Job
from arraychest.errors import ArrayChestError, QuotaError, SpillError
from arraychest.files.room import FULL
from arraychest.formats import npy
from arraychest.formats.b2nd import WORKING_BYTES
from arraychest.formats.compression import Compression, How
from arraychest.formats.form import Kind
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.slot import Batch, Slot
from arraychest.storage.eviction import freed_by
from arraychest.storage.file_names import value_name
from arraychest.storage.quota import FILE_OVERHEAD, SMALL_OVERHEAD
from arraychest.storage.store import Store
from arraychest.values.file_stems import fitting_stem
from arraychest.values.keys import PLAIN_TYPES, encode_key, lookup_of

# A commit of deletions for which there is no room is tried with so many times fewer.
_FEWER = 16

_VERSION = operator.attrgetter("version")


class Saver:
    """Stores values of one chest and notes on their slots what became of them.

    Parameters
    ----------
    committer, room, compactor
        The chest's.
    compression
        What is compressed.
    on_overflow
        Called with each key whose value was spilled, in the thread that stored it.
    key_to_filename
        What the file of a key's value is called; None: as the key.

    Attributes
    ----------
    source
        Gives what digests of stored arrays are asked for at, as long as it is there.
    """

    def __init__(
        self,
        committer: Committer,
        room: DiskRoom,
        compactor: Compactor,
        compression: Compression,
        on_overflow: Callable[[Any], object] | None,
        key_to_filename: Callable[[Any], str] | None = None,
    ) -> None:
        self.compression = compression
        self.source: Callable[[], Source | None] = _nobody
        self._committer = committer
        self._room = room
        self._compactor = compactor
        self._index = committer.index
        self._resident = committer.resident
        self._deletions = committer.deletions
        self._on_overflow = on_overflow
        self._key_to_filename = key_to_filename

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
        if not (self._room.is_limited and job.arrays):
            self._write_and_commit(job)
            return
        overhead = SMALL_OVERHEAD if job.small else FILE_OVERHEAD
        nbytes = sum([array.nbytes for array in job.arrays]) + overhead * len(job.arrays)
        with self._committer.lock:
            freed = sum(freed_by(slot.raw) for slot in job.slots)
            if job.batch is not None:
                freed += sum(map(freed_by, job.batch.replaced.values()))
        with self._room.reserved(nbytes, freed):
            self._write_and_commit(job)

    def _commit_deletions(self) -> None:
        """Commit the deletions that wait: together or, on a full disk, as many as it takes.

        What a commit takes grows with how many there are; the first of them may make room.
        """
        most = None
        while True:
            with self._committer.lock:
                waiting = len(self._deletions.waiting)
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

    def _write_and_commit(self, job: Job) -> None:
        store = self._committer.open_store()
        rows: list[RawRow]
        if job.batch is not None:
            rows = store.packs.append(*batch_columns(job.batch))
        elif job.small:
            rows = store.packs.append(*small_columns(job))
        else:
            rows = self._write_all(store, job)
        try:
            spilled = self._commit(job, rows)
        finally:
            if job.small:
                store.packs.settled(rows)
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
        store = self._committer.open_store()
        named = self.named(key)
        form, text = form_of_value(array, kind)
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
                return store.writer.write(code, seq, list(array.buffers()), form, text)
            with self._threads_to_compress() as nthreads:
                return store.writer.compress_tree(code, seq, array, choices, nthreads, named)
        choice = self.compression.choice(array, kind, asked)
        if choice is None:
            return store.writer.write(code, seq, npy.payload(array, form), form, text)
        with self._threads_to_compress() as nthreads:
            return store.writer.compress(code, seq, array, form, text, choice, nthreads)

    def stored_key(self, key: Any) -> Any:
        """The key under which the value of `key` is stored, or will be.

        It is the one that was put first where two keys are equal and have different codes.
        """
        if type(key) in PLAIN_TYPES:
            return key
        lookup = lookup_of(key)
        if lookup is None or lookup.group is None:
            return key
        with self._committer.lock:
            slot = self._index.find(key)
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
        with self._committer.lock:
            nthreads = self.compression.nthreads
            if self._resident.has_large_ones(2):
                # Another writer takes the next one at the same time: each a half of the threads
                # compress by a tenth more than all of them for each.
                nthreads = max(1, nthreads // 2)
            self._resident.working += nthreads * WORKING_BYTES
        try:
            yield nthreads
        finally:
            with self._committer.lock:
                self._resident.working -= nthreads * WORKING_BYTES
                self._committer.changed.notify_all()

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
        with self._committer.committing() as store:
            if self._room.evicts and rows:
                # Others may have taken the room that was made before these were written.
                try:
                    overhead = 0 if rows[0][PACK] is None else SMALL_OVERHEAD * len(rows)
                    self._room.evict(store, overhead + sum(row[STORED] for row in rows))
                except QuotaError:
                    names = [value_name(Row._make(row)) for row in rows if row[PACK] is None]
                    store.files.remove(names, keep_spares=False)
                    raise
            with self._committer.lock:
                batch, slots, versions, arrays, rows, unused = _wanted(job, rows)
                deletions = self._deletions.begin(most)
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
                with self._committer.lock:
                    store.catalog.database.end_snapshot()
                    self._deletions.undo()
                store.files.remove(unused)
                raise
            with self._committer.lock:
                store.catalog.database.end_snapshot()
                self._deletions.done()
                self._publish(batch, slots, versions, arrays, rows)
                self._compactor.note_sparse(store, replaced, deleted)
                self._committer.changed.notify_all()
            # Last: who had looked up an old row before finds it changed when its file is gone.
            store.files.remove(unused)
            store.catalog.database.raise_interrupt()
        return [slot.key for slot in slots] if job.batch is None else job.batch.keys

    def _publish(
        self,
        batch: Batch | None,
        slots: Sequence[Slot],
        versions: Sequence[int],
        arrays: list[Any],
        rows: list[RawRow],
    ) -> None:
        """Values were committed: drop them from RAM, but know them while users still hold them."""
        self._committer.counters.spills += len(rows)
        if batch is not None and batch.slots is None:
            self._committer.counters.bytes_spilled += batch.nbytes
            self._index.publish(batch, rows)
            return
        self._committer.counters.bytes_spilled += sum([array.nbytes for array in arrays])
        if batch is not None and batch.slots is not None:
            # Somebody asked for one of them during the commit.
            slots, versions = batch.slots, batch.numbers
        remove = self._resident.remove
        current = []
        for slot, version, row in zip(slots, versions, rows, strict=True):
            slot.raw = row
            current.append(slot.version == version)
            if current[-1]:
                remove(slot)
                slot.value = None
                slot.writing = -1
            else:
                self._deletions.written(slot)
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
            self._room.reserve_for(key, array.nbytes)
            return self._write(key, self._index.puts, array, kind, asked)
        except ArrayChestError:
            raise
        except OSError as error:
            raise SpillError(f"the value of key {key!r} could not be stored: {error}") from error

    def append_directly(
        self, keys: list[Any], arrays: Sequence[np.ndarray | Tree], kinds: list[Kind]
    ) -> list[Row]:
        """Write small values that never enter RAM to a pack, for `place` to commit.

        Until `Packs.settled` is called with one of the rows the pack stays.

        Raises
        ------
        OSError
            Nothing of them is left.
        """
        nbytes = sum([array.nbytes for array in arrays])
        self._room.reserve(nbytes + SMALL_OVERHEAD * len(arrays))
        same = None if set(kinds) == {"array"} else kinds
        keys = [self.stored_key(key) for key in keys]
        places = [self._index.puts] * len(keys)
        rows = self._committer.open_store().packs.append(*columns(keys, places, arrays, same))
        return [Row._make(row) for row in rows]

    def count_spill(self, nbytes: int) -> None:
        """Note that a value was stored.  Called under the lock."""
        self._committer.counters.spills += 1
        self._committer.counters.bytes_spilled += nbytes


def _nobody() -> None:
    """Where nobody has said."""


# What is left of a job when it is committed: its batch, if it still has no slots; otherwise slots,
# versions and arrays; in any case rows, and the files of what is thrown away.
_Left = tuple[Batch | None, Sequence[Slot], Sequence[int], list[Any], list[RawRow], list[str]]


def _wanted(job: Job, rows: list[RawRow]) -> _Left:
    """What of a job is still current.  Called under the chest's lock."""
    unused: list[str] = []
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
            Row._make(row)._replace(seq=slot.seq) for slot, row in zip(slots, rows, strict=True)
        ]
    return batch, slots, versions, arrays, rows, unused
