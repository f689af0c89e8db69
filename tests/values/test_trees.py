"""Value trees: None, numbers, strings, lists, dicts and arrays in them, exactly, in every tier."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import gc
import os
import pathlib
import pickle
import struct
import tracemalloc
import weakref
import zoneinfo
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import arraychest
from arraychest.errors import (
    AbsentKeyError,
    CorruptEntryError,
    PickleRefusedError,
    QuotaError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.values import decoder, encoder, limits, registry, taking_apart
from tests.support import assert_identical, audit, run_python

# Elements of a float64 array that gets a file of its own, and what is compressed by "auto".
LONG = arraychest.PACK_THRESHOLD // 8 + 8


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Fit:
    slope: Any
    error: Any = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any


class Box:
    """A type with `to_tree` and `from_tree` of its own."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Unregistered:
    """What only pickle can take apart."""

    def __init__(self, held: Any) -> None:
        self.held = held


for each in (Point, Fit, Frozen):
    arraychest.register(each)
arraychest.register(Box, lambda box: [box.held], lambda tree: Box(*tree))


def exact(value: Any) -> Any:
    """What can be compared with `==`, and tells apart all that a chest must."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is arraychest.CompressedArray:
        return exact(np.asarray(value))
    if isinstance(value, np.ndarray):
        plain = value if value.flags.forc else np.empty(value.shape, np.uint8)
        flags = (plain.flags.c_contiguous, plain.flags.f_contiguous)
        elements: Any = value.tobytes()
        if value.dtype.char in "gG" or value.dtype.names:
            elements = repr(value.tolist())
        if not value.dtype.itemsize:
            # Strides that are all 0: NumPy has its own opinion of what they are.
            flags = (True, True)
        return (name, repr(value.dtype), value.shape, flags, elements)
    if isinstance(value, np.str_ | np.bytes_):
        return (name, value[:])
    if isinstance(value, np.generic):
        return (name, repr(value.dtype), repr(value))
    if kind is float:
        return (name, struct.pack("<d", value))
    if kind is complex:
        return (name, struct.pack("<dd", value.real, value.imag))
    if kind in (list, tuple, Point):
        return (name, [exact(each) for each in value])
    if kind in (set, frozenset):
        return (name, sorted((exact(each) for each in value), key=repr))
    if kind is dict:
        return (name, [(exact(key), exact(each)) for key, each in value.items()])
    if kind is slice:
        return (name, [exact(each) for each in (value.start, value.stop, value.step)])
    if kind in (dt.datetime, dt.time):
        return (name, value.replace(tzinfo=None), value.fold, repr(value.tzinfo))
    if kind in (Fit, Frozen, Box, Unregistered):
        names = ("held",) if kind in (Box, Unregistered) else [f.name for f in fields(value)]
        return (name, [exact(getattr(value, each)) for each in names])
    return (name, repr(value))


def fields(value: Any) -> Any:
    return dataclasses.fields(value)


def occurrences(value: Any) -> list[int]:
    """Of each list, tuple, dict and array in the order of a walk: which it is the same as."""
    numbers: dict[int, int] = {}
    found = []
    held = []

    def walk(each: Any) -> None:
        if type(each) in (list, tuple, dict, np.ndarray, arraychest.CompressedArray, Box):
            held.append(each)
            known = id(each) in numbers
            found.append(numbers.setdefault(id(each), len(numbers)))
            if known:
                return
        if type(each) in (list, tuple):
            for inner in each:
                walk(inner)
        elif type(each) is dict:
            for inner in each.values():
                walk(inner)
        elif type(each) is Box:
            walk(each.held)

    walk(value)
    return found


def assert_same(found: Any, expected: Any) -> None:
    assert exact(found) == exact(expected)


def engine(value: Any, **options: Any) -> Iterator[tuple[str, Any]]:
    """The value as it comes out of a chest by every way there is."""
    folder = os.path.join(os.environ["TMPDIR"], "tiers.chest")
    with arraychest.Chest(path=folder, mode="w", available_memory="1 GiB", **options) as chest:
        chest["x"] = value
        chest._engine.session.resident.check()
        yield "resident", chest["x"]
        yield "inmem", chest.inmem["x"]
        yield "setdefault", chest.setdefault("x", 1)
        chest.spill("x")
        chest._engine.session.resident.check()
        assert chest.memory_usage == 0
        yield "stored", chest["x"]
        yield "stored, again", chest["x"]
        yield "loaded", chest.load("x")
        yield "values", next(iter(chest.values()))
        if not options.get("allow_pickle"):
            yield "handle", chest.handle("x").array(options.get("mmap_mode", "r"))
        assert chest.verify().ok
    read = {name: each for name, each in options.items() if name != "on_put"}
    with arraychest.open(folder, "r", **read) as chest:
        yield "reopened", chest["x"]
        other = os.path.join(os.environ["TMPDIR"], "linked.chest")
        with arraychest.Chest(path=other, mode="w", **options) as linked:
            linked.update(chest)
            yield "linked", linked["x"]
            yield "popped", linked.pop("x")
    with arraychest.Chest(path=folder, mode="w", available_memory=0, **options) as chest:
        chest["x"] = value
        yield "put directly", chest["x"]
        with chest.transaction():
            chest["y"] = value
            yield "in a transaction", chest["y"]
        yield "after a transaction", chest["y"]
        chest._engine.session.resident.check()
    audit(folder)


def check(value: Any, **options: Any) -> None:
    expected = exact(value)
    shared = occurrences(value)
    for tier, found in engine(value, **options):
        assert exact(found) == expected, tier
        assert occurrences(found) == shared, tier


# --- generated values ------------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["", "\0", "a\0", "\ud800", "\udfff\ud800", "\U0001f600", "x" * 300]
)
INTS = st.integers() | st.sampled_from(
    [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, -(2**64), 255, 256, -128, -129, 10**400]
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    st.floats(),
    st.complex_numbers(),
    TEXTS,
    st.binary(max_size=8),
    st.just(b"\0" * 300),
    st.just(...),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.times(),
    st.times(timezones=st.timezones()),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([
        dt.datetime.max, dt.datetime.min, dt.timedelta.max, dt.timedelta.min, dt.time(3, fold=1),
        dt.datetime(2020, 10, 25, 2, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=1), "odd")),
        pathlib.PurePosixPath("/a/../b"), pathlib.PureWindowsPath("C:\\x"), pathlib.Path("."),
    ]),
    st.builds(range, INTS, INTS, INTS.filter(bool)),
    hnp.scalar_dtypes().flatmap(
        lambda dtype: hnp.arrays(dtype, ()).map(lambda array: array[()])
    ),
    st.sampled_from([
        np.str_("a\0"), np.bytes_(b"\0"), np.str_(""), np.longdouble(1) / 3,
        np.datetime64("NaT"), np.timedelta64("NaT", "s"), np.float32(-0.0), np.longlong(3),
    ]),
)  # fmt: skip
DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    st.sampled_from([np.dtype(">f8"), np.dtype(">U3"), np.dtype("S0"), np.dtype("U0"),
                     np.dtype("g"), np.dtype([("a", "i4"), ("b", ">f8", 2)]),
                     np.dtype([("a", "i1"), ("b", "f8")], align=True)]),
)  # fmt: skip


@st.composite
def arrays(draw: Any) -> np.ndarray:
    dtype = draw(DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if dtype.names or not dtype.itemsize or dtype.char == "g" or dtype.str == ">U3":
        array = np.ndarray(shape, dtype, bytes(dtype.itemsize * int(np.prod(shape))))
        array = array.copy() if dtype.itemsize else array
    else:
        array = draw(hnp.arrays(dtype, shape))
    layout = draw(st.sampled_from(["C", "F", "T", "reversed", "strided", "large"]))
    if layout == "F" and dtype.itemsize:
        array = array.copy(order="F")
    elif layout == "T":
        array = array.T
    elif layout == "reversed":
        array = array[(slice(None, None, -1),) * array.ndim]
    elif layout == "strided" and array.ndim:
        array = array[..., ::2]
    elif layout == "large" and array.size and dtype.itemsize:
        array = np.broadcast_to(array.reshape(-1)[:1], (65_600 // dtype.itemsize, 1))
    return np.asarray(array)


HASHABLE = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Frozen, inner),
    ),
    max_leaves=4,
)


def containers(inner: Any) -> Any:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(st.floats(), max_size=4),
        st.lists(INTS, max_size=4),
        st.lists(TEXTS, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.builds(slice, inner, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Fit, inner, inner),
        st.builds(Box, inner),
        # The same objects several times.
        st.builds(
            lambda pool, places: [pool[at % len(pool)] for at in places],
            st.lists(inner, min_size=1, max_size=3),
            st.lists(st.integers(0, 2), max_size=5),
        ),
    )


TREES = st.recursive(PLAIN | arrays() | st.just(np.void(b"a\0")), containers, max_leaves=12)
# An array alone or a NumPy scalar is no tree, and is tested elsewhere.
TREES = TREES.filter(lambda value: not isinstance(value, np.ndarray | np.generic))


@pytest.fixture
def short_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings of 256 bytes are parts already, which generated ones may have."""
    for module in (encoder, taking_apart):
        monkeypatch.setattr(module, "LONG", 256)


