"""`memoize`: hits of memoised functions beside joblib.Memory's, and small value trees."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import arraychest
from arraychest import digests
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
    rows_against,
)
from bench.peers.base import PeerMissingError, load
from bench.workload import MIB, expect

_NAME = "memoize"
_PEER = "joblib.Memory"
_STANDARD = "arraychest, without xxhash"


def run(bench: Bench) -> list[Row]:
    return _hits(bench) + _trees(bench)


def inverted(array: np.ndarray) -> np.ndarray:
    """What is memoised: 16 MiB of 16 MiB."""
    return np.invert(array)


def scaled(number: int, factor: float, name: str = "x") -> float:
    """What is memoised of scalars."""
    return number * factor + len(name)


@contextlib.contextmanager
def _without_xxhash() -> Iterator[None]:
    known = sys.modules.get("xxhash")
    sys.modules["xxhash"] = None  # type: ignore[assignment]
    digests._algorithm.cache_clear()
    try:
        yield
    finally:
        del sys.modules["xxhash"]
        if known is not None:
            sys.modules["xxhash"] = known
        digests._algorithm.cache_clear()


def _hits(bench: Bench) -> list[Row]:
    # Not `bench.arrays`: the chests of other workloads have made those read-only, and what is
    # asked here is an array that may have changed since the last call.
    random = np.random.default_rng(7)
    ordinary = random.integers(0, 1 << 64, SHAPE, DTYPE)
    expected = np.invert(ordinary)
    times = bench.pick(20, 3)
    scalar_times = bench.pick(2000, 100)

    def measured(of_array: Callable[..., Any], of_scalars: Callable[..., Any]) -> Figures:
        result = of_array(ordinary)
        chained = of_array(result)
        figures: dict[str, list[float]] = {}
        # Not in a loop over the measures: each has to be asked for with what it needs alive.
        figures["hit, 16 MiB of an ordinary array"] = _timed(
            lambda: of_array(ordinary), times, expected
        )
        figures["hit, 16 MiB of what was memoised"] = _timed(
            lambda: of_array(result), times, ordinary
        )
        of_scalars(3, 0.5)
        start = perf_counter()
        for _ in range(scalar_times):
            found = of_scalars(3, 0.5)
        figures["hit, scalars"] = [(perf_counter() - start) / scalar_times * 1e6]
        expect(found == 2.5, "another number")
        del chained
        return figures

    def ours(folder: Path) -> Figures:
        with arraychest.Chest(path=folder / "chest", available_memory=256 * MIB) as chest:
            return measured(chest.cache(inverted), chest.cache(scaled))

    def ours_without(folder: Path) -> Figures:
        with _without_xxhash():
            return ours(folder)

    def theirs(folder: Path) -> Figures:
        memory = load("joblib").Memory(folder / "memory", mmap_mode="r", verbose=0)
        return measured(memory.cache(inverted), memory.cache(scaled))

    contestants = [Contestant(_STANDARD, ours_without), Contestant(_PEER, theirs)]
    try:
        load("xxhash")
        contestants.insert(0, Contestant(OURS, ours))
    except PeerMissingError as missing:
        bench.skipped["xxhash"] = str(missing)
    samples = bench.interleave(contestants, disk=2 * ARRAY_BYTES)
    floors = {
        "hit, 16 MiB of an ordinary array": {OURS: 0.2, _STANDARD: 0.5},
        "hit, 16 MiB of what was memoised": {OURS: 0.01, _STANDARD: 0.01},
        "hit, scalars": {OURS: 0.2, _STANDARD: 0.2},
    }
    rows = []
    for measure, asked in floors.items():
        for name, floor in asked.items():
            if (name, measure) in samples:
                label = measure if name == OURS else f"{measure}, standard library"
                rows += rows_against(
                    _NAME, measure, "us", samples, {_PEER: Floor(floor)}, ours=name, label=label
                )
    best = OURS if (OURS, "hit, scalars") in samples else _STANDARD
    scalars = samples[best, "hit, scalars"]
    return [*rows, Row(_NAME, "hit, scalars", "us", scalars, floor=Floor(40, of_ratio=False))]


def _timed(call: Callable[[], np.ndarray], times: int, expected: np.ndarray) -> list[float]:
    """Of each call to its first element, in microseconds."""
    found = []
    for _ in range(times):
        start = perf_counter()
        array = call()
        first = array[0, 0]
        found.append((perf_counter() - start) * 1e6)
        expect(first == expected[0, 0], "another first element")
    expect(np.array_equal(array, expected), "another array")
    return found


def _trees(bench: Bench) -> list[Row]:
    count = bench.pick(5000, 500)
    trees = [{f"name-{at}": number * 0.5 + at for at in range(10)} for number in range(count)]

    def run(folder: Path) -> Figures:
        figures = {}
        with arraychest.Chest(path=folder / "chest", available_memory=256 * MIB) as chest:
            start = perf_counter()
            for number, tree in enumerate(trees):
                chest[number] = tree
            figures["put, dict of 10 floats"] = (perf_counter() - start) / count * 1e6
            figures["get, dict of 10 floats"] = _gets(chest, trees)
        with arraychest.open(folder / "chest", mode="r") as chest:
            figures["get, dict of 10 floats, reopened"] = _gets(chest, trees)
        return figures

    samples = bench.interleave([Contestant(OURS, run)])
    floors = {
        "put, dict of 10 floats": 30,
        "get, dict of 10 floats": 20,
        "get, dict of 10 floats, reopened": None,
    }
    return [
        Row(
            _NAME,
            measure,
            "us",
            samples[OURS, measure],
            floor=None if floor is None else Floor(floor, of_ratio=False),
        )
        for measure, floor in floors.items()
    ]


def _gets(chest: arraychest.Chest, trees: list[dict[str, float]]) -> float:
    start = perf_counter()
    found = [chest[number] for number in range(len(trees))]
    taken = (perf_counter() - start) / len(trees) * 1e6
    expect(found == trees, "another dict")
    return taken
