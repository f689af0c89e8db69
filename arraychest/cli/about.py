"""``arraychest info`` and ``arraychest du``: what there is, in figures and a small picture."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import arraychest
from arraychest.arrays.lazy import LazyArray
from arraychest.cli.keys import HELP, find_key
from arraychest.cli.naming import parts_of, type_of
from arraychest.cli.printing import print_table, readable, stored_at
from arraychest.text import amount
from arraychest.units import format_bytes

_BINS = 48
_THUMBNAIL = (16, 64)

# From least to most, where the terminal has them and where it has not.
_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_SHADES = " ░▒▓█", " .:*#"


def add_commands(commands: Any) -> None:
    """Add both parsers to the subparsers of the command line."""
    info = commands.add_parser(
        "info",
        help="describe a chest, or one value",
        description="Of a chest: how many values of which kinds, how large, how stored. Of a "
        "value: shape, dtype, file, chunks; of an array of numbers also its extremes, mean, spread "
        "and a histogram, for which it is read once, chunk by chunk.",
        epilog="Examples:\n"
        "  arraychest info work.chest\n"
        "  arraychest info work.chest slope\n"
        "  arraychest info work.chest slope --quick --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("path", metavar="PATH", help="the chest's folder")
    info.add_argument("key", nargs="?", metavar="KEY", help=HELP)
    info.add_argument("--quick", action="store_true", help="read no values")
    info.add_argument("--json", action="store_true", help="as one JSON document, in bytes")
    info.set_defaults(run=_info)

    du = commands.add_parser(
        "du",
        help="show what takes how much of the disk",
        description="Sums sizes by what keys begin with (up to the first / of a str, the first "
        "element of a tuple), and by codec with --by codec. Columns are separated by tabs where "
        "the output is no terminal.",
        epilog="Examples:\n"
        "  arraychest du work.chest\n"
        "  arraychest du work.chest --by codec --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    du.add_argument("path", metavar="PATH", help="the chest's folder")
    du.add_argument("--by", choices=("prefix", "codec", "dtype"), default="prefix")
    du.add_argument("--json", action="store_true", help="as one JSON document, in bytes")
    du.set_defaults(run=_du)


# --- a chest ----------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        if arguments.key is None:
            told = _about_chest(chest)
            picture: list[str] = []
        else:
            key = find_key(chest, arguments.key)
            told, picture = _about_value(chest, key, read=not arguments.quick)
    if arguments.json:
        print(json.dumps(told, indent=1))
        return 0
    width = max(map(len, told))
    for name, value in told.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(name, value)}")
    for line in picture:
        print(line)
    return 0


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{readable(str(each))} {count:,}" for each, count in value.items()) or "-"
    if name.endswith("bytes"):
        return f"{format_bytes(value)} ({amount(value, 'byte', 'bytes')})"
    if name.endswith("_at"):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if name == "filters":
        return ", ".join(value) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "x".join(map(str, value)) or "-"
    return readable(str(value))


def _entries(chest: arraychest.Chest) -> Iterator[tuple[Any, arraychest.Entry]]:
    for key in chest:
        try:
            yield key, chest.entry(key)
        except arraychest.AbsentKeyError:
            continue  # deleted meanwhile


def _about_chest(chest: arraychest.Chest) -> dict[str, Any]:
    count = nbytes = stored = 0
    kinds: Counter[str] = Counter()
    codecs: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    largest: tuple[int, str] = (0, "-")
    for key, entry in _entries(chest):
        count += 1
        nbytes += entry.nbytes
        stored += entry.stored_bytes
        kinds[entry.kind] += 1
        codecs[entry.codec or "-"] += 1
        if entry.kind in ("array", "scalar", "blocked"):
            dtypes[str(entry.dtype)] += 1
        if entry.nbytes > largest[0]:
            largest = entry.nbytes, key if isinstance(key, str) else repr(key)
    path = str(chest.path)
    stats = chest.stats()
    return {
        "path": path,
        "entries": count,
        "nbytes": nbytes,
        "stored_bytes": stored,
        "disk_bytes": _bytes_on_disk(path),
        "kinds": dict(kinds.most_common()),
        "codecs": dict(codecs.most_common()),
        "dtypes": dict(dtypes.most_common(8)),
        "largest": largest[1],
        "changed_at": _changed(path),
        "budget_bytes": stats.budget,
        "budget_reason": stats.budget_reason,
    }


def _bytes_on_disk(path: str) -> int:
    found = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue  # removed meanwhile
    return found


def _changed(path: str) -> float:
    names = ("catalog.sqlite", "catalog.sqlite-wal")
    files = [os.path.join(path, name) for name in names]
    return max(os.path.getmtime(file) for file in files if os.path.exists(file))


# --- a value ----------------------------------------------------------------------------------


def _about_value(
    chest: arraychest.Chest, key: Any, *, read: bool
) -> tuple[dict[str, Any], list[str]]:
    entry = chest.entry(key)
    told: dict[str, Any] = {
        "key": repr(key),
        "kind": entry.kind,
        "shape": list(entry.shape),
        "dtype": str(entry.dtype),
        "type": type_of(chest, key, entry),
        "nbytes": entry.nbytes,
        "stored_bytes": entry.stored_bytes,
        "codec": entry.codec,
        "file": entry.file,
        "stored_at": stored_at(entry),
    }
    if entry.chunks is not None:
        told |= {
            "level": entry.clevel,
            "filters": list(entry.filters),
            "chunks": list(entry.chunks),
            "blocks": list(entry.blocks or ()),
        }
    value = chest[key] if read or entry.kind == "blocked" else None
    if isinstance(value, arraychest.BlockedArray):
        told["blocks"] = list(value.numblocks)
    if read and entry.kind in ("tree", "dump"):
        return told, [f"  {name}  {each}" for name, each in parts_of(value)]
    if not read or not _is_numbers(value):
        return told, []
    figures = _figures(value)
    told |= figures.told
    return told, [*_histogram(figures), *_thumbnail(value, figures)]


def _is_numbers(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray | LazyArray)
    return is_array and value.dtype.kind in "biuf" and value.size > 0


class _Figures(NamedTuple):
    told: dict[str, Any]
    low: float
    high: float
    counts: np.ndarray


def _parts(array: Any) -> Iterator[np.ndarray]:
    """All elements, some at a time."""
    if isinstance(array, LazyArray) and array.ndim:
        for _, part in array.iterchunks():
            yield part.reshape(-1)
        return
    flat = np.asarray(array).reshape(-1, order="A")
    for start in range(0, len(flat), 1 << 20):
        yield flat[start : start + (1 << 20)]


def _figures(array: Any) -> _Figures:
    """Extremes, mean and spread of the finite elements in one pass, their histogram in another."""
    count = nans = infinite = 0
    low, high, mean, squares = math.inf, -math.inf, 0.0, 0.0
    for part in _parts(array):
        if part.dtype.kind == "f":
            finite = np.isfinite(part)
            nans += int(np.isnan(part).sum())
            infinite += int(len(part) - finite.sum()) - int(np.isnan(part).sum())
            part = part[finite]
        if not len(part):
            continue
        wide = part.astype(np.float64)
        low, high = min(low, float(wide.min())), max(high, float(wide.max()))
        # Chan's way to add up variances, which loses no digits to a large mean.
        more, apart = len(wide), float(wide.mean()) - mean
        squares += float(((wide - wide.mean()) ** 2).sum())
        squares += apart * apart * count * more / (count + more)
        mean += apart * more / (count + more)
        count += more
    counts = np.zeros(_BINS, np.int64)
    if count:
        for part in _parts(array):
            wide = part.astype(np.float64)
            inside = wide[np.isfinite(wide)]
            counts += np.histogram(inside, _BINS, (low, high if high > low else low + 1))[0]
    told: dict[str, Any] = {"NaN": nans, "infinite": infinite}
    if count:
        std = math.sqrt(squares / count)
        told = {"min": low, "max": high, "mean": mean, "std": std, **told}
    return _Figures(told, low, high, counts)


def _ramp(of: tuple[str, str]) -> str:
    fine, plain = of
    try:
        fine.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return plain
    return fine


def _histogram(figures: _Figures) -> list[str]:
    most = int(figures.counts.max(initial=0))
    if not most:
        return []
    ramp = _ramp(_BARS)
    # What is there at all is seen.
    heights = np.ceil(figures.counts / most * (len(ramp) - 1)).astype(int)
    left, right = f"{figures.low:.4g}", f"{figures.high:.4g}"
    return [
        "",
        "".join(ramp[height] for height in heights),
        left + right.rjust(_BINS - len(left)),
    ]


def _thumbnail(array: Any, figures: _Figures) -> list[str]:
    """An array of two dimensions in shades, of which only as many elements are read."""
    if array.ndim != 2 or min(array.shape) < 2 or figures.high <= figures.low:
        return []
    rows, columns = (min(n, most) for n, most in zip(array.shape, _THUMBNAIL, strict=True))
    down = np.linspace(0, array.shape[0] - 1, rows).astype(int)
    across = np.linspace(0, array.shape[1] - 1, columns).astype(int)
    some = np.asarray(array[down][:, across], np.float64)
    ramp = _ramp(_SHADES)
    with np.errstate(all="ignore"):
        shade = (some - figures.low) / (figures.high - figures.low) * len(ramp)
    shade = np.clip(np.nan_to_num(shade), 0, len(ramp) - 1).astype(int)
    return ["", *("".join(ramp[each] for each in row) for row in shade)]


# --- du ---------------------------------------------------------------------------------------


def _du(arguments: argparse.Namespace) -> int:
    sums: dict[str, list[int]] = {}
    with arraychest.open(arguments.path, "r") as chest:
        for key, entry in _entries(chest):
            group = sums.setdefault(_group(key, entry, arguments.by), [0, 0, 0])
            group[0] += 1
            group[1] += entry.nbytes
            group[2] += entry.stored_bytes
    found = sorted(sums.items(), key=lambda each: -each[1][2])
    if arguments.json:
        told = [
            {arguments.by: name, "entries": n, "nbytes": nbytes, "stored_bytes": stored}
            for name, (n, nbytes, stored) in found
        ]
        print(json.dumps(told, indent=1))
        return 0
    total = [sum(each[at] for _, each in found) for at in range(3)]
    rows = [
        (readable(name), str(n), format_bytes(nbytes), format_bytes(stored))
        for name, (n, nbytes, stored) in [*found, ("total", total)]
    ]
    print_table((arguments.by, "entries", "size", "stored"), rows)
    return 0


def _group(key: Any, entry: arraychest.Entry, by: str) -> str:
    if by == "codec":
        return entry.codec or "-"
    if by == "dtype":
        return str(entry.dtype)
    if isinstance(key, str):
        first, slash, _ = key.partition("/")
        return first + slash if slash else "(no prefix)"
    if isinstance(key, tuple) and key:
        return key[0] if isinstance(key[0], str) else repr(key[0])
    return f"({type(key).__name__})"
