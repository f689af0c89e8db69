"""What stands for a stored value in another process: where it lies, and not its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arraychest.arrays.digests import array_digest
from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import Database
from arraychest.catalog.record import GENERATION, PACK, Pack, Row
from arraychest.engine.engine import Engine
from arraychest.engine.entry import entry_of
from arraychest.errors import AbsentKeyError, ChestFormatError, CorruptEntryError
from arraychest.files.files import Files
from arraychest.formats.form import Kind, parse_form
from arraychest.parallel import default_threads
from arraychest.platform.maps import MmapMode
from arraychest.sharing.open_folder import OpenFolder
from arraychest.storage.reading import Loader
from arraychest.storage.store import Store
from arraychest.values.accept import Own, value_of


@dataclass(frozen=True, slots=True)
class Handle:
    """A stored value, by its place; `Chest.handle` gives one.

    It pickles to a few hundred bytes, and is good for as long as the value is neither overwritten
    nor deleted: it stands for this value, and not for whatever the key has later.

    Attributes
    ----------
    path
        The chest's folder.
    key
        The value's key.
    chest
        The chest's id, which no other chest has: another one may come to lie in the same folder.
    """

    path: str
    key: Any
    chest: str
    _row: Row
    _pack: Pack | None
    # Of a value that is edited in place, what it contained when the handle was made.
    _digest: bytes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape; as `Chest.entry` says, also of what is none."""
        return entry_of(parse_form(self._row.form)).shape

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return entry_of(parse_form(self._row.form)).dtype

    @property
    def generation(self) -> int:
        """A number that no other value of the chest ever had."""
        return self._row.generation

    @property
    def token(self) -> tuple[Any, ...]:
        """What tells the value from every other one, of any chest, in every process.

        A value that is put anew or edited has another one.
        """
        row = self._row
        stamp = row.stamp if self._pack is None else self._pack.stamp
        return self.chest, row.key, row.generation, row.offset, stamp, self._digest

    @property
    def kind(self) -> Kind:
        """What the value is; see `Entry`."""
        return parse_form(self._row.form).kind

    @property
    def may_change(self) -> bool:
        """Whether the value is an array that can be edited in place."""
        row = self._row
        own = row.pack is None and not row.is_frame and not row.is_blocked
        return own and self.kind == "array"

    @property
    def is_compressed(self) -> bool:
        """Whether it is an array that is compressed."""
        return self._row.is_frame

    def array(self, mmap_mode: MmapMode = "r") -> Any:
        """The value, as a get gives it: an array that is a view of its mapped file, or any other.

        Parameters
        ----------
        mmap_mode
            ``"r"``: read-only; ``"c"``: private and writable, a compressed one decompressed whole.

        Raises
        ------
        AbsentKeyError
            The value is gone: its key was overwritten or deleted, or the chest removed.
        CorruptEntryError
            What lies there is not what was stored.
        PickleRefusedError, UnreadableValueError
            It holds Python objects, is of a type that is not registered here, or was written by
            the chest's own ``dump=``.
        """
        if mmap_mode not in ("r", "c"):
            raise ValueError(f'expected mmap_mode to be "r" or "c", found {mmap_mode!r}')
        try:
            files = Files(OpenFolder(self.path), durable=False)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise AbsentKeyError(self.key) from error
        packs = {} if self._pack is None else {self._pack.id: self._pack}
        loader = Loader(
            files,
            packs,
            allow_pickle=False,
            mmap_mode=mmap_mode,
            nthreads=default_threads(),
            keep=False,
        )
        try:
            return value_of(loader.load(self._row, self.key), self.key, Own(allow_pickle=False))
        except CorruptEntryError as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
            moved = self._moved(files)
            if moved is None:
                raise AbsentKeyError(self.key) from error
        return moved.array(mmap_mode)

    def _moved(self, files: Files) -> Handle | None:
        """The handle of the value where a compaction has moved it; None if it is gone."""
        if self._pack is None:
            return None
        try:
            database = Database(files.folder, writable=False, durable=False)
        except (OSError, ChestFormatError):
            return None
        try:
            catalog = Catalog(database)
            raw = catalog.find(self._row.key)
            if raw is None or raw[GENERATION] != self.generation or raw[PACK] == self._pack.id:
                return None
            pack = next((each for each in catalog.packs() if each.id == raw[PACK]), None)
        finally:
            database.close()
        return None if pack is None else replace(self, _row=Row._make(raw), _pack=pack)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """As NumPy asks for it."""
        return np.array(self.array(), dtype=dtype, copy=copy)


def handle_of(engine: Engine, key: Any) -> Handle:
    """The handle of a value, which is stored first if it is not.

    One that is edited in place at this moment is read, so that its token says what it contains now.
    """
    handle = _handle_of(engine, key)
    row = handle._row
    if handle.may_change and engine.facts.is_written_in_place(row.key, row.generation):
        return replace(handle, _digest=array_digest(handle.array()))
    return handle


def _handle_of(engine: Engine, key: Any) -> Handle:
    changes = engine.own_changes()
    if changes is not None and key in changes:
        # What the transaction has written is there already; it is gone if that is rolled back.
        store, written = engine.session.open_store(), changes.row(key)
        with engine.session.writer.lock:  # the catalog is read
            return _handle_to(store, key, written)
    committer = engine.session.committer
    waited = False
    while True:
        if engine.session.may_write():
            engine.spill(key)
        with engine.session.writer.lock:
            engine.session.check_open()
            engine.session.follow()
            slot = engine.session.index.find(key)
            if slot is None:
                raise AbsentKeyError(key)
            row = slot.row
            if slot.array is not None or row is None:
                if engine.session.may_write():
                    continue  # put anew meanwhile
                raise AbsentKeyError(key)  # what a parent had not stored before the fork
            store = engine.session.open_store()
            if row.pack is not None and not store.packs.has(row.pack):
                store.packs.reread()
            if waited or row.pack is None or store.packs.has(row.pack):
                return _handle_to(store, slot.key, row)
        # A compaction under way has moved the value, which its slot is told at the end.
        with committer.commit_lock:
            waited = True


def _handle_to(store: Store, key: Any, row: Row) -> Handle:
    """Called under the chest's lock."""
    pack = None if row.pack is None else store.packs.record(row.pack)
    return Handle(store.folder.where(), key, str(store.catalog.meta("id")), row, pack)