@pytest.mark.usefixtures("short_is_long")
@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of strategies
class TestGenerated:
    @pytest.mark.slow
    @given(
        TREES,
        st.sampled_from(["freeze", "copy", "share"]),
        st.sampled_from(["r", "c"]),
        st.sampled_from(["auto", None, "lz4"]),
    )
    def test_what_hypothesis_makes_comes_back_the_same_by_every_way(
        self, value, on_put, mmap_mode, compression
    ):
        check(value, on_put=on_put, mmap_mode=mmap_mode, compression=compression)

    @pytest.mark.slow
    @given(st.lists(TREES, max_size=6))
    def test_under_many_keys_with_a_small_budget(self, values):
        expected = [exact(value) for value in values]
        with arraychest.Chest(available_memory=100_000) as chest:
            for at, value in enumerate(values):
                chest[at] = value
                chest._engine.session.resident.check()
                assert chest.memory_usage <= 100_000
            for at, value in enumerate(values):
                chest[len(values) + at] = value
                chest._engine.session.resident.check()
            assert [exact(value) for value in chest.values()] == 2 * expected
            chest.available_memory = 0
            assert chest.memory_usage == 0
            assert [exact(value) for _, value in chest.items()] == 2 * expected
            for at, each in enumerate(expected):
                assert exact(chest.pop(at)) == each
                chest._engine.session.resident.check()
            assert chest.verify().ok

    @given(TREES)
    def test_inside_of_pickled_objects_and_beside_them(self, value):
        with arraychest.Chest(available_memory="1 GiB", allow_pickle=True) as chest:
            chest["x"] = [Unregistered(value), value]
            for _ in range(2):
                pickled, plain = chest["x"]
                assert exact(plain) == exact(value)
                assert type(pickled) is Unregistered
                chest.flush()


