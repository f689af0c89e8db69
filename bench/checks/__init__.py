"""Figures of arraychest alone, or beside what is no peer, with a floor for some of them."""

from __future__ import annotations

from collections.abc import Callable

from bench.checks import compressed, dask_spill, imports, sharing, trees
from bench.checks.harness import Bench, Row

CHECKS: dict[str, Callable[[Bench], list[Row]]] = {
    "import": imports.run,
    "sharing": sharing.run,
    "compressed": compressed.run,
    "trees": trees.run,
    "dask-spill": dask_spill.run,
}

# Takes several minutes: only where it is asked for.
BY_NAME = frozenset({"dask-spill"})
