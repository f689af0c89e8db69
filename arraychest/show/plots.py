"""Pictures of a chest, by Matplotlib: what lies where, and memory over time."""

from __future__ import annotations

import contextlib
import functools
import heapq
import io
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from arraychest.dictionary import MISSING
from arraychest.engine.engine import Engine
from arraychest.engine.listing import Listed, listed
from arraychest.monitor.samples import Sample
from arraychest.text import amount, key_text, visible
from arraychest.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the palette of Okabe and Ito, which the colour-blind can tell apart; by luminance, too.
_COLOURS = {
    "RAM": "#0072b2",
    "npy": "#e69f00",
    "blosc2": "#009e73",
    "blocks": "#56b4e9",
    "pack": "#cc79a7",
}
_NAMES = {
    "RAM": "in RAM, not stored yet",
    "npy": "files of their own",
    "blosc2": "compressed files",
    "blocks": "blocked arrays",
    "pack": "small values in packs",
}
_INK, _FAINT, _LINE = "#24292f", "#6a737d", "#d0d7de"

# Keys with a rectangle of their own.
_MOST_KEYS = 48

# Bins of the time at which files were written, at most.
_TIME_BINS = 40

# How long a time is shown at least.
_LEAST_SECONDS = 20.0

# Bars of sizes at least, with empty ones beside them.
_LEAST_BINS = 8

# Points of each inch.
_POINTS = 72


class _Item(NamedTuple):
    """A key, where its value lies, and how many bytes it takes there."""

    nbytes: int
    place: str
    key: Any


class Part(NamedTuple):
    """Some entries of a chest, as a group has them.

    Attributes
    ----------
    prefixes
        What their keys begin with.
    inner
        What the group calls a key of the chest; `MISSING` for one that it does not have.
    """

    prefixes: tuple[Any, ...]
    inner: Callable[[Any], Any]


