"""Packs: does each have the values that its rows and its own directories tell of, unchanged?"""

from __future__ import annotations

import os
from typing import Any

from arraychest.catalog.record import Pack
from arraychest.formats import checksums, directory, pack
from arraychest.formats.directory import Listed
from arraychest.integrity.report import Kind
from arraychest.integrity.salvage import places, read_all
from arraychest.integrity.survey import Survey
from arraychest.storage.file_names import pack_name


def inspect_pack(survey: Survey, identity: int) -> None:
    """Look at a pack, and at each value that lies in it."""
    known, rows = survey.rows.in_pack(identity)
    if known is None:
        return
    name = pack_name(identity)

    def find_each(kind: Kind, message: str) -> None:
        if not rows and survey.has_pack(known):
            survey.find(kind, None, name, message)
        for raw in rows:
            survey.find(kind, raw, name, message)

    fd = survey.open_file(name, find_each)
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
    survey.holes += max(0, known.bytes - known.own - live)
    directories = directory.find_all(data, known.stamp, len(data) // pack.ALIGN)
    own = pack.HEADER_BYTES + sum(
        pack.aligned(end - start) for start, end, _ in directories if start < known.bytes
    )
    if live != known.live and survey.has_pack(known):
        message = f"expected {live} bytes in use, found that it says {known.live}"
        survey.find("pack record", None, name, message)
    _inspect_values(survey, known, rows, data, directories)
    if own < known.own and rows and survey.has_pack(known):
        survey.unlisted.add(identity)
        message = f"{known.own - own} bytes of its directories cannot be read"
        survey.find("damaged", None, name, message, 0, known.bytes)


def _inspect_values(
    survey: Survey,
    known: Pack,
    rows: list[tuple[Any, ...]],
    data: bytes,
    directories: list[tuple[int, int, list[Listed]]],
) -> None:
    name = pack_name(known.id)
    listed = {at: each for start, end, values in directories for at, each in places(end, values)}
    # Otherwise a value may be listed where it cannot be read.
    own = pack.HEADER_BYTES + sum(pack.aligned(end - start) for start, end, _ in directories)
    all_listed = known.own <= own
    if survey.read_data:
        survey.nbytes += len(data)
    unchecked = False
    end = pack.HEADER_BYTES
    for raw in rows:
        parsed = survey.row(raw)
        if parsed is None:
            continue
        row, form = parsed
        at, behind = row.offset, row.offset + row.stored
        if at % pack.ALIGN or at < pack.HEADER_BYTES or form.nbytes != row.stored:
            survey.find("corrupt row", raw, name, f"expected a place in the pack, found {at}")
        elif behind > len(data):
            message = f"expected bytes up to {behind}, found {len(data)}"
            survey.find("wrong size", raw, name, message, at, row.stored)
        elif at < end:
            message = f"expected a place behind {end}, found {at}"
            survey.find("overlap", raw, name, message, at, row.stored)
        elif at in listed and (listed[at].key, listed[at].form) != (
            survey.written_as(row),
            row.form,
        ):
            message = f"expected {listed[at]!r:.200} as the pack says, found {raw!r:.200}"
            survey.find("corrupt row", raw, name, message, at, row.stored)
        elif at not in listed and all_listed:
            message = f"expected a place that the pack lists, found {at}"
            survey.find("corrupt row", raw, name, message, at, row.stored)
        elif at not in listed or not listed[at].sums:
            unchecked = True
        elif survey.read_data and checksums.of_values([data[at:behind]]) != listed[at].sums:
            message = f"bytes {at} to {behind} have changed"
            survey.find("damaged", raw, name, message, at, row.stored)
        end = max(end, at + pack.aligned(row.stored))
    survey.unchecked += unchecked and survey.read_data
