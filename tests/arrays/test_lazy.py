"""A lazy array is a read-only ndarray in everything but its type: each attribute, key and error."""

from __future__ import annotations

import copy
import importlib
import operator
import sys
import tomllib
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

import arraychest
from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.lazy import LazyArray
from tests.arrays.test_compressed import Counting, made
from tests.support import named


class Blocks:
    """The blocks of an array, as a folder would give them."""

    path, fd, manifest = "", -1, None

    def __init__(self, array: np.ndarray, chunks: tuple[tuple[int, ...], ...]) -> None:
        self._array = array
        self._starts = [np.cumsum([0, *sizes]) for sizes in chunks]

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        where = [
            slice(starts[at], starts[at + 1])
            for at, starts in zip(index, self._starts, strict=True)
        ]
        found = self._array[(*where, ...)]
        found.flags.writeable = False
        return found


def read_only(array: np.ndarray) -> np.ndarray:
    found = np.array(array, order="K")
    found.flags.writeable = False
    return found[...]


def cut(n: int) -> tuple[int, ...]:
    return (n // 3, n - n // 3) if n > 2 else (n,)


def lazies(array: np.ndarray) -> list[LazyArray]:
    chunks = tuple(max(n // 2, 1) for n in array.shape)
    blocks = tuple(cut(n) for n in array.shape)
    turned = Counting(np.ascontiguousarray(array.T))
    found = [
        made(array, chunks),
        BlockedArray(Blocks(np.array(array, order="C"), blocks), array.dtype, array.shape, blocks),
    ]
    if array.flags.f_contiguous and array.ndim > 1:
        found = [CompressedArray(turned, array.dtype, array.shape, chunks, transposed=True)]
    return found


RECORDS = np.zeros(24, [("a", "i4"), ("b", "f8", (3,)), ("c", "S5")])
RECORDS["a"] = np.arange(24)
RECORDS["b"] = np.arange(72).reshape(24, 3)

ARRAYS = {
    "f8": np.arange(77.0).reshape(11, 7) % 13 - 4,
    "f4, 3 dimensions": np.linspace(0, 3, 105, dtype="f4").reshape(7, 5, 3),
    "f2": (np.arange(40).reshape(8, 5) % 7).astype("f2"),
    "i2, Fortran's order": np.asfortranarray(np.arange(77, dtype=">i2").reshape(11, 7) % 9),
    "u1": np.arange(200, dtype="u1"),
    "bool": np.arange(30).reshape(5, 6) % 4 == 1,
    "c8": (np.arange(20) + 1j * np.arange(20)[::-1]).astype("c8").reshape(4, 5),
    "nan": np.where(np.arange(60).reshape(6, 10) % 7 == 3, np.nan, np.arange(60).reshape(6, 10)),
    "timedelta": np.arange(24).reshape(4, 6).astype("m8[s]"),
    "datetime": np.arange(24).reshape(4, 6).astype("M8[D]"),
    "text": np.array(["b", "a", "", "ccc", "a", "d"] * 3).reshape(6, 3),
    "records": RECORDS,
    "one element": np.array([[3.5]]),
    "empty": np.empty((0, 4), "i4"),
    "no dimension": np.array(2.5),
}


def outcome(call, array):
    """What a call gives, to be compared, or the type of its error and its text."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = call(array)
        except Exception as error:
            return type(error)
    return found


def assert_same(found, expected, what):
    if isinstance(expected, type) and issubclass(expected, Exception):
        while expected.__module__.startswith("numpy._"):
            expected = expected.__bases__[0]  # nobody can name NumPy's private ones
        assert isinstance(found, type), (what, found, expected)
        assert issubclass(found, expected), (what, found, expected)
        return
    assert not isinstance(found, type) or found is expected, (what, found, expected)
    if isinstance(expected, tuple | list):
        assert type(found) is type(expected), what
        assert len(found) == len(expected), what
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, what)
        return
    if isinstance(expected, np.ndarray | np.generic):
        plain = np.asarray(found)
        assert plain.dtype == expected.dtype, (what, plain.dtype, expected.dtype)
        assert plain.shape == expected.shape, what
        if plain.dtype.kind in "fc":
            rtol = 2e-3 if plain.dtype == "f2" else 1e-5
            np.testing.assert_allclose(plain, expected, rtol=rtol, atol=1e-6, err_msg=str(what))
        elif plain.dtype.kind == "V":
            assert str(plain) == str(np.asarray(expected)), what
        else:
            np.testing.assert_array_equal(plain, expected, err_msg=str(what))
        return
    assert found == expected or (found != found and expected != expected), (what, found, expected)


# What has no value to compare: where the array lies in memory, and what writes to a file.
SPECIAL = {"base", "ctypes", "data", "flat", "dump", "dumps", "tofile", "flags"}

CALLS = {
    "all": [(), (0,)],
    "any": [(), (-1,)],
    "argmax": [(), (0,), (-1,), (5,)],
    "argmin": [(), (0,), (-1,)],
    "argpartition": [(0,)],
    "argsort": [(), (0,)],
    "astype": [("f8",), ("i8",), ("S3",), ("f4", "F"), ("i1", "K", "safe")],
    "byteswap": [(), (True,)],
    "choose": [([1],)],
    "clip": [(1, 3), (None, 2), (2,), ()],
    "compress": [([True, False],)],
    "conj": [()],
    "conjugate": [()],
    "copy": [(), ("F",)],
    "cumprod": [(), (0,), (-1,)],
    "cumsum": [(), (0,), (-1,), (0, "f8")],
    "diagonal": [(), (1,)],
    "dot": [(2,)],
    "fill": [(0,)],
    "flatten": [(), ("F",)],
    "getfield": [("u1",)],
    "item": [(), (0,), (3,), (-1,), (0, 0), (99999,)],
    "max": [(), (0,), (-1,), ((0, 1),)],
    "mean": [(), (0,), (-1,)],
    "min": [(), (0,), (-1,)],
    "nonzero": [()],
    "partition": [(0,)],
    "prod": [(), (0,)],
    "put": [([0], [1])],
    "ravel": [(), ("F",)],
    "repeat": [(2,), (2, 0)],
    "reshape": [(-1,), ((-1, 1),)],
    "resize": [(3,)],
    "round": [(), (1,)],
    "searchsorted": [(2,)],
    "setfield": [(0, "u1")],
    "setflags": [(), (False,), (True,)],
    "sort": [(), (0,)],
    "squeeze": [(), (0,)],
    "std": [(), (0,), (-1,)],
    "sum": [(), (0,), (-1,), ((0, 1),), (0, "f8")],
    "swapaxes": [(0, 1), (0, 9)],
    "take": [([0],), ([0], 0)],
    "to_device": [("cpu",), ("gpu",)],
    "tobytes": [(), ("F",)],
    "tolist": [()],
    "trace": [()],
    "transpose": [(), (1, 0)],
    "var": [(), (0,)],
    "view": [(), ("u1",)],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_attribute_of_an_ndarray_gives_what_it_gives_there(name):
    array = read_only(ARRAYS[name])
    for lazy in lazies(array):
        for attribute in dir(np.ndarray):
            if attribute.startswith("_") or attribute in SPECIAL:
                continue
            if attribute == "strides" and not array.size:  # NumPy has several
                continue
            what = (type(lazy).__name__, name, attribute)
            expected = outcome(operator.attrgetter(attribute), array)
            found = outcome(operator.attrgetter(attribute), lazy)
            if not callable(expected) or isinstance(expected, type):
                assert_same(found, expected, what)
                continue
            if name == "records" and attribute == "dot":
                continue  # NumPy makes objects of them, which cannot be compared
            # A method that is new in NumPy is called without arguments.
            for arguments in CALLS.get(attribute, [()]):
                call = operator.methodcaller(attribute, *arguments)
                assert_same(outcome(call, lazy), outcome(call, array), (*what, arguments))
        assert lazy.flags.writeable is False
        for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE", "ALIGNED", "FNC", "FORC"):
            assert lazy.flags[flag] == array.flags[flag], (name, flag)
        assert bytes(lazy.data) == bytes(array.data) if array.dtype.kind not in "mM" else True
        assert list(map(str, lazy.flat)) == list(map(str, array.flat))
        assert set(dir(array)) - set(dir(lazy)) <= {
            name for name in dir(np.ndarray) if name.startswith("_")
        }


OPTIONS = [
    {"keepdims": True},
    {"axis": 0, "keepdims": True},
    {"axis": (0, 1)},
    {"initial": 5},
    {"axis": 1, "initial": 2, "where": "mask"},
    {"where": "mask", "initial": 1},
    {"axis": 0, "where": "row", "initial": 0},
    {"where": "mask"},
    {"dtype": "f4"},
    {"ddof": 1},
    {"axis": 0, "out": "row"},
    {"out": "number"},
]
REDUCTIONS = ["sum", "prod", "min", "max", "any", "all", "mean", "var", "std", "argmax", "argmin"]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_take_what_numpys_take(name):
    for dtype in ("f8", "i4", "f2", "c16", "m8[s]"):
        most = 2 if name == "prod" else 13  # else it overflows
        array = read_only((np.arange(77).reshape(11, 7) * 5 % most + 1).astype(dtype))
        for lazy in lazies(array):
            for options in OPTIONS:
                calls = []
                for given in (lazy, array):
                    chosen = dict(options)
                    where = options.get("where")
                    if where == "mask":
                        chosen["where"] = np.arange(77).reshape(11, 7) % 3 != 1
                    if where == "row":
                        chosen["where"] = np.arange(7) % 3 != 1
                    if "initial" in chosen and dtype == "m8[s]":
                        chosen["initial"] = np.timedelta64(chosen["initial"], "s")
                    if "out" in chosen:
                        is_index = name.startswith("arg")
                        kind = "i8" if is_index else bool if name in ("any", "all") else dtype
                        shape = (7,) if chosen["out"] == "row" else ()
                        chosen["out"] = np.zeros(shape, kind)
                    calls += [outcome(lambda x, c=chosen: getattr(x, name)(**c), given)]
                    calls += [outcome(lambda x, c=chosen: getattr(np, name)(x, **c), given)]
                found, found_by_function, expected, expected_by_function = calls
                what = (type(lazy).__name__, name, dtype, options)
                assert_same(found, expected, what)
                assert_same(found_by_function, expected_by_function, what)


def test_reductions_and_running_sums_read_each_chunk_once():
    array = read_only(np.arange(900.0).reshape(30, 30))
    for call, times in (
        (lambda x: x.argmax(), 1),
        (lambda x: x.argmin(axis=1), 1),
        (lambda x: x.cumsum(axis=0), 1),
        (lambda x: np.add.accumulate(x, axis=1), 1),
        (lambda x: x.sum(where=array > 5), 1),
        (lambda x: x.clip(3, 5), 1),
        (lambda x: x.round(1), 1),
        (lambda x: x.astype("f4"), 1),
        (lambda x: x.std(), 2),
        (lambda x: 899.0 in x, 1),
        (lambda x: x.item(5), 0.05),
    ):
        lazy = made(array, (7, 30))
        assert_same(call(lazy), call(array), call)
        assert lazy.reader.elements <= times * array.size


def test_the_first_of_equal_extremes_is_found_and_nan_counts_as_extreme():
    array = np.zeros((20, 20))
    array[3, 17] = array[12, 2] = array[3, 19] = 1
    for place in (None, (12, 1), (1, 12)):
        if place is not None:
            array[place] = np.nan
        for lazy in lazies(read_only(array)):
            for axis in (None, 0, 1):
                for keepdims in (False, True):
                    options = {"axis": axis, "keepdims": keepdims}
                    assert_same(lazy.argmax(**options), array.argmax(**options), options)
                    assert_same(np.argmin(lazy, **options), np.argmin(array, **options), options)


def test_the_whole_array_is_read_once_as_long_as_somebody_holds_it():
    array = read_only(np.arange(100.0).reshape(10, 10))
    lazy = made(array, (5, 5))
    turned, flat = lazy.T, lazy.ravel()
    assert_same([turned, flat], [array.T, array.ravel()], "views")
    assert lazy.reader.elements == array.size
    assert np.shares_memory(turned, flat)
    for view in (turned, flat, lazy.reshape(-1)[:3]):
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
    del turned, flat, view
    assert lazy._whole_array() is None


WRITES = {
    "[]": lambda x: operator.setitem(x, 0, 1),
    "[...]": lambda x: operator.setitem(x, Ellipsis, 1),
    "del": lambda x: operator.delitem(x, 0),
    "+=": lambda x: operator.iadd(x, 1),
    "*= array": lambda x: operator.imul(x, np.ones(7)),
    "@=": lambda x: operator.imatmul(x, np.eye(7)),
    "copyto": lambda x: np.copyto(x, 5),
    "put": lambda x: np.put(x, [0], 5),
    "place": lambda x: np.place(x, np.ones((11, 7), bool), [5]),
    "putmask": lambda x: np.putmask(x, np.ones((11, 7), bool), 5),
    "fill_diagonal": lambda x: np.fill_diagonal(x, 5),
    "put_along_axis": lambda x: np.put_along_axis(x, np.zeros((1, 7), int), 5, 0),
    "nan_to_num": lambda x: np.nan_to_num(x, copy=False),
    "out= of a ufunc": lambda x: np.add(1, 2, out=x),
    "out= of a reduction": lambda x: np.add.reduce(np.ones((2, 11, 7)), out=x),
    "out= of a function": lambda x: np.cumsum(np.ones((11, 7)), 0, out=x),
    "out= of take": lambda x: np.take(np.ones(9), np.zeros((11, 7), int), out=x),
    "out= of its own method": lambda x: x.clip(0, 1, out=x),
    "out= of sum": lambda x: np.ones((3, 11, 7)).sum(0, out=x),
    "sort": lambda x: x.sort(),
    "partition": lambda x: x.partition(3),
    "fill": lambda x: x.fill(3),
    "flags": lambda x: setattr(x.flags, "writeable", True),
    "setflags": lambda x: x.setflags(write=True),
    "flat": lambda x: operator.setitem(x.flat, 0, 1),
    "byteswap": lambda x: x.byteswap(inplace=True),
    "shuffle": lambda x: np.random.default_rng(0).shuffle(x),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_fails_as_on_a_read_only_array(name):
    array = read_only(ARRAYS["f8"])
    expected = outcome(WRITES[name], array)
    assert expected is ValueError, (name, expected)
    for lazy in lazies(array):
        found = outcome(WRITES[name], lazy)
        assert isinstance(found, type), (name, found)
        assert issubclass(found, ValueError), (name, found)
        np.testing.assert_array_equal(np.asarray(lazy), array)


def test_the_error_of_a_write_says_what_to_do():
    for lazy in lazies(read_only(ARRAYS["f8"])):
        for write in (lambda x: operator.setitem(x, 0, 1), lambda x: operator.iadd(x, 1)):
            with pytest.raises(ValueError, match=r"read-only.*np\.array\(value\) gives a copy"):
                write(lazy)


class Indexed:
    """What stands for a number in a key."""

    def __index__(self) -> int:
        return 3


class Listed:
    """What is an array in a key."""

    def __array__(self, dtype=None, copy=None):
        return np.array([3, 1], dtype)


KEYS = [
    *(np.s_[np.array([2, 10, 5], dtype)] for dtype in "bBhHiIlLqQ"),
    np.s_[3:9, np.array([6, 5], np.uint8)],
    np.s_[:, (0, 1)],
    np.s_[range(3, 9, 2), 5],
    np.s_[range(0)],
    np.s_[:, []],
    np.s_[()],
    np.s_[Indexed()],
    np.s_[Listed()],
    np.s_[Listed(), Indexed()],
    np.s_[[[0, 1], [2, 3]]],
    np.s_[[True] * 11],
    np.s_[np.array(3)],
    np.s_[np.uint8(10), np.int8(-1)],
    np.s_[True],
    np.s_[None, ..., 2],
    np.s_[1.0],
    np.s_[np.float64(1)],
    np.s_["a"],
    np.s_[["a"]],
    np.s_[object()],
    np.s_[np.array([1.5])],
    np.s_[11],
    np.s_[0, 0, 0],
    np.s_[{1, 2}],
    np.s_[[[0], [1, 2]]],
]


@pytest.mark.parametrize("key", KEYS, ids=named)
def test_keys_are_numpys(key):
    array = read_only(ARRAYS["f8"])
    for lazy in lazies(array):
        found, expected = (outcome(lambda x: x[key], each) for each in (lazy, array))
        assert_same(found, expected, key)
        if not isinstance(expected, type):
            assert type(found) is type(expected)


def test_a_series_an_index_and_a_dask_array_are_keys(no_pool):
    pandas, dask = pytest.importorskip("pandas"), pytest.importorskip("dask.array")
    array = read_only(ARRAYS["f8"])
    for lazy in lazies(array):
        for numbers in (
            pandas.Series([4, 2], dtype="uint8"),
            pandas.Index([4, 2]),
            dask.from_array(np.array([4, 2])),
            lazies(np.array([4, 2]))[0],
        ):
            assert_same(lazy[numbers], array[[4, 2]], type(numbers))
            assert_same(lazy[:, numbers], array[:, [4, 2]], type(numbers))


def test_fields_are_numpys():
    array = read_only(RECORDS)
    calls = {
        "a": lambda x: x["a"],
        "b": lambda x: x["b"][:, 1],
        "part": lambda x: x[10:20]["b"],
        "two": lambda x: x[["a", "c"]]["c"],
        "none": lambda x: x["z"],
        "no list": lambda x: x[["a", "z"]],
        "element": lambda x: x[3]["a"],
        "equal": lambda x: x == array[3],
        "unequal": lambda x: x != array,
        "in": lambda x: array[3] in x,
    }
    for lazy in lazies(array):
        for name, call in calls.items():
            assert_same(outcome(call, lazy), outcome(call, array), name)
        assert not lazy["a"].flags.writeable


def test_comparisons_are_numpys():
    others = [3, 2.5, "a", b"a", None, True, np.array("a"), [1, 2], np.float32(2), np.ones(3)]
    for name, plain in ARRAYS.items():
        array = read_only(plain)
        for lazy in lazies(array):
            for other in [*others, array, np.timedelta64(3, "s"), np.datetime64("1970-01-04")]:
                for compare in (operator.eq, operator.ne):
                    found, expected = (
                        outcome(lambda x, o=other, c=compare: c(x, o), each)
                        for each in (lazy, array)
                    )
                    assert_same(found, expected, (name, other, compare))
            with pytest.raises(TypeError, match="unhashable"):
                hash(lazy)


def test_whether_an_element_is_in_an_array():
    array = read_only(ARRAYS["f8"])
    for lazy in lazies(array):
        for value in (5, -4, 99, np.nan, array[0], array[:, :1], "a", None):
            found, expected = (outcome(lambda x, v=value: v in x, each) for each in (lazy, array))
            assert_same(found, expected, value)


@pytest.mark.parametrize("name", ["f8", "one element", "empty", "no dimension", "records"])
def test_conversions_are_numpys(name):
    array = read_only(ARRAYS[name])
    for lazy in lazies(array):
        for convert in (bool, int, float, complex, operator.index, len, hash):
            found, expected = (outcome(convert, each) for each in (lazy, array))
            assert_same(found, expected, (name, convert))
        assert_same(outcome(list, lazy), outcome(list, array), name)
        assert_same(outcome(copy.copy, lazy), outcome(copy.copy, array), name)
        assert outcome(copy.copy, lazy).flags.writeable
        assert_same(outcome(copy.deepcopy, lazy), outcome(copy.deepcopy, array), name)


def test_protocols_of_other_libraries():
    array = read_only(ARRAYS["f8"])
    for lazy in lazies(array):
        assert lazy.__array_namespace__() is np
        taken = np.from_dlpack(lazy)
        assert_same(taken, array, "dlpack")
        assert_same(np.asarray(lazy, dtype="f4"), array.astype("f4"), "asarray")
        assert isinstance(lazy, LazyArray)
        for name in ("shape", "dtype", "strides"):
            with pytest.raises(AttributeError):
                setattr(lazy, name, getattr(array, name))


FUNCTIONS = [
    lambda x: np.clip(x, 1, 3),
    lambda x: np.clip(x, 1, 3, out=np.empty((11, 7))),
    lambda x: np.round(x, 1),
    lambda x: np.cumsum(x),
    lambda x: np.cumsum(x, axis=1),
    lambda x: np.real(x),
    lambda x: np.imag(x),
    lambda x: np.transpose(x),
    lambda x: np.reshape(x, -1),
    lambda x: np.ravel(x),
    lambda x: np.concatenate([x, x]),
    lambda x: np.stack([x, x]),
    lambda x: np.where(x > 1, x, 0),
    lambda x: np.percentile(x, 30),
    lambda x: np.ptp(x),
    lambda x: np.nanmean(x),
    lambda x: np.histogram(x)[0],
    lambda x: np.sort(x, axis=0),
    lambda x: np.unique(x),
    lambda x: np.diff(x),
    lambda x: np.gradient(x)[0],
    lambda x: np.einsum("ij->j", x),
    lambda x: np.linalg.norm(x),
    lambda x: np.fft.fft(x),
    lambda x: np.isclose(x, x),
    lambda x: np.array_equal(x, x),
    lambda x: np.shape(x),
    lambda x: np.ndim(x),
    lambda x: np.size(x),
    lambda x: np.broadcast_to(x, (2, 11, 7)),
    lambda x: np.zeros_like(x),
    lambda x: np.interp(2.5, x[:, 0], x[:, 1]),
    lambda x: np.add.outer(x[:2, 0], x[0]),
    lambda x: np.add.reduceat(x, [0, 3]),
    lambda x: divmod(x, 3),
    lambda x: x @ x.T,
    lambda x: x.sum(5),
    lambda x: np.mean(x, axis=(0, 0)),
]


@pytest.mark.parametrize("at", range(len(FUNCTIONS)))
def test_functions_are_numpys(at):
    array = read_only(ARRAYS["f8"])
    for lazy in lazies(array):
        found, expected = (outcome(FUNCTIONS[at], each) for each in (lazy, array))
        assert_same(found, expected, at)


def test_its_bytes_are_those_of_the_array(path):
    array = np.arange(60_000, dtype="i4").reshape(200, 300)
    with arraychest.open(path, compression="zstd", compress_above=1000) as chest:
        chest["x"] = array.copy()
        chest.spill("x")
        found = chest["x"]
        assert isinstance(found, arraychest.LazyArray)
        assert bytes(found) == bytes(array)


def test_numba_is_told_what_to_call(path, monkeypatch):
    """By its entry point; Numba itself is too large to be installed for one test."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module_name, _, name = project["entry-points"]["numba_extensions"]["init"].partition(":")
    register = getattr(importlib.import_module(module_name), name)
    told = {}
    module = types.ModuleType("numba.core.typing.typeof")
    module.typeof_impl = types.SimpleNamespace(
        register=lambda kind: lambda function: told.update({kind: function})
    )
    for name in ("numba", "numba.core", "numba.core.typing"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register()
    with arraychest.open(path, compression="zstd", compress_above=1000) as chest:
        chest["x"] = np.zeros(10_000)
        chest.spill("x")
        with pytest.raises(TypeError, match=r"found CompressedArray: chest\.load\(key\)"):
            told[arraychest.LazyArray](chest["x"], None)
