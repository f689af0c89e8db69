"""Adding to the datasets of a chest: variables, more along a dimension, and a region anew."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from arraychest.arrays.blocked import BlockedArray
from arraychest.chest import Chest
from arraychest.errors import ValueTypeError
from arraychest.formats.manifest import Chunks, indices
from arraychest.storage.block_writer import regular, slices
from arraychest.values.accept import Own
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
_WHOLE_BYTES = 64 << 20
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
    indexed = [name for name in told.get("indexed", coords) if name in left]
    return {
        "variables": {name: new[name].told if name in new else each
                      for name, each in (told["variables"] | plan.description()["variables"]).items()},  # noqa: E501
        "coords": [*coords, *plan.told["coords"]],
        "indexed": [*indexed, *plan.told["indexed"]],
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
            _check_stored(name, stored[name], plan.variables[name], before.variables[name])
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
    told["indexed"] = [
        *(name for name in told.get("indexed", told["coords"]) if name not in gone),
        *coords.told["indexed"],
        *plan.told["indexed"],
    ]
    told["coords"] += [name for name in dataset.coords if name not in told["coords"]]
    chest[node.description] = told
    if node != Node():
        chest[Node().description] = chest[Node().description]


def _coords_of(dataset: xr.Dataset, names: list[Hashable]) -> xr.Dataset:
    """The dataset of these coordinates alone, with their indexes."""
    return (
        dataset.coords.to_dataset()
        .drop_attrs(deep=False)[names]
        .reset_coords(
            [name for name in dataset.coords if name not in names and name in dataset.sizes],
            drop=True,
        )
    )


def _check_alike(name: Hashable, before: xr.Variable, new: xr.Variable, dim: Hashable) -> None:
    sizes = {each: n for each, n in before.sizes.items() if each != dim}
    if before.dims != new.dims or sizes != {n: new.sizes[n] for n in sizes}:
        raise ValueError(
            f"expected the variable {name!r:.200} to have the dimensions {before.dims} and, but for "
            f"{dim!r:.200}, the sizes {sizes}, as in the chest, found {dict(new.sizes)}: use "
            "transpose, or select the same labels"
        )


def _check_sizes(name: Hashable, new: xr.Variable, sizes: Mapping[Any, int]) -> None:
    for dim, size in new.sizes.items():
        if sizes.get(dim, size) != size:
            raise ValueError(
                f"expected the variable {name!r:.200} to have the size {sizes[dim]} along "
                f"{dim!r:.200}, as in the chest, found {size}"
            )


def _check_stored(
    name: Hashable, stored: Mapping[str, Any], each: Planned, before: xr.Variable
) -> None:
    """That what comes is stored as what is there."""
    kind = stored.get("kind", ARRAY)
    if kind == each.told["kind"] and (stored.get("packed") == each.told.get("packed")):
        is_packed = "packed" in stored
        calendars = [told["attrs"].get("calendar") if is_packed else None
                     for told in (stored, each.told)]  # fmt: skip
        if kind != ARRAY or (
            calendars[0] == calendars[1] and (is_packed or each.data.dtype == before.dtype)
        ):
            return
        found = calendars[1] if calendars[0] != calendars[1] else each.data.dtype
        expected = calendars[0] if calendars[0] != calendars[1] else before.dtype
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be of {expected}, as in the chest, found "
            f"{found}: use astype, or convert_calendar"
        )
    raise ValueTypeError(
        f"expected the variable {name!r:.200} to be of {before.dtype}, as in the chest, found "
        f"other values, which are stored as {each.told['kind']} and not as {kind}: use astype"
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
        return _append_values(chest, node, name, told, each, axis, before)
    whole = [before.variables[name], xr.Variable(told["dims"], each.data)]
    joined_data = xr.Variable.concat(whole, dim)
    data = joined_data.data
    chest[node.variable(name)] = getattr(data, "array", data)
    return told


def _append_array(chest: Chest, key: Any, each: Planned, axis: int) -> None:
    variable = each.data
    value = chest[key]
    if not isinstance(value, BlockedArray):
        total = value.nbytes + variable.nbytes
        if variable.chunks is None and total <= _SHORT_BYTES:
            chest[key] = np.concatenate([np.asarray(value), computed(variable)], axis)
            return
        chunks = _rows(value.shape, value.dtype, axis)
        store_in_blocks(chest, key, value.dtype, chunks, lambda where: np.asarray(value[where]))
        value = None
    if variable.chunks is None:
        chest.append(key, computed(variable), axis)
    else:
        from arraychest.integrations.dask_storing import append

        append(variable.data, chest, key, axis)


def _rows(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> Chunks:
    """Chunks of an array that is cut along one dimension, each of up to 64 MiB."""
    sides = list(shape)
    row = dtype.itemsize * int(np.prod(shape)) // max(shape[axis], 1)
    sides[axis] = max(1, min(shape[axis], _WHOLE_BYTES // max(row, 1)))
    return regular(shape, tuple(sides))


def _append_values(
    chest: Chest,
    node: Node,
    name: Hashable,
    told: dict[str, Any],
    each: Planned,
    axis: int,
    before: xr.Dataset,
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


# A region.


def overwritten(chest: Chest, node: Node, dataset: xr.Dataset, region: Any, own: Own) -> None:
    """Store a dataset in a region of the one that is there; called in a transaction.

    Raises
    ------
    ValueError, ValueTypeError
        They do not fit together.  Nothing was written.
    """
    told = description_of(chest, node)
    stored = told["variables"]
    before = dataset_in(chest, node, set())
    where = _region(before, dataset, region)
    if outside := [
        name for name, each in dataset.variables.items() if not set(where) & set(each.dims)
    ]:
        raise ValueError(
            f"expected variables with one of the region's dimensions {', '.join(map(repr, where))}, "
            f"found {', '.join(map(repr, outside))} without: use dataset.drop_vars({outside!r:.200})"
        )
    if new := [name for name in dataset.variables if name not in stored]:
        raise ValueError(
            f"expected variables that are in the chest, found {', '.join(map(repr, new))}: save "
            "all of it first"
        )
    places: dict[Hashable, tuple[slice, ...]] = {}
    for name, variable in dataset.variables.items():
        old = before.variables[name]
        places[name] = tuple(where.get(dim, slice(0, n)) for dim, n in old.sizes.items())
        shape = tuple(part.stop - part.start for part in places[name])
        if variable.dims != old.dims or variable.shape != shape:
            raise ValueError(
                f"expected the variable {name!r:.200} to have the dimensions {old.dims} of sizes "
                f"{shape}, as the region has, found {dict(variable.sizes)}"
            )
    kept = [name for name in dataset.variables if stored[name].get("kind") == INDEX]
    for name in kept:
        if not dataset[name].variable.equals(before[name].variable[places[name]]):
            raise ValueTypeError(
                f"expected the labels of the coordinate {name!r:.200} to be those in the chest, as "
                f"its index is stored whole, found others: use dataset.drop_vars({name!r:.200})"
            )
    rest = dataset.drop_vars(kept)
    plan = planned(rest.drop_indexes(list(rest.xindexes)), own, {}, stored)
    for name, each in plan.variables.items():
        _check_stored(name, stored[name], each, before.variables[name])
    for name, each in plan.variables.items():
        _overwrite(chest, node, name, stored[name], each, places[name], before)
    chest[node.description] = told
    if node != Node():
        chest[Node().description] = chest[Node().description]


def _region(before: xr.Dataset, dataset: xr.Dataset, region: Any) -> dict[Hashable, slice]:
    """The region, as slices from a start to a stop."""
    if region == "auto":
        region = {dim: "auto" for dim in dataset.dims if dim in before.xindexes}
    if not isinstance(region, Mapping) or not region:
        raise ValueError(
            f"expected region as slices by dimension, or 'auto' with an index, found {region!r:.200}"
        )
    found: dict[Hashable, slice] = {}
    for dim, part in region.items():
        if dim not in before.sizes or dim not in dataset.sizes:
            raise ValueError(
                f"expected region to name dimensions of both datasets, found {dim!r:.200}"
            )
        if part == "auto":
            part = _labels_in(before, dataset, dim)
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise ValueError(
                f"expected the region along {dim!r:.200} as a slice of step 1, or 'auto', found "
                f"{part!r:.200}"
            )
        start, stop, _ = part.indices(before.sizes[dim])
        found[dim] = slice(start, max(stop, start))
    return found


def _labels_in(before: xr.Dataset, dataset: xr.Dataset, dim: Hashable) -> slice:
    if dim not in before.xindexes or dim not in dataset.xindexes:
        raise ValueError(
            f"expected an index of {dim!r:.200} in both datasets for the region 'auto', found "
            "none: give a slice"
        )
    at = before.indexes[dim].get_indexer(dataset.indexes[dim])
    if not len(at) or at[0] < 0 or (np.diff(at) != 1).any():
        raise ValueError(
            f"expected the labels of {dim!r:.200} to stand in the chest one after the other, found "
            "others, or in another order: give a slice"
        )
    return slice(int(at[0]), int(at[-1]) + 1)


def _overwrite(
    chest: Chest,
    node: Node,
    name: Hashable,
    told: Mapping[str, Any],
    each: Planned,
    where: tuple[slice, ...],
    before: xr.Dataset,
) -> None:
    kind, key = told.get("kind", ARRAY), node.variable(name)
    if kind == ARRAY:
        _overwrite_array(chest, key, each, where)
    elif kind in (STRINGS, OBJECTS):
        chunks: Chunks = told["chunks"]
        for index in indices(chunks):
            if (inside := _inside(chunks, index, where)) is not None:
                block = np.array(before.variables[name][slices(chunks, index)].values, object)
                block[inside[0]] = computed(each.data[inside[1]])
                only = all(len(sizes) == 1 for sizes in chunks)
                part = xr.Variable(told["dims"], block, fastpath=True)
                if kind == STRINGS:
                    dtype = each.data.dtype
                    part = xr.Variable(told["dims"], block.astype(dtype), fastpath=True)
                one = Planned(each.told, part, tuple((n,) for n in block.shape))
                start = (0,) * block.ndim if only else index
                _put_block(chest, node, name, one, start, is_alone=only)
    else:
        whole = before.variables[name].copy(deep=True)
        whole[dict(zip(told["dims"], where, strict=True))] = xr.Variable(told["dims"], each.data)
        data = whole.data
        chest[key] = getattr(data, "array", data)


def _put_block(
    chest: Chest,
    node: Node,
    name: Hashable,
    one: Planned,
    index: tuple[int, ...],
    *,
    is_alone: bool,
) -> None:
    from arraychest.integrations import objects

    array = computed(one.data)
    key = node.variable(name, None if is_alone else index)
    chest[key] = objects.to_tree(array) if one.told["kind"] == OBJECTS else array


def _inside(
    chunks: Chunks, index: tuple[int, ...], where: tuple[slice, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where a region lies in a block, and where that lies in the region; None if nowhere."""
    here, there = [], []
    for part, block in zip(where, slices(chunks, index), strict=True):
        first, last = max(part.start, block.start), min(part.stop, block.stop)
        if first >= last:
            return None
        here.append(slice(first - block.start, last - block.start))
        there.append(slice(first - part.start, last - part.start))
    return tuple(here), tuple(there)


def _overwrite_array(chest: Chest, key: Any, each: Planned, where: tuple[slice, ...]) -> None:
    variable = each.data
    value = chest[key]
    if not isinstance(value, BlockedArray) and value.nbytes <= _WHOLE_BYTES:
        array = np.array(value)
        array[where] = computed(variable)
        chest[key] = array
        return
    is_blocked = isinstance(value, BlockedArray)
    chunks = value.chunks if is_blocked else _rows(value.shape, value.dtype, 0)
    touched = {index for index in indices(chunks) if _inside(chunks, index, where) is not None}

    def block(place: tuple[slice, ...]) -> np.ndarray:
        found = np.array(value[place])
        inside = _inside(tuple((part.stop - part.start,) for part in place), (0,) * len(place),
                         tuple(slice(part.start - at.start, part.stop - at.start)
                               for part, at in zip(where, place, strict=True)))  # fmt: skip
        if inside is not None:
            found[inside[0]] = computed(variable[inside[1]])
        return found

    store_in_blocks(
        chest, key, value.dtype, chunks, block,
        before=value if is_blocked else None,
        unchanged=[index for index in indices(chunks) if index not in touched],
    )  # fmt: skip
