"""The resident set: which values are in RAM, in which order they leave, and what they weigh.

Each *buffer* is charged once, however many keys share it: an array's buffer is the array that
owns it, found along ``.base``.

Victims are found with a CLOCK, the second-chance form of least recently used: a get only counts
up a number on its slot, without a lock and without moving anything, and the hand spares once a
slot whose number has moved since it last came by.  An exact LRU would pay for every hit.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np

from arraychest.entry import Kind, Row
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
    row
        The catalog's row for the key; None if it has none.  Outdated while `array` is set.
    view
        A weak reference to an array that a user may still hold and that equals what is stored.
    hits
        Gets that `value` answered.  `seen` is what the hand last saw of it.
    version
        Counts the puts of the chest: which put `array` came with.
    writing
        The version that a writer is storing now; -1 if none.
    loading
        Whether a thread is faulting the value in.
    failed
        The round of spilling in which storing it failed last.
    """

    __slots__ = (
        "array",
        "failed",
        "hits",
        "key",
        "kind",
        "loading",
        "row",
        "seen",
        "seq",
        "value",
        "version",
        "view",
        "writing",
    )

    def __init__(self, key: Any, seq: int, row: Row | None) -> None:
        self.key = key
        self.seq = seq
        self.row = row
        self.value: Any = None
        self.array: np.ndarray | None = None
        self.kind: Kind = "array"
        self.view: ref[np.ndarray] | None = None
        self.hits = 0
        self.seen = 0
        self.version = 0
        self.writing = -1
        self.loading = False
        self.failed = -1


def owner_of(array: np.ndarray) -> Any:
    """The object that owns the buffer of `array`: the last one along ``.base``."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview) and owner.obj is not None:
        owner = owner.obj
    return owner


def owned_bytes(owner: Any) -> int:
    """Bytes that stay in RAM as long as `owner` lives; our own maps of files are not RAM."""
    if isinstance(owner, np.ndarray):
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


class ResidentSet:
    """Slots whose value is in RAM and not stored yet.  The caller holds the lock.

    Attributes
    ----------
    charged
        Bytes of the buffers that the set keeps alive, each once.
    count
        Number of slots.
    """

    __slots__ = ("_clock", "_owners", "charged", "count")

    def __init__(self) -> None:
        self.charged = 0
        self.count = 0
        self._clock: deque[Slot] = deque()
        self._owners: dict[int, tuple[int, int]] = {}

    def weight(self, array: np.ndarray) -> int:
        """Bytes that keeping `array` would add to `charged`."""
        owner = array if array.base is None else owner_of(array)
        return 0 if id(owner) in self._owners else owned_bytes(owner)

    def add(self, slot: Slot, array: np.ndarray) -> None:
        """Keep `array` as the value of a slot that has none in RAM.  O(1)."""
        owner = array if array.base is None else owner_of(array)
        sharers, nbytes = self._owners.get(id(owner), (0, 0))
        if not sharers:
            nbytes = owned_bytes(owner)
            self.charged += nbytes
        self._owners[id(owner)] = sharers + 1, nbytes
        slot.array = array
        self.count += 1
        self._clock.append(slot)
        if len(self._clock) > 2 * self.count + 64:
            # Slots that left otherwise than through the hand are still queued: sweep them out,
            # which costs each put O(1) over time.
            self._sweep()

    def remove(self, slot: Slot) -> None:
        """Let go of a slot's array.  O(1)."""
        array = slot.array
        assert array is not None
        owner = array if array.base is None else owner_of(array)
        sharers, nbytes = self._owners[id(owner)]
        if sharers == 1:
            del self._owners[id(owner)]
            self.charged -= nbytes
        else:
            self._owners[id(owner)] = sharers - 1, nbytes
        slot.array = None
        self.count -= 1

    def victim(self, fits: Callable[[Slot], bool]) -> Slot | None:
        """The next slot to evict for which `fits` is true; it stays in the set.

        O(1) where most fit.  Each slot is looked at twice at most.
        """
        clock = self._clock
        for _ in range(2 * len(clock)):
            if not clock:
                break
            slot = clock.popleft()
            if slot.array is None:
                continue
            clock.append(slot)
            if slot.hits != slot.seen:
                slot.seen = slot.hits
            elif fits(slot):
                return slot
        return None

    def slots(self) -> list[Slot]:
        """Every slot in the set, once."""
        self._sweep()
        return list(self._clock)

    def _sweep(self) -> None:
        # A slot that left and came back is queued twice.
        self._clock = deque(dict.fromkeys(slot for slot in self._clock if slot.array is not None))

    def check(self) -> None:
        """Assert every invariant; O(n), for tests."""
        queued = dict.fromkeys(slot for slot in self._clock if slot.array is not None)
        assert len(queued) == self.count, (len(queued), self.count)
        owners: dict[int, Any] = {}
        for slot in queued:
            assert slot.array is not None
            owner = owner_of(slot.array)
            owners[id(owner)] = owner
        assert owners.keys() == self._owners.keys()
        assert self.charged == sum(map(owned_bytes, owners.values()))
