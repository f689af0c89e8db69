"""Checks of what is read back: a stranger may have written it.

All of them raise ValueError or TypeError, and none trusts what another has not looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def fields(tree: Any, *names: str) -> list[Any]:
    """The values of a dict that has these keys and no others, in the order of the names."""
    if type(tree) is not dict or set(tree) != set(names):
        raise ValueError(f"expected a dict of {', '.join(names)}, found {shown(tree)}")
    return [tree[name] for name in names]


def exactly(kind: type, value: Any, what: str) -> Any:
    """A value of one type, not of a subclass."""
    if type(value) is not kind:
        raise TypeError(f"expected {what} as {kind.__qualname__}, found {shown(value)}")
    return value


def array(value: Any, what: str, *, ndim: int | None = None, kinds: str = "") -> np.ndarray:
    """A plain array, with so many dimensions and a dtype of one of these kinds."""
    exactly(np.ndarray, value, what)
    found: np.ndarray = value
    if ndim is not None and found.ndim != ndim:
        raise ValueError(f"expected {what} in {ndim} dimensions, found shape {found.shape}")
    if kinds and found.dtype.kind not in kinds:
        raise ValueError(f"expected {what} of a dtype of kind {kinds}, found {found.dtype}")
    return found


def same_length(what: str, *values: Any) -> int:
    """How long all of them are."""
    lengths = {len(value) for value in values}
    if len(lengths) != 1:
        raise ValueError(f"expected {what} of one length, found {sorted(lengths)}")
    return lengths.pop()


def shape_of(value: Any, *ndims: int) -> tuple[int, ...]:
    """A shape: a tuple of ints, none negative; of so many dimensions, if any are given."""
    exactly(tuple, value, "a shape")
    shape: tuple[int, ...] = value
    if not all(type(n) is int and n >= 0 for n in shape) or (ndims and len(shape) not in ndims):
        raise ValueError(f"expected a shape, found {shown(value)}")
    return shape


def size_of(shape: tuple[int, ...], count: int) -> None:
    """That a shape has room for so many elements, and no more."""
    if math.prod(shape) != count:
        raise ValueError(f"expected {count} elements in all, found shape {shape}")


def within(indices: np.ndarray, low: int, high: int, what: str) -> None:
    """That all of `indices` are at least `low` and less than `high`."""
    if indices.size:
        least, most = int(indices.min()), int(indices.max())
        if least < low or most >= high:
            raise ValueError(f"expected {what} from {low} to {high - 1}, found {least} to {most}")


def offsets(value: Any, end: int, what: str) -> np.ndarray:
    """Offsets of int32 or int64 that run from 0 to `end` and never fall."""
    found = index_array(value, what)
    if not len(found) or found[0] != 0 or found[-1] != end or (found[1:] < found[:-1]).any():
        raise ValueError(f"expected {what} that rise from 0 to {end}, found others")
    return found


def index_array(value: Any, what: str) -> np.ndarray:
    """One-dimensional indices of int32 or int64, in the machine's byte order."""
    found = array(value, what, ndim=1)
    if found.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise ValueError(f"expected {what} of int32 or int64, found {found.dtype}")
    return found


def shown(value: object) -> str:
    """What was found, short enough for a message."""
    if type(value) is dict:
        return f"a dict of {', '.join(map(str, list(value)[:20]))}"[:200]
    if isinstance(value, str | bytes | int | float | bool | None):
        return repr(value)[:200] if not isinstance(value, int) else _shown_int(value)
    return type(value).__qualname__


def _shown_int(value: int) -> str:
    # Python refuses to print ints of many digits.
    return repr(value) if value.bit_length() < 256 else f"an int of {value.bit_length()} bits"
