"""``arraychest repair`` and ``arraychest compact``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import arraychest
from arraychest.cli.looking import print_findings, readable, records_of
from arraychest.units import format_bytes


def add_commands(commands: Any) -> None:
    """Add both parsers to the subparsers of the command line."""
    repair = commands.add_parser(
        "repair",
        help="mend what verify finds, and a lost catalog",
        description="Mends what can be mended, moves what is damaged to the chest's quarantine, "
        "and says what was done. A catalog that is lost or damaged is made anew from the values' "
        "files, for which nobody else may have the chest open.",
        epilog="Example: arraychest repair work.chest",
    )
    repair.add_argument("path", metavar="PATH", help="the chest's folder")
    repair.add_argument("--json", action="store_true", help="as one JSON document")
    repair.set_defaults(run=_repair)

    compact = commands.add_parser(
        "compact",
        help="give back what deleted values left",
        description="Rewrites packs that have holes, and removes what has expired and what nobody "
        "has gone on to write. It can be stopped at any time.",
        epilog="Example: arraychest compact work.chest",
    )
    compact.add_argument("path", metavar="PATH", help="the chest's folder")
    compact.set_defaults(run=_compact)


def _repair(arguments: argparse.Namespace) -> int:
    report = arraychest.repair(arguments.path, progress=sys.stderr.isatty())
    if arguments.json:
        print(json.dumps({"findings": records_of(report)}, indent=1))
        return 0
    print_findings(report, arguments.path)
    if report.ok:
        print(f"{readable(arguments.path)}: there was nothing to mend")
    return 0


def _compact(arguments: argparse.Namespace) -> int:
    # Read first: a wrong path makes no chest.
    arraychest.open(arguments.path, "r").close()
    with arraychest.open(arguments.path, "a") as chest:
        given = chest.compact(progress=sys.stderr.isatty())
    print(f"{format_bytes(given)} given back")
    return 0
