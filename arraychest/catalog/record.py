"""Where one value lies, and what else the catalog knows of it: a row and its facts."""

from __future__ import annotations

from typing import Final, NamedTuple

# In the place where a row has the offset of the data in a file.
BLOCKED_OFFSET: Final = 1


class Row(NamedTuple):
    """One row of the catalog, in the order of its columns; `catalog` says what each holds."""

    key: bytes
    seq: int
    exact: bytes | None
    form: str
    generation: int
    pack: int | None
    offset: int
    stored: int
    stamp: int | None

    @property
    def stem(self) -> str | None:
        """What the chest's user calls the value's file; None: it is called as its key."""
        return self.form.partition("\n")[2] or None

    @property
    def is_frame(self) -> bool:
        """Whether the value is compressed: no other file of one value begins with its data."""
        return self.pack is None and self.offset == 0

    @property
    def is_blocked(self) -> bool:
        """Whether the value lies in a folder of many files: of no file do the data begin so early.

        `stored` is the size of them all.
        """
        return self.pack is None and self.offset == BLOCKED_OFFSET


# A row as SQLite gives it and as slots keep it.  A plain tuple of such things is no concern of the
# garbage collector's for long, while it looks at a million named ones again and again, which costs
# more than storing them.  `Row._make(raw)` where names are wanted, these indices where speed is.
RawRow = tuple[bytes, int, bytes | None, str, int, int | None, int, int, int | None]
KEY: Final = 0
SEQ: Final = 1
EXACT: Final = 2
GENERATION: Final = 4
PACK: Final = 5
OFFSET: Final = 6
STORED: Final = 7
STAMP: Final = 8


class Cost(NamedTuple):
    """What it took to compute a value.

    Attributes
    ----------
    seconds
        How long it took.
    expires
        When it is no longer good, in seconds since 1970; None: never.
    """

    seconds: float
    expires: float | None = None

    def has_expired(self, now: float) -> bool:
        """Whether it is no longer good at a time."""
        return self.expires is not None and self.expires <= now


class Facts(NamedTuple):
    """What the catalog knows of a value beside its row.

    Attributes
    ----------
    generation
        The value's.
    digests
        What it contains (see `digests`): of an array by 0; of the arrays in a value tree, by their
        number counted from 1.
    cost
        What it took to compute it; None: it was not computed by a cached function.
    """

    generation: int
    digests: dict[int, bytes]
    cost: Cost | None = None
