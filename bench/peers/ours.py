"""arraychest itself, with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import POWER_LOSS, PROCESS_CRASH, SYNCED, Peer, load


class Arraychest(Peer):
    name: ClassVar[str] = "arraychest"
    package: ClassVar[str] = "arraychest"
    durability: ClassVar[str] = PROCESS_CRASH
    bound: ClassVar[tuple[str, ...]] = ("put", "get", "delete")
    setup: ClassVar[str] = "defaults"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        self._arraychest = load("arraychest")
        self._open()

    def _open(self) -> None:
        self._chest = self._arraychest.Chest(
            path=self.folder / "chest",
            available_memory=self.budget,
            durable=self.durability == POWER_LOSS,
        )
        self.put = self._chest.__setitem__
        self.get = self._chest.__getitem__
        self.delete = self._chest.__delitem__

    def flush(self) -> None:
        self._chest.flush()

    def reopen(self) -> None:
        self._chest.close()
        self._open()

    def close(self) -> None:
        self._chest.close()

    def bare(self) -> Any:
        # What stays in memory needs no path.
        self._chest.close()
        self._chest = self._arraychest.Chest(available_memory=self.budget)
        return self._chest

    def write_whole(self, array: np.ndarray) -> None:
        self._chest["whole"] = array
        self._chest.flush()

    def open_whole(self) -> Any:
        return self._arraychest.open(self.folder / "chest", mode="r")["whole"]

    def memoise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._chest.cache(function)

    def dask_worker(self, target: int) -> dict[str, Any]:
        return {"data": (load("arraychest.dask").WorkerChest, {"target": target})}

    def dask_stored(self, x: Any, name: str, *, compressed: bool) -> Any:
        how = "auto" if compressed else None
        with self._arraychest.open(self.folder / name, compression=how) as chest:
            return load("arraychest.dask").store(x, chest, "x", return_stored=True)

    def xarray_write(self, dataset: Any, name: str, chunks: tuple[int, ...] | None) -> None:
        save = load("arraychest.xarray").save
        if chunks is None:
            save(dataset, self.folder / name, compression=None)
        else:
            encoding = {"chunks": chunks, "compression": "auto"}
            each = dict.fromkeys(dataset.data_vars, encoding)
            save(dataset, self.folder / name, encoding=each)

    def xarray_open(self, name: str) -> Any:
        return load("xarray").open_dataset(self.folder / name, engine="arraychest")

    def reader(self) -> Callable[[str], np.ndarray]:
        self._chest.close()
        self._chest = self._arraychest.open(self.folder / "chest", mode="r")
        return self._chest.__getitem__


class ArraychestDurable(Arraychest):
    name: ClassVar[str] = "arraychest, durable"
    durability: ClassVar[str] = POWER_LOSS
    setup: ClassVar[str] = "durable=True"
    only: ClassVar[tuple[str, ...] | None] = SYNCED
