"""What a value file says of itself: its rows, read from the file alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from arraychest.catalog.record import BLOCKED_OFFSET, Pack, Row
from arraychest.files.names import BLOCKS, SPARE
from arraychest.formats import directory, manifest, npy, pack
from arraychest.formats.b2nd import CheckedReader
from arraychest.formats.directory import Listed
from arraychest.formats.form import Form, parse_form
from arraychest.platform.maps import map_file
from arraychest.storage.file_names import generation_of, value_name
from arraychest.storage.reading import frame_shape
from arraychest.storage.store import Store
from arraychest.values.keys import decode_key

# Rows that are read at a time.
PAGE_ROWS = 1024


class Sealed(NamedTuple):
    """What a value's own file says of itself."""

    stamp: int
    end: int
    listed: Listed | None


def read_sealed(fd: int, size: int) -> Sealed | None:
    """Trailer and directory of an open file of `size` bytes; None if it has no trailer."""
    tail = os.pread(fd, npy.TRAILER_BYTES, max(size - npy.TRAILER_BYTES, 0))
    found = npy.parse_trailer(tail, size)
    if found is None:
        return None
    stamp, end = found
    nbytes = size - npy.TRAILER_BYTES - end
    # A key is never so long, and a stranger's file may be of any size.
    listed = None
    if nbytes < 1 << 24:
        listed = directory.decode(os.pread(fd, nbytes, end), stamp, 1)
    return Sealed(stamp, end, None if listed is None else listed[0])


def frame_reader(fd: int, form: Form, sealed: Sealed) -> CheckedReader:
    """A compressed array in an open file; ValueError if it is none of this form."""
    return CheckedReader(map_file(fd, sealed.end), form.dtype, frame_shape(form), sealed.stamp, 1)


def places(end: int, values: list[Listed]) -> Iterator[tuple[int, Listed]]:
    """Where the values lie of a directory that ends at `end`."""
    at = pack.aligned(end)
    for each in values:
        yield at, each
        at += pack.aligned(max(each.nbytes, 0))


def read_all(fd: int, expected: int) -> bytes:
    """The first bytes of a file, `expected` of them if there are."""
    size = min(os.fstat(fd).st_size, expected)
    buffer = bytearray()
    while len(buffer) < size:
        part = os.pread(fd, size - len(buffer), len(buffer))
        if not part:
            break
        buffer += part
    return bytes(buffer)


def listed_rows(store: Store, name: str) -> tuple[list[Row], list[Pack]]:
    """The rows that a value file's own directories tell of, and the pack's record if it is one.

    Nothing for a file that is incomplete, or damaged where it says what it holds.
    """
    generation = generation_of(name)
    if generation is None or name.startswith(SPARE):
        return [], []
    if name.endswith(BLOCKS):
        return _rows_of_blocks(store.folder.fd, name, generation), []
    try:
        fd = store.files.open(name)
    except OSError:
        return [], []
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return [], []
        if name.endswith(".pack"):
            return _rows_of_pack(fd, generation)
        return _rows_of_file(fd, name, generation, status.st_size), []
    except OSError:
        return [], []
    finally:
        os.close(fd)


def _rows_of_file(fd: int, name: str, generation: int, size: int) -> list[Row]:
    sealed = read_sealed(fd, size)
    if sealed is None or sealed.listed is None:
        return []
    listed = sealed.listed
    try:
        form = parse_form(listed.form)
        decode_key(listed.key, listed.exact)
        head = npy.header(form)
        framed = name.endswith(".b2nd")
        if framed:
            frame_reader(fd, form, sealed)
        elif form.kind != "pickle" and len(head) + form.nbytes != sealed.end:
            return []
        row = Row(
            listed.key,
            listed.seq,
            listed.exact,
            listed.form,
            generation,
            None,
            0 if framed else len(head),
            size,
            sealed.stamp,
        )
        return [row] if _same_place(row, name) else []
    except (ValueError, TypeError, AttributeError, OverflowError):
        return []


def _same_place(row: Row, name: str) -> bool:
    """Whether a file lies where a row looks for it, apart from what it is called for people.

    A value whose key was changed has the new key in its file's name, and the old one inside.
    """
    found, told = value_name(row), name
    same_folder = os.path.dirname(found) == os.path.dirname(told)
    return same_folder and found.rpartition("-")[2] == told.rpartition("-")[2]


def _rows_of_blocks(chest: int, name: str, generation: int) -> list[Row]:
    try:
        folder = manifest.open_folder(name, chest)
    except OSError:
        return []
    try:
        told = manifest.read(folder)
        decode_key(told.key, told.exact)
        for index in manifest.indices(told.chunks):
            known = told.block(index)
            file = manifest.block_name(index, known.offset)
            if os.stat(file, dir_fd=folder, follow_symlinks=False).st_size != known.stored:
                return []
        row = Row(
            told.key,
            told.seq,
            told.exact,
            told.form,
            generation,
            None,
            BLOCKED_OFFSET,
            told.stored + len(manifest.encode(told)),
            told.stamp,
        )
        return [row] if value_name(row) == name else []
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return []
    finally:
        os.close(folder)


def _rows_of_pack(fd: int, identity: int) -> tuple[list[Row], list[Pack]]:
    data = read_all(fd, os.fstat(fd).st_size)
    stamp = pack.stamp_of(data[: pack.HEADER_BYTES])
    if stamp is None:
        return [], []
    directories = directory.find_all(data, stamp, len(data) // pack.ALIGN)
    rows: dict[int, Row] = {}
    own = end = pack.HEADER_BYTES
    for start, behind, values in directories:
        # What an earlier one says of bytes that this one was written over is no longer true.
        rows = {at: row for at, row in rows.items() if at + row.stored <= start}
        own += pack.aligned(behind - start)
        end = max(end, pack.aligned(behind))
        for at, each in places(behind, values):
            try:
                good = parse_form(each.form).nbytes == each.nbytes and at + each.nbytes <= len(data)
                decode_key(each.key, each.exact)
            except (ValueError, TypeError, AttributeError):
                continue
            if good:
                rows[at] = Row(
                    each.key,
                    each.seq,
                    each.exact,
                    each.form,
                    each.generation,
                    identity,
                    at,
                    each.nbytes,
                    None,
                )
                end = max(end, at + pack.aligned(each.nbytes))
    return list(rows.values()), [Pack(identity, stamp, min(end, len(data)), 0, 1, own)]
