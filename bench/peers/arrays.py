"""Stores of chunked arrays: h5py, zarr, tensorstore, Blosc2."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Peer, load

_TOO_MANY = "a folder or a dataset for each value: milliseconds each"


class H5py(Peer):
    name: ClassVar[str] = "h5py"
    package: ClassVar[str] = "h5py"
    setup: ClassVar[str] = 'one file, libver="latest"; large: chunks of 256 KiB, shuffle and lzf'
    shares: ClassVar[dict[str, float]] = {"small": 0.1}
    cannot: ClassVar[dict[str, str]] = {
        "opening": _TOO_MANY,
        "churn": "the file never gives space back: the disk would fill",
    }

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._h5py = load("h5py")
        self._path = str(folder / "file.h5")
        self._open()

    def _open(self) -> None:
        self._file = self._h5py.File(self._path, "a", libver="latest")

    def put(self, key: str, array: np.ndarray) -> None:
        if key in self._file:
            self._file[key][...] = array
        else:
            self._file.create_dataset(key, data=array)

    def get(self, key: str) -> np.ndarray:
        array: np.ndarray = self._file[key][...]
        return array

    def delete(self, key: str) -> None:
        del self._file[key]

    def flush(self) -> None:
        self._file.flush()

    def reopen(self) -> None:
        self._file.close()
        self._open()

    def close(self) -> None:
        self._file.close()

    def write_whole(self, array: np.ndarray) -> None:
        self._file.create_dataset(
            "whole", data=array, chunks=(256, 256), shuffle=True, compression="lzf"
        )
        self._file.flush()

    def open_whole(self) -> Any:
        self.reopen()
        return self._file["whole"]


class Zarr(Peer):
    """An array in a folder of its own for each key."""

    name: ClassVar[str] = "zarr"
    package: ClassVar[str] = "zarr"
    setup: ClassVar[str] = "zarr 3, its own chunks and compression"
    shares: ClassVar[dict[str, float]] = {"small": 0.005}
    cannot: ClassVar[dict[str, str]] = {"opening": _TOO_MANY}

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._zarr = load("zarr")

    def options(self, array: np.ndarray) -> dict[str, Any]:
        del array
        return {}

    def whole_options(self) -> dict[str, Any]:
        return {}

    def put(self, key: str, array: np.ndarray) -> None:
        self._zarr.create_array(
            str(self.folder / key), data=array, overwrite=True, **self.options(array)
        )

    def get(self, key: str) -> np.ndarray:
        array: np.ndarray = self._zarr.open_array(str(self.folder / key), mode="r")[...]
        return array

    def delete(self, key: str) -> None:
        shutil.rmtree(self.folder / key)

    def reopen(self) -> None:
        pass

    def write_whole(self, array: np.ndarray) -> None:
        self._zarr.create_array(
            str(self.folder / "whole"), data=array, **(self.whole_options() or self.options(array))
        )

    def open_whole(self) -> Any:
        return self._zarr.open_array(str(self.folder / "whole"), mode="r")

    def dask_stored(self, x: Any, name: str, *, compressed: bool) -> Any:
        path = str(self.folder / name)
        x.to_zarr(path, **({} if compressed else {"compressors": ()}))
        return load("dask.array").from_zarr(path)

    def xarray_write(self, dataset: Any, name: str, chunks: tuple[int, ...] | None) -> None:
        encoding: dict[str, Any] = {"chunks": chunks}
        if chunks is None:
            # It has no arrays without chunks; a time slice of one is read whole.
            encoding = {"chunks": (1, *dataset["t2m"].shape[1:]), "compressors": ()}
        each = dict.fromkeys(dataset.data_vars, encoding)
        dataset.to_zarr(self.folder / name, encoding=each, consolidated=False)

    def xarray_open(self, name: str) -> Any:
        path = self.folder / name
        return load("xarray").open_dataset(path, engine="zarr", consolidated=False)


class ZarrUncompressed(Zarr):
    name: ClassVar[str] = "zarr, uncompressed"
    setup: ClassVar[str] = "compressors=None, one chunk for an array; large: chunks of 1 MiB"
    cannot: ClassVar[dict[str, str]] = {
        **Zarr.cannot,
        "small": "as zarr",
        "dask-store": "as zarr",
        "dask-read": "as zarr",
    }

    def options(self, array: np.ndarray) -> dict[str, Any]:
        return {"compressors": None, "chunks": array.shape}

    def whole_options(self) -> dict[str, Any]:
        return {"compressors": None, "chunks": (512, 512)}


class ZarrSharded(Zarr):
    name: ClassVar[str] = "zarr, sharded"
    setup: ClassVar[str] = "chunks of 64 KiB in shards of 16 MiB"
    cannot: ClassVar[dict[str, str]] = {
        **Zarr.cannot,
        "dask-store": "as zarr",
        "dask-read": "as zarr",
        **dict.fromkeys(
            ("small", "spill-write", "reload", "pipeline", "scan", "churn"),
            "shards are for arrays of many chunks",
        ),
    }

    def whole_options(self) -> dict[str, Any]:
        return {"chunks": (128, 128), "shards": (2048, 2048)}


class Tensorstore(Peer):
    """An array of driver zarr3 for each key."""

    name: ClassVar[str] = "tensorstore"
    package: ClassVar[str] = "tensorstore"
    setup: ClassVar[str] = "zarr3, one chunk for an array, no sync; large: chunks of 1 MiB, zstd-1"
    shares: ClassVar[dict[str, float]] = {"small": 0.01}
    cannot: ClassVar[dict[str, str]] = {"opening": _TOO_MANY}
    cache_bytes: ClassVar[int] = 0

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._tensorstore = load("tensorstore")
        self._new_context()

    def _new_context(self) -> None:
        # Its metadata too would be looked up on disk each time without a pool.
        self._context = self._tensorstore.Context(
            {
                "file_io_sync": False,
                "cache_pool": {"total_bytes_limit": min(self.cache_bytes, self.budget)},
            }
        )

    def _spec(self, key: str) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{self.folder}/{key}/"}}

    def put(self, key: str, array: np.ndarray) -> None:
        ts = self._tensorstore
        made = ts.open(
            self._spec(key),
            create=True,
            delete_existing=True,
            dtype=ts.dtype(array.dtype),
            shape=array.shape,
            chunk_layout=ts.ChunkLayout(chunk_shape=array.shape),
            context=self._context,
        ).result()
        made.write(array).result()

    def get(self, key: str) -> np.ndarray:
        ts = self._tensorstore
        opened = ts.open(self._spec(key), open=True, context=self._context).result()
        array: np.ndarray = opened.read().result()
        return array

    def delete(self, key: str) -> None:
        shutil.rmtree(self.folder / key)

    def reopen(self) -> None:
        self._new_context()

    def write_whole(self, array: np.ndarray) -> None:
        ts = self._tensorstore
        spec = self._spec("whole")
        spec["metadata"] = {
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
            ]
        }
        made = ts.open(
            spec,
            create=True,
            dtype=ts.dtype(array.dtype),
            shape=array.shape,
            chunk_layout=ts.ChunkLayout(chunk_shape=(512, 512)),
            context=self._context,
        ).result()
        made.write(array).result()

    def open_whole(self) -> Any:
        self._new_context()
        ts = self._tensorstore
        return _Reading(ts.open(self._spec("whole"), open=True, context=self._context).result())


class TensorstoreCached(Tensorstore):
    name: ClassVar[str] = "tensorstore, cached"
    setup: ClassVar[str] = "the same with a cache pool of the budget, at most 256 MiB"
    cannot: ClassVar[dict[str, str]] = {
        **Tensorstore.cannot,
        **dict.fromkeys(("small", "spill-write", "reload", "churn"), "as tensorstore"),
    }
    cache_bytes: ClassVar[int] = 256 << 20


class _Reading:
    """Reads as the others do."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getitem__(self, key: Any) -> np.ndarray:
        found: np.ndarray = self._store[key].read().result()
        return found


