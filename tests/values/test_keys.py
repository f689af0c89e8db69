"""Keys: equal where a dict says so, different where it does not, and of the same type again."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import fractions
import itertools
import os
import pathlib
import sys
import typing
import uuid
import warnings
import zoneinfo
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import arraychest
from arraychest.errors import AbsentKeyError, KeyTypeError
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.values.file_stems import file_stem
from arraychest.values.keys import MAX_DEPTH, decode_key, encode_key, group_of
from tests.support import named

NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
UTC = dt.UTC

# Clustered values, so that equal keys of different types are met often.
_numbers = st.sampled_from([0, 1, -1, 2, 3, 255, 256, 2**31, 2**53, 2**53 + 1, 2**63, 10**30])
_floats = st.sampled_from([0.0, -0.0, 0.5, 0.1, -1.5, 1e300, 2.0**53, float("inf"), -float("inf")])
_texts = st.sampled_from(
    ["", "a", "A", "a\0", "\0", "1", "a/b", "..", "../..", "/", "ß", "\ud800", "\U0001f600", "a\\b"]
)


@st.composite
def numpy_scalars(draw):
    number = draw(
        st.one_of(
            st.integers(-128, 127),
            _numbers.filter(lambda n: abs(n) < 2**63),
            _floats,
            st.booleans(),
        )
    )
    char = draw(st.sampled_from("?bBhHiIlLqQefdgFDG"))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return np.dtype(char).type(number)
        except (OverflowError, ValueError):
            return np.dtype(char).type(1)


@st.composite
def numpy_times(draw):
    kind = draw(st.sampled_from("mM"))
    units = ["W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "as"]
    unit = draw(st.sampled_from(units if kind == "m" else ["Y", "M", *units]))
    count = draw(st.sampled_from([0, 1, 12, 24, 60, 365, 7, -1, 1000, 86_400]))
    return (np.timedelta64 if kind == "m" else np.datetime64)(count, unit)


_paths = st.builds(
    lambda kind, text: kind(text),
    st.sampled_from([pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath]),
    _texts.filter(lambda text: "\0" not in text),
)
_zones = st.sampled_from(
    [
        None,
        UTC,
        NEW_YORK,
        zoneinfo.ZoneInfo("Europe/London"),
        zoneinfo.ZoneInfo("UTC"),
        dt.timezone(dt.timedelta(hours=-5)),
        dt.timezone(dt.timedelta(hours=-5), "EST"),
        dt.timezone(dt.timedelta(seconds=1, microseconds=3)),
    ]
)
# Around both changes of New York's clocks, and far from them.
_datetimes = st.builds(
    lambda base, minutes, zone, fold: (base + dt.timedelta(minutes=minutes)).replace(
        tzinfo=zone, fold=fold
    ),
    st.sampled_from(
        [dt.datetime(2021, 3, 14, 2), dt.datetime(2021, 11, 7, 1), dt.datetime(2020, 1, 1)]
    ),
    st.sampled_from([0, 30, 60, 90, -60, 240, 270, 300, 330, 360, 390, 420]),
    _zones,
    st.integers(0, 1),
)

atoms = st.one_of(
    st.none(),
    st.booleans(),
    _numbers,
    st.integers(),
    _floats,
    st.floats(allow_nan=False),
    st.builds(complex, _floats, st.sampled_from([0.0, -0.0, 1.0])),
    st.complex_numbers(allow_nan=False),
    _texts,
    st.text(st.characters(exclude_categories=()), max_size=5),
    _texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=5),
    numpy_scalars(),
    numpy_times(),
    _texts.map(np.str_),
    _texts.map(lambda text: np.bytes_(text.encode("utf-8", "surrogatepass"))),
    st.dates(),
    st.just(dt.date(2020, 1, 1)),
    _datetimes,
    st.datetimes(timezones=st.none() | st.timezones()),
    st.builds(dt.timedelta, days=st.sampled_from([0, 1, 7, -1, 365]), seconds=st.integers(0, 2)),
    st.timedeltas(),
    st.uuids(),
    st.just(uuid.UUID(int=1)),
    _paths,
)
keys = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.lists(inner, max_size=3).map(frozenset)
    ),
    max_leaves=6,
)


def same_in_a_dict(one: object, other: object) -> bool:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return other in {one: None}
        except OverflowError:
            # Two of NumPy's times, too far from each other for one unit: a dict raises, too.
            reject()


def is_transitive(many: list[object]) -> bool:
    """Whether no key equals two that differ, of which a dict finds one or the other."""
    return all(
        same_in_a_dict(one, third)
        for one, other, third in itertools.permutations(many, 3)
        if same_in_a_dict(one, other) and same_in_a_dict(other, third)
    )


class OneEntry:
    """A catalog with the row of one key."""

    def __init__(self, key: object) -> None:
        code = encode_key(key)
        self.code = code.canonical
        self.row = (code.canonical, 1, code.exact, "", 1, None, 0, 0, None)

    def find(self, code: bytes) -> object:
        return self.row if code == self.code else None

    def find_between(self, first: bytes, last: bytes) -> list[object]:
        return [self.row] if first <= self.code < last else []


def finds(stored: object, asked: object) -> bool:
    """Whether a reopened chest with the first key finds it when it is asked for the second."""
    index = Index(Pool(), returnable=True)
    index.attach(OneEntry(stored), empty=False)
    return index.find(asked) is not None


def check_pair(one: object, other: object) -> None:
    equal = same_in_a_dict(one, other)
    assert finds(one, other) == finds(other, one) == equal, (one, other)
    assert finds(one, one)
    assert finds(other, other)
    if equal:
        assert group_of(one) == group_of(other)
    else:
        assert encode_key(one).canonical != encode_key(other).canonical
        assert encode_key(one) != encode_key(other)


class TestEquality:
    @given(keys, keys)
    @example(1, True)
    @example(1, "1")
    @example("a/b", ("a", "b"))
    @example((1, 2), (1.0, np.int64(2)))
    @example(frozenset([1, True]), frozenset([1.0]))
    @example(("a", ("b",)), (("a", "b"),))
    @example(("",), ())
    @example((b"a", b""), (b"a",))
    @example(0.0, -0.0)
    @example(10**30, 1e30)
    @example(2**53 + 1, float(2**53))
    @example(np.float32(0.1), 0.1)
    @example(np.longdouble("0.1"), 0.1)
    @example("a", b"a")
    @example("a", np.str_("a"))
    @example("a", np.str_("a\0"))
    @example("a\0", np.str_("a\0"))
    @example(b"a", np.bytes_(b"a\0"))
    @example(dt.date(2020, 1, 1), dt.datetime(2020, 1, 1))
    @example(dt.timedelta(1), np.timedelta64(86_400 * 10**9, "ns"))
    @example(dt.timedelta(7), np.timedelta64(1, "W"))
    @example(dt.timedelta(1), np.timedelta64(2**62, "W"))
    @example(dt.datetime(2020, 1, 1), np.datetime64("2020-01-01T00", "h"))
    @example(dt.datetime(2020, 1, 1), np.datetime64("2020-01-01T00", "ns"))
    @example(dt.datetime(2020, 1, 1), np.datetime64("2020-01-01", "D"))
    @example(dt.datetime(2020, 1, 1, fold=1), np.datetime64("2020-01-01T00", "us"))
    @example(dt.date(2020, 1, 1), np.datetime64("2020-01-01", "D"))
    @example(np.datetime64("2020-01-01T00", "h"), np.datetime64("2020-01-01T00", "ns"))
    @example(np.datetime64(1, "25s"), dt.datetime(1970, 1, 1, 0, 0, 25))
    @example(np.datetime64(20_000, "Y"), np.datetime64("21970-01-01T00", "h"))
    @example((1, np.datetime64("2020", "Y")), (True, np.datetime64("2020-01-01T00", "s")))
    @example((1, np.datetime64("2020", "Y")), (True, dt.datetime(2020, 1, 1)))
    @example(
        frozenset([np.datetime64("2020", "Y"), dt.datetime(2020, 1, 1)]),
        frozenset([np.datetime64("2020-01-01T00", "ns"), dt.datetime(2020, 1, 1)]),
    )
    @example(np.timedelta64(1, "D"), np.timedelta64(24, "h"))
    @example(np.datetime64("2020", "Y"), np.datetime64("2020-01-01", "s"))
    @example(pathlib.Path("a"), pathlib.PurePosixPath("a"))
    @example(pathlib.PureWindowsPath("A"), pathlib.PureWindowsPath("a"))
    @example(pathlib.Path("a"), "a")
    @example(pathlib.Path("a/b"), pathlib.Path("a//b"))
    def test_of_two_keys_is_what_a_dict_says(self, one, other):
        check_pair(one, other)

    @given(atoms)
    def test_holds_among_every_numpy_dtype_that_can_hold_a_number(self, atom):
        if not isinstance(atom, int | float | complex | np.number):
            return
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for char in "bBhHiIqQefdgFDG":
                try:
                    cast = np.dtype(char).type(atom)
                except (OverflowError, ValueError, TypeError):
                    continue
                if cast == cast:
                    check_pair(atom, cast)

    @given(_datetimes, _datetimes)
    @example(  # both name one instant; the first lies in the gap when clocks go forward
        dt.datetime(2021, 3, 14, 2, 30, tzinfo=NEW_YORK),
        dt.datetime(2021, 3, 14, 3, 30, tzinfo=NEW_YORK),
    )
    @example(  # an ambiguous time equals none in another zone (PEP 495)
        dt.datetime(2021, 11, 7, 1, 30, tzinfo=NEW_YORK),
        dt.datetime(2021, 11, 7, 5, 30, tzinfo=UTC),
    )
    @example(
        dt.datetime(2021, 11, 7, 1, 30, tzinfo=NEW_YORK),
        dt.datetime(2021, 11, 7, 1, 30, fold=1, tzinfo=NEW_YORK),
    )
    @example(
        dt.datetime(2021, 1, 1, 0, tzinfo=NEW_YORK),
        dt.datetime(2021, 1, 1, 5, tzinfo=UTC),
    )
    @example(
        dt.datetime(2021, 1, 1, 5, tzinfo=zoneinfo.ZoneInfo("UTC")),
        dt.datetime(2021, 1, 1, 5, tzinfo=UTC),
    )
    @example(dt.datetime(2021, 1, 1, 5), dt.datetime(2021, 1, 1, 5, tzinfo=UTC))
    def test_of_datetimes_is_what_a_dict_says(self, one, other):
        check_pair(one, other)

    @given(st.lists(keys, max_size=12).filter(is_transitive))
    def test_a_chest_has_as_many_keys_as_a_dict(self, many):
        expected: dict[object, int] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with arraychest.Chest(available_memory=0) as chest:
                for at, key in enumerate(many):
                    expected[key] = at
                    chest[key] = np.array(at)
                assert list(chest) == list(expected)
                assert [int(chest[key]) for key in expected] == list(expected.values())
                for key in many:
                    assert key in chest


class TestRoundTrip:
    @given(keys)
    @example(-0.0)
    @example(True)
    @example(np.bool_(True))
    @example(np.longdouble("0.1"))
    @example(np.clongdouble(1 + 2j) / 3)
    @example(np.array([1], ">i4")[0])
    @example(np.longlong(1))
    @example(np.ulonglong(1))
    @example(np.datetime64("2020-01-01", "25s"))
    @example(10**5000)
    @example(-(10**5000))
    @example(dt.datetime(2021, 11, 7, 1, 30, fold=1))
    @example(dt.datetime(2021, 11, 7, 1, 30, fold=1, tzinfo=NEW_YORK))
    @example(dt.datetime(2021, 3, 14, 2, 30, fold=1, tzinfo=NEW_YORK))
    @example(dt.datetime(2021, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "a b")))
    @example(dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=14))))
    @example(dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-14))))
    @example(dt.timedelta.max)
    @example(dt.timedelta.min)
    @example(np.str_("a\0"))
    @example(np.bytes_(b"a\0"))
    @example(np.str_(""))
    @example(np.bytes_(b""))
    def test_gives_an_equal_key_of_the_same_type(self, key):
        found = decode_key(*encode_key(key))
        assert_same_key(found, key)
        assert encode_key(found) == encode_key(key)

    @given(st.lists(keys, max_size=12).filter(is_transitive))
    def test_types_come_back_after_reopening(self, many):
        expected: dict[object, int] = {}
        folder = os.path.join(os.environ["TMPDIR"], "round.trip")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with arraychest.Chest(path=folder, mode="w") as chest:
                for key in many:
                    expected[key] = len(expected)
                    chest[key] = np.array(expected[key])
            for mode in ("r", "a"):
                with arraychest.open(folder, mode) as chest:
                    found = list(chest)
                    assert len(found) == len(expected)
                    for one, other in zip(found, expected, strict=True):
                        assert_same_key(one, other)
                    for key in expected:
                        assert int(chest[key]) == expected[key]

    def test_the_first_of_equal_keys_is_the_one_that_stays(self, path):
        with arraychest.Chest(path=path) as chest:
            for key in (True, 2.0, np.int8(3), (1, True)):
                chest[key] = np.zeros(2)
            chest.flush()
            for key in (1, 2, 3.0, (1.0, 1)):
                chest[key] = np.ones(2)
        with arraychest.open(path) as chest:
            assert [repr(key) for key in chest] == ["True", "2.0", "np.int8(3)", "(1, True)"]
            chest[1] = np.ones(3)
            del chest[2]
            chest[2] = np.ones(4)
        with arraychest.open(path) as chest:
            assert [repr(key) for key in chest] == ["True", "np.int8(3)", "(1, True)", "2"]


def assert_same_key(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    assert same_in_a_dict(found, expected)
    if isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same_key(one, other)
    elif isinstance(expected, frozenset):
        assert sorted(map(repr, map(type, found))) == sorted(map(repr, map(type, expected)))
    elif isinstance(expected, np.generic):
        assert found.dtype == expected.dtype
    elif isinstance(expected, dt.datetime):
        assert found.replace(tzinfo=None) == expected.replace(tzinfo=None)
        assert found.fold == expected.fold
        assert found.utcoffset() == expected.utcoffset()
        assert found.tzname() == expected.tzname()
        assert type(found.tzinfo) is type(expected.tzinfo)
    elif isinstance(expected, str | bytes):
        assert len(found) == len(expected)
    elif isinstance(expected, float):
        assert str(found) == str(expected)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Pair(tuple):
    __slots__ = ()


class Color(enum.IntEnum):
    RED = 1


class Zone(dt.tzinfo):
    def utcoffset(self, when):
        return dt.timedelta(hours=1)

    def dst(self, when):
        return None

    def tzname(self, when):
        return "Zone"


def nested(depth: int) -> tuple:
    key: tuple = ()
    for _ in range(depth):
        key = (key,)
    return key


class TestRefusal:
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            (object(), "object"),
            (Decimal(1), "Decimal"),
            (fractions.Fraction(1, 2), "Fraction"),
            (range(3), "range"),
            (Ellipsis, "ellipsis"),
            (int, "type"),
            (len, "builtin_function_or_method"),
            (dt.time(1), "time"),
            (Text("a"), "Text"),
            (Number(1), "Number"),
            (Pair((1, 2)), "Pair"),
            (Color.RED, "Color"),
            (type("Day", (dt.date,), {})(2020, 1, 1), "Day"),
            (type("Where", (pathlib.PurePosixPath,), {})("a"), "Where"),
            (dt.datetime(2020, 1, 1, tzinfo=Zone()), "Zone"),
            (type("Float", (np.float64,), {})(1), "Float"),
            (np.void(b"abc"), "void"),
            (np.zeros(1, [("a", "i4")])[0], "void"),
            (("a", (1, object())), "object"),
            (frozenset([Text("a")]), "Text"),
            (memoryview(b"abc"), "memoryview"),
        ],
        ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
    )
    def test_of_a_key_that_cannot_be_encoded_names_its_type(self, key, name, chest):
        mine = np.arange(3)
        with pytest.raises(KeyTypeError, match=name) as caught:
            chest[key] = mine
        assert isinstance(caught.value, TypeError)
        assert mine.flags.writeable
        # A void that can be written to has no hash.
        with pytest.raises(TypeError, match=name):
            chest.setdefault(key, mine)
        assert len(chest) == 0

    @pytest.mark.parametrize(
        "key",
        [
            float("nan"),
            complex("nan"),
            complex(0, float("nan")),
            np.float16("nan"),
            np.longdouble("nan"),
            np.complex64("nan"),
            np.clongdouble(complex(1, float("nan"))),
            np.datetime64("NaT"),
            np.datetime64("NaT", "s"),
            np.timedelta64("NaT", "D"),
            (1, float("nan")),
            frozenset([np.datetime64("NaT", "s")]),
        ],
        ids=repr,
    )
    def test_of_a_key_that_is_not_equal_to_itself(self, key, chest):
        with pytest.raises(KeyTypeError, match="equals itself"):
            chest[key] = np.arange(3)
        assert len(chest) == 0

    @pytest.mark.parametrize("key", [[], {}, {1}, bytearray(b"a"), np.arange(2), ([],)])
    def test_of_a_key_that_cannot_be_hashed_is_a_type_error(self, key, chest):
        with pytest.raises(TypeError):
            chest[key] = np.arange(3)
        with pytest.raises(TypeError):
            chest[key]
        assert len(chest) == 0

    def test_of_a_slice_which_can_be_hashed_from_python_3_12_on(self, chest):
        with pytest.raises(TypeError):
            chest[:1] = np.arange(3)
        with pytest.raises(TypeError if sys.version_info < (3, 12) else KeyError):
            chest[:1]
        assert len(chest) == 0

    @pytest.mark.parametrize("unit", ["generic", "M", "Y"])
    def test_of_a_duration_that_has_no_fixed_length(self, chest, unit):
        # NumPy calls 5 months equal to the number 5 and to other units, but those not equal.
        key = np.timedelta64(5, unit)
        for each in (key, (key,)):
            with pytest.raises(KeyTypeError, match="unit"):
                chest[each] = np.arange(3)
        assert len(chest) == 0

    def test_of_a_key_nested_too_deep(self, chest):
        chest[nested(MAX_DEPTH - 1)] = np.arange(3)
        with pytest.raises(KeyTypeError, match="deep"):
            chest[nested(MAX_DEPTH + 1)] = np.arange(3)
        with pytest.raises(KeyTypeError, match="deep"):
            chest[nested(500)] = np.arange(3)
        assert list(chest) == [nested(MAX_DEPTH - 1)]


STRANGE = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\x", "\0", "a\0b", "-", "*",
    "con", "nul.txt", "case", "CASE", "Case", "\ud800", "\udfff\ud800", "\U0001f600" * 50, "e\u0301",
    "\u00e9", "x" * 10_000, "x" * 9_999, "\n", " ", "a ", "~", "$HOME", "%s", "'; DROP TABLE entry;",
    b"", b"../x", b"\xff\xfe", b"/" * 300, ("..", ".."), ("a/b",), ("a", "b"), (), ((),), frozenset(),
    frozenset([frozenset()]), pathlib.Path("/etc/passwd"), pathlib.Path(".."), 10**5000, None,
]  # fmt: skip


class TestFolders:
    @pytest.mark.parametrize("size", [10, 20_000])
    def test_strange_keys_work_and_none_reaches_outside(self, path, size):
        with arraychest.Chest(path=path, available_memory=0) as chest:
            for at, key in enumerate(STRANGE):
                chest[key] = np.full(size, at)
            assert len(chest) == len(STRANGE)
            for key in STRANGE:
                file = chest.key_to_filename(key)
                assert os.path.realpath(file).startswith(os.path.realpath(path) + os.sep)
                assert os.path.dirname(os.path.relpath(file, path)).split(os.sep)[0] in {
                    "data",
                    "packs",
                }
        assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
        with arraychest.open(path, "r") as chest:
            assert list(chest) == STRANGE
            for at, key in enumerate(STRANGE):
                assert chest[key].tolist() == [at] * size

    @given(st.binary(max_size=60))
    def test_the_name_of_a_file_is_a_plain_word(self, canonical):
        stem = file_stem(canonical)
        assert 0 < len(stem) <= 40
        assert set(stem) <= set(map(chr, range(128)))
        assert stem.replace("-", "").replace("_", "").isalnum() or set(stem) <= set("-_")
        assert "/" not in stem
        assert "." not in stem


def element(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


class TestForeignCodes:
    """A stranger's catalog may hold any bytes in the place of a key."""

    @given(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda tag, rest: tag + rest,
                st.sampled_from([bytes([tag]) for tag in b"sbifcr-({UdtuMmpF?CnZDPl"]),
                st.binary(max_size=30),
            ),
            st.builds(
                lambda dtype, data: b"n" + dtype.encode("utf-8", "replace") + b"\0" + data,
                st.text(max_size=6) | hnp.scalar_dtypes().map(str),
                st.binary(max_size=20),
            ),
            st.builds(
                lambda zone, fold, text: b"Z" + element(zone, fold, text),
                st.sampled_from(
                    [b"zUTC", b"zAmerica", b"z../x", b"z/etc", b"z", b"o5", b"o", b"o 1"]
                ),
                st.sampled_from([b"0", b"1", b"2", b""]),
                st.sampled_from([b"2020-01-01T00:00:00", b"2020-01-01", b"x", b""]),
            ),
            st.builds(
                lambda name, text: b"P" + name + b"\0" + text,
                st.sampled_from([b"PosixPath", b"WindowsPath", b"PureWindowsPath", b"Path", b""]),
                st.binary(max_size=10),
            ),
        )
    )
    @example(b"PWindowsPath\0a")
    @example(b"n3i4\0" + bytes(12))
    @example(b"ni4,i4\0" + bytes(8))
    @example(b"n((\0")
    @example(b"n,\0")
    @example(b"n,")
    @example(b"nO\0" + bytes(8))
    @example(b"l" + b"f" * 30)
    @example(b"(" * 1000)
    @example(b"i" + b"f" * 100_000)
    @example(b"Z" + element(b"zAmerica", b"0", b"2020-01-01T00:00:00"))
    def test_give_a_key_or_a_value_error(self, code):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                key = decode_key(code, None)
            except ValueError:
                return
            hash(key)
            decode_key(b"", code)


