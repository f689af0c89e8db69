"""Several writers on one chest that die at random: nothing committed is lost, nothing leaks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def test_writers_that_are_killed_lose_nothing_and_leave_nothing(path):
    storm(path, kills=8, writers=3, seed=1)


@pytest.mark.stress
def test_writers_that_are_killed_lose_nothing_and_leave_nothing_for_longer(path):
    kills, values = storm(path, kills=300, writers=3, seed=2)
    print(f"{kills} writers killed, {values} values looked at afterwards, none lost")


def test_a_chest_that_looked_something_up_and_idles_does_not_keep_the_log(path, monkeypatch):
    # So few pages that a short test fills the log many times over.
    monkeypatch.setattr(arraychest.catalog, "_LOG_PAGES", 16)
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
