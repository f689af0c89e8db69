"""Datasets of xarray in a chest: `save`, and ``xarray.open_dataset(path, engine="arraychest")``.

Each variable is an entry ``("variable", name)``, stored and compressed as any array is; of a dask
array its blocks.  The entry ``"dataset"`` says what they are: dimensions, attributes, and which of
them are coordinates; without it there is no dataset.  One commit puts them all, and removes what
was there before.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

import arraychest
from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.engine.handle import Handle
from arraychest.errors import AbsentKeyError, ChestFormatError, ValueTypeError
from arraychest.values.accept import Own, accept
from arraychest.values.keys import encode_key

_DATASET = "dataset"
_VARIABLE = "variable"

_EXPECTED = "expected a dataset that arraychest.xarray.save has stored"


def save(
    dataset: xr.Dataset | xr.DataArray,
    path: str | os.PathLike[str],
    *,
    mode: Literal["x", "w"] = "x",
    **options: Any,
) -> None:
    """Store a dataset as a chest.

    Parameters
    ----------
    dataset
        Its variables may be dask arrays, also larger than RAM: those are written block by block by
        whatever scheduler is in charge, as `arraychest.dask.store` does.  A dask array of strings
        is computed in RAM.  A data array becomes a dataset of one variable.  The variables may be
        read, and computed, from the very dataset that is replaced.
    path
        The chest's folder.
    mode
        ``"x"``: must not exist; ``"w"``: the dataset takes the place of whatever the chest holds,
        also of keys that are no part of a dataset.
    options
        As `arraychest.Chest` takes them.

    Raises
    ------
    FileExistsError
        With ``mode="x"``; nothing was touched.
    ValueTypeError
        A variable, a name or an attribute is of a type that would not come back the same, or
        `dataset` is something else, as a tree of datasets.  Nothing was written, and nothing was
        computed but dask arrays of strings.
    ChestFormatError
        The folder holds something else than a chest.  Nothing was touched.
    SpillError, QuotaError
        The dataset could not be stored.  The chest holds what it held before; so it is with
        whatever computing a block raises, and after an interrupt or a crash.

    Notes
    -----
    One commit replaces the old dataset once the new one is complete, so that the disk, and
    ``max_disk=`` if it is given, must have room for both.  Others may read the old one meanwhile,
    and whoever has opened it reads on afterwards.  Two that save to one folder take turns.

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
    >>> xarray.open_dataset("heights.chest", engine="arraychest").height.values
    array([[2., 4.]])
    """
    if isinstance(dataset, xr.DataArray):
        dataset = dataset.to_dataset(name=dataset.name or "data")
    told, strings = _checked(dataset, options)
    # The dataset's arrays stay their owner's to write to.
    options = {"on_put": "copy", **options}
    with _opened(path, mode, options) as chest:
        with chest.lock(_DATASET), chest.transaction():
            chest[_DATASET] = told
            for name, variable in dataset.variables.items():
                if name in strings:
                    chest[_VARIABLE, name] = strings[name]
                elif variable.chunks is None:
                    chest[_VARIABLE, name] = np.asarray(variable.values)
                else:
                    from arraychest.integrations.dask_storing import store_anew

                    store_anew(variable.data, chest, (_VARIABLE, name))
            if mode == "w":
                kept = {_DATASET, *((_VARIABLE, name) for name in dataset.variables)}
                for key in list(chest):
                    if key not in kept:
                        chest.discard(key)
        # xarray names the dask arrays of `chunks=` after the folder's time of modification, which
        # need not change while another process has the chest open.
        os.utime(chest._engine.session.open_store().folder.fd)


def _opened(
    path: str | os.PathLike[str], mode: Literal["x", "w"], options: dict[str, Any]
) -> arraychest.Chest:
    """The chest to save to, which still holds what it held if that can be read."""
    if mode != "w":
        return arraychest.open(path, mode, **options)
    try:
        return arraychest.open(path, "a", **options)
    except ChestFormatError:
        return arraychest.open(path, "w", **options)


def _checked(
    dataset: xr.Dataset, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[Hashable, np.ndarray]]:
    """What the entry of a dataset says, and its variables of strings, in RAM.

    Raises
    ------
    ValueTypeError, KeyTypeError
        Something in it would not come back the same.
    """
    if isinstance(dataset, getattr(xr, "DataTree", ())):  # from 2024.10 on
        raise ValueTypeError(
            "expected a dataset or a data array, found a DataTree: save each dataset of it to a "
            "folder of its own, as save(tree['/child'].to_dataset(), path), or put the tree into a "
            "chest as a value, as chest['tree'] = tree"
        )
    if not isinstance(dataset, xr.Dataset):
        raise ValueTypeError(f"expected a dataset or a data array, found {type(dataset).__name__}")
    for name, index in dataset.xindexes.items():
        if isinstance(index, xr.indexes.PandasMultiIndex):
            raise ValueTypeError(
                f"expected an index of one level, found several for {name!r}: use "
                f"dataset.reset_index({name!r})"
            )
    own = Own(options.get("allow_pickle", False), options.get("dump"), options.get("load"))
    told = {
        "variables": {
            name: {"dims": variable.dims, "attrs": dict(variable.attrs)}
            for name, variable in dataset.variables.items()
        },
        "coords": list(dataset.coords),
        "attrs": dict(dataset.attrs),
    }
    accept(told, own)
    # The plain ones first: of strings all are read, and those of dask computed.
    for name, variable in dataset.variables.items():
        encode_key((_VARIABLE, name))
        _check_variable(name, variable, own)
    strings = {
        name: _strings(variable)
        for name, variable in dataset.variables.items()
        if variable.dtype.hasobject
    }
    for array in strings.values():
        accept(array, own)
    return told, strings


def _check_variable(name: Hashable, variable: xr.Variable, own: Own) -> None:
    """Refuse a variable by its type; reads none of it."""
    data = variable._data
    if not isinstance(variable.dtype, np.dtype):
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be of a dtype of NumPy, found "
            f"{variable.dtype}: use astype"
        )
    if variable.chunks is not None:
        from arraychest.integrations.dask_storing import check

        if not variable.dtype.hasobject:
            check(data)
    elif not isinstance(data, indexing.ExplicitlyIndexed) and type(data) is not np.ndarray:
        raise ValueTypeError(
            f"expected the variable {name!r:.200} to be an array of NumPy or of dask, found "
            f"{type(data).__module__}.{type(data).__qualname__}"
        )
    elif not variable.dtype.hasobject:
        accept(np.empty((0,) * variable.ndim, variable.dtype), own)


def _strings(variable: xr.Variable) -> np.ndarray:
    array = np.asarray(variable.values)
    if array.dtype.kind == "O" and all(isinstance(each, str) for each in array.flat):
        return array.astype(np.dtypes.StringDType())
    return array


class _Stored(BackendArray):
    """A stored variable, of which xarray reads what it is asked for."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.shape, self.dtype = handle.shape, handle.dtype
        # A file that is open is read on when its key is overwritten.
        self._opened: Any = handle.array()

    def array(self) -> Any:
        """The array, mapped, compressed or blocked; in another process it is opened when needed."""
        if self._opened is None:
            self._opened = self._handle.array()
        return self._opened

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, where: tuple[Any, ...]) -> np.ndarray:
        # Beside an array NumPy takes a number for one, too, and may turn the dimensions round.
        numbers = [at for at, each in enumerate(where) if isinstance(each, int | np.integer)]
        wide = tuple(
            slice(each % n, each % n + 1) if at in numbers else each
            for at, (each, n) in enumerate(zip(where, self.shape, strict=True))
        )
        return np.squeeze(np.asarray(self.array()[wide]), axis=tuple(numbers))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __dask_tokenize__(self) -> Any:
        return "arraychest-variable", *self._handle.token


