"""Values in files of their own: is each file the one that its row tells of, and unchanged?"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from arraychest.catalog.record import Row
from arraychest.formats import checksums, npy
from arraychest.formats.form import Form
from arraychest.integrity.block_files import inspect_blocks
from arraychest.integrity.report import Kind
from arraychest.integrity.salvage import Sealed, frame_reader, read_sealed
from arraychest.integrity.survey import Survey
from arraychest.parallel import default_threads
from arraychest.storage.file_names import value_name


def inspect_value(survey: Survey, raw: tuple[Any, ...]) -> None:
    """Look at the file, or the blocks, of the value that a row of the catalog tells of."""
    parsed = survey.row(raw)
    if parsed is None:
        return
    row, form = parsed
    name = value_name(row)

    def find(kind: Kind, message: str, start: int = 0, nbytes: int = 0) -> None:
        survey.find(kind, raw, name, message, start, nbytes)

    if row.is_blocked:
        inspect_blocks(survey, name, row, form, find)
        return
    fd = survey.open_file(name, find)
    if fd is None:
        return
    try:
        _inspect_file(survey, fd, row, form, find)
    except OSError as error:
        find("damaged", f"it cannot be read: {error}", 0, row.stored)
    finally:
        os.close(fd)


def _inspect_file(survey: Survey, fd: int, row: Row, form: Form, find: Callable[..., None]) -> None:
    size = os.fstat(fd).st_size
    if size != row.stored:
        find("wrong size", f"expected {row.stored} bytes, found {size}")
        return
    sealed = read_sealed(fd, size)
    if sealed is None or sealed.stamp != row.stamp:
        find("foreign file", "expected the trailer that was written, found another")
        return
    listed = sealed.listed
    if listed is not None and (listed.key, listed.form) != (survey.written_as(row), row.form):
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
        _inspect_frame(survey, fd, row, form, sealed, find)
        return
    size_ok = form.kind == "pickle" or sealed.end - row.offset == form.nbytes
    head = npy.header(form)
    if row.offset != len(head) or not size_ok or os.pread(fd, len(head), 0) != head:
        find("damaged", "expected the header that was written, found another", 0, row.offset)
        return
    survey.nbytes += len(head)
    if survey.read_data:
        _compare(survey, fd, row, sealed.end, listed.sums, find)


def _inspect_frame(
    survey: Survey, fd: int, row: Row, form: Form, sealed: Sealed, find: Callable[..., None]
) -> None:
    """Compare a compressed array with the checksums in its own file."""
    try:
        reader = frame_reader(fd, form, sealed)
        found = reader.damage(survey.meter.add) if survey.read_data else None
        if found is not None:
            start, end = found
            find("damaged", f"bytes {start} to {end} have changed", start, end - start)
    except ValueError as error:
        find("damaged", str(error)[:300], 0, sealed.end)
    survey.nbytes += row.stored


def _compare(
    survey: Survey, fd: int, row: Row, end: int, sums: bytes, find: Callable[..., None]
) -> None:
    """Compare the data of a file, which end at `end`, with their checksums."""
    nbytes = end - row.offset
    if not sums or survey.catalog.facts.is_written_in_place(row.generation):
        survey.unchecked += bool(nbytes)
        return
    expected = checksums.unpacked(sums)
    piece = checksums.PIECE_BYTES
    found = []
    for group in checksums.in_groups(fd, row.offset, nbytes, default_threads()):
        found += group
        survey.meter.add(len(group) * piece)
    survey.nbytes += row.stored - row.offset
    bad = [at for at, pair in enumerate(zip(expected, found, strict=False)) if len({*pair}) > 1]
    if bad or len(expected) != len(found):
        first, last = (bad[0], bad[-1]) if bad else (0, len(found))
        start, behind = row.offset + first * piece, min(row.offset + (last + 1) * piece, end)
        find("damaged", f"bytes {start} to {behind} have changed", start, behind - start)
