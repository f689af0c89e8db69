"""A file for each value: np.save, joblib, safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Peer, load

# From here on a map is worth its system calls.
_MAP_BYTES = 1 << 16


class _Files(Peer):
    suffix: ClassVar[str]
    shares: ClassVar[dict[str, float]] = {"small": 0.1}
    cannot: ClassVar[dict[str, str]] = {"opening": "a folder of files, nothing to open"}

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._prefix = f"{folder}/"

    def path(self, key: str) -> str:
        return f"{self._prefix}{key}{self.suffix}"

    def delete(self, key: str) -> None:
        os.unlink(self.path(key))

    def reopen(self) -> None:
        pass


class NumpySave(_Files):
    name: ClassVar[str] = "np.save"
    package: ClassVar[str] = "numpy"
    setup: ClassVar[str] = 'np.save, np.load(mmap_mode="r") from 64 KiB on'
    suffix: ClassVar[str] = ".npy"
    compresses: ClassVar[bool] = False
    cannot: ClassVar[dict[str, str]] = {
        **_Files.cannot,
        "readers": "a file that is overwritten is truncated under its readers' maps",
    }

    def put(self, key: str, array: np.ndarray) -> None:
        np.save(self.path(key), array)

    def get(self, key: str) -> np.ndarray:
        path = self.path(key)
        mapped = os.stat(path).st_size >= _MAP_BYTES
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None)
        return array

    def dask_stored(self, x: Any, name: str, *, compressed: bool) -> Any:  # noqa: ARG002
        path = str(self.folder / name)
        # Its files are blocks of whole rows: of as many bytes as those of the others.
        rows = max(1, x.chunksize[0] * x.chunksize[1] // x.shape[1])
        load("dask.array").to_npy_stack(path, x.rechunk((rows, -1)))
        return load("dask.array").from_npy_stack(path)

    def write_whole(self, array: np.ndarray) -> None:
        self.put("whole", array)

    def open_whole(self) -> Any:
        return self.get("whole")


class Joblib(_Files):
    name: ClassVar[str] = "joblib"
    package: ClassVar[str] = "joblib"
    setup: ClassVar[str] = 'dump, load(mmap_mode="r"); Memory(mmap_mode="r")'
    suffix: ClassVar[str] = ".joblib"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._joblib = load("joblib")

    def put(self, key: str, array: np.ndarray) -> None:
        self._joblib.dump(array, self.path(key))

    def get(self, key: str) -> np.ndarray:
        path = self.path(key)
        mapped = os.stat(path).st_size >= _MAP_BYTES
        array: np.ndarray = self._joblib.load(path, mmap_mode="r" if mapped else None)
        return array

    def memoise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        memory = self._joblib.Memory(self.folder / "memory", mmap_mode="r", verbose=0)
        cached: Callable[..., Any] = memory.cache(function)
        return cached


class Safetensors(_Files):
    name: ClassVar[str] = "safetensors"
    package: ClassVar[str] = "safetensors"
    setup: ClassVar[str] = "save_file, safe_open(...).get_tensor"
    suffix: ClassVar[str] = ".safetensors"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._save = load("safetensors.numpy").save_file
        self._open = load("safetensors").safe_open

    def put(self, key: str, array: np.ndarray) -> None:
        self._save({"x": array}, self.path(key))

    def get(self, key: str) -> np.ndarray:
        with self._open(self.path(key), framework="np") as file:
            array: np.ndarray = file.get_tensor("x")
        return array
