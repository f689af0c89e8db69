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
import fcntl
import json
import logging
import math
import os
import re
import stat
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from arraychest.catalog import FILE_NAME as CATALOG_NAME
from arraychest.errors import ChestFormatError
from arraychest.opened import OpenFolder, folder_at

logger = logging.getLogger("arraychest")

FOLDER = "live"
PAGE_BYTES = 16_384

# Between two pages of one chest at least.
SECONDS = 0.5

# Most of a thread's time that goes into pages, where there is much to count or the disk is slow.
_SHARE = 0.02

_MAGIC = b"ARRLIVE1"
_HEAD = len(_MAGIC) + 8
_NAME = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}\.page")

# Of a folder that may be a stranger's: names looked at, and pages read.
_MOST_NAMES = 4096
_MOST_PAGES = 256

# Characters of a key, or of a program's name.
MOST_TEXT = 80
_MOST_BUSIEST = 16

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Counts(NamedTuple):
    """What a chest has done since it was opened.

    Attributes
    ----------
    hits, misses, absent
        Gets answered from memory, gets that went to disk, gets of keys that are not there.
    puts, deletes
        Values put, and keys deleted.
    spills, faults, evictions
        Values stored, brought back from disk, and removed to stay within ``max_disk``.
    bytes_spilled, bytes_faulted
        Bytes of them.
    """

    hits: int = 0
    misses: int = 0
    absent: int = 0
    puts: int = 0
    deletes: int = 0
    spills: int = 0
    faults: int = 0
    evictions: int = 0
    bytes_spilled: int = 0
    bytes_faulted: int = 0


class Published(NamedTuple):
    """What one process tells of a chest that it has open.

    The counts are approximate.

    Attributes
    ----------
    pid, process
        The process's number, and its program's name.
    mode
        How it opened the chest: ``"r"``, ``"a"``, ``"w"`` or ``"x"``.
    opened, told
        When it did, and when it told this, in seconds since 1970.
    budget, charged
        Bytes that the chest may keep in RAM, and those that it does.
    resident
        Values in RAM that are not stored yet.
    stored_bytes, stored
        Bytes of the value files, and stored values; None as long as they are being counted.
    counts
        What it has done until then.
    before
        What it had done `seconds` earlier, when it told last.
    seconds
        Between the two.
    busiest
        Keys that gets asked for most since the chest met them, as text, and how often.
    """

    pid: int
    process: str
    mode: str
    opened: float
    told: float
    budget: int
    charged: int
    resident: int
    stored_bytes: int | None
    stored: int | None
    counts: Counts
    before: Counts
    seconds: float
    busiest: tuple[tuple[str, int], ...]

    def rate(self, name: str) -> float:
        """How many there were of one of the counts in a second, of late; 0.0 or more."""
        grown: int = getattr(self.counts, name) - getattr(self.before, name)
        return max(0, grown) / self.seconds if self.seconds > 0 else 0.0

    @property
    def hit_rate(self) -> float | None:
        """The share of gets of late that memory answered, 0.0 to 1.0; None if there were none."""
        hits = max(0, self.counts.hits - self.before.hits)
        misses = max(0, self.counts.misses - self.before.misses)
        return hits / (hits + misses) if hits + misses else None


# --- reading -----------------------------------------------------------------------------------


def published(path: str | os.PathLike[str]) -> list[Published]:
    """What the processes that have a chest open tell of it, by process number.

    Nothing of the chest itself is opened, and nothing is changed.  Each page is checked; one that
    is not as it should be is left out, as is that of a process that died.

    Parameters
    ----------
    path
        The chest's folder.

    Returns
    -------
    list of Published
        Empty if nobody has it open, or only since less than `SECONDS`.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    ChestFormatError
        It holds no chest.

    Notes
    -----
    O(processes), some 50 us each.

    Examples
    --------
    >>> import time
    >>> import numpy as np
    >>> import arraychest
    >>> from arraychest.live import SECONDS, published
    >>> with arraychest.open("work.chest") as chest:
    ...     time.sleep(SECONDS)
    ...     chest["slope"] = np.zeros((100, 100))
    ...     (told,) = published("work.chest")
    >>> told.mode, told.counts.misses, told.budget == chest.available_memory
    ('a', 0, True)
    >>> published("work.chest")
    []
    """
    with _entered(folder_at(path)) as root:
        if root is None:
            raise FileNotFoundError(
                errno.ENOENT, "expected a chest, found no such folder", os.fspath(path)
            )
        try:
            is_chest = stat.S_ISREG(os.stat(CATALOG_NAME, dir_fd=root).st_mode)
        except OSError:
            is_chest = False
        if not is_chest:
            raise ChestFormatError(
                f"expected a chest at {os.fspath(path)}, found no {CATALOG_NAME} in it"
            )
        found = []
        with _entered(FOLDER, root) as folder:
            for name in _names(folder)[:_MOST_PAGES]:
                text = _read_page(folder, name)
                told = None if text is None else _parsed(text)
                if told is not None:
                    found.append(told)
    return sorted(found, key=lambda each: (each.pid, each.opened))


