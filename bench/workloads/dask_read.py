"""`dask-read`: a stored dask array larger than its worker's memory is added up by that worker.

dask pauses a worker for what it has resident, and pages of mapped files count: what a task has read
must be let go when the task is done.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.base import load
from bench.workload import MIB, Run, Step, Workload
from bench.workloads.dask import PAUSES, Task, compute

TITLE, MOST = "add up", "worker's memory"

# In blocks of 6 MB.
_SHAPES = ((24_000, 10_000), (1_200, 1_000))
_CHUNKS = ((1_500, 1_000), (300, 500))
_BYTES = (960_000_000, 4_800_000)

_LIMIT = 600 * MIB


class DaskRead(Workload):
    name = "dask-read"
    title = "A stored dask array of 0.96 GB, float32, added up by a worker of 600 MiB"
    needs = ("dask_stored",)
    steps = (
        Step(TITLE, nbytes=_BYTES, limit=False),
        Step(MOST, unit="B", judged=False),
        Step(PAUSES, unit="", judged=False),
    )
    rounds = 2
    seconds = 60
    disk = (1024 * MIB, 64 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        da = load("dask.array")
        load("distributed")
        shape, chunks = _SHAPES[run.small], _CHUNKS[run.small]
        x = da.fromfunction(_numbers, shape=shape, chunks=chunks, dtype=np.float32)
        y = peer.dask_stored(x)
        run.settled()
        run.measure_disk()
        options: dict[str, Any] = {"memory_limit": _LIMIT, "processes": not run.small}
        config: dict[str, Any] = {}
        if run.small:
            # What else is in this process does not count.
            config = {f"distributed.worker.memory.{what}": False for what in ("spill", "pause")}
        tasks: dict[str, Task] = {TITLE: _Sum(y, shape)}
        run.add(MOST, compute(run, tasks, config, **options))


class _Sum(Task):
    def __init__(self, y: Any, shape: tuple[int, int]) -> None:
        self._y = y
        self._shape = shape

    def expected(self) -> float:
        rows, columns = (np.arange(n, dtype=np.float64) for n in self._shape)
        # As in `_numbers`, of whole numbers: exact.
        by_row = np.array([np.count_nonzero(columns % 7 == rest) for rest in range(7)])
        rests = (np.arange(7)[:, None] + np.arange(7)) % 7
        each = (rests * by_row).sum(axis=1)
        return float(each[(rows % 7).astype(int)].sum())

    def lazy(self) -> Any:
        return self._y.sum(dtype=np.float64)


def _numbers(i: Any, j: Any) -> Any:
    return ((i + j) % 7).astype(np.float32)
