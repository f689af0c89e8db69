"""Linking: values of another chest become values of this one, by a second name of their file."""

from __future__ import annotations

import errno
import os

from arraychest.catalog.record import Pack, Row
from arraychest.files.files import Files
from arraychest.formats import npy, pack
from arraychest.formats.form import Form
from arraychest.storage.file_names import pack_name, value_name
from arraychest.storage.generations import Generations
from arraychest.storage.reading import is_packed_well
from arraychest.values.keys import KeyCode


class Linker:
    """Links files of other chests into one.  Safe from many threads.

    Parameters
    ----------
    files, generations
        The chest's.
    """

    def __init__(self, files: Files, generations: Generations) -> None:
        self._files = files
        self._generations = generations

    def adopt(self, source: Files, row: Row, form: Form, code: KeyCode | None = None) -> Row:
        """Link a value's file of another chest into this one; returns the row that would name it.

        With `code` it is the row of this key.
        """
        theirs = value_name(row)
        if row.stamp is None or row.is_blocked:
            raise OSError(errno.EINVAL, "expected a value with a file of its own", theirs)
        mine = row._replace(generation=self._generations.new())
        if code is not None:
            mine = mine._replace(key=code.canonical, exact=code.exact)
        name = value_name(mine)
        self._files.link(source, theirs, name)
        # The other chest may have made a spare of it meanwhile, and have begun to overwrite it.
        # From here on it sees the second name, and leaves the file alone.
        try:
            fd = self._files.open(name)
            try:
                size = os.fstat(fd).st_size
                tail = os.pread(fd, npy.TRAILER_BYTES, max(size - npy.TRAILER_BYTES, 0))
                stamp, end = npy.parse_trailer(tail, size) or (None, 0)
            finally:
                os.close(fd)
            fits = end - row.offset == form.nbytes or form.kind == "pickle" or row.is_frame
            if size != row.stored or stamp != row.stamp or not fits:
                raise OSError(errno.ESTALE, "expected another value", theirs)
        except OSError:
            self._files.remove([name], keep_spares=False)
            raise
        return mine

    def adopt_pack(self, source: Files, theirs: Pack) -> Pack:
        """Link another chest's pack into this one; never appended to here."""
        mine = Pack(self._generations.new(), theirs.stamp, theirs.bytes, 0, 1, theirs.own)
        name = pack_name(mine.id)
        self._files.link(source, pack_name(theirs.id), name)
        try:
            fd = self._files.open(name)
            try:
                size = os.fstat(fd).st_size
                stamp = pack.stamp_of(os.pread(fd, pack.HEADER_BYTES, 0))
            finally:
                os.close(fd)
            if stamp != theirs.stamp or size < theirs.bytes:
                raise OSError(errno.ESTALE, "expected another pack", source.path(name))
        except OSError:
            self._files.remove([name], keep_spares=False)
            raise
        return mine

    def adopt_packed(self, row: Row, form: Form, mine: Pack) -> Row:
        """The row that names a value in a pack that was adopted as `mine`."""
        if not is_packed_well(row, form) or row.offset + row.stored > mine.bytes:
            raise OSError(errno.EINVAL, "expected a value in a pack", self._files.path(""))
        return row._replace(generation=self._generations.new(), pack=mine.id)
