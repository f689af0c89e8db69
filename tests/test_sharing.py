"""Several writers on one chest: what each sees of the others, also when they die at random."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import arraychest
from tests.support import IMPORT_ROOT, audit

# What each writer does until it is killed: every value is filled with one number, and those of a
# group are always put together, with the same one.
WRITER = """
import random, sys, numpy as np, arraychest
path, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
chest = arraychest.open(path, available_memory="2 MiB")
print("ready", flush=True)
number = 1_000_000 * seed
while True:
    number += 1
    size = rng.choice([3, 100, 5000, 20_000, 60_000])
    key = rng.choice("abcdefghijklmnop"), rng.randrange(4)
    what = rng.random()
    try:
        if what < 0.45:
            chest[key] = np.full(size, float(number))
        elif what < 0.55:
            chest.discard(key)
        elif what < 0.65:
            with chest.transaction():
                for member in range(3):
                    chest["group", member] = np.full(size, float(number))
        elif what < 0.75:
            if key in chest:
                with chest.edit(key) as array:
                    array[:] = number
        elif what < 0.8:
            with chest.create(key, size) as array:
                array[:] = number
        elif what < 0.95:
            if key in chest:
                value = chest[key]
                assert (value == value[0]).all(), (key, value)
        elif what < 0.98:
            chest.flush()
        else:
            chest.compact()
    except KeyError:
        pass  # deleted by another meanwhile
"""


def start(path: str, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(seed)],
        env={**os.environ, "PYTHONPATH": IMPORT_ROOT},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it; it must have been at work."""
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err


def check(path: str, sentinels: dict[Any, float]) -> int:
    """All that is there is whole; returns how many values that is."""
    with arraychest.open(path) as chest:
        report = chest.verify()
        assert report.ok, str(report)
        for key, value in chest.items():
            assert (value == value[0]).all(), key
        for key, number in sentinels.items():
            assert (chest[key] == number).all()
        group = {chest["group", member][0] for member in range(3) if ("group", member) in chest}
        assert len(group) <= 1
        assert len([key for key in chest if key[0] == "group"]) in (0, 3)
        count = len(chest)
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert chest.verify().ok
    return count


def storm(path: str, kills: int, writers: int, seed: int) -> tuple[int, int]:
    """Kill writers at random moments, each replaced by another; returns kills and values seen."""
    rng = random.Random(seed)
    sentinels: dict[Any, float] = {}
    values = 0
    processes: list[subprocess.Popen[str]] = []
    started = done = 0
    try:
        while done < kills:
            while len(processes) < writers:
                started += 1
                processes.append(start(path, started))
                # Mostly it is at work when somebody is killed; otherwise it is still opening.
                if rng.random() < 0.8:
                    assert processes[-1].stdout is not None
                    processes[-1].stdout.readline()
            time.sleep(rng.uniform(0, 0.4))
            if rng.random() < 0.5:
                # While they write: what is flushed here, none of them may lose.
                with arraychest.open(path) as chest:
                    key, number = ("kept", done), float(done)
                    chest[key] = np.full(rng.choice([10, 30_000]), number)
                sentinels[key] = number
            victims = processes if rng.random() < 0.4 else [rng.choice(processes)]
            for victim in list(victims):
                processes.remove(victim)
                kill(victim)
                done += 1
            if not processes:
                values += check(path, sentinels)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    values += check(path, sentinels)
    return done, values


@pytest.mark.slow
def test_writers_that_are_killed_lose_nothing_and_leave_nothing(path):
    storm(path, kills=8, writers=3, seed=1)


@pytest.mark.stress
def test_writers_that_are_killed_lose_nothing_and_leave_nothing_for_longer(path):
    kills, values = storm(path, kills=300, writers=3, seed=2)
    print(f"{kills} writers killed, {values} values looked at afterwards, none lost")


def test_a_chest_that_looked_something_up_and_idles_does_not_keep_the_log(path, monkeypatch):
    # So few pages that a short test fills the log many times over.
    monkeypatch.setattr(arraychest.catalog.connection, "_LOG_PAGES", 16)
    with arraychest.Chest({"a": np.arange(4), "b": np.arange(4)}, path=path):
        pass
    with arraychest.open(path, "a") as idle, arraychest.open(path, "a") as busy:
        assert idle["a"].sum() == 6
        log = Path(f"{path}/catalog.sqlite-wal")
        sizes = []
        for number in range(200):
            busy["b"] = np.full(4, number)
            busy.flush()
            sizes.append(log.stat().st_size)
            time.sleep(0.001)
        assert sizes[-1] < 1 << 20, f"{sizes[-1]} bytes, after {sizes[99]}"
        assert idle["b"][0] == 199


# --- beside a model --------------------------------------------------------------------------------

KEYS = st.integers(0, 5)
SIZES = st.sampled_from([2, 100, 10_000])
WRITERS = st.integers(0, 1)


