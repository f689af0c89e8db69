"""pandas: series, frames, every index, the arrays that columns are made of, and scalars.

What is numbers, dates, durations, periods, codes of categories or masks is stored as the arrays
that pandas itself keeps, a frame block by block, and is mapped and not copied when it is read:
pandas then refuses to write to it, as NumPy does, until it is copied (``frame.copy()``).  Strings
and other Python objects are made anew.

All arrays are given away as views.  pandas shares a buffer among objects until one of them is
written to, so it must not look as if a chest could have it for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from arraychest.integrations import checks, pandas_arrays, pandas_scalars
from arraychest.values.registry import register


def _of_index(index: pd.Index) -> dict[str, Any]:
    return {"values": pandas_arrays.of_values(index), "name": index.name}


def _index(kind: type[Any]) -> Callable[[Any], Any]:
    options: dict[str, Any] = {"tupleize_cols": False} if kind is pd.Index else {}

    def from_tree(tree: Any) -> Any:
        values, name = checks.fields(tree, "values", "name")
        hash(name)
        found = pandas_arrays.values_of(values)
        if found.dtype == object:
            # pandas must not look for what else they might be.
            index = kind(found, dtype=object, copy=False, name=name, **options)
        else:
            index = kind(found, copy=False, name=name, **options)
        return pandas_arrays.exactly(kind, index, found.dtype)

    return from_tree


def _of_timed_index(index: Any) -> dict[str, Any]:
    return {**_of_index(index), "freq": pandas_scalars.of_freq(index.freq)}


def _timed_index(kind: type[Any]) -> Callable[[Any], Any]:
    plain = _index(kind)

    def from_tree(tree: Any) -> Any:
        values, name, freq = checks.fields(tree, "values", "name", "freq")
        index = plain({"values": values, "name": name})
        if freq is not None:
            # Compared with all that is in the index.
            index.freq = pandas_scalars.freq_of(freq)
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
        checks.within(each, -1, len(pandas_arrays.is_index(level)), "codes")
    checks.same_length("codes", *codes)
    if sortorder is not None:
        checks.exactly(int, sortorder, "sortorder")
    index = pd.MultiIndex(levels, codes, sortorder=sortorder, names=names, copy=False)
    if name is not None:
        hash(name)
        index.name = name
    return index


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
        "values": pandas_arrays.of_values(series),
        "index": series.index,
        "name": series.name,
        **_of_common(series),
    }


def _series(tree: Any) -> Any:
    values, index, name, attrs, duplicates = checks.fields(
        tree, "values", "index", "name", "attrs", "allows_duplicate_labels"
    )
    hash(name)
    found = pandas_arrays.values_of(values)
    checks.same_length("values and index", found, pandas_arrays.is_index(index))
    # A dtype that is told is not inferred.
    series = pd.Series(found, index=index, dtype=found.dtype, name=name, copy=False)
    return _with_common(pandas_arrays.exactly(pd.Series, series, found.dtype), attrs, duplicates)


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
    # Together and in one order whatever order the columns were added in: equal frames are one
    # argument of a cached function.
    together = sorted(frame._mgr.consolidate().blocks, key=lambda block: block.mgr_locs.as_array[0])
    for block in together:
        places, values = block.mgr_locs.as_array, block.values
        if isinstance(values.dtype, np.dtype) and not isinstance(values, np.ndarray):
            values = pandas_arrays.plain_dates(values)
        if isinstance(values, np.ndarray):
            yield _of_places(places), pandas_arrays.of_plain(values)
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
    rows, count = len(pandas_arrays.is_index(index)), len(pandas_arrays.is_index(columns))
    checks.exactly(list, blocks, "blocks")
    for block in blocks:
        if type(block) is not tuple or len(block) != 2:
            raise TypeError(f"expected a block's places and values, found {checks.shown(block)}")
    # Before anything is made as long as a range claims to be.
    if sum([len(places) for places, _ in blocks]) != count:
        raise ValueError(f"expected {count} columns in all blocks, found others")
    found, seen = [], np.zeros(count, bool)
    for where, tree_of_values in blocks:
        is_array = not isinstance(tree_of_values, pd.api.extensions.ExtensionArray)
        values = pandas_arrays.values_of(tree_of_values, 2 if is_array else 1)
        if values.shape != ((len(where), rows) if is_array else (rows,)) or (
            not is_array and len(where) != 1
        ):
            raise ValueError(
                f"expected {len(where)} columns of {rows} values, found shape {values.shape}"
            )
        places = _places(where, count)
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
    for index in (pd.Index, pd.CategoricalIndex, pd.IntervalIndex, pd.PeriodIndex):
        register(index, _of_index, _index(index), name=f"pandas.{index.__name__}")
    for index in (pd.DatetimeIndex, pd.TimedeltaIndex):
        register(index, _of_timed_index, _timed_index(index), name=f"pandas.{index.__name__}")
    register(pd.RangeIndex, _of_range, _range, name="pandas.RangeIndex")
    register(pd.MultiIndex, _of_multi, _multi, name="pandas.MultiIndex")
    register(pd.Series, _of_series, _series, name="pandas.Series")
    register(pd.DataFrame, _of_frame, _frame, name="pandas.DataFrame")


_register_all()