class Blosc2Dict(Peer):
    name: ClassVar[str] = "blosc2 DictStore"
    package: ClassVar[str] = "blosc2"
    setup: ClassVar[str] = "a .b2d folder, a file for each value"
    shares: ClassVar[dict[str, float]] = {"small": 0.01}
    cannot: ClassVar[dict[str, str]] = {"opening": _TOO_MANY}
    kind: ClassVar[str] = "DictStore"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._blosc2 = load("blosc2")
        self._path = str(folder / "store.b2d")
        self._open("w")

    def _open(self, mode: str) -> None:
        self._store: Any = getattr(self._blosc2, self.kind)(self._path, mode=mode)

    def put(self, key: str, array: np.ndarray) -> None:
        self._store["/" + key] = array

    def get(self, key: str) -> np.ndarray:
        array: np.ndarray = self._store["/" + key][...]
        return array

    def delete(self, key: str) -> None:
        del self._store["/" + key]

    def reopen(self) -> None:
        self._store.close()
        self._open("a")

    def close(self) -> None:
        self._store.close()

    def write_whole(self, array: np.ndarray) -> None:
        self.put("whole", array)

    def open_whole(self) -> Any:
        return self._store["/whole"]


class Blosc2Tree(Blosc2Dict):
    name: ClassVar[str] = "blosc2 TreeStore"
    kind: ClassVar[str] = "TreeStore"
    setup: ClassVar[str] = "the same, with groups"
    cannot: ClassVar[dict[str, str]] = {
        **Blosc2Dict.cannot,
        **dict.fromkeys(("small", "pipeline", "scan", "churn"), "as blosc2 DictStore"),
    }


class Blosc2NDArray(Peer):
    name: ClassVar[str] = "blosc2 NDArray"
    package: ClassVar[str] = "blosc2"
    setup: ClassVar[str] = "asarray(urlpath=...), its own chunks, blocks and compression"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._blosc2 = load("blosc2")
        self._path = str(folder / "whole.b2nd")

    def write_whole(self, array: np.ndarray) -> None:
        self._blosc2.asarray(array, urlpath=self._path, mode="w")

    def open_whole(self) -> Any:
        return self._blosc2.open(self._path, mode="r")
