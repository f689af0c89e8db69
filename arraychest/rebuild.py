"""A new catalog for a chest that has lost its own, from what the value files say of themselves."""

from __future__ import annotations

import contextlib
import os

from arraychest.catalog import FILE_NAME, FORMAT_VERSION, Catalog, Pack, found_version
from arraychest.codecs import pack
from arraychest.entry import Row
from arraychest.errors import ChestFormatError
from arraychest.files import QUARANTINE, SPARE, Files
from arraychest.folder import attach
from arraychest.integrity import Finding, listed_rows
from arraychest.loader import file_name
from arraychest.store import Store, generation_of


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
    version = found_version(path)
    values = [
        name for name in Files(path, durable=False).names() if generation_of(name) is not None
    ]
    if version not in (None, FORMAT_VERSION):
        raise ChestFormatError(f"expected format {FORMAT_VERSION} at {path}, found {version}")
    if version is None and not values:
        raise ChestFormatError(f"expected a chest at {path}, found neither catalog nor values")
    locks, _ = attach(path, alone=True)
    try:
        problem = _problem(path)
        if problem is None:
            return []
        kept = _put_away(path)
        store = Store(
            path,
            locks,
            shared=True,
            alone=True,
            durable=True,
            allow_pickle=False,
            mmap_mode="r",
        )
    except BaseException:
        locks.close()
        raise
    with contextlib.closing(store):
        return _rebuild(store, problem, kept)


def _problem(path: str) -> str | None:
    """What is wrong with a catalog; None if nothing is."""
    if not os.path.isfile(os.path.join(path, FILE_NAME)):
        return "expected a catalog, found none"
    try:
        with contextlib.closing(Catalog(path, writable=False, durable=False)) as catalog:
            return next(iter(catalog.problems()), None)
    except (ChestFormatError, OSError) as error:
        return str(error)


def _put_away(path: str) -> str:
    """Move the old catalog and its log to the quarantine; returns where to."""
    number = 0
    folder = os.path.join(path, QUARANTINE)
    os.makedirs(folder, exist_ok=True)
    while True:
        number += 1
        kept = f"{QUARANTINE}/{number}-{FILE_NAME}"
        if not os.path.lexists(os.path.join(path, kept)):
            break
    # The log last: without its database nothing reads it.
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(path, FILE_NAME + suffix), os.path.join(path, kept + suffix))
    return kept


def _rebuild(store: Store, problem: str, kept: str) -> list[Finding]:
    best: dict[bytes, Row] = {}
    packs: dict[int, Pack] = {}
    names = sorted(name for name in store.files.names() if generation_of(name) is not None)
    for name in names:
        rows, own = listed_rows(store, name)
        packs.update((known.id, known) for known in own)
        for row in rows:
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
    with store.exclusive():
        store.catalog.begin_at((newest >> 32) + 1)
        store.amend([], placed, used, [])
    action = f"moved to {kept}; {len(placed)} values were found in {len(names)} files"
    findings = [Finding("catalog", None, FILE_NAME, 0, 0, problem, action)]
    named = {file_name(row) for row in placed}
    for name in names:
        if name in named:
            continue
        if name.startswith(SPARE):
            store.files.remove([name], keep_spares=False)
            continue
        place = f"{QUARANTINE}/{os.path.basename(name)}"
        os.rename(store.files.path(name), store.files.path(place))
        message = "expected the newest value of a key, found an older or incomplete one"
        findings.append(Finding("orphan", None, name, 0, 0, message, f"moved to {place}"))
    return findings
