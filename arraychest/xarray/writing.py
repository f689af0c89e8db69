"""What is to be stored of a dataset, checked before anything is written, and the writing of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from arraychest.arrays.blocked import BlockedArray
from arraychest.chest import Chest
from arraychest.engine.append import finish, remove_thrown_away
from arraychest.engine.blocks import begin
from arraychest.errors import ArrayChestError, ValueTypeError
from arraychest.formats.compression import How, parse_compression
from arraychest.formats.manifest import Chunks, indices
from arraychest.integrations import objects
from arraychest.integrations.xarray import encoding_from_tree, encoding_to_tree
from arraychest.storage.block_writer import slices
from arraychest.values.accept import Own, accept
from arraychest.values.keys import encode_key
from arraychest.xarray.encoding import NUMBERS, TIMES, Storage, packed, storage_of
from arraychest.xarray.fidelity import checked, checked_indexes
from arraychest.xarray.layout import ARRAY, INDEX, OBJECTS, STRINGS, Node, blocks_of


@dataclass
class Planned:
    """One variable that is to be stored.

    Attributes
    ----------
    told
        Its description.
    data
        What is stored: a variable (lazy, of dask or in RAM), or a value.
    chunks
        The sizes of its blocks; None: one block.
    how
        How to compress it; None: as the chest does.
    """

    told: dict[str, Any]
    data: Any
    chunks: Chunks | None = None
    how: How | None = None


@dataclass
class Plan:
    """A dataset that is to be stored.

    Attributes
    ----------
    told
        Its description, but for its variables.
    variables
        By name, in order.
    """

    told: dict[str, Any]
    variables: dict[Hashable, Planned] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """What the chest says of the dataset."""
        return {
            "variables": {name: each.told for name, each in self.variables.items()},
            **self.told,
        }


def planned(
    dataset: xr.Dataset,
    own: Own,
    encoding: Mapping[Hashable, Mapping[str, Any]],
    stored: Mapping[Hashable, Mapping[str, Any]] | None = None,
) -> Plan:
    """What is to be stored of a dataset; nothing is written.

    Parameters
    ----------
    encoding
        What the user asks for, by variable.
    stored
        Descriptions of variables that are there: what comes is packed as they are.

    Raises
    ------
    ValueTypeError, KeyTypeError, ValueError
        Something in it would not come back the same, or `encoding` makes no sense.  Nothing was
        computed but dask arrays of Python objects.
    """
    if unknown := [name for name in encoding if name not in dataset.variables]:
        raise ValueError(
            f"expected encoding to name variables of the dataset, found "
            f"{', '.join(map(repr, unknown))}"
        )
    plain, others = checked_indexes(dataset, own)
    plan = Plan({"coords": list(dataset.coords), "indexed": plain, "attrs": dict(dataset.attrs)})
    of = {name: first for first, each in others.items() for name in each["members"]}
    shown = {
        name: {"dims": variable.dims, "attrs": dict(variable.attrs)}
        for name, variable in dataset.variables.items()
    }
    accept({**plan.told, "variables": shown}, own)
    for name in dataset.variables:
        encode_key(Node().variable(name))
    # The plain ones first: Python objects are read, and those of dask computed.
    names = sorted(dataset.variables, key=lambda name: dataset.variables[name].dtype.hasobject
                   if isinstance(dataset.variables[name].dtype, np.dtype) else False)  # fmt: skip
    found: dict[Hashable, Planned] = {}
    for name in names:
        if name in of:
            tree = others[name]["tree"] if name in others else None
            first = None if name in others else of[name]
            if encoding.get(name):
                warnings.warn(
                    f"save ignores the encoding of the coordinate {name!r:.200}: it is stored as "
                    "its index",
                    stacklevel=3,
                )
            kept = _kept(dataset.variables[name].encoding, own)
            told = {**shown[name], "kind": INDEX, "of": first, "encoding": kept}
            found[name] = Planned(told, tree)
        else:
            asked = encoding.get(name)
            known = None if stored is None else stored.get(name)
            found[name] = _planned(name, dataset.variables[name], shown[name], own, asked, known)
    plan.variables = {name: found[name] for name in dataset.variables}
    return plan


def _planned(
    name: Hashable,
    variable: xr.Variable,
    told: dict[str, Any],
    own: Own,
    asked: Mapping[str, Any] | None,
    stored: Mapping[str, Any] | None,
) -> Planned:
    if stored is None:
        storage = storage_of(name, variable, asked)
    else:
        storage = Storage(encoding_from_tree(stored.get("packing") or []))
    told = dict(told)
    chunks = storage.chunks
    if storage.packing:
        told["packed"] = "times" if variable.dtype.kind in "mM" else "numbers"
        told["packing"] = encoding_to_tree(storage.packing)
        if variable.dtype.kind in "mM":
            told["unit"] = np.datetime_data(variable.dtype)[0]
        variable = packed(name, variable, storage.packing)
        told["attrs"] = dict(variable.attrs)
        accept(told, own)
    elif kept := _kept(variable.encoding if asked is None else {}, own):
        told["encoding"] = kept
    kind, data, more = checked(name, variable, own)
    if stored is not None:
        kind, data = _as_stored(kind, data, stored)
    if kind in (STRINGS, OBJECTS):
        more["chunks"] = chunks = blocks_of(variable.shape, chunks or variable.chunks)
    if kind == ARRAY:
        told["attrs"] = dict(data.attrs)
    how = parse_compression(storage.compression) if storage.is_compression_told else None
    return Planned({**told, "kind": kind, **more}, data, chunks, how)


def _as_stored(kind: str, data: Any, stored: Mapping[str, Any]) -> tuple[str, Any]:
    """Strings and other objects as the ones of the same variable that are there."""
    there = stored.get("kind")
    if kind == STRINGS and there == OBJECTS:
        return OBJECTS, xr.Variable(data.dims, np.asarray(data.values, object), fastpath=True)
    if kind == OBJECTS and there == STRINGS and not data.size:
        return STRINGS, xr.Variable(data.dims, data.values.astype(np.dtypes.StringDType()))
    return kind, data


def _kept(encoding: Mapping[Any, Any], own: Own) -> list[Any]:
    """What comes back of the encoding of a variable that is stored as it is."""
    kept = []
    for name in dict.fromkeys((*NUMBERS, *TIMES)):
        if name in encoding:
            tree = encoding_to_tree({name: encoding[name]})
            try:
                accept(tree, own)
            except ArrayChestError:
                continue  # it tells how another file was written
            kept += tree
    return kept


# Writing.


def write(chest: Chest, node: Node, plan: Plan, names: Iterable[Hashable] | None = None) -> None:
    """Store the variables of a dataset, or some of them, but not its description."""
    for name in plan.variables if names is None else names:
        write_variable(chest, node, name, plan.variables[name])


def write_variable(chest: Chest, node: Node, name: Hashable, each: Planned) -> None:
    """Store one variable; called in a transaction."""
    kind, key = each.told["kind"], node.variable(name)
    if kind == ARRAY:
        _write_array(chest, key, each)
    elif kind in (STRINGS, OBJECTS):
        assert each.chunks is not None
        write_blocks_of_values(chest, node, name, each, (0,) * len(each.chunks))
    elif each.data is not None:
        chest[key] = each.data


def _write_array(chest: Chest, key: Any, each: Planned) -> None:
    variable = each.data
    if variable.chunks is not None:
        from arraychest.integrations.dask_storing import store_anew

        x = variable.data
        store_anew(x if each.chunks is None else x.rechunk(each.chunks), chest, key, each.how)
    elif each.chunks is not None:
        store_in_blocks(
            chest, key, variable.dtype, each.chunks, lambda where: computed(variable[where]),
            how=each.how,
        )  # fmt: skip
    else:
        chest._engine.put_any(key, computed(variable), compression=each.how)


def computed(variable: xr.Variable) -> np.ndarray:
    """The values of a variable as a plain array; one of dask is computed.

    xarray keeps none of what it reads of a file for that.
    """
    return np.asarray(variable[...].values)


def store_in_blocks(
    chest: Chest,
    key: Any,
    dtype: np.dtype,
    chunks: Chunks,
    block: Callable[[tuple[slice, ...]], np.ndarray],
    *,
    how: How | None = None,
    before: BlockedArray | None = None,
    unchanged: Iterable[tuple[int, ...]] = (),
) -> None:
    """Store an array block by block.

    Parameters
    ----------
    block
        Gives the elements of a block by where it lies.
    before, unchanged
        An array of the same chunks, and the places of the blocks that are taken over from it.
    """
    engine = chest._engine
    writer = begin(engine.session, key, dtype, chunks, how=how)
    try:
        with writer.held():
            if before is not None:
                writer.take(before, unchanged)
                # Nobody else may hold it, and then its folder can be removed.
                before = None
            for index in writer.missing():
                writer.write(index, np.asarray(block(slices(chunks, index)), dtype))
            finish(engine, key, writer)
    except BaseException:
        writer.discard()
        remove_thrown_away(engine)
        raise


def write_blocks_of_values(
    chest: Chest, node: Node, name: Hashable, each: Planned, start: tuple[int, ...]
) -> None:
    """Store strings or objects, each block as a value; the first one's place is `start`.

    Raises
    ------
    ValueTypeError
        A dask array has a block of other values than it says.
    """
    assert each.chunks is not None
    count = int(np.prod([len(sizes) for sizes in each.chunks]))
    for index in indices(each.chunks):
        array = computed(each.data[slices(each.chunks, index)])
        if each.told["kind"] == STRINGS and array.dtype.kind != "T":
            raise ValueTypeError(
                f"expected strings of StringDType in the variable {name!r:.200}, found "
                f"{array.dtype}"
            )
        place = tuple(at + first for at, first in zip(index, start, strict=True))
        is_alone = count == 1 and not any(start)
        key = node.variable(name, None if is_alone else place)
        chest[key] = objects.to_tree(array) if each.told["kind"] == OBJECTS else array