MIDNIGHT = dt.datetime(2020, 1, 1)
DAY = dt.timedelta(1)

# In each line equal keys; what follows a bar (None) equals none of those before.
EQUAL = {
    "numbers": [1, 1.0, 1 + 0j, True, *(np.dtype(char).type(1) for char in "?bBhHiIlLqQefdgFDG")],
    "zero": [0, 0.0, -0.0, False, complex(-0.0, -0.0), np.float32(-0.0), np.longdouble(-0.0)],
    "large": [2**64, 2.0**64, np.float32(2**64), np.longdouble(2) ** 64, complex(2.0**64)],
    "fractions": [0.5, np.float16(0.5), np.longdouble(0.5), 0.5 + 0j, np.complex64(0.5)],
    "infinite": [float("inf"), np.float32("inf"), np.longdouble("inf")],
    "complex": [1 + 2j, np.complex64(1 + 2j), np.clongdouble(1 + 2j)],
    "text": ["a", np.str_("a")],
    "bytes": [b"a\0", np.bytes_(b"a\0")],
    "instant": [
        MIDNIGHT, MIDNIGHT.replace(fold=1),
        *(np.datetime64(MIDNIGHT, unit) for unit in ("h", "m", "s", "ms", "us")),
    ],
    "instant of NumPy's": [
        np.datetime64("2020-01-01T00", "us").astype(f"datetime64[{unit}]")
        for unit in ("Y", "M", "D", "h", "m", "s", "ms", "us", "ns")
    ],
    "far instant": [
        np.datetime64(2**30, "Y").astype(f"datetime64[{unit}]") for unit in ("Y", "M", "D", "h", "s")
    ],
    "aware": [
        dt.datetime(2021, 1, 1, 5, tzinfo=UTC), dt.datetime(2021, 1, 1, 0, tzinfo=NEW_YORK),
        dt.datetime(2021, 1, 1, 6, tzinfo=dt.timezone(dt.timedelta(hours=1), "x")),
    ],
    "duration": [DAY, *(np.timedelta64(DAY, unit) for unit in ("D", "h", "m", "s", "ms", "us"))],
    "week": [7 * DAY, np.timedelta64(1, "W"), np.timedelta64(7, "D")],
    "duration of NumPy's": [
        np.timedelta64(1, "D").astype(f"timedelta64[{unit}]")
        for unit in ("D", "h", "m", "s", "ms", "us", "ns")
    ],
    "path": [pathlib.PurePosixPath("a/b"), pathlib.PosixPath("a//b")],
    "path of Windows": [pathlib.PureWindowsPath("A\\b"), pathlib.PureWindowsPath("a/B")],
    "uuid": [uuid.UUID(int=7), uuid.UUID(int=7)],
}  # fmt: skip


