"""Fingerprints: different for what may have other results, equal for what is equal."""

from __future__ import annotations

import collections
import copy
import datetime as dt
import enum
import fractions
import functools
import importlib
import itertools
import math
import pickle
import random
import sys
import textwrap
import threading
import timeit
import types
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

import hypothesis.extra.numpy as npst
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from arraychest.errors import ValueTypeError
from arraychest.memoize.fingerprint import FunctionPrint, function_fingerprint, value_fingerprint
from arraychest.values import registry
from tests.support import run_python

# --- values -------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Plain:
    def __init__(self, a: Any) -> None:
        self.a = a

    def method(self, x: Any) -> Any:
        return self.a, x


class Own(Plain):
    def __getstate__(self) -> Any:
        return {"only": self.a}

    def __setstate__(self, state: Any) -> None:
        self.a = state["only"]


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Many(set):
    pass


Pair = collections.namedtuple("Pair", "a b")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(max_size=5),
    st.binary(max_size=5), st.datetimes(), st.dates(), st.times(), st.timedeltas(), st.uuids(),
    st.builds(PurePosixPath, st.text("ab/", max_size=4)), st.sampled_from(Colour),
    st.integers(-128, 127).map(np.int8), st.floats(width=32).map(np.float32),
    st.integers(-9, 9).map(np.longdouble), st.builds(range, st.integers(0, 5), st.integers(0, 5)),
)  # fmt: skip
hashables = st.recursive(
    scalars.filter(lambda each: each == each),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
shapes = npst.array_shapes(min_dims=0, max_side=3)
arrays = st.one_of(
    npst.arrays(st.sampled_from(["i4", "f8", "?", "U2", "M8[s]"]), shapes),
    npst.arrays(object, shapes, elements=scalars, fill=st.nothing()),
)
values = st.recursive(
    scalars | arrays,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashables, inner, max_size=3),
        st.sets(hashables, max_size=3),
        st.sets(hashables, max_size=3).map(Many),
        st.builds(Slotted, inner, inner),
        st.builds(Plain, inner),
        st.builds(Own, inner),
        st.builds(Pair, inner, inner),
        st.lists(inner, max_size=3).map(collections.deque),
    ),
    max_leaves=12,
)


@given(value=values)
def test_equal_copies_have_equal_prints(value):
    expected = value_fingerprint(value)
    assert len(expected) == 16
    assert value_fingerprint(value) == expected
    assert value_fingerprint(copy.deepcopy(value)) == expected
    for protocol in (4, 5):  # an older one loses `fold`
        assert value_fingerprint(pickle.loads(pickle.dumps(value, protocol))) == expected
    assert value_fingerprint([value, value]) == value_fingerprint([value, copy.deepcopy(value)])


def exactly(value: Any) -> Any:
    """A text that tells apart all that the strategies make, written without any of our code."""
    if isinstance(value, float):
        return f"f{np.float64(value).tobytes().hex()}"
    if isinstance(value, complex):
        return f"c{np.complex128(value).tobytes().hex()}"
    if isinstance(value, np.longdouble):
        return f"g{value!r}"
    if isinstance(value, np.generic):
        return f"n{value.dtype}{value.tobytes().hex()}"
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return f"o{value.shape}{[exactly(each) for each in value.ravel()]}"
        return f"a{value.dtype.str}{value.shape}{value.tobytes().hex()}"
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"{kind}{[(exactly(key), exactly(each)) for key, each in value.items()]}"
    if isinstance(value, set | frozenset):
        return f"{kind}{sorted(exactly(each) for each in value)}"
    if isinstance(value, list | tuple | collections.deque):
        return f"{kind}{[exactly(each) for each in value]}"
    if isinstance(value, Slotted):
        return f"{kind}{exactly(value.a)}{exactly(value.b)}"
    if isinstance(value, Plain):
        return f"{kind}{exactly(value.a)}"
    return f"{kind}{value!r}"


@given(found=st.lists(values, min_size=2, max_size=12))
def test_different_values_have_different_prints(found):
    told: dict[bytes, str] = {}
    for each in found:
        text = exactly(each)
        assert told.setdefault(value_fingerprint(each), text) == text


