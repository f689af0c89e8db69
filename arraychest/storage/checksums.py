"""What is stored and has no checksum yet, and the checksums that are not in the catalog yet."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable

from arraychest.catalog.catalog import Catalog
from arraychest.files.files import Files
from arraychest.formats.checksums import Extent, packed, sums

# Bytes that are summed before a writer looks for something to store again: a millisecond.
_BYTES_AT_ONCE = 4 << 20

# Checksums that one transaction takes.
_MOST_AT_ONCE = 1024


class PendingSums:
    """The checksums of one chest folder that are still to be computed or committed.

    `add` may be called from any thread; `compute` and `commit` from one at a time.

    Parameters
    ----------
    files, catalog
        The folder's.
    """

    def __init__(self, files: Files, catalog: Catalog) -> None:
        self._files = files
        self._catalog = catalog
        self._unsummed: deque[Extent] = deque()
        # Of the first of these, so far.
        self._found: list[int] = []
        self._computed: list[tuple[Extent, bytes]] = []
        self._failed = False

    @property
    def wait(self) -> bool:
        """Whether `compute` or `commit` has something to do."""
        return bool(self._unsummed or self._computed) and not self._failed

    @property
    def due(self) -> bool:
        """Whether there is something to commit now."""
        enough = not self._unsummed or len(self._computed) >= _MOST_AT_ONCE
        return enough and self.wait

    def add(self, extents: Iterable[Extent]) -> None:
        """Have these summed, too."""
        self._unsummed.extend(extents)
        self._failed = False

    def compute(self) -> None:
        """Compute checksums for about a millisecond."""
        left = _BYTES_AT_ONCE
        while left > 0 and self._unsummed:
            extent = self._unsummed[0]
            piece = extent.piece
            done = len(self._found) * piece
            wanted = min(extent.nbytes - done, max(left // piece, 1) * piece)
            new: list[int] = []
            # One that is gone meanwhile needs none; what else is wrong with it `verify` tells.
            with contextlib.suppress(OSError):
                fd = self._files.open(extent.name)
                try:
                    new = list(sums(fd, extent.start + done, wanted, piece))
                finally:
                    os.close(fd)
            left -= wanted
            self._found += new
            complete = len(new) * piece >= wanted
            if complete and done + wanted < extent.nbytes:
                continue
            if complete:
                self._computed.append((extent, packed(self._found)))
            self._found = []
            with contextlib.suppress(IndexError):  # forgotten meanwhile
                self._unsummed.popleft()

    def commit(self) -> None:
        """Commit the checksums there are.  Called in `Store.exclusive`.

        Raises
        ------
        OSError
            They are tried again after the next commit.
        """
        found = self._computed[:_MOST_AT_ONCE]
        try:
            self._catalog.facts.add_sums(found)
        except BaseException:
            self._failed = True
            raise
        del self._computed[: len(found)]

    def forget(self) -> None:
        """Compute none: the folder is going to be removed."""
        self._unsummed.clear()
        self._computed.clear()
