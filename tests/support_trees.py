"""Values that are taken apart and put together again, in a chest and without one."""

from __future__ import annotations

from typing import Any

import numpy as np

import arraychest
from arraychest import values
from arraychest.values import registry


def roundtrip(value: Any) -> Any:
    """What a value is when it is read from disk; its arrays are read-only views of a map."""
    with arraychest.Chest(on_put="copy") as chest:
        chest["value"] = value
        chest.spill("value")
        return chest["value"]


def mapped(array: np.ndarray) -> np.ndarray:
    """A copy that nobody can write to, contiguous in C or Fortran order."""
    order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
    data = bytes(array.tobytes(order)) or b"\0"
    return np.ndarray(array.shape, array.dtype, data, order=order)


def tree_of(value: Any) -> Any:
    """What is stored of a value of a registered type: the first step of taking it apart."""
    found = registry.of_type(type(value.dtype) if type(value) is np.ndarray else type(value))
    assert found is not None
    return found.to_tree(value)


def make(name: str, tree: Any) -> Any:
    """The value that a tree stands for, under the name of its type."""
    found = registry.of_name(name)
    assert found is not None
    return found.from_tree(tree)


def arrays_in(tree: Any) -> list[np.ndarray]:
    """All arrays in what a value is taken apart into."""
    return values.take_apart(tree, allow_pickle=False).parts
