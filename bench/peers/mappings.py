"""Mappings with a memory budget: chest 0.2.3, zict's, dask's, cachetools'."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Peer, load, packed, unpacked


class Chest023(Peer):
    """chest 0.2.3, from its own package."""

    name: ClassVar[str] = "chest 0.2.3"
    package: ClassVar[str] = "chest"
    bound: ClassVar[tuple[str, ...]] = ("put", "get", "delete")
    setup: ClassVar[str] = "defaults; pickles"
    # It pickles 16 MiB in a third of a second, and looks for what to spill among all values.
    shares: ClassVar[dict[str, float]] = {
        "small": 0.05,
        "pipeline": 1,
        "scan": 1,
        "spill-write": 0.25,
    }
    cannot: ClassVar[dict[str, str]] = {
        "opening": "each value is a file, and all keys are one pickle",
    }

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._make: Any = load("chest").Chest
        self._folder = str(folder / "chest")
        (folder / "chest").mkdir()
        self._open()

    def _open(self) -> None:
        self._chest = self._make(path=self._folder, available_memory=self.budget)
        self.put = self._chest.__setitem__
        self.get = self._chest.__getitem__
        self.delete = self._chest.__delitem__

    def flush(self) -> None:
        self._chest.flush()

    def reopen(self) -> None:
        self._chest.flush()
        self._open()

    def bare(self) -> Any:
        return self._chest

    def close(self) -> None:
        # Its finaliser stores what is in memory, unless the folder is gone.
        shutil.rmtree(self._folder, ignore_errors=True)


class Zict(Peer):
    """zict's Buffer: an LRU of so many bytes in front of one file per value."""

    name: ClassVar[str] = "zict"
    package: ClassVar[str] = "zict"
    bound: ClassVar[tuple[str, ...]] = ("put", "get", "delete")
    setup: ClassVar[str] = "Buffer over File, buffers of the array itself"
    shares: ClassVar[dict[str, float]] = {"small": 0.1}
    memmap = False

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._zict = load("zict")
        self._open()

    def _open(self) -> None:
        zict = self._zict
        files = zict.File(str(self.folder / "zict"), memmap=self.memmap)
        slow = zict.Func(packed, unpacked, files)
        self._buffer = zict.Buffer({}, slow, self.budget, weight=lambda _, array: array.nbytes)
        self.put = self._buffer.__setitem__
        self.get = self._buffer.__getitem__
        self.delete = self._buffer.__delitem__

    def flush(self) -> None:
        self._buffer.fast.evict_until_below_target(0)

    def reopen(self) -> None:
        self.flush()
        self._open()

    def bare(self) -> Any:
        return self._buffer


class ZictMemmap(Zict):
    name: ClassVar[str] = "zict, memmap"
    setup: ClassVar[str] = "Buffer over File(memmap=True)"
    cannot: ClassVar[dict[str, str]] = {
        "hits": "as zict",
        "small": "as zict; a map for each value",
        "opening": "as zict",
        "churn": "as zict",
    }
    memmap = True


class DaskSpillBuffer(Peer):
    name: ClassVar[str] = "dask SpillBuffer"
    package: ClassVar[str] = "distributed"
    bound: ClassVar[tuple[str, ...]] = ("put", "get", "delete")
    setup: ClassVar[str] = "as a worker makes it"
    shares: ClassVar[dict[str, float]] = {"small": 0.1}

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._buffer: Any = load("distributed.spill").SpillBuffer(str(folder / "dask"), budget)
        self.put = self._buffer.__setitem__
        self.get = self._buffer.__getitem__
        self.delete = self._buffer.__delitem__

    def flush(self) -> None:
        while self._buffer.fast:
            self._buffer.evict()

    def bare(self) -> Any:
        return self._buffer

    def close(self) -> None:
        self._buffer.close()


class Cachetools(Peer):
    name: ClassVar[str] = "cachetools"
    package: ClassVar[str] = "cachetools"
    setup: ClassVar[str] = "LRUCache with getsizeof"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._cache = load("cachetools").LRUCache(budget, getsizeof=_nbytes)

    def bare(self) -> Any:
        return self._cache


def _nbytes(array: np.ndarray) -> int:
    return array.nbytes
