"""Codec, file and catalog row as one transaction: values go in, mapped values come out.

Order of a write: the bytes into a new file, then the row, then the old generation's file goes.
So a crash at any instruction leaves each key with its old value or its new one, and at worst a
file without a row, which the next writer sweeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import Database, found_version
from arraychest.catalog.damaged import DamagedRows
from arraychest.catalog.record import (
    GENERATION,
    KEY,
    PACK,
    SEQ,
    STORED,
    Facts,
    Pack,
    RawRow,
    Row,
)
from arraychest.files.files import Files
from arraychest.files.room import RESERVE_BYTES
from arraychest.formats import pack
from arraychest.parallel import default_threads
from arraychest.platform.maps import MmapMode
from arraychest.sharing.commit_counter import open_counter, unmoved
from arraychest.sharing.locks import NUMBERS, LockFile
from arraychest.sharing.open_folder import OpenFolder
from arraychest.storage.access import Access
from arraychest.storage.file_names import pack_name, value_name
from arraychest.storage.generations import Generations
from arraychest.storage.linking import Linker
from arraychest.storage.mapped_files import MappedFiles
from arraychest.storage.packs import Packs
from arraychest.storage.quota import Quota
from arraychest.storage.reading import Loader
from arraychest.storage.writing import Writer

# Bytes of small values that one compaction step moves in one transaction.
_MOVE_BYTES = 4 << 20


# From here on a chest is large enough to keep a reserve, which is at most a third of it all.
_RESERVE_FROM = 2 * RESERVE_BYTES

# A pack is no larger than this share of a quota, where the least recently used one makes room.
_PACKS_OF_QUOTA = 32


class Store:
    """The stored values of one chest folder.

    `commit`, `move` and `drop_pack` are called by one thread at a time (the chest's commit lock),
    and in `access.exclusive`.  The parts are used by any thread.  The methods that read the catalog
    are called under the chest's lock.

    Parameters
    ----------
    folder
        The folder; closed with the store.
    locks
        The folder's; None: read only.
    shared
        Whether other processes may use the folder.
    alone
        Whether no other writer is attached, nor can be before `attached` is called.
    durable
        Whether a commit survives a power cut.
    allow_pickle
        Whether arrays of Python objects are read.
    mmap_mode
        What a value is loaded as; see `mmap.map_file`.
    nthreads
        How many threads decompress many chunks.
    quota
        How many bytes of value files there may be; None: any number.  No spares are kept then.
    checksums
        Whether values that are not compressed get checksums.

    Attributes
    ----------
    access
        Who else may use the folder.
    generations, writer, mapped, packs, linker, loader
        What gives numbers to values, writes them, writes to them through maps, packs them, links
        those of other chests, and reads them.
    """

    def __init__(
        self,
        folder: OpenFolder,
        locks: LockFile | None,
        *,
        shared: bool,
        alone: bool,
        durable: bool,
        allow_pickle: bool,
        mmap_mode: MmapMode,
        nthreads: int = 1,
        quota: Quota | None = None,
        checksums: bool = True,
    ) -> None:
        self.folder = folder
        self.files = Files(folder, durable=durable)
        if quota is not None:
            self.files.spares.most_bytes = 0
        # Where entries are evicted it was done before, as far as it could be.
        self._refusing = quota if quota is not None and not quota.evicts else None
        self._keeps_reserve = quota is None
        self._unsure = False
        self.access = Access(locks, shared=shared)
        self.counter = unmoved()
        # Whether commits are told to others.
        self.tells = False
        self.catalog = self._opened_catalog(durable=durable)
        try:
            known: dict[int, Pack] = {}
            self.loader = Loader(
                self.files, known, allow_pickle=allow_pickle, mmap_mode=mmap_mode, nthreads=nthreads
            )
            if locks is not None:
                # Last: in a folder that turns out to be another program's, nothing is made.
                self.files.make_folders()
            if shared:
                self._open_counter(alone=alone)
            # Only now: of what others commit after this, the counter tells.
            known.update((each.id, each) for each in self.catalog.packs())
        except BaseException:
            self.catalog.database.close()
            raise
        self.generations = Generations(self.catalog, self.files, self.access)
        self.writer = Writer(self.files, self.generations, checksums=checksums)
        self.mapped = MappedFiles(
            folder, self.files, self.generations, self.loader, checksums=checksums
        )
        self.linker = Linker(self.files, self.generations)
        self.packs = Packs(
            self.catalog,
            self.files,
            self.generations,
            self.access,
            known,
            self.loader,
            most_bytes=_most_pack_bytes(quota),
            checksums=checksums,
        )
        if alone:
            self.packs.reopen()
            self.files.remove_unfinished()

    def _opened_catalog(self, *, durable: bool) -> Catalog:
        writable = self.access.locks is not None

        def open_catalog() -> Catalog:
            return Catalog(
                Database(
                    self.folder,
                    writable=writable,
                    durable=durable,
                    with_room=self.files.with_room,
                )
            )

        with self.access.exclusive():
            # In a folder that is no chest, or not ours to write to, nothing is given up.
            if not writable or found_version(self.folder) is None:
                return open_catalog()
            return self.files.with_room(open_catalog, frees=True)

    def _open_counter(self, *, alone: bool) -> None:
        writable = self.access.locks is not None
        with contextlib.suppress(FileNotFoundError, PermissionError):
            self.counter = self.files.with_room(
                lambda: open_counter(self.folder, writable=writable), frees=True
            )
            self.tells = True
        if self.tells:
            self.counter.saw(self.catalog.changes.last_commit())
        if alone:
            self.counter.reset(self.counter.seen, self.catalog.last_seq())

    def close(self) -> None:
        """Close the catalog and stop being a writer, whatever goes wrong."""
        try:
            if self.access.locks is not None and self.generations.have_begun:
                self.files.end_session()
                if not self._unsure and not self.files.loose:
                    # All is stored: where this fails, on a full disk, the next writer sweeps.
                    with contextlib.suppress(OSError), self.access.exclusive():
                        self.files.sync_removals()
                        self.catalog.changes.end_sessions([self.catalog.changes.session])
                        self.keep_reserve()
        finally:
            try:
                self.catalog.database.close()
            finally:
                self.release()
        self.catalog.database.raise_interrupt()

    def release(self) -> None:
        """Stop being a writer of the folder, and let go of it."""
        self.access.close()
        self.folder.close()

    # --- beside other processes ----------------------------------------------------------------

    def take_places(self, least: int, count: int) -> int:
        """The first of `count` places in the order of insertion that nobody else gets."""
        locks = self.access.locks
        if locks is None:
            return least + 1  # a forked child, which commits nothing
        with locks.holding(NUMBERS):
            return self.counter.take_places(least, count)

    # --- writing ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the session known before the first write."""
        self.generations.new()

    def keep_reserve(self) -> None:
        """Keep room for the commit of deletions, in a chest that is not small.

        Called in `exclusive`.
        """
        if self._keeps_reserve:
            nbytes = self.writer.bytes_written + self.mapped.bytes_written
            nbytes += self.packs.bytes_written + self.packs.nbytes
            if self.files.room.reserve_is_due or nbytes >= _RESERVE_FROM:
                self.files.hold_reserve()

    def note_written_in_place(self, row: Row) -> None:
        """Note that an editor writes into a value's file from here on.  Called in `exclusive`."""
        with self._announced() as change:
            self.catalog.facts.note_written_in_place(row.generation, change)

    def note_expiry(self, row: RawRow, expires: float | None) -> None:
        """Note until when a stored value is good.  Called in `exclusive`."""
        with self._announced() as change:
            self.catalog.facts.note_expiry(row, expires, change)

    def commit(
        self,
        rows: Sequence[RawRow] = (),
        replaced: Sequence[RawRow] = (),
        deleted: Sequence[RawRow] = (),
        adopted: Sequence[Pack] = (),
        facts: Sequence[Facts] = (),
    ) -> list[str]:
        """Commit rows, and return the files that the catalog no longer names.

        They are the caller's to remove, before the next commit, once nobody here looks for them.

        Parameters
        ----------
        rows
            New rows, whose bytes are complete.
        replaced
            The rows of the same keys that are in the catalog now.
        deleted
            Entries that go.
        adopted
            Packs of another chest that `rows` lie in, already linked.
        facts
            What is known of the values of `rows`.

        Raises
        ------
        OSError
            Nothing was committed; the files of `rows` are removed.
        QuotaError
            The same, as they would be more than the chest may take.
        """
        freed = [*replaced, *deleted]
        packs = self.packs.after(rows, freed, adopted)
        try:
            places = {row[KEY]: row[SEQ] for row in replaced}
            if replaced:
                # The same key may be stored under another code (see `keys`): that entry goes.
                keys = {row[KEY] for row in rows}
                deleted = [*deleted, *[row for row in replaced if row[KEY] not in keys]]
            gone = self._commit(packs, rows, freed, deleted, places, self._refusing, facts)
        except BaseException as error:
            if isinstance(error, OSError):
                self.files.remove(_own_files(rows))
            else:
                # Interrupted: whether it was committed is for the next writer to see, who sweeps.
                self._unsure = True
            raise
        self.files.loose.difference_update(_own_files(rows))
        return gone

    @contextlib.contextmanager
    def _announced(self) -> Iterator[int | None]:
        """Give what changes the catalog its number, which others see once it is committed."""
        if not self.tells:
            yield None
            return
        change = self.counter.seen + 1
        self.counter.begin(change)
        try:
            yield change
        except Exception:
            self.counter.end(self.counter.seen)
            raise
        self.counter.end(change)
        self.counter.saw(change)

    def _commit(
        self,
        packs: dict[int, Pack],
        rows: Sequence[RawRow],
        freed: Sequence[RawRow],
        deleted: Sequence[RawRow],
        places: Mapping[bytes, int] | None = None,
        quota: Quota | None = None,
        facts: Sequence[Facts] = (),
    ) -> list[str]:
        """Change the catalog, and note what became of the packs; returns the files to remove.

        `places` are those of keys that are in the catalog: most of these stay where they are.
        """
        dropped = self.packs.droppable(packs.values())
        changed = [known for known in packs.values() if known.id not in dropped]
        gone = _own_files(freed) + [pack_name(identity) for identity in dropped]
        growth = sum(row[STORED] for row in rows if row[PACK] is None)
        growth -= sum(row[STORED] for row in freed if row[PACK] is None)
        growth += self.packs.growth(packs.values(), dropped)
        stored = self.counter.stored
        if quota is not None and stored is not None and 0 < growth > quota.nbytes - stored:
            self.packs.unclaim(dropped)
            raise quota.refusal(growth, stored)
        inserted: Sequence[RawRow] = rows
        updated: Sequence[RawRow] = ()
        if places:
            inserted = [row for row in rows if places.get(row[KEY]) != row[SEQ]]
            updated = [row for row in rows if places.get(row[KEY]) == row[SEQ]]
        # Before, so that what an interrupt leaves behind the commit is swept by the next writer.
        self.files.loose.update(gone)
        try:
            with self._announced() as change:
                self.catalog.commit(
                    deleted=deleted,
                    rows=inserted,
                    updated=updated,
                    packs=changed,
                    dropped_packs=dropped,
                    forgotten=[row[GENERATION] for row in freed],
                    facts=facts,
                    change=change,
                    gone=gone,
                )
                if stored is not None:
                    self.counter.stored = stored + growth
        except Exception:
            self.files.loose.difference_update(gone)
            self.packs.unclaim(dropped)
            raise
        self.files.loose.difference_update(pack_name(known.id) for known in changed)
        self.packs.changed(changed, dropped)
        return gone

    # --- how much there is -----------------------------------------------------------------

    def distrust_stored(self) -> None:
        """Count the bytes anew if a writer died in its commit.  Called while committing."""
        if self.counter.is_committing:
            self.counter.stored = None

    def stored_bytes(self) -> int:
        """Bytes of all value files that the catalog names, without what waits to be removed.

        O(n) if nobody has counted them yet.  Called under the chest's lock while committing.
        """
        stored = self.counter.stored
        if stored is None:
            self.catalog.database.end_snapshot()
            self.counter.stored = stored = self.catalog.stored_bytes()
        return stored

    # --- housekeeping ----------------------------------------------------------------------

    def move_steps(self, identity: int) -> Iterable[list[Row]]:
        """The entries of a pack, in groups small enough for one transaction each."""
        group: list[Row] = []
        nbytes = 0
        for row in self.catalog.rows_in(identity):
            group.append(row)
            nbytes += row.stored
            if nbytes >= _MOVE_BYTES:
                yield group
                group, nbytes = [], 0
        if group:
            yield group

    def move(self, rows: Sequence[Row]) -> list[Row]:
        """Copy packed values to the open pack, commit their new places and return their rows.

        The file of a pack that nothing lives in any more is the caller's to remove.

        Raises
        ------
        OSError, CorruptEntryError
            The values stay where they were.
        """
        data = self.loader.packed_bytes(rows)
        appended = self.packs.append(
            [row.key for row in rows],
            [row.seq for row in rows],
            [row.exact for row in rows],
            [row.form for row in rows],
            data,
            list(map(len, data)),
            [row.generation for row in rows],
        )
        moved = [Row._make(new) for new in appended]
        try:
            places = {row.key: row.seq for row in rows}
            self._commit(self.packs.after(moved, rows, ()), moved, (), (), places)
        finally:
            self.packs.settled(appended)
        return moved

    def clear(self) -> None:
        """Remove every entry, and then every file.  Nobody else is attached."""
        self.generations.new()
        names = list(self.files.names())
        with self.access.exclusive():
            self.catalog.clear(names)
        self.packs.clear()
        self.counter.stored = None
        if self.tells:
            self.counter.reset(1, 0)
            self.counter.saw(1)
        self.files.remove(names, keep_spares=False)
        self.files.remove_unfinished(all_of_them=True)
        self.files.drop_reserve()
        self.files.room.reserve_is_due = False
        self.catalog.database.raise_interrupt()

    def become_reader(self) -> None:
        """In a forked child: folder, lock and the catalog's connections are the parent's."""
        self.access.become_reader()
        # What the parent commits is news to this process.
        self.catalog.changes.session = 0
        self.packs.become_reader()
        self.catalog.database.reopen_in_child()

    def loaded_privately(self, row: Row, key: Any) -> Any:
        """A stored value whose arrays are private and writable, and not kept open here."""
        loader = Loader(
            self.files,
            self.loader.packs,
            allow_pickle=self.loader.allow_pickle,
            mmap_mode="c",
            nthreads=default_threads(),
            keep=False,
        )
        return loader.load(row, key)

    def drop_pack(self, identity: int) -> None:
        """Forget a pack that no entry uses; its file is the caller's to remove."""
        if self.packs.has(identity) and not self.packs.is_appended_to(identity):
            self._commit({identity: self.packs.record(identity)._replace(live=0)}, (), (), ())

    def amend(
        self,
        deleted: Sequence[Any],
        rows: Sequence[RawRow],
        packs: Sequence[Pack],
        dropped_packs: Sequence[int],
    ) -> None:
        """Commit what a repair changes.  Called while committing; all that is known is void then.

        Raises
        ------
        OSError
            Nothing was changed.
        """
        with self._announced() as change:
            DamagedRows(self.catalog).amend(
                deleted=deleted,
                rows=rows,
                packs=packs,
                dropped_packs=dropped_packs,
                change=change,
            )
            self.counter.stored = None
        for identity in dropped_packs:
            self.packs.forget(identity)


def _most_pack_bytes(quota: Quota | None) -> int:
    """Bytes of a pack: where packs are evicted, what goes with one is a small part of all."""
    if quota is None or not quota.evicts:
        return pack.PACK_BYTES
    return min(pack.PACK_BYTES, quota.nbytes // _PACKS_OF_QUOTA)


def _own_files(rows: Iterable[RawRow]) -> list[str]:
    return [value_name(Row._make(row)) for row in rows if row[PACK] is None]
