"""Generations: numbers that no two values of a chest ever share.

The upper half is the number of a session, so that what a session leaves behind when it dies can be
told by its name.
"""

from __future__ import annotations

import os

from arraychest.catalog.catalog import Catalog
from arraychest.files.files import Files
from arraychest.sharing.interrupts import Lock
from arraychest.storage.access import Access


class Generations:
    """Gives generations; the first one begins the session.  Safe from many threads.

    Parameters
    ----------
    catalog, files, access
        The chest's.
    """

    def __init__(self, catalog: Catalog, files: Files, access: Access) -> None:
        self._catalog = catalog
        self._files = files
        self._access = access
        self._next = 0
        self._lock = Lock()

    @property
    def have_begun(self) -> bool:
        """Whether a generation was given: from here on a crash leaves something to sweep."""
        return self._next > 0

    def take(self, count: int) -> int:
        """The first of `count` generations that nobody else gets."""
        with self._lock:
            if not self._next:
                # The first write of a session.
                with self._access.exclusive():
                    session = self._catalog.changes.begin_session()
                    self._access.hold_session(session)
                self._files.spares.session = session
                self._next = session << 32
                self._catalog.database.raise_interrupt()
            first = self._next
            self._next += count
        return first

    def new(self) -> int:
        """A generation that nobody else gets."""
        return self.take(1)


def new_stamp() -> int:
    """What tells a file from every other one, whatever its name is."""
    return int.from_bytes(os.urandom(8), "little") >> 2
