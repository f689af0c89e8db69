"""dask arrays larger than RAM into a chest, block by block, as one blocked array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from arraychest.arrays.blocked import BlockedArray
from arraychest.engine.append import before_append, finish, longer, remove_thrown_away
from arraychest.engine.blocks import begin
from arraychest.engine.face import Face, in_chest
from arraychest.engine.handle import handle_of
from arraychest.errors import ValueTypeError
from arraychest.formats.compression import How
from arraychest.formats.form import describe
from arraychest.formats.manifest import Chunks, indices
from arraychest.integrations.dask_arrays import StoredArray, to_dask
from arraychest.integrations.dask_functions import print_of_array
from arraychest.storage.block_writer import BlockWriter, slices


def store(
    x: da.Array,
    chest: Face,
    key: Any,
    compute: bool = True,
    return_stored: bool = False,
    **options: Any,
) -> Any:
    """Store a dask array as a blocked array: larger than RAM, and by many processes at once.

    Each of its blocks becomes a file, which whatever task has computed it writes: compressed, if
    the array is as large as the chest's ``compress_above=`` and this block is worth it.  The key
    has its value once all blocks are there, and its old value until then, or for good if one fails.

    Parameters
    ----------
    x
        Its blocks should be some 10 to 100 MiB.
    chest
        May be in use by others meanwhile.
    compute
        Whether to do it now; otherwise what is returned does it when it is computed.
    return_stored
        Whether to return the array as it is stored.
    options
        For the scheduler, as `dask.compute` takes them: ``scheduler="processes"``.

    Returns
    -------
    None, dask.array.Array or dask.delayed.Delayed
        With `return_stored` the stored array, of the same chunks: as `Chest.to_dask` gives it; one
        that is stored when it is first computed if `compute` is false.  Otherwise None, or what
        stores it.

    Raises
    ------
    ValueTypeError
        Its chunks or its dtype are not known, or no such array can be stored; or a block is
        another array than dask says.
    SpillError
        A block could not be written.
    QuotaError
        It is more than ``max_disk=`` allows.  In each case the key has the value it had.

    Notes
    -----
    What was written is kept: the same call once more, of an array of the same name and chunks,
    computes only the blocks that are missing.  (dask names an array after what it is computed of,
    as far as that is deterministic; what your functions do that compute it counts, too, and where
    that cannot be told it is begun anew.)  Blocks that nobody has gone on with for a day are
    removed when the chest is next opened by nobody else, or compacted.

    The blocks go to the chest's folder, which the workers of a cluster reach by the same path.
    Only the process of the chest opens its catalog, unless `compute` is false: then the process
    that runs the last task does.

    Examples
    --------
    >>> import arraychest
    >>> import dask.array as da
    >>> x = da.ones((2000, 2000), chunks=(1000, 1000))
    >>> with arraychest.open("ones.chest") as chest:
    ...     store(x, chest, "x", scheduler="sync")
    ...     print(chest["x"])
    BlockedArray(shape=(2000, 2000), dtype=float64, numblocks=(2, 2))
    """
    chest, key = in_chest(chest, key)
    chest._engine.session.begin_writing()
    chunks = _chunks(x)
    what = print_of_array(x)
    name = None if what is None else f"{x.name} {what.hex()}"
    writer = begin(chest._engine.session, key, x.dtype, chunks, name)
    task = _Storing(chest, key, writer, (0,) * x.ndim)
    return _stored(x, task, compute, return_stored, options)


def store_anew(x: da.Array, chest: Face, key: Any, how: How | None = None) -> None:
    """Store a dask array as `store` does, but keep nothing of what was written if it fails.

    So its name need not tell what is in it: that of an array which xarray has opened does not.
    `how` says how to compress each block; None: as the chest does.
    """
    engine = chest._engine
    engine.session.begin_writing()
    writer = begin(engine.session, key, x.dtype, _chunks(x), how=how)
    try:
        _stored(x, _Storing(chest, key, writer, (0,) * x.ndim), True, False, {})
    except BaseException:
        writer.discard()
        raise


def check(x: da.Array) -> None:
    """Raise ValueTypeError if a dask array cannot be stored; computes nothing."""
    _chunks(x)
    if x.dtype.hasobject:
        raise ValueTypeError(f"expected a dtype of plain elements, found {x.dtype}")
    describe(x.dtype)


def persist(x: da.Array, chest: Face, key: Any = None, **options: Any) -> da.Array:
    """A dask array computed, as ``x.persist()``, that lives on disk and not in RAM.

    Parameters
    ----------
    key
        Where it is stored, see `store`; by default under ``("dask", x.name, WHAT)``, of what your
        functions do that compute it, as `Chest.cache` has it.  If there is an array already of this
        shape, dtype and chunks under the default key, it is taken; where what they do cannot be
        told, the key is ``("dask", x.name)`` and the array is computed anew.
    options
        For the scheduler.

    Returns
    -------
    dask.array.Array
        Of the same chunks; its tasks read the blocks that they need.

    Raises
    ------
    ValueTypeError, SpillError, QuotaError
        As `store`.
    """
    if key is None:
        chunks = _chunks(x)
        what = print_of_array(x)
        key = ("dask", x.name) if what is None else ("dask", x.name, what.hex())
        found = None if what is None else chest.get(key)
        if isinstance(found, BlockedArray) and (found.chunks, found.dtype) == (
            chunks,
            x.dtype,
        ):
            return chest.to_dask(key, found.chunks)
    return store(x, chest, key, return_stored=True, **options)


def append(x: da.Array, chest: Face, key: Any, axis: int = 0, **options: Any) -> None:
    """Make a blocked array longer by a dask array, block by block, as `store` stores one.

    Where there is no such key, the array is stored.

    Parameters
    ----------
    x
        Is rechunked along the other dimensions, as the array there is.
    axis
        Along which dimension.

    Raises
    ------
    ValueTypeError, SpillError, QuotaError
        As `Chest.append`: the key has the value it had.
    """
    chest, key = in_chest(chest, key)
    engine = chest._engine
    engine.session.begin_writing()
    with chest.lock(key):
        before = before_append(engine, key, x.shape, x.dtype, axis)
        if before is None:
            store(x, chest, key, **options)
            return
        axis %= x.ndim
        x = x.rechunk({at: sizes for at, sizes in enumerate(before.chunks) if at != axis})
        chunks = longer(before.chunks, axis, _chunks(x)[axis])
        # The same array may be appended twice.
        writer = begin(engine.session, key, x.dtype, chunks)
        start = [0] * x.ndim
        start[axis] = len(before.chunks[axis])
        try:
            with writer.held():
                writer.take(before)
                del before  # nobody else may hold it, and then its folder can be removed
                task = _Storing(chest, key, writer, tuple(start))
                _stored(x, task, True, False, options)
        except BaseException:
            writer.discard()
            raise


def _chunks(x: da.Array) -> Chunks:
    if not isinstance(x, da.Array):
        raise TypeError(f"expected a dask array, found {type(x).__name__}")
    if any(np.isnan(size) for sizes in x.chunks for size in sizes):
        raise ValueTypeError(
            "expected a dask array whose chunks are known, found unknown sizes: "
            "x.compute_chunk_sizes() finds them out"
        )
    return tuple(tuple(int(size) for size in sizes) for sizes in x.chunks)


@dataclass(frozen=True)
class _Storing:
    """What is stored where; `start` is the place of the dask array's first block."""

    chest: Face
    key: Any
    writer: BlockWriter
    start: tuple[int, ...]

    def __call__(self, *_: Any) -> Any:
        """The last task: all blocks are there."""
        engine, writer = self.chest._engine, self.writer
        row = engine.stored_row(self.key)
        if row is not None and row.stamp == writer.stamp and writer.missing():
            # Who wrote the same has taken them all: this very task, say, on a worker that was lost
            # then, some of whose blocks were written again.
            writer.discard()
        else:
            finish(engine, self.key, writer)
        return handle_of(engine, self.key)


