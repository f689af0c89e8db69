"""Sweeping: what sessions leave that die, a writer removes that comes after them."""

from __future__ import annotations

from arraychest.catalog.catalog import Catalog
from arraychest.errors import ChestFormatError
from arraychest.files.names import SPARE
from arraychest.sharing.locks import SESSION
from arraychest.storage.file_names import generation_of
from arraychest.storage.store import Store


def sessions(store: Store, catalog: Catalog) -> tuple[set[int], set[int]]:
    """The sessions that are alive, as far as can be told, and those that died."""
    open_ = set(catalog.changes.sessions())
    if store.access.locks is None:
        return open_, set()
    alive = {
        number
        for number in open_
        if number == store.catalog.changes.session
        or (0 < number < 1 << 31 and store.access.locks.is_held(SESSION + number))
    }
    return alive, open_ - alive


def sweep(store: Store) -> int:
    """Remove what sessions left that died: what they had not committed, or not removed yet.

    Returns how many files it was.  O(files), if any session died.
    """
    assert store.access.locks is not None
    with store.access.exclusive():
        alive, dead = sessions(store, store.catalog)
        if not dead:
            return 0
        problems = store.catalog.database.problems()
        if problems:
            # Rows may be missing, and what they name would be taken for orphans.
            raise ChestFormatError(
                f"expected a sound catalog in {store.folder.path}, found {problems[0]}; "
                "`arraychest.repair` makes a new one from the values' files"
            )
        newest = store.catalog.changes.last_session()
        gone = [name for number in dead for name in store.catalog.changes.gone_files(number)]
        named = store.catalog.file_generations() | store.catalog.pack_ids()
    orphans = []
    spares = set(dead)
    for name in {*store.files.names(), *gone}:
        generation = generation_of(name)
        if generation is None or generation in named:
            continue
        session = generation >> 32
        if name.startswith(SPARE):
            session = int(name.split("/")[1], 16)
        # Sessions that began since may be writing; those that ended left nothing.
        if (session <= newest and session not in alive) or name in gone:
            orphans.append(name)
            if name.startswith(SPARE):
                spares.add(session)
    store.files.remove(orphans, keep_spares=False)
    for number in spares:
        store.files.remove_spare_folder(number)
    store.files.sync_removals()
    with store.access.exclusive():
        store.catalog.changes.end_sessions(sorted(dead))
    return len(orphans)
