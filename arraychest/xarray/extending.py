"""Adding to a stored dataset: variables, and more along a dimension."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from arraychest.arrays.blocked import BlockedArray
from arraychest.chest import Chest
from arraychest.errors import ValueTypeError
from arraychest.formats.manifest import Chunks, indices
from arraychest.storage.block_writer import regular
from arraychest.values.accept import Own
from arraychest.xarray.fidelity import extension_array
from arraychest.xarray.layout import ARRAY, INDEX, OBJECTS, STRINGS, Node, description_of
from arraychest.xarray.reading import dataset_in
from arraychest.xarray.writing import (
    Plan,
    Planned,
    computed,
    planned,
    store_in_blocks,
    write_blocks_of_values,
    write_variable,
)

# Arrays of up to so many bytes are written whole where a part of them changes.
WHOLE_BYTES = 64 << 20
# And so they are where something is appended, which happens more often.
_SHORT_BYTES = 1 << 20


def joined(node: Node, told: dict[str, Any], plan: Plan, chest: Chest) -> dict[str, Any]:
    """The description of a dataset to which the variables of another are added.

    Raises
    ------
    ValueError
        They do not fit together.
    """
    new = plan.variables
    left = {name: each for name, each in told["variables"].items() if name not in new}
    for name, each in told["variables"].items():
        first = each.get("of")
        if name in left and first is not None and first in new:
            raise ValueError(
                f"expected all coordinates of the index of {first!r:.200} to be replaced together, "
                f"found that {name!r:.200} stays: add it, or leave out {first!r:.200}"
            )
        if name in new and first is not None and first in left:
            raise ValueError(
                f"expected all coordinates of the index of {first!r:.200} to be replaced together, "
                f"found {name!r:.200} alone: add the others, or leave it out"
            )
    sizes = _sizes(dataset_in(chest, node, set(new)), left)
    for name, each in new.items():
        for dim, size in zip(each.told["dims"], _shape(each), strict=True):
            if sizes.get(dim, size) != size:
                raise ValueError(
                    f"expected the variable {name!r:.200} to have the size {sizes[dim]} along "
                    f"{dim!r:.200}, as the variables in the chest, found {size}: use append_dim= "
                    'to make them longer, or mode="w"'
                )
    coords = [name for name in told["coords"] if name in left]
    indexed = {name: freq for name, freq in told["indexed"].items() if name in left}
    return {
        "variables": {name: new[name].told if name in new else each
                      for name, each in (told["variables"] | plan.description()["variables"]).items()},  # noqa: E501
        "coords": [*coords, *plan.told["coords"]],
        "indexed": {**indexed, **plan.told["indexed"]},
        "attrs": {**told["attrs"], **plan.told["attrs"]},
    }  # fmt: skip


def _sizes(dataset: xr.Dataset, names: Mapping[Hashable, Any]) -> dict[Hashable, int]:
    return {
        dim: size
        for name in names
        if name in dataset.variables
        for dim, size in dataset.variables[name].sizes.items()
    }


def _shape(each: Planned) -> tuple[int, ...]:
    if each.told["kind"] == INDEX:
        tree = each.data
        if tree is None:
            return ()
        return (tree["size"],) if "size" in tree else (len(tree["index"]),)
    return tuple(each.data.shape)


# Along a dimension.


def appended(chest: Chest, node: Node, dataset: xr.Dataset, dim: Hashable, own: Own) -> None:
    """Continue the variables of a stored dataset along a dimension; called in a transaction.

    Raises
    ------
    ValueError, ValueTypeError
        They do not fit together.  Nothing was written.
    """
    told = description_of(chest, node)
    stored = told["variables"]
    before = dataset_in(chest, node, set())
    if dim not in before.sizes or dim not in dataset.sizes:
        raise ValueError(
            f"expected append_dim to be a dimension of both datasets, found {dim!r:.200}: the one "
            f"in the chest has {', '.join(map(repr, before.sizes))}, and the other "
            f"{', '.join(map(repr, dataset.sizes))}"
        )
    longer = [name for name, each in stored.items() if dim in each["dims"]]
    missing = [name for name in longer if name not in dataset.variables]
    new = [
        name
        for name, variable in dataset.variables.items()
        if dim in variable.dims and name not in longer
    ]
    if missing or new:
        raise ValueError(
            f"expected the variables along {dim!r:.200} that are in the chest, found "
            f"{', '.join(map(repr, new)) or 'none'} beside them and "
            f"{', '.join(map(repr, missing)) or 'none'} missing: add or drop these first"
        )
    for name in longer:
        _check_alike(name, before.variables[name], dataset.variables[name], dim)
    # Coordinates with an index are joined as xarray joins them, and stored anew.
    indexed = [name for name in longer if name in before.xindexes]
    ends = xr.concat(
        [_coords_of(before, indexed), _coords_of(dataset, indexed)], dim=dim,
        combine_attrs="override",
    ) if indexed else xr.Dataset()  # fmt: skip
    rest = dataset.drop_vars(indexed).drop_indexes(
        [name for name in dataset.drop_vars(indexed).xindexes if name in longer]
    )
    plan = planned(rest, own, {}, stored)
    coords = planned(ends, own, {}, stored)
    for name in plan.variables:
        if name in longer:
            check_stored(name, stored[name], plan.variables[name], before.variables[name])
        else:
            _check_sizes(name, dataset.variables[name], before.sizes)
    # Nothing has been written yet, and nothing is refused any more.
    told["attrs"] = {**told["attrs"], **dataset.attrs}
    for name, each in coords.variables.items():
        each.told["attrs"] = each.told["attrs"] | stored[name]["attrs"]
        _replace(chest, node, stored, name, each)
    for name, each in plan.variables.items():
        if name in longer:
            stored[name] = _continued(chest, node, name, stored[name], each, dim, before)
        else:
            _replace(chest, node, stored, name, each)
    gone = {*coords.variables, *plan.variables}
    told["indexed"] = {
        **{name: freq for name, freq in told["indexed"].items() if name not in gone},
        **coords.told["indexed"],
        **plan.told["indexed"],
    }
    told["coords"] += [name for name in dataset.coords if name not in told["coords"]]
    chest[node.description] = told


def _coords_of(dataset: xr.Dataset, names: list[Hashable]) -> xr.Dataset:
    """The dataset of these coordinates alone, with their indexes."""
    found = dataset.coords.to_dataset()
    return found.drop_vars([name for name in found.variables if name not in names])


def _check_alike(name: Hashable, before: xr.Variable, new: xr.Variable, dim: Hashable) -> None:
    sizes = {each: n for each, n in before.sizes.items() if each != dim}
    if before.dims != new.dims or sizes != {n: new.sizes[n] for n in sizes}:
        raise ValueError(
            f"expected the variable {name!r:.200} to have the dimensions {before.dims} and, but "
            f"for {dim!r:.200}, the sizes {sizes}, as in the chest, found {dict(new.sizes)}: use "
            "transpose, or select the same labels"
        )


def _check_sizes(name: Hashable, new: xr.Variable, sizes: Mapping[Any, int]) -> None:
    for dim, size in new.sizes.items():
        if sizes.get(dim, size) != size:
            raise ValueError(
                f"expected the variable {name!r:.200} to have the size {sizes[dim]} along "
                f"{dim!r:.200}, as in the chest, found {size}"
            )


def check_stored(
    name: Hashable, stored: Mapping[str, Any], each: Planned, before: xr.Variable
) -> None:
    """That what comes is stored as what is there."""
    kind = stored.get("kind", ARRAY)
    if kind != each.told["kind"] or stored.get("packed") != each.told.get("packed"):
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be of {before.dtype}, as in the chest, found "
            f"other values, which are stored as {each.told['kind']} and not as {kind}: use astype"
        )
    expected, found = before.dtype, getattr(each.data, "dtype", None)
    if kind in (STRINGS, OBJECTS):
        found = np.dtype(object) if type(each.told["dtype"]) is str else found
    elif "packed" in stored:
        # Packed alike; only dates may be of another calendar.
        expected, found = (told["attrs"].get("calendar") for told in (stored, each.told))
    if expected != found:
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be of {expected!r}, as in the chest, found "
            f"{found!r}: use astype, or convert_calendar"
        )


def _replace(
    chest: Chest, node: Node, stored: dict[Hashable, Any], name: Hashable, each: Planned
) -> None:
    """Put a variable in the place of what was stored under its name."""
    for key in [key for key in _keys_in(node, name, stored.get(name)) if key in chest]:
        chest.discard(key)
    write_variable(chest, node, name, each)
    stored[name] = each.told


def _keys_in(node: Node, name: Hashable, told: Mapping[str, Any] | None) -> list[Any]:
    keys = [node.variable(name)]
    if told is not None and "chunks" in told:
        keys += [node.variable(name, index) for index in indices(told["chunks"])]
    return keys


def _continued(
    chest: Chest,
    node: Node,
    name: Hashable,
    told: dict[str, Any],
    each: Planned,
    dim: Hashable,
    before: xr.Dataset,
) -> dict[str, Any]:
    """Store a variable's continuation; returns its description then."""
    axis = told["dims"].index(dim)
    if told.get("kind", ARRAY) == ARRAY:
        _append_array(chest, node.variable(name), each, axis)
        return told
    if told["kind"] in (STRINGS, OBJECTS):
        return _append_values(chest, node, name, told, each, axis)
    # Of one dtype, as `check_stored` has found.
    there = extension_array(before.variables[name])
    chest[node.variable(name)] = type(there)._concat_same_type([there, each.data])
    return told


