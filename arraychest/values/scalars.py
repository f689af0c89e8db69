"""NumPy scalars as arrays, and back: what NumPy's own conversions would change is kept."""

from __future__ import annotations

from typing import cast

import numpy as np


def scalar_of(array: np.ndarray) -> np.generic:
    """The NumPy scalar that an array holds; see `array_of_scalar`."""
    if array.dtype.kind == "U":
        codec = "utf-32-be" if array.dtype.byteorder == ">" else "utf-32-le"
        return np.str_(array.tobytes().decode(codec, "surrogatepass"))
    if array.dtype.kind == "S":
        return np.bytes_(array.tobytes())
    # A structured element would be a view of the map: a scalar is a value of its own.
    return cast(np.generic, array.copy()[()])


def array_of_scalar(value: np.generic) -> np.ndarray:
    """An array that holds a NumPy scalar; of str and bytes, the characters.

    NumPy drops the NULs at the end of an element, and has no element of no characters.
    """
    if isinstance(value, np.str_):
        return np.frombuffer(value.encode("utf-32-le", "surrogatepass"), np.dtype("<U1"))
    if isinstance(value, np.bytes_):
        return np.frombuffer(bytes(value), np.dtype("S1"))
    # A structured scalar may be a view of an array, and so is what `np.array` makes of it.
    return np.array(value).copy()
