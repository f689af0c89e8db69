"""What a chest and a group of its entries have of a dict, built on a few methods of their own."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
from collections.abc import (
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from typing import Any, Protocol, TypeVar
from weakref import ref

from arraychest.errors import AbsentKeyError
from arraychest.values.equality import same

MISSING: Any = object()


class _New(Protocol):
    def update(self, other: Any, /) -> None: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=_New)

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


def data_and_path(data: Any, path: Any) -> tuple[Mapping[Any, Any] | None, Any]:
    """What a chest is made from: the first argument is its data or, as a str or path, its path.

    Raises
    ------
    TypeError
        There are two paths, or the data is no mapping.
    """
    if isinstance(data, str | os.PathLike):
        if path is not None:
            raise TypeError(f"expected one path, found {os.fspath(data)!r} and {os.fspath(path)!r}")
        return None, data
    if data is not None and not isinstance(data, Mapping):
        raise TypeError(f"expected a path, or a mapping as data, found {type(data).__name__}")
    return data, path


def filled(chest: C, *mappings: Mapping[Any, Any]) -> C:
    """A new chest with the values of mappings; it is closed where they cannot be put.

    Nobody else could close it: it is not in the caller's hands yet.
    """
    try:
        for each in mappings:
            chest.update(each)
    except BaseException:
        chest.close()
        raise
    return chest


def near_keys(mapping: ref[Any], key: Any) -> list[str]:
    """Keys that a str may have been meant for: of a chest with few keys, and up to three."""
    keys = mapping()
    if not isinstance(key, str) or keys is None or keys.closed or len(keys) > _MOST_SUGGESTIONS_OF:
        return []
    return difflib.get_close_matches(key, [each for each in keys if isinstance(each, str)])


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