class TestRoundTrip:
    def test_a_chest_equals_the_dict_that_it_was_made_of(self, make_chest):
        class Unlike:
            def __eq__(self, other):
                return False

        data = {
            "none": None,
            "nested": [1, (2.5, {"a": np.arange(3), "b": [np.float32(1)]}), {"s"}],
            "registered": Fit(np.arange(4), Point(np.zeros(2), 1)),
            "slice": slice(1, None),
            "array": np.arange(5),
        }
        chest = make_chest(data)
        for _ in range(2):
            assert chest == data
            assert chest == make_chest(data)
            for key, other in [
                ("none", 0),
                ("none", np.zeros(1)),
                ("nested", [1, (2.5, {"a": np.arange(4), "b": [np.float32(1)]}), {"s"}]),
                ("nested", [1, (2.5, {"a": np.arange(3.0), "b": [np.float32(1)]}), {"s"}]),
                ("nested", [1, [2.5, {"a": np.arange(3), "b": [np.float32(1)]}], {"s"}]),
                ("nested", [1, (2.5, {"a": np.arange(3), "b": [1.0]}), {"s"}]),
                ("nested", [1, (2.5, {"a": np.arange(3), "c": [np.float32(1)]}), {"s"}]),
                ("nested", [1, (2.5, {"a": np.arange(3)}), {"s"}]),
                ("nested", [1]),
                ("registered", Fit(np.arange(4), Point(np.zeros(3), 1))),
                ("registered", Box(np.arange(4))),
                ("slice", slice(1, 2)),
                ("array", [0, 1, 2, 3, 4]),
                ("array", Unlike()),
                ("slice", Unlike()),
            ]:
                assert chest != {**data, key: other}, key
            chest.flush()

    def test_numbers_in_trees_are_equal_as_pythons_are(self, make_chest):
        chest = make_chest({"a": [1, 2.0, True]})
        assert chest == {"a": [1.0, 2, 1]}
        assert chest != {"a": [1.0, 2]}
        assert chest != {"a": (1, 2.0, True)}

    def test_a_dict_keeps_its_order_and_a_set_its_elements(self, chest):
        keys = ["z", "a", 3, (1, 2), None, 2.5, b"b", frozenset({1})]
        chest["x"] = {key: at for at, key in enumerate(keys)}
        chest["y"] = [dict.fromkeys(reversed(keys)), set(keys)]
        for _ in range(2):
            assert list(chest["x"]) == keys
            assert list(chest["y"][0]) == keys[::-1]
            assert chest["y"][1] == set(keys)
            chest.flush()

    def test_two_keys_that_are_nan_stay_two(self, chest):
        one, other = float("nan"), float("nan")
        chest["x"] = {one: 1, other: 2}
        chest["y"] = {one, other}
        chest.flush()
        assert list(chest["x"].values()) == [1, 2]
        assert len(chest["y"]) == 2

    def test_a_memmap_in_a_value_is_one_array_however_often_it_is_there(self, chest, tmp_path):
        mapped = np.memmap(tmp_path / "mapped", "f8", "w+", shape=10)
        mapped[:] = range(10)
        chest["x"] = [mapped, {"again": mapped}]
        mapped[0] = 99
        for _ in range(2):
            first, rest = chest["x"]
            assert type(first) is np.ndarray
            assert first is rest["again"]
            assert first.tolist() == list(range(10))
            chest.spill("x")

    def test_what_was_got_may_be_put_into_another_value(self, make_chest):
        one, other = make_chest(compression="lz4"), make_chest()
        one["x"] = {"a": np.arange(LONG), "b": [1]}
        one.flush()
        got = one["x"]
        assert type(got["a"]) is arraychest.CompressedArray
        other["y"] = [got, got["a"]]
        one.close()
        for _ in range(2):
            assert_same(other["y"], [{"a": np.arange(LONG), "b": [1]}, np.arange(LONG)])
            assert other["y"][0]["a"] is not None
            other.flush()


class TestMutation:
    """Nothing that can be written to is shared between a get and the chest, or another get."""

    def value(self) -> Any:
        return {"list": [1, [2]], "set": {1}, "dict": {"a": 1}, "box": Box([1]), "fit": Fit([1])}

    @pytest.mark.parametrize("mmap_mode", ["r", "c"])
    @pytest.mark.parametrize("size", [3, LONG])
    def test_of_what_was_got_never_changes_the_value(self, mmap_mode, size, make_chest):
        chest = make_chest(mmap_mode=mmap_mode)
        chest["x"] = [self.value(), np.arange(size)]
        for _ in range(3):
            for get in (
                lambda: chest["x"],
                lambda: chest.inmem.get("x", chest["x"]),
                lambda: chest.load("x"),
                lambda: dict(chest.items())["x"],
            ):
                found, array = get()
                assert_same(found, self.value())
                found["list"].append(3)
                found["list"][1].clear()
                found["set"].add(2)
                found["dict"].clear()
                found["box"].held.append(1)
                found["fit"].slope = 9
                found["new"] = found
                if array.flags.writeable if isinstance(array, np.ndarray) else False:
                    array[0] = 99
            assert_same(chest["x"], [self.value(), np.arange(size)])
            chest.spill("x")

    def test_of_what_was_put_never_changes_the_value(self, make_chest):
        for budget in ("1 GiB", 0):
            chest = make_chest(available_memory=budget)
            mine = self.value()
            chest["x"] = mine
            with chest.transaction():
                chest["y"] = mine
                mine["list"].append(1)
                mine["box"].held.clear()
                assert_same(chest["y"], self.value())
            assert_same(chest["x"], self.value())
            assert_same(chest["y"], self.value())

    @pytest.mark.parametrize("size", [3, LONG])
    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_private_arrays_are_writable_and_the_callers_own(self, size, budget, make_chest):
        chest = make_chest(mmap_mode="c", available_memory=budget)

        def look(key: str) -> None:
            for get in (chest.__getitem__, chest.load):
                found = get(key)
                assert_same(found, [np.arange(size), (np.arange(3),)])
                found[0][...] = 99
                found[1][0][...] = 99

        chest["x"] = [np.arange(size), (np.arange(3),)]
        with chest.transaction():
            chest["y"] = [np.arange(size), (np.arange(3),)]
            look("y")
            look("y")
        for _ in range(2):
            look("x")
            look("y")
            chest.flush()

    def test_a_structured_scalar_in_a_tree_is_the_callers_own(self, chest):
        chest["x"] = [np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])[0]]
        for _ in range(2):
            chest["x"][0]["a"] = 77
            assert chest["x"][0]["a"] == 1
            chest.flush()

    def test_while_it_is_put_is_seen_or_not_but_tears_nothing(self, chest):
        value: dict[Any, Any] = {}

        def to_tree(_: Any) -> Any:
            value[len(value)] = None
            inner.append(1)
            return None

        class Meddling:
            __hash__ = object.__hash__

        arraychest.register(Meddling, to_tree, lambda _: 0, name="tests.Meddling")
        inner: list[Any] = [Meddling()]
        value.update({Meddling(): Meddling(), "inner": inner})
        chest["x"] = value
        found = chest["x"]
        assert (list(found), found[0], found["inner"][0]) == ([0, "inner"], 0, 0)
        chest.flush()
        assert chest["x"] == found


