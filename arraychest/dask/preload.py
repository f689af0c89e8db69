"""Workers that spill through a chest, without a line of code.

Any of these is enough::

    dask worker SCHEDULER --preload arraychest.dask.preload
    DASK_DISTRIBUTED__WORKER__PRELOAD='["arraychest.dask.preload"]' dask worker SCHEDULER

or in ``~/.config/dask/distributed.yaml``::

    distributed:
      worker:
        preload:
          - arraychest.dask.preload

and from Python ``LocalCluster(preload="arraychest.dask.preload")``.  With a nanny, it is the
worker's own process that runs it, each time that it is started.  The options are those of
`arraychest.dask.settings`.

dask runs `dask_setup` when the worker has made the mapping for its results and has not told the
scheduler that it is there, so that no result is in it yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from distributed.spill import SpillBuffer

from arraychest.dask import settings
from arraychest.dask.worker import WorkerChest

logger = logging.getLogger("distributed.spill.arraychest")


def dask_setup(worker: Any) -> None:
    """Have a worker keep its results in a `WorkerChest`.

    One that was given a mapping (``data=``) keeps it, and so does one that does not spill because
    it has no memory limit, unless ``arraychest.worker.target`` is set.
    """
    manager = getattr(worker, "memory_manager", None)
    state = getattr(worker, "state", None)
    if manager is None or state is None:
        return  # a nanny's, or the scheduler's
    spills = isinstance(manager.data, SpillBuffer) or (
        type(manager.data) is dict and settings.option("target") is not None
    )
    if not spills or manager.data:
        logger.info("%s keeps its results in %s", worker, type(manager.data).__name__)
        return
    chest = WorkerChest(worker.local_directory)
    manager.data = state.data = chest
    chest.attach(worker)
    # dask's own, which was made already.
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(worker.local_directory, "storage"))
    logger.info("%s spills to %s", worker, worker.local_directory)
