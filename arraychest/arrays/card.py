"""The card of an array that lies in chunks: its figures beside its chunks, drawn, for notebooks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from arraychest.arrays.chunk_grid import Axis, chunks_svg
from arraychest.arrays.selection import Cut
from arraychest.markup import bdi, escaped, framed, title
from arraychest.text import visible
from arraychest.units import format_bytes


def array_html(
    kind: str,
    shape: tuple[int, ...],
    chunks: Sequence[Cut],
    dtype: np.dtype,
    *,
    stored: int | None = None,
    more: Sequence[tuple[str, str]] = (),
    part: str = "chunk",
) -> str:
    """An array that lies in chunks: its figures beside its chunks, drawn.

    Parameters
    ----------
    kind
        What it is called.
    shape, dtype
        The array's.
    chunks
        Along each axis, the size of every chunk (as dask has it) or of each but the last.
    stored
        Bytes that it takes; None: not told.
    more
        Further lines of the table, as names and texts.
    part
        What its chunks are called.
    """
    axes = [Axis.of(n, c) for n, c in zip(shape, chunks, strict=True)]
    count = math.prod(axis.number for axis in axes)
    nbytes = math.prod(shape) * dtype.itemsize
    largest = tuple(axis.largest for axis in axes)
    chunk_bytes = math.prod(largest) * dtype.itemsize
    rows = [
        ("Size", format_bytes(nbytes), format_bytes(chunk_bytes)),
        ("Shape", sizes_text(shape), sizes_text(largest)),
        ("Count", "1 array", f"{count:,} {part}{'s' * (count != 1)}"),
        ("Dtype", visible(str(dtype), 60), ""),
    ]
    if stored:
        rows.append(("Stored", f"{format_bytes(stored)} ({nbytes / stored:.3g} : 1)", ""))
    rows += [(name, text, "") for name, text in more]
    body = "".join(
        f"<tr><th>{escaped(name)}</th><td>{bdi(whole)}</td><td>{escaped(part)}</td></tr>"
        for name, whole, part in rows
    )
    table = (
        f"<table><thead><tr><th></th><th>Array</th><th>Largest {part}</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    return framed(
        title(escaped(kind), ""), f'<div class="ac-flow">{table}{chunks_svg(shape, chunks)}</div>'
    )


def sizes_text(shape: Sequence[int]) -> str:
    """A shape as Python writes it, of at most 80 characters."""
    return visible(f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})", 80)
