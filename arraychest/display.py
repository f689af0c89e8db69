"""What notebooks show of a chest, of a stored array in chunks and of a cached function: HTML.

Each function gives one element with all that it needs: its styles, which follow the notebook's
theme, and for tables a few lines of script that sort them.  Where styles and scripts are stripped
(GitHub, notebooks that are not trusted) the same is read as plain tables.

Keys, paths, dtypes and messages may be a stranger's.  Each reaches the page through `_escaped`:
first without a character that cannot be seen (which also is what turns text round), then without
one that HTML would take for its own.
"""

from __future__ import annotations

import functools
import html
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from arraychest.blocked import BlockedArray
from arraychest.chunkgrid import Axis, chunks_svg
from arraychest.codecs.frame import CODEC_NAMES, FILTER_NAMES
from arraychest.errors import ArrayChestError
from arraychest.lazy import LazyArray
from arraychest.listing import Listed, listed
from arraychest.selection import Cut
from arraychest.text import key_text, visible
from arraychest.tiers import Tiers
from arraychest.units import format_bytes

# Entries in a chest's table.
MOST_ENTRIES = 200

# A chest that holds more is not asked for numbers that take a look at each entry or slot.
_MOST_COUNTED = 1 << 16

_STYLE = """
.arraychest{--bg:#fff;--ink:#24292f;--faint:#6a737d;--line:#d8dee4;--stripe:#f6f8fa;--ram:#0072b2;
--disk:#d98200;--good:#009e73;--bad:#c2410c;--track:#e7ebef;--chunk:#cfe5f3;--chunk2:#b4d5ea;
--chunk3:#9cc6e0;--edge:#2f6f9c}
@media (prefers-color-scheme:dark){.arraychest{DARK}}
[data-jp-theme-light="true"] .arraychest,body.vscode-light .arraychest,
body.vscode-high-contrast-light .arraychest,[data-theme="light"] .arraychest{LIGHT}
[data-jp-theme-light="false"] .arraychest,body.vscode-dark .arraychest,
body.vscode-high-contrast:not(.vscode-high-contrast-light) .arraychest,
[data-theme="dark"] .arraychest{DARK}
.arraychest{background:var(--bg);color:var(--ink);border:1px solid var(--line);border-radius:8px;
padding:12px 16px;font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
max-width:60rem;box-sizing:border-box;display:inline-block;min-width:min(34rem,100%);
text-align:left;color-scheme:light dark}
.arraychest *{box-sizing:border-box}
.arraychest .ac-title{font-size:14px;margin-bottom:8px;overflow-wrap:anywhere}
.arraychest .ac-title b{margin-right:.5em}
.arraychest .ac-faint{color:var(--faint)}
.arraychest .ac-bad{color:var(--bad)}
.arraychest .ac-flow{display:flex;flex-wrap:wrap;gap:10px 32px;align-items:center}
.arraychest table{border-collapse:collapse;border:0;margin:0;font-size:12px;color:inherit;
background:none;table-layout:auto}
.arraychest thead{border:0}
.arraychest.arraychest tbody tr,.arraychest.arraychest tbody tr:hover{background:none}
.arraychest tr,.arraychest th,.arraychest td{border:0;background:none;color:inherit;
text-align:left;padding:3px 10px;vertical-align:top;white-space:nowrap;max-width:none}
.arraychest .ac-n{text-align:right;font-variant-numeric:tabular-nums}
.arraychest .ac-key{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:normal;overflow-wrap:anywhere;min-width:15em}
.arraychest .ac-bars{width:100%}
.arraychest .ac-bars td{padding:2px 12px 2px 0;vertical-align:middle}
.arraychest .ac-bars td:nth-child(2){width:45%;min-width:9em}
.arraychest .ac-track{height:12px;border-radius:6px;background:var(--track);overflow:hidden;
display:flex}
.arraychest .ac-track i{display:block;height:100%;min-width:2px}
.arraychest .ac-scroll{max-height:22rem;overflow:auto;margin-top:10px;
border-top:1px solid var(--line)}
.arraychest .ac-list{width:100%}
.arraychest .ac-list thead th{position:sticky;top:0;background:var(--bg);font-weight:600;
box-shadow:0 1px 0 var(--line)}
.arraychest .ac-list tbody tr:nth-child(even) td{background:var(--stripe)}
.arraychest .ac-list th[data-sorts]{cursor:pointer;user-select:none}
.arraychest th[aria-sort=ascending]::after{content:" \\2191"}
.arraychest th[aria-sort=descending]::after{content:" \\2193"}
.arraychest .ac-dot{display:inline-block;width:8px;height:8px;border-radius:50%;
margin-right:6px;background:var(--faint)}
.arraychest .ac-ram{background:var(--ram)}.arraychest .ac-disk{background:var(--disk)}
.arraychest .ac-good{background:var(--good)}.arraychest .ac-both{
background:linear-gradient(90deg,var(--disk) 50%,var(--ram) 50%)}
.arraychest svg{display:block;overflow:visible}
.arraychest svg text{fill:var(--ink);stroke:none;font:11px system-ui,sans-serif}
.arraychest .ac-face{fill:var(--chunk);stroke:var(--edge);stroke-width:1.6;stroke-linejoin:round}
.arraychest .ac-top{fill:var(--chunk2)}.arraychest .ac-side{fill:var(--chunk3)}
.arraychest .ac-cut{stroke:var(--edge);stroke-width:.8;fill:none}
.arraychest .ac-many{stroke:var(--edge);stroke-width:.7;fill:none;stroke-dasharray:2 2;opacity:.6}
.arraychest .ac-none{fill:none;stroke-dasharray:4 3}
"""
_LIGHT = _STYLE[_STYLE.index("{") + 1 : _STYLE.index("}")]
_DARK = (
    "--bg:#1c2128;--ink:#dbe2ea;--faint:#98a4b1;--line:#3a424d;--stripe:#242b34;--ram:#56b4e9;"
    "--disk:#e6a53c;--good:#35c79a;--bad:#ff8f66;--track:#333c47;--chunk:#2b5573;--chunk2:#234660;"
    "--chunk3:#1b374c;--edge:#9fcbe8"
)