DIFFERENT = [
    1, 1.0, True, np.int64(1), np.int32(1), np.float64(1), np.bool_(True), "1", b"1", 1 + 0j,
    [1], (1,), {1}, frozenset({1}), {1: None}, [1.0], [True], [[1]], [], (), {}, set(), None,
    0.0, -0.0, math.nan, float.fromhex("0x1p-1074"), 1 << 80, -(1 << 80), np.array(1), np.array([1]),
    np.array([1], dtype=object), np.array([[1]], dtype=object), np.array(["a"], "T"), range(1),
    np.ma.masked_array([1], [False]), np.ma.masked_array([1], [True]), np.rec.array([(1,)]),
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, bytearray(b"1"), Colour.RED, Colour.BLUE, Plain(1), Plain(1.0),
    Own(1), Slotted(1, 2), Slotted(2, 1), Pair(1, 2), (1, 2), len, math.sin, np.sin, np.cos, np.mean,
    "a".upper, "b".upper, str.upper, str.lower, dict.fromkeys, [1].append, int, float, Plain, math, np,
    Plain(1).method, Plain(2).method, Plain.method, functools.partial(len), functools.partial(len, 1),
    functools.partial(max, key=len), functools.partial(max, key=abs), random.Random(1),
    random.Random(2), np.random.default_rng(1), np.random.default_rng(2), np.random.RandomState(1),
    np.dtype("i4"), np.dtype("f4"), np.float64, collections.OrderedDict(a=1), list[int], ...,
    collections.defaultdict(int, a=1), collections.Counter("a"), types.MappingProxyType({"a": 1}),
    "x" * 100_000, b"x" * 100_000, ml_dtypes.bfloat16(1), np.array([1], ml_dtypes.bfloat16),
    np.void(b"12"), np.datetime64("2020", "s"), np.datetime64("2020", "ms"), np.longdouble(1),
    Path("a"), PurePosixPath("a"), uuid.UUID(int=1), dt.date(2020, 1, 1), dt.datetime(2020, 1, 1),
    np.zeros(1, [("a", "O"), ("b", "i4")]), slice(1), slice(1, None), lambda: 1, lambda: 2,
    Many([1]), iter([1]),
]  # fmt: skip


def test_a_list_of_different_values():
    told: dict[bytes, int] = {}
    for at, value in enumerate(DIFFERENT):
        other = told.setdefault(value_fingerprint(value), at)
        assert other == at or repr(DIFFERENT[other]) == repr(value), (DIFFERENT[other], value)
        assert value_fingerprint(value) == value_fingerprint(value)


