"""Which types a value tree may hold beyond Python's own, and how they are taken apart.

A registered type is stored under a *name*, with the tree that its `to_tree` makes of a value;
`from_tree` makes the value of it again.  Nothing else of the type is stored: reading a value runs
only code that somebody registered here.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

logger = logging.getLogger("arraychest")

# Packages bring their types along by an entry point of this group: a function without parameters,
# which calls `register`.
ENTRY_POINTS = "arraychest.types"

# Ours, by the first part of the names of the types: imported when such a type is met.
_SHIPPED = {
    "ml_dtypes": "arraychest.integrations.ml_dtypes",
    "numpy": "arraychest.integrations.numpy",
    "pandas": "arraychest.integrations.pandas",
    "scipy": "arraychest.integrations.scipy",
    "xarray": "arraychest.integrations.xarray",
}

T = TypeVar("T")


class Registered(NamedTuple):
    """One registered type."""

    kind: type
    name: str
    to_tree: Callable[[Any], Any]
    from_tree: Callable[[Any], Any]


_by_type: dict[type, Registered] = {}
_by_name: dict[str, Registered] = {}
# What was looked for in vain, or imported: once is enough.
_tried: set[str] = set()


def register(
    kind: type[T],
    to_tree: Callable[[T], Any] | None = None,
    from_tree: Callable[[Any], T] | None = None,
    *,
    name: str | None = None,
) -> None:
    """Let values of a type be stored without pickle.

    Parameters
    ----------
    kind
        The type itself: values of its subclasses are not covered.  A class of NumPy dtypes
        (``type(array.dtype)``) stands for the plain arrays that have such a dtype.
    to_tree
        Makes of a value something that a chest takes: a dict, a tuple, an array, another registered
        type, nested in any way.  None, for a dataclass or a named tuple: its fields.
    from_tree
        Makes the value again.  Arrays in what it is given are read-only views of a mapped file.
        What a stranger may have written is to be checked here: what it raises is raised as
        `CorruptEntryError`.
    name
        What the type is called in the chest.  It must stay the same for as long as values are to
        be read.  None: module and qualified name.

    Raises
    ------
    TypeError
        `kind` is no type, or it takes `to_tree` and `from_tree`, both.
    ValueError
        Another type has this name.

    Notes
    -----
    May be called from any thread.  To register a type again replaces what was registered for it.

    Examples
    --------
    >>> import dataclasses
    >>> import numpy as np
    >>> import arraychest
    >>> @dataclasses.dataclass
    ... class Fit:
    ...     slope: np.ndarray
    ...     error: float
    >>> arraychest.register(Fit)
    >>> chest = arraychest.Chest({"fit": Fit(np.arange(3.0), 0.5)})
    >>> chest["fit"]
    Fit(slope=array([0., 1., 2.]), error=0.5)
    """
    if not isinstance(kind, type):
        raise TypeError(f"expected a type to register, found {type(kind).__name__}")
    if to_tree is None and from_tree is None:
        to_tree, from_tree = _by_fields(kind)
    if to_tree is None or from_tree is None:
        raise TypeError(f"expected both to_tree and from_tree for {kind.__qualname__}, found one")
    if name is None:
        name = f"{kind.__module__}.{kind.__qualname__}"
    known = _by_name.get(name)
    if known is not None and not _same_place(known.kind, kind):
        raise ValueError(f"expected a name that no other type has, found {name!r}: {known.kind!r}")
    former = _by_type.get(kind)
    if former is not None and former.name != name:
        _by_name.pop(former.name, None)
    _by_name[name] = _by_type[kind] = Registered(kind, name, to_tree, from_tree)


def of_type(kind: type) -> Registered | None:
    """What is registered for a type; None if nothing is, also by the packages installed."""
    found = _by_type.get(kind)
    if found is None:
        module = kind.__module__
        # NumPy says of any class of dtypes that it is its own; that of the scalars tells whose.
        if issubclass(kind, np.dtype) and kind.type.__module__ != "builtins":
            module = kind.type.__module__
        while found is None and _search(module):
            found = _by_type.get(kind)
    return found


def of_name(name: str) -> Registered | None:
    """What is registered under a name; None if nothing is, also by the packages installed."""
    found = _by_name.get(name)
    while found is None and _search(name):
        found = _by_name.get(name)
    return found


def _same_place(one: type, other: type) -> bool:
    # A module that was loaded again, or a notebook's cell, has made the same class anew.
    return one is other or (one.__module__, one.__qualname__) == (
        other.__module__,
        other.__qualname__,
    )


def _search(name: str) -> bool:
    """Import what may know of a type in a module, or of a name; whether anything new was."""
    before = len(_tried)
    package = name.partition(".")[0]
    if package in _SHIPPED and package not in _tried:
        try:
            importlib.import_module(_SHIPPED[package])
        except ImportError as error:
            logger.debug("types of %s are not known: %s", package, error)
        _tried.add(package)
    elif ENTRY_POINTS not in _tried:
        # Imported here: it takes as long as NumPy's smaller half.
        from importlib.metadata import entry_points

        for point in entry_points(group=ENTRY_POINTS):
            try:
                point.load()()
            except Exception:
                logger.exception("entry point %s = %s failed", point.name, point.value)
        _tried.add(ENTRY_POINTS)
    return len(_tried) > before


def _by_fields(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]

        def of_fields(fields: Any) -> Any:
            # Not by its `__init__`, which may compute fields, or check what the whole has.
            if type(fields) is not dict or list(fields) != names:
                raise ValueError(f"expected the fields {names}, found {str(fields)[:200]}")
            value = object.__new__(kind)
            for name, each in fields.items():
                object.__setattr__(value, name, each)
            return value

        return lambda value: {name: getattr(value, name) for name in names}, of_fields
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        make: Callable[[Any], Any] = kind._make  # type: ignore[attr-defined]
        return tuple, make
    raise TypeError(
        f"expected to_tree and from_tree for {kind.__qualname__}, which is no dataclass and no "
        "named tuple"
    )
