"""``arraychest ls`` and ``arraychest verify``: what a chest holds, and whether it is sound.

Neither changes the chest.  Keys and file names may be a stranger's: none reaches a terminal with a
control character in it, which could do anything there.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import arraychest
from arraychest.units import format_bytes


class _Listed(NamedTuple):
    key: Any
    text: str
    entry: arraychest.Entry


_ORDERS: dict[str, Callable[[_Listed], Any]] = {
    "key": lambda each: each.text,
    "size": lambda each: each.entry.nbytes,
    "stored": lambda each: each.entry.stored_bytes,
    "age": lambda each: stored_at(each.entry) or 0.0,
}


def add_commands(commands: Any) -> None:
    """Add both parsers to the subparsers of the command line."""
    listing = commands.add_parser(
        "ls",
        help="list what a chest holds",
        description="Lists keys, shapes, dtypes, sizes and codecs; reads no values. Columns are "
        "separated by tabs where the output is no terminal.",
        epilog="Examples: arraychest ls work.chest 'slope*' --sort size; "
        "arraychest ls work.chest --json",
    )
    listing.add_argument("path", metavar="PATH", help="the chest's folder")
    listing.add_argument("glob", nargs="?", metavar="GLOB", help="only keys that match")
    listing.add_argument(
        "--sort", choices=list(_ORDERS), help="by default as they were put; the largest first"
    )
    listing.add_argument("-r", "--reverse", action="store_true", help="the other way round")
    listing.add_argument("--json", action="store_true", help="as one JSON document, in bytes")
    listing.set_defaults(run=_list)

    verify = commands.add_parser(
        "verify",
        help="read all that is stored and say what is not as it was written",
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


def readable(text: str) -> str:
    """A text without what a terminal, or a line of output, would take for something else."""
    return text if text and text.isprintable() else repr(text)


def counted(values: int) -> str:
    """How many values, in words."""
    return f"{values:,} value{'s' * (values != 1)}"


def _text_of(key: Any) -> str:
    return readable(key if isinstance(key, str) else repr(key))


def _list(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        found = []
        for key in chest:
            text = _text_of(key)
            if arguments.glob is None or fnmatch.fnmatchcase(text, arguments.glob):
                with contextlib.suppress(arraychest.AbsentKeyError):  # deleted meanwhile
                    found.append(_Listed(key, text, chest.entry(key)))
    if arguments.sort:
        found.sort(key=_ORDERS[arguments.sort], reverse=arguments.sort != "key")
    if arguments.reverse:
        found.reverse()
    if arguments.json:
        print(json.dumps([_record(each) for each in found], indent=1))
        return 0
    rows = [
        (
            each.text,
            "x".join(map(str, each.entry.shape)) or "-",
            str(each.entry.dtype) if each.entry.kind in ("array", "scalar") else each.entry.kind,
            format_bytes(each.entry.nbytes),
            format_bytes(each.entry.stored_bytes),
            each.entry.codec or "-",
            age_of(each.entry),
        )
        for each in found
    ]
    print_table(("key", "shape", "dtype", "size", "stored", "codec", "age"), rows)
    return 0


def stored_at(entry: arraychest.Entry) -> float | None:
    """When a value was stored, in seconds since 1970; of a small one, when its pack was last."""
    if entry.file is None:
        return None
    try:
        return os.lstat(entry.file).st_mtime
    except OSError:
        return None


def age_of(entry: arraychest.Entry) -> str:
    """How long ago a value was stored, in its largest unit."""
    at = stored_at(entry)
    if at is None:
        return "-"
    seconds = max(0, int(time.time() - at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _record(each: _Listed) -> dict[str, Any]:
    entry = each.entry
    return {
        "key": repr(each.key),
        "text": each.text,
        "kind": entry.kind,
        "shape": list(entry.shape),
        "dtype": str(entry.dtype),
        "nbytes": entry.nbytes,
        "stored_bytes": entry.stored_bytes,
        "codec": entry.codec,
        "file": entry.file,
        "stored_at": stored_at(entry),
    }


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows: a table at a terminal, by pages where it is long; else columns between tabs."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for at, name in enumerate(head):
        table.add_column(
            name, justify="right" if name in ("values", "size", "stored", "age") else "left"
        )
        table.columns[at].overflow = "fold"
    for row in rows:
        # As texts: a key is no markup.
        table.add_row(*map(Text, row))
    console = Console()
    if sys.stdin.isatty() and len(rows) >= console.height:
        with console.pager(styles=True):
            console.print(table)
    else:
        console.print(table)


def _verify(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        report = chest.verify(read_data=not arguments.quick, progress=sys.stderr.isatty())
    if arguments.json:
        print(json.dumps({"ok": report.ok, "findings": records_of(report)}, indent=1))
    else:
        print_findings(report, arguments.path)
        if report.ok:
            print(f"{readable(arguments.path)}: all is as it was written")
    return 0 if report.ok else 1


def records_of(report: arraychest.Report) -> list[dict[str, Any]]:
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


def print_findings(report: arraychest.Report, path: str) -> None:
    """A line for each finding, its columns between tabs."""
    for each in records_of(report):
        told = [each["kind"], each["key"] or each["file"] or path, each["message"], each["action"]]
        print("\t".join(readable(str(part)) for part in told if part is not None))
