"""Stored datasets as xarray reads them: lazily, and of each variable the chunks that it needs."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing
from xarray.core.nputils import NumpyVIndexAdapter

from arraychest.arrays.lazy import LazyArray
from arraychest.chest import Chest
from arraychest.engine.handle import Handle
from arraychest.errors import ArrayChestError, ChestFormatError
from arraychest.formats.manifest import Chunks, indices
from arraychest.integrations import checks, objects
from arraychest.integrations.xarray import encoding_from_tree
from arraychest.xarray.encoding import Decoding, unpacked, with_coordinates
from arraychest.xarray.fidelity import index_made, plain_index
from arraychest.xarray.layout import (
    ARRAY,
    EXPECTED,
    INDEX,
    OBJECTS,
    PICKLED,
    STRINGS,
    VALUE,
    Node,
    description_of,
    handle_of,
)

_READ = "arraychest-variable"


class InBlocks(LazyArray):
    """Strings or Python objects that lie in a chest block by block, each a value of its own.

    Parameters
    ----------
    read
        Gives a block by its place: an array.
    """

    __slots__ = ("_block", "_ends", "chunks")

    def __init__(
        self, read: Callable[[tuple[int, ...]], np.ndarray], dtype: np.dtype, chunks: Chunks
    ) -> None:
        super().__init__(dtype, tuple(map(sum, chunks)), chunks)
        self._block = read
        self.chunks = chunks
        self._ends = [list(itertools.accumulate(sizes)) for sizes in chunks]

    def _read(self, where: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in where], self.dtype)
        if not out.size:
            return out
        touched = [
            range(bisect.bisect_right(ends, part.start), bisect.bisect_left(ends, part.stop) + 1)
            for ends, part in zip(self._ends, where, strict=True)
        ]
        for index in itertools.product(*touched):
            source, target = [], []
            for at, ends, sizes, part in zip(index, self._ends, self.chunks, where, strict=True):
                start = ends[at] - sizes[at]
                first, last = max(part.start, start), min(part.stop, ends[at])
                source.append(slice(first - start, last - start))
                target.append(slice(first - part.start, last - part.start))
            out[tuple(target)] = self._block(index)[tuple(source)]
        return out


class Stored(BackendArray):
    """A stored variable, of which xarray reads what it is asked for.

    It stays good when its chest is changed, for what this process has opened, and pickles to its
    place.  Safe from many threads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    _opened: Any

    def opened(self) -> Any:
        """The array, mapped or lazy; in another process it is opened when needed."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Any:
        raise NotImplementedError

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """What xarray asks for: outer or vectorised, it reads the chunks that hold it."""
        if isinstance(key, indexing.VectorizedIndexer):
            adapter: Any = NumpyVIndexAdapter
            return np.asarray(adapter(self.opened())[key.tuple])
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._outer
        )

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """As ``self[key]``, in a thread: the event loop goes on."""
        return await asyncio.to_thread(self.__getitem__, key)

    def _outer(self, where: tuple[Any, ...]) -> np.ndarray:
        array = self.opened()
        # Beside an array NumPy takes a number for one, too, and may turn the dimensions round.
        numbers = tuple(at for at, each in enumerate(where) if isinstance(each, int | np.integer))
        wide = tuple(
            slice(each % n, each % n + 1) if at in numbers else each
            for at, (each, n) in enumerate(zip(where, self.shape, strict=True))
        )
        vectors = [at for at, each in enumerate(wide) if isinstance(each, np.ndarray)]
        if len(vectors) < 2:
            found = np.asarray(array[wide])
        elif isinstance(array, LazyArray):
            found = _by_chunks(array, wide, vectors)
        else:
            found = _one_by_one(np.asarray(array), wide, vectors)
        return np.squeeze(found, axis=numbers)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the place, and nothing that is open."""
        return {**self.__dict__, "_opened": None}


def _one_by_one(array: np.ndarray, where: tuple[Any, ...], vectors: list[int]) -> np.ndarray:
    """What several vectors ask for, of an array in memory or mapped; slices come first."""
    array = array[tuple(slice(None) if at in vectors else each for at, each in enumerate(where))]
    for at in vectors:
        array = np.take(array, where[at], axis=at)
    return array


