"""Types of NumPy, ml_dtypes, SciPy, pandas and xarray come back as they were, or are refused."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_equal

import arraychest
from arraychest.errors import ValueTypeError
from arraychest.values import registry
from tests.support import assert_identical
from tests.support_trees import make, mapped, roundtrip, tree_of

# What may be raised on account of what a stranger has written; none of it is a crash.
REFUSED = (ValueError, TypeError, LookupError, OverflowError, MemoryError, AttributeError)

# Things that are nowhere expected.
NONSENSE: list[Any] = [
    None, True, -1, 1 << 70, 0.5, "x", "os.system", b"x", (), [], {}, {"x": 1}, (-1,), (1 << 62,),
    (2, 2), np.zeros(3), np.zeros((2, 2), np.int32), np.array(5), np.array([7, -9, 1 << 40]),
    np.zeros(2, "M8[ns]"), np.zeros(2, "M8[D]"), np.array(["a"]), np.zeros(2, [("a", "i4")]),
    np.array([1, 2], ">i4"), np.zeros(0, np.int32), range(-5, 5), [1, "a"], np.float64(1.0),
]  # fmt: skip


def variations(tree: Any, depth: int = 4):
    """A tree with something else in place of each of its parts, one at a time; and one missing."""
    yield from NONSENSE
    if depth == 0:
        return
    if type(tree) is dict:
        for key in tree:
            yield {name: each for name, each in tree.items() if name != key}
            for other in variations(tree[key], depth - 1):
                yield tree | {key: other}
    elif type(tree) in (list, tuple):
        for at, each in enumerate(tree):
            yield tree[:at] + tree[at + 1 :]
            for other in variations(each, depth - 1):
                yield tree[:at] + type(tree)([other]) + tree[at + 1 :]
    elif type(tree) is np.ndarray and tree.ndim and tree.size:
        yield tree[:-1]
        yield np.concatenate([tree, tree])
        yield tree[::-1].copy()
        if tree.dtype.kind in "iu":
            for extreme in (np.iinfo(tree.dtype).min, np.iinfo(tree.dtype).max, -1, 1):
                changed = tree.copy()
                changed.flat[tree.size // 2] = extreme if tree.dtype.kind == "i" else abs(extreme)
                yield changed
            yield tree.astype(np.int64 if tree.dtype != np.int64 else np.int32)


def forge(value: Any, use: Any = repr) -> int:
    """Make values of what is stored of this one, changed in many ways; use those that are made."""
    found = registry.of_type(type(value.dtype) if type(value) is np.ndarray else type(value))
    assert found is not None
    refused = 0
    for tree in variations(found.to_tree(value)):
        try:
            made = found.from_tree(tree)
        except REFUSED:
            refused += 1
            continue
        try:
            use(made)
        except Exception:
            pass  # pandas has many ways to say what it cannot do; it says so
    return refused


# NumPy.


def test_a_masked_array_comes_back_with_all_that_it_has():
    value = np.ma.array([[1.0, 2.0], [3.0, np.nan]], mask=[[0, 1], [0, 0]], fill_value=-0.0)
    value.harden_mask()
    value._optinfo["unit"] = "K"
    found = roundtrip(value)
    assert type(found) is np.ma.MaskedArray
    assert_identical(found.data, value.data)
    assert_identical(found.mask, value.mask)
    assert_identical(found._fill_value, value._fill_value)
    assert found.hardmask
    assert found._optinfo == {"unit": "K"}
    assert found.sum() == value.sum() or np.isnan(found.sum())


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array(np.arange(6).reshape(2, 3)),
        np.ma.array(np.arange(6).reshape(2, 3), mask=np.zeros((2, 3), bool)),
        np.ma.array(np.arange(6).reshape(2, 3).T, mask=np.eye(3, 2, dtype=bool)),
        np.ma.array(5, mask=True),
        np.ma.array([], dtype="f4"),
        np.ma.array(["a", "bc"], mask=[1, 0], fill_value="zz"),
        np.ma.array([b"a", b"bc"], mask=[1, 0]),
        np.ma.array([1, 2], dtype="M8[s]", mask=[1, 0]),
        np.ma.array([1 + 2j, 3]),
        np.ma.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")], mask=[(0, 1), (1, 0)]),
        np.ma.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")], fill_value=(7, 8.0)),
        np.ma.masked_values([1.0, -999.0], -999.0),
    ],
    ids=lambda value: f"{value.dtype}-{value.shape}",
)
def test_masked_arrays(value):
    found = roundtrip(value)
    assert type(found) is type(value)
    assert_identical(found.data, value.data)
    assert (found.mask is np.ma.nomask) == (value.mask is np.ma.nomask)
    assert_identical(np.asarray(found.mask), np.asarray(value.mask))
    assert (found._fill_value is None) == (value._fill_value is None)
    assert_equal(found.fill_value, value.fill_value)
    assert found.hardmask == value.hardmask


def test_the_mask_and_the_data_are_not_copied():
    data, mask = mapped(np.arange(1000.0)), mapped(np.arange(1000) % 2 == 0)
    tree = tree_of(np.ma.array(data, mask=mask))
    found = make("numpy.ma.MaskedArray", tree)
    assert np.shares_memory(found.data, data)
    assert np.shares_memory(found.mask, mask)


def test_a_masked_matrix_and_a_masked_string_array():
    value = np.ma.array(np.zeros((2, 2)).view(np.matrix), mask=np.eye(2, dtype=bool))
    found = roundtrip(value)
    assert type(found.data) is np.matrix
    strings = np.ma.array(np.array(["a", "bc"], np.dtypes.StringDType()), mask=[True, False])
    assert roundtrip(strings).tolist() == [None, "bc"]


def test_masked_is_one():
    assert roundtrip(np.ma.masked) is np.ma.masked
    assert roundtrip([np.ma.masked, 1])[0] is np.ma.masked


STRINGS = np.dtypes.StringDType
STRING_DTYPES = [
    STRINGS(), STRINGS(coerce=False), STRINGS(na_object=None), STRINGS(na_object=np.nan),
    STRINGS(na_object="missing", coerce=False),
]  # fmt: skip


@pytest.mark.parametrize("dtype", STRING_DTYPES, ids=str)
@pytest.mark.parametrize(
    "texts",
    [[], ["a"], ["", "a\0b\0", "é" * 100, "😀", "x" * 500, ""], ["a", None, "b"], [None, None]],
    ids=len,
)
def test_arrays_of_strings(dtype, texts):
    if None in texts and not hasattr(dtype, "na_object"):
        pytest.skip("no such thing as a missing one")
    value = np.array([dtype.na_object if one is None else one for one in texts], dtype)
    for each in (value, value.reshape(1, -1), value[::2], value[:0]):
        found = roundtrip(each)
        assert found.dtype == each.dtype
        assert repr(found.dtype) == repr(each.dtype)
        assert_equal(found.tolist(), each.tolist())
        assert found.shape == each.shape


def test_arrays_of_strings_keep_their_order():
    value = np.array([["a", "b", "c"], ["d", "e", "f"]], STRINGS())
    for each in (value, np.asfortranarray(value), value.T, value[:, ::2]):
        found = roundtrip(each)
        assert found.tolist() == each.tolist()
        assert found.flags.f_contiguous == each.flags.f_contiguous
    scalar = roundtrip(np.array("text", STRINGS()))
    assert (scalar.shape, scalar[()]) == ((), "text")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_strings(texts):
    assert roundtrip(np.array(texts, STRINGS())).tolist() == texts


def test_many_strings():
    texts = [f"{n}é" if n % 3 else str(n) for n in range(200_000)]
    assert roundtrip(np.array(texts, STRINGS())).tolist() == texts


def test_strings_that_stand_for_something_of_their_own_are_refused():
    with pytest.raises(ValueTypeError, match="na_object"):
        roundtrip(np.array(["a"], STRINGS(na_object=object())))


@pytest.mark.parametrize(
    "dtype",
    [
        [("a", "i4"), ("b", "f8", (2,))],
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        {"names": ["a", "b"], "formats": ["U3", "f4"], "offsets": [0, 16], "itemsize": 32},
        [(("title", "a"), "i4")],
    ],
    ids=str,
)
def test_record_arrays(dtype):
    value = np.zeros(4, dtype).view(np.recarray)
    value.a = "7" if value.a.dtype.kind == "U" else 7
    found = roundtrip(value)
    assert type(found) is np.recarray
    assert_identical(found, value)
    assert found.a.tolist() == value.a.tolist()
    record = roundtrip(value[1])
    assert type(record) is np.record
    assert record == value[1]
    assert repr(record.dtype) == repr(value.dtype)
    assert record.flags.owndata or not np.shares_memory(record, value)


def test_a_record_array_without_fields_and_a_matrix():
    plain = np.arange(3.0).view(np.recarray)
    assert_identical(roundtrip(plain), plain)
    for array in (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 3))):
        value = array.view(np.matrix)
        assert_identical(roundtrip(value), value)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([[1, 2]], mask=[[0, 1]], fill_value=5),
        np.ma.masked,
        np.array(["ab", "é", ""], STRINGS(na_object=None)),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.zeros((2, 2)).view(np.matrix),
    ],
    ids=lambda value: type(value).__name__,
)
def test_forged_numpy(value):
    assert forge(value) > 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"offsets": np.array([0, 5, 2, 3])},
        {"offsets": np.array([0, -1, 2, 3])},
        {"offsets": np.array([0, 1, 2, 4])},
        {"offsets": np.array([1, 1, 2, 3])},
        {"shape": (1 << 40, 0)},
        {"shape": (-1,)},
        {"shape": (3,) * 100},
        {"characters": np.array([0xFF, 0xFE, 0x80], np.uint8)},
        {"characters": np.array([0xED, 0xA0, 0x80], np.uint8), "offsets": np.array([0, 3, 3, 3])},
        {"missing": np.array([True, False, False])},
        {"na": (np.nan,), "missing": np.array([True])},
        {"order": "K"},
        {"na": (1, 2)},
        {"na": (b"x",)},
    ],
)
def test_forged_strings(wrong):
    tree = tree_of(np.array(["a", "b", "c"], STRINGS()))
    make("numpy.dtypes.StringDType", tree)
    with pytest.raises(REFUSED):
        make("numpy.dtypes.StringDType", tree | wrong)


# ml_dtypes.


def ml_kinds() -> list[Any]:
    try:
        import ml_dtypes
    except ImportError:
        return []
    kinds = (getattr(ml_dtypes, name) for name in dir(ml_dtypes))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, np.generic)]


@pytest.mark.parametrize("kind", ml_kinds(), ids=lambda kind: kind.__name__)
def test_ml_dtypes(kind):
    dtype = np.dtype(kind)
    bits = np.arange(64, dtype=np.uint8).view(f"u{dtype.itemsize}")
    flat = bits.view(dtype)
    for value in (flat, flat[:12].reshape(3, 4), flat[:12].reshape(3, 4).T, flat[:0], flat[0:1]
                  .reshape(()), flat[::2]):  # fmt: skip
        found = roundtrip(value)
        assert type(found) is np.ndarray
        assert found.dtype == dtype
        assert found.shape == value.shape
        assert found.tobytes() == value.tobytes()
        if value.flags.forc:
            assert found.flags.f_contiguous == value.flags.f_contiguous
    for scalar in flat[:7]:
        found = roundtrip(scalar)
        assert type(found) is kind
        assert np.array(found).tobytes() == np.array(scalar).tobytes()
    array = mapped(bits)
    assert np.shares_memory(make(f"ml_dtypes.array[{kind.__name__}]", array), array)
    tree = tree_of(flat)
    assert np.shares_memory(tree, flat)
    with pytest.raises(REFUSED):
        make(f"ml_dtypes.array[{kind.__name__}]", bits.astype("f8"))
    for wrong in (-1, 1 << 40, True, None, 0.5):
        with pytest.raises(REFUSED):
            make(f"ml_dtypes.{kind.__name__}", wrong)


# SciPy.

FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]
SPARSE = [f"{name}_{suffix}" for name in FORMATS for suffix in ("array", "matrix")]
COMPONENTS = ("data", "indices", "indptr", "offsets", "row", "col")


def sparse_of(kind: str, dense: Any) -> Any:
    sparse = pytest.importorskip("scipy.sparse")
    return getattr(sparse, kind)(dense)


def assert_same_sparse(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    assert found.shape == value.shape
    assert found.dtype == value.dtype
    for name in COMPONENTS:
        is_array = hasattr(value, name) and value.format not in ("lil", "dok")
        if is_array and (value.ndim > 1 or name != "row"):
            assert_identical(getattr(found, name), getattr(value, name))
    if value.format == "dok":
        assert list(found.items()) == list(value.items())
        assert set(map(type, found.values())) == set(map(type, value.values()))
    if value.format == "lil":
        assert found.rows.tolist() == value.rows.tolist()
        assert found.data.tolist() == value.data.tolist()
    assert_equal(found.toarray(), value.toarray())
    if hasattr(value, "has_canonical_format"):
        assert found.has_canonical_format == value.has_canonical_format


DENSE = np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 4, 0], [0, 5, 6, 0]])


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("dtype", ["f8", "f4", "i4", "u1", "?", "c16", "g"])
def test_sparse(kind, dtype):
    assert_same_sparse(
        *(lambda value: (roundtrip(value), value))(sparse_of(kind, DENSE.astype(dtype)))
    )


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (4, 4)])
def test_empty_sparse(kind, shape):
    value = sparse_of(kind, shape)
    assert_same_sparse(roundtrip(value), value)


@pytest.mark.parametrize(
    "kind", ["csr_array", "csc_matrix", "coo_array", "dia_matrix", "bsr_array"]
)
def test_indices_keep_their_dtype_and_nothing_is_copied(kind):
    value = sparse_of(kind, DENSE.astype(float))
    for dtype in (np.int32, np.int64):
        for name in ("indices", "indptr", "offsets"):
            if hasattr(value, name):
                setattr(value, name, getattr(value, name).astype(dtype))
        if value.format == "coo":
            value.coords = tuple(each.astype(dtype) for each in value.coords)
        found = roundtrip(value)
        assert_same_sparse(found, value)
        tree = tree_of(value)
        made = make(f"scipy.sparse.{kind}", tree)
        assert made.data is value.data
        for name in ("indices", "indptr", "offsets"):
            if hasattr(value, name):
                assert getattr(made, name) is getattr(value, name)
        assert_equal((found @ np.ones(4)), value @ np.ones(4))
        assert_equal((found + found).toarray(), 2 * value.toarray())


def test_sparse_of_one_and_of_many_dimensions():
    sparse = pytest.importorskip("scipy.sparse")
    line = np.array([0.0, 1.0, 0.0, -0.0, 2.0])
    for kind in ("coo_array", "csr_array", "dok_array"):
        value = getattr(sparse, kind)(line)
        assert_same_sparse(roundtrip(value), value)
    cube = np.zeros((2, 3, 4))
    cube[1, 2, 3] = cube[0, 1, 1] = 5.0
    value = sparse.coo_array(cube)
    found = roundtrip(value)
    assert_equal(found.toarray(), cube)
    assert_equal(found.coords, value.coords)
    assert found.has_canonical_format == value.has_canonical_format


def test_sparse_that_is_not_canonical():
    sparse = pytest.importorskip("scipy.sparse")
    coo = sparse.coo_array(([1.0, 2.0, 0.0], ([1, 1, 0], [2, 2, 0])), shape=(3, 3))
    found = roundtrip(coo)
    assert_same_sparse(found, coo)
    assert not found.has_canonical_format
    coo.has_canonical_format = True  # a lie
    assert not roundtrip(coo).has_canonical_format
    summed = sparse.coo_array(coo.toarray())
    summed.sum_duplicates()
    assert roundtrip(summed).has_canonical_format
    csr = sparse.csr_array(
        (np.arange(3.0), np.array([2, 0, 0]), np.array([0, 2, 3, 3])), shape=(3, 3)
    )
    found = roundtrip(csr)
    assert_same_sparse(found, csr)
    assert not found.has_sorted_indices
    zero = sparse.dok_array((3, 3))
    zero.setdefault((2, 1), np.float64(0.0))
    zero[0, 1] = 4.0
    assert list(roundtrip(zero).items()) == list(zero.items())
    slack = sparse.csr_array(DENSE)
    slack.data = np.append(slack.data, [7, 7])
    slack.indices = np.append(slack.indices, np.array([99, 99], slack.indices.dtype))
    assert_equal(roundtrip(slack).toarray(), DENSE)
    blocks = sparse.bsr_array(np.kron(DENSE, np.ones((2, 3))), blocksize=(2, 3))
    assert_same_sparse(roundtrip(blocks), blocks)
    wide = sparse.dia_array((np.ones((2, 9)), [-7, 1]), shape=(4, 6))
    assert_same_sparse(roundtrip(wide), wide)
    vast = sparse.coo_array(([1.0], ([1 << 40], [1 << 41])), shape=(1 << 42, 1 << 42))
    found = roundtrip(vast)
    assert (found.shape, found.coords) == (vast.shape, vast.coords)


def test_sparse_that_scipy_may_crash_on_is_refused_when_it_is_put():
    value = sparse_of("csr_array", DENSE)
    value.indices = value.indices + 4
    with pytest.raises(ValueTypeError, match="indices from 0 to 3"):
        roundtrip(value)
    value = sparse_of("csr_array", DENSE)
    value.indptr = value.indptr[:-1]
    with pytest.raises(ValueTypeError):
        roundtrip(value)
    with pytest.raises(ValueTypeError):
        value = sparse_of("coo_array", DENSE)
        value.coords = (value.coords[0], -value.coords[1])
        roundtrip(value)


def use_sparse(value: Any) -> None:
    """Run what C code there is over it."""
    if max(value.shape) > 1 << 20:
        return
    if value.format != "coo" or value.ndim == 2:
        value.tocsr().toarray()
        value.tocsc().tocoo()
        value.tobsr() if value.ndim == 2 else None
        value.todia() if value.ndim == 2 and value.nnz < 100 else None
    if value.ndim <= 2:
        value.sum()
        value @ np.ones(value.shape[-1])
        (value + value).toarray()
        value[0]


@pytest.mark.parametrize("kind", SPARSE)
def test_forged_sparse(kind):
    assert forge(sparse_of(kind, DENSE.astype(float)), use_sparse) > 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"indices": np.array([1, 3, 0, 2, 1, 4], np.int32)},
        {"indices": np.array([1, 3, 0, 2, 1, -1], np.int32)},
        {"indptr": np.array([0, 9, 2, 4, 6], np.int32)},
        {"indptr": np.array([0, 2, 2, 4, 7], np.int32)},
        {"indptr": np.array([-2, 2, 2, 4, 6], np.int32)},
        {"indptr": np.array([0, 2, 2, 4, 6], np.int64)},
        {"indptr": np.array([0, 2, 2, 4, 6], ">i4")},
        {"shape": (4, 1 << 40)},
        {"shape": (1 << 40, 4)},
        {"shape": (4, True)},
        {"data": np.array(["a"] * 6)},
    ],
)
def test_forged_rows(wrong):
    tree = tree_of(sparse_of("csr_array", DENSE))
    make("scipy.sparse.csr_array", tree)
    with pytest.raises(REFUSED):
        make("scipy.sparse.csr_array", tree | wrong)


@given(st.data())
def test_any_sparse(data):
    sparse = pytest.importorskip("scipy.sparse")
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    cells = data.draw(
        st.lists(st.sampled_from([0, 0, 1, 2]), min_size=rows * columns, max_size=rows * columns)
    )
    dense = np.array(cells, float).reshape(rows, columns)
    value = getattr(sparse, data.draw(st.sampled_from(SPARSE)))(dense)
    assert_same_sparse(roundtrip(value), value)


# pandas.

pd: Any
xr: Any
try:
    import pandas as pd
except ImportError:
    pd = None
try:
    import xarray as xr
except ImportError:
    xr = None

needs_pandas = pytest.mark.skipif(pd is None, reason="pandas is not installed")
needs_xarray = pytest.mark.skipif(xr is None, reason="xarray is not installed")


def assert_same_pandas(found: Any, value: Any) -> None:
    """All that can be told of two of pandas' values is the same."""
    assert type(found) is type(value)
    if isinstance(value, pd.DataFrame):
        assert_same_pandas(found.columns, value.columns)
        assert_same_pandas(found.index, value.index)
        assert found.attrs == value.attrs
        assert found.flags == value.flags
        for at in range(len(value.columns)):
            assert_same_pandas(found.iloc[:, at].array, value.iloc[:, at].array)
        pd.testing.assert_frame_equal(found, value, check_exact=True, check_freq=True)
    elif isinstance(value, pd.Series):
        assert_same_pandas(found.array, value.array)
        assert_same_pandas(found.index, value.index)
        assert_same_elements_of([found.name], [value.name])
        assert found.attrs == value.attrs
        assert found.flags == value.flags
    elif isinstance(value, pd.MultiIndex):
        assert_same_elements_of(found.names, value.names)
        assert (found.name, found.sortorder) == (value.name, value.sortorder)
        for one, other in zip(found.levels, value.levels, strict=True):
            assert_same_pandas(one, other)
        for one, other in zip(found.codes, value.codes, strict=True):
            assert_identical(one, other)
    elif isinstance(value, pd.Index):
        assert_same_elements_of([found.name], [value.name])
        assert getattr(found, "freq", None) == getattr(value, "freq", None)
        if isinstance(value, pd.RangeIndex):
            assert (found.start, found.stop, found.step) == (value.start, value.stop, value.step)
        assert_same_pandas(found.array, value.array)
    elif isinstance(value, pd.arrays.NumpyExtensionArray) and value.dtype != "str":
        assert_identical_or_objects(found.to_numpy(), value.to_numpy())
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        assert found.dtype == value.dtype
        assert repr(found.dtype) == repr(value.dtype)
        if isinstance(value, pd.Categorical):
            assert_same_pandas(found.categories, value.categories)
            assert_identical(found.codes, value.codes)
        elif hasattr(value, "_mask"):
            assert_identical(found._data, value._data)
            assert_identical(found._mask, value._mask)
        elif hasattr(value, "asi8"):
            assert_identical(found.asi8, value.asi8)
        elif isinstance(value, pd.arrays.SparseArray):
            assert_identical_or_objects(found.sp_values, value.sp_values)
            assert found.sp_index.equals(value.sp_index)
            assert type(found.sp_index) is type(value.sp_index)
        elif isinstance(value, pd.arrays.IntervalArray):
            assert_same_pandas(found.left, value.left)
            assert_same_pandas(found.right, value.right)
        assert_same_elements_of(list(found), list(value))
    else:
        assert_same_elements_of([found], [value])


