"""Is all that lies on disk what was stored?  `verify` looks; `repair` mends what can be mended.

Everything is read from the catalog by a connection of its own, and from the files: what this
process keeps in memory plays no part.  Others may write meanwhile.  A file goes only after its row,
so what looks wrong is looked at again: it is a finding only if the row is still the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Callable
from typing import Any

from arraychest.catalog.catalog import Catalog
from arraychest.catalog.connection import Database
from arraychest.catalog.damaged import DamagedRows
from arraychest.catalog.record import Pack, Row
from arraychest.engine.engine import Engine
from arraychest.errors import ChestFormatError
from arraychest.files.names import SPARE
from arraychest.formats import checksums, directory, manifest, npy, pack
from arraychest.formats.directory import Listed
from arraychest.formats.form import Form, parse_form
from arraychest.formats.manifest import Manifest
from arraychest.integrity.report import Finding, Kind, Report
from arraychest.integrity.salvage import (
    PAGE_ROWS,
    Sealed,
    frame_reader,
    open_regular,
    places,
    read_all,
    read_sealed,
)
from arraychest.parallel import default_threads
from arraychest.progress import SILENT, Meter
from arraychest.sharing.locks import hold_folder
from arraychest.storage.file_names import file_name, generation_of, pack_name, value_name
from arraychest.storage.sweeping import sessions
from arraychest.values.keys import decode_key


class Inspection:
    """One look at everything.

    Parameters
    ----------
    meter
        Is told of the bytes of each file that was looked at, while no lock is held.
    """

    def __init__(self, engine: Engine, *, read_data: bool, meter: Meter = SILENT) -> None:
        self._engine = engine
        self._meter = meter
        self._read_data = read_data
        self._findings: list[Finding] = []
        self._entries = self._nbytes = self._unchecked = self._holes = 0
        self.unlisted: set[int] = set()
        # Generations of values whose keys were changed; None: not asked for yet.
        self._renamed: set[Any] | None = None

    def report(self) -> Report:
        """Look at everything."""
        engine = self._engine
        with engine.session.writer.lock:
            engine.session.check_open()
            nothing = engine.session.temporary and engine.session.path is None
        if not nothing:
            self._store = engine.session.open_store()
            try:
                database = Database(self._store.folder, writable=False, durable=False)
            except ChestFormatError as error:
                self._find("catalog", None, None, str(error))
            else:
                with contextlib.closing(database):
                    # One row that cannot be read must not hide the others.
                    database.take_any_text()
                    self._catalog = Catalog(database)
                    self._rows = DamagedRows(self._catalog)
                    self._inspect()
        return Report(
            tuple(self._findings), self._entries, self._nbytes, self._unchecked, self._holes
        )

    def _inspect(self) -> None:
        for problem in self._catalog.database.problems():
            self._find("catalog", None, None, f"expected a sound database, found: {problem}")
        if self._findings:
            return
        for raw in self._rows.strays():
            kind: Kind = "corrupt row"
            message = f"expected a row that names a key and a pack, found {raw!r:.200}"
            self._find(kind, raw, None, message)
        after = b""
        while page := self._rows.after(after, PAGE_ROWS):
            for raw in page:
                self._entries += 1
                if raw[5] is None:
                    before = self._meter.done
                    self._inspect_value(raw)
                    if type(raw[7]) is int:
                        self._meter.reach(before + raw[7])
            after = page[-1][0]
        for known in self._catalog.packs():
            self._inspect_pack(known.id)
            self._meter.add(known.bytes)
        self._inspect_files()

    def _find(
        self,
        kind: Kind,
        raw: tuple[Any, ...] | None,
        file: str | None,
        message: str,
        start: int = 0,
        nbytes: int = 0,
    ) -> None:
        key = None
        if raw is not None:
            if self._rows.of(raw[0]) != raw:
                return  # replaced or deleted since it was read
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                key = decode_key(raw[0], raw[2])
        self._findings.append(Finding(kind, key, file, start, nbytes, message, None, raw))

    # --- rows --------------------------------------------------------------------------------

    def _row(self, raw: tuple[Any, ...]) -> tuple[Row, Form] | None:
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
            self._find("corrupt row", raw, name, str(error)[:300])
            return None

    # --- values in files of their own --------------------------------------------------------

    def _inspect_value(self, raw: tuple[Any, ...]) -> None:
        parsed = self._row(raw)
        if parsed is None:
            return
        row, form = parsed
        name = value_name(row)

        def find(kind: Kind, message: str, start: int = 0, nbytes: int = 0) -> None:
            self._find(kind, raw, name, message, start, nbytes)

        if row.is_blocked:
            self._inspect_blocks(name, row, form, find)
            return
        fd = open_regular(self._store.files, name, find)
        if fd is None:
            return
        try:
            self._inspect_file(fd, row, form, find)
        except OSError as error:
            find("damaged", f"it cannot be read: {error}", 0, row.stored)
        finally:
            os.close(fd)

    def _written_as(self, row: Row) -> bytes:
        """The key that the value's file should say."""
        if self._renamed is None:
            found = self._catalog.database.read("SELECT gen FROM renamed")
            self._renamed = {generation for (generation,) in found}
        if row.generation not in self._renamed:
            return row.key
        return self._catalog.facts.written_as(row.generation) or row.key

    def _inspect_file(self, fd: int, row: Row, form: Form, find: Callable[..., None]) -> None:
        size = os.fstat(fd).st_size
        if size != row.stored:
            find("wrong size", f"expected {row.stored} bytes, found {size}")
            return
        sealed = read_sealed(fd, size)
        if sealed is None or sealed.stamp != row.stamp:
            find("foreign file", "expected the trailer that was written, found another")
            return
        listed = sealed.listed
        if listed is not None and (listed.key, listed.form) != (self._written_as(row), row.form):
            find(
                "corrupt row",
                f"expected key {listed.key!r:.100} of form {listed.form:.100} as the file says, "
                f"found {row.key!r:.100} of form {row.form:.100}",
            )
            return
        if listed is None:
            find("damaged", "its directory cannot be read", sealed.end, size - sealed.end)
            return
        if row.is_frame:
            self._inspect_frame(fd, row, form, sealed, find)
            return
        size_ok = form.kind == "pickle" or sealed.end - row.offset == form.nbytes
        head = npy.header(form)
        if row.offset != len(head) or not size_ok or os.pread(fd, len(head), 0) != head:
            find("damaged", "expected the header that was written, found another", 0, row.offset)
            return
        self._nbytes += len(head)
        if self._read_data:
            self._compare_file(fd, row, sealed.end, listed.sums, find)

    def _inspect_frame(
        self, fd: int, row: Row, form: Form, sealed: Sealed, find: Callable[..., None]
    ) -> None:
        """Compare a compressed array with the checksums in its own file."""
        try:
            reader = frame_reader(fd, form, sealed)
            found = reader.damage(self._meter.add) if self._read_data else None
            if found is not None:
                start, end = found
                find("damaged", f"bytes {start} to {end} have changed", start, end - start)
        except ValueError as error:
            find("damaged", str(error)[:300], 0, sealed.end)
        self._nbytes += row.stored

    def _inspect_blocks(self, name: str, row: Row, form: Form, find: Callable[..., None]) -> None:
        """Compare each block of a blocked array with what its manifest says."""
        try:
            folder = manifest.open_folder(name, self._store.folder.fd)
        except OSError as error:
            kind = "missing file" if error.errno == errno.ENOENT else "foreign file"
            find(kind, f"expected a folder of blocks, found none: {error.strerror}")
            return
        try:
            # It stays until it was looked at.
            hold_folder(folder)
            told = manifest.read(folder)
            manifest.check(told, form)
            if (told.key, told.form, told.stamp) != (self._written_as(row), row.form, row.stamp):
                find("corrupt row", "expected the manifest of this value, found another's")
                return
            stored = told.stored + len(manifest.encode(told))
            if stored != row.stored:
                find("wrong size", f"expected {row.stored} bytes in all files, found {stored}")
                return
            for index in manifest.indices(told.chunks):
                self._inspect_block(folder, told, index, form, find)
        except FileNotFoundError:
            find("missing file", "expected a manifest, found none")
        except (OSError, ValueError) as error:
            find("damaged", f"the blocks cannot be read: {error}"[:300])
        finally:
            os.close(folder)

    def _inspect_block(
        self,
        folder: int,
        told: Manifest,
        index: tuple[int, ...],
        form: Form,
        find: Callable[..., None],
    ) -> None:
        known = told.block(index)
        name = manifest.block_name(index, known.offset)
        form = form._replace(shape=manifest.block_shape(told.chunks, index), kind="array")
        try:
            fd = manifest.open_in(folder, name)
        except OSError as error:
            find("missing file", f"expected block {name}, found none: {error.strerror}")
            return
        try:
            size = os.fstat(fd).st_size
            sealed = read_sealed(fd, size)
            if size != known.stored or sealed is None or sealed.stamp != known.stamp:
                find("foreign file", f"expected block {name} as it was written, found another")
                return
            self._nbytes += size
            if not known.offset:
                reader = frame_reader(fd, form, sealed)
                if self._read_data and (bad := reader.damage(self._meter.add)) is not None:
                    find("damaged", f"bytes {bad[0]} to {bad[1]} of block {name} have changed")
                return
            head = npy.header(form)
            if len(head) + form.nbytes != sealed.end or os.pread(fd, len(head), 0) != head:
                find("damaged", f"expected the header of block {name}, found another")
            elif self._read_data:
                found = zlib.crc32(checksums.of_file(fd, len(head), form.nbytes, default_threads()))
                self._meter.add(form.nbytes)
                if found != known.stamp >> 30:
                    find("damaged", f"the data of block {name} have changed")
        except ValueError as error:
            find("damaged", f"block {name}: {error}"[:300])
        finally:
            os.close(fd)

    def _compare_file(
        self, fd: int, row: Row, end: int, sums: bytes, find: Callable[..., None]
    ) -> None:
        """Compare the data of a file, which end at `end`, with their checksums."""
        nbytes = end - row.offset
        if not sums or self._catalog.facts.is_written_in_place(row.generation):
            self._unchecked += bool(nbytes)
            return
        expected = checksums.unpacked(sums)
        piece = checksums.PIECE_BYTES
        found = []
        for group in checksums.in_groups(fd, row.offset, nbytes, default_threads()):
            found += group
            self._meter.add(len(group) * piece)
        self._nbytes += row.stored - row.offset
        bad = [at for at, pair in enumerate(zip(expected, found, strict=False)) if len({*pair}) > 1]
        if bad or len(expected) != len(found):
            first, last = (bad[0], bad[-1]) if bad else (0, len(found))
            start, behind = row.offset + first * piece, min(row.offset + (last + 1) * piece, end)
            find("damaged", f"bytes {start} to {behind} have changed", start, behind - start)

    # --- packs -------------------------------------------------------------------------------

    def _inspect_pack(self, identity: int) -> None:
        known, rows = self._rows.in_pack(identity)
        if known is None:
            return
        name = pack_name(identity)

        def find_each(kind: Kind, message: str) -> None:
            if not rows and self._has_pack(known):
                self._find(kind, None, name, message)
            for raw in rows:
                self._find(kind, raw, name, message)

        fd = open_regular(self._store.files, name, find_each)
        if fd is None:
            return
        try:
            data = read_all(fd, known.bytes)
        except OSError as error:
            find_each("damaged", f"it cannot be read: {error}")
            return
        finally:
            os.close(fd)
        if pack.stamp_of(data[: pack.HEADER_BYTES]) != known.stamp:
            find_each("foreign file", "expected the header that was written, found another")
            return
        live = sum(pack.aligned(raw[7]) for raw in rows if type(raw[7]) is int)
        self._holes += max(0, known.bytes - known.own - live)
        directories = directory.find_all(data, known.stamp, len(data) // pack.ALIGN)
        own = pack.HEADER_BYTES + sum(
            pack.aligned(end - start) for start, end, _ in directories if start < known.bytes
        )
        if live != known.live and self._has_pack(known):
            message = f"expected {live} bytes in use, found that it says {known.live}"
            self._find("pack record", None, name, message)
        self._inspect_packed(known, rows, data, directories)
        if own < known.own and rows and self._has_pack(known):
            self.unlisted.add(identity)
            message = f"{known.own - own} bytes of its directories cannot be read"
            self._find("damaged", None, name, message, 0, known.bytes)

    def _has_pack(self, known: Pack) -> bool:
        return known in self._catalog.packs()

    def _inspect_packed(
        self,
        known: Pack,
        rows: list[tuple[Any, ...]],
        data: bytes,
        directories: list[tuple[int, int, list[Listed]]],
    ) -> None:
        name = pack_name(known.id)
        listed = {
            at: each for start, end, values in directories for at, each in places(end, values)
        }
        # Otherwise a value may be listed where it cannot be read.
        own = pack.HEADER_BYTES + sum(pack.aligned(end - start) for start, end, _ in directories)
        all_listed = known.own <= own
        if self._read_data:
            self._nbytes += len(data)
        unchecked = False
        end = pack.HEADER_BYTES
        for raw in rows:
            parsed = self._row(raw)
            if parsed is None:
                continue
            row, form = parsed
            at, behind = row.offset, row.offset + row.stored
            if at % pack.ALIGN or at < pack.HEADER_BYTES or form.nbytes != row.stored:
                self._find("corrupt row", raw, name, f"expected a place in the pack, found {at}")
            elif behind > len(data):
                message = f"expected bytes up to {behind}, found {len(data)}"
                self._find("wrong size", raw, name, message, at, row.stored)
            elif at < end:
                message = f"expected a place behind {end}, found {at}"
                self._find("overlap", raw, name, message, at, row.stored)
            elif at in listed and (listed[at].key, listed[at].form) != (
                self._written_as(row),
                row.form,
            ):
                message = f"expected {listed[at]!r:.200} as the pack says, found {raw!r:.200}"
                self._find("corrupt row", raw, name, message, at, row.stored)
            elif at not in listed and all_listed:
                message = f"expected a place that the pack lists, found {at}"
                self._find("corrupt row", raw, name, message, at, row.stored)
            elif at not in listed or not listed[at].sums:
                unchecked = True
            elif self._read_data and checksums.of_values([data[at:behind]]) != listed[at].sums:
                message = f"bytes {at} to {behind} have changed"
                self._find("damaged", raw, name, message, at, row.stored)
            end = max(end, at + pack.aligned(row.stored))
        self._unchecked += unchecked and self._read_data

    # --- files without rows ------------------------------------------------------------------

    def _inspect_files(self) -> None:
        store, catalog = self._store, self._catalog
        present = list(store.files.names())

        def without_row(names: list[str]) -> list[str]:
            alive, _ = sessions(store, catalog)
            alive.add(store.catalog.changes.session)
            named = catalog.file_generations() | catalog.pack_ids()
            leaving = {name for number in alive for name in catalog.changes.gone_files(number)}
            left = []
            for name in names:
                generation = generation_of(name)
                if generation is not None:
                    writer = generation >> 32
                    if name.startswith(SPARE):
                        writer = int(name.split("/")[1], 16)
                    if generation in named and not name.startswith(SPARE):
                        continue
                    if writer in alive or name in leaving:
                        continue
                if store.files.exists(name):
                    left.append(name)
            return left

        suspects = without_row(present)
        if not suspects:
            return
        # While nobody commits, or removes what a commit has put out of use.
        held: Any = contextlib.nullcontext()
        if self._engine.session.is_writer():
            held = self._engine.session.committer.committing()
        with held:
            suspects = without_row(suspects)
        for name in suspects:
            if generation_of(name) is None:
                self._find("unknown file", None, name, "expected files of values only")
            else:
                self._find("orphan", None, name, "expected a row that names it, found none")
