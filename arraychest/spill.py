"""Write-behind: background threads that store what has to leave RAM, and what befalls a value.

::

    put ──> resident ──────────── victim ──> being written ──> committed: stored
              ^  |                                 |
              |  overwritten, deleted: what was written is thrown away
              └────────────── the write failed ────┘

Everything here is decided under one lock, the chest's, which is never held while a value is read
or written.  Commits follow one another under a second lock: take `commit_lock` before `lock`.

Threads are started when there is something to store and end a moment after there is nothing more:
none exists before the first spill, none outlives a close, and none has to be told that the
interpreter exits.

A failed write leaves its values in RAM.  The failure is raised by the next put or flush, and the
values are tried again after a pause that doubles up to `MAX_PAUSE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from arraychest.budget import Budget
from arraychest.entry import GENERATION, PACK, SEQ, STORED, Form, Kind, RawRow, Row, form_text
from arraychest.errors import ArrayChestError, SpillError
from arraychest.keys import KeyCode, decode_key, encode_key
from arraychest.resident import ALONE, ResidentSet, Slot, is_small, references
from arraychest.store import Store
from arraychest.units import format_bytes

logger = logging.getLogger("arraychest")

# Two writers move 8.8 GB/s into the page cache where one moves 6 to 7 and a third adds nothing.
MAX_WRITERS = 2

# Small values stored with one write and one commit.  Large enough that the commit (some 100 us)
# does not show, small enough that a crash or a full disk loses little work.
_BATCH_BYTES = 2 << 20
_BATCH_VALUES = 8192

# Deleted entries that wait for a commit at most, by number and by bytes of disk they hold.
_DOOMED_ENTRIES = 4096
_DOOMED_BYTES = 4 << 20

# The list in the job is the only one that refers to an array whose slot let go of it.
_ALONE_IN_JOB = ALONE

_VERSION = operator.attrgetter("version")

# A writer thread ends when nothing came for so long.
_LINGER_SECONDS = 0.02

_FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0

# A pack is compacted by itself once this share of it is dead.
COMPACTION_SHARE = 0.5


class Job(NamedTuple):
    """Values to store together, each with the version that was picked; or a pack to compact.

    A job without either commits the deletions that wait.
    """

    slots: list[Slot]
    versions: list[int]
    arrays: list[np.ndarray]
    nbytes: int = 0
    small: bool = False
    compact: int | None = None


class Counters:
    """What `Chest.stats` counts up."""

    __slots__ = ("absent", "bytes_faulted", "bytes_spilled", "faults", "hits", "misses", "spills")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.absent = 0
        self.spills = 0
        self.faults = 0
        self.bytes_spilled = 0
        self.bytes_faulted = 0


class WriteBehind:
    """Stores the resident values of one chest in the background.

    Parameters
    ----------
    index
        The chest's slots by key.
    budget
        How much may stay in RAM.
    open_store
        Gives the store, creating it at the first call.
    settle
        Gives the values that were just put their slots; called under the lock.
    on_overflow
        Called with each key whose value was spilled, in the thread that stored it.

    Attributes
    ----------
    lock, changed
        The chest's lock, and the condition on it that is notified of every change of state.
    tombstones
        Keys whose entry in the catalog does not count: deleted, and not yet committed so.  The
        number is how many such deletions are under way.
    """

    def __init__(
        self,
        index: dict[Any, Slot],
        budget: Budget,
        open_store: Callable[[], Store],
        settle: Callable[[], None],
        on_overflow: Callable[[Any], object] | None,
    ) -> None:
        self.commit_lock = threading.Lock()
        self._make_lock()
        self.index = index
        self.budget = budget
        self.resident = ResidentSet()
        self.counters = Counters()
        self.tombstones: dict[Any, int] = {}
        self._open_store = open_store
        self._settle_fresh = settle
        self._on_overflow = on_overflow
        self._doomed: dict[Slot, None] = {}
        self._doomed_bytes = 0
        self._threads: set[threading.Thread] = set()
        # Threads that wait a moment for more to do, and jobs given to them.
        self._idle = 0
        self._handed: deque[Job] = deque()
        self._ending = False
        self._jobs = 0
        self._in_flight = 0
        self._packing = False
        # The last look for a victim found none, and nothing has changed since that could give
        # one: a look goes through the whole resident set.
        self._nothing_fits = False
        self._committing = False
        # Whether committing the deletions has failed in this round.
        self._deletions_failed = False
        self._compacting: set[int] = set()
        self._urgent: list[Slot] = []
        # Why writers are at work: charged bytes passed the high watermark, so many puts wait for
        # room (each for so many bytes), so many flushes wait for everything.
        self._draining = False
        self._awaited: list[int] = []
        self._flushing = 0
        # What could not be stored in this round of trying.
        self._failed: set[Slot] = set()
        # What went wrong and was not reported yet; and what went wrong last.
        self.failure: BaseException | None = None
        self._last_failure: BaseException | None = None
        self._pause = 0.0
        self._retry_at = 0.0

    def _make_lock(self) -> None:
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.job_given = threading.Condition(self.lock)
        # Half the cost of `with lock`, for the one path that counts nanoseconds.
        self.acquire = self.lock.acquire
        self.release = self.lock.release

    # --- called under the lock -------------------------------------------------------------

    def put_noted(self, slot: Slot) -> None:
        """Start spilling if charged bytes have passed the high watermark."""
        if self.resident.charged > self.budget.high:
            self._draining = True
            if not (self._packing and is_small(slot)):
                self._nothing_fits = False
            self.wake()

    def make_room(self, nbytes: int) -> None:
        """Wait until `nbytes` more fit into the budget.

        Raises
        ------
        SpillError
            Nothing more can be written, so that they never will.
        """
        resident, budget = self.resident, self.budget
        if resident.charged + nbytes <= budget.bytes:
            return
        self._awaited.append(nbytes)
        self._begin_round()
        try:
            while resident.charged + nbytes > budget.bytes and resident.count:
                self.wake()
                if not self._jobs:
                    # Unless this very thread has made room, for want of a writer thread.
                    if resident.charged + nbytes > budget.bytes:
                        self._raise_failure(f"room for {format_bytes(nbytes)} could not be made")
                    return
                self.changed.wait()
        finally:
            self._awaited.remove(nbytes)

    def report_failure(self) -> None:
        """Raise what went wrong in the background since the last report, if anything did."""
        if self.failure is not None:
            self._raise_failure("values could not be spilled and stay in RAM")

    def _raise_failure(self, what: str) -> None:
        error, self.failure = self.failure, None
        cause = error or self._last_failure
        if cause is not None:
            raise SpillError(f"{what}: {cause}") from cause

    def let_go(self, slot: Slot) -> None:
        """Take a slot out of RAM whose value was deleted or overwritten.

        A write of it that is under way is thrown away by whoever commits it.
        """
        if slot.array is not None:
            self.resident.remove(slot)
        slot.value = slot.view = None

    def doom(self, slot: Slot) -> None:
        """Forget a slot that has left the index: its entry and its file go with a later commit."""
        if slot.array is not None:
            self.resident.remove(slot)
        slot.value = slot.view = None
        slot.version = -1
        raw = slot.raw
        if raw is not None:
            self._doomed[slot] = None
            self._doomed_bytes += raw[STORED]
        elif slot.writing < 0:
            return
        tombstones, key = self.tombstones, slot.key
        tombstones[key] = tombstones[key] + 1 if key in tombstones else 1
        if self._doomed_bytes >= _DOOMED_BYTES or len(self._doomed) >= _DOOMED_ENTRIES:
            self.wake()

    def _deletions_due(self) -> bool:
        return len(self._doomed) >= _DOOMED_ENTRIES or self._doomed_bytes >= _DOOMED_BYTES

    def wake(self) -> None:
        """See to it that a thread works while there is something to do."""
        while len(self._threads) - self._idle + len(self._handed) < MAX_WRITERS:
            job = self._next_job()
            if job is None:
                return
            if self._idle > len(self._handed):
                self._handed.append(job)
                self.job_given.notify()
                continue
            thread = threading.Thread(
                target=self._work, args=(job,), name="arraychest-writer", daemon=False
            )
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                # No more threads, or the interpreter is exiting: do it here.
                self._threads.discard(thread)
                self.lock.release()
                try:
                    self._work(job)
                finally:
                    self.lock.acquire()

    def _begin_round(self) -> None:
        """Let every value be tried again, whatever failed before."""
        self._failed.clear()
        self._deletions_failed = False
        self._retry_at = 0.0
        self._nothing_fits = False

    # --- picking ---------------------------------------------------------------------------

    def _next_job(self) -> Job | None:
        """What to store now; marks it as being written.  Called under the lock."""
        job = self._pick()
        if (
            job is None
            and self._doomed
            and not self._committing
            and not self._deletions_failed
            # On a full disk they make the room that a put waits for.
            and (self._flushing or self._deletions_due() or (self._awaited and self._pause))
        ):
            if (
                self._retry_at
                and not (self._flushing or self._awaited)
                and time.monotonic() < self._retry_at
            ):
                return None
            self._committing = True
            job = Job([], [], [])
        if job is None and self._compacting:
            job = Job([], [], [], compact=self._compacting.pop())
        if job is not None:
            self._jobs += 1
            self._in_flight += job.nbytes
        return job

    def _wanted(self) -> int:
        """Bytes that have to leave RAM beyond those being written already."""
        if self._flushing:
            return self.resident.charged + 1
        charged = self.resident.charged - self._in_flight
        if self._draining and charged <= self.budget.low:
            self._draining = False
        target = charged
        if self._draining:
            target = self.budget.low
        if self._awaited:
            target = min(target, self.budget.bytes - max(self._awaited))
        return charged - target

    def _pick(self) -> Job | None:
        while self._urgent:
            urgent = self._urgent.pop()
            if urgent.array is not None and urgent.writing < 0:
                return self._job([urgent])
        wanted = self._wanted()
        if wanted <= 0:
            return None
        if self.resident.fresh:
            self._settle_fresh()
            self._nothing_fits = False
        if self._nothing_fits:
            return None
        if self._retry_at and not self._awaited and not self._flushing:
            if time.monotonic() < self._retry_at:
                return None
            self._begin_round()
        slots = self.resident.victims(
            self._failed, min(_BATCH_BYTES, wanted), _BATCH_VALUES, small=not self._packing
        )
        if not slots:
            self._nothing_fits = True
            return None
        return self._job(slots)

    def _job(self, slots: list[Slot]) -> Job:
        versions = []
        arrays = []
        nbytes = 0
        for slot in slots:
            array = slot.array
            assert array is not None
            slot.writing = slot.version
            versions.append(slot.version)
            arrays.append(array)
            nbytes += array.nbytes
        small = is_small(slots[0]) and not self._packing
        if small:
            self._packing = True
        return Job(slots, versions, arrays, nbytes, small)

    # --- the writer threads ----------------------------------------------------------------

    def _work(self, job: Job | None) -> None:
        while job is not None:
            self._do(job)
            with self.lock:
                # Together with the look for the next one: whoever waits for all jobs to be done
                # must not see none while there is more to do.
                self._jobs -= 1
                job = self._next_job()
                if job is None:
                    self.changed.notify_all()
                    job = self._wait_for_job()
                if job is None:
                    self._threads.discard(threading.current_thread())
                    self.changed.notify_all()

    def _wait_for_job(self) -> Job | None:
        """A job that came within a moment: starting a thread takes 100 us, often for one value."""
        if threading.current_thread() not in self._threads:
            return None  # a caller that does the work itself
        self._idle += 1
        try:
            deadline = time.monotonic() + _LINGER_SECONDS
            while not self._handed and not self._ending:
                left = deadline - time.monotonic()
                if left <= 0 or not self.job_given.wait(left):
                    break
        finally:
            self._idle -= 1
        return self._handed.popleft() if self._handed else None

    def _do(self, job: Job) -> None:
        error: BaseException | None = None
        try:
            if job.compact is not None:
                self.compact_pack(job.compact)
            else:
                self._store_and_commit(job)
        except BaseException as caught:  # whatever it was, the values stay and somebody is told
            error = caught
            logger.warning("spill failed, values stay in RAM: %s", caught)
        with self.lock:
            self._in_flight -= job.nbytes
            self._nothing_fits = False
            if job.small:
                self._packing = False
            if not job.slots and job.compact is None:
                self._committing = False
                self._deletions_failed = error is not None
                if self._failed and not self._deletions_failed:
                    # There may be room now for what had none.
                    self._begin_round()
            for slot, version in zip(job.slots, job.versions, strict=True):
                if slot.writing == version:
                    self._settle(slot)
                    if error is not None:
                        self._failed.add(slot)
            # The arrays leave RAM now, not when the thread finds its next job.
            job.arrays.clear()
            if error is None:
                self._pause = 0.0
            elif job.compact is None:
                self.failure = self._last_failure = error
                self._pause = min(2 * self._pause or _FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
                self._retry_at = time.monotonic() + self._pause
                self._draining = False
            self.changed.notify_all()

    def _store_and_commit(self, job: Job) -> None:
        store = self._open_store()
        rows: list[RawRow]
        if job.small:
            rows = store.append(*_small_values(job.slots, job.arrays))
        else:
            pairs = zip(job.slots, job.arrays, strict=True)
            rows = [store.write(*_encoded(slot, array)) for slot, array in pairs]
        try:
            spilled = self._commit(store, job, rows)
        finally:
            if job.small:
                store.append_settled(rows)
        self.tell_overflow(spilled)

    def tell_overflow(self, spilled: Iterable[Any]) -> None:
        """Call `on_overflow` with each of these keys, whose values were spilled."""
        if self._on_overflow is not None:
            for key in spilled:
                try:
                    self._on_overflow(key)
                except Exception:
                    logger.exception("on_overflow failed for key %r", key)

    def _commit(self, store: Store, job: Job, rows: list[RawRow]) -> list[Any]:
        """Commit rows whose bytes are written, with all deletions that wait; returns the keys."""
        slots, versions, arrays = job.slots, job.versions, job.arrays
        with self.commit_lock:
            store.begin()
            unused: list[str] = []
            with self.lock:
                if any(map(operator.ne, versions, map(_VERSION, slots))):
                    # Overwritten or deleted since it was picked: what was written is thrown away.
                    stale = [s.version != v for s, v in zip(slots, versions, strict=True)]
                    unused = [
                        store.value_name(Row._make(row))
                        for row in itertools.compress(rows, stale)
                        if row[PACK] is None
                    ]
                    fresh = [not each for each in stale]
                    slots = list(itertools.compress(slots, fresh))
                    versions = list(itertools.compress(versions, fresh))
                    arrays = list(itertools.compress(arrays, fresh))
                    rows = list(itertools.compress(rows, fresh))
                deletions = list(self._doomed)
                self._doomed.clear()
                self._doomed_bytes = 0
                freed = [slot.raw for slot in slots if slot.raw is not None]
                gone = [slot.raw for slot in deletions if slot.raw is not None]
            try:
                # By place: neighbours in the index are deleted together.
                places = sorted([row[SEQ] for row in gone])
                unused += store.commit(rows, freed + gone, places)
            except BaseException:
                with self.lock:
                    store.catalog.end_snapshot()
                    self._doomed.update(dict.fromkeys(deletions))
                    self._doomed_bytes += sum(row[STORED] for row in gone)
                store.files.remove(unused)
                raise
            with self.lock:
                store.catalog.end_snapshot()
                for slot in deletions:
                    slot.raw = None
                    if slot.writing < 0:  # otherwise whoever writes it does
                        self._bury(slot)
                self._publish(slots, versions, arrays, rows)
                self._note_sparse_packs(store, freed, gone)
                self.changed.notify_all()
            # Last: who had looked up an old row before finds it changed when its file is gone.
            store.files.remove(unused)
            store.catalog.raise_interrupt()
        return [slot.key for slot in slots]

    def _publish(
        self,
        slots: list[Slot],
        versions: list[int],
        arrays: list[np.ndarray],
        rows: list[RawRow],
    ) -> None:
        """Values were committed: drop them from RAM, but know them while users still hold them."""
        remove = self.resident.remove
        for at, slot in enumerate(slots):
            slot.raw = rows[at]
            if slot.version == versions[at]:
                remove(slot)
                slot.value = None
                slot.writing = -1
                # A weak reference for each would be as dear as all the rest of this loop.
                if references(arrays, at) > _ALONE_IN_JOB and slot.kind != "scalar":
                    slot.view = weakref.ref(arrays[at])
            else:
                self._settle(slot)
        self.counters.spills += len(slots)
        self.counters.bytes_spilled += sum([array.nbytes for array in arrays])

    def _settle(self, slot: Slot) -> None:
        """The write of a slot is over, whatever came of it."""
        if slot.writing < 0:
            return
        slot.writing = -1
        if slot.version < 0:  # deleted meanwhile
            if slot.raw is not None:
                if slot not in self._doomed:
                    self._doomed[slot] = None
                    self._doomed_bytes += slot.raw[STORED]
            else:
                self._bury(slot)

    def _bury(self, slot: Slot) -> None:
        left = self.tombstones.get(slot.key, 0) - 1
        if left > 0:
            self.tombstones[slot.key] = left
        else:
            self.tombstones.pop(slot.key, None)

    def doomed_rows(self) -> int:
        """Rows of the catalog that do not count: deleted, not yet committed so, and not replaced
        by a later value of the same key.
        """
        present = (self.index.get(slot.key) for slot in self._doomed)
        return sum(slot is None or slot.raw is None for slot in present)

    def become_reader(self) -> None:
        """In a forked child: nobody writes here, and no other thread is left."""
        self._make_lock()
        self.commit_lock = threading.Lock()
        self._threads.clear()
        self._handed.clear()
        self._jobs = self._idle = 0

    # --- waiting for it --------------------------------------------------------------------

    def flush(self) -> None:
        """Return once every value put and every key deleted before the call is committed.

        Raises
        ------
        SpillError
            Some could not be; they stay in RAM, or stay deleted, and are tried again later.
        """
        with self.lock:
            self._settle_fresh()
            pending = self.resident.slots()
            versions = [slot.version for slot in pending]
            pending += self._doomed
            versions += [-1] * len(self._doomed)
            self._begin_round()
            self.failure = None
            self._flushing += 1
            try:
                at = 0
                while True:
                    self.wake()
                    while at < len(pending) and not self._waits(pending[at], versions[at]):
                        at += 1
                    if at == len(pending) or not self._jobs:
                        break
                    self.changed.wait()
            finally:
                self._flushing -= 1
            left = sum(map(self._waits, pending[at:], versions[at:]))
            if left:
                self._raise_failure(f"{left} values or deletions could not be stored")

    def _waits(self, slot: Slot, version: int) -> bool:
        if version < 0:
            return slot.raw is not None
        return slot.version == version and slot.array is not None

    def spill(self, slot: Slot) -> None:
        """Store one value now and drop it from RAM.  Called under the lock.

        Raises
        ------
        SpillError
            It could not be stored, and stays in RAM.
        """
        version = slot.version
        self._begin_round()
        while slot.version == version and slot.array is not None:
            if slot in self._failed:
                self._raise_failure(f"the value of key {slot.key!r} could not be stored")
                return
            if slot.writing < 0 and slot not in self._urgent:
                self._urgent.append(slot)
            self.wake()
            if slot.array is not None and slot not in self._failed:
                self.changed.wait()

    def begin_work(self) -> None:
        """Count a caller's thread among those at work.  Called under the lock."""
        self._jobs += 1

    def end_work(self) -> None:
        """Undo `begin_work`.  Called under the lock."""
        self._jobs -= 1
        self.changed.notify_all()

    def unsaved(self) -> bool:
        """Whether there is anything that the catalog does not know.  Called under the lock."""
        return bool(self.resident.count or self._doomed)

    def wait_idle(self) -> None:
        """Return once no writer thread is left.  Called under the lock."""
        self._ending = True
        try:
            while self._threads or self._jobs:
                self.job_given.notify_all()
                self.changed.wait()
        finally:
            self._ending = False

    def is_writer_thread(self) -> bool:
        """Whether the calling thread is one of the writers."""
        return threading.current_thread() in self._threads

    @contextlib.contextmanager
    def storing_directly(
        self, key: Any, array: np.ndarray, kind: Kind
    ) -> Iterator[tuple[Store, Row]]:
        """Write a value that never enters RAM, and let the caller commit its row.

        The commit lock is held meanwhile.

        Raises
        ------
        SpillError
            The value could not be written or committed; nothing of it is left.
        """
        try:
            store = self._open_store()
            form, text = _form_of(array, kind)
            row = store.write(encode_key(key), 0, array, form, text)
            with self.commit_lock:
                try:
                    yield store, row
                except ArrayChestError:
                    store.files.remove([store.value_name(row)])
                    raise
        except ArrayChestError:
            raise
        except OSError as error:
            raise SpillError(f"the value of key {key!r} could not be stored: {error}") from error

    def count_spill(self, nbytes: int) -> None:
        """Note that a value was stored.  Called under the lock."""
        self.counters.spills += 1
        self.counters.bytes_spilled += nbytes

    # --- compaction ------------------------------------------------------------------------

    def _note_sparse_packs(self, store: Store, *freed: list[RawRow]) -> None:
        touched = {row[PACK] for rows in freed for row in rows if row[PACK] is not None}
        if touched:
            self._compacting |= touched.intersection(store.sparse_packs(COMPACTION_SHARE))

    def compact_pack(self, identity: int) -> None:
        """Move what lives in a pack to the open one and remove it.

        Raises
        ------
        OSError, CorruptEntryError
            What was not moved stays where it is.
        """
        store = self._open_store()
        with self.commit_lock:
            with self.lock:
                known = store.has_pack(identity)
                if known:
                    store.seal(identity)
                steps = list(store.move_steps(identity)) if known else []
            if known and not steps:
                store.drop_pack(identity)
            for rows in steps:
                moved = {row.generation: row for row in store.move(rows)}
                with self.lock:
                    store.catalog.end_snapshot()
                    for slot in self._slots_of(rows):
                        if slot.raw is not None:
                            slot.raw = moved.get(slot.raw[GENERATION], slot.raw)
                if store.has_pack(identity):
                    store.catalog.raise_interrupt()
            if known and not store.has_pack(identity):
                store.files.remove([store.pack_name(identity)])
            store.catalog.raise_interrupt()

    def _slots_of(self, rows: Iterable[Row]) -> Iterator[Slot]:
        """Every slot that may name one of these rows, also the deleted ones."""
        for row in rows:
            slot = self.index.get(decode_key(row.key, row.exact))
            if slot is not None:
                yield slot
        yield from self._doomed


