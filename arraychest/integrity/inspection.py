"""Is all that lies on disk what was stored?  `verify` looks; `repair` mends what can be mended.

Everything is read from the catalog by a connection of its own, and from the files: what this
process keeps in memory plays no part.  Others may write meanwhile.  A file goes only after its row,
so what looks wrong is looked at again: it is a finding only if the row is still the same.
"""

from __future__ import annotations

import contextlib

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import Database
from arraychest.engine.engine import Engine
from arraychest.errors import ChestFormatError
from arraychest.integrity.pack_files import inspect_pack
from arraychest.integrity.report import Finding, Report
from arraychest.integrity.salvage import PAGE_ROWS
from arraychest.integrity.stray_files import find_stray_files
from arraychest.integrity.survey import Survey
from arraychest.integrity.value_files import inspect_value
from arraychest.progress import SILENT, Meter


class Inspection:
    """One look at everything.

    Parameters
    ----------
    read_data
        Whether data are compared with their checksums.
    meter
        Is told of the bytes of each file that was looked at, while no lock is held.

    Attributes
    ----------
    unlisted
        The packs whose own directories cannot be read, once `report` has looked at them.
    """

    def __init__(self, engine: Engine, *, read_data: bool, meter: Meter = SILENT) -> None:
        self._engine = engine
        self._meter = meter
        self._read_data = read_data
        self.unlisted: set[int] = set()

    def report(self) -> Report:
        """Look at everything."""
        session = self._engine.session
        with session.writer.lock:
            session.check_open()
            if session.temporary and session.path is None:
                return Report((), 0, 0, 0, 0)
        store = session.open_store()
        try:
            database = Database(store.folder, writable=False, durable=False)
        except ChestFormatError as error:
            return Report((_damaged_catalog(str(error)),), 0, 0, 0, 0)
        with contextlib.closing(database):
            # One row that cannot be read must not hide the others.
            database.take_any_text()
            survey = Survey(store, Catalog(database), read_data=self._read_data, meter=self._meter)
            survey.findings += [
                _damaged_catalog(f"expected a sound database, found: {problem}")
                for problem in database.problems()
            ]
            if not survey.findings:
                self._inspect(survey)
        self.unlisted = survey.unlisted
        return survey.report()

    def _inspect(self, survey: Survey) -> None:
        """Look at each row and its file, at each pack, and at the files without a row."""
        for raw in survey.rows.strays():
            message = f"expected a row that names a key and a pack, found {raw!r:.200}"
            survey.find("corrupt row", raw, None, message)
        after = b""
        while page := survey.rows.after(after, PAGE_ROWS):
            for raw in page:
                survey.entries += 1
                if raw[5] is None:
                    before = survey.meter.done
                    inspect_value(survey, raw)
                    if type(raw[7]) is int:
                        survey.meter.reach(before + raw[7])
            after = page[-1][0]
        for known in survey.catalog.packs():
            inspect_pack(survey, known.id)
            survey.meter.add(known.bytes)
        find_stray_files(survey, self._engine)


def _damaged_catalog(message: str) -> Finding:
    return Finding("catalog", None, None, 0, 0, message, None, None)
