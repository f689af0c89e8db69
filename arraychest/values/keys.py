"""Keys as bytes: equal where a dict calls them equal, different where it does not.

A key is encoded twice.  Its *canonical* code is what the catalog compares: two keys have the same
one exactly when they are equal in a dict (``1 == 1.0 == True == np.int64(1)``), apart from some
times (see below).  Its *exact* code also says of which type it was, so that a reopened chest hands
back ``True`` and not ``1``; it is left out where the canonical code alone gives the key back.

In one place one code is not enough.  NumPy's times equal each other in every unit, and those of
the standard library in some units only: hours to microseconds (``datetime64``), weeks to
microseconds (``timedelta64``).  So ``datetime64("2020-01-01T00", "h")`` equals a ``datetime`` and
the same instant in nanoseconds, and those two differ.  All three have one *group*, the code that
they would have in microseconds.  A time of the other units has a canonical code of its own: its
group, marked.  Whoever looks for such a key asks for its canonical code first, then for the rest of
its group, and takes what a dict calls equal (see `lookup_of`).  Which of two keys that differ is
found by a third that equals both is not said, here as in a dict.

A code is one tag byte and a payload.  Inside a tuple or frozenset each element's code is preceded
by its length (4 bytes, little-endian), which makes the whole injective.  Nothing here evaluates
or imports anything: any bytes can be decoded safely.

=====  ======================================  =====  ==========================================
tag    canonical                               tag    exact only
=====  ======================================  =====  ==========================================
``s``  str, UTF-8 (surrogates kept)            ``F``  float that is a whole number, 8 bytes
``b``  bytes                                   ``?``  bool
``i``  whole number, hexadecimal               ``C``  complex without imaginary part, 16 bytes
``f``  other float, 8 bytes                    ``n``  NumPy scalar: dtype, NUL, its bytes
``c``  complex, 16 bytes                       ``Z``  aware datetime: zone, fold, its text
``r``  long double beyond float: ratio(s)      ``D``  datetime with ``fold=1``
``-``  None                                    ``P``  path: its class, NUL, its text
``(``  tuple
``{``  frozenset (sorted)
``U``  UUID
``d``  date
``l``  timedelta: microseconds; so is a
       timedelta64 in weeks to microseconds
``t``  naive datetime, a datetime64 in hours
       to microseconds
``u``  aware datetime: microseconds in UTC
``w``  aware datetime at which clocks change:
       zone, its text
``M``  datetime64 that no datetime can be:
       attoseconds since 1970
``m``  timedelta64 that no timedelta can be:
       attoseconds
``~``  marked group: its length, the group,
       then a character for each time in it:
       ``1`` where its unit makes it differ
       from datetime and timedelta, else ``0``
``p``  path: flavour, then its parts
=====  ======================================  =====  ==========================================
"""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import math
import numbers
import pathlib
import struct
import sys
import uuid
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple, cast

import numpy as np

from arraychest.errors import CorruptEntryError, KeyTypeError

# Tuples and frozensets nest at most so deep: encoding recurses in Python, and a stranger's
# catalog must not be able to exhaust the stack.
MAX_DEPTH = 64

_F8 = struct.Struct("<d")
_C16 = struct.Struct("<dd")
_LENGTH = struct.Struct("<I")

_PATHS: dict[str, type[pathlib.PurePath]] = {
    cls.__name__: cls
    for cls in (
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
        pathlib.PosixPath,
        pathlib.WindowsPath,
    )
}

# Attoseconds in each unit of datetime64; months and years have no fixed length.
_ATTOSECONDS = {
    "W": 604_800 * 10**18, "D": 86_400 * 10**18, "h": 3_600 * 10**18, "m": 60 * 10**18,
    "s": 10**18, "ms": 10**15, "us": 10**12, "ns": 10**9, "ps": 10**6, "fs": 10**3, "as": 1,
}  # fmt: skip
_MONTHS = frozenset("YM")

