"""What dask is told of the writes of a worker: who has caused them, and what they have taken.

A result is written by a thread, a moment after the task, or the look at the worker's memory, that
made it leave RAM.  dask's own meter has forgotten by then whose seconds and bytes these are.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from dask.utils import key_split
from distributed.metrics import context_meter

# As dask names what happens on a worker: ("execute", SPAN, PREFIX), ("memory-monitor",) and others.
Activity = tuple[Any, ...]


class Activities:
    """Whose writes those of one worker are.  Called under the lock of its results.

    Attributes
    ----------
    cumulative
        (label, unit) -> what it adds up to.
    current
        Who has results leave RAM now; empty: nobody whom dask knows.
    """

    def __init__(self) -> None:
        self.cumulative: defaultdict[tuple[str, str], float] = defaultdict(float)
        for unit in ("count", "bytes", "seconds"):
            # By another thread than the one that reads them: never the first of its kind.
            self.cumulative["disk-write", unit] = 0.0
        self.current: Activity = ()
        self._worker: weakref.ref[Any] | None = None

    def attach(self, worker: Any) -> None:
        """Learn which worker it is."""
        self._worker = weakref.ref(worker)

    @contextlib.contextmanager
    def put_of(self, key: Any) -> Iterator[None]:
        """While a result is put: its task has computed it, or the worker has fetched it."""
        worker = None if self._worker is None else self._worker()
        task = None if worker is None else worker.state.tasks.get(key)
        activity: Activity = ()
        if task is not None:
            fetched = task.state == "flight"
            activity = ("gather-dep",) if fetched else ("execute", task.span_id, key_split(key))
        with self._metered(activity):
            yield

    @contextlib.contextmanager
    def memory_monitor(self) -> Iterator[None]:
        """While dask makes room, as the worker has much in RAM."""
        with self._metered(("memory-monitor",)):
            yield

    @contextlib.contextmanager
    def get(self) -> Iterator[None]:
        """While a result is read."""
        with self._metered(self.current):
            yield

    @contextlib.contextmanager
    def _metered(self, activity: Activity) -> Iterator[None]:
        def note(label: Hashable, value: float, unit: str) -> None:
            self.cumulative[str(label), unit] += value

        before, self.current = self.current, activity
        try:
            with context_meter.add_callback(note):
                yield
        finally:
            self.current = before

    def written(self, activity: Activity, nbytes: int, seconds: float) -> None:
        """A result that left RAM because of an activity is on disk.  Called by any thread."""
        told = {"count": 1, "bytes": nbytes, "seconds": seconds}
        for unit, value in told.items():
            self.cumulative["disk-write", unit] += value
        worker = None if self._worker is None else self._worker()
        if worker is not None and activity:
            # dask's books are its event loop's, which may be closed.
            with contextlib.suppress(RuntimeError):
                worker.loop.add_callback(_tell, worker, (*activity, "disk-write"), told)


def _tell(worker: Any, label: tuple[Any, ...], told: Mapping[str, float]) -> None:
    for unit, value in told.items():
        worker.digest_metric((*label, unit), value)
