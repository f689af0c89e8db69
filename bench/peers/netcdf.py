"""netCDF files, as xarray writes and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bench.peers.base import Peer, load


class NetCDF4(Peer):
    name: ClassVar[str] = "netCDF4"
    package: ClassVar[str] = "netCDF4"
    setup: ClassVar[str] = "defaults; compressed: zlib, level 1"
    only: ClassVar[tuple[str, ...] | None] = ("xarray-read",)
    engine: ClassVar[str] = "netcdf4"

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(folder, budget)
        load(self.package)

    def xarray_write(self, dataset: Any, name: str, chunks: tuple[int, ...] | None) -> None:
        encoding: dict[str, Any] = {}
        if chunks is not None:
            encoding = {"chunksizes": chunks, "zlib": True, "complevel": 1}
        each = dict.fromkeys(dataset.data_vars, encoding)
        dataset.to_netcdf(self.folder / f"{name}.nc", engine=self.engine, encoding=each)

    def xarray_open(self, name: str) -> Any:
        return load("xarray").open_dataset(self.folder / f"{name}.nc", engine=self.engine)


class H5netcdf(NetCDF4):
    name: ClassVar[str] = "h5netcdf"
    package: ClassVar[str] = "h5netcdf"
    engine: ClassVar[str] = "h5netcdf"
