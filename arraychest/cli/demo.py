"""``arraychest demo``: a landscape whose intermediates are many times the memory they may use."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

import arraychest
from arraychest.cli import CommandError
from arraychest.cli.terrain import (
    LEVELS,
    SUN_ALTITUDE,
    Dem,
    Grid,
    Stage,
    level_name,
    stages,
    window,
)
from arraychest.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFAULT_SIZE = 10240
DEFAULT_BUDGET = "256 MiB"
DEFAULT_OUTPUT = "arraychest-demo.png"

# Below, the pyramid's top is a handful of cells; above, one float32 layer is some 18 GiB.
MIN_SIZE, MAX_SIZE = 256, 65536

# A few tiles: with less every tile goes straight to disk, and there is no budget to look at.
MIN_BUDGET = 8 << 20

# Between two looks at memory, seconds.  A peak of one tile's temporaries lasts about as long.
SAMPLE_SECONDS = 0.01

# Side of the window that the fresh process reads, in cells.
WINDOW = 256

_PEEK = "from arraychest.cli.demo import peek; peek()"


def add_command(commands: Any) -> None:
    """Add ``demo`` to the command line."""
    parser = commands.add_parser(
        "demo",
        help="compute a landscape through a chest, within a small memory budget",
        description="Refines the elevation model that ships with Matplotlib and computes slope, "
        "aspect, hillshades, relief and a pyramid from it, tile by tile through a chest that keeps "
        "to a memory budget. Then reopens the chest in a fresh process, and draws a picture.",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=DEFAULT_SIZE,
        metavar="CELLS",
        help=f"cells from west to east; the chest grows with its square, to some 4 GiB at "
        f"{DEFAULT_SIZE} (default: {DEFAULT_SIZE})",
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        default=_budget(DEFAULT_BUDGET),
        metavar="SIZE",
        help=f'memory for the arrays kept in RAM, such as "1 GiB" (default: {DEFAULT_BUDGET})',
    )
    parser.add_argument(
        "--path",
        type=_new_folder,
        metavar="FOLDER",
        help="make the chest here and keep it (default: a temporary folder, removed at the end)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary chest too")
    parser.add_argument(
        "--output",
        type=_png,
        default=DEFAULT_OUTPUT,
        metavar="PNG",
        help=f"where the picture goes (default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw none")
    parser.set_defaults(run=_run)


# --- arguments ---------------------------------------------------------------------------------


def _size(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise argparse.ArgumentTypeError(
            f"expected a number of cells from {MIN_SIZE} to {MAX_SIZE}, found {text!r}"
        )
    return size


def _budget(text: str) -> int:
    try:
        budget = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if budget < MIN_BUDGET:
        raise argparse.ArgumentTypeError(
            f"expected a budget of {format_bytes(MIN_BUDGET)} or more, found {text!r}"
        )
    return budget


def _new_folder(text: str) -> str:
    if os.path.isdir(text) and not os.listdir(text):
        return text
    if os.path.lexists(text):
        raise argparse.ArgumentTypeError(f"expected a folder that is not there yet, found {text!r}")
    return text


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, found {text!r}")
    # Found out now, not after the minute that comes before the picture.
    existed = os.path.lexists(text)
    try:
        with open(text, "ab"):
            pass
        if not existed:
            os.unlink(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    return text


# --- the command -------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    dem = _measured()
    grid = Grid.over(dem, arguments.size)
    plan = stages(dem, grid)
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(_ended_politely())
        path = arguments.path
        if path is None:
            folder = tempfile.mkdtemp(prefix="arraychest-demo-")
            if not arguments.keep:
                cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            path = os.path.join(folder, "terrain.chest")
        _check_space(path, plan)
        _print_plan(dem, grid, plan, arguments.budget)
        journal = _compute(plan, path, arguments.budget)
        _print_memory(journal)
        _read_again(path, grid)
        if not arguments.no_picture:
            with arraychest.open(path, mode="r") as chest:
                _draw(chest, dem, grid, journal, arguments.output)
            print(f"\nPicture: {arguments.output}")
        if arguments.path or arguments.keep:
            print(f"\nThe chest stays in {path}")
    return 0


@contextlib.contextmanager
def _ended_politely() -> Iterator[None]:
    """Have a closed terminal and a plain `kill` clean up, as Ctrl-C does."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    # Python lets no other thread set handlers; there the signals do what they did.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measured() -> Dem:
    """The elevation model in Matplotlib's sample data: hills around the Jacksboro fault."""
    try:
        from matplotlib import cbook
    except ImportError:
        raise CommandError('Matplotlib is missing: pip install "arraychest[demo]"') from None
    name = str(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))
    with np.load(name) as data:
        return Dem(
            data["elevation"],
            west=float(data["xmin"]),
            east=float(data["xmax"]),
            # The file counts from the top: its least y is that of the northern edge.
            south=float(data["ymax"]),
            north=float(data["ymin"]),
        )


