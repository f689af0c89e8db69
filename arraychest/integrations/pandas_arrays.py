"""The arrays that pandas makes columns and indices of.

Where pandas has no public way in or out that copies nothing, what it uses itself is used here, and
said so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pandas._libs.sparse import BlockIndex, IntIndex  # the only way to make one

from arraychest.errors import ValueTypeError
from arraychest.integrations import checks, objects, pandas_scalars, text
from arraychest.values.registry import register


def of_values(values: Any) -> Any:
    """What the values of a series, an index or a NumpyExtensionArray are stored as.

    An array, a tree of objects (see `objects`), or an extension array.
    """
    if isinstance(values.dtype, np.dtype) or type(values) is pd.arrays.NumpyExtensionArray:
        return of_plain(values.to_numpy(copy=False))
    # Of a frame and of its column it is the same array, which pandas keeps count of; what is read
    # must not be one array in two hands that do not know of each other.
    return values.array if isinstance(values, pd.Index) else values.array.view()


def of_plain(array: np.ndarray) -> Any:
    """What an array of NumPy's is stored as."""
    return objects.to_tree(array) if array.dtype == object else array.view()


def values_of(tree: Any, ndim: int = 1) -> Any:
    """The values again: an array of NumPy's or of pandas'."""
    if type(tree) is dict:
        found: Any = objects.from_tree(tree)
    elif isinstance(tree, pd.api.extensions.ExtensionArray):
        found = tree
    else:
        found = checks.array(tree, "values")
        dtype = found.dtype
        if dtype.kind in "mM" and dtype not in pandas_scalars.DATES + pandas_scalars.SPANS:
            raise ValueError(f"expected dates in {', '.join(pandas_scalars.UNITS)}, found {dtype}")
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


def _of_numpy(array: Any) -> dict[str, Any]:
    return {"values": of_values(_flat(array))}


def _numpy(tree: Any) -> Any:
    (values,) = checks.fields(tree, "values")
    found = values_of(values)
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
        return exactly(kind, pd.array(elements, dtype=dtype, copy=False), dtype)

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
    checks.within(codes, -1, len(is_index(categories)), "codes")
    if not codes.dtype.isnative:
        raise ValueError(f"expected codes in the machine's byte order, found {codes.dtype}")
    dtype = pd.CategoricalDtype(categories, ordered)
    return pd.Categorical.from_codes(codes, dtype=dtype, validate=False)


def _of_dates(array: Any) -> dict[str, Any]:
    return {"values": plain_dates(_flat(array)), "tz": pandas_scalars.of_tz(array.tz)}


def plain_dates(array: Any) -> np.ndarray:
    """Dates (in UTC) or durations as NumPy has them."""
    letter = "m" if isinstance(array, pd.arrays.TimedeltaArray) else "M"
    dates: np.ndarray = array.asi8.view(f"{letter}8[{array.unit}]")
    return dates


def _dates(tree: Any) -> Any:
    values, zone = checks.fields(tree, "values", "tz")
    checks.array(values, "dates", ndim=1)
    if values.dtype not in pandas_scalars.DATES:
        raise ValueError(
            f"expected dates in {', '.join(pandas_scalars.UNITS)}, found {values.dtype}"
        )
    tz = pandas_scalars.tz_of(zone)
    if tz is None:
        return pd.DatetimeIndex(values, copy=False).array
    unit = np.datetime_data(values.dtype)[0]
    # Public ways from dates in UTC to ones in a zone copy.
    return pd.arrays.DatetimeArray._simple_new(values, dtype=pd.DatetimeTZDtype(unit, tz))


def _of_spans(array: Any) -> dict[str, Any]:
    return {"values": plain_dates(_flat(array))}


def _spans(tree: Any) -> Any:
    (values,) = checks.fields(tree, "values")
    checks.array(values, "durations", ndim=1)
    if values.dtype not in pandas_scalars.SPANS:
        raise ValueError(
            f"expected durations in {', '.join(pandas_scalars.UNITS)}, found {values.dtype}"
        )
    return pd.TimedeltaIndex(values, copy=False).array


def _of_periods(array: Any) -> dict[str, Any]:
    return {"ordinals": _flat(array).asi8.view(), "freq": pandas_scalars.of_period_freq(array)}


def _periods(tree: Any) -> Any:
    ordinals, freq = checks.fields(tree, "ordinals", "freq")
    checks.array(ordinals, "periods", ndim=1)
    if ordinals.dtype != np.dtype(np.int64):
        raise ValueError(f"expected periods of int64, found {ordinals.dtype}")
    return pd.arrays.PeriodArray(ordinals, dtype=pandas_scalars.period_dtype_of(freq))


def _of_intervals(array: Any) -> dict[str, Any]:
    return {"left": array.left, "right": array.right, "closed": array.closed}


def _intervals(tree: Any) -> Any:
    left, right, closed = checks.fields(tree, "left", "right", "closed")
    checks.exactly(str, closed, "closed")
    checks.same_length("ends of intervals", is_index(left), is_index(right))
    array = pd.arrays.IntervalArray.from_arrays(left, right, closed, copy=False)
    return exactly(pd.arrays.IntervalArray, array, pd.IntervalDtype(left.dtype, closed))


def _of_sparse(array: Any) -> dict[str, Any]:
    index = array.sp_index
    blocks = isinstance(index, BlockIndex)
    return {
        "values": of_plain(np.asarray(array.sp_values)),
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
    plain = values_of(values)
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
    return exactly(pd.arrays.SparseArray, array, dtype)


def exactly(kind: type[Any], found: Any, dtype: Any) -> Any:
    """That pandas has made what was stored, and nothing that it likes better."""
    if type(found) is not kind or found.dtype != dtype:
        raise ValueError(
            f"expected a {kind.__name__} of {dtype}, found {type(found).__name__} of {found.dtype}"
        )
    return found


def is_index(value: Any) -> Any:
    """The value, which is an index."""
    if not isinstance(value, pd.Index):
        raise TypeError(f"expected an index, found {checks.shown(value)}")
    return value


def _register_all() -> None:
    arrays = pd.arrays
    types: list[tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = [
        (arrays.NumpyExtensionArray, _of_numpy, _numpy),
        (arrays.DatetimeArray, _of_dates, _dates),
        (arrays.TimedeltaArray, _of_spans, _spans),
        (arrays.PeriodArray, _of_periods, _periods),
        (arrays.IntervalArray, _of_intervals, _intervals),
        (arrays.SparseArray, _of_sparse, _sparse),
        (arrays.IntegerArray, _of_masked, _masked(arrays.IntegerArray, "iu")),
        (arrays.FloatingArray, _of_masked, _masked(arrays.FloatingArray, "f")),
        (arrays.BooleanArray, _of_masked, _masked(arrays.BooleanArray, "b")),
        (arrays.StringArray, _of_text, _text(arrays.StringArray)),
        (arrays.ArrowStringArray, _of_text, _text(arrays.ArrowStringArray)),
    ]
    for kind, to_tree, from_tree in types:
        register(kind, to_tree, from_tree, name=f"pandas.arrays.{kind.__name__}")
    register(pd.Categorical, _of_categorical, _categorical, name="pandas.Categorical")


_register_all()
