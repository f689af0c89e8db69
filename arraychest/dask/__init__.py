"""dask on a chest: arrays larger than RAM, results that are kept, workers that spill through one.

The extra ``dask`` installs what this needs.  A cluster needs no code for its workers: see
`preload`.
"""

from arraychest.dask.caching import caching
from arraychest.dask.storing import append, persist, store
from arraychest.dask.worker import WorkerChest

__all__ = ["WorkerChest", "append", "caching", "persist", "store"]
