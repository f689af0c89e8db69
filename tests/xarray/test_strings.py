"""Strings and Python objects in chunks: written, read and appended block by block."""

from __future__ import annotations

import numpy as np
import pytest

import arraychest

xr = pytest.importorskip("xarray")
da = pytest.importorskip("dask.array")

from arraychest.xarray import save  # noqa: E402
from tests.xarray.support import STRINGDTYPE, check_same, opened, roundtrip  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pool")

WORDS = np.array([f"wörd {n}" * (n % 4) for n in range(60)]).reshape(10, 6)

DTYPES = {
    "StringDType": np.dtypes.StringDType(),
    "StringDType with NaN": np.dtypes.StringDType(na_object=np.nan),
    "StringDType with None": np.dtypes.StringDType(na_object=None),
    "object": np.dtype(object),
    "fixed": np.dtype("U40"),
}
if not STRINGDTYPE:
    DTYPES = {name: dtype for name, dtype in DTYPES.items() if dtype.kind != "T"}
CHUNKS = (4, 6)


def words(kind):
    array = WORDS.astype(DTYPES[kind])
    if "with" in kind:
        array[3, 2] = DTYPES[kind].na_object
    return xr.Dataset({"s": (("y", "x"), array)})


def blocks_in(path):
    with arraychest.open(path, "r") as chest:
        return [key for key in chest if key[:2] == ("variable", "s")]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("how", ["whole", "dask", "encoding"])
def test_strings_come_back_in_their_chunks(path, kind, how):
    right = words(kind)
    written = right.chunk(y=4) if how == "dask" else right
    encoding = {"s": {"chunks": CHUNKS}} if how == "encoding" else {}
    found = roundtrip(written, path, encoding=encoding)
    assert found.s.dtype == right.s.dtype
    assert not found.s.variable._in_memory
    assert len(blocks_in(path)) == (1 if how == "whole" or kind == "fixed" else 3)
    if how != "whole":
        lazy = opened(path, chunks={}).s
        assert lazy.chunks == ((4, 4, 2), (6,))
        np.testing.assert_array_equal(lazy.compute(), right.s)
    for where in ({"y": 3}, {"y": [9, 1]}, {"y": slice(8, 2, -3), "x": [1, 5]}, {"x": 0, "y": 2}):
        assert found.isel(where).s.values.tolist() == right.isel(where).s.values.tolist()
    check_same(found, right)


def test_a_dask_array_of_strings_is_written_block_by_block(path):
    now = []

    def make(block):
        now.append(block.size)
        return block.astype(np.dtypes.StringDType())

    numbers = da.arange(1000, chunks=100)
    strings = numbers.map_blocks(make, dtype=np.dtypes.StringDType(), meta=np.empty(0, "T"))
    save(xr.Dataset({"s": ("x", strings)}), path)
    assert now == [100] * 10
    assert opened(path).s.values.tolist() == [str(n) for n in range(1000)]


def test_a_dask_array_of_other_strings_than_it_says_is_refused(path):
    strings = da.arange(4, chunks=2).map_blocks(
        lambda block: block.astype("U3"), dtype=np.dtypes.StringDType(), meta=np.empty(0, "T")
    )
    save(words("object"), path)
    with pytest.raises(arraychest.ValueTypeError, match="StringDType in the variable 's'"):
        save(xr.Dataset({"s": ("x", strings)}), path, mode="w")
    check_same(opened(path), words("object"))


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind != "fixed"])
@pytest.mark.parametrize("chunks", [None, 4])
def test_strings_are_appended_and_overwritten(path, kind, chunks):
    right = words(kind)
    first, last = right.isel(y=slice(7)), right.isel(y=slice(7, None))
    save(first if chunks is None else first.chunk(y=chunks), path)
    before = set(blocks_in(path))
    old = opened(path)
    save(last, path, append_dim="y")
    check_same(opened(path), right)
    assert len(blocks_in(path)) == len(before) + 1
    xr.testing.assert_identical(old.load(), first)
    save(right.isel(y=[0], x=[5]), path, region={"y": slice(8, 9), "x": slice(2, 3)})
    changed = right.copy(deep=True)
    changed.s[8, 2] = right.s.values[0, 5]
    check_same(opened(path), changed)
    save(right, path, mode="w")
    check_same(opened(path), right)
    assert len(blocks_in(path)) == 1


def test_objects_come_back_in_their_chunks(path):
    right = xr.Dataset({"s": ("x", np.array([None, "a", 1, (2, 3), b"x", 2.5, "b"], object))})
    found = roundtrip(right.chunk(x=3), path)
    assert len(blocks_in(path)) == 3
    assert found.s[4:].values.tolist() == [b"x", 2.5, "b"]
    assert opened(path, chunks={}).s.chunks == ((3, 3, 1),)
    check_same(found, right)
    # What is appended need not be of all kinds.
    save(xr.Dataset({"s": ("x", np.array(["c", "d"], object))}), path, append_dim="x")
    assert opened(path).s.values.tolist()[-3:] == ["b", "c", "d"]


def test_nothing_comes_back(path):
    for kind in DTYPES:
        right = xr.Dataset({"s": (("y", "x"), np.empty((0, 3), DTYPES[kind]))})
        check_same(roundtrip(right, path), right)
        check_same(roundtrip(right, path, encoding={"s": {"chunks": (2, 2)}}), right)
