"""`WorkerChest`: what a dask worker keeps its results in, spilled to files and mapped back.

It takes the place of dask's spill buffer.  A result is kept in RAM, as the very object, until the
worker's memory target is passed; then the least recently used ones are written, plain arrays as
they are and all else pickled with its buffers beside it.  What is asked for again is a private map
of its file: only the pages that a task touches are read, a task may write to it, and the file
stays, so that to let go of it again costs nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import dask.config
import numpy as np
from dask.utils import parse_bytes
from distributed.metrics import context_meter
from distributed.protocol.pickle import dumps, loads
from distributed.sizeof import safe_sizeof
from distributed.spill import SpilledSize
from distributed.utils import RateLimiterFilter
from distributed.worker import Worker

import arraychest

logger = logging.getLogger("distributed.spill.arraychest")
logger.addFilter(RateLimiterFilter("max-spill is reached"))
logger.addFilter(RateLimiterFilter("could not be spilled"))

# What was read back is kept in RAM if pickle has made so many of its bytes: all else is a map.
_UNPICKLED_BYTES = 64 * 1024


class _Stored(NamedTuple):
    """What is known of a result that has a file.

    Attributes
    ----------
    number
        Its key in the chest.
    size
        In RAM as dask counts it, and on disk.
    writable
        Of a plain array, whether it was; None for what was pickled.
    """

    number: int
    size: SpilledSize
    writable: bool | None


class _Written(NamedTuple):
    """A result as it is put into the chest."""

    value: Any
    nbytes: int
    writable: bool | None


class WorkerChest(MutableMapping[Any, Any]):
    """The results of a dask worker: ``Worker(data=WorkerChest)``.

    Parameters
    ----------
    worker_local_directory
        The worker's folder, which dask fills in; files go to ``arraychest`` in it, and with it.
    target
        Managed memory, in bytes or as ``"4 GiB"``, from which on results are spilled.  None: the
        worker's memory limit times ``distributed.worker.memory.target``.
    max_spill
        Most bytes on disk.  None: ``distributed.worker.memory.max-spill``.
    compression
        As `arraychest.Chest` takes it.  None: results are written as they are.

    Notes
    -----
    Called by the worker's event loop; gets may come from other threads.

    Examples
    --------
    >>> from distributed import LocalCluster
    >>> cluster = LocalCluster(data=WorkerChest, ...)  # doctest: +SKIP
    """

    def __init__(
        self,
        worker_local_directory: str,
        *,
        target: int | str | None = None,
        max_spill: int | str | Literal[False] | None = None,
        compression: Any = None,
    ) -> None:
        self._target = None if target is None else parse_bytes(target)
        if max_spill is None:
            max_spill = dask.config.get("distributed.worker.memory.max-spill")
        self._max_spill = None if max_spill is False else parse_bytes(max_spill)
        # Small: what is put here leaves RAM at once.
        self._chest = arraychest.Chest(
            path=os.path.join(worker_local_directory, "arraychest"),
            available_memory="64 MiB",
            mode="w",
            mmap_mode="c",
            on_put="share",
            compression=compression,
        )
        self._fast: OrderedDict[Any, Any] = OrderedDict()
        self._weights: dict[Any, int] = {}
        self._charged = 0
        self._slow: dict[Any, _Stored] = {}
        # What was read back, as long as somebody has it.
        self._read: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self._spilled = SpilledSize(0, 0)
        self._numbers = 0
        self._logged: set[Any] = set()
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
        return {key: stored for key, stored in self._slow.items() if key not in self._fast}

    disk = slow

    @property
    def spilled_total(self) -> SpilledSize:
        """Bytes of what has left RAM: as dask counts it, and on disk."""
        return self._spilled

    @property
    def target(self) -> int:
        """Managed memory from which on results are spilled, in bytes."""
        if self._target is None:
            # dask makes this before it knows of it: from the first result on it does.
            limit = None
            for worker in list(Worker._instances):
                if getattr(worker, "memory_manager", None) and worker.data is self:
                    limit = worker.memory_manager.memory_limit
            fraction = dask.config.get("distributed.worker.memory.target")
            self._target = int(limit * fraction) if limit and fraction else sys.maxsize
        return self._target

    def evict(self) -> int:
        """Let the least recently used result leave RAM.

        Returns
        -------
        int
            Its size as dask counts it; -1 if it could not be written: it stays in RAM, and why was
            logged.  Raises nothing.
        """
        with self._metered():
            for key in self._fast:
                return self._evict(key)
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
        with self._metered():
            self.discard(key)
            weight = safe_sizeof(value)
            self._keep(key, value, weight)
            if weight > self.target:
                self._evict(key, fatal=True)
            while self._charged > self.target and self._fast:
                if self._evict(next(iter(self._fast))) < 0:
                    break

    def __getitem__(self, key: Any) -> Any:
        with self._metered():
            if key in self._fast:
                self._fast.move_to_end(key)
                context_meter.digest_metric("memory-read", 1, "count")
                context_meter.digest_metric("memory-read", self._weights[key], "bytes")
                return self._fast[key]
            stored = self._slow[key]
            value = self._read.get(key)
            if value is None:
                value = self._load(key, stored)
            return value

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self.discard(key)

    def discard(self, key: Any) -> None:
        """Forget a result, if it is there; reads nothing."""
        if key in self._fast:
            self._let_go(key)
        elif key in self._slow:
            self._spilled -= self._slow[key].size
        stored = self._slow.pop(key, None)
        self._read.pop(key, None)
        self._logged.discard(key)
        if stored is not None:
            self._chest.discard(stored.number)

    def pop(self, key: Any, default: Any = None) -> Any:  # noqa: ARG002
        """Refused, as dask's own does: it would read what is to be forgotten."""
        raise NotImplementedError("expected `del`, which reads nothing back, found `pop`")

    def __contains__(self, key: object) -> bool:
        return key in self._fast or key in self._slow

    def __iter__(self) -> Iterator[Any]:
        yield from self._fast
        for key in self._slow:
            if key not in self._fast:
                yield key

    def __len__(self) -> int:
        return len(self._fast.keys() | self._slow.keys())

    def __repr__(self) -> str:
        return (
            f"<WorkerChest {self._chest.path}: {len(self._fast)} results in RAM, "
            f"{len(self) - len(self._fast)} spilled>"
        )

    def close(self) -> None:
        """Remove all files.  What was handed out stays valid."""
        if not self._chest.closed:
            self._chest.drop()

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

    # --- and on disk -------------------------------------------------------------------------

    def _evict(self, key: Any, *, fatal: bool = False) -> int:
        """Write a result unless it has a file already, and let it leave RAM; -1 if it stays.

        Raises
        ------
        Exception
            It cannot be pickled, and that is `fatal`: it is forgotten.
        """
        stored = self._slow.get(key)
        if stored is None:
            try:
                written = _written(self._fast[key])
            except Exception:
                if fatal:
                    self.discard(key)
                    raise
                if key not in self._logged:
                    self._logged.add(key)
                    logger.exception("result %r cannot be pickled, and stays in RAM", key)
                return -1
            if (
                self._max_spill is not None
                and self._spilled.disk + written.nbytes > self._max_spill
            ):
                logger.warning("max-spill is reached: results stay in RAM")
                return -1
            stored = self._store(key, written)
            if stored is None:
                return -1
            self._slow[key] = stored
        value = self._fast[key]
        weight = self._let_go(key)
        self._spilled += stored.size
        # As long as a task has it, it is the result, and not a second one beside it.
        self._note_read(key, value)
        return weight

    def _store(self, key: Any, written: _Written) -> _Stored | None:
        self._numbers += 1
        number = self._numbers
        try:
            with context_meter.meter("disk-write", "seconds"):
                self._chest[number] = written.value
                self._chest.spill(number)
            nbytes = self._chest.entry(number).stored_bytes
        except OSError as error:
            # A full disk, mostly.
            self._chest.discard(number)
            logger.error("result %r could not be spilled, and stays in RAM: %s", key, error)  # noqa: TRY400
            return None
        context_meter.digest_metric("disk-write", 1, "count")
        context_meter.digest_metric("disk-write", nbytes, "bytes")
        return _Stored(number, SpilledSize(self._weights[key], nbytes), written.writable)

    def _load(self, key: Any, stored: _Stored) -> Any:
        with context_meter.meter("disk-read", "seconds"):
            found = self._chest[stored.number]
        context_meter.digest_metric("disk-read", 1, "count")
        context_meter.digest_metric("disk-read", stored.size.disk, "bytes")
        if stored.writable is not None:
            if not stored.writable:
                found.setflags(write=False)
            self._note_read(key, found)
            return found
        data, buffers, writable = found
        for buffer, may_write in zip(buffers, writable, strict=True):
            buffer.setflags(write=may_write)
        with context_meter.meter("deserialize", "seconds"):
            value = loads(data, buffers=buffers)
        self._note_read(key, value)
        if len(data) >= _UNPICKLED_BYTES or key not in self._read:
            # In RAM now, and dear to make once more: it leaves again without being written.
            self._spilled -= stored.size
            self._keep(key, value, stored.size.memory)
            while self._charged > self.target and len(self._fast) > 1:
                if self._evict(next(iter(self._fast))) < 0:
                    break
        return value

    def _note_read(self, key: Any, value: Any) -> None:
        try:
            self._read[key] = value
        except TypeError:
            # Nothing that can be referred to weakly: it is made anew when it is asked for.
            self._read.pop(key, None)

    @contextmanager
    def _metered(self) -> Iterator[None]:
        def note(label: Hashable, value: float, unit: str) -> None:
            self.cumulative_metrics[str(label), unit] += value

        with context_meter.add_callback(note):
            yield


def _written(value: Any) -> _Written:
    """A result as the chest takes it; nothing is copied."""
    if type(value) is np.ndarray and _is_plain(value):
        return _Written(value, value.nbytes, value.flags.writeable)
    buffers: list[np.ndarray] = []
    writable: list[bool] = []

    def keep(buffer: Any) -> bool:
        raw = buffer.raw()
        if not raw.nbytes:
            return True
        buffers.append(np.frombuffer(raw, np.uint8))
        writable.append(not raw.readonly)
        return False

    with context_meter.meter("serialize", "seconds"):
        # Falls back to cloudpickle, as dask's own does.
        data = dumps(value, buffer_callback=keep)
    nbytes = len(data) + sum([buffer.nbytes for buffer in buffers])
    return _Written((data, buffers, writable), nbytes, None)


def _is_plain(array: np.ndarray) -> bool:
    # Of NumPy's own dtypes.  A broadcast array is small in RAM, and would be large on disk.
    dtype = array.dtype
    own = dtype.kind in "biufcmMSU" and dtype.isbuiltin != 2 and dtype.metadata is None
    return own and array.flags.forc and array.nbytes > 0
