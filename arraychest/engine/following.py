"""Keeping up with what other processes commit to the same chest.

Each commit names the keys it changed (table ``change``), and moves the commit counter.  Whoever
sees the counter moved reads the changes since it last did, and corrects what it knows of these
keys; one that has missed too many forgets all that it can look up again.
"""

from __future__ import annotations

import time
from typing import Any

from arraychest.catalog.record import EXACT, GENERATION, KEY, SEQ, RawRow
from arraychest.engine.deletions import Deletions
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Slot
from arraychest.storage.store import Store
from arraychest.values.keys import PLAIN_TYPES, decode_key, encode_key

# While a commit of another process is under way its changes may be looked for once in so long, in
# seconds.  They are there only if it died between its commit and saying so.
_PROBE_SECONDS = 0.001


class Follower:
    """Brings what a chest knows in memory up to what others have committed.

    Parameters
    ----------
    index, resident
        The chest's.
    deletions
        The chest's deleted slots whose rows are still in the catalog.
    """

    def __init__(self, index: Index, resident: Pool, deletions: Deletions) -> None:
        self._index = index
        self._resident = resident
        self._deletions = deletions
        self._probe_at = 0.0

    def follow(self, store: Store, *, alone: bool = False) -> bool:
        """Note what was committed since the last call; returns whether anything was.

        Called under the chest's lock.  One statement to SQLite, and some 2 us a changed key.

        Parameters
        ----------
        alone
            Whether nobody else can be committing: a commit under way is one whose writer died.

        Raises
        ------
        OSError, ChestFormatError
            The catalog cannot be read; what was known stays.
        """
        counter = store.counter
        word = counter.words[0]
        if word == counter.seen_word:
            return False
        if word >> 1 <= counter.seen and word & 1 and not alone:
            now = time.monotonic()
            if now < self._probe_at:
                return False
            self._probe_at = now + _PROBE_SECONDS
        catalog = store.catalog
        catalog.database.end_snapshot()
        last, changed = catalog.changes.since(counter.seen, catalog.changes.session)
        if changed is None:
            self.forget()
        elif changed:
            self._correct(changed)
        if changed is None or changed:
            store.packs.reread()
            self._index.others_committed()
        # Not `word`: where a commit is under way, it may be over without a sign.
        counter.saw(last)
        return changed is None or bool(changed)

    def _correct(self, codes: list[bytes]) -> None:
        """Look these keys up again."""
        index = self._index
        found = {raw[KEY]: raw for raw in index.stored.find_all(codes)}
        keys = {}
        for code in codes:
            raw = found.get(code)
            try:
                keys[code] = decode_key(code, None if raw is None else raw[EXACT])
            except ValueError:
                # No key that can be told without its row, or a stranger's.
                self.forget()
                return
        index.give_slots_to(keys.values())
        for code, key in keys.items():
            raw = found.get(code)
            if self._correct_deleted(key, raw):
                continue
            slot = index.slots.get(key)
            if slot is not None:
                self._correct_slot(slot, raw, changed=True)
            elif raw is None:
                index.drop_row(key)
            elif key in index.rows or index.complete:
                index.note_row(key, raw)

    def _correct_slot(self, slot: Slot, raw: RawRow | None, *, changed: bool = False) -> None:
        """Note the row that a slot's key has; `changed`: somebody did something to the key."""
        old, slot.raw = slot.raw, raw
        if slot in self._resident.inherited and (
            changed if raw is None else old is None or old[GENERATION] != raw[GENERATION]
        ):
            # The parent has stored it, or something newer is there.
            self._resident.remove(slot)
            slot.value = slot.view = None
        if raw is None:
            if slot.array is None:
                # Deleted by somebody else.
                slot.value = slot.view = None
                slot.version = -1
                self._index.delete(slot)
            return
        slot.seq = raw[SEQ]
        if slot.array is None and (old is None or old[GENERATION] != raw[GENERATION]):
            slot.value = slot.view = None

    def _correct_deleted(self, key: Any, raw: RawRow | None) -> bool:
        """Whether the row belongs to a slot that was deleted here, and not to what was put since.

        That has a row of its own only with or after the commit of the deletion.
        """
        index = self._index
        if key not in index.tombstones:
            return False
        is_theirs = True
        deleted = self._deletions.of_keys((key,))
        if not deleted and raw is not None and key not in index.slots and key not in index.rows:
            # Deleted while it was written for the first time: the deletion is of this row, too.
            # Otherwise whoever puts the key again would replace a row that nobody here knows of.
            self._deletions.add(Slot(key, raw[SEQ], raw))
            return True
        for slot in deleted:
            if raw is not None and slot in self._deletions.inherited:
                # The parent's deletion is not of what was stored since.
                is_theirs = slot.raw is not None and slot.raw[GENERATION] == raw[GENERATION]
            slot.raw = raw
            if raw is None or not is_theirs:
                del self._deletions.waiting[slot]
                if slot.writing < 0:
                    self._deletions.end(slot)
        return bool(deleted) and is_theirs

    def forget(self) -> None:
        """Forget what can be looked up again, and look the rest up."""
        index = self._index
        index.settle_all()
        for slot in list(index.slots.values()):
            if slot.array is None and slot.key not in index.tombstones:
                index.forget(slot)
        index.forget_rows()
        # What is left of them a user still holds, or was put anew: to be looked up again, too.
        for key in list(index.rows):
            index.find(key)
        left = dict.fromkeys([*index.slots, *index.tombstones])
        codes = {key: encode_key(key).canonical for key in left}
        found = {raw[KEY]: raw for raw in index.stored.find_all(list(codes.values()))}
        for key, code in codes.items():
            raw = found.get(code)
            if raw is None and type(key) not in PLAIN_TYPES:
                raw = index.stored.find(key)  # of an equal key with another code
            if not self._correct_deleted(key, raw) and key in index.slots:
                self._correct_slot(index.slots[key], raw)
