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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np

from arraychest.arrays.ownership import is_held
from arraychest.catalog.catalog import Catalog
from arraychest.catalog.record import EXACT, GENERATION, KEY, SEQ, RawRow, Row
from arraychest.errors import ArrayChestError, ClosedChestError, CorruptEntryError
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Batch, Slot
from arraychest.values.keys import decode_key, encode_key, equals, lookup_of, marked_codes

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

# Rows read with one that was asked for after its neighbour.
_READ_AHEAD = 64

# Entries that one step of an iteration reads from the catalog.
_PAGE = 1024

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

    Attributes
    ----------
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
    pinned
        Says of a slot whether it must stay though it holds nothing; set by the chest.
    hidden
        Keys whose values have expired, in a chest that may not delete them.
    hits
        Gets that were answered by slots that are gone.
    take_places
        Takes places in the order of insertion that nobody else gets, above a number: returns the
        first of as many as asked for; set by the chest where others put, too.
    """

    def __init__(self, resident: Pool, *, returnable: bool) -> None:
        self.slots: dict[Any, Slot] = {}
        self.rows: dict[Any, RawRow | Batch] = {}
        self.tombstones: dict[Any, int] = {}
        self.hidden: set[Any] = set()
        self.puts = 0
        self.complete = True
        self.pinned: Callable[[Slot], bool] = lambda _: False
        self.hits = 0
        self.take_places: Callable[[int, int], int] = lambda least, _: least + 1
        # Places up to this one are ours to give.
        self._last_place = 0
        self._resident = resident
        self._returnable = returnable
        # Arrays that were stored from `rows` and that a user may still hold.
        self._views: dict[Any, ref[np.ndarray]] = {}
        self._catalog: Catalog | None = None
        self._closed = False
        # Number of keys, apart from the fresh ones; without what a reopened catalog held until it
        # is asked for, see `count`.
        self._count = 0
        self._counted = True
        # Whether the slots were added in the order of their places, and the highest of these.
        self._in_order = True
        self._highest = 0
        # The place of the row that was looked up last.
        self._last_found = -1
        self._most_known = MAX_KNOWN
        # Whether no slot may be forgotten.
        self._holding = False

    def attach(self, catalog: Catalog, *, empty: bool) -> None:
        """Look keys up in this catalog from now on."""
        self._catalog = catalog
        self.complete = self._counted = empty

    def close(self) -> None:
        """Forget everything; whoever asks from now on is told that the chest is closed."""
        self._closed = True
        self._catalog = None
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
        if key in self._resident.fresh:
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
        if self.complete or key in self.tombstones or self._catalog is None:
            return None
        if type(key) is str:
            raw = self._catalog.find(b"s" + key.encode("utf-8", "surrogatepass"))
        else:
            raw = self.stored_row(key)
        if raw is None:
            return None
        slot = self._remember(raw, key)
        # Whoever asks in the order of insertion is about to ask for the next ones: a row of a
        # group costs a quarter of a look-up.
        if raw[SEQ] == self._last_found + 1:
            self._read_ahead(raw[SEQ])
        else:
            self._last_found = raw[SEQ]
        return slot

    def stored_row(self, key: Any) -> RawRow | None:
        """The catalog's row of a key that equals this one, which may be of any type."""
        assert self._catalog is not None
        lookup = lookup_of(key)
        if lookup is None:
            return None
        raw = self._catalog.find(lookup.canonical)
        if raw is not None and (lookup.is_certain or self._is_row_of(raw, key)):
            return raw
        if lookup.group is None:
            return None
        others = self._catalog.find_between(*marked_codes(lookup.group))
        if lookup.canonical != lookup.group:
            raw = self._catalog.find(lookup.group)
            others = others if raw is None else [raw, *others]
        return next((raw for raw in others if self._is_row_of(raw, key)), None)

    @staticmethod
    def _is_row_of(raw: RawRow, key: Any) -> bool:
        try:
            return equals(decode_key(raw[KEY], raw[EXACT]), key)
        except CorruptEntryError as error:
            raise CorruptEntryError(f"catalog row of key {key!r}: {error}") from error

    def _read_ahead(self, seq: int) -> None:
        assert self._catalog is not None
        if len(self.rows) >= self._most_known:
            self.forget_rows()
        slots, rows, tombstones = self.slots, self.rows, self.tombstones
        fresh = self._resident.fresh
        try:
            ahead = self._catalog.rows_after(seq, _READ_AHEAD)
        except (ArrayChestError, OSError):
            return  # told when one of them is asked for
        for raw in ahead:
            self._last_found = raw[SEQ]
            # One that cannot be decoded is reported when it is asked for.
            with contextlib.suppress(ValueError):
                key = decode_key(raw[KEY], raw[EXACT])
                if not (key in slots or key in rows or key in fresh or key in tombstones):
                    rows[key] = raw

    def has_slot_or_row(self, key: Any) -> bool:
        """Whether `find` has no values in RAM to give slots first."""
        return key not in self._resident.fresh and not isinstance(self.rows.get(key), Batch)

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
            self._in_order = False
        self._highest = max(self._highest, last)

    def slot_for_put(self, key: Any) -> tuple[Slot, bool]:
        """The slot of a key, and whether it is a new one, which `add` puts in the index."""
        slot = self.find(key)
        if slot is not None:
            return slot, False
        # What was put before has the lower numbers.
        if len(self._resident.fresh) < _FEW:
            self.settle()
        else:
            self.cut_fresh()
        return Slot(key, self.next_places(1), None), True

    def add(self, slot: Slot) -> None:
        """Put a new slot in the index."""
        self.slots[slot.key] = slot
        self._note_order(slot.seq, slot.seq)
        self._count += 1

    def rename(self, slot: Slot, key: Any) -> None:
        """Give a slot another key that equals its own."""
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
            self.slots[key] = slot
            self._in_order = False
        slot.key = key

    def delete(self, slot: Slot) -> None:
        """Take a slot out whose key is deleted."""
        del self.slots[slot.key]
        self._count -= 1
        self.hits += slot.hits

    # --- values without slots ----------------------------------------------------------------

    def may_be_fresh(self, key: Any) -> bool:
        """Whether a small value of a key that has no slot can do without one."""
        return len(self._resident.fresh) < _MOST_FRESH and key not in self.rows

    def cut_fresh(self) -> None:
        """Make batches of everything fresh."""
        while self._resident.fresh:
            self._cut(BATCH_BYTES)

    def _cut(self, most_bytes: int) -> Batch:
        """Make a batch of the oldest fresh values.

        Whether they overwrite stored ones is not asked when they are put, but here for all at once,
        which takes a quarter of the time of as many single look-ups.
        """
        resident = self._resident
        keys, arrays = resident.oldest_fresh(most_bytes, BATCH_VALUES)
        # First what may fail: the values are safe where they are.
        replaced = {} if self.complete else self._stored_rows(keys)
        resident.drop_fresh(keys)
        if replaced:
            # A key stays as it was when it was first put.
            first = {key: key for key in replaced}
            keys = [first.get(key, key) for key in keys]
        batch = Batch(keys, arrays, self.next_places(len(keys)), replaced)
        self._count += len(keys) - len(replaced)
        resident.add_batch(batch)
        self.rows.update(dict.fromkeys(keys, batch))
        return batch

    def _stored_rows(self, keys: list[Any]) -> dict[Any, RawRow]:
        """The catalog's rows of those of these keys that it has, by the key of each."""
        assert self._catalog is not None
        asked = {encode_key(key).canonical: key for key in keys if key not in self.tombstones}
        rows = {}
        for raw in self._catalog.find_all(list(asked)):
            key = asked[raw[KEY]]
            if raw[EXACT] is not None or type(key) is not str:
                # A row that cannot be decoded is about to be overwritten.
                with contextlib.suppress(ValueError):
                    key = decode_key(raw[KEY], raw[EXACT])
            rows[key] = raw
        return rows

    def _set_array(self, slot: Slot, array: np.ndarray, number: int) -> None:
        slot.version = number
        slot.array = array
        if self._returnable:
            slot.value = array

    def next_batch(self, most_bytes: int) -> Batch | None:
        """The oldest batch that no writer has, made of fresh values if need be; marks it so."""
        found = next((batch for batch in self._resident.batches if not batch.writing), None)
        if found is None and self._resident.fresh:
            found = self._cut(min(most_bytes, BATCH_BYTES))
        if found is not None:
            found.writing = True
        return found

    def oldest_batch(self) -> float:
        """When the first value of what `next_batch` returns was put; infinite if there is none."""
        for batch in self._resident.batches:
            if not batch.writing:
                return batch.first
        return self.puts + 1 if self._resident.fresh else math.inf

    def settle(self) -> None:
        """Give the fresh values slots."""
        while self._resident.fresh:
            self.give_slots(self._cut(BATCH_BYTES))

    def settle_all(self) -> None:
        """Give every value in RAM a slot."""
        for batch in list(self._resident.batches):
            self.give_slots(batch)
        self.settle()

    def discard(self) -> None:
        """Give every value in RAM a slot, except the fresh ones, which are gone."""
        for batch in list(self._resident.batches):
            self.give_slots(batch)
        self._resident.release(list(self._resident.fresh.values()))
        self._resident.drop_fresh(list(self._resident.fresh))

    def give_slots(self, batch: Batch) -> None:
        """Give the values of a batch slots."""
        slots = []
        writing, replaced = batch.writing, batch.replaced
        places = batch.places
        for key, array, number, place in zip(
            batch.keys, batch.arrays, batch.numbers, places, strict=True
        ):
            slot = Slot(key, place, replaced.get(key))
            self._set_array(slot, array, number)
            if writing:
                slot.writing = number
            slots.append(slot)
        self._resident.forget_batch(batch)
        self._resident.add_slots(slots)
        self.slots.update(zip(batch.keys, slots, strict=True))
        if replaced:
            self._in_order = False
        self._note_order(batch.numbers[0], max(places))
        for key in batch.keys:
            del self.rows[key]
        batch.slots = slots

    def publish(self, batch: Batch, rows: list[RawRow]) -> None:
        """The values of a batch without slots were committed: keep their rows only."""
        arrays = batch.arrays
        self._resident.forget_batch(batch)
        self._resident.release(arrays)
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
        self._counted = self._in_order = False
        # Whatever is new from here on comes behind what they have put.
        self._last_place = self.puts

    def rows_of(self, codes: list[bytes]) -> list[RawRow]:
        """The catalog's rows of those of these canonical codes that have one."""
        assert self._catalog is not None
        return self._catalog.find_all(codes)

    def give_slots_to(self, keys: Iterable[Any]) -> None:
        """Give those of these keys slots whose values are in RAM."""
        for key in keys:
            if key in self._resident.fresh:
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
        if self.puts + count > self._last_place:
            taken = max(count, _PLACES)
            self.puts = self.take_places(self.puts, taken) - 1
            self._last_place = self.puts + taken
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
                and not self.pinned(slot)
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

    @property
    def is_counted(self) -> bool:
        """Whether `count` needs no scan of the catalog."""
        return self._counted

    def count(self, doomed: int) -> int:
        """Number of keys.  O(1), but O(n) the first time in a catalog that was reopened.

        Parameters
        ----------
        doomed
            Rows of the catalog that do not count.  No commit may be under way unless `is_counted`.
        """
        if not self.complete:
            self.cut_fresh()
        if not self._counted:
            assert self._catalog is not None
            unsaved = sum(slot.raw is None for slot in self.slots.values())
            batches = self._resident.batches
            without_slot = sum(len(batch.keys) - len(batch.replaced) for batch in batches)
            self._count = self._catalog.count() + unsaved + without_slot - doomed
            self._counted = True
        return self._count + len(self._resident.fresh)

    def has_row(self, key: Any) -> bool:
        """Whether a row of this key, as known here, is committed."""
        slot = self.slots.get(key)
        if slot is not None:
            return slot.raw is not None
        known = self.rows.get(key)
        return key in known.replaced if isinstance(known, Batch) else known is not None

    def known_keys(self, *, descending: bool) -> list[Any]:
        """Every key that is known here, in the order of insertion.  O(n log n)."""
        return [key for _, key in self._places(descending, unsaved=False)]

    def last_known_key(self) -> Any:
        """The key of the highest place that is known here; raises StopIteration if there is none.

        O(1), but O(n log n) for the first of many in a row.
        """
        self.settle_all()
        with self.holding():
            for key in list(self.rows):
                self.find(key)
        if not self._in_order:
            in_order = sorted(self.slots.items(), key=lambda item: item[1].seq)
            self.slots.clear()
            self.slots.update(in_order)
            self._in_order = True
        return next(reversed(self.slots))

    def unsaved_keys(self, *, descending: bool) -> list[tuple[int, Any]]:
        """Place and key of whatever has no row in the catalog, in the order of insertion."""
        return self._places(descending, unsaved=True)

    def _places(self, descending: bool, *, unsaved: bool) -> list[tuple[int, Any]]:
        if not self.complete or self.puts + len(self._resident.fresh) > self._last_place:
            # Its places may come behind what others have put.
            self.cut_fresh()
        places = [
            (slot.seq, key) for key, slot in self.slots.items() if not unsaved or slot.raw is None
        ]
        if not unsaved:
            places += [
                (row[SEQ], key) for key, row in self.rows.items() if not isinstance(row, Batch)
            ]
        for batch in self._resident.batches:
            found = zip(batch.places, batch.keys, strict=True)
            # What replaces a stored value has its row in the catalog.
            places += (each for each in found if not unsaved or each[1] not in batch.replaced)
        places += zip(itertools.count(self.puts + 1), self._resident.fresh)
        places.sort(key=lambda place: place[0], reverse=descending)
        return places

    def page(self, after: int, *, descending: bool) -> list[tuple[int, bytes, bytes | None]]:
        """Place and codes of the catalog's next entries, among them such as wait to be deleted."""
        if self._closed or self._catalog is None:
            raise ClosedChestError("the chest is closed")
        return self._catalog.page(after, _PAGE, descending=descending)

    def deleted(self) -> dict[Any, int | None]:
        """Keys whose deletion is not committed yet, and the place of what is there now."""
        return {key: self._place_of(key) for key in self.tombstones}

    def _place_of(self, key: Any) -> int | None:
        slot = self.slots.get(key)
        if slot is not None:
            return slot.seq
        row = self.rows.get(key)
        return None if row is None or isinstance(row, Batch) else row[SEQ]
