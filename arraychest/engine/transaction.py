"""Several changes as one: `Chest.transaction`, and an update of a chest that others may read.

What is put in a transaction goes straight to disk, where the catalog does not name it yet; at the
end one commit names it all.  Other threads, tasks and processes see nothing of it before, and
nothing is left of it after an exception or a crash.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any, Final

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.catalog.record import Cost, Facts, Pack, Row
from arraychest.engine.blocks import taken_over
from arraychest.engine.engine import Engine
from arraychest.errors import AbsentKeyError, ArrayChestError, SpillError
from arraychest.formats.compression import How
from arraychest.formats.form import Kind
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.memtable import BATCH_BYTES, BATCH_VALUES
from arraychest.sharing.contexts import current_context
from arraychest.sharing.interrupts import held_back
from arraychest.storage.file_names import pack_name, value_name
from arraychest.text import amount
from arraychest.values.accept import (
    OnPut,
    accept,
    array_to_keep,
    at_hand,
    freeze,
    freeze_handed_over,
)
from arraychest.values.keys import PLAIN_TYPES, encode_key

_DELETED: Final = object()
_SMALL: Final = object()


class Transaction:
    """The changes of one thread or task that are committed together.

    It belongs to the one that makes it: a task that this starts, or a thread to which it gives
    work, is another one.

    Parameters
    ----------
    tiers
        The chest's.

    Attributes
    ----------
    context
        Of the thread or task that it belongs to.
    has_ended
        Whether it was committed or rolled back.
    is_left
        Whether its block has ended: what its thread or task does now is no part of it.
    adopted
        Packs of another chest that rows lie in.
    """

    def __init__(self, engine: Engine) -> None:
        self.context: Context = current_context()
        self.has_ended = self.is_left = False
        self._process = os.getpid()
        self._engine = engine
        # By key: the row of what is written, `_SMALL` for what is not yet, or `_DELETED`.
        self._changes: dict[Any, Row | object] = {}
        self._small: dict[Any, tuple[np.ndarray | Tree, Kind]] = {}
        self._small_bytes = 0
        self._costs: dict[Any, Cost] = {}
        self._facts: dict[Any, Facts] = {}
        # Of each append to a pack, one row.
        self._appended: list[Row] = []
        self.adopted: list[Pack] = []

    # --- what its thread or task sees ----------------------------------------------------------

    def __contains__(self, key: Any) -> bool:
        """Whether the key was put or deleted in this transaction."""
        return key in self._changes

    def has(self, key: Any) -> bool:
        """Whether the key is there after what was done to it in this transaction."""
        return self._changes.get(key) is not _DELETED

    def get(self, key: Any) -> Any:
        """What was put, as `values.value_of` takes it; AbsentKeyError if the key was deleted."""
        if key in self._small:
            array, kind = self._small[key]
            return at_hand(array, kind, private=self._engine.session.options.mmap_mode == "c")
        row = self._changes[key]
        if not isinstance(row, Row):
            raise AbsentKeyError(key)
        return self._engine.session.open_store().loader.load(row, key)

    def cost(self, key: Any) -> Cost | None:
        """What it took to compute the value that was put; None if that is not known."""
        return self._costs.get(key)

    def row(self, key: Any) -> Row:
        """The row of a value that was put; raises AbsentKeyError if the key was deleted."""
        if key in self._small:
            self._append()
        row = self._changes[key]
        if not isinstance(row, Row):
            raise AbsentKeyError(key)
        return row

    def merged(self, stored: Iterable[Any], *, descending: bool) -> Iterator[Any]:
        """The keys of the chest as its thread or task sees them: new ones come last."""
        known = set()

        def there() -> Iterator[Any]:
            for key in stored:
                known.add(key)
                if self.has(key):
                    yield key

        if not descending:
            yield from there()
            yield from self._new(known)
            return
        before = list(there())
        yield from reversed(self._new(known))
        yield from before

    def _new(self, known: set[Any]) -> list[Any]:
        """The keys that were put, apart from these."""
        changes = self._changes.items()
        return [key for key, row in changes if row is not _DELETED and key not in known]

    # --- changes -------------------------------------------------------------------------------

    def put(
        self,
        key: Any,
        value: Any,
        compression: How | None = None,
        cost: Cost | None = None,
        on_put: OnPut | None = None,
    ) -> None:
        """Write a value; the rest is as `Putter.put_any` takes it.

        Raises
        ------
        ValueTypeError, KeyTypeError, SpillError
            The key has the value it had, and the transaction goes on.
        """
        engine = self._engine
        if type(value) is BlockedArray:
            self.put_row(key, taken_over(engine.session, key, value))
            if cost is not None:
                self._costs[key] = cost
            return
        array, kind, _ = accept(value, engine.session.options.own)
        if type(key) not in PLAIN_TYPES:
            encode_key(key)
        on_put = on_put or engine.session.options.on_put
        if array.nbytes < PACK_THRESHOLD and kind != "pickle":
            kept = array if kind in ("scalar", "dump") else array_to_keep(array, on_put)
            freeze(kept)
            self._forget(key)
            if cost is not None:
                self._costs[key] = cost
            self._changes[key] = _SMALL
            self._small[key] = kept, kind
            self._small_bytes += array.nbytes
            with engine.session.writer.lock:
                engine.session.resident.hold(self, key, kept)
                # Others get no room by waiting for what lies here.
                most = min(BATCH_BYTES, engine.session.budget.bytes // 8)
                if engine.session.resident.charged > engine.session.budget.bytes:
                    most = 0
                engine.session.writer.put_noted()
            if self._small_bytes >= most or len(self._small) >= BATCH_VALUES:
                self._append()
            return
        row = engine.session.saver.write_directly(key, array, kind, compression)
        self.put_row(key, row)
        if cost is not None:
            self._costs[key] = cost
        if on_put == "freeze" and kind != "scalar":
            freeze_handed_over(array)

    def put_row(self, key: Any, row: Row, facts: Facts | None = None) -> None:
        """Take over a value that is written, and what is known of it."""
        self._forget(key)
        self._changes[key] = row
        if facts is not None:
            self._facts[key] = facts

    def delete(self, key: Any) -> None:
        """Delete a key that is there."""
        self._forget(key)
        self._changes[key] = _DELETED

    def _forget(self, key: Any) -> None:
        """Undo what was done to a key before."""
        old = self._changes.get(key)
        self._costs.pop(key, None)
        self._facts.pop(key, None)
        if isinstance(old, Row) and old.pack is None:
            self._engine.session.open_store().files.remove([value_name(old)])
        small = self._small.pop(key, None)
        if small is not None:
            self._small_bytes -= small[0].nbytes
            self._uncharge([key])

    def _uncharge(self, keys: Iterable[Any]) -> None:
        engine = self._engine
        with engine.session.writer.lock:
            engine.session.resident.let_go(self, keys)
            engine.session.writer.changed.notify_all()

    def _append(self) -> None:
        """Write the small values to a pack."""
        if not self._small:
            return
        keys = list(self._small)
        arrays = [array for array, _ in self._small.values()]
        kinds = [kind for _, kind in self._small.values()]
        try:
            rows = self._engine.session.saver.append_directly(keys, arrays, kinds)
        except ArrayChestError:
            raise
        except OSError as error:
            raise SpillError(
                f"{amount(len(keys), 'value')} could not be stored: {error}"
            ) from error
        self._appended.append(rows[0])
        self._small.clear()
        self._small_bytes = 0
        self._changes.update(zip(keys, rows, strict=True))
        self._uncharge(keys)

    # --- the end -------------------------------------------------------------------------------

    def commit(self) -> None:
        """Commit everything.

        Raises
        ------
        SpillError, ClosedChestError, ReadOnlyChestError
            Nothing of it was committed, and nothing is left of it.
        """
        with held_back():
            self._commit()

    def _commit(self) -> None:
        engine = self._engine
        if os.getpid() != self._process:
            return  # in a forked child: it is its parent's to commit
        # After an interrupt too: what came of the commit is then for the next writer to see.
        remove = True
        try:
            with engine.session.at_work():
                self._append()
                if not self._changes:
                    return
                with engine.session.committer.committing() as store:
                    rows = [(k, row) for k, row in self._changes.items() if isinstance(row, Row)]
                    facts = [
                        Facts(row.generation, {}, self._costs[key])
                        for key, row in rows
                        if key in self._costs
                    ]
                    facts += [self._facts[key] for key, _ in rows if key in self._facts]
                    deleted = [key for key, row in self._changes.items() if row is _DELETED]
                    # A quota that refuses is asked by the commit itself.
                    if engine.session.room.evicts:
                        engine.session.room.evict(store, sum(row.stored for _, row in rows))
                    with engine.session.writer.lock:
                        engine.session.check_writable()
                        remove = False
                        unused = engine.session.committer.place(
                            store, rows, deleted=deleted, adopted=self.adopted, facts=facts
                        )
                    store.files.remove(unused)
                    store.catalog.database.raise_interrupt()
        except ArrayChestError:
            remove = True
            raise
        except OSError as error:
            remove = True
            raise SpillError(f"the transaction could not be committed: {error}") from error
        finally:
            self._end(remove=remove)

    def roll_back(self) -> None:
        """Leave nothing of it."""
        with held_back():
            self._end(remove=True)

    def _end(self, *, remove: bool) -> None:
        self.has_ended = True
        if os.getpid() != self._process:
            return  # all of it is the parent's
        self._uncharge(self._small)
        if self._changes or self._appended:
            store = self._engine.session.open_store()
            if remove:
                rows = [row for row in self._changes.values() if isinstance(row, Row)]
                names = [value_name(row) for row in rows if row.pack is None]
                store.files.remove([*names, *[pack_name(each.id) for each in self.adopted]])
            for row in self._appended:
                store.packs.settled([row])
        self._changes.clear()
        self._small.clear()
        self._appended.clear()


@contextlib.contextmanager
def changes_of(engine: Engine) -> Iterator[Transaction]:
    """The transaction that the thread or task is in, or one of its own for this change."""
    outer = engine.own_changes()
    if isinstance(outer, Transaction):
        yield outer
        return
    changes = Transaction(engine)
    try:
        yield changes
        changes.commit()
    except BaseException:
        changes.roll_back()
        raise


@contextlib.contextmanager
def changing(
    engine: Engine, look_up_in: Callable[[dict[Any, Any]], object]
) -> Iterator[Transaction]:
    """As `changes_of`, where gets of the thread or task see the transaction; see `Chest`.

    Parameters
    ----------
    look_up_in
        Told where the chest may look values up without asking the engine: in nothing as long as
        anybody is in a transaction.
    """
    session = engine.session
    outer = engine.own_changes()
    if isinstance(outer, Transaction):
        yield outer
        if outer.has_ended:
            raise RuntimeError(
                "expected a transaction to end before the one that it is part of, found that "
                "the other one ended first"
            )
        return
    changes = Transaction(engine)
    try:
        try:
            with session.writer.lock:
                engine.begin_changes(changes)
                # Each get asks from here on whether it is in a transaction.
                look_up_in({})
            yield changes
        finally:
            # First, and without a call, in front of which an interrupt could come.
            changes.is_left = True
            with session.writer.lock:
                if session.transactions.end(changes):
                    look_up_in(session.index.slots)
        changes.commit()
    except BaseException:
        # Of what was committed nothing is left to do.
        changes.roll_back()
        raise
