"""Every kind of variable and index comes back as it was, or is refused by name."""

from __future__ import annotations

import os

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
pd = pytest.importorskip("pandas")

from arraychest.xarray import save  # noqa: E402
from tests.xarray.support import OTHER_DATES, check_same, opened, roundtrip  # noqa: E402

VALUES = {
    "categorical": lambda: pd.Categorical(["a", "b", "a"], ["b", "a", "c"], ordered=True),
    "categorical with nothing": lambda: pd.Categorical(["a", None, "a"]),
    "object strings": lambda: np.array(["a", "bü", ""], object),
    "object strings with nothing": lambda: np.array(["a", None, np.nan], object),
    "objects": lambda: np.array([1, "a", (b"x", 2.5)], object),
    "Int64": lambda: pd.array([1, 2, 3], dtype="Int64"),
    "Int64 with NA": lambda: pd.array([1, pd.NA, 3], dtype="Int64"),
    "boolean": lambda: pd.array([True, True, False], dtype="boolean"),
    "time zone": lambda: pd.date_range("2020-03-28", periods=3, tz="Europe/Berlin").array,
    "interval": lambda: pd.interval_range(0, 3).array,
    "period": lambda: pd.period_range("2020-01", periods=3, freq="M").array,
    "dates of seconds": lambda: np.array(["1200-01-01", "NaT", "3000-01-01"], "M8[s]"),
    "dates of nanoseconds": lambda: np.array([1, 2, 3], "M8[ns]"),
    "spans": lambda: np.array([1, -2, 3], "m8[ms]"),
    "complex": lambda: np.array([1j, 2, 3]),
    "big-endian": lambda: np.arange(3, dtype=">i4"),
    "bytes": lambda: np.array([b"a", b"bc", b""]),
    "fixed strings": lambda: np.array(["a", "bc", ""]),
    "truth values": lambda: np.array([True, False, True]),
    "half": lambda: np.array([1, 2, np.nan], "f2"),
}


if not OTHER_DATES:
    del VALUES["dates of seconds"], VALUES["spans"]


@pytest.mark.parametrize("kind", VALUES)
def test_a_variable_comes_back_as_it_was(path, kind):
    values = VALUES[kind]()
    right = xr.Dataset({"v": ("x", values, {"long_name": "of this kind"})}, attrs={"n": 1})
    found = roundtrip(right, path)
    check_same(found, right)
    data = found.v.variable.data
    assert type(data) is type(right.v.variable.data)
    if data.dtype == object:
        assert [type(each) for each in data] == [type(each) for each in right.v.values]


@pytest.mark.parametrize("kind", [each for each in VALUES if each != "half"])  # pandas has no such
def test_a_coordinate_and_its_index_come_back_as_they_were(path, kind):
    values = VALUES[kind]()
    right = xr.Dataset({"v": ("x", np.arange(3.0))}, {"x": ("x", values, {"units": "1"})})
    check_same(roundtrip(right, path), right)


def test_truth_values_with_na_come_back_as_they_were(path):
    # xarray does not find them equal to themselves.
    values = pd.array([True, pd.NA, False], dtype="boolean")
    assert roundtrip(xr.Dataset({"v": ("x", values)}), path).v.variable.data.equals(values)


