"""Codec, file and catalog row as one transaction: values go in, mapped values come out.

Order of a write: the bytes into a new file, then the row, then the old generation's file goes.
So a crash at any instruction leaves each key with its old value or its new one, and at worst a
file without a row, which the next writer sweeps.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from arraychest.arrays.mmap import MmapMode
from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import Database, found_version
from arraychest.catalog.damaged import DamagedRows
from arraychest.catalog.record import (
    GENERATION,
    KEY,
    OFFSET,
    PACK,
    SEQ,
    STORED,
    Facts,
    Pack,
    RawRow,
    Row,
)
from arraychest.errors import ChestFormatError, CorruptEntryError
from arraychest.files.files import Files
from arraychest.files.names import DATA, PACKS, READ_FLAGS, SPARE
from arraychest.files.room import RESERVE_BYTES
from arraychest.files.writing import Put, write_all
from arraychest.formats import b2nd, blosc, checksums, directory, npy, pack, tree
from arraychest.formats.blosc import Choice
from arraychest.formats.form import Form, form_text, parse_form
from arraychest.formats.tree import Tree
from arraychest.parallel import default_threads
from arraychest.sharing.commit_counter import open_counter, unmoved
from arraychest.sharing.interrupts import Lock
from arraychest.sharing.locks import ATTACHED, COMMIT, NUMBERS, SESSION, LockFile
from arraychest.sharing.locks import PACK as PACK_BYTE
from arraychest.sharing.open_folder import OpenFolder
from arraychest.storage.quota import Quota
from arraychest.storage.reading import Loader, is_packed_well, pack_name, value_name
from arraychest.values.keys import KeyCode

# Bytes of small values that one compaction step moves in one transaction.
_MOVE_BYTES = 4 << 20


# From here on a chest is large enough to keep a reserve, which is at most a third of it all.
_RESERVE_FROM = 2 * RESERVE_BYTES

# A pack is no larger than this share of a quota, where the least recently used one makes room.
_PACKS_OF_QUOTA = 32


class Store:
    """The stored values of one chest folder.

    `commit`, `move` and `drop_pack` are called by one thread at a time (the chest's commit lock),
    and in `exclusive`.  `write`, `append` and `loader` (see `reading`) are used by any thread.  The
    methods that read the catalog are called under the chest's lock.

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
        # So that what goes with one pack is a small part of all.
        self._most_pack_bytes = pack.PACK_BYTES
        if quota is not None and quota.evicts:
            self._most_pack_bytes = min(pack.PACK_BYTES, quota.nbytes // _PACKS_OF_QUOTA)
        # Where entries are evicted it was done before, as far as it could be.
        self._refusing = quota if quota is not None and not quota.evicts else None
        self.locks = locks
        self.shared = shared
        self.counter = unmoved()
        # Whether commits are told to others.
        self.tells = False
        self._keeps_reserve = quota is None

        def open_catalog() -> Catalog:
            database = Database(
                folder, writable=locks is not None, durable=durable, with_room=self.files.with_room
            )
            return Catalog(database)

        with self.exclusive():
            # In a folder that is no chest, or not ours to write to, nothing is given up.
            if locks is None or found_version(folder) is None:
                self.catalog = open_catalog()
            else:
                self.catalog = self.files.with_room(open_catalog, frees=True)
        try:
            self._packs: dict[int, Pack] = {}
            self.loader = Loader(
                self.files,
                self._packs,
                allow_pickle=allow_pickle,
                mmap_mode=mmap_mode,
                nthreads=nthreads,
            )
            if locks is not None:
                # Last: in a folder that turns out to be another program's, nothing is made.
                self.files.make_folders()
            if shared:
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    writable = locks is not None
                    self.counter = self.files.with_room(
                        lambda: open_counter(folder, writable=writable), frees=True
                    )
                    self.tells = True
                if self.tells:
                    self.counter.saw(self.catalog.changes.last_commit())
                if alone:
                    self.counter.reset(self.counter.seen, self.catalog.last_seq())
            # Only now: of what others commit after this, the counter tells.
            self._packs.update((known.id, known) for known in self.catalog.packs())
        except BaseException:
            self.catalog.database.close()
            raise
        self._next_generation = 0
        self._session_lock = Lock()
        # The pack being appended to, and how far it is written (its row says how far committed).
        self._append_lock = Lock()
        self._open_pack = 0
        self._tail = 0
        # Packs with values that are written and not committed yet, and how many batches of them.
        self._pending: dict[int, int] = {}
        # Packs that no other process may append to, compact or drop.
        self._claimed: set[int] = set()
        # Counts the changes that commits made to `_packs`.
        self._packs_version = 0
        self._packs_lock = Lock()
        # By pack, place and size of directories that its row does not count yet.
        self._listed: dict[int, list[tuple[int, int]]] = {}
        self._checksums = checksums
        self._unsure = False
        self.bytes_written = 0
        if alone:
            self._reopen_pack()
            self.files.remove_unfinished()

    def close(self) -> None:
        """Close the catalog and stop being a writer, whatever goes wrong."""
        try:
            if self.locks is not None and self._next_generation:
                self.files.end_session()
                if not self._unsure and not self.files.loose:
                    # All is stored: where this fails, on a full disk, the next writer sweeps.
                    with contextlib.suppress(OSError), self.exclusive():
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
        if self.locks is not None:
            self.locks.close()
        self.folder.close()

    # --- beside other processes ----------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all others, in this process and elsewhere, from changing the catalog."""
        if self.locks is None or not self.shared:
            yield
            return
        with self.locks.holding(COMMIT):
            yield

    def attached(self) -> None:
        """Let others attach to the folder, too."""
        if self.locks is not None and self.shared:
            self.locks.take(ATTACHED, shared=True)

    def detach_others(self) -> bool:
        """Keep others from attaching; False if one is attached."""
        return self.locks is not None and self.locks.try_take(ATTACHED)

    def take_places(self, least: int, count: int) -> int:
        """The first of `count` places in the order of insertion that nobody else gets."""
        if self.locks is None:
            return least + 1  # a forked child, which commits nothing
        with self.locks.holding(NUMBERS):
            return self.counter.take_places(least, count)

    def reread_packs(self) -> None:
        """Others have committed: note what became of the packs.  Called under the chest's lock."""
        while True:
            version = self._packs_version
            self.catalog.database.end_snapshot()
            found = {known.id: known for known in self.catalog.packs()}
            with self._packs_lock:
                if version != self._packs_version:
                    continue  # a commit of our own has changed them meanwhile, and knows better
                for identity in list(self._packs):
                    # Ours may have values that are written and not committed yet.
                    if identity not in found and identity not in self._claimed:
                        self._forget_pack(identity)
                self._packs.update(found)
                return

    def _claim(self, identity: int) -> bool:
        """Keep other processes from appending to a pack, compacting or dropping it."""
        if self.locks is None or not self.shared or identity in self._claimed:
            return True
        if not 0 < identity < PACK_BYTE or not self.locks.try_take(PACK_BYTE + identity):
            return False
        self._claimed.add(identity)
        return True

    def _unclaim(self, identity: int) -> None:
        if identity in self._claimed:
            self._claimed.discard(identity)
            assert self.locks is not None
            self.locks.let_go(PACK_BYTE + identity)

    # --- writing ---------------------------------------------------------------------------

    def _generations_for(self, count: int) -> int:
        """The first of `count` generations that nobody else gets."""
        with self._session_lock:
            if not self._next_generation:
                # The first write of a session: from here on a crash leaves something to sweep.
                with self.exclusive():
                    session = self.catalog.changes.begin_session()
                    if self.locks is not None and self.shared:
                        self.locks.take(SESSION + session)
                self.files.spares.session = session
                self._next_generation = session << 32
                self.catalog.database.raise_interrupt()
            first = self._next_generation
            self._next_generation += count
        return first

    def new_generation(self) -> int:
        """A generation that nobody else gets."""
        return self._generations_for(1)

    def begin(self) -> None:
        """Make the session known before the first write."""
        self.new_generation()

    def keep_reserve(self) -> None:
        """Keep room for the commit of deletions, in a chest that is not small.

        Called in `exclusive`.
        """
        if self._keeps_reserve:
            packed = sum(known.bytes for known in list(self._packs.values()))
            if self.files.room.reserve_is_due or self.bytes_written + packed >= _RESERVE_FROM:
                self.files.hold_reserve()

    def write(
        self,
        code: KeyCode,
        seq: int,
        body: Sequence[bytes | memoryview],
        form: Form,
        text: str,
    ) -> Row:
        """Write a value to a file of its own and return the row that would name it.

        Parameters
        ----------
        body
            Its bytes.

        Raises
        ------
        OSError
            Nothing is left of the file.
        """
        generation = self.new_generation()
        stamp = _new_stamp()
        head = npy.header(form)
        size = sum(map(len, body))
        # Before the write: so the bytes are in the caches when they are written.
        sums = checksums.of_buffers(body) if self._checksums else b""
        listed = _directory_of_one(stamp, generation, seq, size, code, text, sums)
        end = len(head) + size
        stored = end + len(listed) + npy.TRAILER_BYTES
        row = Row(code.canonical, seq, code.exact, text, generation, None, len(head), stored, stamp)
        tail = npy.trailer(stamp, end, len(listed))
        self.files.write(value_name(row), [head, *body, listed, tail])
        self.bytes_written += stored
        return row

    def compress(
        self,
        code: KeyCode,
        seq: int,
        array: np.ndarray,
        form: Form,
        text: str,
        choice: Choice,
        nthreads: int,
    ) -> Row:
        """As `write`, compressed: chunk by chunk, `b2nd.WORKING_BYTES` of RAM for each thread."""
        generation = self.new_generation()
        stamp = _new_stamp()
        # The frame has checksums of its own.
        listed = _directory_of_one(stamp, generation, seq, form.nbytes, code, text, b"")
        row = Row(code.canonical, seq, code.exact, text, generation, None, 0, 0, stamp)
        # A frame knows C order only.
        flat = array.T if form.order == "F" else array
        layout = blosc.layout_of(flat, choice)

        def produce(put: Put, _: int) -> int:
            end = b2nd.write(flat, layout, nthreads, put, stamp)
            put(end, [listed, npy.trailer(stamp, end, len(listed))])
            return end + len(listed) + npy.TRAILER_BYTES

        stored = self.files.stream(value_name(row), produce)
        self.bytes_written += stored
        return row._replace(stored=stored)

    def compress_tree(
        self,
        code: KeyCode,
        seq: int,
        array: Tree,
        choices: Sequence[Choice | None],
        nthreads: int,
        named: str,
    ) -> Row:
        """As `compress`, of a value tree: some of its parts are.

        Parameters
        ----------
        named
            What follows in the text of its form, which nobody knows yet.
        """
        generation = self.new_generation()
        stamp = _new_stamp()
        # As long as with any other number of bytes: NumPy pads it.
        start = len(npy.header(tree.form_of(0)))
        layouts = [
            None if choice is None else blosc.layout_of(tree.in_c_order(part), choice)
            for part, choice in zip(array.parts, choices, strict=True)
        ]
        text = form_text(*tree.form_of(0)) + named
        row = Row(code.canonical, seq, code.exact, text, generation, None, start, 0, stamp)

        def produce(put: Put, fd: int) -> int:
            nonlocal row
            size = array.compress(
                layouts, nthreads, lambda at, buffers: put(start + at, buffers), stamp
            )
            form = tree.form_of(size)
            row = row._replace(form=form_text(*form) + named)
            end = start + size
            # Its parts are not written in one piece, nor in their order.
            sums = checksums.of_file(fd, start, size) if self._checksums else b""
            listed = _directory_of_one(stamp, generation, seq, size, code, row.form, sums)
            put(end, [listed, npy.trailer(stamp, end, len(listed))])
            put(0, [npy.header(form)])
            return end + len(listed) + npy.TRAILER_BYTES

        stored = self.files.stream(value_name(row), produce)
        self.bytes_written += stored
        return row._replace(stored=stored)

    def create(
        self, code: KeyCode, seq: int, form: Form, text: str, source: Row | None
    ) -> tuple[Row, int, bool]:
        """Make a value's file with its space reserved, to be written to through a map.

        Parameters
        ----------
        source
            A stored value that its data may be a copy of; None: zero bytes.

        Returns
        -------
        tuple[Row, int, bool]
            The row that would name it once it is sealed, its descriptor, and whether it has the
            data of `source`: not if that has another layout, or is gone.

        Raises
        ------
        OSError
            Nothing is left of the file.
        """
        head = npy.header(form)
        end = len(head) + form.nbytes
        stamp, generation = _new_stamp(), self.new_generation()
        # Only its size: a disk refuses the file before its checksums take room in RAM.
        listed = len(_directory_of_one(stamp, generation, seq, form.nbytes, code, text, b""))
        if self._checksums:
            listed += checksums.PACKED_BYTES * checksums.count(form.nbytes)
        stored = end + listed + npy.TRAILER_BYTES
        row = Row(code.canonical, seq, code.exact, text, generation, None, len(head), stored, stamp)
        name = value_name(row)
        copied = None
        if source is not None and (source.form, source.offset, source.stored) == (
            row.form,
            row.offset,
            row.stored,
        ):
            copied = value_name(source)
        try:
            fd = self.files.create(name, stored, copied)
        except FileNotFoundError:
            if copied is None:
                raise
            # Overwritten or deleted by somebody else at this moment.
            copied = None
            fd = self.files.create(name, stored, None)
        try:
            # Not sealed yet, also where it began as a copy of a file that is.
            tail = bytes(npy.TRAILER_BYTES)
            write_all(fd, [tail], [len(tail)], end + listed)
            write_all(fd, [head], [len(head)], 0)
        except BaseException:
            os.close(fd)
            self.remove_draft(row)
            raise
        return row, fd, copied is not None

    def fill(self, fd: int, row: Row, array: np.ndarray, form: Form) -> None:
        """Write an array's elements to a file that `create` made."""
        body = npy.payload(array, form)
        write_all(fd, body, list(map(len, body)), row.offset)

    def seal(self, row: Row, fd: int) -> None:
        """Complete a file that `create` made: from here on it is as one that `write` wrote."""
        assert row.stamp is not None
        nbytes = parse_form(row.form).nbytes
        end = row.offset + nbytes
        sums = checksums.of_file(fd, row.offset, nbytes) if self._checksums else b""
        code = KeyCode(row.key, row.exact)
        listed = _directory_of_one(row.stamp, row.generation, row.seq, nbytes, code, row.form, sums)
        tail = [listed, npy.trailer(row.stamp, end, len(listed))]
        write_all(fd, tail, list(map(len, tail)), end)
        self.files.sync(value_name(row), fd)
        self.bytes_written += row.stored

    def remove_draft(self, row: Row) -> None:
        """Remove a file that `create` made."""
        self.files.remove([value_name(row)], keep_spares=False)

    def open_in_place(self, row: Row, key: Any) -> int:
        """A value's file of its own, open for writing.

        Raises
        ------
        CorruptEntryError
            It is not the file that the row tells of.
        OSError
            It cannot be opened; FileNotFoundError where it is gone.
        """
        name = value_name(row)
        flags = (READ_FLAGS & ~os.O_RDONLY) | os.O_RDWR
        fd = os.open(name, flags, dir_fd=self.folder.fd)
        try:
            self.loader.check_file(fd, row, key)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def renewed(self, row: Row, fd: int) -> Row:
        """End the writing into a value's file: the row that names it under a new generation.

        The checksums in the file are those of what it contains now; the old name stays.

        Raises
        ------
        OSError
            It has no new name; FileNotFoundError where its old one is gone.
        """
        new = row._replace(generation=self.new_generation())
        assert row.stamp is not None, "only a packed value has none"
        tail = os.pread(fd, npy.TRAILER_BYTES, row.stored - npy.TRAILER_BYTES)
        _, end = npy.parse_trailer(tail, row.stored) or (None, row.stored)
        listed = os.pread(fd, row.stored - npy.TRAILER_BYTES - end, end)
        found = directory.decode(listed, row.stamp, 1)
        if found is not None:
            sums = checksums.of_file(fd, row.offset, end - row.offset) if found[0].sums else b""
            code = KeyCode(row.key, row.exact)
            listed = _directory_of_one(
                row.stamp, new.generation, row.seq, end - row.offset, code, row.form, sums
            )
            write_all(fd, [listed], [len(listed)], end)
        self.files.sync(value_name(row), fd)
        self.files.link(self.files, value_name(row), value_name(new))
        return new

    def write_in_place(self, row: Row) -> None:
        """Note that an editor writes into a value's file from here on.  Called in `exclusive`."""
        with self._announced() as change:
            self.catalog.facts.note_written_in_place(row.generation, change)

    def note_expiry(self, row: RawRow, expires: float | None) -> None:
        """Note until when a stored value is good.  Called in `exclusive`."""
        with self._announced() as change:
            self.catalog.facts.note_expiry(row, expires, change)

    def may_write_in_place(self, row: Row) -> bool:
        """Whether a value has a file that nothing else shares."""
        if row.pack is not None or row.is_frame or row.is_blocked:
            return False
        return self.files.stat(value_name(row)).st_nlink == 1

    def append(
        self,
        codes: list[bytes],
        seqs: Sequence[int],
        exacts: list[bytes | None],
        forms: list[str],
        data: Sequence[bytes | np.ndarray],
        sizes: list[int],
        generations: Sequence[int] | None = None,
    ) -> list[RawRow]:
        """Append small values to the open pack and return the rows that would name them.

        Parameters
        ----------
        codes, seqs, exacts, forms
            Columns of the rows: the keys' canonical codes, their places, exact codes, and forms.
        data, sizes
            The values' bytes, as whatever exports them in one piece, and how many they are.
        generations
            Those of the values, where they are moved; None: new ones.

        Raises
        ------
        OSError
            Nothing of these values is left, and what the pack held is untouched.
        """
        # One call writes them as they are: joined first, they would be copied to fresh memory.
        buffers: list[bytes | memoryview | np.ndarray] = []
        if all([not size & (pack.ALIGN - 1) and size for size in sizes]):
            spans = sizes
            buffers += data
            lengths = list(sizes)
        else:
            # A value without bytes takes a place, too: no two values lie at one offset.
            spans = [pack.aligned(size) or pack.ALIGN for size in sizes]
            lengths = []
            for value, size, span in zip(data, sizes, spans, strict=True):
                buffers += (value, _ZEROS[span - size])
                lengths += (size, span - size)
        if generations is None:
            first = self._generations_for(len(data))
            generations = range(first, first + len(data))
        sums = checksums.of_values(data) if self._checksums else b""
        with self._append_lock:
            target, start = self._pack_to_append()
            at = start or pack.HEADER_BYTES
            listed = directory.encode(
                target.stamp, generations, seqs, sizes, codes, exacts, forms, sums
            )
            listed += _ZEROS[-len(listed) % pack.ALIGN]
            buffers.insert(0, listed)
            lengths.insert(0, len(listed))
            if not start:
                buffers.insert(0, pack.header(target.stamp))
                lengths.insert(0, pack.HEADER_BYTES)
            self._tail = self.files.append(pack_name(target.id), start, buffers, lengths)
            self._listed.setdefault(target.id, []).append((at, len(listed)))
            # Not in the catalog before the first commit of a row in it.
            self._packs.setdefault(target.id, target)
            self._open_pack = target.id
            self._pending[target.id] = self._pending.get(target.id, 0) + 1
        self.bytes_written += sum(spans)
        return list(
            zip(
                codes,
                seqs,
                exacts,
                forms,
                generations,
                itertools.repeat(target.id),
                itertools.accumulate(spans[:-1], initial=at + len(listed)),
                sizes,
                itertools.repeat(None),
            )
        )

    def append_settled(self, rows: Sequence[RawRow]) -> None:
        """Note that what `append` returned was committed, or never will be.

        Until then its pack is not dropped, however little lives in it.
        """
        identity = rows[0][PACK]
        assert identity is not None
        with self._append_lock:
            left = self._pending.pop(identity) - 1
            if left:
                self._pending[identity] = left
            elif identity != self._open_pack:
                self._unclaim(identity)

    def _may_drop(self, known: Pack) -> bool:
        return not known.live and known.id not in self._pending

    def _reopen_pack(self) -> None:
        """Go on with the last pack of an earlier session, rather than leave many small ones.

        Only where no other writer is attached, who might do the same.
        """
        newest = max(self._packs.values(), default=None)
        if newest is not None and not newest.sealed and self._claim(newest.id):
            self._open_pack, self._tail = newest.id, newest.bytes

    def _pack_to_append(self) -> tuple[Pack, int]:
        """The pack to append to and where it ends; a new one ends at 0."""
        target = self._packs.get(self._open_pack)
        if target is not None and not target.sealed and self._tail < self._most_pack_bytes:
            # Behind the end of a file that was truncated, what it has lost would read as zeros.
            name, head = pack_name(target.id), pack.header(target.stamp)
            if self._tail >= len(head) and self.files.may_append(name, self._tail, head):
                return target, self._tail
        identity = self.new_generation()
        self._claim(identity)
        return Pack(identity, _new_stamp(), 0, 0, 0, pack.HEADER_BYTES), 0

    def begin_compaction(self, identity: int) -> bool:
        """Never append to a pack again; False if it is gone, or another process appends to it."""
        if identity not in self._packs or not self._claim(identity):
            return False
        with self._append_lock:
            self._packs[identity] = self._packs[identity]._replace(sealed=1)
            if self._open_pack == identity:
                self._open_pack = 0
        return True

    def is_appended_to(self, identity: int) -> bool:
        """Whether a pack has values that are written and not committed yet."""
        return identity in self._pending

    def end_compaction(self, identity: int) -> None:
        """Let others compact a pack that is left, after all."""
        with self._append_lock:
            if identity not in self._pending:
                self._unclaim(identity)

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
        packs = self._packs_after(rows, freed, adopted)
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
        with self._append_lock:
            dropped = [
                known.id
                for known in packs.values()
                if self._may_drop(known) and known.id != self._open_pack and self._claim(known.id)
            ]
        changed = [known for known in packs.values() if known.id not in dropped]
        gone = _own_files(freed) + [pack_name(identity) for identity in dropped]
        growth = sum(row[STORED] for row in rows if row[PACK] is None)
        growth -= sum(row[STORED] for row in freed if row[PACK] is None)
        for known in packs.values():
            before = self._packs.get(known.id)
            growth += (0 if known.id in dropped else known.bytes) - (before.bytes if before else 0)
        stored = self.counter.stored
        if quota is not None and stored is not None and 0 < growth > quota.nbytes - stored:
            for identity in dropped:
                self._unclaim(identity)
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
            for identity in dropped:
                self._unclaim(identity)
            raise
        self.files.loose.difference_update(pack_name(known.id) for known in changed)
        with self._append_lock:
            for known in changed:
                left = [each for each in self._listed.pop(known.id, ()) if each[0] >= known.bytes]
                if left:
                    self._listed[known.id] = left
        with self._packs_lock:
            self._packs_version += 1
            self._packs.update((known.id, known) for known in changed)
            for identity in dropped:
                self._forget_pack(identity)
        return gone

    def _forget_pack(self, identity: int) -> None:
        self._packs.pop(identity, None)
        self.loader.forget_pack(identity)
        self._unclaim(identity)

    def _packs_after(
        self, rows: Iterable[RawRow], freed: Iterable[RawRow], adopted: Iterable[Pack]
    ) -> dict[int, Pack]:
        """The packs that a commit changes, as they are after it."""
        known = {each.id: each for each in adopted}
        ends: dict[int, int] = {}
        live: dict[int, int] = {}
        # By packs, of which there is mostly one: a row of many costs as little as can be.
        for identity, group in itertools.groupby(rows, _PACK_OF):
            if identity is not None:
                found = list(group)
                sizes = _sizes_in_pack(found)
                live[identity] = live.get(identity, 0) + sum(sizes)
                end = max(map(operator.add, map(_OFFSET_OF, found), sizes))
                ends[identity] = max(ends.get(identity, 0), end)
        for identity, group in itertools.groupby(freed, _PACK_OF):
            before = known.get(identity) or self._packs.get(identity)
            if before is not None:
                found = list(group)
                sizes = _sizes_in_pack(found)
                # One that reaches beyond its pack is corrupt, and was never counted.
                room = map(before.bytes.__sub__, map(_OFFSET_OF, found))
                gone = sum(itertools.compress(sizes, map(operator.le, sizes, room)))
                live[identity] = live.get(identity, 0) - gone
        after: dict[int, Pack] = {}
        for identity in live:
            before = known.get(identity) or self._packs.get(identity)
            if before is None:
                if identity in ends:
                    raise OSError(errno.ENOENT, f"pack {identity:x} is gone")
                continue  # a corrupt row named it
            nbytes = max(before.bytes, ends.get(identity, 0))
            # Those before its end were counted with an earlier commit.
            listed = [each for each in self._listed.get(identity, ()) if each[0] >= before.bytes]
            after[identity] = before._replace(
                bytes=nbytes,
                live=max(0, before.live + live[identity]),
                own=before.own + sum(size for at, size in listed if at < nbytes),
            )
        return after

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

    def sparse_packs(self, share: float) -> list[int]:
        """Packs of which more than `share` of the bytes are dead."""
        return [
            known.id
            for known in list(self._packs.values())
            if known.bytes - known.own - known.live > share * max(known.bytes - known.own, 1)
        ]

    def dead_bytes(self) -> int:
        """Bytes in packs that no entry uses."""
        return sum(max(0, each.bytes - each.own - each.live) for each in list(self._packs.values()))

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
        appended = self.append(
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
            self._commit(self._packs_after(moved, rows, ()), moved, (), (), places)
        finally:
            self.append_settled(appended)
        return moved

    def clear(self) -> None:
        """Remove every entry, and then every file.  Nobody else is attached."""
        self.new_generation()
        names = list(self.files.names())
        with self.exclusive():
            self.catalog.clear(names)
        self._packs.clear()
        self._open_pack = 0
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
        if self.locks is not None:
            # Only this process's descriptor: the locks stay with the parent's.
            self.locks.close()
            self.locks = None
        # What the parent commits is news to this process.
        self.catalog.changes.session = 0
        self._append_lock = Lock()
        self._packs_lock = Lock()
        self.catalog.database.reopen_in_child()

    def loaded_privately(self, row: Row, key: Any) -> Any:
        """A stored value whose arrays are private and writable, and not kept open here."""
        loader = Loader(
            self.files,
            self._packs,
            allow_pickle=self.loader.allow_pickle,
            mmap_mode="c",
            nthreads=default_threads(),
            keep=False,
        )
        return loader.load(row, key)

    def has_pack(self, identity: int) -> bool:
        """Whether the catalog, or a write under way, knows a pack."""
        return identity in self._packs

    def drop_pack(self, identity: int) -> None:
        """Forget a pack that no entry uses; its file is the caller's to remove."""
        known = self._packs.get(identity)
        if known is not None and identity not in self._pending:
            self._commit({identity: known._replace(live=0)}, (), (), ())

    def adopt(self, source: Files, row: Row, form: Form, code: KeyCode | None = None) -> Row:
        """Link a value's file of another chest into this one; returns the row that would name it.

        With `code` it is the row of this key.
        """
        theirs = value_name(row)
        if row.stamp is None or row.is_blocked:
            raise OSError(errno.EINVAL, "expected a value with a file of its own", theirs)
        mine = row._replace(generation=self.new_generation())
        if code is not None:
            mine = mine._replace(key=code.canonical, exact=code.exact)
        name = value_name(mine)
        self.files.link(source, theirs, name)
        # The other chest may have made a spare of it meanwhile, and have begun to overwrite it.
        # From here on it sees the second name, and leaves the file alone.
        try:
            fd = self.files.open(name)
            try:
                size = os.fstat(fd).st_size
                tail = os.pread(fd, npy.TRAILER_BYTES, max(size - npy.TRAILER_BYTES, 0))
                stamp, end = npy.parse_trailer(tail, size) or (None, 0)
            finally:
                os.close(fd)
            fits = end - row.offset == form.nbytes or form.kind == "pickle" or row.is_frame
            if size != row.stored or stamp != row.stamp or not fits:
                raise OSError(errno.ESTALE, "expected another value", theirs)
        except OSError:
            self.files.remove([name], keep_spares=False)
            raise
        return mine

    def adopt_pack(self, source: Files, theirs: Pack) -> Pack:
        """Link another chest's pack into this one; never appended to here."""
        mine = Pack(self.new_generation(), theirs.stamp, theirs.bytes, 0, 1, theirs.own)
        name = pack_name(mine.id)
        self.files.link(source, pack_name(theirs.id), name)
        try:
            fd = self.files.open(name)
            try:
                size = os.fstat(fd).st_size
                stamp = pack.stamp_of(os.pread(fd, pack.HEADER_BYTES, 0))
            finally:
                os.close(fd)
            if stamp != theirs.stamp or size < theirs.bytes:
                raise OSError(errno.ESTALE, "expected another pack", source.path(name))
        except OSError:
            self.files.remove([name], keep_spares=False)
            raise
        return mine

    def adopt_packed(self, row: Row, form: Form, mine: Pack) -> Row:
        """The row that names a value in a pack that was adopted as `mine`."""
        if not is_packed_well(row, form) or row.offset + row.stored > mine.bytes:
            raise OSError(errno.EINVAL, "expected a value in a pack", self.files.path(""))
        return row._replace(generation=self.new_generation(), pack=mine.id)

    def pack_file(self, known: Pack) -> str:
        """The file of a pack, relative to the chest."""
        return pack_name(known.id)

    def pack_record(self, identity: int) -> Pack:
        """What the catalog knows of a pack; raises CorruptEntryError if it knows none."""
        known = self._packs.get(identity)
        if known is None:
            raise CorruptEntryError(f"expected pack {identity:x} in {self.folder.path}, found none")
        return known

    def sessions(self, catalog: Catalog) -> tuple[set[int], set[int]]:
        """The sessions that are alive, as far as can be told, and those that died."""
        open_ = set(catalog.changes.sessions())
        if self.locks is None:
            return open_, set()
        alive = {
            number
            for number in open_
            if number == self.catalog.changes.session
            or (0 < number < 1 << 31 and self.locks.is_held(SESSION + number))
        }
        return alive, open_ - alive

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
            self._forget_pack(identity)

    def sweep(self) -> int:
        """Remove what sessions left that died: what they had not committed, or not removed yet.

        Returns how many files it was.  O(files), if any session died.
        """
        assert self.locks is not None
        with self.exclusive():
            alive, dead = self.sessions(self.catalog)
            if not dead:
                return 0
            problems = self.catalog.database.problems()
            if problems:
                # Rows may be missing, and what they name would be taken for orphans.
                raise ChestFormatError(
                    f"expected a sound catalog in {self.folder.path}, found {problems[0]}; "
                    "`arraychest.repair` makes a new one from the values' files"
                )
            newest = self.catalog.changes.last_session()
            gone = [name for number in dead for name in self.catalog.changes.gone_files(number)]
            named = self.catalog.file_generations() | self.catalog.pack_ids()
        orphans = []
        spares = set(dead)
        for name in {*self.files.names(), *gone}:
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
        self.files.remove(orphans, keep_spares=False)
        for number in spares:
            self.files.remove_spare_folder(number)
        self.files.sync_removals()
        with self.exclusive():
            self.catalog.changes.end_sessions(sorted(dead))
        return len(orphans)


_VALUE_NAME = re.compile(
    rf"(?:{DATA}/[0-9a-f]{{2}}/[^/]*-([0-9a-f]{{1,16}})\.(?:npy|b2nd|blocks)"
    rf"|{PACKS}/([0-9a-f]{{1,16}})\.pack"
    rf"|{SPARE}/[0-9a-f]{{1,8}}/[^/]*-([0-9a-f]{{1,16}})\.npy)",
)


def generation_of(name: str) -> int | None:
    """The generation in the name of a file, relative to the chest; None if it is none of ours."""
    found = _VALUE_NAME.fullmatch(name)
    return None if found is None else int(next(filter(None, found.groups())), 16)


_PACK_OF = operator.itemgetter(PACK)
_OFFSET_OF = operator.itemgetter(OFFSET)
_ZEROS = [bytes(count) for count in range(pack.ALIGN + 1)]


def _directory_of_one(
    stamp: int, generation: int, seq: int, nbytes: int, code: KeyCode, text: str, sums: bytes
) -> bytes:
    return directory.encode(
        stamp, [generation], [seq], [nbytes], [code.canonical], [code.exact], [text], sums
    )


def _new_stamp() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 2


def _sizes_in_pack(rows: Iterable[RawRow]) -> list[int]:
    """Bytes that values take in a pack; one without bytes takes a place, too."""
    return [(row[STORED] + pack.ALIGN - 1) & -pack.ALIGN or pack.ALIGN for row in rows]


def _own_files(rows: Iterable[RawRow]) -> list[str]:
    return [value_name(Row._make(row)) for row in rows if row[PACK] is None]
