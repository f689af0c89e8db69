"""`Stats`: what a chest has done, and what it holds."""

from __future__ import annotations

from typing import NamedTuple

from arraychest.engine.engine import Engine
from arraychest.markup import facts_card
from arraychest.text import amount
from arraychest.units import format_bytes


class Stats(NamedTuple):
    """What a chest has done since it was opened, and what it holds now.

    Attributes
    ----------
    hits, misses, absent
        Gets answered from memory or by a view kept open; gets that went to disk; gets of keys
        that are not there.  Approximate while several threads get at once.
    spills, faults
        Values stored, and values brought back by a get.
    bytes_spilled, bytes_faulted
        Bytes of them.  What is faulted in is mapped: only the pages touched are read.
    charged, budget
        Bytes kept in RAM now, and how many may be.
    resident
        Values in RAM that are not stored yet.
    evictions
        Entries removed to stay within ``max_disk``, by this chest.
    budget_reason
        Why the budget is what it is, for people to read: what limits this process (the machine, a
        container's cgroup, ``ulimit``), or what was asked for.
    """

    hits: int
    misses: int
    absent: int
    spills: int
    faults: int
    bytes_spilled: int
    bytes_faulted: int
    charged: int
    budget: int
    resident: int
    evictions: int
    budget_reason: str

    def _repr_html_(self) -> str:
        """The figures as notebooks show them."""
        gets = self.hits + self.misses
        share = f"{self.hits / gets:.0%} of {amount(gets, 'get')}" if gets else "no gets yet"
        facts = [
            ("In RAM", f"{format_bytes(self.charged)} of {format_bytes(self.budget)}"),
            ("Budget", self.budget_reason),
            ("Not stored yet", f"{self.resident:,}"),
            ("Answered from memory", share),
            ("Absent", f"{self.absent:,}"),
            ("Spilled", f"{self.spills:,} ({format_bytes(self.bytes_spilled)})"),
            ("Faulted in", f"{self.faults:,} ({format_bytes(self.bytes_faulted)})"),
            ("Evicted", f"{self.evictions:,}"),
        ]
        return facts_card("Stats", "", facts)


def stats_of(engine: Engine) -> Stats:
    """The figures of one chest.  O(keys met since it was opened)."""
    counters = engine.session.committer.counters
    return Stats(
        hits=engine.hits(),
        misses=counters.misses,
        absent=counters.absent,
        spills=counters.spills,
        faults=counters.faults,
        bytes_spilled=counters.bytes_spilled,
        bytes_faulted=counters.bytes_faulted,
        charged=engine.session.resident.charged,
        budget=engine.session.budget.bytes,
        resident=engine.session.resident.count,
        evictions=counters.evictions,
        budget_reason=engine.session.budget.reason,
    )


def description(engine: Engine) -> str:
    """A chest in one line."""
    session = engine.session
    where = session.path
    if session.closed:
        return f"<arraychest.Chest {where or 'temporary'}, closed>"
    if session.temporary:
        where = f"temporary, {where or 'nothing on disk'}"
    values = amount(engine.count(), "value")
    charged, budget = format_bytes(session.resident.charged), format_bytes(session.budget.bytes)
    return (
        f"<arraychest.Chest {where}: {values}, {session.resident.count} resident "
        f"({charged} of {budget}), {format_bytes(engine.stored_bytes())} stored>"
    )