INDEXES = {
    "range of pandas": lambda d: d.assign_coords(x=pd.RangeIndex(10, 40, 10)),
    "dates with a frequency": lambda d: d.assign_coords(x=pd.date_range("2020", periods=3)),
    "month ends": lambda d: d.assign_coords(x=pd.date_range("2020", periods=3, freq="QE")),
    "two levels": lambda d: d.assign_coords(
        xr.Coordinates.from_pandas_multiindex(
            pd.MultiIndex.from_arrays([list("aab"), [1, 2, 1]], names=["one", "two"]), "x"
        )
    ),
    "of another coordinate": lambda d: d.assign_coords(label=("x", [3, 1, 2])).set_xindex("label"),
    "none": lambda d: d.assign_coords(x=[1, 2, 3]).drop_indexes("x"),
    "float32": lambda d: d.assign_coords(x=np.array([1, 2, 3], "f4")),
    "twice the same": lambda d: d.assign_coords(x=[1, 1, 2]),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_comes_back_as_it_was(path, kind):
    right = INDEXES[kind](xr.Dataset({"v": ("x", np.arange(3.0))}))
    options = {}
    if kind == "none":
        # Otherwise xarray makes an index of each coordinate of a dimension, whatever the engine.
        options = {"create_default_indexes": False}
        if "create_default_indexes" not in xr.open_dataset.__code__.co_varnames:
            options = {}
    save(right, path)
    check_same(opened(path, **options), right)


def test_the_range_of_xarray_comes_back_without_its_labels(path):
    made = getattr(xr.indexes, "RangeIndex", None)
    if made is None:
        pytest.skip("this xarray has none")
    coords = xr.Coordinates.from_xindex(made.arange(0.5, 100.0, 0.25, dim="x"))
    right = xr.Dataset({"v": ("x", np.arange(398.0))}, coords)
    found = roundtrip(right, path)
    assert type(found.xindexes["x"]) is made
    assert found.xindexes["x"].equals(right.xindexes["x"])
    assert (found.xindexes["x"].start, found.xindexes["x"].step) == (0.5, 0.25)
    xr.testing.assert_identical(found.load(), right)
    with arraychest.open(path, "r") as chest:
        assert chest.entry(("variable", "x")).nbytes < 1000


CALENDARS = ["noleap", "360_day", "julian", "all_leap", "standard", "proleptic_gregorian"]


@pytest.mark.parametrize("calendar", CALENDARS)
def test_dates_of_cftime_come_back_as_they_were(path, calendar):
    cftime = pytest.importorskip("cftime")
    dates = [
        cftime.datetime(year, 2, 3, 4, 5, 6, 789, calendar=calendar) for year in (1, 1999, 9999)
    ]
    times = xr.date_range("2000-01-01", periods=3, freq="D", calendar=calendar, use_cftime=True)
    right = xr.Dataset({"v": ("x", dates)}, {"t": times, "x": np.arange(3)})
    right.v.encoding = {"units": "days since 1900-01-01"}
    found = roundtrip(right, path)
    check_same(found, right)
    assert (found.v.encoding, found.t.encoding) == (right.v.encoding, {})
    assert found.v.values[0].calendar == calendar
    assert type(found.indexes["t"]) is xr.CFTimeIndex
    assert found.v.values[0].microsecond == 789
    numbers = opened(path, decode_times=False)
    assert numbers.v.dtype == np.int64
    assert numbers.v.attrs["calendar"] == calendar


@pytest.mark.parametrize("name", ["height", None, "x", 7, ("a", 1)])
def test_a_data_array_comes_back_with_its_name(path, name):
    right = xr.DataArray([1.0, 2.0], {"x": [1, 2]}, ["x"], name, {"units": "m"})
    save(right, path)
    found = xr.open_dataarray(path, engine="arraychest").load()
    xr.testing.assert_identical(found, right)
    assert found.name == name


def test_attributes_that_only_look_packed_are_attributes(path):
    attrs = {"scale_factor": 0.1, "_FillValue": 7, "units": "days since 2000-01-01"}
    right = xr.Dataset({"v": ("x", np.arange(8.0), attrs)})
    check_same(roundtrip(right, path), right)
    scaled = opened(path, mask_and_scale=True, decode_times=False).v.values
    assert scaled.tolist()[:2] == [0.0, 0.1]
    assert np.isnan(scaled[7])
    dates = opened(path, decode_times=True).v
    assert dates.values[1] == np.datetime64("2000-01-02")


REFUSED = {
    "elements": (lambda d: d.assign(z=("x", np.array([object()] * 3))), "'z'"),
    "element among strings": (lambda d: d.assign(z=("x", np.array(["a", "b", {1: object()}], object))), "'z'"),
    "index": (lambda d: d.assign_coords(x=[1, 2, 3]).drop_indexes("x").set_xindex("x", Own), "drop_indexes"),
}  # fmt: skip


class Own(xr.indexes.PandasIndex):
    """An index of which a chest does not know how it is made."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_come_back_is_refused_with_its_name_and_a_remedy(path, what):
    change, said = REFUSED[what]
    with pytest.raises(arraychest.ValueTypeError, match=said) as caught:
        save(change(xr.Dataset({"v": ("x", np.arange(3.0))})), path)
    assert "expected" in str(caught.value)
    assert not os.path.exists(path)


class Anything:
    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return self.n == other.n

    __hash__ = None


def test_pickled_objects_are_read_by_who_allows_it(path):
    right = xr.Dataset({"v": ("x", np.array([Anything(1), Anything(2)]))})
    with pytest.raises(arraychest.ValueTypeError, match="'v'"):
        save(right, path)
    save(right, path, allow_pickle=True)
    with pytest.raises(arraychest.PickleRefusedError):
        opened(path)
    assert opened(path, allow_pickle=True).v.values.tolist() == [Anything(1), Anything(2)]
    if not hasattr(xr, "DataTree"):
        return
    tree = xr.open_datatree(path, engine="arraychest", allow_pickle=True)
    assert tree["v"].values.tolist() == [Anything(1), Anything(2)]


def test_coordinates_of_an_index_may_be_left_out(path):
    two = pd.MultiIndex.from_arrays([list("aab"), [1, 2, 1]], names=["one", "two"])
    right = xr.Dataset(
        {"v": ("x", np.arange(3.0))}, xr.Coordinates.from_pandas_multiindex(two, "x")
    )
    save(right, path)
    found = opened(path, drop_variables="one")
    assert set(found.coords) == {"x", "two"}
    assert found.two.values.tolist() == [1, 2, 1]
    assert opened(path, drop_variables=["x", "one", "two"]).v.values.tolist() == [0, 1, 2]
