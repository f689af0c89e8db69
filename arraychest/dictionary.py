"""What a chest and a group of its entries have of a dict, built on a few methods of their own."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import (
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from typing import Any

from arraychest.errors import AbsentKeyError
from arraychest.values.equality import same

MISSING: Any = object()

# Keys that completion offers, and among which a near one is looked for.
_MOST_COMPLETIONS = 10_000
_MOST_SUGGESTIONS_OF = 1_000


class Dictionary(MutableMapping[Any, Any]):
    """The methods of a dict that follow from a mapping's own.

    Whoever inherits from it has ``__getitem__``, ``__setitem__``, ``__delitem__``, ``__len__``,
    ``__iter__`` and ``__reversed__``, and a `pop` that is one atomic step.
    """

    def __reversed__(self) -> Iterator[Any]:
        raise NotImplementedError

    def keys(self) -> KeysView[Any]:
        """A view of the keys, in the order of their insertion."""
        return _Keys(self)

    def items(self) -> ItemsView[Any, Any]:
        """A view of the keys and values; a key deleted while it is iterated over is left out."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values; one deleted while it is iterated over is left out."""
        return _Values(self)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a mapping with the same keys and equal values; reads every value.

        Arrays are equal if their dtypes and elements are, also in lists, dicts and so on.
        """
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        return all(key in other and same(self[key], other[key]) for key in self)

    __hash__ = None  # type: ignore[assignment]  # as dict's

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key inserted last and return it with its value.  Raises AbsentKeyError."""
        while True:
            for key in reversed(self):
                value = self.pop(key, MISSING)
                if value is not MISSING:
                    return key, value
                break
            else:
                raise AbsentKeyError("expected a key, found that there is none")

    def discard(self, key: Any) -> None:
        """Remove a key if it is there."""
        with contextlib.suppress(AbsentKeyError):
            del self[key]

    def clear(self) -> None:
        """Remove every key.  Reads no value."""
        for key in list(self):
            self.discard(key)

    def __ior__(self, other: Any) -> Any:
        """Put every value of another mapping, or of pairs, as `update` does."""
        self.update(other)
        return self

    def _ipython_key_completions_(self) -> list[Any]:
        """The keys that a shell or notebook offers after ``chest[``; the first 10,000 of them."""
        return list(itertools.islice(self, _MOST_COMPLETIONS))


def near_keys(mapping: Mapping[Any, Any], key: Any) -> list[str]:
    """Keys that a str may have been meant for: of a chest with few keys, and up to three."""
    if not isinstance(key, str) or len(mapping) > _MOST_SUGGESTIONS_OF:
        return []
    return difflib.get_close_matches(key, [each for each in mapping if isinstance(each, str)])


class _Keys(KeysView[Any]):
    """Keys of a chest or group."""

    def __init__(self, mapping: Dictionary) -> None:
        super().__init__(mapping)
        self._mine = mapping

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._mine)


class _Items(ItemsView[Any, Any]):
    """Items of a chest or group; a key that is deleted while they are read does not come."""

    def __init__(self, mapping: Dictionary) -> None:
        super().__init__(mapping)
        self._mine = mapping

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._of(iter(self._mine))

    def __reversed__(self) -> Iterator[tuple[Any, Any]]:
        return self._of(reversed(self._mine))

    def _of(self, keys: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        for key in keys:
            value = self._mine.get(key, MISSING)
            if value is not MISSING:
                yield key, value


class _Values(ValuesView[Any]):
    """Values of a chest or group; that of a key that is deleted meanwhile does not come."""

    def __init__(self, mapping: Dictionary) -> None:
        super().__init__(mapping)
        self._items = _Items(mapping)

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._items)

    def __reversed__(self) -> Iterator[Any]:
        return (value for _, value in reversed(self._items))
