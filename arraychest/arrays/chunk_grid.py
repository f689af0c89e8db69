"""The chunks of an array, drawn: a line of cells, a grid, a block, or several of them, as SVG."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from arraychest.arrays.selection import Cut

# Lines between the chunks along one axis; where there are more, so many stand for them.
_MOST_LINES = 40

# Between two such lines, in pixels at least.
_LEAST_GAP = 3.5

# Side of an array's longest axis, in pixels, and the shortest that one is drawn.
_LONGEST, _SHORTEST = 150.0, 14.0


class Axis(NamedTuple):
    """One axis: its size, its chunks, and where each but the last ends."""

    size: int
    number: int
    largest: int
    ends: Sequence[int]

    @classmethod
    def of(cls, size: int, chunks: Cut) -> Axis:
        """An axis whose chunks are told as `chunks_svg` takes them."""
        if isinstance(chunks, int | np.integer):
            step = max(int(chunks), 1)
            # Not a list: there may be a billion.
            return cls(size, -(-size // step), min(step, size), range(step, size, step))
        sizes = [int(each) for each in chunks]
        ends = list(itertools.accumulate(sizes))[:-1]
        return cls(size, len(sizes), max(sizes, default=0), ends)

    def cuts(self, pixels: float) -> tuple[list[float], bool]:
        """Where to draw lines, as shares of the axis, and whether they stand for more."""
        most = max(1, min(_MOST_LINES, int(pixels / _LEAST_GAP)))
        if len(self.ends) > most:
            return [at / (most + 1) for at in range(1, most + 1)], True
        return [end / self.size for end in self.ends if self.size], False


def chunks_svg(shape: tuple[int, ...], chunks: Sequence[Cut]) -> str:
    """The chunks of an array as a drawing, in the styles of `markup`.

    Three axes are a block; more than three are several blocks, the last axes in the last one.  No
    axis has more than some tens of lines: where there are more chunks, dashed ones stand for them.

    Parameters
    ----------
    chunks
        Along each axis, the size of every chunk (as dask has it) or of each but the last.
    """
    if not shape:
        return _svg(
            60, 40, '<rect class="ac-face" x="2" y="6" width="24" height="24"/>', "one element"
        )
    axes = [Axis.of(n, c) for n, c in zip(shape, chunks, strict=True)]
    told = f"{' by '.join(str(axis.number) for axis in axes)} chunks"
    first = len(axes) % 3 or 3
    groups = [axes[:first], *(axes[at : at + 3] for at in range(first, len(axes), 3))]
    # Of a hundred axes nobody sees anything: the last nine are drawn.
    drawn, left = [], 0.0
    height = 0.0
    for group in groups[-3:]:
        width, tall, body = _block(group)
        drawn.append(f'<g transform="translate({left:.1f} 0)">{body}</g>')
        left += width + 14
        height = max(height, tall)
    return _svg(left, height, "".join(drawn), told)


def _svg(width: float, height: float, body: str, told: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{html.escape(told)}" '
        # For where styles are stripped: nothing is black on black.
        f'fill="none" stroke="currentColor" font-size="11">{body}</svg>'
    )


def _lengths(sizes: Sequence[int]) -> list[float]:
    """Pixels of each axis: as long as they are, but that the shortest can be seen."""
    longest = max(*sizes, 1)
    found = []
    for size in sizes:
        share = max(size, 1) / longest
        # Beyond 1 : 3 the shorter one shrinks slowly.
        seen = share if share > 1 / 3 else (share * 3) ** 0.3 / 3
        found.append(max(_LONGEST * seen, _SHORTEST))
    return found


def _block(axes: Sequence[Axis]) -> tuple[float, float, str]:
    """Up to three axes as a line of cells, a grid or a block: its width, height and drawing."""
    sizes = [axis.size for axis in axes]
    if len(axes) == 1:
        wide, tall, deep = _lengths([sizes[0], 0])[0], 26.0, 0.0
    elif len(axes) == 2:
        (tall, wide), deep = _lengths(sizes), 0.0
    else:
        deep, tall, wide = _lengths(sizes)
    # The third axis goes back and to the right.
    dx, dy = deep * 0.55, deep * 0.38
    left, top = 4.0, 4.0 + dy
    front = (left, top), (wide, 0.0), (0.0, tall)
    empty = " ac-none" if 0 in sizes else ""
    parts: list[str] = []
    across = axes[-1]
    down = axes[-2] if len(axes) > 1 else None
    if len(axes) == 3:
        back = axes[0]
        parts += _face((left, top), (wide, 0), (dx, -dy), across, back, f"ac-face ac-top{empty}")
        parts += _face(
            (left + wide, top), (dx, -dy), (0, tall), back, down, f"ac-face ac-side{empty}"
        )
    parts += _face(*front, across, down, f"ac-face{empty}")
    parts.append(_label(left + wide / 2, top + tall + 14, sizes[-1], "middle"))
    right = left + wide + dx
    if down is not None:
        parts.append(_label(right + 6, top - dy + tall / 2 + 4, sizes[-2], "start"))
        right += 10 + 6.5 * len(f"{sizes[-2]:,}")
    height = top + tall + 20
    if len(axes) == 3:
        # Beside the edge that goes back, below on the right.
        x, y = left + wide + dx / 2 + 5, top + tall - dy / 2 + 12
        parts.append(_label(x, y, sizes[0], "start"))
        right = max(right, x + 6.5 * len(f"{sizes[0]:,}"))
    return right, height, "".join(parts)


def _label(x: float, y: float, size: int, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'stroke="none">{size:,}</text>'
    )


_Point = tuple[float, float]


def _face(
    origin: _Point, u: _Point, v: _Point, along_u: Axis | None, along_v: Axis | None, kind: str
) -> Iterator[str]:
    """A parallelogram from a corner along two edges, and the cuts between its chunks."""
    (x, y), (ux, uy), (vx, vy) = origin, u, v
    corners = [(x, y), (x + ux, y + uy), (x + ux + vx, y + uy + vy), (x + vx, y + vy)]
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
    yield f'<polygon class="{kind}" points="{points}"/>'
    for axis, (ax, ay), (bx, by) in ((along_u, u, v), (along_v, v, u)):
        cuts, many = axis.cuts(math.hypot(ax, ay)) if axis is not None else ([], False)
        if cuts:
            path = "".join(
                f"M{x + cut * ax:.1f} {y + cut * ay:.1f}l{bx:.1f} {by:.1f}" for cut in cuts
            )
            yield f'<path class="{"ac-many" if many else "ac-cut"}" d="{path}"/>'
