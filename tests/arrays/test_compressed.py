"""`CompressedArray` against NumPy: indexing, functions, reductions."""

from __future__ import annotations

import operator

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arraychest.arrays.compressed import CompressedArray


class Counting:
    """A reader that notes how many elements were read."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.elements = 0

    def read(self, where: tuple[slice, ...]) -> np.ndarray:
        assert all(0 <= each.start < each.stop and each.step is None for each in where)
        found = self._array[(*where, ...)]
        assert found.shape == tuple(each.stop - each.start for each in where)
        self.elements += found.size
        return np.array(found)


def made(array: np.ndarray, chunks: tuple[int, ...]) -> CompressedArray:
    return CompressedArray(Counting(array), array.dtype, array.shape, chunks)


@st.composite
def arrays(draw: st.DrawFn, dtype: str = "i4") -> tuple[np.ndarray, CompressedArray]:
    shape = draw(npst.array_shapes(min_dims=1, max_dims=4, max_side=9))
    array = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    if draw(st.booleans()):
        reversed_ = Counting(np.ascontiguousarray(array.T))
        return array, CompressedArray(reversed_, array.dtype, shape, chunks, transposed=True)
    return array, made(array, chunks)


def same(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(pair=arrays(), data=st.data())
def test_basic_indices_are_numpys(pair, data):
    array, compressed = pair
    key = data.draw(npst.basic_indices(array.shape, allow_newaxis=True, max_dims=8))
    same(compressed[key], array[key])


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(pair=arrays(), data=st.data())
def test_arrays_of_integers_are_numpys(pair, data):
    array, compressed = pair
    wanted = npst.broadcastable_shapes((3,), max_dims=3, max_side=3, min_side=0)
    key = []
    for n in array.shape[: data.draw(st.integers(1, array.ndim))]:
        kind = data.draw(st.sampled_from(["array", "slice", "number", "new", "list"]))
        if kind == "new":
            key.append(None)
        if kind == "number":
            key.append(data.draw(st.integers(-n, n - 1)))
        elif kind == "slice":
            key.append(data.draw(st.slices(n)))
        else:
            shape = data.draw(wanted)
            numbers = data.draw(npst.arrays(np.int64, shape, elements=st.integers(-n, n - 1)))
            key.append(numbers.tolist() if kind == "list" and numbers.size else numbers)
    if data.draw(st.booleans()):
        key.insert(data.draw(st.integers(0, len(key))), Ellipsis)
    key = tuple(key)
    try:
        expected = array[key]
    except IndexError as error:
        with pytest.raises(IndexError, match=r".") as caught:
            compressed[key]
        assert str(caught.value) == str(error)
    else:
        same(compressed[key], expected)


@settings(max_examples=200, deadline=None)
@given(pair=arrays(), data=st.data())
def test_arrays_of_booleans_are_numpys(pair, data):
    array, compressed = pair
    first = data.draw(st.integers(0, array.ndim - 1))
    last = data.draw(st.integers(first + 1, array.ndim))
    mask = data.draw(npst.arrays(bool, array.shape[first:last]))
    key = (slice(None),) * first + (mask,)
    same(compressed[key], array[key])
    same(compressed[(*key, Ellipsis)], array[(*key, Ellipsis)])
    for truth in (True, False, np.bool_(True), np.array(False)):
        same(compressed[truth], array[truth])
        same(compressed[..., truth], array[..., truth])


@pytest.mark.parametrize(
    "key", [5, (0, 0, 0), "x", 1.5, (slice(None), 9), [[9]], (Ellipsis, Ellipsis), np.ones(3, bool)]
)
def test_what_numpy_refuses_is_refused(key):
    array = np.arange(12.0).reshape(4, 3)
    with pytest.raises(IndexError) as theirs:
        array[key]
    with pytest.raises(IndexError) as ours:
        made(array, (2, 2))[key]
    assert str(ours.value).split(";")[0] == str(theirs.value).split(";")[0]


def test_only_the_chunks_touched_are_read():
    array = np.arange(10_000.0).reshape(100, 100)
    for key, most in (
        (np.s_[3:5, 7], 2),
        (np.s_[::50, ::50], 4),
        (np.s_[-1], 100),
        (([0, 99], [0, 99]), 2),
        (np.s_[:0], 0),
    ):
        compressed = made(array, (10, 10))
        same(compressed[key], array[key])
        assert compressed.reader.elements <= most


def test_iteration():
    array = np.arange(7 * 5.0).reshape(7, 5)
    compressed = made(array, (3, 2))
    for found, expected in zip(compressed, array, strict=True):
        same(found, expected)
    out = np.empty_like(array)
    for where, part in compressed.iterchunks():
        out[where] = part
    same(out, array)
    assert (len(compressed), compressed.ndim, compressed.size) == (7, 2, 35)
    assert compressed.nbytes == array.nbytes


def test_conversion_is_numpy_2s():
    array = np.arange(6.0).reshape(2, 3)
    compressed = made(array, (1, 2))
    same(np.asarray(compressed), array)
    same(np.array(compressed, dtype="f4"), array.astype("f4"))
    same(np.array(compressed, copy=True), array)
    with pytest.raises(ValueError, match="copy"):
        np.array(compressed, copy=False)
    same(compressed.astype("i8"), array.astype("i8"))


OPERATORS = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.pow,
    operator.lt, operator.eq, operator.ne, operator.ge,
]  # fmt: skip


@pytest.mark.parametrize("function", OPERATORS)
@pytest.mark.parametrize("dtype", ["u1", "f4", "c8"])
def test_operators_give_what_numpys_give(function, dtype):
    if dtype == "c8" and function in (operator.floordiv, operator.lt, operator.ge):
        pytest.skip("not defined")
    array = np.arange(1, 36).reshape(7, 5).astype(dtype)
    compressed = made(array, (3, 2))
    row, column = array[:1] * 2, array[:, :1]
    for other in (2, 2.5, np.float32(3), row, row[0], column, array, np.ones((2, 7, 5), dtype)):
        with np.errstate(all="ignore"):
            same(function(compressed, other), function(array, other))
            same(function(other, compressed), function(other, array))
    with np.errstate(all="ignore"):
        same(function(compressed, compressed), function(array, array))


def test_unary_and_other_functions():
    array = np.linspace(0, 1, 35, dtype="f4").reshape(7, 5)
    compressed = made(array, (3, 2))
    same(-compressed, -array)
    same(abs(compressed), abs(array))
    same(np.sin(compressed), np.sin(array))
    for found, expected in zip(np.modf(compressed), np.modf(array), strict=True):
        same(found, expected)
    same(compressed @ array.T, array @ array.T)
    same(array.T @ compressed, array.T @ array)
    same(np.concatenate([compressed, array]), np.concatenate([array, array]))
    same(np.where(compressed > 0.5, compressed, 0), np.where(array > 0.5, array, 0))
    same(np.median(compressed, axis=0), np.median(array, axis=0))
    same(np.argmax(compressed), np.argmax(array))
    same(np.add.accumulate(compressed), np.add.accumulate(array))
    out = np.empty_like(array)
    assert np.add(compressed, 1, out=out) is out
    same(out, array + 1)
    with pytest.raises(ValueError, match="output array is read-only"):
        np.add(array, 1, out=compressed)


NAMES = ["sum", "prod", "min", "max", "any", "all", "mean", "var", "std"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["?", "i1", "u4", ">i2", "f2", "f4", ">f8", "c8"])
def test_reductions_give_what_numpys_give(name, dtype):
    array = (np.arange(1, 106).reshape(7, 5, 3) % 4).astype(dtype)
    compressed = made(array, (3, 2, 2))
    for axis in (None, 0, -1, (0, 2), (1, 0)):
        for keepdims in (False, True):
            expected = getattr(np, name)(array, axis=axis, keepdims=keepdims)
            for found in (
                getattr(compressed, name)(axis=axis, keepdims=keepdims),
                getattr(np, name)(compressed, axis=axis, keepdims=keepdims),
            ):
                assert type(found) is type(expected)
                np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype == "f2" else 1e-5)
                assert np.asarray(found).dtype == np.asarray(expected).dtype
    with pytest.raises(np.exceptions.AxisError):
        getattr(compressed, name)(axis=3)


def test_reductions_see_nan_and_read_every_chunk_once():
    array = np.ones((100, 100))
    array[77, 3] = np.nan
    compressed = made(array, (10, 10))
    assert np.isnan(compressed.max())
    assert compressed.reader.elements == array.size
    assert np.isnan(compressed.sum())
    assert np.fmax.reduce(compressed, axis=None) == 1
