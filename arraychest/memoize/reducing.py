"""Removing results of cached functions until the rest is within limits."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from arraychest.engine.engine import Engine
from arraychest.engine.listing import listed
from arraychest.errors import AbsentKeyError
from arraychest.storage.file_names import file_name
from arraychest.units import parse_bytes


class _Candidate(NamedTuple):
    used: float
    seq: int
    key: Any
    nbytes: int


def reduce(
    engine: Engine,
    *,
    bytes: int | float | str | None,  # noqa: A002  # as `Chest.reduce`
    entries: int | None,
    age: float | dt.timedelta | None,
    everything: bool,
) -> int:
    """See `Chest.reduce`."""
    most_bytes = None if bytes is None else parse_bytes(bytes)
    if isinstance(age, dt.timedelta):
        age = age.total_seconds()
    for name, limit in (("entries", entries), ("age", age)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"expected {name} to be 0 or more, found {limit!r}")
    engine.session.begin_writing()
    engine.flush()
    found = sorted(_candidates(engine, everything=everything))
    left, total = len(found), sum(each.nbytes for each in found)
    oldest = None if age is None else time.time() - age
    removed = 0
    for each in found:
        is_old = oldest is not None and each.used < oldest
        is_one_too_many = entries is not None and left > entries
        if not (is_old or is_one_too_many or (most_bytes is not None and total > most_bytes)):
            break
        with contextlib.suppress(AbsentKeyError):  # deleted meanwhile
            engine.delete(each.key)
            removed += 1
        left -= 1
        total -= each.nbytes
    return removed


def _candidates(engine: Engine, *, everything: bool) -> Iterator[_Candidate]:
    """The stored entries that may go, with when they were used last."""
    if engine.session.path is None:
        return
    store = engine.session.open_store()
    with engine.session.writer.lock:
        costs = store.catalog.facts.costs()
    results = {generation for generation, cost in costs.items() if cost.seconds is not None}
    times: dict[str, float] = {}
    for each in listed(engine):
        row = each.row
        if row is None or not (everything or row.generation in results):
            continue
        name = file_name(row)
        if name not in times:
            try:
                times[name] = store.files.stat(name).st_mtime
            except OSError:
                times[name] = 0.0  # damaged or gone: of no use to anybody
        yield _Candidate(times[name], each.seq, each.key, row.stored)
