"""What a run says: its document, which is kept as JSON, and tables made of that alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from bench.peers import LIMIT, OURS, OURS_DURABLE
from bench.peers.base import DURABILITIES, NOTHING, POWER_LOSS, PROCESS_CRASH
from bench.race import Race

# What is asked of arraychest: of the best peer with the same guarantees, of the machine's limit,
# and of what an entry costs among a million by what it costs among a thousand.
GOAL_OF_BEST, GOAL_OF_LIMIT, GOAL_GROWTH = 1.05, 1.3, 1.5

# Between these lines the guide's page of benchmarks carries `markdown` of the newest file in
# bench/results/, and README.md its `short` form.
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
SHORT_BEGIN, SHORT_END = "<!-- figures: begin -->", "<!-- figures: end -->"

# Blocks, catalogs and headers differ by so much where the values take the same.
_SAME_SIZE = 1.02

# Units in which less is better by so many times.
_COMPARED = ("s", "B")

Document = dict[str, Any]


def document_of(race: Race, *, small: bool) -> dict[str, Any]:
    """One workload's part of the document."""
    workload = race.workload
    return {
        "name": workload.name,
        "title": workload.title,
        "seconds": round(race.seconds, 1),
        "durable": workload.durable,
        "sized": workload.sized,
        "steps": [
            {**asdict(step), "nbytes": step.nbytes[small] if step.nbytes else None}
            for step in workload.steps
        ],
        "peers": {name: asdict(outcome) for name, outcome in race.outcomes.items()},
        "skipped": race.skipped,
        "failed": race.failed,
    }


# --- judging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """arraychest in one step of one workload.

    Attributes
    ----------
    name
        Which arraychest: with its defaults, or durable.
    ours
        Median, in the step's unit.
    best, ratio
        The best peer with the same guarantees, and ours by its figure; None where there is none.
    limit_ratio
        Ours by the machine's limit; None where it was not measured.
    met
        Whether everything that is asked is so; None where nothing is asked, or the scale small.
    """

    workload: str
    step: str
    name: str
    ours: float
    best: str | None
    ratio: float | None
    limit_ratio: float | None
    limit_judged: bool
    met: bool | None

    @property
    def label(self) -> str:
        """The step, for people."""
        return self.step if self.name == OURS else f"{self.step}, durable"


def verdicts(document: Mapping[str, Any]) -> Iterator[Verdict]:
    """Of each step that arraychest was measured in."""
    full = document["scale"] == "full"
    for workload in document["workloads"]:
        for name in (OURS, OURS_DURABLE):
            if name in workload["peers"]:
                for step in workload["steps"]:
                    if name == OURS or step["stores"]:
                        yield from _verdict(workload, name, step, full)


def _verdict(
    workload: Mapping[str, Any], name: str, step: Mapping[str, Any], full: bool
) -> Iterator[Verdict]:
    peers = workload["peers"]
    ours = median_of(peers[name], step["name"])
    if ours is None:
        return
    ratios: dict[str, float] = {}
    # Of ratios and of numbers of events none is the best.
    for other in peers if step["unit"] in _COMPARED else ():
        theirs = median_of(peers[other], step["name"])
        if other not in (OURS, OURS_DURABLE) and theirs is not None:
            ratios[other] = _ratio(ours, theirs)
    # What is synced has no limit here.
    limit_ratio = ratios.get(LIMIT) if name == OURS else None
    known = {
        other: ratio
        for other, ratio in ratios.items()
        if step["judged"] and why_not_compared(workload, other, name) is None
    }
    best = max(known, key=lambda other: known[other], default=None)
    asked = [] if best is None else [known[best] <= GOAL_OF_BEST]
    if step["limit"] and limit_ratio is not None:
        asked.append(limit_ratio <= GOAL_OF_LIMIT)
    if step["at_most"] is not None:
        asked.append(ours <= step["at_most"])
    yield Verdict(
        workload["name"],
        step["name"],
        name,
        ours,
        best,
        None if best is None else known[best],
        limit_ratio,
        step["limit"],
        all(asked) if asked and full else None,
    )


def why_not_compared(workload: Mapping[str, Any], name: str, ours_name: str = OURS) -> str | None:
    """Why a peer is shown and not compared with arraychest; None if it is compared."""
    if name == LIMIT:
        return "is no peer"
    ours, peer = workload["peers"][ours_name], workload["peers"][name]
    rank = DURABILITIES.index
    if workload["durable"] and rank(peer["durability"]) < rank(ours["durability"]):
        return "promises less"
    if workload["sized"]:
        larger = statistics.median(peer["disk"]) / statistics.median(ours["disk"])
        if larger > _SAME_SIZE:
            return f"{larger:.2f} × the size"
    return None


def median_of(peer: Mapping[str, Any], step: str) -> float | None:
    """The median of a peer's rounds; None if it did not do the step."""
    figures = peer["steps"].get(step)
    return statistics.median(figures) if figures else None


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.inf


