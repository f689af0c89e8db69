"""Files of values that are written to through a map: new ones, and stored ones in place."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from arraychest.catalog.record import Row
from arraychest.files.files import Files
from arraychest.files.names import READ_FLAGS
from arraychest.files.writing import write_all
from arraychest.formats import checksums, directory, npy
from arraychest.formats.form import Form, parse_form
from arraychest.sharing.open_folder import OpenFolder
from arraychest.storage.file_names import value_name
from arraychest.storage.generations import Generations, new_stamp
from arraychest.storage.reading import Loader
from arraychest.storage.writing import directory_of_one
from arraychest.values.keys import KeyCode


class MappedFiles:
    """Makes, completes and opens files that are written to through a map.  Safe from many threads.

    Parameters
    ----------
    folder, files, generations, loader
        The chest's.
    checksums
        Whether values get checksums.

    Attributes
    ----------
    bytes_written
        Bytes of the files that were sealed.
    """

    def __init__(
        self,
        folder: OpenFolder,
        files: Files,
        generations: Generations,
        loader: Loader,
        *,
        checksums: bool,
    ) -> None:
        self._folder = folder
        self._files = files
        self._generations = generations
        self._loader = loader
        self._checksums = checksums
        self.bytes_written = 0

    def create(
        self, code: KeyCode, seq: int, form: Form, text: str, source: Row | None
    ) -> tuple[Row, int, bool]:
        """Make a value's file with its space reserved, to be written to through a map.

        Parameters
        ----------
        source
            A stored value that its data may be a copy of; None: zero bytes.

        Returns
        -------
        tuple[Row, int, bool]
            The row that would name it once it is sealed, its descriptor, and whether it has the
            data of `source`: not if that has another layout, or is gone.

        Raises
        ------
        OSError
            Nothing is left of the file.
        """
        head = npy.header(form)
        end = len(head) + form.nbytes
        stamp, generation = new_stamp(), self._generations.new()
        # Only its size: a disk refuses the file before its checksums take room in RAM.
        listed = len(directory_of_one(stamp, generation, seq, form.nbytes, code, text, b""))
        if self._checksums:
            listed += checksums.PACKED_BYTES * checksums.count(form.nbytes)
        stored = end + listed + npy.TRAILER_BYTES
        row = Row(code.canonical, seq, code.exact, text, generation, None, len(head), stored, stamp)
        name = value_name(row)
        copied = None
        if source is not None and (source.form, source.offset, source.stored) == (
            row.form,
            row.offset,
            row.stored,
        ):
            copied = value_name(source)
        try:
            fd = self._files.create(name, stored, copied)
        except FileNotFoundError:
            if copied is None:
                raise
            # Overwritten or deleted by somebody else at this moment.
            copied = None
            fd = self._files.create(name, stored, None)
        try:
            # Not sealed yet, also where it began as a copy of a file that is.
            tail = bytes(npy.TRAILER_BYTES)
            write_all(fd, [tail], [len(tail)], end + listed)
            write_all(fd, [head], [len(head)], 0)
        except BaseException:
            os.close(fd)
            self.remove(row)
            raise
        return row, fd, copied is not None

    def fill(self, fd: int, row: Row, array: np.ndarray, form: Form) -> None:
        """Write an array's elements to a file that `create` made."""
        body = npy.payload(array, form)
        write_all(fd, body, list(map(len, body)), row.offset)

    def seal(self, row: Row, fd: int) -> None:
        """Complete a file that `create` made: from here on it is as one that `write` wrote."""
        assert row.stamp is not None
        nbytes = parse_form(row.form).nbytes
        end = row.offset + nbytes
        sums = checksums.of_file(fd, row.offset, nbytes) if self._checksums else b""
        code = KeyCode(row.key, row.exact)
        listed = directory_of_one(row.stamp, row.generation, row.seq, nbytes, code, row.form, sums)
        tail = [listed, npy.trailer(row.stamp, end, len(listed))]
        write_all(fd, tail, list(map(len, tail)), end)
        self._files.sync(value_name(row), fd)
        self.bytes_written += row.stored

    def remove(self, row: Row) -> None:
        """Remove a file that `create` made."""
        self._files.remove([value_name(row)], keep_spares=False)

    def open_in_place(self, row: Row, key: Any) -> int:
        """A value's file of its own, open for writing.

        Raises
        ------
        CorruptEntryError
            It is not the file that the row tells of.
        OSError
            It cannot be opened; FileNotFoundError where it is gone.
        """
        name = value_name(row)
        flags = (READ_FLAGS & ~os.O_RDONLY) | os.O_RDWR
        fd = os.open(name, flags, dir_fd=self._folder.fd)
        try:
            self._loader.check_file(fd, row, key)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def renewed(self, row: Row, fd: int) -> Row:
        """End the writing into a value's file: the row that names it under a new generation.

        The checksums in the file are those of what it contains now; the old name stays.

        Raises
        ------
        OSError
            It has no new name; FileNotFoundError where its old one is gone.
        """
        new = row._replace(generation=self._generations.new())
        assert row.stamp is not None, "only a packed value has none"
        tail = os.pread(fd, npy.TRAILER_BYTES, row.stored - npy.TRAILER_BYTES)
        _, end = npy.parse_trailer(tail, row.stored) or (None, row.stored)
        listed = os.pread(fd, row.stored - npy.TRAILER_BYTES - end, end)
        found = directory.decode(listed, row.stamp, 1)
        if found is not None:
            sums = checksums.of_file(fd, row.offset, end - row.offset) if found[0].sums else b""
            code = KeyCode(row.key, row.exact)
            listed = directory_of_one(
                row.stamp, new.generation, row.seq, end - row.offset, code, row.form, sums
            )
            write_all(fd, [listed], [len(listed)], end)
        self._files.sync(value_name(row), fd)
        self._files.link(self._files, value_name(row), value_name(new))
        return new

    def may_write_in_place(self, row: Row) -> bool:
        """Whether a value has a file that nothing else shares."""
        if row.pack is not None or row.is_frame or row.is_blocked:
            return False
        return self._files.stat(value_name(row)).st_nlink == 1
