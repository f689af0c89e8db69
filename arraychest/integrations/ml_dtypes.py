"""ml_dtypes: arrays and scalars of bfloat16, the small floats, and the ints below a byte.

Each is stored as the unsigned ints of its bits, which NumPy's own format keeps: an array is viewed
as them and back, never copied.  Any bits are an element, so nothing that is read can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ml_dtypes
import numpy as np

from arraychest.integrations import checks
from arraychest.values.registry import register


def _bits_of(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def _array_of(dtype: np.dtype) -> Callable[[Any], np.ndarray]:
    bits = np.dtype(f"u{dtype.itemsize}")

    def from_tree(tree: Any) -> np.ndarray:
        array = checks.array(tree, f"the bits of {dtype}")
        if array.dtype != bits:
            raise ValueError(f"expected the bits of {dtype} as {bits}, found {array.dtype}")
        return array.view(dtype)

    return from_tree


def _scalar_of(dtype: np.dtype) -> Callable[[Any], np.generic]:
    bits = np.dtype(f"u{dtype.itemsize}")

    def from_tree(tree: Any) -> np.generic:
        value = checks.exactly(int, tree, f"the bits of {dtype}")
        # NumPy raises OverflowError for what does not fit.
        scalar: Any = np.array(value, bits).view(dtype)[()]
        return cast(np.generic, scalar)

    return from_tree


def _int_of(scalar: np.generic) -> int:
    return int(_bits_of(np.array(scalar))[()])


def _register_all() -> None:
    # Asked of the package: each of its versions has more of them.
    for name in dir(ml_dtypes):
        kind = getattr(ml_dtypes, name)
        if isinstance(kind, type) and issubclass(kind, np.generic):
            dtype = np.dtype(kind)
            arrays: Any = type(dtype)
            register(arrays, _bits_of, _array_of(dtype), name=f"ml_dtypes.array[{kind.__name__}]")
            register(kind, _int_of, _scalar_of(dtype), name=f"ml_dtypes.{kind.__name__}")


_register_all()
