"""Which keys the chest has: what it knows in memory, and the catalog for what it does not.

A key that the chest has met since it was opened is in one of three places:

- ``resident.fresh``: a small value that was just put, in no batch yet; the catalog may have another
  one of this key;
- ``rows``: it goes through without a slot.  A batch that waits or is being written, or the
  catalog's row of what is stored;
- ``slots``: somebody has asked for it, and it has a slot.

All other keys are looked up in the catalog, unless the index is known to be complete: a chest of a
million entries opens without reading them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np

from arraychest.arrays.ownership import is_held
from arraychest.catalog.catalog import Catalog
from arraychest.catalog.record import EXACT, GENERATION, KEY, SEQ, RawRow, Row
from arraychest.errors import ClosedChestError, CorruptEntryError
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Batch, Slot
from arraychest.memory.stored_keys import StoredKeys
from arraychest.values.keys import decode_key

# Stored values that are known in memory, with a slot (some 300 bytes each, beside the row's 400) or
# as a row.  Beyond it those that hold nothing are forgotten, and found again in the catalog.
MAX_KNOWN = 1 << 19

# Values in one batch at most, by number and by bytes.  Large enough that its commit (some 100 us,
# and the rewriting of the catalog's pages that its keys fall on) does not show, small enough that a
# crash or a full disk loses little work.
BATCH_VALUES = 8192
BATCH_BYTES = 8 << 20

# Fresh values at most: to make batches of so many takes some 10 ms.
_MOST_FRESH = 1 << 16

# Fewer fresh values than this are given slots where they could be made a batch: one by one, each
# would be written and committed alone.
_FEW = 1024

# Places in the order of insertion that are taken at once.  What several processes put at the same
# time comes in the order of such blocks; what one puts after it saw the other's, behind that.
_PLACES = 1 << 20


class Index:
    """The keys of one chest.  Every method is called under the chest's lock.

    Parameters
    ----------
    resident
        The values in RAM.
    returnable
        Whether a get may return the very array that was put.
    loading
        Slots that must stay though they hold nothing.

    Attributes
    ----------
    stored
        Looks keys up in the catalog.
    slots, rows
        See above; each key is in one of the two at most.
    tombstones
        Keys whose entry in the catalog does not count: deleted, and not yet committed so.  The
        number is how many such deletions are under way.
    puts
        Counts puts, and goes on where the catalog's order of insertion ends: a new key's place in
        that order is the number of its put.
    complete
        Whether every entry of the catalog is known here.
    hidden
        Keys whose values have expired, in a chest that may not delete them.
    hits
        Gets that were answered by slots that are gone.
    counted, is_counted
        Number of keys, apart from the fresh ones, and whether it is that of all: what a reopened
        catalog holds is counted when it is asked for (`KeyOrder.count`).
    in_order
        Whether the slots were added in the order of their places.
    last_place
        Places up to this one are ours to give.
    take_places
        Takes places in the order of insertion that nobody else gets, above a number: returns the
        first of as many as asked for; set by the chest where others put, too.
    """

    def __init__(self, resident: Pool, *, returnable: bool, loading: Collection[Slot] = ()) -> None:
        self.slots: dict[Any, Slot] = {}
        self.rows: dict[Any, RawRow | Batch] = {}
        self.tombstones: dict[Any, int] = {}
        self.hidden: set[Any] = set()
        self.puts = 0
        self.complete = True
        self._loading = loading
        self.hits = 0
        self.take_places: Callable[[int, int], int] = lambda least, _: least + 1
        self.last_place = 0
        self.resident = resident
        self.stored = StoredKeys()
        self._returnable = returnable
        # Arrays that were stored from `rows` and that a user may still hold.
        self._views: dict[Any, ref[np.ndarray]] = {}
        self._closed = False
        self.counted = 0
        self.is_counted = self.in_order = True
        # The highest place of a slot.
        self._highest = 0
        self._most_known = MAX_KNOWN
        # Whether no slot may be forgotten.
        self._holding = False

    def attach(self, catalog: Catalog, *, empty: bool) -> None:
        """Look keys up in this catalog from now on."""
        self.stored.catalog = catalog
        self.complete = self.is_counted = empty

    def close(self) -> None:
        """Forget everything; whoever asks from now on is told that the chest is closed."""
        self._closed = True
        self.stored.catalog = None
        self.slots.clear()
        self.rows.clear()
        self._views.clear()
        self.tombstones.clear()

    # --- finding ---------------------------------------------------------------------------

    def find(self, key: Any) -> Slot | None:
        """The slot of a key, which is given one if it has none; None if there is no such key.

        Raises
        ------
        ClosedChestError, CorruptEntryError
        """
        if self.hidden and key in self.hidden:
            return None
        slot = self.slots.get(key)
        if slot is not None:
            return slot
        if key in self.resident.fresh:
            self.cut_fresh()
            if key in self.slots:
                return self.slots[key]
        known = self.rows.get(key)
        if known is not None:
            if isinstance(known, Batch):
                self.give_slots(known)
                return self.slots[key]
            return self._remember(known, key, self._views.get(key))
        if self._closed:
            raise ClosedChestError("the chest is closed")
        if self.complete or key in self.tombstones:
            return None
        raw = self.stored.find(key)
        if raw is None:
            return None
        slot = self._remember(raw, key)
        for ahead in self.stored.next_rows(raw):
            self._know(ahead)
        return slot

    def _know(self, raw: RawRow) -> None:
        """Note the row of a key that nobody has asked for."""
        if len(self.rows) >= self._most_known:
            self.forget_rows()
        # One that cannot be decoded is reported when it is asked for.
        with contextlib.suppress(ValueError):
            key = decode_key(raw[KEY], raw[EXACT])
            if not (
                key in self.slots
                or key in self.rows
                or key in self.resident.fresh
                or key in self.tombstones
            ):
                self.rows[key] = raw

    def _remember(self, raw: RawRow, key: Any, view: Callable[[], Any] | None = None) -> Slot:
        """Make a slot of a row, which needs no place among `rows` from then on."""
        if type(key) is not str or raw[EXACT] is not None:
            try:
                key = decode_key(raw[KEY], raw[EXACT])
            except ValueError as error:
                raise CorruptEntryError(f"catalog row of key {key!r}: {error}") from error
        if len(self.slots) >= self._most_known and not self._holding:
            # Before the new one comes: its caller counts on finding it here.
            self._forget_idle()
            # Looking through all of them must not happen at every new one when few are idle.
            self._most_known = max(MAX_KNOWN, 2 * len(self.slots))
        slot = Slot(key, raw[SEQ], raw)
        slot.view = view
        self._note_order(slot.seq, slot.seq)
        # An interrupt comes behind a call: of these two both are done, or none.
        self.slots[key] = slot
        self.rows.pop(key, None)
        self._views.pop(key, None)
        return slot

    def _note_order(self, first: int, last: int) -> None:
        """Slots of these places have been added."""
        if first < self._highest:
            self.in_order = False
        self._highest = max(self._highest, last)

    def slot_for_put(self, key: Any) -> tuple[Slot, bool]:
        """The slot of a key, and whether it is a new one, which `add` puts in the index."""
        slot = self.find(key)
        if slot is not None:
            return slot, False
        # What was put before has the lower numbers.
        if len(self.resident.fresh) < _FEW:
            self.settle()
        else:
            self.cut_fresh()
        return Slot(key, self.next_places(1), None), True

    def add(self, slot: Slot) -> None:
        """Put a new slot in the index."""
        self.slots[slot.key] = slot
        self._note_order(slot.seq, slot.seq)
        self.counted += 1

    def rename(self, slot: Slot, key: Any) -> None:
        """Give a slot another key that equals its own."""
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
            self.slots[key] = slot
            self.in_order = False
        slot.key = key

    def delete(self, slot: Slot) -> None:
        """Take a slot out whose key is deleted."""
        del self.slots[slot.key]
        self.counted -= 1
        self.hits += slot.hits

    # --- values without slots ----------------------------------------------------------------

    def may_be_fresh(self, key: Any) -> bool:
        """Whether a small value of a key that has no slot can do without one."""
        return len(self.resident.fresh) < _MOST_FRESH and key not in self.rows

    def cut_fresh(self) -> None:
        """Make batches of everything fresh."""
        while self.resident.fresh:
            self._cut(BATCH_BYTES)

    def _cut(self, most_bytes: int) -> Batch:
        """Make a batch of the oldest fresh values.

        Whether they overwrite stored ones is not asked when they are put, but here for all at once,
        which takes a quarter of the time of as many single look-ups.
        """
        resident = self.resident
        keys, arrays = resident.oldest_fresh(most_bytes, BATCH_VALUES)
        # First what may fail: the values are safe where they are.
        replaced: dict[Any, RawRow] = {}
        if not self.complete:
            replaced = self.stored.of_keys([key for key in keys if key not in self.tombstones])
        resident.drop_fresh(keys)
        if replaced:
            # A key stays as it was when it was first put.
            first = {key: key for key in replaced}
            keys = [first.get(key, key) for key in keys]
        batch = Batch(keys, arrays, self.next_places(len(keys)), replaced)
        self.counted += len(keys) - len(replaced)
        resident.add_batch(batch)
        self.rows.update(dict.fromkeys(keys, batch))
        return batch

    def next_batch(self, most_bytes: int) -> Batch | None:
        """The oldest batch that no writer has, made of fresh values if need be; marks it so."""
        found = next((batch for batch in self.resident.batches if not batch.writing), None)
        if found is None and self.resident.fresh:
            found = self._cut(min(most_bytes, BATCH_BYTES))
        if found is not None:
            found.writing = True
        return found

    def oldest_batch(self) -> float:
        """When the first value of what `next_batch` returns was put; infinite if there is none."""
        for batch in self.resident.batches:
            if not batch.writing:
                return batch.first
        return self.puts + 1 if self.resident.fresh else math.inf

    def settle(self) -> None:
        """Give the fresh values slots."""
        while self.resident.fresh:
            self.give_slots(self._cut(BATCH_BYTES))

    def settle_all(self) -> None:
        """Give every value in RAM a slot."""
        for batch in list(self.resident.batches):
            self.give_slots(batch)
        self.settle()

    def give_slots(self, batch: Batch) -> None:
        """Give the values of a batch slots."""
        slots = []
        writing, replaced = batch.writing, batch.replaced
        places = batch.places
        for key, array, number, place in zip(
            batch.keys, batch.arrays, batch.numbers, places, strict=True
        ):
            slot = Slot(key, place, replaced.get(key))
            slot.version = number
            slot.array = array
            if self._returnable:
                slot.value = array
            if writing:
                slot.writing = number
            slots.append(slot)
        self.resident.forget_batch(batch)
        self.resident.add_slots(slots)
        self.slots.update(zip(batch.keys, slots, strict=True))
        if replaced:
            self.in_order = False
        self._note_order(batch.numbers[0], max(places))
        for key in batch.keys:
            del self.rows[key]
        batch.slots = slots

    def publish(self, batch: Batch, rows: list[RawRow]) -> None:
        """The values of a batch without slots were committed: keep their rows only."""
        arrays = batch.arrays
        self.resident.forget_batch(batch)
        self.resident.release(arrays)
        batch.stored = True
        held = is_held(arrays)
        if any(held):
            views = map(ref, itertools.compress(arrays, held))
            self._views.update(zip(itertools.compress(batch.keys, held), views, strict=True))
        self.rows.update(zip(batch.keys, rows, strict=True))
        if len(self.rows) > self._most_known:
            self.forget_rows()
            self._most_known = max(MAX_KNOWN, 2 * len(self.rows))

    def moved(self, rows: Sequence[Row], to: dict[int, Row]) -> None:
        """Compaction has moved values, named by generation: note the rows that say where to."""
        for row in rows:
            key = decode_key(row.key, row.exact)
            slot, known = self.slots.get(key), self.rows.get(key)
            if slot is not None and slot.raw is not None:
                slot.raw = to.get(slot.raw[GENERATION], slot.raw)
            elif isinstance(known, Batch):
                if key in known.replaced:
                    old = known.replaced[key]
                    known.replaced[key] = to.get(old[GENERATION], old)
            elif known is not None:
                self.rows[key] = to.get(known[GENERATION], known)

    # --- what others commit ------------------------------------------------------------------

    def others_committed(self) -> None:
        """Other processes have changed what is stored; what is known here was corrected."""
        self.is_counted = self.in_order = False
        # Whatever is new from here on comes behind what they have put.
        self.last_place = self.puts

    def give_slots_to(self, keys: Iterable[Any]) -> None:
        """Give those of these keys slots whose values are in RAM."""
        for key in keys:
            if key in self.resident.fresh:
                self.settle()
            known = self.rows.get(key)
            if isinstance(known, Batch):
                self.give_slots(known)

    def note_row(self, key: Any, raw: RawRow) -> None:
        """Know what is stored of a key that has no slot."""
        old = self.rows.get(key)
        if old is None or isinstance(old, Batch) or old[GENERATION] != raw[GENERATION]:
            self._views.pop(key, None)
        self.rows[key] = raw
        if len(self.rows) > self._most_known:
            self.forget_rows()

    def drop_row(self, key: Any) -> None:
        """Somebody else has deleted a key that has no slot."""
        self.rows.pop(key, None)
        self._views.pop(key, None)

    def next_places(self, count: int) -> int:
        """The first of `count` new places in the order of insertion."""
        if self.puts + count > self.last_place:
            taken = max(count, _PLACES)
            self.puts = self.take_places(self.puts, taken) - 1
            self.last_place = self.puts + taken
        first = self.puts + 1
        self.puts += count
        return first

    # --- forgetting --------------------------------------------------------------------------

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Forget no slot meanwhile: whoever looks up many at once counts on the first ones, too."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def _forget_idle(self) -> None:
        """Forget the slots that hold nothing but what the catalog knows."""
        for slot in list(self.slots.values()):
            if (
                slot.array is None
                and slot.value is None
                and slot.raw is not None
                # Put anew since it was deleted, and the deletion is not committed yet.
                and slot.key not in self.tombstones
                and (slot.view is None or slot.view() is None)
                and slot not in self._loading
            ):
                self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Leave a slot's key to the catalog."""
        self.complete = False
        self.hits += slot.hits
        self.slots.pop(slot.key, None)

    def forget_rows(self) -> None:
        """Forget what is known of stored values without a slot."""
        self.complete = False
        self._views = {key: view for key, view in self._views.items() if view() is not None}
        self.rows = {
            key: row
            for key, row in self.rows.items()
            if isinstance(row, Batch) or key in self._views or key in self.tombstones
        }

    # --- counting and iterating ----------------------------------------------------------------
