"""Whose functions are running: ours or the user's, and how a user is told."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

from arraychest.engine.commit import logger
from arraychest.errors import ArrayChestWarning


def warn(message: str) -> None:
    """Warn from a thread that nothing may end; to be called without the lock.

    Where warnings are errors, or whoever is shown them fails, the log has said it.
    """
    try:
        warnings.warn(message, ArrayChestWarning, stacklevel=2)
    except Exception as error:
        logger.debug("a warning was not shown: %r", error)


def warn_caller(message: str) -> None:
    """Warn where the user called this package, however deep in it this is called."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals):
        frame = frame.f_back
        level += 1
    warnings.warn(message, ArrayChestWarning, stacklevel=level)


def is_at_work() -> bool:
    """Whether a function of ours runs in this thread below the caller's, and may hold a lock."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and not _is_ours(frame.f_globals):
        frame = frame.f_back
    return frame is not None


def _is_ours(names: dict[str, Any]) -> bool:
    return str(names.get("__name__")).partition(".")[0] == "arraychest"
