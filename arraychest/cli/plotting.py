"""``arraychest plot``: a picture of what a chest on disk holds."""

from __future__ import annotations

import argparse
import os
from typing import Any

import arraychest
from arraychest.cli.errors import CommandError
from arraychest.cli.printing import readable

# Dots of an inch, where the picture is made of dots: 13 inches are 1,950.
_DPI = 150


def add_commands(commands: Any) -> None:
    """Add the parser to the subparsers of the command line."""
    plot = commands.add_parser(
        "plot",
        help="draw what a chest holds: by key, size, place and time",
        description="Draws what lies where by key and size, how large the entries are, and when "
        "their files were written. Reads the catalog, and no values.",
        epilog="Example: arraychest plot work.chest -o work.png",
    )
    plot.add_argument("path", metavar="PATH", help="the chest's folder")
    plot.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="chest.png",
        help="the picture: .png, .svg or .pdf (default: chest.png)",
    )
    plot.add_argument("--overwrite", action="store_true", help="replace a file")
    plot.set_defaults(run=_plot)


def _plot(arguments: argparse.Namespace) -> int:
    output = arguments.output
    ending = os.path.splitext(output)[1].lower()
    if ending not in (".png", ".svg", ".pdf"):
        raise CommandError(f"expected a name that ends in .png, .svg or .pdf, found {output!r}")
    if os.path.lexists(output) and not arguments.overwrite:
        raise CommandError(f"{readable(output)} is there already; --overwrite replaces it")
    with arraychest.open(arguments.path, "r") as chest:
        try:
            figure = chest.plot(times=True)
        except ImportError as error:
            raise CommandError(str(error)) from error
    part = f"{output}.part"
    try:
        figure.savefig(part, format=ending[1:], dpi=_DPI)
        os.replace(part, output)
    except BaseException:
        if os.path.lexists(part):
            os.unlink(part)
        raise
    print(f"Picture: {readable(output)}")
    return 0
