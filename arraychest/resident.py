"""The resident set: which values are in RAM, in which order they leave, and what they weigh.

Each *buffer* is charged once, however many keys share it: an array's buffer is the array that
owns it, found along ``.base``.

Victims are found with a CLOCK, the second-chance form of least recently used: a get only counts
up a number on its slot, without a lock and without moving anything, and the hand spares once a
slot whose number has moved since it last came by.  An exact LRU would pay for every hit.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections import deque
from collections.abc import Set
from typing import Any, cast
from weakref import ref

import numpy as np

from arraychest.codecs.pack import PACK_THRESHOLD
from arraychest.entry import Kind, RawRow, Row
from arraychest.mapping import is_map


class Slot:
    """What the chest knows in memory of one key.

    Attributes
    ----------
    key
        The key as it was first put.
    seq
        Its place in the order of insertion.
    value
        What a get returns at once: the resident value, or a mapped view that is kept open; else
        None.
    array
        The value in RAM that is not yet stored, as an array; else None.
    kind
        ``"array"``, ``"scalar"`` or ``"pickle"``, of `array`.
    raw
        The catalog's row for the key; None if it has none.  Outdated while `array` is set.
    view
        A weak reference to an array that a user may still hold and that equals what is stored.
    hits
        Gets that `value` answered.  `seen` is what the hand last saw of it.
    version
        Counts the puts of the chest: which put `array` came with.
    writing
        The version that a writer is storing now; -1 if none.
    """

    __slots__ = (
        "array",
        "hits",
        "key",
        "kind",
        "raw",
        "seen",
        "seq",
        "value",
        "version",
        "view",
        "writing",
    )

    def __init__(self, key: Any, seq: int, raw: RawRow | None) -> None:
        self.key = key
        self.seq = seq
        self.raw = raw
        self.value: Any = None
        self.array: np.ndarray | None = None
        self.kind: Kind = "array"
        self.view: ref[np.ndarray] | None = None
        self.hits = 0
        self.seen = 0
        self.version = 0
        self.writing = -1

    @property
    def row(self) -> Row | None:
        """`raw` with names."""
        return None if self.raw is None else Row._make(self.raw)


def owner_of(array: np.ndarray) -> Any:
    """The object that owns the buffer of `array`: the last one along ``.base``."""
    owner: Any = array
    while True:
        lender: Any
        if isinstance(owner, np.ndarray):
            lender = owner.base
        elif isinstance(owner, memoryview):
            lender = owner.obj  # again a view, maybe
        else:
            return owner
        if lender is None:
            return owner
        owner = lender


def owned_bytes(owner: Any) -> int:
    """Bytes that stay in RAM as long as `owner` lives; our own maps of files are not RAM."""
    if isinstance(owner, np.ndarray | np.generic):
        return owner.nbytes
    if is_map(owner):
        return 0
    if isinstance(owner, mmap.mmap):
        return len(owner)
    try:
        return memoryview(owner).nbytes
    except TypeError:
        interface = getattr(owner, "__array_interface__", None)
        if interface is None:
            return 0
        return int(np.asarray(owner).nbytes)


def references(arrays: list[np.ndarray], at: int) -> int:
    """How many references there are to an array in a list, and to the call that asks."""
    return sys.getrefcount(arrays[at])


# What `references` says of an array that nothing but the list refers to; it differs between
# versions of Python.
ALONE = references([np.empty(0)], 0)


def is_small(slot: Slot) -> bool:
    """Whether the value in RAM of a slot is packed with others when it is stored."""
    return cast(np.ndarray, slot.array).nbytes < PACK_THRESHOLD and slot.kind != "pickle"


class _Clock:
    """Slots in the order in which they were put, and the hand that goes round them."""

    __slots__ = ("count", "queue", "small")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.count = 0
        self.queue: deque[Slot] = deque()

    def holds(self, slot: Slot) -> bool:
        """Whether a queued slot still belongs here: it may have left, or changed its size."""
        return slot.array is not None and is_small(slot) is self.small

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
            if array is None or is_small(slot) is not small:
                continue
            queue.append(slot)
            if slot.hits != slot.seen:
                slot.seen = slot.hits
            elif slot.writing < 0 and slot not in unfit and slot not in found:
                found[slot] = None
                nbytes += array.nbytes
        return list(found)


class ResidentSet:
    """Slots whose value is in RAM and not stored yet.  The caller holds the lock.

    Small values, which are packed together, and large ones go round on a clock of their own: a
    look for one kind does not pass over all of the other.

    Attributes
    ----------
    charged
        Bytes of the buffers that the set keeps alive, each once.
    fresh
        Values by key that have no slot yet: each is an array that owns its buffer, put under a
        key that the chest did not have, and that nothing but puts has asked for since.  They get
        their slots all at once, in the order of the puts (`settle`).
    """

    __slots__ = ("_large", "_owners", "_sharers", "_small", "charged", "fresh")

    def __init__(self) -> None:
        self.charged = 0
        self.fresh: dict[Any, np.ndarray] = {}
        self._small = _Clock(small=True)
        self._large = _Clock(small=False)
        # Bytes of each buffer by its owner's id, and how many slots share it beyond the first.
        self._owners: dict[int, int] = {}
        self._sharers: dict[int, int] = {}

    @property
    def count(self) -> int:
        """Number of values."""
        return self._small.count + self._large.count + len(self.fresh)

    def add_fresh(self, key: Any, array: np.ndarray) -> bool:
        """Keep an array that owns its buffer under a key that has no slot.  O(1).

        Returns False, with nothing changed, where a buffer is shared with another value.

        A slot is the larger part of what a small put costs, most of all through the garbage
        collector, which looks at every object of Python's own again and again; an array is none.
        """
        owners = self._owners
        identity = id(array)
        fresh = self.fresh
        if identity in owners:
            return key in fresh and fresh[key] is array
        if key in fresh:
            old = id(fresh[key])
            if old in self._sharers:
                return False
            self.charged -= owners.pop(old)
        owners[identity] = nbytes = array.nbytes
        self.charged += nbytes
        fresh[key] = array
        return True

    def settle(self, puts: int, *, returnable: bool) -> list[Slot]:
        """Give every fresh value its slot, numbered from `puts` on; returns the slots.

        Parameters
        ----------
        returnable
            Whether a get may return the array itself.
        """
        slots = []
        for key, array in self.fresh.items():
            puts += 1
            slot = Slot(key, puts, None)
            slot.version = puts
            slot.array = array
            if returnable:
                slot.value = array
            clock = self._small if array.nbytes < PACK_THRESHOLD else self._large
            clock.count += 1
            clock.queue.append(slot)
            slots.append(slot)
        self.fresh.clear()
        return slots

    def weight(self, array: np.ndarray) -> int:
        """Bytes that keeping `array` would add to `charged`."""
        owner = array if array.base is None else owner_of(array)
        return 0 if id(owner) in self._owners else owned_bytes(owner)

    def add(self, slot: Slot, array: np.ndarray) -> None:
        """Keep `array` as the value of a slot that has none in RAM.  O(1)."""
        # Spelled out: each put comes by here, and calls would double what it takes.
        nbytes = array.nbytes
        clock = self._small if nbytes < PACK_THRESHOLD and slot.kind != "pickle" else self._large
        owner = array if array.base is None else owner_of(array)
        key = id(owner)
        if key in self._owners:
            self._sharers[key] = self._sharers.get(key, 0) + 1
        else:
            if owner is not array:
                nbytes = owned_bytes(owner)
            self._owners[key] = nbytes
            self.charged += nbytes
        slot.array = array
        clock.count = count = clock.count + 1
        queue = clock.queue
        queue.append(slot)
        if len(queue) > 2 * count + 64:
            # Slots that left otherwise than through the hand are still queued: sweep them out,
            # which costs each put O(1) over time.
            clock.sweep()

    def replace(self, slot: Slot, array: np.ndarray) -> None:
        """Keep another array as the value of a slot that has one.  O(1)."""
        old = cast(np.ndarray, slot.array)
        if old is array:
            slot.seen = -1
            return
        if (old.nbytes < PACK_THRESHOLD) is not (array.nbytes < PACK_THRESHOLD):
            self.remove(slot)
            self.add(slot, array)
            return
        old_key, key = id(old), id(array)
        owners = self._owners
        if old.base is array.base is None and not self._sharers and key not in owners:
            # As `add` and `remove` would, for buffers that nobody shares.
            self.charged += array.nbytes - owners.pop(old_key)
            owners[key] = array.nbytes
        else:
            self._discharge(old)
            self._charge(array)
        slot.array = array
        # It stays where it is queued; to be put again is to be used.
        slot.seen = -1

    def remove(self, slot: Slot) -> None:
        """Let go of a slot's array.  O(1)."""
        array = slot.array
        assert array is not None
        small = array.nbytes < PACK_THRESHOLD and slot.kind != "pickle"
        (self._small if small else self._large).count -= 1
        if array.base is None and not self._sharers:
            self.charged -= self._owners.pop(id(array))
        else:
            self._discharge(array)
        slot.array = None

    def victims(self, unfit: Set[Slot], most_bytes: int, most: int, *, small: bool) -> list[Slot]:
        """The next slots to evict; they stay in the set.

        One large slot, or several small ones: up to `most` of them, and until they have
        `most_bytes`.  Whichever has waited longer; only a large one unless `small` is true.
        None of those that are being written, or `unfit`.

        O(1) a slot where most fit.  Each slot is looked at twice at most.
        """
        clocks = [self._large]
        if small:
            clocks.insert(self._large.oldest() < self._small.oldest(), self._small)
        for clock in clocks:
            found = clock.victims(unfit, most_bytes, most if clock.small else 1)
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

    def _charge(self, array: np.ndarray) -> None:
        owner = owner_of(array)
        key = id(owner)
        if key in self._owners:
            self._sharers[key] = self._sharers.get(key, 0) + 1
        else:
            self._owners[key] = nbytes = owned_bytes(owner)
            self.charged += nbytes

    def _discharge(self, array: np.ndarray) -> None:
        key = id(array if array.base is None else owner_of(array))
        if key in self._sharers:
            if self._sharers[key] == 1:
                del self._sharers[key]
            else:
                self._sharers[key] -= 1
        else:
            self.charged -= self._owners.pop(key)

    def check(self) -> None:
        """Assert every invariant; O(n), for tests, after `settle`."""
        assert not self.fresh
        for clock in (self._small, self._large):
            queued = dict.fromkeys(filter(clock.holds, clock.queue))
            assert len(queued) == clock.count, (len(queued), clock.count)
        owners = [owner_of(slot.array) for slot in self.slots() if slot.array is not None]
        expected = {id(owner): owned_bytes(owner) for owner in owners}
        assert expected == self._owners
        assert self.charged == sum(expected.values())
        assert sum(self._sharers.values()) == len(owners) - len(expected)
