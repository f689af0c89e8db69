"""dask arrays stored block by block, and results of dask kept from one compute to the next."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import arraychest
from arraychest.errors import ArrayChestError, QuotaError, SpillError, ValueTypeError
from tests.dask.test_dask_cluster import environment
from tests.engine.test_blocked import folders, unfinished
from tests.support import audit, fill_disk

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


from arraychest.dask import append, caching, persist, store  # noqa: E402
from arraychest.integrations import dask_arrays  # noqa: E402
from arraychest.integrations.dask_storing import _Storing  # noqa: E402

ARRAY = np.add.outer(np.arange(60.0), np.arange(50.0) / 7)
CHUNKS = ((20, 30, 10), (25, 25))


@pytest.fixture(autouse=True)
def synchronous():
    """In this very thread, unless a test says otherwise; and no array stays open behind it."""
    with dask.config.set(scheduler="sync"):
        yield
    dask_arrays._opened.cache_clear()


class Counted:
    """Counts how often each block is computed, in this process; fails at those in `bad`."""

    def __init__(self, bad=()):
        self.runs = []
        self.bad = set(bad)

    def __call__(self, block, block_info=None):
        where = tuple(block_info[0]["chunk-location"])
        if where in self.bad:
            raise ZeroDivisionError(where)
        self.runs.append(where)
        return block + 1

    def __dask_tokenize__(self):
        return "counted"


def counted(calls, array=ARRAY, chunks=CHUNKS):
    return da.from_array(array, chunks, name="numbers").map_blocks(
        calls, dtype=array.dtype, meta=array[:0, :0]
    )


def write_twice(block, folder):
    """Say in a folder of all processes that a block was computed."""
    with open(f"{folder}/{os.getpid()}-{time.monotonic_ns()}", "x"):
        return block * 2


# --- store ----------------------------------------------------------------------------------------


def test_what_is_stored_is_what_is_computed(path):
    with arraychest.open(path) as chest:
        x = da.from_array(ARRAY, CHUNKS)
        assert store(x * 2, chest, "x") is None
        found = chest["x"]
        assert type(found) is arraychest.BlockedArray
        assert found.chunks == CHUNKS
        np.testing.assert_array_equal(found, ARRAY * 2)
        assert chest.entry("x").kind == "blocked"
        assert unfinished(path) == []
        del found
    audit(path)


def test_on_threads_and_in_processes_too(path, tmp_path, resource_tracker):
    done = tmp_path / "done"
    done.mkdir()
    x = da.from_array(ARRAY, CHUNKS).map_blocks(write_twice, str(done), dtype=float)
    with arraychest.open(path, compression="lz4", compress_above=0) as chest:
        with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool):
            store(x, chest, "threads", scheduler="threads")
        with dask.config.set({"multiprocessing.context": "fork"}):
            store(x, chest, "processes", scheduler="processes", num_workers=2)
        pids = {name.partition("-")[0] for name in os.listdir(done)}
        assert len(pids - {str(os.getpid())}) >= 1
        for key in ("threads", "processes"):
            np.testing.assert_array_equal(chest[key], ARRAY * 2)
        assert chest.verify().ok
    audit(path)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (4, 0, 2), (1,)])
def test_an_array_of_nothing_or_of_no_dimension_is_stored(chest, shape):
    array = np.full(shape, 7, np.int16)
    stored = store(da.from_array(array, chunks=-1), chest, "x", return_stored=True)
    assert (stored.shape, stored.dtype) == (shape, array.dtype)
    for found in (stored.compute(), np.asarray(chest["x"])):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    np.testing.assert_array_equal((chest["x"] + 1).sum(), (array + 1).sum())


def test_what_is_stored_is_returned_as_a_dask_array(path):
    calls = Counted()
    with arraychest.open(path) as chest:
        stored = store(counted(calls), chest, "x", return_stored=True)
        assert stored.chunks == CHUNKS
        assert len(calls.runs) == 6
        np.testing.assert_array_equal(stored[10:50, 20:30].compute(), ARRAY[10:50, 20:30] + 1)
        np.testing.assert_allclose(stored.sum().compute(), (ARRAY + 1).sum())
        # What is computed of it computes nothing twice.
        assert len(calls.runs) == 6
        assert len(pickle.dumps(stored)) < 20_000


@pytest.mark.parametrize("return_stored", [False, True])
def test_what_is_not_computed_at_once_is_stored_when_it_is(path, return_stored):
    calls = Counted()
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(2)
        later = store(counted(calls), chest, "x", compute=False, return_stored=return_stored)
        assert calls.runs == []
        assert chest["x"].shape == (2,)
        found = later.compute()
        if return_stored:
            assert later.chunks == CHUNKS
            np.testing.assert_array_equal(found, ARRAY + 1)
        np.testing.assert_array_equal(chest["x"], ARRAY + 1)
        assert len(calls.runs) == 6
        # Once more, as whoever has the graph may.
        later.compute()
        np.testing.assert_array_equal(chest["x"], ARRAY + 1)
        dask_arrays._opened.cache_clear()
        chest.compact()
        assert unfinished(path) == []
    audit(path)


def test_a_part_of_what_is_stored_later_stores_all_of_it(chest):
    later = store(counted(Counted()), chest, "x", compute=False, return_stored=True)
    np.testing.assert_array_equal(later[3:5, 7].compute(), ARRAY[3:5, 7] + 1)
    np.testing.assert_array_equal(chest["x"], ARRAY + 1)


def test_the_last_task_may_run_again_when_some_blocks_were_written_again(path):
    """A worker that is lost after it takes with it that its blocks were written."""
    with arraychest.open(path) as chest:
        later = store(da.from_array(ARRAY, CHUNKS), chest, "x", compute=False)
        later.compute()
        (task,) = [
            each
            for layer in later.__dask_graph__().layers.values()
            for task in layer.values()
            for each in (task if type(task) is tuple else ())
            if isinstance(each, _Storing)
        ]
        generation = chest.entry("x").generation
        task.writer.write((0, 1), ARRAY[:20, 25:])
        assert task().generation == generation
        np.testing.assert_array_equal(chest["x"], ARRAY)
        assert unfinished(path) == []
        # But not where the key has another value meanwhile.
        chest["x"] = np.zeros(3)
        chest.flush()
        task.writer.write((0, 1), ARRAY[:20, 25:])
        with pytest.raises(SpillError, match="block"):
            task()
        assert chest["x"].shape == (3,)


def test_a_task_that_fails_leaves_the_old_value_and_only_what_is_missing_is_computed(path):
    calls = Counted(bad=[(1, 0)])
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(2)
        with pytest.raises(ZeroDivisionError):
            store(counted(calls), chest, "x")
        assert chest["x"].shape == (2,)
        first = list(calls.runs)
        calls.bad.clear()
    with arraychest.open(path) as chest:
        # Something else in between does not disturb it.
        store(counted(Counted(), ARRAY + 1), chest, "other")
        assert chest["x"].shape == (2,)
        store(counted(calls), chest, "x")
        np.testing.assert_array_equal(chest["x"], ARRAY + 1)
        assert sorted(calls.runs) == sorted({*calls.runs})
        assert len(calls.runs) == 6
        assert 0 < len(first) < 6
        # What is complete is computed anew, if it is asked for.
        store(counted(calls), chest, "x")
        assert len(calls.runs) == 12
    audit(path)


def test_what_cannot_be_stored_is_refused(path):
    x = da.from_array(ARRAY, CHUNKS)
    masked = da.ma.masked_greater(x, 3)
    objects = da.from_array(np.array([None, 1, "a"]), chunks=2)
    lying = x.map_blocks(lambda block: block.astype("f4"), dtype=float, meta=ARRAY[:0, :0])
    misshapen = x.map_blocks(lambda block: block[:-1], dtype=float, meta=ARRAY[:0, :0])
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(2)
        for bad, words in [
            (x[x > 3], "compute_chunk_sizes"),
            (masked, "MaskedArray"),
            (objects, "object"),
            (lying, "float32"),
            (misshapen, "shape"),
        ]:
            with pytest.raises(ValueTypeError, match=words):
                store(bad, chest, "x")
            if bad is not masked and bad is not lying:
                with pytest.raises(ValueTypeError):
                    append(bad, chest, "new")
        with pytest.raises(TypeError, match="ndarray"):
            store(ARRAY, chest, "x")
        with pytest.raises(ArrayChestError):
            store(x, chest, [])
        assert chest["x"].shape == (2,)
        assert list(chest) == ["x"]
    with arraychest.open(path, mode="r") as chest, pytest.raises(arraychest.ReadOnlyChestError):
        store(x, chest, "x")


def test_on_a_full_disk_or_over_max_disk_the_old_value_stays(tiny_disk):
    path = str(tiny_disk / "c")
    x = da.ones((1 << 18, 6), chunks=(1 << 16, 6))
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(2)
        with pytest.raises(SpillError):
            store(x, chest, "x")
        assert chest["x"].shape == (2,)
    with arraychest.open(path, max_disk="1 MiB", on_full="refuse") as chest:
        y = da.ones((1 << 12, 50), chunks=(1 << 10, 50))
        with pytest.raises(QuotaError):
            store(y, chest, "x")
        assert chest["x"].shape == (2,)


def test_store_takes_da_store_and_from_array_back(chest):
    store(da.from_array(ARRAY, CHUNKS), chest, "x")
    again = da.from_array(chest["x"], chunks=chest["x"].chunks)
    np.testing.assert_array_equal((again + 1).compute(), ARRAY + 1)
    target = np.empty_like(ARRAY)
    da.store(chest.to_dask("x"), target, lock=False)
    np.testing.assert_array_equal(target, ARRAY)
    with pytest.raises(ValueError, match="read-only"):
        da.store(da.from_array(ARRAY, CHUNKS), chest["x"])
    np.testing.assert_array_equal(chest["x"], ARRAY)
    assert chest.to_dask("x").chunks == CHUNKS
    assert chest.to_dask("x").name == chest.to_dask("x").name


# --- append and persist ---------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_dask_arrays_are_appended(path, axis):
    more = ARRAY[:7] if axis == 0 else ARRAY[:, :7]
    with arraychest.open(path) as chest:
        append(da.from_array(ARRAY, CHUNKS), chest, "x", axis)
        # Cut differently, and the same one twice.
        for _ in range(2):
            append(da.from_array(more, chunks=4), chest, "x", axis)
        chest.append("x", more, axis)
        expected = np.concatenate([ARRAY, more, more, more], axis)
        np.testing.assert_array_equal(chest["x"], expected)
        other = chest["x"].chunks[1 if axis == 0 else 0]
        assert other == CHUNKS[1 if axis == 0 else 0]
        assert len(folders(path)) == 1
        assert unfinished(path) == []
    audit(path)


def test_an_append_that_fails_leaves_the_array_and_nothing_else(path):
    calls = Counted(bad=[(1, 1)])
    with arraychest.open(path) as chest:
        store(da.from_array(ARRAY, CHUNKS), chest, "x")
        with pytest.raises(ZeroDivisionError):
            append(counted(calls), chest, "x")
        for bad in (da.ones((3, 4)), da.ones(50), da.ones((3, 50), dtype="f4")):
            with pytest.raises(ValueTypeError):
                append(bad, chest, "x")
        np.testing.assert_array_equal(chest["x"], ARRAY)
        assert unfinished(path) == []
        chest["plain"] = np.ones(3)
        with pytest.raises(ValueTypeError, match="blocked"):
            append(da.ones(3), chest, "plain")
    audit(path)


def test_what_was_persisted_is_not_computed_again(path):
    calls = Counted()
    with arraychest.open(path) as chest:
        first = persist(counted(calls), chest)
        np.testing.assert_array_equal(first.compute(), ARRAY + 1)
        assert len(calls.runs) == 6
    dask_arrays._opened.cache_clear()
    with arraychest.open(path) as chest:
        again = persist(counted(calls), chest)
        np.testing.assert_array_equal(again.compute(), ARRAY + 1)
        assert len(calls.runs) == 6
        assert again.name == first.name
        # Under a key of the user's it is what is asked for now.
        chest["mine"] = np.zeros(2)
        mine = persist(counted(calls), chest, "mine")
        np.testing.assert_array_equal(mine.compute(), ARRAY + 1)
        assert len(calls.runs) == 12
        # And not what has another shape.
        other = persist(counted(calls).rechunk((30, 50)), chest)
        assert other.chunks == ((30, 30), (50,))


# --- caching --------------------------------------------------------------------------------------


class Slow:
    """Takes longer than it takes to keep what it returns; counts in a folder of all processes."""

    def __init__(self, folder, seconds=0.005):
        self.folder = str(folder)
        self.seconds = seconds
        os.makedirs(self.folder, exist_ok=True)

    def __call__(self, block):
        time.sleep(self.seconds)
        return write_twice(block, self.folder)

    def __dask_tokenize__(self):
        return "slow", self.seconds

    @property
    def runs(self):
        return len(os.listdir(self.folder))


def slow(calls, chunks=(20, 50)):
    return da.from_array(ARRAY, chunks, name="numbers").map_blocks(
        calls, dtype=float, meta=ARRAY[:0, :0]
    )


def test_results_are_found_again_by_the_next_compute_and_the_next_process(path, tmp_path):
    calls = Slow(tmp_path / "calls")
    with arraychest.open(path) as chest:
        with caching(chest):
            np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)
            assert calls.runs == 3
            np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)
            # What a compute returns is put together of them, and not kept itself.
            assert len(chest) == 3
            # Of what is one task, what it returns is kept.
            for _ in range(2):
                total = slow(calls).sum(axis=0).compute()
                np.testing.assert_allclose(total, (ARRAY * 2).sum(axis=0))
            assert calls.runs == 6
        # And only within it: the graph is nobody's business.
        slow(calls).compute()
        assert calls.runs == 9
    with arraychest.open(path) as chest, caching(chest):
        np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)
    assert calls.runs == 9
    assert dask.config.get("optimization.fuse.active", None) is None
    audit(path)


def test_results_of_tasks_in_other_processes_are_kept(chest, tmp_path, resource_tracker):
    calls = Slow(tmp_path / "calls")
    with caching(chest), dask.config.set({"multiprocessing.context": "fork"}):
        for _ in range(2):
            found = slow(calls).compute(scheduler="processes", num_workers=2)
            np.testing.assert_array_equal(found, ARRAY * 2)
    assert calls.runs == 3


def test_results_on_threads_are_kept(chest, tmp_path):
    calls = Slow(tmp_path / "calls")
    with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool), caching(chest):
        for _ in range(2):
            found = slow(calls).compute(scheduler="threads")
            np.testing.assert_array_equal(found, ARRAY * 2)
    assert calls.runs == 3


def test_what_takes_no_longer_than_to_keep_it_is_not_kept(chest, monkeypatch):
    x = da.from_array(np.ones(1 << 20), chunks=1 << 18, name="ones")
    # A millisecond, and one for each megabyte.
    for seconds, kept in [(0.0, 0), (0.003, 0), (0.0032, 4)]:
        clock = itertools.count(step=seconds)
        module = sys.modules["arraychest.integrations.dask_caching"]
        monkeypatch.setattr(module, "perf_counter", lambda clock=clock: next(clock))
        with caching(chest):
            (x + 1).compute()
        assert len(chest) == kept, seconds


def test_what_a_user_writes_into_a_result_does_not_change_what_is_kept(chest, tmp_path):
    calls = Slow(tmp_path / "calls")
    x = slow(calls, chunks=(60, 50))
    with caching(chest):
        first = x.compute()
        first[...] = -1
        again = x.compute()
        np.testing.assert_array_equal(again, ARRAY * 2)
        with contextlib.suppress(ValueError):
            again[...] = -2
        np.testing.assert_array_equal(x.compute(), ARRAY * 2)
    assert calls.runs == 1


def test_a_chest_that_fails_does_no_harm(tiny_disk, tmp_path):
    calls = Slow(tmp_path / "calls")
    chest = arraychest.open(tiny_disk / "c", available_memory=0)
    fill_disk(tiny_disk)
    with caching(chest):
        np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)
    (tiny_disk / "filler").unlink()
    chest.close()
    with caching(chest):
        np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)
    with arraychest.open(tiny_disk / "c", mode="r") as reader, caching(reader):
        np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)
    with arraychest.Chest(max_disk=1000) as small, caching(small):
        np.testing.assert_array_equal(slow(calls).compute(), ARRAY * 2)


def test_a_damaged_result_is_computed_again(path, tmp_path):
    calls = Slow(tmp_path / "calls")
    ones = np.ones((200, 500))
    big = da.from_array(ones, chunks=-1, name="big").map_blocks(calls, dtype=float, meta=ones[:0])
    with arraychest.open(path) as chest, caching(chest):
        big.compute()
        chest.flush()
        files = [chest.entry(key).file for key in chest]
    assert calls.runs == 1
    for file in files:
        os.truncate(file, 10)
    with arraychest.open(path) as chest, caching(chest):
        np.testing.assert_array_equal(big.compute(), np.full((200, 500), 2.0))
    assert calls.runs == 2


def test_it_is_registered_for_all_computes(chest, tmp_path):
    calls = Slow(tmp_path / "calls")
    cache = caching(chest)
    cache.register()
    try:
        slow(calls).compute()
        slow(calls).compute()
        assert calls.runs == 3
    finally:
        cache.unregister()
    slow(calls).compute()
    assert calls.runs == 6
    assert dask.config.get("optimization.fuse.active", None) is None


def test_a_task_that_fails_under_caching_raises_and_keeps_nothing_wrong(chest):
    calls = Counted(bad=[(1, 0)])
    with caching(chest) as cache:
        with pytest.raises(ZeroDivisionError):
            counted(calls).compute()
        assert not cache._started
        calls.bad.clear()
        np.testing.assert_array_equal(counted(calls).compute(), ARRAY + 1)


# --- a cluster ------------------------------------------------------------------------------------

_PROGRAM = """
import gc, json, os, signal, sys, time
import numpy as np
import dask, dask.array as da
from distributed import Client, LocalCluster
import arraychest
from arraychest.dask import append, store; from arraychest.integrations import dask_arrays as arrays

