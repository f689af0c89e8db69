"""Arrays on their way from one place to the other, a part at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from arraychest.errors import CorruptEntryError, PickleRefusedError
from arraychest.exchange.records import Encoding
from arraychest.formats.form import Form
from arraychest.progress import Meter

# What is moved at a time of an array that has no chunks of its own.
PART_BYTES = 4 << 20

Box = tuple[slice, ...]
T = TypeVar("T")


class Writer(Protocol):
    """A file or folder that is being written."""

    def put(
        self, name: str, form: Form, value: Any, meter: Meter, compression: str | None = None
    ) -> Encoding:
        """Write an array: one of NumPy's, or anything with shape, dtype, chunks and items.

        Parameters
        ----------
        compression
            The codec that the chest compresses it with; None: with none; ``"auto"``: the format's
            own default.
        """

    def set_attributes(self, name: str, attributes: dict[Any, Any]) -> None:
        """Give an array attributes as far as the format has any: for others than chests."""

    def describe(self, name: str, attributes: dict[str, Any]) -> None:
        """Write a dict of scalars and str as the attributes of a group, as `set_attributes`."""

    def finish(self, index: bytes) -> None:
        """Write the index, and close the file."""

    def close(self) -> None:
        """Close what was not finished."""


class Found:
    """An array in a file.

    Attributes
    ----------
    dtype, shape, order
        As the file says.
    fill
        Reads all of it into an array of this shape, contiguous in this order, part by part.
    whole
        Reads a value that is no such array; `fill` is of no use then.
    """

    def __init__(
        self,
        dtype: np.dtype,
        shape: tuple[int, ...],
        order: Literal["C", "F"],
        fill: Callable[[np.ndarray, Meter], None],
        whole: Callable[[], Any] | None = None,
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.order = order
        self.fill = fill
        self.whole = whole

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Reader(Protocol):
    """A file or folder of arrays that anybody may have written.

    Attributes
    ----------
    skipped
        Names of what is not read, such as links.
    """

    skipped: list[str]

    def index(self) -> bytes | None:
        """The index, if an export wrote the file."""

    def names(self) -> list[str]:
        """The names of all arrays but the index."""

    def array(self, name: str) -> Found:
        """An array; raises CorruptEntryError if there is none, or it cannot be read."""

    def attributes(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Names of arrays and groups that have attributes, these, and what cannot be kept."""

    def close(self) -> None:
        """Close the file."""


