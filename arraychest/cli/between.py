"""``arraychest diff``, ``cp`` and ``mv``: two chests."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import arraychest
from arraychest.arrays.lazy import LazyArray
from arraychest.cli.errors import CommandError
from arraychest.cli.keys import HELP, chosen_keys
from arraychest.cli.printing import counted, key_text, readable
from arraychest.values.equality import same


def add_commands(commands: Any) -> None:
    """Add the parsers to the subparsers of the command line."""
    diff = commands.add_parser(
        "diff",
        help="show how two chests differ",
        description="Prints a line for each key that only one of two chests has (- the first, + "
        "the second), or that has another value (~). Exit code 0: they are the same; 1: they "
        "differ; 2: one cannot be read.",
        epilog="Examples:\n"
        "  arraychest diff yesterday.chest today.chest\n"
        "  arraychest diff a.chest b.chest --quick --json    # sizes and dtypes only",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    diff.add_argument("path", metavar="A", help="a chest's folder")
    diff.add_argument("other", metavar="B", help="another's")
    diff.add_argument("--quick", action="store_true", help="read no values")
    diff.add_argument("--json", action="store_true", help="as one JSON document")
    diff.set_defaults(run=_diff, trouble=2)
    for name, verb, run in (("cp", "copy", _copy), ("mv", "move", _move)):
        parser = commands.add_parser(
            name,
            help=f"{verb} values to another chest",
            description=f"{verb.capitalize()} values of one chest to another, which is made if "
            "there is none: all that are named, or nothing. Files are linked where both lie on one "
            "file system, and copied otherwise."
            + (" They are removed from the first once the second has them." * (name == "mv")),
            epilog="Examples:\n"
            f"  arraychest {name} work.chest backup.chest            # all\n"
            f"  arraychest {name} work.chest backup.chest slope --match 'tile/*'",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("path", metavar="FROM", help="the chest's folder")
        parser.add_argument("target", metavar="TO", help="the other chest's")
        parser.add_argument("keys", nargs="*", metavar="KEY", help=HELP)
        parser.add_argument("--match", action="append", metavar="GLOB", help="all keys that match")
        parser.add_argument(
            "--overwrite", action="store_true", help="replace values of keys that are there already"
        )
        parser.set_defaults(run=run)


# --- diff -------------------------------------------------------------------------------------


def _diff(arguments: argparse.Namespace) -> int:
    with (
        arraychest.open(arguments.path, "r") as one,
        arraychest.open(arguments.other, "r") as other,
    ):
        found = list(_differences(one, other, read=not arguments.quick))
    if arguments.json:
        names = {"-": "only in A", "+": "only in B", "~": "changed"}
        told = [
            {"key": repr(key), "what": names[sign], "message": text} for sign, key, text in found
        ]
        print(json.dumps(told, indent=1))
    else:
        for sign, key, text in found:
            print(f"{sign} {key_text(key)}" + (f"\t{text}" if text else ""))
    return 1 if found else 0


def _differences(
    one: arraychest.Chest, other: arraychest.Chest, *, read: bool
) -> Iterator[tuple[str, Any, str]]:
    for key in one:
        if key not in other:
            yield "-", key, ""
            continue
        mine, theirs = one.entry(key), other.entry(key)
        if mine.kind != theirs.kind and {mine.kind, theirs.kind} != {"array", "blocked"}:
            yield "~", key, f"{mine.kind} and {theirs.kind}"
        elif (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            yield "~", key, f"{_form(mine)} and {_form(theirs)}"
        elif not read:
            if mine.kind == "tree" and mine.nbytes != theirs.nbytes:
                yield "~", key, f"{mine.nbytes} and {theirs.nbytes} bytes"
        elif not _are_equal(one[key], other[key]):
            yield "~", key, "other elements" if mine.kind != "tree" else "another value"
    for key in other:
        if key not in one:
            yield "+", key, ""


def _form(entry: arraychest.Entry) -> str:
    return f"{'x'.join(map(str, entry.shape)) or '-'} {entry.dtype}"


def _are_equal(one: Any, other: Any) -> bool:
    """Bit by bit: a NaN is the same as itself."""
    lazy = next((each for each in (one, other) if isinstance(each, LazyArray)), None)
    if lazy is not None and lazy.ndim:
        return all(_bits(one[where]) == _bits(other[where]) for where, _ in lazy.iterchunks())
    if isinstance(one, np.ndarray | np.generic) and not one.dtype.hasobject:
        return _bits(one) == _bits(other)
    return same(one, other)


def _bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


# --- cp and mv --------------------------------------------------------------------------------


def _copy(arguments: argparse.Namespace) -> int:
    count = len(_copied(arguments))
    print(f"{counted(count)} copied to {readable(arguments.target)}")
    return 0


def _move(arguments: argparse.Namespace) -> int:
    keys = _copied(arguments)
    # Only now: whatever happens, a value is in one of them at least.
    with arraychest.open(arguments.path, "a") as source, source.transaction():
        for key in keys:
            source.discard(key)
    print(f"{counted(len(keys))} moved to {readable(arguments.target)}")
    return 0


def _copied(arguments: argparse.Namespace) -> list[Any]:
    if os.path.realpath(arguments.path) == os.path.realpath(arguments.target):
        raise CommandError(f"expected two chests, found {readable(arguments.path)} twice")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(arraychest.open(arguments.path, "r"))
        if arguments.keys or arguments.match:
            keys = chosen_keys(source, arguments.keys, arguments.match)
        else:
            keys = list(source)
        is_new = not os.path.lexists(arguments.target)
        target = stack.enter_context(arraychest.open(arguments.target, "a"))
        try:
            there = [] if arguments.overwrite else [key for key in keys if key in target]
            if there:
                raise CommandError(
                    f"expected keys that {readable(arguments.target)} has not, found "
                    f"{readable(repr(there[0]))} (--overwrite replaces its value)"
                )
            target.copy_from(source, keys, progress=sys.stderr.isatty())
        except BaseException:
            if is_new:
                target.drop()
            raise
    return keys
