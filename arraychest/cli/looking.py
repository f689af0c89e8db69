"""``arraychest ls``: what a chest holds."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import arraychest
from arraychest.cli.keys import matches
from arraychest.cli.naming import type_of
from arraychest.cli.printing import age_of, key_text, print_table, stored_at
from arraychest.units import format_bytes


class _Listed(NamedTuple):
    key: Any
    text: str
    entry: arraychest.Entry
    type: str


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
        description="Lists keys, shapes, dtypes, sizes and codecs; reads no arrays. Columns are "
        "separated by tabs where the output is no terminal.",
        epilog="Examples: arraychest ls work.chest 'slope*' --sort size; "
        "arraychest ls work.chest --json",
    )
    listing.add_argument("path", metavar="PATH", help="the chest's folder")
    listing.add_argument("glob", nargs="?", metavar="GLOB", help="only keys that match")
    listing.add_argument(
        "--sort", choices=list(_ORDERS), help="order of insertion by default; largest first"
    )
    listing.add_argument("-r", "--reverse", action="store_true", help="reverse the order")
    listing.add_argument("--json", action="store_true", help="as one JSON document, in bytes")
    listing.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        found = []
        for key in chest:
            text = key_text(key)
            if arguments.glob is None or matches(key, [arguments.glob]):
                with contextlib.suppress(arraychest.AbsentKeyError):  # deleted meanwhile
                    entry = chest.entry(key)
                    found.append(_Listed(key, text, entry, type_of(chest, key, entry)))
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
            each.type,
            format_bytes(each.entry.nbytes),
            format_bytes(each.entry.stored_bytes),
            each.entry.codec or "-",
            age_of(each.entry),
        )
        for each in found
    ]
    print_table(("key", "shape", "type", "size", "stored", "codec", "age"), rows)
    return 0


def _record(each: _Listed) -> dict[str, Any]:
    entry = each.entry
    return {
        "key": repr(each.key),
        "text": each.text,
        "kind": entry.kind,
        "shape": list(entry.shape),
        "dtype": str(entry.dtype),
        "type": each.type,
        "nbytes": entry.nbytes,
        "stored_bytes": entry.stored_bytes,
        "codec": entry.codec,
        "file": entry.file,
        "stored_at": stored_at(entry),
    }
