"""dask on a chest: workers that spill through one.

The extra ``dask`` installs what this needs.  A cluster needs no code for it: see `preload`.
"""

from arraychest.dask.worker import WorkerChest

__all__ = ["WorkerChest"]
