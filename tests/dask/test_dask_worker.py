"""`WorkerChest` as dask's workers use it: the mapping and the protocol, without a cluster.

dask's own tests of its spill buffer and of the worker's memory manager are not part of its wheel.
What they show is shown here and in `test_dask_cluster`, in our own words, but for

- the compression of spilled bytes (``distributed.worker.memory.spill-compression``): ours is
  `compression`, and off, because a compressed result cannot be mapped;
- metrics of compression and decompression, for the same reason;
- names of spill files that are made of keys: ours are numbers, and no key is too long for them;
- that a result which cannot be pickled keeps older ones from being spilled: it is passed over;
- that a result which was read back is written again when it leaves RAM: its file was kept;
- a plain dict, or none of the three thresholds, in the place of the spill buffer; a limit that is
  parsed; a worker that is paused by hand; a leaking task that the nanny ends: nothing of it is in
  the mapping.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.config
from dask.sizeof import sizeof

from arraychest.dask import WorkerChest, settings
from arraychest.dask.pages import MappedPages, resident_bytes
from tests.support import fill_disk, listing

LARGE = 1 << 20  # bytes of a value that has a file of its own
MakeChest = Callable[..., WorkerChest]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeChest]:
    """Make chests that keep all in RAM until told otherwise, and check their books at the end."""
    made: list[WorkerChest] = []

    def make(folder: object = tmp_path, **options: Any) -> WorkerChest:
        options = {"target": "1 TiB", "max_spill": False, **options}
        made.append(WorkerChest(str(folder), **options))
        return made[-1]

    yield make
    for data in made:
        check(data)
        data.close()
        assert not os.path.exists(data._files.folder)


@pytest.fixture
def data(make: MakeChest) -> WorkerChest:
    return make()


def check(data: WorkerChest) -> None:
    """What the mapping says of itself adds up."""
    data.flush()
    assert not data._leaving
    assert not data.fast.keys() & data.slow.keys()
    assert list(data) == [*data.fast, *data.slow]
    assert len(data) == len(data.fast) + len(data.slow)
    assert data._charged == sum(data._weights.values())
    assert data._weights.keys() == data.fast.keys()
    assert data._clean.keys() <= data.fast.keys()
    files = [*data.slow.values(), *data._clean.values()]
    memory, disk = data.spilled_total
    assert memory == sum(stored.memory for stored in data.slow.values())
    assert disk == sum(stored.disk for stored in files)
    if not data._files.closed:
        assert len(data._files._chest or ()) == len(files)


def spill_all(data: WorkerChest) -> None:
    while data.fast:
        assert data.evict() >= 0
    data.flush()


def let_go(data: WorkerChest) -> None:
    """Return once nobody has a spilled result any more; the writer thread may a moment longer."""
    until = time.monotonic() + 5
    while data._held and time.monotonic() < until:
        time.sleep(0.001)
    assert not data._held


def stored_files(data: WorkerChest) -> list[str]:
    return [
        name for name in listing(data._files.folder) if name.startswith("data/") and "." in name
    ]


def written(data: WorkerChest) -> float:
    return data.cumulative_metrics["disk-write", "count"]


def large(value: int = 0) -> np.ndarray:
    return np.full(LARGE // 8, value, np.int64)


class Unpicklable:
    def __init__(self, size: int = 100) -> None:
        self.size = size

    def __sizeof__(self) -> int:
        return self.size

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise ZeroDivisionError("not me")


class Plain:
    """Can be referred to weakly."""

    def __init__(self, what: Any) -> None:
        self.what = what


# --- values -----------------------------------------------------------------------------------


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


ARRAYS = {
    "C": np.arange(300_000.0).reshape(300, 1000),
    "Fortran": np.asfortranarray(np.arange(300_000.0).reshape(300, 1000)),
    "small": np.arange(6).reshape(2, 3),
    "0-d": np.array(3.5),
    "empty": np.empty((0, 3)),
    "read-only": _frozen(np.arange(200_000)),
    "small, read-only": _frozen(np.arange(2)),
    "view": np.arange(400_000)[1000:300_000],
    "strided": np.arange(600_000).reshape(600, 1000)[::2, 1::3],
    "reversed": np.arange(200_000)[::-1],
    "axes moved": np.arange(240_000).reshape(20, 30, 400).transpose(1, 0, 2),
    "repeated": np.broadcast_to(np.arange(5), (1000, 1000, 5)),
    "repeated once": np.broadcast_to(np.float32(1), (1 << 12, 1 << 10)),
    "bool": np.arange(100_000) % 3 == 0,
    "complex": np.arange(100_000) * (1 + 2j),
    "long double": np.arange(50_000, dtype=np.longdouble),
    "half": np.arange(2000, dtype=np.float16),
    "big-endian": np.arange(100_000, dtype=">i4"),
    "time": np.arange(100_000).astype("M8[ns]"),
    "text": np.array(["a", "äß", ""] * 10_000),
    "bytes": np.array([b"a", b"b\0c"] * 10_000),
    "StringDType": np.array(["a", "long" * 10], dtype=np.dtypes.StringDType()),
    "structured": np.zeros(30_000, [("a", "i4"), ("b", "f8", 3)]),
    "dtype with metadata": np.zeros(9, np.dtype("f8", metadata={"unit": "m"})),
    "objects": np.array([None, 1, "x", [2]], object),
    "masked": np.ma.masked_array(np.arange(50_000), np.arange(50_000) % 2),
    "record": np.zeros(3, [("a", "i4")]).view(np.recarray),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_as_it_was(data, name):
    value = ARRAYS[name]
    data["x"] = value
    weight = sizeof(value)
    assert data.evict() == weight
    data.flush()
    assert data.spilled_total.memory == weight
    assert data.spilled_total.disk < 1.2 * sizeof(value) + 2000
    del data._held["x"]
    found = data["x"]
    assert found is not value
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert found.dtype.metadata == value.dtype.metadata
    assert found.shape == value.shape
    assert np.array_equal(found, value)
    assert np.ma.isMaskedArray(value) or found.flags.writeable == value.flags.writeable
    if value.flags.forc:
        assert found.flags.f_contiguous == value.flags.f_contiguous
    if np.ma.isMaskedArray(value):
        assert np.array_equal(found.mask, value.mask)


def by_value() -> Any:
    offset = 3
    return lambda x: x + offset


OBJECTS = {
    "None": None,
    "number": 7,
    "text": "x" * 300_000,
    "bytes": b"x" * 300_000,
    "bytearray": bytearray(b"x") * 300_000,
    "decimal": decimal.Decimal("1.5"),
    "scalar": np.float32(2.5),
    "list": [1, "a", [None]],
    "set": {1, (2, 3)},
    "empty list": [],
    "class": Plain,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_any_object_comes_back(data, name):
    value = OBJECTS[name]
    data["x"] = value
    assert data.evict() == sizeof(value)
    found = data["x"]
    assert type(found) is type(value)
    assert found == value


def test_what_only_cloudpickle_takes_comes_back(data):
    data["f"] = by_value()
    array = np.arange(100_000)
    data["g"] = (by_value(), array[::2], np.broadcast_to(1.0, (1 << 15, 1 << 15)))
    spill_all(data)
    assert data.spilled_total.disk < array.nbytes
    assert data["f"](4) == 7
    function, half, ones = data["g"]
    assert function(4) == 7
    assert np.array_equal(half, array[::2])
    assert ones.shape == (1 << 15, 1 << 15)
    assert ones.strides == (0, 0)


def test_arrays_deep_inside_objects_are_neither_copied_nor_read(data):
    arrays = [large(number) for number in range(4)]
    arrays[2].flags.writeable = False
    value = Plain({"a": [arrays[0], (arrays[1],)], "b": Plain(arrays[2]), "c": arrays[3][::2]})
    data["x"] = value
    spill_all(data)
    del value
    let_go(data)
    found = data["x"]
    assert "x" in data.slow  # nothing of it is in RAM
    inside = [found.what["a"][0], found.what["a"][1][0], found.what["b"].what, found.what["c"]]
    assert [array.flags.writeable for array in inside] == [True, True, False, True]
    for array, expected in zip(inside, [*arrays[:3], arrays[3][::2]], strict=True):
        assert np.array_equal(array, expected)


@pytest.mark.slow
def test_many_arrays_in_one_result(data):
    value = [np.full(number % 7, number) for number in range(20_000)]
    data["x"] = value
    spill_all(data)
    assert all(map(np.array_equal, data["x"], value))


def test_frames_of_pandas(data):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "number": np.arange(100_000.0),
            "text": [f"row {number}" for number in range(100_000)],
            "kind": pandas.Categorical(["a", "b"] * 50_000),
            "time": pandas.date_range("2026-01-01", periods=100_000, freq="s"),
        }
    )
    data["frame"] = frame
    data["numbers"] = numbers = frame[["number"]].copy()
    spill_all(data)
    pandas.testing.assert_frame_equal(data["frame"], frame)
    del data._held["numbers"]
    found = data["numbers"]
    assert "numbers" in data.slow
    pandas.testing.assert_frame_equal(found, numbers)
    found.loc[0, "number"] = -1.0
    assert found.loc[0, "number"] == -1.0


# --- what tasks see ---------------------------------------------------------------------------


def test_a_result_is_shared_and_not_frozen(data):
    array = large()
    data["x"] = array
    assert data["x"] is array
    assert array.flags.writeable
    spill_all(data)
    assert array.flags.writeable
    assert data["x"] is array  # not a second one beside it
    array[0] = 5
    assert data["x"][0] == 5


def test_what_a_task_writes_to_a_result_stays_with_those_that_have_it(data):
    data["x"] = large(1)
    spill_all(data)
    let_go(data)
    first = data["x"]
    first[:] = 2
    assert data["x"] is first
    alone = first
    del first
    assert (alone == 2).all()
    del alone
    let_go(data)
    assert (data["x"] == 1).all()  # as it was when it was written


def test_a_task_may_return_what_it_was_given(data):
    data["x"] = large(1)
    spill_all(data)
    data["same"] = data["x"]
    data["part"] = data["x"][1000:]
    data["changed"] = changed = data["x"]
    changed += 1
    del changed
    spill_all(data)
    del data["x"]
    gc.collect()
    for name in ("same", "changed"):
        assert (data[name] == 2).all()
    assert (data["part"] == 2).all()
    assert data["part"].shape == (LARGE // 8 - 1000,)


def test_a_result_outlives_its_key_and_later_files(data):
    data["x"] = large(1)
    spill_all(data)
    found = data["x"]
    del data["x"]
    for number in range(10):
        data[number] = large(number + 2)
        spill_all(data)
        del data[number]
    data.close()
    assert (found == 1).all()


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, "text", (large(),)], ids=type)
def test_what_cannot_be_referred_to_weakly_counts_as_in_ram_once_read(data, value):
    data["x"] = value
    spill_all(data)
    assert data.fast == {}
    found = data["x"]
    assert "x" in data.fast
    assert data["x"] is found
    assert data.spilled_total.memory == 0
    assert data.spilled_total.disk > 0
    before = written(data)
    assert data.evict() == sizeof(value)
    assert written(data) == before
    assert not data.fast


def test_a_read_result_is_a_map_until_nobody_has_it(data):
    data["x"] = large(3)
    spill_all(data)
    let_go(data)
    found = data["x"]
    assert "x" in data.slow
    assert data._pages.nbytes > LARGE
    died = weakref.ref(found)
    del found
    assert died() is None
    assert data._pages.nbytes == 0
    assert (data["x"] == 3).all()


def test_compressed_results_come_back_in_ram_and_count(make):
    data = make(compression="zstd")
    array = np.arange(LARGE).reshape(1024, -1)
    data["x"] = array.copy()
    data["y"] = [array.copy()]
    spill_all(data)
    assert data.spilled_total.disk < 2 * array.nbytes
    assert type(data["x"]) is np.ndarray
    assert data["x"].flags.writeable
    assert np.array_equal(data["x"], array)
    assert np.array_equal(data["y"][0], array)
    assert data.fast.keys() == {"x", "y"}


# --- the mapping ------------------------------------------------------------------------------


def test_it_is_an_empty_mapping_that_has_no_folder_until_it_spills(data):
    assert not data
    assert len(data) == 0
    assert not data.fast
    assert not data.slow
    assert data.evict() == -1
    assert data.spilled_total == (0, 0)
    assert not os.path.exists(data._files.folder)
    data["x"] = 1
    assert data.fast
    assert not os.path.exists(data._files.folder)


def test_keys(data):
    keys = ["x", ("x", 0, 1), b"x", 1, 2.5, ("y" * 5000, 3), "a/../b\0", frozenset({1})]
    for number, key in enumerate(keys):
        data[key] = number
    spill_all(data)
    assert list(data) == keys
    assert [data[key] for key in keys] == list(range(len(keys)))
    assert "absent" not in data
    with pytest.raises(KeyError):
        data["absent"]
    with pytest.raises(KeyError):
        del data["absent"]
    data.discard("absent")
    data.clear()
    assert not data
    check(data)


def test_pop_is_refused(data):
    data["x"] = 1
    with pytest.raises(NotImplementedError, match="del"):
        data.pop("x", None)
    assert data["x"] == 1


@pytest.mark.parametrize("spilled", [False, True])
@pytest.mark.parametrize("read", [False, True])
def test_a_result_is_replaced(data, spilled, read):
    data["x"] = [large(1)]
    if spilled:
        spill_all(data)
    if read:
        assert data["x"]
    data["x"] = new = large(2)
    assert data.spilled_total == (0, 0)
    assert data["x"] is new
    spill_all(data)
    del new
    let_go(data)
    assert (data["x"] == 2).all()


def test_deleting_removes_the_files(data):
    for number in range(8):
        data[number] = large(number)
    spill_all(data)
    kept = data[3]
    for number in range(8):
        del data[number]
    assert data.spilled_total == (0, 0)
    data._files._chest.flush()
    until = time.monotonic() + 5
    left = ["all"]
    while left and time.monotonic() < until:
        time.sleep(0.01)
        with contextlib.suppress(FileNotFoundError):  # gone while it was listed
            left = stored_files(data)
    assert not left
    assert (kept == 3).all()


def test_closed_it_keeps_what_is_in_ram(data):
    data["spilled"] = 1
    spill_all(data)
    data["x"] = 2
    data.close()
    data.close()
    data["y"] = 3
    assert data.evict() == -1
    assert (data["x"], data["y"]) == (2, 3)
    del data["spilled"]
    data._slow.clear()


# --- the target -------------------------------------------------------------------------------


def test_the_least_recently_used_leave_first(make):
    value = "x" * 100
    weight = sizeof(value)
    data = make(target=2 * weight)
    for key in "ab":
        data[key] = key * 100
    assert data.spilled_total == (0, 0)
    assert data["a"] == "a" * 100  # used now
    data["c"] = "c" * 100
    assert list(data.fast) == ["a", "c"]
    assert list(data.slow) == ["b"]
    assert data.spilled_total.memory == weight
    data.flush()
    assert data["b"] == "b" * 100  # and is in RAM again, in the place of another
    assert list(data.fast) == ["c", "b"]
    assert data.spilled_total.memory == weight
    data.flush()
    disk = data.spilled_total.disk
    del data["c"]
    assert list(data.slow) == ["a"]  # a deletion brings nothing back
    del data["a"]
    assert data.spilled_total.memory == 0
    assert 0 < data.spilled_total.disk < disk  # b's file is there still
    del data["b"]
    assert data.spilled_total == (0, 0)


def test_what_exceeds_the_target_alone_leaves_at_once(make):
    data = make(target=LARGE // 2)
    data["small"] = b"x" * 1000
    data["x"] = large(1)
    assert list(data.fast) == ["small"]
    assert list(data.slow) == ["x"]
    data["y"] = [large(2)]
    assert data["y"][0][0] == 2  # is made anew at each get: it has no room in RAM
    assert list(data.fast) == ["small"]


def test_evicting_what_was_read_back_writes_nothing(data):
    for number in range(5):
        data[number] = [large(number)]
    spill_all(data)
    files = listing(data._files.folder)
    for _ in range(3):
        for number in range(5):
            assert data[number][0][0] == number
        assert len(data.fast) == 5
        spill_all(data)
    assert written(data) == 5
    assert listing(data._files.folder).keys() == files.keys()


def test_target_and_limits_come_from_dasks_configuration(tmp_path):
    limit = 1000
    with dask.config.set({"distributed.worker.memory.target": 0.6}):
        assert settings.target(None, limit) == 600
        assert settings.target(0.25, limit) == 250
        assert settings.target("1 kiB", limit) == 1024
        assert settings.target(None, None) > 1 << 60
        with dask.config.set({"arraychest.worker.target": 0.5}):
            assert settings.target(None, limit) == 500
            assert settings.target("2 kiB", limit) == 2048
    with dask.config.set({"distributed.worker.memory.target": False}):
        assert settings.target(None, limit) > 1 << 60
    assert settings.max_spill(None) is None
    assert settings.max_spill("1 MB") == 1_000_000
    with dask.config.set({"distributed.worker.memory.max-spill": "2 MB"}):
        assert settings.max_spill(None) == 2_000_000
        assert settings.max_spill(False) is None
        with dask.config.set({"arraychest.worker.max-spill": 5}):
            assert settings.max_spill(None) == 5
        with dask.config.set({"arraychest.worker.max-spill": False}):
            assert settings.max_spill(None) is None
    # Between where dask spills and where it pauses.
    assert settings.release_limit(None) is None
    assert settings.release_limit(1000) == 750
    with dask.config.set({"distributed.worker.memory.pause": False}):
        assert 700 < settings.release_limit(1000) < 950


# --- what goes wrong --------------------------------------------------------------------------


def test_what_cannot_be_pickled_and_exceeds_the_target_is_refused(make):
    data = make(target=1000)
    data["x"] = 1
    with pytest.raises(ZeroDivisionError, match="not me"):
        data["bad"] = Unpicklable(2000)
    assert list(data) == ["x"]


def test_what_cannot_be_pickled_stays_and_others_leave(make, caplog):
    data = make(target=1000)
    with caplog.at_level(logging.ERROR, "distributed.spill"):
        data["bad"] = bad = Unpicklable(400)
        data["x"] = "x" * 300
        data["y"] = "y" * 500
        assert list(data.fast) == ["bad"] or list(data.fast) == ["bad", "y"]
        spilled = [*data.slow]
        assert "x" in spilled
        while len(data.fast) > 1:
            assert data.evict() > 0
        assert data.evict() == -1
        assert data.evict() == -1
    assert data["bad"] is bad
    assert len(caplog.records) == 1  # said once
    assert "Failed to pickle 'bad'" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    del data["bad"]
    data["bad"] = Unpicklable(1)
    assert data.evict() == -1
    data["bad"] = 3
    assert data.evict() > 0


def test_max_spill(make, caplog):
    data = make(target=2 * LARGE, max_spill=3 * LARGE + 10_000)
    for number in range(8):
        data[number] = large(number)
    assert list(data.slow) == [0, 1, 2]
    assert data.evict() == -1
    assert "max-spill is reached" in caplog.text
    data[1]  # its file still counts
    assert data.evict() == -1
    del data[1]
    assert data.evict() == LARGE
    assert list(data.slow) == [0, 2, 3]
    for number in list(data):
        assert (data[number] == number).all()


def test_a_full_disk_keeps_results_in_ram(make, tiny_disk, caplog):
    data = make(tiny_disk, target=LARGE)
    for number in range(12):
        data[number] = large(number)
    assert 2 <= len(data.slow) <= 8
    assert "stays in RAM" in caplog.text
    assert data.evict() == -1
    for number in range(12):
        assert (data[number] == number).all()
    check(data)
    # As soon as there is room they leave.
    for number in list(data.slow):
        del data[number]
    until = time.monotonic() + 5
    while data.evict() < 0 and time.monotonic() < until:
        time.sleep(0.01)  # the files go a moment later
    data["new"] = large(99)
    assert len(data.fast) < 12 - 2
    for number in list(data):
        assert (data[number] == (99 if number == "new" else number)).all()


def test_a_disk_that_is_full_from_the_start(make, tiny_disk):
    fill_disk(tiny_disk)
    data = make(tiny_disk, target=LARGE)
    for number in range(4):
        data[number] = large(number)
    assert len(data.fast) == 4
    (tiny_disk / "filler").unlink()
    assert data.evict() > 0
    data[4] = large(4)
    assert len(data.slow) >= 3
    assert (data[0] == 0).all()


def test_a_folder_that_was_taken_away(make, tmp_path, caplog):
    import shutil

    folder = tmp_path / "worker"
    folder.mkdir()
    data = make(folder)
    data["x"] = large(1)
    data["y"] = large(2)
    assert data.evict() > 0
    found = data["x"]
    # Until nothing is left: the thread that writes may be at work.
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    assert (found == 1).all()
    data.evict()
    assert (data["y"] == 2).all()
    data.close()
    data.clear()


# --- what is being written --------------------------------------------------------------------


class Gate:
    """Holds up the thread that writes."""

    def __init__(self, data: WorkerChest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.open = threading.Event()
        self.error: Exception | None = None
        store = data._files._store

        def gated(number: int, taken: Any) -> int:
            self.began.set()
            assert self.open.wait(20)
            if self.error is not None:
                raise self.error
            return store(number, taken)

        monkeypatch.setattr(data._files, "_store", gated)


def test_a_put_does_not_wait_for_what_it_spills(make, monkeypatch):
    data = make(target=20 * LARGE)
    gate = Gate(data, monkeypatch)
    for number in range(21):
        data[number] = large(number)
    assert gate.began.wait(20)
    assert list(data.slow) == [0]
    assert written(data) == 0
    assert (data[0] == 0).all()
    data[21] = large(21)
    assert list(data.slow) == [0, 1]
    assert data.spilled_total == (2 * LARGE, 2 * LARGE)
    gate.open.set()
    data.flush()
    assert written(data) == 2
    assert data.spilled_total.memory == 2 * LARGE < data.spilled_total.disk
    let_go(data)
    assert (data[1] == 1).all()


def test_what_cannot_be_referred_to_weakly_is_found_while_it_is_written(data, monkeypatch):
    gate = Gate(data, monkeypatch)
    data["x"] = value = [large(1)]
    assert data.evict() > 0
    assert gate.began.wait(20)
    assert data["x"] is value
    gate.open.set()
    data.flush()
    assert data["x"] is not value


@pytest.mark.parametrize("replaced", [False, True])
def test_a_result_is_deleted_while_it_is_written(data, monkeypatch, replaced):
    gate = Gate(data, monkeypatch)
    for key in "xyz":
        data[key] = [large(1)]
        assert data.evict() > 0
    assert gate.began.wait(20)
    for key in "xy":  # one is being written, the other waits
        if replaced:
            data[key] = [large(2)]
        else:
            del data[key]
    assert data._files.waiting_bytes == pytest.approx(LARGE, rel=0.01)
    gate.open.set()
    check(data)
    assert written(data) == 1
    if replaced:
        spill_all(data)
        assert data["x"][0][0] == data["y"][0][0] == 2
    else:
        assert list(data) == ["z"]


def test_a_put_waits_where_much_waits_to_be_written(make, monkeypatch):
    data = make(target=LARGE)
    gate = Gate(data, monkeypatch)
    data[0] = large(0)
    data[1] = large(1)
    ended = threading.Event()

    def put() -> None:
        for number in range(2, 6):
            data[number] = large(number)
        ended.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert not ended.wait(0.2)
    assert len(data.slow) == 1
    gate.open.set()
    thread.join()
    assert len(data.fast) == 1


def test_what_could_not_be_written_is_in_ram_again_and_leaves_first(data, monkeypatch, caplog):
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")
    for key in "abc":
        data[key] = large(ord(key))
    assert data.evict() == LARGE
    assert list(data.fast) == ["b", "c"]
    gate.open.set()
    data.flush()
    assert list(data.fast) == ["a", "b", "c"]
    assert data.spilled_total == (0, 0)
    assert "result 'a' could not be spilled, and stays in RAM: no more" in caplog.text
    assert data.evict() == -1  # known at once from now on
    gate.error = None
    assert data.evict() == LARGE
    assert list(data.slow) == ["a"]
    assert not any(record.exc_info for record in caplog.records)


def test_it_is_closed_while_it_writes(make, monkeypatch):
    data = make()
    gate = Gate(data, monkeypatch)
    for key in "xy":
        data[key] = [large(1)]
        assert data.evict() > 0
    assert gate.began.wait(20)
    timer = threading.Timer(0.1, gate.open.set)
    timer.start()
    data.close()
    timer.join()
    assert data["y"][0][0] == 1  # nobody has written it
    data.clear()


def test_results_larger_than_the_target_wait_for_each_other(make, monkeypatch):
    data = make(target=LARGE // 2)
    gate = Gate(data, monkeypatch)
    data[0] = large(0)
    ended = threading.Event()

    def put() -> None:
        data[1] = large(1)
        ended.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert not ended.wait(0.2)
    gate.open.set()
    thread.join()
    assert list(data.slow) == [0, 1]


def test_without_a_further_thread_results_are_written_all_the_same(data, monkeypatch):
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for key in "xyz":
        data[key] = large(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert data.evict() == LARGE
        check(data)
    assert written(data) == 1
    assert data.evict() == LARGE
    data.flush()
    assert written(data) == 2


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupt_while_the_thread_starts(data, monkeypatch, before):
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if not before:
            start(self)
        raise KeyboardInterrupt

    data["x"] = [large(1)]
    data["y"] = [large(2)]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.evict()
    data.flush()
    assert data["x"][0][0] == 1
    spill_all(data)
    check(data)
    assert written(data) == 2


def test_what_breaks_the_thread_leaves_nobody_waiting(data, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda about: told.set())
    discard = data._files._discard
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")

    def broken(number: int) -> None:
        monkeypatch.setattr(data._files, "_discard", discard)
        discard(number)
        raise MemoryError

    monkeypatch.setattr(data._files, "_discard", broken)
    for key in "xyz":
        data[key] = large(1)
        data.evict()
    assert gate.began.wait(20)
    del data["x"]  # its thread breaks
    gate.error = None
    gate.open.set()
    data.flush()
    assert told.wait(20)
    assert list(data.slow) == ["y", "z"]


@pytest.mark.slow
def test_many_small_results_wait(data, monkeypatch):
    monkeypatch.setattr(data._files, "_store", lambda number, taken: 1)
    monkeypatch.setattr(data._files, "_discard", lambda number: None)
    count = 20_000
    data._files._thread = threading.current_thread()  # nobody writes yet
    for number in range(count):
        data[number] = number
    while data.fast:
        data.evict()
    data._files._thread = None
    data.flush()
    assert written(data) == count
    data.clear()


def test_those_that_cannot_be_pickled_are_passed_over_however_many(data, caplog):
    for number in range(1200):
        data[number] = Unpicklable()
    data["x"] = 1
    assert data.evict() == sizeof(1)
    assert list(data.slow) == ["x"]
    assert data.evict() == -1
    assert len(caplog.records) == 1200


def test_bytes_that_are_not_in_ram_are_not_counted_as_leaving_it(data, monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(LARGE // 8))
    data["file"] = np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r"))
    data["x"] = large(1)
    spill_all(data)
    let_go(data)
    gate = Gate(data, monkeypatch)
    data["view"] = data["x"][8:]
    data["list"] = [data["x"][9:], large(2)]
    while data.fast:
        assert data.evict() > 0
    assert data._files.waiting_bytes > 2.9 * LARGE
    assert data._files.waiting_memory == pytest.approx(LARGE, rel=0.01)
    gate.open.set()
    data.flush()
    assert data._files.waiting_memory == data._files.waiting_bytes == 0


def test_a_key_is_there_at_every_moment(data, monkeypatch):
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")
    gate.open.set()
    data["x"] = large(1)
    ends = threading.Event()
    missed = []

    def look() -> None:
        while not ends.is_set():
            if "x" not in data or len(data) != 1 or list(data) != ["x"]:
                missed.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(200):
        data.evict()
    ends.set()
    thread.join()
    assert not missed


def test_results_are_written_before_dask_sees_that_the_process_has_much(make, monkeypatch):
    data = make()
    data._spill_limit = 64 * LARGE
    resident = 30 * LARGE
    monkeypatch.setattr("arraychest.dask.worker.resident_bytes", lambda: (resident, 0))
    for number in range(8):
        data[number] = large(number)
    assert not data.slow
    resident = 66 * LARGE
    data["x"] = large(9)
    assert 6 <= len(data.slow) <= 8
    assert data._files.waiting_bytes <= max(0, len(data.slow) - 2) * LARGE
    resident = 30 * LARGE
    data["y"] = large(9)
    assert data.keys() - data.slow.keys() >= {"x", "y"}


# --- from other threads -----------------------------------------------------------------------


@pytest.mark.slow
def test_threads_may_read_while_results_come_and_go(make):
    data = make(target=4 * LARGE)
    for number in range(8):
        data[number] = large(number)
    failures: list[BaseException] = []
    ends = threading.Event()

    def read() -> None:
        random = np.random.default_rng(threading.get_ident())
        try:
            while not ends.is_set():
                number = int(random.integers(8))
                if not (data[number] == number).all():
                    raise AssertionError(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(100):
        data["new", turn] = large(turn) if turn % 2 else [large(turn)]
        data.evict()
        if turn > 3:
            del data["new", turn - 3]
    ends.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_like_a_dict_whatever_happens(make):
    random = np.random.default_rng(5)
    data = make(target=6 * LARGE // 4, max_spill=8 * LARGE)
    model: dict[int, Any] = {}
    for _ in range(1500):
        key = int(random.integers(20))
        action = random.integers(8)
        if action < 3:
            size = int(random.choice([0, 10, 3000, LARGE // 32, LARGE // 8]))
            value = np.full(size, random.integers(100))
            model[key] = [value] if random.integers(3) == 0 else value
            data[key] = model[key]
        elif action < 6 and key in model:
            assert np.array_equal(data[key], model[key])
        elif action == 6 and key in model:
            del model[key], data[key]
        else:
            data.evict()
        assert data.keys() == model.keys()
    check(data)
    for key in model:
        assert np.array_equal(data[key], model[key])


# --- what the dashboard and Prometheus read ---------------------------------------------------


def test_metrics(data):
    data["x"] = array = large()
    data["y"] = [array.copy()]
    assert data["x"] is array
    spill_all(data)
    del array
    let_go(data)
    data["x"]
    data["y"]
    found = data.cumulative_metrics
    assert found["memory-read", "count"] == 1
    assert found["memory-read", "bytes"] == LARGE
    assert found["disk-write", "count"] == found["disk-read", "count"] == 2
    assert found["disk-write", "bytes"] == found["disk-read", "bytes"] > 2 * LARGE
    for label in ("disk-write", "disk-read", "serialize", "deserialize"):
        assert found[label, "seconds"] > 0
    # Prometheus' collector knows no others.
    assert {unit for _, unit in found} == {"count", "bytes", "seconds"}


# --- pages of maps ----------------------------------------------------------------------------


def test_released_pages_are_read_again_and_what_was_written_stays(data):
    size = 64 << 20
    data["x"] = np.ones(size, np.uint8)
    spill_all(data)
    let_go(data)
    found = data["x"]
    found[: size // 4] = 2
    assert int(found.sum()) == size + size // 4
    _, before = resident_bytes()
    freed = data._pages.release()
    _, after = resident_bytes()
    assert freed > size // 2
    assert before - after > size // 2
    assert (found[: size // 4] == 2).all()
    assert (found[size // 4 :] == 1).all()


def test_the_worker_sees_its_memory_without_pages_that_can_be_released(data):
    size = 64 << 20
    data["x"] = np.ones(size, np.uint8)
    spill_all(data)
    let_go(data)
    resident, _ = resident_bytes()
    data._pages.limit = resident + size // 2
    memory = data._pages.watched(lambda: resident_bytes()[0])
    found = data["x"]
    assert int(found.sum()) == size
    assert memory() < resident + size // 2
    assert int(found.sum()) == size


@pytest.mark.slow
def test_pages_are_released_while_more_is_read_than_there_may_be(data):
    size, count = 32 << 20, 8
    for number in range(count):
        data[number] = np.full(size, number, np.uint8)
    spill_all(data)
    let_go(data)
    resident, _ = resident_bytes()
    data._pages.limit = resident + 2 * size
    found = [data[number] for number in range(count)]
    peaks = []
    for _ in range(20):
        for number, array in enumerate(found):
            assert array.max() == number
            peaks.append(resident_bytes()[0] - resident)
    assert np.median(peaks) < 5 * size
    assert any(thread.name == "arraychest-pages" for thread in threading.enumerate())
    del found, array  # and the thread ends, as it does in `nothing_left_behind`


def test_without_a_limit_no_page_is_released():
    pages = MappedPages()
    assert pages.watched(lambda: 1 << 50)() == 1 << 50
    assert pages.release() >= 0
