"""Arrays of Python objects, such as older columns of strings, as trees of their elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from arraychest.integrations import checks, text

# From so many elements on, strings are kept in arrays: they are then mapped, and no part of the
# structure of the value, whose size is limited.
_MANY = 1024


def to_tree(array: np.ndarray) -> dict[str, Any]:
    """The elements of an array of dtype object, and its shape; each is a value of its own."""
    elements: Any = list(array.flat)
    tree: dict[str, Any] = {"shape": array.shape, "elements": elements}
    if len(elements) >= _MANY:
        others = [at for at, one in enumerate(elements) if type(one) is not str]
        if len(others) <= len(elements) // 2:
            values = [elements[at] for at in others]
            for at in others:
                elements[at] = ""
            characters, offsets = text.pack(elements)
            tree["elements"] = {
                "characters": characters,
                "offsets": offsets,
                "others": np.array(others, np.int64),
                "values": values,
            }
    return tree


def from_tree(tree: Any) -> np.ndarray:
    """The array again, in C order.

    Raises
    ------
    ValueError, TypeError
        The tree is none that `to_tree` makes.
    """
    shape, elements = checks.fields(tree, "shape", "elements")
    checks.shape_of(shape)
    if type(elements) is not dict:
        checks.exactly(list, elements, "elements")
        checks.size_of(shape, len(elements))
        # Each as it is: np.array would look into them.
        return np.fromiter(elements, object, len(elements)).reshape(shape)
    characters, offsets, others, values = checks.fields(
        elements, "characters", "offsets", "others", "values"
    )
    flat = strings(characters, offsets)
    checks.size_of(shape, len(flat))
    checks.exactly(list, values, "elements")
    checks.index_array(others, "places of elements")
    checks.same_length("elements and their places", others, values)
    checks.within(others, 0, len(flat), "places of elements")
    flat[others] = np.fromiter(values, object, len(values))
    return flat.reshape(shape)


def strings(characters: Any, offsets: Any) -> np.ndarray:
    """An array of Python strings."""
    checks.array(offsets, "offsets of strings", ndim=1)
    flat = np.empty(max(len(offsets) - 1, 0), object)
    done = 0
    for some in text.unpack(characters, offsets):
        flat[done : done + len(some)] = some
        done += len(some)
    return flat
