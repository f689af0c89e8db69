"""The picture of a run: for each thing measured, arraychest by the best peer and by the limit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.peers import LIMIT, OURS, OURS_DURABLE

# Okabe and Ito's colours, which people tell apart however they see them.
_FASTER, _SLOWER, _PEER, _LIMIT, _TEXT = "#0072B2", "#D55E00", "#999999", "#000000", "#222222"

_OTHERS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9")
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
    as the best peer.  Dots are the other peers, a line the machine's limit.  Below: what an entry
    costs by the number of entries.

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

    verdicts = [each for each in report.verdicts(document) if each.ratio is not None]
    heights = [1.4 + 0.27 * (len(verdicts) + 1.6 * len({each.workload for each in verdicts}))]
    growing = [workload for workload in document["workloads"] if _sizes(workload)]
    heights += [2.8] * len(growing)
    figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _bars(parts[0], verdicts, document)
    for part, workload in zip(parts[1:], growing, strict=True):
        _growth(part, workload)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# --- bars ----------------------------------------------------------------------------------------


def _bars(part: Any, verdicts: list[report.Verdict], document: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(label: str, *, compared: bool = True) -> Line2D:
        return Line2D([], [], linestyle="", label=label, **_mark(compared=compared))

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
    axes = part.subplots()
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
    axes.set_yticks(places, [verdict.label for verdict in verdicts], fontsize=9, color=_TEXT)
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
    part.legend(
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
        if name in (OURS, OURS_DURABLE) or theirs is None or not verdict.ours:
            continue
        times = min(max(theirs / verdict.ours, 1 / _WIDEST), _WIDEST)
        if name == LIMIT:
            if verdict.limit_ratio is not None:
                axes.plot(times, place, color=_LIMIT, zorder=5, **_LIMIT_MARK)
        elif name != verdict.best:
            compared = report.why_not_compared(workload, name, verdict.name) is None
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


# --- cost against size ---------------------------------------------------------------------------


def _sizes(workload: Mapping[str, Any]) -> dict[str, list[int]]:
    """What arraychest was measured in at several sizes of the store, and at which."""
    found: dict[str, list[int]] = {}
    for name in workload["peers"].get(OURS, {"steps": {}})["steps"]:
        match = re.fullmatch(r"(.+), of ([\d,]+)", name)
        if match:
            found.setdefault(match[1], []).append(int(match[2].replace(",", "")))
    return found


def _growth(part: Any, workload: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter

    sizes = _sizes(workload)
    part.suptitle(workload["title"], x=0.01, ha="left", fontsize=10, weight="bold", color=_TEXT)
    for axes, (what, at) in zip(part.subplots(1, len(sizes)), sizes.items(), strict=True):
        colors = iter(_OTHERS)
        for name, peer in workload["peers"].items():
            figures = [report.median_of(peer, f"{what}, of {size:,}") for size in at]
            pairs = [pair for pair in zip(at, figures, strict=True) if pair[1] is not None]
            if not pairs:
                continue
            own = {"color": _FASTER, "linewidth": 2.5, "zorder": 4}
            if name == LIMIT:
                own = {"color": _LIMIT, "linestyle": "--", "linewidth": 1.2}
            elif name != OURS:
                own = {"color": next(colors, _PEER), "linewidth": 1.5}
            axes.plot(*zip(*pairs, strict=True), marker="o", markersize=4, label=name, **own)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(what, fontsize=9, color=_TEXT)
        axes.set_xlabel("entries", fontsize=8, color=_TEXT)
        axes.yaxis.set_major_formatter(FuncFormatter(_seconds))
        axes.yaxis.set_minor_formatter("")
        axes.tick_params(labelsize=8)
        axes.grid(which="major", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    part.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(workload["peers"]),
        frameon=False,
        fontsize=9,
    )


def _seconds(value: float, _: int) -> str:
    return report.figure(value, {"unit": "s", "nbytes": None})
