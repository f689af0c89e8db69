"""`dask-read`: sums and windows of a stored dask array larger than the memory of its worker.

dask pauses a worker for what it has resident, and pages of mapped files count: what a task has read
must be let go when the task is done.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.base import load
from bench.workload import MIB, Run, Step, Workload
from bench.workloads.dask import PAUSES, Task, compute

ADD_UP, WINDOWS, MOST = "add up", "means of windows", "worker's memory"

# In blocks of 6 MB.
_SHAPES = ((24_000, 10_000), (1_200, 1_000))
_CHUNKS = ((1_500, 1_000), (300, 500))
_BYTES = (960_000_000, 4_800_000)

_LIMIT = 600 * MIB

_WINDOWS, _SIDE = 64, 128


class DaskRead(Workload):
    name = "dask-read"
    title = "A stored dask array of 0.96 GB, float32, added up by a worker of 600 MiB"
    needs = ("dask_stored",)
    steps = (
        Step(ADD_UP, nbytes=_BYTES, limit=False),
        Step(WINDOWS, limit=False),
        Step(f"{ADD_UP}, compressed", nbytes=_BYTES, limit=False),
        Step(f"{WINDOWS}, compressed", limit=False),
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
        tasks: dict[str, Task] = {}
        for how in ("", ", compressed"):
            # A peer that cannot compress has no figures for it.
            if not how or peer.compresses:
                y = peer.dask_stored(x, f"dask{how[-10:]}", compressed=bool(how))
                tasks[ADD_UP + how] = _Sum(y, shape)
                tasks[WINDOWS + how] = _Windows(y, shape)
        run.settled()
        run.measure_disk()
        options: dict[str, Any] = {"memory_limit": _LIMIT, "processes": not run.small}
        config: dict[str, Any] = {}
        if run.small:
            # What else is in this process does not count.
            config = {f"distributed.worker.memory.{what}": False for what in ("spill", "pause")}
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


class _Windows(Task):
    """Means of windows here and there, each of which lies in one block to four."""

    def __init__(self, y: Any, shape: tuple[int, int]) -> None:
        self._y = y
        generator = np.random.default_rng(0)
        self._corners = [
            tuple(int(generator.integers(n - _SIDE)) for n in shape) for _ in range(_WINDOWS)
        ]

    def expected(self) -> float:
        axis = np.arange(_SIDE)
        return float(
            sum([
                np.mean(np.add.outer(axis + row, axis + column) % 7)
                for row, column in self._corners
            ])
        )  # fmt: skip

    def lazy(self) -> Any:
        means = [
            self._y[row : row + _SIDE, column : column + _SIDE].mean(dtype=np.float64)
            for row, column in self._corners
        ]
        return load("dask.array").stack(means).sum()


def _numbers(i: Any, j: Any) -> Any:
    return ((i + j) % 7).astype(np.float32)
