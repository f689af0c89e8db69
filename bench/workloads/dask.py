"""`dask`: computations larger than a worker's memory, by what the worker keeps its results in.

Each run is a cluster of one worker with two threads, in a process of its own, that computes one
thing after the other.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.peers.base import load
from bench.workload import MIB, Run, Step, Workload, expect

TITLES = ("((x + x.T) - x.mean(0)).std()", "transpose, rechunk, tensordot", "terrain over time")

PAUSES = "pauses and restarts"

# What a worker may use: dask spills from 60 % on.
_LIMIT = 768 << 20

# Of the ground in one block: 9 MB.
_DAYS = 16

# Nobody reads them here: how often the worker was paused and restarted is in the table.
_QUIET = {
    # As tasks, whose results the worker keeps; the other way, P2P, has files of its own.
    "array.rechunk.method": "tasks",
    "distributed.admin.log-format": "",
    "distributed.worker.profile.enabled": False,
    # A worker that is ended for its memory costs time; the computation goes on.
    "distributed.scheduler.allowed-failures": 50,
}


class Dask(Workload):
    name = "dask"
    title = "dask computes 3 GiB and more with a worker of 768 MiB"
    needs = ("dask_worker",)
    steps = (
        *(Step(title, limit=False) for title in TITLES),
        Step(PAUSES, unit="", judged=False),
    )
    # Each takes half a minute.
    rounds = 2
    seconds = 160
    disk = (6144 * MIB, 512 * MIB)

    titles = TITLES

    def __init__(self, side: int = 14_000) -> None:
        self._side = side

    def play(self, peer: Any, run: Run) -> None:
        load("distributed")
        # Blocks of 15 MiB: by default x is twice what the worker may use, and what is made of it
        # as much again.
        side, chunk = run.pick(self._side, 2_000), run.pick(1_400, 500)
        tasks: dict[str, Task] = dict(
            zip(
                TITLES,
                (_Statistics(side, chunk), _Tensordot(side, chunk), _Terrain(run.pick(176, 16))),
                strict=True,
            )
        )
        # The small scale spills, too.
        target = 12_000_000 if run.small else int(0.6 * _LIMIT)
        config: dict[str, Any] = {"distributed.worker.memory.target": target / _LIMIT}
        options: dict[str, Any] = {"memory_limit": _LIMIT, "processes": True}
        if run.small:
            # To start processes would take most of the time.  What else is in this one does not
            # count.
            options["processes"] = False
            config |= {
                "distributed.worker.memory.spill": False,
                "distributed.worker.memory.pause": False,
            }
        own = peer.dask_worker(target)
        config |= own.pop("config", {})
        run.settled()
        compute(run, tasks, config, **options | own)


# --- what is computed -------------------------------------------------------------------------


class Task:
    """A computation, and what NumPy says of it."""

    def expected(self) -> float:
        raise NotImplementedError

    def lazy(self) -> Any:
        raise NotImplementedError


class _Statistics(Task):
    def __init__(self, side: int, chunk: int) -> None:
        self._side = side
        self._chunk = chunk

    def expected(self) -> float:
        # x[i, j] = i + sin(j): all of it follows from the two vectors.
        i = np.arange(self._side, dtype=np.float64)
        s = np.sin(i)
        # x + x.T - x.mean(0) = (i + s_i) + (j + s_j) - (mean(i) + s_j) = (i + s_i) + j - mean(i)
        return float(np.sqrt((i + s).var() + i.var()))

    def source(self) -> Any:
        da = importlib.import_module("dask.array")
        return da.fromfunction(
            _plus_sine, shape=(self._side,) * 2, chunks=self._chunk, dtype=np.float64
        )

    def lazy(self) -> Any:
        x = self.source()
        return ((x + x.T) - x.mean(0)).std()


class _Tensordot(_Statistics):
    """A transpose that is rechunked into rows, and each block of columns times a few vectors."""

    def expected(self) -> float:
        i = np.arange(self._side, dtype=np.float64)
        s = np.sin(i)
        # y = x.T + x; (y @ w).sum() with w = ones: the sum of all of y.
        return float(2 * self._side * (i.sum() + s.sum()) * 4)

    def lazy(self) -> Any:
        da = importlib.import_module("dask.array")
        x = self.source()
        y = x.T.rechunk((self._chunk // 4, -1)) + x.rechunk((self._chunk // 4, -1))
        w = da.ones((self._side, 4), chunks=(self._chunk, 4))
        return da.tensordot(y.rechunk(self._chunk), w, axes=1).sum()


class _Terrain(Task):
    """Heights that rise by a metre a day; their spread over time, less the mean of all."""

    def __init__(self, days: int) -> None:
        self._days = days
        self._tile = elevation()

    def expected(self) -> float:
        steps = np.arange(self._days, dtype=np.float64)
        return float(steps.std() + self._tile.mean(dtype=np.float64) + steps.mean())

    def lazy(self) -> Any:
        da = importlib.import_module("dask.array")
        x = da.map_blocks(
            _days_of_ground,
            self._tile,
            chunks=((_DAYS,) * (self._days // _DAYS), *[(side,) * 4 for side in self._tile.shape]),
            dtype=np.float32,
            meta=np.empty((0, 0, 0), np.float32),
        )
        mean = x.mean(dtype=np.float64)
        return (x - mean).std(axis=0).mean() + mean


def _plus_sine(i: Any, j: Any) -> Any:
    return i + np.sin(j)


@functools.cache
def elevation() -> np.ndarray:
    """Metres, float32: Matplotlib's elevation model of the Jacksboro fault."""
    cbook = load("matplotlib.cbook")
    with cbook.get_sample_data("jacksboro_fault_dem.npz") as model:
        return model["elevation"].astype(np.float32)


