"""Where temporary chests go: to a disk, since what they spill is to leave RAM.

``/tmp`` is memory (a *tmpfs*) on Fedora, Arch, Debian 13 and in many a container.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator

from arraychest.errors import ArrayChestWarning
from arraychest.sharing.mounts import file_system_of

logger = logging.getLogger(__name__)

_told: set[str] = set()


def temporary_folder() -> str:
    """The folder for temporary chests: that of `tempfile`, unless it is memory.

    Then it is ``/var/tmp``, the user's cache folder or the working folder, the first of them that
    is on a disk of this machine and can be written to.  A folder that was chosen, by ``TMPDIR`` or
    ``tempfile.tempdir``, is used all the same; so is memory if there is nothing else.  Either is
    told once, by an `ArrayChestWarning`.

    Notes
    -----
    Some 100 us: what is mounted is read anew.
    """
    folder = tempfile.gettempdir()
    if not is_memory(folder):
        return folder
    if not _is_chosen(folder):
        for other in _on_disks():
            if _is_fit(other):
                return other
    _tell_once(folder)
    return folder


def is_memory(folder: str) -> bool:
    """Whether what is written to a folder stays in RAM."""
    found = file_system_of(folder)
    return found is not None and found.is_memory


def _is_chosen(folder: str) -> bool:
    """Whether a program or its user has named the folder, and not `tempfile` by itself."""
    named = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    if any(each and os.path.abspath(each) == os.path.abspath(folder) for each in named):
        return True
    return os.path.abspath(folder) not in ("/tmp", "/var/tmp", "/usr/tmp", os.getcwd())  # noqa: S108


def _on_disks() -> Iterator[str]:
    yield "/var/tmp"  # noqa: S108
    yield os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    yield os.path.expanduser("~/Library/Caches")
    yield os.getcwd()


def _is_fit(folder: str) -> bool:
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return False
    found = file_system_of(folder)
    return found is None or not (found.is_memory or found.is_network)


def _tell_once(folder: str) -> None:
    if folder in _told:
        return
    _told.add(folder)
    message = (
        f"temporary chests spill to {folder}, which is memory itself (tmpfs): set TMPDIR to a "
        "folder on a disk, or name a folder for the chest"
    )
    try:
        warnings.warn(message, ArrayChestWarning, stacklevel=2)
    except Exception as error:  # where warnings are errors: nothing may fail for it
        logger.debug("a warning was not shown: %r", error)