# Units in which NumPy's times equal those of the standard library, in a dict.
_LIKE_DATETIME = frozenset({"h", "m", "s", "ms", "us"})
_LIKE_TIMEDELTA = _LIKE_DATETIME | {"W", "D"}

_EPOCH = dt.datetime(1970, 1, 1)
_MICROSECOND = dt.timedelta(microseconds=1)


class KeyCode(NamedTuple):
    """A key's canonical code, and its exact code where that says more (else None)."""

    canonical: bytes
    exact: bytes | None


def encode_key(key: Hashable) -> KeyCode:
    """Encode a key.

    Parameters
    ----------
    key
        str, bytes, int, float, complex, bool, None, tuples and frozensets of these, NumPy
        scalars, datetime, date, timedelta, UUID, pathlib paths.

    Raises
    ------
    KeyTypeError
        The key, or an element of it, is of another type (subclasses are other types: they would
        come back as their base), is NaN or NaT (not equal to itself, so never found again), or
        nests deeper than 64.
    """
    if type(key) is str:
        return KeyCode(b"s" + key.encode("utf-8", "surrogatepass"), None)
    group, marks, exact = _encode(key, MAX_DEPTH)
    canonical = _marked(group, marks)
    return KeyCode(canonical, None if exact == canonical else exact)


class Lookup(NamedTuple):
    """Under which codes a key can be found.

    Attributes
    ----------
    canonical
        The one that it is stored under, if it is stored as it is.
    group
        What the codes of other keys that may equal it have in common; None if there are none.
    is_certain
        Whether what is stored under `canonical` equals the key, or has to be compared with it.
    """

    canonical: bytes
    group: bytes | None
    is_certain: bool


def lookup_of(key: Hashable) -> Lookup | None:
    """Under which codes a key can be found; None if no stored key can equal it.

    The key may be of any type.  One that cannot be stored is looked for as the key that it may
    equal: an element of an enumeration or an instance of a subclass as its base type's, a Decimal
    or Fraction as the number.  What is found is then compared with it, as a dict does, so that an
    ``__eq__`` or ``__hash__`` of its own counts.
    """
    try:
        group, marks, _ = _encode(key, MAX_DEPTH)
        is_certain = True
    except KeyTypeError:
        try:
            group, marks, _ = _encode(_plain(key, MAX_DEPTH), MAX_DEPTH)
        except (TypeError, ValueError, OverflowError):
            return None  # of pandas' NaT, which is a datetime, the year is NaN
        is_certain = False
    # A datetime of the standard library equals none in the rest of its group.
    has_others = bool(marks) and type(key) not in _LIBRARY_TIMES
    return Lookup(_marked(group, marks), group if has_others else None, is_certain)


def group_of(key: Hashable) -> bytes:
    """A code that all keys have in common that may be one entry; raises as `encode_key`."""
    return _encode(key, MAX_DEPTH)[0]


def marked_codes(group: bytes) -> tuple[bytes, bytes]:
    """Between which codes those lie that have this group and a mark; the second is none."""
    start = b"~" + _LENGTH.pack(len(group)) + group
    return start, start + b"~"


def equals(stored: Hashable, asked: Hashable) -> bool:
    """Whether a dict that has `stored` finds it when `asked` is asked for."""
    try:
        return asked in {stored: None}
    except OverflowError:
        # Of two datetime64 one is too far away for the other's unit.
        return False


def _marked(group: bytes, marks: bytes) -> bytes:
    if b"1" not in marks:
        return group
    return marked_codes(group)[0] + marks