class _Summary:
    """What a chest holds, in a memory that does not grow with it but for the files' times."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_COLOURS, 0)
        self.nbytes = dict.fromkeys(_COLOURS, 0)
        # Of arrays, whatever they take where they lie.
        self.size = 0
        self.damaged = 0
        self.largest: list[_Item] = []
        # Number of entries by place, and by the power of two that their size lies below.
        self.sizes = {place: np.zeros(65, np.int64) for place in _COLOURS}
        # Bytes by place and the second in which their file was last written.
        self.written: dict[tuple[str, int], int] = {}

    @property
    def count(self) -> int:
        return sum(self.counts.values()) + self.damaged

    @property
    def places(self) -> list[str]:
        """Where anything lies."""
        return [place for place, count in self.counts.items() if count]


def _summary(engine: Engine, part: Part | None, *, times: bool) -> _Summary:
    found = _Summary()
    second = functools.lru_cache(maxsize=1 << 16)(_second_of)

    def items() -> Iterator[_Item]:
        for each in listed(engine):
            key = each.key if part is None else part.inner(each.key)
            if key is MISSING:
                continue
            entry = each.entry
            if entry is None:
                found.damaged += 1
                continue
            place = _place_of(each)
            nbytes = entry.nbytes if place == "RAM" else entry.stored_bytes
            found.counts[place] += 1
            found.nbytes[place] += nbytes
            found.size += entry.nbytes
            found.sizes[place][entry.nbytes.bit_length()] += 1
            if times and each.row is not None:
                at = second(engine.file_of(each.row))
                if at is not None:
                    found.written[place, at] = found.written.get((place, at), 0) + nbytes
            yield _Item(nbytes, place, key)

    found.largest = heapq.nlargest(_MOST_KEYS, items(), key=lambda item: item.nbytes)
    return found


def _place_of(each: Listed) -> str:
    if each.tier == "RAM" or each.entry is None or each.entry.codec is None:
        return "RAM"
    return each.entry.codec


def _second_of(file: str) -> int | None:
    with contextlib.suppress(OSError):  # gone meanwhile
        return int(os.stat(file).st_mtime)
    return None


# --- the figure --------------------------------------------------------------------------------


def plotted(engine: Engine, *, times: bool = False, part: Part | None = None) -> Any:
    """Draw what lies where, by key and size; see `Chest.plot`.

    Parameters
    ----------
    times
        Whether to draw when files were written, and not memory over time.
    part
        Which entries to draw; None: all.

    Raises
    ------
    ImportError
        Matplotlib is missing.
    ClosedChestError, ChestFormatError, OSError
        The chest cannot be read.
    """
    samples: Sequence[Sample] | None = None
    if not times:
        engine.session.check_open()
        engine.session.take_sample()
        samples = engine.session.history.samples
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'arraychest[plot]'") from error

    found = _summary(engine, part, times=samples is None)
    # Not pyplot's: no state is left behind.  A notebook shows it all the same.
    shown = type("Figure", (Figure,), {"_repr_png_": _png})
    figure = shown(figsize=(13, 7), dpi=100, facecolor="white")
    left, right = 0.03, 0.975
    _title(figure, engine, found, part)
    treemap = figure.add_axes((left, 0.1, 0.575, 0.73))
    _draw_treemap(figure, treemap, found)
    upper = figure.add_axes((0.675, 0.54, right - 0.675, 0.29))
    if samples is not None:
        _draw_memory(upper, samples, "Over time" if part is None else "The whole chest over time")
    else:
        _draw_times(upper, found)
    _draw_sizes(figure.add_axes((0.675, 0.1, right - 0.675, 0.29)), found)
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _title(figure: Any, engine: Engine, found: _Summary, part: Part | None) -> None:
    stored = sum(found.nbytes.values()) - found.nbytes["RAM"]
    in_ram = found.nbytes["RAM"]
    told = [amount(found.count, "entry", "entries"), f"{format_bytes(found.size)} of values"]
    if in_ram:
        told.append(f"{format_bytes(in_ram)} in RAM")
    if stored:
        told.append(f"{format_bytes(stored)} on disk")
        size = found.size - in_ram
        if size > 1.05 * stored:
            told.append(f"compressed {size / stored:.3g} : 1")
    if found.damaged:
        told.append(amount(found.damaged, "damaged row"))
    path = engine.session.path or "a temporary chest"
    if part is not None:
        path += f", {', '.join(map(key_text, part.prefixes))}"
    name = path if len(path) <= 70 else f"…{path[-69:]}"
    style: dict[str, Any] = {"parse_math": False, "va": "center"}
    figure.text(0.03, 0.95, _drawable(visible(name)), fontsize=15, weight="bold", color=_INK,
                **style)  # fmt: skip
    figure.text(0.03, 0.905, " · ".join(told), fontsize=10.5, color=_FAINT, **style)


def _heading(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=10.5, color=_INK, weight="bold", pad=8)


def _plain(ax: Axes) -> None:
    ax.tick_params(colors=_INK, labelsize=8.5, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_FAINT)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=_LINE, lw=0.6)


def _nothing(ax: Axes, text: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color(_LINE)
    ax.text(0.5, 0.5, text, ha="center", va="center", color=_FAINT, transform=ax.transAxes)


def _size_axis(axis: Any) -> None:
    """Round sizes in bytes, some five of them."""
    low, high = axis.get_view_interval()
    step = 1.0
    while (high - low) / step > 5:
        step *= 2
    axis.set_ticks(np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step)
    axis.set_major_formatter(lambda nbytes, _: format_bytes(nbytes) if nbytes else "0")


# --- what lies where ---------------------------------------------------------------------------


def _draw_treemap(figure: Any, ax: Axes, found: _Summary) -> None:
    from matplotlib.patches import Patch, Rectangle

    rest = {place: (found.counts[place], found.nbytes[place]) for place in found.places}
    for item in found.largest:
        count, nbytes = rest[item.place]
        rest[item.place] = count - 1, nbytes - item.nbytes
    tiles = [(item.nbytes, item.place, _text_of(item.key), False) for item in found.largest]
    tiles += [
        (nbytes, place, f"+ {count:,}", True) for place, (count, nbytes) in rest.items() if count
    ]
    tiles = sorted((tile for tile in tiles if tile[0]), key=lambda tile: -tile[0])
    _heading(ax, "What lies where: the area is the bytes that it takes")
    if not tiles:
        _nothing(ax, "nothing yet")
        return
    ax.axis("off")
    points = _POINTS / figure.dpi
    wide, tall = ax.bbox.width * points, ax.bbox.height * points
    ax.set(xlim=(0, wide), ylim=(tall, 0))
    areas = squarified([tile[0] for tile in tiles], wide, tall)
    for (nbytes, where, text, is_rest), (x, y, w, h) in zip(tiles, areas, strict=True):
        box = Rectangle((x, y), w, h, facecolor=_COLOURS[where], edgecolor="white", lw=1.2)
        if is_rest:
            box.set(hatch="//", alpha=0.55)
        ax.add_patch(box)
        ink = "white" if where in ("RAM", "blosc2") and not is_rest else "#111"
        labels = _labels(text, format_bytes(nbytes), w, h)
        if is_rest and labels and labels[0][0] != text:
            continue  # a number is not cut
        for line, (label, font) in enumerate(labels):
            ax.text(
                x + 4, y + 4 + 1.3 * font * line, label, fontsize=font, color=ink,
                va="top", parse_math=False, weight="normal" if line else "bold",
                clip_path=box, clip_on=True,
            )  # fmt: skip
    handles = [
        Patch(
            color=_COLOURS[place],
            label=f"{_NAMES[place]}: {format_bytes(found.nbytes[place])} ({found.counts[place]:,})",
        )
        for place in found.places
    ]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.008, -0.005),
        ncols=min(len(handles), 3),
        fontsize=8.5, frameon=False, labelcolor=_INK, handlelength=1.1, handleheight=1.1,
        columnspacing=1.4,
    )  # fmt: skip


def _labels(text: str, size: str, wide: float, tall: float) -> list[tuple[str, float]]:
    """What fits into a rectangle of so many points: key and size, the key, or nothing."""
    font = 9.0 if min(wide, tall) > 40 else 7.0
    room = (wide - 8) / font
    label = _cut(text, room)
    if len(label) < min(len(text), 3) or tall < font + 5:
        return []
    if tall < 2.6 * font + 4 or _cut(size, room) != size:
        return [(label, font)]
    return [(label, font), (size, font)]


def _cut(text: str, room: float) -> str:
    """A text without its middle, so that it is no wider than so many times its font's size."""
    if sum(map(_em, text)) <= room:
        return text
    # Keys begin alike more often than they end alike.
    head, left = "", room - _em("…")
    for each in text:
        if sum(map(_em, head)) + _em(each) > left / 3:
            break
        head += each
    tail = ""
    left -= sum(map(_em, head))
    for each in reversed(text):
        left -= _em(each)
        if left < 0:
            break
        tail = each + tail
    return f"{head}…{tail}" if head or tail else ""


