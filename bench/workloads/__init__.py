"""The workloads by name, in the order in which they run: each peer in a process of its own."""

from __future__ import annotations

from bench.workload import Workload
from bench.workloads.churn import Churn
from bench.workloads.dask import Dask
from bench.workloads.dask_read import DaskRead
from bench.workloads.dask_store import DaskStore
from bench.workloads.hits import Hits
from bench.workloads.memoise import Memoise
from bench.workloads.opening import Opening
from bench.workloads.pipeline import Pipeline, Scan
from bench.workloads.readers import Readers
from bench.workloads.reload import Reload
from bench.workloads.small import Small
from bench.workloads.spill_write import SpillWrite
from bench.workloads.windows import Windows
from bench.workloads.xarray_read import XarrayRead

RACES: dict[str, type[Workload]] = {
    race.name: race
    for race in (
        Hits,
        Reload,
        SpillWrite,
        Pipeline,
        Scan,
        Small,
        Windows,
        Churn,
        Memoise,
        Readers,
        Dask,
        DaskStore,
        DaskRead,
        XarrayRead,
        Opening,
    )
}