def _plain(key: Any, depth: int) -> Any:
    """The key of an accepted type that `key` may equal.

    The methods are those of the base types: a subclass may have others.  Raises KeyTypeError where
    there is none.
    """
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return bytes.__getitem__(key, slice(None))
    if isinstance(key, int):
        return int.__int__(key)
    if isinstance(key, np.timedelta64):
        # The only one that equals a number and has its hash is a number of months.
        return int(key.astype(np.int64)) if not np.isnat(key) else key
    if isinstance(key, float):
        return float.__float__(key)
    if isinstance(key, complex):
        return complex.__complex__(key)
    if isinstance(key, tuple | frozenset):
        if depth == 0:
            raise KeyTypeError(f"expected a key nested at most {MAX_DEPTH} deep, found one deeper")
        if isinstance(key, tuple):
            return tuple([_plain_element(each, depth - 1) for each in tuple.__iter__(key)])
        return frozenset([_plain_element(each, depth - 1) for each in frozenset.__iter__(key)])
    if isinstance(key, dt.datetime):
        zone = key.tzinfo
        return dt.datetime(
            key.year, key.month, key.day, key.hour, key.minute, key.second, key.microsecond,
            _plain_zone(key) if zone is not None else None, fold=key.fold,
        )  # fmt: skip
    if isinstance(key, dt.date):
        return dt.date(key.year, key.month, key.day)
    if isinstance(key, dt.timedelta):
        return dt.timedelta(key.days, key.seconds, key.microseconds)
    if isinstance(key, uuid.UUID):
        return uuid.UUID(int=key.int)
    if isinstance(key, pathlib.PureWindowsPath):
        return pathlib.PureWindowsPath(str(key))
    if isinstance(key, pathlib.PurePosixPath):
        return pathlib.PurePosixPath(str(key))
    if isinstance(key, collections.UserString):
        return key.data
    if isinstance(key, memoryview):
        return key.tobytes()
    if isinstance(key, numbers.Number):
        return _plain_number(key)
    raise KeyTypeError(f"expected a key that may equal a stored one, found {type(key)}")


def _plain_element(key: Any, depth: int) -> Any:
    try:
        _encode(key, depth)
    except KeyTypeError:
        return _plain(key, depth)
    return key


def _plain_number(key: Any) -> Any:
    for kind in (int, float, complex):
        # What cannot be converted, such as a signalling NaN, equals no number.
        with contextlib.suppress(TypeError, ValueError, ArithmeticError):
            number = kind(key)
            if number == key:
                return number
    raise KeyTypeError(f"expected a key that equals a number, found {key!r:.200}")


def _plain_zone(key: dt.datetime) -> dt.tzinfo | None:
    """The zone of an aware datetime, or one with the same offset at that time."""
    try:
        _zone_code(key)
    except KeyTypeError:
        offset = key.utcoffset()
        return None if offset is None else dt.timezone(offset)
    return key.tzinfo


_LIBRARY_TIMES = frozenset({dt.datetime, dt.timedelta})


# Keys of these types can always be encoded: whoever counts nanoseconds need not try.
PLAIN_TYPES = frozenset({str, int, bytes})


def decode_key(canonical: bytes, exact: bytes | None) -> Hashable:
    """The key that `encode_key` was given.

    Raises
    ------
    CorruptEntryError
        The bytes are no key's code.
    """
    try:
        key = _decode(canonical if exact is None else exact, MAX_DEPTH)
        hash(key)  # a structured scalar has none
    except (
        ValueError,
        TypeError,
        LookupError,
        struct.error,
        OverflowError,
        OSError,  # zoneinfo opens a file named like the zone
        NotImplementedError,  # a path of another system
        SyntaxError,  # NumPy parses a dtype
    ) as error:
        raise CorruptEntryError(f"expected an encoded key, found {canonical!r:.100}") from error
    return key