class TestLimits:
    def nested(self, depth: int, kind: Callable[[Any], Any] = lambda value: [value]) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = kind(value)
        return value

    @pytest.mark.parametrize(
        "kind",
        [
            lambda value: [value],
            lambda value: (value,),
            lambda value: {"a": value},
            lambda value: {(value,) if isinstance(value, int) else value},
            lambda value: frozenset({value}),
            lambda value: slice(value),
            lambda value: Point(value, 0),
            Box,
            Fit,
        ],
        ids=["list", "tuple", "dict", "set", "frozenset", "slice", "named", "box", "fit"],
    )
    def test_of_depth_is_told_when_it_is_put(self, kind, make_chest):
        chest = make_chest()
        levels = 0
        try:
            for depth in range(1, 150):
                value = self.nested(depth, kind)
                chest["x"] = value
                levels = depth
                if depth in (45, 95):
                    assert_same(chest["x"], value)
        except ValueTypeError as error:
            assert "nested at most 100 deep" in str(error)
        except TypeError:
            return  # a set of sets, which Python refuses itself
        # Of some a level is two: their own, and what they are taken apart into.
        assert levels in (100, 50)
        chest.flush()
        assert_same(chest["x"], self.nested(levels, kind))

    def test_of_depth_counts_what_is_met_again(self, chest):
        deep = self.nested(99)
        chest["x"] = [deep]
        chest["y"] = [deep, deep]
        for value in ([deep, [deep]], [[deep]], [deep, {"a": deep, "b": [deep]}]):
            with pytest.raises(ValueTypeError, match="nested at most 100 deep"):
                chest["x"] = value
        chain: list[Any] = [()]
        for _ in range(100):
            chain.append((chain[-1],))
        with pytest.raises(ValueTypeError, match="nested at most 100 deep"):
            chest["x"] = chain
        chest["x"] = chain[:99]
        chest.flush()
        assert_same(chest["x"], chain[:99])
        assert_same(chest["y"], [deep, deep])

    @pytest.mark.parametrize("wrap", [lambda each: each, lambda each: [{"a": (each,)}]])
    @pytest.mark.parametrize("allow_pickle", [False, True])
    def test_a_value_that_contains_itself_is_refused(self, wrap, allow_pickle, make_chest):
        chest = make_chest(allow_pickle=allow_pickle)
        chest["x"] = 1
        for value in ([], {}, Box(None), Fit(None)):
            if isinstance(value, list):
                value.append(wrap(value))
            elif isinstance(value, dict):
                value["again"] = wrap(value)
            elif isinstance(value, Box):
                value.held = wrap(value)
            else:
                value.slope = wrap(value)
            with pytest.raises(ValueTypeError, match="does not contain itself"):
                chest["x"] = value
            assert chest["x"] == 1
            with chest.transaction(), pytest.raises(ValueTypeError, match="contain itself"):
                chest["y"] = value
        assert list(chest) == ["x"]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: [1.0] * 1000,
            lambda: list(range(1000)),
            lambda: ["x" * 8] * 1000,
            lambda: ("x" * 9_000,),
            lambda: dict.fromkeys(range(1000)),
            lambda: [[] for _ in range(2000)],
            lambda: 1 << 80_000,
            lambda: [b"x" * 9_000],
        ],
    )
    def test_of_size_is_told_when_it_is_put(self, make, make_chest, monkeypatch):
        chest = make_chest({"x": 1})
        monkeypatch.setattr(limits, "MAX_STRUCTURE_BYTES", 8000)
        with pytest.raises(ValueTypeError, match="keep numbers in arrays"):
            chest["x"] = make()
        assert chest["x"] == 1
        monkeypatch.undo()
        chest["x"] = make()
        chest.flush()
        assert chest["x"] == make()

    def test_of_size_is_not_for_arrays_and_long_strings(self, make_chest, monkeypatch):
        chest = make_chest(allow_pickle=True)
        monkeypatch.setattr(limits, "MAX_STRUCTURE_BYTES", 8000)
        value = ["x" * 100_000, b"y" * 100_000, np.zeros(10_000), "\ud800" * 70_000]
        chest["x"] = value
        chest["y"] = Unregistered("z" * 200_000)
        for _ in range(2):
            assert_same(chest["x"], value)
            assert chest["y"].held == "z" * 200_000
            chest.flush()

    def test_what_would_take_for_ever_to_hash_is_told_when_it_is_put(self, chest, monkeypatch):
        for module in (encoder, decoder):
            monkeypatch.setattr(module, "MAX_HASHED", 1000)
        double: Any = (1,)
        for _ in range(12):
            double = (double, double)
        chest["x"] = [double]
        for value in ({double: 1}, {double}, frozenset({double}), [{"a": {Point(double, 1)}}]):
            with pytest.raises(ValueTypeError, match="elements in the keys"):
                chest["y"] = value
        # What knows its hash is no more than one.
        inner = frozenset(range(500))
        chest["z"] = {(inner, at): None for at in range(100)}
        chest.flush()
        assert_same(chest["x"], [double])
        assert_same(chest["z"], {(inner, at): None for at in range(100)})

    def test_a_put_deep_in_a_program_says_that_there_is_no_stack_left(self, chest):
        def deep(left: int) -> None:
            if left:
                deep(left - 1)
            else:
                chest["x"] = self.nested(90)

        chest["x"] = 1
        with pytest.raises((ValueTypeError, RecursionError)):
            deep(900)
        assert chest["x"] == 1

    def test_a_get_deep_in_a_program_does_not_call_the_value_corrupt(self, chest):
        def deep(left: int) -> Any:
            return deep(left - 1) if left else chest["x"]

        chest["x"] = self.nested(90)
        for _ in range(2):
            with pytest.raises(RecursionError):
                deep(800)
            assert_same(chest["x"], self.nested(90))
            chest.flush()


