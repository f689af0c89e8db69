"""What a call is, in bytes: equal for equal calls, in every process, and different for others.

**Values** are told by their content, see `value_print`; of an object of a class of the user's, what
its class does is part of that.

**Functions.**  A function is its module, its qualified name and what runs:

- its code object, not its text, which may have been edited since it was imported; see `code_print`;
- its defaults, and what its closure holds, by content;
- the names that it reads as globals, and what they stand for: a *helper*, which is a function or
  class of a module of the user's, as a function, that is, with all that it reads in turn; modules,
  builtins, functions and classes of installed packages by name; anything else by content;
- the attributes of modules of the user's that it reads, in the same way;
- of a helper class: its methods, properties and constants, and its bases;
- of what was decorated with `functools.wraps`: the wrapper, and the function that it wraps;
- Python's minor version.

What has no content that could be told, such as an open file, counts by its kind, and
`FunctionPrint` says so.  Locks, loggers and such make no difference.  A list, set, dict or deque to
which a function only appends makes none either, nor does one of a class to which its methods only
append.

A module is the user's own unless it is Python's or lies in a folder of installed packages; the
module of the function itself is in any case.

Not looked at: code of installed packages and their versions, methods that are added to a class
later, builtins that were replaced, code that is made while the function runs, and the rest of the
world (files, environment, clocks, random numbers).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from arraychest.arrays.digests import digest_of
from arraychest.errors import ValueTypeError
from arraychest.memoize.looking import Look
from arraychest.memoize.prints import Prints
from arraychest.memoize.reached import (
    Watched,
    makes_generators,
)
from arraychest.memoize.value_print import (
    Digest,
    Elements,
    name_of,
)

__all__ = ["Digest", "Elements", "FunctionPrint", "function_fingerprint", "value_fingerprint"]

_PYTHON = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"


def value_fingerprint(
    value: Any,
    digest: Digest = digest_of,
    prefix: bytes = b"",
    *,
    classes: bool = True,
    ignored: Iterable[str] = (),
    exact: bool = False,
) -> bytes:
    """What a value is, in 16 bytes.

    Parameters
    ----------
    value
        Anything that is told apart by its content, see above.
    digest
        Makes the digest of an ndarray without Python objects, or of a `LazyArray`.
    prefix
        What else counts; of one length wherever fingerprints are compared.
    classes
        Whether what the user's classes do counts, or their names alone.
    ignored
        Attributes of objects of the user's classes that do not count.
    exact
        Whether what its functions and classes read must be told by its content, too.

    Raises
    ------
    ValueTypeError
        There is something in it that cannot be told apart from others: an open file, a lock, a
        generator, something that contains itself.

    Notes
    -----
    Some 2 us, and 0.3 us for each number, string or list; arrays as `digest_of`; objects that are
    taken apart as pickle does, some 10 us each, and once for each class of the user's what it takes
    to see that it was not changed.
    """
    encoder = Prints(_watched_of, digest, classes=classes, ignored=ignored)
    encoder.out += prefix
    try:
        encoder.node(value)
        encoder.complete()
    except RecursionError as error:
        raise ValueTypeError("expected a value less deeply nested, found no stack left") from error
    if exact and encoder.untold:
        raise ValueTypeError(
            f"expected variables that can be told by their content, found {encoder.untold}"
        )
    return encoder.hashed()


class State(NamedTuple):
    """What a function was found to be at some moment.

    Attributes
    ----------
    digest
        All that counts, in 16 bytes.
    watched
        What was looked at.
    prints
        What each of the live values contained.
    untold
        The variables that count by their kind, and the kind.
    """

    digest: bytes
    watched: Watched
    prints: tuple[bytes, ...]
    untold: Mapping[str, str]


class FunctionPrint:
    """What a function is, looked at anew whenever one of the things that it depends on changed.

    Parameters
    ----------
    func
        A function, method, partial, builtin, class or other callable.
    version
        If given, what says when the function's results are others: then only it, module and
        qualified name count (and the object of a bound method, the arguments of a partial).
    helpers
        Whether functions and classes of the user's modules count that it reads by name.
    defaults
        Whether its own defaults count.  They need not where they are part of the arguments, as
        `Parameters` has them.
    ignored
        Globals, variables of closures and attributes that do not count.

    Raises
    ------
    ValueTypeError
        It is a generator function: its results cannot be stored.

    Notes
    -----
    Safe from any thread.
    """

    __slots__ = ("_defaults", "_helpers", "_ignored", "_version", "_watched", "func")

    # Whether defaults that cannot be told by their content are told by their kind.
    _lenient = True

    def __init__(
        self,
        func: Any,
        *,
        version: Any = None,
        helpers: bool = True,
        defaults: bool = True,
        ignored: Iterable[str] = (),
    ) -> None:
        if makes_generators(func):
            raise ValueTypeError(
                f"expected a function whose results can be stored, found {name_of(func)}, which "
                "makes generators: let it return a list or an array"
            )
        self.func = func
        self._version = version
        self._helpers = helpers
        self._defaults = defaults
        self._ignored = frozenset(ignored)
        self._watched: Watched | None = None

    def digest(self) -> bytes:
        """What the function is now, in 16 bytes; see `state`."""
        return self.state().digest

    def state(self) -> State:
        """What the function is now.

        Raises
        ------
        ValueTypeError
            Its closure, the object that it is bound to, or an argument of a partial cannot be
            told by its content.

        Notes
        -----
        About a microsecond, if nothing was rebound and it depends on nothing that can change
        without that; what can (lists, dicts, objects, arrays that are not frozen) is looked at each
        time.  The first time, some 100 us for each function.
        """
        watched = self.watched()
        if not watched.live:
            return State(watched.digest, watched, (), {})
        classes = self._helpers and self._version is None
        encoder = Prints(_watched_of, classes=classes, ignored=self._ignored)
        prints = []
        try:
            for live in watched.live:
                encoder.content(live)
                encoder.complete()
                prints.append(encoder.taken())
        except RecursionError as error:
            raise _too_deep(self.func) from error
        encoder.out += watched.digest + b"".join(prints)
        return State(encoder.hashed(), watched, tuple(prints), encoder.untold)

    def watched(self) -> Watched:
        """What the function is, as far as that is there for good."""
        watched = self._watched
        if watched is None or not watched.holds():
            watched = self._look()
            self._watched = watched
        return watched

    def changed_since(self, before: State) -> list[str]:
        """The variables that count and have changed, by their names."""
        now = self.state()
        if now.digest == before.digest:
            return []
        names = list(before.watched.rebound())
        told = {
            id(live.value): each for live, each in zip(now.watched.live, now.prints, strict=True)
        }
        names += [
            live.name
            for live, each in zip(before.watched.live, before.prints, strict=True)
            if told.get(id(live.value), each) != each
        ]
        return sorted(set(names))

    def _look(self) -> Watched:
        watched = Watched()
        has_code = self._version is None
        encoder = Look(
            _watched_of, watched, helpers=self._helpers, has_code=has_code, ignored=self._ignored
        )
        encoder.text(_PYTHON if has_code else "")
        try:
            encoder.node(self._version)
            encoder.root(self.func, defaults=self._defaults, lenient=self._lenient)
            encoder.complete()
            watched.digest = encoder.hashed()
        except RecursionError as error:
            raise _too_deep(self.func) from error
        return watched


def function_fingerprint(func: Any, *, version: Any = None, helpers: bool = True) -> bytes:
    """What a function is, in 16 bytes; `FunctionPrint` says it again for less.

    Raises
    ------
    ValueTypeError
        As `FunctionPrint` and its `digest` raise it.
    """
    return FunctionPrint(func, version=version, helpers=helpers).digest()


def _too_deep(func: Any) -> ValueTypeError:
    return ValueTypeError(
        f"expected helpers of {name_of(func)} less deeply nested, found no stack left"
    )


# The prints of functions and classes that were met in values, by id; each has its function, whose
# id stays its own.  Of those only that are there for good: others come and go, and may hold arrays.
_units: dict[int, _Unit] = {}
_MAX_UNITS = 1024


def _unit_of(thing: Any) -> _Unit:
    found = _units.get(id(thing))
    if found is None:
        found = _Unit(thing)
        closure = thing.__closure__ if type(thing) is types.FunctionType else None
        if closure is None and "<locals>" not in getattr(thing, "__qualname__", ""):
            if len(_units) >= _MAX_UNITS:
                _units.clear()
            _units[id(thing)] = found
    return found


def _watched_of(thing: Any) -> Watched:
    return _unit_of(thing).watched()


class _Unit(FunctionPrint):
    """A function or class in a value: it may make generators, and its defaults must be told."""

    __slots__ = ()
    _lenient = False

    def __init__(self, func: Any) -> None:
        self.func = func
        self._version = self._watched = None
        self._helpers = self._defaults = True
        self._ignored = frozenset()
