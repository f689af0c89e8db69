"""`pipeline`: 96 arrays of 16 MiB through a budget of 256 MiB, then 400 skewed re-reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import arraychest
from bench.harness import (
    ARRAY_BYTES,
    DTYPE,
    OURS,
    SHAPE,
    Bench,
    Contestant,
    Figures,
    Floor,
    Row,
    expect,
    rows_against,
)
from bench.limits import map_array, npy_header, reserve_write
from bench.peers import STORES, NumpySave, Peer

_NAME = "pipeline"
_LIMIT = "bare reserve-write-and-map"


def run(bench: Bench) -> list[Row]:
    count = bench.pick(96, 8)
    reads = bench.pick(400, 40)
    budget = bench.pick(16, 2) * ARRAY_BYTES
    arrays = bench.arrays(count)
    sums = [array.sum() for array in arrays]
    random = np.random.default_rng(7)
    # Zipf's law: the second most wanted is read half as often as the first, and so on.
    weights = 1 / np.arange(1, count + 1)
    drawn = random.permutation(count)[random.choice(count, reads, p=weights / weights.sum())]
    order = [(f"key_{at}", sums[at]) for at in drawn.tolist()]
    pairs = [(f"key_{at}", array) for at, array in enumerate(arrays)]

    def read_all(get: Callable[[str], np.ndarray]) -> float:
        start = perf_counter()
        found = [get(key).sum() for key, _ in order]
        took = perf_counter() - start
        expect(found == [right for _, right in order], "wrong sums")
        return took

    def figures(put: float, read: float) -> dict[str, float]:
        return {"puts": put, "re-reads": read, "puts and re-reads": put + read}

    def ours(folder: Path) -> Figures:
        # "share": the chest lets go of its view once the value is stored, so that a re-read maps
        # the file.  Under "freeze" it would find our own array alive and return that.
        with arraychest.Chest(
            path=folder / "chest", available_memory=budget, on_put="share"
        ) as chest:
            start = perf_counter()
            for key, array in pairs:
                chest[key] = array
            put = perf_counter() - start
            read = read_all(chest.__getitem__)
            start = perf_counter()
            chest.flush()
            flush = perf_counter() - start
            return {**figures(put, read), "…and flush": put + read + flush}

    def bare(folder: Path) -> Figures:
        paths = {key: str(folder / f"{key}.npy") for key, _ in pairs}
        maps: dict[str, np.ndarray] = {}

        def get(key: str) -> np.ndarray:
            array = maps.get(key)
            if array is None:
                array = maps[key] = map_array(paths[key], SHAPE, DTYPE)
            return array

        start = perf_counter()
        for key, array in pairs:
            reserve_write(paths[key], npy_header(array), array)
        put = perf_counter() - start
        both = figures(put, read_all(get))
        return {**both, "…and flush": both["puts and re-reads"]}

    def peer(make: Callable[[Path, int], Peer]) -> Callable[[Path], Figures]:
        def run(folder: Path) -> Figures:
            store: Any = make(folder, budget)
            try:
                start = perf_counter()
                for key, array in pairs:
                    store.put(key, array)
                put = perf_counter() - start
                return figures(put, read_all(store.get))
            finally:
                store.close()

        return run

    samples = bench.interleave(
        [
            Contestant(OURS, ours),
            Contestant(_LIMIT, bare),
            *(Contestant(store.name, peer(store), store is not NumpySave) for store in STORES),
        ],
        disk=count * ARRAY_BYTES,
    )
    others: dict[str, Floor | None] = {_LIMIT: Floor(1.15)}
    others |= dict.fromkeys(store.name for store in STORES)
    rows = rows_against(_NAME, "puts and re-reads", "s", samples, others)
    for measure in ("puts", "re-reads", "…and flush"):
        rows += rows_against(_NAME, measure, "s", samples, {_LIMIT: None})
    return rows