def assert_identical_or_objects(found: Any, value: Any) -> None:
    if value.dtype == object:
        assert found.dtype == object
        assert found.shape == value.shape
        assert_same_elements_of(found.ravel().tolist(), value.ravel().tolist())
    else:
        assert_identical(found, value)


def assert_same_elements_of(found: Any, value: Any) -> None:
    assert len(found) == len(value)
    for one, other in zip(found, value, strict=True):
        assert type(one) is type(other)
        assert repr(one) == repr(other)
        assert getattr(one, "unit", None) == getattr(other, "unit", None)


def pandas_values() -> dict[str, Any]:
    if pd is None:
        return {}
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    dates = pd.date_range("2020-03-28", periods=4, tz="Europe/Berlin", name="when")
    arrays = {
        "Int64": pd.array([1, None, 3], dtype="Int64"),
        "UInt8": pd.array([1, None, 3], dtype="UInt8"),
        "Float32": pd.array([1.5, None, -0.0], dtype="Float32"),
        "Float64 nan": pd.arrays.FloatingArray(np.array([np.nan, 1.0]), np.array([False, True])),
        "boolean": pd.array([True, None, False], dtype="boolean"),
        "string": pd.array(["a", None, "é\ud800\0"], dtype=pd.StringDtype("python")),
        "no strings": pd.array([], dtype="string"),
        "all missing": pd.array([None, None], dtype="string"),
        "categorical": pd.Categorical(["b", None, "a", "b"], ordered=True, categories=["b", "a", "c"]),
        "categorical dates": pd.Categorical(pd.date_range("2020", periods=3)),
        "categorical intervals": pd.cut([1.0, 2.0, 3.0], 2),
        "empty categorical": pd.Categorical([], categories=[]),
        "many categories": pd.Categorical(np.arange(300) % 200),
        "dates": pd.array(np.array(["2020", "NaT"], "M8[s]")),
        "dates tz": dates.array,
        "spans": pd.array(np.array([1, -5, "NaT"], "m8[ms]")),
        "periods": pd.array(pd.PeriodIndex(["2020-01", "NaT"], freq="M")),
        "intervals": pd.arrays.IntervalArray.from_breaks([0, 1, 2], closed="both"),
        "intervals nan": pd.arrays.IntervalArray.from_tuples([(0.0, 1.0), np.nan], closed="left"),
        "intervals dates": pd.interval_range(pd.Timestamp("2020"), periods=3).array,
        "sparse": pd.arrays.SparseArray([0, 0, 1, 0, 2]),
        "sparse nan": pd.arrays.SparseArray([np.nan, 1.0, np.nan, 2.0], kind="block"),
        "sparse bool": pd.arrays.SparseArray([False, True], fill_value=False),
        "numpy": pd.arrays.NumpyExtensionArray(np.arange(3.0)),
        "numpy objects": pd.arrays.NumpyExtensionArray(np.array([1, "a"], object)),
    }  # fmt: skip
    scalars = {
        "Timestamp": pd.Timestamp("2020-01-01 12:00:00.123456789"),
        "Timestamp s": pd.Timestamp("2020-01-01").as_unit("s"),
        "Timestamp ms": pd.Timestamp("9999-12-31").as_unit("ms"),
        "Timestamp berlin": pd.Timestamp("2020-10-25 03:30", tz=berlin),
        "Timestamp utc": pd.Timestamp("2020-01-01", tz="UTC"),
        "Timestamp fixed": pd.Timestamp("2020-01-01", tz="+03:30"),
        "Timestamp named": pd.Timestamp("2020", tz=dt.timezone(dt.timedelta(hours=1), "here")),
        "Timestamp fold": pd.Timestamp(dt.datetime(2020, 10, 25, 2, 30), tz=berlin, fold=1),
        "Timestamp naive fold": pd.Timestamp(dt.datetime(2020, 10, 25, 2, 30), fold=1),
        "Timedelta": pd.Timedelta(-1, "ns"),
        "Timedelta s": pd.Timedelta(5, "s"),
        "NaT": pd.NaT,
        "NA": pd.NA,
        "Period": pd.Period("2020-02", "M"),
        "Period W": pd.Period("2020-02-03", "W-WED"),
        "Interval": pd.Interval(0, 1.5, closed="neither"),
        "Interval dates": pd.Interval(pd.Timestamp("2020"), pd.Timestamp("2021")),
    }
    indexes = {
        "floats": pd.Index([1.5, np.nan, -0.0], name="x"),
        "int8": pd.Index(np.array([1, 2], "i1"), name=("a", 1)),
        "bools": pd.Index([True, False]),
        "strings": pd.Index(["a", None, "b"], name=0),
        "objects": pd.Index([1, "a", None, (1, 2), np.nan, pd.NaT, 1.0, True], dtype=object),
        "tuples": pd.Index([(1, 2), (3, 4)], tupleize_cols=False),
        "object strings": pd.Index(["a", "b"], dtype=object),
        "dates as objects": pd.Index([dt.date(2020, 1, 1)]),
        "nullable": pd.Index(arrays["Int64"], name="n"),
        "range": pd.RangeIndex(5, -7, -3, name="r"),
        "empty": pd.Index([]),
        "multi": pd.MultiIndex.from_tuples([("b", 1), ("a", 2), ("b", None)], names=["x", None]),
        "multi dates": pd.MultiIndex.from_product([dates, [1, 2], pd.Categorical(["u", "v"])]),
        "multi sorted": pd.MultiIndex.from_product([[1, 2], [3, 4]], sortorder=0),
        "multi empty": pd.MultiIndex.from_arrays([[], []]),
        "DatetimeIndex": dates,
        "DatetimeIndex ME": pd.date_range("2020", periods=5, freq="ME", unit="s"),
        "DatetimeIndex B": pd.date_range("2020", periods=5, freq="B"),
        "DatetimeIndex 90min": pd.date_range("2020", periods=5, freq="90min", tz="UTC"),
        "DatetimeIndex NaT": pd.DatetimeIndex(["2020", "NaT"]),
        "TimedeltaIndex": pd.timedelta_range("1h", periods=3, name="t"),
        "PeriodIndex": pd.period_range("2020", periods=3, freq="Q-NOV", name="q"),
        "IntervalIndex": pd.interval_range(0, 3, name="i"),
        "CategoricalIndex": pd.CategoricalIndex(["a", "b", None, "a"], name="c"),
    }
    series = {
        f"series of {name}": pd.Series(array, name=name) for name, array in arrays.items()
    } | {
        "series named": pd.Series([1, 2], index=["a", "b"], name=("x", 1)),
        "series attrs": pd.Series(np.zeros(2, "f4")),
        "series unlike": pd.Series([1.0, 2.0]).set_flags(allows_duplicate_labels=False),
        "series objects": pd.Series([1, "a", None, np.nan, (1, 2), [3], {"k": 1}], dtype=object),
        "series strings": pd.Series(["a", np.nan, "é"]),
        "series object strings": pd.Series(["a", None, "é", np.nan, pd.NA] * 800, dtype=object),
        "series many objects": pd.Series(list(range(3000)), dtype=object),
        "series bytes": pd.Series(np.array([b"a", b"bc"])),
        "series complex": pd.Series([1 + 2j]),
        "series longdouble": pd.Series(np.array([1.0], "g")),
        "series dup": pd.Series([1, 2], index=["a", "a"]),
        "series big endian": pd.Series(np.array([1.0, 2.0], ">f8")),
        "series empty": pd.Series([], dtype=object),
    }
    series["series attrs"].attrs = {"unit": "K", "array": [1, 2]}
    mixed = pd.DataFrame(
        {
            "f": [1.0, 2.0, np.nan], "i": [1, 2, 3], "g": [0.5, -0.0, 1.0], "s": ["a", None, "b"],
            "d": pd.date_range("2020", periods=3), "e": pd.date_range("2021", periods=3),
            "z": pd.date_range("2020", periods=3, tz="Europe/Berlin"),
            "y": pd.date_range("2020", periods=3, tz="Europe/Berlin"),
            "c": pd.Categorical(["u", "v", "u"]), "p": pd.period_range("2020", periods=3),
            "q": pd.period_range("2020", periods=3),
            "t": pd.to_timedelta([1, 2, 3], "s"), "b": [True, False, True],
            "n": pd.array([1, None, 2], dtype="Int64"), "o": pd.Series([1, "x", None], dtype=object),
            "v": pd.interval_range(0, 3), "w": pd.arrays.SparseArray([0, 0, 1]),
            "o2": pd.Series([(1,), b"x", np.nan], dtype=object),
        },
        index=pd.Index(["a", "b", "c"], name="key"),
    )  # fmt: skip
    duplicates = pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=["a", "b", "a"])
    duplicates["c"] = [1, 2]
    attrs = pd.DataFrame({"a": [1]})
    attrs.attrs = {"x": {"y": 1}}
    frames = {
        "mixed": mixed,
        "mixed consolidated": mixed.copy(),
        "floats": pd.DataFrame(np.arange(12.0).reshape(4, 3), columns=list("abc")),
        "floats F": pd.DataFrame(np.asfortranarray(np.arange(12.0).reshape(4, 3))),
        "slice": pd.DataFrame(np.arange(12.0).reshape(4, 3)).iloc[::2, ::2],
        "duplicates": duplicates,
        "attrs": attrs,
        "unlike": attrs.set_flags(allows_duplicate_labels=False),
        "empty": pd.DataFrame(),
        "no columns": pd.DataFrame(index=[1, 2, 3]),
        "no rows": pd.DataFrame({"a": np.zeros(0), "b": pd.array([], dtype="Int64")}),
        "multi": pd.DataFrame(
            np.arange(8.0).reshape(2, 4),
            columns=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["u", "v"]),
            index=pd.date_range("2020", periods=2, freq="D"),
        ),
        "odd names": pd.DataFrame([[1, 2, 3, 4]], columns=[None, 1.5, ("a", "b"), "c"]),
        "interleaved": pd.DataFrame({n: [n] if n % 3 else [float(n)] for n in range(9)}).copy(),
    }
    return arrays | scalars | indexes | series | frames


