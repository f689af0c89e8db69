"""dask on a chest: workers that spill through one.

The extra ``dask`` installs what this needs.
"""

from arraychest.dask.worker import WorkerChest

__all__ = ["WorkerChest"]
