"""Computing with an array that is read chunk by chunk: element-wise, reductions, running sums.

Each function needs memory for one chunk and for its result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

# Where an argument was not given: `np.sum` tells such a call from one with None.
NOT_GIVEN: Any = np._NoValue

# Reductions whose parts can be reduced again, in any order.
REDUCIBLE = frozenset({
    np.add, np.multiply, np.minimum, np.maximum, np.fmin, np.fmax, np.logical_or, np.logical_and,
    np.bitwise_or, np.bitwise_and, np.bitwise_xor, np.logical_xor,
})  # fmt: skip


class Chunked(Protocol):
    """An array that gives its elements chunk by chunk."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102

    @property
    def order(self) -> str: ...  # noqa: D102

    def iterchunks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]: ...  # noqa: D102


def normal_axes(axis: Any, ndim: int) -> list[int]:
    """The axes as numbers from 0 on; all of them for None.

    Raises
    ------
    AxisError, ValueError
        There is no such axis, or one is named twice.
    """
    if axis is None:
        return list(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = [operator.index(each) for each in given]
    for each in axes:
        if not -ndim <= each < ndim:
            raise np.exceptions.AxisError(each, ndim)
    found = [each % ndim for each in axes]
    if len(set(found)) != len(found):
        raise ValueError("duplicate value in 'axis'")
    return found


def elementwise(
    array: Chunked, function: Callable[..., np.ndarray], operands: Sequence[Any] = ()
) -> np.ndarray:
    """What an element-wise function gives, called with each chunk and its part of the operands.

    Parameters
    ----------
    operands
        Scalars, and arrays that can be broadcast to the array's shape.
    """
    shape = array.shape
    # Scalars stay as they are: NumPy takes a number of Python's for no particular dtype.
    wide = [np.broadcast_to(each, shape) if np.ndim(each) else each for each in operands]
    out: np.ndarray | None = None
    for where, part in array.iterchunks():
        found = function(part, *[each[where] if np.ndim(each) else each for each in wide])
        if out is None:
            out = np.empty(shape, found.dtype, order="F" if array.order == "F" else "C")
        out[where] = found
    if out is None:  # there is no chunk to go by
        out = np.asarray(function(np.empty(shape, array.dtype), *operands))
    return out


def reduced(
    array: Chunked,
    ufunc: np.ufunc,
    axis: Any = None,
    *,
    keepdims: bool = False,
    dtype: Any = None,
    initial: Any = NOT_GIVEN,
    where: Any = True,
) -> Any:
    """What `ufunc.reduce` gives; the parts of a sum are added up in another order than NumPy's."""
    shape = array.shape
    options: dict[str, Any] = {} if initial is NOT_GIVEN else {"initial": initial}
    if not math.prod(shape) or not shape:
        whole = _whole_of(array)
        return ufunc.reduce(
            whole, axis=axis, keepdims=keepdims, dtype=dtype, where=where, **options
        )
    axes = normal_axes(axis, len(shape))
    kept = np.broadcast_to(where, shape) if np.ndim(where) else where
    # NumPy adds float16 up in float32.
    narrow = array.dtype == np.float16 and dtype is None and ufunc in (np.add, np.multiply)
    inner = np.dtype(np.float32) if narrow else dtype
    result: np.ndarray | None = None
    seen: set[tuple[int, ...]] = set()
    for place, part in array.iterchunks():
        masked = {"where": kept[place] if np.ndim(kept) else kept} if kept is not True else {}
        spot = tuple(slice(0, 1) if at in axes else each for at, each in enumerate(place))
        first = tuple(each.start for each in spot)
        is_new = first not in seen
        if masked and "initial" not in options and ufunc.identity is None:
            raise ValueError(
                f"reduction operation '{ufunc.__name__}' does not have an identity, "
                "so to use a where mask one has to specify 'initial'"
            )
        # An initial value counts once; of what follows it is the neutral element, if need be.
        given = dict(options) if is_new or ufunc.identity is None else {}
        found = ufunc.reduce(part, axis=tuple(axes), keepdims=True, dtype=inner, **masked, **given)
        if result is None:
            result = np.empty(
                tuple(1 if at in axes else n for at, n in enumerate(shape)), found.dtype
            )
        result[spot] = found if is_new else ufunc(result[spot], found)
        seen.add(first)
    assert result is not None
    return finished(result.astype(array.dtype) if narrow else result, axes, keepdims)


def _whole_of(array: Chunked) -> np.ndarray:
    """An array of one chunk at most."""
    return next((part for _, part in array.iterchunks()), np.empty(array.shape, array.dtype))


def finished(result: np.ndarray, axes: Sequence[int], keepdims: bool) -> Any:
    """A reduction's result, in which the reduced axes have length 1, as NumPy returns it."""
    if keepdims:
        return result
    return result.reshape([n for at, n in enumerate(result.shape) if at not in axes])[()]


def mean(array: Chunked, axis: Any, dtype: Any, keepdims: bool, where: Any) -> Any:
    """The mean; floating-point numbers are added up in float64 at least."""
    if not array.shape:
        return np.mean(_whole_of(array), axis, dtype, None, keepdims, where=where)
    axes = normal_axes(axis, len(array.shape))
    count: Any = _count(array, axes, where, keepdims)
    if array.dtype.kind == "m":
        total = reduced(array, np.add, axis, keepdims=keepdims, dtype=dtype, where=where)
        with np.errstate(all="ignore"):
            return total / count
    inner, outer = _mean_dtypes(array, dtype)
    total = reduced(array, np.add, axis, keepdims=keepdims, dtype=inner, where=where)
    with np.errstate(all="ignore"):
        return np.true_divide(total, count, dtype=inner).astype(outer)[()]


def variance(
    array: Chunked, axis: Any, dtype: Any, ddof: float, keepdims: bool, where: Any, *, root: bool
) -> Any:
    """The variance, or its square root; the array is read twice."""
    if not array.shape:
        compute = np.std if root else np.var
        options = {"ddof": ddof, "keepdims": keepdims, "where": where}
        return compute(_whole_of(array), axis, dtype, **options)
    inner, outer = _mean_dtypes(array, dtype)
    axes = normal_axes(axis, len(array.shape))
    middle = np.asarray(mean(array, axis, inner, True, where))
    shape = tuple(1 if at in axes else n for at, n in enumerate(array.shape))
    total = np.zeros(shape, np.empty(0, inner).real.dtype)
    kept = np.broadcast_to(where, array.shape) if np.ndim(where) else where
    for place, part in array.iterchunks():
        spot = tuple(slice(0, 1) if at in axes else each for at, each in enumerate(place))
        apart = np.abs(part.astype(inner) - middle[spot])
        mask = kept[place] if np.ndim(kept) else kept
        total[spot] += np.sum(apart * apart, axis=tuple(axes), keepdims=True, where=mask)
    count: Any = np.maximum(_count(array, axes, where, True) - ddof, 0)
    with np.errstate(all="ignore"):
        found = total / count
        if root:
            found = np.sqrt(found)
    return finished(found.astype(np.empty(0, outer).real.dtype), axes, keepdims)


def _count(array: Chunked, axes: Sequence[int], where: Any, keepdims: bool) -> Any:
    """How many elements are reduced to one."""
    if where is True:
        return math.prod(array.shape[at] for at in axes)
    kept = np.broadcast_to(where, array.shape)
    return np.sum(kept, axis=tuple(axes), keepdims=keepdims, dtype=np.intp)


def _mean_dtypes(array: Chunked, dtype: Any) -> tuple[np.dtype, np.dtype]:
    """In which dtype a mean is computed, and in which it is returned."""
    outer = np.dtype(dtype) if dtype is not None else array.dtype.newbyteorder("=")
    if outer.kind in "biu" and dtype is None:
        outer = np.dtype(np.float64)
    return np.result_type(outer, np.complex128 if outer.kind == "c" else np.float64), outer


def extreme_index(array: Chunked, function: Callable[..., Any], axis: Any, keepdims: bool) -> Any:
    """What `np.argmax` or `np.argmin` gives: the place of the first of the extreme elements.

    Parameters
    ----------
    function
        Which of the two.
    """
    shape = array.shape
    if not math.prod(shape) or not shape:
        whole = _whole_of(array)
        return function(whole, axis=axis, keepdims=keepdims)
    if axis is None:
        # Of each chunk one candidate; NumPy chooses among them, in the order of the elements.
        places, values = [], []
        for where, part in array.iterchunks():
            at = np.unravel_index(function(part), part.shape)
            start = [int(number) + each.start for number, each in zip(at, where, strict=True)]
            places.append(int(np.ravel_multi_index(start, shape)))
            values.append(part[at])
        order = np.argsort(places)
        found = np.intp(places[order[function(np.array(values, array.dtype)[order])]])
        return np.full((1,) * len(shape), found) if keepdims else found
    (along,) = normal_axes(operator.index(axis), len(shape))
    thin = tuple(1 if at == along else n for at, n in enumerate(shape))
    indices = np.zeros(thin, np.intp)
    best = np.empty(thin, array.dtype)
    for where, part in array.iterchunks():  # along any axis the first ones come first
        spot = tuple(slice(0, 1) if at == along else each for at, each in enumerate(where))
        local = function(part, axis=along, keepdims=True)
        values_here = np.take_along_axis(part, local, along)
        if where[along].start:
            both = np.concatenate([best[spot], values_here], axis=along)
            is_later = function(both, axis=along, keepdims=True) == 1
        else:
            is_later = np.ones(local.shape, bool)
        best[spot] = np.where(is_later, values_here, best[spot])
        indices[spot] = np.where(is_later, local + where[along].start, indices[spot])
    return finished(indices, [along], keepdims)


def accumulated(array: Chunked, ufunc: np.ufunc, axis: int, dtype: Any) -> np.ndarray:
    """What `ufunc.accumulate` gives along one axis, to the last bit."""
    if not array.shape:
        return np.asarray(ufunc.accumulate(_whole_of(array).reshape(1), axis=axis, dtype=dtype))
    (along,) = normal_axes(axis, len(array.shape))
    out: np.ndarray | None = None
    for where, part in array.iterchunks():  # along any axis the first ones come first
        start = where[along].start
        if start:
            assert out is not None
            before = tuple(
                slice(start - 1, start) if at == along else each for at, each in enumerate(where)
            )
            joined = np.concatenate([out[before], part.astype(out.dtype)], axis=along)
            rest = tuple(slice(int(at == along), None) for at in range(len(where)))
            out[where] = ufunc.accumulate(joined, axis=along, dtype=dtype)[rest]
            continue
        found = ufunc.accumulate(part, axis=along, dtype=dtype)
        if out is None:
            out = np.empty(array.shape, found.dtype)
        out[where] = found
    if out is None:
        out = ufunc.accumulate(np.empty(array.shape, array.dtype), axis=along, dtype=dtype)
    return out
