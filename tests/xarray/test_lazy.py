"""Reading: only the chunks that are needed, in threads, tasks and several chests at once."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter

import numpy as np
import pytest

import arraychest
from arraychest.arrays.compressed import CompressedArray

xr = pytest.importorskip("xarray")
da = pytest.importorskip("dask.array")

from arraychest.storage.reading import _BlocksOf  # noqa: E402
from arraychest.xarray import save  # noqa: E402
from tests.xarray.support import STRINGDTYPE, check_same, opened  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pool")

RIGHT = np.arange(24 * 30 * 40.0).reshape(24, 30, 40)
CHUNKS = (6, 10, 10)  # 4 * 3 * 4


@pytest.fixture
def reads(monkeypatch):
    """Which blocks were read, and how often."""
    seen = Counter()
    block = _BlocksOf.block

    def counted(self, index):
        seen[index] += 1
        return block(self, index)

    monkeypatch.setattr(_BlocksOf, "block", counted)
    return seen


def points(*values):
    return xr.DataArray(list(values), dims="p")


NEEDED = {
    "one element": ({"t": 7, "y": 11, "x": 39}, {(1, 1, 3)}),
    "a time slice": ({"t": 3}, {(0, y, x) for y in range(3) for x in range(4)}),
    "a box": ({"t": slice(6, 12), "y": slice(0, 10), "x": slice(9, 11)}, {(1, 0, 0), (1, 0, 1)}),
    "steps": ({"t": slice(0, 24, 12), "y": 0, "x": 0}, {(0, 0, 0), (2, 0, 0)}),
    "backwards": ({"t": slice(None, None, -23), "y": 0, "x": 0}, {(3, 0, 0), (0, 0, 0)}),
    "outer": ({"t": [0, 23], "y": [29, 1], "x": [5]}, {(t, y, 0) for t in (0, 3) for y in (0, 2)}),
    "outer with a slice": ({"t": [23, 0], "x": [39, 0, 39]}, {(t, y, x) for t in (0, 3) for y in range(3) for x in (0, 3)}),
    "a mask": ({"t": np.arange(24) == 13, "y": 0, "x": [0, 39]}, {(2, 0, 0), (2, 0, 3)}),
    "points": ({"t": points(0, 23, 12), "y": points(0, 29, 15), "x": points(0, 39, -20)}, {(0, 0, 0), (3, 2, 3), (2, 1, 2)}),
    "points with a slice": ({"t": points(1, 20), "x": points(35, 2), "y": slice(0, 10)}, {(0, 0, 3), (3, 0, 0)}),
    "nothing": ({"t": slice(3, 3)}, set()),
}  # fmt: skip


@pytest.mark.parametrize("what", NEEDED)
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}])
def test_only_the_blocks_that_are_needed_are_read(path, reads, what, options):
    where, needed = NEEDED[what]
    right = xr.Dataset({"v": (("t", "y", "x"), RIGHT)})
    save(right, path, encoding={"v": {"chunks": CHUNKS}}, **options)
    found = opened(path).isel(where)
    assert not found.v.variable._in_memory
    assert not reads
    np.testing.assert_array_equal(found.v.values, right.isel(where).v.values)
    assert found.v.dims == right.isel(where).v.dims
    assert reads == dict.fromkeys(needed, 1)


def test_only_the_chunks_of_a_compressed_array_that_are_needed_are_read(path, monkeypatch):
    right = xr.Dataset({"v": (("t", "x"), np.arange(2_000_000.0).reshape(1000, 2000) // 7)})
    save(right, path, compression="zstd")
    seen = []
    read = CompressedArray._read

    def counted(self, where):
        seen.append([part.stop - part.start for part in where])
        return read(self, where)

    monkeypatch.setattr(CompressedArray, "_read", counted)
    found = opened(path).v
    where = {"t": points(3, 997), "x": points(5, 1990)}
    np.testing.assert_array_equal(found.isel(where), right.v.isel(where))
    where = {"t": [3, 997], "x": [5, 1990]}
    np.testing.assert_array_equal(found.isel(where), right.v.isel(where))
    rows, columns = found.encoding["preferred_chunks"].values()
    rows = rows if isinstance(rows, int) else rows[0]
    columns = columns if isinstance(columns, int) else columns[0]
    assert max(a * b for a, b in seen) <= rows * columns
    assert len(seen) <= 8


@pytest.mark.parametrize("chunked", [False, True])
def test_any_index_is_as_xarray_reads_it_in_memory(path, chunked):
    random = np.random.default_rng(5)
    right = xr.Dataset(
        {
            "v": (("t", "y", "x"), RIGHT),
            "s": (("t", "y"), RIGHT[..., 0].astype("T" if STRINGDTYPE else "U")),
        }
    )
    encoding = {"v": {"chunks": CHUNKS}, "s": {"chunks": CHUNKS[:2]}} if chunked else {}
    save(right, path, encoding=encoding)
    found = opened(path)

    def one(n, share):
        return [
            int(random.integers(-n, n)),
            slice(*sorted(random.integers(0, n + 1, 2).tolist()), int(random.integers(1, 4))),
            slice(None, None, -int(random.integers(1, 4))),
            random.integers(-n, n, 3),
            random.random(n) < 0.2,
            xr.DataArray(random.integers(-n, n, (2, 3)), dims=("p", "q")),
            xr.DataArray(random.integers(-n, n, 3), dims="q"),
        ][random.integers(7)]

    for _ in range(200):
        where = {dim: one(n, 0) for dim, n in right.sizes.items() if random.random() < 0.8}
        xr.testing.assert_identical(found.isel(where).load(), right.isel(where))
        again = dict.fromkeys(list(right.isel(where).sizes)[:1], -1)
        if 0 not in right.isel(where).sizes.values():
            xr.testing.assert_identical(found.isel(where).isel(again).load(), right.isel(where).isel(again))  # fmt: skip


def test_a_packed_variable_is_unpacked_where_it_is_read(path, reads):
    right = xr.Dataset({"v": (("t", "y", "x"), RIGHT % 100)})
    packing = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1, "chunks": CHUNKS}
    save(right, path, encoding={"v": packing})
    found = opened(path).v[3, 4, 5]
    assert not reads
    assert found.values == right.v[3, 4, 5]
    assert reads == {(0, 0, 0): 1}


def test_a_dataset_is_loaded_by_tasks(path):
    right = xr.Dataset({name: (("t", "y", "x"), RIGHT * n) for n, name in enumerate("abc")})
    save(right, path, encoding={"b": {"chunks": CHUNKS}})
    if not hasattr(xr.Dataset, "load_async"):
        pytest.skip("this xarray loads without tasks")

    async def load():
        found = opened(path)
        rows = [found.isel(t=at).load_async() for at in (0, [5, 3])]
        where = {"t": points(0, 3), "x": points(1, 5)}
        return await asyncio.gather(found.load_async(), *rows, found.b.isel(where).load_async())

    async def work():
        loop = asyncio.get_running_loop()
        try:
            return await load()
        finally:
            await loop.shutdown_default_executor()

    whole, first, two, some = asyncio.run(work())
    check_same(whole, right)
    xr.testing.assert_identical(first, right.isel(t=0))
    xr.testing.assert_identical(two, right.isel(t=[5, 3]))
    xr.testing.assert_identical(some, right.b.isel(t=points(0, 3), x=points(1, 5)))


@pytest.mark.parametrize("options", [{}, {"combine": "nested", "concat_dim": "t"}])
def test_several_chests_are_one_dataset(tmp_path, options):
    right = xr.Dataset(
        {
            "v": (("t", "x"), RIGHT[..., 0]),
            "s": ("t", np.array([f"{n}" for n in range(24)], object)),
        },
        {"t": np.arange(24), "x": np.arange(30)},
    )
    paths = []
    for first in range(0, 24, 8):
        paths.append(str(tmp_path / f"{first:02}.chest"))
        save(right.isel(t=slice(first, first + 8)), paths[-1])
    for names in (paths, str(tmp_path / "*.chest")):
        found = xr.open_mfdataset(names, engine="arraychest", **options)
        assert found.v.chunks[0] == (8, 8, 8)
        with found:
            xr.testing.assert_identical(found.compute(scheduler="sync"), right)
    options = {**options, "engine": "arraychest", "preprocess": lambda each: each[["v"]]}
    with xr.open_mfdataset(paths, **options) as found:
        assert found.v.sum().compute(scheduler="sync") == right.v.sum()


def test_strings_are_sent_to_other_processes_by_their_place(path):
    right = xr.Dataset({"s": ("x", np.array([f"{n}" * 50 for n in range(1000)], object))})
    save(right, path, encoding={"s": {"chunks": 100}})
    sent = pickle.dumps(opened(path).s.variable._data)
    assert len(sent) < 20_000
    found = xr.Variable("x", pickle.loads(sent))
    assert found[:3].values.tolist() == right.s.values[:3].tolist()
    first, second = (opened(path, chunks={}).s.data for _ in range(2))
    assert first.name == second.name
    with arraychest.open(path) as chest:
        assert len(chest) == 11
