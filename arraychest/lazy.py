"""`LazyArray`: a stored array whose parts are read when they are asked for.

What its kinds have in common: NumPy's indexing, and computing chunk by chunk.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

# How a dimension is cut: into chunks of one size but for the last, or of these sizes.
Cut: TypeAlias = int | tuple[int, ...]


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
        return _select(self._read, self._likeness, self.dtype, self._cuts, key)

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
        for part in _parts(self._cuts[0], len(self)) if len(self) else ():
            yield from self[part]

    def iterchunks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """Each chunk: where it lies in the array, and its elements."""
        for where in self._places():
            yield where, self._read(where)

    def _places(self) -> Iterator[tuple[slice, ...]]:
        return itertools.product(
            *[_parts(cut, n) for cut, n in zip(self._cuts, self.shape, strict=True)]
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


# --- NumPy's rules of indexing ------------------------------------------------------------------

Read = Callable[[tuple[slice, ...]], np.ndarray]


class _Points(NamedTuple):
    """Numbers along one dimension that an array of integers asks for."""

    dimension: int
    numbers: np.ndarray


class _Span(NamedTuple):
    """What a slice, or one number, asks for along one dimension: upwards from `start`."""

    start: int
    stop: int
    step: int
    backwards: bool

    @property
    def length(self) -> int:
        return len(range(self.start, self.stop, self.step))


def _span(part: Any, n: int) -> _Span:
    if not isinstance(part, slice):
        number = operator.index(part) % n
        return _Span(number, number + 1, 1, False)
    start, stop, step = part.indices(n)
    count = len(range(start, stop, step))
    if not count:
        return _Span(0, 0, 1, False)
    first, last = sorted((start, start + (count - 1) * step))
    return _Span(first, last + 1, abs(step), step < 0)


def _select(read: Read, like: np.ndarray, dtype: np.dtype, cuts: tuple[Cut, ...], key: Any) -> Any:
    shape = like.shape
    parts = list(key) if isinstance(key, tuple) else [key]
    parts = [_indices(each) if isinstance(each, list | LazyArray) else each for each in parts]
    # NumPy itself says what is wrong with a key, what shape comes of it, and whether an element.
    likeness = like[tuple(parts)]
    if any(_is_array(each) for each in parts):
        found = np.empty(likeness.shape, dtype)
        if found.size:
            found[...] = _gathered(read, dtype, shape, cuts, parts)
    else:
        whole = [
            each for each in _expanded(parts, len(shape)) if not (each is None or each is Ellipsis)
        ]
        spans = [_span(each, n) for each, n in zip(whole, shape, strict=True)]
        found = _read_spans(read, dtype, cuts, spans).reshape(likeness.shape)
    return found if isinstance(likeness, np.ndarray) else found[()]


def _indices(given: Any) -> np.ndarray:
    """A list as NumPy takes it that stands in a key; an empty one is no list of floats."""
    found = np.asarray(given)
    return found if found.size or not isinstance(given, list) else found.astype(np.intp)


def _read_spans(
    read: Read, dtype: np.dtype, cuts: tuple[Cut, ...], spans: list[_Span]
) -> np.ndarray:
    """What these spans ask for; every dimension is kept."""
    turned = tuple(slice(None, None, -1) if each.backwards else slice(None) for each in spans)
    if not all(each.length for each in spans):
        return np.empty([each.length for each in spans], dtype)
    if all(each.step == 1 for each in spans):
        # With an ellipsis, an array remains one that has no dimension.
        return read(tuple(slice(each.start, each.stop) for each in spans))[(*turned, ...)]
    # Chunk by chunk: of a large box only what is asked for is kept, or read.
    out = np.empty([each.length for each in spans], dtype)
    for group in itertools.product(*map(_by_chunks, spans, cuts)):
        part = read(tuple(slice(first, last + 1) for _, _, first, last in group))
        taken = part[tuple(slice(None, None, each.step) for each in spans)]
        out[tuple(slice(start, stop) for start, stop, _, _ in group)] = taken
    return out[turned]


def _parts(cut: Cut, n: int) -> list[slice]:
    """Where the chunks lie of a dimension of size `n`."""
    if isinstance(cut, int):
        return [slice(at, min(at + cut, n)) for at in range(0, n, cut)]
    ends = list(itertools.accumulate(cut))
    return [slice(end - size, end) for size, end in zip(cut, ends, strict=True) if size]


def _chunk_of(numbers: np.ndarray, cut: Cut) -> np.ndarray:
    """In which chunks of a dimension these places lie."""
    if isinstance(cut, int):
        return numbers // cut
    return np.searchsorted(np.cumsum(cut), numbers, side="right")


def _by_chunks(span: _Span, cut: Cut) -> list[tuple[int, int, int, int]]:
    """A span by the chunks it touches: from which to which of its elements, and where they lie."""
    numbers = np.arange(span.start, span.stop, span.step)
    cuts = [0, *(np.flatnonzero(np.diff(_chunk_of(numbers, cut))) + 1).tolist(), len(numbers)]
    return [
        (start, stop, int(numbers[start]), int(numbers[stop - 1]))
        for start, stop in itertools.pairwise(cuts)
    ]


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray | bool | np.bool_)


def _expanded(parts: list[Any], ndim: int) -> list[Any]:
    """The same key with a slice for every dimension; an ellipsis stays where it stands for none."""
    taken = sum(
        part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1
        for part in parts
        if part is not None and part is not Ellipsis and not isinstance(part, bool | np.bool_)
    )
    full: list[Any] = [slice(None)] * (ndim - taken) or [Ellipsis]
    at = next((at for at, part in enumerate(parts) if part is Ellipsis), len(parts))
    return [*parts[:at], *full, *parts[at + 1 :]]


def _gathered(
    read: Read,
    dtype: np.dtype,
    shape: tuple[int, ...],
    cuts: tuple[Cut, ...],
    parts: list[Any],
) -> np.ndarray:
    """What a key with arrays of integers or booleans asks for, which is not nothing."""
    points: list[_Points] = []
    # Where in the key arrays and numbers stand, and what the other parts ask for.
    stands: list[int] = []
    spans: dict[int, _Span] = {}
    lengths: list[int] = []
    together: list[tuple[int, ...]] = []
    dimension = before = 0
    for at, part in enumerate(_expanded(parts, len(shape))):
        if part is Ellipsis:
            continue  # it only comes between what stands beside it
        if part is None:
            lengths.append(1)
            continue
        if isinstance(part, slice):
            spans[dimension] = _span(part, shape[dimension])
            lengths.append(spans[dimension].length)
            dimension += 1
            continue
        before = before if stands else len(lengths)
        stands.append(at)
        if _is_truth(part):  # true, or there would be nothing to return
            together.append((1,))
        else:
            for numbers in part.nonzero() if _is_mask(part) else (np.asarray(part),):
                n = shape[dimension]
                points.append(_Points(dimension, np.where(numbers < 0, numbers + n, numbers)))
                dimension += 1
    outer = np.broadcast_shapes(*together, *[each.numbers.shape for each in points])
    flat = [np.broadcast_to(each.numbers, outer).reshape(-1) for each in points]
    count = math.prod(outer)
    order = [each.dimension for each in points] + list(spans)
    # First all points, then what the slices ask for.
    gathered = np.empty([count, *[each.length for each in spans.values()]], dtype)
    for chosen in _cells(flat, [cuts[each.dimension] for each in points], count):
        wanted = dict(spans)
        local = []
        for each, numbers in zip(points, flat, strict=True):
            mine = numbers[chosen]
            first = int(mine.min())
            wanted[each.dimension] = _Span(first, int(mine.max()) + 1, 1, False)
            local.append(mine - first)
        box = _read_spans(read, dtype, cuts, [wanted[at] for at in range(len(shape))])
        gathered[chosen] = box.transpose(order)[tuple(local)]
    # Where the arrays stand together, they are replaced; otherwise what they ask for comes first.
    adjacent = stands[-1] - stands[0] + 1 == len(stands)
    first = before if adjacent else 0
    width = len(outer)
    found = gathered.reshape([*outer, *lengths])
    return np.moveaxis(found, list(range(width)), list(range(first, first + width)))


def _cells(flat: list[np.ndarray], cuts: list[Cut], count: int) -> list[np.ndarray]:
    """Which of the points lie in one chunk each."""
    if not flat:
        return [np.arange(count)]
    cells = np.stack([_chunk_of(numbers, cut) for numbers, cut in zip(flat, cuts, strict=True)])
    order = np.lexsort(cells)
    ends = np.flatnonzero((np.diff(cells[:, order]) != 0).any(axis=0)) + 1
    return np.split(order, ends)


def _is_mask(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype == bool


def _is_truth(part: Any) -> bool:
    return isinstance(part, bool | np.bool_) or (_is_mask(part) and part.ndim == 0)
