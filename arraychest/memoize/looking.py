"""Looking at functions and classes: what they do, and all that they reach; see `fingerprint`."""

from __future__ import annotations

import builtins
import enum
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from arraychest.arrays.digests import digest_of
from arraychest.memoize.code_print import code_print
from arraychest.memoize.prints import Prints
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
)
from arraychest.memoize.value_print import (
    DESCRIPTORS,
    PARTS,
    SIZE,
    deeper,
    has_name,
    has_state,
    is_users,
    module_name,
    name_of,
    wrapped_by,
)
from arraychest.values.limits import MAX_DEPTH


class Look(Prints):
    """Writes functions and classes down with all that they reach and that is there for good.

    A name that is read as a global is written down once, after all else: what stands for it may be
    reached from itself.

    Parameters
    ----------
    watched_of
        See `Prints`.
    watched
        Where to note what was looked at, and to leave what may change without notice.
    has_code
        Whether code counts, and what it reaches, or names alone.
    ignored
        Variables that do not count.
    """

    def __init__(
        self,
        watched_of: Callable[[Any], Watched],
        watched: Watched,
        *,
        helpers: bool = True,
        has_code: bool = True,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(watched_of, digest_of, classes=helpers and has_code, ignored=ignored)
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
