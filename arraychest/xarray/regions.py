"""Overwriting a region of a stored dataset."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from arraychest.arrays.blocked import BlockedArray
from arraychest.chest import Chest
from arraychest.errors import ValueTypeError
from arraychest.formats.manifest import Chunks, indices
from arraychest.integrations import objects
from arraychest.storage.block_writer import slices
from arraychest.values.accept import Own
from arraychest.xarray.extending import WHOLE_BYTES, check_stored, in_rows
from arraychest.xarray.fidelity import extension_array
from arraychest.xarray.layout import ARRAY, INDEX, OBJECTS, STRINGS, Node, description_of
from arraychest.xarray.reading import dataset_in
from arraychest.xarray.writing import Planned, computed, planned, store_in_blocks


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
            f"expected variables with one of the region's dimensions "
            f"{', '.join(map(repr, where))}, found {', '.join(map(repr, outside))} without: use "
            f"dataset.drop_vars({outside!r:.200})"
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
        there: Any = before.variables[name][places[name]]
        if not there.equals(dataset.variables[name]):
            raise ValueTypeError(
                f"expected the labels of the coordinate {name!r:.200} to be those in the chest, as "
                f"its index is stored whole, found others: use dataset.drop_vars({name!r:.200})"
            )
    rest = dataset.drop_vars(kept)
    plan = planned(rest.drop_indexes(list(rest.xindexes)), own, {}, stored)
    for name, each in plan.variables.items():
        check_stored(name, stored[name], each, before.variables[name])
    for name, each in plan.variables.items():
        _overwrite(chest, node, name, stored[name], each, places[name], before)
        # The labels may be others now, of which no frequency is known.
        labels: Any = before.variables[name]
        if name in told["indexed"] and not labels[places[name]].equals(dataset.variables[name]):
            told["indexed"][name] = None
    chest[node.description] = told


def _region(before: xr.Dataset, dataset: xr.Dataset, region: Any) -> dict[Hashable, slice]:
    """The region, as slices from a start to a stop."""
    if region == "auto":
        region = {dim: "auto" for dim in dataset.xindexes if dim in before.xindexes}
    if not isinstance(region, Mapping) or not region:
        raise ValueError(
            f"expected region as slices by dimension, or 'auto' with an index, found "
            f"{region!r:.200}"
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
        whole = extension_array(before.variables[name]).copy()
        whole[where[0]] = each.data
        chest[key] = whole


def _put_block(
    chest: Chest,
    node: Node,
    name: Hashable,
    one: Planned,
    index: tuple[int, ...],
    *,
    is_alone: bool,
) -> None:
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
    if not isinstance(value, BlockedArray) and value.nbytes <= WHOLE_BYTES:
        array = np.array(value)
        array[where] = computed(variable)
        chest[key] = array
        return
    is_blocked = isinstance(value, BlockedArray)
    chunks = value.chunks if is_blocked else in_rows(value.shape, value.dtype, 0)
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
