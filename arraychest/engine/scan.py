"""Which keys a chest has, and in which order: from memory and from the catalog together."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from arraychest.catalog.record import Row
from arraychest.engine.session import Session
from arraychest.errors import AbsentKeyError, CorruptEntryError
from arraychest.values.keys import decode_key


class Scan:
    """The keys of one chest.  Every method is safe from many threads.

    Parameters
    ----------
    session
        The chest's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def contains(self, key: Any) -> bool:
        """Whether the chest has the key.  Reads no value."""
        session = self._session
        changes = session.transactions.own()
        if changes is not None and key in changes:
            return changes.has(key)
        with session.writer.lock:
            session.follow()
            index = session.index
            if index.hidden and key in index.hidden:
                return False
            return key in index.rows or key in session.resident.fresh or index.find(key) is not None

    def stored_row(self, key: Any) -> Row | None:
        """The row of a value that is stored, and not in RAM; None if there is no such."""
        with self._session.writer.lock:
            return self.stored_row_now(key)

    def stored_row_now(self, key: Any) -> Row | None:
        """As `stored_row`, called under the lock."""
        session = self._session
        session.follow()
        slot = session.index.find(key)
        return None if slot is None or slot.array is not None else slot.row

    def count(self) -> int:
        """Number of keys.  O(1), but O(n) the first time in a chest that was reopened."""
        session = self._session
        if session.transactions.own() is not None:
            return sum(1 for _ in self.keys())
        with session.writer.lock:
            session.check_open()
            session.follow()
            if session.index.is_counted:
                return session.order.count(()) - len(session.index.hidden)
        # No commit is under way under this lock, so that each row has been noted on its slot.
        with session.committer.commit_lock, session.writer.lock:
            session.check_open()
            session.follow()
            return session.order.count(session.committer.deletions.waiting) - len(
                session.index.hidden
            )

    def keys(self, *, descending: bool = False) -> Iterator[Any]:
        """The keys in the order of insertion, while others change the chest.

        A key that is there throughout comes exactly once; one put or deleted meanwhile may or
        may not come.  Reads no value; memory is O(keys that the chest has met).
        """
        changes = self._session.transactions.own()
        stored = self._all_keys(descending)
        return stored if changes is None else changes.merged(stored, descending=descending)

    def _all_keys(self, descending: bool) -> Iterator[Any]:
        keys = self._known_and_stored_keys(descending)
        hidden = self._session.index.hidden
        return (key for key in keys if key not in hidden) if hidden else keys

    def _known_and_stored_keys(self, descending: bool) -> Iterator[Any]:
        session = self._session
        with session.writer.lock:
            session.check_open()
            session.follow()
            if session.index.complete:
                return iter(session.order.known_keys(descending=descending))
            unsaved = session.order.unsaved_keys(descending=descending)
        return self._merged(unsaved, descending)

    def last_key(self) -> Any:
        """The key that was inserted last; raises AbsentKeyError if there is none."""
        session = self._session
        with session.writer.lock:
            session.check_open()
            session.follow()
            if session.index.complete and session.transactions.own() is None:
                with contextlib.suppress(StopIteration):
                    return session.order.last_known_key()
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
        session = self._session
        at = (1 << 62) if descending else 0
        while True:
            with session.writer.lock:
                page = session.index.stored.page(at, descending=descending)
                # As of the page: once a deletion is committed, its tombstone goes.
                deleted = session.order.deleted()
            if not page:
                return
            at = page[-1][0]
            for seq, canonical, exact in page:
                try:
                    key = decode_key(canonical, exact)
                except ValueError as error:
                    raise CorruptEntryError(f"catalog of {session.path}: {error}") from error
                if key not in deleted or deleted[key] == seq:
                    yield seq, key
