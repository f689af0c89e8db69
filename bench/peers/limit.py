"""The machine's limit: the same bytes moved by bare system calls, or what is plainest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.limits import HEADER_BYTES, Log, map_array, npy_header, reserve_write
from bench.peers.base import Peer

# Where a file and a map for each value would be no limit, all are records of one log.
_SMALL_BYTES = 1 << 16


class Limit(Peer):
    """A file for each large value, reserved and written by one call, and mapped once; small ones
    in a log.  What is where is kept in a dict; nothing is safe from anything.
    """

    name: ClassVar[str] = "limit"
    package: ClassVar[str] = "arraychest"
    setup: ClassVar[str] = (
        "fallocate, writev, mmap; small values: a buffered log; dict; dask: no limit"
    )

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._forms: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._maps: dict[str, np.ndarray] = {}
        self._log = Log(folder / "log")
        self._in_ram: dict[str, np.ndarray] = {}

    def put(self, key: str, array: np.ndarray) -> None:
        if array.nbytes < _SMALL_BYTES:
            self._log[key] = array
            return
        path = f"{self.folder}/{key}.npy"
        try:
            reserve_write(path, npy_header(array), array)
        except FileExistsError:
            # Readers in other processes see the old file or the new one.
            reserve_write(f"{path}.new", npy_header(array), array)
            os.rename(f"{path}.new", path)
            self._maps.pop(key, None)
        self._forms[key] = array.shape, array.dtype

    def get(self, key: str) -> np.ndarray:
        found = self._maps.get(key)
        if found is None:
            if key not in self._forms:
                return self._log[key]
            found = self._maps[key] = map_array(f"{self.folder}/{key}.npy", *self._forms[key])
        return found

    def delete(self, key: str) -> None:
        if key not in self._forms:
            del self._log[key]
            return
        self._maps.pop(key, None)
        del self._forms[key]
        os.unlink(f"{self.folder}/{key}.npy")

    def flush(self) -> None:
        self._log.flush()

    def reopen(self) -> None:
        self._maps.clear()
        self._log.close()
        self._log = Log(self.folder / "log")

    def close(self) -> None:
        self._maps.clear()
        self._log.close()

    def bare(self) -> Any:
        return self._in_ram

    def write_whole(self, array: np.ndarray) -> None:
        reserve_write(f"{self.folder}/whole.npy", npy_header(array), array)
        self._whole = array.shape, array.dtype

    def open_whole(self) -> Any:
        return map_array(f"{self.folder}/whole.npy", *self._whole, HEADER_BYTES)

    def dask_worker(self, target: int) -> dict[str, Any]:
        del target  # all stays in memory
        return {"memory_limit": 0}

    def reader(self) -> Callable[[str], np.ndarray]:
        # The names of files are the only index that processes share.
        folder = self.folder

        def read(key: str) -> np.ndarray:
            path = f"{folder}/{key}.npy"
            words = (os.stat(path).st_size - HEADER_BYTES) // 8
            return map_array(path, (words,), np.dtype(np.int64))

        return read
