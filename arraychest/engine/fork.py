"""What a fork does to the open chests of a process.

Before it the forking thread takes every lock of every chest, so that none is held by a thread that
the child does not have.  In the child each chest becomes a reader of what its parent has.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Protocol

from arraychest.catalog.connection import has_inherited


class Forkable(Protocol):
    """An open chest; `Session` says what each method does."""

    @property
    def is_shared(self) -> bool: ...  # noqa: D102

    def before_fork(self) -> None: ...  # noqa: D102

    def after_fork_in_parent(self) -> None: ...  # noqa: D102

    def after_fork_in_child(self) -> None: ...  # noqa: D102


def note_open(chest: Forkable) -> None:
    """A chest was opened: a fork has to know of it, as long as it is there.

    Not while somebody forks, who knows of all others by then: a look-up in the catalog is kept from
    a fork by the chest's lock alone.
    """
    with _fork_lock:
        _alive.add(chest)


_alive: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking: list[Forkable] = []
_gate: list[tuple[int, int]] = []
# Threads that fork at once take turns: each has all locks, and its own list of whose they are.
_fork_lock = threading.Lock()


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking[:] = _alive
    for session in _forking:
        session.before_fork()
    if any([each.is_shared for each in _forking]) or has_inherited():
        # Without it a parent that closes a chest at once would find nobody else there.
        with contextlib.suppress(OSError):
            _gate.append(os.pipe())


def _after_fork_in_parent() -> None:
    if _gate:
        reading, writing = _gate.pop()
        os.close(writing)
        # Until the child has locked the catalogs, or is no more; see `Database.reopen_in_child`.
        os.read(reading, 1)
        os.close(reading)
    while _forking:
        _forking.pop().after_fork_in_parent()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    try:
        while _forking:
            _forking.pop().after_fork_in_child()
    finally:
        while _gate:
            for fd in _gate.pop():
                os.close(fd)
        _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
