"""``python -m bench``: options, the table, and the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.status import Status
from rich.table import Table

import arraychest
from bench.harness import Bench, Row
from bench.workloads import WORKLOADS

_ROUNDS = {"full": 7, "small": 2}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen workloads and print one table; returns the exit code."""
    options = _parse(arguments)
    # SIGTERM ends the program as Ctrl-C does, so that the temporary folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    if not console.is_terminal:
        # A log, not a window: wide enough that no figure is cut off.
        console.width = 160
    small = options.scale == "small"
    rounds = options.rounds or _ROUNDS[options.scale]
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    broken: list[str] = []
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="arraychest-bench-", dir=options.dir, ignore_cleanup_errors=True
    ) as folder:
        machine = _machine(folder)
        console.print("  ".join(f"{name} {value}" for name, value in machine.items()))
        for name in options.workloads:
            start = perf_counter()
            with console.status(name) as status:
                bench = Bench(
                    Path(folder),
                    rounds,
                    small=small,
                    say=partial(_say, status, name),
                )
                try:
                    rows += WORKLOADS[name](bench)
                except Exception:  # the others still run; the exit code tells
                    broken.append(name)
                    console.print(f"[red]{name} broke[/red]")
                    console.print(traceback.format_exc(), markup=False, highlight=False)
            bench.forget_arrays()
            skipped |= bench.skipped
            console.print(f"{name}: {perf_counter() - start:.1f} s", style="dim")
    console.print(_table(rows, f"scale {options.scale}, {rounds} rounds"))
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False)
    judged = [row for row in rows if row.met is not None]
    missed = [row for row in judged if not row.met]
    console.print(f"{len(judged) - len(missed)} of {len(judged)} floors met")
    if options.json is not None:
        document = {
            "machine": machine,
            "scale": options.scale,
            "rounds": rounds,
            "rows": [_plain(row) for row in rows],
            "skipped": skipped,
            "broken": broken,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if broken:
        console.print(f"broken: {', '.join(broken)}", style="red")
    return 1 if broken or (options.check and missed) else 0


def _say(status: Status, name: str, line: str) -> None:
    status.update(f"{name}: {line}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="arraychest beside the machine's own limit and its peers, in one run.",
    )
    names = ", ".join(WORKLOADS)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=f"of {names}; all by default")
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD", help="the same")
    parser.add_argument("--rounds", type=int, help="default: 7 in full, 2 in small")
    parser.add_argument(
        "--scale",
        choices=("small", "full"),
        default="full",
        help="small only shows that everything runs and gives right answers",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--dir", type=Path, help="where files go for the while; default: temporary")
    parser.add_argument("--check", action="store_true", help="end with 1 if a floor is missed")
    options = parser.parse_args(arguments)
    chosen = [word for text in (*options.names, *options.only) for word in text.split(",")]
    for name in chosen:
        if name not in WORKLOADS:
            parser.error(f"expected workloads among {names}, found {name!r}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("expected at least one round")
    options.workloads = [name for name in WORKLOADS if not chosen or name in chosen]
    return options


def _machine(folder: str) -> dict[str, str]:
    return {
        "arraychest": arraychest.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "system": platform.system() + " " + platform.release(),
        "CPUs": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.2f}",
        "files": f"{folder} ({_file_system(folder)})",
    }


def _file_system(folder: str) -> str:
    try:
        with open("/proc/mounts", encoding="utf-8") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return "?"
    path = os.path.realpath(folder) + "/"
    fitting = [(len(at), kind) for at, kind in mounts if path.startswith(at.rstrip("/") + "/")]
    return max(fitting, default=(0, "?"))[1]


def _table(rows: list[Row], title: str) -> Table:
    table = Table(
        title=f"median (best); {title}",
        title_justify="left",
        caption="Peers that take many times as long are measured once, on fewer arrays.",
        caption_justify="left",
    )
    for name, justify in (
        ("workload", "left"),
        ("measure", "left"),
        ("arraychest", "right"),
        ("compared with", "left"),
        ("it", "right"),
        ("ratio", "right"),
        ("floor", "right"),
        ("met", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    last = ""
    for row in rows:
        if last and row.workload != last:
            table.add_section()
        last = row.workload
        ratio = row.ratio
        floor = ""
        if row.floor is not None:
            sign = "≥" if row.floor.at_least else "≤"
            floor = f"{sign} {row.floor.value:g}" + (" ×" if row.floor.of_ratio else f" {row.unit}")
        met = {None: "", True: "[green]yes[/green]", False: "[red]NO[/red]"}[row.met]
        table.add_row(
            row.workload,
            row.measure,
            _figures(row, row.ours),
            row.against,
            _figures(row, row.theirs),
            "" if ratio is None else _short(ratio),
            floor,
            met,
        )
    return table


def _figures(row: Row, figures: list[float]) -> str:
    if not figures:
        return ""
    median, best = statistics.median(figures), row.best(figures)
    return f"{_short(median)} ({_short(best)}) {row.unit}"


def _short(figure: float) -> str:
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.3g}" if abs(figure) >= 0.01 else f"{figure:.4f}"


def _plain(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "ratio": row.ratio, "met": row.met}


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130  # as shells say it; the folder is gone by now
    sys.exit(code)
