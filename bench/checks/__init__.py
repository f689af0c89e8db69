"""Figures of arraychest alone, or beside what is no peer, with a floor for some of them."""

from __future__ import annotations

from collections.abc import Callable

from bench.checks import compressed, imports, sharing, trees
from bench.checks.harness import Bench, Row

CHECKS: dict[str, Callable[[Bench], list[Row]]] = {
    "import": imports.run,
    "sharing": sharing.run,
    "compressed": compressed.run,
    "trees": trees.run,
}
