"""Get, put and delete: from RAM, from a view that is kept open, or from disk.

The `memtable` knows which keys there are, and the `flusher` decides what leaves RAM.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import Context
from dataclasses import replace
from time import monotonic
from typing import Any, Protocol
from weakref import ref

import numpy as np

from arraychest.arrays import provenance
from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.lazy import LazyArray
from arraychest.arrays.mmap import MmapMode, is_map
from arraychest.arrays.ownership import owner_of
from arraychest.catalog.record import GENERATION, KEY, PACK, STORED, Cost, Facts, RawRow, Row
from arraychest.engine.blocks import taken_over
from arraychest.engine.commit import facts_of, logger
from arraychest.engine.entry import Entry
from arraychest.engine.options import Options
from arraychest.engine.session import Session
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestError,
    ClosedChestError,
    CorruptEntryError,
    SpillError,
)
from arraychest.formats.compression import How
from arraychest.formats.form import DESCRIBED, Form, Kind, parse_form
from arraychest.formats.frame import CODEC_NAMES, FILTER_NAMES, Layout
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree, form_of
from arraychest.memory.budget import Budget
from arraychest.memory.slot import Slot
from arraychest.progress import Asked, measured
from arraychest.sharing.contexts import current_context
from arraychest.sharing.interrupts import held_back, let_through
from arraychest.storage.eviction import Uses, freed_by
from arraychest.storage.quota import FILE_OVERHEAD
from arraychest.storage.reading import file_name, value_name
from arraychest.values.accept import (
    OnPut,
    accept,
    array_to_keep,
    at_hand,
    copied,
    freeze,
    freeze_handed_over,
    value_of,
)
from arraychest.values.keys import PLAIN_TYPES, decode_key, encode_key

# Mapped views that the chest keeps open, so that a repeated get costs no more than a resident
# hit.  Each map counts against vm.max_map_count (65,530), most of which is left to the user.
MAX_KEPT_VIEWS = 16_384

# Compressed arrays that the chest keeps open: each has its checksums (1/4000 of its bytes) and what
# Blosc2 works in.
MAX_KEPT_FRAMES = 64


# NumPy's flags of an array as one number: a look at each by its name takes twice as long.
_OWNS_DATA = 4
_CONTIGUOUS = 1 | 2  # in C order, or in Fortran order

# Of so many stored values it is remembered that nobody writes to their files.
_MOST_NOT_IN_PLACE = 65_536


class Changes(Protocol):
    """What a thread or task has changed in a transaction; see `transaction`."""

    @property
    def context(self) -> Context: ...  # noqa: D102

    is_left: bool

    def __contains__(self, key: Any) -> bool: ...

    def has(self, key: Any) -> bool: ...  # noqa: D102

    def get(self, key: Any) -> Any: ...  # noqa: D102

    def row(self, key: Any) -> Row: ...  # noqa: D102

    def cost(self, key: Any) -> Cost | None: ...  # noqa: D102

    def put(  # noqa: D102
        self,
        key: Any,
        value: Any,
        compression: How | None = None,
        cost: Cost | None = None,
        on_put: OnPut | None = None,
    ) -> None: ...

    def put_row(self, key: Any, row: Row) -> None: ...  # noqa: D102

    def merged(self, stored: Iterable[Any], *, descending: bool) -> Iterator[Any]: ...  # noqa: D102

    def delete(self, key: Any) -> None: ...  # noqa: D102


class Engine(Session):
    """The values of one chest, in RAM and on disk.  Every method is safe from many threads.

    See `Session` for the parameters.
    """

    def __init__(self, path: str | None, budget: Budget, options: Options) -> None:
        # Slots that a thread is faulting in.
        self._loading: set[Slot] = set()
        # Threads that wait for one of them, or for a value to be stored.
        self._waiting_to_load = 0
        # Slots whose `value` is a mapped view, oldest first.
        self._kept: deque[Slot] = deque()
        # Slots whose `value` is a compressed array, oldest first.
        self._kept_frames: deque[Slot] = deque()
        # By the id of the context of a thread or task, the transaction that it is in.
        self._changes: dict[int, Changes] = {}
        quota = options.quota
        # Whether values that do not fit are refused when they are put: those of a temporary chest
        # may stay in RAM.
        self._refuses = quota is not None and not quota.evicts and path is not None
        self.evicts = quota is not None and quota.evicts
        self._uses = Uses()
        # Whether a put may keep the very array.
        self._adopts = self._may_adopt_any = (
            options.on_put == "freeze" and not self._refuses and options.key_to_filename is None
        )
        # Whether a get returns the very array that is kept in RAM.
        self._shows_resident = options.mmap_mode == "r"
        self._private = options.mmap_mode == "c"
        # How many edits in place have begun here.
        self.in_place_edits = 0
        # By generation, the counter's word and `in_place_edits` as of which nobody had written into
        # its file.
        self._not_in_place: dict[int, tuple[int, int]] = {}
        super().__init__(path, budget, options)
        # What digests of our arrays are asked for at, and told.
        self.source = self.committer.source = ref(self)
        self._counters = self.committer.counters
        self.index.pinned = self._loading.__contains__
        # A name of its own for what every put asks.
        self._slots = self.index.slots

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._kept_frames.clear()

    def after_fork_in_child(self) -> None:
        """See `Session`."""
        super().after_fork_in_child()
        self._loading.clear()
        self._waiting_to_load = 0
        self._changes.clear()
        self._adopts = self._may_adopt()

    # --- transactions --------------------------------------------------------------------------

    def own_changes(self) -> Changes | None:
        """The transaction that the calling thread or task is in."""
        changes = self._changes.get(id(current_context())) if self._changes else None
        return None if changes is None or changes.is_left else changes

    def begin_changes(self, changes: Changes) -> None:
        """From here on what its thread or task puts and deletes goes into a transaction.

        Called under the lock.
        """
        self.check_writable()
        self._changes[id(changes.context)] = changes
        self._adopts = False

    def end_changes(self, changes: Changes) -> bool:
        """Undo `begin_changes`, by whichever thread or task; called under the lock.

        Returns whether nobody is in a transaction any more.
        """
        if self._changes.get(id(changes.context)) is changes:
            del self._changes[id(changes.context)]
        self._adopts = self._may_adopt()
        return not self._changes

    def _may_adopt(self) -> bool:
        return self._may_adopt_any and not self._changes

    # --- get -------------------------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """The value of a key that is not at hand in `index`.

        Raises
        ------
        AbsentKeyError, CorruptEntryError, PickleRefusedError, UnreadableValueError,
        ClosedChestError, OSError
        """
        return value_of(self._find(key), key, self.options.own)

    def get_plain(self, key: Any) -> Any:
        """As `get`, whatever was compressed as plain arrays in RAM."""
        found = self._find(key)
        if type(found) is CompressedArray:
            return self.load(key)
        if type(found) is Tree and any(type(part) is CompressedArray for part in found.parts):
            parts = [
                self._in_ram(part) if type(part) is CompressedArray else part
                for part in found.parts
            ]
            found = Tree(found.structure, parts)
        return value_of(found, key, self.options.own)

    def get_as(self, key: Any, mmap_mode: MmapMode) -> Any:
        """As `get`, with arrays that are read-only (``"r"``) or private and writable (``"c"``).

        Whatever is compressed is a plain array in RAM.  Of private arrays only the pages are copied
        that are written to, if the value is stored.
        """
        if mmap_mode == self.options.mmap_mode:
            return self.get_plain(key)
        row = self.stored_row(key)
        if mmap_mode == "c" and row is not None and self.own_changes() is None:
            with contextlib.suppress(CorruptEntryError):  # replaced meanwhile, or found below
                return value_of(self.open_store().loaded_privately(row, key), key, self.options.own)
        found = self._find(key)
        parts = found.parts if type(found) is Tree else [found]
        made = [_plain(part, writable=mmap_mode == "c") for part in parts]
        found = Tree(found.structure, made) if type(found) is Tree else made[0]
        return value_of(found, key, self.options.own)

    def _find(self, key: Any) -> Any:
        """What `value_of` makes the value of: not here, as it may call a user's functions."""
        if monotonic() >= self.live.due:
            self.tell_if_due()
        changes = self.own_changes()
        if changes is not None and key in changes:
            return changes.get(key)
        with self.writer.lock.bare:
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
        store, index, counter = self._store, self.index, self.counter
        if (
            store is None
            or counter.words[0] != counter.seen_word
            or self.options.on_miss is not None
            or not index.has_slot_or_row(key)
        ):
            return None
        slot = index.find(key)
        if slot is None:
            return None
        value = self._at_hand(slot)
        if value is not None:
            slot.hits += 1
            return value
        raw = slot.raw
        if slot.array is not None or raw is None or raw[PACK] is None or slot in self._loading:
            return None
        value = store.loader.mapped_value(raw) if store.has_pack(raw[PACK]) else None
        if value is not None:
            self._counters.misses += 1
            self._keep(slot, raw, value)
        return value

    def _find_or_load(self, key: Any) -> Any:
        writer = self.writer
        while True:
            with writer.lock:
                self.follow()
                slot = self.index.find(key)
                if slot is None:
                    self.committer.counters.absent += 1
                    raise AbsentKeyError(key)
                value = self._at_hand(slot)
                if value is not None:
                    slot.hits += 1
                    return value
                raw = slot.raw
                if raw is None or slot in self._loading:
                    # Another thread is faulting it in: once is enough.
                    self._waiting_to_load += 1
                    try:
                        writer.changed.wait()
                    finally:
                        self._waiting_to_load -= 1
                    continue
                store = self._store
                if store is None:
                    raise ClosedChestError("the chest is closed")
                self.committer.counters.misses += 1
                if raw[PACK] is not None and not store.has_pack(raw[PACK]):
                    store.reread_packs()  # begun by another process
                if raw[PACK] is not None and self.options.on_miss is None:
                    value = store.loader.mapped_value(raw)
                    if value is not None:
                        return self._keep(slot, raw, value)
                self._loading.add(slot)
            try:
                if self.options.on_miss is not None:
                    with let_through():
                        self.options.on_miss(slot.key)
                # Not `self._store`: the chest may be closed meanwhile.
                value = store.loader.load(Row._make(raw), slot.key)
                logger.debug("faulted in %r", slot.key)
            except CorruptEntryError:
                # A commit that is under way may have moved or replaced it already, which its slot
                # is told at the end.
                with self.committer.commit_lock, writer.lock:
                    self._done_loading(slot)
                    if self._is_current(slot, raw):
                        raise
                continue
            except BaseException as error:
                with writer.lock:
                    self._done_loading(slot)
                    if self.closed and isinstance(error, OSError):
                        # Its folder was closed before the file was opened.
                        raise ClosedChestError("the chest is closed") from error
                raise
            with writer.lock:
                self._done_loading(slot)
                if self._is_current(slot, raw):
                    self._keep(slot, raw, value)
                return value

    def _done_loading(self, slot: Slot) -> None:
        self._loading.discard(slot)
        if self._waiting_to_load:
            self.writer.changed.notify_all()

    def _is_current(self, slot: Slot, raw: RawRow) -> bool:
        """Whether what was loaded from `raw` is still the slot's value."""
        if self._store is None or self.index.slots.get(slot.key) is not slot:
            return False
        if slot.raw is not raw or slot.array is not None:
            return False
        # Another process may have replaced it; its file is gone then.
        self.follow()
        if self.forked and not self._store.tells:
            # Our parent's temporary chest: nobody says when it commits.
            slot.raw = self._store.catalog.find(raw[KEY])
            if slot.raw is None:
                self.index.forget(slot)
                return False
            return slot.raw[GENERATION] == raw[GENERATION] and slot.raw[PACK] == raw[PACK]
        return slot.raw is raw

    def _at_hand(self, slot: Slot) -> Any:
        """The value without I/O, or None."""
        if slot.value is not None:
            return slot.value
        array = slot.array
        if array is not None:
            return at_hand(array, slot.kind, private=self._private)
        return slot.view() if slot.view is not None and self._shows_resident else None

    def _keep(self, slot: Slot, raw: RawRow, value: Any) -> Any:
        """Note a value that was faulted in; further gets of it are hits."""
        counters = self.committer.counters
        counters.faults += 1
        counters.bytes_faulted += raw[STORED]
        if self.evicts and self._store is not None:
            self._uses.note(self._store, raw)
        if self._private:
            return value
        if self._store is not None and self.expiry.expires(self._store, raw[GENERATION]):
            return value
        if type(value) is Tree:
            if raw[PACK] is None:
                for number, part in enumerate(value.parts, 1):
                    if part.nbytes >= PACK_THRESHOLD:
                        self._note_origin(part, raw, number)
            if raw[PACK] is None and self._shows_resident:
                slot.view = value.itself
                is_compressed = any([type(part) is CompressedArray for part in value.parts])
                kept = self._kept_frames if is_compressed else self._kept
                kept.append(slot)
                if len(kept) > (MAX_KEPT_FRAMES if is_compressed else MAX_KEPT_VIEWS):
                    _let_go_oldest(kept)
            return value
        if raw[PACK] is None and type(value) in (np.ndarray, CompressedArray, BlockedArray):
            self._note_origin(value, raw, 0)
        if isinstance(value, LazyArray):
            copy = self.resident.copy_of(slot)
            if copy is not None:
                value.hold(copy)
            value.kept_by(self._keeper_of(slot.key, value))
        if type(value) is CompressedArray:
            slot.value = value
            self._kept_frames.append(slot)
            if len(self._kept_frames) > MAX_KEPT_FRAMES:
                _let_go_oldest(self._kept_frames)
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
        self._kept.append(slot)
        if len(self._kept) > MAX_KEPT_VIEWS:
            _let_go_oldest(self._kept)
        return value

    def _note_origin(self, array: np.ndarray | LazyArray, raw: RawRow, part: int) -> None:
        provenance.note(array, self.source, raw[KEY], raw[GENERATION], part)

    def load(self, key: Any) -> Any:
        """A value as a get gives it, its arrays in RAM; raises as `get`.

        The copy of a compressed one is kept as long as there is room for it.
        """
        with self.writer.lock:
            self.follow()
            slot = None if self.own_changes() is not None else self.index.find(key)
            copy = None if slot is None else self.resident.copy_of(slot)
            if copy is not None and slot is not None and self._shows_resident:
                slot.hits += 1
                return copy
        value = self._find(key)
        if type(value) is Tree:
            parts = [self._in_ram(part) for part in value.parts]
            return value_of(Tree(value.structure, parts), key, self.options.own)
        if type(value) is BlockedArray:
            found = np.asarray(value)
            found.setflags(write=not self._shows_resident)
            return found
        if type(value) is not np.ndarray and type(value) is not CompressedArray:
            return value_of(value, key, self.options.own)
        found = self._in_ram(value)
        if type(value) is CompressedArray:
            with self.writer.lock:
                self._keep_copy(key, value, found)
            if not found.flags.writeable:
                value.hold(found)
        return found

    def _in_ram(self, array: np.ndarray | CompressedArray) -> np.ndarray:
        if isinstance(array, CompressedArray):
            found = np.asarray(array)
            origin = provenance.of(array)
            if origin is not None and self.options.mmap_mode == "r":
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
        engine, array = ref(self), ref(value)

        def keep(whole: np.ndarray) -> None:
            mine, its = engine(), array()
            if mine is None or its is None or not mine._shows_resident:
                return
            origin = provenance.of(its)
            if origin is not None:
                provenance.note_again(whole, origin)
            with mine.writer.lock:
                if not mine.closed:
                    mine._keep_copy(key, its, whole)

        return keep

    def _keep_copy(self, key: Any, value: LazyArray, copy: np.ndarray) -> None:
        slot = self.index.slots.get(key)
        if slot is None or slot.raw is None or self._at_hand(slot) is not value:
            return  # overwritten or deleted meanwhile
        resident, budget = self.resident, self.budget
        budget.refresh(resident.charged)
        if copy.nbytes > budget.high:
            return
        resident.drop_copies(budget.high - copy.nbytes)
        if resident.charged + copy.nbytes <= budget.high:
            resident.keep_copy(slot, slot.raw[GENERATION], copy)

    # --- what is known of values beside themselves ---------------------------------------------

    def cost_of(self, key: Any) -> Cost | None:
        """What it took to compute a value; None if it is not there, or that is not known."""
        changes = self.own_changes()
        if changes is not None and key in changes:
            return changes.cost(key)
        with self.writer.lock:
            self.follow()
            slot = self.index.find(key)
            if slot is None:
                return None
            if slot.array is not None:
                return slot.cost
            raw, store = slot.raw, self._store
            if raw is None or store is None:
                return None
            return store.catalog.facts.of(raw[GENERATION]).cost

    def touch(self, key: Any, expires: float | None) -> None:
        """Let a value be good until a time, in seconds since 1970; None: for ever.

        Raises
        ------
        AbsentKeyError, SpillError, ReadOnlyChestError, ClosedChestError
            Nothing was changed.
        RuntimeError
            The caller is in a transaction.
        """
        if self.own_changes() is not None:
            raise RuntimeError("expected no transaction around a touch, found one")
        self.begin_writing()
        while True:
            # Where it lies says the catalog, and so it does how long it is good.
            self.spill(key)
            with self.committer.committing() as store:
                with self.writer.lock:
                    slot = self.index.find(key)
                    if slot is None:
                        raise AbsentKeyError(key)
                    raw = None if slot.array is not None else slot.raw
                if raw is None:
                    continue  # put anew meanwhile
                store.note_expiry(raw, expires)
                with self.writer.lock:
                    slot.value = slot.view = None
                    if expires is not None:
                        self.expiry.note(key, expires)
                store.catalog.database.raise_interrupt()
                return

    def find_digest(self, generation: int, part: int) -> bytes | None:
        """What the catalog says that a stored array contains; None if it says nothing."""
        with self.writer.lock, contextlib.suppress(OSError, ArrayChestError):
            if self._store is not None:
                return self._store.catalog.facts.of(generation).digests.get(part)
        return None

    def is_written_in_place(self, code: bytes, generation: int) -> bool:
        """Whether the file of this value of a key is written to, or may have been."""
        store, begun = self._store, (self.counter.words[0], self.in_place_edits)
        if store is None:
            return True
        # Whoever begins to write into a file commits that; in a temporary chest it is this process.
        if self._not_in_place.get(generation) == begun and (store.tells or not self.forked):
            return False
        with self.writer.lock:
            store = self._store
            if store is None:
                return True
            try:
                self.follow()
                if store.catalog.facts.may_have_changed(code, generation):
                    return True
            except (OSError, ArrayChestError):
                return True
        if len(self._not_in_place) >= _MOST_NOT_IN_PLACE:
            self._not_in_place.clear()
        self._not_in_place[generation] = begun
        return False

    def record_digest(self, origin: provenance.Origin, digest: bytes) -> None:
        """Note what a stored array contains.  Says nothing where it may not."""
        if self._no_puts or self.own_changes() is not None:
            return
        try:
            with self.at_work(), self.committer.committing() as store:
                store.catalog.facts.add_digest(origin.code, origin.generation, origin.part, digest)
                store.catalog.database.raise_interrupt()
        except (OSError, ArrayChestError) as error:
            logger.debug("a digest was not recorded: %s", error)

    # --- which keys there are ------------------------------------------------------------------

    def contains(self, key: Any) -> bool:
        """Whether the chest has the key.  Reads no value."""
        changes = self.own_changes()
        if changes is not None and key in changes:
            return changes.has(key)
        with self.writer.lock:
            self.follow()
            index = self.index
            if index.hidden and key in index.hidden:
                return False
            return key in index.rows or key in self.resident.fresh or index.find(key) is not None

    def count(self) -> int:
        """Number of keys.  O(1), but O(n) the first time in a chest that was reopened."""
        if self.own_changes() is not None:
            return sum(1 for _ in self.keys())
        with self.writer.lock:
            self.check_open()
            self.follow()
            if self.index.is_counted:
                return self.index.count(0) - len(self.index.hidden)
        # No commit is under way under this lock, so that each row has been noted on its slot.
        with self.committer.commit_lock, self.writer.lock:
            self.check_open()
            self.follow()
            return self.index.count(self.committer.doomed_rows()) - len(self.index.hidden)

    def keys(self, *, descending: bool = False) -> Iterator[Any]:
        """The keys in the order of insertion, while others change the chest.

        A key that is there throughout comes exactly once; one put or deleted meanwhile may or
        may not come.  Reads no value; memory is O(keys that the chest has met).
        """
        changes = self.own_changes()
        stored = self._all_keys(descending)
        return stored if changes is None else changes.merged(stored, descending=descending)

    def _all_keys(self, descending: bool) -> Iterator[Any]:
        keys = self._known_and_stored_keys(descending)
        hidden = self.index.hidden
        return (key for key in keys if key not in hidden) if hidden else keys

    def _known_and_stored_keys(self, descending: bool) -> Iterator[Any]:
        with self.writer.lock:
            self.check_open()
            self.follow()
            if self.index.complete:
                return iter(self.index.known_keys(descending=descending))
            unsaved = self.index.unsaved_keys(descending=descending)
        return self._merged(unsaved, descending)

    def last_key(self) -> Any:
        """The key that was inserted last; raises AbsentKeyError if there is none."""
        with self.writer.lock:
            self.check_open()
            self.follow()
            if self.index.complete and self.own_changes() is None:
                with contextlib.suppress(StopIteration):
                    return self.index.last_known_key()
        for key in self.keys(descending=True):
            return key
        raise AbsentKeyError("the chest is empty")

    def _merged(self, unsaved: Sequence[tuple[int, Any]], descending: bool) -> Iterator[Any]:
        last = None
        for seq, key in heapq.merge(
            unsaved,
            self._stored_keys(descending),
            key=lambda item: item[0],
            reverse=descending,
        ):
            # A value that was committed meanwhile comes from both sides.
            if seq != last:
                last = seq
                yield key

    def _stored_keys(self, descending: bool) -> Iterator[tuple[int, Any]]:
        at = (1 << 62) if descending else 0
        while True:
            with self.writer.lock:
                page = self.index.page(at, descending=descending)
                # As of the page: once a deletion is committed, its tombstone goes.
                deleted = self.index.deleted()
            if not page:
                return
            at = page[-1][0]
            for seq, canonical, exact in page:
                try:
                    key = decode_key(canonical, exact)
                except ValueError as error:
                    raise CorruptEntryError(f"catalog of {self.path}: {error}") from error
                if key not in deleted or deleted[key] == seq:
                    yield seq, key

    # --- put and delete --------------------------------------------------------------------

    def put(self, key: Any, value: Any) -> None:
        """Make `value` the value of `key`; see `put_any`.

        This is the short way for the plain case: an array that the chest can keep as it is, a
        simple key, and room for it without a spill.  Everything else takes `put_any`.  Calls and
        records would double its cost, so it does without.  It is no step that holds back an
        interrupt, which would double it as well: what changes is changed without a call in
        between.
        """
        if (
            type(value) is np.ndarray
            and id(value.dtype) in DESCRIBED
            and value.base is None
            and type(key) in PLAIN_TYPES
            and self._adopts
            and (flags := value.flags.num) & _OWNS_DATA
            and flags & _CONTIGUOUS
        ):
            writer, resident, budget = self.writer, self.resident, self.budget
            nbytes = value.nbytes
            added = False
            with writer.lock.bare:
                if not self._no_puts and writer.failure is None and nbytes < PACK_THRESHOLD:
                    if budget.adaptive:
                        budget.refresh(resident.charged)
                    charged = resident.charged + nbytes
                    if charged <= budget.bytes:
                        slot = self._slots.get(key)
                        if slot is None:
                            added = self.index.may_be_fresh(key) and resident.add_fresh(key, value)
                        elif slot.array is not None and slot.kind == "array":
                            # One that nothing is put with does no harm.
                            self.index.puts = version = self.index.puts + 1
                            shown = value if self._shows_resident else None
                            added = resident.replace(slot, value, nbytes, version, shown)
                        if added:
                            self._counters.puts += 1
            if added:
                if charged > budget.high:
                    with writer.lock:
                        writer.put_noted(slot)
                return
        self.put_any(key, value)

    def put_any(
        self,
        key: Any,
        value: Any,
        *,
        only_absent: bool = False,
        compression: How | None = None,
        cost: Cost | None = None,
        on_put: OnPut | None = None,
    ) -> None:
        """Make `value` the value of `key`.

        Parameters
        ----------
        only_absent
            Leave the value that there is.
        compression
            How to compress it when it is stored; None: as the chest does.
        cost
            What it took to compute it.
        on_put
            What becomes of its arrays; None: as the chest says.

        Raises
        ------
        ValueTypeError, KeyTypeError, SpillError, ReadOnlyChestError, ClosedChestError
            The key has its old value, and the array is as it was.
        """
        if monotonic() >= self.live.due:
            self.tell_if_due()
        if cost is not None and cost.expires is not None:
            with self.writer.lock:
                self.expiry.note(key, cost.expires)
        changes = self.own_changes()
        if changes is not None:
            if not (only_absent and self.contains(key)):
                changes.put(key, value, compression, cost, on_put)
            return
        on_put = on_put or self.options.on_put
        if type(value) is BlockedArray:
            self._put_blocks(key, value, only_absent, cost)
            return
        array, kind, shown = accept(value, self.options.own)
        if type(key) not in PLAIN_TYPES:
            encode_key(key)
        self.committer.named(key)
        # What transactions keep in RAM cannot be made to leave it.
        if array.nbytes > self.budget.bytes - self.resident.held_bytes:
            if self._put_directly(key, array, kind, only_absent, compression, cost):
                # As any other array that was put: writing to it now would go unnoticed.
                if on_put == "freeze" and kind != "scalar":
                    freeze_handed_over(array)
                self.committer.tell_overflow([key])
            return
        # Copied before the lock is taken; frozen only once nothing can refuse it any more.
        if kind not in ("scalar", "dump"):
            array = array_to_keep(array, on_put)
            shown = None if isinstance(array, Tree) else array
        writer, resident = self.writer, self.resident
        with writer.lock:
            self.check_writable()
            writer.report_failure()
            self.budget.refresh(resident.charged)
            if resident.charged + array.nbytes > self.budget.bytes:
                writer.make_room(resident.weight(array))
                self.check_writable()
            if only_absent:
                self.follow()
            slot, new = self.index.slot_for_put(key)
            if not new and only_absent:
                return
            if self._refuses:
                self._check_quota(slot, array.nbytes)
            freeze(array)
            self._set_resident(slot, array, kind)
            slot.compression = compression
            slot.cost = cost
            resident.drop_copy(slot)
            if new:
                self.index.add(slot)
            slot.view = None
            self.index.puts += 1
            self.committer.counters.puts += 1
            slot.version = self.index.puts
            slot.value = shown if self._shows_resident or kind == "scalar" else None
            if cost is not None and cost.expires is not None:
                # Each get looks whether it is good still.
                slot.value = None
            writer.put_noted(slot)

    def _check_quota(self, slot: Slot, nbytes: int) -> None:
        """Raise QuotaError where a value would not fit on disk once all in RAM is stored."""
        quota, store = self.options.quota, self._store
        stored = None if store is None else store.counter.stored
        if quota is None or stored is None:
            return
        waits = self.resident.charged + FILE_OVERHEAD * (self.resident.count + 1)
        if stored + waits + nbytes <= quota.nbytes:
            return
        # What is overwritten or deleted gives its bytes back.
        self.index.settle_all()
        others = [other for other in self.resident.slots() if other is not slot]
        nbytes += FILE_OVERHEAD
        waits = sum(other.array.nbytes for other in others if other.array is not None)
        waits += FILE_OVERHEAD * len(others)
        gone = sum(freed_by(other.raw) for other in (slot, *others, *self.committer.doomed))
        if stored + waits + nbytes - gone > quota.nbytes:
            raise quota.refusal(nbytes, stored + waits - gone)

    def _set_resident(self, slot: Slot, array: np.ndarray | Tree, kind: Kind) -> None:
        if slot.array is not None:
            self.resident.remove(slot)
        slot.kind = kind
        self.resident.add(slot, array)

    def _put_directly(
        self,
        key: Any,
        array: np.ndarray | Tree,
        kind: Kind,
        only_absent: bool,
        compression: How | None,
        cost: Cost | None,
    ) -> bool:
        """Store a value that is larger than the budget, without ever charging it; False where
        another is there, and `only_absent`.
        """
        writer = self.writer
        with writer.lock:
            self.check_writable()
            writer.report_failure()
            self.follow()
            if only_absent and self.index.find(key) is not None:
                return False
        with self.at_work():
            row = self.committer.write_directly(key, array, kind, compression)
            try:
                facts = facts_of(row.generation, array, cost)
                if not self._place_directly(key, row, only_absent, facts):
                    return False
            except ArrayChestError:
                self.open_store().files.remove([value_name(row)])
                raise
            except OSError as error:
                raise SpillError(
                    f"the value of key {key!r} could not be stored: {error}"
                ) from error
            with writer.lock:
                self.committer.count_spill(array.nbytes)
        return True

    def _put_blocks(
        self, key: Any, value: BlockedArray, only_absent: bool, cost: Cost | None
    ) -> None:
        """Put what is larger than RAM, maybe: its files are linked, and never read."""
        encode_key(key)
        self.begin_writing()
        row = taken_over(self.committer, key, value)
        facts = None if cost is None else Facts(row.generation, {}, cost)
        try:
            self._place_directly(key, row, only_absent, facts)
        except ArrayChestError:
            self.open_store().files.remove([value_name(row)])
            raise
        except OSError as error:
            raise SpillError(f"the value of key {key!r} could not be stored: {error}") from error

    def _place_directly(self, key: Any, row: Row, only_absent: bool, facts: Facts | None) -> bool:
        with self.committer.committing() as store:
            with self.writer.lock:
                self.check_writable()
                wanted = not only_absent or self.index.find(key) is None
                unused = [value_name(row)]
                if wanted:
                    known = () if facts is None else (facts,)
                    unused = self.committer.place(store, [(key, row)], facts=known)
            store.files.remove(unused)
            store.catalog.database.raise_interrupt()
        return wanted

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove a key; with `version`, only while its slot has that one.

        Returns whether it was removed.

        Raises
        ------
        AbsentKeyError, ReadOnlyChestError, ClosedChestError
            Nothing was changed.
        """
        changes = self.own_changes()
        if changes is not None:
            if not self.contains(key):
                raise AbsentKeyError(key)
            changes.delete(key)
            return True
        writer = self.writer
        with writer.lock:
            if self._no_puts:
                self.check_writable()
            self.follow()
            slot = self.index.find(key)
            if slot is None:
                raise AbsentKeyError(key)
            if version is not None and slot.version != version:
                return False
            self.remove_slot(slot)
        return True

    def pop(self, key: Any) -> Any:
        """Remove a key and return its value, as one step.

        Raises
        ------
        AbsentKeyError, ReadOnlyChestError, ClosedChestError, CorruptEntryError
            Nothing was changed.
        """
        if self.own_changes() is not None:
            value = self.get(key)
            self.delete(key)
            return value
        while True:
            with self.writer.lock:
                self.check_writable()
                self.follow()
                slot = self.index.find(key)
                if slot is None:
                    raise AbsentKeyError(key)
                version = slot.version
            value = self.get(key)
            with contextlib.suppress(AbsentKeyError):
                if self.delete(key, version):
                    return value

    # --- what the chest knows --------------------------------------------------------------

    def entry(self, key: Any) -> Entry:
        """What is known of a value; reads no data.  Raises AbsentKeyError."""
        changes = self.own_changes()
        if changes is not None and key in changes:
            return self._stored_entry(key, changes.row(key))
        with self.writer.lock:
            self.follow()
            slot = self.index.find(key)
            if slot is None:
                raise AbsentKeyError(key)
            array, row = slot.array, slot.row
            if isinstance(array, Tree):
                return entry_of(form_of(array.nbytes))
            if array is not None:
                form = Form(array.dtype, array.shape, "C", slot.kind)
                return entry_of(form)
            assert row is not None
        return self._stored_entry(key, row)

    def _stored_entry(self, key: Any, row: Row) -> Entry:
        try:
            form = parse_form(row.form)
        except ValueError as error:
            raise CorruptEntryError(f"catalog row of key {key!r}: {error}") from error
        layout = self.open_store().loader.layout(row, key) if row.is_frame else None
        return entry_of(form, row, self.file_of(row), layout)

    def file_of(self, row: Row) -> str:
        """The path of the file that holds a stored value."""
        store = self.open_store()
        return f"{store.folder.where()}/{file_name(row)}"

    def stored_row(self, key: Any) -> Row | None:
        """The row of a value that is stored, and not in RAM; None if there is no such."""
        with self.writer.lock:
            return self.stored_row_now(key)

    def stored_row_now(self, key: Any) -> Row | None:
        """As `stored_row`, called under the lock."""
        self.follow()
        slot = self.index.find(key)
        return None if slot is None or slot.array is not None else slot.row

    def resident_values(self) -> dict[Any, Any]:
        """What is in RAM and not yet stored, by key."""
        with self.writer.lock:
            self.index.settle_all()
            slots = [*self.resident.slots(), *self.resident.inherited]
            found = {slot.key: self._at_hand(slot) for slot in slots}
        return {key: value_of(each, key, self.options.own) for key, each in found.items()}

    def hits(self) -> int:
        """Gets that were answered from memory.  Approximate while other threads get."""
        with self.writer.lock:
            return self.index.hits + sum(slot.hits for slot in self.index.slots.values())

    def stored_bytes(self) -> int:
        """Bytes of the value files.  O(entries)."""
        with self.writer.lock:
            return 0 if self._store is None else self._store.catalog.stored_bytes()

    # --- spilling on request ---------------------------------------------------------------

    def set_budget(self, budget: Budget) -> None:
        """Replace the budget; a smaller one spills before this returns.

        Raises
        ------
        SpillError
            The new budget holds, but the values that should have left RAM could not be stored.
        """
        with self.writer.lock:
            self.check_open()
            self._leave_to_parent()
            self.budget = self.writer.budget = budget
            self.writer.make_room(0)

    def spill(self, key: Any) -> None:
        """Store one value now and drop it from RAM; nothing happens if it is stored already."""
        with self.writer.lock:
            self.check_writable()
            self.follow()
            slot = self.index.find(key)
            if slot is None:
                raise AbsentKeyError(key)
            self._spill(slot)

    def _spill(self, slot: Slot) -> None:
        self.check_writable()
        if slot in self.resident.inherited:
            # Whoever asks for it to be stored now cannot wait for the parent.
            self.resident.adopt(slot)
        self.writer.spill(slot)

    def flush(self) -> None:
        """Return once all is stored and committed.  Raises SpillError where something is not."""
        with self.writer.lock:
            self.check_writable()
        self.writer.flush()

    def prefetch(self, keys: Sequence[Any]) -> None:
        """Map stored values, and ask the kernel to read them ahead."""
        rows = []
        with self.writer.lock:
            self.check_open()
            self.follow()
            for key in keys:
                slot = self.index.find(key)
                if slot is None:
                    raise AbsentKeyError(key)
                if slot.array is None and slot.raw is not None:
                    rows.append(Row._make(slot.raw))
        for row in rows:
            self.open_store().loader.prefetch(row)
        for key in keys:
            with contextlib.suppress(AbsentKeyError):  # deleted meanwhile
                self.get(key)

    def compact(self, progress: Asked = False) -> int:
        """Remove what has expired, and rewrite every pack that has holes; returns the bytes that
        were dead.  Between two packs `progress` may stop it.

        Raises
        ------
        SpillError
            Deletions could not be committed, or values not be moved; nothing is lost.
        """
        for key, version in self._expired():
            with contextlib.suppress(AbsentKeyError):
                self.delete(key, version)
        self.flush()
        store = self._store
        if store is None:
            return 0
        store.files.remove_unfinished()
        dead = store.dead_bytes()
        sizes = {}
        for identity in store.sparse_packs(0.0):
            with contextlib.suppress(CorruptEntryError):  # compacted meanwhile
                sizes[identity] = store.pack_record(identity).bytes
        with measured(progress, "compact", sum(sizes.values())) as meter:
            for identity, nbytes in sizes.items():
                with self.at_work():
                    self.committer.compact_pack(identity)
                meter.add(nbytes)
        return dead

    def _expired(self) -> list[tuple[Any, int]]:
        """The keys of values that are no longer good, and the versions of their slots."""
        with self.writer.lock:
            self.follow()
            costs = {} if self._store is None else self._store.catalog.facts.costs()
            # What was put with a cost has a slot.
            kept = [slot.key for slot in self.resident.slots() if slot.cost is not None]
        now = time.time()
        good = {generation for generation, cost in costs.items() if not cost.has_expired(now)}
        found = []
        for key in self.keys() if len(good) < len(costs) else kept:
            with self.writer.lock:
                slot = self.index.find(key)
                if slot is None:
                    continue
                if slot.array is not None:
                    expired = slot.cost is not None and slot.cost.has_expired(now)
                else:
                    generation = None if slot.raw is None else slot.raw[GENERATION]
                    expired = generation in costs and generation not in good
                if expired:
                    found.append((key, slot.version))
        return found


def _plain(value: Any, *, writable: bool) -> Any:
    """A plain array of its own in place of an array; anything else as it is."""
    if not isinstance(value, np.ndarray | CompressedArray | BlockedArray):
        return value
    found = np.array(value) if writable else np.asarray(value)
    found.setflags(write=writable)
    return found


def _let_go_oldest(kept: deque[Slot]) -> None:
    """Keep one value less open that no get has asked for since it was last looked at."""
    for _ in range(2 * len(kept)):
        slot = kept.popleft()
        is_tree = slot.value is None and slot.view is not None and not isinstance(slot.view, ref)
        if slot.array is not None or (slot.value is None and not is_tree):
            continue
        if slot.hits != slot.seen:
            slot.seen = slot.hits
            kept.append(slot)
            continue
        slot.view = None if is_tree else ref(slot.value)
        slot.value = None
        return


def _codec_name(row: Row) -> str:
    """How a value is stored that is not compressed as a whole."""
    if row.pack is not None:
        return "pack"
    return "blocks" if row.is_blocked else "npy"


def entry_of(
    form: Form, row: Row | None = None, file: str | None = None, layout: Layout | None = None
) -> Entry:
    """What is told of a value of this form; without a row it is in RAM."""
    dtype, shape = form.dtype, form.shape
    if form.kind == "scalar":
        if dtype.kind in "US":
            dtype = np.dtype((dtype.type, form.shape[0]))
        shape = ()
    elif form.kind in ("tree", "dump"):
        dtype, shape = np.dtype(object), ()
    found = Entry(
        kind=form.kind,
        shape=shape,
        dtype=dtype,
        nbytes=form.nbytes,
        stored_bytes=0 if row is None else row.stored,
        codec=None if row is None else _codec_name(row),
        file=file,
        generation=None if row is None else row.generation,
        resident=row is None,
    )
    if layout is None:
        return found
    turned = slice(None, None, -1 if form.order == "F" else 1)
    return replace(
        found,
        codec=CODEC_NAMES[layout.codec],
        clevel=layout.clevel,
        filters=tuple(FILTER_NAMES[number] for number in layout.filters),
        chunks=layout.chunks[turned],
        blocks=layout.blocks[turned],
    )
