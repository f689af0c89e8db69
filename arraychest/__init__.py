"""A dictionary of NumPy arrays that keeps what fits in RAM and spills the rest to disk."""

from arraychest.chest import Chest, Stats, open, repair
from arraychest.codecs.pack import PACK_THRESHOLD
from arraychest.compressed import CompressedArray
from arraychest.compression import COMPRESS_ABOVE
from arraychest.entry import Entry
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestError,
    ChestFormatError,
    ChestInUseError,
    ClosedChestError,
    CorruptEntryError,
    FileSystemError,
    KeyTypeError,
    PickleRefusedError,
    QuotaError,
    ReadOnlyChestError,
    SpillError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.handle import Handle
from arraychest.integrity import Finding, Report
from arraychest.locks import KeyLock
from arraychest.mutation import Creation, Part
from arraychest.registry import register

__version__ = "0.1.0"

__all__ = [
    "COMPRESS_ABOVE",
    "PACK_THRESHOLD",
    "AbsentKeyError",
    "ArrayChestError",
    "Chest",
    "ChestFormatError",
    "ChestInUseError",
    "ClosedChestError",
    "CompressedArray",
    "CorruptEntryError",
    "Creation",
    "Entry",
    "FileSystemError",
    "Finding",
    "Handle",
    "KeyLock",
    "KeyTypeError",
    "Part",
    "PickleRefusedError",
    "QuotaError",
    "ReadOnlyChestError",
    "Report",
    "SpillError",
    "Stats",
    "UnreadableValueError",
    "ValueTypeError",
    "open",
    "register",
    "repair",
]
