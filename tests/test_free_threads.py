"""Threads that meet in everything that takes no lock; see `arraychest.platform`.

Each key has one writer, which counts up a version that fills the array.  A reader that ever found an
array of two versions, one of another key, or an older version after a newer one, would have found a
race.  Without the interpreter lock (Python 3.14t) this is the test that counts; with it, threads
change places as often as that can be asked for.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import arraychest

KEYS, ELEMENTS = 12, (600, 40_000)


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Race:
    """Readers and writers of one chest, or of two on one folder."""

    def __init__(self, chests: list[arraychest.Chest], seconds: float) -> None:
        self.chests = chests
        self.until = time.monotonic() + seconds
        self.errors: list[BaseException] = []
        self.final: dict[int, int] = {}
        self.reads = 0

    def go_on(self) -> bool:
        return time.monotonic() < self.until and not self.errors

    def write(self, keys: range, seed: int) -> None:
        chance = random.Random(seed)
        version = dict.fromkeys(keys, 0)
        while self.go_on():
            key = chance.choice(keys)
            chest = self.chests[key % len(self.chests)]
            version[key] += 1
            chest[key] = np.full(chance.choice(ELEMENTS), key * 1e6 + version[key])
            self.final[key] = version[key]
            if chance.random() < 0.1:
                chest.pop(key)
                self.final.pop(key)
            if chance.random() < 0.05:
                chest.flush()

    def read(self, seed: int) -> None:
        chance = random.Random(seed)
        seen = dict.fromkeys(range(KEYS), 0)
        for count in itertools.count():
            if not self.go_on():
                self.reads += count
                return
            key = chance.randrange(KEYS)
            # The writer's own chest: another one may be told of a commit a moment later.
            found = self.chests[key % len(self.chests)].get(key)
            if found is None:
                continue
            first = float(found[0])
            assert found.min() == found.max() == first, f"two versions in one array of key {key}"
            owner, version = divmod(first, 1e6)
            assert owner == key, f"key {key} has a value of key {owner:.0f}"
            assert version >= seen[key], f"key {key}: version {version:.0f} after {seen[key]:.0f}"
            seen[key] = version

    def look(self) -> None:
        while self.go_on():
            for chest in self.chests:
                assert set(chest) <= set(range(KEYS))
                assert 0 <= len(chest) <= KEYS
                stats = chest.stats()
                assert stats.charged >= 0
                assert stats.hits >= 0

    def run(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def guarded(self, act: object, *args: object) -> threading.Thread:
        def run() -> None:
            try:
                act(*args)  # type: ignore[operator]
            except BaseException as error:
                self.errors.append(error)

        return threading.Thread(target=run)


@pytest.mark.parametrize("chests", [1, 2], ids=["one chest", "two on one folder"])
@pytest.mark.parametrize(
    "seconds", [0.4, pytest.param(60, marks=pytest.mark.stress)], ids=["quick", "long"]
)
def test_no_thread_finds_half_a_value_another_one_or_an_older_one(
    path, make_chest, chests, seconds
):
    opened = [make_chest(path=path, available_memory="1 MiB") for _ in range(chests)]
    race = Race(opened, seconds)
    writers = [race.guarded(race.write, range(at, KEYS, 3), at) for at in range(3)]
    readers = [race.guarded(race.read, 100 + at) for at in range(4)]
    race.run([*writers, *readers, race.guarded(race.look)])
    assert race.reads
    for chest in opened:
        chest.flush()
    assert {key: float(opened[0][key][0]) for key in opened[0]} == {
        key: key * 1e6 + version for key, version in race.final.items()
    }
    assert opened[0].verify().ok