# Numbers largest first, texts from A on; the other way round at the next click.
_SCRIPT = """
(function(){var t=document.getElementById("ID");if(!t)return;t=t.querySelector(".ac-list");if(!t)
return;var b=t.tBodies[0],h=Array.from(t.tHead.rows[0].cells);h.forEach(function(c,i){
function go(){var n=c.getAttribute("data-sorts")==="n",o=c.getAttribute("aria-sort"),
up=o?o==="descending":!n;h.forEach(function(e){e.removeAttribute("aria-sort")});
c.setAttribute("aria-sort",up?"ascending":"descending");
var v=function(r){var d=r.cells[i];return n?+d.getAttribute("data-v"):d.textContent};
Array.from(b.rows).sort(function(x,y){x=v(x);y=v(y);
var k=n?x-y:x.localeCompare(y,undefined,{numeric:true});return up?k:-k})
.forEach(function(r){b.appendChild(r)})}
c.tabIndex=0;c.addEventListener("click",go);c.addEventListener("keydown",function(e){
if(e.key==="Enter"||e.key===" "){e.preventDefault();go()}})})})();
"""


@functools.cache
def _style() -> str:
    light = " ".join(_LIGHT.split())
    return _STYLE.replace("LIGHT", light).replace("DARK", _DARK)


# --- text ------------------------------------------------------------------------------------


def _escaped(text: object) -> str:
    return html.escape(visible(str(text)))


def _bdi(text: str) -> str:
    """What is written from right to left stays in its place."""
    return f"<bdi>{html.escape(visible(text))}</bdi>"


