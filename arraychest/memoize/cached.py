"""Memoised functions: a result is kept in a chest under what its call is, and found there again.

A call is what runs and what it is given (see `fingerprint`).  Arrays count by their contents, which
are digested once: a result that comes out of a chest and is the argument of the next function is
known by the digest that was recorded with it.

A missing result is computed once: whoever asks for it meanwhile, in any thread or process, waits,
and computes it should the first one fail or die.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack

from arraychest.arrays.provenance import digest_of
from arraychest.catalog.record import Cost
from arraychest.engine.commit import logger
from arraychest.engine.engine import Engine
from arraychest.engine.entry import Entry
from arraychest.engine.face import in_chest
from arraychest.engine.handle import Handle, handle_of
from arraychest.errors import (
    AbsentKeyError,
    ClosedChestError,
    CorruptEntryError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.memoize.flights import Flights
from arraychest.memoize.held import afresh, are_ours
from arraychest.memoize.options import CacheOptions, Kept, checked, is_disabled, say, verbose
from arraychest.memoize.sending import (
    Temporary,
    again,
    attribute,
    by_value,
    of_main,
    pickled_by_value,
    temporary,
)
from arraychest.values.accept import OnPut

P = ParamSpec("P")
R = TypeVar("R")

# What results took to compute, remembered of so many of them.
_MOST_COSTS = 65_536


class CacheStats(NamedTuple):
    """What a memoised function has done since it was decorated, in this process.

    Attributes
    ----------
    hits, misses
        Calls whose result was there, and calls that were computed.
    seconds_computing
        How long the latter took.
    seconds_saved
        How long the results of the former had taken to compute.
    """

    hits: int
    misses: int
    seconds_computing: float
    seconds_saved: float


class Cached(Generic[P, R]):
    """A function whose results a chest keeps; `Chest.cache` makes it.

    It is called as the function is.  What it returns is what the chest gives: arrays are read-only
    (or as `mmap_mode` says), also those that were computed just now.

    Attributes
    ----------
    func
        The function itself.

    Notes
    -----
    Safe from many threads.  A hit costs some 20 us and what it takes to digest arrays that were
    not met before; what is stored is mapped, not read.
    """

    # For `sending`, which cannot import this module.
    is_cached = True

    def __init__(
        self,
        engine: Engine,
        flights: Flights,
        chest: Any,
        func: Callable[P, R],
        **options: Unpack[CacheOptions],
    ) -> None:
        # As long as the rest of the package: for those who memoise.
        from arraychest.memoize.arguments import Parameters
        from arraychest.memoize.fingerprint import FunctionPrint, value_fingerprint
        from arraychest.memoize.state_watch import StateWatch

        if not callable(func):
            raise TypeError(
                f"expected a function to cache, found {type(func).__name__}: of a classmethod or "
                "staticmethod, decorate the function first"
            )
        asked = checked(options)
        # As an attribute of a class: bound methods, partials and such have their first argument.
        # A partial is a method from Python 3.14 on, and warns of it in 3.13: here it never is.
        self._binds = hasattr(type(func), "__get__") and not isinstance(
            func, staticmethod | types.MethodType | functools.partial
        )
        if isinstance(func, staticmethod):
            func = func.__func__
        # First, with the function's own attributes: none of ours may be overwritten, nor hidden.
        functools.update_wrapper(self, func, updated=())
        for name, value in vars(func).items() if isinstance(func, types.FunctionType) else ():
            if not hasattr(type(self), name):
                setattr(self, name, value)
        self.__wrapped__ = func
        self._engine = engine
        self._flights = flights
        # A chest that nobody holds is closed.
        self._chest = chest
        self._options = asked
        self.func = func
        self._name = _name_of(func)
        # Defaults are among the arguments, unless `key` says what counts of what was given.
        ignore_state = asked["ignore_state"]
        self._print = FunctionPrint(
            func,
            version=asked["version"],
            helpers=asked["helpers"],
            defaults=asked["key"] is not None,
            ignored=ignore_state,
        )
        self._watch = StateWatch(self._name, self._print, ignore_state)
        # What the classes of the arguments do is code, too.
        self._counts: dict[str, Any] = {
            "classes": asked["version"] is None and asked["helpers"],
            "ignored": ignore_state,
        }
        self._parameters = Parameters(func, asked["ignore"])
        self._key = asked["key"]
        self._fingerprint = value_fingerprint
        self._verbose = asked["verbose"]
        self._told_unkept = False
        # Shared by all functions of the chest: the same one may be decorated twice.
        self._costs = flights.costs
        self._hits = self._misses = 0
        self._seconds_computing = self._seconds_saved = 0.0

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result: the one that is kept, or else computed now and kept.

        Raises
        ------
        ValueTypeError
            An argument cannot be told by its content; or, with ``strict=True``, the result cannot
            be stored.
        Exception
            Whatever the function raises; it is not kept.
        """
        if self._passes_through():
            return self.func(*args, **kwargs)
        key, args_, kwargs_ = self._called(args, kwargs)
        found, value = self._found(key)
        if found:
            return value  # type: ignore[no-any-return]
        with self._flights.alone(key):
            found, value = self._found(key)
            if found:
                return value  # type: ignore[no-any-return]
            with self._timed(key, args_) as timed:
                # In a list: nothing else of ours refers to it.
                result = [self.func(*args_, **kwargs_)]
            return self._kept(key, result, timed.seconds)  # type: ignore[no-any-return]

    def key(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The key of the chest under which the result of a call is kept.

        It is a str, or, where a group of tuples keeps the results, a tuple that ends with this str.
        """
        return self._called(args, kwargs)[0]

    def check(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether the result of a call is there, and still good; reads nothing of it."""
        return self._is_good(self.key(*args, **kwargs))

    def entry(self, /, *args: P.args, **kwargs: P.kwargs) -> Entry:
        """What the chest knows of the result of a call, which is computed if it is missing.

        What is there is not read: see `Chest.entry`.

        Raises
        ------
        AbsentKeyError
            It was computed, and could not be kept.
        """
        # Of an iterator, what came out of it.
        key, args_, kwargs_ = self._called(args, kwargs)
        if not self._is_good(key):
            self(*args_, **kwargs_)
        return self._engine.entry(key)

    def handle(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle:
        """What stands for the result of a call, which is computed if it is missing.

        The result is not loaded.  A handle is a few hundred bytes when pickled, and gives the
        result in another process, too: ``handle.array()``.

        Raises
        ------
        AbsentKeyError
            The result was computed, and could not be kept.
        SpillError
            It could not be stored.
        """
        key, args_, kwargs_ = self._called(args, kwargs)
        if not self._is_good(key):
            self(*args_, **kwargs_)
        return handle_of(self._engine, key)

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result of a call; returns whether there was one."""
        key = self.key(*args, **kwargs)
        try:
            return self._engine.delete(key)
        except AbsentKeyError:
            return False

    def clear(self) -> int:
        """Remove all results of the function, also of its former versions; returns how many.

        Looks at every key of the chest, some 1 us each.
        """
        start, length = f"{self._name}(", len(self._name) + 34
        keys = [
            key
            for key in self._chest
            if type(key) is str and len(key) == length and key.startswith(start)
        ]
        for key in keys:
            with contextlib.suppress(AbsentKeyError):
                del self._chest[key]
        return len(keys)

    def stats(self) -> CacheStats:
        """What the function has done in this process.  Approximate while several threads call."""
        return CacheStats(self._hits, self._misses, self._seconds_computing, self._seconds_saved)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: what it is called on is its first argument."""
        return BoundCached(self, instance) if self._binds and instance is not None else self

    def __reduce__(self) -> str | tuple[Any, ...]:
        """In another process it is the decorated function there, or one of the same chest.

        A function of the script or notebook that runs goes by its name and by its value, as far
        as cloudpickle is there: a worker may have another script, or none.
        """
        name = getattr(self, "__qualname__", "")
        module = getattr(self, "__module__", "")
        chest = self._chest
        if self._engine.session.temporary:
            own = getattr(chest, "chest", chest)  # of a group
            chest = Temporary(type(own), self._flights.token, getattr(chest, "prefixes", ()))
            temporary[self._flights.token] = own
        parts = chest, self.func, self._options
        if attribute(module, name) is not self or by_value.get():
            return again, parts
        if module not in ("__main__", "__mp_main__"):
            return name
        return of_main, (name, *pickled_by_value(parts))

    def __repr__(self) -> str:
        return f"<{self._name}, cached in {self._engine.session.path or 'a temporary chest'}>"

    def _repr_html_(self) -> str:
        """The statistics as notebooks show them."""
        where = self._engine.session.path or "a temporary chest"
        from arraychest.memoize.card import cached_html

        return cached_html(self._name, where, self.stats(), self._options)

    # --- a call ------------------------------------------------------------------------------

    def _called(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The key of a call, and what the function is to be called with."""
        call = self._parameters.bind(args, kwargs)
        try:
            code = self._print.state()
        except ValueTypeError as error:
            hint = "" if self._options["version"] is not None else "; or give a version="
            raise ValueTypeError(f"what {self._name} depends on: {error}{hint}") from error
        if code.untold:
            self._watch.say_untold(code.untold)
        try:
            if self._key is None:
                given = call.fingerprint(digest_of, **self._counts)
            else:
                args, kwargs = afresh(call.args, call.kwargs)
                given = self._fingerprint(self._key(*args, **kwargs), digest_of, **self._counts)
        except ValueTypeError as error:
            raise ValueTypeError(f"an argument of {self._name}: {error}") from error
        both = hashlib.blake2b(code.digest + given, digest_size=16)
        key = in_chest(self._chest, f"{self._name}({both.hexdigest()})")[1]
        return key, call.args, call.kwargs

    def _found(self, key: Any) -> tuple[bool, Any]:
        """Whether a result is there, and it."""
        try:
            cost = self._cost(key)
            if not self._may_be_used(key, cost):
                return False, None
            value = self._value(key)
        except AbsentKeyError:
            return False, None
        except (
            CorruptEntryError, UnreadableValueError, OSError, AttributeError, ImportError
        ) as error:  # fmt: skip
            # The last two by unpickling an object of a class that is no more.
            logger.warning("the result of %s is computed again: %s", self._name, error)
            return False, None
        if cost is not None:
            self._seconds_saved += cost.seconds or 0.0
        self._hits += 1
        if self._verbose > 1:
            verbose.info(f"{key} was kept")
        return True, value

    def _is_good(self, key: Any) -> bool:
        if not self._engine.contains(key):
            return False
        try:
            return self._may_be_used(key, self._cost(key))
        except AbsentKeyError:
            return False

    def _may_be_used(self, key: Any, cost: Cost | None) -> bool:
        """Whether a result is still good; raises AbsentKeyError where it may have gone."""
        if cost is not None and cost.has_expired(time.time()):
            return False
        validate = self._options["validate"]
        if validate is None:
            return True
        nbytes = self._engine.entry(key).nbytes
        seconds, at = (0.0, None) if cost is None else (cost.seconds or 0.0, cost.at)
        return bool(validate(Kept(0.0 if at is None else time.time() - at, seconds, nbytes)))

    def _passes_through(self) -> bool:
        """Whether the function is called as if nothing cached it."""
        return not self._options["enabled"] or is_disabled()

    def _value(self, key: Any) -> Any:
        mode = self._options["mmap_mode"]
        if mode is None:
            return self._engine.get_plain(key)
        return self._engine.get_as(key, mode)

    def _cost(self, key: Any) -> Cost | None:
        """What a result took to compute; asked for once, and again once it has expired."""
        known = self._costs.get(key)
        if known is None or known.has_expired(time.time()):
            known = self._engine.facts.cost_of(key)
            if len(self._costs) >= _MOST_COSTS:
                self._costs.clear()
            self._costs[key] = known
        return known

    @contextlib.contextmanager
    def _timed(self, key: Any, args: tuple[Any, ...]) -> Iterator[_Timed]:
        if self._verbose:
            verbose.info(f"{key} is computed")
        timed = _Timed()
        before = self._watch.before(args)
        started = time.perf_counter()
        try:
            yield timed
        finally:
            timed.seconds = time.perf_counter() - started
            self._misses += 1
            self._seconds_computing += timed.seconds
        if before is not None:
            self._watch.after(before)
        if self._verbose:
            verbose.info(f"{key} took {timed.seconds:.3g} s")

    def _kept(self, key: Any, result: list[Any], seconds: float) -> Any:
        """Keep a result; returns what the chest gives of it, or where it keeps none the result.

        It comes in a list, and nothing else of ours refers to it.
        """
        engine = self._engine
        if engine.session.closed or not engine.session.may_write():
            self._flights.tell_unkept()
            return result[0]
        now, after = time.time(), self._options["expires_after"]
        cost = Cost(seconds, None if after is None else now + after, now)
        # An argument, a global or an attribute stays what it is, also where it is what is returned.
        on_put: OnPut = "freeze" if are_ours(result) else "copy"
        try:
            engine.put_any(key, result[0], cost=cost, on_put=on_put)
        except ValueTypeError as error:
            message = f"the result of {self._name} cannot be kept: {error}"
            if self._options["strict"]:
                raise ValueTypeError(message) from error
            if not self._told_unkept:
                self._told_unkept = True
                say(f"{message}; it is returned, and computed again at the next call")
            return result[0]
        except (OSError, ClosedChestError) as error:
            logger.warning("the result of %s is not kept: %s", self._name, error)
            return result[0]
        self._costs[key] = cost
        try:
            if not engine.session.temporary and engine.own_changes() is None:
                # Before anybody else may compute it: other processes see what is stored.
                engine.spill(key)
            return self._value(key)
        except (AbsentKeyError, ClosedChestError):
            return result[0]
        except (OSError, CorruptEntryError) as error:
            # Rather computed again than in the way of a close, which would raise that it is lost.
            logger.warning("the result of %s is not kept: %s", self._name, error)
            with contextlib.suppress(AbsentKeyError, ClosedChestError, OSError):
                engine.delete(key)
            return result[0]


class CachedCoroutine(Cached[P, R]):
    """A coroutine function whose results a chest keeps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _mark_as_coroutine_function(self)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]
        """As of a function; to be awaited.  Other tasks go on while it waits for a result."""
        if self._passes_through():
            return await self.func(*args, **kwargs)  # type: ignore[misc]
        key, args_, kwargs_ = self._called(args, kwargs)
        found, value = self._found(key)
        if found:
            return value
        async with self._flights.alone_async(key):
            found, value = self._found(key)
            if found:
                return value
            with self._timed(key, args_) as timed:
                result: list[Any] = [await self.func(*args_, **kwargs_)]  # type: ignore[misc]
            return self._kept(key, result, timed.seconds)

    async def entry(self, /, *args: P.args, **kwargs: P.kwargs) -> Entry:  # type: ignore[override]
        """As of a function; to be awaited."""
        key, args_, kwargs_ = self._called(args, kwargs)
        if not self._is_good(key):
            await self(*args_, **kwargs_)
        return self._engine.entry(key)


def _mark_as_coroutine_function(function: Any) -> None:
    """See to it that the standard library takes a callable object for a coroutine function."""
    import asyncio
    import inspect

    if hasattr(inspect, "markcoroutinefunction"):  # 3.12
        inspect.markcoroutinefunction(function)
    else:
        function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def _is_coroutine_function(func: Any) -> bool:
    import inspect

    asks = inspect.iscoroutinefunction
    if not hasattr(inspect, "markcoroutinefunction") and "asyncio" in sys.modules:
        asks = sys.modules["asyncio"].iscoroutinefunction  # who marks one has imported it
    call = getattr(type(func), "__call__", None)  # noqa: B004
    return any(map(asks, (func, call)))


class BoundCached:
    """A cached method of one object."""

    def __init__(self, cached: Cached[..., Any], instance: Any) -> None:
        self.__func__ = cached
        self.__self__ = instance
        self.__doc__ = cached.__doc__
        self.__module__ = cached.__module__
        if isinstance(cached, CachedCoroutine):
            _mark_as_coroutine_function(self)

    @property
    def __signature__(self) -> Any:
        """Without the object."""
        import inspect

        found = inspect.signature(self.__func__)
        return found.replace(parameters=list(found.parameters.values())[1:])

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """As the function, with the object as its first argument."""
        return self.__func__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # What an object has that is being copied, and has nothing yet, is not asked of itself.
        if name in ("__func__", "__self__", "__setstate__"):
            raise AttributeError(name)
        found = getattr(self.__func__, name)
        if name in ("key", "check", "entry", "invalidate"):
            return functools.partial(found, self.__self__)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundCached):
            return NotImplemented
        return self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((id(self.__func__), id(self.__self__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundCached, (self.__func__, self.__self__)

    def __repr__(self) -> str:
        return f"<{self.__func__!r} of {self.__self__!r}>"


class _Timed:
    seconds = 0.0


def cached(
    engine: Engine, flights: Flights, chest: Any, func: Callable[..., Any], **options: Any
) -> Cached[..., Any]:
    """The memoised form of a function, or of a coroutine function; see `Chest.cache`."""
    kind: Any = CachedCoroutine if _is_coroutine_function(func) else Cached
    made: Cached[..., Any] = kind(engine, flights, chest, func, **options)
    return made


def _name_of(func: Any) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    module = getattr(func, "__module__", None)
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    # What `multiprocessing` calls a script's module in a child that it spawns.
    module = "__main__" if module == "__mp_main__" else module
    return f"{module}.{name}" if module else str(name)
