"""What a function reaches, and what of it may change: tables and small questions about both."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from arraychest.memoize.code_print import code_print
from arraychest.memoize.value_print import PARTS, is_users_origin, wrapped_by

MISSING: Any = object()


class Live(NamedTuple):
    """What may change without notice.

    Attributes
    ----------
    strict
        Whether it must be told by its content.
    name
        Of the variable.
    where
        What an error says of where it is; or nothing.
    """

    value: Any
    strict: bool
    name: str
    where: str = ""


class Watched:
    """What a function or class was found to be, and what tells that it is so still.

    Attributes
    ----------
    digest
        Of all that does not change unless something below does.
    names
        Names in the dicts of modules and classes, and what they stood for.
    sizes
        The dicts of classes, and how many names were in them.
    functions
        Functions, and their code, defaults and defaults of keywords.
    cells
        Cells of closures, their names, and what they held.
    live
        What may change without notice.
    """

    __slots__ = ("cells", "digest", "functions", "live", "names", "sizes")

    def __init__(self) -> None:
        self.digest = b""
        self.names: list[tuple[Mapping[str, Any], str, Any]] = []
        self.sizes: list[tuple[Mapping[str, Any], int]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self.cells: list[tuple[types.CellType, str, Any]] = []
        self.live: list[Live] = []

    def holds(self) -> bool:
        """Whether nothing was rebound since."""
        missing = MISSING
        for mapping, name, value in self.names:
            if mapping.get(name, missing) is not value:
                return False
        for function, code, defaults, keywords in self.functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                return False
        for mapping, size in self.sizes:
            if len(mapping) != size:
                return False
        return all(held_by(cell) is value for cell, _, value in self.cells) if self.cells else True

    def rebound(self) -> Iterator[str]:
        """The variables that stand for something else since."""
        for mapping, name, value in self.names:
            if mapping.get(name, MISSING) is not value:
                yield name
        for cell, name, value in self.cells:
            if held_by(cell) is not value:
                yield name


def held_by(cell: types.CellType) -> Any:
    """What a cell of a closure holds; `MISSING` if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


# What is there in many a module, and makes no difference to a result: locks, loggers, pools; or
# what changes with its use.
_ORDINARY = frozenset({
    "_thread", "threading", "logging", "multiprocessing", "concurrent", "asyncio", "weakref",
    "_weakref", "_weakrefset", "typing", "arraychest",
})  # fmt: skip


def is_ordinary(value: Any) -> bool:
    """Whether a value is there in many a module, and makes no difference to a result."""
    kind = type(value)
    return kind is object or kind.__module__.partition(".")[0] in _ORDINARY


def appended(kind: type) -> frozenset[str]:
    """The attributes of a class to which its methods append, and of which they read nothing."""
    appended: set[str] = set()
    examined: set[str] = set()
    for value in vars(kind).values():
        parts = [getattr(value, part) for part in PARTS.get(type(value), ())]
        for each in (value, wrapped_by(value), *parts):
            if type(each) is types.FunctionType:
                code = code_print(each.__code__)
                appended |= code.appended
                examined |= code.examined
    return frozenset(appended - examined)


def imported(names: Iterable[str], spaces: Mapping[str, Any]) -> Iterator[types.ModuleType]:
    """The modules of the user's that a function imports when it runs."""
    package = str(spaces.get("__package__") or "")
    for name in sorted(names):
        # A relative import has a name that follows one of the packages that it is in.
        parts = package.split(".") if package else []
        above = [
            ".".join([*parts[:end], *([name] if name else [])]) for end in range(len(parts), 0, -1)
        ]
        for each in (name, *above):
            found = sys.modules.get(each)
            if found is None:
                try:
                    spec = importlib.util.find_spec(each)
                    if spec is None or not is_users_origin(spec.origin):
                        continue
                    # As the function will.  What it reads of it must not count later than it.
                    found = importlib.import_module(each)
                except Exception:  # noqa: S112  # the function will meet it
                    continue
            if type(found) is types.ModuleType:
                yield found


# What is read of a module that is handed on, or of which anything may be read.
ALL_OF_IT = frozenset({"vars"})


# What reads an attribute whose name the code does not have.
READS_ANY = frozenset({"getattr", "vars", "globals", "__dict__", "dir", "attrgetter"})


# What a function may record what it does in.
RECORDS = frozenset({list, set, dict, collections.deque, collections.Counter})


# Of a class: what Python makes of what its text says.
MACHINERY = frozenset({type(collections.namedtuple("_", "a").a)})  # type: ignore[attr-defined]


# Of the attributes of a class: what says where it was made, or follows from the others.
UNREAD = frozenset({
    "__module__", "__qualname__", "__dict__", "__weakref__", "__doc__", "__firstlineno__",
    "__static_attributes__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__classcell__",
})  # fmt: skip


def is_machinery(name: str, value: Any, *, members: bool) -> bool:
    """Whether an attribute of a class is what Python or a package keeps in it."""
    if isinstance(value, types.FunctionType | type) or type(value) in PARTS:
        return False
    if members and name.startswith("_"):
        return True
    return name.startswith("__") and name.endswith("__") and not is_constant(value)


_CONSTANT = frozenset({
    type(None), bool, int, float, complex, str, bytes, type(...), range, dt.date, dt.timedelta,
    uuid.UUID, pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath,
    pathlib.WindowsPath, decimal.Decimal, fractions.Fraction, re.Pattern, dt.timezone,
})  # fmt: skip


def is_constant(value: Any) -> bool:
    """Whether a value cannot change, and has content that can be told."""
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(is_constant, value))
    if kind is slice:
        return all(map(is_constant, (value.start, value.stop, value.step)))
    return kind in _CONSTANT or (
        isinstance(value, np.generic) and kind is value.dtype.type and kind is not np.void
    )


_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def makes_generators(func: Any) -> bool:
    """Whether what a function returns can be a generator only."""
    while True:
        if type(func) is functools.partial:
            func = func.func
        elif type(func) is types.MethodType:
            func = func.__func__
        elif type(func) is types.FunctionType and func.__code__.co_flags & _GENERATOR:
            return True
        elif (wrapped := wrapped_by(func)) is not None:
            # A wrapper that is none itself may have made a list of it.
            if type(func) is types.FunctionType:
                return False
            func = wrapped
        else:
            return False
