"""Values written down together with what the functions and the user's classes in them do."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

from arraychest.arrays.digests import digest_of
from arraychest.errors import ValueTypeError
from arraychest.memoize.code_print import code_print
from arraychest.memoize.reached import (
    Live,
    Watched,
    is_ordinary,
)
from arraychest.memoize.value_print import (
    NUMBER,
    Digest,
    ValuePrint,
    is_users,
    name_of,
    wrapped_by,
)
from arraychest.values import registry


class Prints(ValuePrint):
    """Writes down values, and what the functions and the user's classes in them do.

    What a function or class reads that may change without notice is written down after all else
    (see `complete`): it may be reached from itself.

    Parameters
    ----------
    watched_of
        What a function or class is, as far as that is there for good.
    digest
        Makes the digest of an array.
    classes
        Whether what the user's classes do counts, or their names alone.
    ignored
        Attributes of objects of the user's classes that do not count.
    """

    def __init__(
        self,
        watched_of: Callable[[Any], Watched],
        digest: Digest = digest_of,
        *,
        classes: bool = True,
        ignored: Iterable[str] = (),
    ) -> None:
        super().__init__(digest)
        self._watched_of = watched_of
        self._counts_classes = classes
        self._ignored = frozenset(ignored)
        # Whether what cannot be told by its content is told by its kind; and the variable that is
        # written down.
        self._lenient = False
        self._where = ""
        # The functions and classes that were met, by id; they are kept for their ids.
        self._units: dict[int, tuple[Any, bytes]] = {}
        self._later: list[Live] = []
        # The variables that are told by their kind, and the kind.
        self.untold: dict[str, str] = {}

    def code(self, code: types.CodeType) -> None:
        """Encode a code object."""
        self.out += b"K" + code_print(code).digest

    def function(self, function: types.FunctionType, depth: int) -> None:  # noqa: ARG002
        """Encode a function."""
        self.out += b"F" + self._unit(function)

    def named(self, value: Any, version: str = "") -> None:
        """Encode what is known by its name alone, and a class of the user's."""
        if not (self._counts_classes and isinstance(value, type) and is_users(value.__module__)):
            super().named(value, version)
            return
        self.out += b"T" + self._unit(value)

    def _left_out(self, kind: type) -> frozenset[str]:
        names = super()._left_out(kind)
        return names | self._ignored if self._ignored and is_users(kind.__module__) else names

    def registered(self, known: registry.Registered, value: Any, depth: int) -> None:
        """Encode a value of a registered type, and what its class does if that is the user's."""
        super().registered(known, value, depth)
        if is_users(type(value).__module__):
            self.named(type(value))

    def other(self, value: Any, depth: int) -> None:
        """Encode what is no value tree; if that is allowed, by its kind what has no content."""
        if self._counts_classes and type(value) is types.ModuleType and is_users(value.__name__):
            self.out += b"C" + self._unit(value)
            return
        if not self._lenient:
            super().other(value, depth)
            return
        if is_ordinary(value) and wrapped_by(value) is None:
            self._by_kind(value)
            return
        start, opened, later = len(self.out), set(self._open), len(self._later)
        try:
            super().other(value, depth)
        except Exception:  # whatever its own methods raise
            del self.out[start:], self._later[later:]
            self._open = opened
            self._by_kind(value)
            self.untold.setdefault(self._where, name_of(type(value)))

    def _by_kind(self, value: Any) -> None:
        self.out += b"."
        self.text(name_of(type(value)))

    def _unit(self, thing: Any) -> bytes:
        known = self._units.get(id(thing))
        if known is None:
            watched = self._watched_of(thing)
            self._units[id(thing)] = known = thing, watched.digest
            # Whoever allows that something is told by its kind allows it of all that it reaches.
            self._later += [
                live._replace(strict=False, name=self._where) if self._lenient else live
                for live in watched.live
            ]
        return known[1]

    def complete(self) -> None:
        """Write down what the functions and classes read that were met; and what these read."""
        while self._later:
            self.content(self._later.pop(0))

    def content(self, live: Live) -> None:
        """Write down the content of a value, or its kind if it has none and needs none.

        Raises
        ------
        ValueTypeError
            It has none; the message says where this is.
        """
        lenient, where = self._lenient, self._where
        self._lenient = lenient or not live.strict
        self._where = where or live.name
        out, self.out = self.out, bytearray()
        opened, later = set(self._open), len(self._later)
        try:
            self.node(live.value)
        except Exception as error:  # whatever its own methods raise
            if not self._lenient:
                if isinstance(error, ValueTypeError) and live.where:
                    raise ValueTypeError(f"{live.where}: {error}") from error
                raise
            del self._later[later:]
            self._open = opened
            self.out.clear()
            self._by_kind(live.value)
            self.untold.setdefault(self._where, name_of(type(live.value)))
        finally:
            self._lenient, self._where = lenient, where
            found, self.out = self.out, out
        out += NUMBER.pack(len(found)) + found
