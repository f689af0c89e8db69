"""`BlockedArray`: an array that lies in many files, block by block."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np

from arraychest.arrays.card import array_html
from arraychest.arrays.lazy import LazyArray
from arraychest.formats.manifest import Manifest


class Blocks(Protocol):
    """Where the blocks of an array come from: a folder, which is open."""

    fd: int
    manifest: Manifest

    @property
    def path(self) -> str: ...  # noqa: D102

    def block(self, index: tuple[int, ...]) -> Any:
        """One of them: an array that is a view of its file, or a `CompressedArray`."""


class BlockedArray(LazyArray):
    """A stored array of which a read opens only the blocks that it touches.

    `arraychest.dask.store` and `Chest.append` make one.  It may be larger than RAM, and larger
    than what one process has written: each block is a file of its own, compressed or not.

    What is read are plain arrays of NumPy: a part that lies in one block, which is not compressed,
    is a read-only view of its file; any other a new array.  Element-wise functions and reductions
    go block by block.  Everything else that NumPy is asked to do with it reads it whole.

    Attributes
    ----------
    shape, dtype, ndim, size, nbytes
        As an array's.
    chunks
        The sizes of the blocks along each dimension, as dask tells them.
    blocks
        Where its blocks come from.

    Notes
    -----
    Safe from many threads.  It stays valid when its key is overwritten or deleted, and holds one
    descriptor.  A sum of floating-point numbers is added up in another order than NumPy's, and
    differs in its last bits.
    """

    __slots__ = ("_ends", "blocks", "chunks")
    _what: ClassVar = "a blocked one"
    _instead: ClassVar = "Chest.append makes it longer, "

    def __init__(
        self,
        blocks: Blocks,
        dtype: np.dtype,
        shape: tuple[int, ...],
        chunks: tuple[tuple[int, ...], ...],
    ) -> None:
        super().__init__(dtype, shape, chunks)
        self.blocks = blocks
        self.chunks = chunks
        self._ends = [list(itertools.accumulate(sizes)) for sizes in chunks]

    @property
    def numblocks(self) -> tuple[int, ...]:
        """How many blocks there are along each dimension."""
        return tuple(map(len, self.chunks))

    def __repr__(self) -> str:
        """Say what it is; nothing is read."""
        return f"BlockedArray(shape={self.shape}, dtype={self.dtype}, numblocks={self.numblocks})"

    def _repr_html_(self) -> str:
        """Its blocks, drawn, as notebooks show it; reads nothing."""
        manifest = self.blocks.manifest
        compressed = int(np.count_nonzero(manifest.blocks[:, 0] == 0))
        more = [("Compressed", f"{compressed:,} of {len(manifest.blocks):,} blocks")]
        return array_html(
            "Blocked array", self.shape, self.chunks, self.dtype,
            stored=manifest.stored, more=more, part="block",
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        """It pickles to the place of its blocks, which must be there where it is unpickled."""
        return BlockedArray, (self.blocks, self.dtype, self.shape, self.chunks)

    def by_place(self) -> tuple[Any, ...] | None:
        """As `__reduce__` does."""
        return self.__reduce__()

    def __dask_tokenize__(self) -> Any:
        """What is stored, and not where it is; no block is read."""
        # The blocks' stamps: no two blocks that were ever written have the same.
        blocks = hashlib.blake2b(self.blocks.manifest.blocks.tobytes(), digest_size=16).digest()
        return "arraychest-blocked", blocks, self.dtype.str, self.chunks

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The array, read whole: always a new one; raises as `LazyArray`'s."""
        found = super().__array__(dtype, copy)
        return found if found.flags.writeable else found.copy()

    def iterchunks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """Each block that is not empty: where it lies in the array, and its elements."""
        return super().iterchunks()

    def _read(self, where: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in where], self.dtype)
        if not out.size:
            return out
        touched = [
            range(bisect.bisect_right(ends, part.start), bisect.bisect_left(ends, part.stop) + 1)
            for ends, part in zip(self._ends, where, strict=True)
        ]
        for index in itertools.product(*touched):
            source, target = [], []
            for at, ends, sizes, part in zip(index, self._ends, self.chunks, where, strict=True):
                start = ends[at] - sizes[at]
                first, last = max(part.start, start), min(part.stop, ends[at])
                source.append(slice(first - start, last - start))
                target.append(slice(first - part.start, last - part.start))
            found = self.blocks.block(index)[tuple(source)]
            if all(len(numbers) == 1 for numbers in touched):
                return np.asarray(found)
            out[tuple(target)] = found
        return out
