"""`Job`: values that a writer stores together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from arraychest.formats.form import Kind
from arraychest.memory.slot import Batch, Slot


class Job(NamedTuple):
    """Values to store together: slots, each with the version that was picked, or a batch.

    With `compact` it is a pack to compact; a job without anything commits the deletions that wait.
    """

    slots: list[Slot]
    versions: Sequence[int]
    arrays: list[Any]
    nbytes: int = 0
    small: bool = False
    batch: Batch | None = None
    compact: int | None = None
    # Of `arrays`: their slots may have values of other kinds by the time that these are written.
    kinds: Sequence[Kind] = ()

    @property
    def only_deletes(self) -> bool:
        """Whether there is nothing to store."""
        return not self.arrays and self.compact is None
