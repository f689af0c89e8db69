"""`Chest`: a dictionary of NumPy arrays that keeps what fits in RAM and spills the rest."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import importlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, Unpack, cast, overload

import numpy as np

from arraychest.catalog.record import Cost
from arraychest.dictionary import MISSING, Dictionary, data_and_path, filled, near_keys
from arraychest.engine.append import append as append_blocks
from arraychest.engine.drafts import Creation, edited
from arraychest.engine.engine import Engine
from arraychest.engine.entry import Entry
from arraychest.engine.expiry import time_after
from arraychest.engine.handle import Handle, handle_of
from arraychest.engine.in_place import edited_in_place
from arraychest.engine.options import DEFAULTS, ChestOptions, checked_options, with_options
from arraychest.engine.rename import rename
from arraychest.engine.stats import Stats, description, stats_of
from arraychest.engine.transaction import Transaction, changing
from arraychest.engine.update import bytes_in, copy_from, put_each, update_by, update_from
from arraychest.errors import AbsentKeyError
from arraychest.formats.compression import Asked, parse_compression
from arraychest.group import Group
from arraychest.integrations import dask_part
from arraychest.integrity.rebuild import rebuild_if_lost
from arraychest.integrity.repair import repair as repair_findings
from arraychest.integrity.report import Report
from arraychest.integrity.verify import verify
from arraychest.memoize.cached import Cached, P, R, cached
from arraychest.memoize.flights import Flights
from arraychest.memoize.options import DEFAULTS as CACHE_DEFAULTS
from arraychest.memoize.options import CacheOptions
from arraychest.memoize.reducing import reduce
from arraychest.memory.budget import Budget
from arraychest.progress import Asked as ProgressAsked
from arraychest.progress import is_asked, measured
from arraychest.sharing.locks import KeyLock
from arraychest.sharing.open_folder import folder_at
from arraychest.storage.folder import Mode
from arraychest.values.keys import group_of


class _Unsaid:
    """No compression is asked for, which is not to ask for none."""


_UNSAID = _Unsaid()


class Chest(Dictionary):
    """A dictionary of NumPy arrays that spills to disk.

    Values stay in RAM up to a memory budget.  Beyond it the chest writes them to files in the
    background, and a get returns a view of the mapped file, without a copy.

    Parameters
    ----------
    data
        The chest's folder, as a str or a path: ``Chest("work.chest")``.  Or a mapping, whose
        values the new chest starts with.
    path
        The chest's folder, where `data` is a mapping or None.  None: a private, temporary folder.
        The chest makes it at the first spill, where `tempfile` puts things (``TMPDIR``); if that
        place is in memory, on a disk.  It removes the folder when it is closed, dropped or garbage
        collected, or when the interpreter exits.
    available_memory
        Budget for the values kept in RAM: bytes, a size (``"2 GiB"``), a share of what the
        process may use (``"50%"``, ``0.5``), or None: up to 60 % of that, and less where other
        processes need memory.
    mode
        ``"a"``: open or create; ``"r"``: must exist, read only; ``"w"``: start empty; ``"x"``:
        must not exist.
    mmap_mode
        What a get returns: ``"r"``, read-only arrays; ``"c"``, private arrays, writable without
        any effect on the chest.  To change what is stored, see `edit`.
    on_put
        What becomes of an array that is put.  ``"freeze"``: the chest keeps that very array and
        clears its ``writeable`` flag, so that writing to it later fails; an array that does not
        own its buffer is copied.  ``"copy"``: the chest keeps a copy.  ``"share"``: the chest
        keeps a view, and the caller promises not to write to it.
    allow_pickle
        Whether arrays of Python objects are stored and loaded, with pickle: loading runs code.
    durable
        Whether what was flushed also survives a power cut, not only the death of the process.
    on_miss
        A function of a key.  The chest calls it each time it has to fetch the key's value from
        disk.  If it raises an exception, the get raises it.
    on_overflow
        A function of a key.  A background thread calls it after the key's value was spilled, and
        logs an exception that it raises.  It must not wait for that thread: in it, a flush, and a
        put for which there is no room, raise SpillError.
    allow_network
        Whether a chest on a network file system may be opened for writing.  With True you promise
        that only one host uses it at a time; otherwise it is not safe.
    checksums
        Whether values that are not compressed get checksums, which lie in their files.  Without
        them `verify` has less to compare.  The chest computes them before it writes a value, at
        some 25 GB/s.  None: yes in a chest with a path, no in a temporary one, which nobody opens
        again.
    max_disk
        Most bytes that the value files may take: bytes, a size (``"50 GiB"``), or None: what the
        disk has.  All processes that give it share it.  The catalog comes on top, and so does what
        another process is writing at that moment.
    compression
        How arrays are compressed when they are stored.  ``"auto"``: those of `compress_above` bytes
        are sampled, and compressed with the codec of Blosc2 that writes and reads them back
        soonest, if that makes them smaller by a sixth; nothing is lost.  None: never.  The name of
        a codec (``"lz4"``, ``"zstd"``, ``"blosclz"``, ``"lz4hc"``, ``"zlib"``), or
        `blosc2.CParams`, of which codec, level and filters count: each value of 64 KiB and more,
        even if it does not become smaller.  Elements must be plain numbers, truth values or times;
        others are stored as they are.  A get of a compressed value returns a `CompressedArray`.
    compress_above
        For ``"auto"``: bytes, or a size (``"8 MiB"``).
    compression_threads
        How many threads compress one array, or decompress one; None: one for each core, up to four.
    dump, load
        How values are stored that are neither arrays nor NumPy scalars, in place of being taken
        apart: ``dump(value, file)`` writes one to a file, as text or bytes, and ``load(file)``
        reads it, as ``json.dump`` and ``json.load`` do.  The chest calls `dump` at the put, and
        `load` at each get.  If `load` raises an exception, the get raises `CorruptEntryError`.
    key_to_filename
        A function from a key to a str: the name of its value's file, so that people find it.  The
        chest adds a number and the ending, and replaces characters that would lead to another
        folder.  Small values share files, whose names it does not choose.
    on_full
        What happens when `max_disk` is reached.  ``"refuse"``: a put that would not fit raises
        QuotaError.  ``"evict"``: the chest removes the least recently used stored entries.  Small
        values share a file, and go a whole file at a time: a 32nd of `max_disk`, and at most 64
        MiB.  A get that went to disk counts as a use for all processes, also after reopening.  A
        get answered from memory counts for its own process only.  A reader's gets count if the
        reader gives both options, too.
    evict_by
        Which entries go first.  ``"lru"``: the least recently used ones.  ``"cost"``: those whose
        bytes, times the seconds since their last use, over the seconds that it took to compute
        them, are most.  `cache` measures the latter; other values count as computed at 100 MB/s.
        Expired values go first in any case.

    Raises
    ------
    FileSystemError
        The folder lies on a network file system.  Nothing was touched.
    FileNotFoundError, FileExistsError, NotADirectoryError
        The folder is missing, is there already, or is no folder, and `mode` does not allow that.
    ChestFormatError
        The folder holds something else, or a chest of a newer format.  Nothing was touched.
    ChestInUseError
        ``mode="w"`` would empty the chest, and others use it.
    ValueError, TypeError
        An argument is none of the above.

    Notes
    -----
    Every method may be called from many threads.  After a fork the child may use a chest with a
    path as any other process does, and read a temporary one.

    A get of a value in RAM or of a mapped view costs a dictionary look-up and takes no lock; the
    first get of a stored value opens and maps its file.  A put waits for the disk only at the
    budget.

    Examples
    --------
    >>> import numpy as np
    >>> chest = Chest(available_memory="64 MiB")
    >>> chest["x"] = np.arange(12.0).reshape(3, 4)
    >>> chest["x"].shape, "x" in chest, len(chest)
    ((3, 4), True, 1)
    >>> chest.close()
    """

    def __init__(
        self,
        data: Mapping[Any, Any] | str | os.PathLike[str] | None = None,
        path: str | os.PathLike[str] | None = None,
        available_memory: int | float | str | None = None,
        *,
        mode: Mode = "a",
        **options: Unpack[ChestOptions],
    ) -> None:
        data, path = data_and_path(data, path)
        checked = checked_options(mode, options, has_path=path is not None)
        # For those who open it again: pickles, and forked workers.
        self._arguments = {
            "available_memory": available_memory,
            "mode": "r" if mode == "r" else "a",
            **options,
        }
        folder = None if path is None else folder_at(path)
        self._engine = Engine(folder, Budget(available_memory), checked)
        # The hot path's own name for it: the same dict object for the chest's whole life.
        self._index = self._engine.session.index.slots
        # None where no other process changes the chest, so that a get need not ask whether one has.
        self._counter = None if folder is None else self._engine.session.counter
        self._flights = Flights(self._engine)
        self._finalizer = weakref.finalize(self, self._engine.session.finalize)
        if data is not None:
            filled(self, data)

    # --- the mapping -----------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """The value of `key`: an array, a `LazyArray`, or the NumPy scalar that was put.

        Raises
        ------
        AbsentKeyError
            There is none.
        CorruptEntryError
            What lies on disk is not what was stored.
        PickleRefusedError
            It holds Python objects, and the chest was opened without ``allow_pickle=True``.
        OSError
            The file could not be read.
        """
        engine = self._engine
        counter = self._counter
        if counter is not None and counter.words[0] != counter.seen_word:
            return engine.get(key)
        # No lock: one look-up in a dict is atomic, and a slot's value is only ever replaced by
        # another complete one.  The count serves as the CLOCK's reference bit as well; losing a
        # few under threads is harmless, and a lock here would double the cost of a hit.
        try:
            slot = self._index[key]
        except KeyError:
            pass
        else:
            value = slot.value
            if value is not None:
                slot.hits += 1
                return value
        try:
            return engine.get(key)
        except AbsentKeyError as error:
            if isinstance(key, str):
                error.near = functools.partial(near_keys, weakref.ref(self), key)
            raise

    def __setitem__(self, key: Any, value: Any) -> None:
        """Put a value.

        Raises
        ------
        KeyTypeError, ValueTypeError
            Key or value is of a type that would not come back the same.
        SpillError
            Values that had to leave RAM could not be stored.
        ReadOnlyChestError, ClosedChestError
            Nothing can be put.

        Notes
        -----
        Whatever is raised, the key has its old value and the array is as it was.
        """
        self._engine.put(key, value)

    def put(
        self,
        key: Any,
        value: Any,
        *,
        compression: Asked | _Unsaid = _UNSAID,
        expires_after: float | dt.timedelta | None = None,
    ) -> None:
        """Put a value, as ``chest[key] = value`` does.

        Parameters
        ----------
        compression
            How to compress this value; by default as the chest does.  See `Chest`.
        expires_after
            How long the value is good, in seconds or as a timedelta; None: for ever.  After that
            its key is absent, for all processes and also after reopening, and the chest frees its
            room.  A get of such a value looks at the clock, and costs some microseconds.

        Raises
        ------
        ValueError, TypeError
            There is no such `compression`; otherwise as for ``chest[key] = value``.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest()
        >>> chest.put("x", np.zeros((1000, 1000)), compression="zstd")
        >>> chest.spill("x")
        >>> chest.entry("x").codec, chest["x"][500, 2:4].tolist()
        ('zstd', [0.0, 0.0])
        """
        how = None if isinstance(compression, _Unsaid) else parse_compression(compression)
        expires = time_after(expires_after)
        cost = None if expires is None else Cost(None, expires)
        self._engine.put_any(key, value, compression=how, cost=cost)

    def touch(self, key: Any, expires_after: float | dt.timedelta | None = None) -> None:
        """Set how long a value is good from now on; None: for ever.

        The time is in seconds, or a timedelta.  A value that is in RAM is stored first.

        Raises
        ------
        AbsentKeyError
            There is no such key, or its value has expired already.
        SpillError, ReadOnlyChestError, ClosedChestError
            Nothing was changed.
        RuntimeError
            The call is inside a transaction.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest()
        >>> chest.put("session", np.zeros(3), expires_after=3600)
        >>> chest.touch("session", expires_after=7200)
        >>> "session" in chest
        True
        """
        self._engine.touch(key, time_after(expires_after))

    def load(self, key: Any) -> Any:
        """The value of `key` as a plain array in RAM, or a NumPy scalar, wherever it is stored.

        The chest reads or decompresses the whole array, unless it is in RAM already.  The array is
        read-only; with ``mmap_mode="c"`` it is writable, and the caller's own.  The chest also
        keeps a decompressed array, and charges it, as long as nothing else needs the room.

        Raises
        ------
        AbsentKeyError, CorruptEntryError, PickleRefusedError, OSError
            As ``chest[key]``.
        MemoryError
            It does not fit into RAM.
        """
        return self._engine.load(key)

    def __delitem__(self, key: Any) -> None:
        """Remove a key.  Views of its value stay valid.  Raises AbsentKeyError."""
        self._engine.delete(key)

    def __contains__(self, key: object) -> bool:
        """Whether the chest has the key; reads no value."""
        engine = self._engine
        counter = self._counter
        if counter is not None and counter.words[0] != counter.seen_word:
            return engine.contains(key)
        slot = self._index.get(key)
        if slot is not None and slot.value is not None:
            return True
        return engine.contains(key)

    def __len__(self) -> int:
        """Number of keys.  O(1); the first time in a reopened chest O(n), some 20 ns an entry."""
        return self._engine.count()

    def __iter__(self) -> Iterator[Any]:
        """The keys in the order of their insertion.

        Others may change the chest meanwhile.  A key that is there throughout comes exactly once.
        """
        return self._alive(self._engine.keys())

    def __reversed__(self) -> Iterator[Any]:
        """The keys, the last inserted first."""
        return self._alive(self._engine.keys(descending=True))

    def _alive(self, keys: Iterator[Any]) -> Iterator[Any]:
        """The same keys; holds on to the chest, which is closed once nobody does."""
        yield from keys

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Remove a key and return its value, or `default` if there is none; one atomic step.

        Raises
        ------
        AbsentKeyError
            There is none, and no default.
        CorruptEntryError
            The value cannot be read; the key stays.
        """
        try:
            return self._engine.pop(key)
        except AbsentKeyError:
            if default is MISSING:
                raise
            return default

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key inserted last and return it with its value.  Raises AbsentKeyError."""
        while True:
            key = self._engine.last_key()
            value = self.pop(key, MISSING)
            if value is not MISSING:
                return key, value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, which becomes `default` if there is none; one atomic step.

        A value that is no array comes back as a copy of what is stored.  So ``append`` on a list
        that this method returns does not change the chest.  Put the changed list again:
        ``names = chest.get(key, []); names.append(x); chest[key] = names``.
        """
        while True:
            try:
                return self[key]
            except AbsentKeyError:
                self._engine.put_any(key, default, only_absent=True)

    def __or__(self, other: Mapping[Any, Any]) -> Chest:
        """A new temporary chest with the values of both; where both have a key, the other's value.

        Arrays are shared.  Stored values are linked or copied, as by `update`.
        """
        if not isinstance(other, Mapping):
            return NotImplemented
        return filled(Chest(), self, other)

    def __ror__(self, other: Mapping[Any, Any]) -> Chest:
        """As ``Chest(other) | self``."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return filled(Chest(), other, self)

    def group(self, prefix: Any) -> Group:
        """The entries whose keys begin with `prefix`, as a mapping with the rest of these keys.

        Parameters
        ----------
        prefix
            A str that ends with ``"/"`` selects the str keys that begin with it; the group's keys
            are the rest of each.  Any other key, or a tuple of keys, selects the tuples that begin
            with it.  In the group ``"run"``, the chest's key ``("run", 5)`` is 5, and
            ``("run", 5, "x")`` is ``(5, "x")``.

        Returns
        -------
        Group
            The group holds nothing itself: a put into it is a put into the chest.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({("run", 1): np.zeros(2), "other": np.ones(3)})
        >>> run = chest.group("run")
        >>> run[2] = np.ones(2)
        >>> list(run), ("run", 2) in chest
        ([1, 2], True)
        """
        return Group(self, prefix)

    def update(  # type: ignore[override]  # chest's signature: `overwrite` is its own
        self,
        other: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (),
        /,
        overwrite: bool = True,
        **named: Any,
    ) -> None:
        """Put every value of another mapping, of pairs, and of keyword arguments.

        In a chest with a path this is a transaction: it commits all values, or none.

        Parameters
        ----------
        other
            A chest's stored values are linked: no byte is copied where both lie on one file
            system.
        overwrite
            Whether keys that are here already are replaced.
        progress
            Whether to show progress, as in `verify`: True, False, None or a function, and only
            beside `other`.  Any other value of this name is put, as of every other name.  To put
            one of these values under the key ``"progress"``, write ``{"progress": True}``.

        Raises
        ------
        SpillError, ValueTypeError, KeyTypeError
            Nothing was put.  A temporary chest keeps the values that came before the failing one.
        """
        asked: ProgressAsked = False
        is_given = not isinstance(other, tuple) or bool(other)
        if is_given and "progress" in named and is_asked(named["progress"]):
            asked = named.pop("progress")
        if other is self:
            other = ()
        # As dict does it: whatever has keys is a mapping, anything else is pairs.
        keys = getattr(other, "keys", None)
        pairs: Any = other if keys is None else ((key, cast(Any, other)[key]) for key in keys())
        with measured(asked, "update", lambda: bytes_in(other)) as meter:
            if self._engine.session.temporary and not isinstance(other, Chest):
                # Nobody else can see a part of it, and it may stay in RAM.
                pairs = itertools.chain(pairs, named.items())
                put_each(self._engine.put_any, pairs, meter, only_absent=not overwrite)
                return
            with self._changing() as changes:
                if isinstance(other, Chest):
                    update_from(self._engine, other._engine, changes, meter, overwrite=overwrite)
                    pairs = ()
                pairs = itertools.chain(pairs, named.items())
                update_by(self._engine, changes, pairs, meter, overwrite=overwrite)

    def copy_from(
        self,
        other: Chest | Group,
        keys: Iterable[Any],
        *,
        overwrite: bool = True,
        progress: ProgressAsked = False,
    ) -> None:
        """Put some values of another chest, as `update` puts all: linked where they can be.

        Parameters
        ----------
        other
            A chest, or a group of one, whose values are copied and never linked.
        keys
            Which, in this order.
        overwrite
            Whether keys that are here already are replaced.
        progress
            As `verify` takes it.

        Raises
        ------
        AbsentKeyError
            The other chest has no such key.
        SpillError
            They could not be stored.  Nothing was put in either case.
        """
        theirs, pairs = cast(Any, other), ((key, key) for key in keys)
        mine, block = self._engine, self._changing()
        copy_from(mine, block, theirs, pairs, overwrite=overwrite, progress=progress)

    # --- several changes as one, and changes in place --------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Self]:
        """Commit what this thread or task puts and deletes in the block as one step, or none of it.

        Until the block ends nobody else sees any of it.  Values go straight to disk, so that the
        budget sets no limit; memory is O(values).  After an exception, after its task is cancelled,
        or after a crash at any instruction, the chest is as it was.  A transaction inside another
        becomes part of it.

        Raises
        ------
        SpillError
            It could not be committed; the chest is as it was.
        ReadOnlyChestError, ClosedChestError
            Nothing can be changed.
        RuntimeError
            The transaction that this one is part of ended before it.

        Notes
        -----
        The transaction belongs to the thread or task that begins it, which `contextvars` tell: each
        task of asyncio, Trio or AnyIO may have one.  A task that is started within the block, as
        `asyncio.create_task`, `asyncio.gather` and `asyncio.to_thread` do, is another one: it does
        not see the transaction, and its own puts stay even if the transaction fails.  A generator
        that yields within the block lends its transaction to the thread or task that runs it.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({"old": np.arange(3)})
        >>> with chest.transaction():
        ...     chest["new"] = chest["old"] * 2
        ...     del chest["old"]
        >>> list(chest)
        ['new']
        """
        with self._changing():
            yield self

    def _changing(self) -> AbstractContextManager[Transaction]:
        return changing(self._engine, self._look_up_in)

    def _look_up_in(self, index: dict[Any, Any]) -> None:
        self._index = index

    def lock(self, key: Any) -> KeyLock:
        """A lock on a key, between all threads, tasks and processes that use the chest.

        The lock does not stop anybody from putting.  It is for those who agree to take it, as
        `edit` does.  The key need not be in the chest.  Waiting costs no CPU time, and a process
        that dies releases its locks.

        Returns
        -------
        KeyLock
            A context manager, as `threading.RLock`: the thread or task that holds it may take it
            again, and may edit the key.  In a coroutine write ``async with chest.lock(key):``, so
            that other tasks go on while this one waits.

        Raises
        ------
        KeyTypeError
            The key is of a type that no chest stores.

        Notes
        -----
        If another task of the same thread holds the lock, waiting would block both.  The second
        task then gets a `DeadlockError` at once.  A task that the holder starts, or a thread to
        which it gives work, is another holder: do not wait for one that takes the lock.

        A lock keeps the garbage collector from closing its chest.  To take the lock of a closed
        chest is a `ClosedChestError`.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest(path="locked.chest")
        >>> with chest.lock("x"):
        ...     chest["x"] = chest.get("x", np.zeros(2)) + 1
        ...     chest.flush()
        >>> chest.close()
        """
        folder = self._engine.session.open_store().folder
        return KeyLock(folder, group_of(key), key, self)

    def edit(self, key: Any, *, in_place: bool = False) -> AbstractContextManager[np.ndarray]:
        """Change a value, as one step.

        The block is given a writable copy, which becomes the value when it ends without an
        exception; until then, and after an exception or a crash, everybody sees the old value.
        Editors of one key wait for each other, in all threads and processes.  Coroutines, which
        must not block, edit within ``async with chest.lock(key):``.  The copy lies on disk: it
        shares the old one's blocks where the file system can (Btrfs, XFS).

        Parameters
        ----------
        in_place
            Whether to map the stored file itself in place of a copy, for an array that is too large
            to copy.  This is no longer one step.  Whoever has the value, or gets it, sees each
            write at once.  An exception undoes nothing, and a crash leaves what was written so far,
            which `verify` then does not compare with any checksum.  When the block ends, the value
            is a new one for everybody: handles, cached calls and other processes notice.  A value
            that is small, compressed, or shared with another chest is stored in a file of its own
            first.  Inside a transaction this is refused.

        Raises
        ------
        AbsentKeyError
            There is no such key.
        ValueTypeError
            The value is no array of plain elements.
        SpillError
            The copy could not be made or committed; the old value stays.  With `in_place`, what was
            written stays, under the old generation.
        ValueError
            `in_place` was asked for inside a transaction.
        DeadlockError
            This thread or task edits the key already, or another task of this thread does.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({"x": np.zeros(3)})
        >>> with chest.edit("x") as a:
        ...     a[1] = 5
        >>> chest["x"].tolist()
        [0.0, 5.0, 0.0]
        """
        return edited_in_place(self._engine, key) if in_place else edited(self._engine, key)

    def create(
        self,
        key: Any,
        shape: int | tuple[int, ...],
        dtype: Any = float,
        order: Literal["C", "F"] = "C",
        fill: Any = None,
    ) -> Creation:
        """Make an array on disk to be filled in place; it becomes the value when it is sealed.

        The chest reserves the space first, so that a full disk is an error here and not while you
        fill the array.  Other processes may fill parts of it: pickle the result, and see `Part`.

        Parameters
        ----------
        shape, dtype, order
            As `numpy.empty` takes them.
        fill
            The value of each element at first; zero bytes if None.

        Returns
        -------
        Creation
            A context manager that gives the array.  The end of its block seals the array; an
            exception discards it.

        Raises
        ------
        ValueTypeError, KeyTypeError
            The dtype or the key cannot be stored.
        SpillError
            There is no room for it.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest()
        >>> with chest.create("x", (1000, 1000), np.float32) as a:
        ...     for row in range(1000):
        ...         a[row] = row
        >>> chest["x"].shape
        (1000, 1000)
        """
        return Creation(self._engine, key, shape, dtype, order, fill)

    def append(self, key: Any, array: np.ndarray, axis: int = 0) -> None:
        """Make a blocked array longer by another one, which is not copied into RAM.

        If the chest does not have the key, `array` becomes its value, as a blocked array.

        Parameters
        ----------
        array
            The array to add at the end.  It has the dtype of the stored one, and its shape except
            along `axis`.  It is cut into blocks as the stored one is, but along `axis` into blocks
            of 64 MiB, or of the longest there.
        axis
            The dimension that becomes longer.

        Raises
        ------
        ValueTypeError
            The stored value is no blocked array, or `array` does not fit to it.
        SpillError, QuotaError
            The array could not be stored.  In each case the key keeps its old value.

        Notes
        -----
        Other threads and processes see all of it or nothing; appends to one key wait for each
        other.  The blocks that are there are linked, some 10 us each, and not read: few large
        appends are better than many small ones.  `arraychest.dask.append` takes a dask array.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest()
        >>> for day in range(3):
        ...     chest.append("rain", np.full((1, 180, 360), day, np.float32))
        >>> chest["rain"]
        BlockedArray(shape=(3, 180, 360), dtype=float32, numblocks=(3, 1, 1))
        >>> float(chest["rain"][2].mean())
        2.0
        """
        append_blocks(self._engine, key, array, axis)

    # --- memoised functions --------------------------------------------------------------------

    @overload
    def cache(self, func: Callable[P, R], **options: Unpack[CacheOptions]) -> Cached[P, R]: ...
    @overload
    def cache(
        self, func: None = None, **options: Unpack[CacheOptions]
    ) -> Callable[[Callable[P, R]], Cached[P, R]]: ...
    def cache(self, func: Callable[P, R] | None = None, **options: Unpack[CacheOptions]) -> Any:
        """Keep the results of a function, by what it is and what it is given; a decorator.

        A result is an entry of the chest.  Its key has the function's name and a hash of the call
        in hexadecimal (`Cached.key`).  Every call with equal arguments finds it, in this process,
        in another, or tomorrow, unless the function was changed.  The function counts by its code,
        by the code of your functions and classes that it uses, and by the constants that they
        read.  Arguments count by content and type; `arraychest.memoize.fingerprint` has the
        details.  One warning names a variable whose content cannot be told, or one that the
        function changes itself, so that no call would ever be found again.

        Parameters
        ----------
        func
            A function, method, coroutine function, lambda or partial.
        ignore
            Names of parameters that do not count.
        key
            A function of the arguments.  What it returns counts in place of them.
        version
            Counts in place of the code: the results stay good until you change it.
        helpers
            Whether the functions and classes of your modules count that the function uses.
        ignore_state
            Names of global variables, variables of closures and attributes that do not count,
            such as a counter of the calls.  (A list to which a function only appends does not
            count in any case.)
        expires_after
            How long a result is good, in seconds or as a timedelta.
        validate
            A function that is called with a `Kept` (age, seconds that it took, bytes) before a kept
            result is used.  If it returns something false, the result is computed again.
        mmap_mode
            How arrays of results come back.  ``"r"``: read-only.  ``"c"``: private and writable,
            where only the pages that you write to are copied.  None: as the chest's.
        strict
            Whether a result that cannot be kept is a ValueTypeError; otherwise it is returned, with
            one warning.
        enabled
            Whether results are looked up and kept at all; see also `arraychest.caching_disabled`.
        verbose
            1: log what is computed, and how long it took.  2: also log what is kept.  The logger is
            ``"arraychest.cache"``; without logging set up, messages go to standard error.

        Returns
        -------
        Cached
            It is called as the function is.

        Raises
        ------
        ValueTypeError
            `func` is a generator function.
        ValueError, TypeError
            `func` has no such parameter to ignore, or is no function.

        Notes
        -----
        Any number of threads and processes that ask for the same missing result compute it once.
        In a chest that cannot be written to, or where a result does not fit, functions are
        computed as if nothing kept them.  scikit-learn takes a chest as ``memory=``: it keeps
        fitted estimators, too, for which the chest needs ``allow_pickle=True``.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest()
        >>> @chest.cache
        ... def smooth(a, width=3):
        ...     return np.convolve(a, np.ones(width) / width, "same")
        >>> smooth(np.arange(5.0)).tolist() == smooth(np.arange(5.0), width=3).tolist()
        True
        >>> smooth.stats().hits, smooth.stats().misses
        (1, 1)
        """
        if func is None:
            return functools.partial(self.cache, **options)
        return cached(self._engine, self._flights, self, func, **options)

    def rename(self, old: Any, new: Any, *, overwrite: bool = False) -> None:
        """Give a value another key, as one step; its bytes are not copied.

        The new key comes last in the order of insertion.

        Parameters
        ----------
        old, new
            The key that the value has, and the one that it gets.
        overwrite
            Whether to replace a value that the new key has already.

        Raises
        ------
        AbsentKeyError
            There is no value under the old key.
        ValueError
            The new key has a value, and `overwrite` is False.
        KeyTypeError, SpillError, ReadOnlyChestError, ClosedChestError
            Nothing was changed.

        Notes
        -----
        A value that is in RAM is stored first.  If the catalog is lost and `arraychest.repair`
        makes a new one from the files, values have the keys again that they were put under.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({"draft": np.zeros(3)})
        >>> chest.rename("draft", "final")
        >>> list(chest)
        ['final']
        """
        if old == new:
            if old not in self:
                raise AbsentKeyError(old)
            return
        with self._changing() as changes:
            if not overwrite and new in self:
                raise ValueError(f"expected a key that is not in the chest, found {new!r:.200}")
            rename(self._engine, changes, old, new)

    def reduce(
        self,
        *,
        bytes: int | float | str | None = None,  # noqa: A002  # what is limited
        entries: int | None = None,
        age: float | dt.timedelta | None = None,
        everything: bool = False,
    ) -> int:
        """Remove results of cached functions until the rest is within limits.

        The results that were not used for the longest time go first.

        Parameters
        ----------
        bytes
            Most bytes that the results may take on disk: a number, or a size (``"10 GiB"``).
        entries
            The largest number of results.
        age
            Remove results that were not used for so long, in seconds or as a timedelta.
        everything
            Count and remove all entries of the chest, not only results of cached functions.

        Returns
        -------
        int
            How many were removed.

        Raises
        ------
        ValueError
            A limit is negative.
        SpillError
            What is in RAM could not be stored before; nothing was removed.

        Notes
        -----
        O(entries), some 20 us each.  The time of a value's file says when the value was used last;
        a get that goes to disk sets it.  Small values share a file, and so they share its time.

        Examples
        --------
        >>> chest = Chest()
        >>> @chest.cache
        ... def squared(x):
        ...     return x * x
        >>> [squared(n) for n in range(5)]
        [0, 1, 4, 9, 16]
        >>> chest.reduce(entries=2), len(chest)
        (3, 2)
        """
        return reduce(self._engine, bytes=bytes, entries=entries, age=age, everything=everything)

    def __copy__(self) -> Self:
        """The chest itself: what a copy of it would hold is the same."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The chest itself, as in the copies that scikit-learn makes of a pipeline."""
        return self

    def handle(self, key: Any) -> Handle:
        """A reference to a stored value: a few hundred bytes when pickled.

        Another process maps the array from it, without opening the chest.  A value in RAM is stored
        first.  A handle of a value put in a transaction is good at once, and no longer if the
        transaction is rolled back.

        Raises
        ------
        AbsentKeyError
            There is no such key.
        SpillError
            It could not be stored.
        """
        return handle_of(self._engine, key)

    def to_dask(self, key: Any, chunks: Any = "auto") -> Any:
        """A dask array over a stored array.  Its tasks read the array block by block.

        Parameters
        ----------
        chunks
            As `dask.array.from_array` takes them.  ``"auto"``: dask's own size, in whole chunks of
            a compressed array; for a blocked array, its blocks.

        Returns
        -------
        dask.array.Array
            Its tasks carry a handle and no data.  Its name says which value of which chest it is,
            and is the same in every process; making it reads no byte of the value.  A block takes
            memory only as long as a task has it.  The array works in threads, in processes and on
            a cluster of one host, as long as nobody overwrites or deletes the value.

        Raises
        ------
        AbsentKeyError
            There is no such key.
        ValueTypeError
            The value is no array.
        SpillError
            The value was in RAM, and the chest could not store it.
        ImportError
            dask is missing: ``pip install 'arraychest[dask]'``.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({"x": np.arange(12.0).reshape(3, 4)})
        >>> x = chest.to_dask("x")  # doctest: +SKIP
        >>> float(x.sum().compute())  # doctest: +SKIP
        66.0
        """
        return dask_part("arrays").to_dask(handle_of(self._engine, key), chunks)

    def persist(self, x: Any, key: Any = None, **options: Any) -> Any:
        """Compute a dask array, as its own ``persist`` does, onto disk and not into RAM.

        See `arraychest.dask.persist`, which this calls.

        Parameters
        ----------
        x
            A dask array, also one larger than RAM.
        key
            Where to store it; by default under ``("dask", x.name)``.  If it is stored there
            already, nothing is computed.
        options
            For the scheduler, as `dask.compute` takes them.

        Returns
        -------
        dask.array.Array
            Of the same chunks.

        Raises
        ------
        ValueTypeError, SpillError, QuotaError
            It could not be stored.
        ImportError
            dask is missing: ``pip install 'arraychest[dask]'``.
        """
        return dask_part("storing").persist(x, self, key, **options)

    def export(
        self,
        path: str | os.PathLike[str],
        format: Literal["npz", "npy", "hdf5", "zarr"] | None = None,  # noqa: A002
        *,
        keys: Iterable[Any] | None = None,
        overwrite: bool = False,
        allow_pickle: bool = False,
        progress: ProgressAsked = False,
    ) -> int:
        """Write values to a file or folder that other programs read; `import_from` undoes it.

        Each array becomes an array of the format, under a name made of its key: a tuple makes
        groups, as in ``run/1``.  An index beside the arrays holds what the format has no place for:
        keys with their types and order, scalars, value trees and dtypes.  The arrays of a tree have
        numbers below the key's name.

        Parameters
        ----------
        path
            It appears whole or not at all; a killed process leaves a file ``.NAME-....part``.
        format
            ``"npz"``; ``"npy"``, a folder of such files; ``"hdf5"``, which needs h5py; ``"zarr"``,
            a folder in Zarr's third format, which needs zarr.  None: the ending of the name
            decides; a name without an ending is a folder of ``.npy`` files.
        keys
            Which values; None: all.
        overwrite
            Whether to replace a file, or an earlier export.  Other folders are never replaced.
        allow_pickle
            Whether to write values that only pickle, or the chest's ``load=``, can read.
        progress
            As `verify` takes it.

        Returns
        -------
        int
            How many values were written, without those that were deleted meanwhile.

        Raises
        ------
        FileExistsError
            There is something already.
        PickleRefusedError
            A value is pickled.  As with all errors, nothing is left behind.
        AbsentKeyError, CorruptEntryError
            There is no such key, or its value cannot be read.
        ImportError
            h5py or zarr is missing: ``pip install 'arraychest[hdf5]'``, ``'arraychest[zarr]'``.
        OSError
            It cannot be written.

        Notes
        -----
        A value that is larger than RAM is written in parts: a compressed one chunk by chunk, or row
        by row into a ``.npz``.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({"x": np.arange(3), ("y", 1): np.float32(2.5)})
        >>> chest.export("values.npz")
        2
        >>> np.load("values.npz")["x"].tolist()
        [0, 1, 2]
        """
        exchange = importlib.import_module("arraychest.exchange")
        done = exchange.export(
            self,
            path,
            format,
            keys=keys,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            progress=progress,
        )
        return int(done)

    def import_from(
        self,
        path: str | os.PathLike[str],
        format: Literal["npz", "npy", "hdf5", "zarr"] | None = None,  # noqa: A002
        *,
        prefix: str = "",
        overwrite: bool = False,
        allow_pickle: bool = False,
        progress: ProgressAsked = False,
    ) -> int:
        """Put the contents of a file or folder, as one transaction: all of it, or nothing.

        An export comes back as it was, with its keys.  In other files, names become keys
        (``"group/array"``), and the attributes of an array or group become a dict under the key
        ``(name, "attributes")``.

        Parameters
        ----------
        path
            A ``.npz`` or ``.npy`` file, a folder of ``.npy`` files, an HDF5 file, a group or array
            of Zarr.  Nothing in it is trusted: no objects are unpickled, and no links followed.
        format
            As `export` takes it; None: what is found there.
        prefix
            A str to put before each key that is a str; another key becomes the tuple ``(prefix,
            key)``.
        overwrite
            Whether to replace the values of keys that are here already.
        allow_pickle
            Whether to take what `export` wrote with ``allow_pickle=True``; the chest must allow
            it, too.
        progress
            As `verify` takes it.

        Returns
        -------
        int
            How many values were put.

        Raises
        ------
        ValueTypeError
            A key is here already, or a chest does not take a value of this type.
        CorruptEntryError
            The file is damaged, or not what it says.
        PickleRefusedError
            It holds Python objects.
        SpillError
            It could not be stored.
        ImportError
            As `export`.

        Notes
        -----
        Arrays above 256 MiB are copied part by part, and stored as they are; others are compressed
        as the chest's are.

        Examples
        --------
        >>> import numpy as np
        >>> np.savez("theirs.npz", x=np.arange(3))
        >>> chest = Chest()
        >>> chest.import_from("theirs.npz", prefix="theirs/")
        1
        >>> chest["theirs/x"].tolist()
        [0, 1, 2]
        """
        exchange = importlib.import_module("arraychest.exchange")
        done = exchange.import_from(
            self,
            path,
            format,
            prefix=prefix,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            progress=progress,
        )
        return int(done)

    def __reduce__(self) -> tuple[Any, ...]:
        """A chest pickles to its path and options.  It is flushed first, for others to see."""
        engine = self._engine
        if engine.session.temporary:
            raise TypeError(
                "expected a chest with a path, found a temporary one, which no other process "
                "can open"
            )
        if engine.session.is_writer() and not engine.session.closed:
            self.flush()
        return _reopen, (type(self), engine.session.path, self._arguments)

    # --- what it holds ---------------------------------------------------------------------

    def entry(self, key: Any) -> Entry:
        """Shape, dtype, size and place of a value; reads no data.

        For a compressed value, it also tells codec, filters, chunks, blocks and ratio.

        Raises
        ------
        AbsentKeyError
            There is none.
        CorruptEntryError
            Its file is not what was stored.
        """
        return self._engine.entry(key)

    def key_to_filename(self, key: Any) -> str | None:
        """The file that holds a value; None while it is in RAM only.  Raises AbsentKeyError."""
        return self._engine.entry(key).file

    def stats(self) -> Stats:
        """What the chest has done and holds.  O(keys met since it was opened)."""
        return stats_of(self._engine)

    @property
    def inmem(self) -> Mapping[Any, Any]:
        """The values that are in RAM and not yet stored, by key, at this moment; read-only.

        The mapping keeps those arrays alive, also beyond the budget, as long as you hold it.
        """
        return MappingProxyType(self._engine.resident_values())

    @property
    def path(self) -> str | None:
        """The chest's folder; None while a temporary chest has spilled nothing.

        Of a folder that was moved, this is the new path; of one that is gone, the old path.
        """
        return self._engine.session.path

    @property
    def closed(self) -> bool:
        """Whether the chest was closed."""
        return self._engine.session.closed

    def plot(self, *, times: bool = False) -> Any:
        """Draw what lies where by key and size, how large entries are, and memory over time.

        This reads no value.  The chest notes what is in RAM and what was spilled while it spills,
        twice a second at most, and less often when it lives longer than some minutes.

        Parameters
        ----------
        times
            Draw when the files were last written, and not memory over time.  This suits a chest
            that was opened just now.

        Returns
        -------
        matplotlib.figure.Figure
            Notebooks show it; ``savefig`` writes it to a file.

        Raises
        ------
        ImportError
            Matplotlib is missing: ``pip install 'arraychest[plot]'``.
        ClosedChestError, ChestFormatError, OSError
            The chest cannot be read.

        Notes
        -----
        O(entries): some 10 us each, or 15 us with `times` for a value with a file of its own.

        Examples
        --------
        >>> import numpy as np
        >>> chest = Chest({"x": np.zeros((100, 100)), "y": np.zeros(1000)})
        >>> figure = chest.plot()  # doctest: +SKIP
        >>> figure.savefig("chest.png")  # doctest: +SKIP
        """
        return importlib.import_module("arraychest.show.plots").plotted(self._engine, times=times)

    # --- memory ----------------------------------------------------------------------------

    @property
    def memory_usage(self) -> int:
        """Bytes of the buffers that the chest keeps in RAM, each once."""
        return self._engine.session.resident.charged

    @property
    def available_memory(self) -> int:
        """The budget in bytes.  You may set it to anything that `Chest` takes.

        If you lower it, the chest spills before the assignment returns.

        Raises
        ------
        SpillError
            Values that had to leave RAM could not be stored.  The new budget counts all the same.
        """
        engine = self._engine
        engine.session.budget.refresh(engine.session.resident.charged)
        return engine.session.budget.bytes

    @available_memory.setter
    def available_memory(self, size: int | float | str | None) -> None:
        self._engine.set_budget(Budget(size))

    def spill(self, key: Any) -> None:
        """Store a value now and drop it from RAM.  A value that is stored already stays as it is.

        Raises
        ------
        AbsentKeyError
            There is no such key.
        SpillError
            The chest could not store the value, which stays in RAM.
        """
        self._engine.spill(key)

    move_to_disk = spill

    def prefetch(self, keys: Any) -> None:
        """Map stored values, and ask the kernel to read them ahead.

        Parameters
        ----------
        keys
            A list of keys, or one key.

        Raises
        ------
        AbsentKeyError
            There is no such key.  Nothing was fetched.
        """
        self._engine.prefetch(keys if isinstance(keys, list) else [keys])

    # --- disk ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Store and commit everything that was put or deleted before; then return.

        Raises
        ------
        SpillError
            Something could not be stored.  It stays in RAM, and the chest tries again later.
        """
        self._engine.flush()

    def compact(self, *, progress: ProgressAsked = False) -> int:
        """Give back the holes that deleted small values left; returns their bytes.

        This also removes values that have expired.  Views of values that move stay valid.  When
        more than half of a pack is dead, the chest compacts it in the background anyway.

        Parameters
        ----------
        progress
            As `verify` takes it.  Values that moved before it was stopped stay where they are.

        Raises
        ------
        SpillError, OSError, CorruptEntryError
            Values that did not move stay where they are.
        """
        return self._engine.compact(progress)

    def verify(self, *, read_data: bool = True, progress: ProgressAsked = False) -> Report:
        """Check that everything stored is what was written.  It changes nothing.

        It checks every row, file, pack and checksum, and the catalog itself.  Others may go on
        reading and writing.  It does not check values that are in RAM and not yet stored.

        Parameters
        ----------
        read_data
            Whether to read the data and compare them with their checksums, at 5 to 15 GB/s.
            Otherwise it checks only sizes, headers and places, which costs some 50 us a file.
        progress
            True: show a bar on standard error.  A function: it is called with a `Progress` some ten
            times a second, and may raise to stop the work.

        Returns
        -------
        Report
            The findings.  ``ok`` is true if there are none.

        Examples
        --------
        >>> import numpy as np
        >>> with open("checked.chest", mode="w") as chest:
        ...     chest["x"] = np.zeros(1000)
        ...     chest.flush()
        ...     chest.verify().ok
        True
        """
        return verify(self._engine, read_data=read_data, progress=progress)

    def repair(self, *, progress: ProgressAsked = False) -> Report:
        """Mend what `verify` finds, and report what was done.

        A damaged value leaves the chest: its file moves to the folder ``quarantine/`` inside the
        chest's folder, and its key is absent from then on.  A file without a row becomes a value
        again if its key is absent.  Others may go on reading and writing.  If the catalog itself is
        damaged, use `arraychest.repair`.

        Parameters
        ----------
        progress
            As `verify` takes it.  It may stop the work while everything is read, before anything is
            mended.

        Returns
        -------
        Report
            The findings, each with what was done about it.

        Raises
        ------
        SpillError
            Something could not be written.  What was not mended is as it was.
        ReadOnlyChestError
            The chest was opened with ``mode="r"``.
        """
        return repair_findings(self._engine, progress)

    def close(self) -> None:
        """Flush a chest with a path; remove a temporary one.  A second call does nothing.

        Views that you got before stay valid.

        Raises
        ------
        SpillError
            Something could not be stored.  The chest stays open, and nothing is lost.  If somebody
            removed or replaced the folder, call `drop` to give up the chest, and what was not
            stored.
        """
        self._engine.session.close()
        if self._engine.session.closed:
            self._finalizer.detach()

    def drop(self) -> None:
        """Close the chest and remove its folder for good.  Views that you got stay valid.

        If another chest lies in that folder by now, nothing in it is touched.

        Raises
        ------
        ReadOnlyChestError
            It was opened with ``mode="r"``, or by another process.
        ChestInUseError
            Another chest may write to the folder; nothing was removed.
        """
        self._engine.session.begin_writing()
        self._engine.session.drop()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return description(self._engine)

    def _repr_html_(self) -> str:
        """The chest as notebooks show it; reads no value, counts as no use, and raises nothing."""
        return str(importlib.import_module("arraychest.show.cards").chest_html(self._engine))


def open(  # noqa: A001  # as numpy, zarr and shelve name theirs
    path: str | os.PathLike[str],
    mode: Mode = "a",
    available_memory: int | float | str | None = None,
    **options: Unpack[ChestOptions],
) -> Chest:
    """Open the chest in a folder; `mode` and the rest are `Chest`'s.

    Examples
    --------
    >>> import numpy as np
    >>> with open("work.chest", mode="w") as chest:
    ...     chest["x"] = np.zeros((2, 3))
    >>> with open("work.chest", mode="r") as chest:
    ...     chest["x"].shape
    (2, 3)
    """
    return Chest(None, path, available_memory, mode=mode, **options)


def repair(path: str | os.PathLike[str], *, progress: ProgressAsked = False) -> Report:
    """Mend the chest in a folder, also where its catalog is lost or damaged.

    A new catalog is made from what the value files say of themselves; the old one is moved to
    ``quarantine/``.  That knows nothing of deletions and of what was never committed: small values
    that were deleted, but not yet compacted away, come back, and so may those of a transaction that
    was interrupted.  Of each key the newest value counts.  Then `Chest.repair` does the rest.

    Parameters
    ----------
    progress
        As `Chest.repair` takes it.

    Returns
    -------
    Report
        What was found, and what was done about it.

    Raises
    ------
    ChestInUseError
        Somebody uses the folder.
    ChestFormatError, FileNotFoundError
        It is no chest, or one of another format.

    Examples
    --------
    >>> import numpy as np
    >>> with open("lost.chest", mode="w") as chest:
    ...     chest["x"] = np.arange(3)
    >>> os.unlink("lost.chest/catalog.sqlite")
    >>> [finding.kind for finding in repair("lost.chest").findings]
    ['catalog']
    >>> with open("lost.chest", mode="r") as chest:
    ...     chest["x"].tolist()
    [0, 1, 2]
    """
    folder = folder_at(path)
    rebuilt = rebuild_if_lost(folder)
    with open(folder) as chest:
        report = chest.repair(progress=progress)
    return report._replace(findings=(*rebuilt, *report.findings))


def _reopen(kind: type[Chest], path: str, arguments: dict[str, Any]) -> Chest:
    return kind(path=path, **arguments)


with_options(Chest.__init__, ChestOptions, DEFAULTS)
with_options(open, ChestOptions, DEFAULTS)
with_options(Chest.cache, CacheOptions, CACHE_DEFAULTS)