@contextlib.contextmanager
def _entered(name: str, parent: int | None = None) -> Iterator[int | None]:
    """A descriptor of a folder; None if it is not there.  Inside another no link is followed."""
    flags = _ENTER if parent is None else _ENTER | os.O_NOFOLLOW
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except OSError as error:
        if parent is None and error.errno != errno.ENOENT:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _names(folder: int | None) -> list[str]:
    """The names of pages in a folder."""
    if folder is None:
        return []
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_NAMES:
                break
            if _NAME.fullmatch(entry.name):
                found.append(entry.name)
    return sorted(found)


def _open_page(folder: int | None, name: str) -> int | None:
    """A descriptor of a page to read; None if something else is there.  Never waits."""
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except OSError:
        return None
    # One that is being made is empty, and becomes so large once it is locked.
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size in (0, PAGE_BYTES):
        return fd
    os.close(fd)
    return None


def _is_free(fd: int, kind: int) -> bool:
    """Whether nobody else has locked a page: its owner is gone.  The caller has, then."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read_page(folder: int | None, name: str) -> bytes | None:
    """The text of a page whose owner is alive; None if there is none."""
    fd = _open_page(folder, name)
    if fd is None:
        return None
    try:
        if not os.fstat(fd).st_size or _is_free(fd, fcntl.LOCK_SH):
            return None
        for _ in range(3):  # one that was being written meanwhile is read again
            data = os.pread(fd, PAGE_BYTES, 0)
            nbytes = int.from_bytes(data[8:12], "little")
            text = data[_HEAD : _HEAD + nbytes]
            if (
                data[:8] == _MAGIC
                and nbytes <= PAGE_BYTES - _HEAD
                and zlib.crc32(text) == int.from_bytes(data[12:16], "little")
            ):
                return text
    except OSError:
        pass
    finally:
        os.close(fd)
    return None


def _parsed(text: bytes) -> Published | None:
    """What a page says, which may be anything; None where it is not of the right types."""
    try:
        told = json.loads(text.decode("ascii"))
        if type(told) is not dict:
            return None
        return Published(
            pid=_whole(told["pid"]),
            process=_text(told["process"]),
            mode=_mode(told["mode"]),
            opened=_number(told["opened"]),
            told=_number(told["told"]),
            budget=_whole(told["budget"]),
            charged=_whole(told["charged"]),
            resident=_whole(told["resident"]),
            stored_bytes=None if told["stored_bytes"] is None else _whole(told["stored_bytes"]),
            stored=None if told["stored"] is None else _whole(told["stored"]),
            counts=_counts(told["counts"]),
            before=_counts(told["before"]),
            seconds=_number(told["seconds"]),
            busiest=tuple(
                (_text(key), _whole(count))
                for key, count in _sequence(told["busiest"])[:_MOST_BUSIEST]
            ),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    # Of a time that no calendar has, nothing could be printed.
    if type(value) not in (int, float) or not 0 <= value < 1e11:
        raise ValueError(value)
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MOST_TEXT:
        raise ValueError(value)
    return value


def _mode(value: Any) -> str:
    if value not in ("r", "a", "w", "x"):
        raise ValueError(value)
    return str(value)


def _sequence(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError(value)
    return value


def _counts(value: Any) -> Counts:
    if type(value) is not dict:
        raise ValueError(value)
    return Counts(**{name: _whole(value[name]) for name in Counts._fields})


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
            os.mkdir(FOLDER, dir_fd=chest.fd)
        name = f"{os.getpid()}-{os.urandom(8).hex()}.page"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # Not through `_entered`, which would not say what lies there instead.
            folder = os.open(FOLDER, _ENTER | os.O_NOFOLLOW, dir_fd=chest.fd)
            try:
                _sweep(folder)
                self._fd = os.open(name, flags, 0o666, dir_fd=folder)
                self._name = name
            finally:
                os.close(folder)
        except FileNotFoundError:
            return False  # removed by who closed the last chest
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._remove()  # somebody is sweeping, and found it before it was locked
            return False
        os.posix_fallocate(self._fd, 0, PAGE_BYTES)
        return True

    def _remove(self) -> None:
        """Remove the page, and the folder if it was the last one."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._folder is not None and self._folder.is_ours():
            root = self._folder.fd
            with contextlib.suppress(OSError):
                with _entered(FOLDER, root) as folder:
                    if folder is not None:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(self._name, dir_fd=folder)
                os.rmdir(FOLDER, dir_fd=root)
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
    if len(text) > PAGE_BYTES - _HEAD:
        raise OSError(errno.EFBIG, "expected a text that fits on a page")
    head = _MAGIC + len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
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
    for name in _names(folder):
        fd = _open_page(folder, name)
        if fd is None:
            continue
        try:
            # Locked until it is gone: who has just made it finds that out.
            if _is_free(fd, fcntl.LOCK_EX):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
        finally:
            os.close(fd)
