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

    Where the key is a str, and the chest has few keys, the message names those that are near.
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
    """A key that cannot be encoded without pickle, or not found again.  Nothing was changed."""


class ValueTypeError(ArrayChestError, TypeError):
    """A value that would come back as something else.  The key keeps its previous value."""


class PickleRefusedError(ArrayChestError, ValueError):
    """A stored value needs pickle, and the chest was opened without ``allow_pickle=True``.

    The value stays stored; a chest opened with ``allow_pickle=True`` reads it.
    """


class UnreadableValueError(ArrayChestError, TypeError):
    """Reading a stored value takes something that this process has not got.

    A type that is not registered here, or whose package is not installed; or the ``load=`` of the
    chest that wrote it.  The value stays stored.
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
    """What should be stored does not fit into ``max_disk``.

    As after any `SpillError` nothing that is stored is lost, and what was put before stays in RAM.
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
    """Waiting would never end, as what is waited for cannot go on meanwhile.  Nothing was changed.

    A task or an editor waits for the lock of a key, and the thread that would have to wait runs the
    holder of that lock, too.
    """


class FileSystemError(ArrayChestError, OSError):
    """The folder lies where processes cannot share a chest safely.  Nothing was touched."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ReadOnlyChestError(ArrayChestError, PermissionError):
    """A change was asked of a chest opened with ``mode="r"``, or of another's temporary one.

    A forked child has such a one of its parent.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ClosedChestError(ArrayChestError, ValueError):
    """The chest was closed.  Views it handed out before stay valid."""


class ArrayChestWarning(UserWarning):
    """What the user of a chest should know, and nothing has failed in their hands.

    A spill failed in the background, and its values stay in RAM; memory is scarce, so that a chest
    with ``available_memory=None`` spills early; a chest is written to on a network file system; an
    import could not keep something.
    """
