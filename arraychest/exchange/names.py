"""What values are called in an export: readable names, each once, none that leads elsewhere."""

from __future__ import annotations

import datetime as dt
import pathlib
import uuid
from typing import Any

import numpy as np

from arraychest.values.file_stems import fitting_stem

# Where an export keeps what only a chest needs.
INDEX = "arraychest"

# Zarr keeps a group's metadata under this name.
_RESERVED = frozenset({INDEX, INDEX + ".json", "zarr.json"})

# Groups nest at most so deep, so that no path is longer than file systems take.
_MAX_PARTS = 8


class Names:
    """Gives each key a name: letters of the key, ``/`` between groups, and a number where another
    key has the name already.
    """

    def __init__(self) -> None:
        self._arrays: set[str] = set()
        self._groups: set[str] = set()
        # The number to try next for a name that is taken.
        self._next: dict[str, int] = {}

    def name(self, key: Any) -> str:
        """A name that no other key was given, nor any group."""
        wanted = readable(key)
        # Zarr, and Windows, take a backslash for a slash.
        wanted = wanted.replace("\\", "-")
        parts = [fitting_stem(part) for part in wanted.split("/")]
        if len(parts) > _MAX_PARTS or not all(wanted.split("/")):
            parts = [fitting_stem(wanted)]
        name = "/".join(parts)
        # Where an array has the name of a group, the whole becomes one name.
        flat = fitting_stem(name)
        number = self._next.get(flat, 2)
        while not self._is_free(name):
            name = f"{flat}-{number}"
            number += 1
        self._next[flat] = number
        self._arrays.add(name)
        self._groups.update(_groups_of(name))
        return name

    def _is_free(self, name: str) -> bool:
        return (
            _RESERVED.isdisjoint(name.split("/"))
            and name not in self._arrays
            and name not in self._groups
            and self._arrays.isdisjoint(_groups_of(name))
        )


def _groups_of(name: str) -> list[str]:
    """The groups that an array of this name lies in."""
    return [name[:at] for at, char in enumerate(name) if char == "/"]


def readable(key: Any) -> str:
    """What people would call a key; several may be called the same."""
    if isinstance(key, str):
        return str(key)
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    if isinstance(key, tuple) and key:
        # A group for each element but the last.
        return "/".join(readable(part).replace("/", "-") for part in key)
    if isinstance(key, frozenset):
        return "-".join(sorted(readable(part).replace("/", "-") for part in key))
    if isinstance(key, int | float | complex | np.generic | uuid.UUID | dt.date | dt.timedelta):
        return str(key).replace("/", "-")
    if isinstance(key, pathlib.PurePath):
        return str(key).replace("/", "-")
    return repr(key)