PANDAS = pandas_values()


@needs_pandas
@pytest.mark.parametrize("name", PANDAS)
def test_pandas(name):
    value = PANDAS[name]
    found = roundtrip(value)
    assert_same_pandas(found, value)
    if isinstance(value, pd.Series | pd.DataFrame):
        # What is read can be worked with, though it is not to be written to.
        repr(found)
        assert_same_pandas(found.copy(), value.copy())
        if value.index.is_unique:
            assert_same_pandas(found.iloc[::-1], value.iloc[::-1])
            assert_same_pandas(found.reindex(found.index), value.reindex(value.index))


@needs_pandas
def test_a_column_and_its_frame_do_not_change_each_other():
    frame = pd.DataFrame({"s": ["a", "b"], "n": pd.array([1, 2], dtype="Int64")})
    found, strings = roundtrip((frame, frame["s"]))
    strings.iloc[0] = "changed"
    assert found["s"].tolist() == ["a", "b"]


@needs_pandas
def test_numbers_in_frames_are_not_copied():
    from arraychest.values.decoder import put_together
    from arraychest.values.taking_apart import take_apart

    def buffers(value):
        structure, parts = take_apart(value, allow_pickle=False)
        parts = list(map(mapped, parts))
        return put_together(structure, parts, allow_pickle=False), parts

    def shares(array, parts):
        return any(np.shares_memory(array, part) for part in parts)

    for name in ("floats", "floats F", "interleaved", "multi"):
        found, parts = buffers(PANDAS[name])
        for at in range(found.shape[1]):
            assert shares(found.iloc[:, at].to_numpy(copy=False), parts)
        assert len(parts) < 8
    found, parts = buffers(PANDAS["mixed"])
    for column in "figdetb":
        assert shares(found[column].to_numpy(copy=False), parts), column
    for column in "zypq":
        assert shares(found[column].array.asi8, parts), column
    assert shares(found["c"].array.codes, parts)
    assert shares(found["n"].array._data, parts)
    assert shares(found["v"].array.left.to_numpy(copy=False), parts)
    assert shares(found["w"].array.sp_values, parts)
    for name in ("floats", "int8", "DatetimeIndex NaT", "TimedeltaIndex"):
        found, parts = buffers(PANDAS[name])
        assert shares(found.to_numpy(copy=False), parts), name


