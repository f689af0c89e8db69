"""What a value is, in a few words: ``str``, ``dict of 3``, ``DataFrame 100x4``."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import arraychest
from arraychest.cli.printing import readable

# Of a tree so many parts are shown, and so many characters of each.
_MOST_PARTS = 20
_MOST_CHARACTERS = 60


def type_of(chest: arraychest.Chest, key: Any, entry: arraychest.Entry) -> str:
    """The dtype of an array; of any other value what it is, for which it is read."""
    if entry.kind in ("array", "scalar", "blocked"):
        return str(entry.dtype)
    if entry.kind == "pickle":
        return "pickled"
    try:
        return named(chest[key])
    except (arraychest.ArrayChestError, OSError, ImportError, AttributeError):
        return entry.kind  # it cannot be read here: `info` says why


def named(value: Any) -> str:
    """What a value is."""
    name = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{name} {'x'.join(map(str, shape))}" if shape else name
    if value is None or isinstance(value, str | bytes | bytearray) or not isinstance(value, Sized):
        return "None" if value is None else name
    return f"{name} of {len(value)}"


def parts_of(value: Any) -> list[tuple[str, str]]:
    """What is in a value: names and what is under each; of one without parts nothing."""
    if isinstance(value, Mapping):
        found = [(repr(key), each) for key, each in value.items()]
    elif type(value) in (list, tuple, set, frozenset):
        found = [(str(at), each) for at, each in enumerate(value)]
    elif hasattr(value, "dtypes") and hasattr(value, "columns"):  # a frame of pandas
        found = [(repr(name), value[name]) for name in value.columns]
    else:
        return []
    lines = [(readable(name), _shown(each)) for name, each in found[:_MOST_PARTS]]
    more = len(found) - len(lines)
    return [*lines, ("...", f"{more} more")] if more > 0 else lines


def _shown(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    if dtype is not None and hasattr(value, "shape"):
        return f"{'x'.join(map(str, value.shape)) or '-'} {dtype}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        told = repr(value)
        return told if len(told) <= _MOST_CHARACTERS else f"{told[:_MOST_CHARACTERS]}..."
    return named(value)
