"""`LazyArray`: a stored array whose parts are read when they are asked for.

It is what a get gives of a compressed or a blocked value.  A program need not know: it has every
attribute of a read-only `numpy.ndarray`, takes the same keys, and raises the same errors.  What its
two kinds have in common is here; what is computed chunk by chunk, in `chunkwise`.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from arraychest.arrays import chunkwise
from arraychest.arrays.chunkwise import NOT_GIVEN
from arraychest.arrays.ownership import frozen, nothing
from arraychest.arrays.selection import Cut, chunks_along, is_field, select
from arraychest.arrays.source import copy_of


class LazyArray(NDArrayOperatorsMixin):
    """A stored array of which a read touches only the chunks that it needs.

    It stands for a read-only `numpy.ndarray`.  ``isinstance(x, arraychest.LazyArray)`` tells the
    two apart, and `numpy.asarray`, or `Chest.load`, makes a plain array of it.

    Attributes
    ----------
    shape, dtype, ndim, size, nbytes, itemsize, strides, flags, device, base
        As the plain array's.  None of them reads anything.

    Notes
    -----
    What an operation costs:

    - An index reads the chunks that it touches.  What it gives is a plain array.
    - Element-wise functions, `astype`, `clip`, `round`, `real`, `imag`, `conj`, `cumsum`, `cumprod`
      and all reductions go chunk by chunk: `sum` of an array larger than RAM needs memory for one
      chunk.  What they give is a plain array.
    - Everything else that an ndarray has (`T`, `reshape`, `ravel`, `take`, `sort`, ...) reads the
      whole array once.  The chest keeps it in RAM, within the budget, and drops it before anything
      else; it is read again where the chest had no room for it.  Its results are read-only.
    - Functions of NumPy that are none of these get the whole array, too.

    Writing raises ValueError, as with any read-only array.  Safe from many threads.  A sum of
    floating-point numbers is added up in another order than NumPy's, and differs in its last bits.
    """

    __slots__ = (
        "__weakref__", "_cuts", "_dtype", "_keeper", "_likeness", "_shape", "_whole_array",
    )  # fmt: skip
    # In messages: what it is, and what a writer may do in place of writing.
    _what: ClassVar = "a stored one"
    _instead: ClassVar = ""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], cuts: tuple[Cut, ...]) -> None:
        self._dtype = dtype
        self._shape = shape
        self._cuts = cuts
        # An array of this shape, of one byte.
        self._likeness = np.broadcast_to(np.zeros((), np.uint8), shape)
        self._whole_array: Callable[[], np.ndarray | None] = nothing
        self._keeper: Callable[[np.ndarray], object] | None = None

    # --- what needs no data ------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return self._shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the elements."""
        return self._dtype

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
        return len(self._shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self._shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array in RAM."""
        return self.size * self._dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next along each dimension, in the plain array."""
        sizes = self._shape if self.order == "F" else self._shape[::-1]
        steps = itertools.accumulate(
            (max(n, 1) for n in sizes[:-1]), operator.mul, initial=self.itemsize
        )
        strides = tuple(steps)[: len(sizes)]
        return strides if self.order == "F" else strides[::-1]

    @property
    def flags(self) -> Any:
        """The flags of the plain array, which is read-only."""
        # Contiguity depends on which dimensions are longer than one element, not on how long.
        short = [min(n, 2) for n in self._shape]
        return np.ndarray(short, np.uint8, bytes(math.prod(short)), order=self.order).flags

    @property
    def device(self) -> str:
        """Where it is, as NumPy says it of every array."""
        return "cpu"

    @property
    def base(self) -> None:
        """None: it is no view of another array."""

    def __len__(self) -> int:
        """Size of the first dimension."""
        if not self._shape:
            raise TypeError("len() of unsized object")
        return self._shape[0]

    # --- the whole array ---------------------------------------------------------------------

    def _whole(self) -> np.ndarray:
        """The array, read-only for good; it is read once as long as anybody holds it."""
        found = self._whole_array()
        if found is None:
            found = self.__array__()
            self.hold(found)
            if self._keeper is not None:
                self._keeper(found)
        return found

    def hold(self, whole: np.ndarray) -> None:
        """Take an array as the whole of this one, as long as anybody else holds it.

        Parameters
        ----------
        whole
            The same elements; it becomes read-only.
        """
        self._whole_array = frozen(whole)

    def kept_by(self, keeper: Callable[[np.ndarray], object]) -> None:
        """Have `keeper` called with the whole array when it is read.

        Whoever holds it then spares the next operation that needs all of it a second reading.
        """
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        """Whatever else an ndarray has, of the whole array.

        Raises
        ------
        AttributeError
            An ndarray has no such attribute either.
        """
        # Not what begins with an underscore: NumPy, pickle and others ask for such protocols, and
        # would read the whole array to find out what it can do.
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._whole(), name)

    def __dir__(self) -> list[str]:
        """Its own names and those of an ndarray."""
        public = (name for name in dir(np.ndarray) if not name.startswith("_"))
        return sorted({*super().__dir__(), *public})

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
        where = tuple(slice(0, n) for n in self._shape)
        whole = self._read(where) if self.size else np.empty(self._shape, self._dtype)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __array_namespace__(self, *, api_version: Any = None) -> Any:
        """NumPy, as an ndarray's."""
        return np.empty(0).__array_namespace__(api_version=api_version)

    def __dlpack__(self, **options: Any) -> Any:
        """The array, read whole: a new one, which whoever takes it may write to."""
        return np.array(self).__dlpack__(**options)

    def __bytes__(self) -> bytes:
        """The array's bytes, read whole, as an ndarray gives them."""
        return bytes(np.asarray(self))

    def __dlpack_device__(self) -> tuple[Any, int]:
        """The CPU, as an ndarray's."""
        return np.empty(0).__dlpack_device__()

    def __bool__(self) -> bool:
        """As an array: of one element only."""
        return bool(self._few())

    def __int__(self) -> int:
        """The only element."""
        return int(self._few())

    def __float__(self) -> float:
        """The only element."""
        return float(self._few())

    def __complex__(self) -> complex:
        """The only element."""
        return complex(self._few())

    def __index__(self) -> int:
        """The only element of an array of integers without a dimension."""
        return operator.index(self._few())

    def _few(self) -> Any:
        """The whole array if it is one element, else something that is refused as it would be."""
        if self.size <= 1:
            return self._whole()
        return np.broadcast_to(np.zeros((), self._dtype), self._shape)

    def __str__(self) -> str:
        """As the plain array is printed; only what is shown is read."""
        return repr(self)

    def copy(self, order: Literal["C", "F", "A", "K"] = "C") -> Any:
        """The array, read whole: the caller's own.

        `dask.array.from_array` gets what reads it block by block: see `Source`.
        """
        return copy_of(self, order)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> np.ndarray:
        """As `copy.copy` and `copy.deepcopy` of an array: a new one, the caller's own."""
        return np.asarray(self.copy("K"))

    __copy__ = __deepcopy__

    def item(self, *index: Any) -> Any:
        """One element as a number of Python's; only its chunk is read."""
        if len(index) == 1 and isinstance(index[0], tuple):
            (index,) = index
        if not index and self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        if not index:
            index = (0,) * self.ndim
        elif len(index) == 1 and self.ndim != 1:
            (flat,) = map(operator.index, index)
            if not -self.size <= flat < self.size:
                raise IndexError(f"index {flat} is out of bounds for size {self.size}")
            index = np.unravel_index(flat % self.size, self._shape)
        elif len(index) != self.ndim:
            raise ValueError("incorrect number of indices for array")
        return self[tuple(map(operator.index, index))].item()

    # --- writing -----------------------------------------------------------------------------

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"{what} is read-only: expected an array that can be written to, found {self._what}; "
            f"{self._instead}np.array(value) gives a copy"
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        """Refused: a stored value is immutable, as a mapped one is read-only.

        Raises
        ------
        ValueError
            Always.
        """
        raise self._refusal("assignment destination")

    def __delitem__(self, key: Any) -> None:
        """Refused, as with any array.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("cannot delete array elements")

    # --- reading -----------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """A part of the array, by NumPy's rules; an element where each dimension has a number.

        Raises
        ------
        IndexError
            As NumPy's.
        """
        if self._dtype.names is not None and is_field(key):
            return self._field(key)
        parts = key if isinstance(key, tuple) else (key,)
        return select(self._read, self._likeness, self._dtype, self._cuts, parts)

    def _field(self, name: str | list[str]) -> np.ndarray:
        """A field of a structured array, chunk by chunk, or several."""
        if isinstance(name, list):
            return self._whole()[name]
        dtype = np.empty(0, self._dtype)[name].dtype  # NumPy says what is wrong with the name
        fields = self._dtype.fields
        assert fields is not None
        shape = fields[name][0].shape
        out = np.empty(self._shape + shape, dtype)
        for where, part in self.iterchunks():
            out[where] = part[name]
        out.flags.writeable = False
        return out

    def __contains__(self, value: Any) -> bool:
        """Whether any element equals a value; stops at the first chunk that has one."""
        if np.ndim(value):
            return value in self._whole()
        return any(value in part for _, part in self.iterchunks())

    def __iter__(self) -> Iterator[Any]:
        """Parts along the first dimension; a row of chunks is read at a time."""
        if not self._shape:
            raise TypeError("iteration over a 0-d array")
        return self._rows()

    def _rows(self) -> Iterator[Any]:
        for part in chunks_along(self._cuts[0], len(self)) if len(self) else ():
            yield from self[part]

    def iterchunks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """Each chunk: where it lies in the array, and its elements.

        Along each dimension the first chunks come first.
        """
        sides = zip(self._cuts, self._shape, strict=True)
        for where in itertools.product(*[chunks_along(cut, n) for cut, n in sides]):
            yield where, self._read(where)

    # --- NumPy's protocols -------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Element-wise with plain operands, and reductions, chunk by chunk; the rest whole.

        Raises
        ------
        ValueError
            It is what the result should be written to, which is read-only.
        """
        written = inputs[:1] if method == "at" else kwargs.get("out") or ()
        for each in written:
            if isinstance(each, LazyArray):
                raise each._refusal("output array")
        if method == "reduce" and len(inputs) == 1 and ufunc in chunkwise.REDUCIBLE:
            options = {"axis": 0, **kwargs}
            if (
                options.pop("out", (None,)) == (None,)
                and set(options) <= {"axis", "keepdims", "dtype", "initial", "where"}
                and not isinstance(options.get("where"), LazyArray)
            ):
                return chunkwise.reduced(self, ufunc, **options)
        if (
            method == "accumulate"
            and len(inputs) == 1
            and set(kwargs) <= {"axis", "dtype"}
            and self.ndim
        ):
            return chunkwise.accumulated(self, ufunc, kwargs.get("axis", 0), kwargs.get("dtype"))
        if method == "__call__" and not kwargs and ufunc.nout == 1 and ufunc.signature is None:
            others = [each for each in inputs if each is not self]
            if (
                not any(isinstance(each, LazyArray) for each in others)
                and np.broadcast_shapes(self._shape, *map(np.shape, others)) == self._shape
                and self._shape
            ):
                mine = [each is self for each in inputs]

                def called(part: np.ndarray, *rest: Any) -> np.ndarray:
                    given = iter(rest)
                    found = ufunc(*[part if own else next(given) for own in mine])
                    return np.asarray(found)

                return chunkwise.elementwise(self, called, others)
        return getattr(ufunc, method)(*_plain(inputs), **_plain(kwargs))

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """What has a method here, by that; everything else on the whole array, read-only."""
        name = _METHODS.get(function)
        if name is not None and args and args[0] is self:
            try:
                return getattr(self, name)(*args[1:], **kwargs)
            except TypeError:
                pass  # NumPy says what is wrong with the arguments
        return function(*_plain(args), **_plain(kwargs))

    def __eq__(self, other: object) -> Any:
        """Element by element, as NumPy compares."""
        return self._compared(other, operator.eq)

    def __ne__(self, other: object) -> Any:
        """Element by element, as NumPy compares."""
        return self._compared(other, operator.ne)

    __hash__ = None  # type: ignore[assignment]  # as an array's

    def _compared(self, other: Any, compare: Callable[[Any, Any], Any]) -> Any:
        # No ufunc compares structured elements, or numbers with texts: ndarray itself does.
        kinds = "biufc", "m", "M"
        dtype = getattr(other, "dtype", None)
        if isinstance(other, bool | int | float | complex) or isinstance(dtype, np.dtype):
            theirs = dtype.kind if isinstance(dtype, np.dtype) else "f"
            if any(self._dtype.kind in each and theirs in each for each in kinds):
                ufunc = np.equal if compare is operator.eq else np.not_equal
                return ufunc(self, other)
        return compare(self._whole(), _plain(other))

    # --- computing chunk by chunk --------------------------------------------------------------

    def sum(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False,
        initial: Any = NOT_GIVEN, where: Any = True,
    ) -> Any:  # fmt: skip
        """The sum along some dimensions, or of all elements."""
        return self._reduced(np.add, axis, dtype, out, keepdims, initial, where)

    def prod(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False,
        initial: Any = NOT_GIVEN, where: Any = True,
    ) -> Any:  # fmt: skip
        """The product along some dimensions, or of all elements."""
        return self._reduced(np.multiply, axis, dtype, out, keepdims, initial, where)

    def min(
        self, axis: Any = None, out: Any = None, keepdims: bool = False,
        initial: Any = NOT_GIVEN, where: Any = True,
    ) -> Any:  # fmt: skip
        """The least element along some dimensions, or of all; NaN where there is one."""
        return self._reduced(np.minimum, axis, None, out, keepdims, initial, where)

    def max(
        self, axis: Any = None, out: Any = None, keepdims: bool = False,
        initial: Any = NOT_GIVEN, where: Any = True,
    ) -> Any:  # fmt: skip
        """The greatest element along some dimensions, or of all; NaN where there is one."""
        return self._reduced(np.maximum, axis, None, out, keepdims, initial, where)

    def any(
        self, axis: Any = None, out: Any = None, keepdims: bool = False, *, where: Any = True
    ) -> Any:
        """Whether any element is true, along some dimensions or of all."""
        return self._reduced(np.logical_or, axis, None, out, keepdims, NOT_GIVEN, where)

    def all(
        self, axis: Any = None, out: Any = None, keepdims: bool = False, *, where: Any = True
    ) -> Any:
        """Whether all elements are true, along some dimensions or of all."""
        return self._reduced(np.logical_and, axis, None, out, keepdims, NOT_GIVEN, where)

    def _reduced(
        self, ufunc: np.ufunc, axis: Any, dtype: Any, out: Any, keepdims: Any, initial: Any,
        where: Any,
    ) -> Any:  # fmt: skip
        found = chunkwise.reduced(
            self, ufunc, axis, keepdims=_is_true(keepdims), dtype=dtype, initial=initial,
            where=True if where is NOT_GIVEN else _plain(where),
        )  # fmt: skip
        return _written(found, out)

    def mean(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False, *,
        where: Any = True,
    ) -> Any:  # fmt: skip
        """The mean along some dimensions, or of all elements; added up in float64."""
        where = True if where is NOT_GIVEN else _plain(where)
        if self._dtype.kind not in "biufcm":
            return np.mean(self._whole(), axis, dtype, out, _is_true(keepdims), where=where)
        found = chunkwise.mean(self, axis, dtype, _is_true(keepdims), where)
        return _written(found, out, "unsafe")  # as NumPy's

    def var(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0,
        keepdims: bool = False, *, where: Any = True,
    ) -> Any:  # fmt: skip
        """The variance along some dimensions, or of all elements; it is read twice."""
        return self._spread(axis, dtype, out, ddof, keepdims, where, root=False)

    def std(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0,
        keepdims: bool = False, *, where: Any = True,
    ) -> Any:  # fmt: skip
        """The standard deviation along some dimensions, or of all elements; it is read twice."""
        return self._spread(axis, dtype, out, ddof, keepdims, where, root=True)

    def _spread(
        self, axis: Any, dtype: Any, out: Any, ddof: float, keepdims: Any, where: Any, *,
        root: bool,
    ) -> Any:  # fmt: skip
        where = True if where is NOT_GIVEN else _plain(where)
        if self._dtype.kind not in "biufc":
            name = "std" if root else "var"
            whole = getattr(self._whole(), name)
            return whole(axis, dtype, out, ddof, _is_true(keepdims), where=where)
        found = chunkwise.variance(self, axis, dtype, ddof, _is_true(keepdims), where, root=root)
        return _written(found, out, "same_kind" if root else "unsafe")

    def argmax(self, axis: Any = None, out: Any = None, *, keepdims: bool = False) -> Any:
        """Where the greatest element is, along one dimension or among all: the first of them."""
        found = chunkwise.extreme_index(self, np.argmax, axis, _is_true(keepdims))
        return _written(found, out)

    def argmin(self, axis: Any = None, out: Any = None, *, keepdims: bool = False) -> Any:
        """Where the least element is, along one dimension or among all: the first of them."""
        found = chunkwise.extreme_index(self, np.argmin, axis, _is_true(keepdims))
        return _written(found, out)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        """The running sum along one dimension, or over all elements."""
        if axis is None and self.ndim != 1:
            return self._whole().cumsum(None, dtype, out)
        return _written(chunkwise.accumulated(self, np.add, axis or 0, dtype), out)

    def cumprod(self, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        """The running product along one dimension, or over all elements."""
        if axis is None and self.ndim != 1:
            return self._whole().cumprod(None, dtype, out)
        return _written(chunkwise.accumulated(self, np.multiply, axis or 0, dtype), out)

    def clip(self, min: Any = None, max: Any = None, out: Any = None, **options: Any) -> Any:  # noqa: A002
        """The elements, none below `min` or above `max`."""
        bounds = [_plain(min), _plain(max)]
        if options or np.broadcast_shapes(self._shape, *map(np.shape, bounds)) != self._shape:
            return self._whole().clip(bounds[0], bounds[1], out, **options)

        def clipped(part: np.ndarray, low: Any, high: Any) -> np.ndarray:
            return part.clip(low, high)

        return _written(chunkwise.elementwise(self, clipped, bounds), out)

    def round(self, decimals: int = 0, out: Any = None) -> Any:
        """The elements, rounded to so many decimals."""
        return _written(chunkwise.elementwise(self, lambda part: part.round(decimals)), out)

    def conj(self) -> Any:
        """The complex conjugate of each element; itself, if it is not complex."""
        if self._dtype.kind == "c":
            return chunkwise.elementwise(self, np.conjugate)
        return self if self._dtype.kind in "biuf" else self._whole().conj()

    conjugate = conj

    @property
    def real(self) -> Any:
        """The real part of each element; itself, if it is not complex."""
        if self._dtype.kind != "c":
            return self
        found = chunkwise.elementwise(self, lambda part: part.real)
        found.flags.writeable = False
        return found

    @property
    def imag(self) -> Any:
        """The imaginary part of each element."""
        found = chunkwise.elementwise(self, lambda part: part.imag)
        found.flags.writeable = False
        return found

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: bool = True,
        copy: bool = True,
    ) -> Any:  # fmt: skip
        """A plain array of another dtype, converted chunk by chunk.

        Raises
        ------
        TypeError
            `casting` does not allow it.
        """
        wanted = np.dtype(dtype)
        if not copy and wanted == self._dtype and order in ("K", "A", self.order):
            return self
        empty = np.empty([0] * max(self.ndim, 1), self._dtype)
        wanted = empty.astype(wanted, casting=casting, subok=subok).dtype
        laid_out = self.order if order in ("K", "A") else order
        out = np.empty(self._shape, wanted, order=laid_out)
        for where, part in self.iterchunks():
            out[where] = part.astype(wanted, casting=casting)
        return out

    def setflags(self, write: Any = None, align: Any = None, uic: Any = None) -> None:  # noqa: ARG002
        """As an array's that is read-only for good.

        Raises
        ------
        ValueError
            It should become writable.
        """
        if write:
            raise ValueError("cannot set WRITEABLE flag to True of this array")


