"""Transactions that are open: each is seen by the thread or task that is in it, and by no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import Context
from typing import Any, Protocol

from arraychest.catalog.record import Cost, Row
from arraychest.formats.compression import How
from arraychest.sharing.contexts import current_context
from arraychest.values.accept import OnPut


class Changes(Protocol):
    """What a thread or task has changed in a transaction; see `Transaction`."""

    @property
    def context(self) -> Context: ...  # noqa: D102

    is_left: bool

    def __contains__(self, key: Any) -> bool: ...

    def has(self, key: Any) -> bool: ...  # noqa: D102

    def get(self, key: Any) -> Any: ...  # noqa: D102

    def row(self, key: Any) -> Row: ...  # noqa: D102

    def cost(self, key: Any) -> Cost | None: ...  # noqa: D102

    def put(  # noqa: D102
        self,
        key: Any,
        value: Any,
        compression: How | None = None,
        cost: Cost | None = None,
        on_put: OnPut | None = None,
    ) -> None: ...

    def put_row(self, key: Any, row: Row) -> None: ...  # noqa: D102

    def merged(self, stored: Iterable[Any], *, descending: bool) -> Iterator[Any]: ...  # noqa: D102

    def delete(self, key: Any) -> None: ...  # noqa: D102


class OpenTransactions:
    """Which threads and tasks of a chest are in a transaction.

    Attributes
    ----------
    by_context
        By the id of the context of a thread or task, the transaction that it is in.
    """

    def __init__(self) -> None:
        self.by_context: dict[int, Changes] = {}

    def own(self) -> Changes | None:
        """The transaction that the calling thread or task is in."""
        changes = self.by_context.get(id(current_context())) if self.by_context else None
        return None if changes is None or changes.is_left else changes

    def begin(self, changes: Changes) -> None:
        """From here on what its thread or task puts and deletes goes into a transaction.

        Called under the chest's lock.
        """
        self.by_context[id(changes.context)] = changes

    def end(self, changes: Changes) -> bool:
        """Undo `begin`, by whichever thread or task; called under the chest's lock.

        Returns whether nobody is in a transaction any more.
        """
        if self.by_context.get(id(changes.context)) is changes:
            del self.by_context[id(changes.context)]
        return not self.by_context
