"""Blocked arrays: is each block the one that the manifest tells of, and unchanged?"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable

from arraychest.catalog.record import Row
from arraychest.formats import checksums, manifest, npy
from arraychest.formats.form import Form
from arraychest.formats.manifest import Manifest
from arraychest.integrity.salvage import frame_reader, read_sealed
from arraychest.integrity.survey import Survey
from arraychest.parallel import default_threads
from arraychest.sharing.locks import hold_folder


def inspect_blocks(
    survey: Survey, name: str, row: Row, form: Form, find: Callable[..., None]
) -> None:
    """Compare each block of a blocked array with what its manifest says."""
    try:
        folder = manifest.open_folder(name, survey.store.folder.fd)
    except OSError as error:
        kind = "missing file" if error.errno == errno.ENOENT else "foreign file"
        find(kind, f"expected a folder of blocks, found none: {error.strerror}")
        return
    try:
        # It stays until it was looked at.
        hold_folder(folder)
        told = manifest.read(folder)
        manifest.check(told, form)
        if (told.key, told.form, told.stamp) != (survey.written_as(row), row.form, row.stamp):
            find("corrupt row", "expected the manifest of this value, found another's")
            return
        stored = told.stored + len(manifest.encode(told))
        if stored != row.stored:
            find("wrong size", f"expected {row.stored} bytes in all files, found {stored}")
            return
        for index in manifest.indices(told.chunks):
            _inspect_block(survey, folder, told, index, form, find)
    except FileNotFoundError:
        find("missing file", "expected a manifest, found none")
    except (OSError, ValueError) as error:
        find("damaged", f"the blocks cannot be read: {error}"[:300])
    finally:
        os.close(folder)


def _inspect_block(
    survey: Survey,
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
        survey.nbytes += size
        if not known.offset:
            reader = frame_reader(fd, form, sealed)
            if survey.read_data and (bad := reader.damage(survey.meter.add)) is not None:
                find("damaged", f"bytes {bad[0]} to {bad[1]} of block {name} have changed")
            return
        head = npy.header(form)
        if len(head) + form.nbytes != sealed.end or os.pread(fd, len(head), 0) != head:
            find("damaged", f"expected the header of block {name}, found another")
        elif survey.read_data:
            found = zlib.crc32(checksums.of_file(fd, len(head), form.nbytes, default_threads()))
            survey.meter.add(form.nbytes)
            if found != known.stamp >> 30:
                find("damaged", f"the data of block {name} have changed")
    except ValueError as error:
        find("damaged", f"block {name}: {error}"[:300])
    finally:
        os.close(fd)
