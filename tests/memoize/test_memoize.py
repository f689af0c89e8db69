"""Memoised functions: a call is computed once, found again, and never taken for another."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime as dt
import functools
import gc
import inspect
import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest
from arraychest.arrays import digests
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestWarning,
    PickleRefusedError,
    ReadOnlyChestError,
    SpillError,
    ValueTypeError,
)
from tests.faults import Say, in_child, injected
from tests.support import IMPORT_ROOT, assert_identical, audit, fill_disk, run_python
from tests.test_threads import Background
from tests.test_threads import run as run_threads

LARGE = arraychest.PACK_THRESHOLD // 8 + 10  # doubles: a value with a file of its own
HUGE = 1 << 20  # doubles: compressed where that is worth it
PATIENCE = 30


class Log:
    """What was computed, which is no part of what the log contains."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, *what: Any) -> None:
        self.calls.append(what[0] if len(what) == 1 else what)


LOG = Log()


@pytest.fixture(autouse=True)
def computed() -> list[Any]:
    """What the functions below have computed in this test."""
    LOG.calls.clear()
    return LOG.calls


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes in bytes of the large arrays that were hashed."""
    found: list[int] = []
    hash_it = digests.array_digest

    def counting(array: Any) -> bytes:
        if array.nbytes >= arraychest.PACK_THRESHOLD:
            found.append(array.nbytes)
        return hash_it(array)

    monkeypatch.setattr(digests, "array_digest", counting)
    return found


@pytest.fixture
def named(path: str, make_chest: Callable[..., Chest]) -> Chest:
    return make_chest(path=path, available_memory="64 MiB")


@pytest.fixture(params=["temporary", "named"])
def each_chest(request: Any, path: str, make_chest: Callable[..., Chest]) -> Chest:
    where = None if request.param == "temporary" else path
    return make_chest(path=where, available_memory="64 MiB")


# --- functions -------------------------------------------------------------------------------------


def add(a: Any, b: Any = 1, *rest: Any, scale: Any = 1, **named: Any) -> Any:
    LOG("add")
    return np.asarray(a + b) * scale + sum(rest) + sum(named.values())


def ramp(n: int, by: float = 1.0) -> np.ndarray:
    LOG("ramp", n)
    return np.arange(n) * by


def double(a: np.ndarray) -> np.ndarray:
    LOG("double")
    return a * 2


def total(a: np.ndarray) -> float:
    LOG("total")
    return float(a.sum())


def pair(n: int) -> tuple[np.ndarray, np.ndarray]:
    LOG("pair")
    return np.arange(n), np.ones(n)


def in_dict(n: int) -> dict[str, Any]:
    LOG("in_dict")
    return {"x": np.arange(n), "label": "of many"}


def identity(a: Any) -> Any:
    LOG("identity")
    return a


def summed(values: Any) -> float:
    LOG("summed")
    return float(sum(values))


def fails(error: type[BaseException], until: int) -> int:
    LOG("fails")
    if len(LOG.calls) < until:
        raise error("not yet")
    return len(LOG.calls)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def told(n: int) -> np.ndarray:
    """Says where the array lies that it returns."""
    array = np.arange(n)
    LOG(address(array))
    return array


def opaque(n: int) -> Any:
    return object()


class Slow:
    """Takes its time, and says when it began."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.failing = False
        self.together: threading.Barrier | None = None

    def __call__(self, n: int) -> int:
        LOG("slow", n)
        self.started.set()
        assert self.go_on.wait(PATIENCE)
        if self.failing:
            self.failing = False
            raise OSError("it failed")
        return n


SLOW = Slow()


def slowly(n: int) -> int:
    return SLOW(n)


def meet(n: int) -> int:
    """Return once so many have come as are expected."""
    assert SLOW.together is not None
    SLOW.together.wait(PATIENCE)
    return n


def fast(n: int) -> int:
    return n


def in_a_while(n: int) -> int:
    time.sleep(0.02)
    return n


# --- what a call is --------------------------------------------------------------------------------


def test_a_call_is_computed_once_and_found_again(each_chest, computed):
    cached = each_chest.cache(ramp)
    first = cached(5)
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert cached(5).tolist() == first.tolist()
    assert computed == [("ramp", 5)]
    assert cached(6).size == 6
    assert computed == [("ramp", 5), ("ramp", 6)]
    assert cached.stats()[:2] == (1, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda f: f(1), lambda f: f(1, 1)),
        (lambda f: f(1), lambda f: f(a=1)),
        (lambda f: f(1, 2), lambda f: f(b=2, a=1)),
        (lambda f: f(1, 1), lambda f: f(1, scale=1)),
        (lambda f: f(1, x=2, y=3), lambda f: f(1, y=3, x=2)),
        (lambda f: f(np.ones((3, 4))), lambda f: f(np.ones((3, 4), order="F"))),
        (lambda f: f(np.arange(8)[::2]), lambda f: f(np.array([0, 2, 4, 6]))),
        (lambda f: f(np.float64(2.0)), lambda f: f(np.float64(2.0))),
    ],
)
def test_a_call_spelled_otherwise_is_the_same(chest, computed, one, other):
    cached = chest.cache(add)
    first, second = one(cached), other(cached)
    assert computed == ["add"]
    assert_identical(second, first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda f: f(1), lambda f: f(1.0)),
        (lambda f: f(1), lambda f: f(True)),
        (lambda f: f(1), lambda f: f(np.int64(1))),
        (lambda f: f(0.0), lambda f: f(-0.0)),
        (lambda f: f(1, 2), lambda f: f(2, 1)),
        (lambda f: f(1, x=2), lambda f: f(1, y=2)),
        (lambda f: f(1, 1, 2), lambda f: f(1, 1, x=2)),
        (lambda f: f(np.ones(4)), lambda f: f(np.ones((2, 2)))),
        (lambda f: f(np.ones(4)), lambda f: f(np.ones(4, np.float32))),
        (lambda f: f(np.zeros(2, "<i8")), lambda f: f(np.zeros(2, ">i8"))),
        (lambda f: f(np.zeros(1)), lambda f: f(-np.zeros(1))),
        (lambda f: f(np.array(1)), lambda f: f(np.int64(1))),
        (lambda f: f(np.ones(LARGE)), lambda f: f(np.append(np.ones(LARGE - 1), 2.0))),
    ],
)
def test_another_call_is_another(chest, computed, one, other):
    cached = chest.cache(add)
    one(cached)
    other(cached)
    assert computed == ["add", "add"]


def test_generators_are_what_comes_out_of_them(chest, computed):
    cached = chest.cache(summed)
    assert cached(n for n in range(4)) == 6.0
    assert cached(n + 0 for n in range(4)) == 6.0
    assert cached(iter([0, 1, 2, 3])) == 6.0
    assert computed == ["summed"]
    assert cached(n for n in range(5)) == 10.0
    assert cached([0, 1, 2, 3]) == 6.0
    assert computed == ["summed"] * 3, "a list is no iterator"


def test_generators_reach_the_function_whatever_looks_at_them(chest, computed):
    """`key=` and `entry` look at a generator that the function needs, too."""
    by_first = chest.cache(summed, key=lambda values: sum(values))
    assert by_first(n for n in range(4)) == 6.0
    assert by_first(n for n in (6,)) == 6.0
    assert computed == ["summed"]
    both = chest.cache(lambda a, b: [list(a), list(b)], key=lambda a, b: (next(a), next(b)))
    once = iter([1, 2, 3, 4])
    assert both(once, once) == [[1, 2, 3, 4], []]
    cached = chest.cache(summed)
    assert cached.entry(n for n in range(7)).kind == "tree"
    assert cached.check(n for n in range(7))
    assert cached(n for n in range(7)) == 21.0
    assert len(computed) == 2


def test_ignored_parameters_do_not_count(chest, computed):
    def noisy(a: int, *, loud: bool = False, **rest: Any) -> int:
        LOG("noisy")
        return a

    cached = chest.cache(noisy, ignore=["loud"])
    assert cached(1, loud=True) == cached(1) == cached(1, loud=object()) == 1
    assert computed == ["noisy"]
    cached(1, other=True)
    assert len(computed) == 2
    # An iterator is used up by the first who looks at it.
    cached = chest.cache(noisy, ignore=(name for name in ["loud", "rest"]), version=2)
    assert cached(1, loud=True, other=3) == cached(1)
    assert len(computed) == 3
    decorate = chest.cache(ignore=iter(["loud"]), version=3)
    assert decorate(noisy)(1, loud=True) == 1
    with pytest.raises(ValueError, match="nothing"):
        chest.cache(noisy, ignore=["nothing"])
    with pytest.raises(TypeError, match="string"):
        chest.cache(noisy, ignore="loud")


def test_key_says_what_counts_of_all_arguments(chest, computed):
    cached = chest.cache(identity, key=lambda a: a["id"])
    assert cached({"id": 1, "at": 5}) == {"id": 1, "at": 5}
    assert cached({"id": 1, "at": 6}) == {"id": 1, "at": 5}
    assert cached({"id": 2, "at": 6}) == {"id": 2, "at": 6}
    assert len(computed) == 2


def test_with_key_the_defaults_are_part_of_the_function(chest):
    def make(default: int) -> Any:
        def scaled(a: int, by: int = default) -> int:
            return a * by

        return chest.cache(scaled, key=lambda a: a)

    assert (make(2)(3), make(5)(3), make(2)(3)) == (6, 15, 6)


