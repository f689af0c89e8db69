"""How much a chest may take on disk, and what becomes of what does not fit."""

from __future__ import annotations

from typing import Literal, NamedTuple

from arraychest.errors import QuotaError
from arraychest.units import format_bytes

OnFull = Literal["refuse", "evict"]
EvictBy = Literal["lru", "cost"]

# Bytes that a value takes on disk beyond its own, about: header, directory and trailer of a file;
# place in the directory of a pack, and what its bytes are rounded up to.
FILE_OVERHEAD = 512
SMALL_OVERHEAD = 192


class Quota(NamedTuple):
    """A limit to the bytes of a chest's value files.

    Attributes
    ----------
    nbytes
        The limit.
    evicts
        Whether stored entries make room; else what does not fit is refused.
    evict_by
        Which go first; see `eviction`.
    """

    nbytes: int
    evicts: bool
    evict_by: EvictBy = "lru"

    def refusal(self, nbytes: int, used: int) -> QuotaError:
        """What to raise where `nbytes` more do not fit."""
        return QuotaError(
            f"expected at most max_disk={format_bytes(self.nbytes)} on disk, found "
            f"{format_bytes(used)} there and {format_bytes(nbytes)} more to store"
        )
