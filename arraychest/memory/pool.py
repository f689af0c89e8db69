"""The resident set: which values are in RAM, in which order they leave, and what they weigh.

Each *buffer* is charged once, however many keys share it: an array's buffer is the array that
owns it, found along ``.base``.

Victims are found with a CLOCK, the second-chance form of least recently used: a get only counts
up a number on its slot, without a lock and without moving anything, and the hand spares once a
slot whose number has moved since it last came by.  An exact LRU would pay for every hit.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from arraychest.arrays.ownership import owned_bytes, owner_of
from arraychest.catalog.record import GENERATION
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.slot import Batch, Slot


class Copy(NamedTuple):
    """A stored value, decompressed, and the generation that it is of."""

    generation: int
    array: np.ndarray


# Values with files of their own are committed together until they have so many bytes: a commit
# takes as long as to write 1 MiB.
TOGETHER_BYTES = 4 << 20


class _Clock:
    """Slots in the order in which they were put, and the hand that goes round them."""

    __slots__ = ("count", "queue", "small")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.count = 0
        self.queue: deque[Slot] = deque()

    def holds(self, slot: Slot) -> bool:
        """Whether a queued slot still belongs here: it may have left, or changed its size."""
        return slot.array is not None and slot.is_small is self.small

    def sweep(self) -> None:
        # A slot that left and came back is queued twice.
        self.queue = deque(dict.fromkeys(filter(self.holds, self.queue)))

    def oldest(self) -> float:
        """When the slot under the hand was put; infinite if there is none."""
        queue = self.queue
        while queue and not self.holds(queue[0]):
            queue.popleft()
        return queue[0].version if queue else math.inf

    def victims(self, unfit: Set[Slot], most_bytes: int, most: int) -> list[Slot]:
        queue = self.queue
        found: dict[Slot, None] = {}
        nbytes = 0
        small = self.small
        for _ in range(2 * len(queue)):
            if not queue or nbytes >= most_bytes or len(found) >= most:
                break
            slot = queue.popleft()
            array = slot.array
            if array is None or slot.is_small is not small:
                continue
            queue.append(slot)
            if slot.hits != slot.seen:
                slot.seen = slot.hits
            elif slot.writing < 0 and slot not in unfit and slot not in found:
                found[slot] = None
                nbytes += array.nbytes
        return list(found)


class Pool:
    """Values that are in RAM and not stored yet.  The caller holds the lock.

    Small values, which are packed together, and large ones go round on a clock of their own: a
    look for one kind does not pass over all of the other.

    Attributes
    ----------
    charged
        Bytes of the buffers that the set keeps alive, each once, and those that writers work in.
    working
        The latter.
    fresh
        Small values by key that have no slot: each is an array that owns its buffer, put under a
        key that has no slot, and that nothing but puts has asked for since.
    batches
        Such values that were taken out of `fresh` to be stored, oldest first.
    copies
        Of stored values, decompressed; the least recently used first.  They leave before all else.
    held_bytes
        Bytes of small values that transactions have put and not written yet.
    inherited
        In a forked child, slots with values that the parent had in RAM at the fork.  The parent
        stores them; here they are read, and neither charged nor spilled.
    """

    __slots__ = (
        "_batched",
        "_held",
        "_large",
        "_owners",
        "_sharers",
        "_small",
        "_working",
        "batches",
        "charged",
        "copies",
        "fresh",
        "held_bytes",
        "inherited",
    )

    def __init__(self) -> None:
        self.charged = 0
        self.fresh: dict[Any, np.ndarray] = {}
        self.batches: dict[Batch, None] = {}
        self.copies: dict[Slot, Copy] = {}
        self.held_bytes = 0
        self._held: dict[tuple[object, Any], np.ndarray | Tree] = {}
        self.inherited: set[Slot] = set()
        self._batched = 0
        self._working = 0
        self._small = _Clock(small=True)
        self._large = _Clock(small=False)
        # Bytes of each buffer by its owner's id, and how many values share it beyond the first.
        self._owners: dict[int, int] = {}
        self._sharers: dict[int, int] = {}

    @property
    def count(self) -> int:
        """Number of values."""
        return self._small.count + self._large.count + self.without_slot

    @property
    def without_slot(self) -> int:
        """Number of values that have no slot."""
        return len(self.fresh) + self._batched

    @property
    def working(self) -> int:
        """Bytes that writers work in."""
        return self._working

    @working.setter
    def working(self, nbytes: int) -> None:
        self.charged += nbytes - self._working
        self._working = nbytes

    # --- what transactions hold ----------------------------------------------------------------

    def hold(self, holder: object, key: Any, array: np.ndarray | Tree) -> None:
        """Charge for a value that `holder` keeps under a key, where it has none."""
        self._held[holder, key] = array
        self.held_bytes += array.nbytes
        self._charge(array)

    def let_go(self, holder: object, keys: Iterable[Any]) -> None:
        """Charge no longer for what a holder keeps under these keys."""
        for key in keys:
            array = self._held.pop((holder, key), None)
            if array is not None:  # in a forked child none of it is held
                self.held_bytes -= array.nbytes
                self._discharge(array)

    # --- after a fork ------------------------------------------------------------------------

    def leave_to_parent(self) -> None:
        """In a forked child: whatever is in RAM is the parent's.  Each value has a slot."""
        self.inherited.update(self.slots())
        self._small, self._large = _Clock(small=True), _Clock(small=False)
        self._owners.clear()
        self._sharers.clear()
        self._held.clear()
        self.held_bytes = self._working = 0
        self.charged = sum(copy.array.nbytes for copy in self.copies.values())

    def adopt(self, slot: Slot) -> None:
        """Keep an inherited value as one that was put in this process."""
        array = slot.array
        assert array is not None
        self.inherited.discard(slot)
        self.add(slot, array)

    # --- copies of stored values -------------------------------------------------------------

    def copy_of(self, slot: Slot) -> np.ndarray | None:
        """The decompressed copy of what a slot's row says; it counts as used."""
        copy = self.copies.pop(slot, None)
        if copy is None:
            return None
        if slot.raw is None or slot.raw[GENERATION] != copy.generation:
            self.charged -= copy.array.nbytes
            return None
        self.copies[slot] = copy
        return copy.array

    def keep_copy(self, slot: Slot, generation: int, array: np.ndarray) -> None:
        """Keep the decompressed copy of a stored value, which owns its buffer."""
        self.drop_copy(slot)
        self.copies[slot] = Copy(generation, array)
        self.charged += array.nbytes

    def drop_copy(self, slot: Slot) -> None:
        """Let go of the copy of a slot's value, if there is one."""
        copy = self.copies.pop(slot, None)
        if copy is not None:
            self.charged -= copy.array.nbytes

    def drop_copies(self, most_charged: int) -> None:
        """Let go of copies until so much is charged, or none is left."""
        while self.copies and self.charged > most_charged:
            self.drop_copy(next(iter(self.copies)))

    # --- values without slots ---------------------------------------------------------------

    def add_fresh(self, key: Any, array: np.ndarray) -> bool:
        """Keep a small array that owns its buffer under a key that has no slot, and freeze it.

        Returns False, with nothing changed, where a buffer is shared with another value.  O(1).
        An interrupt finds all of it done or nothing.
        """
        owners = self._owners
        identity = id(array)
        fresh = self.fresh
        if identity in owners:
            return key in fresh and fresh[key] is array
        nbytes = more = array.nbytes
        old = None
        if key in fresh:
            old = id(fresh[key])
            if old in self._sharers:
                return False
            more -= owners[old]
        array.setflags(False)  # type: ignore[call-arg]  # `write`, by name it takes twice as long
        # From here on without a call, behind which an interrupt could come.
        if old is not None:
            del owners[old]
        owners[identity] = nbytes
        self.charged += more
        fresh[key] = array
        return True

    def oldest_fresh(self, most_bytes: int, most: int) -> tuple[list[Any], list[np.ndarray]]:
        """Keys and arrays of the fresh values that were put first, one of them at least."""
        keys = list(itertools.islice(self.fresh, most))
        arrays = list(itertools.islice(self.fresh.values(), most))
        ends = list(itertools.accumulate([array.nbytes for array in arrays]))
        if ends[-1] > most_bytes:
            count = bisect.bisect_left(ends, most_bytes) + 1
            del keys[count:], arrays[count:]
        return keys, arrays

    def drop_fresh(self, keys: list[Any]) -> None:
        """These values are fresh no longer; they stay charged."""
        if len(keys) == len(self.fresh):
            self.fresh.clear()
        else:
            for key in keys:
                del self.fresh[key]

    def add_batch(self, batch: Batch) -> None:
        """Take over a batch of values that are charged already."""
        self.batches[batch] = None
        self._batched += len(batch.keys)

    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Take over slots for values that are charged already."""
        for slot in slots:
            clock = self._small if slot.is_small else self._large
            clock.count += 1
            clock.queue.append(slot)

    def forget_batch(self, batch: Batch) -> None:
        """A batch's values have slots now, or are stored and `release`d."""
        del self.batches[batch]
        self._batched -= len(batch.keys)

    def release(self, arrays: Sequence[np.ndarray]) -> None:
        """Charge for these arrays no longer."""
        if self._sharers:
            for array in arrays:
                self._discharge(array)
        else:
            self.charged -= sum(map(self._owners.pop, map(id, arrays)))

    # --- values with slots -------------------------------------------------------------------

    def weight(self, array: np.ndarray | Tree) -> int:
        """Bytes that keeping `array` would add to `charged`."""
        if isinstance(array, Tree):
            owners = {id(owner): owner for owner in map(owner_of, array.parts)}
            new = [owned_bytes(owner) for key, owner in owners.items() if key not in self._owners]
            return array.own_bytes + sum(new)
        owner = array if array.base is None else owner_of(array)
        return 0 if id(owner) in self._owners else owned_bytes(owner)

    def add(self, slot: Slot, array: np.ndarray | Tree) -> None:
        """Keep `array` as the value of a slot that has none in RAM.  O(1)."""
        # Spelled out: each put comes by here, and calls would double what it takes.
        nbytes = array.nbytes
        clock = self._small if nbytes < PACK_THRESHOLD and slot.kind != "pickle" else self._large
        key = id(array)
        if array.base is None and key not in self._owners:
            self._owners[key] = nbytes
            self.charged += nbytes
        else:
            self._charge(array)
        slot.array = array
        clock.count = count = clock.count + 1
        queue = clock.queue
        queue.append(slot)
        if len(queue) > 2 * count + 64:
            # Slots that left otherwise than through the hand are still queued: sweep them out,
            # which costs each put O(1) over time.
            clock.sweep()

    def replace(
        self, slot: Slot, array: np.ndarray, nbytes: int, version: int, shown: np.ndarray | None
    ) -> bool:
        """Keep another array, of so many bytes, as the value of a slot that has one, and freeze it.

        Returns False, with nothing changed, where one of the two shares its buffer, or they are
        kept apart for their sizes.  O(1).  An interrupt finds all of it done or nothing.

        Parameters
        ----------
        version, shown
            The slot's `version` and `value` from now on.
        """
        old = slot.array
        owners, key, old_key = self._owners, id(array), id(old)
        old_bytes = owners.get(old_key)
        if (
            array.base is not None
            or old_bytes is None
            or (old_bytes < PACK_THRESHOLD) is not (nbytes < PACK_THRESHOLD)
            or key in owners
            or self._sharers
            or self.inherited
        ):
            return False
        array.setflags(False)  # type: ignore[call-arg]  # as in `add_fresh`
        # From here on without a call, behind which an interrupt could come.
        del owners[old_key]
        owners[key] = nbytes
        self.charged += nbytes - old_bytes
        # It stays where it is queued; to be put again is to be used.
        slot.seen = -1
        slot.cost = None
        slot.version = version
        slot.array = array
        slot.value = shown
        return True

    def remove(self, slot: Slot) -> None:
        """Let go of a slot's array.  O(1)."""
        array = slot.array
        assert array is not None
        if self.inherited and slot in self.inherited:
            self.inherited.discard(slot)
            slot.array = None
            return
        small = array.nbytes < PACK_THRESHOLD and slot.kind != "pickle"
        (self._small if small else self._large).count -= 1
        if array.base is None and not self._sharers:
            self.charged -= self._owners.pop(id(array))
        else:
            self._discharge(array)
        slot.array = None

    def has_large_ones(self, count: int) -> bool:
        """Whether there are so many values that are not packed."""
        return self._large.count >= count

    def oldest(self) -> float:
        """When the slot was put that is looked at first for a victim; infinite if there is none."""
        return min(self._large.oldest(), self._small.oldest())

    def victims(
        self, unfit: Set[Slot], most_bytes: int, most: int, *, small: bool, large: int | None = None
    ) -> list[Slot]:
        """The next slots to evict; they stay in the set.

        Several small ones, or several large ones: up to `most` of them, and until they have
        `most_bytes`; of large ones up to `large`, and `TOGETHER_BYTES`.  Whichever has waited
        longer; only large ones unless `small` is true.  None of those that are being written, or
        `unfit`.

        O(1) a slot where most fit.  Each slot is looked at twice at most.
        """
        clocks = [self._large]
        if small:
            clocks.insert(self._large.oldest() < self._small.oldest(), self._small)
        for clock in clocks:
            enough = most_bytes if clock.small else min(most_bytes, TOGETHER_BYTES)
            found = clock.victims(unfit, enough, most if clock.small else large or most)
            if found:
                return found
        return []

    def slots(self) -> list[Slot]:
        """Every slot in the set, once."""
        found: list[Slot] = []
        for clock in (self._small, self._large):
            clock.sweep()
            found.extend(clock.queue)
        return found

    def _charge(self, array: np.ndarray | Tree) -> None:
        if isinstance(array, Tree):
            for part in array.parts:
                self._charge(part)
            self._owners[id(array)] = array.own_bytes
            self.charged += array.own_bytes
            return
        owner = owner_of(array)
        key = id(owner)
        if key in self._owners:
            self._sharers[key] = self._sharers.get(key, 0) + 1
        else:
            self._owners[key] = nbytes = owned_bytes(owner)
            self.charged += nbytes

    def _discharge(self, array: np.ndarray | Tree) -> None:
        if isinstance(array, Tree):
            for part in array.parts:
                self._discharge(part)
            self.charged -= self._owners.pop(id(array))
            return
        key = id(array if array.base is None else owner_of(array))
        if key in self._sharers:
            if self._sharers[key] == 1:
                del self._sharers[key]
            else:
                self._sharers[key] -= 1
        else:
            self.charged -= self._owners.pop(key)

    def check(self) -> None:
        """Assert every invariant; O(n), for tests."""
        for clock in (self._small, self._large):
            queued = dict.fromkeys(filter(clock.holds, clock.queue))
            assert len(queued) == clock.count, (len(queued), clock.count)
        arrays: list[np.ndarray | Tree] = []
        arrays += [slot.array for slot in self.slots() if slot.array is not None]
        arrays += self.fresh.values()
        for batch in self.batches:
            assert batch.slots is None
            assert not batch.stored
            arrays += batch.arrays
        assert len(arrays) == self.count
        assert self.held_bytes == sum(array.nbytes for array in self._held.values())
        arrays += self._held.values()
        trees = [array for array in arrays if isinstance(array, Tree)]
        plain = [array for array in arrays if not isinstance(array, Tree)]
        owners = [owner_of(array) for array in itertools.chain(plain, *[t.parts for t in trees])]
        expected = {id(owner): owned_bytes(owner) for owner in owners}
        shared = len(owners) - len(expected)
        expected |= {id(tree): tree.own_bytes for tree in trees}
        assert expected == self._owners
        copied = sum(copy.array.nbytes for copy in self.copies.values())
        assert self.charged == sum(expected.values()) + copied + self.working
        assert sum(self._sharers.values()) == shared
