"""What is stored and at hand: values that the chest keeps open after a get."""

from __future__ import annotations

from collections import deque
from weakref import ref

from arraychest.memory.slot import Slot

# Mapped views that the chest keeps open, so that a repeated get costs no more than a resident
# hit.  Each map counts against vm.max_map_count (65,530), most of which is left to the user.
MAX_KEPT_VIEWS = 16_384

# Compressed arrays that the chest keeps open: each has its checksums (1/4000 of its bytes) and what
# Blosc2 works in.
MAX_KEPT_FRAMES = 64


class Views:
    """The slots whose values are kept open, oldest first.  Called under the chest's lock.

    Attributes
    ----------
    loading
        Slots whose values a thread is bringing back.
    waiting
        Threads that wait for one of them, or for a value to be stored.
    """

    def __init__(self) -> None:
        self.loading: set[Slot] = set()
        self.waiting = 0
        self._mapped: deque[Slot] = deque()
        self._compressed: deque[Slot] = deque()

    def keep(self, slot: Slot) -> None:
        """Keep the value of a slot open, and let go of an older one if there are too many."""
        self._mapped.append(slot)
        if len(self._mapped) > MAX_KEPT_VIEWS:
            _let_go_oldest(self._mapped)

    def keep_compressed(self, slot: Slot) -> None:
        """As `keep`, of a value that is a compressed array, or has one in it."""
        self._compressed.append(slot)
        if len(self._compressed) > MAX_KEPT_FRAMES:
            _let_go_oldest(self._compressed)

    def clear(self) -> None:
        """Let go of all: the chest is closed."""
        self._mapped.clear()
        self._compressed.clear()

    def after_fork_in_child(self) -> None:
        """The threads that load and wait are the parent's."""
        self.loading.clear()
        self.waiting = 0


def _let_go_oldest(kept: deque[Slot]) -> None:
    """Keep one value less open that no get has asked for since it was last looked at."""
    for _ in range(2 * len(kept)):
        slot = kept.popleft()
        is_tree = slot.value is None and slot.view is not None and not isinstance(slot.view, ref)
        if slot.array is not None or (slot.value is None and not is_tree):
            continue
        if slot.hits != slot.seen:
            slot.seen = slot.hits
            kept.append(slot)
            continue
        slot.view = None if is_tree else ref(slot.value)
        slot.value = None
        return
