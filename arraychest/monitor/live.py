"""What a process that has a chest open tells others of it: budget, rates, the busiest keys.

A *page* is a file in the chest's folder ``live``, one for each process and chest, of 16 KiB:

=========  ======================================================================
bytes      what
=========  ======================================================================
0 to 8     ``ARRLIVE1``
8 to 12    bytes of the text that follows, little-endian
12 to 16   `zlib.crc32` of the text
16 to ...  the text: JSON, in ASCII; then zeros
=========  ======================================================================

It is written in one call, at most every `SECONDS`, by whichever thread comes by when it is time:
one that puts, commits, or gets a value that is not at hand.  Gets of values in RAM, and puts of
small arrays for which there is room, do not look at the clock, which would cost such a get half as
much again: a chest that does nothing else tells nothing new.  The first page comes `SECONDS` after
the chest was opened: what takes less writes none.

As long as its chest is open, a page is locked (flock(2)).  One that is not is what a process that
died has left; nobody reads it, and the next one to publish removes it.

Nothing here may disturb a chest: where a page cannot be made or written, none is from then on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from arraychest.files.names import LIVE
from arraychest.monitor.published import (
    ENTER,
    HEAD_BYTES,
    MAGIC,
    MOST_TEXT,
    PAGE_BYTES,
    Counts,
    entered,
    is_free,
    open_page,
    page_names,
)
from arraychest.platform.locks import lock_file
from arraychest.platform.space import reserve
from arraychest.sharing.open_folder import OpenFolder

logger = logging.getLogger("arraychest")

# Between two pages of one chest at least.
SECONDS = 0.5

# Most of a thread's time that goes into pages, where there is much to count or the disk is slow.
_SHARE = 0.02


# --- writing -----------------------------------------------------------------------------------


class Live:
    """The page of one chest in this process.  Every method is safe from many threads.

    Parameters
    ----------
    folder
        The chest's; None: nothing is ever published, as of a temporary chest.
    mode
        How it was opened.

    Attributes
    ----------
    due
        When the next page is, by `time.monotonic`; infinite if none is.
    """

    __slots__ = ("_before", "_fd", "_folder", "_lock", "_mode", "_name", "_opened", "_since", "due")

    def __init__(self, folder: OpenFolder | None, mode: str) -> None:
        self._folder = folder
        self._mode = mode
        self._fd = -1
        self._name = ""
        self._before = Counts()
        self._opened = time.time()
        # When `_before` was.
        self._since = time.monotonic()
        # Held while a page is written: by one thread, and not while the process forks.
        self._lock = threading.Lock()
        self.due = math.inf if folder is None else self._since + SECONDS

    def publish(self, account: Callable[[], dict[str, Any]]) -> None:
        """Write a page, unless another thread does.  The chest's lock is not held.

        Raises nothing: it is called in the middle of gets, puts and commits.

        Parameters
        ----------
        account
            Gives what `Published` is made of, apart from what is known here.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            began = time.monotonic()
            if began < self.due or self._folder is None:
                return  # another thread was faster
            # Whatever happens: it is not tried at each get.
            self.due = began + SECONDS
            told = account()
            if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
                self._remove()  # swept before it was locked, or tidied up by somebody
            if self._fd < 0 and not self._make_page(self._folder):
                return
            counts: Counts = told["counts"]
            page = _page(
                told
                | {
                    "pid": os.getpid(),
                    "process": _program(),
                    "mode": self._mode,
                    "opened": self._opened,
                    "told": time.time(),
                    "counts": counts._asdict(),
                    "before": self._before._asdict(),
                    "seconds": began - self._since,
                }
            )
            if os.pwrite(self._fd, page, 0) != len(page):
                raise OSError(errno.EIO, "the file system took no bytes")
            self._before, self._since = counts, began
            self.due = began + max(SECONDS, (time.monotonic() - began) / _SHARE)
        except Exception as error:
            self.due = math.inf
            path = "" if self._folder is None else self._folder.path
            logger.debug("nothing is published of %s: %s", path, error, exc_info=True)
            self._remove()
        finally:
            self._lock.release()

    def _make_page(self, chest: OpenFolder) -> bool:
        """Make the page's file, and lock it; False where another process got in between."""
        chest.check()
        with contextlib.suppress(FileExistsError):
            os.mkdir(LIVE, dir_fd=chest.fd)
        name = f"{os.getpid()}-{os.urandom(8).hex()}.page"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # Not through `entered`, which would not say what lies there instead.
            folder = os.open(LIVE, ENTER | os.O_NOFOLLOW, dir_fd=chest.fd)
            try:
                _sweep(folder)
                self._fd = os.open(name, flags, 0o666, dir_fd=folder)
                self._name = name
            finally:
                os.close(folder)
        except FileNotFoundError:
            return False  # removed by who closed the last chest
        if not lock_file(self._fd, wait=False):
            self._remove()  # somebody is sweeping, and found it before it was locked
            return False
        reserve(self._fd, 0, PAGE_BYTES)
        return True

    def _remove(self) -> None:
        """Remove the page, and the folder if it was the last one."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._folder is not None and self._folder.is_ours():
            root = self._folder.fd
            with contextlib.suppress(OSError):
                with entered(LIVE, root) as folder:
                    if folder is not None:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(self._name, dir_fd=folder)
                os.rmdir(LIVE, dir_fd=root)
        os.close(fd)

    def close(self) -> None:
        """Remove the page; there will be no other.  Raises nothing."""
        with self._lock:
            self.due = math.inf
            self._remove()

    # --- fork ------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no page be written meanwhile."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Undo `before_fork`."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """The page is the parent's: its lock must not live longer than that."""
        self._lock = threading.Lock()
        self.due = math.inf
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _page(told: dict[str, Any]) -> bytes:
    text = json.dumps(told).encode("ascii")
    if len(text) > PAGE_BYTES - HEAD_BYTES:
        raise OSError(errno.EFBIG, "expected a text that fits on a page")
    head = MAGIC + len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
    return (head + text).ljust(PAGE_BYTES, b"\0")


def _program() -> str:
    """The program's name, as somebody who started it knows it."""
    path: str = (getattr(sys, "argv", None) or [""])[0]
    name = os.path.basename(path)
    if name == "__main__.py":  # python -m package
        name = os.path.basename(os.path.dirname(path))
    if name in ("", "-c", "-m"):
        name = os.path.basename(sys.executable or "") or "python"
    return name[:MOST_TEXT]


def _sweep(folder: int) -> None:
    """Remove the pages of processes that died."""
    for name in page_names(folder):
        fd = open_page(folder, name)
        if fd is None:
            continue
        try:
            # Locked until it is gone: who has just made it finds that out.
            if is_free(fd):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
        finally:
            os.close(fd)
