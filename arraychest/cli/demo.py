"""``arraychest demo``: a landscape whose intermediates are many times the memory they may use."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

import arraychest
from arraychest.cli import picture
from arraychest.cli.errors import CommandError
from arraychest.cli.reopening import read_again
from arraychest.cli.sampling import Journal, Progress, Sample, Sampler
from arraychest.cli.terrain import (
    PYRAMID_LAYERS,
    Dem,
    Grid,
    Stage,
    level_name,
    stages,
    window,
)
from arraychest.units import format_bytes, parse_bytes

DEFAULT_SIZE = 10240
DEFAULT_BUDGET = "256 MiB"
DEFAULT_OUTPUT = "arraychest-demo.png"

# Below, the pyramid's top is a handful of cells; above, one float32 layer is some 18 GiB.
MIN_SIZE, MAX_SIZE = 256, 65536

# A few tiles: with less every tile goes straight to disk, and there is no budget to look at.
MIN_BUDGET = 8 << 20

# Under this key a chest keeps how it was computed.
_JOURNAL = "journal"
for _kind in (Journal, Sample, arraychest.Stats):
    arraychest.register(_kind)


def add_commands(commands: Any) -> None:
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
        type=_folder,
        metavar="FOLDER",
        help="make the chest here and keep it, or go on with the one that is here: what was "
        "computed before is not computed again (default: a temporary folder, removed at the end)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary chest too")
    parser.add_argument(
        "--output",
        type=_png,
        default=DEFAULT_OUTPUT,
        metavar="PNG",
        help=f"where the picture goes (default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no picture")
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


def _folder(text: str) -> str:
    if os.path.isdir(text) and (not os.listdir(text) or _is_ours(text)):
        return text
    if os.path.lexists(text):
        raise argparse.ArgumentTypeError(
            f"expected a folder that is not there yet, or an earlier demo's, found {text!r}"
        )
    return text


def _is_ours(path: str) -> bool:
    """Whether an earlier run has made this chest."""
    try:
        with arraychest.open(path, "r") as chest:
            return _JOURNAL in chest
    except (OSError, ValueError):
        return False


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
        _check_space(path, _bytes_of(plan) + _sheet_bytes(grid))
        _print_plan(dem, grid, plan, arguments.budget)
        journal, done = _compute(plan, path, arguments.budget)
        _print_memory(journal)
        _make_sheets(path, grid, arguments.budget, done)
        read_again(path, grid)
        if not arguments.no_picture:
            with arraychest.open(path, available_memory=arguments.budget) as chest:
                # The journal, with its times, is of one run only, and so are the layers.
                draw = chest.cache(picture.draw, ignore=["chest"])
                png = draw(chest, dem, grid, journal)
            with open(arguments.output, "wb") as file:
                file.write(png)
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


def _sheet_bytes(grid: Grid) -> int:
    half = grid.halved()
    return len(PYRAMID_LAYERS) * half.rows * half.cols * np.dtype(np.float32).itemsize


def _check_space(path: str, needed: int) -> None:
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
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


class _Run:
    """What is under way, and how much was put so far."""

    def __init__(
        self, chest: arraychest.Chest, plan: list[Stage], progress: Progress, sampler: Sampler
    ) -> None:
        self.chest = chest
        self.put = self.arrays = self.done = 0
        # The second at which the work on some layers began, and their names.
        self.starts: list[tuple[float, str]] = []
        self._total = sum(_tiles_of(stage) for stage in plan)
        self._progress = progress
        self._sampler = sampler

    def begin(self, stage: Stage) -> None:
        """Note when the work on a stage begins; the levels of the pyramid are one line."""
        self._began = self._sampler.elapsed()
        label = ", ".join(stage.layers)
        if "/" not in label:
            self.starts.append((self._began, label))
        elif self.starts[-1][1] != "pyramid":
            self.starts.append((self._began, "pyramid"))

    def tile_done(self, stage: Stage) -> None:
        """Move the bars."""
        self.done += 1
        self._progress.show(stage.title, self.done / self._total, self._sampler.samples[-1])

    def end(self, stage: Stage, is_kept: bool) -> None:
        """Print a line about a stage, whose tiles were computed now or kept from an earlier run."""
        if is_kept:
            self.done += _tiles_of(stage)
            seconds = self._sampler.look().seconds - self._began
            self._progress.line(f"  {stage.title:<24} {seconds:5.2f} s   kept")
        else:
            self._line(stage.title, self._began, "spilled")

    def flush(self) -> None:
        """Flush the chest, and print a line about it."""
        began = self._sampler.elapsed()
        self.chest.flush()
        if self.arrays:
            self._line("flushed", began, "stored")
        else:
            seconds = self._sampler.look().seconds
            self._progress.line(f"  {'everything':<24} {seconds:5.2f} s   kept")

    def _line(self, title: str, began: float, where: str) -> None:
        now = self._sampler.look()
        self._progress.line(
            f"  {title:<24} {now.seconds - began:5.1f} s   "
            f"{format_bytes(now.resident):>8} in RAM   {format_bytes(now.spilled):>8} {where}"
        )


def _tiles_of(stage: Stage) -> int:
    return stage.grid.tile_rows * stage.grid.tile_cols


def _layers(stage: Stage, after: str, run: _Run) -> dict[str, int]:  # noqa: ARG001  # see `_compute`
    """Put every tile of some layers; returns of each layer how many tiles it has."""
    for row, col in stage.grid.tiles():
        tiles = stage.compute(run.chest, row, col)
        for layer, tile in zip(stage.layers, tiles, strict=True):
            run.put += tile.nbytes
            run.arrays += 1
            run.chest[layer, row, col] = tile
        run.tile_done(stage)
    return dict.fromkeys(stage.layers, _tiles_of(stage))


def _compute(plan: list[Stage], path: str, budget: int) -> tuple[Journal, str]:
    """Compute every layer that is not in the chest; on failure nothing of a new one is left.

    Returns the journal of the run that computed them, and what says which layers they are.
    """
    known = os.path.isdir(path) and _is_ours(path)
    # "x": whatever lies in the folder, it is never this command's to empty.
    chest = arraychest.Chest(path=path, available_memory=budget, mode="a" if known else "x")
    try:
        with Progress(budget) as progress, Sampler(chest) as sampler:
            run = _Run(chest, plan, progress, sampler)
            layers = chest.cache(_layers, ignore=["run"])
            after = ""
            for stage in plan:
                run.begin(stage)
                misses = layers.stats().misses
                if not _is_complete(stage, chest):
                    # Removed, or not stored when an earlier run was killed.
                    layers.invalidate(stage, after, run)
                layers(stage, after, run)
                # Each depends on those before it: what it is called says which those were.
                after = layers.key(stage, after, run)
                run.end(stage, is_kept=layers.stats().misses == misses)
            stats = chest.stats()
            run.flush()
        if run.arrays:
            chest[_JOURNAL] = Journal(sampler.samples, run.starts, run.put, run.arrays, stats)
        else:
            print(
                "\nNothing had to be computed: all of this was kept from an earlier run, of which"
            )
        journal = chest[_JOURNAL]
        chest.close()
    except BaseException:
        # Also after Ctrl-C: half a landscape is of no use, and would be in the next run's way.
        with contextlib.suppress(OSError, arraychest.ArrayChestError):
            if known:
                chest.close()
            else:
                chest.drop()
        raise
    return journal, after


def _is_complete(stage: Stage, chest: arraychest.Chest) -> bool:
    return all(
        (layer, row, col) in chest for layer in stage.layers for row, col in stage.grid.tiles()
    )


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
        print("Anonymous memory: this system does not say how much there is.")


# --- large arrays ------------------------------------------------------------------------------


def _sheet(layer: str, half: Grid, after: str, chest: arraychest.Chest) -> np.ndarray:  # noqa: ARG001
    """A layer of the pyramid's first level as one array."""
    return window(chest, level_name(layer, 1), half, 0, half.rows, 0, half.cols)


