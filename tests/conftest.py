"""Fixtures for every test: makers of chests, and the check that a test leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import math
import multiprocessing.resource_tracker
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

import arraychest
from tests.support import where_is

# No deadline: two cores are shared with whatever else runs, and a first example imports modules.
_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("plain", max_examples=30, **_COMMON)
settings.register_profile("stress", max_examples=1500, **_COMMON)
settings.load_profile("plain")

# A thread that computes keeps the interpreter's lock for 5 ms from one that waits for it, each time
# that this one comes back from the system: beside a loop a commit takes 0.3 s.
sys.setswitchinterval(0.0005)

# A shell lets what it starts in the background ignore SIGINT, which tests send to themselves.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Writer threads end by themselves a moment after there is nothing left to store.
_MOMENT_SECONDS = 0.1
_GRACE_SECONDS = 10.0


def _stress(config: pytest.Config) -> bool:
    return config.getoption("-m") == "stress"


def pytest_configure(config: pytest.Config) -> None:
    if _stress(config):
        settings.load_profile("stress")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # The same properties, looked at for longer.
        if _stress(config) and is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.stress)
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") is not None:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for name, all_of_it in cases.items():
        in_order = _sample(name, all_of_it)
        (one_in,) = all_of_it[0].get_closest_marker("sampled").args  # type: ignore[union-attr]
        quick = math.ceil(len(in_order) / one_in)
        # A half of the others for the slow run, and all of them for the stress run.
        slow = quick + (len(in_order) - quick + 1) // 2
        for item in in_order[quick:slow]:
            item.add_marker(pytest.mark.slow)
        for item in in_order[slow:]:
            item.add_marker(pytest.mark.stress)


def _sample(name: str, items: list[pytest.Item]) -> list[pytest.Item]:
    """The cases of a test in the order in which they are taken, the same one each time.

    A next case is the one that brings the most values of parameters that no other one brought.
    """
    left = random.Random(name).sample(items, len(items))  # so that no two parameters go together
    values = {item: set(item.callspec.indices.items()) for item in left}  # type: ignore[attr-defined]
    chosen: list[pytest.Item] = []
    seen: set[tuple[str, int]] = set()
    everything = set().union(*values.values())
    while left and seen != everything:
        item = max(left, key=lambda item: len(values[item] - seen))
        left.remove(item)
        chosen.append(item)
        seen |= values[item]
    return chosen + left


def pytest_collection_finish() -> None:
    # What is imported stays: the garbage collector, which some hundred tests call, need not walk
    # through all of it each time.  That takes 0.2 s.
    gc.collect()
    gc.freeze()


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/dev/fd"):
        try:
            found[name] = where_is(int(name))
        except OSError:  # the one of this very listing
            continue
    return found


def _leaks(
    descriptors: dict[str, str], threads: set[threading.Thread], folder: str
) -> dict[str, Any]:
    now = _descriptors()
    found = {
        "descriptors": {fd: target for fd, target in now.items() if descriptors.get(fd) != target},
        "threads": [thread for thread in threading.enumerate() if thread not in threads],
        "folders": [name for name in os.listdir(folder) if name.startswith("arraychest-")],
    }
    return {kind: what for kind, what in found.items() if what}


@pytest.fixture(autouse=True)
def nothing_left_behind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Fail a test that leaks a descriptor, a thread or a temporary chest's folder.

    Temporary chests of the test and of its subprocesses lie in a folder of its own, which is what
    this gives.
    """
    folder = str(tmp_path_factory.mktemp("tmpdir"))
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    threads = set(threading.enumerate())
    descriptors = _descriptors()
    yield folder
    # The garbage collector, which closes a chest that nobody has closed, takes as long as many a test.
    for collects, seconds in ((False, _MOMENT_SECONDS), (True, _GRACE_SECONDS)):
        if collects:
            gc.collect()
        until = time.monotonic() + seconds
        while leaks := _leaks(descriptors, threads, folder):
            if time.monotonic() > until:
                break
            time.sleep(0.002)
        else:
            return
    assert not leaks, f"left behind by this test: {leaks}"


@pytest.fixture
def make_chest() -> Iterator[Callable[..., arraychest.Chest]]:
    """Make chests that are closed when the test ends."""
    made: list[arraychest.Chest] = []

    def make(*arguments: Any, **options: Any) -> arraychest.Chest:
        chest = arraychest.Chest(*arguments, **options)
        made.append(chest)
        return chest

    yield make
    for chest in reversed(made):
        chest.close()


@pytest.fixture
def chest(make_chest: Callable[..., arraychest.Chest]) -> arraychest.Chest:
    """A temporary chest in which nothing needs to spill."""
    return make_chest(available_memory="256 MiB")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a named chest may go; nothing is there yet."""
    return str(tmp_path / "test.chest")


@pytest.fixture(scope="module")
def resource_tracker() -> None:
    """The standard library's own process, which stays until the end."""
    multiprocessing.resource_tracker.ensure_running()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes and 600 files."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=600", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(params=["auto", "lz4"], ids=["plain", "compressed"])
def each_codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chest stores its large values as they are, or every chest compresses them."""
    defaults = arraychest.Chest.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "compression", request.param)


@pytest.fixture
def no_pool() -> Iterator[None]:
    """dask's own pool of threads would be left behind."""
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("dask") is not None:
            config = importlib.import_module("dask.config")
            stack.enter_context(config.set(scheduler="sync"))
        yield
