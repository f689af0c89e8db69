"""`windows`: one large array that compresses: written, and windows and rows read of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.peers.base import load
from bench.workload import MIB, Run, Step, Workload, expect

_WINDOW = 64
_SIDES = (16384, 4096)
_ROWS = (8192, 2304)
_BYTES = (512 * MIB, 36 * MIB)


class Windows(Workload):
    name = "windows"
    title = "Heights of 512 MiB, float32, to the centimetre"
    needs = ("write_whole", "open_whole")
    steps = (
        Step("write", nbytes=_BYTES),
        Step("window of 64 × 64"),
        Step("row"),
        Step("all of it", nbytes=_BYTES),
        Step("size", unit="B", judged=False),
    )
    rounds = 3
    seconds = 130
    budget = (1024 * MIB, 64 * MIB)
    disk = (1200 * MIB, 64 * MIB)
    sized = True

    def prepare(self, folder: Path, *, small: bool) -> None:
        """Measured heights, and between them linear ones, as a resampled model has them."""
        cbook = load("matplotlib.cbook")
        with cbook.get_sample_data("jacksboro_fault_dem.npz") as model:
            tile = model["elevation"].astype(np.float32)
        rows, side = _ROWS[small], _SIDES[small]
        down, across = (
            np.arange(length, dtype=np.float32) / np.float32(8) for length in (rows, side)
        )
        made = np.lib.format.open_memmap(folder / "heights.npy", "w+", np.float32, (rows, side))
        # Copies of the ground side by side, each a little higher: no two places are the same.
        high, wide = tile.shape
        left = across.astype(int)
        part = across - left
        shift = (left // (wide - 1)).astype(np.float32)
        for at in range(rows):
            top = int(down[at])
            weight = down[at] - np.float32(top)
            row = top % (high - 1)
            line = tile[row] + (tile[row + 1] - tile[row]) * weight
            column = left % (wide - 1)
            line = line[column] + (line[column + 1] - line[column]) * part
            made[at] = np.round(line + shift * 3 + top // (high - 1) * 5, 2)
        made.flush()

    def play(self, peer: Any, run: Run) -> None:
        array = np.load(run.shared / "heights.npy")
        if not run.small:
            # What a process pays once for its first large array.
            (run.folder / "first").mkdir()
            first = type(peer)(run.folder / "first", peer.budget)
            first.write_whole(array[: array.shape[0] // 12])
            first.close()
            shutil.rmtree(run.folder / "first")
        run.settled()
        run.warm(array.nbytes)
        start = perf_counter()
        peer.write_whole(array)
        run.add("write", perf_counter() - start)
        run.add("size", run.measure_disk())
        # A chest has taken it over, and would find it again.
        array = np.load(run.shared / "heights.npy", mmap_mode="r")
        if hasattr(peer, "reopen"):
            peer.reopen()

        random = np.random.default_rng(5)
        count = run.pick(100, 10)
        corners = random.integers(0, np.array(array.shape) - _WINDOW, (count, 2)).tolist()
        parts = [(slice(i, i + _WINDOW), slice(j, j + _WINDOW)) for i, j in corners]
        rows = random.integers(0, array.shape[0], count).tolist()
        # What the first one of a process pays once.
        np.asarray(peer.open_whole()[0:2, 0:2])
        for step, places in (("window of 64 × 64", parts), ("row", rows)):
            source = peer.open_whole()
            with run.time(step, count):
                # A view is read, too.
                found = [np.array(source[place]) for place in places]
            for place, each in zip(places, found, strict=True):
                expect(np.array_equal(each, array[place]), f"{step} at {place} differs")
            del source
        run.answer("rows", found)
        with run.time("all of it"):
            whole = np.array(peer.open_whole()[...])
        expect(np.array_equal(whole, array), "it differs")