@needs_pandas
def test_what_is_read_is_read_only():
    found = roundtrip(pd.DataFrame({"a": [1.0, 2.0]}))
    with pytest.raises(ValueError, match="read-only"):
        found.loc[0, "a"] = 5.0
    copied = found.copy()
    copied.loc[0, "a"] = 5.0
    assert found.loc[0, "a"] == 1.0
    found["b"] = [3, 4]


@needs_pandas
def test_nothing_of_pandas_is_given_away():
    # pandas shares a buffer among frames without saying so: whoever owns it must stay the owner.
    frame = pd.DataFrame({0: [1.0, 2.0], 1: pd.array([1, 2], dtype="Int64")})
    frame.index = pd.Index([1.5, 2.5])
    for value in (frame, frame[0], frame[1], frame.index, pd.Categorical([1.5, 2.5])):
        from arraychest.values.taking_apart import take_apart

        for part in take_apart(value, allow_pickle=False).parts:
            assert part.base is not None


@needs_pandas
def test_what_pandas_cannot_tell_in_full_is_refused():
    dates = pd.date_range(
        "2020", periods=3, freq=pd.offsets.CustomBusinessDay(holidays=["2020-01-02"])
    )
    for value, hint in [
        (dates, "freq"),
        (pd.date_range("2020", periods=3, freq=pd.DateOffset(months=1)), "freq"),
        (pd.Timestamp("2020", tz="dateutil/Europe/Berlin"), "tz_convert"),
        (pd.Series(["a", object()]), "arraychest.register"),
    ]:
        with pytest.raises(ValueTypeError, match=hint):
            roundtrip(value)

    class Mine(pd.DataFrame):
        pass

    with pytest.raises(ValueTypeError):
        roundtrip(Mine({"a": [1]}))