MAKE = """
import collections, datetime, enum, functools, math, pathlib, random
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

def scaled(x, by=2):
    return x * by

def values():
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    random_state = np.random.RandomState(3)
    random_state.normal(size=7)
    rng = np.random.default_rng(3)
    rng.normal(size=7)
    x = np.arange(40.0).reshape(20, 2)
    fitted = RandomForestClassifier(5, random_state=0).fit(x, np.arange(20) % 2)
    offset = 3
    yield 1, "a", 2.5, None, b"x", (1, [2]), {"a": {"b": 1}}
    yield set(words), frozenset(words), {frozenset(words[:2]), frozenset(words[2:])}
    yield {(word, n) for word in words for n in range(3)}
    yield np.arange(10), np.array([words, {1}, None], dtype=object), np.float32(1)
    yield random_state, rng, random.Random(5)
    yield LogisticRegression(C=3), fitted
    yield len, np.sin, math.sin, int, scaled, functools.partial(scaled, by=4), str.upper
    yield lambda x: x in {"alpha", "beta", "gamma"}
    yield lambda x: x + offset
    yield collections.OrderedDict(a=1), collections.Counter(words), pathlib.Path("a")
    yield datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), datetime.time(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_same_in_a_fresh_process(seed):
    code = (
        f"import os\nassert os.environ['PYTHONHASHSEED'] == {seed!r}\n{MAKE}\n"
        + textwrap.dedent("""
        from arraychest.memoize.fingerprint import value_fingerprint
        for each in values():
            print(value_fingerprint(each).hex())
        """)
    )
    found = run_python(code, prefix=f"export PYTHONHASHSEED={seed}").stdout
    expected = run_python(code.replace(f"== {seed!r}", "!= ''"), prefix="export PYTHONHASHSEED=77")
    assert found == expected.stdout
    assert len(set(found.split())) == 11


def test_what_is_written_in_another_process_is_found_here():
    found = run_python("""
        import numpy as np
        from arraychest.memoize.fingerprint import value_fingerprint
        print(value_fingerprint((1, {"b", "a"}, np.arange(5), [2.5])).hex())
    """).stdout.strip()
    assert value_fingerprint((1, {"a", "b"}, np.arange(5), [2.5])).hex() == found


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    itself: list[Any] = []
    itself.append(itself)
    around = Plain(None)
    around.a = around
    objects = np.array([None])
    objects[0] = objects
    deep: Any = ()
    for _ in range(200):
        deep = (deep,)
    with (tmp_path / "file").open("w") as file:
        for value in (
            file, threading.Lock(), threading.current_thread(), (n for n in range(3)), object(),
            itself, around, objects, [1, {"a": threading.Lock()}], Plain(file),
            np.frompyfunc(len, 1, 1), sys._getframe(), {}.keys(),
        ):  # fmt: skip
            with pytest.raises(ValueTypeError, match=r"ignore=\[.*key="):
                value_fingerprint(value)
        with pytest.raises(ValueTypeError, match="nested"):
            value_fingerprint(deep)
        lock = threading.Lock()
        with pytest.raises(ValueTypeError, match=r"in the closure of .*, as lock: .*_thread.lock"):
            value_fingerprint(lambda: lock)
        with pytest.raises(ValueTypeError, match=r"_io.TextIOWrapper"):
            value_fingerprint(functools.partial(print, file=file))
    assert value_fingerprint([[1], [1]]) == value_fingerprint([[1]] * 2)


def test_registered_types_by_their_tree():
    registry.register(Celsius, lambda value: value.degrees, Celsius)
    assert value_fingerprint(Celsius(3.0)) == value_fingerprint(Celsius(3.0))
    assert value_fingerprint(Celsius(3.0)) != value_fingerprint(Celsius(4.0))
    assert value_fingerprint(Celsius(3.0)) != value_fingerprint(3.0)


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees
        self.lock = threading.Lock()


def test_estimators():
    x = np.random.default_rng(0).random((60, 3))
    y = (x[:, 0] > 0.5).astype(int)
    forest = RandomForestClassifier(5, random_state=0)
    made = make_pipeline(StandardScaler(), forest)
    expected = value_fingerprint(made)
    assert value_fingerprint(clone(made)) == expected
    assert value_fingerprint(copy.deepcopy(made)) == expected
    other = clone(made).set_params(randomforestclassifier__max_depth=3)
    assert value_fingerprint(other) != expected
    other.set_params(randomforestclassifier__max_depth=None)
    assert value_fingerprint(other) == expected
    fitted = clone(made).fit(x, y)
    assert value_fingerprint(fitted) != expected
    assert value_fingerprint(clone(made).fit(x, y)) == value_fingerprint(fitted)
    assert value_fingerprint(pickle.loads(pickle.dumps(fitted))) == value_fingerprint(fitted)
    assert value_fingerprint(clone(fitted)) == expected
    assert value_fingerprint(LogisticRegression(C=1)) != value_fingerprint(
        LogisticRegression(C=1.0)
    )


def test_generators_of_random_numbers_by_their_state():
    for make in (np.random.default_rng, np.random.RandomState, random.Random):
        rng = make(1)
        before = value_fingerprint(rng)
        assert value_fingerprint(copy.deepcopy(rng)) == value_fingerprint(make(1)) == before
        rng.random()
        assert value_fingerprint(rng) != before


def test_the_order_of_attributes_and_of_memory_does_not_count():
    one, other = Plain(1), Plain(1)
    one.b, one.c = 2, 3
    other.c, other.b = 3, 2
    assert value_fingerprint(one) == value_fingerprint(other)
    masked = np.ma.masked_array(np.arange(6.0).reshape(2, 3), np.eye(2, 3))
    fortran = np.ma.masked_array(np.asfortranarray(masked.data), np.asfortranarray(masked.mask))
    assert value_fingerprint(masked) == value_fingerprint(fortran)
    array = np.arange(6.0).reshape(2, 3)
    assert value_fingerprint(array.T) == value_fingerprint(array.T.copy())


def test_padding_in_a_scalar_does_not_count():
    array = np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    array.view("u1")[1:8] = 9
    assert value_fingerprint(array[0]) == value_fingerprint(array[1])
    numbers = np.zeros(2, "g")
    if np.finfo("g").nmant == 63:
        numbers.view("u1")[10:16] = 9
    assert value_fingerprint(numbers[0]) == value_fingerprint(numbers[1])


def test_the_digest_that_is_given_is_used():
    asked = []

    def digest(array: Any) -> bytes:
        asked.append(array)
        return b"the digest"

    array = np.arange(3)
    found = value_fingerprint([array, {"a": array}], digest)
    assert [id(each) for each in asked] == [id(array)] * 2
    assert found == value_fingerprint([np.arange(9), {"a": np.zeros(1)}], digest)


@pytest.mark.slow
def test_many_lists_are_hashed_piece_by_piece():
    many = [[n, float(n), str(n)] for n in range(200_000)]
    expected = value_fingerprint(many)
    assert value_fingerprint(copy.deepcopy(many)) == expected
    many[-1][0] = -1
    assert value_fingerprint(many) != expected


# --- functions ----------------------------------------------------------------------------------


class Modules:
    """Makes modules of source text, and again of other text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def __call__(self, source: str, name: str = "made") -> types.ModuleType:
        module = types.ModuleType(name)
        file = self._folder / f"{next(self._numbers)}.py"
        text = textwrap.dedent(source)
        file.write_text(text)
        exec(compile(text, str(file), "exec", dont_inherit=True), module.__dict__)
        return module


