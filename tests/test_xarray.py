"""xarray's datasets in a chest: saved, opened lazily, larger than what is read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
pandas = pytest.importorskip("pandas")
da = pytest.importorskip("dask.array")
import dask  # noqa: E402

from arraychest.xarray import reading, save  # noqa: E402
from tests import faults  # noqa: E402

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


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_variables_are_written_block_by_block(path, scheduler):
    x = da.arange(1200, chunks=500).reshape(40, 30).rechunk((7, 30))
    # With dask's own pools threads would stay behind.
    made = {
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
    }
    with made[scheduler]() as pool, dask.config.set(scheduler=scheduler, pool=pool):
        save(xr.DataArray(x, dims=("y", "x"), name="field"), path)
    assert np.array_equal(opened(path).field.values, np.arange(1200).reshape(40, 30))


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


def test_what_a_stranger_has_written_raises_only_our_errors(dataset, path):
    save(dataset, path)
    with arraychest.open(path, "r") as chest:
        sound = chest["dataset"]
    station = sound["variables"]["station"]
    stations = (
        {**station, "kind": "other"},
        {**station, "chunks": 7},
        {**station, "chunks": ((10, 20),)},
        {**station, "chunks": ((10**9,) * 1000,)},
        {**station, "dtype": 7},
        {**station, "kind": "index", "of": "height"},
        {**station, "kind": "index", "of": None},
        {**station, "dims": ("y", "x")},
    )
    for forged in (
        7,
        {"variables": 1},
        {"variables": {"height": 1}, "coords": [], "attrs": {}},
        {"variables": {"height": {"dims": ["y"], "attrs": {}}}, "coords": [], "attrs": {}},
        {"variables": {"height": {"dims": 3, "attrs": 4}}, "coords": [], "attrs": {}},
        {"variables": {"absent": {"dims": [], "attrs": {}}}, "coords": [], "attrs": {}},
        {"variables": {}, "coords": 1, "attrs": {}},
        {"variables": {}, "coords": [], "attrs": 5},
        *({**sound, "variables": {**sound["variables"], "station": each}} for each in stations),
        {**sound, "indexed": 5},
        {**sound, "indexed": {"time": "fortnight"}},
        {**sound, "indexed": {"lat": None}},
    ):
        with arraychest.open(path) as chest:
            chest["dataset"] = forged
        with pytest.raises(arraychest.ChestFormatError, match="expected"):
            opened(path)


def test_a_chests_folder_is_known_without_naming_the_engine(dataset, path):
    save(dataset.drop_vars("station"), path)
    assert set(xr.open_dataset(path, drop_variables="name")) == {"height", "count"}


# --- over what is there ---------------------------------------------------------------------


def saved(dataset, path, **options):
    """Save a dataset beside a key that is no part of it; return it as it comes back."""
    save(dataset, path, **options)
    with arraychest.open(path) as chest:
        chest["other"] = np.arange(5)
    return opened(path).load()


def variables_in(chest):
    """The names of the variables that a chest holds, and its other keys."""
    return {key[1] if isinstance(key, tuple) and key[0] == "variable" else key for key in chest}


def check_untouched(path, right):
    xr.testing.assert_identical(opened(path).load(), right)
    with arraychest.open(path, "r") as chest:
        assert variables_in(chest) == {"dataset", "other", *right.variables}
        assert chest["other"].tolist() == [0, 1, 2, 3, 4]
        assert chest.verify().ok


def check_replaced(path, right):
    xr.testing.assert_identical(opened(path).load(), right)
    with arraychest.open(path, "r") as chest:
        assert variables_in(chest) == {"dataset", *right.variables}
        assert chest.verify().ok


def sparse(dataset):
    class Wrapped(np.lib.mixins.NDArrayOperatorsMixin):
        shape, dtype, ndim = (30,), np.dtype("f8"), 1

        def __array__(self, dtype=None, copy=None):
            return np.zeros(30)

        def __array_function__(self, *args):
            raise NotImplementedError

        def __array_ufunc__(self, *args, **kwargs):
            raise NotImplementedError

        def __getitem__(self, key):
            return self

    return dataset.assign(z=("y", Wrapped()))


class Other(xr.indexes.PandasIndex):
    """An index of which a chest does not know how it is made."""


def two_calendars():
    cftime = pytest.importorskip("cftime")
    return np.array([cftime.DatetimeNoLeap(2000, 1, 1), cftime.Datetime360Day(2000, 1, 1)])


REFUSED = {
    "attribute": lambda d: d.assign_attrs(a=object()),
    "attribute of a variable": lambda d: d.assign(z=("y", np.zeros(30), {"a": object()})),
    "objects": lambda d: d.assign(z=("y", np.array([object()] * 30))),
    "objects of dask": lambda d: d.assign(
        z=("y", da.from_array(np.array([object()] * 30), chunks=9))
    ),
    "name": lambda d: d.assign({frozenset({object}): ("y", np.zeros(30))}),
    "dimension": lambda d: d.assign(z=((object,), np.zeros(3))),
    "wrapped array": sparse,
    "index of another kind": lambda d: d.drop_indexes("x").set_xindex("x", Other),
    "dates of two calendars": lambda d: d.assign(z=("two", two_calendars())),
    "unknown chunks": lambda d: d.assign(z=("u", da.ones(30, chunks=9)[da.ones(30, chunks=9) > 0])),
    "dict": lambda d: dict(d.variables),
}
if hasattr(xr, "DataTree"):
    REFUSED["objects in a child"] = lambda d: xr.DataTree.from_dict(
        {"/": d, "/child": d.assign(z=("y", np.array([object()] * 30)))}
    )


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_refused_before_anything_is_written_or_computed(dataset, path, what):
    computed = []

    def compute(block):
        computed.append(1)
        return block

    lazy = da.ones(10, chunks=5).map_blocks(compute, dtype="f8", meta=np.empty(0))
    refused = REFUSED[what](dataset.assign(lazy=("i", lazy)))
    with pytest.raises(arraychest.ArrayChestError, match="expected") as caught:
        save(refused, path)
    assert isinstance(caught.value, TypeError)
    assert not os.path.exists(path)
    before = saved(dataset, path)
    with pytest.raises(type(caught.value)):
        save(refused, path, mode="w")
    check_untouched(path, before)
    assert not computed


CHANGES = {
    "unchanged": lambda d: d,
    "more": lambda d: d.assign(twice=d.height * 2, mean=d.height.mean("time")),
    "changed": lambda d: d.assign(height=d.height + 1, lat=-d.lat),
    "changed by another": lambda d: d.assign(height=d.height + d.wide.sum() + d["count"]),
    "exchanged": lambda d: d.rename(wide="long", long="wide"),
    "renamed": lambda d: d.rename(height="depth", y="line", x="column"),
    "dropped": lambda d: d.drop_vars(["height", "lat", "name"]),
    "smaller": lambda d: d.isel(y=slice(None, None, -2), x=[3, 1, 7]),
    "turned": lambda d: d.transpose(),
    "other chunks": lambda d: d.chunk(y=7, a=1000),
    "of strings": lambda d: d.assign(place=d.station, here=d.station[3]),
    "in memory": lambda d: d.compute(),
    "one": lambda d: d.height.cumsum("y"),
    "none": lambda d: xr.Dataset(),
}


SIZES = {"y": 7, "a": 1000}


def lazily(path):
    return opened(path)


def in_stored_chunks(path):
    return opened(path, chunks={})


def in_other_chunks(path):
    return opened(path, chunks={}).pipe(
        lambda d: d.chunk({k: n for k, n in SIZES.items() if k in d.dims})
    )


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("read", "compression"),
    [(lazily, None), (lazily, "zstd"), (in_stored_chunks, None), (in_other_chunks, "zstd")],
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_dataset_may_be_computed_from_the_one_that_it_replaces(
    dataset, path, change, read, compression
):
    wide = np.arange(300_000.0).reshape(3000, 100)
    dataset = dataset.assign(wide=(("a", "b"), wide), long=(("a", "b"), -wide))
    before = saved(dataset, path, compression=compression)
    found, changed = read(path), CHANGES[change](read(path))
    right = changed.to_dataset() if isinstance(changed, xr.DataArray) else changed
    right = right.compute()
    save(changed, path, mode="w", compression=compression)
    check_replaced(path, right)
    xr.testing.assert_identical(found.load(), before)
    # Of blocked arrays, if there are now.
    save(read(path) if right.sizes else opened(path), path, mode="w", compression=compression)
    check_replaced(path, right)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_any_scheduler_reads_the_old_dataset_while_the_new_one_is_written(path, scheduler):
    made = {
        "sync": lambda: ThreadPoolExecutor(1),
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
    }
    x = np.arange(120_000.0).reshape(400, 300)
    with made[scheduler]() as pool, dask.config.set(scheduler=scheduler, pool=pool):
        save(xr.DataArray(da.from_array(x, chunks=(150, 300)), dims=("y", "x"), name="v"), path)
        for n in (1, 2):
            found = opened(path, chunks={})
            save(found + found.v.sum() * 0 + 1, path, mode="w")
            assert np.array_equal(opened(path).v.values, x + n)


def broken(dataset):
    """A dataset of which the last variable cannot be computed to its end."""

    def fail(block, block_id):
        if block_id == (3,):
            raise ZeroDivisionError("no such block")
        return block

    lazy = da.arange(4000, chunks=1000).map_blocks(fail, dtype="i8", meta=np.empty(0, "i8"))
    return (dataset * 2).assign(a=("j", da.ones(4000, chunks=1000)), z=("j", lazy))


def test_what_fails_amid_the_writing_leaves_the_old_dataset_and_nothing_else(path):
    dataset = xr.Dataset({"x": ("i", np.arange(40_000.0))}, attrs={"n": 1})
    before = saved(dataset, path)
    for chunks in (None, {}):
        with dask.config.set(scheduler="sync"), pytest.raises(ZeroDivisionError):
            save(broken(opened(path, chunks=chunks)), path, mode="w")
        check_untouched(path, before)
        assert not os.path.isdir(f"{path}/unfinished") or not os.listdir(f"{path}/unfinished")
    save(before + 1, path, mode="w")
    check_replaced(path, before + 1)


def test_on_a_full_disk_the_old_dataset_stays(path):
    dataset = xr.Dataset({"x": ("i", np.arange(40_000.0)), "z": ("i", np.arange(40_000))})
    before = saved(dataset, path)
    found = opened(path, chunks={"i": 15_000})
    for name in ("write", "writev", faults.RESERVING, "sql COMMIT"):
        action = faults.Failing(errno.ENOSPC, name)
        with dask.config.set(scheduler="sync"), faults.injected(action):
            try:
                save(found + 1, path, mode="w")
            except arraychest.SpillError:
                assert action.hits
            else:
                assert not action.hits
                save(before, path, mode="w")
                with arraychest.open(path) as chest:
                    chest["other"] = np.arange(5)
        check_untouched(path, before)
    save(found + 1, path, mode="w")
    check_replaced(path, before + 1)


def test_more_than_max_disk_is_refused_and_the_old_dataset_stays(path):
    before = saved(xr.Dataset({"x": ("i", np.arange(40_000.0))}), path)
    more = before.assign(y=("j", np.arange(200_000.0)))
    for each in (more, more.chunk(j=60_000)):
        with pytest.raises(arraychest.QuotaError):
            save(each, path, mode="w", max_disk="1 MiB")
        check_untouched(path, before)
    save(more, path, mode="w", max_disk="4 MiB")
    check_replaced(path, more)


def new_of(path):
    """What replaces a dataset in the tests of crashes: computed from it, plain, packed, blocked."""
    found = opened(path)
    lazy = found.x.chunk(i=15_000) + 1
    return found.assign(w=("i", np.ones(40_000)), lazy=lazy, y=found.y * 2).drop_vars("x")


def strike(path, at, act):
    """Save over what is there; at some operation something happens.  Returns their number."""

    def may_raise(name, args):
        # Not a finalizer, which closes, and no other thread: nobody hears what they raise.
        return name != "close" and threading.current_thread() is threading.main_thread()

    action = faults.Countdown(at, act, only=may_raise)
    with dask.config.set(scheduler="sync"), faults.injected(action):
        save(new_of(path), path, mode="w")
    return action.count


def check_old_or_new(path, old, new):
    found = opened(path).load()
    if "x" in found:
        check_untouched(path, old)
    else:
        check_replaced(path, new)
    return "x" in found


def places(of, some):
    return range(1, of + 1, max(of // some, 1))


@pytest.mark.parametrize("some", [12, pytest.param(10_000, marks=pytest.mark.stress)])
@pytest.mark.parametrize("act", ["die", "interrupt"])
def test_a_save_that_is_ended_anywhere_leaves_the_old_dataset_or_the_new(tmp_path, act, some):
    dataset = xr.Dataset({"x": ("i", np.arange(40_000.0)), "y": ("j", np.arange(3))})

    def prepared(name):
        path = f"{tmp_path}/{name}"
        return path, saved(dataset, path), new_of(path).compute(scheduler="sync")

    path, _, new = prepared("whole")
    count = strike(path, 0, lambda: None)
    check_replaced(path, new)
    seen = []
    for at in places(count, some):
        path, old, new = prepared(str(at))
        if act == "die":
            outcome = faults.in_child(lambda say, path=path, at=at: strike(path, at, faults.die))
            assert outcome.signal == 9, outcome.error
        else:
            with pytest.raises(KeyboardInterrupt):
                strike(path, at, faults.raising(KeyboardInterrupt))
        seen.append(check_old_or_new(path, old, new))
        save(old, path, mode="w")
        check_replaced(path, old)
    assert seen[0]


def test_a_chest_that_is_open_elsewhere_is_saved_to(dataset, path):
    before = saved(dataset.drop_vars(["name", "station"]), path)
    with arraychest.open(path) as other, arraychest.open(path, "r") as reader:
        first, found = opened(path, chunks={}), opened(path)
        views = reader[("variable", "height")], other[("variable", "height")]
        save((first.drop_vars("count") + 1).compute(), path, mode="w")
        second = opened(path, chunks={})
        # What dask keeps by name must not be taken for another.
        assert first.height.data.name != second.height.data.name
        assert (first.height + 1).data.name != (second.height + 1).data.name
        assert np.array_equal(second.height, before.height + 1)
        for view in views:
            assert np.array_equal(view, before.height)
        assert np.array_equal(reader[("variable", "height")], before.height + 1)
        assert np.array_equal(other[("variable", "height")], before.height + 1)
        assert "other" not in other
        assert ("variable", "count") not in reader
    xr.testing.assert_identical(found.load(), before)
    xr.testing.assert_identical(first.load(), before)


def test_a_dataset_that_is_replaced_while_it_is_opened_is_not_one_half_of_each(path, monkeypatch):
    old = xr.Dataset({"a": ("x", np.zeros(3)), "b": ("x", np.zeros(20_000)[:3])})
    new = xr.Dataset({"a": ("x", np.ones(3)), "b": ("x", np.ones(3))})
    save(old, path)
    variable = reading.variable_in
    then = [new, new.drop_vars("b"), new.isel(x=[1])]

    def replace_first(*args):
        found = variable(*args)
        if then:
            save(then.pop(0), path, mode="w")
        return found

    monkeypatch.setattr(reading, "variable_in", replace_first)
    xr.testing.assert_identical(opened(path).load(), new.isel(x=[1]))
    assert not then


def test_two_that_save_to_one_folder_take_turns(path):
    first = xr.Dataset({"a": ("x", np.zeros(4)), "c": ("x", np.zeros(4))})
    second = first.rename(a="b") + 1
    save(first, path)

    with ThreadPoolExecutor(1) as pool:
        others = []

        def compute(block):
            others.append(pool.submit(save, second, path, mode="w"))
            with pytest.raises(TimeoutError):
                others[-1].result(timeout=0.3)
            return block

        lazy = da.ones(4, chunks=4).map_blocks(compute, dtype="f8", meta=np.empty(0))
        save(first.assign(lazy=("x", lazy)), path, mode="w")
        others[0].result()
    check_replaced(path, second)


def test_a_dataset_that_is_opened_while_others_save_is_one_of_theirs(path):
    def dataset(n):
        names = "abc" if n % 2 else "abd"
        return xr.Dataset({name: ("x", np.full(20_000 + n, n)) for name in names}, attrs={"n": n})

    save(dataset(0), path)
    ended = threading.Event()
    seen = []

    def read():
        while not ended.is_set() or len(seen) < 2:
            found = opened(path)
            xr.testing.assert_identical(found.load(), dataset(found.attrs["n"]))
            seen.append(found.attrs["n"])

    def write(first):
        for n in range(first, first + 15):
            save(dataset(n), path, mode="w")
        return first + 14

    with ThreadPoolExecutor(3) as pool:
        reading = pool.submit(read)
        try:
            lasts = [each.result() for each in [pool.submit(write, n) for n in (100, 201)]]
        finally:
            ended.set()
        reading.result()
    found = opened(path)
    assert found.attrs["n"] in lasts
    check_replaced(path, dataset(found.attrs["n"]))


def test_where_no_dataset_can_be_read_the_folder_is_treated_as_by_a_chest(dataset, path):
    right = dataset.drop_vars("station")
    save(right, path, mode="w")  # there is no such folder
    check_replaced(path, right)
    os.mkdir(f"{path}-empty")
    save(right, f"{path}-empty", mode="w")
    check_replaced(f"{path}-empty", right)
    # A chest that is damaged holds no dataset, and is emptied.
    for damage in (b"not a catalog" * 100, b""):
        with open(f"{path}/catalog.sqlite", "wb") as file:
            file.write(damage)
        with pytest.raises(arraychest.ValueTypeError):
            save(right.assign_attrs(a=object()), path, mode="w")
        with open(f"{path}/catalog.sqlite", "rb") as file:
            assert file.read() == damage
        save(right, path, mode="w")
        check_replaced(path, right)
    foreign = f"{path}-foreign"
    os.mkdir(foreign)
    with open(f"{foreign}/thesis.txt", "w") as file:
        file.write("all of it")
    with pytest.raises(arraychest.ChestFormatError):
        save(right, foreign, mode="w")
    assert os.listdir(foreign) == ["thesis.txt"]
