"""Files of a worker's results, written by a thread of their own.

The event loop of a worker hands out tasks: were it to wait for each write, the threads that compute
would soon wait for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import arraychest
from arraychest.dask.pickling import Pickled

# The thread ends when nothing came for so long.
_LINGER_SECONDS = 0.02


class Written(NamedTuple):
    """How a write has ended.

    Attributes
    ----------
    nbytes
        What it takes on disk.
    seconds
        How long it took.
    error
        Why there is nothing on disk.
    """

    nbytes: int
    seconds: float
    error: Exception | None


class _Write(NamedTuple):
    taken: np.ndarray | Pickled
    ended: Callable[[Written], None]


class ResultFiles:
    """A chest in a worker's folder; results have numbers.

    Parameters
    ----------
    folder
        Made with the first write.  Removed when this is closed or forgotten.
    max_spill
        Most bytes that will be asked for; None: any number.
    compression
        As `arraychest.Chest` takes it.
    lock
        Every method is called under it.
    """

    def __init__(self, folder: str, max_spill: int | None, compression: Any, lock: Any) -> None:
        self.folder = folder
        self.compression = compression
        self.closed = False
        #: Bytes that are still to be written.
        self.waiting_bytes = 0
        self._max_spill = max_spill
        self._lock = lock
        self._given = threading.Condition(lock)
        self._ended = threading.Condition(lock)
        # What is to be written and what is being written, the oldest first.
        self._waiting: dict[int, _Write] = {}
        self._thread: threading.Thread | None = None
        self._chest: arraychest.Chest | None = None
        # Whether there are files that the chest is still to remove.
        self._removals_wait = False

    def write(
        self, number: int, taken: np.ndarray | Pickled, ended: Callable[[Written], None]
    ) -> None:
        """Have a result written.

        Parameters
        ----------
        number
            One that was never given before.
        ended
            Called under the lock, unless the result is removed before.
        """
        self._waiting[number] = _Write(taken, ended)
        self.waiting_bytes += taken.nbytes
        self._given.notify()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="arraychest-results", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter exits
                self._work()

    def wait(self, nbytes: int = 0) -> None:
        """Return once no more than `nbytes` are still to be written; frees the lock meanwhile."""
        while self._waiting and self.waiting_bytes > nbytes:
            self._ended.wait()

    def read(self, number: int) -> Any:
        """What was written: an array, or the parts and the flags of what was pickled."""
        assert self._chest is not None
        return self._chest[number]

    def remove(self, number: int) -> None:
        """Remove a result; its room on disk is there a little later."""
        write = self._waiting.pop(number, None)
        if write is not None:
            # If it is being written now, the thread removes it.
            self.waiting_bytes -= write.taken.nbytes
            self._ended.notify_all()
        else:
            self._discard(number)
            self._removals_wait = True

    def close(self) -> None:
        """Remove all files; what is being written is given up."""
        self.closed = True
        self._waiting.clear()
        self.waiting_bytes = 0
        self._given.notify()
        while self._thread is not None:
            self._ended.wait()
        if self._chest is not None:
            _drop(self._chest)

    # --- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting and not self.closed:
                    self._given.wait(_LINGER_SECONDS)
                if not self._waiting:
                    self._thread = None
                    self._ended.notify_all()
                    return
                number, (taken, _) = next(iter(self._waiting.items()))
            begun = time.perf_counter()
            nbytes, error = 0, None
            try:
                nbytes = self._store(number, tuple(taken) if isinstance(taken, Pickled) else taken)
            except Exception as caught:  # a full disk, mostly
                error = caught.with_traceback(None)  # it would keep the result
            seconds = time.perf_counter() - begun
            with self._lock:
                write = self._waiting.pop(number, None)
                if error is not None or write is None:
                    self._discard(number)
                if write is not None:
                    self.waiting_bytes -= taken.nbytes
                    write.ended(Written(nbytes, seconds, error))
                del taken, write
                self._ended.notify_all()

    def _store(self, number: int, taken: Any) -> int:
        """Write a result; returns its bytes on disk."""
        chest = self._open()
        while True:
            try:
                chest[number] = taken
                chest.spill(number)
                return chest.entry(number).stored_bytes
            except OSError:
                if not self._removals_wait:
                    raise
                # A chest removes files a little later than it is asked to: there may be room then.
                chest.discard(number)
                self._removals_wait = False
                chest.flush()

    def _open(self) -> arraychest.Chest:
        if self._chest is None:
            # Small: what is put here leaves RAM at once.  The folder is this worker's alone, on
            # whatever file system, and goes with it: checksums, which would take as long as the
            # writes, tell nobody anything.
            self._chest = arraychest.Chest(
                path=self.folder,
                available_memory="16 MiB",
                mode="w",
                mmap_mode="c",
                on_put="share",
                compression=self.compression,
                allow_network=True,
                checksums=False,
                # Counted by who writes; with a limit of its own the chest keeps no files for later
                # use.
                max_disk=None if self._max_spill is None else self._max_spill * 9 // 8 + (16 << 20),
            )
            weakref.finalize(self, _drop, self._chest)
        return self._chest

    def _discard(self, number: int) -> None:
        if self._chest is not None and not self._chest.closed:
            with contextlib.suppress(OSError, arraychest.ArrayChestError):
                self._chest.discard(number)


def _drop(chest: arraychest.Chest) -> None:
    """Remove a chest; its folder may be gone already, with the worker's."""
    if not chest.closed:
        with contextlib.suppress(OSError, arraychest.ArrayChestError):
            chest.drop()
