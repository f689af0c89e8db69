"""One process's use of a chest's folder: opening, who may write, closing, and what a fork does."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from arraychest import files as value_files
from arraychest.account import Account
from arraychest.budget import Budget
from arraychest.catalog import is_foreign
from arraychest.committer import Committer, logger
from arraychest.compression import Compression
from arraychest.counter import unmoved
from arraychest.errors import (
    ArrayChestWarning,
    ChestFormatError,
    ChestInUseError,
    ClosedChestError,
    ReadOnlyChestError,
)
from arraychest.filesystem import check_file_system, file_system_of
from arraychest.folder import Mode, empty_folder, open_folder
from arraychest.history import History
from arraychest.index import Index
from arraychest.live import Live
from arraychest.locks import FILE_NAME as LOCKS_NAME
from arraychest.locks import LockFile
from arraychest.mapping import MmapMode
from arraychest.quota import Quota
from arraychest.resident import ResidentSet
from arraychest.spill import WriteBehind
from arraychest.store import Store
from arraychest.values import OnPut, Own


class Options(NamedTuple):
    """How a chest was opened."""

    mode: Mode
    mmap_mode: MmapMode
    on_put: OnPut
    own: Own
    durable: bool
    on_miss: Callable[[Any], object] | None
    on_overflow: Callable[[Any], object] | None
    allow_network: bool
    checksums: bool
    quota: Quota | None
    compression: Compression
    key_to_filename: Callable[[Any], str] | None


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
        self.path = path
        self.options = options
        self.temporary = path is None
        self.budget = budget
        self._store: Store | None = None
        self._store_lock = threading.Lock()
        self._close_lock = threading.Lock()
        self.closed = False
        self._closing = False
        self._discarded = False
        self.forked = False
        # Whether a put has to find out why it is refused.
        self._no_puts = options.mode == "r"
        self.counter = unmoved()
        self.resident = ResidentSet()
        self.index = Index(self.resident, returnable=options.mmap_mode == "r")
        self.committer = Committer(
            self.index,
            self.resident,
            self.open_store,
            options.on_overflow,
            options.quota,
            options.compression,
            options.key_to_filename,
        )
        self.writer = WriteBehind(self.committer, self.index, self.resident, budget)
        self._account = Account(self.index, self.resident, self.committer)
        if path is not None:
            self._open_named(path)
        self.history = History()
        # Last: its first page comes a while after the chest was opened.
        self.live = Live(path, options.mode)
        self.committer.before_commit = weakref.WeakMethod(self.tell_if_due)
        # Not while somebody forks, who knows of all others by then: a look-up in the catalog is
        # kept from a fork by the chest's lock alone.
        with _fork_lock:
            _alive.add(self)

    # --- opening -----------------------------------------------------------------------------

    def _open_named(self, path: str) -> None:
        mode = self.options.mode
        if mode != "r" and not self.options.allow_network:
            check_file_system(path)
        elif mode != "r":
            _warn_of_network(path)
        had_locks = os.path.lexists(os.path.join(path, LOCKS_NAME))
        locks, alone = open_folder(path, mode, durable=self.options.durable)
        try:
            try:
                store = self._make_store(path, locks, alone)
            except ValueError:
                if mode != "w" or is_foreign(path):
                    raise
                empty_folder(path)
                store = self._make_store(path, locks, alone)
        except BaseException as error:
            if locks is not None:
                if isinstance(error, ChestFormatError) and not had_locks and is_foreign(path):
                    locks.unlink(path)
                locks.close()
            raise
        try:
            if locks is not None:
                if mode == "w":
                    store.clear()
                swept = store.sweep()
                if swept:
                    logger.info("swept %d orphans in %s after an unclean end", swept, path)
                self.index.take_places = store.take_places
            self.index.puts = store.catalog.last_seq()
            store.attached()
        except BaseException:
            store.close()
            raise
        self._store = store
        catalog = store.catalog
        catalog.on_snapshot = lambda: self.writer.call_at_rest(catalog.end_snapshot)
        self.index.attach(catalog, empty=self.index.puts == 0 and alone)
        self.counter = store.counter
        logger.info("opened %s, mode %s", path, mode)

    def _make_store(self, path: str, locks: LockFile | None, alone: bool) -> Store:
        options = self.options
        return Store(
            path,
            locks,
            shared=not self.temporary,
            alone=alone,
            durable=options.durable,
            allow_pickle=options.own.allow_pickle,
            mmap_mode=options.mmap_mode,
            nthreads=options.compression.nthreads,
            quota=options.quota,
            checksums=options.checksums,
        )

    def open_store(self) -> Store:
        """The store; that of a temporary chest is made at the first call."""
        store = self._store
        if store is None:
            with self._store_lock:
                if self._store is None:
                    self.check_open()
                    root, locks = value_files.make_private_folder()
                    try:
                        self._store = self._make_store(root, locks, True)
                    except BaseException:
                        locks.close()
                        value_files.remove_folder(root)
                        raise
                    self.path = root
                    self.index.attach(self._store.catalog, empty=True)
                store = self._store
        return store

    def follow(self) -> None:
        """Note what other processes have committed.  Called under the lock.

        Costs one read of memory where they have not.
        """
        counter = self.counter
        if counter.words[0] != counter.seen_word and self._store is not None:
            self.committer.follow(self._store)

    def tell_if_due(self) -> None:
        """Tell other processes of the chest, if it is time.  The lock is not held."""
        now = time.monotonic()
        if now >= self.history.due:
            self.take_sample()
        if now >= self.live.due:
            self.live.publish(lambda: self._account.take(self._store, self.budget))

    def take_sample(self) -> None:
        """Note what is in RAM now, for `Chest.plot`."""
        spilled = self.committer.counters.bytes_spilled
        self.history.add(self.resident.charged, self.budget.bytes, spilled)

    # --- who may do what -----------------------------------------------------------------------

    def may_write(self) -> bool:
        """Whether the chest can be changed by this process."""
        return self.options.mode != "r" and not self.forked

    def check_open(self) -> None:
        """Raise ClosedChestError if the chest is closed."""
        if self.closed or self._discarded:
            raise ClosedChestError("the chest is closed")

    def check_writable(self) -> None:
        """Raise ClosedChestError or ReadOnlyChestError where nothing can be changed."""
        self.check_open()
        if self._closing:
            raise ClosedChestError("the chest is being closed")
        if self.forked:
            raise ReadOnlyChestError(
                "expected the process that opened the chest, found a forked child: it may read; "
                "to write, open a chest of its own"
            )
        if self.options.mode == "r":
            raise ReadOnlyChestError(f'expected mode "a", "w" or "x", found "r": {self.path}')

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Writing in a caller's thread: a close waits for its end.  Must not wait for writers."""
        with self.writer.lock:
            self.check_writable()
            self.writer.begin_work()
        try:
            yield
        finally:
            with self.writer.lock:
                self.writer.end_work()

    # --- the end ---------------------------------------------------------------------------

    def close(self, *, discard: bool = False) -> None:
        """Store what is not stored, and let go of everything; a second call does nothing.

        A temporary chest, or one with `discard`, stores nothing and is removed.

        Raises
        ------
        SpillError
            Something could not be stored: the chest stays open, with nothing lost.
        """
        writer = self.writer
        with self._close_lock:
            if self.closed:
                return
            discard = discard or self.temporary
            if not discard and self.may_write():
                writer.flush()
                self._sync_in_place()
            with writer.lock:
                self._closing = self._no_puts = True
                try:
                    if self.forked:
                        discard = False
                    elif discard:
                        self.committer.forget_sums()
                        self.index.discard()
                        for slot in self.resident.slots():
                            self.committer.let_go(slot)
                            slot.version = -1
                        # What is let go of cannot be had again: from here on it is closed to
                        # everybody but a second close, should this one be interrupted.
                        self._discarded = True
                        self.index.close()
                    else:
                        writer.finish_sums()
                    writer.wait_idle()
                    while not discard and self.may_write() and writer.unsaved():
                        # Put or deleted by another thread between the flush and here.
                        writer.lock.release()
                        try:
                            writer.flush()
                        finally:
                            writer.lock.acquire()
                        # A flush does not wait for the files of what it replaced to be removed.
                        writer.finish_sums()
                        writer.wait_idle()
                    self.closed = True
                finally:
                    self._closing = False
                    self._no_puts = self.closed or not self.may_write()
                store, self._store = self._store, None
                self.index.close()
                self._forget_kept()
                writer.changed.notify_all()
            self.live.close()
            if store is None:
                return
            logger.info("closed %s", self.path)
            if self.forked:
                store.catalog.close()  # the child's own connection; the rest is its parent's
                return
            if discard:
                try:
                    store.catalog.close()
                finally:
                    try:
                        value_files.remove_folder(store.root)
                    finally:
                        store.release_locks()
            else:
                store.close()

    def drop(self) -> None:
        """Close the chest and remove its folder.

        Raises
        ------
        ChestInUseError
            Another chest may write to it; nothing was removed.
        """
        store = self._store
        if store is not None and not store.detach_others():
            raise ChestInUseError(
                f"expected {self.path} to be used by nobody else, found that it is: "
                "close the other chests first"
            )
        self.close(discard=True)

    def _forget_kept(self) -> None:
        """Let go of what is kept open beside the index."""

    def _sync_in_place(self) -> None:
        """Put what was written through maps on stable storage, if that is asked for."""

    def finalize(self) -> None:
        """What happens to a chest that nobody closed; raises nothing."""
        if self.forked or self.closed:
            return
        if _is_at_work():
            # The garbage collector ran in a thread that may hold what our own writer waits for:
            # that writer itself, or one that commits to another chest of the same folder.
            threading.Thread(target=self.finalize, name="arraychest-closer", daemon=False).start()
            return
        try:
            self.close()
        except Exception:
            logger.exception("chest %s was not closed, and could not be stored", self.path)

    # --- fork ------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Bring every lock into the parent's hands, so that none is held by a thread that a
        child does not have.
        """
        self.live.before_fork()
        self.committer.commit_lock.acquire()
        self.writer.lock.acquire()
        self._store_lock.acquire()
        if self._store is not None:
            # SQLite's locks are not inherited: hold none across the fork.
            self._store.catalog.end_snapshot()

    def after_fork_in_parent(self) -> None:
        """Undo `before_fork`."""
        self._store_lock.release()
        self.writer.lock.release()
        self.committer.commit_lock.release()
        self.live.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Become a reader of what the parent has: the folder, its lock and its end are not ours."""
        self.forked = self._no_puts = True
        self.writer.become_reader()
        self._store_lock = threading.Lock()
        self._close_lock = threading.Lock()
        self.live.after_fork_in_child()
        if self._store is not None:
            self._store.become_reader()


def _is_at_work() -> bool:
    """Whether a function of ours runs in this thread below the caller's, and may hold a lock."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and not _is_ours(frame.f_globals):
        frame = frame.f_back
    return frame is not None


def _is_ours(names: dict[str, Any]) -> bool:
    return str(names.get("__name__")).partition(".")[0] == __package__


def _warn_of_network(path: str) -> None:
    found = file_system_of(path)
    if found is None or not found.is_network:
        return
    # Where the caller opens the chest, however deep in this package that is done.
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals):
        frame = frame.f_back
        level += 1
    warnings.warn(
        f"{path} lies on {found.kind} at {found.mount_point}: the chest is safe as long as one "
        "host uses it at a time",
        ArrayChestWarning,
        stacklevel=level,
    )


_alive: weakref.WeakSet[Session] = weakref.WeakSet()
_forking: list[Session] = []
# Threads that fork at once take turns: each has all locks, and its own list of whose they are.
_fork_lock = threading.Lock()


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking[:] = _alive
    for session in _forking:
        session.before_fork()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop().after_fork_in_child()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
