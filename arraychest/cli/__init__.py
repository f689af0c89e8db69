"""The command line: ``arraychest COMMAND``, or ``python -m arraychest COMMAND``.

Each module of this package with a function ``add_commands(commands)`` adds parsers, which set
``run``: a function of the parsed arguments that returns the exit code.

Exit codes: 0; 1, the command failed; 2, a wrong argument; 130, interrupted.  Of `verify` and `diff`
1 says that something was found, and 2 that they failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import arraychest
from arraychest.cli.errors import CommandError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse would print all options first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Arguments behind the program's name; by default those of this process.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version`` (0) and a wrong argument (2).
    """
    parser, commands = _parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        # By the command's own parser, whose help tells.
        commands[arguments.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        # A spill that fails is warned of and raised: here the exception says it, once.
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "values could not be spilled", arraychest.ArrayChestWarning
            )
            return int(arguments.run(arguments))
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        message, code = "interrupted", 130
    except BrokenPipeError:
        # Who reads has seen enough (`| head`).  Nor may the interpreter's last flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CommandError, arraychest.ArrayChestError, OSError) as error:
        if arguments.debug:
            raise
        message, code = str(error), getattr(arguments, "trouble", 1)
    print(f"arraychest {arguments.command}: {message}", file=sys.stderr)
    return code


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    # Here and not above: commands raise this module's `CommandError`.
    from arraychest.cli import (
        about,
        between,
        care,
        completion,
        demo,
        exchange,
        guide,
        looking,
        plotting,
        top,
        values,
    )

    parser = _Parser(prog="arraychest", description=arraychest.__doc__)
    parser.add_argument(
        "--version", action="version", version=f"arraychest {arraychest.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    readers = (looking, about, top, plotting)
    for module in (*readers, values, between, exchange, care, guide, demo, completion):
        module.add_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser, commands.choices
