"""Whose the seconds and bytes are that it took to write a result: dask's fine performance metrics.

A thread writes a result after the activity that caused it has gone on, or has ended: a task whose
own result pushed older ones out of RAM, the transfer of a result from another worker, the memory
monitor.  So each write carries its cause, and the worker's event loop is told when it ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, NamedTuple

from dask.utils import key_split
from distributed.metrics import context_meter

_Figures = list[tuple[str, float, str]]


class Cause(NamedTuple):
    """What has made a result leave RAM.

    Attributes
    ----------
    activity
        The beginning of the names under which the worker counts it, as ``("execute", SPAN,
        PREFIX)``; None: whoever listens to `context_meter` in `context` knows.
    context
        In which it was asked for.
    """

    activity: tuple[Hashable, ...] | None
    context: Context


class _Asked(NamedTuple):
    """A call of the mapping: in what context, and the key that it puts, if it does."""

    context: Context
    puts: bool
    key: Any


_ASKED: ContextVar[_Asked | None] = ContextVar("arraychest-asked", default=None)


class SpillMetrics:
    """What a worker's reads and writes of results add up to, and who is told of them."""

    def __init__(self) -> None:
        #: (label, unit) -> what it adds up to
        self.cumulative: defaultdict[tuple[str, str], float] = defaultdict(float)
        for unit in ("count", "bytes", "seconds"):
            # Another thread writes these than the one that reads them: it must not be the one to
            # add them to the dictionary.
            self.cumulative["disk-write", unit] = 0.0
        self._worker: weakref.ref[Any] | None = None

    def attach(self, worker: Any) -> None:
        """Tell the event loop of this worker."""
        self._worker = weakref.ref(worker)

    @contextmanager
    def call(self, *, puts: bool = False, key: Any = None) -> Iterator[None]:
        """Add up what is metered in a call of the mapping; what is written for it is its own.

        Parameters
        ----------
        puts, key
            Whether the call puts a result, and under which key.
        """

        def note(label: Hashable, value: float, unit: str) -> None:
            self.cumulative[str(label), unit] += value

        token = _ASKED.set(_Asked(contextvars.copy_context(), puts, key))
        try:
            with context_meter.add_callback(note):
                yield
        finally:
            _ASKED.reset(token)

    def cause(self) -> Cause:
        """The cause of what the current call has written."""
        asked = _ASKED.get()
        if asked is None:
            return Cause(None, contextvars.copy_context())
        worker = None if self._worker is None else self._worker()
        if worker is None:
            return Cause(None, asked.context)
        # Whoever listens in the context of a task stops when the task has ended.
        task = worker.state.tasks.get(asked.key) if asked.puts else _task_running(worker)
        return Cause(None if task is None else _activity(task), asked.context)

    def written(self, cause: Cause, nbytes: int, seconds: float) -> None:
        """A result is on disk; called by the thread that wrote it."""
        figures = [
            ("disk-write", seconds, "seconds"),
            ("disk-write", 1, "count"),
            ("disk-write", nbytes, "bytes"),
        ]
        for label, value, unit in figures:
            self.cumulative[label, unit] += value
        worker = None if self._worker is None else self._worker()
        if worker is None:
            _tell(cause.context, figures)
        else:
            worker.loop.add_callback(_post, self._worker, cause, figures)


def _post(found: weakref.ref[Any], cause: Cause, figures: _Figures) -> None:
    """In the event loop: count figures as those of their cause."""
    worker = found()
    if cause.activity is None:
        _tell(cause.context, figures)
    elif worker is not None:
        for label, value, unit in figures:
            worker.digest_metric((*cause.activity, label, unit), value)


def _tell(context: Context, figures: _Figures) -> None:
    for label, value, unit in figures:
        context.run(context_meter.digest_metric, label, value, unit)


def _task_running(worker: Any) -> Any:
    """The task for which the event loop collects what it needs; None if it does something else."""
    try:
        current = asyncio.current_task()
    except RuntimeError:  # this is not the thread of the event loop
        return None
    name = None if current is None else current.get_name()
    for task in worker.state.executing:
        if name == f"execute({task.key!r})":
            return task
    return None


def _activity(task: Any) -> tuple[Hashable, ...] | None:
    """Under which name dask counts what a task is doing; None for a result that was scattered."""
    # A task that was cancelled goes on with what it did before.
    state = task.previous if task.state == "cancelled" else task.state
    if state in ("executing", "long-running"):
        return "execute", getattr(task, "span_id", None), key_split(task.key)
    return ("gather-dep",) if state == "flight" else None
