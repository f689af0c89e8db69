"""What a memoised function reads: another content gives another key, the same one the same key.

A script with a constant of every kind is run three times, at once: twice as it is, each time with
another hash seed, and once with another value in every constant.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import IMPORT_ROOT

pytest.importorskip("pandas")
pytest.importorskip("xarray")
pytest.importorskip("scipy.sparse")
pytest.importorskip("sklearn")

CONFIG = """
import types
X = VALUE
NESTED = types.SimpleNamespace(n=[VALUE])
def scaled(x):
    return x * X
class Settings:
    n = VALUE
class Plain:
    def go(self):
        return VALUE
"""

# What is read, and how; each name is a constant that has VALUE in it somewhere.
CONSTANTS = """
import array, collections, dataclasses, datetime as dt, decimal, enum, fractions, functools
import itertools, json, operator, pathlib, re, string, struct, sys, types, typing, uuid, warnings
import zoneinfo
import numpy as np, pandas as pd, scipy.sparse, scipy.interpolate, xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
import arraychest
import config
import package.deep
from config import scaled, Plain as Imported
from package import inside

class Colour(enum.Enum):
    RED = VALUE
    BLUE = "b"
class Number(enum.IntEnum):
    ONE = VALUE
class Rights(enum.Flag):
    READ = VALUE
    WRITE = 4
@dataclasses.dataclass
class Data:
    n: int
    more: list = dataclasses.field(default_factory=list)
@dataclasses.dataclass(frozen=True)
class Frozen:
    a: np.ndarray
@dataclasses.dataclass(slots=True)
class DataSlots:
    n: int
@dataclasses.dataclass
class Default:
    n: int = VALUE
Pair = collections.namedtuple("Pair", "a b")
class Typed(typing.NamedTuple):
    n: int
class TypedDefault(typing.NamedTuple):
    n: int = VALUE
class Slots:
    __slots__ = ("n",)
    def __init__(self, n):
        self.n = n
class Plain:
    def __init__(self, n):
        self.n = n
    @functools.cached_property
    def lazily(self):
        return self.n + 1
class SubDict(dict):
    pass
class SubArray(np.ndarray):
    pass
class Config:
    X = VALUE
    TABLE = {"n": [VALUE]}
    class Inner:
        Y = VALUE
class Below(Config):
    pass
class Meta(type):
    def go(cls):
        return VALUE
class OfMeta(metaclass=Meta):
    pass
class Does:
    def go(self):
        return self.inner()
    def inner(self):
        return VALUE
class Calls:
    def __call__(self, x):
        return x + VALUE
class Parts:
    @property
    def prop(self):
        return VALUE
class Static:
    @staticmethod
    def static():
        return VALUE
class OfClass:
    @classmethod
    def made(cls):
        return VALUE
class Lazy:
    @functools.cached_property
    def lazy(self):
        return VALUE
class Described:
    class Descriptor:
        def __get__(self, instance, owner=None):
            return VALUE
    x = Descriptor()
class Generic(typing.Generic[typing.TypeVar("T")]):
    def go(self):
        return VALUE
def times(n):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args):
            return n * function(*args)
        return wrapper
    return decorate
class Decorator:
    def __init__(self, function, n):
        functools.update_wrapper(self, function)
        self.function, self.n = function, n
    def __call__(self, *args):
        return self.n * self.function(*args)
def three(x):
    return 3 * x
def helper(x):
    return deeper(x)
def deeper(x, by=VALUE):
    return x * by
@times(VALUE)
def decorated(x):
    return x
@functools.lru_cache
def remembered(x):
    return x + VALUE
@functools.singledispatch
def dispatched(x):
    return x + VALUE
def over(value):
    def inner(x):
        return x, value
    return inner
def local_class():
    class Local:
        def go(self):
            return VALUE
    return Local()
def made(rng):
    rng.random(VALUE)
    return rng
warnings.simplefilter("ignore", DeprecationWarning)

