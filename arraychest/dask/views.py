"""Views of the results that a worker has in RAM, and of those that it has on disk."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any


class View(Mapping[Any, Any]):
    """A dictionary to be looked at, and not to be changed.

    Parameters
    ----------
    shown
        Any thread may change it under the lock.  To look a key up, or to ask for the length, is one
        step and needs no lock.
    lock
        A reentrant one.

    Notes
    -----
    Whoever iterates sees what was there when they began, in the order of that moment.
    """

    __slots__ = ("_lock", "_shown")

    def __init__(self, shown: Mapping[Any, Any], lock: Any) -> None:
        self._shown = shown
        self._lock = lock

    def __getitem__(self, key: Any) -> Any:
        return self._shown[key]

    def __contains__(self, key: object) -> bool:
        return key in self._shown

    def __len__(self) -> int:
        return len(self._shown)

    def __iter__(self) -> Iterator[Any]:
        with self._lock:
            return iter(list(self._shown))

    def __repr__(self) -> str:
        return repr(self._copy())

    def keys(self) -> KeysView[Any]:
        """Its keys as they are now."""
        return self._copy().keys()

    def items(self) -> ItemsView[Any, Any]:
        """Its keys with what they have now."""
        return self._copy().items()

    def values(self) -> ValuesView[Any]:
        """What its keys have now."""
        return self._copy().values()

    def _copy(self) -> dict[Any, Any]:
        with self._lock:
            return dict(self._shown)
