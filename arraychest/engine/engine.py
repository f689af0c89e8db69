"""Memory over storage: what one open chest does.

`Session` has the parts and says whether they may be used.  `get`, `put` and `scan` are what is done
most; what is done to one key, and on request, is here.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any
from weakref import ref

from arraychest.catalog.record import GENERATION, Row
from arraychest.engine.entry import Entry, entry_of
from arraychest.engine.get import Getter
from arraychest.engine.open_transactions import Changes
from arraychest.engine.options import Options
from arraychest.engine.put import Putter
from arraychest.engine.scan import Scan
from arraychest.engine.session import Session
from arraychest.engine.value_facts import ValueFacts
from arraychest.errors import AbsentKeyError, CorruptEntryError
from arraychest.formats.form import Form, parse_form
from arraychest.formats.tree import Tree, form_of
from arraychest.memory.budget import Budget
from arraychest.memory.slot import Slot
from arraychest.progress import Asked, measured
from arraychest.storage.file_names import file_name
from arraychest.values.accept import value_of


class Engine:
    """The values of one chest, in RAM and on disk.  Every method is safe from many threads.

    Parameters
    ----------
    path, budget, options
        See `Session`.

    Attributes
    ----------
    session
        The parts of the open chest, and whether they may be used.
    facts
        What is known of values beside themselves.
    get, get_plain, get_as, find, load, prefetch
        See `Getter`.
    put, put_any
        See `Putter`.
    contains, count, keys, last_key, stored_row, stored_row_now
        See `Scan`.
    """

    def __init__(self, path: str | None, budget: Budget, options: Options) -> None:
        self.session = session = Session(path, budget, options)
        self.facts = facts = ValueFacts(session)
        # It does not keep the chest alive that an array came from.
        session.saver.source = source = ref(facts)
        scan = Scan(session)
        self._getter = getter = Getter(session, scan, source)
        putter = Putter(session, scan)
        # Names of its own, so that a hot call takes no step more.
        self.get, self.get_plain, self.get_as = getter.get, getter.get_plain, getter.get_as
        self.find, self.load, self.prefetch = getter.find, getter.load, getter.prefetch
        self.put, self.put_any = putter.put, putter.put_any
        self.contains, self.count = scan.contains, scan.count
        self.keys, self.last_key = scan.keys, scan.last_key
        self.stored_row, self.stored_row_now = scan.stored_row, scan.stored_row_now

    # --- transactions --------------------------------------------------------------------------

    def own_changes(self) -> Changes | None:
        """The transaction that the calling thread or task is in."""
        return self.session.transactions.own()

    def begin_changes(self, changes: Changes) -> None:
        """From here on what its thread or task puts and deletes goes into a transaction.

        Called under the lock.
        """
        session = self.session
        session.check_writable()
        session.transactions.begin(changes)

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove a key; with `version`, only while its slot has that one.

        Returns whether it was removed.

        Raises
        ------
        AbsentKeyError, ReadOnlyChestError, ClosedChestError
            Nothing was changed.
        """
        session = self.session
        changes = session.transactions.own()
        if changes is not None:
            if not self.contains(key):
                raise AbsentKeyError(key)
            changes.delete(key)
            return True
        writer = session.writer
        with writer.lock:
            if session.no_puts:
                session.check_writable()
            session.follow()
            slot = session.index.find(key)
            if slot is None:
                raise AbsentKeyError(key)
            if version is not None and slot.version != version:
                return False
            session.remove_slot(slot)
        return True

    def pop(self, key: Any) -> Any:
        """Remove a key and return its value, as one step.

        Raises
        ------
        AbsentKeyError, ReadOnlyChestError, ClosedChestError, CorruptEntryError
            Nothing was changed.
        """
        session = self.session
        if session.transactions.own() is not None:
            value = self.get(key)
            self.delete(key)
            return value
        while True:
            with session.writer.lock:
                session.check_writable()
                session.follow()
                slot = session.index.find(key)
                if slot is None:
                    raise AbsentKeyError(key)
                version = slot.version
            value = self.get(key)
            with contextlib.suppress(AbsentKeyError):
                if self.delete(key, version):
                    return value

    def touch(self, key: Any, expires: float | None) -> None:
        """Let a value be good until a time, in seconds since 1970; None: for ever.

        Raises
        ------
        AbsentKeyError, SpillError, ReadOnlyChestError, ClosedChestError
            Nothing was changed.
        RuntimeError
            The caller is in a transaction.
        """
        session = self.session
        if session.transactions.own() is not None:
            raise RuntimeError("expected no transaction around a touch, found one")
        session.begin_writing()
        while True:
            # Where it lies says the catalog, and so it does how long it is good.
            self.spill(key)
            with session.committer.committing() as store:
                with session.writer.lock:
                    slot = session.index.find(key)
                    if slot is None:
                        raise AbsentKeyError(key)
                    raw = None if slot.array is not None else slot.raw
                if raw is None:
                    continue  # put anew meanwhile
                store.note_expiry(raw, expires)
                with session.writer.lock:
                    slot.value = slot.view = None
                    if expires is not None:
                        session.expiry.note(key, expires)
                store.catalog.database.raise_interrupt()
                return

    # --- what the chest knows --------------------------------------------------------------

    def entry(self, key: Any) -> Entry:
        """What is known of a value; reads no data.  Raises AbsentKeyError."""
        session = self.session
        changes = session.transactions.own()
        if changes is not None and key in changes:
            return self._stored_entry(key, changes.row(key))
        with session.writer.lock:
            session.follow()
            slot = session.index.find(key)
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
        layout = self.session.open_store().loader.layout(row, key) if row.is_frame else None
        return entry_of(form, row, self.file_of(row), layout)

    def file_of(self, row: Row) -> str:
        """The path of the file that holds a stored value."""
        store = self.session.open_store()
        return f"{store.folder.where()}/{file_name(row)}"

    def resident_values(self) -> dict[Any, Any]:
        """What is in RAM and not yet stored, by key."""
        session = self.session
        with session.writer.lock:
            session.index.settle_all()
            slots = [*session.resident.slots(), *session.resident.inherited]
            found = {slot.key: self._getter.at_hand(slot) for slot in slots}
        return {key: value_of(each, key, session.options.own) for key, each in found.items()}

    def hits(self) -> int:
        """Gets that were answered from memory.  Approximate while other threads get."""
        session = self.session
        with session.writer.lock:
            return session.index.hits + sum(slot.hits for slot in session.index.slots.values())

    def stored_bytes(self) -> int:
        """Bytes of the value files.  O(entries)."""
        session = self.session
        with session.writer.lock:
            return 0 if session.store is None else session.store.catalog.stored_bytes()

    # --- spilling on request ---------------------------------------------------------------

    def set_budget(self, budget: Budget) -> None:
        """Replace the budget; a smaller one spills before this returns.

        Raises
        ------
        SpillError
            The new budget holds, but the values that should have left RAM could not be stored.
        """
        session = self.session
        with session.writer.lock:
            session.check_open()
            session.leave_to_parent()
            session.budget = session.writer.budget = budget
            session.writer.make_room(0)

    def spill(self, key: Any) -> None:
        """Store one value now and drop it from RAM; nothing happens if it is stored already."""
        session = self.session
        with session.writer.lock:
            session.check_writable()
            session.follow()
            slot = session.index.find(key)
            if slot is None:
                raise AbsentKeyError(key)
            self._spill(slot)

    def _spill(self, slot: Slot) -> None:
        session = self.session
        session.check_writable()
        if slot in session.resident.inherited:
            # Whoever asks for it to be stored now cannot wait for the parent.
            session.resident.adopt(slot)
        session.writer.spill(slot)

    def flush(self) -> None:
        """Return once all is stored and committed.  Raises SpillError where something is not."""
        session = self.session
        with session.writer.lock:
            session.check_writable()
        session.writer.flush()

    def compact(self, progress: Asked = False) -> int:
        """Remove what has expired, and rewrite every pack that has holes; returns the bytes that
        were dead.  Between two packs `progress` may stop it.

        Raises
        ------
        SpillError
            Deletions could not be committed, or values not be moved; nothing is lost.
        """
        session = self.session
        for key, version in self._expired():
            with contextlib.suppress(AbsentKeyError):
                self.delete(key, version)
        self.flush()
        store = session.store
        if store is None:
            return 0
        store.files.remove_unfinished()
        dead = store.packs.dead_bytes()
        sizes = {}
        for identity in store.packs.sparse(0.0):
            with contextlib.suppress(CorruptEntryError):  # compacted meanwhile
                sizes[identity] = store.packs.record(identity).bytes
        with measured(progress, "compact", sum(sizes.values())) as meter:
            for identity, nbytes in sizes.items():
                with session.at_work():
                    session.compactor.compact_pack(identity)
                meter.add(nbytes)
        return dead

    def _expired(self) -> list[tuple[Any, int]]:
        """The keys of values that are no longer good, and the versions of their slots."""
        session = self.session
        with session.writer.lock:
            session.follow()
            costs = {} if session.store is None else session.store.catalog.facts.costs()
            # What was put with a cost has a slot.
            kept = [slot.key for slot in session.resident.slots() if slot.cost is not None]
        now = time.time()
        good = {generation for generation, cost in costs.items() if not cost.has_expired(now)}
        found = []
        for key in self.keys() if len(good) < len(costs) else kept:
            with session.writer.lock:
                slot = session.index.find(key)
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
