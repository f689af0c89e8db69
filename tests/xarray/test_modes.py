"""Variables added and replaced, more along a dimension, and regions: each as one change."""

from __future__ import annotations

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
pd = pytest.importorskip("pandas")
da = pytest.importorskip("dask.array")
import dask  # noqa: E402

from arraychest.xarray import save  # noqa: E402
from tests import faults  # noqa: E402
from tests.xarray.support import check_same, opened  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pool")


def rows(first, last):
    """A part of a series of rows, from one day to another."""
    n = last - first
    return xr.Dataset(
        {
            "v": (("t", "x"), np.arange(first * 4.0, last * 4).reshape(n, 4), {"units": "m"}),
            "name": ("t", np.array([f"row {at}" for at in range(first, last)], object)),
            "mixed": ("t", np.array([at if at % 2 else str(at) for at in range(first, last)], object)),
            "kind": ("t", pd.Categorical([("a", "b")[at % 2] for at in range(first, last)], ["a", "b"])),
            "count": ("t", pd.array(list(range(first, last)), dtype="Int64")),
            "fixed": ("x", np.arange(4)),
        },
        {
            "t": pd.date_range("2020-01-01", periods=last)[first:].as_unit("ns"),
            "x": [1.0, 2.0, 3.0, 4.0],
            "day": ("t", np.arange(first, last)),
        },
        {"title": "rows"},
    )  # fmt: skip


def in_chunks(dataset, n):
    """The same with dask arrays where dask has such arrays."""
    if n is None:
        return dataset
    return dataset.assign(
        {name: dataset[name].chunk(t=n) for name in ("v", "name", "mixed", "day")}
    )


def generations(path):
    with arraychest.open(path, "r") as chest:
        return {key: chest.handle(key).generation for key in chest}


def check_sound(path):
    with arraychest.open(path, "r") as chest:
        assert chest.verify().ok


# --- added and replaced -----------------------------------------------------------------------


def test_variables_are_added_and_replaced_and_the_rest_stays(path):
    save(rows(0, 5), path)
    with arraychest.open(path) as chest:
        chest["other"] = np.arange(3)
    before, first = generations(path), opened(path)
    more = xr.Dataset(
        {"v": (("t", "x"), np.ones((5, 4))), "w": ("x", np.arange(4))}, attrs={"n": 1}
    )
    save(more, path, mode="a")
    right = rows(0, 5).assign(v=more.v.variable, w=more.w.variable).assign_attrs(n=1)
    check_same(opened(path), right)
    after = generations(path)
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {"dataset", ("variable", "v"), ("variable", "w")}
    assert "other" in after
    check_same(first, rows(0, 5))
    check_sound(path)


def test_a_chest_that_is_not_there_is_made(path):
    save(rows(0, 3), path, mode="a")
    check_same(opened(path), rows(0, 3))


def test_a_coordinate_of_another_kind_takes_the_place_of_one(path):
    save(rows(0, 3), path)
    others = xr.Dataset(coords={"t": pd.period_range("2020", periods=3, freq="D")})
    save(others, path, mode="a")
    right = rows(0, 3).assign_coords(t=others.t)
    found = opened(path)
    assert type(found.indexes["t"]) is pd.PeriodIndex
    xr.testing.assert_identical(found.load(), right)
    save(rows(0, 3)[["t"]], path, mode="a")
    xr.testing.assert_identical(opened(path).load(), rows(0, 3))
    check_sound(path)


def test_blocks_of_what_is_replaced_go(path):
    strings = xr.Dataset({"s": ("x", np.array(list("abcdef"), object))})
    save(strings, path, encoding={"s": {"chunks": 2}})
    save(strings[["s"]].isel(x=slice(None, None, -1)), path, mode="a")
    with arraychest.open(path, "r") as chest:
        assert set(chest) == {"dataset", ("variable", "s")}
    assert opened(path).s.values.tolist() == list("fedcba")


ADDED_WRONG = {
    "another size": lambda: xr.Dataset({"w": ("x", np.arange(7))}),
    "a level of an index": lambda: xr.Dataset({"one": ("p", [1, 2, 3])}),
}


@pytest.mark.parametrize("what", ADDED_WRONG)
def test_what_does_not_fit_is_refused_and_nothing_changes(path, what):
    two = pd.MultiIndex.from_arrays([list("aab"), [1, 2, 1]], names=["one", "two"])
    right = rows(0, 3).assign_coords(xr.Coordinates.from_pandas_multiindex(two, "p"))
    save(right, path)
    before = generations(path)
    with pytest.raises(ValueError, match="expected"):
        save(ADDED_WRONG[what](), path, mode="a")
    assert generations(path) == before
    check_same(opened(path), right)


