"""xarray: variables, data arrays, datasets and trees of them, with coordinates and indexes.

Data is stored as the array that it is, which is mapped and not copied when it is read; data that
was opened lazily is loaded.  Indexes are stored as the pandas indexes they are made of, of which
their coordinates are made anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex, PandasMultiIndex

from arraychest.errors import ValueTypeError
from arraychest.integrations import checks, objects
from arraychest.values.registry import register

# Types that stand for themselves as `dtype` in an encoding: strings of any length, in netCDF.
_TYPES = {"str": str, "bytes": bytes}


# Dtypes are no values that a chest takes: an array of one goes in its place.


def _of_dtype(dtype: np.dtype) -> Any:
    if dtype.kind == "O":
        element = dict(dtype.metadata or {}).get("element_type")
        return "object" if element is None else f"object of {element.__name__}"
    return np.empty(0, dtype)


def _dtype(tree: Any) -> np.dtype:
    if type(tree) is str:
        sort, _, element = tree.partition(" of ")
        if sort != "object" or (element and element not in _TYPES):
            raise ValueError(f"expected a dtype, found {checks.shown(tree)}")
        if element:
            # As xarray marks them.
            return np.dtype("O", metadata={"element_type": _TYPES[element]})
        return np.dtype("O")
    return checks.array(tree, "a dtype").dtype


def encoding_to_tree(encoding: Any) -> list[tuple[Any, str, Any]]:
    """An encoding of xarray as a tree that a chest stores."""
    tree: list[tuple[Any, str, Any]] = []
    for key, value in encoding.items():
        if isinstance(value, np.dtype):
            tree.append((key, "dtype", _of_dtype(value)))
        elif value is str or value is bytes:
            tree.append((key, "type", value.__name__))
        else:
            tree.append((key, "value", value))
    return tree


def encoding_from_tree(tree: Any) -> dict[Any, Any]:
    """The encoding again; raises ValueError or TypeError if the tree is none of these."""
    checks.exactly(list, tree, "an encoding")
    encoding: dict[Any, Any] = {}
    for key, sort, value in tree:
        if sort == "dtype":
            encoding[key] = _dtype(value)
        elif sort == "type":
            encoding[key] = _TYPES[value]
        elif sort == "value":
            encoding[key] = value
        else:
            raise ValueError(f"expected an encoding, found {checks.shown(sort)}")
    return encoding


# Variables.


def _of_variable(variable: Any) -> dict[str, Any]:
    if variable.chunks is not None:
        raise ValueTypeError(
            "expected data in memory, found an array in chunks, which would come back without "
            "them: use .compute(), or allow_pickle=True to keep how it is computed"
        )
    data = variable.data
    if isinstance(data, np.ndarray):
        data = np.asarray(data)
        if data.dtype == object:
            data = objects.to_tree(data)
    return {
        "dims": tuple(variable.dims),
        "data": data,
        "attrs": dict(variable.attrs),
        "encoding": encoding_to_tree(variable.encoding),
    }


def _variable(tree: Any) -> Any:
    dims, data, attrs, encoding = checks.fields(tree, "dims", "data", "attrs", "encoding")
    _check_dims(dims)
    checks.exactly(dict, attrs, "attrs")
    if type(data) is dict:
        data = objects.from_tree(data)
    is_array = type(data) is np.ndarray
    if (
        not (
            is_array
            or isinstance(data, pd.api.extensions.ExtensionArray)
            or hasattr(data, "__array_function__")
        )
        or isinstance(data, np.ndarray) != is_array
    ):
        raise TypeError(f"expected the data of a variable, found {checks.shown(data)}")
    if len(dims) != len(data.shape):
        raise ValueError(f"expected {len(data.shape)} dimensions, found {len(dims)}")
    # xarray looks for dates among objects otherwise.
    return xr.Variable(dims, data, attrs, encoding_from_tree(encoding), fastpath=is_array)


def _check_dims(dims: Any) -> None:
    checks.exactly(tuple, dims, "dimensions")
    hash(dims)


def _of_index_variable(variable: Any) -> dict[str, Any]:
    index = variable.to_index()
    (dim,) = variable.dims
    return {
        "dim": dim,
        "index": index,
        "dtype": None if isinstance(index, pd.MultiIndex) else _of_index_dtype(variable, index),
        "attrs": dict(variable.attrs),
        "encoding": encoding_to_tree(variable.encoding),
    }


def _index_variable(tree: Any) -> Any:
    dim, index, dtype, attrs, encoding = checks.fields(
        tree, "dim", "index", "dtype", "attrs", "encoding"
    )
    if isinstance(index, pd.MultiIndex):
        found: Any = PandasMultiIndex(index.copy(), dim)
    else:
        found = _pandas_index(index, dim, dtype)
    variable = found.create_variables()[found.index.name]
    variable.attrs = checks.exactly(dict, attrs, "attrs")
    variable.encoding = encoding_from_tree(encoding)
    return variable


# Indexes and coordinates.


def _of_index_dtype(values: Any, index: pd.Index) -> Any:
    """The dtype that a coordinate shows, where it is not the one that its index implies."""
    implied = PandasIndex(index, "_").coord_dtype
    dtype = values.dtype
    return None if dtype == implied or not isinstance(dtype, np.dtype) else _of_dtype(dtype)


def _pandas_index(index: Any, dim: Hashable, dtype: Any) -> Any:
    if not isinstance(index, pd.Index) or isinstance(index, pd.MultiIndex):
        raise TypeError(f"expected an index, found {checks.shown(index)}")
    hash(dim)
    return PandasIndex(index, dim, None if dtype is None else _dtype(dtype))


def index_to_tree(index: Any, members: Mapping[Any, Any]) -> dict[str, Any]:
    """What tells an index of pandas, of one level or of several, apart from its attributes.

    Parameters
    ----------
    members
        Its coordinates by name: variables, or data arrays.
    """
    if type(index) is PandasMultiIndex:
        dtypes: Any = {
            name: _of_index_dtype(members[name], level)
            for name, level in zip(index.index.names, index.index.levels, strict=True)
        }
    else:
        (variable,) = members.values()
        dtypes = _of_index_dtype(variable, index.index)
    return {"dim": index.dim, "index": index.index, "dtypes": dtypes}


def index_from_tree(tree: Any) -> Any:
    """The index again; raises ValueError or TypeError if the tree is none of `index_to_tree`."""
    dim, index, dtypes = checks.fields(tree, "dim", "index", "dtypes")
    return _index(index, dim, dtypes)


def _of_coords(coords: Any) -> dict[str, Any]:
    variables: dict[Any, Any] = dict(coords.variables)
    indexes = []
    for index, members in coords.xindexes.group_by_index():
        if type(index) not in (PandasIndex, PandasMultiIndex):
            raise ValueTypeError(
                f"expected an index of pandas, found {type(index).__name__}: use .drop_indexes(), "
                "or allow_pickle=True to keep it"
            )
        described = {
            name: (dict(variable.attrs), encoding_to_tree(variable.encoding))
            for name, variable in members.items()
        }
        indexes.append({**index_to_tree(index, members), "described": described})
        # Their place among the others is kept.
        variables |= dict.fromkeys(members)
    return {"variables": variables, "indexes": indexes}


def _coords(tree: Any) -> Any:
    variables, trees = checks.fields(tree, "variables", "indexes")
    checks.exactly(dict, variables, "coordinates")
    checks.exactly(list, trees, "indexes")
    found: dict[Any, Any] = dict(variables)
    indexes: dict[Any, Any] = {}
    for each in trees:
        dim, pandas, dtypes, described = checks.fields(each, "dim", "index", "dtypes", "described")
        index = _index(pandas, dim, dtypes)
        made = index.create_variables()
        checks.exactly(dict, described, "what describes coordinates")
        if set(made) != set(described) or any(found.get(name, "") is not None for name in made):
            raise ValueError(f"expected coordinates of an index, found {list(described)[:20]}")
        for name, (attrs, encoding) in described.items():
            made[name].attrs = checks.exactly(dict, attrs, "attrs")
            made[name].encoding = encoding_from_tree(encoding)
            found[name], indexes[name] = made[name], index
    for name, variable in found.items():
        if not isinstance(variable, xr.Variable):
            raise TypeError(f"expected a coordinate {name!r}, found {checks.shown(variable)}")
    return xr.Coordinates(found, indexes)


def _index(pandas: Any, dim: Hashable, dtypes: Any) -> Any:
    if not isinstance(pandas, pd.MultiIndex):
        return _pandas_index(pandas, dim, dtypes)
    hash(dim)
    checks.exactly(dict, dtypes, "dtypes of levels")
    if list(dtypes) != list(pandas.names):
        raise ValueError("expected a dtype of each level, found others")
    implied = {
        name: PandasIndex(level, name).coord_dtype
        for name, level in zip(pandas.names, pandas.levels, strict=True)
    }
    told = {name: _dtype(dtype) for name, dtype in dtypes.items() if dtype is not None}
    # xarray renames what it is given, and something else in the value may hold it.
    pandas = pandas.copy()
    pandas.name = dim
    return PandasMultiIndex(pandas, dim, implied | told)


# What is made of them.


def _of_array(array: xr.DataArray) -> dict[str, Any]:
    return {"variable": array.variable, "coords": _of_coords(array.coords), "name": array.name}


def _array(tree: Any) -> Any:
    variable, coords, name = checks.fields(tree, "variable", "coords", "name")
    if not isinstance(variable, xr.Variable):
        raise TypeError(f"expected a variable, found {checks.shown(variable)}")
    hash(name)
    array = xr.DataArray(variable, _coords(coords), name=name)
    if isinstance(variable, xr.IndexVariable):
        # As the array of a coordinate is; the constructor makes another variable of it.
        return xr.DataArray(
            variable,
            dict(array.coords.variables),
            name=name,
            indexes=dict(array.xindexes),
            fastpath=True,
        )
    array.encoding = variable.encoding
    return array


def _of_dataset(dataset: xr.Dataset) -> dict[str, Any]:
    return {
        "data": {name: array.variable for name, array in dataset.data_vars.items()},
        "coords": _of_coords(dataset.coords),
        "order": list(dataset.variables),
        "attrs": dict(dataset.attrs),
        "encoding": encoding_to_tree(dataset.encoding),
    }


def _dataset(tree: Any) -> Any:
    data, coords, order, attrs, encoding = checks.fields(
        tree, "data", "coords", "order", "attrs", "encoding"
    )
    checks.exactly(dict, data, "data variables")
    checks.exactly(list, order, "names")
    checks.exactly(dict, attrs, "attrs")
    for name, variable in data.items():
        if type(variable) is not xr.Variable:
            raise TypeError(f"expected a variable {name!r}, found {checks.shown(variable)}")
    dataset = xr.Dataset(data, _coords(coords), attrs)
    if set(order) != set(dataset.variables) or set(data) != set(dataset.data_vars):
        raise ValueError("expected the names of all variables, found others")
    if list(dataset.variables) != order:
        dataset = dataset[order]
    dataset.encoding = encoding_from_tree(encoding)
    return dataset


def _of_tree(tree: Any) -> dict[str, Any]:
    if tree.parent is not None:
        raise ValueTypeError(
            "expected the root of a DataTree, found a part of one: use .copy(), or store its .root"
        )
    nodes = [(node.path, node.to_dataset(inherit=False)) for node in tree.subtree]
    return {"name": tree.name, "nodes": nodes}


def _tree(tree: Any) -> Any:
    name, nodes = checks.fields(tree, "name", "nodes")
    checks.exactly(list, nodes, "nodes")
    if name is not None:
        checks.exactly(str, name, "a name")
    found: dict[str, xr.Dataset] = {}
    for path, dataset in nodes:
        checks.exactly(str, path, "a path")
        found[path] = checks.exactly(xr.Dataset, dataset, "a node")
    made = xr.DataTree.from_dict(found, name=name)
    if [node.path for node in made.subtree] != list(found):
        raise ValueError("expected the paths of a DataTree, found others")
    return made


def _register_all() -> None:
    register(xr.Variable, _of_variable, _variable, name="xarray.Variable")
    register(xr.IndexVariable, _of_index_variable, _index_variable, name="xarray.IndexVariable")
    register(xr.DataArray, _of_array, _array, name="xarray.DataArray")
    register(xr.Dataset, _of_dataset, _dataset, name="xarray.Dataset")
    if hasattr(xr, "DataTree"):  # from 2024.10 on
        register(xr.DataTree, _of_tree, _tree, name="xarray.DataTree")


_register_all()
