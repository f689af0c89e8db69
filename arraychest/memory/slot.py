"""What the chest keeps in memory for a key: a slot, or less where that will do.

A slot knows everything about its key, and is as large as a small value, and the garbage collector
looks at it again and again.  Most small values are only put, stored, and asked for later if ever:
they go through in batches, and once stored only the catalog's row is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arraychest.catalog.record import SEQ, Cost, RawRow, Row
from arraychest.formats.compression import How
from arraychest.formats.form import Kind
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree


class Slot:
    """What the chest knows in memory of one key.

    Attributes
    ----------
    key
        The key as it was first put.
    seq
        Its place in the order of insertion.
    value
        What a get returns at once: the resident value, or a mapped view that is kept open; else
        None.
    array
        The value in RAM that is not yet stored, as an array or a value tree; else None.
    kind
        What `array` comes back as.
    compression
        How its put asked to compress `array`; None: as the chest does.
    cost
        What it took to compute `array`, if that is known.
    raw
        The catalog's row for the key; None if it has none.  Outdated while `array` is set.
    view
        A weak reference to an array that a user may still hold and that equals what is stored; of
        a value tree that is kept open a strong one, as a get makes its value anew.  Of a small
        value that is no array, a function that makes it from its pack, or returns None if the pack
        is not mapped any more.
    hits
        Gets that `value` answered.  `seen` is what the hand last saw of it.
    version
        Counts the puts of the chest: which put `array` came with.
    writing
        The version that a writer is storing now; -1 if none.
    """

    __slots__ = (
        "array",
        "compression",
        "cost",
        "hits",
        "key",
        "kind",
        "raw",
        "seen",
        "seq",
        "value",
        "version",
        "view",
        "writing",
    )

    def __init__(self, key: Any, seq: int, raw: RawRow | None) -> None:
        self.key = key
        self.seq = seq
        self.raw = raw
        self.value: Any = None
        self.array: np.ndarray | Tree | None = None
        self.kind: Kind = "array"
        self.compression: How | None = None
        self.cost: Cost | None = None
        self.view: Callable[[], Any] | None = None
        self.hits = 0
        self.seen = 0
        self.version = 0
        self.writing = -1

    @property
    def row(self) -> Row | None:
        """`raw` with names."""
        return None if self.raw is None else Row._make(self.raw)

    @property
    def is_small(self) -> bool:
        """Whether its value in RAM is packed with others when it is stored."""
        array = self.array
        return array is not None and array.nbytes < PACK_THRESHOLD and self.kind != "pickle"


class Batch:
    """Small values to be stored together that have no slots: only puts have asked for their keys.

    Attributes
    ----------
    keys, arrays
        The values, in the order in which they were put.
    first
        The number of the first one's put; the others follow.
    replaced
        The catalog's rows of those keys that are stored already.
    nbytes
        Bytes of all values.
    writing
        Whether a writer is storing them.
    slots
        Their slots, once anybody has asked for one of the keys: from then on they are values like
        all others, and the batch is only what a writer may be writing.
    stored
        Whether they are committed.
    """

    __slots__ = (
        "_by_key",
        "arrays",
        "first",
        "keys",
        "nbytes",
        "replaced",
        "slots",
        "stored",
        "writing",
    )

    def __init__(
        self, keys: list[Any], arrays: list[np.ndarray], first: int, replaced: dict[Any, RawRow]
    ) -> None:
        self.keys = keys
        self.arrays = arrays
        self.first = first
        self.replaced = replaced
        self.nbytes = sum([array.nbytes for array in arrays])
        self.writing = False
        self.slots: list[Slot] | None = None
        self.stored = False
        self._by_key: dict[Any, np.ndarray] = {}

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the puts: the version of each value."""
        return range(self.first, self.first + len(self.keys))

    @property
    def places(self) -> Sequence[int]:
        """The place of each key in the order of insertion."""
        if not self.replaced:
            return self.numbers
        places = list(self.numbers)
        for at, key in enumerate(self.keys):
            if key in self.replaced:
                places[at] = self.replaced[key][SEQ]
        return places

    def array_of(self, key: Any) -> np.ndarray:
        """The value of one of its keys.  O(n) the first time."""
        if not self._by_key:
            self._by_key = dict(zip(self.keys, self.arrays, strict=True))
        return self._by_key[key]
