"""`save`: datasets, data arrays and trees of datasets into a chest, each save as one commit."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import xarray as xr

import arraychest
from arraychest.errors import ChestFormatError, ValueTypeError
from arraychest.formats.manifest import indices
from arraychest.values.accept import Own
from arraychest.xarray.extending import appended, joined
from arraychest.xarray.layout import INDEX, ROOT, Node, description_of, node_at, node_of
from arraychest.xarray.regions import overwritten
from arraychest.xarray.writing import Plan, planned, write

# As xarray's other backends mark them, so that `xarray.open_dataarray` gives the array back.
_ARRAY_NAME = "__xarray_dataarray_name__"
_ARRAY_VARIABLE = "__xarray_dataarray_variable__"

_MODES = ("x", "w", "a")


def save(
    dataset: xr.Dataset | xr.DataArray | xr.DataTree,
    path: str | os.PathLike[str],
    *,
    mode: Literal["x", "w", "a"] | None = None,
    group: str | None = None,
    encoding: Mapping[Any, Any] | None = None,
    append_dim: Hashable | None = None,
    region: Mapping[Hashable, slice | Literal["auto"]] | Literal["auto"] | None = None,
    **options: Any,
) -> None:
    """Store a dataset, or a tree of datasets, as a chest.

    Parameters
    ----------
    dataset
        Its variables may be dask arrays, also larger than RAM: whatever scheduler is in charge
        writes those block by block, as `arraychest.dask.store` does.  A dask array of Python
        objects is computed in RAM.  A data array becomes a dataset of one variable, which
        `xarray.open_dataarray` gives back.  Variables may be read, and computed, from the very
        dataset that is replaced.
    path
        The chest's folder.
    mode
        ``"x"``: the chest must not exist.  ``"w"``: the dataset takes the place of whatever the
        chest holds, also of keys that are no part of a dataset; with `group`, of this group and
        those below it.  ``"a"``: variables are added, or take the place of those of the same
        name, attributes of the dataset likewise; the rest stays.  None: ``"a"`` with
        `append_dim` or `region`, and else ``"x"``.
    group
        The path of the group to store the dataset in, as ``"/model/run"``; None: the root.
    encoding
        By variable what xarray's other backends take, too; for a tree, by path and variable.
        ``dtype``, ``scale_factor``, ``add_offset``, ``_FillValue``, ``missing_value``, ``units``
        and ``calendar`` pack values by the CF conventions.  ``chunks`` or ``chunksizes`` are the
        sizes of blocks.  ``compression``, ``compressor``, ``zlib`` and ``complevel`` tell the
        codec.  A warning names what else netCDF and Zarr have and a chest has not.
        Where nothing is given for a variable of numbers, its own ``encoding`` says how it is
        packed; times are then stored exactly, and comes back as it was what else ``encoding``
        says of values.
    append_dim
        The dimension along which the variables continue those in the chest.  Variables without it
        take the place of those of the same name.
    region
        Which part of the stored variables is overwritten: by dimension a slice, or ``"auto"``,
        which looks the labels up in the stored index; ``"auto"`` alone stands for every dimension
        that has one.
    options
        As `arraychest.Chest` takes them.

    Raises
    ------
    FileExistsError
        With ``mode="x"``; nothing was touched.
    ValueTypeError
        A variable, a name or an attribute is of a type that would not come back the same.  Nothing
        was written, and nothing was computed but dask arrays of Python objects.
    ValueError
        What is added does not fit what is there, as a dimension of another size; or an option
        makes no sense.  Nothing was written.
    ChestFormatError
        The folder holds something else than a chest, or the chest no dataset that could be
        continued.  Nothing was touched.
    SpillError, QuotaError
        The dataset could not be stored.  The chest holds what it held before; so it is with
        whatever computing a block raises, and after an interrupt or a crash.

    Notes
    -----
    One commit makes all of the change once it is complete, whatever the mode.  Others may read the
    old dataset meanwhile, and whoever has opened it reads on afterwards.  Saves to one folder take
    turns, also from several processes.

    The disk, and ``max_disk=`` if it is given, must have room for what is replaced and for what
    replaces it.  Appending costs what is appended, once a variable is stored in blocks: those that
    are there are linked.  A region costs the blocks that it touches, and whole arrays of up to 64
    MiB where a variable is not in blocks.

    A chest that cannot be opened, because its catalog is damaged or of another format, holds no
    dataset: with ``mode="w"`` it is emptied first, as ``Chest(mode="w")`` empties it.
    `arraychest.repair` may bring its values back instead.

    Examples
    --------
    >>> import xarray
    >>> heights = xarray.DataArray([[1.0, 2.0]], dims=("y", "x"), name="height")
    >>> save(heights, "heights.chest")
    >>> with xarray.open_dataset("heights.chest", engine="arraychest") as found:
    ...     save(found * 2, "heights.chest", mode="w")
    >>> save(heights * 3, "heights.chest", append_dim="y")
    >>> xarray.open_dataset("heights.chest", engine="arraychest").height.values
    array([[2., 4.],
           [3., 6.]])
    """
    mode = _checked_mode(mode, append_dim, region)
    root = node_at(group)
    datasets = _datasets(dataset, root, append_dim, region)
    is_tree = not isinstance(dataset, xr.Dataset | xr.DataArray)
    encodings = _encodings(encoding or {}, datasets, is_tree=is_tree)
    own = Own(options.get("allow_pickle", False), options.get("dump"), options.get("load"))
    # What does not depend on what is there is refused before the chest is opened.
    plans = {}
    for node, each in datasets.items():
        plans[node] = planned(each, own, encodings[node])
    # The dataset's arrays stay their owner's to write to.
    options = {"on_put": "copy", **options}
    with _opened(path, mode, options) as chest:
        with chest.lock(Node().description), chest.transaction():
            if append_dim is None and region is None:
                _put(chest, root, plans, mode)
            elif root.description in chest:
                _check_no_encoding(encodings[root])
                if append_dim is not None:
                    appended(chest, root, datasets[root], append_dim, own)
                else:
                    overwritten(chest, root, datasets[root], region, own)
                _touch_root(chest)
            elif append_dim is not None:
                _put(chest, root, plans, mode)
            else:
                raise ChestFormatError(
                    f"expected a dataset of which a region could be overwritten in {path}, found "
                    "none: save all of it first"
                )
        # xarray names the dask arrays of `chunks=` after the folder's time of modification, which
        # need not change while another process has the chest open.
        os.utime(chest._engine.session.open_store().folder.fd)


def _check_no_encoding(encoding: Mapping[Any, Any]) -> None:
    if encoding:
        raise ValueError(
            "expected no encoding with append_dim or region, as the variables in the chest have "
            f"theirs, found one of {', '.join(map(repr, encoding))}"
        )


def _checked_mode(mode: Any, append_dim: Any, region: Any) -> Literal["x", "w", "a"]:
    if append_dim is not None and region is not None:
        raise ValueError("expected append_dim or region, found both: save twice")
    is_extended = append_dim is not None or region is not None
    if mode is None:
        return "a" if is_extended else "x"
    if mode not in _MODES:
        raise ValueError(f"expected mode to be one of {', '.join(_MODES)}, found {mode!r:.200}")
    if is_extended and mode != "a":
        raise ValueError(f'expected mode="a" with append_dim or region, found {mode!r}')
    found: Literal["x", "w", "a"] = mode
    return found


def _opened(
    path: str | os.PathLike[str], mode: Literal["x", "w", "a"], options: dict[str, Any]
) -> arraychest.Chest:
    """The chest to save to, which still holds what it held if that can be read."""
    if mode != "w":
        return arraychest.open(path, mode, **options)
    try:
        return arraychest.open(path, "a", **options)
    except ChestFormatError:
        return arraychest.open(path, "w", **options)


def _datasets(given: Any, root: Node, append_dim: Any, region: Any) -> dict[Node, xr.Dataset]:
    """The datasets that are to be stored, and where."""
    if isinstance(given, xr.DataArray):
        return {root: _of_array(given)}
    if isinstance(given, xr.Dataset):
        return {root: given}
    if not isinstance(given, getattr(xr, "DataTree", ())):  # from 2024.10 on
        raise ValueTypeError(
            f"expected a dataset, a data array or a DataTree, found {type(given).__name__}"
        )
    if append_dim is not None or region is not None:
        raise ValueTypeError(
            "expected a dataset with append_dim or region, found a DataTree: save each of its "
            "datasets, as save(tree['/child'].to_dataset(), path, group='/child', append_dim=...)"
        )
    tree: Any = given
    above = tree.path.rstrip("/")
    return {
        node_at(f"{root.path}/{each.path[len(above) :]}"): each.to_dataset(inherit=each is tree)
        for each in tree.subtree
    }


def _of_array(array: xr.DataArray) -> xr.Dataset:
    """The dataset that `xarray.open_dataarray` makes the same data array of."""
    if array.name is None:
        return array.to_dataset(name=_ARRAY_VARIABLE)
    if array.name in array.coords or array.name in array.dims:
        found = array.to_dataset(name=_ARRAY_VARIABLE)
        found.attrs[_ARRAY_NAME] = array.name
        return found
    return array.to_dataset()


def _encodings(
    encoding: Mapping[Any, Any], datasets: Mapping[Node, xr.Dataset], *, is_tree: bool
) -> dict[Node, Mapping[Any, Any]]:
    if not is_tree:
        return dict.fromkeys(datasets, encoding)
    found: dict[Node, Mapping[Any, Any]] = {node: {} for node in datasets}
    for path, each in encoding.items():
        if node_at(path) not in datasets:
            raise ValueError(
                f"expected the encoding of a tree to name its paths, found {path!r:.200}"
            )
        found[node_at(path)] = each
    return found


def _put(
    chest: arraychest.Chest, root: Node, plans: Mapping[Node, Plan], mode: Literal["x", "w", "a"]
) -> None:
    """Store datasets as they are; what they replace goes."""
    merged = {node: plan.description() for node, plan in plans.items()}
    if mode == "a":
        for node, plan in plans.items():
            if node.description in chest:
                merged[node] = joined(node, description_of(chest, node), plan, chest)
    before = set(chest)
    for node, plan in plans.items():
        write(chest, node, plan)
        chest[node.description] = merged[node]
    _touch_root(chest)
    written = _keys(plans)
    for key in before - written:
        part_of: Any = node_of(key)
        if mode == "a":
            is_kept = part_of not in plans or not _is_replaced(part_of, key, plans[part_of])
        else:
            is_kept = root.path != ROOT and not (part_of and part_of.is_within(root.path))
        if not is_kept and key != Node().description:
            chest.discard(key)


def _keys(plans: Mapping[Node, Plan]) -> set[Any]:
    """The keys that plans have put."""
    found: set[Any] = {Node().description}
    for node, plan in plans.items():
        found.add(node.description)
        for name, each in plan.variables.items():
            found.update(_keys_of(node, name, each))
    return found


def _keys_of(node: Node, name: Hashable, each: Any) -> list[Any]:
    if each.told["kind"] == INDEX and each.data is None:
        return []
    if "chunks" in each.told and len(places := list(indices(each.told["chunks"]))) > 1:
        return [node.variable(name, place) for place in places]
    return [node.variable(name)]


def _is_replaced(node: Node, key: Any, plan: Plan) -> bool:
    name, is_variable = node.variable_of(key)
    return is_variable and name in plan.variables


def _touch_root(chest: arraychest.Chest) -> None:
    """Put the root's description anew, so that readers notice that something has changed."""
    key = Node().description
    chest[key] = chest.get(key) or {"variables": {}, "coords": [], "indexed": {}, "attrs": {}}
