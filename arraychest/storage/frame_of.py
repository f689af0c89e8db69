"""Reading parts of a compressed value's file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arraychest.errors import CorruptEntryError
from arraychest.formats.b2nd import CheckedReader
from arraychest.formats.frame import Layout
from arraychest.platform.maps import release

# About so many bytes of a file are read before their pages are released.
_MAPPED_BYTES = 4 << 20


class FrameOf:
    """Reads a compressed value, and says whose it is where it cannot.

    Parameters
    ----------
    data
        The map of its file.
    keep
        Whether the pages of the map stay after a read.
    """

    def __init__(
        self, checked: CheckedReader, key: Any, path: str, data: np.ndarray, *, keep: bool
    ) -> None:
        self._checked = checked
        self._key = key
        self._path = path
        self._data = data
        self._releases = not keep
        #: What makes another one of the same file, in any process, and its arguments; None: nothing
        #: does, as it is a part of a tree.
        self.again: tuple[Any, ...] | None = None

    @property
    def stored(self) -> int:
        """Bytes of the frame."""
        return self._checked.stored

    @property
    def layout(self) -> Layout:
        """How the frame is laid out."""
        return self._checked.layout

    def read(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part of the array, all of whose steps are 1; CorruptEntryError if it has changed."""
        try:
            return self._read_and_release(where) if self._releases else self._checked.read(where)
        except (ValueError, RuntimeError) as error:
            raise CorruptEntryError(
                f"the compressed array of key {self._key!r} in {self._path}: {error}"
            ) from error

    def _read_and_release(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part, read a few chunks at a time: the kernel maps 16 pages where one is touched."""
        first, *others = where
        layout = self.layout
        chunk, *sizes = layout.chunks
        across = math.prod(
            -(-each.stop // size) - each.start // size
            for each, size in zip(others, sizes, strict=True)
        )
        in_row = max(1, across * self.stored // layout.nchunks)
        step = chunk * max(1, _MAPPED_BYTES // in_row)
        # From the first chunk on, as each is decompressed once.
        starts = range(first.start // chunk * chunk, first.stop, step)
        bands = [slice(max(at, first.start), min(at + step, first.stop)) for at in starts]
        found = np.empty([each.stop - each.start for each in where], layout.dtype)
        try:
            for band in bands:
                there = slice(band.start - first.start, band.stop - first.start)
                self._checked.read_into(found[there], (band, *others))
                release(self._data)
            return found
        finally:
            release(self._data)

    @property
    def token(self) -> bytes:
        """What tells this array from all others."""
        return self._checked.token
