"""Arguments that are looked at before the call, and results that nobody else holds."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.ownership import is_held


def afresh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments to be looked at, in which iterators over lists are others over the same lists."""
    told: dict[int, Any] = {}

    def tell(value: Any) -> Any:
        if type(value) is not _LIST_ITERATOR:
            return value
        # One given twice is one.
        return told.setdefault(id(value), copy.copy(value))

    return tuple(map(tell, args)), {name: tell(value) for name, value in kwargs.items()}


_LIST_ITERATOR: type = type(iter([]))

# What has no arrays in it.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})


def are_ours(values: Any) -> bool:
    """Whether nothing refers to these values but what they are in, nor to any array in them.

    Then the chest may keep the arrays themselves.  What an object holds, nobody can say.
    """
    for value, held in zip(values, is_held(values), strict=True):
        kind = type(value)
        if kind in _PLAIN or isinstance(value, np.generic):
            continue
        if kind is np.ndarray:
            # A view is copied in any case, unless nothing else refers to what it is a view of.
            if held:
                return False
        elif kind is list or kind is tuple:
            if (held and value) or not are_ours(value):
                return False
        elif kind is dict:
            if (held and value) or not are_ours(value.values()):
                return False
        elif kind is not CompressedArray and kind is not BlockedArray:
            return False
    return True