def use_pandas(value: Any) -> None:
    repr(value)
    if isinstance(value, pd.Series | pd.DataFrame):
        repr(value.sort_index())
        repr(value.describe())
        value.copy().reset_index(drop=True)
        value.iloc[::-1].isna().sum()
    elif isinstance(value, pd.Index):
        value.sort_values()
        value.is_unique  # noqa: B018
        value.get_indexer(value[:1])
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        value.isna()
        value.take([0, -1])
        value.astype(object)
        value.factorize()


@needs_pandas
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [name for name in PANDAS if name not in ("mixed", "mixed consolidated", "many categories",
     "series many objects", "series object strings", "multi dates", "series of many categories")],
)  # fmt: skip
def test_forged_pandas(name):
    assert forge(PANDAS[name], use_pandas) > 5


@needs_pandas
@pytest.mark.parametrize(
    ("kind", "tree"),
    [
        ("Timestamp", {"utc": np.datetime64(5, "D"), "tz": None, "fold": 0}),
        ("Timestamp", {"utc": np.datetime64("NaT", "ns"), "tz": None, "fold": 0}),
        (
            "Timestamp",
            {"utc": np.datetime64(1, "s"), "tz": ("zone", "../../etc/passwd"), "fold": 0},
        ),
        ("Timestamp", {"utc": np.datetime64(1, "s"), "tz": ("zone", "a.b/c"), "fold": 0}),
        ("Timestamp", {"utc": np.datetime64(1, "s"), "tz": ("zone", "/etc/passwd"), "fold": 0}),
        (
            "Timestamp",
            {"utc": np.datetime64(1, "s"), "tz": ("fixed", dt.timedelta(9), None), "fold": 0},
        ),
        ("Timestamp", {"utc": np.datetime64(1, "s"), "tz": None, "fold": 7}),
        ("Period", {"ordinal": 1 << 70, "freq": "D"}),
        ("Period", {"ordinal": 1, "freq": "D" * 1000}),
        ("Period", {"ordinal": 1, "freq": "nonsense"}),
        ("Interval", {"left": 2, "right": 1, "closed": "both"}),
        ("Interval", {"left": "a", "right": "b", "closed": "both"}),
        ("Categorical", {"codes": np.array([5], "i1"), "categories": [1], "ordered": True}),
        ("RangeIndex", {"range": range(1 << 70), "name": None}),
        ("RangeIndex", {"range": range(3), "name": []}),
    ],
)
def test_forged_scalars_of_pandas(kind, tree):
    with pytest.raises(REFUSED):
        make(f"pandas.{kind}", tree)


