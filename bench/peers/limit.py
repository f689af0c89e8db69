"""The machine's limit: the same bytes moved by bare system calls, or what is plainest."""

from __future__ import annotations

import io
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Peer

# Where a file and a map for each value would be no limit, all are records of one log.
_SMALL_BYTES = 1 << 16

# What a .npy file begins with for an array of two dimensions; its data starts behind it.
HEADER_BYTES = 128


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


def npy_header(array: np.ndarray) -> bytes:
    """The header of the .npy file that holds an array."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    assert header.tell() == HEADER_BYTES
    return header.getvalue()


def reserve_write(path: str, header: bytes, array: np.ndarray) -> None:
    """Write header and data to a new file: reserve the space first, then one ``writev``."""
    data = array.data.cast("B")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.posix_fallocate(fd, 0, len(header) + len(data))
        written = os.writev(fd, [header, data])
        while written < len(header) + len(data):
            written += os.pwrite(fd, data[written - len(header) :], written)
    finally:
        os.close(fd)


def map_array(
    path: str, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = HEADER_BYTES
) -> np.ndarray:
    """``open``, ``fstat``, ``mmap``, ``np.ndarray``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    return np.ndarray(shape, dtype, mapped, offset)


class Log:
    """The plainest store of many small arrays: records appended to one file, an index in memory.

    A record is a fixed head, the key, dtype and shape as text, and the data.  The head of a
    deletion has no data.  Writes are buffered; reads are views of one map.  Opening an existing
    log reads through it for the index.
    """

    _HEAD = struct.Struct("<HHi")
    _DELETED = -1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self._forms: dict[tuple[np.dtype[Any], tuple[int, ...]], bytes] = {}
        self._map: mmap.mmap | None = None
        exists = path.exists()
        self._file = open(path, "ab", buffering=1 << 20)  # noqa: SIM115
        self._at = self._file.tell()
        if exists and self._at:
            self._map_all()
            self._read_index()

    def _map_all(self) -> None:
        with open(self._path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def _read_index(self) -> None:
        assert self._map is not None
        view, at, head = self._map, 0, self._HEAD.size
        known: dict[bytes, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        while at < len(view):
            key_bytes, form_bytes, nbytes = self._HEAD.unpack_from(view, at)
            at += head
            key = view[at : at + key_bytes].decode()
            at += key_bytes
            if nbytes == self._DELETED:
                del self._index[key]
                continue
            text = view[at : at + form_bytes]
            at += form_bytes
            form = known.get(text)
            if form is None:
                dtype, *shape = text.decode().split(",")
                form = known[text] = np.dtype(dtype), tuple(map(int, shape))
            self._index[key] = at, *form
            at += nbytes

    def __setitem__(self, key: str, array: np.ndarray) -> None:
        form = self._forms.get((array.dtype, array.shape))
        if form is None:
            form = ",".join((array.dtype.str, *map(str, array.shape))).encode()
            self._forms[array.dtype, array.shape] = form
        name = key.encode()
        nbytes = array.nbytes
        write = self._file.write
        write(self._HEAD.pack(len(name), len(form), nbytes) + name + form)
        write(array.data)
        at = self._at + self._HEAD.size + len(name) + len(form)
        self._index[key] = at, array.dtype, array.shape
        self._at = at + nbytes

    def __getitem__(self, key: str) -> np.ndarray:
        at, dtype, shape = self._index[key]
        return np.ndarray(shape, dtype, self._map, at)

    def __delitem__(self, key: str) -> None:
        del self._index[key]
        name = key.encode()
        self._file.write(self._HEAD.pack(len(name), 0, self._DELETED) + name)
        self._at += self._HEAD.size + len(name)

    def __len__(self) -> int:
        return len(self._index)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
