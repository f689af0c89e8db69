"""The pipeline of `arraychest demo`: relief of a landscape, tile by tile, each from earlier tiles.

::

    measured ─> elevation ─┬─> slope, aspect ─> one hillshade for each sun ─> shade
                           └─> relief
    elevation, shade, relief ─> /2 ─> /4 ─> /8 ─> /16           (the pyramid)

Nothing here reads or writes a file: tiles come out of a mapping and go back into one, under keys
``(layer, row, col)``.  A chest is such a mapping, and so is a dict.

Whatever the size of the tiles, every cell gets the same bits: each formula is made of the same
elementwise steps in the same order, and no sum runs across cells of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

# Length of one degree of a great circle on a sphere of the Earth's mean radius, in metres.
METRES_PER_DEGREE = 111_195.0

# Mark's four suns: low in the sky, and all from the west and north, where readers of maps expect
# light to come from.
SUN_AZIMUTHS = (225, 270, 315, 360)
SUN_ALTITUDE = 30

# Heights are exaggerated for the shading only: the hills are gentle, and the sun is not.
EXAGGERATION = 2.0

# Local relief is what lies between the highest and the lowest ground this far around, in metres.
RELIEF_RADIUS = 100.0

# Times that the pyramid halves.
LEVELS = 4
PYRAMID_LAYERS = ("elevation", "shade", "relief")

# A tile of 512 x 512 float32 is 1 MiB: large beside its halo, small beside any budget.
TILE = 512

Tiles = Mapping[Any, np.ndarray]


class Dem(NamedTuple):
    """A measured elevation model; the first row is the northernmost.

    Attributes
    ----------
    heights
        Metres, shape (rows, columns).
    west, east, south, north
        Edges of the outermost cells in degrees.
    """

    heights: np.ndarray
    west: float
    east: float
    south: float
    north: float

    @property
    def width(self) -> float:
        """Metres from west to east, along the middle parallel."""
        middle = np.deg2rad((self.south + self.north) / 2)
        return (self.east - self.west) * METRES_PER_DEGREE * float(np.cos(middle))

    @property
    def height(self) -> float:
        """Metres from south to north."""
        return (self.north - self.south) * METRES_PER_DEGREE


class Grid(NamedTuple):
    """How a landscape is cut into cells, and the cells into tiles.

    Attributes
    ----------
    rows, cols
        Number of cells.
    dx, dy
        Size of a cell in metres.
    tile
        Cells on a side of a tile; tiles at the southern and eastern edge may be smaller.
    """

    rows: int
    cols: int
    dx: float
    dy: float
    tile: int

    @classmethod
    def over(cls, dem: Dem, size: int, tile: int = TILE) -> Grid:
        """A grid of nearly square cells, about `size` of them from west to east.

        Both sides are rounded so that the pyramid's levels halve exactly.
        """
        multiple = 2**LEVELS
        cols = -(-size // multiple) * multiple
        rows = round(size * dem.height / dem.width / multiple) * multiple
        return cls(rows, cols, dem.width / cols, dem.height / rows, tile)

    @property
    def tile_rows(self) -> int:
        """Rows of tiles."""
        return -(-self.rows // self.tile)

    @property
    def tile_cols(self) -> int:
        """Columns of tiles."""
        return -(-self.cols // self.tile)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Row and column of each tile, from the north-west."""
        for row in range(self.tile_rows):
            for col in range(self.tile_cols):
                yield row, col

    def bounds(self, row: int, col: int) -> tuple[int, int, int, int]:
        """First row, end row, first column and end column of a tile's cells."""
        top, left = row * self.tile, col * self.tile
        return top, min(top + self.tile, self.rows), left, min(left + self.tile, self.cols)

    def halved(self) -> Grid:
        """The next level of the pyramid: tiles of the same size, each of up to four of these."""
        return Grid(self.rows // 2, self.cols // 2, self.dx * 2, self.dy * 2, self.tile)


class Stage(NamedTuple):
    """One pass over a grid.

    Attributes
    ----------
    title
        What it does, for people.
    layers
        What it makes.
    grid
        Where.
    compute
        ``compute(tiles, row, col)`` reads tiles of earlier layers, and returns the tile of each
        layer.
    """

    title: str
    layers: tuple[str, ...]
    grid: Grid
    compute: Callable[[Tiles, int, int], tuple[np.ndarray, ...]]


def stages(dem: Dem, grid: Grid) -> list[Stage]:
    """The whole pipeline, in an order in which each stage finds what it reads."""
    coefficients = spline_coefficients(dem.heights)
    radius = relief_radius(grid)

    def elevation(_: Tiles, row: int, col: int) -> tuple[np.ndarray, ...]:
        return (refine(coefficients, grid, *grid.bounds(row, col)),)

    def slope_and_aspect(tiles: Tiles, row: int, col: int) -> tuple[np.ndarray, ...]:
        return slope_aspect(_with_halo(tiles, "elevation", grid, row, col, 1), grid.dx, grid.dy)

    def under(azimuth: int) -> Stage:
        def shade(tiles: Tiles, row: int, col: int) -> tuple[np.ndarray, ...]:
            return (hillshade(tiles["slope", row, col], tiles["aspect", row, col], azimuth),)

        return Stage(f"hillshade, {azimuth} degrees", (f"sun {azimuth}",), grid, shade)

    def blend(tiles: Tiles, row: int, col: int) -> tuple[np.ndarray, ...]:
        shades = [tiles[f"sun {azimuth}", row, col] for azimuth in SUN_AZIMUTHS]
        return (blend_suns(shades, tiles["aspect", row, col]),)

    def relief(tiles: Tiles, row: int, col: int) -> tuple[np.ndarray, ...]:
        return (local_relief(_with_halo(tiles, "elevation", grid, row, col, radius), radius),)

    plan = [
        Stage("elevation, refined", ("elevation",), grid, elevation),
        Stage("slope and aspect", ("slope", "aspect"), grid, slope_and_aspect),
        *(under(azimuth) for azimuth in SUN_AZIMUTHS),
        Stage("shade, suns blended", ("shade",), grid, blend),
        Stage(f"relief within {RELIEF_RADIUS:.0f} m", ("relief",), grid, relief),
    ]
    finer = grid
    for level in range(1, LEVELS + 1):
        plan.append(_pyramid_stage(finer, level))
        finer = finer.halved()
    return plan


def level_name(layer: str, level: int) -> str:
    """Name of a layer at a level of the pyramid; level 0 is the layer itself.

    Examples
    --------
    >>> level_name("shade", 0), level_name("shade", 3)
    ('shade', 'shade/8')
    """
    return f"{layer}/{2**level}" if level else layer


def _pyramid_stage(finer: Grid, level: int) -> Stage:
    grid = finer.halved()

    def compute(tiles: Tiles, row: int, col: int) -> tuple[np.ndarray, ...]:
        bounds = tuple(2 * bound for bound in grid.bounds(row, col))
        return tuple(
            halve(window(tiles, level_name(layer, level - 1), finer, *bounds))
            for layer in PYRAMID_LAYERS
        )

    names = tuple(level_name(layer, level) for layer in PYRAMID_LAYERS)
    return Stage(f"pyramid, 1:{2**level}", names, grid, compute)


# --- reading across tiles ----------------------------------------------------------------------


def window(
    tiles: Tiles, layer: str, grid: Grid, top: int, bottom: int, left: int, right: int
) -> np.ndarray:
    """The cells of a layer in some rows and columns, put together from the tiles they lie in.

    Cells beyond the edge of the grid are copies of the nearest one inside.

    Returns
    -------
    ndarray
        Shape (bottom - top, right - left), of the tiles' dtype.
    """
    first_row, end_row = max(top, 0), min(bottom, grid.rows)
    first_col, end_col = max(left, 0), min(right, grid.cols)
    out: np.ndarray | None = None
    for row in range(first_row // grid.tile, -(-end_row // grid.tile)):
        for col in range(first_col // grid.tile, -(-end_col // grid.tile)):
            tile = tiles[layer, row, col]
            if out is None:
                out = np.empty((end_row - first_row, end_col - first_col), tile.dtype)
            t, b, l, r = grid.bounds(row, col)  # noqa: E741  # as in `bounds`
            t, b = max(t, first_row), min(b, end_row)
            l, r = max(l, first_col), min(r, end_col)  # noqa: E741
            out[t - first_row : b - first_row, l - first_col : r - first_col] = tile[
                t - row * grid.tile : b - row * grid.tile, l - col * grid.tile : r - col * grid.tile
            ]
    if out is None:
        raise ValueError(
            f"expected a window that meets the grid, found {(top, bottom, left, right)}"
        )
    beyond = ((first_row - top, bottom - end_row), (first_col - left, right - end_col))
    return np.pad(out, beyond, mode="edge") if any(map(any, beyond)) else out


def _with_halo(tiles: Tiles, layer: str, grid: Grid, row: int, col: int, halo: int) -> np.ndarray:
    top, bottom, left, right = grid.bounds(row, col)
    return window(tiles, layer, grid, top - halo, bottom + halo, left - halo, right + halo)


# --- the formulas ------------------------------------------------------------------------------


def spline_coefficients(heights: np.ndarray) -> np.ndarray:
    """Coefficients of the natural cubic B-spline that goes through every measured height.

    A spline and not Catmull-Rom's bicubic, whose curvature jumps at each measured cell: shaded, the
    jumps show as a grid of squares all over the hills.

    Returns
    -------
    ndarray
        float64, two more on each side than there are heights, on a straight line beyond the edge.
    """
    inner = _solve_spline(_solve_spline(heights.astype(np.float64)).T).T
    return np.pad(inner, 2, mode="reflect", reflect_type="odd")


def _solve_spline(heights: np.ndarray) -> np.ndarray:
    # Thomas's algorithm along the first axis for (c[i-1] + 4 c[i] + c[i+1]) / 6 = h[i] between
    # c[0] = h[0] and c[-1] = h[-1].  Not `np.linalg.solve`, whose bits depend on the BLAS.
    c = 6 * heights
    c[0], c[-1] = heights[0], heights[-1]
    ratios = np.zeros(len(c))
    for i in range(1, len(c) - 1):
        pivot = 4 - ratios[i - 1]
        ratios[i] = 1 / pivot
        c[i] = (c[i] - c[i - 1]) / pivot
    for i in range(len(c) - 2, 0, -1):
        c[i] -= ratios[i] * c[i + 1]
    return c


def refine(
    coefficients: np.ndarray, grid: Grid, top: int, bottom: int, left: int, right: int
) -> np.ndarray:
    """Elevation of some cells of a grid, interpolated.

    Parameters
    ----------
    coefficients
        From `spline_coefficients`.

    Returns
    -------
    ndarray
        Metres, float32, shape (bottom - top, right - left).
    """
    count_y, count_x = coefficients.shape[0] - 4, coefficients.shape[1] - 4
    rows, row_weights = _spline_weights(np.arange(top, bottom), grid.rows, count_y)
    cols, col_weights = _spline_weights(np.arange(left, right), grid.cols, count_x)
    # Rows first, for only those few columns that this tile needs.
    first = cols[0]
    band = coefficients[:, first : cols[-1] + 4]
    across = sum(row_weights[k][:, None] * band[rows + k] for k in range(4))
    out = sum(col_weights[k] * across[:, cols - first + k] for k in range(4))
    return np.asarray(out).astype(np.float32)


def _spline_weights(
    cells: np.ndarray, refined: int, measured: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """For each refined cell the first of its four coefficients, and their weights."""
    # Both grids cover the same ground, and heights belong to the middle of a cell.
    position = (cells + 0.5) * (measured / refined) - 0.5
    base = np.floor(position)
    t = position - base
    weights = [
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    ]
    # Coefficient -1 belongs to weight 0 of cell 0, and lies at index 1 behind two of padding.
    return base.astype(np.intp) + 1, weights


def slope_aspect(elevation: np.ndarray, dx: float, dy: float) -> tuple[np.ndarray, np.ndarray]:
    """Steepness of the ground, and where it falls to, by Horn's differences.

    Parameters
    ----------
    elevation
        Metres, with a halo of one cell.
    dx, dy
        Size of a cell in metres.

    Returns
    -------
    slope
        Radians from the horizontal, float32, without the halo.
    aspect
        Radians clockwise from north, float32, in [0, 2 pi].

    References
    ----------
    B. K. P. Horn, "Hill shading and the reflectance map", Proc. IEEE 69 (1981).
    """
    z = elevation
    # Weights 1, 2, 1 across the direction of each difference.
    down = z[:-2] + 2 * z[1:-1] + z[2:]
    east = (down[:, 2:] - down[:, :-2]) * np.float32(1 / (8 * dx))
    along = z[:, :-2] + 2 * z[:, 1:-1] + z[:, 2:]
    north = (along[:-2] - along[2:]) * np.float32(1 / (8 * dy))
    slope = np.arctan(np.sqrt(east * east + north * north))
    aspect = np.arctan2(-east, -north)
    aspect[aspect < 0] += np.float32(2 * np.pi)
    return slope, aspect


def hillshade(slope: np.ndarray, aspect: np.ndarray, azimuth: float) -> np.ndarray:
    """Light on the ground under one sun: 0 in the shade, 1 where it shines straight down on it.

    Parameters
    ----------
    slope, aspect
        From `slope_aspect`.
    azimuth
        Where the sun stands, degrees clockwise from north.

    Returns
    -------
    ndarray
        float32.
    """
    zenith = np.deg2rad(90 - SUN_ALTITUDE)
    steep = np.arctan(np.float32(EXAGGERATION) * np.tan(slope))
    light = np.cos(aspect - np.float32(np.deg2rad(azimuth)))
    light *= np.sin(steep)
    light *= np.float32(np.sin(zenith))
    light += np.cos(steep) * np.float32(np.cos(zenith))
    return np.maximum(light, np.float32(0), out=light)


def blend_suns(shades: list[np.ndarray], aspect: np.ndarray) -> np.ndarray:
    """One shade from several suns, each counted most where its light grazes the slope.

    Parameters
    ----------
    shades
        From `hillshade`, one for each of `SUN_AZIMUTHS`.
    aspect
        From `slope_aspect`.

    Returns
    -------
    ndarray
        float32, 0 to 1.

    References
    ----------
    R. K. Mark, "A multidirectional, oblique-weighted, shaded-relief image of the island of
    Hawaii", USGS Open-File Report 92-422 (1992).
    """
    blended = np.zeros_like(aspect)
    # The squares of the four sines, which are 45 degrees apart, add up to two.
    for azimuth, shade in zip(SUN_AZIMUTHS, shades, strict=True):
        weight = np.sin(aspect - np.float32(np.deg2rad(azimuth)))
        weight *= weight
        weight *= shade
        blended += weight
    blended *= np.float32(0.5)
    return blended


def relief_radius(grid: Grid) -> int:
    """`RELIEF_RADIUS` in cells of a grid, at least one."""
    return max(1, round(RELIEF_RADIUS / grid.dx))


def local_relief(elevation: np.ndarray, radius: int) -> np.ndarray:
    """Highest less lowest elevation in the square of 2 `radius` + 1 cells around each.

    Parameters
    ----------
    elevation
        Metres, with a halo of `radius` cells.

    Returns
    -------
    ndarray
        Metres, of the same dtype, without the halo.
    """
    width = 2 * radius + 1
    highest = _running(np.maximum, elevation, width)
    highest -= _running(np.minimum, elevation, width)
    return highest


def _running(extreme: np.ufunc, a: np.ndarray, width: int) -> np.ndarray:
    """The extreme of every square of `width` x `width` cells."""
    # By doubling, along one axis after the other: log(width) passes instead of width squared.
    for _ in range(2):
        span = 1
        while 2 * span <= width:
            a = extreme(a[:-span], a[span:])
            span *= 2
        if span < width:
            a = extreme(a[: span - width], a[width - span :])
        a = np.ascontiguousarray(a.T)
    return a


def halve(a: np.ndarray) -> np.ndarray:
    """Means of squares of 2 x 2 cells, of the same dtype."""
    out: np.ndarray = a[::2, ::2] + a[1::2, ::2]
    out += a[::2, 1::2]
    out += a[1::2, 1::2]
    out *= out.dtype.type(0.25)
    return out
