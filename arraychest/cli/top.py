"""``arraychest top``: a live view of a chest that other processes use.

It reads what they publish (`arraychest.monitor.live`), and opens neither the chest nor any of its
values.  What they tell may be a stranger's: no key reaches a terminal with a control character in
it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from arraychest.cli.printing import readable
from arraychest.monitor.published import Counts, Published, published
from arraychest.units import format_bytes

# Seconds after which what was told is no longer what is: nothing was put, stored or fetched since.
_STALE_SECONDS = 3.0

# Columns of a frame that goes to no terminal.
_PLAIN_WIDTH = 110

_MOST_KEYS = 10
_BAR_WIDTH = 12

# From so many columns on there is room for all of these.
_WIDE = 100
_COLUMNS = (
    "pid",
    "process",
    "mode",
    "",
    "RAM",
    "budget",
    "stored",
    "hits",
    "puts/s",
    "spill/s",
    "fault/s",
    "told",
)


def add_commands(commands: Any) -> None:
    """Add the parser to the subparsers of the command line."""
    top = commands.add_parser(
        "top",
        help="watch a chest that other processes use",
        description="Shows what the processes that have a chest open tell of it: RAM against the "
        "budget, what is stored, rates of puts, spills and faults, and the keys that gets ask for "
        "most. Neither the chest nor a value is opened. Leave with q.",
        epilog="Examples: arraychest top work.chest; arraychest top work.chest --json",
    )
    top.add_argument("path", metavar="PATH", help="the chest's folder")
    top.add_argument(
        "--interval", type=_interval, default=1.0, metavar="SECONDS", help="between updates (1)"
    )
    top.add_argument("--once", action="store_true", help="print once, as plain text")
    top.add_argument("--json", action="store_true", help="print once, as JSON, sizes in bytes")
    top.set_defaults(run=_run)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.1 to 3600 seconds, found {text!r}")
    return seconds


def _run(arguments: argparse.Namespace) -> int:
    told = published(arguments.path)
    if arguments.json:
        processes = [_record(each) for each in told]
        print(json.dumps({"path": arguments.path, "processes": processes}, indent=1))
        return 0
    from rich.console import Console

    if arguments.once or not sys.stdout.isatty():
        width = None if sys.stdout.isatty() else _PLAIN_WIDTH
        console = Console(color_system=None, width=width, highlight=False)
        console.print(frame(arguments.path, told, time.time(), console.width))
        return 0
    _watch(Console(highlight=False), arguments.path, arguments.interval)
    return 0


def _watch(console: Any, path: str, interval: float) -> None:
    """Show frames until somebody leaves."""
    from rich.live import Live

    with (
        contextlib.suppress(KeyboardInterrupt),
        _single_keys(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            told = published(path)
            shown = frame(path, told, time.time(), console.width, leave=True)
            live.update(shown, refresh=True)
            if _is_left(interval):
                return


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Let a key be read as soon as it is pressed, where keys come from a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_left(seconds: float) -> bool:
    """Wait so long; whether q was pressed meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not sys.stdin.isatty():
            time.sleep(left)
        # Past Python's own buffer: what lay in that, `select` would not see.
        elif select.select([sys.stdin], [], [], left)[0]:
            pressed = os.read(sys.stdin.fileno(), 1024)
            if not pressed or b"q" in pressed.lower():
                return True
    return False


def _record(each: Published) -> dict[str, Any]:
    return {
        **each._asdict(),
        "counts": each.counts._asdict(),
        "before": each.before._asdict(),
        "rates": {name: each.rate(name) for name in Counts._fields},
        "hit_rate": each.hit_rate,
        "busiest": [{"key": key, "gets": gets} for key, gets in each.busiest],
    }


# --- one frame ---------------------------------------------------------------------------------


def frame(
    path: str, told: Sequence[Published], now: float, width: int, *, leave: bool = False
) -> Any:
    """What is shown at one moment, for rich to print.

    Parameters
    ----------
    path
        The chest's folder.
    told
        What the processes tell.
    now
        Seconds since 1970.
    width
        Columns that there are.
    leave
        Whether to say how to leave.
    """
    from rich.console import Group
    from rich.text import Text

    number = f"{len(told)} process{'' if len(told) == 1 else 'es'}"
    head = Text.assemble(
        (readable(path), "bold"),
        f"  {number}  {time.strftime('%H:%M:%S', time.localtime(now))}",
        ("  q leaves" if leave else "", "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )
    if not told:
        return Group(
            head,
            "",
            Text(f"{readable(path)}: nobody has it open, or not for long enough to tell", "dim"),
        )
    parts: list[Any] = [head, "", _table(told, now, width)]
    if any(each.busiest for each in told):
        parts += ["", _keys(told)]
    return Group(*parts)


def _table(told: Sequence[Published], now: float, width: int) -> Any:
    from rich.table import Table

    is_narrow = width < _WIDE
    gap = 1 if is_narrow else 2
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    names = [name for name in _COLUMNS if not (is_narrow and name in ("mode", "told"))]
    for name in names:
        if name == "process":
            # The only one that gives way where there is no room: those that may not wrap do not.
            table.add_column(name, min_width=8, max_width=28)
        else:
            left = name in ("mode", "")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for each in told:
        age = max(0.0, now - each.told)
        cells = _cells(each, age, _BAR_WIDTH // 2 if is_narrow else _BAR_WIDTH)
        table.add_row(*[cells[name] for name in names], style="dim" if age > _STALE_SECONDS else "")
    return table


def _cells(each: Published, age: float, bar_width: int) -> dict[str, Any]:
    from rich.text import Text

    is_stale = age > _STALE_SECONDS
    hit_rate = None if is_stale else each.hit_rate
    return {
        "pid": str(each.pid),
        "process": Text(readable(each.process), no_wrap=True, overflow="ellipsis"),
        "mode": each.mode,
        "": _bar(each.charged, each.budget, bar_width),
        "RAM": format_bytes(each.charged),
        "budget": format_bytes(each.budget),
        "stored": "counting" if each.stored_bytes is None else format_bytes(each.stored_bytes),
        "hits": "-" if hit_rate is None else f"{hit_rate:.0%}",
        "puts/s": "-" if is_stale else f"{each.rate('puts'):,.0f}",
        "spill/s": "-" if is_stale else format_bytes(int(each.rate("bytes_spilled"))),
        "fault/s": "-" if is_stale else format_bytes(int(each.rate("bytes_faulted"))),
        "told": _ago(age),
    }


def _bar(charged: int, budget: int, width: int) -> Any:
    """RAM in use against the budget."""
    from rich.progress_bar import ProgressBar

    share = charged / budget if budget else float(bool(charged))
    style = "green" if share < 0.75 else "yellow" if share <= 1 else "red"
    return ProgressBar(
        total=1.0,
        completed=min(share, 1.0),
        width=width,
        complete_style=style,
        finished_style=style,
    )


def _ago(seconds: float) -> str:
    if seconds <= _STALE_SECONDS:
        return "now"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _keys(told: Sequence[Published]) -> Any:
    """The keys that gets ask for most, of all processes."""
    from rich.table import Table
    from rich.text import Text

    gets: dict[str, int] = {}
    for each in told:
        for key, count in each.busiest:
            gets[key] = gets.get(key, 0) + count
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("gets", justify="right")
    table.add_column("busiest keys", no_wrap=True, overflow="ellipsis")
    for key, count in sorted(gets.items(), key=lambda item: -item[1])[:_MOST_KEYS]:
        table.add_row(f"{count:,}", Text(readable(key)))
    return table
