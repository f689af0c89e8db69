"""The workloads by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Bench, Row
from bench.workloads import (
    compressed,
    dask,
    dask_store,
    hits,
    imports,
    memoize,
    pipeline,
    reload,
    sharing,
    small,
    spill_write,
)

WORKLOADS: dict[str, Callable[[Bench], list[Row]]] = {
    "import": imports.run,
    "hits": hits.run,
    "reload": reload.run,
    "small": small.run,
    "spill-write": spill_write.run,
    "pipeline": pipeline.run,
    "sharing": sharing.run,
    "compressed": compressed.run,
    "memoize": memoize.run,
    "dask": dask.run,
    "dask-store": dask_store.run,
}
