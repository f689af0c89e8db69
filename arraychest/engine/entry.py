"""`Entry`: what a chest knows of one value without reading it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arraychest.formats.form import Kind
from arraychest.markup import facts_card
from arraychest.units import format_bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """What a chest knows of one value without reading it.

    Attributes
    ----------
    kind
        ``"array"``, ``"scalar"`` (a NumPy one), ``"tree"`` (any other value that a chest takes
        apart), ``"pickle"`` (an array of Python objects), ``"dump"`` (written by the chest's
        ``dump=``) or ``"blocked"`` (an array in many files; see `BlockedArray`).
    shape, dtype
        Those of the array; a NumPy scalar has shape ``()``, and what is no array ``()`` and object.
    nbytes
        Size of the array, in bytes; of what is no array, those of its arrays and of what is around
        them, as they lie in the file.
    stored_bytes
        Bytes it takes on disk, 0 while it is in RAM only.
    codec
        ``"npy"`` (a file of its own), ``"pack"`` (a file shared with other small values), the name
        of a Blosc2 codec (``"lz4"``, ``"zstd"``, ...) where it is compressed, ``"blocks"`` (a
        folder of files, each compressed or not), or None while it is in RAM only.
    file
        The file, or the folder, that holds it; None while it is in RAM only.
    generation
        A number that no other value of this chest ever had, or None while it is in RAM only.
    resident
        Whether the value is in RAM, charged, and not yet stored.
    clevel, filters
        Of a compressed value: how hard the codec tries, and the filters before it, by name.
    chunks, blocks
        Of a compressed value: the shapes of what is compressed, and of what is read, at a time.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    stored_bytes: int
    codec: str | None
    file: str | None
    generation: int | None
    resident: bool
    clevel: int | None = None
    filters: tuple[str, ...] = ()
    chunks: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None

    @property
    def ratio(self) -> float | None:
        """Bytes of the array for each that it takes on disk; None while it is in RAM only."""
        return self.nbytes / self.stored_bytes if self.stored_bytes else None

    def _repr_html_(self) -> str:
        """What is known of the value, as notebooks show it."""
        facts = [
            ("Kind", self.kind),
            ("Shape", str(self.shape)),
            ("Dtype", str(self.dtype)),
            ("Size", format_bytes(self.nbytes)),
        ]
        if self.stored_bytes:
            stored = format_bytes(self.stored_bytes)
            facts.append(("Stored", f"{stored} ({self.ratio:.3g} : 1)"))
        facts.append(("Codec", self.codec or "in RAM only"))
        if self.clevel is not None:
            facts.append(("Level, filters", ", ".join([str(self.clevel), *self.filters])))
            facts.append(("Chunks, blocks", f"{self.chunks}, {self.blocks}"))
        if self.file is not None:
            facts.append(("File", self.file))
        return facts_card("Entry", "", facts)
