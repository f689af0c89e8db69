"""The demo's picture: the shaded terrain, and what lay in memory and on disk over time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

import arraychest
from arraychest.cli.sampling import Journal
from arraychest.cli.terrain import LEVELS, SUN_ALTITUDE, Dem, Grid, level_name, window
from arraychest.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# From wooded valleys to bare tops, paler than the ground is, so that the shade can darken them.
_TINTS = ("#7fa087", "#a9bf90", "#d3d3a0", "#e6d3a3", "#d9b48c", "#c79b80", "#e2cfc4", "#f7f3ef")
_INK, _FAINT = "#2b2f36", "#8a9099"
_RAM, _DISK, _PROCESS, _LIMIT = "#3f78b5", "#d08a3c", "#7a5a9e", "#b3372f"

# Rows of the shade that the map shows at least: some more than it has pixels.
_MAP_ROWS = 1200


def draw(chest: arraychest.Chest, dem: Dem, grid: Grid, journal: Journal) -> bytes:
    """The shaded, tinted map beside what was in RAM and on disk over time, as a PNG."""
    # A figure of its own and not pyplot's: no display, no state left behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8.4), dpi=150, facecolor="white")
    figure.text(0.045, 0.945, "Jacksboro fault, Tennessee", fontsize=21, weight="bold", color=_INK)
    figure.text(
        0.045,
        0.912,
        f"{dem.heights.shape[1]} × {dem.heights.shape[0]} measured heights refined to "
        f"{grid.cols:,} × {grid.rows:,} cells of {grid.dx:.1f} m; lit by four suns",
        fontsize=11,
        color=_FAINT,
    )
    _draw_map(figure, chest, dem, grid)
    _draw_memory(figure, journal)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw_map(figure: Figure, chest: arraychest.Chest, dem: Dem, grid: Grid) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    level = 0
    while level < LEVELS and grid.rows // 2 >= _MAP_ROWS:
        grid, level = grid.halved(), level + 1
    everything = (0, grid.rows, 0, grid.cols)
    elevation = window(chest, level_name("elevation", level), grid, *everything)
    shade = window(chest, level_name("shade", level), grid, *everything)
    relief = window(chest, level_name("relief", level), grid, *everything)

    tints = LinearSegmentedColormap.from_list("hypsometric", _TINTS)
    heights = Normalize(float(elevation.min()), float(np.percentile(elevation, 99.9)))
    picture = paint(tints(heights(elevation))[..., :3].astype(np.float32), shade, relief)

    ax = figure.add_axes((0.045, 0.065, 0.47, 0.825))
    ax.imshow(
        picture,
        extent=(dem.west, dem.east, dem.south, dem.north),
        # A degree of longitude is shorter than one of latitude: cells are square on the ground.
        aspect=(dem.height / dem.width) * (dem.east - dem.west) / (dem.north - dem.south),
        interpolation="antialiased",
    )
    ax.set_anchor("W")
    # Round degrees, but none so near a corner that the labels of both axes meet there.
    ax.set_xticks(_round_ticks(dem.west, dem.east))
    ax.set_yticks(_round_ticks(dem.south, dem.north))
    ax.xaxis.set_major_formatter(lambda degrees, _: f"{-degrees:.2f}° W")
    ax.yaxis.set_major_formatter(lambda degrees, _: f"{degrees:.2f}° N")
    ax.tick_params(colors=_INK, labelsize=9, length=3)
    for label in ax.get_yticklabels():
        label.set(rotation=90, va="center")
    _draw_scale_bar(ax, dem)

    bar = ax.inset_axes((1.018, 0.0, 0.018, 0.42))
    figure.colorbar(ScalarMappable(heights, tints), cax=bar)
    bar.yaxis.set_major_formatter(lambda metres, _: f"{metres:.0f}")
    bar.tick_params(colors=_INK, labelsize=8, length=2)
    bar.set_title("m", fontsize=9, color=_INK)
    bar.spines["outline"].set_visible(False)
    ax.spines[:].set_color(_FAINT)


def paint(tint: np.ndarray, shade: np.ndarray, relief: np.ndarray) -> np.ndarray:
    """A tinted map with light and shade on it.

    Parameters
    ----------
    tint
        Colours, 0 to 1, shape (rows, cols, 3).
    shade
        Light, shape (rows, cols).
    relief
        Metres, shape (rows, cols).

    Returns
    -------
    ndarray
        Colours, 0 to 1, shape (rows, cols, 3).
    """
    # Level ground has its tint.  What is darker is multiplied towards a cool black, and what is
    # lighter screened towards a warm white, as watercolour maps do.
    level_ground = np.sin(np.deg2rad(SUN_ALTITUDE))
    light = (shade / level_ground)[..., None]
    dark = np.clip(light, 0, 1) ** 1.1
    bright = np.clip(light - 1, 0, 1) * 0.8
    shadow = np.array([0.24, 0.28, 0.37], np.float32)
    glow = np.array([1.0, 0.985, 0.94], np.float32)
    # Rugged ground is a little darker: the eye reads it as depth.
    depth = 1 - 0.16 * np.clip(relief / np.percentile(relief, 99), 0, 1)[..., None]
    picture = (shadow * tint + (1 - shadow) * tint * dark) * depth
    return np.asarray(np.clip(picture + (glow - picture) * bright, 0, 1))


def _round_ticks(low: float, high: float, step: float = 0.05) -> np.ndarray:
    margin = 0.02 * (high - low)
    first, last = np.ceil((low + margin) / step), np.floor((high - margin) / step)
    return np.asarray(np.arange(first, last + 1) * step)


def _draw_scale_bar(ax: Axes, dem: Dem) -> None:
    kilometres = 5
    length = kilometres * 1000 / dem.width
    ax.plot(
        [0.03, 0.03 + length], [0.03, 0.03], color="white", lw=3.2, transform=ax.transAxes,
        solid_capstyle="butt",
    )  # fmt: skip
    ax.text(
        0.03 + length / 2, 0.038, f"{kilometres} km", color="white", fontsize=10, weight="bold",
        ha="center", va="bottom", transform=ax.transAxes,
    )  # fmt: skip


def _draw_memory(figure: Figure, journal: Journal) -> None:
    seconds = np.array([sample.seconds for sample in journal.samples])
    resident = np.array([sample.resident for sample in journal.samples]) / 2**20
    unit, unit_bytes = ("GiB", 2**30) if journal.put >= 2**30 else ("MiB", 2**20)
    spilled = np.array([sample.spilled for sample in journal.samples]) / unit_bytes
    budget = journal.stats.budget / 2**20
    left, width = 0.63, 0.345
    figure.text(
        left, 0.945,
        f"{format_bytes(journal.put)} through {format_bytes(journal.stats.budget)} of memory",
        fontsize=15, weight="bold", color=_INK,
    )  # fmt: skip
    figure.text(
        left, 0.912, f"{journal.arrays:,} arrays put into one chest, each from earlier ones",
        fontsize=11, color=_FAINT,
    )  # fmt: skip

    disk = figure.add_axes((left, 0.49, width, 0.37))
    disk.fill_between(seconds, spilled, color=_DISK, alpha=0.30, lw=0)
    disk.plot(seconds, spilled, color=_DISK, lw=1.8)
    # Room above the curve for the names of the stages.
    disk.set_ylim(0, float(spilled[-1]) * 1.32)
    disk.set_title(f"Spilled to disk, {unit}", loc="left", fontsize=11, color=_DISK, weight="bold")

    ram = figure.add_axes((left, 0.065, width, 0.355), sharex=disk)
    ram.fill_between(seconds, resident, color=_RAM, alpha=0.30, lw=0)
    ram.plot(seconds, resident, color=_RAM, lw=1.0, label="resident in the chest, charged")
    ram.axhline(budget, color=_LIMIT, lw=1.5, ls=(0, (5, 3)), label="budget")
    top = budget
    if journal.samples[0].anonymous is not None:
        process = np.array([sample.anonymous or 0 for sample in journal.samples]) / 2**20
        process -= process[0]
        ram.plot(
            seconds,
            process,
            color=_PROCESS,
            lw=1.2,
            label="anonymous memory of the process, above its start",
        )
        top = max(top, float(process.max()))
    ram.set_ylim(0, top * 1.35)
    ram.set_title("In RAM, MiB", loc="left", fontsize=11, color=_RAM, weight="bold")
    ram.set_xlabel("seconds", color=_INK, fontsize=10)
    ram.legend(loc="upper left", fontsize=8.5, frameon=False, labelcolor=_INK)

    ends = [start for start, _ in journal.starts[1:]] + [float(seconds[-1])]
    for number, ((start, label), end) in enumerate(zip(journal.starts, ends, strict=True)):
        for ax in (disk, ram):
            if number % 2 == 0:
                ax.axvspan(start, end, color="#000000", alpha=0.035, lw=0, zorder=0)
        # A stage too short for its name goes without.
        if end - start > 0.035 * seconds[-1]:
            disk.text(
                (start + end) / 2, 0.965, label, transform=disk.get_xaxis_transform(),
                rotation=90, ha="center", va="top", fontsize=8.5, color=_INK,
            )  # fmt: skip
    for ax in (disk, ram):
        ax.set_xlim(0, float(seconds[-1]))
        ax.tick_params(colors=_INK, labelsize=9, length=3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(_FAINT)
    disk.tick_params(labelbottom=False)