class ArrayChestBackend(BackendEntrypoint):
    """The engine ``"arraychest"``: variables are read where they are needed, views of maps.

    A dataset stays good when its chest is changed, and when another dataset takes its place; so it
    is in other processes, to which it was sent, for what they have read by then.  The chest is not
    kept open.
    """

    description = "Open a dataset that arraychest.xarray.save has stored"

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> xr.Dataset:
        """See `xarray.open_dataset`.

        Raises
        ------
        ChestFormatError
            The chest holds no dataset, or one whose `save` was interrupted.
        """
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        with arraychest.open(filename_or_obj, "r") as chest:
            while True:
                before = _saved(chest)
                try:
                    found = _dataset(chest, dropped)
                except (arraychest.ArrayChestError, OSError):
                    if _saved(chest) == before:
                        raise
                    continue
                # Otherwise it may be one half of each of two.
                if _saved(chest) == before:
                    return found

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a chest's folder."""
        return isinstance(filename_or_obj, str | os.PathLike) and os.path.isfile(
            os.path.join(filename_or_obj, "catalog.sqlite")
        )


def _saved(chest: arraychest.Chest) -> Any:
    """What tells the dataset that is there from others that were saved; None if there is none."""
    try:
        return chest.handle(_DATASET).token
    except AbsentKeyError:
        return None


def _dataset(chest: arraychest.Chest, dropped: set[str]) -> xr.Dataset:
    told = chest.get(_DATASET)
    if told is None:
        raise ChestFormatError(f"{_EXPECTED} in {chest.path}, found none")
    try:
        variables: dict[Hashable, xr.Variable] = {
            name: _variable(chest, name, each["dims"], each["attrs"])
            for name, each in told["variables"].items()
            if name not in dropped
        }
        coords = [name for name in told["coords"] if name in variables]
        return xr.Dataset(
            {name: variable for name, variable in variables.items() if name not in coords},
            {name: variables[name] for name in coords},
            told["attrs"],
        )
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, arraychest.ArrayChestError):
            raise
        # What a stranger has put there.
        raise ChestFormatError(
            f"{_EXPECTED} in {chest.path}, found something else: {error!r:.200}"
        ) from error


def _variable(chest: arraychest.Chest, name: Hashable, dims: Any, attrs: Any) -> xr.Variable:
    key = _VARIABLE, name
    try:
        handle = chest.handle(key)
    except AbsentKeyError:
        raise ChestFormatError(
            f"expected the variable {name!r:.200} in {chest.path}, found none"
        ) from None
    if handle.kind not in ("array", "blocked"):
        return xr.Variable(dims, chest.load(key), attrs)
    stored = _Stored(handle)
    encoding = {}
    if handle.is_compressed or handle.kind == "blocked":
        array: CompressedArray | BlockedArray = stored.array()
        encoding["preferred_chunks"] = dict(zip(dims, array.chunks, strict=True))
    return xr.Variable(dims, indexing.LazilyIndexedArray(stored), attrs, encoding)
