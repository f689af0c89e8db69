"""pandas' scalars, and what dates and periods come with: time zones and frequencies."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from arraychest.errors import ValueTypeError
from arraychest.integrations import checks
from arraychest.values.registry import register

UNITS = ("s", "ms", "us", "ns")
DATES = tuple(np.dtype(f"M8[{unit}]") for unit in UNITS)
SPANS = tuple(np.dtype(f"m8[{unit}]") for unit in UNITS)

# Names of zones, and no paths out of where zones lie, nor names of packages.
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_MAX_NAME = 100


def of_tz(tz: dt.tzinfo | None) -> Any:
    """What a time zone is stored as."""
    if tz is None:
        return None
    if type(tz) is dt.timezone:
        offset, name = tz.utcoffset(None), tz.tzname(None)
        return ("fixed", offset, None if name == dt.timezone(offset).tzname(None) else name)
    if type(tz) is zoneinfo.ZoneInfo and tz.key is not None and _ZONE.fullmatch(tz.key):
        return ("zone", tz.key)
    if type(tz).__module__.split(".")[0] == "pytz":
        zone: Any = getattr(tz, "zone", None)
        if zone is not None:
            return ("pytz", zone)
    raise ValueTypeError(
        f"expected a time zone of zoneinfo, found {tz!r}: use tz_convert('Europe/Berlin') or "
        "such, or allow_pickle=True to keep it pickled"
    )


def tz_of(tree: Any) -> dt.tzinfo | None:
    """The time zone again."""
    if tree is None:
        return None
    checks.exactly(tuple, tree, "a time zone")
    sort, *rest = tree
    if sort == "fixed":
        offset, name = rest
        checks.exactly(dt.timedelta, offset, "a time zone's offset")
        if name is not None:
            return dt.timezone(offset, checks.exactly(str, name, "a time zone's name"))
        return dt.timezone(offset)
    (name,) = rest
    checks.exactly(str, name, "a time zone's name")
    if len(name) > _MAX_NAME or not _ZONE.fullmatch(name):
        raise ValueError(f"expected the name of a time zone, found {checks.shown(name)}")
    if sort == "zone":
        return zoneinfo.ZoneInfo(name)
    if sort == "pytz":
        # What pandas before 3 has for names of zones.
        import pytz

        zone: dt.tzinfo = pytz.timezone(name)
        return zone
    raise ValueError(f"expected a time zone, found {checks.shown(sort)}")


def of_freq(freq: Any) -> str | None:
    """The name of a frequency, if it tells all of it."""
    if freq is None:
        return None
    try:
        name = str(freq.freqstr)
        known = len(name) <= _MAX_NAME and to_offset(name) == freq
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueTypeError(
            f"expected a freq that its name tells in full, found {freq!r}: use "
            "pd.DatetimeIndex(index.array), or allow_pickle=True to keep it pickled"
        )
    return name


def freq_of(tree: Any) -> Any:
    """The frequency of a name."""
    checks.exactly(str, tree, "a freq")
    if len(tree) > _MAX_NAME:
        raise ValueError(f"expected the name of a freq, found {len(tree)} characters")
    return to_offset(tree)


def period_dtype_of(tree: Any) -> Any:
    """The dtype of periods whose frequency has this name."""
    checks.exactly(str, tree, "a freq")
    if len(tree) > _MAX_NAME:
        raise ValueError(f"expected the name of a freq, found {len(tree)} characters")
    return pd.PeriodDtype(tree)


def _of_timestamp(value: pd.Timestamp) -> dict[str, Any]:
    return {"utc": value.to_datetime64(), "tz": of_tz(value.tz), "fold": value.fold}


def _timestamp(tree: Any) -> Any:
    utc, zone, fold = checks.fields(tree, "utc", "tz", "fold")
    checks.exactly(np.datetime64, utc, "a timestamp")
    if utc.dtype not in DATES:
        raise ValueError(f"expected a timestamp in {', '.join(UNITS)}, found {utc.dtype}")
    value: Any = pd.Timestamp(utc)
    tz = tz_of(zone)
    if tz is not None:
        value = value.tz_localize("UTC").tz_convert(tz)
    if type(value) is not pd.Timestamp:
        raise ValueError("expected a timestamp, found none")
    if checks.exactly(int, fold, "fold") not in (0, 1):
        raise ValueError(f"expected 0 or 1 as fold, found {checks.shown(fold)}")
    if fold != value.fold:
        value = value.replace(fold=fold)
    return value


def _of_timedelta(value: pd.Timedelta) -> np.timedelta64:
    return value.to_timedelta64()  # type: ignore[no-any-return]


def _timedelta(tree: Any) -> Any:
    checks.exactly(np.timedelta64, tree, "a timedelta")
    if tree.dtype not in SPANS:
        raise ValueError(f"expected a timedelta in {', '.join(UNITS)}, found {tree.dtype}")
    value = pd.Timedelta(tree)
    if type(value) is not pd.Timedelta:
        raise ValueError("expected a timedelta, found none")
    return value


def _of_period(value: pd.Period) -> dict[str, Any]:
    return {"ordinal": int(value.ordinal), "freq": of_period_freq(value)}


def _period(tree: Any) -> Any:
    ordinal, freq = checks.fields(tree, "ordinal", "freq")
    checks.exactly(int, ordinal, "a period")
    value = pd.Period(ordinal=ordinal, freq=period_dtype_of(freq).freq)
    if type(value) is not pd.Period:
        raise ValueError("expected a period, found none")
    return value


def of_period_freq(value: Any) -> str:
    """The name of the frequency of a period, or of an array of them."""
    # Periods have names of their own: M for what is ME for dates.
    name = str(value.freqstr)
    try:
        known = len(name) <= _MAX_NAME and pd.PeriodDtype(name).freq == value.freq
    except (ValueError, TypeError):
        known = False
    if not known:
        raise ValueTypeError(
            f"expected a freq that its name tells in full, found {value.freq!r}: use asfreq(), "
            "or allow_pickle=True to keep it pickled"
        )
    return name


def _of_interval(value: pd.Interval) -> dict[str, Any]:
    return {"left": value.left, "right": value.right, "closed": value.closed}


def _interval(tree: Any) -> Any:
    left, right, closed = checks.fields(tree, "left", "right", "closed")
    checks.exactly(str, closed, "closed")
    return pd.Interval(left, right, closed)


def _constant(value: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    def from_tree(tree: Any) -> Any:
        if tree is not None:
            raise ValueError(f"expected nothing, found {checks.shown(tree)}")
        return value

    return lambda _: None, from_tree


register(pd.Timestamp, _of_timestamp, _timestamp, name="pandas.Timestamp")
register(pd.Timedelta, _of_timedelta, _timedelta, name="pandas.Timedelta")
register(pd.Period, _of_period, _period, name="pandas.Period")
register(pd.Interval, _of_interval, _interval, name="pandas.Interval")
register(type(pd.NaT), *_constant(pd.NaT), name="pandas.NaT")
register(type(pd.NA), *_constant(pd.NA), name="pandas.NA")
