"""Another key for a value: a row of the catalog, and a name of its file."""

from __future__ import annotations

from typing import Any

from arraychest.catalog.record import Facts
from arraychest.engine.engine import Engine
from arraychest.engine.transaction import Transaction
from arraychest.errors import AbsentKeyError
from arraychest.formats.form import parse_form
from arraychest.values.keys import encode_key


def rename(engine: Engine, changes: Transaction, old: Any, new: Any) -> None:
    """Give a value another key within a transaction; see `Chest.rename`.

    The bytes stay where they are.  Their file says the old key: the catalog knows of that.
    """
    code = encode_key(new)
    if not engine.contains(old):
        raise AbsentKeyError(old)
    row = None
    if old not in changes:
        # The catalog says where it lies: so what is in RAM is stored first.
        engine.spill(old)
        row = engine.stored_row(old)
    if row is None or row.is_blocked:
        # Put in this transaction, or in many files, which a put of a blocked array links.
        changes.put(new, engine.get(old))
        changes.delete(old)
        return
    store = engine.session.open_store()
    with engine.session.writer.lock:
        known = store.catalog.facts.of(row.generation)
    if row.pack is None:
        mine = store.linker.adopt(store.files, row, parse_form(row.form), code)
    else:
        mine = row._replace(
            generation=store.generations.new(), key=code.canonical, exact=code.exact
        )
    written_as = known.written_as or row.key
    facts = Facts(mine.generation, known.digests, known.cost, written_as)
    changes.put_row(new, mine, facts)
    changes.delete(old)
