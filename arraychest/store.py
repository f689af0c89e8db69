"""Codec, file and catalog row as one transaction: values go in, mapped values come out.

Order of a write: the bytes into a new file, then the row, then the old generation's file goes.
So a crash at any instruction leaves each key with its old value or its new one, and at worst a
file without a row, which the next writer sweeps.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np

from arraychest import files as value_files
from arraychest.catalog import Catalog, Pack
from arraychest.codecs import npy, pack
from arraychest.entry import PACK, Form, RawRow, Row, parse_form
from arraychest.files import PACKS, SPARE, Files
from arraychest.keys import KeyCode, decode_key
from arraychest.loader import READ_FLAGS, Loader, pack_name, value_name

# Bytes of small values that one compaction step moves in one transaction.
_MOVE_BYTES = 4 << 20


class Store:
    """The stored values of one chest folder.

    `commit`, `compact` and `sweep` are called by one thread at a time (the chest's commit lock);
    `write` and `append` from any, as is `loader`; the methods that read the catalog under the
    chest's lock.

    Parameters
    ----------
    root
        The folder.
    lock_fd
        Descriptor that makes this the folder's writer; None: read only.
    durable
        Whether a commit survives a power cut.
    allow_pickle
        Whether arrays of Python objects are read.
    private
        Whether `load` gives writable, private maps.
    """

    def __init__(
        self, root: str, lock_fd: int | None, *, durable: bool, allow_pickle: bool, private: bool
    ) -> None:
        self.root = root
        self.files = Files(root, durable=durable)
        self.lock_fd = lock_fd
        self.catalog = Catalog(root, writable=lock_fd is not None, durable=durable)
        try:
            self._packs = {known.id: known for known in self.catalog.packs()}
            self.loader = Loader(
                self.files,
                self.catalog,
                self._packs,
                reads_only=lock_fd is None,
                allow_pickle=allow_pickle,
                private=private,
            )
            if lock_fd is not None:
                # Last: in a folder that turns out to be another program's, nothing is made.
                self.files.make_folders()
        except BaseException:
            self.catalog.close()
            raise
        self._next_generation = 0
        self._session_lock = threading.Lock()
        # The pack being appended to, and how far it is written (its row says how far committed).
        self._append_lock = threading.Lock()
        self._open_pack: int | None = None
        # Packs with values that are written and not committed yet, and how many batches of them.
        self._pending: dict[int, int] = {}
        self._tail = 0
        self._unsure = False
        self.bytes_written = 0

    def close(self) -> None:
        """Close the catalog and stop being the writer, whatever goes wrong."""
        try:
            if self.lock_fd is not None:
                self.files.drop_spares()
                if self._next_generation and not self._unsure and not self.files.loose:
                    # All is stored: where this fails, on a full disk, the next writer sweeps.
                    with contextlib.suppress(OSError):
                        self.catalog.end_session()
        finally:
            try:
                self.catalog.close()
            finally:
                self.release_lock()
        self.catalog.raise_interrupt()

    def release_lock(self) -> None:
        """Stop being the folder's writer."""
        if self.lock_fd is not None:
            value_files.unlock(self.lock_fd)
            self.lock_fd = None

    # --- writing ---------------------------------------------------------------------------

    def _generations_for(self, count: int) -> int:
        """The first of `count` generations that nobody else gets."""
        with self._session_lock:
            if not self._next_generation:
                # The first write of a session: from here on a crash leaves something to sweep.
                self._next_generation = self.catalog.begin_session() << 32
                self.catalog.raise_interrupt()
            first = self._next_generation
            self._next_generation += count
        return first

    def _generation(self) -> int:
        return self._generations_for(1)

    def begin(self) -> None:
        """Make the session known before the first write.  Called under the commit lock."""
        self._generation()

    def write(self, code: KeyCode, seq: int, array: np.ndarray, form: Form, text: str) -> Row:
        """Write a value to a file of its own and return the row that would name it.

        Raises
        ------
        OSError
            Nothing is left of the file.
        """
        generation = self._generation()
        stamp = _new_stamp()
        head = npy.header(form)
        body = npy.payload(array, form)
        nbytes = len(head) + sum(map(len, body))
        stored = nbytes + npy.TRAILER_BYTES
        row = Row(code.canonical, seq, code.exact, text, generation, None, len(head), stored, stamp)
        self.files.write(value_name(row), [head, *body, npy.trailer(stamp, nbytes)])
        self.bytes_written += stored
        return row

    def append(
        self,
        codes: list[bytes],
        seqs: Sequence[int],
        exacts: list[bytes | None],
        forms: list[str],
        data: Sequence[bytes | np.ndarray],
        sizes: list[int],
    ) -> list[RawRow]:
        """Append small values to the open pack and return the rows that would name them.

        Parameters
        ----------
        codes, seqs, exacts, forms
            Columns of the rows: the keys' canonical codes, their places, exact codes, and forms.
        data, sizes
            The values' bytes, as whatever exports them in one piece, and how many they are.

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
        first = self._generations_for(len(data))
        with self._append_lock:
            target, start = self._pack_to_append()
            if not start:
                buffers.insert(0, pack.header(target.stamp))
                lengths.insert(0, pack.HEADER_BYTES)
            self._tail = self.files.append(pack_name(target.id), start, buffers, lengths)
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
                range(first, first + len(data)),
                itertools.repeat(target.id),
                itertools.accumulate(spans[:-1], initial=start or pack.HEADER_BYTES),
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

    def _may_drop(self, known: Pack) -> bool:
        return not known.live and known.id not in self._pending

    def _pack_to_append(self) -> tuple[Pack, int]:
        """The pack to append to and where it ends; a new one ends at 0."""
        if self._open_pack is None:
            # Go on with the last pack of an earlier session, rather than leave many small ones.
            newest = max(list(self._packs.values()), default=None)
            if newest is not None:
                self._open_pack, self._tail = newest.id, newest.bytes
        target = self._packs.get(self._open_pack or 0)
        if target is not None and not target.sealed and self._tail < pack.PACK_BYTES:
            # Behind the end of a file that was truncated, what it has lost would read as zeros.
            name, head = pack_name(target.id), pack.header(target.stamp)
            if self._tail >= len(head) and self.files.may_append(name, self._tail, head):
                return target, self._tail
        return Pack(self._generation(), _new_stamp(), 0, 0, 0), 0

    def seal(self, identity: int) -> None:
        """Never append to this pack again."""
        with self._append_lock:
            self._packs[identity] = self._packs[identity]._replace(sealed=1)
            if self._open_pack == identity:
                self._open_pack = 0

    def commit(
        self,
        rows: Sequence[RawRow] = (),
        freed: Sequence[RawRow] = (),
        deleted: Sequence[int] = (),
        adopted: Sequence[Pack] = (),
    ) -> list[str]:
        """Commit rows, and return the files that the catalog no longer names.

        They are the caller's to remove once nobody looks for them any more.

        Parameters
        ----------
        rows
            New rows, whose bytes are complete.
        freed
            Rows that `rows` or `deleted` put out of the catalog.
        deleted
            Places whose entries go.
        adopted
            Packs of another chest that `rows` lie in, already linked.

        Raises
        ------
        OSError
            Nothing was committed; the files of `rows` are removed.
        """
        packs = self._packs_after(rows, freed, adopted)
        with self._append_lock:
            dropped = [
                known.id
                for known in packs.values()
                if self._may_drop(known) and known.id != self._open_pack
            ]
            for identity in dropped:
                # The first append of a session must not choose it from here on.
                if identity in self._packs:
                    self._packs[identity] = self._packs[identity]._replace(sealed=1)
        changed = [known for known in packs.values() if known.id not in dropped]
        try:
            self.catalog.commit(deleted=deleted, rows=rows, packs=changed, dropped_packs=dropped)
        except BaseException as error:
            if isinstance(error, OSError):
                self.files.remove(_own_files(rows))
            else:
                # Interrupted: whether it was committed is for the next writer to see, who sweeps.
                self._unsure = True
            raise
        self.files.loose.difference_update(
            _own_files(rows),
            (pack_name(known.id) for known in changed),
        )
        self._packs.update((known.id, known) for known in changed)
        for identity in dropped:
            self._forget_pack(identity)
        return _own_files(freed) + [pack_name(identity) for identity in dropped]

    def _forget_pack(self, identity: int) -> None:
        self._packs.pop(identity, None)
        self.loader.forget_pack(identity)

    def _packs_after(
        self, rows: Iterable[RawRow], freed: Iterable[RawRow], adopted: Iterable[Pack]
    ) -> dict[int, Pack]:
        """The packs that a commit changes, as they are after it."""
        known = {each.id: each for each in adopted}
        ends: dict[int, int] = {}
        live: dict[int, int] = {}
        for _, _, _, _, _, identity, offset, stored, _ in rows:
            if identity is not None:
                size = (stored + pack.ALIGN - 1) & -pack.ALIGN or pack.ALIGN
                live[identity] = live.get(identity, 0) + size
                if offset + size > ends.get(identity, 0):
                    ends[identity] = offset + size
        for _, _, _, _, _, identity, _, stored, _ in freed:
            if identity is not None:
                size = (stored + pack.ALIGN - 1) & -pack.ALIGN or pack.ALIGN
                live[identity] = live.get(identity, 0) - size
        after: dict[int, Pack] = {}
        for identity in live:
            before = known.get(identity) or self._packs.get(identity)
            if before is None:
                if identity in ends:
                    raise OSError(errno.ENOENT, f"pack {identity:x} is gone")
                continue  # a corrupt row named it
            after[identity] = before._replace(
                bytes=max(before.bytes, ends.get(identity, 0)),
                live=before.live + live[identity],
            )
        return after

    # --- housekeeping ----------------------------------------------------------------------

    def sparse_packs(self, share: float) -> list[int]:
        """Packs of which more than `share` of the bytes are dead."""
        return [
            known.id
            for known in list(self._packs.values())
            if known.bytes - pack.HEADER_BYTES - known.live
            > share * max(known.bytes - pack.HEADER_BYTES, 1)
        ]

    def dead_bytes(self) -> int:
        """Bytes in packs that no entry uses."""
        return sum(
            max(0, each.bytes - pack.HEADER_BYTES - each.live)
            for each in list(self._packs.values())
        )

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
        data = []
        for row in rows:
            form = parse_form(row.form)
            key = decode_key(row.key, row.exact)
            path = self.files.path(pack_name(cast(int, row.pack)))
            array = pack.view(self.loader.pack_base(path, row, form, key), form, row.offset)
            data.append(array.tobytes(form.order))
        appended = self.append(
            [row.key for row in rows],
            [row.seq for row in rows],
            [row.exact for row in rows],
            [row.form for row in rows],
            data,
            list(map(len, data)),
        )
        moved = [
            Row._make(new)._replace(generation=row.generation)
            for row, new in zip(rows, appended, strict=True)
        ]
        try:
            packs = self._packs_after(moved, rows, ())
            dropped = [known.id for known in packs.values() if self._may_drop(known)]
            changed = [known for known in packs.values() if known.id not in dropped]
            self.catalog.commit(rows=moved, packs=changed, dropped_packs=dropped)
        finally:
            self.append_settled(appended)
        self.files.loose.difference_update(pack_name(known.id) for known in changed)
        self._packs.update((known.id, known) for known in changed)
        for identity in dropped:
            self._forget_pack(identity)
        return moved

    def clear(self) -> None:
        """Remove every entry, and then every file."""
        self._generation()
        self.catalog.clear()
        self._packs.clear()
        self.sweep()
        self.catalog.raise_interrupt()

    def become_reader(self) -> None:
        """In a forked child: folder, lock and the catalog's connections are the parent's."""
        if self.lock_fd is not None:
            # Only this process's descriptor: the lock stays with the parent's.
            os.close(self.lock_fd)
            self.lock_fd = None
            self.loader.reads_only = True
        self._append_lock = threading.Lock()
        self.catalog.reopen_in_child()

    def has_pack(self, identity: int) -> bool:
        """Whether the catalog, or a write under way, knows a pack."""
        return identity in self._packs

    def drop_pack(self, identity: int) -> None:
        """Forget a pack that no entry uses; its file is the caller's to remove."""
        if identity in self._pending:
            return
        self.begin()
        self.catalog.commit(dropped_packs=[identity])
        self._forget_pack(identity)

    def adopt(self, source: str, row: Row) -> Row:
        """Link another chest's value file into this one and return the row that would name it."""
        mine = row._replace(generation=self._generation())
        name = value_name(mine)
        self.files.link(source, name)
        # The other chest may have made a spare of it meanwhile, and have begun to overwrite it.
        # From here on it sees the second name, and leaves the file alone.
        try:
            fd = os.open(self.files.path(name), READ_FLAGS)
            try:
                size = os.fstat(fd).st_size
                tail = os.pread(fd, npy.TRAILER_BYTES, max(size - npy.TRAILER_BYTES, 0))
            finally:
                os.close(fd)
            if size != row.stored or npy.stamp_of(tail) != (row.stamp, size - npy.TRAILER_BYTES):
                raise OSError(errno.ESTALE, "expected another value", source)
        except OSError:
            self.files.remove([name], keep_spares=False)
            raise
        return mine

    def adopt_pack(self, source: str, theirs: Pack) -> Pack:
        """Link another chest's pack into this one; never appended to here."""
        mine = Pack(self._generation(), theirs.stamp, theirs.bytes, 0, 1)
        self.files.link(source, pack_name(mine.id))
        return mine

    def adopt_packed(self, row: Row, identity: int) -> Row:
        """The row that names a value in a pack that was adopted as `identity`."""
        return row._replace(generation=self._generation(), pack=identity)

    def pack_record(self, identity: int) -> Pack:
        """What the catalog knows of a pack."""
        return self._packs[identity]

    def sweep(self) -> int:
        """Remove every file that the catalog does not name; returns how many.  O(files)."""
        named = self.catalog.file_generations()
        packs = {pack_name(identity) for identity in self._packs}
        orphans = []
        for name in self.files.names():
            if name.startswith(PACKS):
                known = name in packs
            elif name.startswith(SPARE):
                known = False
            else:
                with contextlib.suppress(ValueError):
                    stem = name.rpartition("-")[2].removesuffix(".npy")
                    if int(stem, 16) in named:
                        continue
                known = False
            if not known:
                orphans.append(name)
        self.files.remove(orphans, keep_spares=False)
        return len(orphans)


_ZEROS = [bytes(count) for count in range(pack.ALIGN + 1)]


def _new_stamp() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 2


def _own_files(rows: Iterable[RawRow]) -> list[str]:
    return [value_name(Row._make(row)) for row in rows if row[PACK] is None]
