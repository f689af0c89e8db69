"""Write-behind: background threads that store what has to leave RAM.

::

    put ──> resident ──────────── victim ──> being written ──> committed: stored
              ^  |                                 |
              |  overwritten, deleted: what was written is thrown away
              └────────────── the write failed ────┘

Everything here is decided under one lock, the chest's, which is never held while a value is read
or written.  Commits follow one another under a second lock: take `commit_lock` before `lock`.

Threads are started when there is something to store and end a moment after there is nothing more:
none outlives a close, and none has to be told that the interpreter exits.

Several values are written and committed as one job: small ones by thousands, others until they have
`TOGETHER_BYTES`.  Where little is left to store one thread does it all.

A failed write leaves its values in RAM; of several, each is tried alone first.  The failure is
raised by the next put or flush, and the values are tried again after a pause that doubles up to
`MAX_PAUSE_SECONDS` (see `failures`).  Where nobody waits for it, the first of several failures is
also a warning.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from arraychest.engine.callers import warn
from arraychest.engine.commit import Committer, logger
from arraychest.engine.compaction import Compactor
from arraychest.engine.failures import Failures
from arraychest.engine.job import Job
from arraychest.engine.saving import Saver
from arraychest.errors import ArrayChestError, SpillError
from arraychest.memory.budget import Budget
from arraychest.memory.memtable import BATCH_BYTES, BATCH_VALUES
from arraychest.memory.pool import TOGETHER_BYTES
from arraychest.memory.slot import Slot
from arraychest.sharing.interrupts import Condition
from arraychest.text import amount
from arraychest.units import format_bytes

# Two writers move 8.8 GB/s into the page cache where one moves 6 to 7 and a third adds nothing.
MAX_WRITERS = 2

# A writer thread ends when nothing came for so long.
_LINGER_SECONDS = 0.02

# A flush looks so often whether all that it waits for is stored.
_LOOK_SECONDS = 0.005


class Flusher:
    """Stores the resident values of one chest in the background.

    Parameters
    ----------
    committer
        Has the chest's lock.
    saver, compactor
        Do what is picked here.
    budget
        How much may stay in RAM.
    """

    def __init__(
        self, committer: Committer, saver: Saver, compactor: Compactor, budget: Budget
    ) -> None:
        self.index = committer.index
        self.resident = committer.resident
        self._committer = committer
        self._deletions = committer.deletions
        self._saver = saver
        self._compactor = compactor
        self._begin(budget)

    def _begin(self, budget: Budget) -> None:
        """Set everything to what it is while there is nothing to do."""
        self.budget = budget
        self._take_locks()
        self._threads: set[threading.Thread] = set()
        # Threads that wait a moment for more to do, and jobs given to them.
        self._idle = 0
        self._handed: deque[Job] = deque()
        self._ending = False
        # Jobs that writers are doing, and callers' threads that write themselves; see `end_work`.
        self._jobs = self.callers = 0
        self._in_flight = 0
        self._packing = False
        self._at_rest: Callable[[], object] | None = None
        # The last look for a victim found none, and nothing has changed since that could give
        # one: a look goes through the whole resident set.
        self._nothing_fits = False
        self._committing = False
        self._urgent: list[Slot] = []
        # Why writers are at work: charged bytes passed the high watermark, so many puts wait for
        # room (each for so many bytes), so many flushes wait for everything.
        self._draining = False
        self._awaited: list[int] = []
        self._flushing = 0
        self.failures = Failures()
        self._scarcity_told = False

    def _take_locks(self) -> None:
        self.lock = self._committer.lock
        self.changed = self._committer.changed
        self.job_given = Condition(self.lock)
        # Notified where a writer finds nothing more to do.
        self._drained = Condition(self.lock)

    # --- called under the lock -------------------------------------------------------------

    def put_noted(self, slot: Slot | None = None) -> None:
        """Start spilling if charged bytes have passed the high watermark.

        Parameters
        ----------
        slot
            The slot that was put, if it has one.
        """
        self.resident.drop_copies(self.budget.high)
        if self.resident.charged > self.budget.high:
            if not self._draining:
                self._draining, self.failures.one_by_one = True, False
            if slot is not None and not (self._packing and slot.is_small):
                self._nothing_fits = False
            self.wake()

    def deletion_noted(self) -> None:
        """Start committing if many deletions wait."""
        if self._deletions.are_due:
            self.wake()

    def make_room(self, nbytes: int) -> None:
        """Wait until `nbytes` more fit into the budget.

        Raises
        ------
        SpillError
            Nothing more can be written, so that they never will.
        """
        resident, budget = self.resident, self.budget
        resident.drop_copies(budget.bytes - nbytes)
        if resident.charged + nbytes <= budget.bytes:
            return
        self._refuse_writer(f"room for {format_bytes(nbytes)} could not be made")
        self._awaited.append(nbytes)
        self._try_all_again()
        try:
            while resident.charged + nbytes > budget.bytes and resident.count:
                self.wake()
                if not (self._jobs or self.callers):
                    # Unless this very thread has made room, for want of a writer thread.
                    if resident.charged + nbytes > budget.bytes:
                        self.failures.raise_last(
                            f"room for {format_bytes(nbytes)} could not be made"
                        )
                    return
                self.changed.wait()
        finally:
            self._awaited.remove(nbytes)

    def wake(self) -> None:
        """See to it that a thread works while there is something to do."""
        while len(self._threads) - self._idle + len(self._handed) < MAX_WRITERS:
            little = self.resident.charged - self._in_flight < TOGETHER_BYTES
            if little and self._jobs and not self._urgent:
                # Two that store little wait for each other's commits and for the interpreter: who
                # is at work does this next.
                return
            job = self._next_job()
            if job is None:
                return
            if self._idle > len(self._handed):
                self._handed.append(job)
                self.job_given.notify()
                continue
            if not self._start(job):
                # No more threads, or the interpreter is exiting: do it here.
                self.lock.release()
                try:
                    self._work(job)
                finally:
                    self.lock.acquire()

    def _start(self, job: Job | None) -> bool:
        thread = threading.Thread(
            target=self._work, args=(job,), name="arraychest-writer", daemon=False
        )
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            return False
        return True

    def _try_all_again(self) -> None:
        self.failures.begin_round()
        self._nothing_fits = False

    # --- picking ---------------------------------------------------------------------------

    def _next_job(self) -> Job | None:
        """What to store now; marks it as being written.  Called under the lock."""
        job = self._pick()
        if (
            job is None
            and self._deletions.waiting
            and not self._committing
            and not self.failures.deletions
            # On a full disk they make the room that a put waits for.
            and (
                self._flushing or self._deletions.are_due or (self._awaited and self.failures.pause)
            )
        ):
            if self.failures.is_pausing and not (self._flushing or self._awaited):
                return None
            self._committing = True
            job = Job([], [], [])
        if job is None and self._compactor.sparse:
            job = Job([], [], [], compact=self._compactor.sparse.pop())
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
        if self.failures.has_failed and not (self._awaited or self._flushing):
            if self.failures.is_pausing:
                return None
            self._try_all_again()
        # Whichever has waited longer.
        if self.index.oldest_batch() < self.resident.oldest():
            return self._next_batch(wanted) or self._next_victims(wanted)
        return self._next_victims(wanted) or self._next_batch(wanted)

    def _next_batch(self, wanted: int) -> Job | None:
        try:
            batch = self.index.next_batch(wanted)
        except (OSError, ArrayChestError) as error:
            # The catalog cannot be read: the values stay fresh.
            self.failures.note(error)
            self._draining = False
            return None
        if batch is None:
            return None
        return Job([], [], batch.arrays, batch.nbytes, small=True, batch=batch)

    def _next_victims(self, wanted: int) -> Job | None:
        if self._nothing_fits:
            return None
        slots = self.resident.victims(
            self.failures.values,
            min(BATCH_BYTES, wanted),
            BATCH_VALUES,
            small=not self._packing,
            large=1 if self.failures.one_by_one else None,
        )
        if not slots:
            self._nothing_fits = True
            return None
        return self._job(slots)

    def _job(self, slots: list[Slot]) -> Job:
        versions = []
        arrays = []
        kinds = []
        nbytes = 0
        small = slots[0].is_small and not self._packing
        for slot in slots:
            array = slot.array
            assert array is not None
            slot.writing = slot.version
            versions.append(slot.version)
            arrays.append(array)
            kinds.append(slot.kind)
            nbytes += array.nbytes
        if small:
            self._packing = True
        return Job(slots, versions, arrays, nbytes, small, kinds=kinds)

    # --- the writer threads ----------------------------------------------------------------

    def _work(self, job: Job | None) -> None:
        try:
            self._work_on(job)
        except BaseException:
            # Whoever waits for this thread must not wait for good.
            with self.lock:
                self._threads.discard(threading.current_thread())
                self.changed.notify_all()
            raise

    def _work_on(self, job: Job | None) -> None:
        while True:
            if job is not None:
                self._do(job)
            with self.lock:
                # Together with the look for the next one: whoever waits for all jobs to be done
                # must not see none while there is more to do.
                if job is not None:
                    self._jobs -= 1
                job = self._next_job()
                if job is None:
                    self._drained.notify_all()
                    self.changed.notify_all()
                    job = self._wait_for_job()
                if job is None:
                    at_rest, self._at_rest = self._at_rest, None
                    if at_rest is not None:
                        try:
                            at_rest()
                        except Exception as error:
                            logger.debug("a snapshot could not be ended: %s", error)
                    self._threads.discard(threading.current_thread())
                    self.changed.notify_all()
                    return

    def _wait_for_job(self) -> Job | None:
        """A job that came within a moment: starting a thread takes 100 us, often for one value."""
        if threading.current_thread() not in self._threads:
            return None  # a caller that does the work itself
        self._idle += 1
        try:
            deadline = time.monotonic() + _LINGER_SECONDS
            while not (self._handed or self._ending):
                left = deadline - time.monotonic()
                if left <= 0 or not self.job_given.wait(left):
                    break
        finally:
            self._idle -= 1
        return self._handed.popleft() if self._handed else None

    def _do(self, job: Job) -> None:
        error: BaseException | None = None
        self._tell_scarcity()
        try:
            if job.compact is not None:
                self._compactor.compact_pack(job.compact)
            else:
                self._saver.store(job)
                logger.debug("stored %d bytes in the background", job.nbytes)
        except BaseException as caught:  # whatever it was, the values stay and somebody is told
            error = caught
            # It is kept until it is told, and with it what its frames hold: the arrays, and a
            # statement that was not read to its end, which keeps SQLite at an old snapshot.
            traceback.clear_frames(caught.__traceback__)
        with self.lock:
            self._in_flight -= job.nbytes
            self._nothing_fits = False
            slots, versions = job.slots, job.versions
            if job.batch is not None:
                if error is not None and job.batch.slots is None:
                    self.index.give_slots(job.batch)
                slots, versions = job.batch.slots or [], job.batch.numbers
            elif job.small:
                self._packing = False
            if job.only_deletes:
                self._committing = False
                self.failures.deletions = error is not None
                if self.failures.values and not self.failures.deletions:
                    # There may be room now for what had none.
                    self._try_all_again()
            # One of them may have been the reason: each is tried alone before anybody is told.
            split = error is not None and len(job.slots) > 1 and not job.small
            self.failures.one_by_one |= split
            for slot, version in zip(slots, versions, strict=False):
                if slot.writing == version:
                    self._deletions.written(slot)
                    if error is not None and not split:
                        self.failures.values.add(slot)
            # The arrays leave RAM now, not when the thread finds its next job.
            job.arrays.clear()
            news, again = False, bool(self.failures.pause)
            if error is None:
                self.failures.pause = 0.0
            elif job.compact is None and not split:
                # Who waits for it is given the error.
                news = not (self.failures.pause or self._flushing or self._awaited)
                self.failures.note(error)
                self._draining = False
            self.changed.notify_all()
        if error is not None:
            # What is tried again and again, as where a disk stays full, is told of once.
            level = logging.DEBUG if again or split else logging.WARNING
            logger.log(level, "spill failed, values stay in RAM: %s", error)
        if news:
            warn(f"values could not be spilled and stay in RAM; they are tried again: {error}")

    def _tell_scarcity(self) -> None:
        """Warn, once, if a chest spills early because others use the memory."""
        budget = self.budget
        if self._scarcity_told or self._flushing or not (self._draining or self._awaited):
            return
        if budget.is_scarce:
            self._scarcity_told = True
            message = (
                f"memory is scarce: expected up to {format_bytes(budget.nominal)} for values in "
                f"RAM, found {format_bytes(budget.bytes)}, which is what others leave; the rest is "
                "spilled early (available_memory= sets a budget that stays)"
            )
            logger.warning("%s", message)
            warn(message)

    def after_fork_in_child(self) -> None:
        """No other thread is left, and what they were at is the parent's."""
        self._committer.make_locks()
        self._begin(self.budget)

    # --- waiting for it --------------------------------------------------------------------

    def flush(self) -> None:
        """Return once every value put and every key deleted before the call is committed.

        Raises
        ------
        SpillError
            Some could not be; they stay in RAM, or stay deleted, and are tried again later.
        """
        self._refuse_writer("values could not be stored")
        with self.lock:
            try:
                self.index.cut_fresh()
            except (OSError, ArrayChestError) as error:
                raise SpillError(f"values could not be stored: {error}") from error
            batches = deque(self.resident.batches)
            slots = self.resident.slots()
            versions = [slot.version for slot in slots]
            slots += self._deletions.all
            versions += [-1] * (len(slots) - len(versions))
            self._try_all_again()
            self.failures.untold = None
            self._flushing += 1
            try:
                at = 0
                while True:
                    self.wake()
                    while batches and (batches[0].stored or batches[0].slots is not None):
                        batch = batches.popleft()
                        if batch.slots is not None:
                            slots += batch.slots
                            versions += batch.numbers
                    while at < len(slots) and not self._waits(slots[at], versions[at]):
                        at += 1
                    if (at == len(slots) and not batches) or not (self._jobs or self.callers):
                        break
                    # Not `changed`: to look after each of many commits would hinder them.  What
                    # others put meanwhile, and is stored first, holds it up for a moment only.
                    self._drained.wait(_LOOK_SECONDS)
            finally:
                self._flushing -= 1
            left = sum(map(self._waits, slots[at:], versions[at:]))
            left += sum(len(batch.keys) for batch in batches)
            if left:
                told = amount(left, "value or deletion", "values or deletions")
                self.failures.raise_last(f"{told} could not be stored")
            elif not self.failures.are_open(bool(self._deletions.waiting)):
                # What failed on the way is stored by now.
                self.failures.end()

    def _refuse_writer(self, what: str) -> None:
        """Raise SpillError in a writer thread, which would wait for itself for good."""
        if self.is_writer_thread():
            raise SpillError(f"{what}: expected a thread of the user's, found `on_overflow`")

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
        self._try_all_again()
        while slot.version == version and slot.array is not None:
            if slot in self.failures.values:
                self.failures.raise_last(f"the value of key {slot.key!r} could not be stored")
                return
            if slot.writing < 0 and slot not in self._urgent:
                self._urgent.append(slot)
            self.wake()
            if slot.array is not None and slot not in self.failures.values:
                self.changed.wait()

    def end_work(self) -> None:
        """A caller's thread is no longer at work.  Called under the lock."""
        self._drained.notify_all()
        self.changed.notify_all()

    def call_at_rest(self, function: Callable[[], object]) -> None:
        """Call a function once, under the lock, a moment from now.  Called under the lock."""
        self._at_rest = function
        if not self._threads:
            self._start(None)

    def unsaved(self) -> bool:
        """Whether there is anything that the catalog does not know.  Called under the lock."""
        return bool(self.resident.count or self._deletions.waiting)

    def wait_idle(self) -> None:
        """Return once no writer thread is left.  Called under the lock."""
        self._ending = True
        try:
            while self._threads or self._jobs or self.callers:
                self.job_given.notify_all()
                self.changed.wait()
        finally:
            self._ending = False

    def is_writer_thread(self) -> bool:
        """Whether the calling thread is one of the writers."""
        return threading.current_thread() in self._threads
