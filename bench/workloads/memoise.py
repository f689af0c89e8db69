"""`memoise`: hits of functions whose results are kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from bench.workload import ARRAY_BYTES, MIB, Run, Step, Workload, expect


def inverted(array: np.ndarray) -> np.ndarray:
    """What is memoised: as many bytes as it is given."""
    return np.invert(array)


def scaled(number: int, factor: float, name: str = "x") -> float:
    """What is memoised of scalars."""
    return number * factor + len(name)


class Memoise(Workload):
    name = "memoise"
    title = "Memoised functions; argument and result are arrays of 16 MiB"
    needs = ("memoise",)
    steps = (
        Step("hit", nbytes=ARRAY_BYTES),
        Step("hit, argument memoised"),
        Step("hit, scalars"),
        Step("miss", nbytes=ARRAY_BYTES),
    )
    rounds = 5
    seconds = 40
    budget = (512 * MIB, 32 * MIB)
    disk = (1024 * MIB, 64 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        of_array, of_scalars = peer.memoise(inverted), peer.memoise(scaled)
        random = np.random.default_rng(7)
        arrays = [
            random.integers(0, 1 << 64, (run.pick(1024, 64), 2048), np.uint64)
            for _ in range(run.pick(4, 2))
        ]
        run.settled()
        run.warm(4 * sum(array.nbytes for array in arrays))
        # What the first call of a process pays once.
        of_array(np.arange(10))
        results = []
        for array in arrays:
            start = perf_counter()
            results.append(of_array(array))
            run.add("miss", perf_counter() - start)
        for _ in range(run.pick(4, 1)):
            for array in arrays:
                _timed(run, "hit", of_array, array, np.invert(array))
        # Results as they come back, and not as they were computed.
        results = [of_array(array) for array in arrays]
        for array, result in zip(arrays, results, strict=True):
            of_array(result)
            _timed(run, "hit, argument memoised", of_array, result, array)
        of_scalars(3, 0.5)
        times = run.pick(2000, 100)
        with run.time("hit, scalars", times):
            for _ in range(times):
                found = of_scalars(3, 0.5)
        expect(found == 2.5, "another number")
        run.answer("a result", np.asarray(results[0]))


def _timed(
    run: Run, step: str, call: Callable[..., Any], argument: np.ndarray, expected: np.ndarray
) -> None:
    """To the first element of what a call gives."""
    start = perf_counter()
    found = call(argument)
    first = found[0, 0]
    run.add(step, perf_counter() - start)
    expect(first == expected[0, 0] and np.array_equal(found, expected), f"{step}: it differs")
