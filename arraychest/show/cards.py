"""The card that notebooks show of a chest."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

from arraychest.engine.engine import Engine
from arraychest.engine.listing import Listed, listed
from arraychest.errors import ArrayChestError
from arraychest.formats.frame import CODEC_NAMES
from arraychest.markup import Bar, bars, bdi, escaped, framed, title
from arraychest.text import amount, key_text, visible
from arraychest.units import format_bytes

# Entries in a chest's table.
MOST_ENTRIES = 200

# A chest that holds more is not asked for numbers that take a look at each entry or slot.
_MOST_COUNTED = 1 << 16


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _entries(count: int) -> str:
    return amount(count, "entry", "entries")


# --- a chest ---------------------------------------------------------------------------------


def chest_html(engine: Engine) -> str:
    """A chest: its tiers as bars, what it has done, and a table of up to 200 entries.

    The cost does not grow with what the chest holds; see `listed`.  Of a compressed value only the
    header of its file is read.  Raises nothing for a chest that is closed or damaged, but says so.
    """
    try:
        return _open_chest(engine)
    except (ArrayChestError, OSError) as error:
        where = bdi(engine.session.path or "temporary")
        if engine.session.closed:
            return framed(title("Chest", f"{where}, closed"))
        return framed(title("Chest", where), f'<div class="ac-bad">{escaped(error)}</div>')


def _open_chest(engine: Engine) -> str:
    engine.session.check_open()
    found = [_with_codec(engine, each) for each in listed(engine, MOST_ENTRIES)]
    count = _count(engine)
    where = bdi(engine.session.path) if engine.session.path else "nothing on disk yet"
    told = ["temporary"] if engine.session.temporary else [f'mode "{engine.session.options.mode}"']
    if engine.session.options.mmap_mode != "r":
        told.append(f'mmap_mode "{engine.session.options.mmap_mode}"')
    number = _entries(count) if count is not None else "entries not counted"
    parts = [
        title(f"Chest of {number}", f"{where} · {', '.join(told)}"),
        bars(_tier_bars(engine, count)),
        _done(engine),
    ]
    if engine.own_changes() is not None:
        parts.append('<div class="ac-faint">What this transaction has changed is not shown.</div>')
    if found:
        parts.append(_table(found))
        if count is None or count > len(found):
            parts.append(
                f'<div class="ac-faint">The first {len(found)} of {_number(count)} entries.</div>'
            )
    return framed(*parts, script=bool(found))


def _with_codec(engine: Engine, each: Listed) -> Listed:
    """The entry with the codec's own name, which stands in the header of a compressed file."""
    if each.row is None or each.entry is None or not each.row.is_frame:
        return each
    try:
        layout = engine.session.open_store().loader.layout(each.row, each.key)
    except (ArrayChestError, OSError):
        return each  # `verify` says what is wrong; or another process has replaced the value
    return each._replace(entry=replace(each.entry, codec=CODEC_NAMES[layout.codec]))


def _count(engine: Engine) -> int | None:
    with engine.session.writer.lock:
        engine.session.follow()
        if engine.session.index.is_counted:
            return engine.session.order.count(())
    # In a transaction each key would be looked at, and a commit waited for.
    return engine.count() if engine.own_changes() is None else None


def _tier_bars(engine: Engine, count: int | None) -> list[Bar]:
    with engine.session.writer.lock:
        engine.session.check_open()
        charged, resident = engine.session.resident.charged, engine.session.resident.count
        copies = sum(copy.array.nbytes for copy in engine.session.resident.copies.values())
        stored = engine.session.counter.stored
    if stored is None and count is not None and count <= _MOST_COUNTED:
        stored = engine.stored_bytes()
    budget = engine.session.budget.bytes
    text = f"{format_bytes(charged)} of {format_bytes(budget)}, {resident:,} not stored yet"
    if copies:
        text += f", {format_bytes(copies)} decompressed copies"
    size = max(budget, charged, 1)
    ram = Bar("RAM", [("ac-ram", (charged - copies) / size), ("ac-both", copies / size)], text)
    quota = engine.session.options.quota
    if stored is None:
        return [ram, Bar("Disk", [("ac-disk", 1.0)], "size not counted")]
    text = format_bytes(stored)
    if quota is not None:
        text += f" of {format_bytes(quota.nbytes)} (max_disk)"
        share = stored / max(quota.nbytes, 1)
    elif engine.session.path is not None and (free := _free_bytes(engine.session.path)) is not None:
        # Without a limit: of what the disk has left for it, and of what it has.
        text += f" of {format_bytes(stored + free)} on this disk"
        share = stored / max(stored + free, 1)
    else:
        share = 0.0
    number = None if count is None else max(count - resident, 0)
    if number is not None:
        text += f", {_entries(number)}"
    return [ram, Bar("Disk", [("ac-disk", share)], text)]


def _free_bytes(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _done(engine: Engine) -> str:
    counters = engine.session.committer.counters
    known = len(engine.session.index.slots)
    hits = engine.hits() if known <= _MOST_COUNTED else None
    told = [
        amount(hits, "hit") if hits is not None else "hits not counted",
        amount(counters.misses, "miss", "misses"),
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
    "key": (False, lambda each: (0, bdi(key_text(each.key)))),
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
        return f'<span class="ac-bad" title="{escaped(each.problem)}">damaged</span>'
    if entry.kind not in ("array", "scalar", "blocked"):
        return entry.kind
    return bdi(visible(str(entry.dtype), 28))


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
