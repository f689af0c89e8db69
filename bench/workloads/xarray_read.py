"""`xarray-read`: a dataset of xarray is opened, and time slices of it are read.

Once as its values are, and once compressed in chunks of one time slice each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.base import load
from bench.workload import MIB, Run, Step, Workload, expect

# Times, and degrees of latitude and longitude.
_SHAPES = ((64, 720, 1440), (8, 90, 180))
_SLICE_BYTES = (720 * 1440 * 4, 90 * 180 * 4)

# As they are stored: as they are, and in chunks, compressed.
_AS_IT_IS, _COMPRESSED = "time slice", "time slice, compressed"


class XarrayRead(Workload):
    name = "xarray-read"
    title = "Temperatures of 265 MB, float32, by xarray: opened, and time slices read"
    needs = ("xarray_write", "xarray_open")
    peers = ("arraychest", "zarr", "netCDF4", "h5netcdf")
    steps = (
        Step(_AS_IT_IS, nbytes=_SLICE_BYTES),
        Step(_COMPRESSED, nbytes=_SLICE_BYTES),
        Step("open", judged=False),
        Step("series of one place", judged=False),
        Step("size", unit="B", judged=False),
    )
    rounds = 3
    seconds = 90
    disk = (1024 * MIB, 64 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        xr = load("xarray")
        values = _temperatures(_SHAPES[run.small])
        times = np.arange(len(values)).astype("M8[D]").astype("M8[ns]")
        places = [
            np.linspace(0, end, n) for end, n in zip((180, 360), values.shape[1:], strict=True)
        ]
        dataset = xr.Dataset(
            {"t2m": (("time", "lat", "lon"), values)},
            dict(zip(("time", "lat", "lon"), (times, *places), strict=True)),
        )
        run.settled()
        run.warm(2 * values.nbytes)
        peer.xarray_write(dataset, "plain", None)
        peer.xarray_write(dataset, "compressed", (1, *values.shape[1:]))
        run.add("size", run.measure_disk())
        random = np.random.default_rng(5)
        order = random.permutation(len(values))[: run.pick(24, 4)].tolist()
        for step, name in ((_AS_IT_IS, "plain"), (_COMPRESSED, "compressed")):
            # What the first one of a process pays once.
            with peer.xarray_open(name) as first:
                first.t2m.isel(time=0).load()
            if name == "plain":
                with run.time("open"):
                    found = peer.xarray_open(name)
                found.close()
            with peer.xarray_open(name) as found:
                with run.time(step, len(order)):
                    # A view is read, too.
                    sums = [found.t2m.isel(time=at).values.sum() for at in order]
                expect(sums == [values[at].sum() for at in order], f"{step}: it differs")
                run.answer(step, found.t2m.isel(time=order[0]).values)
                if name == "plain":
                    with run.time("series of one place"):
                        series = found.t2m.isel(lat=30, lon=50).values
                    expect(np.array_equal(series, values[:, 30, 50]), "the series differs")


def _temperatures(shape: tuple[int, int, int]) -> np.ndarray:
    """Of a planet, with weather: in K."""
    random = np.random.default_rng(3)
    lat = np.linspace(-np.pi / 2, np.pi / 2, shape[1], dtype=np.float32)[:, None]
    lon = np.linspace(0, 2 * np.pi, shape[2], endpoint=False, dtype=np.float32)
    climate = 255 + 45 * np.cos(lat) + 3 * np.sin(3 * lon)
    found = np.empty(shape, np.float32)
    for at in range(shape[0]):
        weather = random.standard_normal(shape[1:], dtype=np.float32)
        found[at] = climate + 5 * np.sin(np.float32(at / 8)) + weather
    return found
