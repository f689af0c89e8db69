"""What comes back exactly: how each kind of variable and index is described, and made again.

Arrays of NumPy are stored as they are.  What is none, as an extension array of pandas, Python
objects or dates of cftime, is stored as something that tells it exactly; what nothing tells exactly
is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core import indexing
from xarray.indexes import PandasIndex, PandasMultiIndex

from arraychest.errors import ArrayChestError, ValueTypeError
from arraychest.integrations import checks, objects, pandas_scalars
from arraychest.integrations.xarray import encoding_from_tree, index_from_tree, index_to_tree
from arraychest.values.accept import Own, accept
from arraychest.xarray.encoding import Decoding, packed, unpacked
from arraychest.xarray.layout import ARRAY, OBJECTS, PICKLED, STRINGS, VALUE

# Exact for all dates of cftime: they count microseconds.
_CFTIME_UNITS = "microseconds since 2000-01-01"


def checked(name: Hashable, variable: xr.Variable, own: Own) -> tuple[str, Any, dict[str, Any]]:
    """How a variable is stored, what of it is, and what its description says beside that.

    It reads a variable of Python objects, and computes one of dask; of others it reads nothing.

    Raises
    ------
    ValueTypeError
        It would not come back the same.
    """
    dtype, data = variable.dtype, variable._data
    if not isinstance(dtype, np.dtype):
        return VALUE, _extension(name, variable, own), {}
    if variable.chunks is None and not isinstance(data, np.ndarray | indexing.ExplicitlyIndexed):
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be an array of NumPy or of dask, found "
            f"{type(data).__module__}.{type(data).__qualname__}: convert it, or drop it with "
            f"dataset.drop_vars({name!r:.200})"
        )
    if dtype.kind == "T":
        accept(np.empty((0,) * variable.ndim, dtype), own)
        return STRINGS, variable, {"dtype": np.empty(0, dtype)}
    if not dtype.hasobject:
        if variable.chunks is None:
            accept(np.empty((0,) * variable.ndim, dtype), own)
        else:
            from arraychest.integrations.dask_storing import check

            check(data)
        return ARRAY, variable, {}
    return _of_objects(name, variable, np.asarray(variable.values), own)


def extension_array(variable: xr.Variable) -> Any:
    """The array of pandas that a variable consists of."""
    data = variable.data
    data = getattr(data, "array", data)
    is_array = isinstance(data, pd.api.extensions.ExtensionArray)
    return data if is_array else variable.to_index().array


def _extension(name: Hashable, variable: xr.Variable, own: Own) -> Any:
    data = extension_array(variable)
    try:
        accept(data, own)
    except ArrayChestError as error:
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be of a dtype of NumPy or of one that pandas "
            f"itself has, found {variable.dtype} ({error}): use astype"
        ) from error
    return data


def _of_objects(
    name: Hashable, variable: xr.Variable, array: np.ndarray, own: Own
) -> tuple[str, Any, dict[str, Any]]:
    if array.dtype != variable.dtype:  # what dask says of its blocks need not be so
        return checked(name, xr.Variable(variable.dims, array, variable.attrs), own)
    if array.dtype != object:  # structured, with objects in it
        accept(array, own)
        return ARRAY, variable, {}
    elements = list(array.flat)
    if elements and all(type(each) is str for each in elements):
        strings = xr.Variable(
            variable.dims, array.astype(np.dtypes.StringDType()), variable.attrs, fastpath=True
        )
        return STRINGS, strings, {"dtype": "object"}
    if elements and type(elements[0]).__module__.partition(".")[0] == "cftime":
        dates = xr.Variable(variable.dims, array, variable.attrs, fastpath=True)
        return ARRAY, _of_dates(name, dates), {"packed": "cftime"}
    try:
        # Without pickle where that can be: then it is also read lazily.
        accept(objects.to_tree(array), own._replace(allow_pickle=False))
    except ArrayChestError as error:
        if own.allow_pickle:
            accept(array, own)
            return PICKLED, array, {}
        raise ValueTypeError(
            f"expected the elements of the variable {name!r:.200} to be values that a chest "
            f"stores, found others: {error}"
        ) from error
    return OBJECTS, xr.Variable(variable.dims, array, fastpath=True), {"dtype": "object"}


def _of_dates(name: Hashable, variable: xr.Variable) -> xr.Variable:
    """Dates of cftime as numbers that tell them exactly."""
    array: Any = variable._data
    calendar = getattr(array.flat[0], "calendar", "")
    packing = {"units": _CFTIME_UNITS, "calendar": calendar, "dtype": np.dtype("i8")}
    remedy = f"convert it, or drop it with dataset.drop_vars({name!r:.200})"
    if {"units", "calendar"} & set(variable.attrs):
        raise ValueTypeError(
            f"expected the variable {name!r:.200} of dates of cftime to have no attribute "
            f"'units' or 'calendar', found one: delete it from its attrs"
        )
    try:
        found = packed(name, variable, packing)
        again: Any = unpacked(name, found, {"packed": "cftime"}, Decoding()).values
        is_exact = all(
            one == other and _sort(one) == _sort(other)
            for one, other in zip(array.flat, again.flat, strict=True)
        )
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to have dates of one calendar of cftime, found "
            f"others: {error}; {remedy}"
        ) from error
    if not is_exact:
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to have dates of cftime that numbers of "
            f"{_CFTIME_UNITS} tell, found others: {remedy}"
        )
    return found


def _sort(date: Any) -> Any:
    return date.calendar, getattr(date, "has_year_zero", None)


# Indexes.


def checked_indexes(
    dataset: xr.Dataset, own: Own
) -> tuple[dict[Hashable, Any], dict[Hashable, dict[str, Any]]]:
    """Which coordinates have the index that xarray makes of their values, and the other indexes.

    Returns
    -------
    dict, dict
        By name, the frequency of an index of dates, and else None; and by the name of the first
        coordinate of each other index what tells it exactly.

    Raises
    ------
    ValueTypeError
        There is an index of another kind.
    """
    plain: dict[Hashable, Any] = {}
    others: dict[Hashable, dict[str, Any]] = {}
    for index, members in dataset.xindexes.group_by_index():
        name = next(iter(members))
        if type(index) is PandasIndex and _is_plain(name, members[name], index):
            plain[name] = _freq_of(name, index.index)
            continue
        if type(index) in (PandasIndex, PandasMultiIndex):
            tree = index_to_tree(index, members)
        elif type(index) is getattr(xr.indexes, "RangeIndex", None):
            tree = _of_range(index)
        else:
            raise ValueTypeError(
                f"expected an index of pandas, or xarray's RangeIndex, of the coordinate "
                f"{name!r:.200}, found {type(index).__name__}: use "
                f"dataset.drop_indexes({list(members)!r:.200})"
            )
        try:
            accept(tree, own)
        except ArrayChestError as error:
            raise ValueTypeError(
                f"expected the index of the coordinate {name!r:.200} to be one that a chest "
                f"stores, found another: {error}; use dataset.drop_indexes({list(members)!r:.200})"
            ) from error
        others[name] = {"tree": tree, "members": list(members)}
    return plain, others


def _is_plain(name: Hashable, variable: xr.Variable, index: PandasIndex) -> bool:
    """Whether xarray makes the same index of the coordinate's values."""
    if not isinstance(variable.dtype, np.dtype) or index.index.name != name:
        return False
    made = xr.Variable(variable.dims, np.asarray(variable.values))
    again = PandasIndex.from_variables({name: made}, options={})
    return (
        type(again.index) is type(index.index)
        and again.index.equals(index.index)
        and again.index.dtype == index.index.dtype
        and again.coord_dtype == index.coord_dtype
    )