_METHODS: dict[Callable[..., Any], str] = {
    np.sum: "sum", np.prod: "prod", np.min: "min", np.max: "max", np.amin: "min", np.amax: "max",
    np.any: "any", np.all: "all", np.mean: "mean", np.var: "var", np.std: "std",
    np.argmax: "argmax", np.argmin: "argmin", np.cumsum: "cumsum", np.cumprod: "cumprod",
    np.clip: "clip", np.round: "round", np.around: "round",
}  # fmt: skip


def _is_true(keepdims: Any) -> bool:
    return keepdims is not NOT_GIVEN and bool(keepdims)


def _written(found: Any, out: Any, casting: Any = "same_kind") -> Any:
    """A result, written where the caller wants it."""
    if out is None or out is NOT_GIVEN:
        return found
    if isinstance(out, tuple):
        (out,) = out
    if isinstance(out, LazyArray):
        raise out._refusal("output array")
    if np.shape(out) != np.shape(found):
        raise ValueError(
            f"expected an output array of shape {np.shape(found)}, found {np.shape(out)}"
        )
    np.copyto(out, found, casting=casting)
    return out


def _plain(given: Any) -> Any:
    """The same arguments, whole arrays in the place of lazy ones."""
    if isinstance(given, LazyArray):
        return given._whole()
    if type(given) in (list, tuple):
        return type(given)(_plain(each) for each in given)
    if type(given) is dict:
        return {key: _plain(value) for key, value in given.items()}
    return given
