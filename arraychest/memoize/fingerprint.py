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

import builtins
import enum
import functools
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from arraychest.arrays.digests import digest_of
from arraychest.errors import ValueTypeError
from arraychest.memoize.code_print import code_print
from arraychest.memoize.reached import (
    ALL_OF_IT,
    MACHINERY,
    MISSING,
    READS_ANY,
    RECORDS,
    UNREAD,
    Live,
    Watched,
    appended,
    held_by,
    imported,
    is_constant,
    is_machinery,
    is_ordinary,
    makes_generators,
)
from arraychest.memoize.value_print import (
    DESCRIPTORS,
    NUMBER,
    PARTS,
    SIZE,
    Digest,
    Elements,
    ValuePrint,
    deeper,
    has_name,
    has_state,
    is_users,
    module_name,
    name_of,
    wrapped_by,
)
from arraychest.values import registry
from arraychest.values.limits import MAX_DEPTH

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
    encoder = _Prints(digest, classes=classes, ignored=ignored)
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


# --- values, and the functions and classes in them ----------------------------------------------


class _Prints(ValuePrint):
    """Writes down values, and what the functions and the user's classes in them do.

    What a function or class reads that may change without notice is written down after all else
    (see `complete`): it may be reached from itself.
    """

    def __init__(
        self, digest: Digest = digest_of, *, classes: bool = True, ignored: Iterable[str] = ()
    ) -> None:
        super().__init__(digest)
        self._counts_classes = classes
        self._ignored = frozenset(ignored)
        # Whether what cannot be told by its content is told by its kind; and the variable that is
        # written down.
        self._lenient = False
        self._where = ""
        # The functions and classes that were met, by id; they are kept for their ids.
        self._units: dict[int, tuple[Any, bytes]] = {}
        self._later: list[Live] = []
        # The variables that are told by their kind, and the kind.
        self.untold: dict[str, str] = {}

    def code(self, code: types.CodeType) -> None:
        """Encode a code object."""
        self.out += b"K" + code_print(code).digest

    def function(self, function: types.FunctionType, depth: int) -> None:  # noqa: ARG002
        """Encode a function."""
        self.out += b"F" + self._unit(function)

    def named(self, value: Any, version: str = "") -> None:
        """Encode what is known by its name alone, and a class of the user's."""
        if not (self._counts_classes and isinstance(value, type) and is_users(value.__module__)):
            super().named(value, version)
            return
        self.out += b"T" + self._unit(value)

    def _left_out(self, kind: type) -> frozenset[str]:
        names = super()._left_out(kind)
        return names | self._ignored if self._ignored and is_users(kind.__module__) else names

    def registered(self, known: registry.Registered, value: Any, depth: int) -> None:
        """Encode a value of a registered type, and what its class does if that is the user's."""
        super().registered(known, value, depth)
        if is_users(type(value).__module__):
            self.named(type(value))

    def other(self, value: Any, depth: int) -> None:
        """Encode what is no value tree; if that is allowed, by its kind what has no content."""
        if self._counts_classes and type(value) is types.ModuleType and is_users(value.__name__):
            self.out += b"C" + self._unit(value)
            return
        if not self._lenient:
            super().other(value, depth)
            return
        if is_ordinary(value) and wrapped_by(value) is None:
            self._by_kind(value)
            return
        start, opened, later = len(self.out), set(self._open), len(self._later)
        try:
            super().other(value, depth)
        except Exception:  # whatever its own methods raise
            del self.out[start:], self._later[later:]
            self._open = opened
            self._by_kind(value)
            self.untold.setdefault(self._where, name_of(type(value)))

    def _by_kind(self, value: Any) -> None:
        self.out += b"."
        self.text(name_of(type(value)))

    def _unit(self, thing: Any) -> bytes:
        known = self._units.get(id(thing))
        if known is None:
            watched = _unit_of(thing).watched()
            self._units[id(thing)] = known = thing, watched.digest
            # Whoever allows that something is told by its kind allows it of all that it reaches.
            self._later += [
                live._replace(strict=False, name=self._where) if self._lenient else live
                for live in watched.live
            ]
        return known[1]

    def complete(self) -> None:
        """Write down what the functions and classes read that were met; and what these read."""
        while self._later:
            self.content(self._later.pop(0))

    def content(self, live: Live) -> None:
        """Write down the content of a value, or its kind if it has none and needs none.

        Raises
        ------
        ValueTypeError
            It has none; the message says where this is.
        """
        lenient, where = self._lenient, self._where
        self._lenient = lenient or not live.strict
        self._where = where or live.name
        out, self.out = self.out, bytearray()
        opened, later = set(self._open), len(self._later)
        try:
            self.node(live.value)
        except Exception as error:  # whatever its own methods raise
            if not self._lenient:
                if isinstance(error, ValueTypeError) and live.where:
                    raise ValueTypeError(f"{live.where}: {error}") from error
                raise
            del self._later[later:]
            self._open = opened
            self.out.clear()
            self._by_kind(live.value)
            self.untold.setdefault(self._where, name_of(type(live.value)))
        finally:
            self._lenient, self._where = lenient, where
            found, self.out = self.out, out
        out += NUMBER.pack(len(found)) + found


