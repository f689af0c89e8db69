"""Datasets of xarray in a chest: `save`, and ``xarray.open_dataset(path, engine="arraychest")``.

Each variable is an entry ``("variable", name)``, stored and compressed as any array is; of a dask
array its blocks.  The entry ``"dataset"`` says what they are: dimensions, attributes, and which of
them are coordinates.  It is put last: without it there is no dataset.
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
from arraychest.blocked import BlockedArray
from arraychest.compressed import CompressedArray
from arraychest.errors import AbsentKeyError, ChestFormatError, ValueTypeError
from arraychest.handle import Handle

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
        whatever scheduler is in charge, as `arraychest.dask.store` does.  A data array becomes a
        dataset of one variable.
    path
        The chest's folder.
    mode
        ``"x"``: must not exist; ``"w"``: what is there is removed first.
    options
        As `arraychest.Chest` takes them.

    Raises
    ------
    FileExistsError
        With ``mode="x"``; nothing was touched.
    ValueTypeError
        A variable or an attribute is of a type that would not come back the same.  Nothing that
        opens as a dataset is left; so it is with whatever computing a block raises.

    Examples
    --------
    >>> import xarray
    >>> heights = xarray.DataArray([[1.0, 2.0]], dims=("y", "x"), name="height")
    >>> save(heights, "heights.chest")
    >>> xarray.open_dataset("heights.chest", engine="arraychest").height.dims
    ('y', 'x')
    """
    if isinstance(dataset, xr.DataArray):
        dataset = dataset.to_dataset(name=dataset.name or "data")
    for name, index in dataset.xindexes.items():
        if isinstance(index, xr.indexes.PandasMultiIndex):
            raise ValueTypeError(
                f"expected an index of one level, found several for {name!r}: use "
                f"dataset.reset_index({name!r})"
            )
    # The dataset's arrays stay their owner's to write to.
    with arraychest.open(path, mode, **{"on_put": "copy", **options}) as chest:
        for name, variable in dataset.variables.items():
            _store(chest, (_VARIABLE, name), variable)
        chest[_DATASET] = {
            "variables": {
                name: {"dims": variable.dims, "attrs": dict(variable.attrs)}
                for name, variable in dataset.variables.items()
            },
            "coords": list(dataset.coords),
            "attrs": dict(dataset.attrs),
        }


def _store(chest: arraychest.Chest, key: Any, variable: xr.Variable) -> None:
    if variable.chunks is None:
        array = np.asarray(variable.values)
        if array.dtype.kind == "O" and all(isinstance(each, str) for each in array.flat):
            array = array.astype(np.dtypes.StringDType())
        chest[key] = array
        return
    from arraychest.dask import store

    store(variable.data, chest, key)


class _Stored(BackendArray):
    """A stored variable, of which xarray reads what it is asked for."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.shape, self.dtype = handle.shape, handle.dtype
        self._opened: Any = None

    def array(self) -> Any:
        """The array, mapped or compressed; opened once in each process."""
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


class ArrayChestBackend(BackendEntrypoint):
    """The engine ``"arraychest"``: variables are read where they are needed, views of maps.

    A dataset stays good as long as its chest is not changed; the chest is not kept open.
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

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a chest's folder."""
        return isinstance(filename_or_obj, str | os.PathLike) and os.path.isfile(
            os.path.join(filename_or_obj, "catalog.sqlite")
        )


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
