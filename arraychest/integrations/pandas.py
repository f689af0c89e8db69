"""pandas: series, frames, every index, the arrays that columns are made of, and scalars.

What is numbers, dates, durations, periods, codes of categories or masks is stored as the arrays
that pandas itself keeps, a frame block by block, and is mapped and not copied when it is read:
pandas then refuses to write to it, as NumPy does, until it is copied (``frame.copy()``).  Strings
and other Python objects are made anew.

All arrays are given away as views.  pandas shares a buffer among objects until one of them is
written to, so it must not look as if a chest could have it for itself.

Where pandas has no public way in or out that copies nothing, what it uses itself is used here, and
said so.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from pandas._libs.sparse import BlockIndex, IntIndex  # the only way to make one
from pandas.tseries.frequencies import to_offset

from arraychest.errors import ValueTypeError
from arraychest.integrations import checks, objects, text
from arraychest.registry import register

_UNITS = ("s", "ms", "us", "ns")
_DATES = tuple(np.dtype(f"M8[{unit}]") for unit in _UNITS)
_SPANS = tuple(np.dtype(f"m8[{unit}]") for unit in _UNITS)

# Names of zones, and no paths out of where zones lie, nor names of packages.
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_MAX_NAME = 100


# Time zones and frequencies.


def _of_tz(tz: dt.tzinfo | None) -> Any:
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
        f"expected a time zone of zoneinfo, found {tz!r}: use tz_convert('Europe/Berlin') or such"
    )


def _tz(tree: Any) -> dt.tzinfo | None:
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


def _of_freq(freq: Any) -> str | None:
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
            "index._with_freq(None) or pd.DatetimeIndex(index.array)"
        )
    return name


def _freq(tree: Any) -> Any:
    checks.exactly(str, tree, "a freq")
    if len(tree) > _MAX_NAME:
        raise ValueError(f"expected the name of a freq, found {len(tree)} characters")
    return to_offset(tree)


def _period_dtype(tree: Any) -> Any:
    checks.exactly(str, tree, "a freq")
    if len(tree) > _MAX_NAME:
        raise ValueError(f"expected the name of a freq, found {len(tree)} characters")
    return pd.PeriodDtype(tree)


# Scalars.


def _of_timestamp(value: pd.Timestamp) -> dict[str, Any]:
    return {"utc": value.to_datetime64(), "tz": _of_tz(value.tz), "fold": value.fold}


def _timestamp(tree: Any) -> Any:
    utc, zone, fold = checks.fields(tree, "utc", "tz", "fold")
    checks.exactly(np.datetime64, utc, "a timestamp")
    if utc.dtype not in _DATES:
        raise ValueError(f"expected a timestamp in {', '.join(_UNITS)}, found {utc.dtype}")
    value: Any = pd.Timestamp(utc)
    tz = _tz(zone)
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
    if tree.dtype not in _SPANS:
        raise ValueError(f"expected a timedelta in {', '.join(_UNITS)}, found {tree.dtype}")
    value = pd.Timedelta(tree)
    if type(value) is not pd.Timedelta:
        raise ValueError("expected a timedelta, found none")
    return value


def _of_period(value: pd.Period) -> dict[str, Any]:
    return {"ordinal": int(value.ordinal), "freq": _of_period_freq(value)}


def _period(tree: Any) -> Any:
    ordinal, freq = checks.fields(tree, "ordinal", "freq")
    checks.exactly(int, ordinal, "a period")
    value = pd.Period(ordinal=ordinal, freq=_period_dtype(freq).freq)
    if type(value) is not pd.Period:
        raise ValueError("expected a period, found none")
    return value


def _of_period_freq(value: Any) -> str:
    # Periods have names of their own: M for what is ME for dates.
    name = str(value.freqstr)
    try:
        known = len(name) <= _MAX_NAME and pd.PeriodDtype(name).freq == value.freq
    except (ValueError, TypeError):
        known = False
    if not known:
        raise ValueTypeError(
            f"expected a freq that its name tells in full, found {value.freq!r}: use asfreq()"
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


# The values of a series, an index or a block: an array, a tree of objects, or an extension array.


def _of_values(values: Any) -> Any:
    """Of a series, an index or a NumpyExtensionArray."""
    if isinstance(values.dtype, np.dtype) or type(values) is pd.arrays.NumpyExtensionArray:
        return _of_plain(values.to_numpy(copy=False))
    # Of a frame and of its column it is the same array, which pandas keeps count of; what is read
    # must not be one array in two hands that do not know of each other.
    return values.array if isinstance(values, pd.Index) else values.array.view()


def _of_plain(array: np.ndarray) -> Any:
    return objects.to_tree(array) if array.dtype == object else array.view()


def _values(tree: Any, ndim: int = 1) -> Any:
    if type(tree) is dict:
        found: Any = objects.from_tree(tree)
    elif isinstance(tree, pd.api.extensions.ExtensionArray):
        found = tree
    else:
        found = checks.array(tree, "values")
        dtype = found.dtype
        if dtype.kind in "mM" and dtype not in _DATES + _SPANS:
            raise ValueError(f"expected dates in {', '.join(_UNITS)}, found {dtype}")
        if dtype.kind not in "biufcmMSV" or dtype.names is not None:
            raise ValueError(f"expected values of a dtype that pandas keeps, found {dtype}")
    if found.ndim != ndim:
        raise ValueError(f"expected values in {ndim} dimensions, found shape {found.shape}")
    return found


def _flat(array: Any) -> Any:
    """An extension array that is no row or column of a frame by itself."""
    if array.ndim != 1:
        raise ValueTypeError(
            f"expected an array of pandas in one dimension, found shape {array.shape}: use "
            "array.ravel()"
        )
    return array


# Extension arrays.


def _of_numpy(array: Any) -> dict[str, Any]:
    return {"values": _of_values(_flat(array))}


def _numpy(tree: Any) -> Any:
    (values,) = checks.fields(tree, "values")
    found = _values(values)
    if not isinstance(found, np.ndarray):
        raise TypeError(f"expected an array, found {checks.shown(found)}")
    return pd.arrays.NumpyExtensionArray(found)


def _of_masked(array: Any) -> dict[str, Any]:
    # What lies under the mask has no public name.
    return {"values": _flat(array)._data.view(), "mask": array._mask.view()}


def _masked(kind: type[Any], kinds: str) -> Callable[[Any], Any]:
    def from_tree(tree: Any) -> Any:
        values, mask = checks.fields(tree, "values", "mask")
        checks.array(values, "values", ndim=1, kinds=kinds)
        checks.array(mask, "a mask", ndim=1, kinds="b")
        checks.same_length("values and mask", values, mask)
        if not values.dtype.isnative or values.dtype.itemsize > 8:
            raise ValueError(f"expected values of a dtype that pandas keeps, found {values.dtype}")
        return kind(values, mask, copy=False)

    return from_tree


def _of_text(array: Any) -> dict[str, Any]:
    missing = np.asarray(_flat(array).isna())
    elements = np.asarray(array, object)
    if missing.any():
        elements = np.where(missing, "", elements)
    characters, offsets = text.pack(elements.tolist())
    return {
        "storage": array.dtype.storage,
        "na": array.dtype.na_value is pd.NA,
        "characters": characters,
        "offsets": offsets,
        "missing": missing if missing.any() else None,
    }


def _text(kind: type[Any]) -> Callable[[Any], Any]:
    def from_tree(tree: Any) -> Any:
        storage, na, characters, offsets, missing = checks.fields(
            tree, "storage", "na", "characters", "offsets", "missing"
        )
        checks.exactly(str, storage, "a storage of strings")
        if storage not in ("python", "pyarrow"):
            raise ValueError(f"expected python or pyarrow as storage, found {storage[:40]}")
        options = {} if checks.exactly(bool, na, "na") else {"na_value": np.nan}
        dtype = pd.StringDtype(storage, **options)
        elements = objects.strings(characters, offsets)
        if missing is not None:
            checks.array(missing, "what is missing", ndim=1, kinds="b")
            checks.same_length("strings and what is missing", missing, elements)
            elements[missing] = dtype.na_value
        return _exactly(kind, pd.array(elements, dtype=dtype, copy=False), dtype)

    return from_tree


def _of_categorical(array: pd.Categorical) -> dict[str, Any]:
    return {
        "codes": _flat(array).codes,
        "categories": array.categories,
        "ordered": bool(array.ordered),
    }


def _categorical(tree: Any) -> Any:
    codes, categories, ordered = checks.fields(tree, "codes", "categories", "ordered")
    checks.array(codes, "codes", ndim=1, kinds="i")
    checks.exactly(bool, ordered, "ordered")
    # Codes out of bounds crash pandas.
    checks.within(codes, -1, len(_is_index(categories)), "codes")
    if not codes.dtype.isnative:
        raise ValueError(f"expected codes in the machine's byte order, found {codes.dtype}")
    dtype = pd.CategoricalDtype(categories, ordered)
    return pd.Categorical.from_codes(codes, dtype=dtype, validate=False)


def _of_dates(array: Any) -> dict[str, Any]:
    return {"values": _plain_dates(_flat(array)), "tz": _of_tz(array.tz)}


def _plain_dates(array: Any) -> np.ndarray:
    """Dates (in UTC) or durations as NumPy has them."""
    letter = "m" if isinstance(array, pd.arrays.TimedeltaArray) else "M"
    dates: np.ndarray = array.asi8.view(f"{letter}8[{array.unit}]")
    return dates


def _dates(tree: Any) -> Any:
    values, zone = checks.fields(tree, "values", "tz")
    checks.array(values, "dates", ndim=1)
    if values.dtype not in _DATES:
        raise ValueError(f"expected dates in {', '.join(_UNITS)}, found {values.dtype}")
    tz = _tz(zone)
    if tz is None:
        return pd.DatetimeIndex(values, copy=False).array
    unit = np.datetime_data(values.dtype)[0]
    # Public ways from dates in UTC to ones in a zone copy.
    return pd.arrays.DatetimeArray._simple_new(values, dtype=pd.DatetimeTZDtype(unit, tz))


def _of_spans(array: Any) -> dict[str, Any]:
    return {"values": _plain_dates(_flat(array))}


def _spans(tree: Any) -> Any:
    (values,) = checks.fields(tree, "values")
    checks.array(values, "durations", ndim=1)
    if values.dtype not in _SPANS:
        raise ValueError(f"expected durations in {', '.join(_UNITS)}, found {values.dtype}")
    return pd.TimedeltaIndex(values, copy=False).array


def _of_periods(array: Any) -> dict[str, Any]:
    return {"ordinals": _flat(array).asi8.view(), "freq": _of_period_freq(array)}


def _periods(tree: Any) -> Any:
    ordinals, freq = checks.fields(tree, "ordinals", "freq")
    checks.array(ordinals, "periods", ndim=1)
    if ordinals.dtype != np.dtype(np.int64):
        raise ValueError(f"expected periods of int64, found {ordinals.dtype}")
    return pd.arrays.PeriodArray(ordinals, dtype=_period_dtype(freq))


def _of_intervals(array: Any) -> dict[str, Any]:
    return {"left": array.left, "right": array.right, "closed": array.closed}


def _intervals(tree: Any) -> Any:
    left, right, closed = checks.fields(tree, "left", "right", "closed")
    checks.exactly(str, closed, "closed")
    checks.same_length("ends of intervals", _is_index(left), _is_index(right))
    array = pd.arrays.IntervalArray.from_arrays(left, right, closed, copy=False)
    return _exactly(pd.arrays.IntervalArray, array, pd.IntervalDtype(left.dtype, closed))


def _of_sparse(array: Any) -> dict[str, Any]:
    index = array.sp_index
    blocks = isinstance(index, BlockIndex)
    return {
        "values": _of_plain(np.asarray(array.sp_values)),
        "fill_value": array.fill_value,
        "length": int(index.length),
        "starts": np.asarray(index.blocs if blocks else index.indices),
        "lengths": np.asarray(index.blengths) if blocks else None,
    }


def _sparse(tree: Any) -> Any:
    values, fill, length, starts, lengths = checks.fields(
        tree, "values", "fill_value", "length", "starts", "lengths"
    )
    checks.exactly(int, length, "a length")
    if not 0 <= length < 1 << 31:
        raise ValueError(f"expected a length of 31 bits, found {checks.shown(length)}")
    plain = _values(values)
    for each in (starts,) if lengths is None else (starts, lengths):
        checks.array(each, "sparse indices", ndim=1)
        if each.dtype != np.dtype(np.int32):
            raise ValueError(f"expected sparse indices of int32, found {each.dtype}")
        checks.within(each, 0, length + 1, "sparse indices")
    if lengths is None:
        index: Any = IntIndex(length, starts)
    else:
        checks.same_length("blocks of sparse values", starts, lengths)
        # pandas compares ends of int32, which may overflow.
        ends = starts.astype(np.int64) + lengths
        if (ends > length).any() or (ends[:-1] > starts[1:]).any() or (lengths == 0).any():
            raise ValueError("expected blocks of sparse values in order, found others")
        index = BlockIndex(length, starts, lengths)
    if index.npoints != len(plain) or not isinstance(plain, np.ndarray):
        raise ValueError(f"expected {index.npoints} sparse values, found {len(plain)}")
    dtype = pd.SparseDtype(plain.dtype, fill)
    array = pd.arrays.SparseArray._simple_new(plain, index, dtype)
    return _exactly(pd.arrays.SparseArray, array, dtype)


def _exactly(kind: type[Any], found: Any, dtype: Any) -> Any:
    """That pandas has made what was stored, and nothing that it likes better."""
    if type(found) is not kind or found.dtype != dtype:
        raise ValueError(
            f"expected a {kind.__name__} of {dtype}, found {type(found).__name__} of {found.dtype}"
        )
    return found


# Indices.


def _is_index(value: Any) -> Any:
    if not isinstance(value, pd.Index):
        raise TypeError(f"expected an index, found {checks.shown(value)}")
    return value


def _of_index(index: pd.Index) -> dict[str, Any]:
    return {"values": _of_values(index), "name": index.name}


def _index(kind: type[Any]) -> Callable[[Any], Any]:
    options: dict[str, Any] = {"tupleize_cols": False} if kind is pd.Index else {}

    def from_tree(tree: Any) -> Any:
        values, name = checks.fields(tree, "values", "name")
        hash(name)
        found = _values(values)
        if found.dtype == object:
            # pandas must not look for what else they might be.
            index = kind(found, dtype=object, copy=False, name=name, **options)
        else:
            index = kind(found, copy=False, name=name, **options)
        return _exactly(kind, index, found.dtype)

    return from_tree


def _of_timed_index(index: Any) -> dict[str, Any]:
    return {**_of_index(index), "freq": _of_freq(index.freq)}


def _timed_index(kind: type[Any]) -> Callable[[Any], Any]:
    plain = _index(kind)

    def from_tree(tree: Any) -> Any:
        values, name, freq = checks.fields(tree, "values", "name", "freq")
        index = plain({"values": values, "name": name})
        if freq is not None:
            # Compared with all that is in the index.
            index.freq = _freq(freq)
        return index

    return from_tree


def _of_range(index: pd.RangeIndex) -> dict[str, Any]:
    return {"range": range(index.start, index.stop, index.step), "name": index.name}


def _range(tree: Any) -> Any:
    numbers, name = checks.fields(tree, "range", "name")
    checks.exactly(range, numbers, "a range")
    hash(name)
    if any(not -(1 << 63) <= end < 1 << 63 for end in (numbers.start, numbers.stop, numbers.step)):
        raise ValueError("expected a range of 64 bits, found one of more")
    return pd.RangeIndex.from_range(numbers, name=name)


def _of_multi(index: pd.MultiIndex) -> dict[str, Any]:
    return {
        "levels": list(index.levels),
        "codes": [np.asarray(codes) for codes in index.codes],
        "names": list(index.names),
        # xarray gives the whole one, too.
        "name": index.name,
        "sortorder": index.sortorder,
    }


def _multi(tree: Any) -> Any:
    levels, codes, names, name, sortorder = checks.fields(
        tree, "levels", "codes", "names", "name", "sortorder"
    )
    for each in (levels, codes, names):
        checks.exactly(list, each, "a list of each level's")
    checks.same_length("levels, codes and names", levels, codes, names)
    for level, each in zip(levels, codes, strict=True):
        checks.array(each, "codes", ndim=1, kinds="i")
        checks.within(each, -1, len(_is_index(level)), "codes")
    checks.same_length("codes", *codes)
    if sortorder is not None:
        checks.exactly(int, sortorder, "sortorder")
    index = pd.MultiIndex(levels, codes, sortorder=sortorder, names=names, copy=False)
    if name is not None:
        hash(name)
        index.name = name
    return index


# Series and frames.


def _of_common(value: Any) -> dict[str, Any]:
    return {
        "attrs": dict(value.attrs),
        "allows_duplicate_labels": bool(value.flags.allows_duplicate_labels),
    }


def _with_common(value: Any, attrs: Any, duplicates: Any) -> Any:
    if checks.exactly(dict, attrs, "attrs"):
        value.attrs = attrs
    if not checks.exactly(bool, duplicates, "allows_duplicate_labels"):
        value.flags.allows_duplicate_labels = False
    return value


def _of_series(series: pd.Series) -> dict[str, Any]:
    return {
        "values": _of_values(series),
        "index": series.index,
        "name": series.name,
        **_of_common(series),
    }


def _series(tree: Any) -> Any:
    values, index, name, attrs, duplicates = checks.fields(
        tree, "values", "index", "name", "attrs", "allows_duplicate_labels"
    )
    hash(name)
    found = _values(values)
    checks.same_length("values and index", found, _is_index(index))
    # A dtype that is told is not inferred.
    series = pd.Series(found, index=index, dtype=found.dtype, name=name, copy=False)
    return _with_common(_exactly(pd.Series, series, found.dtype), attrs, duplicates)


def _of_frame(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": frame.columns,
        "index": frame.index,
        "blocks": list(_blocks(frame)),
        **_of_common(frame),
    }


def _blocks(frame: pd.DataFrame) -> Iterable[tuple[Any, Any]]:
    """Which columns lie together, and their values: as an array, a column is one row of it.

    pandas has a public way to make a frame of blocks, and none to get at them; pyarrow, joblib and
    dask do as is done here.
    """
    for block in frame._mgr.blocks:
        places, values = block.mgr_locs.as_array, block.values
        if isinstance(values.dtype, np.dtype) and not isinstance(values, np.ndarray):
            values = _plain_dates(values)
        if isinstance(values, np.ndarray):
            yield _of_places(places), _of_plain(values)
        elif values.ndim == 1:
            yield _of_places(places), values.view()
        else:
            for place, row in zip(places.tolist(), values, strict=True):
                yield range(place, place + 1), row


def _of_places(places: np.ndarray) -> range | np.ndarray:
    first, count = int(places[0]), len(places)
    step = int(places[1]) - first if count > 1 else 1
    found = range(first, first + count * step, step) if step else range(0)
    return found if list(found) == places.tolist() else places.astype(np.int64)


def _places(tree: Any, columns: int) -> np.ndarray:
    if type(tree) is range:
        if len(tree) > columns:
            raise ValueError(f"expected places of {columns} columns, found {len(tree)}")
        tree = np.array(tree, np.int64)
    checks.index_array(tree, "places of columns")
    checks.within(tree, 0, columns, "places of columns")
    places: np.ndarray = tree.astype(np.intp)
    return places


def _frame(tree: Any) -> Any:
    columns, index, blocks, attrs, duplicates = checks.fields(
        tree, "columns", "index", "blocks", "attrs", "allows_duplicate_labels"
    )
    rows, count = len(_is_index(index)), len(_is_index(columns))
    checks.exactly(list, blocks, "blocks")
    found, seen = [], np.zeros(count, bool)
    for block in blocks:
        if type(block) is not tuple or len(block) != 2:
            raise TypeError(f"expected a block's places and values, found {checks.shown(block)}")
        places = _places(block[0], count)
        is_array = not isinstance(block[1], pd.api.extensions.ExtensionArray)
        values = _values(block[1], 2 if is_array else 1)
        if values.shape != ((len(places), rows) if is_array else (rows,)) or (
            not is_array and len(places) != 1
        ):
            raise ValueError(
                f"expected {len(places)} columns of {rows} values, found shape {values.shape}"
            )
        if seen[places].any() or len(set(places.tolist())) != len(places):
            raise ValueError("expected each column once, found one twice")
        seen[places] = True
        found.append((values, places))
    if not seen.all():
        raise ValueError(f"expected {count} columns, found {int(seen.sum())}")
    return _with_common(_assemble(found, index, columns), attrs, duplicates)


def _assemble(blocks: list[tuple[Any, np.ndarray]], index: Any, columns: Any) -> Any:
    try:
        from pandas.api.internals import create_dataframe_from_blocks
    except ImportError:  # pandas before 3: the same columns, each in a block of its own
        series: dict[int, Any] = {}
        for values, places in blocks:
            rows = values if values.ndim == 2 else [values]
            for place, row in zip(places.tolist(), rows, strict=True):
                series[place] = pd.Series(row, index=index, dtype=row.dtype, copy=False)
        frame = pd.DataFrame(dict(sorted(series.items())), index=index, copy=False)
        frame.columns = columns
        return frame
    return create_dataframe_from_blocks(blocks, index, columns)


def _register_all() -> None:
    arrays = pd.arrays
    types: list[tuple[Any, Callable[[Any], Any], Callable[[Any], Any], str]] = [
        (pd.Timestamp, _of_timestamp, _timestamp, "Timestamp"),
        (pd.Timedelta, _of_timedelta, _timedelta, "Timedelta"),
        (pd.Period, _of_period, _period, "Period"),
        (pd.Interval, _of_interval, _interval, "Interval"),
        (type(pd.NaT), *_constant(pd.NaT), "NaT"),
        (type(pd.NA), *_constant(pd.NA), "NA"),
        (arrays.NumpyExtensionArray, _of_numpy, _numpy, "arrays.NumpyExtensionArray"),
        (pd.Categorical, _of_categorical, _categorical, "Categorical"),
        (arrays.DatetimeArray, _of_dates, _dates, "arrays.DatetimeArray"),
        (arrays.TimedeltaArray, _of_spans, _spans, "arrays.TimedeltaArray"),
        (arrays.PeriodArray, _of_periods, _periods, "arrays.PeriodArray"),
        (arrays.IntervalArray, _of_intervals, _intervals, "arrays.IntervalArray"),
        (arrays.SparseArray, _of_sparse, _sparse, "arrays.SparseArray"),
        (pd.RangeIndex, _of_range, _range, "RangeIndex"),
        (pd.MultiIndex, _of_multi, _multi, "MultiIndex"),
        (pd.Series, _of_series, _series, "Series"),
        (pd.DataFrame, _of_frame, _frame, "DataFrame"),
    ]
    for kind, to_tree, from_tree, name in types:
        register(kind, to_tree, from_tree, name=f"pandas.{name}")
    for array, kinds in (
        (arrays.IntegerArray, "iu"),
        (arrays.FloatingArray, "f"),
        (arrays.BooleanArray, "b"),
    ):
        name = f"pandas.arrays.{array.__name__}"
        register(array, _of_masked, _masked(array, kinds), name=name)
    for array in (arrays.StringArray, arrays.ArrowStringArray):
        register(array, _of_text, _text(array), name=f"pandas.arrays.{array.__name__}")
    for index in (pd.Index, pd.CategoricalIndex, pd.IntervalIndex, pd.PeriodIndex):
        register(index, _of_index, _index(index), name=f"pandas.{index.__name__}")
    for index in (pd.DatetimeIndex, pd.TimedeltaIndex):
        register(index, _of_timed_index, _timed_index(index), name=f"pandas.{index.__name__}")


_register_all()
