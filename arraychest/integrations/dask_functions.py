"""What the tasks of a graph do, of which dask says the names alone."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from dask._task_spec import DataNode, GraphNode, Task, convert_legacy_graph
from dask.core import flatten

from arraychest.errors import ValueTypeError
from arraychest.memoize.fingerprint import value_fingerprint
from arraychest.memoize.value_print import is_users

_PLAIN = (
    str, bytes, int, float, complex, type(None), np.ndarray, np.generic, np.dtype, slice, range,
)  # fmt: skip


class TaskPrints:
    """What each task of a graph does, with all that it depends on.

    dask's names say what a task is given.  They do not say what the functions of the user's do that
    it runs: that is added here.  A task whose functions cannot be told has no print, nor has what
    depends on it.

    Parameters
    ----------
    graph
        Tasks by their keys.

    Notes
    -----
    Some 50 us a task.
    """

    def __init__(self, graph: Mapping[Any, Any]) -> None:
        self._graph = graph
        self._prints: dict[Any, bytes | None] = {}
        # Of each function and class, by id; kept with it, so that its id stays its own.
        self._known: dict[int, tuple[Any, bytes | None]] = {}

    def of(self, key: Any) -> bytes | None:
        """What a task does, in 16 bytes; None if that cannot be told."""
        # Not by recursion: a graph may be deeper than the stack.
        waiting = [key]
        while waiting:
            each = waiting[-1]
            if each in self._prints:
                waiting.pop()
                continue
            task = self._graph.get(each)
            needs = [
                other
                for other in getattr(task, "dependencies", ())
                if other in self._graph and other not in self._prints
            ]
            if needs:
                waiting += needs
                continue
            self._prints[each] = self._print(task)
            waiting.pop()
        return self._prints[key]

    def of_all(self, keys: Iterable[Any]) -> bytes | None:
        """What several tasks do, together."""
        prints = []
        for key in keys:
            found = self.of(key)
            if found is None:
                return None
            prints.append(found)
        return hashlib.blake2b(b"".join(prints), digest_size=16).digest()

    def _print(self, task: Any) -> bytes | None:
        needs = getattr(task, "dependencies", ())
        told = [self._told(each) for each in _functions(task)]
        told += [self._prints[each] for each in needs if each in self._graph]
        # In which order they are given, dask's name says.
        known = sorted(each for each in told if each is not None)
        if len(known) < len(told):
            return None
        return hashlib.blake2b(b"".join(known), digest_size=16).digest()

    def _told(self, function: Any) -> bytes | None:
        known = self._known.get(id(function))
        if known is None:
            try:
                what: bytes | None = value_fingerprint(_identity(function), exact=True)
            except ValueTypeError:
                what = None
            self._known[id(function)] = known = function, what
        return known[1]


def _identity(value: Any) -> Any:
    """What a function or object is to us, beside what dask's name says of it."""
    if isinstance(value, type | types.FunctionType | types.MethodType):
        return value
    says = getattr(value, "__dask_tokenize__", None)
    if says is not None:
        return type(value), says()
    return value


def _functions(task: Any) -> Iterator[Any]:
    """What a task runs or is given, and of which dask's name does not say what it does."""
    seen: set[int] = set()
    waiting = [task]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, DataNode):
            waiting.append(value.value)
        elif isinstance(value, Task):
            waiting += [value.func, *value.args, *value.kwargs.values()]
        elif isinstance(value, GraphNode):
            continue
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += list(value)
        elif isinstance(value, dict):
            waiting += list(value.values())
        elif isinstance(value, partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            waiting += [value.__self__, value.__func__]
        elif isinstance(value, types.FunctionType | type):
            if is_users(value.__module__) or _is_wrapper(value):
                yield value
        elif callable(value) and type(value).__module__.partition(".")[0] != "arraychest":
            yield value
        elif is_users(type(value).__module__):
            # What it contains, dask's name says; what its class does, it does not.
            yield type(value)


def _is_wrapper(value: Callable[..., Any]) -> bool:
    """Whether a function of an installed package holds others, as of a decorator or a closure."""
    return isinstance(value, types.FunctionType) and any(
        callable(_content(cell)) for cell in value.__closure__ or ()
    )


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def print_of_array(x: Any) -> bytes | None:
    """What a dask array is computed by, in 16 bytes; None if that cannot be told."""
    graph = convert_legacy_graph(dict(x.__dask_graph__()))
    return TaskPrints(graph).of_all(flatten(x.__dask_keys__()))
