"""What a memoised function depends on and should not: what it changes itself, what nobody can tell.

Each is said once, with what to do about it.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from arraychest.errors import ArrayChestWarning, ValueTypeError
from arraychest.memoize.fingerprint import FunctionPrint, State, value_fingerprint

# How many runs of a function are looked at.  One that changes a variable once, as at its first
# call, is none that never finds its results.
_MOST_RUNS = 8


class Before(NamedTuple):
    """What a function was before it ran.

    Attributes
    ----------
    state
        What it depends on.
    attributes
        Of the object whose method it is: what its attributes contain.
    instance
        The object.
    """

    state: State
    attributes: dict[str, bytes]
    instance: Any


class StateWatch:
    """Looks at the first runs of a function, and warns once of each variable that it changes.

    Parameters
    ----------
    name
        Of the function.
    function
        What it is.
    ignored
        Attributes that do not count.

    Notes
    -----
    Safe from any thread: at worst a warning is given twice.
    """

    def __init__(self, name: str, function: FunctionPrint, ignored: Iterable[str] = ()) -> None:
        self._name = name
        self._function = function
        self._ignored = frozenset(ignored)
        self._runs = 0
        self._changed: set[str] = set()
        self._told: set[str] = set()
        code = getattr(function.func, "__code__", None)
        self._is_method = isinstance(code, types.CodeType) and code.co_varnames[:1] == ("self",)

    def say_untold(self, untold: Mapping[str, str]) -> None:
        """Warn of variables that count by their kind."""
        new = {name: kind for name, kind in untold.items() if name not in self._told}
        if new:
            self._told.update(new)
            which = ", ".join(f"{name} ({kind})" for name, kind in sorted(new.items()))
            self._warn(
                f"{self._name} reads what cannot be told by its content: {which}.  The chest does "
                "not notice when it changes, and returns the results of before: give a version= "
                "that you change with it, or make it a parameter"
            )

    def before(self, args: tuple[Any, ...]) -> Before | None:
        """Look at what the function is; None if it has been looked at often enough."""
        if self._runs >= _MOST_RUNS:
            return None
        self._runs += 1
        instance = args[0] if self._is_method and args else None
        try:
            return Before(self._function.state(), self._attributes(instance), instance)
        except ValueTypeError:
            return None

    def after(self, before: Before) -> None:
        """Warn of what the function has changed when it ran, if that is not the first time."""
        try:
            names = self._function.changed_since(before.state)
        except ValueTypeError:
            return
        now = self._attributes(before.instance)
        names += [
            f"self.{name}"
            for name in sorted(before.attributes.keys() | now.keys())
            if before.attributes.get(name) != now.get(name)
        ]
        again = [name for name in names if name in self._changed and name not in self._told]
        self._changed.update(names)
        if again:
            self._told.update(again)
            ignored = [name.rpartition(".")[2] for name in again]
            self._warn(
                f"{self._name} changes {', '.join(again)} whenever it runs, which is part of what "
                "its results depend on: so the chest finds no call again.  Leave it out with "
                f"ignore_state={ignored}, say with version= what counts instead of the code and "
                "all that it reads, or make it a parameter"
            )

    def _attributes(self, instance: Any) -> dict[str, bytes]:
        found = {}
        for name, value in list(getattr(instance, "__dict__", {}).items()):
            if name not in self._ignored:
                try:
                    found[name] = value_fingerprint(value)
                except ValueTypeError:
                    continue
        return found

    def _warn(self, message: str) -> None:
        warnings.warn(message, ArrayChestWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """How far up who called the memoised function is, for `warnings.warn` where that is asked."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__") in _OURS:
        frame, level = frame.f_back, level + 1
    return level


_OURS = frozenset({__name__, "arraychest.memoize.cached", "contextlib"})
