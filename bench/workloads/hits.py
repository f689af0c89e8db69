"""`hits`: gets of what is at hand, and puts that cause no spill, beside two LRU mappings."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
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
    PeerMissingError,
    Row,
    expect,
    rows_against,
)
from bench.peers import load

_KEYS = 1000
_LOOPS = 5
_MAPPED_BYTES = 64 * 1024  # each a file and a map of its own
_NAME = "hits"


def run(bench: Bench) -> list[Row]:
    return _gets(bench) + _puts(bench)


def _gets(bench: Bench) -> list[Row]:
    random = np.random.default_rng(4)
    keys = [f"key-{number}" for number in range(_KEYS)]
    # The mapped values are as many as there are keys; their bytes do not matter to a get.
    words = _MAPPED_BYTES // 8
    order = [keys[at] for at in random.permutation(np.repeat(np.arange(_KEYS), 20))]

    def arrays() -> dict[str, np.ndarray]:
        return {key: np.full(words, at) for at, key in enumerate(keys)}

    resident = arraychest.Chest(available_memory=256 * MIB)
    with bench.fresh_folder() as folder, resident:
        resident.update(arrays())
        with arraychest.Chest(path=folder / "chest", available_memory=256 * MIB) as mapped:
            mapped.update(arrays())
            mapped.flush()
            for key in keys:
                mapped[key]
            expect(mapped.stats().faults == _KEYS, "the values are not mapped")
            expect(resident.stats().spills == 0, "something was spilled")
            values = arrays()
            contestants = [
                _getter(OURS, resident, order, "get, resident"),
                _getter("arraychest, mapped", mapped, order, "get, mapped"),
                _getter("dict", values, order, "get"),
            ]
            for name, lru in _lrus(bench, _KEYS * _MAPPED_BYTES * 2).items():
                lru.update(values)
                contestants.append(_getter(name, lru, order, "get"))
            samples = bench.interleave(contestants)
    floors = {
        "cachetools.LRUCache": Floor(1.0),
        "zict.LRU": Floor(0.25),
        "dict": None,
    }
    return [
        Row(_NAME, measure, "ns", samples[ours, measure], other, samples[other, "get"], floor)
        for ours, measure in ((OURS, "get, resident"), ("arraychest, mapped", "get, mapped"))
        for other, floor in floors.items()
        if (other, "get") in samples
    ]


def _getter(name: str, of: Mapping[str, Any], order: Sequence[str], measure: str) -> Contestant:
    def run(_: Path) -> Figures:
        for key in order[::97]:
            expect(f"key-{of[key][0]}" == key, f"{name}[{key!r}]")
        times = []
        for _loop in range(_LOOPS):
            start = perf_counter()
            for key in order:
                of[key]
            times.append((perf_counter() - start) / len(order) * 1e9)
        return {measure: times}

    return Contestant(name, run)


def _puts(bench: Bench) -> list[Row]:
    count = bench.pick(20_000, 5_000)
    # Each a buffer of its own, which the chest takes over; from then on it is read-only, and the
    # next chest takes it as it is.
    pairs = [(f"key-{number}", np.full(128, number)) for number in range(count)]

    def contestant(name: str) -> Contestant:
        def run(_: Path) -> Figures:
            of = _empty(bench, name)
            figures = {}
            for measure in ("put 1 KiB, new key", "put 1 KiB, known key"):
                start = perf_counter()
                for key, array in pairs:
                    of[key] = array
                figures[measure] = (perf_counter() - start) / count * 1e9
            expect(len(of) == count, f"{name} has {len(of)} values")
            for key, array in pairs[::997]:
                expect(of[key] is array, f"{name}[{key!r}]")
            if isinstance(of, arraychest.Chest):
                expect(of.stats().spills == 0, "something was spilled")
                of.close()
            return figures

        return Contestant(name, run)

    names = (OURS, "zict.LRU", "cachetools.LRUCache", "dict")
    samples = bench.interleave([contestant(name) for name in names])
    rows = []
    for measure in ("put 1 KiB, new key", "put 1 KiB, known key"):
        others = {"zict.LRU": Floor(0.7), "cachetools.LRUCache": None, "dict": None}
        rows += rows_against(_NAME, measure, "ns", samples, others)
    return rows


def _empty(bench: Bench, name: str) -> MutableMapping[str, Any]:
    if name == OURS:
        return arraychest.Chest(available_memory=512 * MIB)
    if name == "dict":
        return {}
    lrus = _lrus(bench, 512 * MIB)
    if name not in lrus:
        raise PeerMissingError(bench.skipped[name])
    return lrus[name]


def _lrus(bench: Bench, nbytes: int) -> dict[str, MutableMapping[str, Any]]:
    """The LRU mappings that are installed, bounded by bytes as a chest is."""
    found: dict[str, MutableMapping[str, Any]] = {}
    try:
        found["cachetools.LRUCache"] = load("cachetools").LRUCache(
            nbytes, getsizeof=lambda array: array.nbytes
        )
    except PeerMissingError as missing:
        bench.skipped["cachetools.LRUCache"] = str(missing)
    try:
        found["zict.LRU"] = load("zict").LRU(nbytes, {}, weight=lambda _, array: array.nbytes)
    except PeerMissingError as missing:
        bench.skipped["zict.LRU"] = str(missing)
    return found
