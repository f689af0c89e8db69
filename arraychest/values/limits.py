"""What both ways of a value tree need: numbers, tags, and how much and how deep there may be."""

from __future__ import annotations

import datetime as dt
import pathlib
import struct
import uuid

from arraychest.errors import ValueTypeError

# Values nest at most so deep: both ways recurse, with up to four calls for a level, and a
# stranger's file must not be able to exhaust the stack.
MAX_DEPTH = 100

# The structure around the arrays is not larger, in bytes: it is decoded at each get.
MAX_STRUCTURE_BYTES = 64 << 20

# The keys of a dict, or the elements of a set, are of so many elements at most, tuples in them
# counted as often as they are met: so many are hashed at each get, in some seconds, while each
# reference to a tuple from another could double what a stranger's file makes of a few bytes.
MAX_HASHED = 1 << 27

# Strings and bytes of so many bytes are parts, as arrays are, and do not count as structure.
LONG = 64 * 1024

SIZE = struct.Struct("<I")
I8 = struct.Struct("<q")
F8 = struct.Struct("<d")
C16 = struct.Struct("<dd")

BY_KEY_CODE = frozenset({
    dt.datetime, dt.date, dt.timedelta, uuid.UUID,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
})  # fmt: skip
CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", dict: b"d", set: b"e", frozenset: b"z"}


class TooDeepError(ValueTypeError):
    """A value is nested deeper than `MAX_DEPTH`."""

    def __init__(self) -> None:
        super().__init__(f"expected a value nested at most {MAX_DEPTH} deep, found one deeper")


class Measure:
    """Counts the containers of a value as they begin, and what each amounts to.

    A container that is met again counts in full: nesting that goes by way of references is as deep
    for whoever hashes the value, and C's stack knows no limit then.
    """

    __slots__ = ("_least_left", "_open", "_sizes", "elements")

    def __init__(self) -> None:
        # How many elements were met, and the least depth that was left at any of them.
        self.elements = 0
        self._least_left = MAX_DEPTH
        # By the number of a container that is complete: its elements and its levels.
        self._sizes: list[tuple[int, int]] = []
        # Of those that are not: their number, and what was measured before.
        self._open: list[tuple[int, int, int]] = []

    def begin(self) -> int:
        """A container begins; returns its number."""
        sizes = self._sizes
        number = len(sizes)
        self._open.append((number, self.elements, self._least_left))
        sizes.append((0, 0))
        self._least_left = MAX_DEPTH
        return number

    def end(self, depth: int, tag: bytes) -> None:
        """The container is complete that began last, at this depth."""
        number, elements, outer = self._open.pop()
        left = self._least_left
        if left >= depth:
            left = depth - 1
        # A frozenset knows its hash.
        self._sizes[number] = 1 if tag == b"z" else self.elements - elements + 1, depth - left
        self._least_left = left
        if outer < left:
            self._least_left = outer

    def again(self, number: int, depth: int) -> None:
        """A container is met once more."""
        elements, levels = self._sizes[number]
        if levels > depth:
            raise TooDeepError
        self.elements += elements
        self._least_left = min(self._least_left, depth - levels)


def deeper(depth: int) -> int:
    """The depth that is left for what is in a value; raises `TooDeepError` if none is."""
    if depth == 0:
        raise TooDeepError
    return depth - 1


def check_size(nbytes: int) -> None:
    """Raise ValueTypeError where a structure has too many bytes."""
    if nbytes > MAX_STRUCTURE_BYTES:
        raise ValueTypeError(
            f"expected at most {MAX_STRUCTURE_BYTES >> 20} MiB around the arrays of a value, "
            "found more: keep numbers in arrays"
        )
