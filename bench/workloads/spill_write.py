"""`spill-write`: incompressible arrays of 16 MiB to disk, once, and in steady churn."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

import arraychest
from bench.harness import (
    ARRAY_BYTES,
    OURS,
    Bench,
    Contestant,
    Figures,
    Floor,
    Row,
    Samples,
    expect,
    rows_against,
)
from bench.limits import npy_header, over_write, raw_write, reserve_write
from bench.peers import STORES, NumpySave, Peer

_NAME = "spill-write"
_RAW = "os.write, new files"
_RESERVED = "reserve+writev"
_TWO_THREADS = "reserve+writev, 2 threads"
_RECYCLED = "overwrite in place"

# Arrays that chest 0.2.3, which pickles them byte by byte, and zict are given.
_PEER_ARRAYS = 8


def run(bench: Bench) -> list[Row]:
    return _put_and_flush(bench) + _churn(bench)


# --- put and flush -------------------------------------------------------------------------


def _put_and_flush(bench: Bench) -> list[Row]:
    count = bench.pick(48, 8)
    within_budget = count // 3
    arrays = bench.arrays(count)
    header = npy_header(arrays[0])

    def ours(folder: Path) -> Figures:
        path = folder / "chest"
        # The default, on_put="freeze": the chest takes each array over.  It finds them read-only
        # from the round before, and lets go of each once it is stored; we keep them.
        with arraychest.Chest(path=path, available_memory=within_budget * ARRAY_BYTES) as chest:
            puts = []
            start = perf_counter()
            for number, array in enumerate(arrays):
                before = perf_counter()
                chest[f"key_{number}"] = array
                puts.append(perf_counter() - before)
            chest.flush()
            took = perf_counter() - start
            expect(chest.stats().spills == count, "not everything was stored")
        with arraychest.open(path, mode="r") as chest:
            for number, array in enumerate(arrays):
                expect(np.array_equal(chest[f"key_{number}"], array), f"key_{number} differs")
        share = sum(puts[:within_budget]) / (took * within_budget / count)
        return {"put+flush": _rate(count, took), "waits": 100 * share}

    def bare(write: Callable[[str, np.ndarray], object], threads: int = 1) -> Callable:
        def run(folder: Path) -> Figures:
            paths = [str(folder / f"{number}.npy") for number in range(count)]
            if threads == 1:
                start = perf_counter()
                for path, array in zip(paths, arrays, strict=True):
                    write(path, array)
                took = perf_counter() - start
            else:
                with ThreadPoolExecutor(threads) as pool:
                    start = perf_counter()
                    list(pool.map(write, paths, arrays))
                    took = perf_counter() - start
            expect(os.stat(paths[-1]).st_size >= ARRAY_BYTES, "not everything was written")
            return {"put+flush": _rate(count, took)}

        return run

    def reserved(path: str, array: np.ndarray) -> None:
        reserve_write(path, header, array)

    def peer(make: Callable[[Path, int], Peer]) -> Callable[[Path], Figures]:
        def run(folder: Path) -> Figures:
            number_of = min(count, _PEER_ARRAYS)
            store = make(folder, number_of // 3 * ARRAY_BYTES)
            try:
                start = perf_counter()
                for number, array in enumerate(arrays[:number_of]):
                    store.put(f"key_{number}", array)
                store.flush()
                took = perf_counter() - start
                store.reopen()
                for number, array in enumerate(arrays[:number_of]):
                    expect(np.array_equal(store.get(f"key_{number}"), array), store.name)
            finally:
                store.close()
            return {"put+flush": _rate(number_of, took)}

        return run

    samples = bench.interleave(
        [
            Contestant(OURS, ours),
            Contestant(_RAW, bare(raw_write)),
            Contestant(_RESERVED, bare(reserved)),
            Contestant(_TWO_THREADS, bare(reserved, threads=2)),
            *(Contestant(store.name, peer(store), store is not NumpySave) for store in STORES),
        ],
        disk=count * ARRAY_BYTES,
    )
    others: dict[str, Floor | None] = {_RAW: Floor(1.3, at_least=True)}
    others |= dict.fromkeys((_RESERVED, _TWO_THREADS, *(store.name for store in STORES)))
    rows = _rates("put+flush", samples, others)
    rows.append(
        Row(
            _NAME,
            "puts wait until the budget",
            "%",
            samples[OURS, "waits"],
            floor=Floor(5, of_ratio=False),
        )
    )
    return rows


# --- churn ---------------------------------------------------------------------------------


def _churn(bench: Bench) -> list[Row]:
    """Delete the oldest, put a new one, over and over; of each the bytes reach a file."""
    live = bench.pick(16, 6)
    steps = bench.pick(48, 12)
    budget = 4
    arrays = bench.arrays(bench.pick(32, 8))
    header = npy_header(arrays[0])

    def ours(folder: Path) -> Figures:
        path = folder / "chest"
        endless = itertools.cycle(enumerate(arrays))
        # At any time the few resident values have buffers of their own.
        with arraychest.Chest(path=path, available_memory=budget * ARRAY_BYTES) as chest:
            for key in range(2 * live):
                if key >= live:
                    del chest[key - live]
                chest[key] = next(endless)[1]
            chest.flush()
            spills = chest.stats().spills
            start = perf_counter()
            for key in range(2 * live, 2 * live + steps):
                del chest[key - live]
                chest[key] = next(endless)[1]
            chest.flush()
            took = perf_counter() - start
            # A value whose write two others overtook may be deleted before it is stored; what was
            # not stored does not count.
            stored = chest.stats().spills - spills
            expect(steps // 2 < stored <= steps, f"{stored} of {steps} values were stored")
        with arraychest.open(path, mode="r") as chest:
            last = 2 * live + steps
            expect(list(chest) == list(range(last - live, last)), "wrong keys")
            for key in chest:
                expect(np.array_equal(chest[key], arrays[key % len(arrays)]), f"{key} differs")
        return {"churn": _rate(stored, took)}

    def bare(write: Callable[[str, np.ndarray], object], *, remove: bool = True) -> Callable:
        def run(folder: Path) -> Figures:
            endless = itertools.cycle(arrays)

            def step(number: int) -> None:
                # Without `remove`, the oldest file is the one that is written over.
                if remove and number >= live:
                    os.unlink(folder / str(number - live))
                write(str(folder / str(number if remove else number % live)), next(endless))

            if not remove:
                for number in range(live):
                    raw_write(str(folder / str(number)), arrays[0])
            for number in range(2 * live):
                step(number)
            start = perf_counter()
            for number in range(2 * live, 2 * live + steps):
                step(number)
            return {"churn": _rate(steps, perf_counter() - start)}

        return run

    samples = bench.interleave(
        [
            Contestant(OURS, ours),
            Contestant(_RAW, bare(raw_write)),
            Contestant(_RESERVED, bare(lambda path, array: reserve_write(path, header, array))),
            Contestant(
                _RECYCLED, bare(lambda path, array: over_write(path, b"", array), remove=False)
            ),
        ],
        disk=2 * live * ARRAY_BYTES,
    )
    others = {_RAW: Floor(1.8, at_least=True), _RESERVED: None, _RECYCLED: None}
    return _rates("churn", samples, others, "churn: del, put…, flush")


def _rate(arrays: int, took: float) -> float:
    return arrays * ARRAY_BYTES / took / 1e9


def _rates(
    measure: str, samples: Samples, others: dict[str, Floor | None], label: str = ""
) -> list[Row]:
    return rows_against(_NAME, measure, "GB/s", samples, others, label=label, more_is_better=True)