def _by_chunks(array: LazyArray, where: tuple[Any, ...], vectors: list[int]) -> np.ndarray:
    """What several vectors ask for, of an array that lies in chunks: each chunk is read once."""
    groups = [_in_chunks(where[at] % array.shape[at], array._cuts[at]) for at in vectors]
    lengths = [len(where[at]) for at in vectors]
    likeness: Any = array._likeness[
        tuple(slice(None) if at in vectors else each for at, each in enumerate(where))
    ]
    shape = list(likeness.shape)
    for at, length in zip(vectors, lengths, strict=True):
        shape[at] = length
    out = np.empty(shape, array.dtype)
    for cell in itertools.product(*groups):
        box = list(where)
        part_of: list[Any] = [slice(None)] * array.ndim
        target: list[Any] = [slice(None)] * array.ndim
        for at, (places, numbers) in zip(vectors, cell, strict=True):
            low = int(numbers.min())
            box[at] = slice(low, int(numbers.max()) + 1)
            part_of[at], target[at] = numbers - low, places
        part = np.asarray(array[tuple(box)])
        inner = _one_by_one(part, tuple(part_of), vectors)
        open_to = [
            each if isinstance(each, np.ndarray) else np.arange(n)
            for each, n in zip(target, shape, strict=True)
        ]
        out[np.ix_(*open_to)] = inner
    return out