class TestArraysInTrees:
    @pytest.mark.parametrize("size", [10, LONG])
    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_are_handed_over_without_a_copy_and_frozen(self, size, budget, make_chest):
        chest = make_chest(available_memory=budget)
        mine = np.arange(float(size))
        fortran = np.ones((4, 5), order="F")
        chest["x"] = {"a": [mine], "b": fortran}
        for array in (mine, fortran):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 99
        if budget:
            assert np.shares_memory(chest["x"]["a"][0], mine)
            assert np.shares_memory(chest["x"]["b"], fortran)

    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_that_are_views_are_copied_and_the_callers_own(self, budget, make_chest):
        chest = make_chest(available_memory=budget)
        base = np.arange(float(LONG + 10))
        chest["x"] = [base[10:], base[::2], base[:5].reshape(5, 1)]
        base[:] = -1
        again = np.arange(float(LONG + 10))
        expected = [again[10:], again[::2], again[:5].reshape(5, 1)]
        assert_same(chest["x"], expected)
        chest.flush()
        assert_same(chest["x"], expected)

    @pytest.mark.parametrize("size", [10, LONG])
    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_copied_stay_the_callers_own(self, size, budget, make_chest):
        chest = make_chest(available_memory=budget, on_put="copy")
        mine = np.arange(float(size))
        chest["x"] = (mine, mine)
        mine[:] = -1
        assert_same(chest["x"], (np.arange(float(size)),) * 2)
        assert chest["x"][0] is chest["x"][0] or not chest["x"][0].flags.writeable

    @pytest.mark.parametrize("size", [10, LONG])
    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_shared_are_not_copied_stay_writable_and_come_back_read_only(
        self, size, budget, make_chest
    ):
        chest = make_chest(available_memory=budget, on_put="share")
        mine = np.arange(float(size))
        chest["x"] = [mine, mine[::-1]]
        assert mine.flags.writeable
        found = chest["x"][0]
        assert not np.asarray(found).flags.writeable or not budget
        if budget:
            assert np.shares_memory(found, mine)
            assert chest.memory_usage >= mine.nbytes

    def test_are_charged_each_buffer_once(self, chest):
        resident = chest._engine.session.resident
        mine = np.zeros(LONG)

        def charged() -> int:
            resident.check()
            return chest.memory_usage

        chest["array"] = mine
        assert charged() == mine.nbytes
        chest["tree"] = [mine, {"again": mine, "transposed": mine.T[:0]}]
        around = charged() - mine.nbytes
        assert 0 < around < 500
        chest["tree"] = [mine, {"again": mine, "transposed": mine.T[:0]}]
        assert charged() == mine.nbytes + around
        chest["other"] = (mine, mine.copy())
        assert charged() - 2 * mine.nbytes < 1000
        del chest["array"]
        assert charged() - 2 * mine.nbytes < 1000
        del chest["tree"]
        assert charged() - 2 * mine.nbytes < 500
        chest["other"] = None
        assert charged() < 500
        chest.flush()
        assert charged() == 0

    def test_are_let_go_of_once_they_are_stored(self, chest):
        mine = np.zeros(LONG)
        gone = weakref.ref(mine)
        chest["x"] = [mine]
        del mine
        gc.collect()
        assert gone() is not None
        chest.flush()
        gc.collect()
        assert gone() is None

    def test_of_a_refused_value_are_left_as_they_are(self, make_chest, path):
        mine = np.zeros(LONG)
        for budget in ("1 GiB", 0):
            chest = make_chest(available_memory=budget)
            for value in ([mine, object()], {"a": mine, "b": [lambda: 1]}):
                with pytest.raises(ValueTypeError, match=r"register.*allow_pickle=True"):
                    chest["x"] = value
            with pytest.raises(TypeError):
                chest[object()] = [mine]
            assert "x" not in chest
        with arraychest.Chest(path=path, max_disk=100_000) as chest:
            chest["y"] = [np.zeros(LONG)]
            chest.flush()
            with pytest.raises(QuotaError):
                chest["x"] = [mine]
            assert list(chest) == ["y"]
        mine[0] = 1

    @pytest.mark.parametrize("sizes", [(LONG, 3), (LONG, LONG), (3, 0)])
    def test_are_mapped_and_not_copied(self, sizes, path):
        with arraychest.Chest(path=path, compression=None) as chest:
            chest["x"] = {"a": np.arange(sizes[0]), "b": [np.arange(sizes[1])]}
        with arraychest.open(path) as chest:
            one, other = chest["x"], chest["x"]
            for get in (lambda value: value["a"], lambda value: value["b"][0]):
                array = get(one)
                assert not array.flags.writeable
                assert not array.flags.owndata
                assert array.ctypes.data % 64 == 0
                assert not array.size or np.shares_memory(array, get(other))
            assert chest.memory_usage == 0
            # Its arrays go on being mapped where they are put again.
            chest["y"] = [one["a"]]
            assert chest.memory_usage < 1000
            chest._engine.session.resident.check()

    def test_that_compress_come_back_compressed_and_loaded_plain(self, path):
        rng = np.random.default_rng(0)
        value = {
            "smooth": np.linspace(0, 1, 400_000).reshape(1000, 400),
            "fortran": np.asfortranarray(np.arange(400_000).reshape(1000, 400)),
            "noise": rng.bytes(10),
            "random": np.frombuffer(rng.bytes(800_000), "u1"),
            "text": "abc" * 300_000,
            "small": np.zeros(4),
        }
        with arraychest.Chest(path=path, compression="lz4") as chest:
            chest["x"] = value
            chest.spill("x")
            entry = chest.entry("x")
            assert entry.stored_bytes < entry.nbytes + 1000
            assert entry.stored_bytes < 5_000_000
            found = chest["x"]
            for name in ("smooth", "fortran", "random"):
                assert type(found[name]) is arraychest.CompressedArray, name
            assert type(found["small"]) is np.ndarray
            assert found["smooth"][3, 4] == value["smooth"][3, 4]
            assert found["fortran"][3, 4] == value["fortran"][3, 4]
            assert_same(found, value)
            loaded = chest.load("x")
            assert {type(loaded[name]) for name in value} == {np.ndarray, bytes, str}
            assert_same(loaded, value)
            assert not loaded["smooth"].flags.writeable
            assert chest.verify().ok
        with arraychest.open(path, "r", mmap_mode="c") as chest:
            found = chest["x"]
            assert type(found["smooth"]) is np.ndarray
            found["smooth"][:] = 0
            assert_same(chest["x"], value)

    def test_auto_compresses_only_the_arrays_that_it_is_good_for(self, make_chest):
        rng = np.random.default_rng(0)
        chest = make_chest(compress_above="1 MiB")
        value = [np.zeros(1 << 18), np.frombuffer(rng.bytes(1 << 21), "f8"), np.zeros(1 << 10)]
        chest["x"] = value
        chest.put("y", value, compression=None)
        chest.flush()
        kinds = [type(array) for array in chest["x"]]
        assert kinds == [arraychest.CompressedArray, np.ndarray, np.ndarray]
        assert {type(array) for array in chest["y"]} == {np.ndarray}
        assert_same(chest["x"], value)
        assert_same(chest["y"], value)

    def test_that_are_compressed_are_not_kept_open_without_end(self, make_chest):
        chest = make_chest(compression="lz4")
        for at in range(100):
            chest[at] = [np.full(LONG, at)]
        chest.flush()
        for at in range(100):
            assert chest[at][0][5] == at
        held = [
            slot for slot in chest._engine.session.index.slots.values() if slot.view is not None
        ]
        assert len(held) <= 64
        assert chest[0][0][5] == 0

    def test_memory_stays_within_the_budget_while_many_are_spilled(self, make_chest):
        budget = 4 << 20
        chest = make_chest(available_memory=budget, compression=None)
        chest["warm"] = [np.zeros(1 << 17)]
        tracemalloc.start()
        try:
            for at in range(40):
                chest[at] = {"a": np.full(1 << 17, at), "b": [np.full(10, at)], "c": "x" * 1000}
                assert chest.memory_usage <= budget
            chest._engine.session.resident.check()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # One more that is being put, and what is written is given up only then.
        assert peak < 2 * budget
        for at in range(40):
            found = chest[at]
            assert found["a"][7] == at
            assert found["b"][0].tolist() == [at] * 10
        assert chest.stats().spills > 30

    def test_gets_of_large_ones_charge_nothing_and_count_as_hits(self, make_chest):
        chest = make_chest()
        chest["x"] = [np.zeros(LONG)]
        chest.spill("x")
        before = chest.stats()
        chest["x"]
        chest["x"]
        after = chest.stats()
        assert (after.misses - before.misses, after.faults - before.faults) == (1, 1)
        assert after.hits - before.hits == 1
        assert after.charged == 0

    def test_a_view_outlives_overwriting_deleting_and_closing(self, make_chest):
        for size in (10, LONG):
            chest = make_chest()
            for key in "ab":
                chest[key] = [np.full(size, 1)]
            chest.flush()
            held = [chest["a"][0], chest["b"][0]]
            chest["a"] = [np.full(size, 2)]
            del chest["b"]
            for at in range(4):
                chest[at] = [np.full(size, 3)]
                chest.spill(at)
            assert_same(chest["a"], [np.full(size, 2)])
            chest.compact()
            chest.close()
            for array in held:
                assert_same(array, np.full(size, 1))


