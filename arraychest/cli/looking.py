"""``arraychest ls``: what a chest holds."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import arraychest
from arraychest.cli.printing import age_of, key_text, print_table, stored_at
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
    """Add the parser to the subparsers of the command line."""
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


def _list(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        found = []
        for key in chest:
            text = key_text(key)
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
            _dtype(each.entry),
            format_bytes(each.entry.nbytes),
            format_bytes(each.entry.stored_bytes),
            each.entry.codec or "-",
            age_of(each.entry),
        )
        for each in found
    ]
    print_table(("key", "shape", "dtype", "size", "stored", "codec", "age"), rows)
    return 0


def _dtype(entry: arraychest.Entry) -> str:
    is_array = entry.kind in ("array", "scalar", "blocked")
    return str(entry.dtype) if is_array else entry.kind


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