KINDS = {
    "int": VALUE, "float": float(VALUE), "bool": VALUE == 1, "str": str(VALUE), "bytes": b"%d" % VALUE,
    "complex": 1j * VALUE, "tuple": (1, (VALUE,)), "frozenset": frozenset({"a", "b", VALUE}),
    "set": {"a", 1.5, None, (VALUE,), VALUE}, "list": [VALUE], "dict": {"a": {"b": [VALUE]}},
    "Enum": Colour.RED, "IntEnum": Number.ONE, "Flag": Rights.READ | Rights.WRITE,
    "dataclass": Data(VALUE), "frozen dataclass": Frozen(np.array([VALUE])),
    "dataclass with slots": DataSlots(VALUE), "default of a dataclass": Default(),
    "namedtuple": Pair(1, VALUE), "NamedTuple": Typed(VALUE), "default of a NamedTuple": TypedDefault(),
    "Decimal": decimal.Decimal(VALUE), "Fraction": fractions.Fraction(VALUE, 7),
    "pattern": re.compile(f"a{VALUE}"), "flags of a pattern": re.compile("a", 2 if VALUE == 1 else 8),
    "DataFrame": pd.DataFrame({"n": [VALUE]}), "Series": pd.Series([VALUE], name="n"),
    "name of a Series": pd.Series([1], name=str(VALUE)), "Index": pd.Index([VALUE, "a"]),
    "Timestamp": pd.Timestamp(VALUE, unit="D"), "Categorical": pd.Categorical([str(VALUE)]),
    "MultiIndex": pd.MultiIndex.from_tuples([(1, VALUE)]), "Interval": pd.Interval(0, VALUE),
    "DataArray": xr.DataArray([VALUE], dims="x"), "Dataset": xr.Dataset({"a": ("x", [VALUE])}),
    "attribute of a DataArray": xr.DataArray([1], attrs={"unit": str(VALUE)}),
    "sparse": scipy.sparse.csr_matrix([[0, VALUE]]), "sparse array": scipy.sparse.coo_array([[VALUE]]),
    "masked": np.ma.array([VALUE, 0], mask=[False, True]), "mask": np.ma.array([1, 2], mask=[VALUE == 1, 0]),
    "OrderedDict": collections.OrderedDict(n=VALUE), "Counter": collections.Counter(a=VALUE),
    "defaultdict": collections.defaultdict(list, n=VALUE), "deque": collections.deque([VALUE]),
    "default_factory": collections.defaultdict(int if VALUE == 1 else float),
    "maxlen": collections.deque([], VALUE), "ChainMap": collections.ChainMap({"n": VALUE}),
    "UserDict": collections.UserDict(n=VALUE), "subclass of dict": SubDict(n=VALUE),
    "SimpleNamespace": types.SimpleNamespace(n=VALUE), "MappingProxyType": types.MappingProxyType({"n": VALUE}),
    "vectorize": np.vectorize(lambda x: x + VALUE), "excluded": np.vectorize(three, excluded=[VALUE]),
    "partial": functools.partial(three, VALUE), "partial by keyword": functools.partial(three, x=VALUE),
    "methodcaller": operator.methodcaller("go", VALUE), "itemgetter": operator.itemgetter(VALUE),
    "attrgetter": operator.attrgetter(f"a{VALUE}"), "range": range(VALUE), "slice": slice(0, VALUE),
    "bytearray": bytearray(b"%d" % VALUE), "memoryview": memoryview(b"%d" % VALUE),
    "array.array": array.array("i", [VALUE]), "array": np.array([VALUE]), "0-d array": np.array(VALUE),
    "array of objects": np.array([None, {"n": VALUE}], dtype=object), "dtype": np.dtype(f"S{VALUE}"),
    "structured dtype": np.dtype([("a", "i4", (VALUE,))]), "NumPy scalar": np.float32(VALUE),
    "structured array": np.array([(VALUE, 1)], "i4,f4"), "record": np.rec.array([(VALUE,)]),
    "subclass of ndarray": np.array([VALUE]).view(SubArray), "poly1d": np.poly1d([VALUE]),
    "Polynomial": np.polynomial.Polynomial([VALUE, 1]), "StringDType": np.array([str(VALUE)], "T"),
    "Generator": made(np.random.default_rng(0)), "RandomState": np.random.RandomState(VALUE),
    "seed of Generator": np.random.default_rng(VALUE), "bit generator": np.random.PCG64(VALUE),
    "date": dt.date(2020, 1, VALUE), "datetime": dt.datetime(2020, 1, VALUE), "time": dt.time(VALUE),
    "timedelta": dt.timedelta(VALUE), "datetime64": np.datetime64(VALUE, "s"),
    "unit of datetime64": np.datetime64(5, "s" if VALUE == 1 else "m"),
    "timezone": dt.timezone(dt.timedelta(hours=VALUE)), "ZoneInfo": zoneinfo.ZoneInfo("Etc/GMT+%d" % VALUE),
    "aware datetime": dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=VALUE))),
    "path": pathlib.Path(f"a{VALUE}"), "UUID": uuid.UUID(int=VALUE), "Struct": struct.Struct(f"{VALUE}i").format,
    "Template": string.Template(f"$a{VALUE}"), "exception": ValueError(VALUE), "slots": Slots(VALUE),
    "object": Plain(VALUE), "object in containers": [{"a": (Plain([VALUE]),)}],
    "bound method": Plain(VALUE).__init__, "builtin method": [VALUE].count,
    "estimator": LogisticRegression(C=VALUE), "pipeline": make_pipeline(StandardScaler(), LogisticRegression(C=VALUE)),
    "lambda": lambda x: x + VALUE, "lambda in a list": [lambda x: x + VALUE], "closure": over(VALUE),
    "callable in a dict": {"f": over({"n": VALUE})}, "method in a dict": {"f": Plain(VALUE).__init__},
    "builtin in a dict": {"f": len if VALUE == 1 else sum}, "class in a dict": {"f": Plain if VALUE == 1 else Slots},
    "ufunc in a dict": {"f": np.sin if VALUE == 1 else np.cos}, "interpolation": scipy.interpolate.interp1d([0, 1], [0, VALUE]),
    "decorated": decorated, "decorator with state": Decorator(three, VALUE), "lru_cache": remembered,
    "lru_cache in a list": [remembered], "singledispatch": dispatched, "cached function": arraychest.Chest().cache(lambda: VALUE),
    "cached functions in a list": [arraychest.Chest().cache(lambda: VALUE)], "object that does": Does(),
    "object that is called": Calls(), "property": Parts(), "staticmethod": Static(), "classmethod": OfClass(),
    "cached_property": Lazy(), "class": Config, "subclass": Below, "descriptor": Described(),
    "metaclass": OfMeta, "generic class": Generic(), "of a generic class": Generic[int](),
    "object of another module": Imported(), "function of another module": scaled, "module": config,
    "object of a local class": local_class(), "repeat": itertools.repeat(VALUE) if sys.version_info < (3, 14) else VALUE,
}
for number, value in enumerate(KINDS.values()):
    globals()[f"CONSTANT_{number}"] = value
