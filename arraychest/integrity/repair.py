"""`repair`: what `integrity` finds is mended as far as it can be, and kept aside otherwise."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

import numpy as np

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import Database
from arraychest.catalog.damaged import DamagedRows
from arraychest.catalog.record import Pack, Row
from arraychest.engine.commit import logger
from arraychest.engine.engine import Engine
from arraychest.errors import SpillError
from arraychest.files.files import Files
from arraychest.files.names import PACKS, QUARANTINE
from arraychest.formats import pack
from arraychest.formats.form import parse_form
from arraychest.integrity.inspection import Inspection
from arraychest.integrity.report import Finding, Report
from arraychest.integrity.salvage import listed_rows
from arraychest.integrity.verify import bytes_to_read
from arraychest.progress import Asked, measured
from arraychest.storage.file_names import generation_of, pack_name, value_name
from arraychest.storage.store import Store
from arraychest.text import amount

# Times that a repair looks whether what it did has brought something else to light.
_MORE_LOOKS = 3

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def repair(engine: Engine, progress: Asked = False) -> Report:
    """See `Chest.repair`."""
    engine.session.begin_writing()
    engine.flush()
    # Reading everything is what takes time; what is found is mended without a stop.
    with measured(progress, "repair", lambda: bytes_to_read(engine)) as meter:
        inspection = Inspection(engine, read_data=True, meter=meter)
        found = inspection.report()
    findings = _Repair(engine, inspection).mended(found.findings)
    # Where a row is gone its file is one without a row, which may be restored, and so on.
    more = findings
    for _ in range(_MORE_LOOKS):
        if not any(finding.action for finding in more):
            break
        again = Inspection(engine, read_data=False)
        left = [each for each in again.report().findings if each.kind != "unknown file"]
        more = _Repair(engine, again).mended(tuple(left))
        findings += more
    logger.info("repaired %s: %s", engine.session.path, amount(len(findings), "finding"))
    return found._replace(findings=tuple(findings))


class _Repair:
    """Mends what an inspection found, and says what it did."""

    def __init__(self, engine: Engine, inspection: Inspection) -> None:
        self._engine = engine
        self._inspection = inspection
        self._store: Store = engine.session.open_store()

    def mended(self, findings: tuple[Finding, ...]) -> list[Finding]:
        """The findings, each with what was done about it.

        Raises
        ------
        SpillError
            The disk is full, say; what was not mended is as it was.
        """
        engine, store = self._engine, self._store
        done = list(findings)
        if any(finding.kind == "catalog" for finding in findings):
            hint = "nothing; close the chest, then `arraychest.repair` makes a new catalog"
            return [replace(finding, action=hint) for finding in findings]
        try:
            with (
                engine.session.at_work(),
                engine.session.committer.committing(),
                contextlib.closing(
                    Database(store.folder, writable=False, durable=False)
                ) as database,
            ):
                database.take_any_text()
                self._catalog = Catalog(database)
                self._rows = DamagedRows(self._catalog)
                self._amend(done)
                with engine.session.writer.lock:
                    engine.session.committer.forget(store)
            for identity in self._inspection.unlisted:
                with engine.session.at_work():
                    engine.session.compactor.compact_pack(identity)
                if not store.packs.has(identity):
                    self._say(done, pack_name(identity), "its values moved to another pack")
        except OSError as error:
            raise SpillError(f"the chest could not be repaired: {error}") from error
        return done

    def _say(self, done: list[Finding], name: str | None, action: str) -> None:
        for at, finding in enumerate(done):
            if finding.action is None and finding.key is None and finding.file == name:
                done[at] = replace(finding, action=action)

    def _amend(self, done: list[Finding]) -> None:
        """Commit what can be said of the findings; the catalog names what is there, and no more."""
        store, raw_rows = self._store, self._rows
        # Keys whose rows go; what was found in files that takes their place; files to unlink.
        deleted: list[Any] = []
        rows: dict[bytes, Row] = {}
        packs: dict[int, Pack] = {}
        unlink: list[str] = []
        for at, finding in enumerate(done):
            raw = finding._raw
            if raw is None:
                continue
            if raw_rows.of(raw[0]) != raw:
                done[at] = replace(finding, action="nothing; it was replaced meanwhile")
                continue
            deleted.append(raw[0])
        for at, finding in enumerate(done):
            raw, name = finding._raw, finding.file
            if finding.action is not None or name is None:
                if finding.action is None and raw is not None:
                    done[at] = replace(finding, action="the entry is gone")
                continue
            if raw is None and finding.kind != "orphan":
                continue
            found: list[Row] = []
            if finding.kind in ("orphan", "corrupt row"):
                told, own = listed_rows(store, name)
                found = [
                    row
                    for row in told
                    if (raw is None or row.pack is None or row.offset == raw[6])
                    and (row.pack is not None or value_name(row) == name)
                    and row.key not in rows
                    and (row.key in deleted or raw_rows.of(row.key) is None)
                ]
                if raw is None:
                    packs.update((known.id, known) for known in own if found)
            if found:
                rows.update((row.key, row) for row in found)
                done[at] = replace(finding, action=_restored(len(found)))
            elif raw is None:
                done[at] = replace(finding, action=f"moved to {self._move(name)}")
            else:
                kept = self._save(finding)
                if kept is not None and raw[5] is None:
                    unlink.append(name)
                where = "" if kept is None else f", what is left was moved to {kept}"
                done[at] = replace(finding, action=f"the entry is gone{where}")
        self._restore_lost_rows(done, rows)
        bad = {finding.file for finding in done if finding.kind == "foreign file"}
        dropped = self._count_packs(deleted, rows, packs, bad)
        for identity in {*packs, *dropped}:
            self._say(done, pack_name(identity), "the catalog says what is there")
        with self._engine.session.writer.lock:
            first = self._engine.session.index.next_places(len(rows))
        in_order = sorted(rows.values(), key=lambda row: (row.seq, row.generation))
        placed = [row._replace(seq=first + number) for number, row in enumerate(in_order)]
        store.amend(deleted, placed, list(packs.values()), dropped)
        for identity in dropped:
            if store.files.exists(pack_name(identity)):
                self._move(pack_name(identity))
        store.files.remove(unlink, keep_spares=False)

    def _restore_lost_rows(self, done: list[Finding], rows: dict[bytes, Row]) -> None:
        """Add to `rows` what packs list and lost or corrupt rows said."""
        # Those of which a row says where they lie, and not the bytes themselves, is wrong.
        kinds = ("corrupt row", "overlap", "wrong size")
        raws = [each._raw[0] for each in done if each._raw and each.kind in kinds]
        files = {finding.file for finding in done if finding.file is not None}
        for name in sorted(file for file in files if file.startswith(PACKS)):
            lost = {row.key: row for row in self._lost_rows(name, raws, rows)}
            rows.update(lost)
            action = _restored(len(lost))
            for at, finding in enumerate(done if lost else []):
                if (finding.kind, finding.file) == ("pack record", name):
                    done[at] = replace(finding, action=action)
                elif finding._raw is not None and finding._raw[0] in lost:
                    done[at] = replace(finding, action="restored from the file")

    def _lost_rows(self, name: str, deleted: list[Any], rows: dict[bytes, Row]) -> list[Row]:
        """Values of a pack whose rows are lost: its record says of how many bytes.

        Where values were deleted that still lie in it, none can be told from those.
        """
        known, raws = self._rows.in_pack(generation_of(name) or 0)
        if known is None:
            return []
        sizes = [raw[7] for raw in raws if raw[0] not in deleted and type(raw[7]) is int]
        sizes += [row.stored for row in rows.values() if row.pack == known.id]
        missing = known.live - sum(map(pack.aligned, sizes))
        if missing <= 0:
            return []
        newest: dict[bytes, Row] = {}
        for row in sorted(listed_rows(self._store, name)[0], key=lambda row: row.generation):
            if row.offset + row.stored <= known.bytes:
                newest[row.key] = row
        lost = [
            row
            for key, row in newest.items()
            if key not in rows and (key in deleted or self._rows.of(key) is None)
        ]
        return lost if sum(pack.aligned(row.stored) for row in lost) == missing else []

    def _count_packs(
        self,
        deleted: list[Any],
        rows: dict[bytes, Row],
        packs: dict[int, Pack],
        bad: set[str | None],
    ) -> list[int]:
        """Add to `packs` those whose record has to change; returns those that are gone or bad."""
        dropped = []
        for known in [*self._catalog.packs(), *packs.values()]:
            name = pack_name(known.id)
            gone = not self._store.files.exists(name)
            # Not one that somebody appends to, or only now has begun.
            if gone or (name in bad and self._store.packs.begin_compaction(known.id)):
                dropped.append(known.id)
                continue
            _, raws = self._rows.in_pack(known.id)
            sizes = [raw[7] for raw in raws if raw[0] not in deleted and raw[0] not in rows]
            sizes += [row.stored for row in rows.values() if row.pack == known.id]
            live = sum(pack.aligned(size) for size in sizes if type(size) is int)
            if live != known.live:
                packs[known.id] = known._replace(live=live)
        return dropped

    # --- quarantine ----------------------------------------------------------------------------

    def _place(self, name: str) -> str:
        """A free name in the quarantine for a file."""
        files = self._store.files
        base, number = os.path.basename(name), 0
        while files.exists(f"{QUARANTINE}/{base}"):
            number += 1
            base = f"{number}-{os.path.basename(name)}"
        return f"{QUARANTINE}/{base}"

    def _save(self, finding: Finding) -> str | None:
        """Keep what is left of a value in the quarantine; None if nothing is."""
        files, name, raw = self._store.files, finding.file, finding._raw
        if name is None or raw is None or not files.exists(name):
            return None
        if raw[5] is None:
            kept = self._place(name)
            # Linked, not renamed: after a crash at this point nothing has changed.
            try:
                files.link(files, name, kept)
                files.loose.discard(kept)  # it needs no row
            except OSError:
                files.rename(name, kept)
            return kept
        # Of a pack only these bytes: others' values lie beside them.
        try:
            fd = files.open(name)
            try:
                data = os.pread(fd, raw[7], raw[6])
            finally:
                os.close(fd)
            form = parse_form(raw[3])
            array = np.frombuffer(data, np.uint8)
            if len(data) == form.nbytes:
                array = pack.view(array, form, 0)
        except (OSError, ValueError, TypeError, OverflowError):
            return None
        kept = self._place(f"{raw[4]:x}.npy")
        files.with_room(lambda: _keep(files, kept, array))
        return kept

    def _move(self, name: str) -> str:
        kept = self._place(name)
        self._store.files.rename(name, kept)
        return kept


def _restored(values: int) -> str:
    return f"{amount(values, 'value')} restored from the file"


def _keep(files: Files, name: str, array: np.ndarray) -> None:
    """Write an array to a new file of the quarantine; nothing is left where that fails."""
    files.make_folder(QUARANTINE)
    fd = files.open(name, _NEW_FILE)
    try:
        with os.fdopen(fd, "wb") as file:
            np.save(file, array, allow_pickle=False)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=files.folder.fd)
        raise