# --- along a dimension ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "compress_above": 1}])
@pytest.mark.parametrize("first", ["in memory", "dask"])
@pytest.mark.parametrize("then", ["in memory", "dask"])
def test_rows_are_appended(path, options, first, then):
    def part(how, *which):
        found = rows(*which)
        return in_chunks(found, 2 if how == "dask" else None)

    save(part(first, 0, 5), path, **options)
    old = opened(path)
    save(part(then, 5, 9), path, append_dim="t", **options)
    save(part(then, 9, 10), path, append_dim="t", mode="a", **options)
    right = rows(0, 10)
    found = opened(path)
    assert found.indexes["t"].equals(right.indexes["t"])
    xr.testing.assert_identical(found.load(), right)
    assert found.kind.dtype == right.kind.dtype
    check_same(old, rows(0, 5))
    check_sound(path)


def test_what_is_there_is_linked_and_not_written_again(path):
    wide = xr.Dataset({"v": (("t", "x"), np.arange(400_000.0).reshape(4, 100_000))})
    save(wide, path, encoding={"v": {"chunks": (2, -1)}})

    def blocks():
        with arraychest.open(path, "r") as chest:
            manifest = chest["variable", "v"].blocks.manifest
            return [int(stamp) for stamp in manifest.blocks[:, 2]]

    before = blocks()
    save(wide + 1, path, append_dim="t")
    assert blocks()[:2] == before
    assert len(blocks()) == 3
    found = opened(path).v
    assert found.shape == (8, 100_000)
    np.testing.assert_array_equal(found[4:], wide.v + 1)


def test_an_array_that_is_large_is_cut_into_blocks_once(path):
    long = xr.Dataset({"v": ("t", np.arange(300_000.0))})
    save(long, path)
    for chunks in (None, {"t": 100_000}):
        save(long if chunks is None else long.chunk(chunks), path, append_dim="t")
    np.testing.assert_array_equal(opened(path).v, np.tile(long.v, 3))
    with arraychest.open(path, "r") as chest:
        assert chest.entry(("variable", "v")).kind == "blocked"


def test_appending_makes_a_chest_that_is_not_there(path):
    save(rows(0, 2), path, append_dim="t")
    save(rows(2, 3), path, append_dim="t")
    xr.testing.assert_identical(opened(path).load(), rows(0, 3))


def test_what_is_packed_is_packed_alike(path):
    packed = {"v": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}, "t": {"units": "hours since 2000-01-01", "dtype": "i4"}}  # fmt: skip
    dataset = rows(0, 3)[["v"]]
    save(dataset, path, encoding=packed)
    save(rows(3, 5)[["v"]], path, append_dim="t")
    xr.testing.assert_identical(opened(path).load().drop_vars("day"), rows(0, 5)[["v"]].drop_vars("day"))  # fmt: skip
    with arraychest.open(path, "r") as chest:
        assert chest["variable", "v"].dtype == np.int16
        assert chest["variable", "t"].dtype == np.int32


def test_dates_of_cftime_are_appended(path):
    pytest.importorskip("cftime")
    times = xr.date_range("2000-02-27", periods=6, calendar="noleap", use_cftime=True)
    right = xr.Dataset({"v": ("t", np.arange(6)), "u": ("t", times)}, {"t": times})
    save(right.isel(t=slice(4)), path)
    save(right.isel(t=slice(4, 6)), path, append_dim="t")
    check_same(opened(path), right)
    other = right.convert_calendar("360_day", dim="t", align_on="date").isel(t=[0])
    with pytest.raises(TypeError, match="'t'"):
        save(other.assign(u=("t", other.t.values)), path, append_dim="t")
    check_same(opened(path), right)


APPENDED_WRONG = {
    "no such dimension": (lambda d: d.rename(t="s"), "'t'"),
    "a variable is missing": (lambda d: d.drop_vars("v"), "'v'"),
    "a variable is new": (lambda d: d.assign(new=d.day * 2), "'new'"),
    "another size": (lambda d: d.isel(x=[1, 2]), "'v'"),
    "other dimensions": (lambda d: d.transpose("x", "t"), "'v'"),
    "another dtype": (lambda d: d.assign(v=d.v.astype("f4")), "'v'"),
    "other categories": (
        lambda d: d.assign(kind=("t", pd.Categorical(["a", "c"]))),
        "'kind'",
    ),
    "StringDType for objects": (lambda d: d.assign(name=d.name.astype("T")), "'name'"),
    "numbers for strings": (lambda d: d.assign(name=d.day), "'name'"),
}


@pytest.mark.parametrize("what", APPENDED_WRONG)
def test_rows_that_do_not_fit_are_refused_and_nothing_changes(path, what):
    change, said = APPENDED_WRONG[what]
    save(rows(0, 3), path)
    before = generations(path)
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        save(change(rows(3, 5)), path, append_dim="t")
    assert "expected" in str(caught.value)
    assert generations(path) == before


# --- a region ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, 3])
@pytest.mark.parametrize("written", [None, 2])
@pytest.mark.parametrize("region", [{"t": slice(2, 7)}, {"t": "auto"}, "auto"])
def test_a_region_is_overwritten(path, chunks, written, region):
    whole = rows(0, 10)
    save(in_chunks(whole, chunks), path)
    old = opened(path)
    new = rows(2, 7).drop_vars(["fixed", "x"])
    new = new.assign(v=new.v + 100, name=new.name + "!", day=new.day * 2, kind=("t", new.kind.data[::-1]))  # fmt: skip
    new = new.assign_coords(day=new.day)
    save(in_chunks(new, written), path, region=region)
    right = rows(0, 10)
    for name in ("v", "name", "mixed", "day", "count"):
        right[name][2:7] = new[name].variable
    right["kind"] = ("t", pd.Categorical([*whole.kind.values[:2], *new.kind.values, *whole.kind.values[7:]]))  # fmt: skip
    xr.testing.assert_identical(opened(path).load(), right)
    check_same(old, whole)
    check_sound(path)


