"""Where an open folder lies, what is mounted there, and where temporary files may go."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator

from arraychest.platform.choice import IS_LINUX, IS_MACOS

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# macOS: where a descriptor's file lies; MAXPATHLEN bytes.
_F_GETPATH = 50
_MAX_PATH_BYTES = 1024

# What the system says to who opens a link, a folder, a pipe or a socket for a file.
NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EOPNOTSUPP)

# A folder lies in fewer others.
_MOST_FOLDERS = 100

# What is mounted, as Linux tells it (proc(5)).
MOUNT_TABLE = "/proc/self/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")

if not {os.open, os.stat, os.mkdir, os.rename, os.link, os.unlink, os.rmdir} <= os.supports_dir_fd:
    raise ImportError("arraychest needs a system that finds files relative to an open folder")


# --- where it lies -------------------------------------------------------------------------


def path_of(fd: int) -> str | None:
    """Where an open folder lies, as far as the system can tell; the caller has to check that."""
    with contextlib.suppress(OSError):
        if IS_LINUX:
            return os.readlink(f"/proc/self/fd/{fd}")
        if IS_MACOS:
            found = fcntl.fcntl(fd, _F_GETPATH, bytes(_MAX_PATH_BYTES))
            return os.fsdecode(found.partition(b"\0")[0])
        return _path_by_parents(fd)
    return None


def _path_by_parents(fd: int) -> str | None:
    """Look for a folder in the one above it, and so on to the root, as getcwd(3) does at worst."""
    names: list[str] = []
    inner = os.dup(fd)
    try:
        for _ in range(_MOST_FOLDERS):
            outer = os.open("..", _FOLDER, dir_fd=inner)
            sought = os.fstat(inner)
            os.close(inner)
            inner = outer
            if os.path.samestat(sought, os.fstat(outer)):
                return "/" + "/".join(reversed(names))
            with os.scandir(outer) as entries:
                names.append(next(each.name for each in entries if _is(outer, each.name, sought)))
    except StopIteration:
        pass  # it was removed, or moved on
    finally:
        os.close(inner)
    return None


def _is(folder: int, name: str, sought: os.stat_result) -> bool:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and os.path.samestat(found, sought)


# --- what is mounted -----------------------------------------------------------------------


def mounted(table: str = MOUNT_TABLE) -> Iterator[tuple[str, str]]:
    """Each mounted file system: its type and where it is mounted, in order; none if nobody says.

    Some 50 us on Linux.
    """
    if table == MOUNT_TABLE and not IS_LINUX:
        import psutil

        with contextlib.suppress(OSError):
            for each in psutil.disk_partitions(all=True):
                yield each.fstype, each.mountpoint
        return
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) >= 5 and after:
            place = _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), fields[4])
            yield after.split(" ")[0], place
