"""Generated calls of generated functions: what is found again is that call's own result, always."""

from __future__ import annotations

import copy
import datetime as dt
import inspect
import pathlib
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arraychest import Chest
from tests.support import audit, run_python

# --- values ----------------------------------------------------------------------------------------


def spelled(value: Any) -> Any:
    """What a value is, type for type and bit for bit: equal for what should be the same argument."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, np.ndarray):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return kind, value.dtype.str, value.tobytes()
    if isinstance(value, float):
        return kind, struct.pack("<d", value)
    if isinstance(value, complex):
        return kind, struct.pack("<dd", value.real, value.imag)
    if isinstance(value, list | tuple):
        return kind, tuple(map(spelled, value))
    if isinstance(value, set | frozenset):
        return kind, tuple(sorted(map(repr, map(spelled, value))))
    if isinstance(value, dict):
        return kind, tuple((spelled(key), spelled(each)) for key, each in value.items())
    return kind, repr(value)


def told(**arguments: Any) -> str:
    """The result of every generated function."""
    return repr({name: spelled(value) for name, value in arguments.items()})


def respelled(value: Any) -> Any:
    """The same value, made otherwise."""
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return value.copy()
        wide = np.zeros((*value.shape[:-1], 2 * value.shape[-1]), value.dtype, order="F")
        wide[..., ::2] = value
        return wide[..., ::2]
    if isinstance(value, set | frozenset):
        return type(value)(reversed([respelled(each) for each in value]))
    if isinstance(value, list | tuple):
        return type(value)([respelled(each) for each in value])
    if isinstance(value, dict):
        return {key: respelled(each) for key, each in value.items()}
    return copy.deepcopy(value)


words = st.text("abé\0/ ", max_size=3)
# Alike, and yet others.
near = st.sampled_from([
    0, 1, True, False, None, 0.0, -0.0, 1.0, float("nan"), 1j, 1 + 0j, "1", b"1", "", b"", (), [], {},
    set(), frozenset(), np.int64(1), np.int32(1), np.float64(1), np.float32(1), np.bool_(True),
    np.str_("1"), np.bytes_(b"1"), (1,), [1], {1}, frozenset({1}), {1: 1}, {"1": 1}, (1, ()), ((1,),),
    1 << 64, -1, range(1), range(0, 1, 2), slice(1), slice(0, 1), ..., dt.date(2020, 1, 1),
    dt.datetime(2020, 1, 1), dt.timedelta(1), pathlib.PurePosixPath("1"), np.array(1), np.array([1]),
    np.array([1.0]), np.array([[1]]), np.array([], np.int64), np.array([[]], np.int64),
    np.array([1], ">i8"), np.datetime64("2020-01-01"), np.array(["1"]), np.array([b"1"]),
])  # fmt: skip
arrays = hnp.arrays(
    st.sampled_from(["<f8", "<f4", "<i4", ">i4", "|u1", "|b1", "<U2", "<c8", "<M8[s]"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
simple = near | st.integers() | st.floats() | words | st.binary(max_size=3) | arrays
hashable = st.integers(-3, 3) | words | st.booleans() | st.none()
values = st.recursive(
    simple,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(words, max_size=4)
        | st.frozensets(hashable, max_size=4)
    ),
    max_leaves=6,
)

# --- functions and calls ---------------------------------------------------------------------------

NAMES = ["a", "b", "c", "args", "x", "y", "z", "kwargs"]


class Signature(NamedTuple):
    """Parameters as they are written, and the defaults that their names stand for."""

    text: str
    names: list[str]
    defaults: dict[str, Any]


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    parts: list[str] = []
    names: list[str] = []
    defaults: dict[str, Any] = {}
    free = iter("abcdefgh")

    def parameter(optional: bool) -> str:
        name = next(free)
        names.append(name)
        if not optional:
            return name
        defaults[name] = draw(values)
        return f"{name}=DEFAULTS[{name!r}]"

    positional, either, named = (draw(st.integers(0, 2)) for _ in range(3))
    first_default = draw(st.integers(0, positional + either))
    for number in range(positional + either):
        if number == positional and positional:
            parts.append("/")
        parts.append(parameter(number >= first_default))
    if positional and not either:
        parts.append("/")
    if draw(st.booleans()):
        names.append("args")
        parts.append("*args")
    elif named:
        parts.append("*")
    parts += [parameter(draw(st.booleans())) for _ in range(named)]
    if draw(st.booleans()):
        names.append("kwargs")
        parts.append("**kwargs")
    return Signature(", ".join(parts), names, defaults)


def source(name: str, signature: Signature) -> str:
    given = ", ".join(f"{each}={each}" for each in signature.names)
    return f"def {name}({signature.text}):\n    return told({given})\n"


def made(signature: Signature, name: str = "f") -> Any:
    # `told` is of another module: what it does is no part of what the function is.
    space: dict[str, Any] = {"told": told, "DEFAULTS": signature.defaults, "__name__": "generated"}
    exec(source(name, signature), space)
    return space[name]


class Spelling(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@st.composite
def calls(draw: st.DrawFn, signature: Signature) -> Spelling:
    """A call that the function takes."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    leaving_out = False
    for each in inspect.signature(made(signature)).parameters.values():
        if each.kind is each.VAR_POSITIONAL:
            if not leaving_out:
                args += draw(st.lists(values, max_size=2))
        elif each.kind is each.VAR_KEYWORD:
            kwargs |= draw(st.dictionaries(st.sampled_from(["p", "q", "args", "self"]), values))
        elif each.default is not each.empty and draw(st.booleans()):
            leaving_out = True
        elif each.kind is each.KEYWORD_ONLY:
            kwargs[each.name] = draw(values)
        elif leaving_out:
            if each.kind is each.POSITIONAL_OR_KEYWORD:
                kwargs[each.name] = draw(values)
        else:
            args.append(draw(values))
    return Spelling(tuple(args), kwargs)


