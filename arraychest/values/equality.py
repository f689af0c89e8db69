"""Whether two values are equal that may hold arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from arraychest.arrays.lazy import LazyArray
from arraychest.values import registry

_ARRAYS = (np.ndarray, np.generic, LazyArray)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: as Python says, arrays in them by dtype and elements."""
    if one is other:
        return True
    if isinstance(one, _ARRAYS) or isinstance(other, _ARRAYS):
        both = isinstance(one, _ARRAYS) and isinstance(other, _ARRAYS)
        return both and one.dtype == other.dtype and bool(np.array_equal(one, other))
    kind = type(one)
    if kind is type(other):
        if kind is list or kind is tuple:
            return len(one) == len(other) and all(map(same, one, other))
        if kind is dict:
            return len(one) == len(other) and all(
                key in other and same(value, other[key]) for key, value in one.items()
            )
        known = None if kind.__module__ == "builtins" else registry.of_type(kind)
        if known is not None:
            return same(known.to_tree(one), known.to_tree(other))
    return bool(one == other)
