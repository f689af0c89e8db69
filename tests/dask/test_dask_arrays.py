"""dask arrays over stored arrays."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import arraychest
from arraychest.arrays.ownership import owner_of
from arraychest.errors import AbsentKeyError, ValueTypeError
from arraychest.platform import maps as mmap
from arraychest.platform.maps import is_map
from tests.support import run_python

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from arraychest.dask import caching, persist, store  # noqa: E402
from arraychest.integrations import dask_arrays  # noqa: E402
from arraychest.integrations.dask_arrays import StoredArray  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    """No array stays open behind a test."""
    yield
    dask_arrays._opened.cache_clear()


def field(order="C"):
    return np.asarray(np.add.outer(np.arange(600.0), np.arange(500.0) / 7), order=order)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_it_computes_what_numpy_does(path, order, compression):
    array = field(order)
    with (
        arraychest.Chest({"x": array}, path, compression=compression) as chest,
        ThreadPoolExecutor(2) as pool,
    ):
        x = chest.to_dask("x", chunks=(200, 150))
        assert (x.shape, x.dtype) == (array.shape, array.dtype)
        with dask.config.set(pool=pool):
            np.testing.assert_allclose((x + 1).sum(axis=0).compute(), (array + 1).sum(axis=0))
            np.testing.assert_array_equal(x[10:300:7, -3:].compute(), array[10:300:7, -3:])
            np.testing.assert_allclose((x @ x.T)[5, 7].compute(), array[5] @ array[7])


@pytest.mark.slow
def test_other_processes_read_it(path):
    with arraychest.Chest({"x": field()}, path) as chest:
        chest.flush()
        # In a process of its own: multiprocessing leaves one behind that tracks its resources.
        run_python(f"""
            import arraychest, dask, multiprocessing
            from concurrent.futures import ProcessPoolExecutor
            if __name__ == "__main__":
                with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
                    with arraychest.open({str(path)!r}, "r") as chest:
                        x = chest.to_dask("x", chunks=(200, 150))
                        found = (x + 1).sum().compute(scheduler="processes", pool=pool)
                assert abs(found - {float((field() + 1).sum())!r}) < 1e-3, found
        """)


def test_a_small_value_and_one_of_every_shape(path):
    values = {
        "small": np.arange(12.0).reshape(3, 4),
        "scalar-like": np.array(5),
        "empty": np.empty((0, 3), "i2"),
        "big-endian": np.arange(5, dtype=">i4"),
        "structured": np.zeros(4, [("a", "i4"), ("b", "f8")]),
    }
    with arraychest.Chest(path=path) as chest:
        chest.update(values)
        for key, value in values.items():
            found = chest.to_dask(key).compute(scheduler="sync")
            np.testing.assert_array_equal(found, value)
            assert (found.dtype, found.shape) == (value.dtype, value.shape)


def test_its_name_says_which_value_it_is_and_no_byte_is_read(path, monkeypatch):
    with arraychest.Chest({"x": field()}, path, compression=None) as chest:
        one, other = chest.to_dask("x", chunks=200), chest.to_dask("x", chunks=200)
        assert one.name == other.name
        assert chest.to_dask("x", chunks=300).name != one.name
        chest["x"] = field() + 1
        assert chest.to_dask("x", chunks=200).name != one.name
        handle = chest.handle("x")
    # Overwritten before anybody had opened it, and removed at the latest by the close.
    with pytest.raises(AbsentKeyError):
        one.compute(scheduler="sync")
    monkeypatch.setattr(StoredArray, "__getitem__", lambda *_: pytest.fail("it was read"))
    assert dask.base.tokenize(StoredArray(handle)) == dask.base.tokenize(StoredArray(handle))


def test_its_tasks_carry_a_handle_and_no_data(path):
    with arraychest.Chest({"x": field()}, path) as chest:
        x = chest.to_dask("x", chunks=(300, 250))
        assert len(pickle.dumps(dict(x.__dask_graph__()))) < 10_000


def test_blocks_of_a_plain_array_are_read_only_and_no_views_of_its_map(path):
    with arraychest.Chest({"x": field()}, path, compression=None) as chest:
        x = chest.to_dask("x", chunks=200)
        flags = x.map_blocks(
            lambda block: np.array([[is_map(owner_of(block)), block.flags.writeable]])
        )
        assert not flags.compute(scheduler="sync").any()
        block = x.blocks[1, 1].compute(scheduler="sync")
    np.testing.assert_array_equal(block, field()[200:400, 200:400])


@pytest.mark.slow
def test_what_was_read_takes_no_memory_once_it_is_gone(path):
    # In a process of its own, which nothing else has mapped files in.
    run_python(
        """
        import sys, numpy as np, dask, dask.array as da, arraychest
        from arraychest.dask import store
        from arraychest.integrations.dask_arrays import StoredArray
        from arraychest.dask.pages import resident_bytes

        shape, step = (2000, 4000), 500  # 64 MB; rows of blocks of 4 kB lie 32 kB apart
        x = np.random.default_rng(0).integers(0, 4000, shape).astype(np.float64)
        with arraychest.open(sys.argv[1], compression=None) as chest:
            chest["plain"] = x
            store(da.from_array(x, (500, 1000)), chest, "blocked", scheduler="sync")
            chest.update({("packed", row): x[row, :4000:2].copy() for row in range(1000)})
        with arraychest.open(sys.argv[1], compression="lz4") as chest:
            chest["compressed"] = x
            store(da.from_array(x, (500, 1000)), chest, "compressed blocks", scheduler="sync")
        with arraychest.open(sys.argv[1], "r") as chest:
            assert chest.entry("compressed").stored_bytes > 16e6
            assert chest.entry(("packed", 0)).codec == "pack"
            for key in ("plain", "blocked", "compressed", "compressed blocks"):
                stored = StoredArray(chest.handle(key))
                stored[:10, :10]
                before = resident_bytes()[1]
                most = 0
                for i in range(0, shape[0], step):
                    for j in range(0, shape[1], step):
                        block = stored[i : i + step, j : j + step]
                        assert np.array_equal(block, x[i : i + step, j : j + step])
                        # Of a block that is a view of its map, its pages.
                        most = max(most, resident_bytes()[1] - before)
                        del block
                left = resident_bytes()[1] - before
                assert left < 3e6 and most < 9e6, (key, left, most)
            before = resident_bytes()[1]
            for row in range(1000):
                block = StoredArray(chest.handle(("packed", row)))[1:]
                assert np.array_equal(block, x[row, 2:4000:2])
            assert resident_bytes()[1] - before < 3e6, "packed"
        """,
        str(path),
    )


def test_an_array_that_is_pickled_keeps_no_blocks_open(path):
    array = np.arange(4e6).reshape(2000, 2000)
    with arraychest.open(path, compression=None) as chest:
        store(da.from_array(array, 500), chest, "x", scheduler="sync")
        there = pickle.loads(pickle.dumps(chest["x"]))
        for at in range(0, 2000, 500):
            np.testing.assert_array_equal(there[at : at + 500], array[at : at + 500])
        assert not there.blocks._open
        x = da.from_array(there, 500)
        np.testing.assert_array_equal(x.compute(scheduler="sync"), array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_part_of_a_map_is_copied_piece_by_piece(tmp_path, monkeypatch, order):
    monkeypatch.setattr(mmap, "_COPIED_BYTES", 4096)
    array = np.arange(60_000, dtype="i4").reshape(30, 40, 50)
    (tmp_path / "file").write_bytes(array.tobytes())
    with open(tmp_path / "file", "rb") as file:
        base = mmap.map_file(file.fileno(), array.nbytes)
    mapped = base.view("i4").reshape(array.shape, order=order)
    whole = mapped.copy()
    for where in (
        np.s_[:],
        np.s_[3:20, ::7, -1:],
        np.s_[::-1, 5, ::-3],
        np.s_[29, 39, 49],
        np.s_[:0],
        np.s_[:, None, 1:2],
        np.s_[..., 0],
    ):
        copy = mmap.copied_out(np.asarray(mapped[where]))
        np.testing.assert_array_equal(copy, whole[where])
        assert not copy.flags.writeable
        assert not np.shares_memory(copy, mapped)


def test_pages_are_released_of_maps_that_are_only_read(tmp_path):
    (tmp_path / "file").write_bytes(bytes(8192))
    with open(tmp_path / "file", "rb") as file:
        private = mmap.map_file(file.fileno(), 8192, "c")
    private[:] = 7
    mmap.release(private[10:])
    own = np.full(1 << 20, 7, np.uint8)
    mmap.release(own)
    assert (private == 7).all()
    assert (own == 7).all()


# --- tokens -----------------------------------------------------------------------------------

LARGE = np.arange(200_000.0)
VALUES = {
    "plain": lambda chest, n, key="x": chest.put(key, LARGE + n, compression=None),
    "compressed": lambda chest, n, key="x": chest.put(
        key, np.zeros(200_000) + n, compression="lz4"
    ),
    "packed": lambda chest, n, key="x": chest.put(key, np.arange(10.0) + n),
    "blocked": lambda chest, n, key="x": store(
        # The name is always the same: what is stored is not.
        da.from_array(LARGE + n, 50_000, name="same"), chest, key, scheduler="sync"
    ),
}  # fmt: skip


@pytest.fixture(params=VALUES)
def put(request):
    return VALUES[request.param]


def tokens(chest):
    """Of the dask array, and of one over what a get gives."""
    found = chest["x"]
    other = da.from_array(found, name=None) if isinstance(found, np.ndarray) else found
    return chest.to_dask("x").name, dask.base.tokenize(other)


@pytest.mark.parametrize("how", ["removed", "emptied", "overwritten", "deleted", "moved away"])
def test_a_value_of_a_chest_that_is_built_again_is_another(path, tmp_path, put, how):
    seen = set()
    for n in range(3):
        if how == "removed":
            shutil.rmtree(path, ignore_errors=True)
        elif how == "moved away" and n:
            os.rename(path, tmp_path / f"old-{n}")
        with arraychest.Chest(path=path, mode="w" if how == "emptied" else "a") as chest:
            if how == "deleted":
                chest.pop("x", None)
            put(chest, n)
            chest.flush()
            right = float(np.asarray(chest["x"])[0])
            assert right == n
            with dask.config.set(scheduler="sync"):
                assert float(chest.to_dask("x")[0].compute()) == n
                stored = da.from_array(chest["x"], chunks=50_000)
                assert float(stored[0].compute()) == n
            found = tokens(chest)
            assert seen.isdisjoint(found)
            seen.update(found)


@pytest.mark.slow
def test_the_same_value_has_one_token_in_all_processes_and_places(path, tmp_path):
    program = """
        import json, sys, arraychest, dask
        with arraychest.open(sys.argv[1], "r") as chest:
            found = {}
            for key in chest:
                found[key] = chest.to_dask(key).name, dask.base.tokenize(chest[key])
            print(json.dumps(found))
    """

    def found(chest):
        return {key: [chest.to_dask(key).name, dask.base.tokenize(chest[key])] for key in VALUES}

    with arraychest.Chest(path=path) as chest:
        for key, put in VALUES.items():
            put(chest, 1, key)
        chest.flush()
        names = found(chest)
        assert found(chest) == names
        assert json.loads(run_python(program, str(path)).stdout) == names
    moved = tmp_path / "moved"
    os.rename(path, moved)
    with arraychest.open(moved) as chest:
        assert found(chest) == names
        for key, put in VALUES.items():
            put(chest, 1, key)
            assert chest.to_dask(key).name != names[key][0]


def test_an_edited_value_is_another(path):
    with arraychest.Chest({"x": LARGE, "small": np.arange(3.0)}, path, compression=None) as chest:
        for key in ("x", "small"):
            before = chest.to_dask(key)
            with chest.edit(key) as array:
                array[0] = 9
            after = chest.to_dask(key)
            assert after.name != before.name
            assert float(after[0].compute(scheduler="sync")) == 9


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_value_that_is_edited_in_place_is_another_each_time(path, size):
    names = set()
    with arraychest.Chest({"x": np.zeros(size)}, path, compression=None) as chest:
        names.add(chest.to_dask("x").name)
        with arraychest.Chest(path=path) as writer:
            with writer.edit("x", in_place=True) as array:
                for n in range(1, 4):
                    array[-1] = n
                    for each in (chest, writer):
                        x = each.to_dask("x")
                        assert float(x[-1].compute(scheduler="sync")) == n
                    assert chest.to_dask("x").name == writer.to_dask("x").name
                    names.add(x.name)
            assert chest.to_dask("x").name == writer.to_dask("x").name
            names.add(chest.to_dask("x").name)
    assert len(names) == 5


@pytest.mark.parametrize("keeps", ["caching", "persist"])
def test_what_is_kept_of_a_chest_is_not_taken_for_another_one_s(path, put, keeps):
    found = []
    with arraychest.Chest() as kept, dask.config.set(scheduler="sync"):
        for n in range(3):
            shutil.rmtree(path, ignore_errors=True)
            with arraychest.Chest(path=path) as chest:
                put(chest, n)
                chest.flush()
                x = chest.to_dask("x", chunks=-1)[:1]
                x = x.map_blocks(slowly, dtype=float)
                if keeps == "persist":
                    found.append(float(persist(x, kept).compute()[0]))
                else:
                    with caching(kept):
                        found.append(float(x.compute()[0]))
    assert found == [0, 1, 2]


@pytest.mark.parametrize("prefix", ["run", "run/"])
def test_a_group_keeps_what_is_worth_keeping_under_its_own_keys(prefix):
    computed = []

    def noted(block):
        computed.append(block.shape)
        return slowly(block)

    with arraychest.Chest() as chest, dask.config.set(scheduler="sync"):
        group = chest.group(prefix)
        x = da.zeros((3, 4), chunks=-1).map_blocks(noted, dtype=float, meta=np.zeros((0, 0)))
        for _ in range(2):
            with caching(group):
                x.compute()
        assert list(chest) == [group.full_key(key) for key in group]
        # A group of str keys has no place for the key, which is a tuple.
        assert len(computed) == (1 if prefix == "run" else 2)
        assert bool(group) == (prefix == "run")


def slowly(block):
    time.sleep(0.01)  # worth keeping
    return block + 0.0


def test_what_was_opened_stays_readable_whatever_becomes_of_the_key(path):
    with arraychest.Chest({"x": field()}, path) as chest:
        x = chest.to_dask("x", chunks=200)
        x.sum().compute(scheduler="sync")
        chest["x"] = field() + 1
        chest.flush()
        np.testing.assert_array_equal(x.compute(scheduler="sync"), field())


def test_blocks_of_a_compressed_array_are_of_whole_chunks(path):
    array = np.zeros((4000, 2000))
    with arraychest.Chest({"x": array}, path, compression="lz4") as chest:
        chest.flush()
        step = chest.entry("x").chunks
        with dask.config.set({"array.chunk-size": "8 MiB"}):
            x = chest.to_dask("x")
        assert x.numblocks > (1, 1) or x.numblocks[0] > 1
        for sizes, chunk in zip(x.chunks, step, strict=True):
            assert all(size % chunk == 0 for size in sizes[:-1])


def test_what_is_no_array_is_refused(path):
    with arraychest.Chest({"x": [1, 2]}, path) as chest:
        with pytest.raises(ValueTypeError, match="tree"):
            chest.to_dask("x")
        with pytest.raises(AbsentKeyError):
            chest.to_dask("y")
