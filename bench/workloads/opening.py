"""`opening`: stores of a thousand to a million entries: what opening and an entry cost by then."""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import Any

import numpy as np

from bench.workload import MIB, Run, Step, Workload, expect

_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_OPERATIONS = 1_000
_REPEATS = 5
_OF_EACH = ("open", "get", "put", "delete")


class Opening(Workload):
    name = "opening"
    title = "Stores of 1,000 to 1,000,000 arrays of 16 bytes, and their growth"
    needs = ("put", "get", "delete", "flush", "reopen")
    steps = (
        *(Step(f"{what}, of the most", judged=what != "open") for what in _OF_EACH),
        *(Step(f"growth of {what}", "×", judged=False, at_most=1.5) for what in _OF_EACH),
    )
    rounds = 3
    seconds = 90
    budget = (64 * MIB, 64 * MIB)
    disk = (1024 * MIB, 64 * MIB)
    durable = True

    def play(self, peer: Any, run: Run) -> None:
        peer.close()
        largest = run.count(_SIZES[-1], _SIZES[1], least=_SIZES[1])
        sizes = [size for size in _SIZES if size <= largest]
        costs = {size: _costs(peer, run, size) for size in sizes}
        first, last = sizes[0], sizes[-1]
        for what in _OF_EACH:
            for size in sizes:
                run.add(f"{what}, of {size:,}", costs[size][what])
            # The largest that it was given.
            run.add(f"{what}, of the most", costs[last][what])
            run.add(f"growth of {what}", costs[last][what] / costs[first][what])


def _costs(peer: Any, run: Run, size: int) -> dict[str, float]:
    """Medians, in seconds: of opening to the first value, and of each further operation."""
    folder = run.folder / str(size)
    folder.mkdir()
    store = type(peer)(folder, peer.budget)
    for number in range(size):
        store.put(_key(number), np.array([number, number]))
        if number % 100_000 == 0:
            store.flush()
    store.flush()
    run.measure_disk()
    random = np.random.default_rng(size)
    times: dict[str, list[float]] = {what: [] for what in _OF_EACH}
    for repeat in range(_REPEATS):
        store.close()
        start = perf_counter()
        store = type(peer)(folder, peer.budget)
        found = store.get(_key(size // 2))[0]
        times["open"].append(perf_counter() - start)
        expect(found == size // 2, f"{found} in place of {size // 2}")

        # None of them twice: the second time it is at hand.
        drawn = random.choice(size, min(_OPERATIONS, size), replace=False).tolist()
        keys = [_key(number) for number in drawn]
        start = perf_counter()
        values = [store.get(key)[0] for key in keys]
        times["get"].append((perf_counter() - start) / len(keys))
        expect(values == drawn, "wrong values")

        new = [(f"new_{repeat}_{at}", np.array([at, at])) for at in range(_OPERATIONS)]
        start = perf_counter()
        for key, array in new:
            store.put(key, array)
        store.flush()
        times["put"].append((perf_counter() - start) / len(new))
        start = perf_counter()
        for key, _ in new:
            store.delete(key)
        store.flush()
        times["delete"].append((perf_counter() - start) / len(new))
    store.close()
    return {what: statistics.median(each) for what, each in times.items()}


def _key(number: int) -> str:
    return f"key_{number:07}"
