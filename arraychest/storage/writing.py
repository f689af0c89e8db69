"""Writing values: each to a new file of its own, compressed or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arraychest.catalog.record import Row
from arraychest.files.files import Files
from arraychest.files.writing import Put
from arraychest.formats import b2nd, blosc, checksums, directory, npy, tree
from arraychest.formats.blosc import Choice
from arraychest.formats.form import Form, form_text
from arraychest.formats.tree import Tree
from arraychest.storage.file_names import value_name
from arraychest.storage.generations import Generations, new_stamp
from arraychest.values.keys import KeyCode


class Writer:
    """Writes values to files that no row names yet.  Safe from many threads.

    Parameters
    ----------
    files, generations
        The chest's.
    checksums
        Whether values that are not compressed get checksums.

    Attributes
    ----------
    bytes_written
        Bytes of the files.
    """

    def __init__(self, files: Files, generations: Generations, *, checksums: bool) -> None:
        self._files = files
        self._generations = generations
        self._checksums = checksums
        self.bytes_written = 0

    def write(
        self,
        code: KeyCode,
        seq: int,
        body: Sequence[bytes | memoryview],
        form: Form,
        text: str,
    ) -> Row:
        """Write a value to a file of its own and return the row that would name it.

        Parameters
        ----------
        body
            Its bytes.

        Raises
        ------
        OSError
            Nothing is left of the file.
        """
        generation = self._generations.new()
        stamp = new_stamp()
        head = npy.header(form)
        size = sum(map(len, body))
        # Before the write: so the bytes are in the caches when they are written.
        sums = checksums.of_buffers(body) if self._checksums else b""
        listed = directory_of_one(stamp, generation, seq, size, code, text, sums)
        end = len(head) + size
        stored = end + len(listed) + npy.TRAILER_BYTES
        row = Row(code.canonical, seq, code.exact, text, generation, None, len(head), stored, stamp)
        tail = npy.trailer(stamp, end, len(listed))
        self._files.write(value_name(row), [head, *body, listed, tail])
        self.bytes_written += stored
        return row

    def compress(
        self,
        code: KeyCode,
        seq: int,
        array: np.ndarray,
        form: Form,
        text: str,
        choice: Choice,
        nthreads: int,
    ) -> Row:
        """As `write`, compressed: chunk by chunk, `b2nd.WORKING_BYTES` of RAM for each thread."""
        generation = self._generations.new()
        stamp = new_stamp()
        # The frame has checksums of its own.
        listed = directory_of_one(stamp, generation, seq, form.nbytes, code, text, b"")
        row = Row(code.canonical, seq, code.exact, text, generation, None, 0, 0, stamp)
        # A frame knows C order only.
        flat = array.T if form.order == "F" else array
        layout = blosc.layout_of(flat, choice)

        def produce(put: Put, _: int) -> int:
            end = b2nd.write(flat, layout, nthreads, put, stamp)
            put(end, [listed, npy.trailer(stamp, end, len(listed))])
            return end + len(listed) + npy.TRAILER_BYTES

        stored = self._files.stream(value_name(row), produce)
        self.bytes_written += stored
        return row._replace(stored=stored)

    def compress_tree(
        self,
        code: KeyCode,
        seq: int,
        array: Tree,
        choices: Sequence[Choice | None],
        nthreads: int,
        named: str,
    ) -> Row:
        """As `compress`, of a value tree: some of its parts are.

        Parameters
        ----------
        named
            What follows in the text of its form, which nobody knows yet.
        """
        generation = self._generations.new()
        stamp = new_stamp()
        # As long as with any other number of bytes: NumPy pads it.
        start = len(npy.header(tree.form_of(0)))
        layouts = [
            None if choice is None else blosc.layout_of(tree.in_c_order(part), choice)
            for part, choice in zip(array.parts, choices, strict=True)
        ]
        text = form_text(*tree.form_of(0)) + named
        row = Row(code.canonical, seq, code.exact, text, generation, None, start, 0, stamp)

        def produce(put: Put, fd: int) -> int:
            nonlocal row
            size = array.compress(
                layouts, nthreads, lambda at, buffers: put(start + at, buffers), stamp
            )
            form = tree.form_of(size)
            row = row._replace(form=form_text(*form) + named)
            end = start + size
            # Its parts are not written in one piece, nor in their order.
            sums = checksums.of_file(fd, start, size) if self._checksums else b""
            listed = directory_of_one(stamp, generation, seq, size, code, row.form, sums)
            put(end, [listed, npy.trailer(stamp, end, len(listed))])
            put(0, [npy.header(form)])
            return end + len(listed) + npy.TRAILER_BYTES

        stored = self._files.stream(value_name(row), produce)
        self.bytes_written += stored
        return row._replace(stored=stored)


def directory_of_one(
    stamp: int, generation: int, seq: int, nbytes: int, code: KeyCode, text: str, sums: bytes
) -> bytes:
    """The directory of a file that holds one value."""
    return directory.encode(
        stamp, [generation], [seq], [nbytes], [code.canonical], [code.exact], [text], sums
    )
