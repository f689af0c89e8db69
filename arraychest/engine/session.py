"""One process's use of a chest's folder: opening, who may write, closing, and what a fork does."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from arraychest.engine.callers import is_at_work, warn
from arraychest.engine.commit import Committer, logger
from arraychest.engine.compaction import Compactor
from arraychest.engine.counters import Account
from arraychest.engine.disk_room import DiskRoom
from arraychest.engine.expiry import Expiry
from arraychest.engine.flusher import Flusher
from arraychest.engine.fork import note_open
from arraychest.engine.open_transactions import OpenTransactions
from arraychest.engine.opening import open_in_child, open_named, open_private
from arraychest.engine.options import Options
from arraychest.engine.saving import Saver
from arraychest.errors import (
    ChestFormatError,
    ChestInUseError,
    ClosedChestError,
    ReadOnlyChestError,
    SpillError,
)
from arraychest.memory.budget import Budget
from arraychest.memory.key_order import KeyOrder
from arraychest.memory.memtable import Index
from arraychest.memory.pool import Pool
from arraychest.memory.slot import Slot
from arraychest.memory.views import Views
from arraychest.monitor.live import Live
from arraychest.monitor.samples import History
from arraychest.sharing.commit_counter import unmoved
from arraychest.sharing.interrupts import Lock
from arraychest.storage.store import Store

T = TypeVar("T")


class Session:
    """The parts of an open chest, and whether they may be used.

    Parameters
    ----------
    path
        The chest's folder; None: a private one, made at the first spill and removed at the end.
    budget
        How much may stay in RAM.
    options
        How the chest is opened.
    """

    def __init__(self, path: str | None, budget: Budget, options: Options) -> None:
        self._path = path
        self.options = options
        self.temporary = path is None
        self.budget = budget
        self.store: Store | None = None
        self._store_lock = Lock()
        self._close_lock = Lock()
        self.closed = False
        self._closing = False
        self._discarded = False
        # In the child of a fork, until it opens a session of its own; and whether what was in RAM
        # at the fork still stands among what was put.
        self.forked = False
        self._has_parents_values = False
        # Whether a put has to find out why it is refused.
        self.no_puts = options.mode == "r"
        self.counter = unmoved()
        self.transactions = OpenTransactions()
        self.views = Views()
        self.resident = Pool()
        self.index = Index(
            self.resident, returnable=options.mmap_mode == "r", loading=self.views.loading
        )
        self.order = KeyOrder(self.index)
        self.expiry = Expiry(self.index)
        quota = options.quota
        self.committer = committer = Committer(
            self.index, self.resident, self.open_store, counts_bytes=quota is not None
        )
        self.room = DiskRoom(committer, quota)
        self.compactor = Compactor(committer)
        self.saver = Saver(
            committer,
            self.room,
            self.compactor,
            options.compression,
            options.on_overflow,
            options.key_to_filename,
        )
        self.writer = Flusher(committer, self.saver, self.compactor, budget)
        self._account = Account(self.index, self.resident, self.committer)
        if path is not None:
            store, alone = open_named(path, options)
            if store.access.locks is not None:
                self.index.take_places = store.take_places
            self.index.puts = store.catalog.last_seq()
            self.counter = store.counter
            self._use(store, empty=self.index.puts == 0 and alone)
        self.history = History()
        # Last: its first page comes a while after the chest was opened.
        self.live = Live(self.store.folder if self.store is not None else None, options.mode)
        self.committer.before_commit = weakref.WeakMethod(self.tell_if_due)
        note_open(self)

    @property
    def path(self) -> str | None:
        """Where the folder lies, or where it was found last; None if there is none yet."""
        store = self.store
        if store is not None:
            self._path = store.folder.where()
        return self._path

    # --- opening -----------------------------------------------------------------------------

    def _use(self, store: Store, *, empty: bool = False) -> None:
        self.store = store
        catalog = store.catalog
        database = catalog.database
        database.on_snapshot = lambda: self.writer.call_at_rest(database.end_snapshot)
        self.index.attach(catalog, empty=empty)
        if not empty:
            self.expiry.look(store, time.time())

    def open_store(self) -> Store:
        """The store; that of a temporary chest is made at the first call."""
        store = self.store
        if store is None:
            with self._store_lock:
                if self.store is None:
                    self.check_open()
                    self.store = open_private(self.options)
                    self.index.attach(self.store.catalog, empty=True)
                store = self.store
        return store

    def with_room(self, action: Callable[[], T]) -> T:
        """Do `action`, which writes; see `Files.with_room`."""
        store = self.store
        if store is None or not self.may_write():
            return action()
        return store.files.with_room(action)

    def follow(self) -> None:
        """Note what other processes have committed.  Called under the lock.

        Costs one read of memory where they have not.
        """
        counter = self.counter
        if counter.words[0] != counter.seen_word and self.store is not None:
            self.leave_to_parent()
            self.committer.follow(self.store)
            self.expiry.look(self.store, time.time())
        if self.expiry.due != math.inf and self.expiry.due <= time.time():
            self._remove_expired()

    def _remove_expired(self) -> None:
        delete = None if self.no_puts else self.remove_slot
        self.expiry.remove(self.store, time.time(), delete)

    def remove_slot(self, slot: Slot) -> None:
        """Remove a key.  Called under the lock."""
        self.index.delete(slot)
        self.committer.deletions.add(slot)
        self.committer.counters.deletes += 1
        self.writer.deletion_noted()

    def tell_if_due(self) -> None:
        """Tell other processes of the chest, if it is time.  The lock is not held."""
        now = time.monotonic()
        if now >= self.history.due:
            self.take_sample()
        if now >= self.live.due:
            self.live.publish(lambda: self._account.take(self.store, self.budget))

    def take_sample(self) -> None:
        """Note what is in RAM now, for `Chest.plot`."""
        spilled = self.committer.counters.bytes_spilled
        self.history.add(self.resident.charged, self.budget.bytes, spilled)

    # --- who may do what -----------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether the chest has a folder that other processes may open."""
        return self.store is not None and not self.temporary

    def may_write(self) -> bool:
        """Whether the chest can be changed by this process."""
        return self.options.mode != "r" and not (self.forked and self.temporary)

    def is_writer(self) -> bool:
        """Whether this process has a session that writes: a forked child has none at first."""
        return self.options.mode != "r" and not self.forked

    def check_open(self) -> None:
        """Raise ClosedChestError if the chest is closed."""
        if self.closed or self._discarded:
            raise ClosedChestError("the chest is closed")

    def check_writable(self) -> None:
        """See to it that this process may change the chest.  Called under the lock.

        Raises
        ------
        ClosedChestError, ReadOnlyChestError
            Nothing can be changed.
        SpillError, ChestInUseError, ChestFormatError
            This is a forked child, and could not open a session of its own; it still reads.
        """
        self.check_open()
        if self._closing:
            raise ClosedChestError("the chest is being closed")
        if self.options.mode == "r":
            raise ReadOnlyChestError(f'expected mode "a", "w" or "x", found "r": {self.path}')
        if self.forked:
            self._open_own_session()

    def begin_writing(self) -> None:
        """As `check_writable`, without the lock."""
        with self.writer.lock:
            self.check_writable()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Writing in a caller's thread: a close waits for its end.  Must not wait for writers."""
        writer = self.writer
        begun = False
        try:
            with writer.lock:
                self.check_writable()
                # CPython looks for an interrupt at calls: between these two there is none.
                writer.callers += 1
                begun = True
            yield
        finally:
            # First, and without a call, in front of which an interrupt could come.
            writer.callers -= begun
            with writer.lock:
                writer.end_work()

    # --- the end ---------------------------------------------------------------------------

    def close(self, *, discard: bool = False) -> None:
        """Store what is not stored, and let go of everything; a second call does nothing.

        A temporary chest, or one with `discard`, stores nothing and is removed.

        Raises
        ------
        SpillError
            Something could not be stored: the chest stays open, with nothing lost.  So it is with
            a chest whose folder was removed or replaced, until `drop` gives it up.
        """
        writer = self.writer
        with self._close_lock:
            if self.closed:
                return
            discard = discard or self.temporary
            if self.store is not None:
                # Noted before anything changes, as an interrupt may come here.
                self._path = self.store.folder.where()
            if not discard and self.is_writer():
                writer.flush()
            with writer.lock:
                self._closing = self.no_puts = True
                try:
                    if self.forked:
                        discard = False
                    elif discard:
                        self.resident.release(list(self.resident.fresh.values()))
                        self.resident.drop_fresh(list(self.resident.fresh))
                        self.index.settle_all()
                        for slot in self.resident.slots():
                            self.committer.deletions.let_go(slot)
                            slot.version = -1
                        # What is let go of cannot be had again: from here on it is closed to
                        # everybody but a second close, should this one be interrupted.
                        self._discarded = True
                        self.index.close()
                    writer.wait_idle()
                    while not discard and self.is_writer() and writer.unsaved():
                        # Put or deleted by another thread between the flush and here.
                        writer.lock.release()
                        try:
                            writer.flush()
                        finally:
                            writer.lock.acquire()
                        # A flush does not wait for the files of what it replaced to be removed.
                        writer.wait_idle()
                    self.closed = True
                finally:
                    self._closing = False
                    self.no_puts = self.closed or not self.is_writer()
                store, self.store = self.store, None
                self.index.close()
                self.views.clear()
                writer.changed.notify_all()
            try:
                self.live.close()
            finally:
                if store is not None:
                    self._let_go_of(store, discard=discard)
                    logger.info("closed %s", self._path)

    def _let_go_of(self, store: Store, *, discard: bool) -> None:
        """Close the store, whatever goes wrong, and remove its folder if that is asked for."""
        if not discard and not self.forked:
            store.close()
            return
        ours = False
        try:
            # A folder that is another chest's by now stays as it is.
            if discard:
                ours = self.temporary or (store.folder.is_ours() and store.access.detach_others())
            # This is a forked child's own connection; the rest is its parent's.
            store.catalog.database.close()
        finally:
            try:
                if ours:
                    store.folder.remove()
            finally:
                store.release()

    def drop(self) -> None:
        """Close the chest and remove its folder, unless that is gone, or another chest's by now.

        Raises
        ------
        ChestInUseError
            Another chest may write to it; nothing was removed.
        """
        store = self.store
        # Nothing is removed of a folder that is gone: others that had it are no reason to wait.
        if store is not None and store.folder.is_ours() and not store.access.detach_others():
            raise ChestInUseError(
                f"expected {self.path} to be used by nobody else, found that it is: "
                "close the other chests first"
            )
        self.close(discard=True)

    def finalize(self, *, at_exit: bool = False) -> None:
        """What happens to a chest that nobody closed; raises nothing.

        Parameters
        ----------
        at_exit
            Whether the process ends, and not the chest within a function of ours.  From Python 3.13
            on nobody waits then for a thread that is started.
        """
        if self.forked or self.closed:
            return
        if not at_exit and is_at_work():
            # The garbage collector ran in a thread that may hold what our own writer waits for:
            # that writer itself, or one that commits to another chest of the same folder.
            threading.Thread(target=self.finalize, name="arraychest-closer", daemon=False).start()
            return
        try:
            self.close()
        except Exception as error:
            logger.exception("chest %s was not closed, and could not be stored", self.path)
            warn(f"the chest at {self.path} was not closed, and could not be stored: {error}")
            if self.store is not None and not self.store.folder.is_ours():
                # Its folder is gone: nobody can store it later, and nothing is removed.
                with contextlib.suppress(Exception):
                    self.close(discard=True)

    # --- fork ------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Bring every lock into the parent's hands, so that none is held by a thread that a
        child does not have.
        """
        self.live.before_fork()
        self.committer.commit_lock.acquire()
        self.writer.lock.acquire()
        self._store_lock.acquire()
        if self.store is not None:
            # SQLite's locks are not inherited: hold none across the fork.
            self.store.catalog.database.end_snapshot()

    def after_fork_in_parent(self) -> None:
        """Undo `before_fork`."""
        self._store_lock.release()
        self.writer.lock.release()
        self.committer.commit_lock.release()
        self.live.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Become a reader of what the parent has: the folder, its lock and its end are not ours."""
        self.forked = self.no_puts = self._has_parents_values = True
        self._closing = False  # another thread was about to, in the parent
        self.writer.after_fork_in_child()
        self.views.after_fork_in_child()
        self.transactions.by_context.clear()
        self._store_lock = Lock()
        self._close_lock = Lock()
        self.live.after_fork_in_child()
        if self.store is not None:
            self.store.become_reader()

    def keep_nothing(self) -> None:
        """Be as a forked child of the process that opened the chest: what is put is refused."""
        self.forked = self.no_puts = True

    def leave_to_parent(self) -> None:
        """In a forked child: keep what was in RAM at the fork apart.  Called under the lock."""
        if self._has_parents_values:
            self.committer.leave_to_parent()
            self.compactor.sparse.clear()
            self.room.leave_to_parent()
            self._has_parents_values = False

    def _open_own_session(self) -> None:
        """In a forked child: write to the chest as any other process does.  Called under the lock.

        What the chest knows in memory stays: it is brought up by what was committed since.
        """
        before = self.store
        if self.temporary or before is None:
            raise ReadOnlyChestError(
                "expected the process that opened the temporary chest, found another, as a forked "
                "child: it may only read; to write in several processes, give the chest a path"
            )
        self.leave_to_parent()
        try:
            store = open_in_child(before, self.options)
        except (OSError, ChestFormatError) as error:
            if isinstance(error, ChestInUseError | SpillError):
                raise
            raise SpillError(
                f"this forked process could not open {before.folder.where()} to write: {error}"
            ) from error
        # `Chest` knows the counter, and what was committed since it was read last is news here.
        counter = self.counter
        counter.words, store.counter = store.counter.words, counter
        self.index.take_places = store.take_places
        self.index.puts = max(self.index.puts, store.catalog.last_seq())
        self._use(store)
        # The places that the parent has taken are not ours to give.
        self.index.others_committed()
        before.catalog.database.close()
        self.live = Live(store.folder, self.options.mode)
        self.forked = self.no_puts = False
        self.committer.follow(store)
        _finalize_at_exit(self)
        logger.info("opened %s in a forked child", store.folder.path)


def _finalize_at_exit(session: Session) -> None:
    """Close the session where `multiprocessing` ends its forked children.

    That runs no other exit handlers.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _finalize, (weakref.ref(session),), exitpriority=0)


def _finalize(session: weakref.ref[Session]) -> None:
    found = session()
    if found is not None:
        found.finalize(at_exit=True)
