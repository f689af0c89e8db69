"""dask arrays over stored arrays."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import arraychest
from arraychest.errors import AbsentKeyError, ValueTypeError
from tests.support import run_python

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from arraychest.dask.arrays import StoredArray  # noqa: E402


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


def test_blocks_are_views_of_the_map(path):
    with arraychest.Chest({"x": field()}, path, compression=None) as chest:
        x = chest.to_dask("x", chunks=200)
        flags = x.map_blocks(lambda block: np.array([[block.flags.owndata, block.flags.writeable]]))
        assert not flags.compute(scheduler="sync").any()


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
