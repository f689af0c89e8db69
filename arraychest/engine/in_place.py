"""Writing into the file of a stored value, for arrays that are too large to copy.

`drafts.edited` writes to a copy, and everybody sees the old value until the copy takes its place.
`edited_in_place` maps the stored file itself: nothing is copied, and nothing can be undone.

1. The value gets a ``.npy`` file of its own, where it has none that is not shared.
2. A commit notes in the catalog that the file is written to (`FactTables.note_written_in_place`).
   From here on nobody trusts its checksums, or a digest of what it contains.  After a crash this
   note is still there: the value is read as it lies in the file, and `verify` does not compare it.
3. The block of the caller writes through the map.
4. The checksums in the file are computed anew, and the file gets a second name, that of a new
   generation.  A commit of the new row replaces the old one, so that tokens, digests, caches and
   other processes notice.  Then the old name goes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from arraychest.arrays.compressed import CompressedArray
from arraychest.catalog.record import Row
from arraychest.engine.drafts import Draft, check_editable
from arraychest.engine.engine import Engine
from arraychest.errors import ArrayChestError, CorruptEntryError, SpillError, ValueTypeError
from arraychest.formats import pack
from arraychest.formats.form import Form, parse_form
from arraychest.platform.maps import detach, map_file
from arraychest.sharing.locks import KeyLock
from arraychest.storage.file_names import value_name
from arraychest.storage.store import Store
from arraychest.values.keys import group_of


@contextlib.contextmanager
def edited_in_place(engine: Engine, key: Any) -> Iterator[np.ndarray]:
    """The stored array itself, mapped writable; see `Chest.edit`."""
    engine.session.begin_writing()
    if engine.own_changes() is not None:
        raise ValueError(
            "expected edit(in_place=True) outside a transaction, found it inside one: what is "
            "written into a stored file cannot be rolled back"
        )
    store = engine.session.open_store()
    with KeyLock(store.folder, group_of(key), key).for_edit():
        row, fd = _opened(engine, store, key)
        owner = os.getpid()
        try:
            base = map_file(fd, row.stored, "r+")
            array = pack.view(base, parse_form(row.form), row.offset)
            try:
                yield array
            finally:
                if os.getpid() == owner:
                    # From here on a write to the array, or to any view of it, reaches nobody.
                    detach(base, fd)
                    array.setflags(write=False)
                    _finish(engine, store, key, row, fd)
        finally:
            os.close(fd)


def _opened(engine: Engine, store: Store, key: Any) -> tuple[Row, int]:
    """The row of a value whose file may be written to, and that file, open for writing.

    Raises
    ------
    AbsentKeyError, ValueTypeError, CorruptEntryError, SpillError
        The value is as it was.
    """
    while True:
        engine.spill(key)
        row = engine.stored_row(key)
        if row is None:
            continue  # put anew meanwhile
        try:
            fd = _try_to_open(engine, store, key, row)
        except FileNotFoundError as error:
            if engine.stored_row(key) == row:
                raise CorruptEntryError(
                    f"expected the value of key {key!r} in {engine.file_of(row)}, found no file"
                ) from error
            continue  # replaced meanwhile, by another process
        except OSError as error:
            raise SpillError(f"the value of key {key!r} cannot be written to: {error}") from error
        if fd is not None:
            return row, fd


def _try_to_open(engine: Engine, store: Store, key: Any, row: Row) -> int | None:
    """The open file of this row; None where another row has to be looked at."""
    if row.is_blocked or parse_form(row.form).kind != "array":
        raise ValueTypeError(
            f"expected the value of key {key!r} to be an array in one piece to write into, found "
            f"{type(engine.get(key)).__name__}"
        )
    if not store.mapped.may_write_in_place(row):
        _move_to_own_file(engine, key)
        return None
    fd = store.mapped.open_in_place(row, key)
    try:
        with engine.session.committer.committing():
            with engine.session.writer.lock:
                current = engine.stored_row_now(key) == row
            if current:
                store.note_written_in_place(row)
                with engine.session.writer.lock:
                    # Those who look from here on see it.
                    store.catalog.database.end_snapshot()
                    engine.facts.in_place_edits += 1
            store.catalog.database.raise_interrupt()
        # Another chest may have linked the file just before the commit.
        if current and store.mapped.may_write_in_place(row):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _move_to_own_file(engine: Engine, key: Any) -> None:
    """Store a value anew that is packed, compressed, or linked with another chest's file."""
    value = engine.get(key)
    check_editable(key, value)
    order: Literal["C", "F"]
    if type(value) is CompressedArray:
        order = value.order
    else:
        order = "C" if value.flags.c_contiguous else "F"
    Draft(engine, key, Form(value.dtype, value.shape, order, "array"), value).seal()


def _finish(engine: Engine, store: Store, key: Any, row: Row, fd: int) -> None:
    """Let everybody know that the value is another one now.

    Raises
    ------
    SpillError
        The value keeps its old generation, and what was written is in it, without checksums.
    """
    try:
        new = store.mapped.renewed(row, fd)
        names = [value_name(new)]
        try:
            with engine.session.committer.committing():
                with engine.session.writer.lock:
                    engine.session.check_writable()
                    # Where it was overwritten or deleted meanwhile, that stands.
                    if engine.stored_row_now(key) == row:
                        names = engine.session.committer.place(store, [(key, new)])
                store.files.remove(names, keep_spares=False)
                store.catalog.database.raise_interrupt()
        except ArrayChestError:
            store.files.remove(names, keep_spares=False)
            raise
    except FileNotFoundError:
        pass  # it was overwritten or deleted meanwhile, and its file is gone
    except OSError as error:
        raise SpillError(
            f"the end of the edit of key {key!r} could not be committed: {error}"
        ) from error
