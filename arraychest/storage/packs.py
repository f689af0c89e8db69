"""Packs: files that small values share.

A session appends to one pack, the open one, until it is full; then it begins another.  A value that
is deleted or overwritten leaves dead bytes behind.  A pack is sparse once many of its bytes are
dead: a compaction moves its values to the open pack.  A commit drops a pack in which no value lives
any more.
"""

from __future__ import annotations

import errno
import itertools
import operator
from collections.abc import Iterable, Sequence

import numpy as np

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.record import OFFSET, PACK, STORED, Pack, RawRow
from arraychest.errors import CorruptEntryError
from arraychest.files.files import Files
from arraychest.formats import checksums, directory, pack
from arraychest.sharing.interrupts import Lock
from arraychest.storage.access import Access
from arraychest.storage.file_names import pack_name
from arraychest.storage.generations import Generations, new_stamp
from arraychest.storage.reading import Loader


class Packs:
    """The packs of one chest: what is known of each, and the one that is appended to.

    Any thread appends, and any thread asks what is known.  `reread` is called under the chest's
    lock.  Who compacts or commits has the commit lock, and is in `Access.exclusive`.  A commit
    calls `after`, `droppable` and `growth`, changes the catalog, and then calls `changed`.

    Parameters
    ----------
    catalog, files, generations, access
        The chest's.
    known
        What the catalog has of them, by their ids; `loader` reads by the same dict.
    loader
        Has maps of them.
    most_bytes
        A pack is not appended to any more once it has so many.
    checksums
        Whether values get checksums.

    Attributes
    ----------
    bytes_written
        Bytes that were appended.
    """

    def __init__(
        self,
        catalog: Catalog,
        files: Files,
        generations: Generations,
        access: Access,
        known: dict[int, Pack],
        loader: Loader,
        *,
        most_bytes: int,
        checksums: bool,
    ) -> None:
        self._catalog = catalog
        self._files = files
        self._generations = generations
        self._access = access
        self._packs = known
        self._loader = loader
        self._most_bytes = most_bytes
        self._checksums = checksums
        self.bytes_written = 0
        # The pack being appended to, and how far it is written (its row says how far committed).
        self._append_lock = Lock()
        self._open_pack = 0
        self._tail = 0
        # Packs with values that are written and not committed yet, and how many batches of them.
        self._pending: dict[int, int] = {}
        # Packs that no other process may append to, compact or drop.
        self._claimed: set[int] = set()
        # Counts the changes that commits made to what is known.
        self._version = 0
        self._lock = Lock()
        # By pack, place and size of directories that its row does not count yet.
        self._listed: dict[int, list[tuple[int, int]]] = {}

    # --- what is known -------------------------------------------------------------------------

    def has(self, identity: int) -> bool:
        """Whether the catalog, or a write under way, knows a pack."""
        return identity in self._packs

    def record(self, identity: int) -> Pack:
        """What the catalog knows of a pack; raises CorruptEntryError if it knows none."""
        known = self._packs.get(identity)
        if known is None:
            raise CorruptEntryError(
                f"expected pack {identity:x} in {self._files.folder.path}, found none"
            )
        return known

    @property
    def nbytes(self) -> int:
        """Bytes of all packs."""
        return sum(known.bytes for known in list(self._packs.values()))

    def dead_bytes(self) -> int:
        """Bytes in packs that no entry uses."""
        return sum(max(0, each.bytes - each.own - each.live) for each in list(self._packs.values()))

    def sparse(self, share: float) -> list[int]:
        """Packs of which more than `share` of the bytes are dead."""
        return [
            known.id
            for known in list(self._packs.values())
            if known.bytes - known.own - known.live > share * max(known.bytes - known.own, 1)
        ]

    def reread(self) -> None:
        """Others have committed: note what became of the packs.  Called under the chest's lock."""
        while True:
            version = self._version
            self._catalog.database.end_snapshot()
            found = {known.id: known for known in self._catalog.packs()}
            with self._lock:
                if version != self._version:
                    continue  # a commit of our own has changed them meanwhile, and knows better
                for identity in list(self._packs):
                    # Ours may have values that are written and not committed yet.
                    if identity not in found and identity not in self._claimed:
                        self.forget(identity)
                self._packs.update(found)
                return

    def clear(self) -> None:
        """Forget all packs: none is left."""
        self._packs.clear()
        self._open_pack = 0

    def forget(self, identity: int) -> None:
        """Forget a pack that is gone, its map and the claim on it."""
        self._packs.pop(identity, None)
        self._loader.forget_pack(identity)
        self.unclaim([identity])

    # --- appending -----------------------------------------------------------------------------

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
            first = self._generations.take(len(data))
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
            self._tail = self._files.append(pack_name(target.id), start, buffers, lengths)
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

    def settled(self, rows: Sequence[RawRow]) -> None:
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
                self.unclaim([identity])

    def reopen(self) -> None:
        """Go on with the last pack of an earlier session, rather than leave many small ones.

        Only where no other writer is attached, who might do the same.
        """
        newest = max(self._packs.values(), default=None)
        if newest is not None and not newest.sealed and self._claim(newest.id):
            self._open_pack, self._tail = newest.id, newest.bytes

    def _pack_to_append(self) -> tuple[Pack, int]:
        """The pack to append to and where it ends; a new one ends at 0."""
        target = self._packs.get(self._open_pack)
        if target is not None and not target.sealed and self._tail < self._most_bytes:
            # Behind the end of a file that was truncated, what it has lost would read as zeros.
            name, head = pack_name(target.id), pack.header(target.stamp)
            if self._tail >= len(head) and self._files.may_append(name, self._tail, head):
                return target, self._tail
        identity = self._generations.new()
        self._claim(identity)
        return Pack(identity, new_stamp(), 0, 0, 0, pack.HEADER_BYTES), 0

    # --- claims, beside other processes --------------------------------------------------------

    def _claim(self, identity: int) -> bool:
        """Keep other processes from appending to a pack, compacting or dropping it."""
        if identity in self._claimed:
            return True
        if not self._access.claim_pack(identity):
            return False
        self._claimed.add(identity)
        return True

    def unclaim(self, identities: Iterable[int]) -> None:
        """Let other processes append to packs again, compact or drop them."""
        for identity in identities:
            if identity in self._claimed:
                self._claimed.discard(identity)
                self._access.unclaim_pack(identity)

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
                self.unclaim([identity])

    # --- with a commit -------------------------------------------------------------------------

    def after(
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

    def droppable(self, packs: Iterable[Pack]) -> list[int]:
        """Those of these packs that a commit may drop.

        They are claimed: the commit drops them, or gives them back by `unclaim`.
        """
        with self._append_lock:
            return [
                known.id
                for known in packs
                if not known.live
                and known.id not in self._pending
                and known.id != self._open_pack
                and self._claim(known.id)
            ]

    def growth(self, packs: Iterable[Pack], dropped: Sequence[int]) -> int:
        """By how many bytes packs grow with a commit that changes these and drops some of them."""
        return sum(
            (0 if known.id in dropped else known.bytes)
            - (before.bytes if (before := self._packs.get(known.id)) else 0)
            for known in packs
        )

    def changed(self, packs: Sequence[Pack], dropped: Sequence[int]) -> None:
        """Note what a commit has changed: how packs are now, and which it has dropped."""
        with self._append_lock:
            for known in packs:
                left = [each for each in self._listed.pop(known.id, ()) if each[0] >= known.bytes]
                if left:
                    self._listed[known.id] = left
        with self._lock:
            self._version += 1
            self._packs.update((known.id, known) for known in packs)
            for identity in dropped:
                self.forget(identity)

    def become_reader(self) -> None:
        """Be as a reader in a forked child: locks are free, and claims are the parent's.

        So a pack that the parent drops is forgotten here, too, with its map.
        """
        self._append_lock = Lock()
        self._lock = Lock()
        self._claimed = set()


_PACK_OF = operator.itemgetter(PACK)
_OFFSET_OF = operator.itemgetter(OFFSET)
_ZEROS = [bytes(count) for count in range(pack.ALIGN + 1)]


def _sizes_in_pack(rows: Iterable[RawRow]) -> list[int]:
    """Bytes that values take in a pack; one without bytes takes a place, too."""
    return [(row[STORED] + pack.ALIGN - 1) & -pack.ALIGN or pack.ALIGN for row in rows]
