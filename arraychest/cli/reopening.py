"""The demo's last step: a fresh process opens the chest and reads one window."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib

import numpy as np

import arraychest
from arraychest.cli.errors import CommandError
from arraychest.cli.terrain import LEVELS, Grid, level_name, window
from arraychest.platform.pages import anonymous_bytes
from arraychest.units import format_bytes

# Side of the window that the fresh process reads, in cells.
WINDOW = 256

_PEEK = "from arraychest.cli.reopening import peek; peek()"


def read_again(path: str, grid: Grid) -> None:
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
