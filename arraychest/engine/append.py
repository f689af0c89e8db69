"""Making a blocked array longer, and making blocks that were written the value of a key."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.engine.blocks import assembled, begin
from arraychest.engine.engine import Engine
from arraychest.engine.transaction import changes_of
from arraychest.errors import AbsentKeyError, ArrayChestError, SpillError, ValueTypeError
from arraychest.formats.manifest import Chunks
from arraychest.sharing.locks import KeyLock
from arraychest.storage.block_writer import BlockWriter, regular, slices
from arraychest.values.keys import group_of

# A block of an array that is appended is cut where it is larger, if it can be.
_BLOCK_BYTES = 64 << 20


def finish(engine: Engine, key: Any, writer: BlockWriter) -> None:
    """Make blocks that were written the value of a key.

    Raises
    ------
    SpillError, CorruptEntryError, QuotaError, ReadOnlyChestError
        The key has the value that it had.  Where a block is missing, the others stay.
    """
    engine.session.begin_writing()
    row = assembled(engine.session, key, writer)
    with changes_of(engine) as changes:
        changes.put_row(key, row)


def append(engine: Engine, key: Any, array: np.ndarray, axis: int) -> None:
    """See `Chest.append`."""
    engine.session.begin_writing()
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise ValueTypeError(
            f"expected an array of one dimension at least to append, found {type(array).__name__}"
            f" of shape {np.shape(array)}"
        )
    try:
        # As an edit: within one it would be undone.
        with KeyLock(engine.session.open_store().folder, group_of(key), key).for_edit():
            _append(engine, key, array, axis)
    except OSError as error:
        if isinstance(error, ArrayChestError):
            raise
        raise SpillError(f"key {key!r:.200} could not be appended to: {error}") from error


def _append(engine: Engine, key: Any, array: np.ndarray, axis: int) -> None:
    before = before_append(engine, key, array.shape, array.dtype, axis)
    at = [0] * array.ndim
    if before is None:
        sizes = list(array.shape)
        row = array.nbytes // max(sizes[axis], 1)
        sizes[axis] = max(1, min(sizes[axis], _BLOCK_BYTES // max(row, 1)))
        chunks = regular(array.shape, tuple(sizes))
        writer = begin(engine.session, key, array.dtype, chunks)
    else:
        at[axis] = before.shape[axis]
        # Not as short as the shortest there: a single row must not make each of many a file.
        sides = list(before.largest_chunk)
        longest, sides[axis] = sides[axis], 1
        row = before.dtype.itemsize * math.prod(sides)
        step = max(longest, _BLOCK_BYTES // max(row, 1), 1)
        (more,) = regular((array.shape[axis],), (step,))
        writer = begin(engine.session, key, before.dtype, longer(before.chunks, axis, more))
    try:
        with writer.held():
            if before is not None:
                writer.take(before)
                # Nobody else may hold it, and then its folder can be removed.
                before = None
            for index in writer.missing():
                where = tuple(
                    slice(part.start - start, part.stop - start)
                    for part, start in zip(slices(writer.chunks, index), at, strict=True)
                )
                writer.write(index, array[where])
            finish(engine, key, writer)
    except BaseException:
        writer.discard()
        remove_thrown_away(engine)
        raise


def remove_thrown_away(engine: Engine) -> None:
    """Remove blocks that had been given their name, and were held when that was taken back."""
    with contextlib.suppress(ArrayChestError, OSError):
        engine.session.open_store().files.remove_unfinished()


def before_append(
    engine: Engine, key: Any, shape: tuple[int, ...], dtype: np.dtype, axis: int
) -> BlockedArray | None:
    """The blocked array that another is appended to; None if there is no such key.

    Raises
    ------
    ValueTypeError
        What is there is no blocked array, or they do not fit together.
    """
    if not -len(shape) <= axis < len(shape):
        raise np.exceptions.AxisError(axis, len(shape))
    try:
        value = engine.get(key)
    except AbsentKeyError:
        return None
    if not isinstance(value, BlockedArray):
        raise ValueTypeError(
            f"expected a blocked array under key {key!r:.200}, to which blocks can be appended, "
            f"found {type(value).__name__}: arraychest.dask.store and append make one"
        )
    others = [n for at, n in enumerate(shape) if at != axis % len(shape)]
    fixed = [n for at, n in enumerate(value.shape) if at != axis % len(shape)]
    if value.ndim != len(shape) or others != fixed or value.dtype != dtype:
        raise ValueTypeError(
            f"expected what is appended to key {key!r:.200} along dimension {axis} to be like the "
            f"array there, of shape {value.shape} and dtype {value.dtype}, found {shape} and "
            f"{dtype}"
        )
    return value


def longer(chunks: Chunks, axis: int, more: tuple[int, ...]) -> Chunks:
    """The chunks of an array to which blocks of these sizes are appended."""
    axis %= len(chunks)
    return tuple((*sizes, *more) if at == axis else sizes for at, sizes in enumerate(chunks))
