"""`small`: 100,000 arrays of 1 KiB beside an append-only log, and opening a million entries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import arraychest
from bench.harness import (
    MIB,
    OURS,
    Bench,
    Contestant,
    Figures,
    Floor,
    Row,
    disk_bytes,
    expect,
    rows_against,
)
from bench.limits import Log
from bench.peers import STORES, Peer
from bench.workloads.imports import environment

_NAME = "small"
_LOG = "append-only log"
_WORDS = 128  # of 8 bytes: 1 KiB
_BUDGET = 64 * MIB

_PUT = "put+flush"
_GET = "random get, reopened"
# The log reads itself through when it is opened; a chest reads no row before it is asked for.
_OPEN_AND_GET = "open, and random gets: each"
_DELETE_REOPENED = "delete+flush, reopened"
_DELETE = "delete+flush, put here"


def run(bench: Bench) -> list[Row]:
    return _values(bench) + _opening(bench)


# --- puts, gets, deletions -----------------------------------------------------------------


def _values(bench: Bench) -> list[Row]:
    count = bench.pick(100_000, 5_000)
    gets = bench.pick(20_000, 2_000)
    random = np.random.default_rng(8)
    words = random.integers(0, 1 << 64, (count, _WORDS), np.uint64)
    words[:, 0] = np.arange(count)
    # Each an array of its own: a row of `words` would be copied when it is put.
    pairs = [(f"key_{number:06}", row.copy()) for number, row in enumerate(words)]
    del words
    drawn = [pairs[at][0] for at in random.integers(0, count, gets)]
    doomed = [pairs[at] for at in random.permutation(count)[: count // 2]]

    def play(open_it: Callable[[], Any], folder: Path) -> dict[str, float]:
        """One round of a store that is a mapping with flush and close."""
        figures = {}
        store = open_it()
        figures[_PUT] = _each(count, lambda: _put_all(store, pairs))
        store.close()
        figures["disk"] = disk_bytes(folder) / (count * _WORDS * 8)

        start = perf_counter()
        store = open_it()
        opened = perf_counter() - start
        firsts: list[Any] = []
        figures[_GET] = _each(gets, lambda: _get_all(store, drawn, firsts))
        figures[_OPEN_AND_GET] = opened / gets * 1e6 + figures[_GET]
        expect([f"key_{first:06}" for first in firsts] == drawn, "wrong values")
        for key, array in pairs[::499]:
            expect(np.array_equal(store[key], array), f"{key} differs")

        figures[_DELETE_REOPENED] = _each(len(doomed), lambda: _delete_all(store, doomed))
        expect(len(store) == count - len(doomed), "wrong number of keys")
        _put_all(store, doomed)
        figures[_DELETE] = _each(len(doomed), lambda: _delete_all(store, doomed))
        store.close()

        store = open_it()
        expect(len(store) == count - len(doomed), "wrong number of keys")
        gone = {key for key, _ in doomed}
        for key, array in pairs[::499]:
            if key not in gone:
                expect(np.array_equal(store[key], array), f"{key} differs")
        store.close()
        return figures

    def ours(folder: Path) -> Figures:
        path = folder / "chest"
        return play(partial(arraychest.Chest, path=path, available_memory=_BUDGET), folder)

    def log(folder: Path) -> Figures:
        return play(partial(Log, folder / "log"), folder)

    samples = bench.interleave(
        [
            Contestant(OURS, ours),
            Contestant(_LOG, log),
            *(Contestant(store.name, _peer(bench, store, pairs), once=True) for store in STORES),
        ],
        disk=int(1.2 * count * _WORDS * 8),
    )
    rows = []
    for measure, most in (
        (_PUT, 2.5),
        (_GET, 3),
        (_OPEN_AND_GET, 3),
        (_DELETE_REOPENED, 4),
        (_DELETE, 4),
    ):
        others: dict[str, Floor | None] = {_LOG: Floor(most)}
        others |= dict.fromkeys(store.name for store in STORES)
        rows += rows_against(_NAME, measure, "us", samples, others)
    floor = Floor(1.2, of_ratio=False)
    rows.append(Row(_NAME, "disk per byte", "bytes", samples[OURS, "disk"], floor=floor))
    others = dict.fromkeys((_LOG, *(store.name for store in STORES)))
    rows += rows_against(_NAME, "disk", "bytes", samples, others, label="disk per byte")
    return rows


def _peer(
    bench: Bench, make: Callable[[Path, int], Peer], pairs: Sequence[tuple[str, np.ndarray]]
) -> Callable[[Path], Figures]:
    # Each value is a file of theirs: so many that it takes seconds, not minutes.
    some = pairs[: bench.pick(5_000, 500)]
    order = np.random.default_rng(9).permutation(len(some))

    def run(folder: Path) -> Figures:
        store = make(folder, len(some) // 4 * _WORDS * 8)
        try:
            figures = {}
            start = perf_counter()
            for key, array in some:
                store.put(key, array)
            store.flush()
            figures[_PUT] = (perf_counter() - start) / len(some) * 1e6
            figures["disk"] = disk_bytes(folder) / (len(some) * _WORDS * 8)
            store.reopen()
            drawn = [some[at][0] for at in order]
            start = perf_counter()
            firsts = [store.get(key)[0] for key in drawn]
            figures[_GET] = (perf_counter() - start) / len(some) * 1e6
            expect([f"key_{first:06}" for first in firsts] == drawn, "wrong values")
            start = perf_counter()
            for key in drawn[::2]:
                store.delete(key)
            store.flush()
            figures[_DELETE_REOPENED] = (perf_counter() - start) / len(drawn[::2]) * 1e6
        finally:
            store.close()
        return figures

    return run


def _each(count: int, action: Callable[[], object]) -> float:
    """Microseconds that each of so many took."""
    start = perf_counter()
    action()
    return (perf_counter() - start) / count * 1e6


def _put_all(store: Any, pairs: Sequence[tuple[str, np.ndarray]]) -> None:
    for key, array in pairs:
        store[key] = array
    store.flush()


def _get_all(store: Any, keys: Sequence[str], firsts: list[Any]) -> None:
    for key in keys:
        firsts.append(store[key][0])  # noqa: PERF401  # the same loop for all, as users write it


def _delete_all(store: Any, pairs: Sequence[tuple[str, np.ndarray]]) -> None:
    for key, _ in pairs:
        del store[key]
    store.flush()


# --- opening -------------------------------------------------------------------------------

_OPEN = """
import json, os, sys, time
import arraychest

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

