"""Files of a worker's results, written by a thread of their own.

The event loop of a worker hands out tasks: were it to wait for each write, the threads that compute
would soon wait for it.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import arraychest
from arraychest.arrays.ownership import owner_of
from arraychest.dask.pickling import Pickled
from arraychest.platform.maps import is_map

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
    """A result to be written, who is told of it, and how many of its bytes are in RAM."""

    taken: np.ndarray | Pickled
    ended: Callable[[Written], None]
    memory: int


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
        A reentrant one, under which every method is called.
    """

    def __init__(self, folder: str, max_spill: int | None, compression: Any, lock: Any) -> None:
        self.folder = folder
        self.compression = compression
        self.closed = False
        #: Bytes that are still to be written; and how many of them are in RAM.
        self.waiting_bytes = self.waiting_memory = 0
        self._max_spill = max_spill
        self._lock = lock
        self._given = threading.Condition(lock)
        self._ended = threading.Condition(lock)
        # What is to be written and what is being written, the oldest first; not a plain dict, whose
        # first item is the farther the more were deleted.
        self._waiting: OrderedDict[int, _Write] = OrderedDict()
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
            Called under the lock, unless the result is removed before.  Where a write fails, all
            that wait fail with it, the newest first.
        """
        write = _Write(taken, ended, _in_ram(taken))
        self._waiting[number] = write
        self.waiting_bytes += taken.nbytes
        self.waiting_memory += write.memory
        self._given.notify()
        self._start()

    def wait(self, nbytes: int = 0) -> None:
        """Return once no more than `nbytes` are still to be written; frees the lock meanwhile."""
        while self._waiting and self.waiting_bytes > nbytes:
            self._start()
            self._ended.wait()

    def read(self, number: int) -> Any:
        """What was written: an array, or the parts and the flags of what was pickled."""
        assert self._chest is not None
        return self._chest[number]

    def remove(self, number: int) -> None:
        """Remove a result; its room on disk is there a little later."""
        if self._forget(number) is None:
            self._discard(number)
            self._removals_wait = True
        # Else the thread does, if it is writing it now.

    def close(self) -> None:
        """Give up what is to be written, and remove all files; no thread is left."""
        self.closed = True
        self._waiting.clear()
        self.waiting_bytes = self.waiting_memory = 0
        self._given.notify()
        self._ended.notify_all()
        while self._thread is not None:
            self._ended.wait()
        if self._chest is not None:
            _drop(self._chest)

    # --- the thread --------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name="arraychest-results", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter exits
            while self._waiting:
                self._write_one()
        else:
            # It waits for the lock.  Where an interrupt came before this line it ends at once, and
            # the next one to wait starts another.
            self._thread = thread

    def _work(self) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return
            try:
                while self._waiting or self._given_soon():
                    self._write_one()
            finally:
                self._thread = None
                self._ended.notify_all()

    def _given_soon(self) -> bool:
        if not self.closed:
            self._given.wait(_LINGER_SECONDS)
        return bool(self._waiting)

    def _write_one(self) -> None:
        number, write = next(iter(self._waiting.items()))
        taken = tuple(write.taken) if isinstance(write.taken, Pickled) else write.taken
        nbytes, error = 0, None
        begun = time.perf_counter()
        self._lock.release()
        try:
            nbytes = self._store(number, taken)
        except Exception as caught:  # a full disk, mostly
            error = caught.with_traceback(None)  # it would keep the result
        finally:
            self._lock.acquire()
        seconds = time.perf_counter() - begun
        wanted = self._forget(number) is not None
        if error is not None or not wanted:
            self._discard(number)
        ended = [write] if wanted else []
        if error is not None:
            # Those that wait would fail, too, and each would come back before the one that is older
            # than it.
            ended += filter(None, map(self._forget, list(self._waiting)))
        for each in reversed(ended):
            each.ended(Written(nbytes, seconds, error))

    def _forget(self, number: int) -> _Write | None:
        """Take a result from those that wait, if it is one."""
        write = self._waiting.pop(number, None)
        if write is not None:
            self.waiting_bytes -= write.taken.nbytes
            self.waiting_memory -= write.memory
            self._ended.notify_all()
        return write

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


def _in_ram(taken: np.ndarray | Pickled) -> int:
    """How many bytes of it are in RAM, and not pages of a file."""
    parts = taken.parts if isinstance(taken, Pickled) else [taken]
    owners = map(owner_of, parts)
    return sum([
        part.nbytes
        for part, owner in zip(parts, owners, strict=True)
        if not (is_map(owner) or isinstance(owner, mmap.mmap))
    ])  # fmt: skip


def _drop(chest: arraychest.Chest) -> None:
    """Remove a chest; its folder may be gone already, with the worker's."""
    if not chest.closed:
        with contextlib.suppress(OSError, arraychest.ArrayChestError):
            chest.drop()
