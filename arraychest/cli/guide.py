"""``arraychest guide``: the guides that come with the package."""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from arraychest.cli.errors import CommandError


def add_commands(commands: Any) -> None:
    """Add ``guide`` to the command line."""
    parser = commands.add_parser(
        "guide",
        help="read a guide",
        description="Prints a guide; without a name, lists them.",
        epilog="Example: arraychest guide pipelines",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the name of a guide")
    parser.set_defaults(run=_guide)


def _guide(arguments: argparse.Namespace) -> int:
    guides = _guides()
    if arguments.name is None:
        for name, file in guides.items():
            print(f"{name}\t{file.read_text().splitlines()[0].lstrip('# ')}")
        return 0
    if arguments.name not in guides:
        raise CommandError(f"expected one of {', '.join(guides)}, found {arguments.name!r:.100}")
    text = guides[arguments.name].read_text()
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text, end="")
    return 0


def guide_names() -> list[str]:
    """The names of the guides."""
    return list(_guides())


def _guides() -> dict[str, Traversable]:
    folder = resources.files("arraychest") / "guide"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".md"): file for file in files if file.name.endswith(".md")}