PATH, MARKS = sys.argv[1:]


def once_fatal(block, block_info=None):
    where = block_info[0]["chunk-location"]
    number = where[0] * 3 + where[1]
    with open(f"{MARKS}/{number}-{time.monotonic_ns()}", "x"):
        pass
    if number == 5:
        try:
            os.close(os.open(f"{MARKS}/killed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return block + 1


if __name__ == "__main__":
    told = {}
    array = np.arange(120.0 * 90).reshape(120, 90)
    x = da.from_array(array, chunks=(40, 30)).map_blocks(once_fatal, dtype=float)
    with arraychest.open(PATH) as chest, LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster, Client(cluster) as client:
        before = set(client.scheduler_info(n_workers=-1)["workers"])
        stored = store(x, chest, "x", return_stored=True)
        told["killed"] = os.path.exists(f"{MARKS}/killed")
        told["right"] = bool((np.asarray(chest["x"]) == array + 1).all())
        told["blocks"] = len({n.partition("-")[0] for n in os.listdir(MARKS) if n != "killed"})
        told["sum"] = float(stored.sum().compute()) == float((array + 1).sum())
        append(da.from_array(array[:50], chunks=25), chest, "x")
        told["appended"] = bool((np.asarray(chest["x"])[120:] == array[:50]).all())
        later = store(x[:40] * 2, chest, "later", compute=False, return_stored=True)
        told["later"] = bool((later.compute() == (array[:40] + 1) * 2).all())
        told["key"] = bool((np.asarray(chest["later"]) == (array[:40] + 1) * 2).all())
        told["ok"] = chest.verify().ok
        arrays._opened.cache_clear()
    # What the workers had open is removed by who opens the chest when nobody else has.
    gc.collect()
    arraychest.open(PATH).close()
    told["left"] = os.listdir(f"{PATH}/unfinished")
    print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_cluster_stores_an_array_though_a_worker_is_killed(path, tmp_path):
    program, marks = tmp_path / "program.py", tmp_path / "marks"
    program.write_text(textwrap.dedent(_PROGRAM))
    marks.mkdir()
    done = subprocess.run(
        [sys.executable, str(program), path, str(marks)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "killed": True,
        "right": True,
        "blocks": 9,
        "sum": True,
        "appended": True,
        "later": True,
        "key": True,
        "ok": True,
        "left": [],
    }
    audit(path)


# --- functions that are edited --------------------------------------------------------------------

EDITED = """
import threading, time
import numpy as np
FACTOR = 2
STREAM = open(__import__("os").devnull)
STREAM.close()
RUNS = []
def helper(block):
    return block * FACTOR
def direct(block):
    RUNS.append(block.shape)
    time.sleep(0.005)
    return block * 2
def by_helper(block):
    time.sleep(0.005)
    return helper(block)
def with_keyword(block, by=2, function=None):
    time.sleep(0.005)
    return block * by
def untold(block):
    time.sleep(0.005)
    return block * (2 if STREAM.closed else 1)
class Model:
    def scale(self, block):
        return block * 2
    def __call__(self, block):
        time.sleep(0.005)
        return self.scale(block)
called = Model()
method = Model().__call__
"""


@pytest.fixture
def edited(monkeypatch):
    """A module of the user's, made anew of its text as a new process would import it."""

    def make(text):
        module = types.ModuleType("edited_by_test")
        monkeypatch.setitem(sys.modules, "edited_by_test", module)
        exec(textwrap.dedent(text), module.__dict__)
        return module

    return make


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("direct", "return block * 2", "return block * 3"),
        ("by_helper", "FACTOR = 2", "FACTOR = 3"),
        ("by_helper", "block * FACTOR", "block * FACTOR * 1.5"),
        ("with_keyword", "by=2", "by=3"),
        ("called", "return block * 2", "return block * 3"),
        ("method", "return block * 2", "return block * 3"),
    ],
)
@pytest.mark.parametrize("follows", [lambda x: x, lambda x: (x + 0).T.sum(axis=1)])
def test_an_edited_function_is_computed_again(chest, edited, name, before, after, follows):
    x = da.from_array(ARRAY, CHUNKS, name="numbers")
    texts = [EDITED, EDITED.replace(before, after), EDITED]
    for text, factor in zip(texts, (2, 3, 2), strict=True):
        module = edited(text)
        y = follows(x.map_blocks(getattr(module, name), dtype=float))
        with caching(chest):
            np.testing.assert_allclose(y.compute(), follows(ARRAY * factor))
    # What was computed before the edit is found once that is undone.
    assert [each for each in module.RUNS if 0 not in each] == []
    assert len(chest) > 0
    chest.clear()
    for text, factor in zip(texts, (2, 3, 2), strict=True):
        y = follows(x.map_blocks(getattr(edited(text), name), dtype=float))
        np.testing.assert_allclose(persist(y, chest).compute(), follows(ARRAY * factor))
    # dask gives an object of a module that is made anew another name each time.
    assert len(chest) == (3 if name == "called" else 2)


def test_what_cannot_be_told_is_not_kept(chest, edited):
    x = da.from_array(ARRAY, CHUNKS, name="numbers")
    y = x.map_blocks(edited(EDITED).untold, dtype=float)
    with caching(chest):
        for _ in range(2):
            np.testing.assert_array_equal((y + 1).compute(), ARRAY * 2 + 1)
        assert len(chest) == 0
    for _ in range(2):
        np.testing.assert_array_equal(persist(y, chest).compute(), ARRAY * 2)
    assert list(chest) == [("dask", y.name)]


def test_what_was_written_by_an_edited_function_is_not_gone_on_with(path, edited):
    fails = "if (block == 0).any(): raise ZeroDivisionError\n    "
    x = da.from_array(ARRAY[::-1], CHUNKS, name="numbers")
    text = EDITED.replace("def direct(block):\n    ", "def direct(block):\n    " + fails)
    with arraychest.open(path) as chest:
        with pytest.raises(ZeroDivisionError):
            store(x.map_blocks(edited(text).direct, dtype=float), chest, "x")
        y = x.map_blocks(edited(EDITED.replace("block * 2", "block * 3")).direct, dtype=float)
        store(y, chest, "x")
        np.testing.assert_array_equal(chest["x"], ARRAY[::-1] * 3)


def test_what_is_stored_in_a_transaction_is_there_in_it_and_afterwards_with_all_of_it(path):
    with arraychest.open(path) as chest:
        chest["old"] = chest["x"] = np.arange(3)
        with pytest.raises(ZeroDivisionError), chest.transaction():
            stored = store(da.from_array(ARRAY, chunks=CHUNKS), chest, "x", return_stored=True)
            assert np.array_equal(stored.compute(), ARRAY)
            assert np.array_equal(chest.to_dask("x").compute(), ARRAY)
            handle = chest.handle("x")
            raise ZeroDivisionError
        assert chest["x"].tolist() == [0, 1, 2]
        del stored
        dask_arrays._opened.cache_clear()
        with pytest.raises(arraychest.AbsentKeyError):
            handle.array()
        chest.flush()
        with chest.transaction():
            for key in ("x", "y"):
                store(da.from_array(ARRAY, chunks=CHUNKS), chest, key)
            chest["old"] = np.arange(4)
            assert chest.handle("old").array().tolist() == [0, 1, 2, 3]
            del chest["old"]
            with pytest.raises(arraychest.AbsentKeyError):
                chest.handle("old")
            with arraychest.open(path, "r") as other:
                assert list(other) == ["old", "x"]
                assert other["x"].tolist() == [0, 1, 2]
        assert list(chest) == ["x", "y"]
        assert np.array_equal(chest["x"], ARRAY)
        assert np.array_equal(chest["y"], ARRAY)
        assert chest.verify().ok


def test_a_group_of_a_chest_is_taken_as_the_chest_is(path, tmp_path):
    with arraychest.open(path) as chest:
        group = chest.group("run")
        store(da.ones((100, 100), chunks=50), group, "x")
        assert float(group.to_dask("x").sum().compute()) == 10_000
        append(da.ones((50, 100), chunks=50), group, "x")
        assert group["x"].shape == (150, 100)
        persist(da.zeros(10), group, "y")
        assert list(chest) == [("run", "x"), ("run", "y")]
        chest["other"] = np.zeros(3)
        assert group.export(tmp_path / "run.npz") == 2
