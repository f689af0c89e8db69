"""A chest's folder as a whole: whether it is one, whether it may be made, and who may write."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Literal

from arraychest.catalog import FILE_NAME as CATALOG_NAME
from arraychest.counter import FILE_NAME as COUNTER_NAME
from arraychest.errors import ChestFormatError, ChestInUseError
from arraychest.files import (
    DATA,
    PACKS,
    QUARANTINE,
    RESERVE,
    SPARE,
    UNFINISHED,
    Files,
    check_folders,
    sync_folder,
)
from arraychest.live import FOLDER as LIVE_NAME
from arraychest.locks import ATTACHED, PRIVATE, LockFile
from arraychest.locks import FILE_NAME as LOCKS_NAME

Mode = Literal["r", "a", "w", "x"]


def open_folder(path: str, mode: Mode, *, durable: bool) -> tuple[LockFile | None, bool]:
    """Check and, where the mode says so, create a chest's folder, and attach to it.

    With `durable` its name is on stable storage then.

    Returns the folder's locks, None for ``mode="r"``, and whether nobody else may write: then no
    one else can attach until `locks.ATTACHED` is shared again.

    Raises
    ------
    FileNotFoundError, FileExistsError, NotADirectoryError
        The mode wants the chest to exist, or not to.
    ChestFormatError
        The folder holds something else than a chest.  Nothing was touched.
    ChestInUseError
        It should be emptied, and others use it.
    """
    catalog = os.path.join(path, CATALOG_NAME)
    _check_safety(path, writable=mode != "r")
    if mode == "r":
        if not os.path.isfile(catalog):
            if os.path.isdir(path):
                raise ChestFormatError(f"expected a chest at {path}, found no {CATALOG_NAME} in it")
            raise FileNotFoundError(errno.ENOENT, "expected a chest, found no such folder", path)
        return None, False
    created = False
    above = os.path.dirname(path)
    while not os.path.isdir(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    try:
        os.makedirs(path, exist_ok=False)
        created = True
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(
                errno.ENOTDIR, "expected a folder for a chest, found a file", path
            ) from None
    if durable:
        _sync_names(path, above)
    # One that is shorter than SQLite's header was being made, or is lost.
    is_chest = _is_catalog(path)
    if mode == "x" and not created and (is_chest or os.listdir(path)):
        raise FileExistsError(errno.EEXIST, 'mode="x" expects no chest yet, found a folder', path)
    if not is_chest and not created:
        present = sorted(set(os.listdir(path)))
        names = {CATALOG_NAME + suffix for suffix in ("", "-wal", "-shm", "-journal")}
        ours = {DATA, PACKS, SPARE, QUARANTINE, UNFINISHED}
        ours |= {LIVE_NAME, LOCKS_NAME, COUNTER_NAME, RESERVE}
        if set(present) - ours - names:
            raise ChestFormatError(
                f"expected a chest or an empty folder at {path}, found {present[:5]}"
            )
        left = next(Files(path, durable=False).names(), None)
        if left is not None and mode != "w":
            raise ChestFormatError(
                f"expected {CATALOG_NAME} in {path}, found none beside values such as {left}: "
                'nothing was touched; `arraychest.repair` makes a new one, mode="w" starts empty'
            )
    locks, alone = attach(path, alone=mode == "w")
    if alone:
        # What a crash left of the making of a catalog; `_check_safety` let it pass.  An empty one
        # may be another program's, which keeps it for its next transaction.
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(catalog + "-journal"):
                os.unlink(catalog + "-journal")
    return locks, alone


def _check_safety(path: str, *, writable: bool) -> None:
    """Refuse a folder that was prepared to have us read or write elsewhere.

    Looked at once: what is defended against is a chest that came from a stranger, not somebody who
    changes the folder while it is in use.

    Raises
    ------
    ChestFormatError
        A folder of values is a link; or a file of the catalog is one, or shares its bytes with a
        file elsewhere.
    """
    check_folders(path)
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = os.path.join(path, CATALOG_NAME + suffix)
        try:
            status = os.lstat(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ChestFormatError(f"expected a file at {file}, found something else")
        # Readers write to the index of the log, too.
        if status.st_nlink > 1 and (writable or suffix == "-shm"):
            raise ChestFormatError(
                f"expected a file with one name at {file}, found one with {status.st_nlink}: "
                "copy the folder"
            )
        # It may name any other file, which SQLite would remove at the end of its recovery.
        if suffix == "-journal" and status.st_size and (not writable or _has_tables(path)):
            raise ChestFormatError(
                f"expected a catalog in WAL mode in {path}, found a rollback journal beside it"
            )


def _is_catalog(path: str) -> bool:
    """Whether a catalog is there that is longer than the header of SQLite."""
    catalog = os.path.join(path, CATALOG_NAME)
    return os.path.isfile(catalog) and os.path.getsize(catalog) >= 100


def _has_tables(path: str) -> bool:
    """Whether the catalog's first page, as it lies in the file, names anything.

    A rollback journal is there only while the first page is made, before there are tables.
    """
    if not _is_catalog(path):
        return False
    with open(os.path.join(path, CATALOG_NAME), "rb") as catalog:
        head = catalog.read(105)
    # https://www.sqlite.org/fileformat.html: the number of cells of the first B-tree page.
    return head[103:] != b"\0\0"


def _sync_names(path: str, above: str) -> None:
    """Put the names of a folder, and of those down to it from `above`, on stable storage."""
    folder = path
    while folder != above:
        folder = os.path.dirname(folder)
        # A folder that may be passed through, but not read, cannot be synced either.
        with contextlib.suppress(PermissionError):
            sync_folder(folder)


def attach(path: str, *, alone: bool) -> tuple[LockFile, bool]:
    """The locks of a chest's folder, and whether nobody else is attached.

    Raises
    ------
    ChestInUseError
        Others are, and it should be `alone`.
    """
    held = LockFile(path)
    try:
        is_alone = held.try_take(ATTACHED)
        if not is_alone:
            if alone or held.is_held(PRIVATE):
                raise ChestInUseError(
                    f"expected {path} to be used by nobody else, found that it is: "
                    "close the other chests first"
                )
            held.take(ATTACHED, shared=True)
        if not held.has_name:
            raise ChestInUseError(
                f"expected {path} to stay, found it being removed by another process; try again"
            )
    except BaseException:
        held.close()
        raise
    return held, is_alone


def empty_folder(path: str) -> None:
    """Remove a catalog that cannot be read, so that a new one takes its place."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, CATALOG_NAME + suffix))
