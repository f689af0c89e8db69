"""How commands print: texts that may be a stranger's, numbers, ages, tables.

No key or file name reaches a terminal with a control character in it, which could do anything
there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import arraychest
from arraychest.text import amount


def readable(text: str) -> str:
    """A text without what a terminal, or a line of output, would take for something else."""
    return text if text and text.isprintable() else repr(text)


def counted(values: int) -> str:
    """How many values, in words."""
    return amount(values, "value")


def key_text(key: Any) -> str:
    """A key as it is shown, and as `keys.find_key` takes it where it is no `repr` of a str."""
    return readable(key if isinstance(key, str) else repr(key))


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
            name, justify="right" if name in ("entries", "size", "stored", "age") else "left"
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
