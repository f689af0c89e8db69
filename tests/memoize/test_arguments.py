"""Calls: what `inspect.Signature.bind` says, and the function's own errors."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import timeit
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraychest.errors import ValueTypeError
from arraychest.memoize.arguments import Call, Parameters, call_arguments
from arraychest.memoize.fingerprint import value_fingerprint

NAMES = ["a", "b", "c", "d", "e", "f", "g"]


@st.composite
def functions(draw: st.DrawFn) -> Any:
    """A function of any signature, which returns what its parameters are."""
    names = iter(draw(st.permutations(NAMES)))
    counts = [draw(st.integers(0, 2)) for _ in range(3)]
    only, either, keyword = ([next(names) for _ in range(n)] for n in counts)
    defaults = draw(st.integers(0, len(only) + len(either)))
    positional = only + either
    spelled = [
        f"{name}={at}" if at >= len(positional) - defaults else name
        for at, name in enumerate(positional)
    ]
    if only:
        spelled.insert(len(only), "/")
    if draw(st.booleans()):
        spelled.append("*args")
    elif keyword:
        spelled.append("*")
    spelled += [
        f"{name}=[{at}]" if draw(st.booleans()) else name for at, name in enumerate(keyword)
    ]
    if draw(st.booleans()):
        spelled.append("**kwargs")
    space: dict[str, Any] = {}
    exec(f"def function({', '.join(spelled)}): return locals()", space)
    return space["function"]


values = st.integers(0, 9) | st.text("xy", max_size=2) | st.floats(0, 1)
calls = st.tuples(
    st.lists(values, max_size=5).map(tuple),
    st.dictionaries(st.sampled_from(NAMES), values, max_size=4),
)


def bound_by_python(function: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    found = function(*args, **kwargs)
    return tuple(
        [
            tuple(sorted(found[name].items())) if name == "kwargs" else found[name]
            for name in inspect.signature(function).parameters
        ]
    )


def bound_by_signature(function: Any, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        # Until Python 3.12 it refused what Python takes, where there are **kwargs.
        assert "positional only" in str(error)
        return None
    bound.apply_defaults()
    return tuple(
        [
            tuple(sorted(value.items())) if name == "kwargs" else value
            for name, value in bound.arguments.items()
        ]
    )


@given(function=functions(), call=calls)
def test_arguments_are_bound_as_python_binds_them(function, call):
    args, kwargs = call
    parameters = Parameters(function)
    try:
        expected = bound_by_python(function, args, kwargs)
    except TypeError as theirs:
        with pytest.raises(TypeError) as ours:
            parameters.bind(args, kwargs)
        assert str(ours.value) == str(theirs)
    else:
        assert bound_by_signature(function, args, kwargs) in (None, expected)
        found = parameters.bind(args, kwargs)
        assert found.values == expected
        assert (found.args, found.kwargs) == (args, kwargs)


@given(function=functions(), one=calls, other=calls)
def test_fingerprints_are_equal_exactly_where_arguments_are(function, one, other):
    parameters = Parameters(function)
    try:
        calls = [parameters.bind(*each) for each in (one, other)]
    except TypeError:
        return
    prints = [each.fingerprint() for each in calls]
    same = repr(function(*one[0], **one[1])) == repr(function(*other[0], **other[1]))
    if {len(each[1]) for each in (one, other)} <= {0, 1}:  # else the order may be another
        assert (prints[0] == prints[1]) == same
    if same:
        assert prints[0] == prints[1]


@given(function=functions(), call=calls, data=st.data())
def test_what_is_ignored_does_not_count(function, call, data):
    parameters = inspect.signature(function).parameters
    ignored = data.draw(
        st.sets(st.sampled_from(list(parameters))) if parameters else st.just(set())
    )
    try:
        expected = bound_by_python(function, *call)
    except TypeError:
        return
    kept = tuple(
        [each for each, name in zip(expected, parameters, strict=True) if name not in ignored]
    )
    found = call_arguments(function, *call, ignored)
    assert found.values == kept
    stars = {"args": "*args", "kwargs": "**kwargs"}
    again = call_arguments(function, *call, {stars.get(name, name) for name in ignored})
    assert again.fingerprint() == found.fingerprint()


def f(x: Any, y: Any = 2, *rest: Any, z: Any = 3, **more: Any) -> Any:
    return x, y, rest, z, more


def printed(*args: Any, **kwargs: Any) -> bytes:
    return call_arguments(f, args, kwargs).fingerprint()


def test_spellings():
    assert printed(1) == printed(x=1) == printed(1, 2) == printed(y=2, x=1) == printed(1, z=3)
    assert printed(1, a=1, b=2) == printed(1, b=2, a=1)
    different = [
        printed(1), printed(1.0), printed(True), printed(1, 3), printed(1, 2, 3), printed(1, z=4),
        printed(1, a=3), printed(1, b=3), printed([1]), printed(np.array(1)), printed(1, 2, (3,)),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


def test_which_are_ignored_counts():
    def g(x, y):
        return x, y

    found = {
        call_arguments(g, (1, 2), {}, ["y"]).fingerprint(),
        call_arguments(g, (2, 1), {}, ["x"]).fingerprint(),
        call_arguments(g, (1, 1), {}).fingerprint(),
    }
    assert len(found) == 3
    one = call_arguments(g, (1, threading.Lock()), {}, ["y"])
    assert one.fingerprint() == call_arguments(g, (1, 5), {}, ["y"]).fingerprint()
    with pytest.raises(ValueTypeError, match="ignore"):
        call_arguments(g, (1, threading.Lock()), {}).fingerprint()


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match=r"parameters of f to ignore.*x, y, \*rest, z, \*\*more, found w"
    ):
        Parameters(f, ["x", "w"])
    with pytest.raises(ValueError, match="of which there are none, found x"):
        Parameters(lambda: 1, ["x"])
    with pytest.raises(TypeError, match="list of names"):
        Parameters(f, "x")
    with pytest.raises(TypeError):
        Parameters(3)


def iterators() -> list[Any]:
    numbers = [1, 2, 3]
    return [
        iter(numbers), (n for n in numbers), map(int, numbers), filter(None, numbers),
        itertools.chain([1], [2, 3]), itertools.islice(itertools.count(1), 3), iter((1, 2, 3)),
        reversed([3, 2, 1]), iter(range(1, 4)), iter({1: 1, 2: 2, 3: 3}), iter({1: 1, 2: 2, 3: 3}.values()),
    ]  # fmt: skip


def test_iterators_are_what_comes_out_of_them():
    told = set()
    for each in iterators():
        call = call_arguments(f, (each,), {"k": iter("ab")})
        told.add(call.fingerprint())
        assert call.fingerprint() == call.fingerprint()
        x, _, _, _, more = f(*call.args, **call.kwargs)
        assert next(x) == 1
        assert list(x) == [2, 3]
        assert list(more["k"]) == ["a", "b"]
    assert len(told) == 1
    assert printed(iter([1, 2])) != printed([1, 2])
    assert printed(iter([1, 2])) != printed(iter([1, 3]))
    pairs = call_arguments(f, (zip([1], [2], strict=True),), {})
    assert list(pairs.args[0]) == [(1, 2)]
    assert printed(1, 2, iter([1])) != printed(1, 2, iter([2]))


def test_the_same_iterator_twice_is_one():
    numbers = iter([1, 2, 3, 4])
    call = call_arguments(f, (numbers, numbers), {})
    assert call.fingerprint() != printed(iter([1, 2, 3, 4]), iter([1, 2, 3, 4]))
    assert call.fingerprint() != printed(iter([1, 2, 3, 4]), iter([]))
    assert list(zip(*call.args, strict=True)) == [(1, 2), (3, 4)]


def test_what_is_ignored_or_called_wrongly_is_not_exhausted():
    numbers = iter([1, 2])
    call = call_arguments(f, (numbers, 1), {}, ["x"])
    assert call.args[0] is numbers
    with pytest.raises(TypeError):
        call_arguments(lambda: 1, (numbers,), {})
    assert list(numbers) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        call_arguments(f, ((1 // n for n in (1, 0)),), {})
    with pytest.raises(ValueTypeError, match="generator"):
        printed(1, [(n for n in range(2))])


def test_defaults_are_those_of_the_moment():
    def g(x, y=[], *, z=1):  # noqa: B006
        return x

    parameters = Parameters(g)
    assert parameters.bind((1,), {}).values == (1, [], 1)
    g.__defaults__[0].append(5)
    assert parameters.bind((1,), {}).values == (1, [5], 1)
    g.__defaults__ = (7, 8)
    assert parameters.bind((), {}).values == (7, 8, 1)
    g.__kwdefaults__["z"] = 9
    assert parameters.bind((), {}).values == (7, 8, 9)
    g.__code__ = (lambda q: q).__code__
    g.__defaults__ = None
    assert parameters.bind((1,), {}).values == (1,)
    with pytest.raises(TypeError, match="'q'"):
        parameters.bind((), {})


class C:
    def m(self, x, y=1):
        return self, x, y

    @classmethod
    def k(cls, x):
        return cls, x

    def __init__(self, x=3):
        self.x = x

    def __call__(self, x, *, y):
        return x, y


def test_other_callables():
    c = C()
    assert call_arguments(c.m, (1,), {}).values == (1, 1)
    assert call_arguments(c.m, (), {"y": 2, "x": 1}, ["x"]).values == (2,)
    assert call_arguments(C.k, (1,), {}).values == (1,)
    assert call_arguments(C, (), {}).values == (3,)
    assert call_arguments(c, (1,), {"y": 2}).values == (1, 2)
    assert call_arguments(functools.partial(f, 1, z=5), (7,), {}).values == (7, (), 5, ())
    assert call_arguments(max, (1, 2), {"key": abs}).values == ((1, 2), (("key", abs),))
    assert call_arguments(np.sin, (1,), {}).values is not None
    with pytest.raises(ValueError, match="self"):
        try:
            Parameters(c.m, ["self"])
        except ValueError as error:
            raise ValueError(f"found self: {error}") from error
    for function, args in ((c.m, ()), (c.m, (1, 2, 3)), (C.k, ())):
        with pytest.raises(TypeError) as theirs:
            function(*args)
        with pytest.raises(TypeError) as ours:
            call_arguments(function, args, {})
        assert str(ours.value) == str(theirs.value)


def test_wrappers():
    def g(x, y=1):
        return x, y

    @functools.wraps(g)
    def passes_on(*args, **kwargs):
        kwargs.pop("verbose", None)
        return g(*args, **kwargs)

    @functools.wraps(g)
    def has_its_own(x, times=2):
        return g(x)

    assert call_arguments(passes_on, (1,), {}).fingerprint() == (
        call_arguments(passes_on, (), {"y": 1, "x": 1}).fingerprint()
    )
    one = call_arguments(passes_on, (1,), {"verbose": True})
    assert one.values == ((1,), (("verbose", True),))
    one = call_arguments(passes_on, (), {"x": 1, "verbose": True}, ["x"])
    assert one.values == ((), (("verbose", True),))
    assert one.kwargs == {"x": 1, "verbose": True}

    def only(a, /, **kwargs):
        return a, kwargs

    # Two that have one name.
    assert call_arguments(only, (1,), {"a": 2}, ["a"]).values == ((("a", 2),),)
    assert call_arguments(has_its_own, (1,), {"times": 3}).values == (1, 3)
    with pytest.raises(TypeError, match="y"):
        call_arguments(has_its_own, (1,), {"y": 3})


def test_the_same_call_of_a_pickled_value():
    assert isinstance(call_arguments(f, (1,), {}), Call)
    assert value_fingerprint((1,)) != printed(1)


def test_it_is_cheap():
    def g(a, b=2.0, c="x"):
        return a

    parameters = Parameters(g)
    args, kwargs = (1, 2.0, "x"), {}
    once = lambda: parameters.bind(args, kwargs).fingerprint()  # noqa: E731
    seconds = min(timeit.repeat(once, number=200, repeat=20)) / 200
    assert seconds < 4e-5, seconds  # 4 us on an idle machine
