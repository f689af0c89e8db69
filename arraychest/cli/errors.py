"""The error that a command ends with."""

from __future__ import annotations


class CommandError(Exception):
    """What a command could not do, in one line."""
