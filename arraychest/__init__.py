"""A dictionary of NumPy arrays that keeps what fits in RAM and spills the rest to disk."""

from arraychest.chest import Chest, Stats, open
from arraychest.codecs.pack import PACK_THRESHOLD
from arraychest.entry import Entry
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestError,
    ChestFormatError,
    ChestInUseError,
    ClosedChestError,
    CorruptEntryError,
    KeyTypeError,
    PickleRefusedError,
    ReadOnlyChestError,
    SpillError,
    ValueTypeError,
)

__version__ = "0.1.0"

__all__ = [
    "PACK_THRESHOLD",
    "AbsentKeyError",
    "ArrayChestError",
    "Chest",
    "ChestFormatError",
    "ChestInUseError",
    "ClosedChestError",
    "CorruptEntryError",
    "Entry",
    "KeyTypeError",
    "PickleRefusedError",
    "ReadOnlyChestError",
    "SpillError",
    "Stats",
    "ValueTypeError",
    "open",
]
