"""Taking over another chest's values: what is stored is linked, without copying a byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arraychest.committer import logger
from arraychest.entry import Row, parse_form
from arraychest.errors import AbsentKeyError, PickleRefusedError
from arraychest.loader import pack_name, value_name
from arraychest.tiers import Tiers

# Values linked in one transaction.
_GROUP = 1024


def update_from(mine: Tiers, theirs: Tiers, *, overwrite: bool) -> None:
    """Put every value of another chest, in its order.

    Parameters
    ----------
    overwrite
        Whether keys that are here already are replaced.

    Raises
    ------
    SpillError, ValueTypeError, KeyTypeError, ReadOnlyChestError
        What came before it was put.
    """
    # Their packs that were linked, and what they are called here.
    packs: dict[int, int] = {}
    group: list[tuple[Any, Row]] = []

    def link() -> None:
        # A value that cannot be linked is copied in its place.
        at = 0
        while at < len(group):
            at += _link(mine, theirs, group[at:], packs)
            if at < len(group):
                copy(group[at][0])
                at += 1
        group.clear()

    def copy(key: Any) -> None:
        try:
            value = theirs.get(key)
        except AbsentKeyError:
            return  # deleted meanwhile
        mine.put_any(key, value, only_absent=not overwrite)

    for key in theirs.keys():  # noqa: SIM118  # no mapping
        if not overwrite and mine.contains(key):
            continue
        row = _stored_row(theirs, key)
        if row is not None:
            group.append((key, row))
        if group and (row is None or len(group) >= _GROUP):
            link()
        if row is None:
            copy(key)
    if group:
        link()


def _stored_row(tiers: Tiers, key: Any) -> Row | None:
    """The row of a value that is stored, and not in RAM."""
    with tiers.writer.lock:
        slot = tiers.index.find(key)
        return None if slot is None or slot.array is not None else slot.row


def _link(
    mine: Tiers, theirs: Tiers, rows: Sequence[tuple[Any, Row]], packs: dict[int, int]
) -> int:
    """Link the files of these keys and rows; returns how many before the first that could not be.

    One cannot be that lies on another file system, or is gone meanwhile.
    """
    with mine.at_work():
        store = mine.open_store()
        source = theirs.open_store()
        linked: list[tuple[Any, Row]] = []
        adopted = []
        for key, row in rows:
            try:
                if not mine.options.allow_pickle and parse_form(row.form).kind == "pickle":
                    raise PickleRefusedError("it holds Python objects")
                if row.pack is None:
                    path = source.files.path(value_name(row))
                    linked.append((key, store.adopt(path, row)))
                    continue
                if row.pack not in packs:
                    path = source.files.path(pack_name(row.pack))
                    pack = store.adopt_pack(path, source.pack_record(row.pack))
                    packs[row.pack] = pack.id
                    adopted.append(pack)
                linked.append((key, store.adopt_packed(row, packs[row.pack])))
            except (OSError, KeyError, ValueError) as error:
                logger.debug("key %r is copied, not linked: %s", key, error)
                break
        if not linked:
            return 0
        with mine.committer.committing():
            with mine.writer.lock:
                mine.check_writable()
                unused = mine.committer.place(store, linked, adopted=adopted)
            store.files.remove(unused)
            store.catalog.raise_interrupt()
        return len(linked)