def test_a_version_takes_the_place_of_the_code(named, computed):
    def make(source: str, **options: Any) -> Any:
        space: dict[str, Any] = {"LOG": LOG, "__name__": "made"}
        exec(source, space)
        return named.cache(space["f"], **options)

    one, other = "def f(a): LOG(1); return a", "def f(a): LOG(2); return a + 0"
    assert make(one)(3) == make(one)(3) == 3
    assert make(other)(3) == 3
    assert computed == [1, 2]
    assert make(one, version="a")(3) == make(other, version="a")(3) == 3
    assert computed == [1, 2, 1]
    make(other, version="b")(3)
    assert computed == [1, 2, 1, 2]


def test_helpers_count_unless_they_are_left_out(named, computed):
    def make(helper: str, **options: Any) -> Any:
        space: dict[str, Any] = {"LOG": LOG, "__name__": "made"}
        exec(f"def helper(a): return a{helper}\ndef f(a): LOG(1); return helper(a)", space)
        for name in ("helper", "f"):
            space[name].__module__ = "made"
        return named.cache(space["f"], **options)

    assert make("+1")(1) == make("+1")(1) == 2
    assert make("+2")(1) == 3
    assert len(computed) == 2
    assert make("+1", helpers=False)(1) == make("+5", helpers=False)(1) == 2
    assert len(computed) == 3


def test_mutable_defaults_and_closures_count_by_content(chest, computed):
    def with_default(x: int, more: list[int] = [1]) -> int:  # noqa: B006
        LOG("default")
        return x + sum(more)

    cached = chest.cache(with_default)
    assert cached(1) == cached(1, [1]) == 2
    assert computed == ["default"]
    with_default.__defaults__[0].append(5)
    assert cached(1) == 7
    assert cached(1, [1]) == 2
    assert len(computed) == 2

    def made(number: int) -> Any:
        held = [number]

        def inner(x: int) -> int:
            LOG("inner")
            return x + held[0]

        return chest.cache(inner), held

    (one, _), (same, held), (other, _) = made(1), made(1), made(2)
    assert (one(1), same(1), other(1)) == (2, 2, 3)
    assert len(computed) == 4
    held[0] = 10
    assert same(1) == 11
    assert one(1) == 2


def test_lambdas_and_partials_are_told_apart(chest):
    cached = [chest.cache(f) for f in (lambda x: x + 1, lambda x: x + 2, lambda x: x + 1.0)]
    for _ in range(2):
        assert [f(1) for f in cached] == [2, 3, 2.0]
    assert type(cached[0](1)) is int
    halves = [chest.cache(functools.partial(pow, exp=n)) for n in (2, 3)]
    for _ in range(2):
        assert [f(3) for f in halves] == [9, 27]
    assert chest.cache(functools.partial(add, 1), ignore=["scale"])(2) == 3


def test_what_cannot_be_told_is_refused(chest, tmp_path):
    cached = chest.cache(identity)
    with open(tmp_path / "file", "w") as file:
        for refused in (file, threading.Lock(), object()):
            with pytest.raises(ValueTypeError, match=r"ignore=.*key="):
                cached(refused)
            with pytest.raises(ValueTypeError, match=r"an argument of .*identity"):
                cached([refused])
    lock = threading.Lock()

    def closed(x: int) -> int:
        with lock:
            return x

    with pytest.raises(ValueTypeError, match=r"what .*closed depends on.*version="):
        chest.cache(closed)(1)
    assert chest.cache(closed, version=1)(1) == 1

    def generates(n: int) -> Iterator[int]:
        yield n

    with pytest.raises(ValueTypeError, match="generators"):
        chest.cache(generates)
    for wrong in (3, classmethod(identity)):
        with pytest.raises(TypeError, match="function"):
            chest.cache(wrong)
    for seconds in (0, -1, float("nan"), dt.timedelta(0)):
        with pytest.raises(ValueError, match="expires_after"):
            chest.cache(identity, expires_after=seconds)
    assert len(chest) == 1


def test_wrong_calls_raise_what_the_function_would(chest):
    cached = chest.cache(ramp)
    for call in (lambda f: f(), lambda f: f(1, 2, 3), lambda f: f(1, other=2)):
        with pytest.raises(TypeError) as expected:
            call(ramp)
        with pytest.raises(TypeError) as found:
            call(cached)
        assert str(found.value) == str(expected.value)


# --- what a function is, decorated -----------------------------------------------------------------


def test_a_decorated_function_looks_like_itself(chest):
    def plain(a: int, *, b: str = "x") -> float:
        """Say what it does."""
        return float(a)

    plain.unit = "m"  # type: ignore[attr-defined]
    plain.key = "not the method"  # type: ignore[attr-defined]
    plain._name = "nor this"  # type: ignore[attr-defined]
    cached = chest.cache(plain)
    assert cached.__name__ == "plain"
    assert cached.__doc__ == "Say what it does."
    assert cached.__module__ == __name__
    assert cached.__wrapped__ is cached.func is plain
    assert inspect.signature(cached) == inspect.signature(plain)
    assert inspect.get_annotations(cached) == inspect.get_annotations(plain)
    assert cached.unit == "m"
    assert cached.key(1).startswith(f"{__name__}.")
    assert "plain" in repr(cached)
    assert callable(cached)


def test_a_function_cached_in_two_chests_is_in_both(make_chest, computed):
    one, other = make_chest(), make_chest()
    inner = one.cache(ramp)
    outer = other.cache(inner)
    assert outer(3).size == 3
    assert (len(one), len(other)) == (1, 1)
    assert (inner.stats().misses, outer.stats().misses) == (1, 1)
    other.clear()
    assert outer(3).size == 3
    assert computed == [("ramp", 3)]
    assert (inner.stats().hits, outer.stats().misses) == (1, 2)
    beside = other.cache(ramp)
    assert beside.key(3) != outer.key(3)


CLASSES = Chest()


