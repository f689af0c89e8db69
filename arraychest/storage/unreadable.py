"""Which error tells of a value that cannot be read."""

from __future__ import annotations

from arraychest.errors import CorruptEntryError, PickleRefusedError
from arraychest.platform.folders import NO_FILE
from arraychest.sharing.open_folder import OpenFolder

#: What reading a file that is not what it should be raises.
UNREADABLE = (OSError, TypeError, ValueError, OverflowError, MemoryError)


def what_to_raise(
    error: Exception, what: str, chest: OpenFolder | None = None
) -> CorruptEntryError | None:
    """What to raise where something else than `what` was found; None: the error as it is."""
    if isinstance(error, CorruptEntryError | PickleRefusedError):
        return None
    if isinstance(error, FileNotFoundError | NotADirectoryError | BlockingIOError):
        # BlockingIOError: it is being overwritten as a spare, since its row is gone.
        lost = chest is not None and not chest.is_ours()
        because = f": {chest.lost()}" if chest is not None and lost else ""
        return CorruptEntryError(f"expected {what}, found no such file{because}")
    if isinstance(error, OSError):
        if error.errno in NO_FILE:
            return CorruptEntryError(f"expected {what}, found a symbolic link or a socket")
        return None
    return CorruptEntryError(f"expected {what}, found what is none: {error}")