# --- on the terminal -----------------------------------------------------------------------------


def table(workload: Mapping[str, Any]) -> Table:
    """A line for each peer, a column for each step."""
    steps = workload["steps"]
    peers = workload["peers"]
    made = Table(
        title=f"{workload['name']}: {workload['title']} ({workload['seconds']:.0f} s)",
        title_justify="left",
        caption="Median of the rounds, least and most from there; by the best peer, by the limit.",
        caption_justify="left",
    )
    made.add_column("peer", no_wrap=True)
    for step in steps:
        made.add_column(step["name"], justify="right")
    made.add_column("memory", justify="right")
    made.add_column("disk", justify="right")
    made.add_column("notes", overflow="fold")
    best = {step["name"]: _best(peers, step["name"]) for step in steps}

    def place(name: str) -> float:
        return median_of(peers[name], steps[0]["name"]) or math.inf

    for name in sorted(peers, key=place):
        peer = peers[name]
        cells = []
        for step in steps:
            figures = peer["steps"].get(step["name"])
            if not figures:
                cells.append("")
                continue
            median = statistics.median(figures)
            limit = median_of(peers[LIMIT], step["name"]) if LIMIT in peers else None
            ratios = [
                _times(_ratio(median, other))
                for other in (best[step["name"]], limit)
                if other is not None
            ]
            cells.append(_with_spread(figures, step))
            if step["unit"] in _COMPARED:
                cells[-1] += f"\n[dim]{' · '.join(ratios)}[/dim]"
        notes = [] if peer["share"] == 1 else [f"{peer['share']:.2g} of the values"]
        if name not in (OURS, OURS_DURABLE, LIMIT) and OURS in peers:
            notes += filter(None, [why_not_compared(workload, name)])
        made.add_row(
            f"[bold]{name}[/bold]" if name == OURS else name,
            *cells,
            size(statistics.median(peer["anon"])),
            size(max(peer["disk"])),
            "; ".join(notes),
        )
    return made


def _best(peers: Mapping[str, Any], step: str) -> float | None:
    figures = [median_of(peer, step) for name, peer in peers.items() if name != LIMIT]
    return min((figure for figure in figures if figure is not None), default=None)


def _with_spread(figures: list[float], step: Mapping[str, Any]) -> str:
    median = statistics.median(figures)
    text = figure(median, {**step, "nbytes": None})
    if len(figures) > 1 and median:
        text += f" −{1 - min(figures) / median:.0%}+{max(figures) / median - 1:.0%}"
    return text


def summary(document: Mapping[str, Any]) -> Table:
    """Arraychest beside the best peer and the limit, and whether what is asked is met."""
    table = Table(
        title=f"arraychest by the best peer with the same guarantees (≤ {GOAL_OF_BEST}) and by the "
        f"machine's limit (≤ {GOAL_OF_LIMIT} where that is bare system calls)",
        title_justify="left",
    )
    for name in ("workload", "step"):
        table.add_column(name)
    for name in ("arraychest", "best peer", "ratio", "/limit"):
        table.add_column(name, justify="right")
    table.add_column("met")
    last = ""
    for verdict in verdicts(document):
        if last and verdict.workload != last:
            table.add_section()
        last = verdict.workload
        table.add_row(
            verdict.workload,
            verdict.label,
            figure(verdict.ours, _step(document, verdict)),
            verdict.best or "",
            _times(verdict.ratio),
            _times(verdict.limit_ratio) + ("" if verdict.limit_judged else " "),
            {None: "", True: "[green]yes[/green]", False: "[red]NO[/red]"}[verdict.met],
        )
    return table


def _step(document: Mapping[str, Any], verdict: Verdict) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        step
        for workload in document["workloads"]
        if workload["name"] == verdict.workload
        for step in workload["steps"]
        if step["name"] == verdict.step
    )
    return found