def order_of(value: Any) -> Literal["C", "F"]:
    """In which order the elements of an array come best."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        return "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    return "F" if getattr(value, "order", "C") == "F" else "C"


def boxes(
    shape: tuple[int, ...],
    itemsize: int,
    chunks: tuple[int, ...] | None = None,
    order: Literal["C", "F"] = "C",
    most: int = PART_BYTES,
) -> Iterator[Box]:
    """Cut an array into parts: its chunks, or some of at most so many bytes."""
    sides = chunks or box_shape(shape, itemsize, order, most)
    return itertools.product(
        *[
            [slice(at, min(at + side, n)) for at in range(0, n, max(side, 1))]
            for n, side in zip(shape, sides, strict=True)
        ]
    )


def box_shape(
    shape: tuple[int, ...], itemsize: int, order: Literal["C", "F"] = "C", most: int = PART_BYTES
) -> tuple[int, ...]:
    """A part of at most so many bytes that lies together in memory; no side is 0."""
    sides = [max(n, 1) for n in shape]
    for at in range(len(sides)) if order == "C" else reversed(range(len(sides))):
        nbytes = math.prod(sides) * max(itemsize, 1)
        if nbytes > most:
            sides[at] = max(1, sides[at] * most // nbytes)
    return tuple(sides)


def chunks_of(value: Any) -> tuple[int, ...] | None:
    """The shape of what is best read at a time of an array; None: any part is as good."""
    if isinstance(value, np.ndarray):
        return None
    chunks = getattr(value, "chunks", None)
    if chunks and all(isinstance(side, int) for side in chunks):
        return tuple(max(side, 1) for side in chunks)
    return None


def runs(value: Any, order: Literal["C", "F"]) -> Iterator[memoryview]:
    """All bytes of an array in an order, some at a time.

    Of an array that is not in memory as many rows, or columns, as fit into `PART_BYTES`, and at
    least one.
    """
    if not math.prod(value.shape) or not value.dtype.itemsize:
        return
    if isinstance(value, np.ndarray) and value.flags["C" if order == "C" else "F"]:
        flat = flat_bytes(value, order)
        for at in range(0, len(flat), PART_BYTES):
            yield flat[at : at + PART_BYTES].data
        return
    shape = value.shape
    row = math.prod(shape) * value.dtype.itemsize // shape[0 if order == "C" else -1]
    step = max(1, PART_BYTES // row)
    for at in range(0, shape[0 if order == "C" else -1], step):
        where = slice(at, at + step)
        part = np.asarray(value[where] if order == "C" else value[..., where])
        yield flat_bytes(np.require(part, requirements=order), order).data


def flat_bytes(array: np.ndarray, order: Literal["C", "F"]) -> np.ndarray:
    """The bytes of an array that is contiguous in this order; no copy."""
    if not array.nbytes:
        return np.empty(0, np.uint8)
    turned = array if order == "C" else array.T
    return turned.reshape(-1).view(np.uint8)


def as_stored(array: np.ndarray, form: Form, encoding: Encoding) -> np.ndarray:
    """An array, contiguous as its form says, as it lies in a file; no copy."""
    if encoding == "raw":
        return flat_bytes(array, form.order)
    return array.view(integer_of(form.dtype)) if encoding == "int64" else array


def integer_of(dtype: np.dtype) -> np.dtype:
    """Whole numbers of the byte order of times."""
    return np.dtype(np.int64).newbyteorder(dtype.byteorder)


def is_plain_number(dtype: np.dtype) -> bool:
    """Whether every format holds elements of a dtype: truth values, and numbers of IEEE 754."""
    return dtype.kind in "biufc" and dtype.char not in "gG"


def write_boxes(
    target: Any, value: Any, form: Form, encoding: Encoding, chunks: Any, meter: Meter
) -> None:
    """Write an array to something that takes parts of it.

    Parameters
    ----------
    target
        Has the shape and dtype that the encoding says.
    chunks
        Those of the target, in which it is best written; None: it does not matter.
    """
    if encoding == "raw":
        at = 0
        for run in runs(value, form.order):
            target[at : at + len(run)] = np.frombuffer(run, np.uint8)
            at += len(run)
            meter.add(len(run))
        return
    itemsize = form.dtype.itemsize
    for box in boxes(form.shape, itemsize, chunks or chunks_of(value), form.order):
        part = np.asarray(value[box])
        if encoding == "int64":
            part = part.view(integer_of(form.dtype))
        target[box] = part
        meter.add(part.nbytes)


def read_boxes(source: Any, out: np.ndarray, chunks: tuple[int, ...] | None, meter: Meter) -> None:
    """Read something that gives parts of itself into an array."""
    for box in boxes(out.shape, out.dtype.itemsize, chunks):
        out[box] = source[box]
        meter.add(out[box].nbytes)


def refuse_objects(dtype: np.dtype, name: str) -> None:
    """Raise PickleRefusedError for an array of Python objects."""
    if dtype.hasobject and dtype.kind != "T":
        raise PickleRefusedError(
            f"expected an array without Python objects, found {name!r:.200} of dtype {dtype}: "
            "reading it would run code"
        )


def check_fits(found: Found, form: Form, encoding: Encoding, name: str) -> None:
    """Raise CorruptEntryError where an array is not what the index says of it."""
    shape, dtype = form.shape, form.dtype
    if encoding == "raw":
        shape, dtype = (form.nbytes,), np.dtype(np.uint8)
    elif encoding == "int64":
        dtype = integer_of(dtype)
    if found.shape != shape or (found.dtype.kind, found.dtype.itemsize) != (
        dtype.kind,
        dtype.itemsize,
    ):
        raise CorruptEntryError(
            f"expected shape {shape} and dtype {dtype} for {name!r:.200}, found {found.shape} and "
            f"{found.dtype}"
        )


def no_array(*_: Any) -> None:
    """What fills an array of what is none: it cannot be."""
    raise CorruptEntryError("expected an array, found something else")


def plain_dtype(dtype: np.dtype) -> np.dtype:
    """A dtype as NumPy itself makes it, without the metadata of h5py, or Zarr's spelling."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((plain_dtype(base), shape))
    if dtype.names is not None and dtype.fields is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        parts: Any = {
            "names": list(dtype.names),
            "formats": [plain_dtype(field[0]) for field in fields],
            "offsets": [field[1] for field in fields],
            "itemsize": dtype.itemsize,
        }
        rebuilt: np.dtype = np.dtype(parts)
        return rebuilt
    if dtype.hasobject:
        return dtype
    plain: np.dtype = np.dtype(dtype.str)
    return plain


def named(arrays: Mapping[str, T], name: str, where: str) -> T:
    """The array of a name, which an index has told; raises CorruptEntryError where it is not."""
    found = arrays.get(name)
    if found is None:
        raise CorruptEntryError(f"expected the array {name!r:.200} in {where}, found none")
    return found
