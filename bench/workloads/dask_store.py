"""`dask-store`: a dask array written to disk block by block, read back, and added up.

Each block is made where it is written: what is measured includes that, for all alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.base import load
from bench.workload import MIB, Run, Step, Workload, expect
from bench.workloads.dask import elevation

_SIDES = ((32_768, 32_768), (1_024, 2_048))
_STEPS = (2_048, 512)
_BYTES = (4096 * MIB, 8 * MIB)


class DaskStore(Workload):
    name = "dask-store"
    title = "A dask array of 4 GiB, float32, in blocks of 16 MiB"
    needs = ("dask_stored",)
    steps = (
        Step("make and write", nbytes=_BYTES),
        Step("read and add up", nbytes=_BYTES),
        Step("size", unit="B", judged=False),
    )
    rounds = 2
    seconds = 90
    disk = (4608 * MIB, 64 * MIB)
    sized = True

    def prepare(self, folder: Path, *, small: bool) -> None:
        """What all of it adds up to."""
        total = float(_heights(small).sum(dtype=np.float64).compute())
        (folder / "sum").write_text(repr(total), encoding="ascii")

    def play(self, peer: Any, run: Run) -> None:
        x = _heights(run.small)
        right = float((run.shared / "sum").read_text(encoding="ascii"))
        run.settled()
        run.warm(_BYTES[run.small])
        with run.time("make and write"):
            y = peer.dask_stored(x, "dask", compressed=True)
        run.add("size", run.measure_disk())
        with run.time("read and add up"):
            found = float(y.sum(dtype=np.float64).compute())
        # Blocks are added up in any order.
        expect(np.isclose(found, right, rtol=1e-9), f"the sum: expected {right}, found {found}")


def _heights(small: bool) -> Any:
    da = load("dask.array")
    # Not by the first blocks: several threads would import Matplotlib at once.
    elevation()
    (rows, columns), step = _SIDES[small], _STEPS[small]
    return da.map_blocks(
        _block,
        chunks=((step,) * (rows // step), (step,) * (columns // step)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )


def _block(block_info: Any = None) -> np.ndarray:
    """Metres: the Jacksboro fault's elevation model, between its samples as one resamples it."""
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
