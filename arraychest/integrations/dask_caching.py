"""Results of dask's local schedulers that are kept in a chest, from one compute to the next."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Self

import dask
import numpy as np
from dask._task_spec import Task
from dask.callbacks import Callback

from arraychest.catalog.record import Cost
from arraychest.engine.commit import logger
from arraychest.engine.face import Face, in_chest
from arraychest.errors import ArrayChestError
from arraychest.integrations.dask_functions import TaskPrints

# A result is worth keeping that took longer than to write it and read it back: so many bytes a
# second, and so many seconds for each.  A page cache is faster, a disk may be slower.
_BYTES_PER_SECOND = 1e9
_SECONDS = 1e-3


class caching(Callback):  # noqa: N801  # a context manager, as dask names its own
    """Keep what was costly to compute in a chest, for later computes, also of other processes.

    For dask's local schedulers: threads, processes, synchronous.  Each array that a task returns
    is kept if it took longer to compute than to write it and read it back, and is found again
    under the task's name, which dask makes of what is computed, and what your functions do that
    compute it, as `Chest.cache` has it: where that cannot be told, nothing is kept.  Of what dask
    makes one task, as a sum of what is computed block by block, the result is kept, and nothing in
    between.

    Parameters
    ----------
    chest
        Where it is kept: the key is ``("dask", NAME, WHAT)``, of what the functions do.  With
        ``max_disk=`` and ``evict_by="cost"`` what took the least time for its size goes first.

    Notes
    -----
    dask's fusion of tasks (``optimization.fuse.active``) is switched off meanwhile: what is fused
    has another name at each compute.  An array is copied in when it is kept, and comes back
    read-only, mapped or from RAM.  A failure to keep a result is not one of the computation.
    Register it for all computes with its method ``register``.  Some 50 us a
    task, most of them to see what it does.

    Examples
    --------
    >>> import arraychest
    >>> import dask.array as da
    >>> chest = arraychest.Chest()
    >>> x = da.random.default_rng(7).normal(size=(2000, 2000), chunks=1000)
    >>> with caching(chest):
    ...     first = x.std().compute(scheduler="sync")
    ...     again = x.std().compute(scheduler="sync")  # what was worth keeping is read
    >>> bool(first == again)
    True
    """

    def __init__(self, chest: Face) -> None:
        self._chest = chest
        self._started: dict[Any, float] = {}
        # What it takes to come by a result again, with the longest way to what it is computed of.
        self._seconds: dict[Any, float] = {}
        self._found: set[Any] = set()
        # Under which keys of the chest.
        self._names: dict[Any, tuple[str, Any, str]] = {}

    def __enter__(self) -> Self:
        self._unfused()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._fused_again()

    def register(self) -> None:
        """Keep what all computes of this process compute, until `unregister`."""
        self._unfused()
        super().register()

    def unregister(self) -> None:
        """Keep no more."""
        super().unregister()
        self._fused_again()

    def _unfused(self) -> None:
        self._config = dask.config.set({"optimization.fuse.active": False})

    def _fused_again(self) -> None:
        self._config.__exit__(None, None, None)

    def _start(self, dsk: dict[Any, Any]) -> None:
        prints = TaskPrints(dict(dsk))
        for key in list(dsk):
            what = prints.of(key)
            if what is None:
                continue
            self._names[key] = name = "dask", key, what.hex()
            try:
                value = self._chest.get(name)
            except (ArrayChestError, OSError):
                continue
            if value is not None:
                # Read only where the task is needed; what is at hand stays, whoever evicts it.
                dsk[key] = Task(key, np.asarray, value)
                self._found.add(key)

    def _pretask(self, key: Any, *_: Any) -> None:
        self._started[key] = perf_counter()

    def _posttask(self, key: Any, result: Any, _: Any, state: Any, *__: Any) -> None:
        seconds = perf_counter() - self._started.pop(key, perf_counter())
        before = [self._seconds.get(each, 0.0) for each in state["dependencies"].get(key, ())]
        self._seconds[key] = seconds = seconds + max(before, default=0.0)
        if type(key) is str and key.startswith("finalize-"):
            return  # what a compute returns, under a name that no other one gives it
        name = self._names.get(key)
        if (
            name is None
            or key in self._found
            or type(result) is not np.ndarray
            or result.dtype.hasobject
        ):
            return
        if seconds < _SECONDS + result.nbytes / _BYTES_PER_SECOND:
            return
        try:
            # A copy: the array is its computation's, which may write to it.
            chest, full_key = in_chest(self._chest, name)
            chest._engine.put_any(
                full_key, result, cost=Cost(seconds), only_absent=True, on_put="copy"
            )
            # What follows from it needs to fetch it only, and an alias of it is not worth keeping.
            self._seconds[key] = 0.0
        except (ArrayChestError, OSError, TypeError) as error:  # or the group takes str keys only
            logger.debug("the result of %r is not kept: %s", key, error)

    def _finish(self, *_: Any) -> None:
        self._started.clear()
        self._seconds.clear()
        self._found.clear()
        self._names.clear()
