"""Faults on demand: what arraychest asks of the system can be counted, refused or interrupted.

`injected` puts a stand-in for the `os` module in the place of the one that the modules of
arraychest see, and a connection of its own in the place of SQLite's; each file operation and each
statement then goes through one function, the *action*, which may let it happen, raise, or end the
process.  Nothing else in the process is touched: the tests' own file operations are not counted.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import pickle
import signal
import sqlite3
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import arraychest.catalog.connection
import arraychest.engine.blocks
import arraychest.engine.drafts
import arraychest.files.files
import arraychest.files.place
import arraychest.files.private
import arraychest.files.room
import arraychest.files.spares
import arraychest.files.unfinished
import arraychest.files.writing
import arraychest.formats.manifest
import arraychest.monitor.live
import arraychest.platform.choice
import arraychest.platform.cloning
import arraychest.platform.leases
import arraychest.platform.maps
import arraychest.platform.space
import arraychest.sharing.commit_counter
import arraychest.sharing.locks
import arraychest.sharing.open_folder
import arraychest.storage.block_writer
import arraychest.storage.folder
import arraychest.storage.linking
import arraychest.storage.mapped_files
import arraychest.storage.reading
from tests.support import hears_interrupts, where_is

# An action gets the operation's name, its arguments and what does it, and returns its result.
Action = Callable[[str, tuple[Any, ...], Callable[[], Any]], Any]

OPERATIONS = frozenset({
    "open", "close", "fstat", "stat", "lstat", "ftruncate", "truncate", "posix_fallocate",
    "write", "writev", "pwrite", "pwritev", "read", "readv", "pread", "preadv", "fsync",
    "fdatasync", "sendfile", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "mkdir",
    "makedirs", "listdir", "scandir", "walk", "posix_fadvise",
})  # fmt: skip

# The operation by which space for a file is reserved.
RESERVING = "posix_fallocate" if arraychest.platform.space.HAS_FALLOCATE else "pwrite"
# The one by which the bytes of another file are copied.
COPYING = "sendfile" if arraychest.platform.cloning.HAS_SENDFILE else "pread"

# For what a system must have that a test is about.
needs_spares = pytest.mark.skipif(
    not arraychest.platform.leases.HAS_LEASES, reason="without leases no file is overwritten"
)
needs_fallocate = pytest.mark.skipif(
    not arraychest.platform.space.HAS_FALLOCATE, reason="room is reserved by writing"
)
needs_ficlone = pytest.mark.skipif(
    not arraychest.platform.choice.IS_LINUX, reason="blocks are shared in another way, or not"
)


def reserved_to(name: str, args: tuple[Any, ...]) -> int:
    """Where the room ends that an operation reserves; 0 if it reserves none."""
    if name != RESERVING:
        return 0
    _, second, third = args
    return third + (second if name == "posix_fallocate" else len(second))


_HOSTS = (
    arraychest.engine.blocks,
    arraychest.storage.block_writer,
    arraychest.sharing.commit_counter,
    arraychest.files.files,
    arraychest.files.place,
    arraychest.files.private,
    arraychest.files.room,
    arraychest.files.spares,
    arraychest.files.unfinished,
    arraychest.files.writing,
    arraychest.platform.cloning,
    arraychest.platform.leases,
    arraychest.platform.space,
    arraychest.storage.folder,
    arraychest.storage.reading,
    arraychest.sharing.locks,
    arraychest.formats.manifest,
    arraychest.platform.maps,
    arraychest.engine.drafts,
    arraychest.formats.manifest,
    arraychest.sharing.open_folder,
    arraychest.storage.linking,
    arraychest.storage.mapped_files,
)
_action: Action | None = None


def _perform(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    return call() if _action is None else _action(name, args, call)


class _OsProxy:
    """The `os` module, each file operation of which goes through the action."""

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def operation(*args: Any, **kwargs: Any) -> Any:
            told = args
            if isinstance(args[0] if args else None, str):
                both = kwargs.get("dir_fd")
                folders = (kwargs.get("src_dir_fd", both), kwargs.get("dst_dir_fd"))
                told = (*map(_whole, args[:2], folders), *args[2:])
            return _perform(name, told, lambda: real(*args, **kwargs))

        return operation


def _whole(name: Any, folder: int | None) -> Any:
    """The whole path of a name in an open folder, as an action is told of it."""
    if folder is None or not isinstance(name, str):
        return name
    return os.path.normpath(os.path.join(where_is(folder), name))


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, *args: Any) -> Any:
        return _perform(
            "sql " + _verb(sql), (sql, *args), lambda: super(_Cursor, self).execute(sql, *args)
        )


class _Connection(sqlite3.Connection):
    def cursor(self, *args: Any) -> Any:
        return super().cursor(_Cursor)

    def execute(self, sql: str, *args: Any) -> Any:
        return self.cursor().execute(sql, *args)

    def executescript(self, sql: str) -> Any:
        return _perform("sql SCRIPT", (sql,), lambda: super(_Connection, self).executescript(sql))

    def close(self) -> None:
        _perform("sql CLOSE", (), super().close)


class _SqliteProxy:
    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    @staticmethod
    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        def call() -> sqlite3.Connection:
            return sqlite3.connect(*args, **kwargs, factory=_Connection)

        return _perform("sql CONNECT", args, call)


def _verb(sql: str) -> str:
    return sql.split(None, 1)[0].rstrip(";")


@contextlib.contextmanager
def injected(action: Action) -> Iterator[None]:
    """Send every file operation and every SQL statement of arraychest through `action`.

    Connections opened inside stay usable after it, without the action.

    Nothing is published meanwhile: whether it is time to do so differs from run to run, and so
    would the count of what is asked of the catalog.
    """
    global _action
    before = [(host, host.os) for host in _HOSTS if hasattr(host, "os")]
    for host, _ in before:
        host.os = _OsProxy()
    arraychest.catalog.connection.sqlite3 = _SqliteProxy()
    publish = arraychest.monitor.live.Live.publish
    arraychest.monitor.live.Live.publish = lambda self, account: None
    _action = action
    try:
        yield
    finally:
        _action = None
        arraychest.catalog.connection.sqlite3 = sqlite3
        arraychest.monitor.live.Live.publish = publish
        for host, real in before:
            host.os = real


class Countdown:
    """An action that does something at the `at`-th operation, counted from 1; 0: only counts.

    Parameters
    ----------
    at
        Which one.
    act
        Called at that operation; may raise or end the process.
    after
        Whether it is called after the operation instead of before it.
    only
        Counts an operation only where this is true of its name and arguments.

    Attributes
    ----------
    count
        Operations so far.
    names
        Their names.
    """

    def __init__(
        self,
        at: int,
        act: Callable[[], object] = lambda: None,
        *,
        after: bool = False,
        only: Callable[[str, tuple[Any, ...]], bool] = lambda name, args: True,
    ) -> None:
        self._at = at
        self._act = act
        self._after = after
        self._only = only
        self._lock = threading.Lock()
        self.count = 0
        self.names: list[str] = []

    @property
    def struck(self) -> bool:
        """Whether the operation has come."""
        return 0 < self._at <= self.count

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if not self._only(name, args):
            return call()
        with self._lock:
            self.count += 1
            self.names.append(name)
            strike = self.count == self._at
        if not strike:
            return call()
        # A descriptor must not be lost: what opens is refused, what closes is done first.
        after = (self._after or name in ("close", "sql CLOSE")) and name not in (
            "open",
            "sql CONNECT",
        )
        if after:
            result = call()
            self._act()
            return result
        self._act()
        return call()


class Failing:
    """An action that raises an `OSError` at every chosen operation, as long as it is `on`."""

    def __init__(self, number: int, chosen: Callable[[str, tuple[Any, ...]], bool] | str) -> None:
        self.number = number
        self.on = True
        self.hits = 0
        self._chosen = (lambda name, args: name == chosen) if isinstance(chosen, str) else chosen

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if self.on and self._chosen(name, args):
            self.hits += 1
            if name.startswith("sql"):
                raise sqlite3.OperationalError(SQLITE_WORDS[self.number])
            raise OSError(self.number, os.strerror(self.number))
        return call()


# What SQLite says where the system says ...
SQLITE_WORDS = {
    errno.ENOSPC: "database or disk is full",
    errno.EIO: "disk I/O error",
    errno.EMFILE: "unable to open database file",
    errno.ENFILE: "unable to open database file",
}


def raising(error: type[BaseException] | BaseException) -> Callable[[], object]:
    """What raises `error` when called."""

    def act() -> None:
        raise error

    return act


def die() -> None:
    """End the process as a crash does: no handler, no finalizer, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # until the signal arrives