def _bytes_of(plan: list[Stage]) -> int:
    return sum(
        len(stage.layers) * stage.grid.rows * stage.grid.cols * np.dtype(np.float32).itemsize
        for stage in plan
    )


def _check_space(path: str, plan: list[Stage]) -> None:
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    needed, free = _bytes_of(plan), shutil.disk_usage(folder).free
    if needed > free:
        raise CommandError(
            f"{format_bytes(needed)} are needed in {folder}, and {format_bytes(free)} are free: "
            "choose another --path or a smaller --size"
        )


def _print_plan(dem: Dem, grid: Grid, plan: list[Stage], budget: int) -> None:
    rows, cols = dem.heights.shape
    nbytes = _bytes_of(plan)
    print(
        f"Terrain at the Jacksboro fault, Tennessee: {cols} x {rows} measured heights, refined to "
        f"{grid.cols} x {grid.rows}\ncells of {grid.dx:.1f} m, in {grid.tile_rows * grid.tile_cols}"
        f" tiles of up to {grid.tile} x {grid.tile}.\n"
        f"All layers together: {format_bytes(nbytes)}, {nbytes / budget:.1f} times the budget of "
        f"{format_bytes(budget)}.\n",
        flush=True,
    )


class Sample(NamedTuple):
    """One look at memory: seconds since the start, and bytes."""

    seconds: float
    resident: int
    spilled: int
    anonymous: int | None


class Journal(NamedTuple):
    """What happened while the layers were computed.

    Attributes
    ----------
    samples
        Looks at memory, in order.
    starts
        Second at which the work on some layers began, and their names.
    put
        Bytes put into the chest.
    arrays
        How many arrays those were.
    stats
        The chest's own account.
    """

    samples: list[Sample]
    starts: list[tuple[float, str]]
    put: int
    arrays: int
    stats: arraychest.Stats


def _compute(plan: list[Stage], path: str, budget: int) -> Journal:
    """Compute every layer through a chest in a new folder; on failure nothing of it is left."""
    # "x": whatever lies in the folder, it is never this command's to empty.
    chest = arraychest.Chest(path=path, available_memory=budget, mode="x")
    total = sum(stage.grid.tile_rows * stage.grid.tile_cols for stage in plan)
    starts: list[tuple[float, str]] = []
    put = arrays = done = 0
    try:
        with Progress(budget) as progress, Sampler(chest) as sampler:
            for stage in plan:
                began = sampler.elapsed()
                label = ", ".join(stage.layers)
                if "/" not in label:
                    starts.append((began, label))
                elif starts[-1][1] != "pyramid":
                    starts.append((began, "pyramid"))
                for row, col in stage.grid.tiles():
                    tiles = stage.compute(chest, row, col)
                    for layer, tile in zip(stage.layers, tiles, strict=True):
                        put += tile.nbytes
                        arrays += 1
                        chest[layer, row, col] = tile
                    done += 1
                    progress.show(stage.title, done / total, sampler.samples[-1])
                now = sampler.look()
                progress.line(
                    f"  {stage.title:<24} {now.seconds - began:5.1f} s   "
                    f"{format_bytes(now.resident):>8} in RAM   "
                    f"{format_bytes(now.spilled):>8} spilled"
                )
            stats = chest.stats()
            began = sampler.elapsed()
            chest.flush()
            now = sampler.look()
            progress.line(
                f"  {'flushed':<24} {now.seconds - began:5.1f} s   "
                f"{format_bytes(now.resident):>8} in RAM   {format_bytes(now.spilled):>8} stored"
            )
        chest.close()
    except BaseException:
        # Also after Ctrl-C: half a landscape is of no use, and would be in the next run's way.
        with contextlib.suppress(OSError, arraychest.ArrayChestError):
            chest.drop()
        raise
    return Journal(sampler.samples, starts, put, arrays, stats)