class Scaled:
    """Has methods that are cached."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @CLASSES.cache
    def times(self, a: int, *, plus: int = 0) -> int:
        """Multiply."""
        LOG("times")
        return a * self.factor + plus

    @staticmethod
    @CLASSES.cache
    def outside(a: int) -> int:
        LOG("outside")
        return a

    @CLASSES.cache
    @staticmethod
    def inside(a: int) -> int:
        LOG("inside")
        return a

    @classmethod
    @CLASSES.cache
    def of_class(cls, a: int) -> str:
        LOG("of_class")
        return f"{cls.__name__}{a}"

    @CLASSES.cache
    async def later(self, a: int) -> int:
        LOG("later")
        return a * self.factor

    @property
    @CLASSES.cache
    def squared(self) -> int:
        LOG("squared")
        return self.factor**2

    half = CLASSES.cache(functools.partial(pow, 2))


class MoreScaled(Scaled):
    def times(self, a: int, *, plus: int = 0) -> int:
        return super().times(a, plus=plus) + 1


def test_methods_count_their_object_by_content(computed):
    CLASSES.clear()
    one, same, other = Scaled(2), Scaled(2), Scaled(3)
    assert (one.times(5), same.times(a=5), other.times(5)) == (10, 10, 15)
    assert computed == ["times", "times"]
    one.factor = 3
    assert one.times(5) == 15
    assert computed == ["times", "times"]
    assert one.times.check(5)
    assert not one.times.check(6)
    assert one.times.entry(5).kind == "tree"
    assert one.times.key(5) == Scaled.times.key(one, 5)
    assert one.times.invalidate(5)
    assert not other.times.check(5)
    assert Scaled.times(one, 5) == 15
    assert MoreScaled(3).times(5) == 16
    assert one.times.stats() == Scaled.times.stats()
    assert one.times.__doc__ == Scaled.times.__doc__ == "Multiply."
    assert one.times.__name__ == "times"
    assert one.times.__self__ is one
    assert one.times == one.times != same.times
    assert len({one.times, one.times, same.times}) == 2
    assert str(inspect.signature(one.times)) == "(a: 'int', *, plus: 'int' = 0) -> 'int'"
    assert "times" in repr(one.times)
    with pytest.raises(AttributeError):
        one.times.nothing  # noqa: B018
    assert copy.copy(one.times)(5) == copy.deepcopy(one.times)(5) == 15


def test_other_methods(computed):
    CLASSES.clear()
    one = Scaled(2)
    for method in (one.outside, Scaled.outside, one.inside, Scaled.inside):
        assert method(4) == 4
        assert method(a=4) == 4
    assert one.of_class(1) == Scaled.of_class(1) == "Scaled1"
    assert MoreScaled.of_class(1) == "MoreScaled1"
    assert computed == ["outside", "inside", "of_class", "of_class"]
    assert one.squared == one.squared == 4
    assert computed[4:] == ["squared"]
    assert one.half(3) == Scaled.half(3) == 8
    bound = CLASSES.cache(Scaled(7).times.__func__.func.__get__(Scaled(7)))
    assert bound(2) == bound(2) == 14
    assert computed[5:] == ["times"]


class Callee:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, a: int) -> int:
        LOG("callee")
        return a * self.by


def test_callable_objects_and_builtins(chest, computed):
    two, three = chest.cache(Callee(2)), chest.cache(Callee(3))
    for _ in range(2):
        assert (two(5), three(5)) == (10, 15)
    assert len(computed) == 2
    assert chest.cache(np.hypot)(3.0, 4.0) == 5.0
    assert chest.cache(len)("abc") == 3
    assert chest.cache(str.upper)("abc") == "ABC"
    assert chest.cache(dict)(a=1) == {"a": 1}


def test_a_function_keeps_its_chest_and_lets_it_go(nothing_left_behind):
    cached = Chest(available_memory=LARGE * 8).cache(ramp)
    for n in range(3):
        cached(LARGE - n)
    gc.collect()
    assert not cached._chest.closed
    assert cached(LARGE).size == LARGE
    folder = cached._chest.path
    assert folder is not None
    assert os.path.isdir(folder)
    del cached
    gc.collect()
    assert not os.path.exists(folder)


def test_copies_of_a_cached_function_share_its_chest(chest, named):
    local = chest.cache(lambda x: x)
    for copied in (copy.copy(local), copy.deepcopy(local), copy.deepcopy([local])[0]):
        assert copied(3) == 3
        assert copied._chest is chest
    assert len(chest) == 1
    assert copy.deepcopy(chest) is copy.copy(chest) is chest


# --- what comes back -------------------------------------------------------------------------------


def test_a_result_is_what_the_chest_gives(each_chest):
    cached = each_chest.cache(ramp)
    small, large = cached(9), cached(LARGE)
    for array, n in ((small, 9), (large, LARGE)):
        assert not array.flags.writeable
        assert_identical(np.array(array), np.arange(n) * 1.0)
        assert cached(n) is array
        assert each_chest[cached.key(n)] is array
    if each_chest.entry(cached.key(LARGE)).resident:
        each_chest.spill(cached.key(LARGE))
        assert_identical(cached(LARGE), large)


def test_a_result_in_memory_was_not_copied(chest):
    cached = chest.cache(told)
    assert address(cached(LARGE)) == LOG.calls[0]


@pytest.mark.parametrize(
    "value",
    [
        None, True, 7, 2.5, 1j, "text", b"bytes", (), [], {}, (1, "a", None), [1, [2, [3]]],
        {"a": 1, "b": (2,)}, {1, 2}, frozenset({1}), np.float32(2), np.array(5), np.zeros(0),
        range(3), dt.date(2020, 1, 1), (np.arange(4), {"x": np.ones(2)}),
    ],
    ids=repr,
)  # fmt: skip
def test_any_storable_value_is_a_result(each_chest, value, computed):
    cached = each_chest.cache(identity)
    for _ in range(2):
        found = cached(value)
        assert type(found) is type(value)
        np.testing.assert_equal(found, value)
    assert computed == ["identity"]


def test_lists_that_come_back_are_the_callers_own(chest):
    cached = chest.cache(lambda: [1, 2])
    cached().append(3)
    assert cached() == [1, 2]


TABLE = np.arange(5.0)


class Holder:
    def __init__(self) -> None:
        self.array = np.arange(6.0)


def held_by(holder: Holder) -> np.ndarray:
    return holder.array


def of_default(a: np.ndarray = np.arange(7.0)) -> np.ndarray:  # noqa: B008
    return a


def table() -> Any:
    return TABLE


def table_within() -> Any:
    return [{"of": (TABLE,)}]


RETURNS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda a: a,
    "a view": lambda a: a[1:],
    "all of it as a view": lambda a: a.view(),
    "reshaped": lambda a: a.reshape(-1, 2),
    "transposed": lambda a: a.reshape(-1, 2).T,
    "a tuple": lambda a: (a, 1),
    "a list": lambda a: [[a], a[:2]],
    "a dict": lambda a: {"a": {"b": a}},
    "a real part": lambda a: a.real,
    "buffer": lambda a: np.frombuffer(a, np.uint8),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("on_put", ["freeze", "copy", "share"])
@pytest.mark.parametrize("mode", ["plain", "in a transaction", "larger than the budget"])
@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("kind", ["temporary", "named"])
def test_an_argument_is_never_frozen_nor_aliased(make_chest, path, kind, name, mode, on_put):
    budget = 1 << 14 if mode == "larger than the budget" else "16 MiB"
    where = None if kind == "temporary" else path
    chest = make_chest(path=where, available_memory=budget, on_put=on_put)
    cached = chest.cache(RETURNS[name])
    a = np.arange(4000.0)
    b = np.arange(4000.0)
    with chest.transaction() if mode == "in a transaction" else contextlib.nullcontext():
        expected = copy.deepcopy(RETURNS[name](b))
        found = cached(a)
        assert a.flags.writeable
        a[:] = -1
        np.testing.assert_equal(found, expected)
        np.testing.assert_equal(cached(b), expected)
    np.testing.assert_equal(cached(b), expected)
    assert b.flags.writeable


@pytest.mark.parametrize("on_put", ["freeze", "share"])
def test_nothing_that_others_hold_is_frozen_nor_aliased(make_chest, on_put):
    chest = make_chest(on_put=on_put)
    holder = Holder()
    held = [
        (chest.cache(held_by, version=1), (holder,), holder.array),
        (chest.cache(of_default), (), of_default.__defaults__[0]),  # type: ignore[index]
        (chest.cache(table, version=1), (), TABLE),
        (chest.cache(table_within, version=1), (), TABLE),
    ]
    for function, args, array in held:
        found = function(*args)
        assert array.flags.writeable
        before = copy.deepcopy(found)
        array += 1
        np.testing.assert_equal(found, before)
        array -= 1


def test_arguments_from_a_chest_are_returned_without_a_copy(named):
    named["x"] = np.arange(float(LARGE))
    named.flush()
    x = named["x"]
    found = named.cache(identity)(x)
    assert_identical(found, x)


def test_a_result_that_is_private_is_written_to_by_nobody_else(path, make_chest, computed):
    chest = make_chest(path=path, mmap_mode="c")
    cached = chest.cache(ramp)
    found = cached(LARGE)
    assert found.flags.writeable
    found[0] = 99
    assert cached(LARGE)[0] == 0
    assert computed == [("ramp", LARGE)]


def test_a_compressed_result_comes_back_as_an_array(path, make_chest, computed):
    chest = make_chest(path=path, compression="zstd")
    for function in (ramp, in_dict):
        cached = chest.cache(function)
        for _ in range(2):
            found = cached(HUGE)
            array = found if function is ramp else found["x"]
            assert type(array) is np.ndarray
            assert not array.flags.writeable
            assert array[-1] == HUGE - 1
    assert chest.entry(chest.cache(ramp).key(HUGE)).codec == "zstd"
    assert len(computed) == 2


def test_the_error_of_a_result_that_cannot_be_kept_names_the_function(chest, make_chest):
    with pytest.raises(ValueTypeError, match=r"result of .*opaque cannot be kept.*allow_pickle"):
        chest.cache(opaque, strict=True)(1)
    assert not len(chest)
    pickling = make_chest(allow_pickle=True)
    assert isinstance(pickling.cache(opaque)(1), object)


def test_pickled_results_are_refused_where_pickle_is(path, make_chest):
    chest = make_chest(path=path, allow_pickle=True)
    assert type(chest.cache(opaque)(1)) is object
    chest.close()
    chest = make_chest(path=path)
    with pytest.raises(PickleRefusedError, match="allow_pickle=True"):
        chest.cache(opaque)(1)


class Gone:
    """A class that is removed later."""


def gone(n: int) -> Any:
    LOG("gone")
    return globals().get("Gone", int)()


def test_a_result_of_a_class_that_is_no_more_is_computed_again(path, make_chest, computed, caplog):
    chest = make_chest(path=path, allow_pickle=True)
    cached = chest.cache(gone, version=1)
    assert type(cached(1)) is Gone
    chest.close()
    chest = make_chest(path=path, allow_pickle=True)
    cached = chest.cache(gone, version=1)
    kind = globals().pop("Gone")
    try:
        assert cached(1) == 0
        assert cached(1) == 0
    finally:
        globals()["Gone"] = kind
    assert computed == ["gone", "gone"]
    assert "computed again" in caplog.text


# --- digests ---------------------------------------------------------------------------------------


def test_a_result_is_not_hashed_again_as_an_argument(each_chest, digested, computed):
    make, twice, summing = map(each_chest.cache, (ramp, double, total))
    expected = 2.0 * np.arange(LARGE).sum()
    assert summing(twice(make(LARGE))) == expected
    once = len(digested)
    assert once <= 2
    for _ in range(3):
        assert summing(twice(make(LARGE))) == expected
    assert len(digested) == once
    assert len(computed) == 3


FRESH = """
    import sys
    import numpy as np
    import arraychest
    from arraychest.arrays import digests
    from tests.memoize import test_memoize as tests

    hashed = []
    hash_it = digests.array_digest

    def counting(array):
        if array.nbytes >= arraychest.PACK_THRESHOLD:
            hashed.append(array.nbytes)
        return hash_it(array)

    digests.array_digest = counting
    with arraychest.open(sys.argv[1], sys.argv[2]) as chest:
        tests.{chain}(chest, sys.argv[1:])
    print(len(hashed), len(tests.LOG.calls))
