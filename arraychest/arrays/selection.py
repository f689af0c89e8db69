"""NumPy's indexing of an array that is read chunk by chunk: what to read, and what of it."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# How a dimension is cut: into chunks of one size but for the last, or of these sizes.
Cut: TypeAlias = int | tuple[int, ...]

# Reads a part of the array.
Read: TypeAlias = Callable[[tuple[slice, ...]], np.ndarray]


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


def select(
    read: Read, like: np.ndarray, dtype: np.dtype, cuts: tuple[Cut, ...], key: tuple[Any, ...]
) -> Any:
    """What a key asks for, by NumPy's rules: a new array, or an element.

    Parameters
    ----------
    read
        Gives a part of the array, all of whose steps are 1.
    like
        An array of the same shape, which costs nothing.
    cuts
        How each dimension is cut into chunks, none of which is read twice.

    Raises
    ------
    IndexError
        As NumPy's.
    """
    shape = like.shape
    parts = [_index(each) for each in key]
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


def is_field(key: Any) -> bool:
    """Whether a key names a field of a structured array, or a list of fields."""
    if isinstance(key, str):
        return True
    return isinstance(key, list) and bool(key) and all(isinstance(each, str) for each in key)


def _index(part: Any) -> Any:
    """A part of a key as one of few kinds: None, an ellipsis, a slice, a number or an array."""
    if isinstance(part, np.integer):
        return int(part)
    if not isinstance(part, np.ndarray):
        if not hasattr(part, "__array__") and not isinstance(part, list | tuple | range):
            try:
                return operator.index(part) if not isinstance(part, bool) else part
            except TypeError:
                return part  # None, an ellipsis, a slice, or what NumPy refuses
        if isinstance(part, np.generic):
            return part
        found = np.asarray(part)
        # An empty list is no list of floats.
        part = found if found.size or hasattr(part, "__array__") else found.astype(np.intp)
    # Not in a narrower dtype: numbers are added to it.
    return part.astype(np.intp) if part.dtype.kind in "iu" else part


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


def chunks_along(cut: Cut, n: int) -> list[slice]:
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
