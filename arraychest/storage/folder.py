"""A chest's folder as a whole: whether it is one, whether it may be made, and who may write."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Literal

from arraychest.catalog.connection import read_head
from arraychest.errors import ChestFormatError, ChestInUseError
from arraychest.files.files import Files
from arraychest.files.names import DATA, LIVE, PACKS, QUARANTINE, RESERVE, SPARE, UNFINISHED
from arraychest.files.place import check_folders, sync_folder
from arraychest.sharing.commit_counter import FILE_NAME as COUNTER_NAME
from arraychest.sharing.locks import ATTACHED, PRIVATE, LockFile
from arraychest.sharing.locks import FILE_NAME as LOCKS_NAME
from arraychest.sharing.open_folder import CATALOG_NAME, OpenFolder

Mode = Literal["r", "a", "w", "x"]


def open_folder(
    path: str, mode: Mode, *, durable: bool
) -> tuple[OpenFolder, LockFile | None, bool]:
    """Check and, where the mode says so, create a chest's folder, and attach to it.

    With `durable` its name is on stable storage then.

    Returns the folder, its locks, None for ``mode="r"``, and whether nobody else may write: then
    no one else can attach until `locks.ATTACHED` is shared again.

    Raises
    ------
    FileNotFoundError, FileExistsError, NotADirectoryError
        The mode wants the chest to exist, or not to.
    PermissionError
        The chest should be written to, and this process may not.
    ChestFormatError
        The folder holds something else than a chest.  Nothing was touched.
    ChestInUseError
        It should be emptied, and others use it.
    """
    if mode == "r":
        return _to_read(path), None, False
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
    folder, locks = OpenFolder(path), None
    try:
        _check_safety(folder, writable=True)
        if durable:
            _sync_names(path, above)
        # One that is shorter than SQLite's header was being made, or is lost.
        is_chest = _is_catalog(folder)
        if mode == "x" and not created and (is_chest or os.listdir(path)):
            raise FileExistsError(
                errno.EEXIST, 'mode="x" expects no chest yet, found a folder', path
            )
        if not is_chest and not created:
            _check_empty(folder, mode)
        _check_permissions(folder)
        locks, alone = attach(folder, alone=mode == "w")
        if alone:
            # What a crash left of the making of a catalog; `_check_safety` let it pass.  An empty
            # one may be another program's, which keeps it for its next transaction.
            journal = f"{CATALOG_NAME}-journal"
            with contextlib.suppress(FileNotFoundError):
                if os.stat(journal, dir_fd=folder.fd).st_size:
                    os.unlink(journal, dir_fd=folder.fd)
    except BaseException:
        if locks is not None:
            locks.close()
        folder.close()
        raise
    return folder, locks, alone


def _to_read(path: str) -> OpenFolder:
    try:
        folder = OpenFolder(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            errno.ENOENT, "expected a chest, found no such folder", path
        ) from None
    try:
        _check_safety(folder, writable=False)
        try:
            status = os.stat(CATALOG_NAME, dir_fd=folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise ChestFormatError(f"expected a chest at {path}, found no {CATALOG_NAME} in it")
    except BaseException:
        folder.close()
        raise
    return folder


def _check_empty(folder: OpenFolder, mode: Mode) -> None:
    """Refuse a folder without a catalog that holds more than what is left of a chest's making.

    Raises
    ------
    ChestFormatError
        Another program's files are in it, or values.
    """
    path = folder.path
    present = sorted(set(os.listdir(path)))
    names = {CATALOG_NAME + suffix for suffix in ("", "-wal", "-shm", "-journal")}
    ours = {DATA, PACKS, SPARE, QUARANTINE, UNFINISHED}
    ours |= {LIVE, LOCKS_NAME, COUNTER_NAME, RESERVE}
    if set(present) - ours - names:
        raise ChestFormatError(
            f"expected a chest or an empty folder at {path}, found {present[:5]}"
        )
    left = next(Files(folder, durable=False).names(), None)
    if left is not None and mode != "w":
        raise ChestFormatError(
            f"expected {CATALOG_NAME} in {path}, found none beside values such as {left}: "
            'nothing was touched; `arraychest.repair` makes a new one, mode="w" starts empty'
        )


def _check_permissions(folder: OpenFolder) -> None:
    """Refuse at once to write to what this process may only read.

    Raises
    ------
    PermissionError
        It may not write to the folder, or to something in it that every write needs.
    OSError
        The file system is read-only.
    """
    if os.fstatvfs(folder.fd).f_flag & os.ST_RDONLY:
        raise OSError(
            errno.EROFS,
            "expected a chest that can be written to, found a read-only file system: open it with "
            'mode="r"',
            folder.path,
        )
    files = [CATALOG_NAME + suffix for suffix in ("", "-wal", "-shm")] + [LOCKS_NAME, COUNTER_NAME]
    for name in (".", DATA, PACKS, SPARE, *files):
        needed = os.W_OK if name in files else os.W_OK | os.X_OK
        there = os.access(name, os.F_OK, dir_fd=folder.fd, effective_ids=True)
        if there and not os.access(name, needed, dir_fd=folder.fd, effective_ids=True):
            raise PermissionError(
                errno.EACCES,
                "expected a chest that this process may write to, found what it may only read: "
                'open it with mode="r", or change its permissions',
                os.path.normpath(f"{folder.path}/{name}"),
            )


def _check_safety(folder: OpenFolder, *, writable: bool) -> None:
    """Refuse a folder that was prepared to have us read or write elsewhere.

    Looked at once: what is defended against is a chest that came from a stranger, not somebody who
    changes the folder while it is in use.

    Raises
    ------
    ChestFormatError
        A folder of values is a link; or a file of the catalog is one, or shares its bytes with a
        file elsewhere.
    """
    check_folders(folder)
    path = folder.path
    for suffix in ("", "-wal", "-shm", "-journal"):
        name = CATALOG_NAME + suffix
        file = os.path.join(path, name)
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except FileNotFoundError:
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
        if suffix == "-journal" and status.st_size and (not writable or _has_tables(folder)):
            raise ChestFormatError(
                f"expected a catalog in WAL mode in {path}, found a rollback journal beside it"
            )


def _is_catalog(folder: OpenFolder) -> bool:
    """Whether a catalog is there that is longer than the header of SQLite."""
    try:
        status = os.stat(CATALOG_NAME, dir_fd=folder.fd)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size >= 100


def _has_tables(folder: OpenFolder) -> bool:
    """Whether the catalog's first page, as it lies in the file, names anything.

    A rollback journal is there only while the first page is made, before there are tables.
    """
    if not _is_catalog(folder):
        return False
    head = read_head(folder, 105)
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


def attach(folder: OpenFolder, *, alone: bool) -> tuple[LockFile, bool]:
    """The locks of a chest's folder, and whether nobody else is attached.

    Raises
    ------
    ChestInUseError
        Others are, and it should be `alone`.
    """
    held = LockFile(folder)
    try:
        is_alone = held.try_take(ATTACHED)
        if not is_alone:
            if alone or held.is_held(PRIVATE):
                raise ChestInUseError(
                    f"expected {folder.path} to be used by nobody else, found that it is: "
                    "close the other chests first"
                )
            held.take(ATTACHED, shared=True)
        if not held.has_name:
            raise ChestInUseError(
                f"expected {folder.path} to stay, found it being removed by another process; try "
                "again"
            )
    except BaseException:
        held.close()
        raise
    return held, is_alone


def empty_folder(folder: OpenFolder) -> None:
    """Remove a catalog that cannot be read, so that a new one takes its place."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CATALOG_NAME + suffix, dir_fd=folder.fd)