# --- in the documentation -------------------------------------------------------------------------


# What the short table shows: of each workload one or two rows, also such where a peer is faster.
_SHORT = (
    ("hits", "get"),
    ("reload", "first element"),
    ("spill-write", "array"),
    ("pipeline", "in all"),
    ("scan", "epoch"),
    ("small", "put and flush"),
    ("small", "get, reopened"),
    ("windows", "window of 64 × 64"),
    ("memoise", "hit"),
    ("dask", "transpose, rechunk, tensordot"),
)


def short(document: Mapping[str, Any]) -> str:
    """The table that README.md carries, between `SHORT_BEGIN` and `SHORT_END`."""
    found = {(each.workload, each.label): each for each in verdicts(document)}
    titles = {workload["name"]: workload["title"] for workload in document["workloads"]}
    lines = [
        SHORT_BEGIN,
        "| workload | | arraychest | best peer | ratio |",
        "|---|---|---|---|---|",
    ]
    for workload, label in filter(found.__contains__, _SHORT):
        verdict = found[workload, label]
        step = _step(document, verdict)
        peers = next(each["peers"] for each in document["workloads"] if each["name"] == workload)
        best = figure(median_of(peers[verdict.best], verdict.step), step)
        cells = (titles[workload], label, figure(verdict.ours, step), f"{verdict.best} {best}")
        lines.append("| " + " | ".join([*cells, _times(verdict.ratio)]) + " |")
    return "\n".join([*lines, SHORT_END]) + "\n"


def markdown(document: Mapping[str, Any]) -> str:
    """The table that the guide's page of benchmarks carries, between `BEGIN` and `END`."""
    lines = [
        BEGIN,
        f"`{document['command']}`, {document['date'][:10]}, on "
        + ", ".join(f"{name} {value}" for name, value in document["machine"].items())
        + ".",
        "",
        "| workload | | arraychest | best peer | ratio | limit | ratio | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    titles = {workload["name"]: workload for workload in document["workloads"]}
    last = ""
    for verdict in verdicts(document):
        step, peers = _step(document, verdict), titles[verdict.workload]["peers"]
        best, limit = (
            median_of(peers[name], verdict.step) if name in peers else None
            for name in (verdict.best, LIMIT if verdict.name == OURS else None)
        )
        title = titles[verdict.workload]["title"] if verdict.workload != last else ""
        last = verdict.workload
        cells = (
            f"**{verdict.workload}**: {title}" if title else "",
            verdict.label,
            figure(verdict.ours, step),
            "" if best is None else f"{verdict.best} {figure(best, step)}",
            _times(verdict.ratio),
            "" if limit is None else figure(limit, step),
            _times(verdict.limit_ratio),
            {None: "", True: "met", False: "missed"}[verdict.met],
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| peer | version | what was flushed survives | set up |", "|---|---|---|---|"]
    known = {
        name: peer
        for workload in document["workloads"]
        for name, peer in workload["peers"].items()
        if name != LIMIT
    }
    lines += [
        f"| {name} | {peer['version']} | {_SURVIVES[peer['durability']]} | {peer['setup']} |"
        for name, peer in sorted(known.items())
    ]
    lines.append(END)
    return "\n".join(lines) + "\n"


_SURVIVES = {
    NOTHING: "an orderly end",
    PROCESS_CRASH: "the death of the process",
    POWER_LOSS: "a power cut",
}


# --- figures -------------------------------------------------------------------------------------


def figure(value: float, step: Mapping[str, Any]) -> str:
    """A figure with its unit, for people."""
    if step["unit"] == "B":
        return size(value)
    if not step["unit"]:
        return _digits(value)
    if step["unit"] == "×":
        return f"{value:.2f} ×"
    text = next(
        f"{_digits(value * scale)} {unit}"
        for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns"))
        if value * scale >= 1 or unit == "ns"
    )
    if step["nbytes"] and value:
        text += f" ({_digits(step['nbytes'] / value / 1e9)} GB/s)"
    return text


def size(nbytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{_digits(nbytes)} {unit}"
        nbytes /= 1024
    return f"{_digits(nbytes)} GiB"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}" if ratio >= 10 else f"{ratio:.2f}"


def failures(document: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Workload, peer and reason of each pair that broke or gave a wrong answer."""
    return [
        (workload["name"], peer, why)
        for workload in document["workloads"]
        for peer, why in workload["failed"].items()
    ]