@functools.lru_cache(maxsize=4096)
def _em(character: str) -> float:
    """How wide a character is in bold, of the size of its font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    measured: Any = text_to_path
    bold = FontProperties(weight="bold", size=10)
    return float(measured.get_text_width_height_descent(character, bold, False)[0]) / 10


def squarified(sizes: Sequence[int], wide: float, tall: float) -> list[tuple[float, ...]]:
    """Rectangles whose areas are as the sizes, and which are as square as may be.

    Parameters
    ----------
    sizes
        Positive, the largest first.
    wide, tall
        Of the rectangle that they fill.

    Returns
    -------
    list of tuple
        Left, top, width and height of each.

    References
    ----------
    Bruls, Huizing, van Wijk: Squarified Treemaps, 2000.
    """
    scale = wide * tall / sum(sizes)
    x = y = 0.0
    found: list[tuple[float, ...]] = []
    at = 0
    while at < len(sizes):
        side = min(wide, tall)
        end, area = at + 1, sizes[at] * scale
        worst = _worst(area, area, area, side)
        while end < len(sizes):
            more = sizes[end] * scale
            next_worst = _worst(sizes[at] * scale, more, area + more, side)
            if next_worst > worst:
                break
            worst, area, end = next_worst, area + more, end + 1
        depth = area / side
        along = 0.0
        for size in sizes[at:end]:
            length = size * scale / depth
            if wide >= tall:
                found.append((x, y + along, depth, length))
            else:
                found.append((x + along, y, length, depth))
            along += length
        if wide >= tall:
            x, wide = x + depth, wide - depth
        else:
            y, tall = y + depth, tall - depth
        at = end
    return found


def _worst(largest: float, smallest: float, area: float, side: float) -> float:
    """How much longer than wide the least square one is, of a row along a side."""
    return max(side**2 * largest / area**2, area**2 / (side**2 * smallest))


# --- how large, and when -----------------------------------------------------------------------


def _draw_sizes(ax: Axes, found: _Summary) -> None:
    from matplotlib.ticker import MaxNLocator

    total = np.sum(list(found.sizes.values()), axis=0)
    _heading(ax, "Entries by size")
    if not np.any(total):
        _nothing(ax, "nothing yet")
        return
    first, last = (int(each) for each in np.flatnonzero(total)[[0, -1]])
    # Few bars would be broad ones.
    missing = max(0, _LEAST_BINS - (last - first + 1))
    first = max(0, first - missing // 2)
    last = min(len(total) - 1, max(last, first + _LEAST_BINS - 1))
    bins = np.arange(first, last + 1)
    below = np.zeros(len(bins), np.int64)
    # Stacked bars mean nothing on a logarithmic axis: what is rare can be seen, or where it lies.
    shown = total[first : last + 1]
    many = shown.max() > 200 * shown[shown > 0].min()
    if many:
        ax.bar(bins, shown, width=0.86, color=_FAINT)
        ax.set_yscale("log")
        ax.set_ylim(0.6, None)
        ax.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}" if count >= 1 else "")
        ax.minorticks_off()
    else:
        for place in found.places:
            counts = found.sizes[place][first : last + 1]
            ax.bar(bins, counts, width=0.86, bottom=below, color=_COLOURS[place])
            below += counts
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _plain(ax)
    # A bin of n bits is of sizes from 2**(n - 1) on, up to its double.
    step = max(1, math.ceil(len(bins) / 6))
    edges = np.arange(first, last + 2, step)
    ax.set_xlim(first - 0.6, last + 0.6)
    ax.set_xticks(
        edges - 0.5, [format_bytes(2 ** (int(edge) - 1)) if edge else "0" for edge in edges]
    )


def _draw_times(ax: Axes, found: _Summary) -> None:
    from matplotlib import dates

    _heading(ax, "On disk, by when it was written")
    if not found.written:
        _nothing(ax, "nothing on disk yet")
        return
    seconds = [second for _, second in found.written]
    first, last = float(min(seconds)), float(max(seconds))
    # Of files that were written at once, what comes before and after is seen.
    margin = max((last - first) * 0.02, (_LEAST_SECONDS - (last - first)) / 2)
    first, last = first - margin, last + margin
    # Files tell whole seconds here.
    bins = min(_TIME_BINS, int(last - first))
    edges = np.linspace(first, last, bins + 1)
    below = np.zeros(bins)
    offset = -time.timezone if not time.localtime(last).tm_isdst else -time.altzone
    days: Any = dates  # without annotations
    left = days.date2num(np.datetime64(0, "s")) + (edges + offset) / 86_400
    for place in found.places:
        weights = {at: nbytes for (where, at), nbytes in found.written.items() if where == place}
        if not weights:
            continue
        nbytes, _ = np.histogram(list(weights), edges, weights=list(weights.values()))
        ax.bar(left[:-1], nbytes, np.diff(left), bottom=below, align="edge", color=_COLOURS[place])
        below += nbytes
    _plain(ax)
    ax.set_xlim(left[0], left[-1])
    ax.set_ylim(0, 1.08 * below.max() or 1)
    _size_axis(ax.yaxis)
    locator = days.AutoDateLocator(maxticks=6)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(days.ConciseDateFormatter(locator))
    ax.xaxis.get_offset_text().set(fontsize=8.5, color=_FAINT)


def _draw_memory(ax: Axes, samples: Sequence[Sample], heading: str) -> None:
    # When it was opened nothing was in it.
    samples = [Sample(0.0, 0, samples[0].budget, 0), *samples]
    seconds = np.array([sample.seconds for sample in samples])
    charged = np.array([sample.charged for sample in samples], float)
    budget = np.array([sample.budget for sample in samples], float)
    spilled = np.array([sample.spilled for sample in samples], float)
    ax.fill_between(seconds, charged, color=_COLOURS["RAM"], alpha=0.25, lw=0)
    ax.plot(seconds, charged, color=_COLOURS["RAM"], lw=1.6, label="in RAM")
    ax.plot(seconds, spilled, color="#d55e00", lw=1.6, label="spilled, in all")
    top = max(charged.max(), spilled.max(), 1.0)
    # A budget far above what is used would press all else to the floor.
    if budget.max() <= 4 * top:
        ax.plot(seconds, budget, color=_INK, lw=1.2, ls=(0, (5, 3)), label="budget")
        top = max(top, budget.max())
        below = ""
    else:
        # Beside the heading there is room for the legend only.
        below = f"; the budget is {format_bytes(budget[-1])}"
    _heading(ax, heading)
    _plain(ax)
    ax.set_ylim(0, 1.08 * top)
    ax.set_xlim(0, max(float(seconds[-1]), 0.1))
    _size_axis(ax.yaxis)
    ax.set_xlabel(f"seconds since it was opened{below}", fontsize=8.5, color=_FAINT)
    ax.legend(
        loc="lower right", bbox_to_anchor=(1.01, 0.985), ncols=3, fontsize=8.5, frameon=False,
        labelcolor=_INK, handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


# --- text --------------------------------------------------------------------------------------


def _text_of(key: Any) -> str:
    """A key as short as may be: a text without quotes, unless it hides something."""
    is_plain = isinstance(key, str) and key.isprintable() and 0 < len(key) < 200
    return _drawable(key if is_plain else key_text(key))


@functools.cache
def _characters(font: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(font).get_charmap())


def _drawable(text: str) -> str:
    """What the font has no glyph for as Python escapes it: else a box is drawn, and warned of."""
    from matplotlib.font_manager import FontProperties, findfont

    known = _characters(findfont(FontProperties()))
    return "".join(
        each if ord(each) in known else each.encode("ascii", "backslashreplace").decode()
        for each in itertools.islice(text, 400)
    )
