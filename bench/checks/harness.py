"""What every check shares: rounds that interleave the contestants, medians, and result rows.

The contestants of a check take turns in one process: most of them are arraychest, set up otherwise.
Each starts a round in turn, so that none always runs behind the same neighbour.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from rich.table import Table

from bench.peers.base import PeerMissingError
from bench.workload import warm_disk

OURS = "arraychest"

# What a run gives: one figure, or several, for each of the things it measures.
Figures = Mapping[str, float | Sequence[float]]
# All figures of one run of a workload, by contestant and measure.
Samples = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Floor:
    """What is asked of a figure: at least or at most so much.

    `of_ratio`: the ratio is judged; else our own figure is.
    """

    value: float
    at_least: bool = False
    of_ratio: bool = True

    def met_by(self, figure: float) -> bool:
        return figure >= self.value if self.at_least else figure <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the table: our figures beside those of one other thing."""

    workload: str
    measure: str
    unit: str
    ours: list[float]
    against: str = ""
    theirs: list[float] = field(default_factory=list)
    floor: Floor | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Median of ours by the median of theirs."""
        if not self.theirs:
            return None
        divisor = statistics.median(self.theirs)
        return statistics.median(self.ours) / divisor if divisor else None

    @property
    def met(self) -> bool | None:
        """Whether the floor is met; None where there is none."""
        if self.floor is None:
            return None
        figure = self.ratio if self.floor.of_ratio else statistics.median(self.ours)
        return figure is not None and self.floor.met_by(figure)

    def best(self, figures: Sequence[float]) -> float:
        return max(figures) if self.more_is_better else min(figures)


@dataclass(frozen=True)
class Contestant:
    """One of those that take turns.

    Attributes
    ----------
    run
        Called with an empty folder of its own, which is removed afterwards; times what it does
        and checks what it read.
    once
        Measured a single time and not warmed up: a peer that takes many times as long as all the
        others together.
    """

    name: str
    run: Callable[[Path], Figures]
    once: bool = False


class Bench:
    """What a workload is given.

    Parameters
    ----------
    folder
        Where files go; removed by the caller.
    rounds
        How often each contestant is measured.
    small
        Whether only to show that everything runs.
    say
        Takes a line on what is going on.
    """

    def __init__(
        self, folder: Path, rounds: int, *, small: bool, say: Callable[[str], object]
    ) -> None:
        self.folder = folder
        self.rounds = rounds
        self.small = small
        self.say = say
        self.skipped: dict[str, str] = {}

    def pick(self, full: int, small: int) -> int:
        """A number that depends on the scale."""
        return small if self.small else full

    def warm_disk(self, nbytes: int) -> None:
        """Make the page cache's next pages warm ones: write that many bytes and more, and remove
        them.  Not at the small scale, which judges nothing.
        """
        if nbytes and not self.small:
            warm_disk(self.folder, nbytes)

    @contextmanager
    def fresh_folder(self) -> Iterator[Path]:
        """An empty folder, removed at the end."""
        path = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def interleave(
        self, contestants: Sequence[Contestant], *, rounds: int | None = None, disk: int = 0
    ) -> Samples:
        """Let the contestants take turns, after one round that does not count.

        Parameters
        ----------
        rounds
            How many rounds, where not as many as the user asked for.
        disk
            Bytes that each writes: so much page cache is warmed before each turn.
        """
        samples: Samples = {}
        playing = list(contestants)
        for number in range((rounds or self.rounds) + 1):
            start = number % len(playing)
            for contestant in playing[start:] + playing[:start]:
                if contestant.once and number != 1:
                    continue
                self.say(f"round {number}: {contestant.name}")
                try:
                    with self.fresh_folder() as folder:
                        self.warm_disk(disk)
                        gc.collect()
                        figures = contestant.run(folder)
                except PeerMissingError as missing:
                    self.skipped[contestant.name] = str(missing)
                    playing.remove(contestant)
                    continue
                if number:
                    for measure, figure in figures.items():
                        kept = samples.setdefault((contestant.name, measure), [])
                        kept.extend(figure if isinstance(figure, Sequence) else [figure])
        return samples


def rows_against(
    workload: str,
    measure: str,
    unit: str,
    samples: Samples,
    others: Mapping[str, Floor | None],
    *,
    ours: str = OURS,
    label: str = "",
    more_is_better: bool = False,
) -> list[Row]:
    """One row for each of the others that was measured, ours beside it.

    Parameters
    ----------
    measure, label
        What is compared, and what the table calls it where that says more.
    others
        Names of contestants, with the floor asked for.
    """
    return [
        Row(
            workload,
            label or measure,
            unit,
            samples[ours, measure],
            other,
            samples[other, measure],
            floor,
            more_is_better,
        )
        for other, floor in others.items()
        if (other, measure) in samples
    ]


def seconds(action: Callable[[], object]) -> float:
    """How long a call took."""
    start = perf_counter()
    action()
    return perf_counter() - start


def table_of(rows: list[Row], title: str) -> Table:
    """A line for each row."""
    table = Table(
        title=f"{title}: median (best)",
        title_justify="left",
        caption="Peers that take many times as long are measured once, on fewer arrays.",
        caption_justify="left",
    )
    for name, justify in (
        ("workload", "left"),
        ("measure", "left"),
        ("arraychest", "right"),
        ("compared with", "left"),
        ("it", "right"),
        ("ratio", "right"),
        ("floor", "right"),
        ("met", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    last = ""
    for row in rows:
        if last and row.workload != last:
            table.add_section()
        last = row.workload
        ratio = row.ratio
        floor = ""
        if row.floor is not None:
            sign = "≥" if row.floor.at_least else "≤"
            floor = f"{sign} {row.floor.value:g}" + (" ×" if row.floor.of_ratio else f" {row.unit}")
        met = {None: "", True: "[green]yes[/green]", False: "[red]NO[/red]"}[row.met]
        table.add_row(
            row.workload,
            row.measure,
            _figures(row, row.ours),
            row.against,
            _figures(row, row.theirs),
            "" if ratio is None else _short(ratio),
            floor,
            met,
        )
    return table


def _figures(row: Row, figures: list[float]) -> str:
    if not figures:
        return ""
    median, best = statistics.median(figures), row.best(figures)
    return f"{_short(median)} ({_short(best)}) {row.unit}"


def _short(figure: float) -> str:
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.3g}" if abs(figure) >= 0.01 else f"{figure:.4f}"
