"""Several dask arrays stored together, parts of stored arrays, and what `store` refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import arraychest
from arraychest.errors import AbsentKeyError, ValueTypeError

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from arraychest.dask import append, persist, store  # noqa: E402
from arraychest.integrations import dask_arrays  # noqa: E402


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="sync"):
        yield
    dask_arrays._opened.cache_clear()


class Counted:
    """Counts how many blocks are computed."""

    def __init__(self):
        self.runs = 0

    def __call__(self, block):
        self.runs += 1
        return block + 1

    def __dask_tokenize__(self):
        return "counted", id(self)


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture
def x(counted):
    meta = np.empty(0, np.int64)
    return da.arange(100, chunks=10).map_blocks(counted, dtype=np.int64, meta=meta)


RIGHT = np.arange(1, 101)


def test_what_several_arrays_are_computed_of_is_computed_once(path, x, counted):
    with arraychest.open(path) as chest:
        assert store([x * 2, x * 3], chest, ["a", ("b", 1)]) is None
        assert counted.runs == 10
        assert (chest["a"] == RIGHT * 2).all()
        assert (chest["b", 1] == RIGHT * 3).all()
        found = store((x + 5, x + 7), chest, ["c", "d"], return_stored=True)
        assert [each.chunks for each in found] == [x.chunks] * 2
        assert [each.sum().compute() for each in found] == [RIGHT.sum() + 500, RIGHT.sum() + 700]


def test_several_arrays_are_stored_together_or_none_is(path, x):
    def fails(block):
        raise ZeroDivisionError

    bad = x.map_blocks(fails, dtype=np.int64, meta=np.empty(0, np.int64))
    with arraychest.open(path) as chest:
        chest["a"] = np.zeros(3)
        with pytest.raises(ZeroDivisionError):
            store([x, bad], chest, ["a", "b"])
        assert chest["a"].shape == (3,)
        assert "b" not in chest


@pytest.mark.parametrize("return_stored", [False, True])
def test_stores_that_are_computed_together_share_their_tasks(path, x, counted, return_stored):
    with arraychest.open(path) as chest:
        lazy = [store(x * n, chest, n, compute=False, return_stored=return_stored) for n in (2, 3)]
        several = store([x * 4, x * 5], chest, [4, 5], compute=False, return_stored=return_stored)
        lazy += several if return_stored else [several]
        assert counted.runs == 0
        assert len(chest) == 0
        dask.compute(*lazy)
        assert counted.runs == 10
        for n in (2, 3, 4, 5):
            assert (chest[n] == RIGHT * n).all()


def test_a_region_takes_the_place_of_a_part_and_leaves_the_other_blocks_alone(path, x, counted):
    with arraychest.open(path) as chest:
        store(x, chest, "x")
        counted.runs = 0
        before = chest["x"].blocks.manifest.blocks.copy()
        store(da.zeros(25, chunks=4), chest, "x", regions=(slice(15, 40),))
        after = chest["x"]
        expected = RIGHT.copy()
        expected[15:40] = 0
        assert (np.asarray(after) == expected).all()
        assert after.dtype == np.int64
        assert after.chunks == x.chunks
        assert counted.runs == 0
        # Their stamps say that the blocks are the very files.
        same = (after.blocks.manifest.blocks == before).all(axis=1)
        assert same.tolist() == [number not in (1, 2, 3) for number in range(10)]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_regions_of_several_arrays_and_of_plain_ones(path, compression):
    with arraychest.open(path, compression=compression, compress_above=1000) as chest:
        first, second = np.arange(600.0).reshape(20, 30), np.arange(40.0).reshape(4, 10)
        chest.update({"a": first, "b": second.copy()})
        chest.flush()
        regions = [np.s_[5:, ::2], np.s_[..., 1:3]]
        parts = [da.ones((15, 15), chunks=4), da.full((4, 2), 7, chunks=1)]
        store(parts, chest, ["a", "b"], regions=regions)
        expected = first.copy()
        expected[5:, ::2] = 1
        assert (np.asarray(chest["a"]) == expected).all()
        expected = second.copy()
        expected[:, 1:3] = 7
        assert (np.asarray(chest["b"]) == expected).all()


def test_a_region_that_fails_leaves_the_value(path, x):
    def fails(block):
        raise ZeroDivisionError

    with arraychest.open(path) as chest:
        store(x, chest, "x")
        bad = da.ones(10, chunks=5).map_blocks(fails, dtype=float, meta=np.empty(0))
        with pytest.raises(ZeroDivisionError):
            store(bad, chest, "x", regions=np.s_[:10])
        assert (chest["x"] == RIGHT).all()
        with pytest.raises(ValueError, match=r"expected an array of shape \(3,\).*found \(100,\)"):
            store(x, chest, "x", regions=np.s_[:3])
        with pytest.raises(AbsentKeyError):
            store(x, chest, "absent", regions=np.s_[:3])
        with pytest.raises(ValueError, match="stored at once"):
            store(x, chest, "x", regions=np.s_[:3], compute=False)
        with pytest.raises(ValueError, match="as many regions as arrays, 1, found 2"):
            store(x, chest, "x", regions=[np.s_[:3]] * 2)


def masked():
    return da.ma.masked_array(da.ones(4), da.zeros(4, dtype=bool))


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (5, TypeError, "expected a dask array, found int"),
        ([5], TypeError, "expected a dask array, found int"),
        (np.ones(3), TypeError, "found ndarray"),
        (da.from_array(np.array([1, "a"], object), 1), ValueTypeError, "found object.*astype"),
        (masked(), ValueTypeError, "MaskedArray.*filled"),
    ],
    ids=["int", "list", "array", "objects", "masked"],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_computed(chest, value, error, match):
    key = ["x"] if isinstance(value, list) else "x"
    with pytest.raises(error, match=match):
        store(value, chest, key)
    assert "x" not in chest


def test_what_cannot_be_appended_is_refused_before_anything_is_computed(path, x, counted):
    with arraychest.open(path) as chest:
        store(x, chest, "x")
        counted.runs = 0
        for bad, error in [
            (da.ma.masked_greater(x, 3), ValueTypeError),
            (x.astype(object), ValueTypeError),
            (5, TypeError),
        ]:
            with pytest.raises(error):
                append(bad, chest, "x")
            with pytest.raises(error):
                persist(bad, chest)
        assert counted.runs == 0
        assert list(chest) == ["x"]
        assert (chest["x"] == RIGHT).all()


@pytest.mark.parametrize("keys", ["ab", ("a", "b"), ["a"], ["a", "b", "c"]])
def test_there_are_as_many_keys_as_arrays(chest, x, keys):
    with pytest.raises(ValueError, match="expected a list of as many keys"):
        store([x, x + 1], chest, keys)


def test_a_dask_array_that_is_put_is_told_where_to_go(chest, x):
    with pytest.raises(ValueTypeError, match=r"arraychest\.dask\.store\(x, chest, key\)"):
        chest["x"] = x
    with pytest.raises(ValueTypeError, match=r"arraychest\.dask\.store"):
        chest["x"] = {"a": [x]}


@pytest.mark.parametrize("kind", ["plain", "compressed", "blocked", "packed"])
def test_from_array_of_what_a_get_gives_is_as_to_dask(path, kind):
    array = np.arange(40_000.0 if kind != "packed" else 100.0)
    options = {"compression": "zstd", "compress_above": 1000} if kind == "compressed" else {}
    with arraychest.open(path, **options) as chest:
        if kind == "blocked":
            store(da.from_array(array, 7000), chest, "x")
        else:
            chest["x"] = array.copy()
        chest.flush()
        chest.spill("x")
        there, other = da.from_array(chest["x"]), chest.to_dask("x")
        assert there.dtype == other.dtype
        assert there.shape == other.shape
        assert (there.compute() == array).all()
        assert (there[30:50].compute() == other[30:50].compute()).all()
        assert da.from_array(chest["x"]).name == there.name


@pytest.mark.parametrize("kind", ["blocked", "compressed", "blocks that are compressed", "Fortran"])
@pytest.mark.parametrize("chunks", ["auto", 70])
def test_from_array_of_a_lazy_array_carries_its_place_and_reads_what_it_needs(
    path, kind, chunks, monkeypatch
):
    array = np.arange(60_000.0).reshape(300, 200)
    compression = None if kind == "blocked" else "zstd"
    with arraychest.open(path, compression=compression, compress_above=1000) as chest:
        if kind.startswith("block"):
            store(da.from_array(array, 70), chest, "x")
        else:
            chest["x"] = np.asfortranarray(array) if kind == "Fortran" else array.copy()
        chest.spill("x")
        lazy = chest["x"]
        assert isinstance(lazy, arraychest.LazyArray)

        def whole(self, dtype=None, copy=None):
            raise AssertionError("it was read whole")

        monkeypatch.setattr(arraychest.LazyArray, "__array__", whole)
        monkeypatch.setattr(arraychest.BlockedArray, "__array__", whole)
        there, other = da.from_array(lazy, chunks), chest.to_dask("x", chunks)
        # dask itself makes one block of several small ones.
        assert there.chunks == other.chunks or chunks == "auto"
        assert type(there._meta) is np.ndarray
        assert there.dtype == array.dtype
        assert len(pickle.dumps(dict(there.__dask_graph__()))) < 5000
        again = pickle.loads(pickle.dumps(there))
        assert again.name == there.name == da.from_array(chest["x"], chunks).name
        for found in (there, again):
            assert np.array_equal(found.compute(), array)
            assert np.array_equal(found[3:200:7, 5].compute(), array[3:200:7, 5])
        monkeypatch.undo()
        # What a user asks for is an array of their own, as ever.
        mine = lazy.copy()
        assert type(mine) is np.ndarray
        mine[0] = 1
        assert np.array_equal(lazy, array)
        # And what is gone is said to be.
        place = pickle.dumps(there)
        del there, other, again, found, lazy
        del chest["x"]
        chest.flush()
        chest.compact()
    with pytest.raises(arraychest.CorruptEntryError, match="found none"):
        pickle.loads(place).compute()


def test_from_array_of_a_compressed_part_of_a_tree(path):
    array = np.arange(60_000.0).reshape(300, 200)
    with arraychest.open(path, compression="zstd", compress_above=1000) as chest:
        chest["x"] = {"a": array.copy()}
        chest.spill("x")
        found = da.from_array(chest["x"]["a"], 100)
        assert np.array_equal(pickle.loads(pickle.dumps(found)).compute(), array)
