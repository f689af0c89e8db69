"""A chest's folder as a whole: whether it is one, whether it may be made, and who writes to it."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Literal

from arraychest import files as value_files
from arraychest.catalog import FILE_NAME as CATALOG_NAME
from arraychest.errors import ChestFormatError
from arraychest.files import DATA, PACKS, SPARE, Files

Mode = Literal["r", "a", "w", "x"]


def open_folder(path: str, mode: Mode) -> int | None:
    """Check and, where the mode says so, create and lock a chest's folder.

    Returns the descriptor of the writer's lock, or None for ``mode="r"``.

    Raises
    ------
    FileNotFoundError, FileExistsError, NotADirectoryError
        The mode wants the chest to exist, or not to.
    ChestFormatError
        The folder holds something else than a chest.  Nothing was touched.
    ChestInUseError
        Another chest writes to it.
    """
    catalog = os.path.join(path, CATALOG_NAME)
    if mode == "r":
        if not os.path.isfile(catalog):
            if os.path.isdir(path):
                raise ChestFormatError(f"expected a chest at {path}, found no {CATALOG_NAME} in it")
            raise FileNotFoundError(errno.ENOENT, "expected a chest, found no such folder", path)
        return None
    created = False
    try:
        os.makedirs(path, exist_ok=False)
        created = True
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(
                errno.ENOTDIR, "expected a folder for a chest, found a file", path
            ) from None
    # One that is shorter than SQLite's header was being made, or is lost.
    is_chest = os.path.isfile(catalog) and os.path.getsize(catalog) >= 100
    if mode == "x" and not created and (is_chest or os.listdir(path)):
        raise FileExistsError(errno.EEXIST, 'mode="x" expects no chest yet, found a folder', path)
    if not is_chest and not created:
        present = sorted(set(os.listdir(path)))
        names = {CATALOG_NAME + suffix for suffix in ("", "-wal", "-shm", "-journal")}
        if set(present) - {DATA, PACKS, SPARE, "writer.lock"} - names:
            raise ChestFormatError(
                f"expected a chest or an empty folder at {path}, found {present[:5]}"
            )
        left = next(Files(path, durable=False).names(), None)
        if left is not None and mode != "w":
            raise ChestFormatError(
                f"expected {CATALOG_NAME} in {path}, found none beside values such as {left}: "
                'nothing was touched; mode="w" starts empty'
            )
    return value_files.lock_for_writing(path)


def empty_folder(path: str) -> None:
    """Remove a catalog that cannot be read, so that a new one takes its place."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, CATALOG_NAME + suffix))