def _make_sheets(path: str, grid: Grid, budget: int, after: str) -> None:
    """Put each layer of the pyramid's first level as one array, and say what became of them all.

    Tiles are too small to be sampled; a sheet is compressed where that is worth it.
    """
    half = grid.halved()
    nbytes = half.rows * half.cols * np.dtype(np.float32).itemsize
    above = min(arraychest.COMPRESS_ABOVE, nbytes)
    with arraychest.open(path, "a", budget, compress_above=above) as chest:
        sheet = chest.cache(_sheet, ignore=["chest"])
        for layer in PYRAMID_LAYERS:
            sheet.entry(layer, half, after, chest)  # computed where it is missing, and not read
        codecs: dict[str, tuple[int, int, int]] = {}
        for key in chest:
            entry = chest.entry(key)
            if entry.kind != "array":
                continue  # what the cached functions returned
            count, before, stored = codecs.get(entry.codec or "", (0, 0, 0))
            codecs[entry.codec or ""] = (
                count + 1,
                before + entry.nbytes,
                stored + entry.stored_bytes,
            )
    print(
        f"\nThree sheets of {half.cols} x {half.rows} cells, each one array of "
        f"{format_bytes(nbytes)}, sampled and compressed where that is\nworth it. "
        "By codec, the chest now holds"
    )
    for codec, (count, before, stored) in sorted(codecs.items()):
        saved = f", {1 - stored / before:.0%} saved" if stored < before else ""
        print(
            f"  {codec:<6} {count:>7,} arrays of {format_bytes(before):>8} in "
            f"{format_bytes(stored):>8}{saved}"
        )
