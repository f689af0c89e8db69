"""`WorkerChest`: what a dask worker keeps its results in, spilled to files and mapped back.

It takes the place of dask's spill buffer.  A result is kept in RAM, as the very object, until the
worker's memory target is passed; then the least recently used ones are written, plain arrays as
they are and all else pickled with its buffers beside it.  What is asked for again is a private map
of its file: only the pages that a task touches are read, a task may write to it, and the file
stays, so that to let go of it again costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from distributed.metrics import context_meter
from distributed.sizeof import safe_sizeof
from distributed.spill import SpilledSize
from distributed.utils import RateLimiterFilter

import arraychest
from arraychest.dask import settings
from arraychest.dask.pages import MappedPages
from arraychest.dask.pickling import Pickled, pickled, unpickled
from arraychest.mapping import is_map
from arraychest.resident import owner_of

logger = logging.getLogger("distributed.spill.arraychest")
logger.addFilter(RateLimiterFilter("max-spill is reached"))
logger.addFilter(RateLimiterFilter("could not be spilled"))

# Of what was pickled, this much may be made anew at each get; where it is more, the result stays
# in RAM: all else of it is a map.
_UNPICKLED_BYTES = 64 * 1024


class _Stored(NamedTuple):
    """What is known of a result that has a file.

    Attributes
    ----------
    number
        Its key in the chest.
    memory, disk
        Its size in RAM as dask counts it, and on disk.
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
        As `arraychest.Chest` takes it; what comes back is then an array in RAM.  None:
        ``arraychest.worker.compression``; where that is None, too, results are written as they are.

    Notes
    -----
    Called by the worker's event loop; safe from other threads, too.

    A task that has a result while it is spilled goes on with the very object, and so does every
    task that asks for it meanwhile.  What comes back from its file is as it was when it was
    written: what a task writes to it, only those see that have it at the same time.

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
        self._compression = settings.option("compression", compression)
        self._folder = os.path.join(worker_local_directory, "arraychest")
        self._chest: arraychest.Chest | None = None
        self._closed = False
        # Whether there are files that the chest is still to remove.
        self._removals_wait = False
        self._lock = threading.RLock()
        # Each key is in one of two: in RAM, the least recently used first, or not.
        self._fast: OrderedDict[Any, Any] = OrderedDict()
        self._slow: dict[Any, _Stored] = {}
        # Of those in RAM, what dask counts for each, and which have a file all the same.
        self._weights: dict[Any, int] = {}
        self._clean: dict[Any, _Stored] = {}
        self._charged = 0
        self._spilled_memory = self._spilled_disk = 0
        # What has left RAM, as long as somebody has it.
        self._held: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self._pages = MappedPages()
        self._numbers = itertools.count()
        # Those that cannot be pickled, which was logged.
        self._refused: set[Any] = set()
        #: (label, unit) -> what it adds up to
        self.cumulative_metrics: defaultdict[tuple[str, str], float] = defaultdict(float)

    # --- what dask asks for ------------------------------------------------------------------

    @property
    def fast(self) -> Mapping[Any, Any]:
        """What is in RAM, by key."""
        return MappingProxyType(self._fast)

    memory = fast

    @property
    def slow(self) -> Mapping[Any, Any]:
        """What has left RAM, by key: where it is stored."""
        return MappingProxyType(self._slow)

    disk = slow

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

    def attach(self, worker: Any) -> None:
        """Learn what the worker may use; and have it look at its memory without pages of ours.

        It finds its worker itself, with the first result, unless this was called before.
        """
        limit = worker.memory_manager.memory_limit
        self._target = settings.target(self._asked_target, limit)
        self._pages.limit = settings.release_limit(limit)
        monitor = worker.monitor
        monitor.get_process_memory = self._pages.watched(monitor.get_process_memory)

    def evict(self) -> int:
        """Let the least recently used result leave RAM.

        One that cannot be pickled is passed over.

        Returns
        -------
        int
            Its size as dask counts it; -1 if none could be written: all stay in RAM, and why was
            logged.  Raises nothing.
        """
        try:
            with self._lock, self._metered():
                return self._evict_oldest(len(self._fast))
        except Exception:
            logger.exception("results could not be spilled, and stay in RAM")
            return -1

    # --- the mapping -------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep a result, and spill older ones if it takes more than there may be.

        Raises
        ------
        Exception
            It is larger than the target by itself, and cannot be pickled.  It is not kept.

        Notes
        -----
        Where the disk is full, or has no room left by `max_spill`, results stay in RAM.
        """
        with self._lock, self._metered():
            self.discard(key)
            weight = safe_sizeof(value)
            self._keep(key, value, weight)
            if weight > self.target:
                self._evict(key, fatal=True)
            self._shrink()

    def __getitem__(self, key: Any) -> Any:
        with self._lock, self._metered():
            if key in self._fast:
                self._fast.move_to_end(key)
                context_meter.digest_metric("memory-read", 1, "count")
                context_meter.digest_metric("memory-read", self._weights[key], "bytes")
                return self._fast[key]
            stored = self._slow[key]
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
            self._held.pop(key, None)
            self._refused.discard(key)
            if stored is not None:
                self._spilled_disk -= stored.disk
                self._remove(stored.number)

    def pop(self, key: Any, default: Any = None) -> Any:
        """Refused, as dask's own does: it would read what is to be forgotten."""
        raise NotImplementedError("expected `del`, which reads nothing back, found `pop`")

    def clear(self) -> None:
        """Forget all results; reads nothing."""
        for key in list(self):
            self.discard(key)

    def __contains__(self, key: object) -> bool:
        return key in self._fast or key in self._slow

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain(self._fast, self._slow)

    def __len__(self) -> int:
        return len(self._fast) + len(self._slow)

    def __repr__(self) -> str:
        return (
            f"<WorkerChest {self._folder}: {len(self._fast)} results in RAM, "
            f"{len(self._slow)} spilled>"
        )

    def close(self) -> None:
        """Remove all files.  What was handed out stays valid; what is in RAM is there to read.

        Called when the worker's folder goes; nothing is spilled any more.
        """
        with self._lock:
            self._closed = True
            if self._chest is not None:
                _drop(self._chest)

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
        """Spill until the target is met, but for the `spared` most recently used."""
        while self._charged > self.target and len(self._fast) > spared:
            if self._evict_oldest(len(self._fast) - spared) < 0:
                break

    def _evict_oldest(self, count: int) -> int:
        """Evict the oldest of the first `count` that can be; -1 if there is none."""
        for key in list(itertools.islice(self._fast, count)) if self._refused else self._fast:
            if key in self._refused:
                continue
            weight = self._evict(key)
            if weight >= 0 or key not in self._refused:
                return weight
            return self._evict_oldest(count)
        return -1

    # --- and on disk -------------------------------------------------------------------------

    def _evict(self, key: Any, *, fatal: bool = False) -> int:
        """Write a result unless it has a file already, and let it leave RAM; -1 if it stays.

        Raises
        ------
        Exception
            It cannot be pickled, and that is `fatal`: it is forgotten.
        """
        value = self._fast[key]
        stored = self._clean.get(key)
        if stored is None:
            try:
                taken = _taken(value)
            except Exception:
                if fatal:
                    self.discard(key)
                    raise
                self._refused.add(key)
                logger.exception("Failed to pickle %r, which stays in RAM", key)
                return -1
            if self._max_spill is not None and self._spilled_disk + taken.nbytes > self._max_spill:
                logger.warning("max-spill is reached: results stay in RAM")
                return -1
            stored = self._store(key, value, taken)
            if stored is None:
                return -1
            self._spilled_disk += stored.disk
        self._clean.pop(key, None)
        self._slow[key] = stored
        self._spilled_memory += stored.memory
        # As long as a task has it, it is the result, and not a second one beside it.
        self._note_held(key, value)
        return self._let_go(key)

    def _store(self, key: Any, value: Any, taken: np.ndarray | Pickled) -> _Stored | None:
        number = next(self._numbers)
        if self._closed:
            return None
        try:
            with context_meter.meter("disk-write", "seconds"):
                nbytes = self._write(number, tuple(taken) if isinstance(taken, Pickled) else taken)
        except (OSError, arraychest.ArrayChestError) as error:
            # A full disk, mostly.
            waiting = self._removals_wait
            self._remove(number)
            self._removals_wait = waiting
            logger.error("result %r could not be spilled, and stays in RAM: %s", key, error)
            return None
        context_meter.digest_metric("disk-write", 1, "count")
        context_meter.digest_metric("disk-write", nbytes, "bytes")
        writable = value.flags.writeable if isinstance(taken, np.ndarray) else None
        return _Stored(number, self._weights[key], nbytes, writable)

    def _write(self, number: int, taken: Any) -> int:
        """Write what `_taken` gave; returns its bytes on disk."""
        chest = self._open()
        while True:
            try:
                chest[number] = taken
                chest.spill(number)
                return chest.entry(number).stored_bytes
            except OSError:
                if not self._removals_wait:
                    raise
                # A chest removes files a little later than it is asked to: there may be room then.
                chest.discard(number)
                self._removals_wait = False
                chest.flush()

    def _open(self) -> arraychest.Chest:
        if self._chest is None:
            # Small: what is put here leaves RAM at once.  The folder is this worker's alone, on
            # whatever file system, and goes with it: checksums, which would take as long as the
            # writes, tell nobody anything.
            self._chest = arraychest.Chest(
                path=self._folder,
                available_memory="16 MiB",
                mode="w",
                mmap_mode="c",
                on_put="share",
                compression=self._compression,
                allow_network=True,
                checksums=False,
                # Counted here; with a limit of its own the chest keeps no files for later use.
                max_disk=None if self._max_spill is None else self._max_spill * 9 // 8 + (16 << 20),
            )
            weakref.finalize(self, _drop, self._chest)
        return self._chest

    def _remove(self, number: int) -> None:
        if self._chest is not None and not self._chest.closed:
            self._removals_wait = True
            with contextlib.suppress(OSError, arraychest.ArrayChestError):
                self._chest.discard(number)

    def _load(self, key: Any, stored: _Stored) -> Any:
        assert self._chest is not None
        with context_meter.meter("disk-read", "seconds"):
            found = self._chest[stored.number]
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

    @contextmanager
    def _metered(self) -> Iterator[None]:
        def note(label: Hashable, value: float, unit: str) -> None:
            self.cumulative_metrics[str(label), unit] += value

        with context_meter.add_callback(note):
            yield


def _drop(chest: arraychest.Chest) -> None:
    """Remove a chest; its folder may be gone already, with the worker's."""
    if not chest.closed:
        with contextlib.suppress(OSError, arraychest.ArrayChestError):
            chest.drop()


def _taken(value: Any) -> np.ndarray | Pickled:
    """A result as the chest takes it; an array that lies in one piece is not copied."""
    if type(value) is np.ndarray and _is_plain(value):
        return value if value.flags.forc else np.ascontiguousarray(value)
    with context_meter.meter("serialize", "seconds"):
        return pickled(value)


def _is_plain(array: np.ndarray) -> bool:
    # Of NumPy's own dtypes.  A broadcast array is small in RAM, and would be large on disk.
    dtype = array.dtype
    own = dtype.kind in "biufcmMSU" and dtype.isbuiltin != 2 and dtype.metadata is None
    return own and array.nbytes > 0 and (array.flags.forc or 0 not in array.strides)
