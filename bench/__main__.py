"""``python -m bench``: options, tables, and the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import signal
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

import arraychest
from bench import report
from bench.checks import BY_NAME, CHECKS
from bench.peers import PEERS
from bench.peers.base import PeerMissingError
from bench.race import Runner
from bench.workloads import RACES

# Rounds of a check at the full scale; a race says its own.
_CHECK_ROUNDS = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen workloads and print their tables; returns the exit code."""
    options = _parse(arguments)
    if options.markdown is not None:
        document = json.loads(options.markdown.read_text(encoding="utf-8"))
        print(report.markdown(document), report.short(document), sep="\n", end="")
        return 0
    # SIGTERM ends the program as Ctrl-C does, so that the temporary folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    if not console.is_terminal:
        # A log, not a window: wide enough that no figure is cut off.
        console.width = 200
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="arraychest-bench-", dir=options.dir, ignore_cleanup_errors=True
    ) as folder:
        document = _run(options, Path(folder), console)
    if document["workloads"]:
        console.print(report.summary(document))
    broken = [*report.failures(document), *document["broken"].items()]
    judged = [*(each.met for each in report.verdicts(document)), *_met(document["checks"])]
    judged = [met for met in judged if met is not None]
    console.print(f"{sum(judged)} of {len(judged)} goals met; {document['seconds']:.0f} s in all")
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        from bench.plot import plot

        plot(document, options.plot)
    for words in broken:
        console.print(f"broken: {', '.join(words[:-1])}", style="red")
    return 1 if broken or (options.check and not all(judged)) else 0


def _run(options: argparse.Namespace, folder: Path, console: Console) -> report.Document:
    small = options.scale == "small"
    start = perf_counter()
    document: report.Document = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench", *options.words]),
        "scale": options.scale,
        "machine": _machine(folder),
        "versions": _versions(options.peers),
        "workloads": [],
        "checks": [],
        "skipped": {},
        "broken": {},
    }
    console.print("  ".join(f"{name} {value}" for name, value in document["machine"].items()))
    status = console.status("")
    runner = Runner(
        folder,
        small=small,
        rounds=options.rounds,
        peers=options.peers,
        say=lambda line: status.update(line),
    )
    with status, runner:
        for name in options.workloads:
            before = perf_counter()
            if name in RACES:
                race = report.document_of(runner.run(RACES[name]()), small=small)
                document["workloads"].append(race)
                console.print(report.table(race))
                for why in dict.fromkeys(race["skipped"].values()):
                    those = ", ".join(peer for peer, its in race["skipped"].items() if its == why)
                    console.print(f"  skipped: {those}: {why}", markup=False, style="dim")
                for peer, why in race["failed"].items():
                    console.print(f"  failed {peer}: {why}", markup=False, style="red")
            else:
                _check(name, options, folder, status, console, document)
            console.print(f"{name}: {perf_counter() - before:.1f} s", style="dim")
    document["seconds"] = round(perf_counter() - start, 1)
    return document


def _check(
    name: str,
    options: argparse.Namespace,
    folder: Path,
    status: Status,
    console: Console,
    document: report.Document,
) -> None:
    from bench.checks.harness import Bench, table_of

    small = options.scale == "small"
    rounds = options.rounds or (1 if small else _CHECK_ROUNDS)
    bench = Bench(folder, rounds, small=small, say=partial(_say, status, name))
    try:
        rows = CHECKS[name](bench)
    except Exception:  # the others still run; the exit code tells
        document["broken"][name] = traceback.format_exc()
        console.print(traceback.format_exc(), markup=False, highlight=False)
        return
    document["checks"] += [
        # The small scale judges nothing.
        {**dataclasses.asdict(row), "ratio": row.ratio, "met": None if small else row.met}
        for row in rows
    ]
    document["skipped"] |= bench.skipped
    console.print(table_of(rows, name))
    for what, reason in bench.skipped.items():
        console.print(f"  skipped {what}: {reason}", markup=False, style="dim")


def _say(status: Status, name: str, line: str) -> None:
    status.update(f"{name}: {line}")


def _met(rows: list[dict[str, Any]]) -> list[bool | None]:
    return [row["met"] for row in rows]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="arraychest beside the machine's own limit and its peers, in one run.",
        epilog=f"Workloads with peers: {', '.join(RACES)}. Checks of arraychest: "
        f"{', '.join(CHECKS)}. Peers: {', '.join(PEERS)}.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="WORKLOAD", help="which ones; all by default (see below)"
    )
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD", help="the same")
    parser.add_argument(
        "--peers",
        metavar="NAME,…",
        help="those with one of these words in their names",
    )
    parser.add_argument("--rounds", type=int, help="default: what each workload says; 1 in small")
    parser.add_argument(
        "--scale",
        choices=("small", "full"),
        default="full",
        help="small only shows that everything runs and gives right answers",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (PNG or SVG)")
    parser.add_argument(
        "--markdown", type=Path, metavar="JSON", help="print the tables of that run, and end"
    )
    parser.add_argument("--dir", type=Path, help="where files go for the while; default: temporary")
    parser.add_argument("--check", action="store_true", help="end with 1 if a goal is missed")
    options = parser.parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    chosen = [word for text in (*options.names, *options.only) for word in text.split(",")]
    known = [*RACES, *CHECKS]
    for name in chosen:
        if name not in known:
            parser.error(f"expected workloads among {', '.join(known)}, found {name!r}")
    # "dask" is all that has to do with it.
    options.workloads = [
        name
        for name in known
        if (not chosen and name not in BY_NAME)
        or any(name == word or name.startswith(f"{word}-") for word in chosen)
    ]
    if options.rounds is not None and options.rounds < 1:
        parser.error("expected at least one round")
    options.peers = _chosen_peers(parser, options.peers)
    return options


def _chosen_peers(parser: argparse.ArgumentParser, words: str | None) -> list[str]:
    if words is None:
        return list(PEERS)
    found: set[str] = set()
    for word in words.split(","):
        fitting = [name for name in PEERS if word.strip() in name]
        if not fitting:
            parser.error(f"expected peers among {', '.join(PEERS)}, found {word!r}")
        found.update(fitting)
    return [name for name in PEERS if name in found]


def _versions(names: list[str]) -> dict[str, str]:
    found = {"Python": platform.python_version(), "numpy": np.__version__}
    for name in names:
        try:
            found.setdefault(PEERS[name].package, PEERS[name].version())
        except PeerMissingError:
            continue
    found["arraychest"] = arraychest.__version__
    return found


def _machine(folder: Path) -> dict[str, str]:
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(file.readline().split()[1])
    return {
        "CPU": f"{os.cpu_count()} × {_cpu()}",
        "memory": f"{total / (1 << 20):.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "files": _file_system(folder),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _file_system(folder: Path) -> str:
    try:
        with open("/proc/mounts", encoding="utf-8") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return "?"
    path = os.path.realpath(folder) + "/"
    fitting = [(len(at), kind) for at, kind in mounts if path.startswith(at.rstrip("/") + "/")]
    return max(fitting, default=(0, "?"))[1]


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130  # as shells say it; the folder is gone by now
    sys.exit(code)
