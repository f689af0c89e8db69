"""dask on a chest: arrays larger than RAM, results that are kept, workers that spill through one.

The extra ``dask`` installs what this needs.  A cluster needs no code for its workers: see
`preload`.
"""

from typing import TYPE_CHECKING, Any

from arraychest.integrations.dask_caching import caching
from arraychest.integrations.dask_storing import append, persist, store

if TYPE_CHECKING:
    from arraychest.dask.worker import WorkerChest

__all__ = ["WorkerChest", "append", "caching", "persist", "store"]


def __getattr__(name: str) -> Any:
    # dask on one machine does without distributed.
    if name == "WorkerChest":
        from arraychest.dask.worker import WorkerChest

        return WorkerChest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
