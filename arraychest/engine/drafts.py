"""Changing values on disk: an edit of a copy that replaces the value, and an array born on disk.

Both are a *draft*: a value file of which no row tells.  Its space is reserved before anything maps
it (to write into a hole of a full disk is SIGBUS), its trailer is written when it is sealed, and
then its row is committed as any other's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal

import numpy as np

from arraychest.arrays.compressed import CompressedArray
from arraychest.catalog.record import Row
from arraychest.engine.engine import Engine
from arraychest.engine.transaction import changes_of
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestError,
    CorruptEntryError,
    SpillError,
    ValueTypeError,
)
from arraychest.files.writing import open_draft
from arraychest.formats import npy, pack
from arraychest.formats.form import Form, form_text, parse_form
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.platform.locks import lock_file, unlock_file
from arraychest.platform.maps import detach, map_file
from arraychest.sharing.locks import KeyLock
from arraychest.storage.file_names import value_name
from arraychest.values.accept import copied
from arraychest.values.keys import encode_key, group_of


@contextlib.contextmanager
def edited(engine: Engine, key: Any) -> Iterator[np.ndarray]:
    """A writable copy of a value, which replaces it at the end; see `Chest.edit`."""
    engine.session.begin_writing()
    with KeyLock(engine.session.open_store().folder, group_of(key), key).for_edit():
        value = engine.get(key)
        check_editable(key, value)
        if value.nbytes < PACK_THRESHOLD:
            copy = copied(value)
            copy.setflags(write=True)
            owner = os.getpid()
            yield copy
            if os.getpid() != owner:
                return  # in a forked child: the edit is its parent's
            with changes_of(engine) as changes:
                changes.put(key, copy)
            return
        order: Literal["C", "F"]
        if type(value) is CompressedArray:
            order = value.order
        else:
            order = "C" if value.flags.c_contiguous else "F"
        draft = Draft(engine, key, Form(value.dtype, value.shape, order, "array"), value)
        with draft.sealed_at_end() as array:
            del value
            yield array


def check_editable(key: Any, value: Any) -> None:
    """Raise ValueTypeError unless a value is a plain or a compressed array."""
    if type(value) not in (np.ndarray, CompressedArray) or value.dtype.hasobject:
        raise ValueTypeError(
            f"expected the value of key {key!r} to be an array of plain elements, found "
            f"{type(value).__name__}: it can only be put anew"
        )


class Draft:
    """A value file that is written to through a map before any row names it.

    Parameters
    ----------
    source
        The array it begins as; None: zero bytes.
    """

    def __init__(
        self, engine: Engine, key: Any, form: Form, source: np.ndarray | CompressedArray | None
    ) -> None:
        self._engine = engine
        self._key = key
        self._owner = os.getpid()
        store = engine.session.open_store()
        engine.session.room.reserve_for(key, form.nbytes)
        text = form_text(form.dtype, form.shape, form.order, form.kind)
        text += engine.session.saver.named(key)
        try:
            code = encode_key(engine.session.saver.stored_key(key))
            place = engine.session.index.puts
            stored = self._file_of(source)
            self.row, self._fd, copied = store.mapped.create(code, place, form, text, stored)
        except ArrayChestError:
            raise
        except OSError as error:
            raise SpillError(f"no room for the value of key {key!r}: {error}") from error
        try:
            if isinstance(source, np.ndarray) and not copied:
                store.mapped.fill(self._fd, self.row, source, form)
            base = map_file(self._fd, self.row.stored, "r+")
            # An interrupt comes behind a call: of these two both are done, or none.
            self.array = pack.view(base, form, self.row.offset)
            self._base: np.ndarray | None = base
            if isinstance(source, CompressedArray):
                for where, part in source.iterchunks():
                    self.array[where] = part
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise SpillError(
                    f"the value of key {key!r} could not be copied: {error}"
                ) from error
            raise

    def _file_of(self, source: np.ndarray | CompressedArray | None) -> Row | None:
        """The row of the file that a value is a view of, if it has one of its own."""
        if source is None or self._engine.own_changes() is not None:
            return None
        row = self._engine.stored_row(self._key)
        return row if row is not None and row.pack is None else None

    @contextlib.contextmanager
    def sealed_at_end(self) -> Iterator[np.ndarray]:
        """The array; it becomes the value at the end, unless there is an exception."""
        try:
            yield self.array
        except BaseException:
            self.discard()
            raise
        self.seal()

    def seal(self) -> None:
        """Make it the value of its key.

        Raises
        ------
        SpillError
            It could not be; nothing of it is left.
        """
        if os.getpid() != self._owner:
            return  # a forked child may have filled a part; the array is its parent's to seal
        engine = self._engine
        try:
            engine.session.open_store().mapped.seal(self.row, self._fd)
        except OSError as error:
            self.discard()
            raise SpillError(f"key {self._key!r} could not be stored: {error}") from error
        self._let_go()
        with changes_of(engine) as changes:
            changes.put_row(self._key, self.row)

    def discard(self) -> None:
        """Leave nothing of it."""
        if os.getpid() != self._owner:
            return
        self._let_go()
        self._engine.session.open_store().mapped.remove(self.row)

    def _let_go(self) -> None:
        """From here on a write to the array, or to any view of it, reaches nobody."""
        base, self._base = getattr(self, "_base", None), None
        if base is not None:
            detach(base, self._fd)
            self.array.setflags(write=False)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            unlock_file(fd)
            os.close(fd)


class Creation:
    """An array on disk that is not the value of its key yet; `Chest.create` makes it.

    As a context manager it gives the array, seals it at the end of the block, and discards it
    after an exception.  Pickled, it becomes a `Part`: whoever unpickles that fills a part of the
    same array.  `seal` waits until every part is closed, or its process dead.

    Attributes
    ----------
    key
        The key it will be the value of.
    array
        The array, writable; read-only once sealed or discarded.
    """

    def __init__(
        self, engine: Engine, key: Any, shape: Any, dtype: Any, order: Literal["C", "F"], fill: Any
    ) -> None:
        if order not in ("C", "F"):
            raise ValueError(f'expected order to be "C" or "F", found {order!r}')
        engine.session.begin_writing()
        probe = np.dtype(dtype)
        if probe.hasobject:
            raise ValueTypeError(f"expected a dtype of plain elements, found {probe}")
        sizes = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        # What NumPy refuses (negative sizes, too many bytes), it refuses here, without memory.
        sizes = np.broadcast_to(np.empty((), probe), sizes).shape
        self.key = key
        self._owner = os.getpid()
        self._draft: Draft | None = Draft(engine, key, Form(probe, sizes, order, "array"), None)
        self._folder = engine.session.open_store().folder
        self._row = self._draft.row
        self.array = self._draft.array
        if fill is not None:
            try:
                self.array[...] = fill
            except BaseException:
                self.discard()
                raise

    def seal(self) -> None:
        """Make it the value of its key; waits for its parts.

        Raises
        ------
        SpillError
            It could not be committed; nothing of it is left.
        """
        draft, self._draft = self._draft, None
        if draft is None:
            raise ValueError(f"the array of key {self.key!r} is sealed or discarded already")
        if os.getpid() != self._owner:
            return  # a forked child has filled its part; the array is its parent's to seal
        try:
            lock_file(draft._fd)
        except BaseException:
            draft.discard()
            raise
        draft.seal()

    def discard(self) -> None:
        """Leave nothing of it; nothing happens if it is sealed or discarded already."""
        draft, self._draft = self._draft, None
        if draft is not None and os.getpid() == self._owner:
            draft.discard()

    def __enter__(self) -> np.ndarray:
        return self.array

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.discard()
        elif self._draft is not None:
            self.seal()

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self._folder.where(), self.key, tuple(self._row))


class Part:
    """An array that another process creates, to be filled in part; a pickled `Creation`.

    A context manager that gives the array.  Several may be open at once, and fill disjoint parts.

    Raises
    ------
    AbsentKeyError
        The array is sealed, or discarded.
    CorruptEntryError
        There is another file in its place.
    """

    def __init__(self, root: str, key: Any, row: tuple[Any, ...]) -> None:
        self.key = key
        known = Row._make(row)
        form = parse_form(known.form)
        try:
            self._fd = open_draft(root, value_name(known))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise AbsentKeyError(key) from error
        try:
            lock_file(self._fd, shared=True)
            size = os.fstat(self._fd).st_size
            if size != known.stored or form.nbytes > size - known.offset:
                raise CorruptEntryError(
                    f"expected {known.stored} bytes for the part of key {key!r}, found {size}"
                )
            if npy.is_sealed(self._fd, size) or not os.fstat(self._fd).st_nlink:
                raise AbsentKeyError(key)
            self._base: np.ndarray | None = map_file(self._fd, size, "r+")
        except BaseException:
            os.close(self._fd)
            raise
        self.array = pack.view(self._base, form, known.offset)

    def close(self) -> None:
        """End writing; a second call does nothing."""
        base, self._base = self._base, None
        if base is not None:
            detach(base, self._fd)
            self.array.setflags(write=False)
            unlock_file(self._fd)
            os.close(self._fd)

    def __enter__(self) -> np.ndarray:
        return self.array

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_base", None) is not None:
            self.close()
