"""`dask`: computations larger than a worker's memory, by what the worker keeps its results in.

Each run is a cluster of one worker with two threads, in a process of its own, that computes one
thing after the other.
"""

from __future__ import annotations

import importlib
import logging
import pickle
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.harness import OURS, Bench, Contestant, Figures, Floor, Row, Samples, rows_against
from bench.peers.base import load
from bench.workload import expect

_NAME = "dask"
_UNLIMITED = "dask without a limit"
_DEFAULT = "dask's spill buffer"
_ZICT = "zict.Buffer over zict.File"

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


def run(bench: Bench) -> list[Row]:
    load("distributed")
    # Blocks of 15 MiB: x is twice what the worker may use, and what is made of it as much again.
    side = bench.pick(14_000, 2_000)
    chunk = bench.pick(1_400, 500)
    tasks: dict[str, Task] = {
        "((x + x.T) - x.mean(0)).std()": _Statistics(side, chunk),
        "transpose, rechunk, tensordot": _Tensordot(side, chunk),
        "terrain over time": _Terrain(bench.pick(176, 16)),
    }
    # The small scale spills, too.
    target = 12_000_000 if bench.small else int(0.6 * _LIMIT)
    config: dict[str, Any] = {"distributed.worker.memory.target": target / _LIMIT}
    common: dict[str, Any] = {"memory_limit": _LIMIT, "processes": True, "config": config}
    if bench.small:
        # To start processes would take most of the time.  What else is in this one does not count.
        common["processes"] = False
        config |= {
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
        }
    keeps: dict[str, dict[str, Any]] = {
        OURS: {"data": (_worker_chest(), {"target": target})},
        _DEFAULT: {},
        # It spills by what results say of their size alone: too much memory pauses it for good.
        _ZICT: {
            "data": (zict_buffer, {"target": 2 * target // 3}),
            "config": {"distributed.worker.memory.pause": False},
        },
    }
    right = {title: task.expected() for title, task in tasks.items()}

    def contestant(name: str, options: dict[str, Any]) -> Contestant:
        return Contestant(
            name, lambda folder: _compute(folder, tasks, right, **options), once=name == _ZICT
        )

    samples = bench.interleave(
        [
            *(
                contestant(name, common | own | {"config": config | own.get("config", {})})
                for name, own in keeps.items()
            ),
            contestant(_UNLIMITED, common | {"memory_limit": 0}),
        ],
        # Each takes half a minute, or at the small scale mostly starts processes.
        rounds=bench.pick(min(bench.rounds, 3), 1),
    )
    rows: list[Row] = []
    for title, task in tasks.items():
        for other in (_DEFAULT, _ZICT, _UNLIMITED):
            rows += rows_against(_NAME, title, "s", samples, {other: None})
        floor = None if bench.small or isinstance(task, _Terrain) else Floor(0.5)
        rows.append(_added(title, samples, floor))
        rows.append(_times(f"{title}: pauses", samples, bench))
    rows.append(_times("restarts", samples, bench))
    return rows


def _times(measure: str, samples: Samples, bench: Bench) -> Row:
    """How often something happened in all rounds; never, where it did not to dask's own."""
    ours, theirs = ([sum(samples[name, measure])] for name in (OURS, _DEFAULT))
    floor = None if bench.small or theirs[0] else Floor(0, of_ratio=False)
    return Row(_NAME, measure, "", ours, _DEFAULT, theirs, floor)


def _added(title: str, samples: Samples, floor: Floor | None) -> Row:
    """What spilling adds to a run without a limit: ours by dask's own."""
    base = float(np.median(samples[_UNLIMITED, title]))
    ours, theirs = (
        [max(0.0, seconds - base) for seconds in samples[name, title]] for name in (OURS, _DEFAULT)
    )
    return Row(_NAME, f"{title}: added by spilling", "s", ours, _DEFAULT, theirs, floor)


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
        self._tile = _elevation()

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


def _elevation() -> np.ndarray:
    """Metres, float32: Matplotlib's elevation model of the Jacksboro fault."""
    cbook = load("matplotlib.cbook")
    with cbook.get_sample_data("jacksboro_fault_dem.npz") as model:
        return model["elevation"].astype(np.float32)


def _days_of_ground(tile: np.ndarray, block_info: Any = None) -> np.ndarray:
    first = block_info[None]["array-location"][0][0]
    days = np.arange(first, first + _DAYS, dtype=np.float32)
    return tile + days[:, None, None]


# --- what a worker keeps its results in -------------------------------------------------------


def _worker_chest() -> Any:
    return importlib.import_module("arraychest.dask").WorkerChest


def zict_buffer(worker_local_directory: str, target: int) -> MutableMapping[Any, Any]:
    """The plainest mapping that spills, of zict's own parts."""
    zict = load("zict")
    sizeof = importlib.import_module("dask.sizeof").sizeof
    files = _ByName(zict.File(worker_local_directory + "/zict"))
    slow = zict.Func(pickle.dumps, pickle.loads, files)
    buffer: MutableMapping[Any, Any] = zict.Buffer(
        {}, slow, target, weight=lambda _, value: sizeof(value)
    )
    return buffer


class _ByName(MutableMapping[Any, Any]):
    """Files have names, and dask's keys are tuples."""

    def __init__(self, files: MutableMapping[str, Any]) -> None:
        self._files = files
        self._names: dict[Any, str] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self._names[key] = str(key)
        self._files[str(key)] = value

    def __getitem__(self, key: Any) -> Any:
        return self._files[self._names[key]]

    def __delitem__(self, key: Any) -> None:
        del self._files[self._names.pop(key)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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


def _compute(
    folder: Path,
    tasks: Mapping[str, Task],
    right: Mapping[str, float],
    config: Mapping[str, Any],
    **options: Any,
) -> Figures:
    dask = load("dask")
    distributed = load("distributed")
    count = _Count()
    nanny = logging.getLogger("distributed.nanny")
    nanny.addHandler(count)
    figures: dict[str, float] = {}
    try:
        with (
            dask.config.set({**_QUIET, **config}),
            distributed.LocalCluster(
                n_workers=1,
                threads_per_worker=2,
                local_directory=str(folder),
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                **options,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.run(_watch_pauses)
            before = 0
            for title, task in tasks.items():
                start = perf_counter()
                found = float(client.compute(task.lazy()).result())
                figures[title] = perf_counter() - start
                expect(np.isclose(found, right[title], rtol=1e-5), f"{title}: {found}")
                pauses = sum(client.run(_pauses).values())
                figures[f"{title}: pauses"] = pauses - before
                before = pauses
    finally:
        nanny.removeHandler(count)
    return {**figures, "restarts": count.restarts}
