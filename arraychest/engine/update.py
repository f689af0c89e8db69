"""Taking over another chest's values: what is stored is linked, without copying a byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from arraychest.catalog.record import Cost, Facts, Pack, Row
from arraychest.engine.commit import logger
from arraychest.engine.engine import Engine
from arraychest.engine.face import Face, in_chest
from arraychest.engine.transaction import Transaction
from arraychest.errors import AbsentKeyError, PickleRefusedError
from arraychest.formats.form import parse_form
from arraychest.progress import Asked, Meter, measured
from arraychest.storage.file_names import value_name


def update_from(
    mine: Engine,
    theirs: Engine,
    changes: Transaction,
    meter: Meter,
    *,
    overwrite: bool,
    keys: Iterable[tuple[Any, Any]] | None = None,
) -> None:
    """Put values of another chest, by default all in its order.

    Parameters
    ----------
    changes
        The transaction that they are put in.
    meter
        Is told of the bytes of each.
    overwrite
        Whether keys that are here already are replaced.
    keys
        Which: of each value, its key here and its key there.  Where the two differ, the value is
        copied: a file says of itself the key that it was written under.

    Raises
    ------
    SpillError, ValueTypeError, KeyTypeError
        What came before it is in the transaction.
    """
    # Their packs that were linked, and what they are called here.
    packs: dict[int, Pack] = {}
    if keys is None:
        keys = ((key, key) for key in theirs.keys())  # noqa: SIM118  # no mapping
    for key, source in keys:
        if not overwrite and mine.contains(key):
            continue
        row = theirs.stored_row(source) if key == source else None
        cost = theirs.facts.cost_of(source)
        if cost is not None and cost.expires is not None:
            # A copy is good as long as what it is a copy of.
            with mine.session.writer.lock:
                mine.session.expiry.note(key, cost.expires)
        try:
            if row is not None:
                linked = _link(mine, theirs, row, packs, changes)
                changes.put_row(key, linked, _facts_of(theirs, row, linked, cost))
                meter.add(row.stored)
                continue
        except (OSError, KeyError, ValueError) as error:
            # On another file system, or gone meanwhile.
            logger.debug("key %r is copied, not linked: %s", key, error)
        try:
            value = theirs.get(source)
        except AbsentKeyError:
            continue  # deleted meanwhile
        changes.put(key, value, cost=cost)
        meter.add(getattr(value, "nbytes", 0))


def copy_from(
    mine: Engine,
    block: AbstractContextManager[Transaction],
    other: Face,
    keys: Iterable[tuple[Any, Any]],
    *,
    overwrite: bool,
    progress: Asked,
) -> None:
    """Put some values of another chest or group, as one transaction; see `Chest.copy_from`.

    Parameters
    ----------
    block
        Makes the transaction that they are put in, and commits it at its end.
    keys
        Of each value, its key in the chest of `mine`, and its key in `other`.
    """
    wanted = list(keys)
    for _, key in wanted:
        if key not in other:
            raise AbsentKeyError(key)
    total = lambda: sum(other.entry(key).nbytes for _, key in wanted)  # noqa: E731
    pairs = [(here, in_chest(other, there)[1]) for here, there in wanted]
    with measured(progress, "copy", total) as meter, block as changes:
        update_from(mine, other._engine, changes, meter, overwrite=overwrite, keys=pairs)


def _facts_of(theirs: Engine, row: Row, linked: Row, cost: Cost | None) -> Facts:
    """What the other chest knows of a value's file."""
    with theirs.session.writer.lock:
        written_as = theirs.session.open_store().catalog.facts.written_as(row.generation)
    return Facts(linked.generation, {}, cost, written_as)


def _link(
    mine: Engine, theirs: Engine, row: Row, packs: dict[int, Pack], changes: Transaction
) -> Row:
    """Link the file of a value; returns the row that would name it here.

    Raises
    ------
    OSError, ValueError, KeyError
        Its row is not what it should be, or its file is not what the row says.
    """
    store = mine.session.open_store()
    source = theirs.session.open_store()
    form = parse_form(row.form)
    if not mine.session.options.own.allow_pickle and form.kind == "pickle":
        raise PickleRefusedError("it holds Python objects")
    if row.pack is None:
        mine_now = store.linker.adopt(source.files, row, form)
        # Asked once the file has its second name: an editor looks for that after it has said so.
        with theirs.session.writer.lock:
            theirs.session.follow()
            is_edited = source.catalog.facts.is_written_in_place(row.generation)
        if is_edited:
            store.files.remove([value_name(mine_now)], keep_spares=False)
            raise OSError("it is edited in place, which would change it here, too")
        return mine_now
    if row.pack not in packs:
        pack = store.linker.adopt_pack(source.files, source.packs.record(row.pack))
        packs[row.pack] = pack
        changes.adopted.append(pack)
    return store.linker.adopt_packed(row, form, packs[row.pack])


def update_by(
    engine: Engine,
    changes: Transaction,
    pairs: Iterable[tuple[Any, Any]],
    meter: Meter,
    *,
    overwrite: bool,
) -> None:
    """Put values by their keys in a transaction; those of keys that are there if `overwrite`."""
    for key, value in pairs:
        if overwrite or not engine.contains(key):
            changes.put(key, value)
        meter.add(getattr(value, "nbytes", 0))


def put_each(
    put: Callable[..., None], pairs: Iterable[tuple[Any, Any]], meter: Meter, **options: Any
) -> None:
    """Put values by their keys one by one, and tell of the bytes of each."""
    for key, value in pairs:
        put(key, value, **options)
        meter.add(getattr(value, "nbytes", 0))


def bytes_in(values: object) -> int:
    """Bytes of a mapping's values; 0 where they are not at hand."""
    engine = getattr(values, "_engine", None)
    if isinstance(engine, Engine) and not hasattr(values, "full_key"):  # no group of a chest
        return engine.stored_bytes() + engine.session.resident.charged
    if isinstance(values, dict):
        return sum(getattr(value, "nbytes", 0) for value in values.values())
    return 0