def _encode(key: Any, depth: int) -> tuple[bytes, bytes, bytes]:
    """The group, the marks and the exact code of `key`; the canonical code comes of the first two.

    The exact code and the group are one object where they agree.
    """
    kind = type(key)
    if kind is str:
        code = b"s" + key.encode("utf-8", "surrogatepass")
        return code, b"", code
    if kind is int:
        code = b"i" + _decimal(key)
        return code, b"", code
    if kind is bytes:
        code = b"b" + key
        return code, b"", code
    if kind is float:
        group = _number(key)
        return group, b"", b"F" + _F8.pack(key) if group[:1] == b"i" else group
    if kind is bool:
        return b"i%d" % key, b"", b"?%d" % key
    if key is None:
        return b"-", b"", b"-"
    if kind is tuple or kind is frozenset:
        if depth == 0:
            raise KeyTypeError(f"expected a key nested at most {MAX_DEPTH} deep, found one deeper")
        elements = [_encode(element, depth - 1) for element in key]
        tag = b"("
        if kind is frozenset:
            elements.sort()
            tag = b"{"
        return (
            tag + _join([element[0] for element in elements]),
            b"".join([element[1] for element in elements]),
            tag + _join([element[2] for element in elements]),
        )
    if kind is complex:
        group = _number(key)
        if group[:1] == b"c":
            return group, b"", group
        return group, b"", b"C" + _C16.pack(key.real, key.imag)
    if isinstance(key, np.generic):
        return _encode_scalar(key)
    if kind is uuid.UUID:
        code = b"U" + key.bytes
        return code, b"", code
    if kind is dt.datetime:
        return _encode_datetime(key)
    if kind is dt.date:
        code = b"d" + key.isoformat().encode()
        return code, b"", code
    if kind is dt.timedelta:
        code = b"l" + _decimal(key // _MICROSECOND)
        return code, b"0", code
    if isinstance(key, pathlib.PurePath) and _PATHS.get(kind.__name__) is kind:
        return _encode_path(key)
    raise KeyTypeError(
        "expected a key of str, bytes, int, float, complex, bool, None, tuple, frozenset, NumPy "
        "scalar, datetime, date, timedelta, UUID or pathlib path, found "
        f"{kind.__module__}.{kind.__qualname__}"
    )


def _join(codes: Iterable[bytes]) -> bytes:
    return b"".join(part for code in codes for part in (_LENGTH.pack(len(code)), code))


def _decimal(number: int) -> bytes:
    # Hexadecimal, because Python refuses to print more than 4,300 decimal digits.
    return b"%x" % number


def _number(number: complex | float) -> bytes:
    """The canonical code of a number, the same for every type that holds it exactly."""
    if isinstance(number, complex):
        if number.imag != 0:
            if number != number:
                raise KeyTypeError(_NOT_EQUAL.format(number))
            # Adding 0.0 turns -0.0, which equals 0.0, into 0.0.
            return b"c" + _C16.pack(number.real + 0.0, number.imag + 0.0)
        number = number.real
    if number != number:
        raise KeyTypeError(_NOT_EQUAL.format(number))
    if math.isfinite(number) and number == int(number):
        return b"i" + _decimal(int(number))
    return b"f" + _F8.pack(number)


_NOT_EQUAL = "expected a key that equals itself, found {!r}: it could never be found again"


def _encode_scalar(key: np.generic) -> tuple[bytes, bytes, bytes]:
    dtype = key.dtype
    if dtype.kind in "OV" or dtype.hasobject or type(key) is not dtype.type:
        raise KeyTypeError(f"expected a NumPy scalar of a plain dtype as key, found {type(key)}")
    # Of two C types of one size, such as long and long long, only one has its own `str`.
    name = dtype.str if np.dtype(dtype.str).type is dtype.type else dtype.char
    exact = b"n" + name.encode() + b"\0"
    if isinstance(key, np.str_):
        # Neither its buffer nor str(key): NumPy drops NULs at the end of both.
        text = key.encode("utf-8", "surrogatepass")
        return b"s" + text, b"", b"n<U\0" + text
    if isinstance(key, np.bytes_):
        return b"b" + bytes(key), b"", b"n|S\0" + bytes(key)
    exact += key.tobytes()
    if isinstance(key, np.datetime64 | np.timedelta64):
        return (*_encode_time(key), exact)
    if isinstance(key, np.bool_ | np.integer):
        return b"i" + _decimal(int(key)), b"", exact
    if isinstance(key, np.longdouble | np.clongdouble):
        return _encode_longdouble(key), b"", exact
    return _number(complex(cast(Any, key))), b"", exact


def _encode_longdouble(key: np.longdouble | np.clongdouble) -> bytes:
    near = complex(cast(Any, key))
    if near == key or near != near or key != key:
        return _number(near)
    return b"r" + b" ".join(
        b"%x/%x" % part.as_integer_ratio() if np.isfinite(part) else repr(float(part)).encode()
        for part in (key.real, key.imag)
    )


def _encode_time(key: np.datetime64 | np.timedelta64) -> tuple[bytes, bytes]:
    """The group and the marks of one of NumPy's times."""
    if np.isnat(key):
        raise KeyTypeError(_NOT_EQUAL.format(key))
    unit, count = np.datetime_data(key.dtype)
    number = int(key.astype(np.int64)) * count
    if isinstance(key, np.datetime64):
        like_library, scale = unit in _LIKE_DATETIME, _ATTOSECONDS.get(unit)
        if unit in _MONTHS:
            number, scale = _days(number * (12 if unit == "Y" else 1)), _ATTOSECONDS["D"]
        if scale is None:
            raise KeyTypeError(f"expected a datetime64 key with a unit, found {key!r}")
        far = b"M"
    else:
        if unit not in _ATTOSECONDS:
            # Five months equal, in a dict, both the number 5 and five twelfths of a year, which are
            # not equal; and a timedelta64 without a unit has no hash.
            raise KeyTypeError(
                f"expected a timedelta64 key with a unit of weeks or less, found {key!r}"
            )
        like_library, scale, far = unit in _LIKE_TIMEDELTA, _ATTOSECONDS[unit], b"m"
    number *= scale
    microseconds, rest = divmod(number, _ATTOSECONDS["us"])
    if not rest:
        try:
            duration = dt.timedelta(microseconds=microseconds)
            if isinstance(key, np.timedelta64):
                group = b"l" + _decimal(microseconds)
            else:
                group = b"t" + (_EPOCH + duration).isoformat().encode()
        except OverflowError:
            pass
        else:
            return group, b"0" if like_library else b"1"
    return far + _decimal(number), b""


def _days(months: int) -> int:
    """The days from 1970 to the first of a month, so many months after January 1970."""
    # 400 years are 146,097 days, and a year of NumPy's may have 19 digits.
    cycles, month = divmod(months, 4800)
    day = dt.date(1970 + month // 12, month % 12 + 1, 1) - dt.date(1970, 1, 1)
    return cycles * 146_097 + day.days


def _encode_datetime(key: dt.datetime) -> tuple[bytes, bytes, bytes]:
    text = key.replace(tzinfo=None, fold=0).isoformat().encode()
    if key.tzinfo is None:
        naive = b"t" + text
        return naive, b"0", b"D" + text if key.fold else naive
    zone = _zone_code(key)
    exact = b"Z" + _join([zone, b"%d" % key.fold, text])
    before, after = (cast(dt.timedelta, key.replace(fold=fold).utcoffset()) for fold in (0, 1))
    if before != after:
        # A time that comes twice, or never, when clocks change: it equals none of another zone,
        # and of its own what shows the same on the clock (PEP 495).
        return b"w" + _join([zone, text]), b"", exact
    # As datetime's own equality and hash: the instant, whatever the zone; fold does not count.
    instant = key.replace(tzinfo=None, fold=0) - dt.datetime(1, 1, 1) - before
    return b"u" + _decimal(instant // _MICROSECOND), b"", exact


def _zone_code(key: dt.datetime) -> bytes:
    """The zone of an aware datetime: its name or its offset."""
    zone: bytes
    # Whoever made such a zone has imported the module; importing it here would slow down others.
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and isinstance(key.tzinfo, zoneinfo.ZoneInfo) and key.tzinfo.key:
        zone = b"z" + key.tzinfo.key.encode()
    elif type(key.tzinfo) is dt.timezone:
        offset = cast(dt.timedelta, key.utcoffset())
        name = key.tzname() or ""
        default = dt.timezone(offset).tzname(None)
        zone = b"o%d" % round(offset / dt.timedelta(microseconds=1))
        if name != default:
            zone += b" " + name.encode("utf-8", "surrogatepass")
    else:
        raise KeyTypeError(
            "expected a datetime key with a datetime.timezone or zoneinfo zone, found "
            f"{type(key.tzinfo).__qualname__}"
        )
    return zone


def _encode_path(key: pathlib.PurePath) -> tuple[bytes, bytes, bytes]:
    text = str(key).encode("utf-8", "surrogatepass")
    exact = b"P" + type(key).__name__.encode() + b"\0" + text
    if isinstance(key, pathlib.PureWindowsPath):
        return b"pw" + str(key).lower().encode("utf-8", "surrogatepass"), b"", exact
    return b"pp" + text, b"", exact


def _split(payload: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += 4 + length
        if at > len(payload):
            raise ValueError("an element reaches past the end of its key")
        parts.append(payload[at - length : at])
    return parts


def _decode(code: bytes, depth: int) -> Hashable:
    tag, payload = code[:1], code[1:]
    if tag == b"s":
        return payload.decode("utf-8", "surrogatepass")
    if tag == b"i":
        return int(payload, 16)
    if tag == b"b":
        return payload
    if tag in (b"f", b"F"):
        return cast(float, _F8.unpack(payload)[0])
    if tag in (b"c", b"C"):
        return complex(*_C16.unpack(payload))
    if tag == b"?":
        return payload == b"1"
    if tag == b"-" and not payload:
        return None
    if tag in (b"(", b"{"):
        if depth == 0:
            raise ValueError("nested too deep")
        elements = [_decode(part, depth - 1) for part in _split(payload)]
        return tuple(elements) if tag == b"(" else frozenset(elements)
    if tag == b"n":
        return _decode_scalar(payload)
    if tag == b"U":
        return uuid.UUID(bytes=payload)
    if tag == b"d":
        return dt.date.fromisoformat(payload.decode())
    if tag in (b"t", b"D"):
        return dt.datetime.fromisoformat(payload.decode()).replace(fold=int(tag == b"D"))
    if tag == b"Z":
        return _decode_aware(payload)
    if tag == b"l":
        return dt.timedelta(microseconds=int(payload, 16))
    if tag == b"P":
        name, _, text = payload.partition(b"\0")
        return _PATHS[name.decode()](text.decode("utf-8", "surrogatepass"))
    raise ValueError(f"no key has the tag {tag!r}")


def _decode_scalar(payload: bytes) -> np.generic:
    name, _, data = payload.partition(b"\0")
    if name == b"<U":
        return np.str_(data.decode("utf-8", "surrogatepass"))
    if name == b"|S":
        return np.bytes_(data)
    dtype = np.dtype(name.decode())
    if dtype.kind in "OV" or dtype.itemsize != len(data):
        raise ValueError(f"expected {dtype.itemsize} bytes of {dtype}, found {len(data)}")
    return cast(np.generic, np.frombuffer(data, dtype)[0])


def _decode_aware(payload: bytes) -> dt.datetime:
    zone, fold, text = _split(payload)
    tzinfo: dt.tzinfo
    if zone[:1] == b"z":
        import zoneinfo

        tzinfo = zoneinfo.ZoneInfo(zone[1:].decode())
    else:
        offset, _, name = zone[1:].partition(b" ")
        delta = dt.timedelta(microseconds=int(offset))
        tzinfo = (
            dt.timezone(delta, name.decode("utf-8", "surrogatepass"))
            if name
            else (dt.timezone(delta))
        )
    return dt.datetime.fromisoformat(text.decode()).replace(tzinfo=tzinfo, fold=int(fold))
