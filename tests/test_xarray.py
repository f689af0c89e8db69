"""xarray's datasets in a chest: saved, opened lazily, larger than what is read."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
da = pytest.importorskip("dask.array")
import dask  # noqa: E402

from arraychest.xarray import save  # noqa: E402

# What spawned processes need, and what stays for all of them.
resource_tracker.ensure_running()


pytestmark = pytest.mark.usefixtures("no_pool")


@pytest.fixture
def dataset():
    random = np.random.default_rng(3)
    return xr.Dataset(
        {
            "height": (("time", "y", "x"), random.random((4, 30, 40)), {"units": "m"}),
            "count": (("y",), np.arange(30, dtype="i2")),
            "name": ((), np.array("fault")),
            "station": (("y",), np.array([f"s{n}é" for n in range(30)], object)),
        },
        coords={
            "time": np.array(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-05"], "M8[ns]"),
            "x": np.linspace(0, 1, 40),
            "lat": (("y", "x"), random.random((30, 40))),
        },
        attrs={"title": "Jacksboro", "levels": [1, 2.5], "grid": np.arange(3)},
    )


def opened(path, **options):
    return xr.open_dataset(path, engine="arraychest", **options)


def test_a_dataset_comes_back_with_coordinates_attributes_and_dtypes(dataset, path):
    before = dataset.height.values.flags.writeable
    save(dataset, path)
    found = opened(path)
    xr.testing.assert_equal(found.drop_vars("station"), dataset.drop_vars("station"))
    assert found.station.values.tolist() == dataset.station.values.tolist()
    assert list(found.coords) == list(dataset.coords)
    assert found.height.attrs == {"units": "m"}
    assert found.attrs["levels"] == [1, 2.5]
    assert found["count"].dtype == np.int16
    assert dataset.height.values.flags.writeable == before


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_what_is_selected_is_read_as_xarray_reads_it(dataset, path, compression):
    save(dataset, path, compression=compression)
    a, b = opened(path).height, dataset.height
    for where in (
        {"time": 0},
        {"time": -1, "x": [3, 1, 39]},
        {"x": [5], "y": slice(None, None, -2)},
        {"time": [0, 2], "x": [1, 2, 0]},
        {"y": xr.DataArray([1, 2], dims="p"), "x": xr.DataArray([3, -1], dims="p")},
        {"x": slice(3, 3)},
        {"time": 1, "y": 2, "x": 3},
    ):
        found = a.isel(where)
        assert not found.variable._in_memory
        assert np.array_equal(found.values, b.isel(where).values), where
        assert found.dims == b.isel(where).dims
    assert a.sel(time="2020-01-03").shape == (30, 40)
    assert np.array_equal(a.mean("time").values, b.mean("time").values)


def test_chunks_on_request_are_dask_arrays_in_the_files_chunks(dataset, path):
    dataset = dataset.drop_vars(["station", "name"])
    large = dataset.assign(wide=(("a", "b"), np.zeros((3000, 1000))))
    save(large, path, compression="zstd")
    found = opened(path, chunks={})
    assert isinstance(found.height.data, da.Array)
    assert len(found.wide.chunks[0]) > 1
    xr.testing.assert_equal(found.compute(), large)
    assert np.array_equal(pickle.loads(pickle.dumps(found)).height.values, large.height.values)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_variables_are_written_block_by_block(path, scheduler):
    x = da.arange(1200, chunks=500).reshape(40, 30).rechunk((7, 30))
    # With dask's own pools threads would stay behind.
    made = {
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
    }
    with made[scheduler]() as pool, dask.config.set(scheduler=scheduler, pool=pool):
        save(xr.DataArray(x, dims=("y", "x"), name="x"), path)
    assert np.array_equal(opened(path).x.values, np.arange(1200).reshape(40, 30))


def test_dask_variables_are_compressed_where_they_are_worth_it_and_keep_their_chunks(path):
    x = da.arange(120_000, chunks=120_000).reshape(400, 300).rechunk((150, 300))
    xr.Dataset({"x": (("y", "x"), x)}).pipe(save, path, compress_above=1)
    with arraychest.open(path, "r") as chest:
        entry = chest.entry(("variable", "x"))
    assert (entry.kind, entry.codec) == ("blocked", "blocks")
    assert entry.ratio > 3
    found = opened(path, chunks={})
    assert found.x.chunks == ((150, 150, 100), (300,))
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.x[::-7, [3, 1]], x.compute()[::-7, [3, 1]])


def test_what_fails_leaves_no_dataset_and_does_not_touch_another(dataset, path):
    def fail(block):
        raise ZeroDivisionError("no such block")

    broken = xr.Dataset({"x": ("y", da.ones(10, chunks=5).map_blocks(fail, dtype="f8"))})
    with pytest.raises(ZeroDivisionError):
        save(broken, path)
    with pytest.raises(arraychest.ChestFormatError, match="found none"):
        opened(path)
    save(dataset, path, mode="w")
    with pytest.raises(FileExistsError):
        save(broken, path)
    assert opened(path).sizes == {"time": 4, "y": 30, "x": 40}


def test_what_no_chest_can_hold_is_refused_by_name(path):
    index = xr.Dataset(
        {"v": ("x", np.arange(4))}, {"a": ("x", [1, 1, 2, 2]), "b": ("x", [1, 2, 1, 2])}
    )
    with pytest.raises(arraychest.ValueTypeError, match="reset_index"):
        save(index.set_index(x=["a", "b"]), path)


def test_what_a_stranger_has_written_raises_only_our_errors(dataset, path):
    save(dataset, path)
    for forged in (
        7,
        {"variables": 1},
        {"variables": {"height": 1}, "coords": [], "attrs": {}},
        {"variables": {"height": {"dims": ["y"], "attrs": {}}}, "coords": [], "attrs": {}},
        {"variables": {"height": {"dims": 3, "attrs": 4}}, "coords": [], "attrs": {}},
        {"variables": {"absent": {"dims": [], "attrs": {}}}, "coords": [], "attrs": {}},
        {"variables": {}, "coords": 1, "attrs": {}},
        {"variables": {}, "coords": [], "attrs": 5},
    ):
        with arraychest.open(path) as chest:
            chest["dataset"] = forged
        with pytest.raises(arraychest.ChestFormatError, match="expected"):
            opened(path)


def test_a_chests_folder_is_known_without_naming_the_engine(dataset, path):
    save(dataset.drop_vars("station"), path)
    assert set(xr.open_dataset(path, drop_variables="name")) == {"height", "count"}
