"""`sharing`: what one process pays for others, and how soon it sees what they commit."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import numpy as np

import arraychest
from bench.checks.harness import OURS, Bench, Contestant, Figures, Floor, Row
from bench.workload import MIB, expect

_NAME = "sharing"
_KEYS = 256
_WORDS = 8192  # 64 KiB: each value has a file and a map of its own
_LOOPS = 5
# A fork would inherit the bench's own threads and chests.
_processes = multiprocessing.get_context("spawn")


def run(bench: Bench) -> list[Row]:
    return _hit_cost(bench) + _news(bench)


def _value(key: int, turn: int) -> np.ndarray:
    return np.full(_WORDS, turn * _KEYS + key)


def _fill(path: Path) -> None:
    with arraychest.Chest(path=path, available_memory=64 * MIB) as chest:
        chest.update({key: _value(key, 0) for key in range(_KEYS)})


# --- one process ---------------------------------------------------------------------------------


def _hit_cost(bench: Bench) -> list[Row]:
    keys = [f"key-{number}" for number in range(_KEYS)]
    order = keys * bench.pick(100, 10)

    with bench.fresh_folder() as folder:
        private = arraychest.Chest(available_memory=64 * MIB)
        with private, arraychest.Chest(path=folder / "c", available_memory=64 * MIB) as named:
            for chest in (private, named):
                for number, key in enumerate(keys):
                    chest[key] = np.full(1024, number)
                for key in keys:
                    chest[key]

            def contestant(name: str, chest: arraychest.Chest) -> Contestant:
                def run(_: Path) -> Figures:
                    return {"get": min(_loop(chest, order) for _ in range(_LOOPS))}

                return Contestant(name, run)

            samples = bench.interleave([contestant(OURS, named), contestant("private", private)])
    ours, theirs = samples[OURS, "get"], samples["private", "get"]
    more = [statistics.median(ours) - statistics.median(theirs)]
    floor = Floor(40, of_ratio=False)
    return [
        Row(_NAME, "hit, named chest", "ns", ours, "a private chest", theirs),
        Row(_NAME, "what a named chest's hit costs more", "ns", more, floor=floor),
    ]


def _loop(chest: arraychest.Chest, order: Sequence[str]) -> float:
    start = perf_counter()
    for key in order:
        chest[key]
    return (perf_counter() - start) / len(order) * 1e9


# --- news ----------------------------------------------------------------------------------------


def _news(bench: Bench) -> list[Row]:
    count = bench.pick(300, 30)
    with bench.fresh_folder() as folder:
        path = str(folder / "chest")
        _fill(Path(path))
        mine, theirs = _processes.Pipe()
        writer = _processes.Process(target=_overwrite, args=(path, theirs))
        writer.start()
        try:
            with arraychest.open(path, "r") as chest:
                for key in range(_KEYS):
                    chest[key]
                times = []
                for turn in range(1, count + 1):
                    key = turn % _KEYS
                    mine.send((key, turn))
                    expect(mine.poll(60) and mine.recv() == turn, "the writer has ended")
                    start = perf_counter()
                    array = chest[key]
                    first = array[0]
                    times.append((perf_counter() - start) * 1e6)
                    expect(first == turn * _KEYS + key, f"the get after commit {turn} is old")
                    del array
            mine.send(None)
        finally:
            writer.join(10)
            if writer.exitcode is None:
                writer.kill()
    return [Row(_NAME, "first get after another process's overwrite", "us", times)]


def _overwrite(path: str, pipe: Connection) -> None:
    with arraychest.open(path, "a") as chest:
        while (asked := pipe.recv()) is not None:
            key, turn = asked
            chest[key] = _value(key, turn)
            chest.flush()
            pipe.send(turn)
