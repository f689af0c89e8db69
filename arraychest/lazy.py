"""`LazyArray`: a stored array whose parts are read when they are asked for.

What its kinds have in common: NumPy's indexing, and computing chunk by chunk.
"""

from __future__ import annotations

import importlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from arraychest.selection import Cut, chunks_along, select


class LazyArray(NDArrayOperatorsMixin):
    """A stored array of which a read touches only the chunks that it needs.

    What is read, and what is computed, are plain arrays of NumPy.  Element-wise functions and
    reductions go chunk by chunk: `sum` of an array larger than RAM needs memory for one chunk.
    Everything else that NumPy is asked to do with it reads it whole.

    Attributes
    ----------
    shape, dtype, ndim, size, nbytes
        As an array's.

    Notes
    -----
    Safe from many threads.  A sum of floating-point numbers is added up in another order than
    NumPy's, and differs in its last bits.
    """

    __slots__ = ("__weakref__", "_cuts", "_likeness", "dtype", "shape")
    # In messages: what it is, and what a writer may do in place of writing.
    _what: ClassVar = "a stored one"
    _instead: ClassVar = ""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], cuts: tuple[Cut, ...]) -> None:
        self.dtype = dtype
        self.shape = shape
        self._cuts = cuts
        # An array of this shape, of one byte.
        self._likeness = np.broadcast_to(np.zeros((), np.uint8), shape)

    @property
    def largest_chunk(self) -> tuple[int, ...]:
        """How long the longest chunk is along each dimension."""
        return tuple(cut if isinstance(cut, int) else max(cut, default=0) for cut in self._cuts)

    @property
    def order(self) -> Literal["C", "F"]:
        """In which order its elements are stored, and read: C's or Fortran's."""
        return "C"

    def _read(self, where: tuple[slice, ...]) -> np.ndarray:
        """A part, all of whose steps are 1, as a new array or one that is read-only."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array in RAM."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        """Size of the first dimension."""
        if not self.shape:
            raise TypeError("expected an array of one dimension at least, found one of none")
        return self.shape[0]

    def _repr_html_(self) -> str:
        """Its chunks, drawn, as notebooks show it; nothing is read."""
        return str(importlib.import_module("arraychest.display").lazy_html(self))

    def __bool__(self) -> bool:
        """As an array: of one element only."""
        return bool(np.asarray(self))

    # --- reading ---------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The array, read whole: always a new one.

        Raises
        ------
        ValueError
            ``copy=False``: there is no array that could be had without a copy.
        """
        if copy is False:
            raise ValueError(
                "expected copy=None or copy=True: an array that is read chunk by chunk is always "
                "read into a new one"
            )
        whole = self._read(tuple(slice(0, n) for n in self.shape))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        """A part of the array, by NumPy's rules; an element where each dimension has a number.

        Raises
        ------
        IndexError
            As NumPy's.
        """
        parts = key if isinstance(key, tuple) else (key,)
        parts = tuple(np.asarray(each) if isinstance(each, LazyArray) else each for each in parts)
        return select(self._read, self._likeness, self.dtype, self._cuts, parts)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Refused: a stored value is immutable, as a mapped one is read-only.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            f"expected an array that can be written to, found {self._what}, which is read-only: "
            f"{self._instead}np.array(value) gives a copy"
        )

    def copy(self, order: Literal["C", "F", "A", "K"] = "C") -> np.ndarray:
        """The array, read whole: the caller's own."""
        return np.asarray(self).copy(order) if order != self.order else np.asarray(self)

    def tolist(self) -> Any:
        """The elements as Python's numbers, in lists."""
        return np.asarray(self).tolist()

    def __iter__(self) -> Iterator[Any]:
        """Parts along the first dimension; a row of chunks is read at a time."""
        for part in chunks_along(self._cuts[0], len(self)) if len(self) else ():
            yield from self[part]

    def iterchunks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """Each chunk: where it lies in the array, and its elements."""
        for where in self._places():
            yield where, self._read(where)

    def _places(self) -> Iterator[tuple[slice, ...]]:
        return itertools.product(
            *[chunks_along(cut, n) for cut, n in zip(self._cuts, self.shape, strict=True)]
        )

    # --- computing -------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Element-wise with plain operands, and reductions, chunk by chunk; the rest whole."""
        if any(isinstance(each, LazyArray) for each in kwargs.get("out") or ()):
            return NotImplemented
        if method == "reduce" and len(inputs) == 1 and set(kwargs) <= {"axis", "keepdims", "dtype"}:
            axis = kwargs.get("axis", 0)
            keepdims, dtype = bool(kwargs.get("keepdims", False)), kwargs.get("dtype")
            if ufunc in _REDUCIBLE:
                return self._reduced(ufunc, axis, keepdims, dtype)
        if method == "__call__" and not kwargs and ufunc.nout == 1 and ufunc.signature is None:
            others = [each for each in inputs if each is not self]
            if (
                not any(isinstance(each, LazyArray) for each in others)
                and np.broadcast_shapes(self.shape, *map(np.shape, others)) == self.shape
            ):
                return self._elementwise(ufunc, inputs)
        return getattr(ufunc, method)(*_plain(inputs), **kwargs)

    def _elementwise(self, ufunc: np.ufunc, inputs: Sequence[Any]) -> Any:
        if not self.size:  # there is no chunk to go by
            return ufunc(*_plain(inputs))
        out: np.ndarray | None = None
        # Scalars stay as they are: NumPy takes a number of Python's for no particular dtype.
        wide = [
            np.broadcast_to(each, self.shape) if np.ndim(each) and each is not self else each
            for each in inputs
        ]
        for where, part in self.iterchunks():
            given = [
                part if each is self else each[where] if np.ndim(each) else each for each in wide
            ]
            found = ufunc(*given)
            if out is None:
                out = np.empty(self.shape, found.dtype)
            out[where] = found
        assert out is not None
        return out

    def _reduced(self, ufunc: np.ufunc, axis: Any, keepdims: bool, dtype: Any) -> Any:
        axes = _axes(axis, self.ndim)
        if not self.size:
            return ufunc.reduce(np.asarray(self), axis=tuple(axes), keepdims=keepdims, dtype=dtype)
        shape = tuple(1 if at in axes else n for at, n in enumerate(self.shape))
        result: np.ndarray | None = None
        # NumPy adds float16 up in float32.
        narrow = self.dtype == np.float16 and dtype is None and ufunc in (np.add, np.multiply)
        inner = np.dtype(np.float32) if narrow else dtype
        seen: set[tuple[int, ...]] = set()
        for where, part in self.iterchunks():
            found = ufunc.reduce(part, axis=tuple(axes), keepdims=True, dtype=inner)
            if result is None:
                result = np.empty(shape, found.dtype)
            place = tuple(slice(0, 1) if at in axes else each for at, each in enumerate(where))
            first = tuple(each.start for each in place)
            if first in seen:
                result[place] = ufunc(result[place], found)
            else:
                seen.add(first)
                result[place] = found
        assert result is not None
        if narrow:
            result = result.astype(self.dtype)
        return _finished(result, axes, keepdims)

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Reductions chunk by chunk; everything else on plain arrays."""
        name = _METHODS.get(function)
        if name is not None and args and args[0] is self:
            try:
                return getattr(self, name)(*args[1:], **kwargs)
            except TypeError:
                pass  # an argument that only NumPy's own knows
        return function(*_plain(args), **_plain(kwargs))

    def sum(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
        """The sum along some dimensions, or of all elements."""
        return self._reduced(np.add, axis, keepdims, dtype)

    def prod(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
        """The product along some dimensions, or of all elements."""
        return self._reduced(np.multiply, axis, keepdims, dtype)

    def min(self, axis: Any = None, *, keepdims: bool = False) -> Any:
        """The least element along some dimensions, or of all; NaN where there is one."""
        return self._reduced(np.minimum, axis, keepdims, None)

    def max(self, axis: Any = None, *, keepdims: bool = False) -> Any:
        """The greatest element along some dimensions, or of all; NaN where there is one."""
        return self._reduced(np.maximum, axis, keepdims, None)

    def any(self, axis: Any = None, *, keepdims: bool = False) -> Any:
        """Whether any element is true, along some dimensions or of all."""
        return self._reduced(np.logical_or, axis, keepdims, None)

    def all(self, axis: Any = None, *, keepdims: bool = False) -> Any:
        """Whether all elements are true, along some dimensions or of all."""
        return self._reduced(np.logical_and, axis, keepdims, None)

    def mean(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
        """The mean along some dimensions, or of all elements; added up in float64."""
        inner, outer = self._mean_dtypes(dtype)
        total = self._reduced(np.add, axis, keepdims, inner)
        count = math.prod(self.shape[at] for at in _axes(axis, self.ndim))
        return np.true_divide(total, count, dtype=inner).astype(outer)[()]

    def var(
        self, axis: Any = None, dtype: Any = None, *, ddof: float = 0, keepdims: bool = False
    ) -> Any:
        """The variance along some dimensions, or of all elements; it is read twice."""
        inner, outer = self._mean_dtypes(dtype)
        axes = _axes(axis, self.ndim)
        mean = np.asarray(self.mean(axis, inner, keepdims=True))
        shape = tuple(1 if at in axes else n for at, n in enumerate(self.shape))
        total = np.zeros(shape, np.empty(0, inner).real.dtype)
        for where, part in self.iterchunks():
            place = tuple(slice(0, 1) if at in axes else each for at, each in enumerate(where))
            apart = np.abs(part.astype(inner) - mean[place])
            total[place] += np.sum(apart * apart, axis=tuple(axes), keepdims=True)
        count = math.prod(self.shape[at] for at in axes) - ddof
        with np.errstate(all="ignore"):
            found = total / max(count, 0)
        return _finished(found.astype(np.empty(0, outer).real.dtype), axes, keepdims)

    def std(
        self, axis: Any = None, dtype: Any = None, *, ddof: float = 0, keepdims: bool = False
    ) -> Any:
        """The standard deviation along some dimensions, or of all elements; it is read twice."""
        inner, outer = self._mean_dtypes(dtype)
        found = np.sqrt(self.var(axis, inner, ddof=ddof, keepdims=keepdims))
        return found.astype(np.empty(0, outer).real.dtype)[()]

    def _mean_dtypes(self, dtype: Any) -> tuple[np.dtype, np.dtype]:
        """In which dtype a mean is computed, and in which it is returned."""
        if self.dtype.kind not in "biufc":
            raise TypeError(f"expected numbers to take the mean of, found {self.dtype}")
        outer = np.dtype(dtype) if dtype is not None else self.dtype.newbyteorder("=")
        if outer.kind in "biu" and dtype is None:
            outer = np.dtype(np.float64)
        return np.result_type(outer, np.complex128 if outer.kind == "c" else np.float64), outer

    def astype(self, dtype: Any) -> np.ndarray:
        """A plain array of another dtype, converted chunk by chunk."""
        out = np.empty(self.shape, dtype)
        for where, part in self.iterchunks():
            out[where] = part
        return out


# Reductions whose parts can be reduced again, in any order.
_REDUCIBLE = frozenset({
    np.add, np.multiply, np.minimum, np.maximum, np.fmin, np.fmax, np.logical_or, np.logical_and,
    np.bitwise_or, np.bitwise_and, np.bitwise_xor, np.logical_xor,
})  # fmt: skip

_METHODS: dict[Callable[..., Any], str] = {
    np.sum: "sum",
    np.prod: "prod",
    np.min: "min",
    np.max: "max",
    np.amin: "min",
    np.amax: "max",
    np.any: "any",
    np.all: "all",
    np.mean: "mean",
    np.var: "var",
    np.std: "std",
}


def _axes(axis: Any, ndim: int) -> list[int]:
    if axis is None:
        return list(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = [operator.index(each) for each in given]
    for each in axes:
        if not -ndim <= each < ndim:
            raise np.exceptions.AxisError(each, ndim)
    found = [each % ndim for each in axes]
    if len(set(found)) != len(found):
        raise ValueError(f"expected each axis once, found {axis}")
    return found


def _finished(result: np.ndarray, axes: Sequence[int], keepdims: bool) -> Any:
    if keepdims:
        return result
    return result.reshape([n for at, n in enumerate(result.shape) if at not in axes])[()]


def _plain(given: Any) -> Any:
    """The same arguments, plain arrays in the place of lazy ones."""
    if isinstance(given, LazyArray):
        return np.asarray(given)
    if type(given) in (list, tuple):
        return type(given)(_plain(each) for each in given)
    if type(given) is dict:
        return {key: _plain(value) for key, value in given.items()}
    return given