@needs_pandas
@pytest.mark.parametrize("codes", [[3], [-2], [127], [0, 1, -128]])
def test_codes_out_of_bounds_are_refused(codes):
    tree = tree_of(pd.Categorical(["a", "b", "c"])) | {"codes": np.array(codes, "i1")}
    with pytest.raises(ValueError, match="codes"):
        make("pandas.Categorical", tree)
    tree = tree_of(pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("c", 3)]))
    with pytest.raises(ValueError, match="codes"):
        make("pandas.MultiIndex", tree | {"codes": [np.array(codes, "i1")] * 2})


@needs_pandas
@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [(range(2), np.zeros((2, 3)))],
        [(range(1), np.zeros((1, 2)))],
        [(range(2), np.zeros((2, 2))), (range(1, 2), np.zeros((1, 2)))],
        [(np.array([0, 0]), np.zeros((2, 2)))],
        [(np.array([0, 5]), np.zeros((2, 2)))],
        [(np.array([0, -1]), np.zeros((2, 2)))],
        [(range(1 << 60), np.zeros((2, 2)))],
        [(range(2), np.zeros(2))],
        [(range(2), np.zeros((2, 2), "M8[D]"))],
        [(range(2), np.zeros((2, 2), "U3"))],
        [(range(2), np.zeros((2, 2), [("a", "i4")]))],
        [(range(2), {"shape": (2, 3), "elements": [1, 2, 3, 4]})],
    ],
)
def test_forged_blocks(blocks):
    tree = tree_of(pd.DataFrame(np.zeros((2, 2))))
    make("pandas.DataFrame", tree)
    with pytest.raises(REFUSED):
        make("pandas.DataFrame", tree | {"blocks": blocks})


