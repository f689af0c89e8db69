"""`CompressedArray`: an array whose parts are decompressed when they are asked for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from arraychest.arrays.card import array_html, sizes_text
from arraychest.arrays.lazy import LazyArray
from arraychest.formats.frame import CODEC_NAMES, FILTER_NAMES


class Reader(Protocol):
    """What reads a part of a stored array, all of whose steps are 1, into a new array."""

    again: tuple[Any, ...] | None

    @property
    def token(self) -> bytes: ...  # noqa: D102

    def read(self, where: tuple[slice, ...]) -> np.ndarray: ...  # noqa: D102


class CompressedArray(LazyArray):
    """A stored array of which a read decompresses only the chunks that it touches.

    What is read, and what is computed, are plain arrays of NumPy.  Element-wise functions and
    reductions go chunk by chunk: `sum` of an array larger than RAM needs memory for one chunk.
    Everything else that NumPy is asked to do with it decompresses it whole.

    Attributes
    ----------
    shape, dtype, ndim, size, nbytes
        As an array's.
    chunks
        The shape of what is decompressed at a time.
    reader
        Where its parts come from.

    Notes
    -----
    Safe from many threads.  It stays valid when its key is overwritten or deleted.  A sum of
    floating-point numbers is added up in another order than NumPy's, and differs in its last bits.
    """

    __slots__ = ("_transposed", "chunks", "reader")
    _what: ClassVar = "a compressed one"
    _instead: ClassVar = "Chest.edit(key) gives a writable copy that becomes the value, "

    def __init__(
        self,
        reader: Reader,
        dtype: np.dtype,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__(dtype, shape, chunks)
        self.reader = reader
        self.chunks = chunks
        # Whether the reader's dimensions come in the opposite order: Fortran's.
        self._transposed = transposed

    @property
    def order(self) -> Literal["C", "F"]:
        """In which order its elements are stored, and decompressed: C's or Fortran's."""
        return "F" if self._transposed else "C"

    def __repr__(self) -> str:
        """Say what it is; nothing is read."""
        return f"CompressedArray(shape={self.shape}, dtype={self.dtype}, chunks={self.chunks})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """It pickles to the array, read whole, as one of any other tier does."""
        whole = np.asarray(self)
        # Protocol 5 notes it, so that what is unpickled is read-only whatever the tier was.
        whole.setflags(write=False)
        return whole.__reduce_ex__(protocol)

    def by_place(self) -> tuple[Any, ...] | None:
        """What makes it anew where its file can be reached by the same path, and its arguments;
        None where it is a part of a tree, which has no file of its own.
        """
        again = self.reader.again
        if again is None:
            return None
        return _at_place, (again, self.dtype, self.shape, self.chunks, self._transposed)

    def __dask_tokenize__(self) -> Any:
        """What is stored, and not where it is; nothing is read."""
        return "arraychest-compressed", self.reader.token, self.shape, self.order

    def _repr_html_(self) -> str:
        """Its chunks, drawn, and how they are compressed, as notebooks show it; reads nothing."""
        more = [("Order", str(self.order))]
        # Of the array as it lies in its file, which may be transposed.
        layout = getattr(self.reader, "layout", None)
        if layout is not None:
            blocks = layout.blocks[::-1] if self.order == "F" else layout.blocks
            filters = [FILTER_NAMES[each] for each in layout.filters if each]
            codec = f"{CODEC_NAMES[layout.codec]}-{layout.clevel}"
            more += [("Read by", sizes_text(blocks)), ("Codec", ", ".join([codec, *filters]))]
        stored = getattr(self.reader, "stored", None)
        return array_html(
            "Compressed array", self.shape, self.chunks, self.dtype, stored=stored, more=more
        )

    def _read(self, where: tuple[slice, ...]) -> np.ndarray:
        if self._transposed:
            return self.reader.read(where[::-1]).T
        return self.reader.read(where)


def _at_place(
    again: tuple[Any, ...],
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    transposed: bool,
) -> CompressedArray:
    open_again, arguments = again
    reader = open_again(*arguments)
    return CompressedArray(reader, dtype, shape, chunks, transposed=transposed)
