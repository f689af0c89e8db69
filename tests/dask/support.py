"""Chests of workers that a test can look into, and values for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import listing

if TYPE_CHECKING:
    from arraychest.dask import WorkerChest

LARGE = 1 << 20  # bytes of a value that has a file of its own
MakeChest = Callable[..., "WorkerChest"]


def check(data: WorkerChest) -> None:
    """What the mapping says of itself adds up."""
    data.flush()
    assert not data._leaving
    assert not data.fast.keys() & data.slow.keys()
    assert list(data) == [*data.fast, *data.slow]
    assert len(data) == len(data.fast) + len(data.slow)
    assert data._charged == sum(data._weights.values())
    assert data._weights.keys() == data.fast.keys()
    assert data._clean.keys() <= data.fast.keys()
    files = [*data.slow.values(), *data._clean.values()]
    memory, disk = data.spilled_total
    assert memory == sum(stored.memory for stored in data.slow.values())
    assert disk == sum(stored.disk for stored in files)
    if not data._files.closed:
        assert len(data._files._chest or ()) == len(files)


def spill_all(data: WorkerChest) -> None:
    while data.fast:
        assert data.evict() >= 0
    data.flush()


def let_go(data: WorkerChest) -> None:
    """Return once nobody has a spilled result any more; the writer thread may a moment longer."""
    until = time.monotonic() + 5
    while data._held and time.monotonic() < until:
        time.sleep(0.001)
    assert not data._held


def stored_files(data: WorkerChest) -> list[str]:
    return [
        name for name in listing(data._files.folder) if name.startswith("data/") and "." in name
    ]


def written(data: WorkerChest) -> float:
    return data.cumulative_metrics["disk-write", "count"]


def large(value: int = 0) -> np.ndarray:
    return np.full(LARGE // 8, value, np.int64)


class Unpicklable:
    def __init__(self, size: int = 100) -> None:
        self.size = size

    def __sizeof__(self) -> int:
        return self.size

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise ZeroDivisionError("not me")


class Plain:
    """Can be referred to weakly."""

    def __init__(self, what: Any) -> None:
        self.what = what


class Gate:
    """Holds up the thread that writes."""

    def __init__(self, data: WorkerChest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.open = threading.Event()
        self.error: Exception | None = None
        store = data._files._store

        def gated(number: int, taken: Any) -> int:
            self.began.set()
            assert self.open.wait(20)
            if self.error is not None:
                raise self.error
            return store(number, taken)

        monkeypatch.setattr(data._files, "_store", gated)
