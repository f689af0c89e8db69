"""What one inspection of a chest reads from, and what it has found and counted so far."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.damaged import DamagedRows
from arraychest.catalog.record import Pack, Row
from arraychest.formats.form import Form, parse_form
from arraychest.integrity.report import Finding, Kind, Report
from arraychest.progress import Meter
from arraychest.storage.file_names import file_name
from arraychest.storage.store import Store
from arraychest.values.keys import decode_key


class Survey:
    """One inspection's sources, findings and counts.

    Parameters
    ----------
    store
        Has the files.
    catalog
        Over a connection of its own.
    read_data
        Whether data are compared with their checksums.
    meter
        Is told of the bytes of each file that was looked at, while no lock is held.

    Attributes
    ----------
    rows
        The rows of the catalog, whatever is in them.
    entries, nbytes, unchecked, holes
        As `Report` has them.
    unlisted
        The packs whose own directories cannot be read.
    """

    def __init__(self, store: Store, catalog: Catalog, *, read_data: bool, meter: Meter) -> None:
        self.store = store
        self.catalog = catalog
        self.rows = DamagedRows(catalog)
        self.read_data = read_data
        self.meter = meter
        self.findings: list[Finding] = []
        self.entries = self.nbytes = self.unchecked = self.holes = 0
        self.unlisted: set[int] = set()
        # Generations of values whose keys were changed; None: not asked for yet.
        self._renamed: set[Any] | None = None

    def report(self) -> Report:
        """What was found and counted."""
        counts = self.entries, self.nbytes, self.unchecked, self.holes
        return Report(tuple(self.findings), *counts)

    def find(
        self,
        kind: Kind,
        raw: tuple[Any, ...] | None,
        file: str | None,
        message: str,
        start: int = 0,
        nbytes: int = 0,
    ) -> None:
        """Note what is wrong, if its row is still the one that was read."""
        key = None
        if raw is not None:
            if self.rows.of(raw[0]) != raw:
                return  # replaced or deleted since it was read
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                key = decode_key(raw[0], raw[2])
        self.findings.append(Finding(kind, key, file, start, nbytes, message, None, raw))

    def row(self, raw: tuple[Any, ...]) -> tuple[Row, Form] | None:
        """The row and its form, or a finding."""
        row = Row._make(raw)
        numbers = (row.seq, row.generation, row.offset, row.stored)
        try:
            if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
                raise ValueError(f"expected numbers, found {numbers}")
            if (row.pack is None) != (type(row.stamp) is int):
                raise ValueError(f"expected a pack or a stamp, found {row.pack}, {row.stamp}")
            decode_key(row.key, row.exact)
            return row, parse_form(row.form)
        except (ValueError, TypeError, AttributeError) as error:
            name = None
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                name = file_name(row)
            self.find("corrupt row", raw, name, str(error)[:300])
            return None

    def written_as(self, row: Row) -> bytes:
        """The key that the value's file should say."""
        if self._renamed is None:
            found = self.catalog.database.read("SELECT gen FROM renamed")
            self._renamed = {generation for (generation,) in found}
        if row.generation not in self._renamed:
            return row.key
        return self.catalog.facts.written_as(row.generation) or row.key

    def has_pack(self, known: Pack) -> bool:
        """Whether the catalog still says this of a pack."""
        return known in self.catalog.packs()

    def open_file(self, name: str, find: Callable[..., None]) -> int | None:
        """The descriptor of a value's file; None if `find` was told what is wrong with it."""
        try:
            fd = self.store.files.open(name)
        except (FileNotFoundError, NotADirectoryError, BlockingIOError):
            find("missing file", "expected a file, found none")
            return None
        except OSError as error:
            find("foreign file", f"expected a file, found what cannot be opened: {error}")
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            find("foreign file", "expected a file, found something else")
            return None
        return fd
