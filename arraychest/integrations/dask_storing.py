"""dask arrays larger than RAM into a chest, block by block, as one blocked array."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.array.slicing import normalize_index
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
    x: da.Array | Sequence[da.Array],
    chest: Face,
    key: Any,
    compute: bool = True,
    return_stored: bool = False,
    *,
    regions: Any = None,
    **options: Any,
) -> Any:
    """Store dask arrays as blocked arrays: larger than RAM, and by many processes at once.

    Each of its blocks becomes a file, which whatever task has computed it writes: compressed, if
    the array is as large as the chest's ``compress_above=`` and this block is worth it.  The key
    has its value once all blocks are there, and its old value until then, or for good if one fails.

    Parameters
    ----------
    x
        A dask array, whose blocks should be some 10 to 100 MiB; or a list of them.  What several
        arrays are computed of is computed once, and one commit stores them all.
    chest
        May be in use by others meanwhile.
    key
        The array's key; of a list of arrays, a list of as many keys.
    compute
        Whether to do it now; otherwise what is returned does it when it is computed.
    return_stored
        Whether to return the array as it is stored.
    regions
        Which part of a stored array takes the place of: an index of slices, as `dask.array.store`
        takes it; of a list of arrays, a list of them, or one for all.  The array has the shape of
        that part, and its dtype becomes that of what is stored.  Blocks that the part does not
        touch are linked, and not written again.  None: the whole value.
    options
        For the scheduler, as `dask.compute` takes them: ``scheduler="processes"``.

    Returns
    -------
    None, dask.array.Array or dask.delayed.Delayed
        With `return_stored` the stored array, of the same chunks: as `Chest.to_dask` gives it; one
        that is stored when it is first computed if `compute` is false.  Otherwise None, or what
        stores it.  Of a list of arrays, a tuple of stored arrays.  Several that are not computed at
        once share their tasks when they are computed together.

    Raises
    ------
    TypeError
        It is no dask array.
    ValueTypeError
        Its chunks are not known, it is masked, or its elements are Python objects: nothing was
        computed.  Or a block is another array than dask says.
    AbsentKeyError, ValueError
        There is no array under the key that a region could be a part of, or the region has another
        shape; or there are not as many keys or regions as arrays.
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
    several = isinstance(x, list | tuple)
    arrays = list(x) if isinstance(x, list | tuple) else [x]
    keys = key if several else [key]
    if not isinstance(keys, list) or len(keys) != len(arrays):
        raise ValueError(
            f"expected a list of as many keys as arrays, {len(arrays)}, found {key!r:.200}"
        )
    for each in arrays:
        check(each)
    if regions is not None:
        if not compute or return_stored:
            raise ValueError(
                "expected compute=True and return_stored=False with regions, which are stored at "
                "once, found another"
            )
        wanted = regions if isinstance(regions, list) else [regions] * len(arrays)
        store_regions(arrays, chest, keys, wanted, options)
        return None
    tasks = [_begun(*in_chest(chest, one), each) for one, each in zip(keys, arrays, strict=True)]
    found = _stored(arrays, tasks, compute, return_stored, options)
    return found if several or isinstance(found, Delayed) or found is None else found[0]


def _begun(chest: Face, key: Any, x: da.Array) -> _Storing:
    chest._engine.session.begin_writing()
    what = print_of_array(x)
    name = None if what is None else f"{x.name} {what.hex()}"
    writer = begin(chest._engine.session, key, x.dtype, _chunks(x), name)
    return _Storing(chest, key, writer, (0,) * x.ndim)


def store_anew(x: da.Array, chest: Face, key: Any, how: How | None = None) -> None:
    """Store a dask array as `store` does, but keep nothing of what was written if it fails.

    So its name need not tell what is in it: that of an array which xarray has opened does not.
    `how` says how to compress each block; None: as the chest does.
    """
    engine = chest._engine
    engine.session.begin_writing()
    writer = begin(engine.session, key, x.dtype, _chunks(x), how=how)
    try:
        _stored([x], [_Storing(chest, key, writer, (0,) * x.ndim)], True, False, {})
    except BaseException:
        writer.discard()
        raise