@st.composite
def equal_pairs(draw):
    """Two keys that are equal in a dict, alone or within tuples and frozensets."""
    kinds = draw(st.lists(st.sampled_from(sorted(EQUAL)), min_size=1, max_size=3, unique=True))
    pair = [tuple(draw(st.sampled_from(EQUAL[kind])) for kind in kinds) for _ in range(2)]
    shape = draw(st.sampled_from(["alone", "tuple", "frozenset", "nested"]))
    if shape == "alone":
        return pair[0][0], pair[1][0]
    if shape == "frozenset":
        return frozenset(pair[0]), frozenset(pair[1][::-1])
    return pair if shape == "tuple" else [("x", (key, frozenset(key))) for key in pair]


def check_against_a_dict(chest, model, asked):
    for key in asked:
        assert (key in chest) == (key in model)
        found = chest.get(key)
        assert (None if found is None else int(found[0])) == model.get(key)
    assert len(chest) == len(model)
    found = {key: int(array[0]) for key, array in chest.items()}
    assert found == model
    for one, other in zip(chest, model, strict=True):
        assert_same_key(one, other)


def same_steps(first, second):
    """The steps that a dict is put through, and a chest in one session, in many, and in two."""
    folder = os.path.join(os.environ["TMPDIR"], "equal.keys")
    asked = [first, second]
    for flush in (False, True):
        model: dict[object, int] = {}
        with arraychest.Chest(path=folder, mode="w") as chest:
            for n, key in enumerate(asked):
                chest[key] = np.full(2, n)
                model[key] = n
                if flush:
                    chest.flush()
                check_against_a_dict(chest, model, asked)
        with arraychest.open(folder, "r") as chest:
            check_against_a_dict(chest, model, asked)
    # The second is put, and then deleted, by chests that have not met the first.
    model = {first: 0}
    with arraychest.Chest(path=folder, mode="w") as chest:
        chest[first] = np.full(2, 0)
    with arraychest.open(folder) as chest:
        chest[second] = np.full(2, 1)
        model[second] = 1
        check_against_a_dict(chest, model, asked)
    with arraychest.open(folder) as chest, arraychest.open(folder) as other:
        check_against_a_dict(chest, model, asked)
        with chest.transaction():
            chest[second] = np.full(2, 2)
        model[second] = 2
        check_against_a_dict(other, model, asked)
        del other[second]
        del model[second]
        other.flush()
        check_against_a_dict(chest, model, asked)
        # Both put what the other has not stored yet.
        chest[first] = np.full(2, 3)
        other[second] = np.full(2, 4)
        chest.flush()
        other.flush()
        expected = {first: 3}
        expected[second] = 4
        for each in (chest, other):
            assert {key: int(array[0]) for key, array in each.items()} == expected
            assert len(each) == len(expected)
        assert other.verify().ok
        del chest[first]
        del expected[first]
        # A key of the same session, put while its deletion is not stored.
        chest[second] = np.full(2, 5)
        expected[second] = 5
        chest.flush()
        check_against_a_dict(other, expected, asked)
    with arraychest.open(folder) as chest:
        check_against_a_dict(chest, expected, asked)
        assert int(chest.pop(second)[0]) == 5
        assert first not in chest or first not in {second: 0}