# --- functions ----------------------------------------------------------------------------------


class _Look(_Prints):
    """Writes functions and classes down with all that they reach and that is there for good.

    A name that is read as a global is written down once, after all else: what stands for it may be
    reached from itself.

    Parameters
    ----------
    watched
        Where to note what was looked at, and to leave what may change without notice.
    has_code
        Whether code counts, and what it reaches, or names alone.
    ignored
        Variables that do not count.
    """

    def __init__(
        self,
        watched: Watched,
        *,
        helpers: bool = True,
        has_code: bool = True,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(digest_of, classes=helpers and has_code, ignored=ignored)
        self._watched = watched
        self._helpers = helpers and has_code
        self._has_code = has_code
        # The modules that count as the user's, whichever they are.
        self._homes: set[str] = set()
        # The functions that are being written down, each within the one before.
        self._path: list[int] = []
        # Globals by (module, name, whether the module is the user's, whether it is only recorded
        # to, id of the dict); classes by (module, qualified name, id).
        self._wanted: dict[tuple[str, str, bool, bool, int], Mapping[str, Any]] = {}
        self._classes: dict[tuple[str, str, int], type] = {}
        self._seen: set[Any] = set()

    def complete(self) -> None:
        """Write down what the globals stand for that are read, and the classes."""
        while self._wanted or self._classes:
            wanted, self._wanted = self._wanted, {}
            classes, self._classes = self._classes, {}
            for key in sorted(wanted):
                self._global(wanted[key], *key[:4])
            for each in sorted(classes):
                self._class(classes[each])

    def _is_own(self, module: str | None) -> bool:
        return module in self._homes or is_users(module)

    def root(self, function: Any, *, defaults: bool, lenient: bool) -> None:
        """Write down the function that it is all about."""
        kind = type(function)
        if kind is types.FunctionType:
            self._homes.add(str(function.__globals__.get("__name__")))
            self._function(function, MAX_DEPTH, defaults=defaults, lenient=lenient)
        elif kind is types.MethodType:
            self.out += b"M"
            self.root(function.__func__, defaults=defaults, lenient=lenient)
            self._live(function.__self__, "self", strict=True)
        elif kind is functools.partial:
            self.out += b"P"
            self.root(function.func, defaults=defaults, lenient=lenient)
            given = function.args, sorted(function.keywords.items())
            self._live(given, "the arguments of the partial", strict=True)
        elif (wrapped := wrapped_by(function)) is not None:
            self.out += b"w"
            self._named_class(kind)
            self.root(wrapped, defaults=defaults, lenient=lenient)
            if has_state(function):
                self._live(function, name_of(kind), strict=False)
        elif kind is types.ModuleType:
            self.text(function.__name__)
            self._reads_of(function, ALL_OF_IT)
        elif isinstance(function, type):
            self._homes.add(function.__module__)
            self._named_class(function)
        elif isinstance(function, np.ufunc) or has_name(function):
            self.node(function)
        else:
            self._live(function, name_of(kind), strict=True)
            self._homes.add(kind.__module__)
            self._named_class(kind)

    def _function(
        self,
        function: types.FunctionType,
        depth: int,
        *,
        defaults: bool = True,
        lenient: bool = False,
        helper: bool = False,
    ) -> None:
        """Encode a function.

        Parameters
        ----------
        lenient
            Whether defaults that cannot be told by their content are told by their kind.
        helper
            Whether this holds for what its closure has, too.
        """
        if id(function) in self._path:
            # One that its own closure has, so many levels up.
            self.out += b"@" + SIZE.pack(len(self._path) - self._path.index(id(function)))
            return
        inner = deeper(depth)
        self._path.append(id(function))
        self.out += b"F"
        self.text(name_of(function))
        if self._has_code:
            self.out += code_print(function.__code__).digest
            held = [held_by(cell) for cell in function.__closure__ or ()]
            # What a package's wrapper holds beside the user's functions is its own business.
            theirs = not is_users(function.__globals__.get("__name__"))
            self._closure(function, held, inner, lenient=helper or theirs)
            if defaults:
                self._defaults(function, lenient=lenient or helper)
            wrapped = wrapped_by(function)
            if wrapped is not None and not any(each is wrapped for each in held):
                self.out += b"w"
                self._function(wrapped, inner, lenient=lenient, helper=helper)
            self._reads(function)
            self._watched.functions.append(
                (function, function.__code__, function.__defaults__, function.__kwdefaults__)
            )
        self._path.pop()

    def _closure(
        self, function: types.FunctionType, held: list[Any], depth: int, *, lenient: bool
    ) -> None:
        recorded = code_print(function.__code__).recorded
        for name, cell, value in zip(
            function.__code__.co_freevars, function.__closure__ or (), held, strict=True
        ):
            if name in self._ignored:
                continue
            self._watched.cells.append((cell, name, value))
            if value is MISSING:
                self.out += b"-"
            elif name == "__class__" and isinstance(value, type):
                self.text(name_of(value))
            elif type(value) is types.FunctionType:
                self._function(value, depth, helper=lenient)
            elif name in recorded and type(value) in RECORDS:
                self._by_kind(value)
            else:
                where = f"in the closure of {name_of(function)}, as {name}"
                self._live(value, name, strict=not lenient, where=where)

    def _defaults(self, function: types.FunctionType, *, lenient: bool) -> None:
        keywords = function.__kwdefaults__ or {}
        what = f"the defaults of {name_of(function)}"
        self.out += SIZE.pack(len(function.__defaults__ or ()))
        for value in function.__defaults__ or ():
            self._live(value, what, strict=not lenient)
        for name in sorted(keywords):
            self.text(name)
            self._watched.names.append((keywords, name, keywords[name]))
            self._live(keywords[name], what, strict=not lenient)

    def _reads(self, function: types.FunctionType) -> None:
        spaces = function.__globals__
        module = str(spaces.get("__name__"))
        own = function.__module__ == module and self._is_own(module)
        code = code_print(function.__code__)
        for name in code.names:
            self._want(spaces, module, name, own=own, recorded=name in code.recorded)
            if own and type(value := spaces.get(name)) is types.ModuleType:
                self._reads_of(value, ALL_OF_IT if name in code.whole else code.attributes)
        if own:
            for each in imported(code.imports, spaces):
                self._reads_of(each, code.attributes)

    def _reads_of(self, module: types.ModuleType, attributes: frozenset[str]) -> None:
        """Write down of a module of the user's what is read of it."""
        if not is_users(module.__name__):
            return
        key = module.__name__, attributes, id(module)
        if key in self._seen:
            return
        self._seen.add(key)
        spaces = vars(module)
        named: Iterable[str] = attributes & spaces.keys()
        if not attributes.isdisjoint(READS_ANY):
            named = [name for name in spaces if not name.startswith("__")]
        for name in named:
            self._want(spaces, module.__name__, name, own=True)
            if type(value := spaces.get(name)) is types.ModuleType:
                self._reads_of(value, attributes)

    def _want(
        self,
        spaces: Mapping[str, Any],
        module: str,
        name: str,
        *,
        own: bool,
        recorded: bool = False,
    ) -> None:
        key = module, name, own, recorded, id(spaces)
        if key not in self._seen and name not in self._ignored:
            self._seen.add(key)
            self._wanted[key] = spaces

    def _global(
        self, spaces: Mapping[str, Any], module: str, name: str, own: bool, recorded: bool
    ) -> None:
        value = spaces.get(name, MISSING)
        if value is MISSING and name not in vars(builtins):
            self.out += b"?"  # not there, or not yet
        self.out += b"n"
        self.text(module_name(module))
        self.text(name)
        self._watched.names.append((spaces, name, value))
        if recorded and type(value) in RECORDS:
            self._by_kind(value)
        elif value is not MISSING:
            self._bound(value, name, own=own)

    def _bound(self, value: Any, name: str, *, own: bool = True) -> None:
        """Write down what a name stands for; `own`: a function of the user's reads it."""
        kind = type(value)
        if is_constant(value):
            self.out += b"="
            self.node(value)
        elif isinstance(value, type) and own:
            self._named_class(value)
        elif (
            kind is types.FunctionType and own and self._helpers and self._is_own(value.__module__)
        ):
            self._function(value, MAX_DEPTH, helper=True)
        elif kind is types.ModuleType or isinstance(value, np.ufunc):
            self._by_kind(value)
            self.text(value.__name__)
        elif kind in DESCRIPTORS or (
            isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
            and (kind is not types.BuiltinFunctionType or has_name(value))
        ):
            self._by_kind(value)
            self.text(name_of(value))
        elif not own or kind in MACHINERY:
            self._by_kind(value)
        elif kind in PARTS:
            self._by_kind(value)
            for part in PARTS[kind]:
                self._bound(getattr(value, part), name)
        elif isinstance(value, enum.Enum) and is_constant(value._value_):
            self.out += b"e"
            self._named_class(kind)
            self.node((value._name_, value._value_))
        elif (inner := wrapped_by(value)) is not None and not has_state(value):
            self.out += b"w"
            self.text(name_of(kind))
            self._bound(inner, name)
        else:
            self._live(value, name, strict=False)

    def _named_class(self, kind: type) -> None:
        self.out += b"C"
        self.text(name_of(kind))
        key = kind.__module__, kind.__qualname__, id(kind)
        if (
            self._helpers
            and self._is_own(kind.__module__)
            and type(vars(kind)) is types.MappingProxyType
            and key not in self._seen
        ):
            self._seen.add(key)
            self._classes[key] = kind

    def _class(self, kind: type) -> None:
        self.out += b"T"
        self.text(name_of(kind))
        for base in (type(kind), *kind.__bases__):
            self._named_class(base)
        attributes = vars(kind)
        self._watched.sizes.append((attributes, len(attributes)))
        members: Mapping[str, Any] = kind.__members__ if isinstance(kind, enum.EnumMeta) else {}
        for name, member in members.items():
            self.text(name)
            self._bound(member._value_, f"{kind.__qualname__}.{name}")
        for name in sorted(set(attributes) - UNREAD - set(members)):
            value = attributes[name]
            if name in self._ignored or is_machinery(name, value, members=bool(members)):
                continue
            self.text(name)
            self._watched.names.append((attributes, name, value))
            if type(value) in RECORDS and name in appended(kind):
                self._by_kind(value)
            else:
                self._bound(value, f"{kind.__qualname__}.{name}")

    def _live(self, value: Any, name: str, *, strict: bool, where: str = "") -> None:
        """Write down a value; later, if it may change without that being noticed."""
        if is_constant(value):
            self.out += b"="
            self.node(value)
        else:
            self.out += b"~"
            self._watched.live.append(Live(value, strict, name, where))


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
        encoder = _Prints(classes=self._helpers and self._version is None, ignored=self._ignored)
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
        encoder = _Look(watched, helpers=self._helpers, has_code=has_code, ignored=self._ignored)
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


class _Unit(FunctionPrint):
    """A function or class in a value: it may make generators, and its defaults must be told."""

    __slots__ = ()
    _lenient = False

    def __init__(self, func: Any) -> None:
        self.func = func
        self._version = self._watched = None
        self._helpers = self._defaults = True
        self._ignored = frozenset()
