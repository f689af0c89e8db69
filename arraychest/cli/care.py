"""``arraychest verify``, ``repair`` and ``compact``: whether a chest is sound, and what helps."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import arraychest
from arraychest.cli.errors import CommandError
from arraychest.cli.printing import readable
from arraychest.text import amount
from arraychest.units import format_bytes, parse_bytes


def add_commands(commands: Any) -> None:
    """Add the parsers to the subparsers of the command line."""
    verify = commands.add_parser(
        "verify",
        help="read every stored value and report damage",
        description="Compares all that is stored with its checksums. Exit code 0: all is well; 1: "
        "something was found, which `arraychest repair` mends; 2: the chest cannot be read.",
        epilog="Example: arraychest verify work.chest --quick",
    )
    verify.add_argument("path", metavar="PATH", help="the chest's folder")
    verify.add_argument(
        "--quick", action="store_true", help="only sizes, headers and places; no data are read"
    )
    verify.add_argument("--json", action="store_true", help="as one JSON document")
    verify.set_defaults(run=_verify, trouble=2)

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
        help="free the room that deleted values left",
        description="Rewrites packs that have holes, and removes what has expired and what nobody "
        "has gone on to write. It can be stopped at any time.",
        epilog="Example: arraychest compact work.chest",
    )
    compact.add_argument("path", metavar="PATH", help="the chest's folder")
    compact.set_defaults(run=_compact)

    reduce = commands.add_parser(
        "reduce",
        help="remove results of cached functions until the rest is within limits",
        description="Removes results of cached functions, those first that were not used for the "
        "longest time, until the rest is within all limits that are given.",
        epilog="Example: arraychest reduce work.chest --bytes '10 GiB'",
    )
    reduce.add_argument("path", metavar="PATH", help="the chest's folder")
    reduce.add_argument("--bytes", metavar="SIZE", type=_bytes, help="most bytes on disk")
    reduce.add_argument("--entries", metavar="N", type=_number, help="largest number of results")
    reduce.add_argument("--days", metavar="N", type=_days, help="remove those not used for N days")
    reduce.add_argument(
        "--everything", action="store_true", help="count and remove all entries, not only results"
    )
    reduce.set_defaults(run=_reduce)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, found {text!r}")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 days or more, found {text!r}")
    return days


def _verify(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        report = chest.verify(read_data=not arguments.quick, progress=sys.stderr.isatty())
    if arguments.json:
        print(json.dumps({"ok": report.ok, "findings": _records_of(report)}, indent=1))
    else:
        _print_findings(report, arguments.path)
        if report.ok:
            print(f"{readable(arguments.path)}: all is as it was written")
    return 0 if report.ok else 1


def _repair(arguments: argparse.Namespace) -> int:
    report = arraychest.repair(arguments.path, progress=sys.stderr.isatty())
    if arguments.json:
        print(json.dumps({"findings": _records_of(report)}, indent=1))
        return 0
    _print_findings(report, arguments.path)
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


def _reduce(arguments: argparse.Namespace) -> int:
    if arguments.bytes is None and arguments.entries is None and arguments.days is None:
        raise CommandError("expected --bytes, --entries or --days, found none")
    # Read first: a wrong path makes no chest.
    arraychest.open(arguments.path, "r").close()
    with arraychest.open(arguments.path, "a") as chest:
        removed = chest.reduce(
            bytes=arguments.bytes,
            entries=arguments.entries,
            age=None if arguments.days is None else arguments.days * 86_400,
            everything=arguments.everything,
        )
    print(f"{amount(removed, 'entry', 'entries')} removed")
    return 0


def _records_of(report: arraychest.Report) -> list[dict[str, Any]]:
    """What was found, as JSON has it."""
    return [
        {
            "kind": each.kind,
            "key": None if each.key is None else repr(each.key),
            "file": each.file,
            "message": each.message,
            "action": each.action,
        }
        for each in report.findings
    ]


def _print_findings(report: arraychest.Report, path: str) -> None:
    """A line for each finding, its columns between tabs."""
    for each in _records_of(report):
        told = [each["kind"], each["key"] or each["file"] or path, each["message"], each["action"]]
        print("\t".join(readable(str(part)) for part in told if part is not None))
