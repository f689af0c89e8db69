"""What is known of values beside themselves: what they took to compute, how long they are good,
and what their arrays contain.
"""

from __future__ import annotations

import contextlib
from typing import Any

from arraychest.arrays.provenance import Origin
from arraychest.catalog.record import GENERATION, Cost
from arraychest.engine.commit import logger
from arraychest.engine.session import Session
from arraychest.errors import ArrayChestError

# Of so many stored values it is remembered that nobody writes to their files.
_MOST_NOT_IN_PLACE = 65_536


class ValueFacts:
    """What is known of the values of one chest.  Every method is safe from many threads.

    Digests of stored arrays are asked for and kept here; see `provenance.Source`.

    Parameters
    ----------
    session
        The chest's.

    Attributes
    ----------
    in_place_edits
        How many edits in place have begun here.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.in_place_edits = 0
        # By generation, the counter's word and `in_place_edits` as of which nobody had written into
        # its file.
        self._not_in_place: dict[int, tuple[int, int]] = {}

    def cost_of(self, key: Any) -> Cost | None:
        """What it took to compute a value; None if it is not there, or that is not known."""
        session = self._session
        changes = session.transactions.own()
        if changes is not None and key in changes:
            return changes.cost(key)
        with session.writer.lock:
            session.follow()
            slot = session.index.find(key)
            if slot is None:
                return None
            if slot.array is not None:
                return slot.cost
            raw, store = slot.raw, session.store
            if raw is None or store is None:
                return None
            return store.catalog.facts.of(raw[GENERATION]).cost

    def find_digest(self, generation: int, part: int) -> bytes | None:
        """What the catalog says that a stored array contains; None if it says nothing."""
        session = self._session
        with session.writer.lock, contextlib.suppress(OSError, ArrayChestError):
            if session.store is not None:
                return session.store.catalog.facts.of(generation).digests.get(part)
        return None

    def is_written_in_place(self, code: bytes, generation: int) -> bool:
        """Whether the file of this value of a key is written to, or may have been."""
        session = self._session
        store, begun = session.store, (session.counter.words[0], self.in_place_edits)
        if store is None:
            return True
        # Whoever begins to write into a file commits that; in a temporary chest it is this process.
        if self._not_in_place.get(generation) == begun and (store.tells or not session.forked):
            return False
        with session.writer.lock:
            store = session.store
            if store is None:
                return True
            try:
                session.follow()
                if store.catalog.facts.may_have_changed(code, generation):
                    return True
            except (OSError, ArrayChestError):
                return True
        if len(self._not_in_place) >= _MOST_NOT_IN_PLACE:
            self._not_in_place.clear()
        self._not_in_place[generation] = begun
        return False

    def record_digest(self, origin: Origin, digest: bytes) -> None:
        """Note what a stored array contains.  Says nothing where it may not."""
        session = self._session
        if session.no_puts or session.transactions.own() is not None:
            return
        try:
            with session.at_work(), session.committer.committing() as store:
                store.catalog.facts.add_digest(origin.code, origin.generation, origin.part, digest)
                store.catalog.database.raise_interrupt()
        except (OSError, ArrayChestError) as error:
            logger.debug("a digest was not recorded: %s", error)
