"""A new catalog for a chest that has lost its own, from what the value files say of themselves."""

from __future__ import annotations

import contextlib
import os

from arraychest.catalog.connection import Database, found_version
from arraychest.catalog.record import Pack, Row
from arraychest.catalog.schema import FILE_NAME, FORMAT_VERSION
from arraychest.errors import ChestFormatError
from arraychest.files.files import Files
from arraychest.files.names import QUARANTINE, SPARE
from arraychest.formats import pack
from arraychest.integrity.report import Finding
from arraychest.integrity.salvage import listed_rows
from arraychest.sharing.open_folder import OpenFolder
from arraychest.storage.file_names import file_name, generation_of
from arraychest.storage.folder import attach
from arraychest.storage.store import Store
from arraychest.text import amount


def rebuild_if_lost(path: str) -> list[Finding]:
    """Make a new catalog where the old one is lost or damaged; nothing happens to a sound one.

    Raises
    ------
    ChestInUseError
        Somebody uses the folder.
    ChestFormatError
        It is no chest, or one of another format.
    OSError
        The old catalog is in the quarantine; calling again goes on.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"expected a chest's folder, found none at {path}")
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(OpenFolder(path))
        version = found_version(folder)
        values = [
            name for name in Files(folder, durable=False).names() if generation_of(name) is not None
        ]
        if version not in (None, FORMAT_VERSION):
            raise ChestFormatError(f"expected format {FORMAT_VERSION} at {path}, found {version}")
        if version is None and not values:
            raise ChestFormatError(f"expected a chest at {path}, found neither catalog nor values")
        locks, _ = attach(folder, alone=True)
        undo.callback(locks.close)
        problem = _problem(folder)
        if problem is None:
            return []
        kept = _put_away(folder)
        store = Store(
            folder,
            locks,
            shared=True,
            alone=True,
            durable=True,
            allow_pickle=False,
            mmap_mode="r",
        )
        undo.pop_all()
    with contextlib.closing(store):
        return _rebuild(store, problem, kept)


def _problem(folder: OpenFolder) -> str | None:
    """What is wrong with a catalog; None if nothing is."""
    if not Files(folder, durable=False).exists(FILE_NAME):
        return "expected a catalog, found none"
    # Opened once more: which catalog is the chest's is not known yet.
    with OpenFolder(folder.path) as again:
        try:
            with contextlib.closing(Database(again, writable=False, durable=False)) as database:
                return next(iter(database.problems()), None)
        except (ChestFormatError, OSError) as error:
            return str(error)


def _put_away(folder: OpenFolder) -> str:
    """Move the old catalog and its log to the quarantine; returns where to."""
    files, number = Files(folder, durable=False), 1
    while files.exists(f"{QUARANTINE}/{number}-{FILE_NAME}"):
        number += 1
    kept = f"{QUARANTINE}/{number}-{FILE_NAME}"
    # The log last: without its database nothing reads it.
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            files.rename(FILE_NAME + suffix, kept + suffix)
    return kept


def _rebuild(store: Store, problem: str, kept: str) -> list[Finding]:
    best: dict[bytes, Row] = {}
    packs: dict[int, Pack] = {}
    # By generation, where a file is called otherwise than by the key that it says.
    misnamed: dict[int, str] = {}
    names = sorted(name for name in store.files.names() if generation_of(name) is not None)
    for name in names:
        rows, own = listed_rows(store, name)
        packs.update((known.id, known) for known in own)
        for row in rows:
            if row.pack is None and file_name(row) != name:
                misnamed[row.generation] = name
            known_row = best.get(row.key)
            if known_row is None or row.generation > known_row.generation:
                best[row.key] = row
    in_order = sorted(best.values(), key=lambda row: (row.seq, row.generation))
    placed = [row._replace(seq=number) for number, row in enumerate(in_order, 1)]
    live: dict[int, int] = {}
    for row in placed:
        if row.pack is not None:
            live[row.pack] = live.get(row.pack, 0) + pack.aligned(row.stored)
    used = [known._replace(live=live[known.id]) for known in packs.values() if known.id in live]
    newest = max([generation_of(name) or 0 for name in names], default=0)
    newest = max([newest, *(row.generation for row in placed)])
    for row in placed:
        if row.generation in misnamed:
            store.files.rename(misnamed[row.generation], file_name(row))
            names[names.index(misnamed[row.generation])] = file_name(row)
    with store.access.exclusive():
        store.catalog.changes.begin_at((newest >> 32) + 1)
        store.amend([], placed, used, [])
    action = (
        f"moved to {kept}; {amount(len(placed), 'value')} found in {amount(len(names), 'file')}"
    )
    findings = [Finding("catalog", None, FILE_NAME, 0, 0, problem, action)]
    named = {file_name(row) for row in placed}
    for name in names:
        if name in named:
            continue
        if name.startswith(SPARE):
            store.files.remove([name], keep_spares=False)
            continue
        place = f"{QUARANTINE}/{os.path.basename(name)}"
        store.files.rename(name, place)
        message = "expected the newest value of a key, found an older or incomplete one"
        findings.append(Finding("orphan", None, name, 0, 0, message, f"moved to {place}"))
    return findings
