"""``arraychest export`` and ``arraychest import``: whole chests to and from other formats."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import arraychest
from arraychest.cli.errors import CommandError
from arraychest.cli.keys import chosen_keys
from arraychest.cli.printing import counted

_FORMATS = ("npz", "npy", "hdf5", "zarr")


def add_commands(commands: Any) -> None:
    """Add both parsers to the subparsers of the command line."""
    export = commands.add_parser(
        "export",
        help="write values to a file or folder that other programs read",
        description="Write the values of a chest to a .npz file, a folder of .npy files, an HDF5 "
        "file or a Zarr group; `arraychest import` gives the same chest back.",
        epilog="Examples:\n"
        "  arraychest export work.chest work.npz\n"
        "  arraychest export work.chest slopes.h5 --keys 'slope*'\n"
        "  arraychest export work.chest folder --format npy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("path", metavar="PATH", help="the chest's folder")
    export.add_argument("target", metavar="TARGET", help="the file or folder to write")
    export.add_argument(
        "--format", choices=_FORMATS, help="by default as the target's name ends; a folder of .npy"
    )
    export.add_argument(
        "--keys",
        action="append",
        metavar="GLOB",
        help="only keys that match, such as 'slope*'; may be given several times",
    )
    export.add_argument(
        "--overwrite", action="store_true", help="replace a file, or an earlier export"
    )
    export.set_defaults(run=_export)

    imported = commands.add_parser(
        "import",
        help="put what lies in a file or folder into a chest",
        description="Put the arrays of a .npz or .npy file, a folder of .npy files, an HDF5 file "
        "or a Zarr group into a chest, which is made if there is none: all of them, or nothing.",
        epilog="Examples:\n"
        "  arraychest import work.chest work.npz\n"
        "  arraychest import work.chest theirs.h5 --prefix theirs/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imported.add_argument("path", metavar="PATH", help="the chest's folder")
    imported.add_argument("source", metavar="SOURCE", help="the file or folder to read")
    imported.add_argument("--format", choices=_FORMATS, help="by default what is found there")
    imported.add_argument("--prefix", default="", metavar="TEXT", help="goes before each key")
    imported.add_argument(
        "--overwrite", action="store_true", help="replace values of keys that are there already"
    )
    imported.set_defaults(run=_import)


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    # A name without a known ending; h5py or zarr that is missing.
    try:
        yield
    except arraychest.ArrayChestError:
        raise
    except (ValueError, ImportError) as error:
        raise CommandError(str(error)) from error


def _export(arguments: argparse.Namespace) -> int:
    with _told_in_one_line(), arraychest.open(arguments.path, "r") as chest:
        keys = None
        if arguments.keys:
            keys = chosen_keys(chest, (), arguments.keys)
        count = chest.export(
            arguments.target,
            arguments.format,
            keys=keys,
            overwrite=arguments.overwrite,
            progress=_shows_progress(),
        )
    print(f"{counted(count)} written to {arguments.target}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    # What cannot be read must not leave an empty chest behind.
    os.stat(arguments.source)
    is_new = not os.path.lexists(arguments.path)
    chest = arraychest.open(arguments.path)
    try:
        with _told_in_one_line():
            count = chest.import_from(
                arguments.source,
                arguments.format,
                prefix=arguments.prefix,
                overwrite=arguments.overwrite,
                progress=_shows_progress(),
            )
    except BaseException:
        if is_new:
            chest.drop()
        raise
    finally:
        chest.close()
    print(f"{counted(count)} put into {arguments.path}")
    return 0


def _shows_progress() -> bool:
    return sys.stderr.isatty()