def _in_chunks(numbers: np.ndarray, cut: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """The numbers by the chunk that they lie in: their places in the vector, and themselves."""
    if isinstance(cut, int):
        chunk = numbers // cut
    else:
        chunk = np.searchsorted(np.cumsum(cut), numbers, side="right")
    order = np.argsort(chunk, kind="stable")
    ends = np.flatnonzero(np.diff(chunk[order])) + 1
    return [(places, numbers[places]) for places in np.split(order, ends) if len(places)]


class StoredArray(Stored):
    """A variable that is one array of a chest."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.shape, self.dtype = handle.shape, handle.dtype
        # A file that is open is read on when its key is overwritten.
        self._opened = handle.array()

    def _open(self) -> Any:
        return self._handle.array()

    def __dask_tokenize__(self) -> Any:
        return _READ, *self._handle.token


class StoredBlocks(Stored):
    """A variable of strings or Python objects, whose blocks are values of a chest."""

    def __init__(
        self, handles: list[Handle], dtype: np.dtype, chunks: Chunks, *, is_object: bool
    ) -> None:
        self._handles = dict(zip(indices(chunks), handles, strict=True))
        self._chunks, self._is_object = chunks, is_object
        self.shape, self.dtype = tuple(map(sum, chunks)), dtype
        self._opened = None

    @property
    def chunks(self) -> Chunks:
        """The sizes of the blocks along each dimension."""
        return self._chunks

    def _open(self) -> Any:
        return InBlocks(self._block, self.dtype, self._chunks)

    def _block(self, index: tuple[int, ...]) -> np.ndarray:
        handle = self._handles[index]
        found = handle.array()
        if self._is_object:
            found = objects.from_tree(found)
        found = checks.array(np.asarray(found), "a block").astype(self.dtype, copy=False)
        expected = tuple(sizes[at] for at, sizes in zip(index, self._chunks, strict=True))
        if found.shape != expected:
            raise ChestFormatError(
                f"expected a block of shape {expected} under key {handle.key!r:.200}, found "
                f"{found.shape}"
            )
        return found

    def __dask_tokenize__(self) -> Any:
        return _READ, *(handle.token for handle in self._handles.values())


# Datasets.


def dataset_in(
    chest: Chest, node: Node, dropped: set[Any], decoding: Decoding | None = None
) -> xr.Dataset:
    """A dataset that lies in a chest, lazily.

    Parameters
    ----------
    decoding
        None: what was packed is unpacked.

    Raises
    ------
    ChestFormatError
        There is none, or what is there was not stored by `save`.
    """
    told = description_of(chest, node)
    try:
        return _dataset(chest, node, told, dropped, decoding or Decoding())
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, ArrayChestError):
            raise
        # What a stranger has put there.
        raise ChestFormatError(
            f"{EXPECTED} in {chest.path}, found something else: {error!r:.200}"
        ) from error


def _dataset(
    chest: Chest, node: Node, told: dict[str, Any], dropped: set[Any], decoding: Decoding
) -> xr.Dataset:
    described = {name: each for name, each in told["variables"].items() if name not in dropped}
    indexes: dict[Hashable, Any] = {}
    made: dict[Hashable, xr.Variable] = {}
    for name, each in described.items():
        if each.get("kind") == INDEX and each.get("of") is None:
            index, variables = index_made(chest.load(node.variable(name)), told["variables"])
            if not dropped.isdisjoint(variables):
                continue  # without its index, as xarray drops it
            made |= variables
            indexes |= dict.fromkeys(variables, index)
    variables = {}
    for name, each in described.items():
        if each.get("kind") == INDEX:
            variables[name] = (
                made[name] if name in made else _without_index(chest, node, told, name)
            )
        else:
            variables[name] = variable_in(chest, node, name, each, decoding)
    coords = {name: variables[name] for name in told["coords"] if name in variables}
    for name, freq in checks.exactly(dict, told["indexed"], "indexes").items():
        variable = variables.get(name)
        if variable is not None and name in coords:
            indexes[name] = index = plain_index(name, variable, freq)
            coords |= index.create_variables({name: variable})
    data = {name: each for name, each in variables.items() if name not in coords}
    found = xr.Dataset(data, xr.Coordinates(coords, indexes), told["attrs"])
    order = [name for name in described if name in found.variables]
    if list(found.variables) != order:
        found = _ordered(found, order)
    found = with_coordinates(found, decoding.decode_coords)
    # `xarray.open_mfdataset` closes all that it has opened.
    found.set_close(_nothing_to_close)
    return found


def _nothing_to_close() -> None:
    """Files stay open for as long as a variable reads them."""


def _ordered(dataset: xr.Dataset, names: list[Hashable]) -> xr.Dataset:
    found: xr.Dataset = dataset[names]
    found.attrs = dataset.attrs
    return found


def _without_index(chest: Chest, node: Node, told: dict[str, Any], name: Hashable) -> xr.Variable:
    """A coordinate of an index that is not wanted."""
    first = told["variables"][name].get("of")
    tree = chest.load(node.variable(name if first is None else first))
    _, made = index_made(tree, told["variables"])
    variable = made[name]
    return xr.Variable(variable.dims, variable.values, variable.attrs)


def variable_in(
    chest: Chest, node: Node, name: Hashable, told: Mapping[str, Any], decoding: Decoding
) -> xr.Variable:
    """A variable of a dataset, lazily where it is an array."""
    kind, dims, attrs = told.get("kind", ARRAY), told["dims"], told["attrs"]
    if kind in (VALUE, PICKLED):
        return xr.Variable(dims, chest.load(node.variable(name)), attrs)
    if kind in (STRINGS, OBJECTS):
        stored: Any = _blocks_in(chest, node, name, told)
        chunks = stored.chunks if len(stored._handles) > 1 else None
    elif kind == ARRAY:
        handle = handle_of(chest, node, name)
        if handle.kind not in ("array", "blocked"):
            return unpacked(name, xr.Variable(dims, chest.load(handle.key), attrs), told, decoding)
        stored = StoredArray(handle)
        in_chunks = handle.is_compressed or handle.kind == "blocked"
        chunks = stored.opened().chunks if in_chunks else None
    else:
        raise ValueError(f"expected a kind of variable, found {checks.shown(kind)}")
    variable = xr.Variable(dims, indexing.LazilyIndexedArray(stored), attrs)
    found = unpacked(name, variable, told, decoding)
    if told.get("packed") == "cftime" and found.dtype == object:
        found.encoding = {}  # nobody has asked for the numbers that tell these dates
    if told.get("encoding"):
        found.encoding |= encoding_from_tree(told["encoding"])
    if chunks is not None:
        found.encoding["preferred_chunks"] = dict(zip(dims, chunks, strict=True))
    return found


def _blocks_in(chest: Chest, node: Node, name: Hashable, told: Mapping[str, Any]) -> StoredBlocks:
    chunks = checks.exactly(tuple, told["chunks"], "chunks")
    for sizes in chunks:
        checks.shape_of(sizes)
    dtype = told["dtype"]
    dtype = np.dtype(object) if type(dtype) is str else checks.array(dtype, "a dtype").dtype
    count = 1
    for sizes in chunks:
        count *= len(sizes)
    places: Iterable[Any] = indices(chunks) if count > 1 else [None]
    handles = [handle_of(chest, node, name, each) for each in places]
    return StoredBlocks(handles, dtype, chunks, is_object=told["kind"] == OBJECTS)
