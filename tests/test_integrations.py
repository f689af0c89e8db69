"""Types of NumPy, ml_dtypes, SciPy, pandas and xarray come back as they were, or are refused."""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_equal

from arraychest import registry
from arraychest.errors import ValueTypeError
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
        except (*REFUSED, NotImplementedError):
            pass
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
        if hasattr(value, name) and value.format not in ("lil", "dok"):
            if value.ndim > 1 or name != "row":
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
