"""What an ``encoding`` asks for is done, or a warning says that it is not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
da = pytest.importorskip("dask.array")

from arraychest.xarray import save  # noqa: E402
from tests.xarray.support import OTHER_DATES, check_same, opened, roundtrip  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pool")

RIGHT = np.array([[0.0, 0.5, np.nan], [1.5, -2.0, 100.5]])
PACKED = {"dtype": "i2", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": -999}


def entry(path, name="v"):
    with arraychest.open(path, "r") as chest:
        return chest.entry(("variable", name))


@pytest.mark.parametrize("how", ["asked for", "its own"])
@pytest.mark.parametrize("chunks", [None, {"x": 1}])
def test_numbers_are_packed_and_unpacked(path, how, chunks):
    dataset = xr.Dataset({"v": (("x", "y"), RIGHT, {"units": "m"})})
    if chunks:
        dataset = dataset.chunk(chunks)
    if how == "its own":
        dataset.v.encoding = PACKED
        found = roundtrip(dataset, path)
    else:
        found = roundtrip(dataset, path, encoding={"v": PACKED})
    assert entry(path).dtype == np.int16
    assert not found.v.variable._in_memory
    assert found.v.encoding["scale_factor"] == 0.5
    np.testing.assert_array_equal(found.v, RIGHT)
    assert found.v.attrs == {"units": "m"}
    raw = opened(path, mask_and_scale=False).v
    assert (raw.values[0, 2], raw.values[1, 0]) == (-999, 1)
    # What was packed is packed alike when it is saved again.
    again = roundtrip(opened(path).load(), path)
    assert entry(path).dtype == np.int16
    np.testing.assert_array_equal(again.v, RIGHT)


def test_numbers_are_as_xarray_packs_them_for_netcdf(path, tmp_path):
    pytest.importorskip("scipy")
    dataset = xr.Dataset({"v": ("x", np.linspace(-5, 5, 200))})
    encoding = {"v": {"dtype": "i2", "scale_factor": 0.04, "add_offset": -5.0, "_FillValue": -1}}
    dataset.to_netcdf(tmp_path / "f.nc", encoding=encoding, engine="scipy")
    right = xr.load_dataset(tmp_path / "f.nc", engine="scipy")
    found = roundtrip(dataset, path, encoding=encoding).load()
    np.testing.assert_array_equal(found.v, right.v)
    assert found.v.dtype == right.v.dtype


@pytest.mark.skipif(not OTHER_DATES, reason="xarray has dates of nanoseconds only")
def test_times_are_exact_unless_they_are_asked_to_be_packed(path):
    times = np.array(["2000-01-01T00:00:00.000000001", "NaT", "2200-01-01"], "M8[ns]")
    dataset = xr.Dataset({"v": ("x", times)})
    # As a file has it that it was read from.
    dataset.v.encoding = {"units": "days since 1900-01-01", "calendar": "standard", "dtype": "i8"}
    found = roundtrip(dataset, path)
    check_same(found, dataset)
    assert entry(path).dtype == times.dtype
    assert found.v.encoding["units"] == "days since 1900-01-01"
    days = xr.Dataset({"v": ("x", np.array(["2000-01-01", "2001-01-01"], "M8[s]"))})
    asked = {"v": {"units": "days since 2000-01-01", "dtype": "i4"}}
    found = roundtrip(days, path, encoding=asked)
    assert entry(path).dtype == np.int32
    assert opened(path, decode_times=False).v.values.tolist() == [0, 366]
    check_same(found, days)


@pytest.mark.skipif(not OTHER_DATES, reason="xarray has spans of nanoseconds only")
def test_spans_are_packed_where_they_are_asked_to_be(path):
    spans = xr.Dataset({"v": ("x", np.array([60, 120], "m8[s]"))})
    found = roundtrip(spans, path, encoding={"v": {"units": "minutes", "dtype": "i4"}})
    assert entry(path).dtype == np.int32
    check_same(found, spans)


@pytest.mark.parametrize("name", ["chunks", "chunksizes"])
@pytest.mark.parametrize("is_dask", [False, True])
def test_chunks_become_blocks(path, name, is_dask):
    right = xr.Dataset({"v": (("x", "y"), np.arange(600.0).reshape(20, 30))})
    dataset = right.chunk(x=7) if is_dask else right
    found = roundtrip(dataset, path, encoding={"v": {name: (5, -1)}})
    assert entry(path).kind == "blocked"
    with arraychest.open(path, "r") as chest:
        assert chest["variable", "v"].chunks == ((5,) * 4, (30,))
    assert found.v.encoding["preferred_chunks"] == {"x": (5,) * 4, "y": (30,)}
    assert opened(path, chunks={}).v.chunks == ((5,) * 4, (30,))
    check_same(found, right)


CODECS = {
    "a codec": ({"compression": "zstd"}, "zstd"),
    "as netCDF4": ({"zlib": True, "complevel": 2, "shuffle": True}, "zlib"),
    "as h5netcdf": ({"compression": "gzip"}, "zlib"),
    "none": ({"compressors": None}, "npy"),
    "none of several": ({"compressors": ()}, "npy"),
}


@pytest.mark.parametrize("asked", CODECS)
@pytest.mark.parametrize("chunks", [None, (50, 400)])
def test_compression_is_as_asked_for(path, asked, chunks):
    encoding, codec = CODECS[asked]
    right = xr.Dataset({"v": (("x", "y"), np.tile(np.arange(400.0), (100, 1)))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chest_wide = "lz4" if codec == "npy" else None
        each = encoding if chunks is None else {**encoding, "chunks": chunks}
        found = roundtrip(right, path, encoding={"v": each}, compression=chest_wide)
    check_same(found, right)
    if chunks is None:
        assert entry(path).codec == codec
    else:
        assert (entry(path).ratio > 2) == (codec != "npy")


def test_what_a_chest_has_not_is_named_by_a_warning(path):
    right = xr.Dataset({"v": ("x", np.arange(3.0)), "s": ("x", np.array(["a", "b", "c"], object))})
    encoding = {
        "v": {"fletcher32": True, "shards": (3,), "compressors": [object()], "dtype": "f8"},
        "s": {"dtype": "S1", "compression": "zstd"},
    }
    with pytest.warns(UserWarning, match="save ignores") as caught:
        found = roundtrip(right, path, encoding=encoding)
    said = [str(each.message) for each in caught if "save ignores" in str(each.message)]
    assert all(each.filename.endswith("support.py") for each in caught)
    assert len(said) == 2
    for name in ("'fletcher32'", "'shards'", "'compressors'", "'v'"):
        assert name in said[0]
    for name in ("'dtype'", "'compression'", "'s'"):
        assert name in said[1]
    check_same(found, right)


WRONG = {
    "a name": ({"v": {"dtyp": "i2"}}, "'dtyp'"),
    "a variable": ({"w": {}}, "'w'"),
    "chunks": ({"v": {"chunks": (1, 2)}}, "1 sizes"),
    "chunks of nothing": ({"v": {"chunks": (0,)}}, "above 0"),
    "a codec": ({"v": {"compression": "brotli"}}, "'v'"),
    "a level": ({"v": {"zlib": True, "complevel": 11}}, "from 0 to 9"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_encoding_that_makes_no_sense_is_refused_before_anything_is_written(path, what):
    encoding, said = WRONG[what]
    right = xr.Dataset({"v": ("x", np.arange(3.0))})
    save(right, path)
    with pytest.raises(ValueError, match=said):
        save(right + 1, path, mode="w", encoding=encoding)
    check_same(opened(path), right)


def test_what_an_encoding_says_of_another_file_is_ignored(path):
    right = xr.Dataset({"v": ("x", np.arange(30.0))})
    right.v.encoding = {"chunks": (3,), "compressors": ("other",), "source": "/other.nc"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = roundtrip(right, path)
    assert entry(path).kind == "array"
    assert "compressors" not in found.v.encoding


def test_no_fill_value_is_no_fill_value(path):
    right = xr.Dataset({"v": ("x", np.array([1.0, np.nan]))})
    right.v.encoding = {"_FillValue": None}
    assert roundtrip(right, path).v.encoding["_FillValue"] is None
    assert opened(path, mask_and_scale=False).v.attrs == {}


def test_coordinates_are_taken_from_attributes_where_it_is_asked_for(path):
    right = xr.Dataset(
        {"v": ("x", np.arange(3.0), {"coordinates": "lat"}), "lat": ("x", np.arange(3))},
        {"x": [1, 2, 3], "lon": ("x", [4, 5, 6])},
    )
    save(right, path)
    check_same(opened(path), right)
    assert set(opened(path, decode_coords="all").coords) == {"x", "lat", "lon"}
    assert set(opened(path, decode_coords=False).coords) == {"x"}
