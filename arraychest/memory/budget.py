"""How many bytes the chest may keep in RAM: the limit, the budget, and its watermarks.

The *limit* is the least of what the host, the process's cgroups (every one from its own up to the
root, versions 1 and 2) and its rlimits allow.  The *budget* is what the chest allows itself: a
number of bytes, a fraction of the limit, or by default as much as leaves a reserve for the rest
of the machine, read anew from time to time.
"""

from __future__ import annotations

import numbers
import time
from collections.abc import Callable

from arraychest.platform.memory import MemoryReading, memory_readings
from arraychest.units import format_bytes, parse_bytes

# Seconds between two readings of memory for the adaptive budget; one reading takes some 100 us.
REFRESH_SECONDS = 0.25

# Spilling starts when this share of the budget is charged, and stops at the lower one: starting
# high keeps more in RAM, stopping low makes few long bursts of the writer.
HIGH_WATERMARK = 0.75
LOW_WATERMARK = 0.6

# The adaptive budget never takes more than this share of the limit: NumPy's temporaries and the
# page cache, which serves the mapped values, need the rest.
_ADAPTIVE_SHARE = 0.6
# It leaves this share of the limit free for others, and never shrinks below the floor.
_RESERVE_SHARE = 0.1
_FLOOR_BYTES = 32 << 20
# Below this share of what it may grow to, its user should know.
_SCARCE_SHARE = 0.25


MemoryReader = Callable[[], MemoryReading]


def read_memory(root: str = "/") -> MemoryReading:
    """The least of what limits this process, and the least of what is free.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are found; tests put a tree of their own there.
    """
    readings = list(memory_readings(root))
    least = min(readings, key=lambda reading: reading.limit)
    available = min(reading.available for reading in readings)
    return least._replace(available=max(0, available))


class Budget:
    """Bytes that the chest may keep in RAM, and the watermarks between which it spills.

    Parameters
    ----------
    size
        Bytes (int, or a float above 1), a string (``"2 GiB"``, ``"50%"`` of the limit), a
        fraction of the limit (a float up to 1), or None: adaptive.
    read
        Where memory is read; for tests.

    Raises
    ------
    ValueError, TypeError
        The size is none of these.
    """

    __slots__ = (
        "_asked",
        "_next_reading",
        "_read",
        "adaptive",
        "bytes",
        "high",
        "limit",
        "low",
        "source",
    )

    def __init__(self, size: int | float | str | None, read: MemoryReader | None = None) -> None:
        # Looked up at call time, so that replacing `budget.read_memory` reaches every chest.
        self._read = read or (lambda: read_memory())
        self.adaptive = size is None
        self._next_reading = 0.0
        self._asked = size
        self.limit = 0
        self.source = ""
        if size is None:
            self._adapt(charged=0)
        else:
            self._set(self._parse(size))

    def _parse(self, size: int | float | str) -> int:
        if isinstance(size, numbers.Integral) and not isinstance(size, bool):
            size = int(size)  # one of NumPy's, too
        if isinstance(size, bool) or not isinstance(size, int | float | str):
            raise TypeError(
                'expected available_memory as bytes, "2 GiB", "50%", a fraction or None, '
                f"found {size!r}"
            )
        fraction: float | None = None
        if isinstance(size, str) and size.strip().endswith("%"):
            try:
                fraction = float(size.strip()[:-1]) / 100
            except ValueError:
                raise ValueError(f'expected a percentage such as "50%", found {size!r}') from None
        elif isinstance(size, float) and 0 < size <= 1:
            fraction = size
        if fraction is None:
            return parse_bytes(size)
        if not 0 < fraction <= 1:
            raise ValueError(f"expected a share of memory above 0 % and up to 100 %, found {size}")
        reading = self._read()
        self.limit, self.source = reading.limit, reading.source
        return int(fraction * self.limit)

    def _set(self, nbytes: int) -> None:
        self.bytes = nbytes
        self.high = int(nbytes * HIGH_WATERMARK)
        self.low = int(nbytes * LOW_WATERMARK)

    def _adapt(self, charged: int) -> None:
        reading = self._read()
        self.limit, self.source = reading.limit, reading.source
        # What we hold already is ours; of what is free, the reserve stays for others.  An
        # overdrawn reserve is taken out of what we hold.
        free = reading.available - int(reading.limit * _RESERVE_SHARE)
        most = int(reading.limit * _ADAPTIVE_SHARE)
        self._set(max(min(most, charged + free), min(_FLOOR_BYTES, most)))

    def refresh(self, charged: int) -> None:
        """Read memory anew for an adaptive budget, at most every `REFRESH_SECONDS`.

        Parameters
        ----------
        charged
            Bytes that the chest keeps in RAM now.
        """
        if self.is_due():
            self._next_reading = time.monotonic() + REFRESH_SECONDS
            self._adapt(charged)

    @property
    def nominal(self) -> int:
        """Bytes that the budget would be if nobody else needed memory."""
        return int(self.limit * _ADAPTIVE_SHARE) if self.adaptive else self.bytes

    @property
    def reason(self) -> str:
        """Why the budget is what it is, for people to read."""
        if not self.limit:
            return f"available_memory={self._asked!r}"
        of_limit = f"{format_bytes(self.limit)}, {self.source}"
        if not self.adaptive:
            share = f"{self._asked:.3g}" if isinstance(self._asked, float) else self._asked
            return f"available_memory={share!s} of {of_limit}"
        if self.bytes < self.nominal:
            needed = format_bytes(self.nominal - self.bytes)
            return f"{_ADAPTIVE_SHARE:.0%} of {of_limit}, less {needed} that others need now"
        return f"{_ADAPTIVE_SHARE:.0%} of {of_limit}"

    @property
    def is_scarce(self) -> bool:
        """Whether others use so much memory that little is left of the budget."""
        return self.adaptive and self.bytes < _SCARCE_SHARE * self.nominal

    def is_due(self) -> bool:
        """Whether `refresh` would read memory."""
        return self.adaptive and time.monotonic() >= self._next_reading
