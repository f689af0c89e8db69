"""Which values a chest takes, what becomes of the caller's arrays (`on_put`), and how what is kept
becomes a value again.
"""

from __future__ import annotations

import io
import operator
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.ownership import owner_of
from arraychest.errors import (
    ArrayChestError,
    CorruptEntryError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.formats.form import Kind, describe
from arraychest.formats.tree import Tree
from arraychest.platform.maps import is_steady
from arraychest.values import registry
from arraychest.values.decoder import put_together
from arraychest.values.scalars import array_of_scalar, scalar_of
from arraychest.values.taking_apart import is_of_registered_dtype, take_apart

OnPut = Literal["freeze", "copy", "share"]


class Own(NamedTuple):
    """How a user writes and reads what is no array, and whether objects are pickled.

    Attributes
    ----------
    allow_pickle
        Whether what cannot be taken apart is pickled, and unpickled.
    dump
        Writes a value to a file; None: values are taken apart.
    load
        Reads one from a file.
    """

    allow_pickle: bool
    dump: Callable[[Any, Any], object] | None = None
    load: Callable[[Any], Any] | None = None


class Dumped(NamedTuple):
    """What a user's `dump` wrote, as bytes: the first says whether it was text."""

    data: np.ndarray


class Accepted(NamedTuple):
    """A value that may be put.

    Attributes
    ----------
    array
        The value as an ndarray; of a str or bytes scalar, its characters; what is no array as a
        `Tree`, or as the bytes that `dump` wrote.
    kind
        What it comes back as.
    shown
        What a get of the resident value returns: the array, or the NumPy scalar; None for what is
        made anew at each get.
    """

    array: np.ndarray | Tree
    kind: Kind
    shown: np.ndarray | np.generic | None


def accept(value: Any, own: Own) -> Accepted:
    """Check a value, changing nothing.

    Raises
    ------
    ValueTypeError
        It would come back as something else, or not at all.
    """
    kind = type(value)
    if kind is CompressedArray:
        # What another get gave: the very value, whatever tier it comes from.
        value = np.asarray(value)
    elif kind is np.memmap:
        value = np.asarray(value)
    if type(value) is np.ndarray:
        return _accepted_array(value, own)
    if isinstance(value, np.generic) and type(value) is value.dtype.type:
        return _accepted_scalar(value, own)
    if own.dump is not None:
        return Accepted(_dumped(value, own.dump), "dump", None)
    return _taken_apart(value, own)


def _accepted_array(array: np.ndarray, own: Own) -> Accepted:
    dtype = array.dtype
    kind: Kind = "array"
    if dtype.hasobject and dtype.kind in "OV":
        if not own.allow_pickle:
            raise ValueTypeError(
                f"expected an array without Python objects, found dtype {dtype}: they can only be "
                "pickled, for which the chest must be opened with allow_pickle=True"
            )
        kind = "pickle"
    elif is_of_registered_dtype(dtype):
        return _taken_apart(array, own)
    describe(dtype)
    return Accepted(array, kind, array)


def _accepted_scalar(value: np.generic, own: Own) -> Accepted:
    if value.dtype.hasobject:
        raise ValueTypeError(
            f"expected a NumPy scalar without Python objects, found dtype {value.dtype}"
        )
    array = array_of_scalar(value)
    try:
        describe(array.dtype)
    except ValueTypeError:
        if registry.of_type(type(value)) is None:
            raise
        return _taken_apart(value, own)
    # One of a structured dtype could be written to.
    return Accepted(array, "scalar", None if isinstance(value, np.void) else value)


def _taken_apart(value: Any, own: Own) -> Accepted:
    taken = take_apart(value, allow_pickle=own.allow_pickle)
    # Memory pressure must not show in an array's layout: a file holds it in one of two orders.
    parts = [part if part.flags.forc else copied(part) for part in taken.parts]
    return Accepted(Tree(taken.structure, parts), "tree", None)


def _dumped(value: Any, dump: Callable[[Any, Any], object]) -> np.ndarray:
    file = _Dump()
    dump(value, file)
    file.seek(0)
    return np.frombuffer((b"t" if file.text else b"b") + file.read(), np.uint8)


class _Dump(io.BytesIO):
    """A file that takes bytes or text, whichever comes.

    To close it does nothing: an `io.TextIOWrapper` around it does, whenever that is collected.
    """

    text = False

    def close(self) -> None:
        pass

    def write(self, data: Any, /) -> int:
        if isinstance(data, str):
            self.text = True
            super().write(data.encode("utf-8", "surrogatepass"))
            return len(data)
        return super().write(data)

    def writelines(self, lines: Any, /) -> None:
        for line in lines:
            self.write(line)


def at_hand(array: np.ndarray | Tree, kind: Kind, *, private: bool) -> Any:
    """What `value_of` makes the value of, of what is kept in RAM.

    Parameters
    ----------
    private
        Whether arrays are copied: ``mmap_mode="c"``.
    """
    if kind == "scalar":
        return scalar_of(cast(np.ndarray, array))
    if kind == "dump":
        return Dumped(cast(np.ndarray, array))
    if not private:
        return array
    if isinstance(array, Tree):
        return Tree(array.structure, [copied(part) for part in array.parts])
    return copied(array)


def value_of(found: Any, key: Any, own: Own) -> Any:
    """What a get gives of what the chest has at hand, or has loaded.  Calls what users registered.

    Raises
    ------
    CorruptEntryError, PickleRefusedError, UnreadableValueError
        It cannot be put together here.
    """
    if type(found) is Tree:
        try:
            return put_together(found.structure, found.parts, allow_pickle=own.allow_pickle)
        except ArrayChestError as error:
            raise type(error)(f"the value of key {key!r:.200}: {error}") from error
    if type(found) is Dumped:
        if own.load is None:
            raise UnreadableValueError(
                f"the value of key {key!r:.200} was written by a chest's own dump=: open the chest "
                "with the load= that reads it"
            )
        data = found.data.tobytes()
        try:
            if data[:1] == b"t":
                return own.load(io.StringIO(data[1:].decode("utf-8", "surrogatepass"), newline=""))
            return own.load(io.BytesIO(data[1:]))
        except RecursionError:
            raise
        except Exception as error:
            # Not as it is: a KeyError would say that there is no such key.
            raise CorruptEntryError(
                f"the value of key {key!r:.200}: expected what the chest's load= reads, found "
                f"something else: {error!r:.200}"
            ) from error
    return found


def array_to_keep(array: np.ndarray | Tree, on_put: OnPut) -> np.ndarray | Tree:
    """What the chest will keep of an array that was put; `freeze` it once it is accepted.

    ``"freeze"`` takes a contiguous array that owns its buffer as it is; any other is copied, so
    that neither its owner nor another view can write to it, and a small view does not keep a
    large base alive.  ``"copy"`` always copies.  ``"share"`` never does: the caller promises not to
    write.

    A copy is C-contiguous, or Fortran-contiguous where the array was.  Of a tree, each part is
    kept so.
    """
    if isinstance(array, Tree):
        parts = [_to_keep(part, on_put) for part in array.parts]
        if all(map(operator.is_, parts, array.parts)):
            return array
        return Tree(array.structure, parts)
    return _to_keep(array, on_put)


def _to_keep(array: np.ndarray, on_put: OnPut) -> np.ndarray:
    if on_put == "share":
        return array.view()
    return array if on_put == "freeze" and _is_handed_over(array) else copied(array)


def _is_handed_over(array: np.ndarray) -> bool:
    """Whether an array that is put with ``"freeze"`` is kept itself, and not a copy of it."""
    flags = array.flags
    if not flags.forc:
        # A file holds it in C order, and memory pressure must not show in an array's layout.
        return False
    if array.base is None:
        return flags.owndata
    if _is_sole_view(array):
        return True
    if flags.writeable:
        return False
    owner = owner_of(array)
    # A map of a value file that nobody can write to: it came out of a chest.  Or bytes.
    return is_steady(owner) or (type(owner) is bytes and len(owner) == array.nbytes)


def copied(array: np.ndarray) -> np.ndarray:
    """A copy in the same order, Fortran's only where the array is contiguous in no other."""
    if not array.dtype.itemsize:
        # NumPy's own copy of strings of no characters has strings of one.
        order: Literal["C", "F"] = "F" if array.flags.fnc else "C"
        return np.ndarray(array.shape, array.dtype, order=order)
    return array.copy(order="A")


def freeze_handed_over(array: np.ndarray | Tree) -> None:
    """Make later writes to an array fail that was put with ``"freeze"`` and stored at once."""
    for each in array.parts if isinstance(array, Tree) else (array,):
        if _is_handed_over(each):
            freeze(each)


def freeze(array: np.ndarray | Tree) -> None:
    """Make later writes to an array that was put fail, for whoever holds it."""
    if isinstance(array, Tree):
        for part in array.parts:
            freeze(part)
        return
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
        and _references_to_base(array) == _SOLE
    )


def _references_to_base(array: np.ndarray) -> int:
    return sys.getrefcount(array.base)


# What that function sees of a base that only its view refers to, while a caller has a name for it
# as well: how many references a call takes differs between versions of Python.
def _sole() -> int:
    array = np.empty(1)[:]
    base = array.base
    found = _references_to_base(array)
    del base
    return found


_SOLE = _sole()
