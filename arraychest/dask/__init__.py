"""dask on a chest: arrays larger than RAM, results that are kept, workers that spill through one.

The extra ``dask`` installs what this needs.  A cluster needs no code for its workers: see
`preload`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arraychest.dask.worker import WorkerChest
    from arraychest.integrations.dask_caching import caching
    from arraychest.integrations.dask_storing import append, persist, store

__all__ = ["WorkerChest", "append", "caching", "persist", "store"]

# dask on one machine does without distributed, and a worker does without dask.array, which imports
# pandas, SciPy and xarray where they are installed.
_HOMES = {
    "WorkerChest": "arraychest.dask.worker",
    "append": "arraychest.integrations.dask_storing",
    "caching": "arraychest.integrations.dask_caching",
    "persist": "arraychest.integrations.dask_storing",
    "store": "arraychest.integrations.dask_storing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
