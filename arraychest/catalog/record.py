"""Where one value lies, and what else the catalog knows of it: a row, its pack and its facts."""

from __future__ import annotations

from typing import Final, NamedTuple

from arraychest.errors import CorruptEntryError

# No offset and no size is larger: sums of them stay within 64 bits.
FAR: Final = 1 << 50

# In the place where a row has the offset of the data in a file.
BLOCKED_OFFSET: Final = 1


class Row(NamedTuple):
    """One row of the catalog, in the order of its columns; `schema` says what each holds."""

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


def checked(raw: RawRow, path: str) -> RawRow:
    """A row with what its columns should hold; SQLite itself lets anything be anywhere.

    Of a row that holds something else its key and its place are left, so that it can be deleted.
    """
    key, seq, exact, form, generation, pack, offset, stored, _ = raw
    if type(key) is not bytes or type(seq) is not int:
        raise CorruptEntryError(f"expected a key and its place in {path}, found {key!r:.80}")
    if (
        type(generation) is int
        and (pack is None or type(pack) is int)
        and type(offset) is type(stored) is int
        and 0 <= offset < FAR
        and 0 <= stored < FAR
        and type(form) is str
        and (exact is None or type(exact) is bytes)
    ):
        return raw
    return key, seq, None, "", -1, None, 0, 0, None


class Pack(NamedTuple):
    """One row of the table ``pack``."""

    id: int
    stamp: int
    bytes: int
    live: int
    sealed: int
    own: int


class Cost(NamedTuple):
    """What it took to compute a value, and how long it is good.

    Attributes
    ----------
    seconds
        How long it took; None: no function computed it.
    expires
        When it is no longer good, in seconds since 1970; None: never.
    at
        When it was computed, in seconds since 1970; None: that is not known.
    """

    seconds: float | None
    expires: float | None = None
    at: float | None = None

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
    written_as
        The canonical code of the key that its file says, where its key was changed since.
    """

    generation: int
    digests: dict[int, bytes]
    cost: Cost | None = None
    written_as: bytes | None = None