def _days_of_ground(tile: np.ndarray, block_info: Any = None) -> np.ndarray:
    first = block_info[None]["array-location"][0][0]
    days = np.arange(first, first + _DAYS, dtype=np.float32)
    return tile + days[:, None, None]


# --- a run ------------------------------------------------------------------------------------


class _Count(logging.Handler):
    """Counts what dask says of a worker's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.restarts = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.restarts += "Restarting worker" in record.getMessage()


def _watch_pauses(dask_worker: Any) -> None:
    # In the worker's own process.
    counter = dask_worker.arraychest_pauses = [0]

    class Pauses(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            counter[0] += "Pausing worker" in record.getMessage()

    logger = logging.getLogger("distributed.worker.memory")
    logger.handlers[:] = [Pauses()]
    logger.propagate = False


def _pauses(dask_worker: Any) -> int:
    return sum(getattr(dask_worker, "arraychest_pauses", [0]))


def _peak_bytes() -> int:
    # In the worker's own process: pages of files count, as they do for dask.
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) * 1024


def compute(run: Run, tasks: Mapping[str, Task], config: Mapping[str, Any], **options: Any) -> int:
    """Time tasks on a cluster of one worker, and return the most that it had resident, in bytes."""
    dask = load("dask")
    distributed = load("distributed")
    count = _Count()
    nanny = logging.getLogger("distributed.nanny")
    nanny.addHandler(count)
    try:
        with (
            dask.config.set({**_QUIET, **config}),
            distributed.LocalCluster(
                n_workers=1,
                threads_per_worker=2,
                local_directory=str(run.folder),
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                **options,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.run(_watch_pauses)
            for title, task in tasks.items():
                lazy = task.lazy()
                with run.time(title):
                    found = float(client.compute(lazy).result())
                right = task.expected()
                expect(np.isclose(found, right, rtol=1e-5), f"{title}: not {right}, but {found}")
                run.measure_disk()
            pauses = sum(client.run(_pauses).values())
            peak = max(client.run(_peak_bytes).values())
    finally:
        nanny.removeHandler(count)
    run.add(PAUSES, pauses + count.restarts)
    return peak
