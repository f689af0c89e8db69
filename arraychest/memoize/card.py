"""The card that notebooks show of a cached function."""

from __future__ import annotations

from typing import Any

from arraychest.markup import Bar, bars, bdi, escaped, framed, title
from arraychest.text import amount, key_text


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
    lines = [
        Bar(
            "Calls",
            [("ac-good", share), ("ac-disk", 1 - share if calls else 0)],
            f"{amount(stats.hits, 'hit')} of {calls:,} ({share:.0%})" if calls else "none yet",
        ),
        Bar(
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
    rest = f"in {bdi(where)}" + (f" · {escaped(', '.join(told))}" if told else "")
    return framed(title(f"Cached {bdi(name)}", rest), bars(lines))


def _seconds(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