def _freq_of(name: Hashable, index: pd.Index) -> Any:
    if not isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex):
        return None
    try:
        return pandas_scalars.of_freq(index.freq)
    except ArrayChestError as error:
        raise ValueTypeError(
            f"expected the coordinate {name!r:.200} to have a frequency that its name tells: "
            f"{error}"
        ) from error


def _of_range(index: Any) -> dict[str, Any]:
    transform = index.transform
    return {
        "start": float(transform.start),
        "stop": float(transform.stop),
        "size": int(transform.size),
        "step": None if transform._step is None else float(transform._step),
        "name": transform.coord_name,
        "dim": transform.dim,
        "dtype": np.empty(0, transform.dtype),
    }


def plain_index(name: Hashable, variable: xr.Variable, freq: Any) -> PandasIndex:
    """The index that xarray makes of a coordinate's values, with its frequency."""
    found = PandasIndex.from_variables({name: variable}, options={})
    if freq is not None:
        dates = found.index.copy()
        dates.freq = pandas_scalars.freq_of(freq)  # compared with all that is in the index
        found = PandasIndex(dates, found.dim, found.coord_dtype)
    return found


def index_made(tree: Any, variables: Mapping[Hashable, Mapping[str, Any]]) -> Any:
    """The index again, and its coordinates.

    Parameters
    ----------
    tree
        As `checked_indexes` made it; a stranger may have written it.
    variables
        The descriptions of all variables: the coordinates' attributes are there.
    """
    is_range = type(tree) is dict and "start" in tree
    index = _range(tree) if is_range else index_from_tree(tree)
    made = index.create_variables()
    for name, variable in made.items():
        variable.attrs = checks.exactly(dict, variables[name]["attrs"], "attrs")
        variable.encoding = encoding_from_tree(variables[name].get("encoding") or [])
    return index, made


def _range(tree: Any) -> Any:
    from xarray.indexes.range_index import RangeCoordinateTransform, RangeIndex

    start, stop, size, step, name, dim, dtype = checks.fields(
        tree, "start", "stop", "size", "step", "name", "dim", "dtype"
    )
    for each in (start, stop):
        checks.exactly(float, each, "an end of a range")
    checks.exactly(int, size, "the size of a range")
    transform = RangeCoordinateTransform(
        start, stop, size, name, dim, checks.array(dtype, "a dtype").dtype
    )
    if step is not None:
        transform._step = checks.exactly(float, step, "the step of a range")
    return RangeIndex(transform)
