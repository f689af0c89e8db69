"""Everything arraychest raises on purpose, under one root.

Each class also inherits the built-in exception that a dict, a file or NumPy would raise in its
place, so that code written for those keeps working: ``except KeyError`` catches an absent key,
``except OSError`` a full disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


class ArrayChestError(Exception):
    """Root of the errors that arraychest raises on purpose."""


class AbsentKeyError(ArrayChestError, KeyError):
    """The chest has no such key.  Nothing was changed.

    If the key is a str and the chest has few keys, the message names similar ones.
    """

    # Looked for only where somebody reads the message: a miss is mostly no error to its caller.
    near: Callable[[], list[str]] | None = None

    def __str__(self) -> str:
        told = super().__str__()
        found: list[str] = []
        if self.near is not None:
            with contextlib.suppress(Exception):
                found = self.near()
        return f"{told}; did you mean {' or '.join(map(repr, found))}?" if found else told

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process nobody can look.
        state = {name: value for name, value in self.__dict__.items() if name != "near"}
        return type(self), self.args, state


class KeyTypeError(ArrayChestError, TypeError):
    """The key cannot be encoded without pickle, or not be found again.  Nothing was changed."""


class ValueTypeError(ArrayChestError, TypeError):
    """The value would come back as something else.  The key keeps its previous value."""


class PickleRefusedError(ArrayChestError, ValueError):
    """A stored value needs pickle, and the chest was opened without ``allow_pickle=True``.

    The value stays stored; a chest opened with ``allow_pickle=True`` reads it.
    """


class UnreadableValueError(ArrayChestError, TypeError):
    """A stored value cannot be read, as the process lacks something that it needs for it.

    The type is not registered here, or its package is not installed, or the chest was opened
    without the ``load=`` of the one that wrote the value.  The value stays stored.
    """


class SpillError(ArrayChestError, OSError):
    """Values could not be written to disk; ``__cause__`` says why.

    The values stay in RAM, readable and charged, and are tried again later.  A put that raises
    this has not stored its own value.
    """

    def __init__(self, message: str) -> None:
        # OSError with one argument keeps `errno` None and prints the message alone.
        super().__init__(message)


class QuotaError(SpillError):
    """A value does not fit into ``max_disk``.

    As after any `SpillError`, no stored value is lost, and values that were put before stay in RAM.
    """


class CorruptEntryError(ArrayChestError, ValueError):
    """What lies on disk is not what the catalog says: truncated, swapped, foreign or missing.

    The entry is left as it is; every other entry stays readable.
    """


class ChestFormatError(ArrayChestError, ValueError):
    """The folder is not a chest, or one of a newer format.  Nothing in it was touched."""


class ChestInUseError(ArrayChestError, BlockingIOError):
    """Another chest holds this folder open for writing.  Nothing was touched."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class DeadlockError(ArrayChestError, RuntimeError):
    """Waiting would never end.  Nothing was changed.

    A task or an editor waits for the lock of a key, but the thread that would have to wait also
    runs the holder of that lock.
    """


class FileSystemError(ArrayChestError, OSError):
    """The folder lies where processes cannot share a chest safely.  Nothing was touched."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ReadOnlyChestError(ArrayChestError, PermissionError):
    """The chest can only be read: it was opened with ``mode="r"``, or is a parent's temporary one.

    A forked child can read the temporary chests of its parent, and cannot change them.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ClosedChestError(ArrayChestError, ValueError):
    """The chest was closed.  Views that it handed out before stay valid."""


class ArrayChestWarning(UserWarning):
    """Something that the user of a chest should know, although no call of theirs has failed.

    For example: a spill failed in the background, and its values stay in RAM; memory is scarce, so
    that a chest with ``available_memory=None`` spills early; a chest is written to on a network
    file system; an import could not keep something.
    """
