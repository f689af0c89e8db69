"""The ``.npy`` codec: NumPy's own format, and some bytes behind the data that NumPy ignores.

Layout: a ``.npy`` file (format 1.0, or 2.0 and 3.0 where a header needs it) as ``np.save`` writes
it; a directory that says whose value it is (see `directory`); then a trailer of 32 bytes: the eight
bytes ``ACHEST02``, the file's stamp, where the data end, and the size of the directory in bytes (8
bytes each, little-endian).

The catalog holds the same stamp and the size of the whole file.  So a file that was truncated,
that belongs to another entry or that came from elsewhere is recognised by one small read, without
parsing a header, before anything is mapped; and ``np.load`` reads the file all the same.

An array of Python objects is pickled behind the header, as ``np.save`` does.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence

import numpy as np
from numpy.lib import format as npy_format

from arraychest.formats.form import Form

_TRAILER = struct.Struct("<8sQQQ")
TRAILER_BYTES = _TRAILER.size
_MAGIC = b"ACHEST02"

# The header ends at a multiple of this, as NumPy's does, so that elements are aligned for SIMD.
_ALIGN = npy_format.ARRAY_ALIGN


def header(form: Form) -> bytes:
    """The ``.npy`` header of an array of this form."""
    descr = form.dtype.descr if form.dtype.names is not None else form.dtype.str
    text = repr({"descr": descr, "fortran_order": form.order == "F", "shape": form.shape})
    try:
        body, version = text.encode("latin1"), (1, 0)
    except UnicodeEncodeError:
        body, version = text.encode("utf8"), (3, 0)
    if len(body) > 65_000:
        version = max(version, (2, 0))
    length = struct.Struct("<H" if version == (1, 0) else "<I")
    start = npy_format.MAGIC_LEN + length.size
    padding = -(start + len(body) + 1) % _ALIGN
    body += b" " * padding + b"\n"
    return npy_format.magic(*version) + length.pack(len(body)) + body


def trailer(stamp: int, end: int, listed: int) -> bytes:
    """The trailer of a file whose data end at `end`, with `listed` bytes of directory."""
    return _TRAILER.pack(_MAGIC, stamp, end, listed)


def payload(array: np.ndarray, form: Form) -> Sequence[bytes | memoryview]:
    """The bytes of an array as they lie in the file: no copy where it is contiguous."""
    if form.kind == "pickle":
        file = io.BytesIO()
        # The plain entry point writes a header of its own: only the pickle behind it is wanted.
        npy_format.write_array(file, array, allow_pickle=True)
        file.seek(0)
        major, _ = npy_format.read_magic(file)
        (npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0)(file)
        return [file.read()]
    if array.size == 0:
        return []
    flat = array.T if form.order == "F" else array
    if not flat.flags.c_contiguous:
        flat = np.ascontiguousarray(flat)
    # As bytes: datetime64 and some structured dtypes do not export a buffer of their own.
    return [flat.reshape(-1).view(np.uint8).data if flat.dtype.itemsize else b""]


def unpickle(data: bytes, form: Form) -> np.ndarray:
    """The array of Python objects that `payload` pickled.  Runs what the pickle says."""
    array: np.ndarray = npy_format.read_array(io.BytesIO(header(form) + data), allow_pickle=True)
    return array


def is_sealed(fd: int, size: int) -> bool:
    """Whether an open file of `size` bytes has a trailer already."""
    return os.pread(fd, TRAILER_BYTES, max(size - TRAILER_BYTES, 0)) != bytes(TRAILER_BYTES)


def parse_trailer(tail: bytes, size: int) -> tuple[int, int] | None:
    """The stamp of a file of `size` bytes that ends so, and where its data end; None if it has no
    trailer.  Between the data and the trailer lies the directory.
    """
    if len(tail) != TRAILER_BYTES:
        return None
    magic, stamp, end, listed = _TRAILER.unpack(tail)
    return (stamp, end) if magic == _MAGIC and end + listed + TRAILER_BYTES == size else None