class TestWhatTheChestTells:
    def test_an_entry_of_every_tier(self, path, make_chest):
        for size, codec in ((3, "pack"), (LONG, "npy")):
            chest = make_chest(compression=None)
            chest["x"] = {"a": np.arange(size), "b": "text"}
            resident = chest.entry("x")
            assert (resident.kind, resident.shape, resident.dtype) == ("tree", (), np.dtype(object))
            assert resident.resident
            assert resident.nbytes == chest.memory_usage >= 8 * size
            assert list(chest.inmem) == ["x"]
            chest.spill("x")
            stored = chest.entry("x")
            assert (stored.kind, stored.shape, stored.dtype) == ("tree", (), np.dtype(object))
            assert (stored.codec, stored.resident, stored.nbytes) == (codec, False, resident.nbytes)
            assert stored.stored_bytes == stored.nbytes or stored.codec == "npy"
            assert dict(chest.inmem) == {}
            handle = pickle.loads(pickle.dumps(chest.handle("x")))
            assert (handle.shape, handle.dtype) == ((), np.dtype(object))
            assert_same(handle.array(), chest["x"])
            with chest.transaction():
                chest["y"] = {"a": np.arange(size), "b": "text"}
                assert chest.entry("y").nbytes == stored.nbytes

    def test_edit_is_for_arrays(self, chest):
        chest["x"] = [1, np.arange(3)]
        for _ in range(2):
            with pytest.raises(ValueTypeError, match="array of plain elements"), chest.edit("x"):
                pass
            assert_same(chest["x"], [1, np.arange(3)])
            chest.flush()

    def test_compact_moves_small_ones_and_keeps_what_was_got(self, make_chest):
        chest = make_chest()
        for at in range(200):
            chest[at] = [at, np.full(at % 7, at), {"a": "x" * at}]
        chest.flush()
        held = chest[150]
        for at in range(0, 200, 2):
            del chest[at]
        assert chest.compact() > 0
        assert_same(held, [150, np.full(150 % 7, 150), {"a": "x" * 150}])
        for at in range(1, 200, 2):
            assert_same(chest[at], [at, np.full(at % 7, at), {"a": "x" * at}])
        assert chest.verify().ok

    @pytest.mark.parametrize("named", [None, lambda key: f"value {key}"])
    def test_a_lost_catalog_is_made_anew_of_what_the_files_say(self, path, named):
        values = {
            "small": [1, {"a": np.arange(3)}, None],
            "large": [np.arange(LONG), "x"],
            "compressed": (np.zeros(1 << 18), {"b": np.arange(2)}),
            "registered": Fit(np.arange(LONG), Point(1, 2)),
            "none": None,
        }
        options = {"compression": "lz4", "key_to_filename": named}
        with arraychest.Chest(path=path, **options) as chest:
            for key, value in values.items():
                chest[key] = value
        os.unlink(os.path.join(path, "catalog.sqlite"))
        for end in ("-wal", "-shm"):
            if os.path.exists(os.path.join(path, "catalog.sqlite" + end)):
                os.unlink(os.path.join(path, "catalog.sqlite" + end))
        report = arraychest.repair(path)
        assert [finding.kind for finding in report.findings] == ["catalog"]
        with arraychest.open(path) as chest:
            assert set(chest) == set(values)
            for key, value in values.items():
                assert_same(chest[key], value)
            assert chest.verify().ok
        audit(path)

    def test_repair_puts_aside_what_is_damaged_and_leaves_the_rest(self, path):
        with arraychest.Chest(path=path, compression=None) as chest:
            chest["good"] = [np.arange(LONG)]
            chest["bad"] = [np.arange(LONG)]
            chest.flush()
            file = chest.key_to_filename("bad")
        with open(file, "r+b") as opened:
            opened.seek(40_000)
            opened.write(b"\xff" * 8)
        with arraychest.open(path) as chest:
            assert [finding.key for finding in chest.verify().findings] == ["bad"]
            chest.repair()
            assert list(chest) == ["good"]
            assert_same(chest["good"], [np.arange(LONG)])
            assert chest.verify().ok

    def test_a_quota_counts_them(self, path):
        with arraychest.Chest(path=path, max_disk="2 MiB", on_full="refuse", compression=None) as c:
            c["a"] = [np.zeros(1 << 17)]
            c.flush()
            with pytest.raises(QuotaError):
                c["b"] = [np.zeros(1 << 17)]
            c["a"] = None
            c.flush()
            c["b"] = [np.zeros(1 << 17)]
            assert_same(c["b"], [np.zeros(1 << 17)])
        with arraychest.Chest(
            path=path, mode="w", max_disk="4 MiB", on_full="evict", compression=None
        ) as chest:
            for at in range(10):
                chest[at] = [at, np.full(1 << 17, at)]
                chest.spill(at)
            assert 1 <= len(chest) < 10
            assert chest.stats().evictions > 0
            for key, value in chest.items():
                assert_same(value, [key, np.full(1 << 17, key)])