@pytest.fixture
def module(tmp_path):
    return Modules(tmp_path)


SOURCE = '''
import functools, math
import numpy as np

FACTOR = 2
NAMES = ("a", frozenset({"x", "y", "z"}))
TABLE = {"a": 1}
WEIGHTS = np.arange(3)
LOCK = __import__("threading").Lock()

class Base:
    def power(self):
        return 2

class Model(Base):
    scale = 3
    def fit(self, x):
        return self.inner(x) * self.scale
    @staticmethod
    def inner(x):
        return x + 1
    @property
    def size(self):
        return deep(1)

def deep(x):
    return x * FACTOR

def helper(x, by=1):
    def inner(y):
        return deep(y) + by
    return inner(x)

def unused(x):
    return x

def function(x, a=1, *, b=None):
    """It says what it does."""
    try:
        y = helper(x) + math.sin(x) + TABLE["a"] + WEIGHTS[0]
    except KeyError:
        y = NAMES
    with LOCK:
        return Model().fit(y) if x in {"a", "b", "c"} else [deep(z) for z in range(3)]
'''


def prints(module: Any, source: str, name: str = "function", **options: Any) -> bytes:
    return function_fingerprint(getattr(module(source), name), **options)


CHANGES = [
    ("FACTOR = 2", "FACTOR = 3"),
    ("FACTOR = 2", "FACTOR = 2.0"),
    ('"x", "y", "z"', '"x", "y"'),
    ('TABLE = {"a": 1}', 'TABLE = {"a": True}'),
    ("np.arange(3)", "np.arange(4)"),
    ("return 2", "return 3"),
    ("scale = 3", "scale = 4"),
    ("self.inner(x) * self.scale", "self.inner(x) + self.scale"),
    ("return x + 1", "return x + 2"),
    ("return x * FACTOR", "return x + FACTOR"),
    ("by=1", "by=2"),
    ("deep(y) + by", "deep(y) - by"),
    ("return deep(1)", "return deep(2)"),
    ("a=1, *", "a=2, *"),
    ("b=None", "b=0"),
    ("math.sin(x)", "math.cos(x)"),
    ('{"a", "b", "c"}', '{"a", "b", "d"}'),
    ("range(3)", "range(4)"),
    ("except KeyError:", "except ValueError:"),
    ("import numpy as np", "import numpy as np; np = __import__('arraychest'); np.arange = __import__('numpy').arange; WEIGHTS = 0; math = np"),
    ("helper(x) +", "helper(x=x) +"),
]  # fmt: skip