def _form_of(array: np.ndarray, kind: Kind) -> tuple[Form, str]:
    flags = array.flags
    order: Any = "C" if flags.c_contiguous or not flags.f_contiguous else "F"
    dtype, shape = array.dtype, array.shape
    return Form(dtype, shape, order, kind), form_text(dtype, shape, order, kind)


def _encoded(slot: Slot, array: np.ndarray) -> tuple[KeyCode, int, np.ndarray, Form, str]:
    form, text = _form_of(array, slot.kind)
    return encode_key(slot.key), slot.seq, array, form, text


def _small_values(
    slots: list[Slot], arrays: list[np.ndarray]
) -> tuple[
    list[bytes], list[int], list[bytes | None], list[str], list[bytes] | list[np.ndarray], list[int]
]:
    """What `Store.append` takes, column by column."""
    exact: list[bytes | None] = [None] * len(slots)
    keys = [slot.key for slot in slots]
    if set(map(type, keys)) == {str}:
        codes = [b"s" + key.encode("utf-8", "surrogatepass") for key in keys]
    else:
        pairs = [encode_key(key) for key in keys]
        codes = [pair.canonical for pair in pairs]
        exact = [pair.exact for pair in pairs]
    seqs = [slot.seq for slot in slots]
    dtype, shape, nbytes = arrays[0].dtype, arrays[0].shape, arrays[0].nbytes
    data: list[bytes] | list[np.ndarray]
    if (
        # Mostly all are of one form, which is then worked out once, and export their bytes.
        dtype.kind in "biufc"
        and {slot.kind for slot in slots} == {"array"}
        and all(
            [
                array.dtype is dtype and array.shape == shape and array.flags.c_contiguous
                for array in arrays
            ]
        )
    ):
        texts = [form_text(dtype, shape, "C", "array")] * len(slots)
        return codes, seqs, exact, texts, arrays, [nbytes] * len(slots)
    forms = [_form_of(array, slot.kind) for array, slot in zip(arrays, slots, strict=True)]
    texts = [text for _, text in forms]
    data = [array.tobytes(form.order) for array, (form, _) in zip(arrays, forms, strict=True)]
    return codes, seqs, exact, texts, data, list(map(len, data))