class TestRegistered:
    def test_a_type_that_is_not_is_refused_with_what_to_do(self, chest):
        @dataclasses.dataclass
        class Data:
            a: int

        named = collections.namedtuple("named", "a b")

        class Colour(enum.Enum):
            RED = 1

        class Number(enum.IntEnum):
            ONE = 1

        for value in (
            Data(1),
            named(1, 2),
            Colour.RED,
            Number.ONE,
            Unregistered(1),
            collections.OrderedDict(a=1),
            collections.Counter("a"),
            collections.deque([1]),
            type("Mine", (list,), {})([1]),
            type("Mine", (str,), {})("a"),
            type("Mine", (dt.date,), {})(2020, 1, 1),
            type("Mine", (Fit,), {})(1),
        ):
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            for put in (value, [value], {"a": value}, Fit(value)):
                with pytest.raises(ValueTypeError) as caught:
                    chest["x"] = put
                message = str(caught.value)
                assert name in message
                assert "arraychest.register" in message
                assert "allow_pickle=True" in message
        assert "x" not in chest

    def test_what_to_tree_raises_the_put_raises_and_nothing_changes(self, make_chest):
        def fail(_: Any) -> Any:
            raise KeyError("to_tree")

        class Failing:
            pass

        arraychest.register(Failing, fail, lambda _: 0, name="tests.Failing")
        mine = np.zeros(LONG)
        for budget in ("1 GiB", 0):
            chest = make_chest({"x": 1}, available_memory=budget)
            with pytest.raises(KeyError, match="to_tree"):
                chest["x"] = [mine, Failing()]
            assert chest["x"] == 1
            with chest.transaction():
                with pytest.raises(KeyError, match="to_tree"):
                    chest["y"] = [mine, Failing()]
                chest["z"] = 2
            assert dict(chest) == {"x": 1, "z": 2}
            chest._engine.session.resident.check()
        mine[0] = 1

    @pytest.mark.parametrize(
        "error",
        [ValueError("odd"), KeyError("k"), AbsentKeyError("k"), ZeroDivisionError(), OSError(5)],
        ids=lambda error: type(error).__name__,
    )
    def test_what_from_tree_raises_is_a_corrupt_entry_and_no_absent_key(self, error, make_chest):
        class Odd:
            pass

        def fail(_: Any) -> Any:
            raise error

        arraychest.register(Odd, lambda _: 1, fail, name=f"tests.Odd{type(error).__name__}")
        chest = make_chest({"x": [Odd()], "y": 2})
        for _ in range(2):
            for get in (
                lambda: chest["x"],
                lambda: chest.get("x", 1),
                lambda: chest.pop("x"),
                lambda: chest.pop("x", None),
                lambda: chest.setdefault("x", 1),
                lambda: list(chest.items()),
                lambda: chest.load("x"),
                lambda: chest == {"x": 1, "y": 2},
            ):
                with pytest.raises(CorruptEntryError, match="x") as caught:
                    get()
                inner = caught.value.__cause__
                assert error in (inner, inner.__cause__)
            assert list(chest) == ["x", "y"]
            assert chest["y"] == 2
            chest.flush()
        del chest["x"]

    def test_from_tree_may_use_the_chest(self, make_chest):
        one, other = make_chest(), make_chest({"here": np.arange(3)})

        class Lazy:
            def __init__(self, found: Any) -> None:
                self.found = found

        def from_tree(key: str) -> Lazy:
            one["seen"] = key
            one.flush()
            return Lazy([one[key], other["here"], len(one), list(other)])

        def to_tree(value: Any) -> str:
            one["seen"] = "put"
            return "there"

        arraychest.register(Lazy, to_tree, from_tree, name="tests.Lazy")
        one["there"] = [1, np.arange(LONG)]
        one["lazy"] = Lazy(None)
        for _ in range(2):
            for get in (one.__getitem__, one.load, one.inmem.get):
                lazy = get("lazy")
                if lazy is not None:
                    assert_same(
                        lazy.found, [[1, np.arange(LONG)], np.arange(3), len(one), ["here"]]
                    )
            one.flush()
        with one.transaction():
            one["new"] = Lazy(None)
            assert_same(one["new"].found[0], [1, np.arange(LONG)])

    def test_a_fresh_process_without_it_cannot_read_those_entries_only(self, path):
        with arraychest.Chest(path=path) as chest:
            chest["fit"] = Fit(np.arange(3), 1.5)
            chest["inside"] = [1, {"a": Point(1, np.arange(LONG))}]
            chest["plain"] = [1, 2]
            chest["array"] = np.arange(3)
        run_python(
            """
            import sys, arraychest
            with arraychest.open(sys.argv[1]) as chest:
                for key in ("fit", "inside"):
                    for get in (chest.__getitem__, chest.load, chest.get, chest.pop,
                                lambda key: chest.setdefault(key, 1),
                                lambda key: chest.handle(key).array()):
                        try:
                            get(key)
                        except arraychest.UnreadableValueError as error:
                            assert key in str(error) and "register" in str(error), error
                        else:
                            raise AssertionError(key)
                    assert chest.entry(key).kind == "tree"
                assert chest["plain"] == [1, 2]
                assert chest["array"].tolist() == [0, 1, 2]
                assert list(chest) == ["fit", "inside", "plain", "array"]
                assert chest.verify().ok
                chest.repair()
                chest.compact()
                chest.flush()
                assert "tests" not in sys.modules
                other = arraychest.Chest()
                other.update(chest)
                try:
                    other["fit"]
                except arraychest.UnreadableValueError:
                    pass
                else:
                    raise AssertionError
            """,
            path,
        )
        with arraychest.open(path) as chest:
            assert_same(chest["fit"], Fit(np.arange(3), 1.5))
            assert_same(chest["inside"], [1, {"a": Point(1, np.arange(LONG))}])

    def test_a_dataclass_is_made_of_its_fields_and_not_by_its_init(self, chest):
        @dataclasses.dataclass
        class Checked:
            a: int
            b: int = dataclasses.field(init=False)
            c: dataclasses.InitVar[int] = 3

            def __post_init__(self, c: int) -> None:
                self.b = self.a + c

        arraychest.register(Checked, name="tests.Checked")
        value = Checked(1)
        value.b = 99
        chest["x"] = value
        chest.flush()
        assert (chest["x"].a, chest["x"].b) == (1, 99)
        chest["y"] = [Frozen(1)]
        chest.flush()
        assert chest["y"] == [Frozen(1)]

    def test_what_is_registered_is_checked(self):
        for arguments in ((3,), (Unregistered,), (Unregistered, list), (int,)):
            with pytest.raises(TypeError):
                arraychest.register(*arguments)
        with pytest.raises(ValueError, match="no other type"):
            arraychest.register(Unregistered, list, list, name="tests.values.test_trees.Fit")
        assert registry.of_type(Unregistered) is None
        arraychest.register(Fit)  # again

    def test_of_a_value_twice_is_one_object_again(self, chest):
        box = Box([1])
        chest["x"] = [box, box, Box([1])]
        chest.flush()
        one, same, other = chest["x"]
        assert one is same is not other
        assert one.held is same.held is not other.held


