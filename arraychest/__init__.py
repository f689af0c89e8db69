"""A dictionary of NumPy arrays that keeps what fits in RAM and spills the rest to disk."""

import logging
import sys

if sys.platform not in ("linux", "darwin"):
    raise ImportError(
        "arraychest needs Linux or macOS: on Windows it runs in WSL (the Windows Subsystem for "
        "Linux)"
    )

from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.arrays.lazy import LazyArray
from arraychest.chest import Chest, open, repair
from arraychest.engine.drafts import Creation, Part
from arraychest.engine.entry import Entry
from arraychest.engine.handle import Handle
from arraychest.engine.stats import Stats
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestError,
    ArrayChestWarning,
    ChestFormatError,
    ChestInUseError,
    ClosedChestError,
    CorruptEntryError,
    DeadlockError,
    FileSystemError,
    KeyTypeError,
    PickleRefusedError,
    QuotaError,
    ReadOnlyChestError,
    SpillError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.formats.compression import COMPRESS_ABOVE
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.group import Group
from arraychest.integrity.report import Finding, Report
from arraychest.memoize.cached import Cached, CacheStats
from arraychest.memoize.options import Kept, caching_disabled
from arraychest.progress import Progress
from arraychest.sharing.locks import KeyLock
from arraychest.values.registry import register

# What is logged is for those who ask for it.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "COMPRESS_ABOVE",
    "PACK_THRESHOLD",
    "AbsentKeyError",
    "ArrayChestError",
    "ArrayChestWarning",
    "BlockedArray",
    "CacheStats",
    "Cached",
    "Chest",
    "ChestFormatError",
    "ChestInUseError",
    "ClosedChestError",
    "CompressedArray",
    "CorruptEntryError",
    "Creation",
    "DeadlockError",
    "Entry",
    "FileSystemError",
    "Finding",
    "Group",
    "Handle",
    "Kept",
    "KeyLock",
    "KeyTypeError",
    "LazyArray",
    "Part",
    "PickleRefusedError",
    "Progress",
    "QuotaError",
    "ReadOnlyChestError",
    "Report",
    "SpillError",
    "Stats",
    "UnreadableValueError",
    "ValueTypeError",
    "caching_disabled",
    "open",
    "register",
    "repair",
]


def __dir__() -> list[str]:
    """The public names, and nothing else."""
    return [*__all__, "__all__", "__doc__", "__version__"]
