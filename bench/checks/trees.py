"""`trees`: small dicts of numbers, taken apart and put together again."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import arraychest
from bench.checks.harness import (
    OURS,
    Bench,
    Contestant,
    Figures,
    Floor,
    Row,
)
from bench.workload import MIB, expect

_NAME = "trees"


def run(bench: Bench) -> list[Row]:
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