"""


def fresh(chain: Callable[..., Any], *arguments: str, mode: str = "a", **options: Any) -> list[int]:
    """Arrays hashed, and functions computed, by a chain of calls in a fresh process."""
    code = textwrap.dedent(FRESH).format(chain=chain.__name__)
    done = run_python(code, arguments[0], mode, *arguments[1:], **options)
    return [int(number) for number in done.stdout.split()]


def of_arrays(chest: Chest, arguments: Any) -> None:
    make, twice, summing = map(chest.cache, (ramp, double, total))
    summing(twice(make(LARGE)))


def of_parts(chest: Chest, arguments: Any) -> None:
    two, named_ones, summing = map(chest.cache, (pair, in_dict, total))
    for part in (*two(LARGE), named_ones(LARGE)["x"]):
        summing(part)


def of_compressed(chest: Chest, arguments: Any) -> None:
    with arraychest.open(chest.path, "a", compression="zstd") as compressing:  # type: ignore[arg-type]
        make, named_ones, summing = map(compressing.cache, (ramp, in_dict, total))
        summing(make(HUGE))
        summing(named_ones(HUGE)["x"])


def of_put(chest: Chest, arguments: Any) -> None:
    summing = chest.cache(total)
    if "x" not in chest:
        chest["x"] = np.arange(float(LARGE))
        chest["tree"] = [np.arange(float(LARGE)), {"y": np.ones(LARGE)}]
    summing(chest["x"])
    summing(chest["tree"][0])
    summing(chest["tree"][1]["y"])


def of_another(chest: Chest, arguments: Any) -> None:
    with arraychest.open(arguments[0] + "-other", "a") as other:
        if "x" not in other:
            other["x"] = np.arange(float(LARGE))
            other.flush()
        chest.cache(total)(other["x"])


def of_nested(chest: Chest, arguments: Any) -> None:
    """An array in what is an argument."""
    make = chest.cache(ramp)
    chest.cache(identity)({"a": [make(LARGE)], "b": (make(LARGE + 1), 5)})


def of_memmaps(chest: Chest, arguments: Any) -> None:
    """What goes through a generator, and as several arguments."""
    make = chest.cache(ramp)
    chest.cache(add)(make(LARGE), make(LARGE, 2.0), scale=make(LARGE, 3.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [of_arrays, of_parts, of_compressed, of_put, of_another, of_nested, of_memmaps],
    ids=lambda chain: chain.__name__,
)
def test_nothing_is_hashed_again_in_a_fresh_process(path, chain, computed):
    with Chest(path=path) as chest:
        chain(chest, [path])
    assert computed
    assert fresh(chain, path) == [0, 0]
    assert fresh(chain, path, mode="r") == [0, 0]
    audit(path)


def test_a_digest_survives_compaction_and_flush(path, make_chest, digested):
    chest = make_chest(path=path)
    of_arrays(chest, [])
    for number in range(100):
        chest[number] = np.full(100, number)
    chest.flush()
    for number in range(0, 100, 2):
        del chest[number]
    chest.compact()
    chest.close()
    assert fresh(of_arrays, path) == [0, 0]


def test_what_was_resident_and_is_stored_later_keeps_its_digest(chest, digested):
    chest["x"] = np.arange(float(LARGE))
    summing = chest.cache(total)
    summing(chest["x"])
    assert len(digested) == 1
    chest.flush()
    gc.collect()
    summing(chest["x"])
    summing(chest["x"])
    assert len(digested) == 1


def test_a_digest_goes_with_its_value(path, make_chest, computed):
    chest = make_chest(path=path)
    summing = chest.cache(total)
    chest["x"] = np.ones(LARGE)
    chest.flush()
    old = chest["x"]
    assert summing(old) == LARGE
    chest["x"] = np.full(LARGE, 2.0)
    chest.flush()
    assert summing(chest["x"]) == 2 * LARGE
    assert summing(old) == LARGE
    with chest.edit("x") as array:
        array[:] = 3.0
    assert summing(chest["x"]) == 3 * LARGE
    with chest.create("x", (LARGE,), float) as array:
        array[:] = 4.0
    assert summing(chest["x"]) == 4 * LARGE
    del chest["x"]
    chest.flush()
    chest["x"] = np.full(LARGE, 5.0)
    assert summing(chest["x"]) == 5 * LARGE
    assert len(computed) == 5
    assert len(facts(chest)["digest"]) == 0


def facts(chest: Chest) -> dict[str, list[Any]]:
    """The rows of what is known beside the values, as another connection reads them."""
    assert chest.path is not None
    with contextlib.closing(sqlite3.connect(os.path.join(chest.path, "catalog.sqlite"))) as db:
        return {
            table: db.execute(f"SELECT * FROM {table}").fetchall() for table in ("digest", "cost")
        }


def test_the_digest_of_what_is_gone_is_not_recorded(path, make_chest):
    chest = make_chest(path=path)
    summing = chest.cache(total)
    chest["x"] = np.ones(LARGE)
    chest.flush()
    old = chest["x"]
    chest["x"] = np.full(LARGE, 2.0)
    chest.flush()
    assert summing(old) == LARGE
    assert facts(chest)["digest"] == []
    assert summing(chest["x"]) == 2 * LARGE
    assert len(facts(chest)["digest"]) == 1


@pytest.mark.parametrize("named", [True, False])
def test_what_is_edited_in_place_is_hashed_each_time(named, path, make_chest, digested):
    chest = make_chest(path=path if named else None)
    chest["x"] = np.ones(LARGE)
    chest.flush()
    before = chest["x"]
    summing = chest.cache(total, version=1)
    assert summing(before) == LARGE
    for number in range(3):
        with chest.edit("x", in_place=True) as array:
            array[:] = number
            assert summing(chest["x"]) == number * LARGE
            assert summing(before) == number * LARGE
            array[0] = 7
            assert summing(chest["x"]) == number * (LARGE - 1) + 7
            assert facts(chest)["digest"] == []
        assert summing(before) == number * (LARGE - 1) + 7
        assert summing(chest["x"]) == number * (LARGE - 1) + 7
        # After the end it is a value as any other, whose digest is kept.
        assert len(facts(chest)["digest"]) == 1
        before = chest["x"]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("mode", ["a", "r"])
def test_what_another_writes_in_place_is_no_hit(path, make_chest, mode, recorded):
    """The array is read-only here, and changes all the same."""
    with Chest(path=path) as chest:
        chest["x"] = np.ones(LARGE)
        chest.flush()
        if recorded:
            chest.cache(total)(chest["x"])
    results = make_chest()
    reader = make_chest(path=path, mode=mode)
    summing = results.cache(total)
    x = reader["x"]
    assert summing(x) == LARGE
    writer = make_chest(path=path)
    with writer.edit("x", in_place=True) as array:
        array[:] = 2.0
        assert x[0] == 2.0
        assert summing(x) == 2 * LARGE
        array[:] = 3.0
        assert summing(x) == 3 * LARGE
        assert summing(reader["x"]) == 3 * LARGE
    assert summing(x) == 3 * LARGE
    assert summing(reader["x"]) == 3 * LARGE
    with writer.edit("x", in_place=True) as array:
        reader.close()
        array[:] = 4.0
    assert x[0] == 3.0 or summing(x) == 4 * LARGE
    assert summing(x) == 4 * LARGE


def test_an_array_made_writable_again_is_not_trusted(chest, named):
    for each in (chest, named):
        summing = each.cache(total)
        array = np.ones(LARGE)
        each["x"] = array
        assert summing(each["x"]) == LARGE
        each.flush()
        assert summing(array) == LARGE
        array.flags.writeable = True
        array[0] = 5.0
        assert summing(array) == LARGE + 4
        array[0] = 6.0
        assert summing(array) == LARGE + 5


def test_an_array_given_another_shape_or_dtype_is_another(named):
    named["x"] = np.ones(2 * LARGE)
    named.flush()
    shape = named.cache(lambda a: (a.shape, a.dtype.str), version=1)
    x = named["x"]
    assert shape(x) == ((2 * LARGE,), "<f8")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        x.shape = (2, LARGE)
    assert shape(x) == ((2, LARGE), "<f8")


def test_digests_of_another_hash_function_do_not_count(named, computed, digested):
    named["x"] = np.ones(LARGE)
    named.flush()
    summing = named.cache(total)
    summing(np.ones(LARGE))
    del digested[:]
    for wrong in (b"", b"x", b"s" * 17, b"z" * 17, b"\0" * 17, b"x" * 99):
        if digests.array_digest(np.zeros(1))[:1] == wrong[:1] and len(wrong) == 17:
            continue
        with contextlib.closing(sqlite3.connect(os.path.join(named.path, "catalog.sqlite"))) as db:
            generation = named.entry("x").generation
            db.execute("INSERT OR REPLACE INTO digest VALUES (?, 0, ?)", (generation, wrong))
            db.commit()
        reader = arraychest.open(named.path, "r")
        assert summing.func(reader["x"]) == LARGE
        assert summing.key(reader["x"]) == summing.key(np.ones(LARGE))
        reader.close()


def test_a_closed_chests_arrays_are_arguments_still(path, make_chest, chest):
    summing = chest.cache(total)
    for where in (path, None):
        other = make_chest(path=where)
        other["x"] = np.full(LARGE, 3.0)
        other.flush()
        x = other["x"]
        other.close()
        assert summing(x) == summing(x) == 3 * LARGE


# --- what is kept, and what is not -----------------------------------------------------------------


@pytest.mark.slow
def test_results_outlive_the_process(path, computed):
    with Chest(path=path) as chest:
        cached = chest.cache(ramp)
        cached(5)
        cached(LARGE)
    for seed in ("0", "1"):
        done = run_python(
            """
            import sys
            import arraychest
            from tests.memoize import test_memoize as tests
            with arraychest.open(sys.argv[1], "a") as chest:
                cached = chest.cache(tests.ramp)
                assert cached(5).tolist() == [0, 1, 2, 3, 4]
                assert cached(n=tests.LARGE)[-1] == tests.LARGE - 1
            assert not tests.LOG.calls
            print(cached.stats().hits)
            """,
            path,
            prefix=f"export PYTHONHASHSEED={seed}",
        )
        assert done.stdout == "2\n"
    audit(path)


def test_a_result_is_stored_before_the_call_returns(path):
    with contextlib.suppress(SpillError):
        child = in_child(lambda say: (Chest(path=path).cache(ramp)(5), os._exit(9)))
        assert child is not None
    with arraychest.open(path, "r") as chest:
        assert chest.cache(ramp).check(5)


def test_check_entry_invalidate_and_clear(each_chest, computed):
    cached, other = each_chest.cache(ramp), each_chest.cache(double)
    assert not cached.check(5)
    assert not cached.invalidate(5)
    entry = cached.entry(5)
    assert (entry.shape, entry.dtype) == ((5,), np.float64)
    assert cached.check(5)
    assert cached.entry(n=5).shape == (5,)
    assert computed == [("ramp", 5)]
    assert cached.stats().hits == 0, "an entry is not loaded"
    assert cached.invalidate(5)
    assert not cached.check(5)
    assert cached.key(5) not in each_chest
    each_chest["mine"] = np.ones(2)
    each_chest[f"{__name__}.ramp"] = np.ones(2)
    each_chest["tests.memoize.test_memoize.ramp(" + "0" * 31 + ")"] = np.ones(2)
    for n in range(4):
        cached(n)
    other(np.ones(3))
    assert cached.clear() == 4
    assert cached.clear() == 0
    assert not cached.check(1)
    assert other.check(np.ones(3))
    assert len(each_chest) == 4
    assert set(cached.key(1)) <= set("()._abcdefghijklmnopqrstuvwxyz0123456789")


@pytest.mark.parametrize(
    "error", [ValueError, KeyError, StopIteration, KeyboardInterrupt, SystemExit]
)
def test_exceptions_are_not_cached_and_let_go(each_chest, computed, error):
    cached = each_chest.cache(fails)
    for _ in range(2):
        with pytest.raises(error, match="not yet"):
            cached(error, 3)
    assert not cached.check(error, 3)
    # From another thread: a lock that was kept would keep it waiting.
    assert Background(lambda: cached(error, 3)).wait() == 3
    assert cached(error, 3) == 3
    assert cached.stats()[:2] == (1, 3)
    assert not each_chest._flights._locks


def test_stats_say_what_was_saved(chest):
    cached = chest.cache(in_a_while)
    assert cached.stats() == (0, 0, 0.0, 0.0)
    cached(1)
    assert 0.02 <= cached.stats().seconds_computing < 1
    assert cached.stats().seconds_saved == 0.0
    cached(1)
    cached(1)
    assert cached.stats()[:2] == (2, 1)
    assert 0.04 <= cached.stats().seconds_saved == 2 * cached.stats().seconds_computing


def test_time_saved_is_known_after_reopening(path, make_chest):
    for again in range(2):
        with Chest(path=path) as chest:
            cached = chest.cache(in_a_while)
            cached(1)
            assert (cached.stats().seconds_saved >= 0.02) == bool(again)


def test_verbose_says_what_happens(chest, caplog):
    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line for line in lines if line.startswith("tests.")]

    caplog.set_level(logging.INFO, "arraychest.cache")
    quiet, loud, louder = (chest.cache(ramp, verbose=n, version=n) for n in range(3))
    quiet(1), quiet(1)
    assert said() == []
    loud(1), loud(1)
    lines = said()
    assert len(lines) == 2
    assert "is computed" in lines[0]
    assert " s" in lines[1]
    assert all(loud.key(1) in line for line in lines)
    louder(1), louder(1)
    lines = said()
    assert len(lines) == 3
    assert "was kept" in lines[2]


def test_verbose_is_heard_where_a_program_has_set_up_no_logging():
    done = run_python(
        "import arraychest\n"
        "chest = arraychest.Chest()\n"
        "@chest.cache(verbose=1)\n"
        "def f():\n"
        "    return 1\n"
        "f()"
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("[arraychest] __main__.f(") for line in lines)


def test_an_overwritten_result_is_what_was_put(each_chest):
    cached = each_chest.cache(ramp)
    cached(3)
    each_chest[cached.key(3)] = np.full(3, 7.0)
    assert cached(3).tolist() == [7, 7, 7]
    assert each_chest._engine.facts.cost_of(cached.key(3)) is None
    each_chest.flush()
    assert facts(each_chest)["cost"] == []


# --- where nothing can be kept ---------------------------------------------------------------------


def test_a_read_only_chest_computes_without_keeping(path, make_chest, computed):
    with Chest(path=path) as chest:
        chest.cache(ramp)(LARGE)
    reader = make_chest(path=path, mode="r")
    cached = reader.cache(ramp)
    assert cached(LARGE).size == LARGE
    assert len(computed) == 1
    for _ in range(2):
        found = cached(6)
        assert found.tolist() == list(range(6))
        found[0] = 1.0  # the caller's own: nobody keeps it
    assert len(computed) == 3
    assert reader.cache(total)(reader[cached.key(LARGE)]) > 0
    for refused in (lambda: cached.invalidate(LARGE), cached.clear):
        with pytest.raises(ReadOnlyChestError):
            refused()
    with pytest.raises(AbsentKeyError):
        cached.entry(7)
    assert cached.check(LARGE)


def test_where_nothing_is_kept_nobody_waits(path, make_chest, slow):
    Chest(path=path).close()
    reader = make_chest(path=path, mode="r")
    slow.together = threading.Barrier(2)
    cached = reader.cache(meet)
    assert run_threads(lambda: cached(1), lambda: cached(1)) == [1, 1]


@pytest.mark.parametrize("kind", ["temporary", "named"])
def test_a_forked_child_keeps_results_where_the_chest_has_a_path(path, make_chest, kind, computed):
    chest = make_chest(path=None if kind == "temporary" else path)
    cached = chest.cache(ramp)
    cached(3)

    def child(say: Say) -> Any:
        assert cached(3).size == 3
        assert len(computed) == 1
        if kind == "named":
            assert [cached(4).size, cached(4).size] == [4, 4]
        else:
            with pytest.warns(ArrayChestWarning, match="path") as told:
                assert [cached(4).size, cached(4).size] == [4, 4]
            assert len(told) == 1
            assert told[0].filename == __file__
        return len(computed)

    outcome = in_child(child)
    assert outcome.error is None, outcome.error
    assert outcome.result == (2 if kind == "named" else 3)
    assert cached.check(4) == (kind == "named")
    assert cached(4).size == 4
    assert len(computed) == (1 if kind == "named" else 2)


@pytest.mark.parametrize("kind", ["temporary", "named"])
def test_a_child_forked_while_another_thread_computes_gets_the_result(path, make_chest, kind, slow):
    """Of a chest with a path it waits for it; of a temporary one there is nothing to wait for."""
    chest = make_chest(path=None if kind == "temporary" else path)
    cached = chest.cache(slowly)
    working = Background(lambda: cached(1))
    assert slow.started.wait(PATIENCE)

    def child(say: Say) -> Any:
        slow.go_on.set()
        warnings.simplefilter("ignore", ArrayChestWarning)
        result = cached(1)
        assert cached.stats().misses == (kind == "temporary")
        return result

    if kind == "named":
        threading.Timer(0.3, slow.go_on.set).start()
    outcome = in_child(child, seconds=20)
    slow.go_on.set()
    assert outcome.error is None, outcome.error
    assert outcome.result == 1
    assert working.wait() == 1


def test_a_quota_that_refuses_does_no_harm(path, make_chest, computed, caplog):
    chest = make_chest(path=path, max_disk="256 KiB")
    cached = chest.cache(ramp)
    for _ in range(2):
        assert cached(HUGE)[-1] == HUGE - 1
    assert len(computed) == 2
    assert "not kept" in caplog.text
    assert not len(chest)
    assert cached(5).size == 5


def test_a_full_disk_does_no_harm(tiny_disk, make_chest, computed, caplog):
    chest = make_chest(path=str(tiny_disk / "chest"), available_memory="1 MiB", compression=None)
    cached = chest.cache(ramp)
    cached(5)
    fill_disk(tiny_disk)
    for n in (LARGE, HUGE):
        for _ in range(2):
            assert cached(n)[-1] == n - 1
        assert not cached.check(n)
    assert len(computed) == 5
    assert "not kept" in caplog.text
    assert cached(5).size == 5
    assert len(computed) == 5
    summing = chest.cache(total)
    assert summing(cached(LARGE)) == LARGE * (LARGE - 1) / 2
    # What could not be kept is in nobody's way.
    os.unlink(tiny_disk / "filler")
    chest["mine"] = np.ones(3)
    chest.flush()
    assert cached(LARGE).size == LARGE
    assert cached.check(LARGE)
    assert chest.verify().ok


def test_a_chest_on_a_full_disk_is_closed_all_the_same(tiny_disk, computed):
    with Chest(path=str(tiny_disk / "chest"), available_memory="1 MiB") as chest:
        chest.cache(ramp)(5)
        fill_disk(tiny_disk)
        assert chest.cache(ramp)(LARGE).size == LARGE


def test_too_many_open_files_do_no_harm(path, make_chest, computed):
    chest = make_chest(path=path)
    cached = chest.cache(ramp)

    def action(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == "open":
            raise OSError(24, "Too many open files")
        return call()

    with injected(action):
        assert cached(LARGE).size == LARGE
        assert asyncio.run(chest.cache(later)(3)) == 3
    assert computed == [("ramp", LARGE), "later"]
    chest.flush()


def test_a_corrupt_result_is_computed_again(path, make_chest, computed, caplog):
    chest = make_chest(path=path)
    cached = chest.cache(ramp)
    file = cached.entry(LARGE).file
    assert file is not None
    chest.close()
    for harm in (lambda: os.truncate(file, 100), lambda: os.unlink(file)):
        chest = make_chest(path=path)
        cached = chest.cache(ramp)
        file = cached.entry(LARGE).file
        chest.close()
        harm()
        chest = make_chest(path=path)
        cached = chest.cache(ramp)
        computed.clear()
        assert cached(LARGE)[-1] == LARGE - 1
        assert cached(LARGE)[-1] == LARGE - 1
        assert len(computed) == 1
        assert "computed again" in caplog.text
        chest.close()
    with arraychest.open(path, "r") as chest:
        assert chest.verify().ok


def test_a_corrupt_compressed_result_is_computed_again(path, make_chest, computed):
    chest = make_chest(path=path, compression="zstd")
    file = chest.cache(ramp).entry(HUGE).file
    chest.close()
    size = os.path.getsize(file)
    with open(file, "r+b") as opened:
        opened.seek(size // 2)
        opened.write(b"\xff" * 64)
    chest = make_chest(path=path, compression="zstd")
    cached = chest.cache(ramp)
    assert_identical(np.array(cached(HUGE)), np.arange(HUGE) * 1.0)
    assert len(computed) == 2
    assert cached(HUGE)[5] == 5
    assert len(computed) == 2


def test_a_chest_closed_meanwhile_still_gives_the_result(make_chest, path):
    for where in (None, path):
        chest = make_chest(path=where)
        cached = chest.cache(lambda n: (chest.close(), n)[1], version=1, ignore=[])
        assert cached(3) == 3


# --- transactions ----------------------------------------------------------------------------------


def test_results_of_a_transaction_come_with_it(each_chest, computed):
    cached = each_chest.cache(ramp)
    with each_chest.transaction():
        for _ in range(2):
            cached(3)
            cached(LARGE)
        assert len(computed) == 2
        assert cached.check(3)
        assert Background(lambda: cached.check(3)).wait() is False
        assert cached.entry(LARGE).shape == (LARGE,)
    assert cached.check(3)
    cached(3), cached(LARGE)
    assert len(computed) == 2
    assert cached.stats().seconds_saved > 0
    assert len(facts(each_chest)["cost"]) == 2
    with contextlib.suppress(ZeroDivisionError), each_chest.transaction():
        cached(4)
        cached(3)
        1 / 0  # noqa: B018
    assert not cached.check(4)
    assert cached(4).size == 4
    assert len(computed) == 4
    with each_chest.transaction():
        cached.invalidate(4)
        assert not cached.check(4)
        cached(4)
    assert cached.check(4)
    assert each_chest.verify().ok


# --- recursion -------------------------------------------------------------------------------------

RECURSIVE = Chest()


@RECURSIVE.cache
def fib(n: int) -> int:
    LOG("fib", n)
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@RECURSIVE.cache
def is_even(n: int) -> bool:
    LOG("even", n)
    return n == 0 or is_odd(n - 1)


@RECURSIVE.cache
def is_odd(n: int) -> bool:
    LOG("odd", n)
    return n != 0 and is_even(n - 1)


@RECURSIVE.cache
def reenters(n: int) -> int:
    """Asks for its own result, once."""
    LOG("reenters")
    return n if len(LOG.calls) > 1 else reenters(n) + 1


def test_a_function_may_call_itself(computed):
    RECURSIVE.clear()
    assert fib(60) == 1548008755920
    assert len(computed) == 61
    assert fib(61) == 2504730781961
    assert len(computed) == 62
    assert is_even(40)
    assert not is_odd(40)
    assert is_odd(39)


def test_a_function_may_ask_for_the_very_same(computed):
    RECURSIVE.clear()
    assert Background(lambda: reenters(5)).wait() == 6
    assert reenters(5) == 6
    assert computed == ["reenters", "reenters"]


def test_deep_recursion_in_a_named_chest(path):
    """Each level holds a lock, which takes a descriptor."""
    done = run_python(
        """
        import sys
        import arraychest
        chest = arraychest.Chest(path=sys.argv[1])
        @chest.cache
        def down(n):
            return 0 if n == 0 else down(n - 1) + 1
        assert down(120) == 120
        chest.flush()
        assert down.check(120)
        chest.close()
        """,
        path,
        prefix="ulimit -n 64",
    )
    assert done.returncode == 0
    audit(path)


# --- single flight ---------------------------------------------------------------------------------


@pytest.fixture
def slow() -> Slow:
    SLOW.reset()
    return SLOW


def test_many_threads_compute_once(each_chest, computed, slow):
    cached = each_chest.cache(slowly)
    working = [Background(lambda: cached(1)) for _ in range(8)]
    assert slow.started.wait(PATIENCE)
    assert Background(lambda: each_chest.cache(ramp)(3).size).wait() == 3, "others go on"
    time.sleep(0.05)
    slow.go_on.set()
    assert [each.wait() for each in working] == [1] * 8
    assert computed == [("slow", 1), ("ramp", 3)]
    assert cached.stats()[:2] == (7, 1)
    assert not each_chest._flights._locks


def test_a_wait_can_be_interrupted(each_chest, slow, computed):
    cached = each_chest.cache(slowly)
    working = Background(lambda: cached(1))
    assert slow.started.wait(PATIENCE)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            cached(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    slow.go_on.set()
    assert working.wait() == 1
    assert cached(1) == 1
    assert len(computed) == 1
    assert not each_chest._flights._locks


def test_threads_that_evict_overwrite_and_ask_get_the_right_result(path, make_chest):
    chest = make_chest(
        path=path, available_memory="1 MiB", max_disk="1 MiB", on_full="evict", evict_by="cost"
    )
    make, twice, summing = map(chest.cache, (ramp, double, total))

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for n in rng.integers(0, 12, 12):
            size = int(LARGE + n if n % 2 else n)
            made = make(size)
            assert summing(twice(made)) == size * (size - 1)
            if n % 5 == 0:
                make.invalidate(size)
            elif n % 7 == 0:
                twice.invalidate(made)

    run_threads(*[functools.partial(work, seed) for seed in range(4)])
    assert chest.verify().ok
    chest.close()
    audit(path)


def test_different_calls_do_not_wait_for_each_other(each_chest, slow):
    slow.together = threading.Barrier(3)
    cached = each_chest.cache(meet)
    jobs = [functools.partial(cached, n) for n in range(3)]
    assert run_threads(*jobs) == [0, 1, 2]


def test_a_thread_takes_over_where_the_first_one_fails(each_chest, computed, slow):
    slow.failing = True
    cached = each_chest.cache(slowly)
    first = Background(lambda: cached(1))
    assert slow.started.wait(PATIENCE)
    others = [Background(lambda: cached(1)) for _ in range(3)]
    slow.go_on.set()
    with pytest.raises(OSError, match="it failed"):
        first.wait()
    assert [each.wait() for each in others] == [1] * 3
    assert len(computed) == 2


def test_two_chests_on_one_folder_compute_once(path, make_chest, computed, slow):
    one, other = make_chest(path=path), make_chest(path=path)
    first = Background(lambda: one.cache(slowly)(1))
    assert slow.started.wait(PATIENCE)
    second = Background(lambda: other.cache(slowly)(1))
    time.sleep(0.05)
    slow.go_on.set()
    assert first.wait() == second.wait() == 1
    assert len(computed) == 1


IN_PROCESS = """
    import os, sys, time
    import numpy as np
    import arraychest

    path, log, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    chest = arraychest.Chest(path=path)

    @chest.cache(version=1)
    def slow(n):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(seconds)
        return np.full(n, 7.0)

    print("ready", flush=True)
    sys.stdin.readline()
    found = slow(20_000)
    assert found.size == 20_000 and (found == 7.0).all()
    print(slow.stats().hits, slow.stats().misses, flush=True)
    chest.close()
