"""Blocked arrays without dask: what they read like, and how they are written."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arraychest
from arraychest.arrays.digests import array_digest
from arraychest.engine.append import finish
from arraychest.engine.blocks import begin
from arraychest.errors import (
    CorruptEntryError,
    ReadOnlyChestError,
    SpillError,
    ValueTypeError,
)
from arraychest.formats import manifest
from arraychest.storage.block_writer import slices
from tests.faults import Countdown, in_child, injected
from tests.memoize.test_memoize import LOG
from tests.support import assert_identical, audit, listing

HELD = np.add.outer(np.arange(60.0), np.arange(50.0))
HELD_CHUNKS = ((25, 35), (50,))


def folder_of(path, key):
    (found,) = [name for name in folders(path) if f"/{key}-" in name]
    return found


def write_blocks(chest, key, array, chunks, what=None, only=lambda index: True):
    """Write the blocks of an array; gives what wrote them."""
    writer = begin(chest._engine.session, key, array.dtype, chunks, what)
    for index in manifest.indices(chunks):
        if only(index):
            writer.write(index, array[slices(chunks, index)])
    return writer


def put_blocks(chest, key, array, chunks):
    """Make an array the value of a key, cut into these blocks."""
    finish(chest._engine, key, write_blocks(chest, key, array, chunks))
    return chest[key]


def numbers(*shape):
    return np.arange(float(np.prod(shape))).reshape(shape)


def folders(path, top="data"):
    """The folders of blocks in a chest's folder."""
    found = []
    for folder, names, _ in os.walk(os.path.join(path, top)):
        found += [os.path.join(folder, name) for name in names if name.endswith(".blocks")]
    return sorted(found)


def unfinished(path):
    place = os.path.join(path, "unfinished")
    return sorted(os.listdir(place)) if os.path.isdir(place) else []