def test_blocks_that_a_region_does_not_touch_stay(path):
    wide = xr.Dataset({"v": (("t", "x"), np.zeros((6, 1000)))})
    save(wide, path, encoding={"v": {"chunks": (2, 500)}})

    def stamps():
        with arraychest.open(path, "r") as chest:
            return chest["variable", "v"].blocks.manifest.blocks[:, 2].reshape(3, 2).copy()

    before = stamps()
    new = xr.Dataset({"v": (("t", "x"), np.ones((1, 10)))})
    save(new, path, region={"t": slice(3, 4), "x": slice(495, 505)})
    assert (stamps() != before).tolist() == [[False, False], [True, True], [False, False]]
    found = opened(path).v.values
    assert found.sum() == 10
    assert found[3, 495:505].all()


REGION_WRONG = {
    "no dimension of it": (lambda d: d, {"t": slice(0, 2)}, "drop_vars"),
    "another size": (lambda d: d.drop_vars(["fixed", "x"]), {"t": slice(0, 3)}, "sizes"),
    "out of it": (lambda d: d.drop_vars(["fixed", "x"]), {"t": slice(9, 11)}, "sizes"),
    "no such dimension": (lambda d: d[["v"]], {"z": slice(0, 2)}, "'z'"),
    "steps": (lambda d: d[["v"]].drop_vars("x"), {"t": slice(0, 4, 2)}, "step 1"),
    "no such labels": (lambda d: d[["v"]].drop_vars("x").assign_coords(t=d.t + 1), "auto", "labels"),
    "a new variable": (lambda d: d[["v"]].drop_vars("x").assign(new=d.v.drop_vars("x")), {"t": slice(0, 2)}, "'new'"),
    "another dtype": (lambda d: d[["v"]].drop_vars("x").astype("f4"), {"t": slice(0, 2)}, "'v'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REGION_WRONG)
def test_a_region_that_does_not_fit_is_refused_and_nothing_changes(path, what):
    change, region, said = REGION_WRONG[what]
    save(rows(0, 10), path)
    before = generations(path)
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        save(change(rows(0, 2)), path, region=region)
    assert "expected" in str(caught.value)
    assert generations(path) == before


def test_a_region_needs_a_dataset_that_is_there(path):
    with pytest.raises(arraychest.ChestFormatError, match="save all of it first"):
        save(rows(0, 2), path, region={"t": slice(0, 2)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "r"}, "mode"),
        ({"mode": "w", "append_dim": "t"}, 'mode="a"'),
        ({"append_dim": "t", "region": "auto"}, "both"),
        ({"append_dim": "t", "encoding": {"v": {"dtype": "f4"}}}, "no encoding"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(path, options, said):
    save(rows(0, 2), path)
    with pytest.raises(ValueError, match=said):
        save(rows(2, 4), path, **options)
    xr.testing.assert_identical(opened(path).load(), rows(0, 2))


# --- as one change ------------------------------------------------------------------------------


CHANGES = {
    "added": (lambda p: save(rows(0, 4)[["v"]] * 2, p, mode="a"), lambda d: d.v[3, 3] == 30),
    "appended": (lambda p: save(rows(4, 6), p, append_dim="t"), lambda d: d.sizes["t"] == 6),
    "region": (
        lambda p: save(rows(1, 3).drop_vars(["x", "fixed"]) , p, region={"t": slice(2, 4)}),
        lambda d: d.day.values.tolist() == [0, 1, 1, 2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("act", ["die", "interrupt"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_is_ended_anywhere_is_done_or_not(tmp_path, what, act):
    change, is_done = CHANGES[what]
    old = rows(0, 4)

    def strike(path, at, how):
        action = faults.Countdown(at, how, only=lambda name, args: name != "close")
        with dask.config.set(scheduler="sync"), faults.injected(action):
            change(path)
        return action.count

    whole = str(tmp_path / "whole")
    save(in_chunks(old, 2), whole)
    count = strike(whole, 0, lambda: None)
    assert is_done(opened(whole))
    seen = []
    for at in range(1, count * 9 // 10, count // 8):
        path = str(tmp_path / str(at))
        save(in_chunks(old, 2), path)
        if act == "die":
            outcome = faults.in_child(lambda say, path=path, at=at: strike(path, at, faults.die))
            assert outcome.signal == 9, outcome.error
        else:
            with pytest.raises(KeyboardInterrupt):
                strike(path, at, faults.raising(KeyboardInterrupt))
        found = opened(path).load()
        seen.append(bool(is_done(found)))
        if not seen[-1]:
            xr.testing.assert_identical(found, old)
        check_sound(path)
    assert not seen[0]
