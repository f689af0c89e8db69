"""Texts for people: how many of something; and keys of strangers, cut to a line, nothing hidden."""

from __future__ import annotations

import reprlib
from typing import Any

# Characters of a text that is shown: keys may be megabytes long.
_MOST_TEXT = 120


class _Shortened(reprlib.Repr):
    """`repr` of a key that may be of any size and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxtuple = self.maxfrozenset = 8
        self.maxstring = self.maxother = self.maxlong = _MOST_TEXT

    def repr_int(self, x: int, level: int) -> str:
        # Python writes no decimal number of more than some thousand digits.
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"{x.bit_length()}-bit int"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """As of a str, which is cut before its `repr` is made."""
        del level
        return repr(x) if len(x) <= _MOST_TEXT else f"{x[:_MOST_TEXT]!r}..."


_shorten = _Shortened()


def amount(count: int, one: str, many: str = "") -> str:
    """How many of something, in words.

    Examples
    --------
    >>> amount(1, "hit"), amount(1200, "hit"), amount(0, "entry", "entries")
    ('1 hit', '1,200 hits', '0 entries')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def key_text(key: Any) -> str:
    """A key as Python writes it, cut to a line: of printable characters only."""
    return visible(_shorten.repr(key))


def visible(text: str, most: int = 2 * _MOST_TEXT) -> str:
    """A text as printable characters only, others as Python escapes them, cut to a length."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in cut)
