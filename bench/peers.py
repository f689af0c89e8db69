"""The peers, each behind the same few methods.

They are an optional extra, ``bench``: one that is missing is left out, with the reason.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
import io
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from bench.harness import PeerMissingError
from bench.limits import npy_header


def load(name: str) -> Any:
    """Import a peer.

    Raises
    ------
    PeerMissingError
        It cannot be imported.
    """
    if name == "chest" and not hasattr(collections, "MutableMapping"):
        # chest 0.2.3 and its heapdict look for it where it was until Python 3.9.
        collections.MutableMapping = collections.abc.MutableMapping  # type: ignore[attr-defined]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerMissingError(
            f'{type(error).__name__}: {error} (pip install "arraychest[bench]")'
        ) from error


class Peer(Protocol):
    """A store of arrays under string keys in a folder, with a memory budget where it has one."""

    name: ClassVar[str]

    def put(self, key: str, array: np.ndarray) -> None: ...

    def get(self, key: str) -> np.ndarray: ...

    def delete(self, key: str) -> None: ...

    def flush(self) -> None:
        """Bring everything to disk."""

    def reopen(self) -> None:
        """Forget what is in memory and open what lies on disk."""

    def close(self) -> None:
        """Remove everything."""


class Chest023:
    """chest 0.2.3, from its own package."""

    name: ClassVar[str] = "chest 0.2.3"

    def __init__(self, folder: Path, budget: int) -> None:
        self._make: Any = load("chest").Chest
        self._folder = str(folder / "chest")
        self._budget = budget
        os.mkdir(self._folder)
        self._chest = self._make(path=self._folder, available_memory=budget)

    def put(self, key: str, array: np.ndarray) -> None:
        self._chest[key] = array

    def get(self, key: str) -> np.ndarray:
        array: np.ndarray = self._chest[key]
        return array

    def delete(self, key: str) -> None:
        del self._chest[key]

    def flush(self) -> None:
        self._chest.flush()

    def reopen(self) -> None:
        self._chest.flush()
        self._chest = self._make(path=self._folder, available_memory=self._budget)

    def close(self) -> None:
        # Its finaliser stores what is in memory, unless the folder is gone.
        shutil.rmtree(self._folder, ignore_errors=True)


class Zict:
    """zict's Buffer: an LRU of so many bytes in front of one file per value."""

    name: ClassVar[str] = "zict.Buffer"

    def __init__(self, folder: Path, budget: int) -> None:
        self._zict = load("zict")
        self._folder = str(folder / "zict")
        self._budget = budget
        self._open()

    def _open(self) -> None:
        zict = self._zict
        slow = zict.Func(_to_frames, _from_bytes, zict.File(self._folder))
        self._buffer = zict.Buffer({}, slow, self._budget, weight=lambda _, array: array.nbytes)

    def put(self, key: str, array: np.ndarray) -> None:
        self._buffer[key] = array

    def get(self, key: str) -> np.ndarray:
        array: np.ndarray = self._buffer[key]
        return array

    def delete(self, key: str) -> None:
        del self._buffer[key]

    def flush(self) -> None:
        self._buffer.fast.evict_until_below_target(0)

    def reopen(self) -> None:
        self.flush()
        self._open()

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class NumpySave:
    """np.save and np.load, with a map where the array is large."""

    name: ClassVar[str] = "np.save/np.load"

    def __init__(self, folder: Path, budget: int) -> None:
        del budget  # it keeps nothing in memory
        self._folder = str(folder / "npy")
        os.mkdir(self._folder)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}.npy"

    def put(self, key: str, array: np.ndarray) -> None:
        np.save(self._path(key), array)

    def get(self, key: str) -> np.ndarray:
        path = self._path(key)
        mapped = os.stat(path).st_size >= 1 << 16
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None)
        return array

    def delete(self, key: str) -> None:
        os.unlink(self._path(key))

    def flush(self) -> None:
        pass

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


STORES: tuple[type[Chest023] | type[Zict] | type[NumpySave], ...] = (Chest023, Zict, NumpySave)


def _to_frames(array: np.ndarray) -> list[Any]:
    # The array's own memory behind a .npy header: nothing is copied.
    return [npy_header(array), array.data]


def _from_bytes(buffer: bytearray) -> np.ndarray:
    head = io.BytesIO(bytes(buffer[:128]))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return np.ndarray(shape, dtype, buffer, head.tell())
