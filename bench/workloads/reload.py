"""`reload`: from a stored array of 16 MiB to its first element, while the chest is open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

import arraychest
from bench.harness import (
    ARRAY_BYTES,
    DTYPE,
    MIB,
    OURS,
    SHAPE,
    Bench,
    Contestant,
    Figures,
    Floor,
    Row,
    expect,
)
from bench.limits import map_array
from bench.peers import STORES, NumpySave, Peer

_NAME = "reload"
_LIMIT = "open+fstat+mmap+ndarray"
_NP_LOAD = 'np.load(mmap_mode="r")'
_SPILLED = "arraychest, spilled here"


def run(bench: Bench) -> list[Row]:
    count = bench.pick(32, 6)
    arrays = bench.arrays(count)
    keys = [f"key_{number}" for number in range(count)]

    with bench.fresh_folder() as folder:
        path = folder / "chest"
        with arraychest.Chest(path=path, available_memory=64 * MIB) as chest:
            for key, array in zip(keys, arrays, strict=True):
                chest[key] = array
            chest.flush()
            names = [chest.key_to_filename(key) for key in keys]
        files = dict(zip(keys, map(str, names), strict=True))

        def first_elements(get: Callable[[str], np.ndarray]) -> Figures:
            # What was returned is kept, as a chest keeps it: unmapping is not part of a reload.
            times, kept = [], []
            for key in keys:
                start = perf_counter()
                array = get(key)
                first = array[0, 0]
                times.append((perf_counter() - start) * 1e6)
                kept.append((array, first))
            for key, array, (found, first) in zip(keys, arrays, kept, strict=True):
                expect(first == array[0, 0] and found[-1, -1] == array[-1, -1], f"{key} differs")
            return {"first": times}

        def reopened(_: Path) -> Figures:
            with arraychest.Chest(path=path, available_memory=64 * MIB) as chest:
                return first_elements(chest.__getitem__)

        def spilled(folder: Path) -> Figures:
            # "share" keeps a view of its own: under "freeze" a get would find that very array
            # still alive in our hands and return it.
            with arraychest.Chest(
                path=folder / "chest", available_memory=64 * MIB, on_put="share"
            ) as chest:
                for key, array in zip(keys, arrays, strict=True):
                    chest[key] = array
                chest.flush()
                figures = first_elements(chest.__getitem__)
                expect(chest.stats().faults == count, "not everything came from disk")
                return figures

        def limit(_: Path) -> Figures:
            # The chest's own files, so that both meet the same pages.
            return first_elements(lambda key: map_array(files[key], SHAPE, DTYPE))

        def np_load(_: Path) -> Figures:
            return first_elements(lambda key: np.load(files[key], mmap_mode="r"))

        def peer(make: Callable[[Path, int], Peer]) -> Callable[[Path], Figures]:
            def run(folder: Path) -> Figures:
                store = make(folder, ARRAY_BYTES * count * 2)
                try:
                    for key, array in zip(keys, arrays, strict=True):
                        store.put(key, array)
                    store.reopen()
                    return first_elements(store.get)
                finally:
                    store.close()

            return run

        samples = bench.interleave(
            [
                Contestant(OURS, reopened),
                Contestant(_LIMIT, limit),
                Contestant(_SPILLED, spilled),
                Contestant(_NP_LOAD, np_load),
                *(
                    Contestant(store.name, peer(store), once=True)
                    for store in STORES
                    if store is not NumpySave
                ),
            ]
        )
    others = {_LIMIT: Floor(1.5), _NP_LOAD: Floor(0.4)}
    rows = [
        Row(_NAME, label, "us", samples[ours, "first"], other, samples[other, "first"], floor)
        for ours, label in (
            (OURS, "first element, reopened"),
            (_SPILLED, "first element, spilled here"),
        )
        for other, floor in others.items()
    ]
    rows += [
        Row(
            _NAME,
            "first element, reopened",
            "us",
            samples[OURS, "first"],
            store.name,
            samples[store.name, "first"],
        )
        for store in STORES
        if (store.name, "first") in samples
    ]
    return rows
