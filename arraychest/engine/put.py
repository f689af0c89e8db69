"""Puts: a value into RAM or, where it is larger than RAM may hold, straight to disk."""

from __future__ import annotations

from time import monotonic
from typing import Any

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.catalog.record import Cost, Facts, Row
from arraychest.engine.blocks import taken_over
from arraychest.engine.columns import facts_of
from arraychest.engine.scan import Scan
from arraychest.engine.session import Session
from arraychest.errors import ArrayChestError, SpillError
from arraychest.formats.compression import How
from arraychest.formats.form import DESCRIBED, Kind
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.slot import Slot
from arraychest.storage.eviction import freed_by
from arraychest.storage.file_names import value_name
from arraychest.storage.quota import FILE_OVERHEAD
from arraychest.values.accept import OnPut, accept, array_to_keep, freeze, freeze_handed_over
from arraychest.values.keys import PLAIN_TYPES, encode_key

# NumPy's flags of an array as one number: a look at each by its name takes twice as long.
_OWNS_DATA = 4
_CONTIGUOUS = 1 | 2  # in C order, or in Fortran order


class Putter:
    """Puts values into one chest.  Every method is safe from many threads.

    Parameters
    ----------
    session, scan
        The chest's.
    """

    def __init__(self, session: Session, scan: Scan) -> None:
        self._session = session
        self._scan = scan
        options, quota = session.options, session.options.quota
        # Whether values that do not fit are refused when they are put: those of a temporary chest
        # may stay in RAM.
        self._refuses = quota is not None and not quota.evicts and not session.temporary
        # Whether a put may keep the very array, if nobody is in a transaction.
        self._adopts = (
            options.on_put == "freeze" and not self._refuses and options.key_to_filename is None
        )
        # Whether a get returns the very array that is kept in RAM.
        self._shows_resident = options.mmap_mode == "r"
        # Names of its own for what every put asks.
        self._slots = session.index.slots
        self._open_transactions = session.transactions.by_context
        self._counters = session.committer.counters

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
            and not self._open_transactions
            and (flags := value.flags.num) & _OWNS_DATA
            and flags & _CONTIGUOUS
        ):
            session, nbytes = self._session, value.nbytes
            writer, resident, budget = session.writer, session.resident, session.budget
            index, added = session.index, False
            with writer.lock.bare:
                if (
                    not session.no_puts
                    and writer.failures.untold is None
                    and nbytes < PACK_THRESHOLD
                ):
                    if budget.adaptive:
                        budget.refresh(resident.charged)
                    charged = resident.charged + nbytes
                    if charged <= budget.bytes:
                        slot = self._slots.get(key)
                        if slot is None:
                            added = index.may_be_fresh(key) and resident.add_fresh(key, value)
                        elif slot.array is not None and slot.kind == "array":
                            # One that nothing is put with does no harm.
                            index.puts = version = index.puts + 1
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
        session = self._session
        if monotonic() >= session.live.due:
            session.tell_if_due()
        if cost is not None and cost.expires is not None:
            with session.writer.lock:
                session.expiry.note(key, cost.expires)
        changes = session.transactions.own()
        if changes is not None:
            if not (only_absent and self._scan.contains(key)):
                changes.put(key, value, compression, cost, on_put)
            return
        on_put = on_put or session.options.on_put
        if type(value) is BlockedArray:
            self._put_blocks(key, value, only_absent, cost)
            return
        array, kind, shown = accept(value, session.options.own)
        if type(key) not in PLAIN_TYPES:
            encode_key(key)
        session.saver.named(key)
        # What transactions keep in RAM cannot be made to leave it.
        if array.nbytes > session.budget.bytes - session.resident.held_bytes:
            if self._put_directly(key, array, kind, only_absent, compression, cost):
                # As any other array that was put: writing to it now would go unnoticed.
                if on_put == "freeze" and kind != "scalar":
                    freeze_handed_over(array)
                session.saver.tell_overflow([key])
            return
        self._put_in_ram(key, array, kind, shown, only_absent, compression, cost, on_put)

    def _put_in_ram(
        self,
        key: Any,
        array: np.ndarray | Tree,
        kind: Kind,
        shown: Any,
        only_absent: bool,
        compression: How | None,
        cost: Cost | None,
        on_put: OnPut,
    ) -> None:
        session = self._session
        # Copied before the lock is taken; frozen only once nothing can refuse it any more.
        if kind not in ("scalar", "dump"):
            array = array_to_keep(array, on_put)
            shown = None if isinstance(array, Tree) else array
        writer, resident = session.writer, session.resident
        with writer.lock:
            session.check_writable()
            writer.failures.report()
            session.budget.refresh(resident.charged)
            if resident.charged + array.nbytes > session.budget.bytes:
                writer.make_room(resident.weight(array))
                session.check_writable()
            if only_absent:
                session.follow()
            slot, new = session.index.slot_for_put(key)
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
                session.index.add(slot)
            slot.view = None
            session.index.puts += 1
            session.committer.counters.puts += 1
            slot.version = session.index.puts
            slot.value = shown if self._shows_resident or kind == "scalar" else None
            if cost is not None and cost.expires is not None:
                # Each get looks whether it is good still.
                slot.value = None
            writer.put_noted(slot)

    def _check_quota(self, slot: Slot, nbytes: int) -> None:
        """Raise QuotaError where a value would not fit on disk once all in RAM is stored."""
        session = self._session
        quota, store = session.options.quota, session.store
        stored = None if store is None else store.counter.stored
        if quota is None or stored is None:
            return
        waits = session.resident.charged + FILE_OVERHEAD * (session.resident.count + 1)
        if stored + waits + nbytes <= quota.nbytes:
            return
        # What is overwritten or deleted gives its bytes back.
        session.index.settle_all()
        others = [other for other in session.resident.slots() if other is not slot]
        nbytes += FILE_OVERHEAD
        waits = sum(other.array.nbytes for other in others if other.array is not None)
        waits += FILE_OVERHEAD * len(others)
        gone = sum(
            freed_by(other.raw) for other in (slot, *others, *session.committer.deletions.all)
        )
        if stored + waits + nbytes - gone > quota.nbytes:
            raise quota.refusal(nbytes, stored + waits - gone)

    def _set_resident(self, slot: Slot, array: np.ndarray | Tree, kind: Kind) -> None:
        session = self._session
        if slot.array is not None:
            session.resident.remove(slot)
        slot.kind = kind
        session.resident.add(slot, array)

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
        session = self._session
        writer = session.writer
        with writer.lock:
            session.check_writable()
            writer.failures.report()
            session.follow()
            if only_absent and session.index.find(key) is not None:
                return False
        with session.at_work():
            row = session.saver.write_directly(key, array, kind, compression)
            try:
                facts = facts_of(row.generation, array, cost)
                if not self._place_directly(key, row, only_absent, facts):
                    return False
            except ArrayChestError:
                session.open_store().files.remove([value_name(row)])
                raise
            except OSError as error:
                raise SpillError(
                    f"the value of key {key!r} could not be stored: {error}"
                ) from error
            with writer.lock:
                session.saver.count_spill(array.nbytes)
        return True

    def _put_blocks(
        self, key: Any, value: BlockedArray, only_absent: bool, cost: Cost | None
    ) -> None:
        """Put what is larger than RAM, maybe: its files are linked, and never read."""
        session = self._session
        encode_key(key)
        session.begin_writing()
        row = taken_over(self._session, key, value)
        facts = None if cost is None else Facts(row.generation, {}, cost)
        try:
            self._place_directly(key, row, only_absent, facts)
        except ArrayChestError:
            session.open_store().files.remove([value_name(row)])
            raise
        except OSError as error:
            raise SpillError(f"the value of key {key!r} could not be stored: {error}") from error

    def _place_directly(self, key: Any, row: Row, only_absent: bool, facts: Facts | None) -> bool:
        session = self._session
        with session.committer.committing() as store:
            with session.writer.lock:
                session.check_writable()
                wanted = not only_absent or session.index.find(key) is None
                unused = [value_name(row)]
                if wanted:
                    known = () if facts is None else (facts,)
                    unused = session.committer.place(store, [(key, row)], facts=known)
            store.files.remove(unused)
            store.catalog.database.raise_interrupt()
        return wanted
