"""`Face`: what the parts that are built on the engine need of a chest.

They take a chest by this protocol, and so they do not import the class that is built on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from arraychest.engine.engine import Engine
from arraychest.engine.entry import Entry


class Face(Protocol):
    """A chest, as exports, imports and dask use it; `Chest` says what each method does."""

    _engine: Engine

    @property
    def path(self) -> str | None: ...  # noqa: D102

    def __iter__(self) -> Iterator[Any]: ...

    def __contains__(self, key: object) -> bool: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def get(self, key: Any) -> Any: ...  # noqa: D102

    def entry(self, key: Any) -> Entry: ...  # noqa: D102

    def create(self, key: Any, shape: Any, dtype: Any, order: Any) -> Any: ...  # noqa: D102

    def lock(self, key: Any) -> AbstractContextManager[Any]: ...  # noqa: D102

    def transaction(self) -> AbstractContextManager[Any]: ...  # noqa: D102

    def to_dask(self, key: Any, chunks: Any) -> Any: ...  # noqa: D102


def in_chest(chest: Face, key: Any) -> tuple[Face, Any]:
    """The chest itself and its own key, also where `chest` is a group of it (`Chest.group`)."""
    full_key = getattr(chest, "full_key", None)
    return (chest, key) if full_key is None else (cast(Any, chest).chest, full_key(key))
