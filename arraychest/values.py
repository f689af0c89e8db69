"""Which values a chest takes, and what becomes of the caller's array (`on_put`)."""

from __future__ import annotations

import sys
from typing import Any, Literal, NamedTuple

import numpy as np

from arraychest.compressed import CompressedArray
from arraychest.entry import Kind, describe
from arraychest.errors import ValueTypeError
from arraychest.mapping import is_map
from arraychest.resident import owner_of
from arraychest.scalars import array_of_scalar

OnPut = Literal["freeze", "copy", "share"]


class Accepted(NamedTuple):
    """A value that may be put.

    Attributes
    ----------
    array
        The value as an ndarray; of a str or bytes scalar, its characters.
    kind
        What it comes back as.
    shown
        What a get of the resident value returns: the array, or the NumPy scalar; None for one of
        a structured dtype, which could be written to.
    """

    array: np.ndarray
    kind: Kind
    shown: np.ndarray | np.generic | None


def accept(value: Any, *, allow_pickle: bool) -> Accepted:
    """Check a value, changing nothing.

    Raises
    ------
    ValueTypeError
        It is no array or NumPy scalar, or would come back as something else.
    """
    kind: Kind = "array"
    shown: np.ndarray | np.generic | None = None
    if type(value) is CompressedArray:
        # What another get gave: the very value, whatever tier it comes from.
        value = np.asarray(value)
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.generic):
        if type(value) is not value.dtype.type:
            raise ValueTypeError(
                f"expected a NumPy scalar, found {_name(value)}, which would come back as "
                f"{value.dtype.type.__name__}"
            )
        kind, array = "scalar", array_of_scalar(value)
        shown = None if isinstance(value, np.void) else value
    elif type(value) is np.memmap:
        array = np.asarray(value)
    elif isinstance(value, np.ndarray):
        hint = "np.asarray(value) drops the subclass"
        if isinstance(value, np.ma.MaskedArray):
            hint = "store value.data and value.mask under two keys, or value.filled()"
        raise ValueTypeError(
            f"expected a plain ndarray, found {_name(value)}, which would come back as an "
            f"ndarray: {hint}"
        )
    else:
        raise ValueTypeError(
            f"expected an ndarray or a NumPy scalar, found {_name(value)}: "
            "np.asarray(value) makes an array of numbers and nested lists"
        )
    dtype = array.dtype
    if dtype.hasobject:
        if kind == "scalar" or not allow_pickle or dtype.kind not in "OV":
            if dtype.kind not in "OV" or kind == "scalar":
                describe(dtype)
            raise ValueTypeError(
                f"expected an array without Python objects, found dtype {dtype}: they can only be "
                "pickled, for which the chest must be opened with allow_pickle=True"
            )
        kind = "pickle"
    describe(dtype)
    return Accepted(array, kind, array if kind != "scalar" else shown)


def array_to_keep(array: np.ndarray, on_put: OnPut) -> np.ndarray:
    """The array that the chest will keep of one that was put; `freeze` it once it is accepted.

    ``"freeze"`` takes a contiguous array that owns its buffer as it is; any other is copied, so
    that neither its owner nor another view can write to it, and a small view does not keep a
    large base alive.  ``"copy"`` always copies.  ``"share"`` never does: the caller promises not to
    write.

    A copy is C-contiguous, or Fortran-contiguous where the array was.
    """
    if on_put == "share":
        return array.view()
    return array if on_put == "freeze" and is_handed_over(array) else copied(array)


def is_handed_over(array: np.ndarray) -> bool:
    """Whether an array that is put with ``"freeze"`` is kept itself, and not a copy of it."""
    flags = array.flags
    if not flags.forc:
        # A file holds it in C order, and memory pressure must not show in an array's layout.
        return False
    if array.base is None:
        return flags.owndata
    return _is_sole_view(array) or (
        # A read-only map of a value file, which nobody writes to: it came out of a chest.
        not flags.writeable and is_map(owner_of(array))
    )


def copied(array: np.ndarray) -> np.ndarray:
    """A copy in the same order, Fortran's only where the array is contiguous in no other."""
    if not array.dtype.itemsize:
        # NumPy's own copy of strings of no characters has strings of one.
        order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
        return np.ndarray(array.shape, array.dtype, order=order)
    return array.copy(order="A")


def freeze(array: np.ndarray) -> None:
    """Make later writes to an array that was put fail, for whoever holds it."""
    array.setflags(write=False)
    if array.base is not None and _is_sole_view(array):
        array.base.setflags(write=False)


def _is_sole_view(array: np.ndarray) -> bool:
    """Whether `array` shows the whole of a buffer that nothing else can reach.

    So it is with what ``reshape`` and ``T`` return: a view of a base that only the view keeps
    alive.  It is as good as the owner.
    """
    base = array.base
    return (
        type(base) is np.ndarray
        and base.flags.owndata
        and base.nbytes == array.nbytes
        # The view's own reference, our name, and the argument of getrefcount.
        and sys.getrefcount(base) == 3
    )


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