"""


class Process:
    """A process that computes the slow function when it is told."""

    def __init__(self, path: str, log: Path, seconds: float) -> None:
        environment = {**os.environ, "PYTHONPATH": IMPORT_ROOT, "PYTHONWARNINGS": "error"}
        command = [sys.executable, "-c", textwrap.dedent(IN_PROCESS), path, str(log), str(seconds)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> str:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return out.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def wait_for(log: Path, lines: int) -> list[int]:
    until = time.monotonic() + PATIENCE
    while not log.exists() or len(log.read_text().split()) < lines:
        assert time.monotonic() < until
        time.sleep(0.005)
    return [int(pid) for pid in log.read_text().split()]


@pytest.mark.slow
def test_many_processes_compute_once(path, tmp_path):
    log = tmp_path / "log"
    processes = [Process(path, log, 0.3) for _ in range(3)]
    for each in processes:
        each.go()
    outcomes = sorted(each.wait() for each in processes)
    assert outcomes == ["0 1", "1 0", "1 0"]
    assert len(wait_for(log, 1)) == 1
    audit(path)


@pytest.mark.slow
def test_a_process_takes_over_where_the_first_one_dies(path, tmp_path):
    log = tmp_path / "log"
    first, second = Process(path, log, 60), Process(path, log, 0)
    first.go()
    assert wait_for(log, 1) == [first.process.pid]
    second.go()
    time.sleep(0.2)
    assert len(wait_for(log, 1)) == 1, "it waits"
    first.kill()
    assert second.wait() == "0 1"
    assert wait_for(log, 2)[1] == second.process.pid
    with arraychest.open(path, "a") as chest:
        assert len(chest) == 1
    audit(path)


# --- coroutines ------------------------------------------------------------------------------------


async def later(n: int) -> int:
    LOG("later")
    await asyncio.sleep(0.05)
    return n


class Later:
    async def __call__(self, n: int) -> int:
        LOG("Later")
        return n


def taken_for_a_coroutine_function(function: Any) -> bool:
    """Whether the standard library takes it for one: `asyncio` until 3.11, `inspect` from then on."""
    module = inspect if hasattr(inspect, "markcoroutinefunction") else asyncio
    return module.iscoroutinefunction(function)


def test_a_coroutine_function_is_awaited_once(each_chest, computed):
    cached = each_chest.cache(later)
    assert taken_for_a_coroutine_function(cached)
    ticks = []

    async def main() -> Any:
        async def tick() -> None:
            for _ in range(5):
                ticks.append(1)
                await asyncio.sleep(0.005)

        found = await asyncio.gather(*[cached(n=3) for _ in range(20)], cached(4), tick())
        assert (await cached.entry(3)).kind == "tree"
        assert (await cached.entry(5)).kind == "tree"
        return found

    assert asyncio.run(main()) == [3] * 20 + [4, None]
    assert computed == ["later"] * 3
    assert len(ticks) == 5
    assert cached.check(3)
    assert cached.invalidate(3)
    assert asyncio.run(cached(3)) == 3
    assert cached.stats()[:2] == (19, 4)
    assert not each_chest._flights._locks


def test_other_coroutine_functions(chest, computed):
    CLASSES.clear()
    one = Scaled(3)
    assert asyncio.run(one.later(2)) == asyncio.run(Scaled(3).later(2)) == 6
    assert computed == ["later"]
    assert taken_for_a_coroutine_function(one.later)
    for function in (Later(), functools.partial(later, 1)):
        cached = chest.cache(function)
        args = () if isinstance(function, functools.partial) else (1,)
        assert asyncio.run(cached(*args)) == asyncio.run(cached(*args)) == 1
    outer = chest.cache(chest.cache(later))
    assert asyncio.run(outer(9)) == 9
    assert computed == ["later", "Later", "later", "later"]


def test_another_task_takes_over_from_one_that_is_cancelled(each_chest, computed):
    async def forever(n: int) -> int:
        LOG("forever")
        if len(LOG.calls) == 1:
            await asyncio.sleep(PATIENCE)
        return n

    cached = each_chest.cache(forever, version=1)

    async def main() -> Any:
        first = asyncio.create_task(cached(1))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(cached(1)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert computed == ["forever"]
        others[0].cancel()  # one that waits
        await asyncio.sleep(0.02)
        first.cancel()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        return [each if isinstance(each, int) else type(each) for each in found]

    cancelled = asyncio.CancelledError
    assert asyncio.run(main()) == [cancelled, cancelled, 1, 1]
    assert computed == ["forever", "forever"]
    assert not each_chest._flights._locks


def test_exceptions_of_coroutines_are_not_cached(each_chest, computed):
    async def failing(n: int) -> int:
        LOG("failing")
        await asyncio.sleep(0)
        if len(LOG.calls) < 3:
            raise LookupError(n)
        return n

    cached = each_chest.cache(failing, version=1)

    async def main() -> Any:
        return await asyncio.gather(*[cached(1) for _ in range(4)], return_exceptions=True)

    found = asyncio.run(main())
    assert sorted(map(repr, found)) == ["1", "1", "LookupError(1)", "LookupError(1)"]


def test_a_coroutine_that_is_left_lets_go(each_chest):
    async def waits(n: int) -> int:
        await asyncio.sleep(PATIENCE)
        return n

    cached = each_chest.cache(waits, version=1)

    async def main() -> None:
        awaiting = cached(1)
        awaiting.send(None)
        # In another context than it was begun in.
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0))
        import contextvars

        contextvars.Context().run(awaiting.close)
        await task

    asyncio.run(main())
    assert not each_chest._flights._locks


# --- time ------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time", found)
    return found


@pytest.mark.parametrize("after", [60, 60.0, dt.timedelta(minutes=1)])
def test_a_result_expires(each_chest, clock, computed, after):
    cached = each_chest.cache(ramp, expires_after=after)
    cached(3)
    clock.now += 59
    cached(3)
    assert len(computed) == 1
    assert cached.check(3)
    clock.now += 2
    assert not cached.check(3)
    assert cached(3).size == 3
    assert cached(3).size == 3
    assert len(computed) == 2
    clock.now += 59
    assert cached.check(3)
    cached.entry(3)
    assert len(computed) == 2
    clock.now += 2
    cached.entry(3)
    assert len(computed) == 3


def test_compact_removes_what_has_expired(each_chest, clock):
    short = each_chest.cache(ramp, expires_after=10)
    long = each_chest.cache(double, expires_after=100)
    never = each_chest.cache(total)
    short(3), short(LARGE), long(np.ones(4)), never(np.ones(5))
    each_chest["mine"] = np.ones(3)
    each_chest.compact()
    assert len(each_chest) == 5
    clock.now += 11
    each_chest.compact()
    assert set(each_chest) == {long.key(np.ones(4)), never.key(np.ones(5)), "mine"}
    clock.now += 100
    each_chest.compact()
    assert set(each_chest) == {never.key(np.ones(5)), "mine"}
    assert [len(rows) for rows in facts(each_chest).values()] == [0, 1]


def test_the_same_function_decorated_twice_knows_of_expiry(each_chest, clock, computed):
    forever, shortly = each_chest.cache(ramp), each_chest.cache(ramp, expires_after=10)
    forever(3)
    assert shortly(3).size == 3
    shortly.invalidate(3)
    shortly(3)
    assert forever(3).size == 3
    clock.now += 11
    assert not forever.check(3)
    forever(3)
    clock.now += 11
    assert shortly.check(3)
    assert len(computed) == 3


def test_expiry_is_known_to_other_processes(path, clock, make_chest, computed):
    one, other = make_chest(path=path), make_chest(path=path)
    first, second = (each.cache(ramp, expires_after=10) for each in (one, other))
    first(3)
    assert second(3).size == 3
    clock.now += 11
    assert not second.check(3)
    second(3)
    assert first.check(3)
    assert first(3).size == 3
    assert len(computed) == 2


# --- across processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_cached_functions_are_pickled_by_name_or_by_their_parts(path, tmp_path):
    (tmp_path / "of_user.py").write_text(
        textwrap.dedent(
            """
            import os
            import arraychest
            chest = arraychest.Chest(path=os.environ["CHEST"])

            @chest.cache
            def decorated(n):
                "Of a module."
                return n * 2

            def plain(n):
                return n * 3

            class Kind:
                def __init__(self, by): self.by = by
                @chest.cache
                def method(self, n): return n * self.by
                @staticmethod
                @chest.cache
                def static(n): return n * 5

            @chest.cache
            async def later(n): return n * 7
            """
        )
    )
    run_python(
        """
        import asyncio, multiprocessing, pickle
        import of_user
        from concurrent.futures import ProcessPoolExecutor
        from of_user import Kind, chest, decorated, later, plain

        def main():
            assert pickle.loads(pickle.dumps(decorated)) is decorated
            assert pickle.loads(pickle.dumps(Kind.method)) is Kind.method
            assert pickle.loads(pickle.dumps(Kind.static)) is Kind.static
            assert pickle.loads(pickle.dumps(later)) is later
            for protocol in range(2, 6):
                again = pickle.loads(pickle.dumps(chest.cache(plain, version=4), protocol))
                assert again(2) == 6 and again._options["version"] == 4
                again._chest.close()
                assert pickle.loads(pickle.dumps(Kind(4).method, protocol))(2) == 8
            wrapped = chest.cache(plain)
            for kind in ("spawn", "fork", "forkserver"):
                context = multiprocessing.get_context(kind)
                with context.Pool(2) as pool:
                    assert pool.map(decorated, range(8)) == [2 * n for n in range(8)]
                    assert pool.map(Kind(4).method, range(4)) == [4 * n for n in range(4)]
                    assert pool.map(Kind.static, range(4)) == [5 * n for n in range(4)]
                    assert pool.map(wrapped, range(4)) == [3 * n for n in range(4)]
                    pool.close()
                    pool.join()
                if kind == "spawn":  # what children computed is here
                    for n in range(8):
                        assert decorated.check(n)
                    assert all(wrapped.check(n) for n in range(4))
                    assert decorated(3) == 6 and decorated.stats().misses == 0
            chest.close()

        main()
        """,
        prefix=f"export PYTHONPATH=$PYTHONPATH:{tmp_path} CHEST={path}",
    )
    audit(path)


def test_a_temporary_chests_functions_work_elsewhere_and_keep_nothing(chest):
    """In the process that opened it they are functions of the same chest."""
    cached = chest.cache(ramp)
    pickled = pickle.dumps(cached)
    assert pickle.loads(pickled)._chest is chest
    run_python(
        """
        import pickle, sys, warnings
        cached = pickle.loads(bytes.fromhex(sys.argv[1]))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert cached(3).tolist() == cached(3).tolist() == [0, 1, 2]
            assert pickle.loads(bytes.fromhex(sys.argv[1]))(3).size == 3
        assert cached.stats()[:2] == (0, 2), cached.stats()
        assert not cached.check(3) and len(cached._chest) == 0
        assert len(told) == 1 and "a path" in str(told[0].message), told
        """,
        pickled.hex(),
    )


WORKERS = {
    "joblib": """
        import joblib
        return joblib.Parallel(2)(joblib.delayed(f)(n) for n in range(6))
    """,
    "dask": """
        import dask
        dask.config.set({"distributed.scheduler.allowed-failures": 0})
        from distributed import Client
        with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            return client.gather(client.map(f, range(6)))
    """,
    "spawn": """
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return pool.map(f, range(6))
    """,
    "forkserver": """
        with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
            return list(pool.map(f, range(6)))
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("interactive", [False, True], ids=["script", "notebook"])
@pytest.mark.parametrize("kind", list(WORKERS))
def test_a_function_of_the_script_that_runs_goes_to_workers(path, tmp_path, kind, interactive):
    """A notebook has no file that a worker could import."""
    if kind == "joblib":
        pytest.importorskip("joblib")
    code = f"""
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import arraychest

chest = arraychest.Chest(path={path!r})

def helper(n):
    return n * n

@chest.cache
def f(n):
    with open({str(tmp_path / "calls")!r}, "a") as file:
        file.write("x")
    return helper(n) if n < 5 else f(n - 4) + helper(n) - 1

def work():
{textwrap.indent(textwrap.dedent(WORKERS[kind]), "    ")}

if __name__ == "__main__":
    assert work() == [0, 1, 4, 9, 16, 25]
    assert [f.check(n) for n in range(6)] == [True] * 6, list(chest)
    assert [f(n) for n in range(6)] == [0, 1, 4, 9, 16, 25] and f.stats().misses == 0
    chest.close()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": IMPORT_ROOT, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code] if interactive else [sys.executable, str(script)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The one that calls itself may ask for the result at the very moment that another computes it.
    assert (tmp_path / "calls").read_text() == 6 * "x"
    audit(path)


@pytest.mark.slow
def test_a_function_of_a_script_is_the_same_in_its_children(path, tmp_path):
    """`multiprocessing` gives the script's module another name in a child."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, sys
            import arraychest

            chest = arraychest.Chest(path={path!r})

            def helper(n):
                return n * 2

            @chest.cache
            def f(n):
                return helper(n)

            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    assert pool.map(f, [1, 2]) == [2, 4]
                    pool.close()
                    pool.join()
                assert len(chest) == 2
                assert f.check(1) and f.check(2), (f.key(1), list(chest))
                chest.close()
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": IMPORT_ROOT}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- types -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_type_checkers_see_the_functions_own_type(tmp_path):
    pytest.importorskip("mypy")
    file = tmp_path / "typed.py"
    file.write_text(
        textwrap.dedent(
            """
            from __future__ import annotations
            from typing import Any
            from arraychest import Chest
            from arraychest.engine.entry import Entry

            chest = Chest()

            @chest.cache
            def f(a: int, *, b: str = "") -> float:
                return float(a)

            @chest.cache(ignore=["b"], expires_after=60)
            def g(a: int, b: str = "") -> list[int]:
                return [a]

            x: float = f(1, b="x")
            y: list[int] = g(1)
            e: Entry = f.entry(1)
            c: bool = f.check(1, b="y") or f.invalidate(1)
            n: int = f.clear() + f.stats().hits
            f("no")  # type: ignore[arg-type]
            f.check(b=1)  # type: ignore[call-arg, arg-type]
            z: str = g(1)  # type: ignore[assignment]
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"),
         "--config-file", os.devnull, str(file)],
        capture_output=True, text=True, env={**os.environ, "MYPYPATH": IMPORT_ROOT}, cwd=IMPORT_ROOT,
    )  # fmt: skip
    assert "typed.py" not in done.stdout, done.stdout


# --- what a function changes itself ------------------------------------------------------------------

CALLS: list[Any] = []
SEEN: set[Any] = set()
COUNTS = {"n": 0}
NUMBER = 0
RNG = np.random.default_rng(3)
FILLED: dict[str, Any] = {}


class Recorder:
    def __init__(self) -> None:
        self.history: list[Any] = []
        self.by = 2

    def result(self, x: Any) -> Any:
        self.history.append(x)
        return x * self.by

    def counted(self, x: Any) -> Any:
        self.runs = getattr(self, "runs", 0) + 1
        return x * self.by


def appends(x: Any) -> Any:
    CALLS.append(x)
    SEEN.add(x)
    return x


def appends_in_a_helper(x: Any) -> Any:
    return appends(x)


def appends_within(x: Any) -> Any:
    def inner(y: Any) -> Any:
        CALLS.append(y)
        return y

    return [inner(x) for _ in range(2)]


def appends_in_a_closure() -> Any:
    calls: list[Any] = []

    def function(x: Any) -> Any:
        calls.append(x)
        return x

    return function


def adds_in_a_dict(x: Any) -> Any:
    COUNTS["n"] += 1
    return x


def adds_in_a_global(x: Any) -> Any:
    global NUMBER
    NUMBER += 1
    return x


def reads_what_it_appends_to(x: Any) -> Any:
    CALLS.append(x)
    return len(CALLS)


def draws(x: Any) -> Any:
    return x + RNG.random()


def adds_in_a_closure() -> Any:
    count = 0

    def function(x: Any) -> Any:
        nonlocal count
        count += 1
        return x

    return function


def fills_a_table(x: Any) -> Any:
    if "a" not in FILLED:
        FILLED["a"] = 7
    return x + FILLED["a"]


@pytest.fixture
def clean() -> Iterator[None]:
    def clear() -> None:
        for each in (CALLS, SEEN, FILLED):
            each.clear()

    clear()
    yield
    clear()


@pytest.mark.parametrize(
    "function", [appends, appends_in_a_helper, appends_within, appends_in_a_closure()]
)
def test_a_list_of_calls_tells_what_was_computed(each_chest, clean, function):
    cached = each_chest.cache(function)
    for _ in range(3):
        cached(4)
        cached(5)
    assert cached.stats()[:2] == (4, 2)
    CALLS.clear()
    cached(4)
    assert cached.stats()[:2] == (5, 2)


def test_a_list_that_is_read_counts(chest, clean):
    def reads(x: Any) -> Any:
        return x, CALLS.append, CALLS[:1]

    def hands_on(x: Any) -> Any:
        CALLS.append(x)
        return x, list(CALLS)

    for function in (reads, hands_on):
        cached = chest.cache(function)
        before = cached.key(1)
        CALLS.append(object)
        assert cached.key(1) != before


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (adds_in_a_dict, "COUNTS"),
        (adds_in_a_global, "NUMBER"),
        (reads_what_it_appends_to, "CALLS"),
        (draws, "RNG"),
        (adds_in_a_closure(), "count"),
    ],
)
def test_a_variable_that_a_function_changes_is_named_once(chest, clean, function, name):
    cached = chest.cache(function)
    cached(4)
    with pytest.warns(arraychest.ArrayChestWarning) as caught:
        [cached(4) for _ in range(4)]
    (only,) = [str(each.message) for each in caught]
    for part in (f"changes {name} ", f"ignore_state=['{name}']", "version="):
        assert part in only
    assert Path(caught[0].filename).name == "test_memoize.py"
    assert cached.stats().hits == 0
    ignoring = chest.cache(function, ignore_state=[name])
    assert ignoring(4) == ignoring(4) == ignoring(4)
    assert ignoring.stats()[:2] == (2, 1)


@pytest.mark.parametrize(("method", "name"), [("result", "history"), ("counted", "runs")])
def test_an_attribute_that_a_method_changes_is_named_once(chest, monkeypatch, method, name):
    function = getattr(Recorder, method)
    monkeypatch.setattr(Recorder, method, chest.cache(function))
    recorder = Recorder()
    call = getattr(recorder, method)
    assert call(4) == 8
    with pytest.warns(arraychest.ArrayChestWarning) as caught:
        assert [call(4) for _ in range(4)] == [8] * 4
    (only,) = [str(each.message) for each in caught]
    assert f"changes self.{name} " in only
    assert f"ignore_state=['{name}']" in only
    monkeypatch.setattr(Recorder, method, chest.cache(function, ignore_state=[name]))
    call = getattr(Recorder(), method)
    assert [call(4) for _ in range(4)] == [8] * 4
    recorder.by = 3
    assert getattr(recorder, method)(4) == 12


def test_what_is_changed_at_the_first_call_only_is_nothing_to_say(chest, clean):
    cached = chest.cache(fills_a_table)
    assert [cached(1) for _ in range(4)] == [8] * 4
    assert cached.stats().hits == 2


def test_names_of_variables_to_ignore_are_a_list(chest):
    with pytest.raises(TypeError, match="ignore_state"):
        chest.cache(appends, ignore_state="CALLS")


FILE = open(os.devnull)  # noqa: SIM115
LOCK = threading.Lock()
MISSING = object()
CHESTS: list[Any] = []
LOGGER = logging.getLogger(__name__)
OUTER = sqlite3.connect(":memory:")
OUTER.close()
FILE.close()


def test_what_cannot_be_told_is_named_once(chest):
    def reads(x: Any) -> Any:
        return x, FILE.closed, [OUTER]

    cached = chest.cache(reads)
    with pytest.warns(arraychest.ArrayChestWarning) as caught:
        [(cached.key(x), cached.check(x)) for x in range(3)]
    (only,) = [str(each.message) for each in caught]
    for part in ("FILE (_io.TextIOWrapper)", "OUTER (sqlite3.Connection)", "version="):
        assert part in only
    chest.cache(reads, version=1).key(1)
    chest.cache(reads, ignore_state=["FILE", "OUTER"]).key(1)


def test_nothing_is_said_of_what_is_in_every_module(chest):
    def reads(x: Any) -> Any:
        with LOCK:
            LOGGER.debug("%s", x)
            if x is MISSING:
                return Path, np.sin, len, os.environ, sys.stdout, contextlib.suppress
        return SLOW, LOG, CHESTS, asyncio, np, dt.datetime, Chest, Recorder, functools.wraps

    cached = chest.cache(reads)
    CHESTS[:] = [chest, cached]
    assert cached.key(1) == cached.key(1)
    CHESTS.clear()