def _seconds(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _framed(*parts: str, script: bool = False) -> str:
    name = f"arraychest-{secrets.token_hex(6)}"
    run = f"<script>{_SCRIPT.replace('ID', name)}</script>" if script else ""
    return (
        f'<style>{_style()}</style><div class="arraychest" id="{name}">{"".join(parts)}</div>{run}'
    )


def _title(kind: str, rest: str) -> str:
    return f'<div class="ac-title"><b>{kind}</b> <span class="ac-faint">{rest}</span></div>'


class _Bar(NamedTuple):
    """One line of bars: what it is of, parts as (class, share), and what is said beside it."""

    name: str
    parts: Sequence[tuple[str, float]]
    text: str


def _bars(bars: Sequence[_Bar]) -> str:
    rows = []
    for bar in bars:
        drawn = "".join(
            f'<i class="{kind}" style="width:{100 * min(max(share, 0.0), 1.0):.2f}%"></i>'
            for kind, share in bar.parts
            if share > 0
        )
        rows.append(
            f'<tr><td>{bar.name}</td><td><div class="ac-track">{drawn}</div></td>'
            f"<td>{bar.text}</td></tr>"
        )
    return f'<table class="ac-bars">{"".join(rows)}</table>'


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


# --- a chest ---------------------------------------------------------------------------------


def chest_html(tiers: Tiers) -> str:
    """A chest: its tiers as bars, what it has done, and a table of up to 200 entries.

    The cost does not grow with what the chest holds; see `listing.listed`.  Raises nothing for a
    chest that is closed or damaged, but says so.
    """
    try:
        return _open_chest(tiers)
    except (ArrayChestError, OSError) as error:
        where = _bdi(tiers.path or "temporary")
        if tiers.closed:
            return _framed(_title("Chest", f"{where}, closed"))
        return _framed(_title("Chest", where), f'<div class="ac-bad">{_escaped(error)}</div>')


def _open_chest(tiers: Tiers) -> str:
    tiers.check_open()
    found = list(listed(tiers, MOST_ENTRIES))
    count = _count(tiers)
    where = _bdi(tiers.path) if tiers.path else "nothing on disk yet"
    told = ["temporary"] if tiers.temporary else [f'mode "{tiers.options.mode}"']
    if tiers.options.mmap_mode != "r":
        told.append(f'mmap_mode "{tiers.options.mmap_mode}"')
    entries = "entry" if count == 1 else "entries"
    number = f"{_number(count)} {entries}" if count is not None else "entries not counted"
    parts = [
        _title(f"Chest of {number}", f"{where} · {', '.join(told)}"),
        _bars(_tier_bars(tiers, count)),
        _done(tiers),
    ]
    if tiers.own_changes() is not None:
        parts.append('<div class="ac-faint">What this transaction has changed is not shown.</div>')
    if found:
        parts.append(_table(found))
        if count is None or count > len(found):
            parts.append(
                f'<div class="ac-faint">The first {len(found)} of {_number(count)} entries.</div>'
            )
    return _framed(*parts, script=bool(found))


def _count(tiers: Tiers) -> int | None:
    with tiers.writer.lock:
        tiers.follow()
        if tiers.index.is_counted:
            return tiers.index.count(0)
    # In a transaction each key would be looked at, and a commit waited for.
    return tiers.count() if tiers.own_changes() is None else None


def _tier_bars(tiers: Tiers, count: int | None) -> list[_Bar]:
    with tiers.writer.lock:
        tiers.check_open()
        charged, resident = tiers.resident.charged, tiers.resident.count
        copies = sum(copy.array.nbytes for copy in tiers.resident.copies.values())
        stored = tiers.counter.stored
    if stored is None and count is not None and count <= _MOST_COUNTED:
        stored = tiers.stored_bytes()
    budget = tiers.budget.bytes
    text = f"{format_bytes(charged)} of {format_bytes(budget)}, {resident:,} not stored yet"
    if copies:
        text += f", {format_bytes(copies)} decompressed copies"
    size = max(budget, charged, 1)
    ram = _Bar("RAM", [("ac-ram", (charged - copies) / size), ("ac-both", copies / size)], text)
    quota = tiers.options.quota
    if stored is None:
        return [ram, _Bar("Disk", [("ac-disk", 1.0)], "size not counted")]
    text = format_bytes(stored)
    if quota is not None:
        text += f" of {format_bytes(quota.nbytes)}"
        share = stored / max(quota.nbytes, 1)
    else:
        # Without a limit, beside what is in RAM.
        share = stored / max(stored, size)
    number = None if count is None else max(count - resident, 0)
    if number is not None:
        text += f", {number:,} {'entry' if number == 1 else 'entries'}"
    return [ram, _Bar("Disk", [("ac-disk", share)], text)]


def _done(tiers: Tiers) -> str:
    counters = tiers.committer.counters
    known = len(tiers.index.slots)
    hits = tiers.hits() if known <= _MOST_COUNTED else None
    told = [
        f"{_number(hits)} hits" if hits is not None else "hits not counted",
        f"{counters.misses:,} misses",
        f"{counters.absent:,} absent",
        f"{counters.spills:,} spilled ({format_bytes(counters.bytes_spilled)})",
        f"{counters.faults:,} faulted in ({format_bytes(counters.bytes_faulted)})",
    ]
    if counters.evictions:
        told.append(f"{counters.evictions:,} evicted")
    return f'<div class="ac-faint" style="margin-top:6px">{" · ".join(told)}</div>'


# Of each tier: its rank, the class of its dot, and what it is called.
_TIERS = {
    "RAM": (3, "ac-ram", "RAM"),
    "copy": (2, "ac-both", "disk, copy in RAM"),
    "mapped": (1, "ac-both", "disk, mapped"),
    "disk": (0, "ac-disk", "disk"),
}

# Of each column: its title, whether it is sorted by number, and its cell of a line: what it is
# sorted by, and its HTML.
_COLUMNS: dict[str, tuple[bool, Callable[[Listed], tuple[float, str]]]] = {
    "key": (False, lambda each: (0, _bdi(key_text(each.key)))),
    "tier": (True, lambda each: (_TIERS[each.tier][0], _tier_cell(each))),
    "dtype": (False, lambda each: (0, _kind_of(each))),
    "shape": (True, lambda each: _shape_cell(each)),
    "size": (True, lambda each: _size_cell(each.entry.nbytes if each.entry else None)),
    "stored": (True, lambda each: _size_cell((each.entry and each.entry.stored_bytes) or None)),
    "codec": (False, lambda each: (0, (each.entry and each.entry.codec) or "–")),
}


def _tier_cell(each: Listed) -> str:
    _, kind, name = _TIERS[each.tier]
    return f'<span class="ac-dot {kind}"></span>{name}'


def _kind_of(each: Listed) -> str:
    entry = each.entry
    if entry is None:
        return f'<span class="ac-bad" title="{_escaped(each.problem)}">damaged</span>'
    if entry.kind not in ("array", "scalar", "blocked"):
        return entry.kind
    return _bdi(visible(str(entry.dtype), 28))


def _shape_cell(each: Listed) -> tuple[float, str]:
    entry = each.entry
    if entry is None or entry.kind in ("tree", "dump"):
        return -1, "–"
    if entry.kind == "scalar" or not entry.shape:
        return 1, "scalar" if entry.kind == "scalar" else "()"
    return math.prod(entry.shape), visible(" × ".join(map(str, entry.shape)), 32)


def _size_cell(nbytes: int | None) -> tuple[float, str]:
    return (-1, "–") if nbytes is None else (nbytes, format_bytes(nbytes))


def _table(found: Sequence[Listed]) -> str:
    head = "".join(
        f'<th data-sorts="{"n" if by_number else "t"}" title="sort"{_class_of(name)}>{name}</th>'
        for name, (by_number, _) in _COLUMNS.items()
    )
    rows = []
    for each in found:
        cells = []
        for name, (by_number, cell) in _COLUMNS.items():
            value, text = cell(each)
            sorted_by = f' data-v="{value}"' if by_number else ""
            cells.append(f"<td{_class_of(name)}{sorted_by}>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="ac-scroll"><table class="ac-list"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class_of(name: str) -> str:
    kind = {"key": "ac-key", "size": "ac-n", "stored": "ac-n", "shape": "ac-n"}.get(name)
    return f' class="{kind}"' if kind else ""


# --- a cached function -----------------------------------------------------------------------


def cached_html(name: str, where: str, stats: Any, options: dict[str, Any]) -> str:
    """What a cached function has done.

    Parameters
    ----------
    name, where
        Of the function, and its chest.
    stats
        A `CacheStats`.
    options
        How it was decorated; those that are not as by default are told.
    """
    calls = stats.hits + stats.misses
    share = stats.hits / calls if calls else 0.0
    seconds = stats.seconds_saved + stats.seconds_computing
    saved = stats.seconds_saved / seconds if seconds else 0.0
    bars = [
        _Bar(
            "Calls",
            [("ac-good", share), ("ac-disk", 1 - share if calls else 0)],
            f"{stats.hits:,} hits of {calls:,} ({share:.0%})" if calls else "none yet",
        ),
        _Bar(
            "Time",
            [("ac-good", saved), ("ac-disk", 1 - saved if seconds else 0)],
            f"{_seconds(stats.seconds_saved)} saved, {_seconds(stats.seconds_computing)} computing"
            if seconds
            else "none yet",
        ),
    ]
    told = [
        f"{key}={key_text(value)}"
        for key, value in options.items()
        if value not in ((), None, 0) and value is not True
    ]
    rest = f"in {_bdi(where)}" + (f" · {_escaped(', '.join(told))}" if told else "")
    return _framed(_title(f"Cached {_bdi(name)}", rest), _bars(bars))


# --- an array in chunks ----------------------------------------------------------------------


def array_html(
    kind: str,
    shape: tuple[int, ...],
    chunks: Sequence[Cut],
    dtype: np.dtype,
    *,
    stored: int | None = None,
    more: Sequence[tuple[str, str]] = (),
    part: str = "chunk",
) -> str:
    """An array that lies in chunks: its figures beside its chunks, drawn.

    Parameters
    ----------
    kind
        What it is called.
    shape, dtype
        The array's.
    chunks
        Along each axis, the size of every chunk (as dask has it) or of each but the last.
    stored
        Bytes that it takes; None: not told.
    more
        Further lines of the table, as names and texts.
    part
        What its chunks are called.
    """
    axes = [Axis.of(n, c) for n, c in zip(shape, chunks, strict=True)]
    count = math.prod(axis.number for axis in axes)
    nbytes = math.prod(shape) * dtype.itemsize
    largest = tuple(axis.largest for axis in axes)
    chunk_bytes = math.prod(largest) * dtype.itemsize
    rows = [
        ("Size", format_bytes(nbytes), format_bytes(chunk_bytes)),
        ("Shape", _sizes(shape), _sizes(largest)),
        ("Count", "1 array", f"{count:,} {part}{'s' * (count != 1)}"),
        ("Dtype", visible(str(dtype), 60), ""),
    ]
    if stored:
        rows.append(("Stored", f"{format_bytes(stored)} ({nbytes / stored:.3g} : 1)", ""))
    rows += [(name, text, "") for name, text in more]
    body = "".join(
        f"<tr><th>{_escaped(name)}</th><td>{_bdi(whole)}</td><td>{_escaped(part)}</td></tr>"
        for name, whole, part in rows
    )
    table = (
        f"<table><thead><tr><th></th><th>Array</th><th>Largest {part}</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    return _framed(
        _title(_escaped(kind), ""), f'<div class="ac-flow">{table}{chunks_svg(shape, chunks)}</div>'
    )


def lazy_html(array: LazyArray) -> str:
    """A compressed or blocked array: its chunks, and how they are stored; nothing is read."""
    if isinstance(array, BlockedArray):
        manifest = array.blocks.manifest
        compressed = int(np.count_nonzero(manifest.blocks[:, 0] == 0))
        more = [("Compressed", f"{compressed:,} of {len(manifest.blocks):,} blocks")]
        return array_html(
            "Blocked array", array.shape, array.chunks, array.dtype,
            stored=manifest.stored, more=more, part="block",
        )  # fmt: skip
    cuts: Sequence[Cut] = array._cuts
    more = [("Order", str(array.order))]
    # Of the array as it lies there, which may be transposed; other readers do not say.
    layout = getattr(getattr(array, "reader", None), "layout", None)
    if layout is not None:
        blocks = layout.blocks[::-1] if array.order == "F" else layout.blocks
        filters = [FILTER_NAMES[each] for each in layout.filters if each]
        more += [
            ("Read by", _sizes(blocks)),
            ("Codec", ", ".join([f"{CODEC_NAMES[layout.codec]}-{layout.clevel}", *filters])),
        ]
    return array_html("Compressed array", array.shape, cuts, array.dtype, more=more)


def _sizes(shape: Sequence[int]) -> str:
    return visible(f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})", 80)