def _write(writer: BlockWriter, block: Any, index: tuple[int, ...]) -> None:
    writer.write(index, block)


def _stored(
    x: da.Array, task: _Storing, compute: bool, return_stored: bool, options: dict[str, Any]
) -> Any:
    writer, start = task.writer, task.start
    missing = {
        tuple(at - first for at, first in zip(index, start, strict=True))
        for index in writer.missing()
    }
    # As one graph: blocks that are there are not computed, and neither is what only they need.
    (x,) = dask.optimize(x)
    name = f"store-{tokenize(writer, start, x.name)}"
    layer: dict[Any, Any] = {
        (name, *index): (
            _write,
            writer,
            (x.name, *index),
            tuple(at + first for at, first in zip(index, start, strict=True)),
        )
        for index in indices(_chunks(x))
        if index in missing
    }
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[x])
    if compute:
        try:
            with writer.held():
                if layer:
                    dask.base.compute_as_if_collection(da.Array, graph, list(layer), **options)
                handle = task()
        except BaseException:
            remove_thrown_away(task.chest._engine)
            raise
        return to_dask(handle, _chunks(x)) if return_stored else None
    end = f"stored-{tokenize(writer, start, x.name)}"
    layers = {**graph.layers, end: {end: (task, list(layer))}}
    needs = {**graph.dependencies, end: {name}}
    whole = HighLevelGraph(layers, needs)
    if not return_stored:
        return Delayed(end, whole)
    return _lazily(end, whole, x)


def _lazily(end: str, graph: HighLevelGraph, x: da.Array) -> da.Array:
    """An array whose blocks are read once `end` has stored them."""
    name = f"read-{end}"
    chunks = _chunks(x)
    layer = {(name, *index): (_read, end, slices(chunks, index)) for index in indices(chunks)}
    layers = {**graph.layers, name: layer}
    needs = {**graph.dependencies, name: {end}}
    return da.Array(HighLevelGraph(layers, needs), name, chunks, dtype=x.dtype)


def _read(handle: Any, where: tuple[slice, ...]) -> np.ndarray:
    return StoredArray(handle)[where]
