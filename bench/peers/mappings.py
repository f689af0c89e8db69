"""Mappings with a memory budget: chest 0.2.3, zict's, dask's, cachetools'."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, MutableMapping
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
    # The slowest of those that spill for dask: one round.
    shares: ClassVar[dict[str, float]] = {"small": 0.1, "dask": 1}
    cannot: ClassVar[dict[str, str]] = {"opening": "a file for each value: minutes"}
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

    def dask_worker(self, target: int) -> dict[str, Any]:
        # It spills by what results say of their size alone: too much memory pauses a worker for
        # good.
        return {
            "data": (zict_buffer, {"target": 2 * target // 3}),
            "config": {"distributed.worker.memory.pause": False},
        }


class ZictMemmap(Zict):
    name: ClassVar[str] = "zict, memmap"
    setup: ClassVar[str] = "Buffer over File(memmap=True)"
    cannot: ClassVar[dict[str, str]] = {
        "hits": "as zict",
        "small": "as zict; a map for each value",
        "opening": "as zict",
        "dask": "as zict",
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

    def dask_worker(self, target: int) -> dict[str, Any]:
        del target  # it is in the worker's configuration
        return {}

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


def zict_buffer(worker_local_directory: str, target: int) -> MutableMapping[Any, Any]:
    """The plainest mapping that spills, of zict's own parts."""
    zict = load("zict")
    sizeof = load("dask.sizeof").sizeof
    files = _ByName(zict.File(worker_local_directory + "/zict"))
    slow = zict.Func(pickle.dumps, pickle.loads, files)
    buffer: MutableMapping[Any, Any] = zict.Buffer(
        {}, slow, target, weight=lambda _, value: sizeof(value)
    )
    return buffer


class _ByName(MutableMapping[Any, Any]):
    """Files have names, and dask's keys are tuples."""

    def __init__(self, files: MutableMapping[str, Any]) -> None:
        self._files = files
        self._names: dict[Any, str] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self._names[key] = str(key)
        self._files[str(key)] = value

    def __getitem__(self, key: Any) -> Any:
        return self._files[self._names[key]]

    def __delitem__(self, key: Any) -> None:
        del self._files[self._names.pop(key)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
