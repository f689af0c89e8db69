"""`Entry`: what a chest knows of one value without reading it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from arraychest.catalog.record import Row
from arraychest.formats.form import Form, Kind
from arraychest.formats.frame import CODEC_NAMES, FILTER_NAMES, Layout
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


def _codec_name(row: Row) -> str:
    """How a value is stored that is not compressed as a whole."""
    if row.pack is not None:
        return "pack"
    return "blocks" if row.is_blocked else "npy"


def entry_of(
    form: Form, row: Row | None = None, file: str | None = None, layout: Layout | None = None
) -> Entry:
    """What is told of a value of this form; without a row it is in RAM."""
    dtype, shape = form.dtype, form.shape
    if form.kind == "scalar":
        if dtype.kind in "US":
            dtype = np.dtype((dtype.type, form.shape[0]))
        shape = ()
    elif form.kind in ("tree", "dump"):
        dtype, shape = np.dtype(object), ()
    found = Entry(
        kind=form.kind,
        shape=shape,
        dtype=dtype,
        nbytes=form.nbytes,
        stored_bytes=0 if row is None else row.stored,
        codec=None if row is None else _codec_name(row),
        file=file,
        generation=None if row is None else row.generation,
        resident=row is None,
    )
    if layout is None:
        return found
    turned = slice(None, None, -1 if form.order == "F" else 1)
    return replace(
        found,
        codec=CODEC_NAMES[layout.codec],
        clevel=layout.clevel,
        filters=tuple(FILTER_NAMES[number] for number in layout.filters),
        chunks=layout.chunks[turned],
        blocks=layout.blocks[turned],
    )