class TestSteps:
    """A chest and a dict are put through the same steps."""

    @settings(max_examples=8, deadline=None)
    @given(equal_pairs())
    @example((np.datetime64(MIDNIGHT, "h"), np.datetime64(MIDNIGHT, "ns")))
    @example((np.datetime64(MIDNIGHT, "ns"), np.datetime64(MIDNIGHT, "h")))
    @example((np.datetime64(MIDNIGHT, "h"), MIDNIGHT))
    @example((DAY, np.timedelta64(24, "h")))
    def test_with_equal_keys(self, pair):
        one, other = pair
        assert same_in_a_dict(one, other)
        same_steps(one, other)

    @pytest.mark.slow
    @settings(max_examples=8, deadline=None)
    @given(keys, keys)
    @example(MIDNIGHT, np.datetime64(MIDNIGHT, "ns"))
    @example(np.datetime64(MIDNIGHT, "D"), MIDNIGHT)
    @example(MIDNIGHT.date(), np.datetime64(MIDNIGHT, "D"))
    @example(MIDNIGHT.date(), MIDNIGHT)
    @example(MIDNIGHT, MIDNIGHT.replace(tzinfo=UTC))
    @example(DAY, np.timedelta64(86_400 * 10**9, "ns"))
    @example(np.timedelta64(1, "s"), 1)
    @example((np.float32(0.1), 1), (0.1, 1))
    @example(b"a", "a")
    @example(pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"))
    def test_with_any_keys(self, one, other):
        same_in_a_dict(one, other)
        same_steps(one, other)

    @pytest.mark.stress
    @settings(max_examples=1000, deadline=None)
    @given(equal_pairs() | st.tuples(keys, keys))
    def test_with_many_keys(self, pair):
        same_in_a_dict(*pair)
        same_steps(*pair)

    @pytest.mark.parametrize("kind", sorted(EQUAL))
    def test_all_keys_of_a_kind_equal_each_other(self, kind):
        for one, other in itertools.combinations(EQUAL[kind], 2):
            assert same_in_a_dict(one, other), (one, other)
            check_pair(one, other)


class Name(str):
    __slots__ = ()


class Level(enum.StrEnum):
    LOW = "a"


class Mixed(str, enum.Enum):  # noqa: UP042  # not the same: its str() is another
    LOW = "a"


class Flags(enum.IntFlag):
    ONE = 1


class Plain(enum.Enum):
    ONE = 1


class Point(typing.NamedTuple):
    x: object
    y: object


class Group(frozenset):
    pass


class Real(float):
    pass


class Raw(bytes):
    pass


class Complex(complex):
    pass


class Moment(dt.datetime):
    pass


class Span(dt.timedelta):
    pass


class Date(dt.date):
    pass


class Id(uuid.UUID):
    pass


class Where(pathlib.PurePosixPath):
    pass


class OddText(str):
    """Equal to nothing but itself."""

    __slots__ = ()

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return str.__hash__(self)


class OtherHash(int):
    """Equal to a number, and never found for its hash."""

    def __hash__(self):
        return int.__hash__(self) + 1


class Shouting(str):
    """Shown as other text than it is."""

    __slots__ = ()

    def __str__(self):
        return "other"


def pandas_keys():
    pd = pytest.importorskip("pandas")
    stamp = pd.Timestamp(2020, 1, 1)
    return [
        (MIDNIGHT, stamp),
        (np.datetime64(MIDNIGHT, "ns"), stamp),
        (np.datetime64(MIDNIGHT, "D"), stamp),
        (MIDNIGHT, stamp + pd.Timedelta(1, "ns")),
        (MIDNIGHT.replace(tzinfo=UTC), stamp.tz_localize("UTC")),
        (DAY, pd.Timedelta(1, "D")),
        (DAY, pd.Timedelta(1, "D") + pd.Timedelta(1, "ns")),
        (np.timedelta64(1, "D"), pd.Timedelta(1, "D")),
        (("a", MIDNIGHT), ("a", stamp)),
        (MIDNIGHT, pd.NaT),
        ("a", pd.NA),
    ]


STRANGERS = [
    (1, Color.RED), (1.0, Color.RED), (True, Color.RED), (np.int8(1), Color.RED), (1, Flags.ONE),
    (1, Plain.ONE), (1, Number(1)), (1, Decimal(1)), (1, Decimal("1.0")), (1, fractions.Fraction(1)),
    (0.5, fractions.Fraction(1, 2)), (0.5, Decimal("0.5")), (0.1, Decimal("0.1")),
    (0.1, Decimal(str(0.1))), (0.1, fractions.Fraction(0.1)), (2**70, Decimal(2**70)),
    (2**70 + 1, fractions.Fraction(2**70 + 1)), (1, Decimal("NaN")), (1, Decimal("Infinity")),
    (float("inf"), Decimal("Infinity")), (1, fractions.Fraction(10**400, 3)), (0.5, Real(0.5)),
    (1, Real(1)), (1j, Complex(1j)), (1, Complex(1)), ("a", Name("a")), ("a", Level.LOW),
    ("a", Mixed.LOW), ("a", Shouting("a")), ("other", Shouting("a")), ("a", OddText("a")),
    (1, OtherHash(1)), (2, OtherHash(1)), (b"a", Raw(b"a")), ("a", Raw(b"a")),
    ((1, "a"), Point(1, "a")), ((1, "a"), Point(Color.RED, Level.LOW)),
    ((1, "a"), (Decimal(1), Name("a"))), ((1, ("a",)), (1, (OddText("a"),))),
    (frozenset([1, 2]), Group([1, 2])), (frozenset([1]), frozenset([Color.RED])),
    ((1, (2, (3,))), (1, (2, (Number(3),)))), (MIDNIGHT, Moment(2020, 1, 1)),
    (np.datetime64(MIDNIGHT, "s"), Moment(2020, 1, 1)),
    (np.datetime64(MIDNIGHT, "ns"), Moment(2020, 1, 1)), (DAY, Span(1)),
    (np.timedelta64(24, "h"), Span(1)), (MIDNIGHT.date(), Date(2020, 1, 1)),
    (dt.datetime(2020, 1, 1, tzinfo=UTC), dt.datetime(2020, 1, 1, 1, tzinfo=Zone())),
    (uuid.UUID(int=1), Id(int=1)), (pathlib.PurePosixPath("a"), Where("a")),
    (1, type("Float", (np.float64,), {})(1)), (5, np.timedelta64(5, "M")),
    (5, np.timedelta64(5, "Y")), (5.0, np.timedelta64(5, "M")),
    (1, object()), ("a", dt.time(1)), ((), range(0)), (1, float("nan")), (0, np.datetime64("NaT")),
    (1, complex("nan")), (None, Ellipsis), ("a", nested(500)), (b"abc", memoryview(b"abc")),
    (0, np.timedelta64("NaT", "s")), ("a", collections.UserString("a")),
    (b"ab", memoryview(b"ba")), (("a", b"x"), ("a", memoryview(b"x"))),
]  # fmt: skip


def check_stranger(path, stored, asked):
    """What is found is what a dict finds, wherever the value is."""
    there = same_in_a_dict(stored, asked)

    def check(chest):
        assert (asked in chest) is there
        assert (chest.get(asked) is not None) is there
        if there:
            assert chest[asked].tolist() == [1, 1]
        else:
            assert chest.get(asked, "default") == "default"
            with pytest.raises(AbsentKeyError):
                chest[asked]
        assert list(chest) == [stored]

    def check_removal(chest):
        if there:
            assert chest.pop(asked).tolist() == [1, 1]
            assert len(chest) == 0
            assert asked not in chest
            chest[stored] = np.full(2, 1)
            del chest[asked]
            assert len(chest) == 0
            chest[stored] = np.full(2, 1)
        else:
            assert chest.pop(asked, "default") == "default"
            chest.discard(asked)
            with pytest.raises(AbsentKeyError):
                del chest[asked]
            with pytest.raises(AbsentKeyError):
                chest.pop(asked)
        check(chest)

    with arraychest.Chest(path=path, mode="w") as chest:
        chest[stored] = np.full(2, 1)
        for _ in range(2):
            check(chest)
            check_removal(chest)
            with chest.transaction():
                check(chest)
                check_removal(chest)
                check(chest)
            chest.flush()
        with pytest.raises(KeyTypeError):
            chest[asked] = np.full(2, 2)
        check(chest)
    with arraychest.open(path, "r") as chest:
        check(chest)
    with arraychest.open(path) as chest:
        check_removal(chest)
    with arraychest.open(path) as chest, pytest.raises(KeyTypeError):
        chest[asked] = np.full(2, 2)


class TestStrangers:
    """Keys that cannot be stored, and may equal one that is."""

    @pytest.mark.parametrize(("stored", "asked"), STRANGERS, ids=named)
    def test_find_what_a_dict_finds(self, path, stored, asked):
        check_stranger(path, stored, asked)

    def test_of_pandas_find_what_a_dict_finds(self, path):
        for stored, asked in pandas_keys():
            check_stranger(path, stored, asked)

    @pytest.mark.parametrize("key", [[], {}, {1}, bytearray(b"a"), ([],), (1, {})], ids=repr)
    def test_without_a_hash_are_type_errors(self, path, key):
        with arraychest.Chest(path=path) as chest:
            chest["a"] = np.arange(2)
        with arraychest.open(path) as chest:
            for _ in range(2):
                for ask in (chest.__contains__, chest.get, chest.__getitem__, chest.pop):
                    with pytest.raises(TypeError, match="unhashable") as caught:
                        ask(key)
                    assert not isinstance(caught.value, KeyTypeError)
                with pytest.raises(TypeError):
                    del chest[key]
                chest["b"] = np.arange(3)


def test_all_pairs_of_a_hand_made_zoo():
    zoo = [
        *STRANGE, 0, 1, 2, True, False, 1.0, 0.0, -0.0, 0.5, 1j, 1 + 0j, complex(-0.0, 1), 2**63,
        float("inf"), -float("inf"), complex(float("inf"), 0), complex(0, float("inf")),
        np.int8(1), np.uint64(2**63), np.float16(0.5), np.float32(0.1), np.float64(0.1), 0.1,
        np.longdouble("0.1"), np.longdouble(1), np.complex64(1), np.complex128(1j), np.bool_(0),
        np.longdouble(2) ** 64 + 1, 2**64 + 1, 2**64, float(2**64), np.longdouble(2) ** 64,
        np.clongdouble(1), np.longdouble("1e4000"), 10**4000, np.longdouble("inf"),
        np.str_("a"), np.bytes_(b"a"), "a", b"a", "1", b"1", (1,), ("1",), (1, 1), (True, 1.0),
        dt.date(2020, 1, 1), dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=UTC),
        dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        dt.datetime(2020, 1, 1, fold=1), np.datetime64("2020-01-01"), np.datetime64("2020", "Y"),
        np.datetime64("2020-01-01T00", "us"), np.datetime64(0, "Y"), np.datetime64(0, "ns"),
        dt.timedelta(0), dt.timedelta(1), np.timedelta64(1, "D"), np.timedelta64(24, "h"),
        np.timedelta64(0, "D"), np.timedelta64(7, "D"), np.timedelta64(1, "W"),
        uuid.UUID(int=1), uuid.UUID(int=1).bytes, str(uuid.UUID(int=1)), pathlib.PurePosixPath("a"),
        pathlib.Path("a"), pathlib.PureWindowsPath("a"), pathlib.PureWindowsPath("A"),
        frozenset([1]), frozenset([True]), frozenset([1, 2]), frozenset([2, 1]), frozenset([(1, 2)]),
    ]  # fmt: skip
    for one, other in itertools.combinations_with_replacement(zoo, 2):
        check_pair(one, other)
