"""The picture of a run: for each thing measured, arraychest by the best peer and by the limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.peers import LIMIT, OURS

# Okabe and Ito's colours, which people tell apart however they see them.
_FASTER, _SLOWER, _PEER, _LIMIT, _TEXT = "#0072B2", "#D55E00", "#999999", "#000000", "#222222"

_LIMIT_MARK: dict[str, Any] = {
    "marker": "|",
    "markersize": 11,
    "markeredgewidth": 2,
    "linestyle": "",
}

# Further away than this, bars say nothing more.
_WIDEST = 1000.0


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw a run.

    A bar for each step: how many times as long the best peer takes as arraychest, or arraychest
    as the best peer.  Dots are the other peers, a line the machine's limit.

    Parameters
    ----------
    document
        What ``--json`` writes.
    path
        A PNG or SVG file.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(label: str, *, compared: bool = True) -> Line2D:
        return Line2D([], [], linestyle="", label=label, **_mark(compared=compared))

    verdicts = [each for each in report.verdicts(document) if each.ratio is not None]
    workloads = {workload["name"]: workload for workload in document["workloads"]}
    # A line for each step, and a heading for each workload.
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    at, last = 0.0, ""
    for verdict in verdicts:
        if verdict.workload != last:
            at += 0.6 if last else 0
            headings.append((at, workloads[verdict.workload]["title"]))
            last = verdict.workload
            at += 1
        places.append(at)
        at += 1
    figure, axes = plt.subplots(figsize=(11, 1.4 + 0.27 * max(at, 1)), layout="constrained")
    axes.set_xscale("log")
    axes.axvline(1, color=_TEXT, linewidth=1.2, zorder=3)
    for place, verdict in zip(places, verdicts, strict=True):
        _line(axes, place, verdict, workloads[verdict.workload])
    for place, title in headings:
        axes.text(
            0.0, place, title, transform=axes.get_yaxis_transform(), weight="bold",
            va="center", zorder=6,
            bbox={"color": "white", "pad": 1.5},
            fontsize=10, color=_TEXT,
        )  # fmt: skip
    axes.set_yticks(places, [verdict.step for verdict in verdicts], fontsize=9, color=_TEXT)
    axes.set_ylim(max(at, 1) - 0.4, -0.8)
    axes.set_xlim(1 / _WIDEST**0.75, _WIDEST * 1.3)
    ticks = [0.01, 0.1, 1, 10, 100, 1000]
    axes.set_xticks(ticks, ["100 ×", "10 ×", "the same", "10 ×", "100 ×", "1000 ×"])
    axes.set_xlabel("← others are faster than arraychest          others are slower →")
    axes.grid(axis="x", which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    machine = document["machine"]
    axes.set_title(
        f"arraychest {document['versions']['arraychest']} beside its peers\n"
        f"{machine['CPU']}, {machine['memory']}, {machine['files']}; scale {document['scale']}; "
        f"{document['date'][:10]}",
        loc="left", fontsize=10, color=_TEXT,
    )  # fmt: skip
    figure.legend(
        handles=[
            Patch(color=_FASTER, label="the best peer is slower"),
            Patch(color=_SLOWER, label="the best peer is faster"),
            dot("another peer"),
            dot("one that promises less, or stores more", compared=False),
            Line2D([], [], color=_LIMIT, label="the machine's limit", **_LIMIT_MARK),
        ],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(axes: Any, place: float, verdict: report.Verdict, workload: Mapping[str, Any]) -> None:
    assert verdict.ratio is not None
    by_us = 1 / verdict.ratio if verdict.ratio else _WIDEST
    color = _FASTER if by_us >= 1 / report.GOAL_OF_BEST else _SLOWER
    axes.barh(place, by_us - 1, left=1, height=0.62, color=color, zorder=2)
    times = max(by_us, 1 / by_us)
    text = f"{verdict.best} {times:.{0 if times >= 100 else 1 if times >= 10 else 2}f} × "
    text += "slower" if by_us >= 1 else "faster"
    for name, peer in workload["peers"].items():
        theirs = report.median_of(peer, verdict.step)
        if name == OURS or theirs is None or not verdict.ours:
            continue
        times = min(max(theirs / verdict.ours, 1 / _WIDEST), _WIDEST)
        if name == LIMIT:
            axes.plot(times, place, color=_LIMIT, zorder=5, **_LIMIT_MARK)
        elif name != verdict.best:
            compared = report.why_not_compared(workload, name) is None
            axes.plot(times, place, zorder=4, **_mark(compared=compared))
    axes.text(
        1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8,
        color=color,
    )  # fmt: skip


def _mark(*, compared: bool) -> dict[str, Any]:
    """How a peer's dot looks: filled where it is compared."""
    return {
        "marker": "o",
        "markersize": 4.5,
        "markerfacecolor": _PEER if compared else "white",
        "markeredgecolor": "white" if compared else _PEER,
        "markeredgewidth": 0.5 if compared else 1,
    }
