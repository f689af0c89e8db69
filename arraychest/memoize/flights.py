"""One call computes once: whoever else makes the same call meanwhile waits for its result."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

from arraychest.catalog.record import Cost
from arraychest.engine.commit import logger
from arraychest.engine.engine import Engine
from arraychest.errors import (
    ArrayChestWarning,
    DeadlockError,
)
from arraychest.sharing.locks import KeyLock
from arraychest.values.keys import group_of

# A coroutine that waits for another's result looks again after so long, in seconds: at first, and
# at most.
_FIRST_WAIT_SECONDS = 0.001
_MAX_WAIT_SECONDS = 0.05

# What the caller is computing, so that a function that asks for its own result does not wait for
# itself.
_computing: contextvars.ContextVar[frozenset[Any]] = contextvars.ContextVar(
    "computing", default=frozenset()
)


class Flights:
    """Which results of one chest are being computed: each by one caller at a time.

    Attributes
    ----------
    costs
        What results took to compute, as far as that was asked for.
    token
        Tells one chest of all processes from the others.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        # In a temporary chest, which no other process uses: by key, and how many ask for each.
        self._locks: dict[Any, threading.Lock] = {}
        self._asking: dict[Any, int] = {}
        self.costs: dict[Any, Cost | None] = {}
        self.token = os.urandom(8)
        self._told_unkept = False

    def tell_unkept(self) -> None:
        """Warn, once, if results are not kept because the chest is another process's."""
        engine = self._engine
        if not self._told_unkept and engine.session.temporary and engine.session.forked:
            self._told_unkept = True
            message = (
                "the results of cached functions are not kept in this process: their chest is a "
                "temporary one, which only the process that opened it can write to; give the chest "
                "a path, and all processes share the results"
            )
            try:
                warnings.warn(message, ArrayChestWarning, stacklevel=4)
            except ArrayChestWarning:  # where warnings are errors: the result is there all the same
                logger.warning("%s", message)

    @contextlib.contextmanager
    def alone(self, key: Any) -> Iterator[None]:
        """Keep all others from computing a result; waits for whoever does.

        Where nothing is kept nobody waits: there would be nothing to wait for.
        """
        if key in _computing.get() or not self._engine.session.may_write():
            yield
            return
        with self._taken(key) as lock:
            try:
                lock.acquire()
            except (OSError, DeadlockError) as error:
                # As with too many files open: better twice than not at all.
                logger.debug("the result of %s is computed beside others: %s", key, error)
                lock = None
            try:
                with self._noted(key):
                    yield
            finally:
                if lock is not None:
                    lock.release()

    @contextlib.asynccontextmanager
    async def alone_async(self, key: Any) -> AsyncIterator[None]:
        """As `alone`, of a coroutine: others go on while it waits."""
        import asyncio  # whoever calls this has imported it; others should not pay for it

        if key in _computing.get() or not self._engine.session.may_write():
            yield
            return
        with self._taken(key) as lock:
            pause = _FIRST_WAIT_SECONDS
            try:
                while not lock.acquire(blocking=False):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _MAX_WAIT_SECONDS)
            except OSError as error:
                logger.debug("the result of %s is computed beside others: %s", key, error)
                lock = None
            try:
                with self._noted(key):
                    yield
            finally:
                if lock is not None:
                    lock.release()

    @contextlib.contextmanager
    def _taken(self, key: Any) -> Iterator[Any]:
        engine = self._engine
        if not engine.session.temporary:
            yield KeyLock(engine.session.open_store().folder, group_of(key), key)
            return
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            self._asking[key] = self._asking.get(key, 0) + 1
        try:
            yield lock
        finally:
            with self._lock:
                self._asking[key] -= 1
                if not self._asking[key]:
                    del self._asking[key], self._locks[key]

    @contextlib.contextmanager
    def _noted(self, key: Any) -> Iterator[None]:
        token = _computing.set(_computing.get() | {key})
        try:
            yield
        finally:
            # In another context where a coroutine is closed that was never finished.
            with contextlib.suppress(ValueError):
                _computing.reset(token)
