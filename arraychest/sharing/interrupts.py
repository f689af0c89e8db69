"""Ctrl-C comes between two steps of the chest, and never within one.

Python raises KeyboardInterrupt in the main thread, wherever that thread calls a function, enters
one or jumps back.  A step that changes several things, such as a commit and what memory learns of
it, would be left half done.  So the main thread *holds back* SIGINT during a step: `held_back`
puts a handler of ours in the place of the user's, which notes that the signal came.  When the step
is done, the user's handler is back, and is called if a signal came.

A step that has to wait, for another process or for a writer thread, says where: there the signal
goes through at once (`let_through`, `Condition.wait`), and the step undoes what it has begun.

Every lock of a chest's state is a `Lock`: whoever holds one has held back SIGINT.  Other threads
than the main one are never interrupted, and pay nothing but a comparison.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any

_signal = importlib.import_module("_signal")

_Handler = Callable[[int, FrameType | None], Any]

# `signal.signal` turns numbers into members of an enumeration, which takes ten times as long as the
# function of CPython's that it wraps: 0.3 us for the change of a handler and back, instead of 3 us.
_set_handler: Callable[[int, Any], Any] = getattr(_signal, "signal", signal.signal)
_get_handler: Callable[[int], Any] = getattr(_signal, "getsignal", signal.getsignal)
_SIGINT = int(signal.SIGINT)

# How often the main thread looks for a signal while it waits for a lock or a condition.
_LOOK_SECONDS = 0.05


class _MainThread:
    """What the main thread is at.  It alone changes this."""

    __slots__ = ("came", "depth", "handler", "ident", "lets_through")

    def __init__(self) -> None:
        self.ident = threading.main_thread().ident
        # How many steps it is in, one within the other.
        self.depth = 0
        # The user's handler, as long as ours is in its place.
        self.handler: _Handler | None = None
        # Whether a signal came that nobody was told of.
        self.came = False
        # Whether the innermost step waits for something, and may be interrupted.
        self.lets_through = False


_main = _MainThread()


def _note(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT during a step."""
    if _main.lets_through and _main.handler is not None:
        _main.lets_through = False
        _main.handler(number, frame)
    else:
        _main.came = True


def _enter() -> bool:
    """Begin a step in the main thread; returns what `_leave` wants to know."""
    main = _main
    waits = main.lets_through
    main.lets_through = False
    if not main.depth:
        handler = _get_handler(_SIGINT)
        # Not what ignores the signal, or ends the process: these are numbers.
        if type(handler) is not int and handler is not None:
            main.came = False
            main.handler = handler
            _set_handler(_SIGINT, _note)
    main.depth += 1
    return waits


def _leave(waits: bool) -> None:
    """End a step: whatever came meanwhile is raised here, when everything is done."""
    main = _main
    main.depth = depth = main.depth - 1
    if depth:
        main.lets_through = waits
        if waits:
            check()
        return
    handler = main.handler
    if handler is None:
        return
    main.handler = None
    # It looks for signals first, with `_note` still in its place.
    found = _set_handler(_SIGINT, handler)
    if found is not _note:
        _set_handler(_SIGINT, found)  # the user has set another one meanwhile
    if main.came:
        main.came = False
        handler(_SIGINT, sys._getframe())


def check() -> None:
    """Raise KeyboardInterrupt, or whatever the user's handler does, if a signal was held back.

    A step calls this where it can be left.
    """
    if _main.came and get_ident() == _main.ident and _main.handler is not None:
        _main.came = False
        _main.handler(_SIGINT, sys._getframe())


class held_back:  # noqa: N801
    """A step: ``with held_back():``.  SIGINT is told of when it is done.

    Steps may lie within each other; the outermost one counts.  In other threads than the main one
    this does nothing.  Takes 0.5 us.

    Examples
    --------
    >>> import signal
    >>> from arraychest.sharing.interrupts import held_back
    >>> try:
    ...     with held_back():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("this is done")
    ... except KeyboardInterrupt:
    ...     print("then it is told")
    this is done
    then it is told
    """

    __slots__ = ("_waits",)

    def __enter__(self) -> None:
        self._waits = get_ident() == _main.ident and _enter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if get_ident() == _main.ident:
            _leave(self._waits)


class let_through:  # noqa: N801
    """A part of a step that waits, and that may be interrupted: ``with let_through():``.

    An interrupt may also come right behind what the part did: the step undoes it.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        if get_ident() == _main.ident and _main.depth:
            check()
            _main.lets_through = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if get_ident() == _main.ident:
            _main.lets_through = False


class Lock:
    """A lock whose holder is in a step; used by ``with``.

    Attributes
    ----------
    bare
        The lock itself.  Who takes this one is interrupted as anybody is: what is done then must
        change one thing by one assignment, without a call.
    """

    __slots__ = ("_waits", "bare")

    def __init__(self) -> None:
        self.bare = threading.Lock()
        self._waits = False

    def __enter__(self) -> None:
        if get_ident() != _main.ident:
            self.bare.acquire()
            return
        waits = _enter()
        if not self.bare.acquire(False):
            self._wait(waits)
        self._waits = waits

    def _wait(self, waits: bool) -> None:
        try:
            while not self.bare.acquire(True, _LOOK_SECONDS):
                check()
        except BaseException:
            _leave(waits)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        waits = self._waits
        self.bare.release()
        if get_ident() == _main.ident:
            _leave(waits)

    def acquire(self) -> bool:
        """Take the lock without a step; for who is in one, or cannot be interrupted."""
        return self.bare.acquire()

    def release(self) -> None:
        """Undo `acquire`."""
        self.bare.release()


class Condition(threading.Condition):
    """A condition on a `Lock`: while the main thread waits, a signal goes through at once."""

    def __init__(self, lock: Lock) -> None:
        super().__init__(lock.bare)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified; see `threading.Condition.wait`.

        The main thread also returns after a moment, without a notification: what an interrupt kept
        from notifying is seen all the same.

        Raises
        ------
        KeyboardInterrupt
            The lock is held, as it is whenever this returns.
        """
        if get_ident() != _main.ident:
            return super().wait(timeout)
        check()
        return super().wait(_LOOK_SECONDS if timeout is None else min(timeout, _LOOK_SECONDS))


def _after_fork_in_child() -> None:
    """The thread that forked is the main one now; if it was not, nobody ends the other's step."""
    ident = get_ident()
    if ident == _main.ident:
        return
    handler = _main.handler
    _main.__init__()  # type: ignore[misc]
    _main.ident = ident
    if handler is not None:
        _set_handler(_SIGINT, handler)


os.register_at_fork(after_in_child=_after_fork_in_child)
