"""Options of workers, as dask's configuration has them.

======================================  ============================================================
option                                  meaning
======================================  ============================================================
``arraychest.worker.target``            managed memory from which on results are spilled: bytes, a
                                        size (``"4 GiB"``), or a share of the worker's memory limit;
                                        None: ``distributed.worker.memory.target``
``arraychest.worker.max-spill``         most bytes on disk, or False for any number; None:
                                        ``distributed.worker.memory.max-spill``
``arraychest.worker.compression``       as `arraychest.Chest` takes it; None:
                                        ``distributed.worker.memory.spill-compression``, of which
                                        ``auto`` and False leave results as they are, and mapped
======================================  ============================================================

They are set as all of dask's are: in ``~/.config/dask/*.yaml``, with `dask.config.set`, or by the
environment, as ``DASK_ARRAYCHEST__WORKER__MAX_SPILL="200 GiB"``.
"""

from __future__ import annotations

import sys
from typing import Any

import dask.config
from dask.utils import parse_bytes
from distributed.worker import Worker

from arraychest.formats.frame import CODECS

DEFAULTS = {"arraychest": {"worker": {"target": None, "max-spill": None, "compression": None}}}
dask.config.update_defaults(DEFAULTS)

_MEMORY = "distributed.worker.memory."

# Half-way between where dask spills and where it pauses, if both are switched off.
_RELEASE = 0.75


def option(name: str, given: Any = None) -> Any:
    """What was given, or else is configured as ``arraychest.worker.NAME``."""
    # Not there where dask's configuration was replaced.
    return dask.config.get(f"arraychest.worker.{name}", None) if given is None else given


def compression(given: Any) -> Any:
    """How results are compressed, as `arraychest.Chest` takes it; None: they are not.

    Raises
    ------
    ValueError
        dask's configuration names a codec that Blosc2 does not have.
    """
    asked = option("compression", given)
    if asked is not None:
        return asked
    name = dask.config.get(_MEMORY + "spill-compression", "auto")
    if name in ("auto", None, False):
        return None
    # The fastest, as snappy is.
    name = {"snappy": "lz4"}.get(name, name)
    if name not in CODECS:
        raise ValueError(
            f'expected {_MEMORY}spill-compression to be "auto", False, "snappy" or one of the '
            f"codecs {', '.join(CODECS)}, found {name!r}"
        )
    return name


def max_spill(given: Any) -> int | None:
    """Most bytes on disk; None: any number."""
    size = option("max-spill", given)
    if size is None:
        size = dask.config.get(_MEMORY + "max-spill", False)
    return None if size is False or size is None else int(parse_bytes(size))


def target(given: Any, limit: int | None) -> int:
    """Managed memory from which on results are spilled, in bytes.

    Parameters
    ----------
    limit
        The worker's memory limit; None: it has none.
    """
    size = option("target", given)
    if size is None:
        fraction = dask.config.get(_MEMORY + "target", 0.6)
        return int(limit * fraction) if limit and fraction else sys.maxsize
    if isinstance(size, int | float) and size <= 1:
        return int(limit * size) if limit else sys.maxsize
    return int(parse_bytes(size))


def spill_limit(limit: int | None) -> int | None:
    """From how many bytes in RAM on dask spills, whatever they are; None: it does not."""
    fraction = dask.config.get(_MEMORY + "spill", 0.7)
    return int(limit * fraction) if limit and fraction else None


def release_limit(limit: int | None) -> int | None:
    """From how many bytes in RAM on pages of maps are released: after dask begins to spill, and
    before it pauses the worker.
    """
    if not limit:
        return None
    upper = dask.config.get(_MEMORY + "pause", 0.8) or dask.config.get(_MEMORY + "terminate", 0.95)
    lower = dask.config.get(_MEMORY + "spill", 0.7) or dask.config.get(_MEMORY + "target", 0.6)
    if not upper:
        return None
    return int(limit * ((lower + upper) / 2 if lower else upper * _RELEASE))


def worker_of(data: object) -> Worker | None:
    """The worker of this process that keeps its results in `data`."""
    for worker in list(Worker._instances):
        # It is made before its worker has a memory manager.
        manager = getattr(worker, "memory_manager", None)
        if manager is not None and manager.data is data:
            return worker
    return None