@st.composite
def same_calls(draw: st.DrawFn, signature: Signature, call: Spelling) -> Spelling:
    """The same call, spelled otherwise."""
    bound = inspect.signature(made(signature)).bind(*call.args, **call.kwargs)
    if draw(st.booleans()):
        bound.apply_defaults()
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    parameters = bound.signature.parameters
    rest = any(parameters[n].kind is inspect.Parameter.VAR_POSITIONAL and v
               for n, v in bound.arguments.items())  # fmt: skip
    by_name = False
    for name, value in bound.arguments.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            args += map(respelled, value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            kwargs |= {key: respelled(value[key]) for key in reversed(value)}
        elif kind is inspect.Parameter.POSITIONAL_ONLY:
            args.append(respelled(value))
        elif kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and not by_name:
            missing = list(parameters)[len(args)] != name
            by_name = missing or (not rest and draw(st.booleans()))
            if by_name:
                kwargs[name] = respelled(value)
            else:
                args.append(respelled(value))
        else:
            kwargs[name] = respelled(value)
    return Spelling(tuple(args), dict(reversed(kwargs.items())))


class Case(NamedTuple):
    signature: Signature
    calls: list[Spelling]
    same: list[Spelling]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    signature = draw(signatures())
    several = draw(st.lists(calls(signature), min_size=1, max_size=4))
    # Calls that differ in one argument are the ones that are mistaken for each other.
    for call in list(several):
        if call.args:
            at = draw(st.integers(0, len(call.args) - 1))
            args = (*call.args[:at], draw(values), *call.args[at + 1 :])
            several.append(Spelling(args, call.kwargs))
        if call.kwargs:
            name = draw(st.sampled_from(sorted(call.kwargs)))
            several.append(Spelling(call.args, {**call.kwargs, name: draw(values)}))
    return Case(signature, several, [draw(same_calls(signature, each)) for each in several])


# --- properties ------------------------------------------------------------------------------------


@given(cases())
def test_every_call_has_its_own_result_and_equal_calls_share_it(case):
    function = made(case.signature)
    with Chest() as chest:
        cached = chest.cache(function)
        for call, same in zip(case.calls, case.same, strict=True):
            expected = function(*call.args, **call.kwargs)
            assert function(*same.args, **same.kwargs) == expected, "not the same call"
            assert cached(*call.args, **call.kwargs) == expected
            assert cached.key(*same.args, **same.kwargs) == cached.key(*call.args, **call.kwargs)
        different = {function(*call.args, **call.kwargs) for call in case.calls}
        assert cached.stats().misses == len(different) == len(chest)
        for same in case.same:
            assert cached(*same.args, **same.kwargs) == function(*same.args, **same.kwargs)
        assert cached.stats().misses == len(different)


@settings(max_examples=30)
@given(signatures(), signatures(), st.data())
def test_functions_of_other_parameters_or_defaults_are_others(one, other, data):
    """Unless what they are called with is the same, by name and value."""
    with Chest() as chest:
        first, second = chest.cache(made(one)), chest.cache(made(other))
        call, another = data.draw(calls(one)), data.draw(calls(other))
        expected = made(one)(*call.args, **call.kwargs)
        found = made(other)(*another.args, **another.kwargs)
        assert first(*call.args, **call.kwargs) == expected
        assert second(*another.args, **another.kwargs) == found


@given(cases(), st.data())
def test_ignored_parameters_never_count(case, data):
    names = [name for name in case.signature.names if name not in ("args", "kwargs")]
    ignored = data.draw(st.sets(st.sampled_from(names))) if names else set()
    function = made(case.signature)
    with Chest() as chest:
        cached = chest.cache(function, ignore=sorted(ignored))
        found = {}
        for call in case.calls:
            bound = inspect.signature(function).bind(*call.args, **call.kwargs)
            bound.apply_defaults()
            for name in ignored:
                bound.arguments.pop(name, None)
            # The first of those that differ in what is ignored only.
            what = told(**bound.arguments)
            first = found.setdefault(what, function(*call.args, **call.kwargs))
            assert cached(*call.args, **call.kwargs) == first
        assert cached.stats().misses == len(found)


@given(values, values)
def test_results_come_back_as_they_are(one, other):
    with Chest() as chest:
        cached = chest.cache(lambda a: a)
        for value in (one, other, one):
            assert spelled(cached(value)) == spelled(value)


@pytest.mark.slow
def test_all_calls_are_found_in_a_fresh_process(tmp_path: Path):
    """Whatever the seed of its hashes; and no other process computes them anew."""
    found: list[Case] = []

    @settings(max_examples=60, database=None, phases=[Phase.generate])
    @given(cases())
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    path = str(tmp_path / "chest")
    text = ["import pickle, pathlib", "from tests.memoize.test_memoize_properties import told"]
    text.append('ALL = pickle.loads(pathlib.Path(__file__).with_name("defaults").read_bytes())')
    for number, case in enumerate(found):
        text.append(f"DEFAULTS = ALL[{number}]")
        text.append(source(f"f{number}", case.signature))
    (tmp_path / "generated_calls.py").write_text("\n".join(text))
    # Protocol 5, the default from Python 3.14 on, keeps the byte order of some arrays and not of
    # their respelled copies; protocol 4 keeps it of none.
    defaults = [case.signature.defaults for case in found]
    (tmp_path / "defaults").write_bytes(pickle.dumps(defaults, protocol=4))
    work = [(case.calls, case.same) for case in found]
    (tmp_path / "calls").write_bytes(pickle.dumps(work, protocol=4))
    code = """
        import pathlib, pickle, sys
        folder = pathlib.Path(sys.argv[1])
        sys.path.insert(0, sys.argv[1])
        import arraychest
        import generated_calls
        work = pickle.loads((folder / "calls").read_bytes())
        misses = hits = 0
        with arraychest.Chest(path=folder / "chest") as chest:
            for number, (calls, same) in enumerate(work):
                function = getattr(generated_calls, f"f{number}")
                cached = chest.cache(function)
                for call, again in zip(calls, same):
                    expected = function(*call.args, **call.kwargs)
                    for each in (again, call):
                        if sys.argv[2] == "found":
                            assert cached.check(*each.args, **each.kwargs), (number, each)
                        assert cached(*each.args, **each.kwargs) == expected, (number, each)
                misses += cached.stats().misses
                hits += cached.stats().hits
        print(misses, hits)
    """
    outcomes = [
        run_python(code, str(tmp_path), what, prefix=f"export PYTHONHASHSEED={seed}").stdout
        for seed, what in (("1", "computed"), ("2", "found"))
    ]
    misses, hits = map(int, outcomes[0].split())
    assert misses > 100
    assert [0, misses + hits] == list(map(int, outcomes[1].split()))
    audit(path)