# xarray.


def datasets() -> dict[str, Any]:
    if xr is None:
        return {}
    plain = xr.Dataset(
        {
            "t": (("x", "y"), np.arange(6.0).reshape(2, 3), {"units": "K", "range": [0, 1]}),
            "scalar": ((), np.datetime64("2020-01-01", "ns")),
            "objects": ("x", np.array(["a", None], object)),
            "strings": ("y", np.array(["a", "bcd", ""], np.dtypes.StringDType())),
            "category": ("x", pd.Categorical(["a", "b"])),
        },
        coords={
            "x": ["a", "bb"],
            "y": pd.date_range("2020", periods=3),
            "extra": ("x", [1, 2], {"note": 1}),
            "level": 850,
        },
        attrs={"title": "é", "numbers": np.arange(3)},
    )
    plain["t"].encoding = {
        "dtype": np.dtype("i2"), "scale_factor": 0.1, "_FillValue": np.int16(-1), "chunksizes": (1, 3),
    }  # fmt: skip
    plain["x"].attrs["axis"] = "X"
    plain["y"].encoding = {"units": "days since 2000-01-01", "dtype": np.dtype("i8")}
    plain["objects"].encoding["dtype"] = str
    plain["strings"].encoding["dtype"] = np.dtype("O", metadata={"element_type": str})
    plain.encoding = {"unlimited_dims": {"x"}, "source": "file.nc"}
    stacked = plain[["t"]].stack(z=("x", "y"))
    return {
        "plain": plain,
        "stacked": stacked,
        "no index": plain.drop_indexes("x"),
        "order": plain[["y", "t", "level", "scalar", "x"]].set_coords("scalar"),
        "empty": xr.Dataset(),
        "only coords": xr.Dataset(coords={"f": np.array([1, 2], "f4"), "r": pd.RangeIndex(4)}),
        "periods": xr.Dataset(coords={"p": pd.period_range("2020", periods=2)}),
        "categories": xr.Dataset(coords={"c": pd.CategoricalIndex(["a", "b"])}),
        "zones": xr.Dataset(coords={"p": pd.date_range("2020", periods=2, tz="UTC")}),
        "odd names": xr.Dataset({1: (("a", 2), np.zeros((2, 2))), ("t", 1): ("a", [1, 2])}),
        "fortran": xr.Dataset({"a": (("x", "y"), np.asfortranarray(np.zeros((2, 3))))}),
    }


DATASETS = datasets()


