"""Folders of temporary chests: made, marked as in use, and removed when their owner has died."""

from __future__ import annotations

import contextlib
import os
import tempfile

from arraychest.errors import ChestFormatError
from arraychest.sharing.locks import ATTACHED, PRIVATE, LockFile
from arraychest.sharing.open_folder import OpenFolder
from arraychest.sharing.temporary import temporary_folder

_PREFIX = "arraychest-"


def make_private_folder() -> tuple[OpenFolder, LockFile]:
    """A new folder for a temporary chest, and the lock that marks it as in use.

    It lies in `temporary_folder`: set ``TMPDIR`` to have it elsewhere.  Folders whose owner died
    without removing them are removed on the way.
    """
    parent = temporary_folder()
    for name in os.listdir(parent):
        if name.startswith(_PREFIX):
            _remove_if_abandoned(os.path.join(parent, name))
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        try:
            folder = OpenFolder(path)
        except FileNotFoundError:
            continue
        except BaseException:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # without descriptors nothing else can be done
            raise
        try:
            held = LockFile(folder)
            if held.try_take(ATTACHED) and held.try_take(PRIVATE) and held.has_name:
                return folder, held
            # Another process took it for abandoned, between the lock's making and its taking.
            held.close()
            folder.close()
        except FileNotFoundError:
            folder.close()
        except BaseException:
            folder.remove()
            folder.close()
            raise


def _remove_if_abandoned(path: str) -> None:
    with contextlib.suppress(OSError, ChestFormatError), OpenFolder(path) as folder:
        # Not made where it is missing: such a folder is being made.
        held = LockFile(folder, create=False)
        try:
            if held.owner == os.getuid() and held.try_take(ATTACHED):
                folder.remove()
        finally:
            held.close()
