"""`dask-store`: a dask array written to disk block by block, read back, and added up.

Each block is made where it is written: what is measured includes that, for all alike, and is the
answer that is compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import arraychest
from bench.harness import (
    OURS,
    Bench,
    Contestant,
    Figures,
    Floor,
    Row,
    disk_bytes,
    expect,
    rows_against,
)
from bench.peers import load

_NAME = "dask-store"
_ZARR = "to_zarr and from_zarr"
_STACK = "to_npy_stack and from_npy_stack"


def run(bench: Bench) -> list[Row]:
    load("dask.array")
    # 4 GiB of float32 in blocks of 16 MiB.
    side = bench.pick(32_768, 2_048)
    contestants = [
        Contestant(name, partial(_there_and_back, way, side, bench.pick(2_048, 512)))
        for name, way in ((OURS, _chest), (_ZARR, _zarr), (_STACK, _stack))
    ]
    samples = bench.interleave(contestants, rounds=bench.pick(min(bench.rounds, 2), 1))
    rows: list[Row] = []
    asked: dict[str, Floor | None] = {
        "written and read": None if bench.small else Floor(0.8),
        "size": None if bench.small else Floor(1.0),
        "written": None,
        "read": None,
    }
    for measure, floor in asked.items():
        unit = "GiB" if measure == "size" else "s"
        rows += rows_against(_NAME, measure, unit, samples, {_ZARR: floor, _STACK: None})
    return rows


def _there_and_back(
    way: Callable[[Path, Any], tuple[Any, Callable[[], object]]], side: int, step: int, folder: Path
) -> Figures:
    da = importlib.import_module("dask.array")
    x = da.map_blocks(
        _heights,
        chunks=((step,) * (side // step),) * 2,
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )
    right = float(x.sum(dtype=np.float64).compute())
    start = perf_counter()
    y, close = way(folder, x)
    written = perf_counter() - start
    found = float(y.sum(dtype=np.float64).compute())
    read = perf_counter() - start - written
    expect(np.isclose(found, right, rtol=1e-9), f"the sum: expected {right}, found {found}")
    size = disk_bytes(folder) / (1 << 30)
    close()
    return {"written and read": written + read, "size": size, "written": written, "read": read}


def _heights(block_info: Any = None) -> np.ndarray:
    """Metres: the Jacksboro fault's elevation model, between its samples as one resamples it."""
    from bench.workloads.dask import elevation

    tile = elevation()
    (i, until_i), (j, until_j) = block_info[None]["array-location"]
    # Eight steps from one sample to the next; over the edge it begins anew.
    down, across = (
        np.arange(start, stop, dtype=np.float32) / 8 % np.float32(n - 1)
        for start, stop, n in ((i, until_i, tile.shape[0]), (j, until_j, tile.shape[1]))
    )
    low, part = down.astype(int), (down % 1)[:, None]
    rows = tile[low] + (tile[low + 1] - tile[low]) * part
    low, part = across.astype(int), across % 1
    found = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part
    return found.astype(np.float32, copy=False)


def _chest(folder: Path, x: Any) -> tuple[Any, Callable[[], object]]:
    store = importlib.import_module("arraychest.dask").store
    chest = arraychest.open(folder / "chest", "w")
    y = store(x, chest, "x", return_stored=True)
    chest.flush()
    return y, chest.close


def _zarr(folder: Path, x: Any) -> tuple[Any, Callable[[], object]]:
    load("zarr")
    da = importlib.import_module("dask.array")
    x.to_zarr(str(folder / "zarr"))
    return da.from_zarr(str(folder / "zarr")), lambda: None


def _stack(folder: Path, x: Any) -> tuple[Any, Callable[[], object]]:
    da = importlib.import_module("dask.array")
    da.to_npy_stack(str(folder / "stack"), x)
    return da.from_npy_stack(str(folder / "stack")), lambda: None
