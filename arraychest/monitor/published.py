"""What other processes publish of a chest: their pages, read and checked."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from arraychest.catalog.schema import FILE_NAME as CATALOG_NAME
from arraychest.errors import ChestFormatError
from arraychest.files.names import LIVE
from arraychest.platform.locks import lock_file
from arraychest.sharing.open_folder import folder_at

PAGE_BYTES = 16_384

MAGIC = b"ARRLIVE1"
HEAD_BYTES = len(MAGIC) + 8
_NAME = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}\.page")

# Of a folder that may be a stranger's: names looked at, and pages read.
_MOST_NAMES = 4096
_MOST_PAGES = 256

# Characters of a key, or of a program's name.
MOST_TEXT = 80
_MOST_BUSIEST = 16

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


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
    >>> from arraychest.monitor.live import SECONDS
    >>> from arraychest.monitor.published import published
    >>> with arraychest.open("work.chest", available_memory="64 MiB") as chest:
    ...     time.sleep(SECONDS)
    ...     chest["slope"] = np.zeros((100, 100))
    ...     (told,) = published("work.chest")
    >>> told.mode, told.counts.misses, told.budget
    ('a', 0, 67108864)
    >>> published("work.chest")
    []
    """
    with entered(folder_at(path)) as root:
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
        with entered(LIVE, root) as folder:
            for name in page_names(folder)[:_MOST_PAGES]:
                text = _read_page(folder, name)
                told = None if text is None else _parsed(text)
                if told is not None:
                    found.append(told)
    return sorted(found, key=lambda each: (each.pid, each.opened))


@contextlib.contextmanager
def entered(name: str, parent: int | None = None) -> Iterator[int | None]:
    """A descriptor of a folder; None if it is not there.  Inside another no link is followed."""
    flags = ENTER if parent is None else ENTER | os.O_NOFOLLOW
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


def page_names(folder: int | None) -> list[str]:
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


def open_page(folder: int | None, name: str) -> int | None:
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


def is_free(fd: int, *, shared: bool = False) -> bool:
    """Whether nobody else has locked a page: its owner is gone.  The caller has, then."""
    try:
        return lock_file(fd, shared=shared, wait=False)
    except OSError:
        return False


def _read_page(folder: int | None, name: str) -> bytes | None:
    """The text of a page whose owner is alive; None if there is none."""
    fd = open_page(folder, name)
    if fd is None:
        return None
    try:
        if not os.fstat(fd).st_size or is_free(fd, shared=True):
            return None
        for _ in range(3):  # one that was being written meanwhile is read again
            data = os.pread(fd, PAGE_BYTES, 0)
            nbytes = int.from_bytes(data[8:12], "little")
            text = data[HEAD_BYTES : HEAD_BYTES + nbytes]
            if (
                data[:8] == MAGIC
                and nbytes <= PAGE_BYTES - HEAD_BYTES
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
