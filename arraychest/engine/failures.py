"""Values and deletions that could not be stored: who is told, and when they are tried again."""

from __future__ import annotations

import time

from arraychest.errors import QuotaError, SpillError
from arraychest.memory.slot import Slot

_FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0


class Failures:
    """What one chest could not store.  Every method is called under the chest's lock.

    Attributes
    ----------
    values
        The slots that could not be stored in this round of trying.
    deletions
        Whether the deletions could not be committed in this round.
    one_by_one
        Whether something of several values could not be stored: alone, others may.
    untold
        What went wrong and was not raised yet.
    pause
        Seconds until the next try after the last failure; 0 after a success.
    """

    def __init__(self) -> None:
        self.values: set[Slot] = set()
        self.deletions = False
        self.one_by_one = False
        self.untold: BaseException | None = None
        self.pause = 0.0
        self._last: BaseException | None = None
        self._retry_at = 0.0

    def note(self, error: BaseException) -> None:
        """Something could not be stored: it is tried again after a pause, which doubles."""
        self.untold = self._last = error
        self.pause = min(2 * self.pause or _FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        self._retry_at = time.monotonic() + self.pause

    @property
    def is_pausing(self) -> bool:
        """Whether something has failed, and the pause after it is not over."""
        return self._retry_at > 0 and time.monotonic() < self._retry_at

    @property
    def has_failed(self) -> bool:
        """Whether something has failed in this round."""
        return self._retry_at > 0

    def begin_round(self) -> None:
        """Let everything be tried again, whatever failed before."""
        self.values.clear()
        self.one_by_one = self.deletions = False
        self._last = None
        self._retry_at = 0.0

    def are_open(self, deletions_wait: bool) -> bool:
        """Whether something that could not be stored still has to be."""
        if self.deletions and deletions_wait:
            return True
        return any(slot.array is not None for slot in self.values)

    def end(self) -> None:
        """What failed is stored by now."""
        self.untold = None
        self._retry_at = 0.0

    def report(self) -> None:
        """Raise what went wrong in the background since the last report, if anything did."""
        if self.untold is not None:
            self.raise_last("values could not be spilled and stay in RAM")

    def raise_last(self, what: str) -> None:
        """Raise what went wrong last, with what came of it; nothing if nothing went wrong."""
        error, self.untold = self.untold, None
        cause = error or self._last
        if cause is not None:
            kind = QuotaError if isinstance(cause, QuotaError) else SpillError
            raise kind(f"{what}: {cause}") from cause