def assert_same_variable(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    assert found.dims == value.dims
    assert found.dtype == value.dtype
    assert repr(found.attrs) == repr(value.attrs)
    assert repr(found.encoding) == repr(value.encoding)
    assert type(found.data) is type(value.data)
    if isinstance(value.data, np.ndarray):
        assert_identical_or_objects(found.data, value.data)
    else:
        assert_same_pandas(found.data, value.data)


def assert_same_xarray(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    assert found.identical(value)
    if isinstance(value, xr.DataTree):
        for one, other in zip(found.subtree, value.subtree, strict=True):
            assert (one.path, one.name) == (other.path, other.name)
            assert_same_xarray(one.to_dataset(inherit=False), other.to_dataset(inherit=False))
        return
    if isinstance(value, xr.DataArray):
        assert found.name == value.name
        assert_same_variable(found.variable, value.variable)
    else:
        assert list(found.variables) == list(value.variables)
        assert list(found.data_vars) == list(value.data_vars)
        assert found.encoding == value.encoding
        for name in value.variables:
            assert_same_variable(found.variables[name], value.variables[name])
    assert list(found.coords) == list(value.coords)
    for name in value.coords:
        assert_same_variable(found.coords[name].variable, value.coords[name].variable)
    assert set(found.xindexes) == set(value.xindexes)
    for name, index in value.xindexes.items():
        other = found.xindexes[name]
        assert type(other) is type(index)
        assert (other.dim, other.coord_dtype) == (index.dim, index.coord_dtype)
        assert getattr(other, "level_coords_dtype", 0) == getattr(index, "level_coords_dtype", 0)
        assert_same_pandas(other.index, index.index)
    groups = [sorted(map(str, names)) for _, names in value.xindexes.group_by_index()]
    assert sorted(groups) == sorted(
        sorted(map(str, names)) for _, names in found.xindexes.group_by_index()
    )


@needs_xarray
@pytest.mark.parametrize("name", DATASETS)
def test_datasets(name):
    value = DATASETS[name]
    found = roundtrip(value)
    assert_same_xarray(found, value)
    repr(found)
    for each in value.variables:
        assert_same_variable(roundtrip(value.variables[each]), value.variables[each])
        assert_same_xarray(roundtrip(value[each]), value[each])
    assert_same_xarray(roundtrip(value.copy(deep=True)), value)


@needs_xarray
def test_arrays_of_xarray():
    for value in (
        xr.DataArray(np.arange(6.0).reshape(2, 3)),
        xr.DataArray(5),
        xr.DataArray(np.arange(3.0), dims="t", coords={"t": [1, 2, 3]}, name="a", attrs={"u": 1}),
        xr.DataArray(
            np.zeros((2, 2)), dims=("x", "y"), coords={"lat": (("x", "y"), np.ones((2, 2)))}
        ),
        DATASETS["plain"]["x"].rename("other"),
    ):
        assert_same_xarray(roundtrip(value), value)
    found = roundtrip(DATASETS["stacked"])
    assert_same_xarray(found.unstack("z"), DATASETS["stacked"].unstack("z"))
    assert_same_xarray(found.isel(z=[0, 2]), DATASETS["stacked"].isel(z=[0, 2]))
    # pandas crashes over a Categorical of no dimensions, which xarray makes of one of its elements.
    plain = DATASETS["plain"].drop_vars("category")
    assert_same_xarray(
        roundtrip(plain).sel(x="bb", y="2020-01-02"), plain.sel(x="bb", y="2020-01-02")
    )
    with pytest.raises(ValueTypeError, match="dimension"):
        roundtrip(DATASETS["plain"].sel(x="bb"))


@needs_xarray
def test_a_tree_of_datasets():
    value = xr.DataTree.from_dict(
        {
            "/": DATASETS["plain"],
            "/a": xr.Dataset({"q": ("x", [1, 2])}),
            "/a/b": xr.Dataset(attrs={"k": 1}),
            "/c": xr.Dataset(coords={"w": [1.0]}),
        },
        name="root",
    )
    assert_same_xarray(roundtrip(value), value)
    with pytest.raises(ValueTypeError, match="root"):
        roundtrip(value["a"])
    assert_same_xarray(roundtrip(value["a"].copy()), value["a"].copy())
    assert_same_xarray(roundtrip(xr.DataTree()), xr.DataTree())
    assert forge(value) > 20


@needs_xarray
def test_the_data_of_a_variable_is_not_copied():
    array = mapped(np.arange(6.0).reshape(2, 3))
    for value in (
        xr.Variable(("x", "y"), array),
        xr.DataArray(array),
        xr.Dataset({"a": (("x", "y"), array)}),
    ):
        from arraychest.values.decoder import put_together
        from arraychest.values.taking_apart import take_apart

        structure, parts = take_apart(value, allow_pickle=False)
        assert any(part is array for part in parts)
        found = put_together(structure, parts, allow_pickle=False)
        data = found["a"].data if isinstance(found, xr.Dataset) else found.data
        assert np.shares_memory(data, array)
        with pytest.raises(ValueError, match="read-only"):
            data[0] = 1


@needs_xarray
def test_data_that_is_opened_lazily_is_loaded():
    from xarray.core import indexing

    lazy = xr.Variable("x", indexing.LazilyIndexedArray(np.arange(3.0)))
    found = roundtrip(xr.Dataset({"a": lazy}))
    assert type(found["a"].variable._data) is np.ndarray
    assert found["a"].values.tolist() == [0.0, 1.0, 2.0]


@needs_xarray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DATASETS)
def test_forged_xarray(name):
    assert forge(DATASETS[name]) > 10


@needs_xarray
def test_an_index_that_is_none_of_pandas_is_refused():
    value = xr.Dataset(coords=xr.Coordinates.from_xindex(
        xr.indexes.RangeIndex.arange(0.0, 1.0, 0.1, dim="x")
    )) if hasattr(xr.indexes, "RangeIndex") else None  # fmt: skip
    if value is None:
        pytest.skip("this xarray has no other")
    with pytest.raises(ValueTypeError, match="drop_indexes"):
        roundtrip(value)


# All of them.


def test_each_shipped_type_is_found_by_its_name_and_by_its_type():
    for package in ("numpy", "ml_dtypes", "scipy.sparse", "pandas", "xarray"):
        pytest.importorskip(package)
        registry.of_name(f"{package.split('.')[0]}.nothing")
    found = [
        each for each in registry._by_name.values() if each.name.split(".")[0] in registry._SHIPPED
    ]
    assert len(found) > 80
    for each in found:
        assert registry.of_type(each.kind) is each
        assert registry.of_name(each.name) is each


def test_nothing_is_imported_before_its_type_is_met():
    from tests.support import run_python

    run_python("""
        import sys
        from arraychest.values import registry
        assert not {"pandas", "scipy", "xarray", "ml_dtypes"} & set(sys.modules)
        import ml_dtypes, numpy as np
        assert registry.of_type(type(np.dtype(ml_dtypes.bfloat16))).name == "ml_dtypes.array[bfloat16]"
        assert registry.of_type(np.dtypes.StringDType) is not None
        assert registry.of_type(type(np.dtype("f8"))) is None
        assert registry.of_name("scipy.sparse.nothing") is None
        assert not {"pandas", "xarray"} & set(sys.modules)
    """)


@needs_pandas
def test_what_is_refused_is_pickled_where_that_is_allowed():
    dates = pd.date_range(
        "2020", periods=3, freq=pd.offsets.CustomBusinessDay(holidays=["2020-01-02"])
    )
    value = {"dates": [dates, dates], "frame": pd.DataFrame({"a": [1.5]})}
    with arraychest.Chest(allow_pickle=True) as chest:
        chest["x"] = value
        chest.spill("x")
        found = chest["x"]
    assert found["dates"][0] is found["dates"][1]
    assert found["dates"][0].freq == dates.freq
    pd.testing.assert_frame_equal(found["frame"], value["frame"])