class Outcome(NamedTuple):
    """How a forked child ended.

    Attributes
    ----------
    result
        What its function returned; None if it did not.
    error
        The traceback of what its function raised; None if it did not.
    signal
        The signal that ended it; 0 if none did.
    said
        What it sent with `Say`, however it ended.
    """

    result: Any
    error: str | None
    signal: int
    said: list[Any]


# Seconds until this very process is ended, where it is a child itself.
_patience = 0.0


class Say:
    """Sends objects from a child to its parent; what was sent outlives the child."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, thing: Any) -> None:
        data = pickle.dumps(thing)
        os.write(self._fd, len(data).to_bytes(4, "little") + data)


def in_child(function: Callable[[Say], Any], *, seconds: float = 60) -> Outcome:
    """Run ``function(say)`` in a fork of this process and tell how it ended.

    A child that hangs says where on stderr and is ended.
    """
    global _patience
    reader, writer = os.pipe()
    # A fork does not inherit the thread that watches over a child, and would wait for its end.
    faulthandler.cancel_dump_traceback_later()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, from 3.12 on
        pid = os.fork()
    if not pid:
        os.close(reader)
        say = Say(writer)
        _patience = seconds
        try:
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)
            try:
                with hears_interrupts():
                    say(("result", function(say)))
            except BaseException:
                say(("error", traceback.format_exc()))
        finally:
            os._exit(0)
    if _patience:
        faulthandler.dump_traceback_later(_patience, exit=True, file=2)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    told = []
    while data:
        size = int.from_bytes(data[:4], "little")
        told.append(pickle.loads(data[4 : 4 + size]))
        data = data[4 + size :]
    result = error = None
    ended = False
    if told and isinstance(told[-1], tuple) and told[-1][0] in ("result", "error"):
        what, value = told.pop()
        ended = True
        result, error = (value, None) if what == "result" else (None, value)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not ended and not number:
        error = f"the child ended without a word, as after {seconds} s: status {status}"
    return Outcome(result, error, number, told)