path, mode, key = sys.argv[1:]
before = rss()
start = time.perf_counter()
chest = arraychest.open(path, mode=mode)
took = time.perf_counter() - start
grown = rss() - before
start = time.perf_counter()
value = int(chest[key][0])
got = time.perf_counter() - start
chest.close()
print(json.dumps([took * 1e3, grown / (1 << 20), got * 1e3, value]))
"""

_EMPTY = "a chest of ten"
_MODES = {"r": "mode r", "a": "mode a"}


def _opening(bench: Bench) -> list[Row]:
    count = bench.pick(1_000_000, 20_000)
    bench.say(f"building a chest of {count:,} entries")
    with bench.fresh_folder() as folder:
        for name, entries in (("many", count), ("few", 10)):
            with arraychest.Chest(path=folder / name, available_memory=_BUDGET) as chest:
                for number in range(entries):
                    chest[f"key_{number:06}"] = np.array([number, number])

        def opening(name: str, entries: int, mode: str) -> Callable[[Path], Figures]:
            def run(_: Path) -> Figures:
                number = entries * 2 // 3
                done = subprocess.run(
                    [sys.executable, "-c", _OPEN, folder / name, mode, f"key_{number:06}"],
                    env=environment(bench),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                expect(not done.returncode, done.stderr)
                took, grown, got, value = json.loads(done.stdout)
                expect(value == number, f"key_{number:06} of {entries:,} is {value}")
                return {"ms": took, "MiB": grown, "get": got}

            return run

        contestants = []
        for mode, label in _MODES.items():
            contestants += [
                Contestant(f"{OURS}, {label}", opening("many", count, mode)),
                Contestant(f"{_EMPTY}, {label}", opening("few", 10, mode)),
            ]
        samples = bench.interleave(contestants)
    rows = []
    for label in _MODES.values():
        for measure, what in (("ms", "open"), ("MiB", "RSS growth, open")):
            ours = samples[f"{OURS}, {label}", measure]
            name = f"{what} {count:,}, {label}"
            few = samples[f"{_EMPTY}, {label}", measure]
            rows.append(Row(_NAME, name, measure, ours, floor=Floor(20, of_ratio=False)))
            rows.append(Row(_NAME, name, measure, ours, _EMPTY, few))
    return rows