class Shared(RuleBasedStateMachine):
    """Two writers and a reader: each sees what is committed, and a writer its own puts over it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="shared-")
        self.path = os.path.join(self.folder, "chest")
        self.number = 0.0
        self.committed: dict[int, list[float]] = {}
        # By writer: what it has put, or deleted (None), and not flushed.
        self.own: list[dict[int, list[float] | None]] = [{}, {}]
        self.held: list[tuple[np.ndarray, list[float]]] = []
        self.chests: list[arraychest.Chest] = []

    @initialize()
    def begin(self) -> None:
        self.chests = [self.opened(), self.opened()]
        self.reader = arraychest.open(self.path, "r")

    def opened(self) -> arraychest.Chest:
        return arraychest.open(self.path, "a", "64 MiB")  # nothing leaves RAM by itself

    def seen(self, by: int) -> dict[int, list[float]]:
        both = {**self.committed, **self.own[by]}
        return {key: value for key, value in both.items() if value is not None}

    def value(self, size: int) -> list[float]:
        self.number += 1
        return [self.number] * size

    def commit(self, by: int, key: int, value: list[float] | None) -> None:
        self.own[by].pop(key, None)
        if value is not None:
            self.committed[key] = value
            return
        self.committed.pop(key, None)
        # A deletion that is not flushed is of what was there: it is done once somebody else has
        # done it, and takes nothing with it that is put later.
        for own in self.own:
            if own.get(key, ()) is None:
                del own[key]

    def flushed(self, by: int) -> None:
        for key, value in list(self.own[by].items()):
            self.commit(by, key, value)

    @rule(by=WRITERS, key=KEYS, size=SIZES)
    def put(self, by: int, key: int, size: int) -> None:
        value = self.value(size)
        self.chests[by][key] = np.array(value)
        self.own[by][key] = value

    @rule(by=WRITERS, key=KEYS)
    def delete(self, by: int, key: int) -> None:
        if key in self.seen(by):
            del self.chests[by][key]
            self.own[by].pop(key, None)
            if key in self.committed:
                self.own[by][key] = None
        else:
            with pytest.raises(KeyError):
                del self.chests[by][key]

    @rule(by=WRITERS)
    def flush(self, by: int) -> None:
        self.chests[by].flush()
        self.flushed(by)

    @rule(by=WRITERS)
    def compact(self, by: int) -> None:
        self.chests[by].compact()
        self.flushed(by)

    @rule(by=WRITERS)
    def reopen(self, by: int) -> None:
        self.chests[by].close()
        self.flushed(by)
        self.chests[by] = self.opened()

    @rule(by=WRITERS, one=KEYS, other=KEYS, size=SIZES, deleted=KEYS)
    def transaction(self, by: int, one: int, other: int, size: int, deleted: int) -> None:
        value = self.value(size)
        there = deleted in self.seen(by)
        with self.chests[by].transaction() as chest:
            if there:
                del chest[deleted]
            chest[one] = np.array(value)
            chest[other] = np.array(value)
        if there and deleted not in (one, other):
            self.commit(by, deleted, None)
        self.commit(by, one, value)
        self.commit(by, other, value)

    @rule(by=WRITERS, key=KEYS)
    def edit(self, by: int, key: int) -> None:
        if key not in self.seen(by):
            return
        value = self.value(len(self.seen(by)[key]))
        with self.chests[by].edit(key) as array:
            array[:] = value
        self.commit(by, key, value)

    @rule(by=WRITERS, key=KEYS)
    def get(self, by: int, key: int) -> None:
        expected = self.seen(by).get(key)
        found = self.chests[by].get(key)
        assert (None if found is None else found.tolist()) == expected
        if found is not None:
            self.held.append((found, found.tolist()))

    @rule(key=KEYS)
    def read(self, key: int) -> None:
        found = self.reader.get(key)
        assert (None if found is None else found.tolist()) == self.committed.get(key)
        if found is not None:
            self.held.append((found, found.tolist()))

    @rule(by=WRITERS)
    def verify(self, by: int) -> None:
        report = self.chests[by].verify()
        assert report.ok, str(report)

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @invariant()
    def everybody_knows_the_keys(self) -> None:
        for by, chest in enumerate(self.chests):
            assert set(chest) == set(self.seen(by))
            assert len(chest) == len(self.seen(by))
        if self.chests:
            assert set(self.reader) == set(self.committed)
        for array, expected in self.held:
            assert array.tolist() == expected

    def teardown(self) -> None:
        for by, chest in enumerate(self.chests):
            chest.close()
            self.flushed(by)
        if self.chests and sys.exc_info()[0] is None:
            found = {key: value.tolist() for key, value in self.reader.items()}
            assert found == self.committed
            self.held.clear()
            self.reader.close()
            audit(self.path)
        shutil.rmtree(self.folder)


TestShared = Shared.TestCase
TestShared.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.stress
class TestSharedForLong(Shared.TestCase):
    """The same, many times as often."""

    settings = settings(
        max_examples=2000,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# --- writers of every kind -------------------------------------------------------------------------

TURNS = 25


def add(path: str, name: str) -> None:
    """Put values of its own, and count up what all have in common."""
    with arraychest.open(path, available_memory="1 MiB") as chest:
        for turn in range(TURNS):
            chest[name, turn] = np.full((turn % 3) * 10_000 + 1, turn)
            with chest.edit("count") as count:
                count += 1


@pytest.mark.slow
@pytest.mark.usefixtures("resource_tracker")
def test_forked_spawned_and_unrelated_programs_write_at_once(path):
    with arraychest.Chest({"count": np.zeros(3)}, path=path):
        pass
    processes = [
        multiprocessing.get_context(method).Process(target=add, args=(path, f"{method} {number}"))
        for method in ("fork", "spawn")
        for number in range(2)
    ]
    for process in processes:
        process.start()
    unrelated = subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_sharing import add; add({path!r}, 'unrelated')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([IMPORT_ROOT, *sys.path])},
    )
    add(path, "here")
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert unrelated.wait(60) == 0
    names = {"here", "unrelated", "fork 0", "fork 1", "spawn 0", "spawn 1"}
    with arraychest.open(path, "r") as chest:
        assert (chest["count"] == len(names) * TURNS).all()
        assert set(chest) == {"count", *((name, turn) for name in names for turn in range(TURNS))}
        for key, value in chest.items():
            assert key == "count" or (value == key[1]).all()
    audit(path)
