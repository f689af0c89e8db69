"""Options of workers, as dask's configuration has them.

======================================  ============================================================
option                                  meaning
======================================  ============================================================
``arraychest.worker.target``            managed memory from which on results are spilled: bytes, a
                                        size (``"4 GiB"``), or a share of the worker's memory limit;
                                        None: ``distributed.worker.memory.target``
``arraychest.worker.max-spill``         most bytes on disk, or False for any number; None:
                                        ``distributed.worker.memory.max-spill``
``arraychest.worker.compression``       as `arraychest.Chest` takes it, or False for none; None:
                                        ``distributed.worker.memory.spill-compression``
======================================  ============================================================

dask's ``spill-compression`` names a codec: ``"zlib"``, ``"lz4"``, ``"zstd"``, or another one that
Blosc2 has.  ``"snappy"``, which it has not, is lz4.  dask's default, ``"auto"``, leaves results as
they are, and so do None and False: what is not compressed is mapped when it is asked for, and only
the pages that a task touches are read.

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

_DEFAULTS = {"target": None, "max-spill": None, "compression": None}
dask.config.update_defaults({"arraychest": {"worker": _DEFAULTS}})

# Half-way between where dask spills and where it pauses, if both are switched off.
_RELEASE = 0.75


def option(name: str, given: Any = None) -> Any:
    """What was given, or else is configured as ``arraychest.worker.NAME``."""
    if given is not None:
        return given
    # Who replaces dask's configuration as a whole loses our defaults.
    return dask.config.get(f"arraychest.worker.{name}", _DEFAULTS[name])


def compression(given: Any) -> Any:
    """With what spilled results are compressed, as `arraychest.Chest` takes it; None: not at all.

    Raises
    ------
    ValueError
        dask's configuration names a codec that there is none of.
    """
    asked = option("compression", given)
    if asked is not None:
        return None if asked is False else asked
    name = dask.config.get("distributed.worker.memory.spill-compression", None)
    if name in (None, False, "auto"):
        return None
    codec = "lz4" if name == "snappy" else name
    if codec not in CODECS:
        raise ValueError(
            "expected distributed.worker.memory.spill-compression to be None, False, 'auto', "
            f"'snappy' or one of {', '.join(map(repr, CODECS))}, found {name!r}: choose one of "
            "these, or set arraychest.worker.compression, which overrules it"
        )
    return codec


def max_spill(given: Any) -> int | None:
    """Most bytes on disk; None: any number."""
    size = option("max-spill", given)
    if size is None:
        size = dask.config.get("distributed.worker.memory.max-spill")
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
        fraction = dask.config.get("distributed.worker.memory.target")
        return int(limit * fraction) if limit and fraction else sys.maxsize
    if isinstance(size, int | float) and size <= 1:
        return int(limit * size) if limit else sys.maxsize
    return int(parse_bytes(size))


def spill_limit(limit: int | None) -> int | None:
    """From how many bytes in RAM on dask spills, whatever they are; None: it does not."""
    fraction = dask.config.get("distributed.worker.memory.spill")
    return int(limit * fraction) if limit and fraction else None


def release_limit(limit: int | None) -> int | None:
    """From how many bytes in RAM on pages of maps are released: after dask begins to spill, and
    before it pauses the worker.
    """
    if not limit:
        return None
    config = "distributed.worker.memory."
    upper = dask.config.get(config + "pause") or dask.config.get(config + "terminate")
    lower = dask.config.get(config + "spill") or dask.config.get(config + "target")
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