SAME = [
    ("It says what it does.", "It does something."),
    ("def function", "# a comment\n\n\ndef function"),
    ("    try:\n", "    # why\n\n    try:\n"),
    ("return y", "return y"),
    ("def unused(x):\n    return x", "def unused(x):\n    return 2 * x"),
    ("helper(x) + math", "helper( x )  +  math"),
    ("TABLE = ", "OTHER = 3\nTABLE = "),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_what_a_function_does_counts(module, before, after):
    assert before in SOURCE
    assert prints(module, SOURCE) != prints(module, SOURCE.replace(before, after, 1))


@pytest.mark.parametrize(("before", "after"), SAME)
def test_what_makes_no_difference_does_not(module, before, after):
    assert prints(module, SOURCE) == prints(module, SOURCE.replace(before, after, 1))


@pytest.mark.slow
def test_the_same_function_in_a_fresh_process(module):
    code = (
        "source = "
        + repr(SOURCE)
        + textwrap.dedent("""
        import types
        from arraychest.memoize.fingerprint import function_fingerprint
        module = types.ModuleType("made")
        exec(compile(source, "elsewhere", "exec"), module.__dict__)
        print(function_fingerprint(module.function).hex())
        """)
    )
    for seed in (0, 1):
        found = run_python(code, prefix=f"export PYTHONHASHSEED={seed}").stdout.strip()
        assert found == prints(module, SOURCE).hex()


def test_without_helpers(module):
    expected = prints(module, SOURCE, helpers=False)
    for before, after in (("return x * FACTOR", "return x"), ("scale = 3", "scale = 4")):
        assert prints(module, SOURCE.replace(before, after), helpers=False) == expected
    assert prints(module, SOURCE.replace("range(3)", "range(4)"), helpers=False) != expected


def test_with_a_version(module):
    expected = prints(module, SOURCE, version=1)
    changed = module(SOURCE.replace("range(3)", "range(4)")).function
    assert function_fingerprint(changed, version=1) == expected
    told = {function_fingerprint(changed, version=each) for each in (1, 2, "1", 1.0, None)}
    assert len(told) == 5
    assert expected in told
    assert prints(module, SOURCE, "helper", version=1) != expected
    assert function_fingerprint(module(SOURCE, "elsewhere").function, version=1) != expected


def test_a_docstring_that_is_returned_counts(module):
    one = prints(module, 'def f():\n    "a"\n    return "a"', "f")
    assert one != prints(module, 'def f():\n    "b"\n    return "b"', "f")
    assert prints(module, 'def f():\n    return "a"', "f") != prints(
        module, 'def f():\n    return "b"', "f"
    )


def test_lambdas_on_a_line(module):
    made = module("fs = [lambda x: x + 1, lambda x: x + 2, lambda x: x + 1, lambda x: x + 1.0]")
    found = [function_fingerprint(each) for each in made.fs]
    assert found[0] == found[2]
    assert len(set(found)) == 3


def closure(value: Any) -> Any:
    def function(x: Any) -> Any:
        return x, value

    return function


def test_closures():
    for one, other in itertools.combinations((1, 1.0, [1], [2], "a", np.arange(3)), 2):
        assert value_fingerprint(closure(one)) != value_fingerprint(closure(other))
    assert value_fingerprint(closure([1])) == value_fingerprint(closure([1]))
    assert value_fingerprint(closure(closure(1))) != value_fingerprint(closure(closure(2)))
    held = [1]
    function = closure(held)
    print_ = FunctionPrint(function)
    before = print_.digest()
    held.append(2)
    assert print_.digest() != before
    held.pop()
    assert print_.digest() == before
    function.__closure__[0].cell_contents = [3]
    assert print_.digest() != before
    with pytest.raises(ValueTypeError, match=r"closure of .*, as value"):
        function_fingerprint(closure(threading.Lock()))


def test_a_closure_that_has_itself():
    def down(n: int) -> int:
        return n and down(n - 1)

    def ping(n: int) -> int:
        return n and pong(n - 1)

    def pong(n: int) -> int:
        return n and ping(n - 1)

    assert len({value_fingerprint(each) for each in (down, ping, pong)}) == 3
    assert value_fingerprint(down) == value_fingerprint(down)


def test_recursion_and_circles(module):
    source = """
        REGISTRY = {}
        def even(n):
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1) and REGISTRY
        REGISTRY["even"] = even
        """
    found = prints(module, source, "even"), prints(module, source, "odd")
    assert found[0] != found[1]
    changed = source.replace("n != 0", "n > 0")
    assert prints(module, changed, "even") != found[0]
    assert prints(module, source, "even") == found[0]


def test_what_is_rebound_is_noticed(module):
    made = module(SOURCE)
    print_ = FunctionPrint(made.function)
    seen = {print_.digest()}

    def noticed() -> None:
        found = print_.digest()
        assert found not in seen
        assert found == function_fingerprint(made.function)
        seen.add(found)

    made.FACTOR = 5
    noticed()
    made.deep = lambda x: x
    noticed()
    made.TABLE["b"] = 3
    noticed()
    made.WEIGHTS[0] = 9
    noticed()
    made.Model.scale = 8
    noticed()
    made.Model.inner = staticmethod(lambda x: x)
    noticed()
    made.helper.__defaults__ = (7,)
    noticed()
    made.function.__kwdefaults__["b"] = 7
    noticed()
    made.function.__defaults__ = (7,)
    noticed()
    made.function.__code__ = made.helper.__code__.replace(co_freevars=())
    assert print_.digest() not in seen


def test_what_is_given_back_is_the_same_again(module):
    made = module(SOURCE)
    print_ = FunctionPrint(made.function)
    before = print_.digest()
    made.FACTOR = 3
    assert print_.digest() != before
    made.FACTOR = 2
    assert print_.digest() == before
    del made.FACTOR
    assert print_.digest() != before


def test_a_module_that_is_edited_and_loaded_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "edited_by_test.py"
    file.write_text("def f(x):\n    return x\n")
    importlib.invalidate_caches()
    module = importlib.import_module("edited_by_test")
    before = function_fingerprint(module.f)
    file.write_text("def f(x):\n    return x + 1\n")
    # What runs is what was imported.
    assert function_fingerprint(module.f) == before
    importlib.reload(module)
    assert function_fingerprint(module.f) != before
    file.write_text("\n\ndef f(x):\n    return x\n    # as before\n")
    importlib.reload(module)
    assert function_fingerprint(module.f) == before
    del sys.modules["edited_by_test"]


def test_decorated_functions(module):
    source = """
        import functools
        def times(n):
            def decorate(function):
                @functools.wraps(function)
                def wrapper(*args):
                    return n * function(*args)
                return wrapper
            return decorate
        @times(2)
        def f(x):
            return x + 1
        @functools.lru_cache
        def cached(x):
            return f(x)
        def g(x):
            return f(x) + cached(x)
        """
    for name in ("f", "g", "cached"):
        expected = prints(module, source, name)
        for before, after in (("times(2)", "times(3)"), ("x + 1", "x + 2"), ("n *", "n +")):
            assert prints(module, source.replace(before, after), name) != expected, before
        assert prints(module, source, name) == expected


def test_methods_partials_classes_and_other_callables(module):
    source = """
        import functools
        class C:
            def __init__(self, a):
                self.a = a
            def m(self, x):
                return self.a * x
            def __call__(self, x):
                return self.m(x)
        def f(x, y):
            return x + y
        p, q, r = functools.partial(f, 1), functools.partial(f, 2), functools.partial(f, y=1)
        a, b = C(1), C(2)
        ma, mb = a.m, b.m
        """
    names = ["p", "q", "r", "a", "b", "ma", "mb", "C", "f"]
    made = module(source)
    found = [function_fingerprint(getattr(made, name)) for name in names]
    assert len(set(found)) == len(names)
    again = module(source)
    assert found == [function_fingerprint(getattr(again, name)) for name in names]
    changed = module(source.replace("x + y", "x - y").replace("self.a * x", "self.a + x"))
    for name, before in zip(names, found, strict=True):
        assert function_fingerprint(getattr(changed, name)) != before, name
    print_ = FunctionPrint(made.ma)
    assert print_.digest() == found[5]
    made.a.a = 5
    assert print_.digest() != found[5]
    for each in (len, np.sin, np.mean, math.sin, str.upper):
        assert function_fingerprint(each) == function_fingerprint(each)
    assert function_fingerprint(np.sin) != function_fingerprint(np.cos)


def test_what_makes_generators_is_refused():
    def generates():
        yield 1

    async def generates_later():
        yield 1

    async def coroutine():
        return 1

    for each in (generates, generates_later, functools.partial(generates)):
        with pytest.raises(ValueTypeError, match="generator"):
            FunctionPrint(each)
    assert len(FunctionPrint(coroutine).digest()) == 16
    # As values they are functions like others.
    assert value_fingerprint(generates) != value_fingerprint(generates_later)


def test_defaults():
    def f(x, file=sys.stdout, a=[1]):  # noqa: B006
        return x

    print_ = FunctionPrint(f)
    before = print_.digest()
    f.__defaults__[1].append(2)
    assert print_.digest() != before
    without = FunctionPrint(f, defaults=False)
    before = without.digest()
    f.__defaults__[1].append(2)
    assert without.digest() == before
    with pytest.raises(ValueTypeError, match="ignore"):
        value_fingerprint(f)


def test_what_is_unlikely_to_matter_is_told_by_its_kind(module):
    source = """
        import io, logging, threading
        FILE, LOG, LOCK, THING = io.BytesIO(b"1"), logging.getLogger("a"), threading.Lock(), object()
        LIST = [LOCK]
        def f(x):
            return FILE, LOG, LOCK, THING, LIST, undefined
        """
    expected = prints(module, source, "f")
    assert prints(module, source, "f") == expected
    assert prints(module, source.replace('("a")', '("b")'), "f") == expected
    assert prints(module, source.replace("object()", "range"), "f") != expected
    # What has content counts, also beside what has none.
    for before, after in (('b"1"', 'b"2"'), ("[LOCK]", "[LOCK, 1]")):
        assert prints(module, source.replace(before, after), "f") != expected


def test_a_class_is_what_it_does(module):
    source = """
        class Base:
            def above(self):
                return 1
        class Kind(Base):
            factor = 2
            def __init__(self, n):
                self.n = n
            def method(self):
                return self.above() + self.n * self.factor
        def made():
            class Local:
                def method(self):
                    return 1
            return Local
        """
    changes = [("factor = 2", "factor = 3"), ("self.n * ", "self.n + "), ("return 1", "return 2")]
    made = module(source)
    expected = value_fingerprint([made.Kind(1)])
    assert value_fingerprint([module(source).Kind(1)]) == expected
    for before, after in changes:
        changed = module(source.replace(before, after))
        assert value_fingerprint([changed.Kind(1)]) != expected, before
        assert value_fingerprint([changed.Kind(1)], classes=False) == value_fingerprint(
            [made.Kind(1)], classes=False
        )
    # The same class, changed.
    made.Kind.method = lambda self: 1
    told = {expected, value_fingerprint([made.Kind(1)])}
    made.Base.above = lambda self: 7
    told.add(value_fingerprint([made.Kind(1)]))
    made.Kind.more = lambda self: 1
    told.add(value_fingerprint([made.Kind(1)]))
    assert len(told) == 4
    one, same = made.made(), module(source).made()
    other = module(source.replace("return 1", "return 2", 2)).made()
    assert value_fingerprint(one()) == value_fingerprint(same()) != value_fingerprint(other())


def test_many_objects_of_a_class_look_at_it_once():
    few, many = ([Slotted(n, n) for n in range(count)] for count in (10, 2010))
    value_fingerprint(few)
    # Objects of a class that is not the user's.
    theirs = [fractions.Fraction(n, 7) for n in range(2000)]
    own = min(timeit.repeat(lambda: value_fingerprint(many), number=1, repeat=5))
    other = min(timeit.repeat(lambda: value_fingerprint(theirs), number=1, repeat=5))
    assert own < 5 * other


@pytest.mark.slow
def test_threads():
    def f(x):
        return closure(x), DIFFERENT[0]

    print_ = FunctionPrint(f)
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(print_.digest() for _ in range(200)))
        for _ in range(6)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 1200
    assert len(set(found)) == 1


def test_a_second_look_is_cheap(module):
    print_ = FunctionPrint(
        module(SOURCE.replace("TABLE[", "{}[").replace("WEIGHTS[", "[0][")).function
    )
    print_.digest()
    seconds = min(timeit.repeat(print_.digest, number=200, repeat=20)) / 200
    assert seconds < 2e-5, seconds  # 1.5 us on an idle machine