def check(x: da.Array) -> None:
    """Raise ValueTypeError if a dask array cannot be stored; computes nothing."""
    _chunks(x)
    if x.dtype.hasobject:
        raise ValueTypeError(
            f"expected a dtype of plain elements, found {x.dtype}: x.astype(...) gives it another"
        )
    describe(x.dtype)
    if isinstance(x._meta, np.ma.MaskedArray):
        raise ValueTypeError(
            "expected a dask array of plain blocks, found blocks of MaskedArray: store "
            "dask.array.ma.filled(x, value), or dask.array.ma.getdata(x) and "
            "dask.array.ma.getmaskarray(x) as two arrays"
        )


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
    check(x)
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
                _stored([x], [task], True, False, options)
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
    arrays: Sequence[da.Array],
    tasks: Sequence[_Storing],
    compute: bool,
    return_stored: bool,
    options: dict[str, Any],
) -> Any:
    if compute:
        # What several are computed of is computed once: fused, it would be computed for each.
        arrays = dask.optimize(*arrays) if len(arrays) == 1 else arrays
    plans = [_planned(x, task) for x, task in zip(arrays, tasks, strict=True)]
    if compute:
        handles = _computed(plans, tasks, options)
        if not return_stored:
            return None
        return tuple(to_dask(handle, _chunks(x)) for handle, x in zip(handles, arrays, strict=True))
    ends, graphs = [], []
    for x, task, (graph, blocks) in zip(arrays, tasks, plans, strict=True):
        end = f"stored-{tokenize(task.writer, task.start, x.name)}"
        layers = {**graph.layers, end: {end: (task, blocks)}}
        needs = {**graph.dependencies, end: {blocks[0][0]} if blocks else set()}
        ends.append(end)
        graphs.append(HighLevelGraph(layers, needs))
    if return_stored:
        return tuple(_lazily(*each) for each in zip(ends, graphs, arrays, strict=True))
    if len(ends) == 1:
        return Delayed(ends[0], graphs[0])
    merged = HighLevelGraph.merge(*graphs)
    end = f"stored-{tokenize(*ends)}"
    layers = {**merged.layers, end: {end: (list, ends)}}
    return Delayed(end, HighLevelGraph(layers, {**merged.dependencies, end: set(ends)}))


def _planned(x: da.Array, task: _Storing) -> tuple[HighLevelGraph, list[Any]]:
    """The graph that stores an array, and the keys of its blocks in it.

    Blocks that are there are not computed, and neither is what only they need.
    """
    writer, start = task.writer, task.start
    missing = {
        tuple(at - first for at, first in zip(index, start, strict=True))
        for index in writer.missing()
    }
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
    return HighLevelGraph.from_collections(name, layer, dependencies=[x]), list(layer)


def _computed(
    plans: Sequence[tuple[HighLevelGraph, list[Any]]],
    tasks: Sequence[_Storing],
    options: dict[str, Any],
) -> list[Any]:
    """Write all blocks, and commit the arrays together; returns their handles."""
    graph = HighLevelGraph.merge(*(graph for graph, _ in plans))
    blocks = [block for _, layer in plans for block in layer]
    try:
        with contextlib.ExitStack() as held:
            for task in tasks:
                held.enter_context(task.writer.held())
            if blocks:
                dask.base.compute_as_if_collection(da.Array, graph, blocks, **options)
            if len(tasks) == 1:
                return [tasks[0]()]
            with tasks[0].chest.transaction():
                return [task() for task in tasks]
    except BaseException:
        for task in tasks:
            remove_thrown_away(task.chest._engine)
        raise


def store_regions(
    arrays: Sequence[da.Array],
    chest: Face,
    keys: Sequence[Any],
    regions: Sequence[Any],
    options: dict[str, Any],
) -> None:
    """Store dask arrays as parts of arrays that are there; see `store`."""
    if len(regions) != len(arrays):
        raise ValueError(f"expected as many regions as arrays, {len(arrays)}, found {len(regions)}")
    for x, key, region in zip(arrays, keys, regions, strict=True):
        _store_region(x, *in_chest(chest, key), region, options)


def _store_region(x: da.Array, chest: Face, key: Any, region: Any, options: dict[str, Any]) -> None:
    engine = chest._engine
    engine.session.begin_writing()
    with chest.lock(key):
        whole = to_dask(handle_of(engine, key))
        part = whole[region]
        if part.shape != x.shape:
            raise ValueError(
                f"expected an array of shape {part.shape}, as the region {region!r:.200} of "
                f"{key!r:.200} has, found {x.shape}"
            )
        chunks = _chunks(whole)
        whole[region] = x
        before = chest.get(key)
        writer = begin(engine.session, key, whole.dtype, chunks)
        try:
            with writer.held():
                if isinstance(before, BlockedArray):
                    touched = _touched(chunks, region)
                    writer.take(before, [each for each in indices(chunks) if each not in touched])
                del before  # nobody else may hold it, and then its folder can be removed
                task = _Storing(chest, key, writer, (0,) * whole.ndim)
                _stored([whole], [task], True, False, options)
        except BaseException:
            writer.discard()
            raise


def _touched(chunks: Chunks, region: Any) -> set[tuple[int, ...]]:
    """The blocks that a region lies in."""
    parts = normalize_index(region, tuple(map(sum, chunks)))
    found = [
        np.unique(np.repeat(np.arange(len(sizes)), sizes)[part]).tolist()
        for sizes, part in zip(chunks, parts, strict=True)
    ]
    return set(itertools.product(*found))


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