class Blob:
    """An object whose buffers pickle can hand out."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class TestPickled:
    def test_is_refused_without_leave_when_it_is_put(self, make_chest):
        chest = make_chest({"x": 1})
        for value in (Unregistered(1), [Unregistered(1)], {"a": Fit(Unregistered(1))}):
            with pytest.raises(ValueTypeError, match="allow_pickle=True"):
                chest["x"] = value
        assert chest["x"] == 1

    def test_is_refused_without_leave_when_it_is_read_and_only_it(self, path):
        with arraychest.Chest(path=path, allow_pickle=True) as chest:
            chest["object"] = Unregistered(1)
            chest["inside"] = [1, {"a": Unregistered(np.arange(LONG))}]
            chest["bomb"] = [Bomb()]
            chest["objects"] = [np.array([1, None], object)]
            chest["plain"] = [1, np.arange(3)]
            assert chest["object"].held == 1
            assert chest["objects"][0].tolist() == [1, None]
        for mode in ("r", "a"):
            with arraychest.open(path, mode) as chest:
                for key in ("object", "inside", "bomb", "objects"):
                    for get in (
                        chest.__getitem__,
                        chest.load,
                        chest.get,
                        lambda key: chest.handle(key).array(),
                    ):
                        with pytest.raises(PickleRefusedError, match="allow_pickle=True"):
                            get(key)
                assert_same(chest["plain"], [1, np.arange(3)])
                assert chest.verify().ok
                with arraychest.Chest() as other:
                    other.update(chest)
                    with pytest.raises(PickleRefusedError):
                        other["bomb"]
        with arraychest.open(path, "r", allow_pickle=True) as chest:
            with pytest.raises(ZeroDivisionError):
                chest["bomb"]
            assert_same(chest["inside"], [1, {"a": Unregistered(np.arange(LONG))}])

    @pytest.mark.parametrize("mmap_mode", ["r", "c"])
    def test_buffers_are_mapped_and_the_objects_own_is_left_alone(self, mmap_mode, make_chest):
        chest = make_chest(allow_pickle=True, compression=None, mmap_mode=mmap_mode)
        array = np.arange(LONG)
        blob = Blob(array)
        chest["x"] = [blob, blob, Blob(np.arange(3))]
        assert array.flags.writeable
        array[0] = 99  # neither frozen nor shared
        for _ in range(2):
            one, same, other = chest["x"]
            assert one is same
            assert_same(one.array, np.arange(LONG))
            assert_same(other.array, np.arange(3))
            assert one.array.flags.writeable == (mmap_mode == "c")
            if mmap_mode == "c":
                one.array[:] = 5
            chest.flush()
        if mmap_mode == "r":
            assert np.shares_memory(chest["x"][0].array, chest["x"][0].array)
        chest._engine.session.resident.check()

    def test_buffers_that_are_compressed(self, make_chest):
        chest = make_chest(allow_pickle=True, compression="lz4")
        chest["x"] = Blob(np.zeros(1 << 17))
        chest.flush()
        assert chest.entry("x").stored_bytes < 1 << 17
        for get in (chest.__getitem__, chest.load):
            assert_same(get("x").array, np.zeros(1 << 17))

    def test_what_cannot_be_pickled_is_refused(self, make_chest):
        class Unpicklable:
            def __reduce__(self) -> Any:
                raise TypeError("not this one")

        chest = make_chest({"x": 1}, allow_pickle=True)
        for value in (lambda: 1, (each for each in ()), Unpicklable(), [Unpicklable()]):
            with pytest.raises(ValueTypeError, match="cannot be pickled"):
                chest["x"] = value
        assert chest["x"] == 1

    def test_a_long_one_is_a_part(self, make_chest):
        chest = make_chest(allow_pickle=True, compression="zstd")
        held = {str(at): at for at in range(30_000)}
        chest["x"] = [Unregistered(held)]
        chest.flush()
        assert chest.entry("x").stored_bytes < len(pickle.dumps(held)) / 2
        assert chest["x"][0].held == held

    def test_a_class_that_is_gone_is_said_of_its_entry_only(self, path):
        run_python(
            """
            import sys, arraychest
            class Gone:
                pass
            with arraychest.Chest(path=sys.argv[1], allow_pickle=True) as chest:
                chest["gone"], chest["here"] = [Gone()], [1]
            """,
            path,
        )
        with arraychest.open(path, allow_pickle=True) as chest:
            with pytest.raises(UnreadableValueError, match="gone"):
                chest["gone"]
            assert chest["here"] == [1]


class Bomb:
    """What a stranger may put into a pickle."""

    def __reduce__(self) -> Any:
        return (divmod, (1, 0))


def test_strings_of_arrays_are_identical_to_what_was_put(chest):
    # Through `assert_identical`, the suite's own measure.
    chest["x"] = [
        np.array(["a\0b", ""]),
        np.array([b"\0"]),
        np.zeros(3, [("a", "i1"), ("b", "f8")]),
    ]
    for _ in range(2):
        for found, expected in zip(
            chest["x"],
            [np.array(["a\0b", ""]), np.array([b"\0"]), np.zeros(3, [("a", "i1"), ("b", "f8")])],
            strict=True,
        ):
            assert_identical(found, expected)
        chest.flush()