chest = arraychest.Chest()
FUNCTIONS = {}
for number, name in enumerate(KINDS):
    space = globals()
    exec(f"def reads(): return CONSTANT_{number}", space)
    FUNCTIONS[f"reads {name}"] = space["reads"]
    exec(f"def around(x=1): return reads_{number}(x)\\ndef reads_{number}(x): return CONSTANT_{number}", space)
    FUNCTIONS[f"helper reads {name}"] = space["around"]

def of_module():
    return config.X
def deep_in_module():
    return config.NESTED.n
def calls_of_module(x=1):
    return config.scaled(x)
def class_of_module():
    return config.Settings.n
def any_of_module():
    return getattr(config, "X")
def of_package():
    return package.deep.DEEP
def from_package():
    return inside()
def imports_itself():
    import config as other
    return other.X
def imports_from():
    from config import X
    return X
def imports_late():
    from late import LATE
    return LATE
def of_class():
    return Config.X
def deep_in_class():
    return Config.Inner.Y, Below.TABLE
def calls_helpers(x=1):
    return helper(x)
def has_default(x=1, by={"n": VALUE}):
    return x, by
def in_comprehension():
    return [CONSTANT_1 for _ in range(3)]
def in_inner_function():
    def inner():
        return CONSTANT_1
    return inner()
def of_static():
    return Static.static()
def of_made():
    return OfClass.made()
FUNCTIONS |= {
    each.__name__: each
    for each in (
        of_module, deep_in_module, calls_of_module, class_of_module, any_of_module, of_package,
        from_package, imports_itself, imports_from, imports_late, of_class, deep_in_class, calls_helpers, has_default,
        in_comprehension, in_inner_function, of_static, of_made,
    )
}
FUNCTIONS["closure itself"] = functools.partial(over({"n": VALUE}), 1)
FUNCTIONS["decorated itself"] = functools.partial(decorated, 1)
FUNCTIONS["partial itself"] = functools.partial(three, VALUE)

found = {}
for name, function in FUNCTIONS.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cached = chest.cache(function)
        found[name] = [cached.key(), [str(each.message) for each in caught]]
        assert cached.key() == found[name][0], name
# As an argument, alone and in a list.
takes = chest.cache(lambda x: x)
for name, value in KINDS.items():
    found[f"given {name}"] = [takes.key([value]), []]
    # What was used meanwhile is the same still.
    assert takes.key([value]) == found[f"given {name}"][0], name
print(json.dumps(found))
"""

FILES = {
    "script.py": CONSTANTS,
    "config.py": CONFIG,
    "late.py": "LATE = VALUE\n",
    "package/__init__.py": "from .deep import inside\n",
    "package/deep.py": "DEEP = [VALUE]\ndef inside():\n    from . import deep\n    return deep.DEEP, over()\ndef over():\n    return VALUE\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three runs of the script tell: the same twice, and with other constants."""
    started = []
    # Each in a folder of its own, at another time and place; the key says nothing of that.
    for number, (value, seed) in enumerate([("1", "1"), ("1", "2"), ("2", "1")]):
        folder = tmp_path_factory.mktemp(f"run{number}")
        for name, text in FILES.items():
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).write_text(text.replace("VALUE", value))
        environment = {
            **os.environ, "PYTHONPATH": IMPORT_ROOT, "PYTHONHASHSEED": seed, "PYTHONWARNINGS": "ignore"
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, "-B", "script.py"], cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    found = []
    for process in started:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        found.append(json.loads(out))
    return found


@pytest.mark.slow
def test_the_same_constant_gives_the_same_key_in_another_process(runs):
    one, same, _ = runs
    assert len(one) > 300
    assert [name for name in one if one[name][0] != same[name][0]] == []


@pytest.mark.slow
def test_another_constant_gives_another_key(runs):
    one, _, other = runs
    assert one.keys() == other.keys()
    assert [name for name in one if one[name][0] == other[name][0]] == []


def test_no_warning_is_given_for_what_can_be_told(runs):
    assert {name: said for name, (_, said) in runs[0].items() if said} == {}
