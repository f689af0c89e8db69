"""What a chest kept in RAM over time: a few samples, for `Chest.plot`."""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

# Samples kept: 80 KiB.  A chest that lives longer is sampled less often, over its whole life.
MOST_SAMPLES = 1024

# Between two samples at first.
SECONDS = 0.5


class Sample(NamedTuple):
    """One moment of a chest.

    Attributes
    ----------
    seconds
        Since the chest was opened.
    charged, budget
        Bytes kept in RAM, and how many might be.
    spilled
        Bytes stored until then.
    """

    seconds: float
    charged: int
    budget: int
    spilled: int


class History:
    """Samples of one chest.  Safe from many threads: at worst a sample is lost.

    Attributes
    ----------
    due
        When the next sample is, by `time.monotonic`.
    samples
        The oldest first.
    """

    __slots__ = ("_every", "_opened", "due", "samples")

    def __init__(self) -> None:
        self._opened = self.due = monotonic()
        self._every = SECONDS
        self.samples: list[Sample] = []

    def add(self, charged: int, budget: int, spilled: int) -> None:
        """Take a sample now."""
        now = monotonic()
        self.due = now + self._every
        samples = self.samples
        samples.append(Sample(now - self._opened, charged, budget, spilled))
        if len(samples) > MOST_SAMPLES:
            self.samples = samples[::2]
            self._every *= 2
