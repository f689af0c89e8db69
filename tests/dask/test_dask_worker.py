"""`WorkerChest` as dask's workers use it: the mapping and the protocol, without a cluster.

How results leave RAM, `test_dask_spilling` shows.

dask's own tests of its spill buffer and of the worker's memory manager are not part of its wheel.
What they show is shown here and in `test_dask_cluster`, in our own words, but for

- metrics of compression and decompression: they are part of writing and reading;
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
import os
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed")

from dask.sizeof import sizeof

from arraychest.dask.pages import MappedPages, resident_bytes
from tests.dask.support import LARGE, Plain, check, large, let_go, spill_all, stored_files, written

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
    assert data.fast is data.memory
    assert data.slow is data.disk
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


def test_what_is_in_ram_and_on_disk_may_be_looked_through_while_others_get(data):
    for number in range(2000):
        data[number] = number
    for _ in range(1000):
        data.evict()
    ends = threading.Event()
    turns: list[int] = []

    def use() -> None:
        while not ends.is_set():
            for number in range(1000, 2000):
                data[number]  # is the most recently used one now
            data["more"] = data[0]  # takes it back into RAM
            del data["more"]
            turns.append(1)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(100):
            for view in (data.fast, data.slow):
                for key in view:
                    assert key != "absent"
                assert len([*view.items()]) == pytest.approx(1000, abs=10)
                assert len([*view.values()]) == pytest.approx(1000, abs=10)
                assert len(view.keys()) == pytest.approx(1000, abs=10)
                assert str(view).startswith("{")
    finally:
        ends.set()
        thread.join()
    assert turns
    with pytest.raises(TypeError):
        data.fast["x"] = 1
    assert data.fast[1500] == 1500
    assert 1500 not in data.slow


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
