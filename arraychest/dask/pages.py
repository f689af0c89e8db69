"""Pages of mapped files that count as the worker's memory, and are given back before they matter.

A page of a map that was read counts in the process's resident size, by which dask pauses a worker
and its nanny ends it, although it can be had again from the file at any time.  It goes when its map
does, which is when no task has the value any more.  Tasks that have much at once need this: before
dask decides what to do about the worker's memory, pages are released.  Where the maps in use are
larger than what the worker may have, a thread looks after them every few milliseconds, too: dask
and its nanny look ten times a second, and pages come at some gigabytes per second.

What a task has written to in a private map is its own, and stays.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

import numpy as np

from arraychest.platform.pages import page_out, resident_bytes

_PAUSE_SECONDS = 0.002

# The thread begins at this share of where pages are released otherwise, as it may be late.
_EARLIER = 0.93

# Pages are released if they are this share of what the worker may have.
_WORTH_IT = 1 / 32


def root_of(array: np.ndarray) -> np.ndarray:
    """The array of all of a map's bytes, which lives exactly as long as the map does."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class MappedPages:
    """The maps that are alive, and the thread that looks after their pages.

    Parameters
    ----------
    limit
        What the process may have in RAM before pages of maps are released, in bytes; None: they
        never are.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._roots: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        self._number = 0
        self._lock = threading.RLock()
        self._watching = False

    def watched(self, memory: Callable[[], int]) -> Callable[[], int]:
        """`memory`, which says what the process has in RAM, less the pages that can be released."""

        def watched() -> int:
            resident = memory()
            if self.limit is not None and resident > self.limit and self._are_many():
                self.release()
                resident = memory()
            return resident

        return watched

    def note(self, array: np.ndarray) -> None:
        """Look after a map from now on; `array` is a view of it."""
        with self._lock:
            self._number += 1
            self._roots[self._number] = root_of(array)
            if self.limit is None or self._watching or not self._may_pass():
                return
            self._watching = True
        thread = threading.Thread(target=self._watch, name="arraychest-pages", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter exits
            self._watching = False

    @property
    def nbytes(self) -> int:
        """Bytes of all maps that are alive."""
        return sum([root.nbytes for _, root in self._maps()])

    def _maps(self) -> list[tuple[int, np.ndarray]]:
        """All maps, oldest first."""
        with self._lock:
            return list(self._roots.items())

    def release(self, until: int = 0) -> int:
        """Take the clean pages of maps out of this process, those of the oldest maps first.

        Parameters
        ----------
        until
            What the process may have in RAM, in bytes: further maps keep their pages.

        Returns
        -------
        int
            How many bytes it was.

        Notes
        -----
        25 ms for 512 MiB.  What is touched again is read again, from the file if the system needed
        the memory.
        """
        _, before = resident_bytes()
        for _, root in self._maps():
            page_out(root.ctypes.data, root.nbytes)
            if until and resident_bytes()[0] <= until:
                break
        _, after = resident_bytes()
        return max(0, before - after)

    def _may_pass(self) -> bool:
        # All maps read to the end.
        assert self.limit is not None
        resident, of_files = resident_bytes()
        mapped = self.nbytes
        return resident - min(of_files, mapped) + mapped > self.limit

    def _are_many(self) -> bool:
        # What little there is may stay: tasks that use it would only read it again.
        assert self.limit is not None
        return min(resident_bytes()[1], self.nbytes) > self.limit * _WORTH_IT

    def _watch(self) -> None:
        wait = threading.Event().wait
        owner = os.getpid()
        while os.getpid() == owner:
            with self._lock:
                if self.limit is None or not self._may_pass():
                    self._watching = False
                    return
            enough = int(self.limit * _EARLIER)
            if resident_bytes()[0] > enough and self._are_many():
                # Not all: what was mapped last is what is read now.
                self.release(enough - enough // 8)
            wait(_PAUSE_SECONDS)