def _append_array(chest: Chest, key: Any, each: Planned, axis: int) -> None:
    variable = each.data
    value = chest[key]
    if not isinstance(value, BlockedArray):
        total = value.nbytes + variable.nbytes
        if variable.chunks is None and total <= _SHORT_BYTES:
            chest[key] = np.concatenate([np.asarray(value), computed(variable)], axis)
            return
        chunks = in_rows(value.shape, value.dtype, axis)
        store_in_blocks(chest, key, value.dtype, chunks, lambda where: np.asarray(value[where]))
        value = None
    if variable.chunks is None:
        chest.append(key, computed(variable), axis)
    else:
        from arraychest.integrations.dask_storing import append

        append(variable.data, chest, key, axis)


def in_rows(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> Chunks:
    """Chunks of an array that is cut along one dimension, each of up to 64 MiB."""
    sides = list(shape)
    row = dtype.itemsize * int(np.prod(shape)) // max(shape[axis], 1)
    sides[axis] = max(1, min(shape[axis], WHOLE_BYTES // max(row, 1)))
    return regular(shape, tuple(sides))


def _append_values(
    chest: Chest,
    node: Node,
    name: Hashable,
    told: dict[str, Any],
    each: Planned,
    axis: int,
) -> dict[str, Any]:
    """Continue strings or objects by further blocks."""
    assert each.chunks is not None
    chunks: Chunks = told["chunks"]
    more = tuple(sizes if at == axis else chunks[at] for at, sizes in enumerate(each.chunks))
    start = [0] * len(chunks)
    start[axis] = len(chunks[axis])
    if all(len(sizes) == 1 for sizes in chunks):
        # The only block has a key of its own, without a place.
        chest[node.variable(name, (0,) * len(chunks))] = chest.pop(node.variable(name))
    write_blocks_of_values(chest, node, name, Planned(each.told, each.data, more), tuple(start))
    joined_chunks = tuple(
        (*sizes, *more[at]) if at == axis else sizes for at, sizes in enumerate(chunks)
    )
    return {**told, "chunks": joined_chunks}
