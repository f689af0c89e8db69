"""Key-value stores: diskcache, lmdb, shelve, sqlitedict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import POWER_LOSS, PROCESS_CRASH, SYNCED, Peer, load, packed, unpacked

_MAP_BYTES = 64 << 30  # address space; the file grows as it is filled

# lmdb: from here on data is a record of its own, so that no copy joins it with its form.
_OWN_BYTES = 1 << 16
_DATA = b"\0data"
# What a write transaction keeps in memory until it is committed.
_DIRTY_BYTES = 64 << 20


class Diskcache(Peer):
    name: ClassVar[str] = "diskcache"
    package: ClassVar[str] = "diskcache"
    durability: ClassVar[str] = PROCESS_CRASH
    bound: ClassVar[tuple[str, ...]] = ("get",)
    setup: ClassVar[str] = "no eviction, transact() around many puts, files from 128 KiB on"
    shares: ClassVar[dict[str, float]] = {"small": 0.2, "opening": 0.1}

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._diskcache = load("diskcache")
        self._open()

    def _open(self) -> None:
        self._cache = self._diskcache.Cache(
            str(self.folder / "diskcache"),
            eviction_policy="none",
            size_limit=_MAP_BYTES,
            # A get of a value that has a file raises KeyError while another process overwrites it.
            disk_min_file_size=1 << 17,
        )
        self._batch = contextlib.ExitStack()
        self._in_batch = False
        self.get = self._cache.__getitem__

    def _begin(self) -> None:
        if not self._in_batch:
            self._batch.enter_context(self._cache.transact())
            self._in_batch = True

    def put(self, key: str, array: np.ndarray) -> None:
        self._begin()
        self._cache[key] = array

    def delete(self, key: str) -> None:
        self._begin()
        del self._cache[key]

    def flush(self) -> None:
        self._batch.close()
        self._in_batch = False

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.flush()
        self._cache.close()

    def memoise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        cached: Callable[..., Any] = self._cache.memoize()(function)
        return cached

    def reader(self) -> Callable[[str], np.ndarray]:
        return self.get


class Lmdb(Peer):
    """A write transaction is open from the first put to the flush; gets are views of the map."""

    name: ClassVar[str] = "lmdb"
    package: ClassVar[str] = "lmdb"
    durability: ClassVar[str] = PROCESS_CRASH
    setup: ClassVar[str] = (
        "sync=False, one transaction for many puts, views that are valid until the next"
    )

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._lmdb = load("lmdb")
        self._open()

    def _open(self, *, readonly: bool = False) -> None:
        self._env = self._lmdb.open(
            str(self.folder / "lmdb"),
            map_size=_MAP_BYTES,
            # writemap=True wrote values of 16 MiB at half the speed.
            sync=self.durability == POWER_LOSS,
            readahead=True,
            readonly=readonly,
        )
        self._writing: Any = None
        self._dirty = 0
        self._reading: Any = None

    def _begin(self) -> Any:
        if self._writing is None:
            self._end_read()
            self._writing = self._env.begin(write=True, buffers=True)
        return self._writing

    def _end_read(self) -> None:
        if self._reading is not None:
            self._reading.abort()
            self._reading = None

    def put(self, key: str, array: np.ndarray) -> None:
        head, data = packed(array)
        transaction, name = self._begin(), key.encode()
        if array.nbytes < _OWN_BYTES:
            transaction.put(name, head + data)
        else:
            transaction.put(name, head)
            transaction.put(name + _DATA, data)
        self._dirty += array.nbytes
        if self._dirty > min(_DIRTY_BYTES, self.budget // 2):
            self.flush()

    def get(self, key: str) -> np.ndarray:
        transaction = self._writing
        if transaction is None:
            transaction = self._reading
            if transaction is None:
                transaction = self._reading = self._env.begin(buffers=True)
        return self._found(transaction, key.encode())

    @staticmethod
    def _found(transaction: Any, name: bytes) -> np.ndarray:
        head = transaction.get(name)
        if head is None:
            raise KeyError(name)
        found = unpacked(head)
        return found if found is not None else unpacked(head, transaction.get(name + _DATA))

    def delete(self, key: str) -> None:
        transaction, name = self._begin(), key.encode()
        if not transaction.delete(name):
            raise KeyError(key)
        transaction.delete(name + _DATA)

    def flush(self) -> None:
        if self._writing is not None:
            self._writing.commit()
            self._writing = None
            self._dirty = 0

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.flush()
        self._end_read()
        self._env.close()

    def reader(self) -> Callable[[str], np.ndarray]:
        self.close()
        self._open(readonly=True)

        def read(key: str) -> np.ndarray:
            # One for each get: else it would never see what was written since.
            with self._env.begin(buffers=True) as transaction:
                # Copied: from its end on the pages may be written over.
                return self._found(transaction, key.encode()).copy()

        return read


class LmdbSynced(Lmdb):
    name: ClassVar[str] = "lmdb, synced"
    durability: ClassVar[str] = POWER_LOSS
    setup: ClassVar[str] = "the same with sync=True"
    only: ClassVar[tuple[str, ...] | None] = SYNCED


class Shelve(Peer):
    name: ClassVar[str] = "shelve"
    package: ClassVar[str] = "numpy"
    bound: ClassVar[tuple[str, ...]] = ("put", "get", "delete")
    setup: ClassVar[str] = "protocol=5, the dbm that this Python has"
    # dbm.dumb, where there is no other, writes its whole index at each deletion.
    shares: ClassVar[dict[str, float]] = {"small": 0.02}
    cannot: ClassVar[dict[str, str]] = {
        "opening": "dbm.dumb reads and writes its whole index",
    }

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._shelve = load("shelve")
        self._open()

    def _open(self) -> None:
        self._shelf = self._shelve.open(str(self.folder / "shelf"), protocol=5)
        self.put = self._shelf.__setitem__
        self.get = self._shelf.__getitem__
        self.delete = self._shelf.__delitem__

    def flush(self) -> None:
        self._shelf.sync()

    def reopen(self) -> None:
        self._shelf.close()
        self._open()

    def close(self) -> None:
        self._shelf.close()

    @classmethod
    def version(cls) -> str:
        import dbm
        import platform
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/x"
            dbm.open(path, "c").close()
            return f"Python {platform.python_version()}, {dbm.whichdb(path)}"


class Sqlitedict(Peer):
    name: ClassVar[str] = "sqlitedict"
    package: ClassVar[str] = "sqlitedict"
    durability: ClassVar[str] = PROCESS_CRASH
    bound: ClassVar[tuple[str, ...]] = ("put", "get", "delete")
    setup: ClassVar[str] = 'autocommit=False, journal_mode="WAL"'
    shares: ClassVar[dict[str, float]] = {"small": 0.2, "opening": 0.1}

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._make = load("sqlitedict").SqliteDict
        self._open()

    def _open(self) -> None:
        self._dict = self._make(str(self.folder / "dict.sqlite"), journal_mode="WAL")
        self.put = self._dict.__setitem__
        self.get = self._dict.__getitem__
        self.delete = self._dict.__delitem__

    def flush(self) -> None:
        self._dict.commit()

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        if self._dict.conn is not None:
            self.flush()
            self._dict.close()

    def reader(self) -> Callable[[str], np.ndarray]:
        return self.get
