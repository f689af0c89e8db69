"""What a chest holds and where, looked at from aside: no value is read, and no use is counted.

`Chest.entry` gives a key a slot, and opens the file of what is compressed.  What only shows a chest
must leave it as it is: here what is in memory is read as it stands, and the rest page by page from
the catalog.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from arraychest.catalog.record import EXACT, KEY, SEQ, RawRow, Row
from arraychest.engine.engine import Engine
from arraychest.engine.entry import Entry, entry_of
from arraychest.errors import ArrayChestError
from arraychest.formats.form import Form, Kind, parse_form
from arraychest.formats.tree import Tree, form_of
from arraychest.memory.slot import Batch, Slot
from arraychest.values.keys import decode_key

# In RAM and not stored; stored, and its decompressed copy in RAM; stored, and a view of it kept
# open; only stored.
Tier = Literal["RAM", "copy", "mapped", "disk"]

# Rows that are read from the catalog at a time, under the chest's lock: some 1 ms.
_PAGE = 1024

# Slots that are looked through for values that are not stored, where only some are asked for.
_MOST_SLOTS = 1 << 16

_PLACE = operator.itemgetter(0)


class Listed(NamedTuple):
    """One entry, as of when it was looked at.

    Attributes
    ----------
    seq
        Its place in the order of insertion.
    key
        Its key; of a row whose key cannot be read, its code as bytes.
    tier
        Where the value is.
    entry
        What is known of it, without its file; ``codec`` is ``"blosc2"`` where it is compressed.
        None: its row is damaged.
    problem
        What is wrong with it; empty if nothing is.
    row
        Its row in the catalog, if that is where its value is.
    """

    seq: int
    key: Any
    tier: Tier
    entry: Entry | None
    problem: str = ""
    row: Row | None = None


def listed(engine: Engine, most: int | None = None) -> Iterator[Listed]:
    """The entries of a chest in the order of insertion.

    Parameters
    ----------
    most
        How many at most; None: all.  With a number the cost is O(it), whatever the chest holds;
        values that are not stored may be left out behind 65,536 others.

    Raises
    ------
    ClosedChestError
        The chest is closed.
    ChestFormatError, OSError
        The catalog cannot be read.

    Notes
    -----
    What a transaction has not committed is not among them.
    """
    with engine.session.writer.lock:
        engine.session.check_open()
        engine.session.follow()
        found = _unsaved(engine, most)
        first = sorted(found, key=_PLACE) if most is None else heapq.nsmallest(most, found, _PLACE)
        unsaved = [
            Listed(place, key, "RAM", _resident_entry(array, kind))
            for place, key, array, kind in first
        ]
    both = heapq.merge(unsaved, _stored(engine, min(most or _PAGE, _PAGE)), key=_PLACE)
    return itertools.islice(_once(both), most)


def _once(found: Iterator[Listed]) -> Iterator[Listed]:
    """Without what came twice: committed meanwhile, or stored and put anew."""
    last = None
    overwritten = set()
    for each in found:
        if each.seq == last or (each.tier == "RAM" and each.key in overwritten):
            continue
        last = each.seq
        if each.tier == "RAM":
            overwritten.add(each.key)
        yield each


def _unsaved(
    engine: Engine, most: int | None
) -> Iterator[tuple[int, Any, np.ndarray | Tree, Kind]]:
    """Place, key and value of what has no row in the catalog; called under the lock.

    The first `most` are among them.
    """
    index, resident = engine.session.index, engine.session.resident
    for slot in itertools.islice(index.slots.values(), None if most is None else _MOST_SLOTS):
        if slot.raw is None and slot.array is not None:
            yield slot.seq, slot.key, slot.array, slot.kind
    batched = (
        (place, key, array)
        for batch in resident.batches
        for place, key, array in zip(batch.numbers, batch.keys, batch.arrays, strict=True)
        if key not in batch.replaced
    )
    fresh = zip(
        itertools.count(index.puts + 1), resident.fresh, resident.fresh.values(), strict=False
    )
    # Each of both is in the order of places.
    for values in (batched, fresh):
        for place, key, array in itertools.islice(values, most):
            yield place, key, array, "array"


def _resident_entry(array: np.ndarray | Tree, kind: Kind) -> Entry:
    if isinstance(array, Tree):
        return entry_of(form_of(array.nbytes))
    return entry_of(Form(array.dtype, array.shape, "C", kind))


def _stored(engine: Engine, page: int) -> Iterator[Listed]:
    at = 0
    while True:
        with engine.session.writer.lock:
            engine.session.check_open()
            if engine.session.path is None:
                return  # a temporary chest that has stored nothing
            rows = engine.session.open_store().catalog.rows_after(at, page)
            deleted = engine.session.order.deleted()
            found = [each for row in rows if (each := _of_row(engine, row, deleted)) is not None]
        if not rows:
            return
        at = rows[-1][SEQ]
        yield from found


def _of_row(engine: Engine, raw: RawRow, deleted: dict[Any, int | None]) -> Listed | None:
    """What is told of a row; None if its entry was deleted.  Called under the lock."""
    seq = raw[SEQ]
    try:
        key = decode_key(raw[KEY], raw[EXACT])
    except ValueError as error:
        return Listed(seq, raw[KEY], "disk", None, str(error))
    if key in deleted and deleted[key] != seq:
        return None
    resident, slot = engine.session.resident, engine.session.index.slots.get(key)
    if slot is not None and slot.array is not None:
        return Listed(seq, key, "RAM", _resident_entry(slot.array, slot.kind))
    if key in resident.fresh:
        return Listed(seq, key, "RAM", _resident_entry(resident.fresh[key], "array"))
    known = engine.session.index.rows.get(key)
    if isinstance(known, Batch):
        return Listed(seq, key, "RAM", _resident_entry(known.array_of(key), "array"))
    row = Row._make(raw)
    try:
        entry = entry_of(parse_form(row.form), row)
    except ArrayChestError as error:
        return Listed(seq, key, "disk", None, str(error))
    if row.is_frame:
        entry = replace(entry, codec="blosc2")
    return Listed(seq, key, _tier(engine, slot), entry, row=row)


def _tier(engine: Engine, slot: Slot | None) -> Tier:
    if slot is None:
        return "disk"
    if slot in engine.session.resident.copies:
        return "copy"
    return "disk" if slot.value is None else "mapped"