def _print_memory(journal: Journal) -> None:
    stats = journal.stats
    gets = stats.hits + stats.misses
    print(
        f"\nThrough the chest: {format_bytes(journal.put)} put in {journal.arrays:,} arrays, read "
        f"back in {gets:,} gets,\n"
        f"{stats.hits / max(gets, 1):.0%} of them from RAM or a map kept open."
    )
    budget = f"budget {format_bytes(stats.budget)}"
    peak = max(sample.resident for sample in journal.samples)
    print(f"Charged to the chest: {format_bytes(peak)} at most ({budget}).")
    anonymous = [s.anonymous for s in journal.samples if s.anonymous is not None]
    if anonymous:
        start, top = anonymous[0], max(anonymous)
        print(
            f"Anonymous memory: {format_bytes(top)} at most, {format_bytes(top - start)} above the "
            f"{format_bytes(start)} before the first tile."
        )
    else:
        print("Anonymous memory: not available, this system has no RssAnon in /proc/self/status.")


# --- memory, as it is used ---------------------------------------------------------------------


def anonymous_bytes() -> int | None:
    """Memory of this process that no file backs, in bytes; None where Linux is not there to say.

    Not the resident set size: that counts mapped files too, which the kernel takes back at will.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return None


class Sampler:
    """Looks at a chest and at this process's memory every `SAMPLE_SECONDS`, in a thread.

    Attributes
    ----------
    samples
        What it saw; one from the start on.
    """

    def __init__(self, chest: arraychest.Chest) -> None:
        self._chest = chest
        self._began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="arraychest-demo-sampler")
        self.samples: list[Sample] = []
        self.look()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def look(self) -> Sample:
        """Take a sample now."""
        stats = self._chest.stats()
        sample = Sample(self.elapsed(), stats.charged, stats.bytes_spilled, anonymous_bytes())
        self.samples.append(sample)
        return sample

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


class Progress:
    """Lines of text and, on a terminal, two live bars below them: the work, and the budget."""

    def __init__(self, budget: int) -> None:
        self._live: Any = None
        # Blosc2 brings rich along; should it stop doing so, the lines alone will do.
        with contextlib.suppress(ImportError):
            from rich import progress

            self._live = progress.Progress(
                progress.TextColumn("  {task.description:<22}"),
                progress.BarColumn(bar_width=24),
                progress.TextColumn("{task.fields[note]}"),
                transient=True,
            )
            if not self._live.console.is_terminal:
                self._live = None
        if self._live is not None:
            self._work = self._live.add_task("", total=1, note="")
            self._ram = self._live.add_task(
                f"budget of {format_bytes(budget)}", total=budget, note=""
            )

    def show(self, title: str, share: float, sample: Sample) -> None:
        """Move the bars."""
        if self._live is None:
            return
        self._live.update(
            self._work,
            description=title,
            completed=share,
            note=f"{share:4.0%}  {sample.seconds:.0f} s",
        )
        self._live.update(
            self._ram,
            completed=sample.resident,
            note=f"{format_bytes(sample.resident)} in RAM, {format_bytes(sample.spilled)} spilled",
        )

    def line(self, text: str) -> None:
        """Print a line, above the bars."""
        if self._live is None:
            print(text, flush=True)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


# --- a fresh process ---------------------------------------------------------------------------


def _read_again(path: str, grid: Grid) -> None:
    """Have a fresh process open the chest and read one window, and compare what it read."""
    with arraychest.open(path, mode="r") as chest:
        small = grid
        for _ in range(LEVELS):
            small = small.halved()
        tops = window(chest, level_name("elevation", LEVELS), small, 0, small.rows, 0, small.cols)
        peak = np.unravel_index(np.argmax(tops), tops.shape)
        row, col = (
            min(max(int(at) * 2**LEVELS, WINDOW // 2), side - WINDOW // 2)
            for at, side in zip(peak, (grid.rows, grid.cols), strict=True)
        )
        bounds = [row - WINDOW // 2, row + WINDOW // 2, col - WINDOW // 2, col + WINDOW // 2]
        here = zlib.crc32(window(chest, "elevation", grid, *bounds).data)
    question = json.dumps({"path": path, "grid": grid, "bounds": bounds})
    child = subprocess.run(  # noqa: S603  # this interpreter, and a program without parameters
        [sys.executable, "-c", _PEEK], input=question, capture_output=True, text=True, check=False
    )
    if child.returncode:
        reason = child.stderr.strip().rpartition("\n")[2]
        raise CommandError(f"the fresh process ended with code {child.returncode}: {reason}")
    found = json.loads(child.stdout)
    if found["crc"] != here:
        raise CommandError("the fresh process read other numbers than were stored")
    anonymous = found["anonymous"]
    print(
        f"\nOpened again by a fresh process: {found['opened'] * 1e3:.1f} ms to open "
        f"{found['entries']:,} arrays, {found['first'] * 1e6:.0f} us more to the first\n"
        f"element, elevation[{bounds[0]}, {bounds[2]}] = {found['element']:.1f} m.\n"
        f"Its window elevation[{bounds[0]}:{bounds[1]}, {bounds[2]}:{bounds[3]}] around the summit:"
        f" shape {tuple(found['shape'])}, {found['dtype']},\n"
        f"{found['min']:.1f} to {found['max']:.1f} m, mean {found['mean']:.1f} m, the bits that "
        "were stored.\n"
        f"Anonymous memory of that process: "
        f"{'not available' if anonymous is None else format_bytes(anonymous)}."
    )


def peek() -> None:
    """Read one window of a chest: what the fresh process runs, JSON in and JSON out."""
    asked = json.load(sys.stdin)
    grid, bounds = Grid(*asked["grid"]), asked["bounds"]
    began = time.perf_counter()
    with arraychest.open(asked["path"], mode="r") as chest:
        opened = time.perf_counter()
        tile_row, row = divmod(bounds[0], grid.tile)
        tile_col, col = divmod(bounds[2], grid.tile)
        element = chest["elevation", tile_row, tile_col][row, col]
        first = time.perf_counter()
        cells = window(chest, "elevation", grid, *bounds)
        answer = {
            "opened": opened - began,
            "first": first - opened,
            "element": float(element),
            "entries": len(chest),
            "shape": cells.shape,
            "dtype": str(cells.dtype),
            "min": float(cells.min()),
            "max": float(cells.max()),
            "mean": float(cells.mean()),
            "crc": zlib.crc32(cells.data),
            "anonymous": anonymous_bytes(),
        }
    json.dump(answer, sys.stdout)


# --- the picture -------------------------------------------------------------------------------

# From wooded valleys to bare tops, paler than the ground is, so that the shade can darken them.
_TINTS = ("#7fa087", "#a9bf90", "#d3d3a0", "#e6d3a3", "#d9b48c", "#c79b80", "#e2cfc4", "#f7f3ef")
_INK, _FAINT = "#2b2f36", "#8a9099"
_RAM, _DISK, _PROCESS, _LIMIT = "#3f78b5", "#d08a3c", "#7a5a9e", "#b3372f"

# Rows of the shade that the map shows at least: some more than it has pixels.
_MAP_ROWS = 1200


def _draw(chest: arraychest.Chest, dem: Dem, grid: Grid, journal: Journal, output: str) -> None:
    """The shaded, tinted map beside what was in RAM and on disk over time."""
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
    figure.savefig(output, format="png")


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
