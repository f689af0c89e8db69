"""Opening the folder of a chest: by name, privately, and once more in a forked child."""

from __future__ import annotations

import os

from arraychest.catalog.connection import is_foreign
from arraychest.engine.callers import warn_caller
from arraychest.engine.commit import logger
from arraychest.engine.options import Options
from arraychest.errors import ChestFormatError
from arraychest.files.private import make_private_folder
from arraychest.sharing.locks import FILE_NAME as LOCKS_NAME
from arraychest.sharing.locks import LockFile
from arraychest.sharing.mounts import check_file_system, file_system_of
from arraychest.sharing.open_folder import OpenFolder
from arraychest.storage.folder import attach, empty_folder, open_folder
from arraychest.storage.store import Store
from arraychest.storage.sweeping import sweep


def open_named(path: str, options: Options) -> tuple[Store, bool]:
    """The store of a folder, and whether no other writer is attached.

    Raises
    ------
    OSError, ArrayChestError, ValueError
        The folder holds no chest that may be opened so.  Nothing was changed.
    """
    mode = options.mode
    if mode != "r" and not options.allow_network:
        check_file_system(path)
    elif mode != "r":
        _warn_of_network(path)
    had_locks = os.path.lexists(os.path.join(path, LOCKS_NAME))
    folder, locks, alone = open_folder(path, mode, durable=options.durable)
    try:
        try:
            store = _store(options, folder, locks, shared=True, alone=alone)
        except ValueError:
            if mode != "w" or is_foreign(folder):
                raise
            empty_folder(folder)
            store = _store(options, folder, locks, shared=True, alone=alone)
    except BaseException as error:
        if locks is not None:
            if isinstance(error, ChestFormatError) and not had_locks and is_foreign(folder):
                locks.unlink(folder)
            locks.close()
        folder.close()
        raise
    try:
        if locks is not None:
            if mode == "w":
                store.clear()
            swept = sweep(store)
            if swept:
                logger.info("swept %d orphans in %s after an unclean end", swept, path)
        store.access.attached()
    except BaseException:
        store.close()
        raise
    logger.info("opened %s, mode %s", path, mode)
    return store, alone


def open_private(options: Options) -> Store:
    """The store of a temporary chest, in a new folder."""
    folder, locks = make_private_folder()
    try:
        return _store(options, folder, locks, shared=False, alone=True)
    except BaseException:
        locks.close()
        folder.remove()
        folder.close()
        raise


def open_in_child(before: Store, options: Options) -> Store:
    """In a forked child: a store of its own over the folder of its parent's.

    Raises
    ------
    OSError, ArrayChestError
        The folder is gone, or may not be written to.  Nothing was changed.
    """
    folder = OpenFolder(".", before.folder.fd)
    folder.path, folder.identity = before.folder.where(), before.folder.identity
    try:
        # First, as nothing may be made in a folder that somebody has put in the place of ours.
        folder.check()
        locks, alone = attach(folder, alone=False)
    except BaseException:
        folder.close()
        raise
    try:
        store = _store(options, folder, locks, shared=True, alone=alone)
    except BaseException:
        locks.close()
        folder.close()
        raise
    try:
        sweep(store)
        store.access.attached()
    except BaseException:
        store.close()
        raise
    return store


def _store(
    options: Options, folder: OpenFolder, locks: LockFile | None, *, shared: bool, alone: bool
) -> Store:
    return Store(
        folder,
        locks,
        shared=shared,
        alone=alone,
        durable=options.durable,
        allow_pickle=options.own.allow_pickle,
        mmap_mode=options.mmap_mode,
        nthreads=options.compression.nthreads,
        quota=options.quota,
        checksums=options.checksums,
    )


def _warn_of_network(path: str) -> None:
    found = file_system_of(path)
    if found is not None and found.is_network:
        warn_caller(
            f"{path} lies on {found.kind} at {found.mount_point}: the chest is safe as long as one "
            "host uses it at a time"
        )
