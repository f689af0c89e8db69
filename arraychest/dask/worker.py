"""`WorkerChest`: what a dask worker keeps its results in, spilled to files and mapped back.

It takes the place of dask's spill buffer.  A result is kept in RAM, as the very object, until the
worker's memory target is passed; then the least recently used ones are written, plain arrays as
they are and all else pickled with its buffers beside it.  What is asked for again is a private map
of its file: only the pages that a task touches are read, a task may write to it, and the file
stays, so that to let go of it again costs nothing.

A result that is to leave RAM is written by a thread, and is in RAM until it is.  A put waits where
much is still to be written; and where the process has passed what dask spills from, which dask
itself may see when it is too late.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from distributed.metrics import context_meter
from distributed.sizeof import safe_sizeof
from distributed.spill import SpilledSize
from distributed.utils import RateLimiterFilter

from arraychest.arrays.ownership import owner_of
from arraychest.dask import settings
from arraychest.dask.files import ResultFiles, Written
from arraychest.dask.metrics import Cause, SpillMetrics
from arraychest.dask.pages import MappedPages
from arraychest.dask.pickling import Pickled, unpickled
from arraychest.dask.pickling import taken as taken_of
from arraychest.dask.views import View
from arraychest.platform.maps import is_map
from arraychest.platform.pages import resident_bytes

logger = logging.getLogger("distributed.spill.arraychest")
logger.addFilter(RateLimiterFilter("max-spill is reached"))
logger.addFilter(RateLimiterFilter("could not be spilled"))

# A put waits while more than this share of the target is still to be written, or so many bytes.
_BACKLOG = 1 / 16
_MOST_BACKLOG = 256 << 20

# What the process has in RAM is looked at whenever results of this share of its limit were put.
_LOOK = 1 / 64

# Results are written from this share of what dask spills from on.
_EARLIER = 0.93

_NONE = object()  # what is no key

# Of what was pickled, this much may be made anew at each get; where it is more, the result stays
# in RAM: all else of it is a map.
_UNPICKLED_BYTES = 64 * 1024


class _Stored(NamedTuple):
    """What is known of a result that has a file.

    Attributes
    ----------
    number
        That of its file.
    memory, disk
        Its size in RAM as dask counts it, and on disk: of its data alone until it is written.
    writable
        Of a plain array, whether it was; None for what was pickled.
    """

    number: int
    memory: int
    disk: int
    writable: bool | None


class WorkerChest(MutableMapping[Any, Any]):
    """The results of a dask worker: ``Worker(data=WorkerChest)``.

    Parameters
    ----------
    worker_local_directory
        The worker's folder, which dask fills in; files go to ``arraychest`` in it, and with it.
    target
        Managed memory from which on results are spilled: bytes, a size (``"4 GiB"``) or a share of
        the worker's memory limit (``0.5``).  None: what ``arraychest.worker.target`` says in dask's
        configuration, or else ``distributed.worker.memory.target``.
    max_spill
        Most bytes on disk; False: any number.  None: ``arraychest.worker.max-spill``, or else
        ``distributed.worker.memory.max-spill``.
    compression
        As `arraychest.Chest` takes it; what comes back is then an array in RAM.  False: none.
        None: what ``arraychest.worker.compression`` says in dask's configuration, or else
        ``distributed.worker.memory.spill-compression``.  Unlike dask's spill buffer a chest leaves
        results uncompressed where that is ``"auto"``, as it is by default: it maps them.

    Notes
    -----
    Called by the worker's event loop; safe from other threads, too.

    A task that has a result while it is spilled goes on with the very object, and so does every
    task that asks for it meanwhile.  What comes back from its file is as it was when it was
    written: what a task writes to it, only those see that have it at the same time.  Of what it
    writes while the result is being spilled, any part may be in the file; dask asks tasks to write
    to nothing that they were given.

    Examples
    --------
    >>> from distributed import LocalCluster
    >>> cluster = LocalCluster(data=WorkerChest, ...)  # doctest: +SKIP
    """

    def __init__(
        self,
        worker_local_directory: str,
        *,
        target: int | float | str | None = None,
        max_spill: int | str | Literal[False] | None = None,
        compression: Any = None,
    ) -> None:
        self._asked_target = target
        self._target: int | None = None
        self._max_spill = settings.max_spill(max_spill)
        self._lock = threading.RLock()
        self._files = ResultFiles(
            os.path.join(worker_local_directory, "arraychest"),
            self._max_spill,
            settings.compression(compression),
            self._lock,
        )
        # Whether the last write has failed.
        self._failing = False
        # From where on dask spills, by all that the process has in RAM; and what was put since
        # that was last looked at.
        self._spill_limit: int | None = None
        self._unseen = 0
        # Each key is in one of two: in RAM, the least recently used first, or not.
        self._fast: OrderedDict[Any, Any] = OrderedDict()
        self._slow: dict[Any, _Stored] = {}
        # Of those in RAM, what dask counts for each, and which have a file all the same.
        self._weights: dict[Any, int] = {}
        self._clean: dict[Any, _Stored] = {}
        self._charged = 0
        self._spilled_memory = self._spilled_disk = 0
        # Of those that are not, what is still to be written.
        self._leaving: dict[Any, Any] = {}
        # What has left RAM, as long as somebody has it.
        self._held: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self._pages = MappedPages()
        self._numbers = itertools.count()
        # Those that cannot be pickled, which was logged.
        self._refused: set[Any] = set()
        self._metrics = SpillMetrics()
        self._fast_view = View(self._fast, self._lock)
        self._slow_view = View(self._slow, self._lock)

    # --- what dask asks for ------------------------------------------------------------------

    @property
    def fast(self) -> Mapping[Any, Any]:
        """What is in RAM, by key; it may be iterated over while other threads get and put."""
        return self._fast_view

    memory = fast

    @property
    def slow(self) -> Mapping[Any, Any]:
        """What has left RAM, by key: where it is stored; as `fast`."""
        return self._slow_view

    disk = slow

    @property
    def cumulative_metrics(self) -> defaultdict[tuple[str, str], float]:
        """What reads and writes add up to: by label and unit (``"count"``, ``"bytes"``,
        ``"seconds"``), as ``("disk-write", "bytes")``.
        """
        return self._metrics.cumulative

    @property
    def spilled_total(self) -> SpilledSize:
        """Bytes of what has left RAM, as dask counts them, and of all files.

        Files of results that were read back into RAM are kept, and count.
        """
        return SpilledSize(self._spilled_memory, self._spilled_disk)

    @property
    def target(self) -> int:
        """Managed memory from which on results are spilled, in bytes."""
        if self._target is None:
            # It is made before its worker knows of it: from the first result on it does.
            worker = settings.worker_of(self)
            if worker is None:
                return settings.target(self._asked_target, None)
            self.attach(worker)
            assert self._target is not None
        return self._target

    @property
    def _backlog(self) -> int:
        return min(int(self.target * _BACKLOG), _MOST_BACKLOG)

    def attach(self, worker: Any) -> None:
        """Learn what the worker may use; and have it look at its memory without what is as good as
        gone: pages of maps, and what is about to be written.

        It finds its worker itself, with the first result, unless this was called before.
        """
        if self._target is not None:
            return
        limit = worker.memory_manager.memory_limit
        self._target = settings.target(self._asked_target, limit)
        self._spill_limit = settings.spill_limit(limit)
        self._pages.limit = settings.release_limit(limit)
        self._metrics.attach(worker)
        monitor = worker.monitor
        watched = self._pages.watched(monitor.get_process_memory)
        # dask would spill as much again before this is gone.
        monitor.get_process_memory = lambda: max(0, watched() - self._files.waiting_memory)
        # So that it is closed before dask removes the worker's folder, in which threads of ours
        # would go on.
        worker.extensions["arraychest"] = self

    def evict(self) -> int:
        """Let the least recently used result leave RAM, at once or as soon as it is written.

        One that cannot be pickled is passed over.

        Returns
        -------
        int
            Its size as dask counts it; -1 if none could be written: all stay in RAM, and why was
            logged.  Raises nothing.
        """
        try:
            with self._lock, self._metrics.call():
                self._files.wait(self._backlog)
                return self._evict_oldest(len(self._fast))
        except Exception:
            logger.exception("results could not be spilled, and stay in RAM")
            return -1

    def flush(self) -> None:
        """Return once all that has left RAM is written, or is back because it could not be."""
        with self._lock:
            self._files.wait()

    # --- the mapping -------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep a result, and spill older ones if it takes more than there may be.

        Raises
        ------
        TypeError
            It is larger than the target by itself, and cannot be pickled.  It is not kept.  Why it
            cannot is the cause of this, and what the object has raised is the cause of that.

        Notes
        -----
        Where the disk is full, or has no room left by `max_spill`, results stay in RAM.
        """
        with self._lock, self._metrics.call(puts=True, key=key):
            self.discard(key)
            weight = safe_sizeof(value)
            self._keep(key, value, weight)
            if weight > self.target:
                self._files.wait(self._backlog)
                if self._fast.get(key) is value:
                    self._evict(key, fatal=True)
            self._shrink()
            self._unseen += weight
            self._relieve()

    def __getitem__(self, key: Any) -> Any:
        with self._lock, self._metrics.call():
            if key in self._fast:
                self._fast.move_to_end(key)
                context_meter.digest_metric("memory-read", 1, "count")
                context_meter.digest_metric("memory-read", self._weights[key], "bytes")
                return self._fast[key]
            stored = self._slow[key]
            if key in self._leaving:
                return self._leaving[key]
            value = self._held.get(key)
            return self._load(key, stored) if value is None else value

    def __delitem__(self, key: Any) -> None:
        with self._lock:
            if key not in self:
                raise KeyError(key)
            self.discard(key)

    def discard(self, key: Any) -> None:
        """Forget a result, if it is there; reads nothing."""
        with self._lock:
            if key in self._fast:
                self._let_go(key)
                stored = self._clean.pop(key, None)
            else:
                stored = self._slow.pop(key, None)
                if stored is not None:
                    self._spilled_memory -= stored.memory
            self._leaving.pop(key, None)
            self._held.pop(key, None)
            self._refused.discard(key)
            if stored is not None:
                self._spilled_disk -= stored.disk
                self._files.remove(stored.number)

    def pop(self, key: Any, default: Any = None) -> Any:
        """Refused, as dask's own does: it would read what is to be forgotten."""
        raise NotImplementedError("expected `del`, which reads nothing back, found `pop`")

    def clear(self) -> None:
        """Forget all results; reads nothing."""
        for key in list(self):
            self.discard(key)

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._fast or key in self._slow

    def __iter__(self) -> Iterator[Any]:
        with self._lock:
            return iter([*self._fast, *self._slow])

    def __len__(self) -> int:
        with self._lock:
            return len(self._fast) + len(self._slow)

    def __repr__(self) -> str:
        return (
            f"<WorkerChest {self._files.folder}: {len(self._fast)} results in RAM, "
            f"{len(self._slow)} spilled>"
        )

    def close(self) -> None:
        """Remove all files.  What was handed out stays valid; what is in RAM is there to read.

        Called when the worker closes; nothing is spilled any more.
        """
        with self._lock:
            self._files.close()

    # --- in RAM ------------------------------------------------------------------------------

    def _keep(self, key: Any, value: Any, weight: int) -> None:
        self._fast[key] = value
        self._weights[key] = weight
        self._charged += weight

    def _let_go(self, key: Any) -> int:
        del self._fast[key]
        weight = self._weights.pop(key)
        self._charged -= weight
        return weight

    def _shrink(self, spared: int = 0) -> None:
        """Have results written until the target is met, but for the `spared` most recently used."""
        while self._charged > self.target and len(self._fast) > spared:
            self._files.wait(self._backlog)
            if self._evict_oldest(len(self._fast) - spared) < 0:
                return

    def _relieve(self) -> None:
        """Have written what the process has in RAM beyond where it should be, before dask sees it.

        dask looks ten times a second, and pauses the worker where memory has gone far beyond
        meanwhile.  From where dask spills on the put waits, too.
        """
        limit = self._spill_limit
        if limit is None or self._unseen < limit * _LOOK:
            return
        self._unseen = 0
        # With pages of maps: those are what tasks read now, and would read again.
        resident, _ = resident_bytes()
        excess = resident - self._files.waiting_memory - int(limit * _EARLIER)
        while excess > 0:
            self._files.wait(self._backlog)
            weight = self._evict_oldest(len(self._fast))
            if weight < 0:
                break
            excess -= weight
        self._files.wait(max(0, self._files.waiting_bytes - max(0, resident - limit)))

    def _evict_oldest(self, count: int) -> int:
        """Evict the oldest of the first `count` that can be; -1 if there is none."""
        while True:
            oldest = itertools.islice(self._fast, count)
            key = next(itertools.filterfalse(self._refused.__contains__, oldest), _NONE)
            if key is _NONE:
                return -1
            weight = self._evict(key)
            if key not in self._refused:
                return weight

    # --- and on disk -------------------------------------------------------------------------

    def _evict(self, key: Any, *, fatal: bool = False) -> int:
        """Let a result leave RAM, and have it written unless it has a file; -1 if it stays.

        Raises
        ------
        TypeError
            It cannot be pickled, and that is `fatal`: it is forgotten.
        """
        value = self._fast[key]
        taken = None
        stored = self._clean.pop(key, None)
        if stored is None:
            if self._files.closed:
                return -1
            try:
                taken = taken_of(value)
            except Exception as error:
                if fatal:
                    self.discard(key)
                    raise TypeError(f"Failed to pickle {key!r}") from error
                self._refused.add(key)
                logger.exception("Failed to pickle %r, which stays in RAM", key)
                return -1
            if self._max_spill is not None and self._spilled_disk + taken.nbytes > self._max_spill:
                logger.warning("max-spill is reached: results stay in RAM")
                return -1
            writable = value.flags.writeable if isinstance(taken, np.ndarray) else None
            weight = self._weights[key]
            stored = _Stored(next(self._numbers), weight, taken.nbytes, writable)
            self._leaving[key] = value
            self._spilled_disk += stored.disk
        weight = self._let_go(key)
        self._slow[key] = stored
        self._spilled_memory += stored.memory
        # As long as a task has it, it is the result, and not a second one beside it.
        self._note_held(key, value)
        if taken is not None:
            self._files.write(
                stored.number, taken, partial(self._written, key, self._metrics.cause())
            )
        if self._failing:
            self._files.wait()
        return -1 if key in self._fast else weight

    def _written(self, key: Any, cause: Cause, written: Written) -> None:
        """A result is on disk, or cannot be."""
        value = self._leaving.pop(key)
        stored = self._slow[key]
        self._failing = written.error is not None
        if self._failing:
            logger.error("result %r could not be spilled, and stays in RAM: %s", key, written.error)
            del self._slow[key]
            self._spilled_memory -= stored.memory
            self._spilled_disk -= stored.disk
            self._keep(key, value, stored.memory)
            self._fast.move_to_end(key, last=False)
            return
        self._slow[key] = stored._replace(disk=written.nbytes)
        self._spilled_disk += written.nbytes - stored.disk
        self._metrics.written(cause, written.nbytes, written.seconds)

    def _load(self, key: Any, stored: _Stored) -> Any:
        with context_meter.meter("disk-read", "seconds"):
            found = self._files.read(stored.number)
        context_meter.digest_metric("disk-read", 1, "count")
        context_meter.digest_metric("disk-read", stored.disk, "bytes")
        if stored.writable is not None:
            if not stored.writable:
                found.setflags(write=False)
            data, value = found, found
            mapped = is_map(owner_of(found))
        else:
            taken = Pickled(*found)
            with context_meter.meter("deserialize", "seconds"):
                value = unpickled(taken)
            data = taken.parts[0]
            mapped = is_map(owner_of(data)) and data.nbytes < _UNPICKLED_BYTES
        if mapped and self._note_held(key, value):
            self._pages.note(data)
            return value
        self._note_held(key, value)
        if stored.memory <= self.target:
            # It takes RAM now, which counts, and leaves it again without being written.
            del self._slow[key]
            self._spilled_memory -= stored.memory
            self._clean[key] = stored
            self._keep(key, value, stored.memory)
            self._shrink(spared=1)
        return value

    def _note_held(self, key: Any, value: Any) -> bool:
        """Have `value` found as long as somebody has it; False if it cannot be referred to weakly,
        and is made anew when it is asked for.
        """
        try:
            self._held[key] = value
        except TypeError:
            self._held.pop(key, None)
            return False
        return True