def held(path):
    """How many files and folders of a chest's values this process has open."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    tops = f"{path}/data/", f"{path}/unfinished/"
    return len([target for target in targets if target.startswith(tops)])


# --- reading --------------------------------------------------------------------------------------

CUTS = [
    ((2, 0, 3, 1), (4, 3)),
    ((6,), (7,)),
    ((1,) * 6, (1,) * 7),
    ((0, 6), (7, 0)),
    ((3, 3), (2, 2, 2, 1), (0, 2, 1)),
    ((5, 4),),
    ((0,), (3,)),
    ((2, 3), (0,), (2,)),
    (),
]


def shape_of(chunks):
    return tuple(map(sum, chunks))


@pytest.fixture(scope="module")
def cut_arrays(tmp_path_factory):
    """Arrays and the same ones in blocks, some of them compressed."""
    path = str(tmp_path_factory.mktemp("cut") / "c")
    found = []
    with arraychest.open(path) as chest:
        for number, chunks in enumerate(CUTS):
            array = np.asarray(numbers(*shape_of(chunks)) - 5)
            found.append((array, put_blocks(chest, number, array, chunks)))
    with arraychest.open(path, compression="lz4", compress_above=0) as chest:
        big = numbers(30, 400)
        found.append((big, put_blocks(chest, "lz4", big, ((11, 0, 19), (150, 250)))))
    yield found
    found.clear()


def keys_of(shape):
    """Keys of every kind, most of which fit."""
    numbers_of = [st.integers(-n, n - 1) if n else st.just(0) for n in shape]

    def part(n, number):
        bound = st.none() | st.integers(-n - 2, n + 2)
        step = st.none() | st.sampled_from([-3, -2, -1, 1, 2, 5])
        several = st.lists(number, max_size=4) if n else st.just([])
        return st.one_of(
            st.builds(slice, bound, bound, step),
            st.builds(slice, bound, bound),
            number,
            st.builds(lambda found: np.array(found, np.intp), several),
            several,
            st.lists(st.booleans(), min_size=n, max_size=n).map(
                lambda found: np.array(found, bool)
            ),
        )

    parts = [part(n, number) for n, number in zip(shape, numbers_of, strict=True)]
    extra = st.lists(st.sampled_from([None, Ellipsis, True, np.False_]), max_size=2)

    def merged(given, add, where, count):
        found = list(given)[:count]
        for at, each in zip(where, add, strict=False):
            found.insert(min(at, len(found)), each)
        return tuple(found)

    whole = st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    return st.one_of(
        st.builds(
            merged,
            st.tuples(*parts),
            extra,
            st.lists(st.integers(0, 4), min_size=2, max_size=2),
            st.integers(0, len(shape)),
        ),
        whole.map(lambda found: np.array(found, bool).reshape(shape)),
    )


@given(st.data())
def test_it_is_indexed_as_numpy_indexes_an_array(cut_arrays, data):
    array, blocked = data.draw(st.sampled_from(cut_arrays[:-1]))
    key = data.draw(keys_of(array.shape))
    try:
        expected = array[key]
    except (IndexError, TypeError) as error:
        with pytest.raises(type(error)):
            blocked[key]
        return
    found = blocked[key]
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == expected.shape


@pytest.mark.parametrize(
    "key",
    [
        np.s_[::-7, 3:390:11],
        np.s_[[29, 0, 11, 10, 0], ::-1],
        np.s_[10:12, 149:151],
        np.s_[..., None, 399],
        np.s_[[0, 29], [399, 0]],
    ],
)
def test_compressed_blocks_are_indexed_so_too(cut_arrays, key):
    array, blocked = cut_arrays[-1]
    assert any(name.endswith(".b2nd") for name in os.listdir(blocked.blocks.path))
    np.testing.assert_array_equal(blocked[key], array[key])


REDUCTIONS = ["sum", "prod", "min", "max", "any", "all", "mean", "var", "std"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_give_what_numpys_do(cut_arrays, name):
    # A product of very many is infinite or nothing, as the order has it.
    for array, blocked in cut_arrays[:-1] if name == "prod" else cut_arrays:
        for axis in [None, *range(-array.ndim, array.ndim), tuple(range(array.ndim))]:
            for keepdims in (False, True):
                given = {"axis": axis, "keepdims": keepdims}
                try:
                    expected = getattr(array, name)(**given)
                except ValueError:  # the least of nothing
                    with pytest.raises(ValueError, match="zero-size"):
                        getattr(blocked, name)(**given)
                    continue
                for found in (getattr(blocked, name)(**given), getattr(np, name)(blocked, **given)):
                    np.testing.assert_allclose(found, expected)
                    assert np.shape(found) == np.shape(expected)
                    assert np.asarray(found).dtype == np.asarray(expected).dtype


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_element_wise_functions_and_the_rest_of_numpy_give_what_they_do_of_the_array(cut_arrays):
    for array, blocked in cut_arrays:
        for function in (
            lambda x: x + 1,
            lambda x: 2 - x * x,
            lambda x: x > 3,
            lambda x: np.sqrt(np.abs(x)),
            lambda x: np.add(x, array),
            lambda x: np.subtract(x[..., None], x[..., None]),
            lambda x: np.where(x > 3, x, 0),
            lambda x: np.concatenate([x[None], array[None]]),
            lambda x: np.reshape(x, -1),
            lambda x: np.add.reduce(x[None]),
            lambda x: np.divmod(x, 3)[1],
            lambda x: x.astype(np.float32),
            lambda x: np.transpose(x),
            lambda x: np.asarray(x),
            lambda x: np.array(x, np.int32),
            lambda x: x.copy("F"),
        ):
            expected = function(array)
            found = function(blocked)
            assert type(found) is np.ndarray or np.ndim(expected) == 0
            np.testing.assert_array_equal(found, expected)
            assert np.asarray(found).dtype == np.asarray(expected).dtype
        assert blocked.tolist() == array.tolist()
        assert (blocked.size, blocked.nbytes, blocked.ndim) == (
            array.size,
            array.nbytes,
            array.ndim,
        )


def test_it_is_iterated_over_as_an_array(cut_arrays):
    for array, blocked in cut_arrays:
        if not array.ndim:
            with pytest.raises(TypeError):
                iter(blocked).__next__()
            with pytest.raises(TypeError):
                len(blocked)
            continue
        assert len(blocked) == len(array)
        for found, expected in zip(blocked, array, strict=True):
            np.testing.assert_array_equal(found, expected)
        parts = list(blocked.iterchunks())
        assert sum(part.size for _, part in parts) == array.size
        for where, part in parts:
            np.testing.assert_array_equal(part, array[where])


def test_what_is_read_is_a_read_only_view_of_one_block_or_a_new_array(cut_arrays):
    _, blocked = cut_arrays[0]
    one, again = blocked[2:5, :4], blocked[3, 1:3]
    assert np.shares_memory(one, again)
    assert not one.flags.writeable
    assert not again.flags.writeable
    across = blocked[:, 2:5]
    across[...] = 7
    whole = np.asarray(blocked)
    whole[...] = 8
    assert not np.shares_memory(whole, np.asarray(blocked))
    single = cut_arrays[1][1]
    for made in (np.asarray(single), single.copy(), np.array(single, dtype=float)):
        assert made.flags.writeable
        made[...] = 9
    np.testing.assert_array_equal(np.asarray(single), cut_arrays[1][0])
    np.testing.assert_array_equal(blocked[2:5], cut_arrays[0][0][2:5])


def test_writing_to_it_raises(cut_arrays):
    array, blocked = cut_arrays[0]
    with pytest.raises(ValueError, match="read-only"):
        blocked[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        blocked[0:1, 0:1][...] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.add(array, 1, out=blocked)
    with pytest.raises(ValueError, match="read-only"):
        blocked += 1
    with pytest.raises(ValueError, match="copy"):
        np.array(blocked, copy=False)
    np.testing.assert_array_equal(blocked, array)


def test_it_pickles_to_its_place(cut_arrays):
    for array, blocked in cut_arrays:
        data = pickle.dumps(blocked)
        assert len(data) < 1500
        again = pickle.loads(data)
        assert type(again) is arraychest.BlockedArray
        np.testing.assert_array_equal(np.asarray(again), array)
        for again in (copy.deepcopy(blocked), copy.copy(blocked)):
            # As of any array, the caller's own.
            assert type(again) is np.ndarray
            assert again.flags.writeable
            np.testing.assert_array_equal(again, array)
    gone = pickle.dumps(cut_arrays[0][1]).replace(b".blocks", b".blockz")
    with pytest.raises(CorruptEntryError, match="found none"):
        pickle.loads(gone)


def test_its_digest_is_that_of_the_array(cut_arrays):
    for array, blocked in cut_arrays:
        assert array_digest(blocked) == array_digest(array)
    strings = np.array(["b", "äö", ""] * 5)
    fields = np.zeros(11, np.dtype([("a", "i1"), ("b", ">f8")], align=True))
    fields["b"] = np.arange(11)
    with arraychest.Chest() as chest:
        assert array_digest(put_blocks(chest, 1, strings, ((4, 11),))) == array_digest(strings)
        found = put_blocks(chest, 2, fields, ((4, 7),))
        assert_identical(np.asarray(found), fields)
        assert array_digest(found) == array_digest(fields)


def test_a_cached_function_takes_it_for_the_array_that_it_is(chest):
    LOG.calls.clear()

    @chest.cache
    def total(x):
        LOG(1)
        return np.asarray(x).sum()

    array = numbers(40, 50)
    blocked = put_blocks(chest, "x", array, ((15, 25), (50,)))
    assert total(blocked) == total(array) == total(blocked) == array.sum()
    assert len(LOG.calls) == 1
    put_blocks(chest, "x", array + 1, ((15, 25), (50,)))
    assert total(chest["x"]) == (array + 1).sum()


def test_many_threads_read_it(cut_arrays):
    array, blocked = cut_arrays[2]
    keys = [(at % 6, at % 7) for at in range(42)] * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(blocked.__getitem__, keys)) == [array[key] for key in keys]


def test_of_many_blocks_few_stay_open(chest):
    blocked = put_blocks(chest, "x", np.arange(300), ((1,) * 300,))
    assert blocked.sum() == 44850
    assert len(blocked.blocks._open) <= 64


# --- writing --------------------------------------------------------------------------------------


def test_a_key_has_its_old_value_until_all_blocks_are_there(path):
    array, chunks = numbers(4, 6), ((2, 2), (3, 3))
    with arraychest.open(path) as chest:
        chest["old"] = np.ones(3)
        for key in ("old", "new"):
            writer = write_blocks(chest, key, array, chunks, "x", lambda index: index != (1, 0))
            assert ("new" in chest) is False
            np.testing.assert_array_equal(chest["old"], np.ones(3))
            with pytest.raises(SpillError, match=r"block \(1, 0\)"):
                finish(chest._engine, key, writer)
            assert writer.missing() == [(1, 0)]
            np.testing.assert_array_equal(chest["old"], np.ones(3))
            # Who begins the same goes on with what is there, also in another process.
            again = begin(chest._engine.session, key, array.dtype, chunks, "x")
            again = pickle.loads(pickle.dumps(again))
            assert again.missing() == [(1, 0)]
            again.write((1, 0), array[2:, :3])
            assert key == "old" or key not in chest
            finish(chest._engine, key, again)
            np.testing.assert_array_equal(chest[key], array)
            del chest[key], writer, again
            chest["old"] = np.ones(3)
        assert unfinished(path) == []
    audit(path)


def test_who_begins_something_else_does_not_go_on_with_it(path):
    with arraychest.open(path) as chest:
        engine = chest._engine
        write_blocks(chest, "x", np.zeros(4), ((2, 2),), "a", lambda index: index == (0,))
        for key, dtype, chunks, what in [
            ("y", "f8", ((2, 2),), "a"),
            ("x", "i8", ((2, 2),), "a"),
            ("x", "f8", ((1, 3),), "a"),
            ("x", "f8", ((2, 2),), "b"),
            ("x", "f8", ((2, 2),), None),
        ]:
            assert len(begin(engine.session, key, np.dtype(dtype), chunks, what).missing()) == 2
        assert begin(engine.session, "x", np.dtype("f8"), ((2, 2),), "a").missing() == [(1,)]


def test_a_block_is_refused_that_is_another_array_than_was_said(chest):
    writer = begin(chest._engine.session, "x", np.dtype("f8"), ((2, 2),))
    for block, found in [
        (np.zeros(3), r"\(3,\)"),
        (np.zeros(2, "f4"), "float32"),
        (np.zeros(2, ">f8"), ">f8"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "MaskedArray"),
        (np.array([None, 1]), "object"),
        ([1.0, 2.0], "list"),
    ]:
        with pytest.raises(ValueTypeError, match=found):
            writer.write((0,), block)
    assert len(writer.missing()) == 2
    with pytest.raises(ValueTypeError):
        begin(chest._engine.session, "x", np.dtype(object), ((2, 2),))


def test_of_a_block_that_is_written_twice_the_first_stays(chest):
    writer = begin(chest._engine.session, "x", np.dtype("i8"), ((2,),))
    barrier = threading.Barrier(4)

    def write(number):
        barrier.wait()
        writer.write((0,), np.full(2, number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(os.listdir(writer.folder)) == 1
    writer.write((0,), np.full(2, 9))
    finish(chest._engine, "x", writer)
    assert chest["x"][0] == chest["x"][1] != 9


def test_what_a_straggler_leaves_in_a_finished_folder_is_removed(chest):
    writer = write_blocks(chest, "x", np.arange(4), ((2, 2),))
    for name in ("writing-0123", "7.npy"):
        shutil.copy(f"{writer.folder}/0.npy", f"{writer.folder}/{name}")
    finish(chest._engine, "x", writer)
    folder = chest["x"].blocks.path
    assert sorted(os.listdir(folder)) == ["0.npy", "1.npy", "manifest"]


def test_a_block_that_a_crash_of_the_system_has_emptied_is_written_once_more(chest):
    array = np.arange(4.0)
    writer = write_blocks(chest, "x", array, ((2, 2),), "x")
    os.truncate(f"{writer.folder}/1.npy", 0)
    with pytest.raises(CorruptEntryError, match=r"1\.npy"):
        finish(chest._engine, "x", writer)
    writer = write_blocks(chest, "x", array, ((2, 2),), "x")
    finish(chest._engine, "x", writer)
    np.testing.assert_array_equal(chest["x"], array)


# --- appending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_arrays_are_appended_along_each_dimension(path, axis):
    parts = [numbers(*[n if at == axis % 3 else 4 for at in range(3)]) + n for n in (3, 1, 0, 5)]
    with arraychest.open(path) as chest:
        for part in parts:
            chest.append("x", part, axis=axis)
        expected = np.concatenate(parts, axis=axis)
        assert_identical(np.asarray(chest["x"]), expected)

        assert len(folders(path)) == 1
        assert unfinished(path) == []
    with arraychest.open(path, mode="r") as chest:
        assert_identical(np.asarray(chest["x"]), expected)
        assert chest.verify().ok
    audit(path)


def test_large_arrays_are_cut(chest, monkeypatch):
    monkeypatch.setattr("arraychest.engine.append._BLOCK_BYTES", 1000)
    chest.append("x", numbers(100, 10))
    assert chest["x"].chunks == ((12,) * 8 + (4,), (10,))
    chest.append("x", numbers(13, 10))
    assert chest["x"].chunks[0] == (12,) * 8 + (4, 12, 1)
    chest.append("y", numbers(1, 10))
    chest.append("y", numbers(30, 10))
    assert chest["y"].chunks[0] == (1, 12, 12, 6)


def test_blocks_that_are_there_are_linked_and_not_read(path):
    with arraychest.open(path) as chest:
        chest.append("x", numbers(3, 4))
        before = os.stat(f"{folders(path)[0]}/0.0.npy")
        held = chest["x"]
        chest.append("x", numbers(3, 4))
        assert os.stat(f"{chest['x'].blocks.path}/0.0.npy").st_ino == before.st_ino
        np.testing.assert_array_equal(held, numbers(3, 4))


def test_what_does_not_fit_is_not_appended(path):
    with arraychest.open(path) as chest:
        chest.append("x", np.zeros((2, 3)))
        chest["plain"] = np.zeros((2, 3))
        chest["none"] = None
        for key, array, axis, error in [
            ("x", np.zeros((2, 4)), 0, ValueTypeError),
            ("x", np.zeros((3, 3)), 1, ValueTypeError),
            ("x", np.zeros(3), 0, ValueTypeError),
            ("x", np.zeros((2, 3, 1)), 0, ValueTypeError),
            ("x", np.zeros((2, 3), "f4"), 0, ValueTypeError),
            ("x", np.zeros((2, 3), ">f8"), 0, ValueTypeError),
            ("x", np.zeros((2, 3)), 2, np.exceptions.AxisError),
            ("x", np.zeros((2, 3)), -3, np.exceptions.AxisError),
            ("y", np.zeros((2, 3)), 2, np.exceptions.AxisError),
            ("x", np.float64(1), 0, ValueTypeError),
            ("y", np.array(1.0), 0, ValueTypeError),
            ("y", [[1.0, 2.0]], 0, ValueTypeError),
            ("y", np.array([None]), 0, ValueTypeError),
            ("y", np.ma.masked_array(np.zeros(3)), 0, ValueTypeError),
            ("x", np.ma.masked_array(np.zeros((2, 3))), 0, ValueTypeError),
            ("plain", np.zeros((2, 3)), 0, ValueTypeError),
            ("none", np.zeros((2, 3)), 0, ValueTypeError),
        ]:
            with pytest.raises(error):
                chest.append(key, array, axis)
        assert "y" not in chest
        assert chest["none"] is None
        assert type(chest["plain"]) is np.ndarray
        assert chest["x"].shape == (2, 3)
        assert unfinished(path) == []
        with pytest.raises(ValueTypeError, match="blocked"):
            chest["list"] = [chest["x"]]
        with pytest.raises(ValueTypeError, match="BlockedArray"), chest.edit("x"):
            pass
    with arraychest.open(path, mode="r") as chest, pytest.raises(ReadOnlyChestError):
        chest.append("x", np.zeros((2, 3)))
    audit(path)


def test_an_append_in_a_transaction_is_there_with_it_or_not_at_all(path):
    with arraychest.open(path) as chest:
        chest.append("x", np.zeros(3))
        before = listing(path)
        with pytest.raises(KeyError, match="no"), chest.transaction():
            chest.append("x", np.ones(3))
            chest.append("x", np.ones(4))
            chest.append("y", np.ones(4))
            assert chest["x"].shape == (10,)
            raise KeyError("no")
        assert chest["x"].shape == (3,)
        assert "y" not in chest
        blocks = {name for name in before if "blocks" in name}
        assert {name for name in listing(path) if "blocks" in name} == blocks
        assert unfinished(path) == []
        with chest.transaction():
            chest.append("x", np.ones(3))
            chest.append("x", np.full(2, 2.0))
            chest["y"] = chest["x"]
        np.testing.assert_array_equal(chest["x"], [0, 0, 0, 1, 1, 1, 2, 2])
        np.testing.assert_array_equal(chest["y"], chest["x"])
        assert len(folders(path)) == 2
        chest.compact()
        assert unfinished(path) == []
    audit(path)


def test_two_processes_that_append_at_once_lose_nothing(path):
    def append(number):
        with arraychest.open(path) as chest:
            for at in range(6):
                chest.append("x", np.full(2, number * 10 + at))

    with arraychest.open(path):
        pass
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda number: in_child(lambda say: append(number)), range(2)))
    assert [end.error for end in ends] == [None, None]
    with arraychest.open(path) as chest:
        found = np.asarray(chest["x"])
        assert sorted(found.tolist()) == sorted([0, 1, 2, 3, 4, 5, *range(10, 16)] * 2)
        # Each in its order.
        assert found[found < 10].tolist() == sorted(found[found < 10].tolist())
    audit(path)
    assert len(folders(path)) == 1


# --- readers --------------------------------------------------------------------------------------


def overwrite(chest):
    chest["x"] = np.zeros(3)
    chest.flush()


def delete(chest):
    del chest["x"]
    chest.flush()


@pytest.mark.parametrize("change", [overwrite, delete, lambda chest: chest.append("x", np.ones(3))])
def test_who_holds_it_reads_on_when_its_key_is_changed(path, change):
    array = np.arange(6.0)
    with arraychest.open(path) as chest:
        value = put_blocks(chest, "x", array, ((2, 4),))
        change(chest)
        chest.compact()
        np.testing.assert_array_equal(value, array)
        again = arraychest.open(path)
        again.close()
        np.testing.assert_array_equal(value[1:5], array[1:5])
        assert len(unfinished(path)) == 1
        del value
        gc.collect()
        chest.compact()
        assert unfinished(path) == []
    audit(path)


def test_a_reader_in_another_process_and_a_fork_of_it_read_on(path):
    array = np.arange(6.0)
    with arraychest.open(path) as chest:
        put_blocks(chest, "x", array, ((2, 4),))
        values = [chest["x"]]

        def read(say):
            # A fork has the array, without the chest.
            first = np.asarray(values[0])[:2].tolist()
            with arraychest.open(path, mode="r") as mine:
                other = mine["x"]
                with in_writer():
                    pass
                return first, np.asarray(other).tolist(), np.asarray(values[0]).tolist()

        @contextlib.contextmanager
        def in_writer():
            done = in_child(lambda say: change())
            assert done.error is None, done.error
            yield

        def change():
            with arraychest.open(path) as mine:
                del mine["x"]
                mine.flush()
                mine.compact()
                return os.path.isdir(folder)

        folder = values[0].blocks.path
        done = in_child(read)
        assert done.error is None, done.error
        assert done.result == ([0, 1], array.tolist(), array.tolist())
        assert not os.path.isdir(folder)
        assert len(unfinished(path)) == 1
        np.testing.assert_array_equal(values[0], array)
        values.clear()
        gc.collect()
        chest.compact()
        assert unfinished(path) == []


def test_it_outlives_the_chest_that_gave_it(path):
    with arraychest.open(path) as chest:
        value = put_blocks(chest, "x", np.arange(6), ((2, 4),))
    np.testing.assert_array_equal(value, np.arange(6))
    with arraychest.open(path, mode="w") as chest:
        assert "x" not in chest
        assert folders(path) == []
        np.testing.assert_array_equal(value, np.arange(6))
    del value


def test_one_descriptor_is_held_while_it_lives(path):
    with arraychest.open(path) as chest:
        put_blocks(chest, "x", np.arange(6), ((2, 4),))
        gc.collect()
        assert held(path) == 0
        value = chest["x"]
        assert chest["x"] is value
        np.asarray(value)
        assert held(path) == 1
        del value
        assert held(path) == 0
        for _ in range(3):
            assert chest.verify().ok
            chest["x"].sum()
        assert held(path) == 0


# --- elsewhere ------------------------------------------------------------------------------------


def inodes(folder):
    return {
        name: os.stat(f"{folder}/{name}").st_ino
        for name in os.listdir(folder)
        if name != "manifest"
    }


def test_under_another_key_and_in_another_chest_it_is_linked_and_not_read(path, tmp_path):
    other = str(tmp_path / "other")
    with arraychest.open(path) as chest, arraychest.open(other) as theirs:
        put_blocks(chest, "x", HELD, HELD_CHUNKS)
        with injected(Countdown(0)) as _:
            chest["y"] = chest["x"]
        assert not chest["x"].blocks._open
        theirs.update(chest)
        chest.setdefault("x", chest["y"])
        chest.setdefault("w", chest["y"])
        assert not chest["x"].blocks._open
        first = inodes(folder_of(path, "x"))
        assert len(first) == 2
        for place, key in ((path, "y"), (path, "w"), (other, "x"), (other, "y")):
            assert inodes(folder_of(place, key)) == first
        chest.clear()
        np.testing.assert_array_equal(theirs["x"], HELD)
        assert theirs.verify().ok
    audit(path)
    audit(other)


def test_across_file_systems_it_is_copied(path, tiny_disk):
    other = str(tiny_disk / "other")
    with arraychest.open(path) as chest, arraychest.open(other) as theirs:
        put_blocks(chest, "x", HELD, HELD_CHUNKS)
        theirs.update(chest)
        theirs["y"] = chest["x"]
        chest.clear()
        for key in ("x", "y"):
            np.testing.assert_array_equal(theirs[key], HELD)
        assert theirs.verify().ok
        put_blocks(chest, "large", np.zeros(1 << 21), ((1 << 19,) * 4,))
        with pytest.raises(SpillError):
            theirs["z"] = chest["large"]
        assert "z" not in theirs
        assert unfinished(other) == []
        # tmpfs has links.
        assert inodes(folder_of(other, "x")) != {}
    audit(other)


def test_in_any_mmap_mode_it_is_read_only(path):
    with arraychest.open(path) as chest:
        put_blocks(chest, "x", HELD, HELD_CHUNKS)
    with arraychest.open(path, mmap_mode="c") as chest:
        found = chest["x"]
        assert type(found) is arraychest.BlockedArray
        assert not found[0:2].flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            found[0:2][0] = 1
        chest.append("x", HELD)
        assert chest["x"].shape == (120, 50)
        assert chest.verify().ok


def test_a_temporary_chest_holds_one_and_leaves_nothing(nothing_left_behind):
    with arraychest.Chest() as chest:
        chest.append("x", HELD)
        chest.append("x", HELD)
        value = chest["x"]
        view = value[3]
        np.testing.assert_array_equal(view, HELD[3])
    assert os.listdir(nothing_left_behind) == []
    np.testing.assert_array_equal(view, HELD[3])
    del value


def test_its_folder_is_called_as_the_user_says_and_the_entry_tells_of_it(path):
    with arraychest.open(path, key_to_filename=lambda key: f"my-{key}") as chest:
        chest.append("x", HELD)
        chest.append("x", HELD)
        entry = chest.entry("x")
        assert os.path.basename(entry.file).startswith("my-x-")
        assert entry.file == chest.key_to_filename("x")
        assert (entry.kind, entry.codec) == ("blocked", "blocks")
        assert (entry.shape, entry.dtype, entry.nbytes) == ((120, 50), HELD.dtype, 2 * HELD.nbytes)
        assert entry.stored_bytes == sum(
            os.path.getsize(f"{entry.file}/{name}") for name in os.listdir(entry.file)
        )
        handle = pickle.loads(pickle.dumps(chest.handle("x")))
        np.testing.assert_array_equal(handle.array()[60:], HELD)
        assert chest.verify().ok
    with arraychest.open(path) as chest:
        assert chest["x"].shape == (120, 50)
    audit(path)


def test_on_a_medium_that_is_read_only_it_is_read(tiny_disk):
    path = tiny_disk / "c"
    with arraychest.open(path) as chest:
        put_blocks(chest, "x", HELD, HELD_CHUNKS)
    del chest  # what is mapped to be written to keeps the medium busy
    gc.collect()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with arraychest.open(path, "r") as chest:
        np.testing.assert_array_equal(chest["x"], HELD)
        assert chest.verify().ok
        with pytest.raises(ReadOnlyChestError):
            chest["y"] = chest["x"]


def test_it_is_exported_and_imported(path, tmp_path):
    with arraychest.open(path) as chest:
        put_blocks(chest, "x", HELD, HELD_CHUNKS)
        chest.export(tmp_path / "out.npz")
        with np.load(tmp_path / "out.npz") as found:
            np.testing.assert_array_equal(found["x"], HELD)


def test_durable_blocks_are_synced_before_they_have_their_names(path):
    synced, renamed = [], []

    def action(name, args, call):
        if name == "fsync":
            synced.append(os.readlink(f"/proc/self/fd/{args[0]}"))
        if name in ("rename", "link"):
            renamed.append((args[0], args[1], list(synced)))
        return call()

    with arraychest.open(path, durable=True) as chest:
        chest.append("x", np.zeros(3))
        synced.clear()
        with injected(action):
            chest.append("x", np.ones(3))
        assert chest.verify().ok
    links = [each for each in renamed if each[1].endswith("1.npy")]
    assert links
    for source, _, before in links:
        assert source in before
    # The first time its folder may not be there.
    *_, (source, target, before) = [
        each for each in renamed if each[1].endswith(".blocks") and "/data/" in each[1]
    ]
    # The manifest, the folder with all names in it, and then the folder that it is moved to.
    assert f"{source}/manifest" in before
    assert source in before
    assert os.path.dirname(target) in synced[len(before) :]
