"""Gets: a value from RAM, from a view that is kept open, or from disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

import numpy as np

from arraychest.arrays import provenance
from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.lazy import LazyArray
from arraychest.arrays.ownership import owner_of
from arraychest.catalog.record import GENERATION, KEY, PACK, STORED, RawRow, Row
from arraychest.engine.commit import logger
from arraychest.engine.scan import Scan
from arraychest.engine.session import Session
from arraychest.errors import AbsentKeyError, ClosedChestError, CorruptEntryError
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.slot import Batch, Slot
from arraychest.platform.maps import MmapMode, is_map
from arraychest.sharing.interrupts import held_back, let_through
from arraychest.storage.eviction import Uses
from arraychest.values.accept import at_hand, copied, value_of


class Getter:
    """Gets the values of one chest.  Every method is safe from many threads.

    Parameters
    ----------
    session, scan
        The chest's.
    source
        Gives what digests of the arrays are asked for at, as long as it is there.
    """

    def __init__(
        self, session: Session, scan: Scan, source: Callable[[], provenance.Source | None]
    ) -> None:
        self._session = session
        self._scan = scan
        self._source = source
        self._views = session.views
        options = session.options
        self._evicts = options.quota is not None and options.quota.evicts
        self._uses = Uses()
        # Whether a get returns the very array that is kept in RAM.
        self._shows_resident = options.mmap_mode == "r"
        self._private = options.mmap_mode == "c"

    def get(self, key: Any) -> Any:
        """The value of a key that is not at hand in `index`.

        Raises
        ------
        AbsentKeyError, CorruptEntryError, PickleRefusedError, UnreadableValueError,
        ClosedChestError, OSError
        """
        return value_of(self.find(key), key, self._session.options.own)

    def get_plain(self, key: Any) -> Any:
        """As `get`, whatever was compressed as plain arrays in RAM."""
        found = self.find(key)
        if type(found) is CompressedArray:
            return self.load(key)
        if type(found) is Tree and any(type(part) is CompressedArray for part in found.parts):
            parts = [
                self._in_ram(part) if type(part) is CompressedArray else part
                for part in found.parts
            ]
            found = Tree(found.structure, parts)
        return value_of(found, key, self._session.options.own)

    def get_as(self, key: Any, mmap_mode: MmapMode) -> Any:
        """As `get`, with arrays that are read-only (``"r"``) or private and writable (``"c"``).

        Whatever is compressed is a plain array in RAM.  Of private arrays only the pages are copied
        that are written to, if the value is stored.
        """
        session = self._session
        if mmap_mode == session.options.mmap_mode:
            return self.get_plain(key)
        row = self._scan.stored_row(key)
        if mmap_mode == "c" and row is not None and session.transactions.own() is None:
            with contextlib.suppress(CorruptEntryError):  # replaced meanwhile, or found below
                return value_of(
                    session.open_store().loaded_privately(row, key),
                    key,
                    session.options.own,
                )
        found = self.find(key)
        parts = found.parts if type(found) is Tree else [found]
        made = [_plain(part, writable=mmap_mode == "c") for part in parts]
        found = Tree(found.structure, made) if type(found) is Tree else made[0]
        return value_of(found, key, session.options.own)

    def find(self, key: Any) -> Any:
        """What `value_of` makes the value of: not here, as it may call a user's functions."""
        session = self._session
        if monotonic() >= session.live.due:
            session.tell_if_due()
        changes = session.transactions.own()
        if changes is not None and key in changes:
            return changes.get(key)
        with session.writer.lock.bare:
            value = self._glance(key)
        if value is not None:
            return value
        with held_back():
            return self._find_or_load(key)

    def _glance(self, key: Any) -> Any:
        """A value that is at hand, or lies in a pack that is mapped; None for all else.

        No step that holds back an interrupt, which would take a tenth of the time: what is noted
        on the way may be noted or not.  Called under the bare lock.
        """
        session = self._session
        store, index, counter = session.store, session.index, session.counter
        if (
            store is None
            or counter.words[0] != counter.seen_word
            or session.options.on_miss is not None
            or key in session.resident.fresh  # which wait for slots
            or isinstance(index.rows.get(key), Batch)
        ):
            return None
        slot = index.find(key)
        if slot is None:
            return None
        value = self.at_hand(slot)
        if value is not None:
            slot.hits += 1
            return value
        raw = slot.raw
        if (
            slot.array is not None
            or raw is None
            or raw[PACK] is None
            or slot in self._views.loading
        ):
            return None
        value = store.loader.mapped_value(raw) if store.packs.has(raw[PACK]) else None
        if value is not None:
            session.committer.counters.misses += 1
            self._keep(slot, raw, value)
        return value

    def _find_or_load(self, key: Any) -> Any:
        session = self._session
        writer = session.writer
        while True:
            with writer.lock:
                session.follow()
                slot = session.index.find(key)
                if slot is None:
                    session.committer.counters.absent += 1
                    raise AbsentKeyError(key)
                value = self.at_hand(slot)
                if value is not None:
                    slot.hits += 1
                    return value
                raw = slot.raw
                if raw is None or slot in self._views.loading:
                    # Another thread is faulting it in: once is enough.
                    self._views.waiting += 1
                    try:
                        writer.changed.wait()
                    finally:
                        self._views.waiting -= 1
                    continue
                store = session.store
                if store is None:
                    raise ClosedChestError("the chest is closed")
                session.committer.counters.misses += 1
                if raw[PACK] is not None and not store.packs.has(raw[PACK]):
                    store.packs.reread()  # begun by another process
                if raw[PACK] is not None and session.options.on_miss is None:
                    value = store.loader.mapped_value(raw)
                    if value is not None:
                        return self._keep(slot, raw, value)
                self._views.loading.add(slot)
            try:
                if session.options.on_miss is not None:
                    with let_through():
                        session.options.on_miss(slot.key)
                # Not `session.store`: the chest may be closed meanwhile.
                value = store.loader.load(Row._make(raw), slot.key)
                logger.debug("faulted in %r", slot.key)
            except CorruptEntryError:
                # A commit that is under way may have moved or replaced it already, which its slot
                # is told at the end.
                with session.committer.commit_lock, writer.lock:
                    self._done_loading(slot)
                    if self._is_current(slot, raw):
                        raise
                continue
            except BaseException as error:
                with writer.lock:
                    self._done_loading(slot)
                    if session.closed and isinstance(error, OSError):
                        # Its folder was closed before the file was opened.
                        raise ClosedChestError("the chest is closed") from error
                raise
            with writer.lock:
                self._done_loading(slot)
                if self._is_current(slot, raw):
                    self._keep(slot, raw, value)
                return value

    def _done_loading(self, slot: Slot) -> None:
        self._views.loading.discard(slot)
        if self._views.waiting:
            self._session.writer.changed.notify_all()

    def _is_current(self, slot: Slot, raw: RawRow) -> bool:
        """Whether what was loaded from `raw` is still the slot's value."""
        session = self._session
        if session.store is None or session.index.slots.get(slot.key) is not slot:
            return False
        if slot.raw is not raw or slot.array is not None:
            return False
        # Another process may have replaced it; its file is gone then.
        session.follow()
        if session.forked and not session.store.tells:
            # Our parent's temporary chest: nobody says when it commits.
            slot.raw = session.store.catalog.find(raw[KEY])
            if slot.raw is None:
                session.index.forget(slot)
                return False
            return slot.raw[GENERATION] == raw[GENERATION] and slot.raw[PACK] == raw[PACK]
        return slot.raw is raw

    def at_hand(self, slot: Slot) -> Any:
        """The value without I/O, or None."""
        if slot.value is not None:
            return slot.value
        array = slot.array
        if array is not None:
            return at_hand(array, slot.kind, private=self._private)
        return slot.view() if slot.view is not None and self._shows_resident else None

    def _keep(self, slot: Slot, raw: RawRow, value: Any) -> Any:
        """Note a value that was faulted in; further gets of it are hits."""
        session = self._session
        counters = session.committer.counters
        counters.faults += 1
        counters.bytes_faulted += raw[STORED]
        if self._evicts and session.store is not None:
            self._uses.note(session.store, raw)
        if self._private:
            return value
        if session.store is not None and session.expiry.expires(session.store, raw[GENERATION]):
            return value
        if raw[PACK] is not None and type(value) is not np.ndarray:
            self._keep_packed(slot, raw)
            return value
        if type(value) is Tree:
            for number, part in enumerate(value.parts, 1):
                if part.nbytes >= PACK_THRESHOLD:
                    self._note_origin(part, raw, number)
            if self._shows_resident:
                slot.view = value.itself
                if any([type(part) is CompressedArray for part in value.parts]):
                    self._views.keep_compressed(slot)
                else:
                    self._views.keep(slot)
            return value
        if raw[PACK] is None and type(value) in (np.ndarray, CompressedArray, BlockedArray):
            self._note_origin(value, raw, 0)
        if isinstance(value, LazyArray):
            copy = session.resident.copy_of(slot)
            if copy is not None:
                value.hold(copy)
            value.kept_by(self._keeper_of(slot.key, value))
        if type(value) is CompressedArray:
            slot.value = value
            self._views.keep_compressed(slot)
            return value
        if type(value) is BlockedArray and self._shows_resident:
            # It holds a descriptor: no longer than its user does.
            slot.view = ref(value)
            return value
        if type(value) is not np.ndarray:
            return value
        if value.dtype.hasobject:
            # Unpickled into RAM: the chest keeps it no longer than its user does.
            slot.view = ref(value)
            return value
        slot.value = value
        self._views.keep(slot)
        return value

    def _keep_packed(self, slot: Slot, raw: RawRow) -> None:
        """Note that a small value that is no array can be made anew from a pack that is mapped.

        That is no fetch, so `on_miss` is not told of it.  Without `on_miss` a get makes the value
        from the pack in any case, see `_glance`.
        """
        session = self._session
        if session.options.on_miss is not None and session.store is not None:
            slot.view = partial(session.store.loader.mapped_value, raw)
            self._views.keep(slot)

    def _note_origin(self, array: np.ndarray | LazyArray, raw: RawRow, part: int) -> None:
        provenance.note(array, self._source, raw[KEY], raw[GENERATION], part)

    def load(self, key: Any) -> Any:
        """A value as a get gives it, its arrays in RAM; raises as `get`.

        The copy of a compressed one is kept as long as there is room for it.
        """
        session = self._session
        with session.writer.lock:
            session.follow()
            slot = None if session.transactions.own() is not None else session.index.find(key)
            copy = None if slot is None else session.resident.copy_of(slot)
            if copy is not None and slot is not None and self._shows_resident:
                slot.hits += 1
                return copy
        value = self.find(key)
        if type(value) is Tree:
            parts = [self._in_ram(part) for part in value.parts]
            return value_of(Tree(value.structure, parts), key, session.options.own)
        if type(value) is BlockedArray:
            found = np.asarray(value)
            found.setflags(write=not self._shows_resident)
            return found
        if type(value) is not np.ndarray and type(value) is not CompressedArray:
            return value_of(value, key, session.options.own)
        found = self._in_ram(value)
        if type(value) is CompressedArray:
            with session.writer.lock:
                self._keep_copy(key, value, found)
            if not found.flags.writeable:
                value.hold(found)
        return found

    def _in_ram(self, array: np.ndarray | CompressedArray) -> np.ndarray:
        if isinstance(array, CompressedArray):
            found = np.asarray(array)
            origin = provenance.of(array)
            if origin is not None and self._session.options.mmap_mode == "r":
                provenance.note_again(found, origin)
        elif self._private or not is_map(owner_of(array)):
            return array
        else:
            found = copied(array)
        found.setflags(write=not self._shows_resident)
        return found

    def _keeper_of(self, key: Any, value: LazyArray) -> Callable[[np.ndarray], None]:
        """What keeps the whole array of a value when a program has it read."""
        # Neither outlives its user by this.
        getter, array = ref(self), ref(value)

        def keep(whole: np.ndarray) -> None:
            mine, its = getter(), array()
            if mine is None or its is None or not mine._shows_resident:
                return
            origin = provenance.of(its)
            if origin is not None:
                provenance.note_again(whole, origin)
            with mine._session.writer.lock:
                if not mine._session.closed:
                    mine._keep_copy(key, its, whole)

        return keep

    def _keep_copy(self, key: Any, value: LazyArray, copy: np.ndarray) -> None:
        session = self._session
        slot = session.index.slots.get(key)
        if slot is None or slot.raw is None or self.at_hand(slot) is not value:
            return  # overwritten or deleted meanwhile
        resident, budget = session.resident, session.budget
        budget.refresh(resident.charged)
        if copy.nbytes > budget.high:
            return
        resident.drop_copies(budget.high - copy.nbytes)
        if resident.charged + copy.nbytes <= budget.high:
            resident.keep_copy(slot, slot.raw[GENERATION], copy)

    def prefetch(self, keys: Sequence[Any]) -> None:
        """Map stored values, and ask the kernel to read them ahead."""
        session = self._session
        rows = []
        with session.writer.lock:
            session.check_open()
            session.follow()
            for key in keys:
                slot = session.index.find(key)
                if slot is None:
                    raise AbsentKeyError(key)
                if slot.array is None and slot.raw is not None:
                    rows.append(Row._make(slot.raw))
        for row in rows:
            session.open_store().loader.prefetch(row)
        for key in keys:
            with contextlib.suppress(AbsentKeyError):  # deleted meanwhile
                self.get(key)


def _plain(value: Any, *, writable: bool) -> Any:
    """A plain array of its own in place of an array; anything else as it is."""
    if not isinstance(value, np.ndarray | CompressedArray | BlockedArray):
        return value
    found = np.array(value) if writable else np.asarray(value)
    found.setflags(write=writable)
    return found
