"""Arrays as NumPy's own files: a folder of ``.npy``, or one ``.npz``."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from arraychest.errors import ArrayChestError, CorruptEntryError
from arraychest.exchange.arrays import (
    PART_BYTES,
    Found,
    boxes,
    chunks_of,
    flat_bytes,
    named,
    no_array,
    refuse_objects,
    runs,
)
from arraychest.exchange.names import INDEX
from arraychest.exchange.records import MAX_INDEX_BYTES, Encoding
from arraychest.formats import npy
from arraychest.formats.form import Form, literal
from arraychest.platform.space import reserve
from arraychest.progress import Meter

# Characters of a header: a structured dtype of hundreds of fields takes some 20,000.
_MAX_HEADER = 1 << 17

# Of what is no array in a ``.npz`` file, and is read whole.
_MAX_BLOB_BYTES = 1 << 28

_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, SyntaxError, RecursionError,
    MemoryError, RuntimeError, NotImplementedError, struct.error, tokenize.TokenError,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except ArrayChestError:
        raise
    except _DAMAGE as error:
        raise CorruptEntryError(f"{what} cannot be read: {error!s:.300}") from error


class _Header(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file: Any, name: str) -> _Header:
    """Read the header of an array; what it says is not trusted."""
    version = npy_format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy_format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
    elif version == (2, 0):
        shape, fortran, dtype = npy_format.read_array_header_2_0(file, max_header_size=_MAX_HEADER)
    elif version == (3, 0):
        (length,) = struct.unpack("<I", file.read(4))
        if length > _MAX_HEADER:
            raise ValueError(f"expected a header of at most {_MAX_HEADER} bytes, found {length}")
        found = literal(file.read(length).decode("utf-8"))
        shape, fortran = found["shape"], found["fortran_order"]
        dtype = npy_format.descr_to_dtype(found["descr"])
    else:
        raise ValueError(f"expected version 1.0, 2.0 or 3.0 of the format, found {version}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"expected a shape, found {shape!r:.100}")
    refuse_objects(dtype, name)
    return _Header(dtype, shape, "F" if fortran else "C")


def _read_into(file: Any, out: np.ndarray, order: Literal["C", "F"], meter: Meter) -> None:
    data = flat_bytes(out, order).data
    at = 0
    while at < len(data):
        count = file.readinto(data[at : at + PART_BYTES])
        if not count:
            raise EOFError(f"expected {len(data)} bytes of elements, found {at}")
        at += count
        meter.add(count)


# --- a folder --------------------------------------------------------------------------------


class FolderWriter:
    """A folder of ``.npy`` files; groups are folders in it."""

    def __init__(self, path: str) -> None:
        self._path = path
        os.mkdir(path)

    def put(
        self,
        name: str,
        form: Form,
        value: Any,
        meter: Meter,
        compression: str | None = None,  # noqa: ARG002  # there is none
    ) -> Encoding:
        """See `Writer`."""
        path = os.path.join(self._path, name + ".npy")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        head = npy.header(form)
        with open(path, "xb") as file:
            # Room first: the chunks are written through a map, where a full disk is SIGBUS.
            reserve(file.fileno(), 0, len(head) + form.nbytes)
            file.write(head)
            chunks = chunks_of(value)
            if chunks is None:
                for run in runs(value, form.order):
                    file.write(run)
                    meter.add(len(run))
                return "plain"
        out = np.memmap(path, form.dtype, "r+", len(head), form.shape, form.order)
        for box in boxes(form.shape, form.dtype.itemsize, chunks):
            part = value[box]
            out[box] = part
            meter.add(part.nbytes)
        return "plain"

    def set_attributes(self, name: str, attributes: dict[Any, Any]) -> None:
        """There are none."""

    def describe(self, name: str, attributes: dict[str, Any]) -> None:
        """There are no groups."""

    def finish(self, index: bytes) -> None:
        """See `Writer`."""
        with open(os.path.join(self._path, INDEX + ".json"), "xb") as file:
            file.write(index)

    def close(self) -> None:
        """Nothing is open."""


class FolderReader:
    """A folder of ``.npy`` files, or one such file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.skipped: list[str] = []
        self._files: dict[str, str] = {}
        if not os.path.isdir(path):
            stem = os.path.splitext(os.path.basename(path))[0]
            self._files[stem] = path
            return
        for folder, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                file = os.path.join(folder, name)
                if name.endswith(".npy"):
                    self._files[os.path.relpath(file, path)[: -len(".npy")]] = file
        # A link may lead to what the folder's author could not read.
        for file in self._files.values():
            if not stat.S_ISREG(os.lstat(file).st_mode):
                raise CorruptEntryError(f"expected a file, found a link or something else: {file}")

    def index(self) -> bytes | None:
        """See `Reader`."""
        path = os.path.join(self._path, INDEX + ".json")
        if not os.path.isdir(self._path) or not os.path.lexists(path):
            return None
        with _reading(path), self._open(path) as file:
            found = file.read(MAX_INDEX_BYTES + 1)
            if len(found) > MAX_INDEX_BYTES:
                raise ValueError(f"more than {MAX_INDEX_BYTES} bytes")
            return found

    def names(self) -> list[str]:
        """See `Reader`."""
        return list(self._files)

    def _open(self, path: str) -> IO[bytes]:
        # Nor may what is no file keep us waiting.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if path != self._path:
            flags |= os.O_NOFOLLOW
        file = os.fdopen(os.open(path, flags), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise CorruptEntryError(f"expected a file, found something else: {path}")
        return file

    def array(self, name: str) -> Found:
        """See `Reader`."""
        path = named(self._files, name, self._path)

        def opened() -> IO[bytes]:
            return self._open(path)

        with _reading(path), opened() as file:
            head = _read_header(file, name)
            left = os.fstat(file.fileno()).st_size - file.tell()
            if left < head.nbytes:
                raise ValueError(f"expected {head.nbytes} bytes of elements, found {left}")
        return Found(*head, fill=_filling(opened, path, name, head))

    def attributes(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """There are none."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def _filling(
    opened: Callable[[], IO[bytes]], path: str, name: str, head: _Header
) -> Callable[[np.ndarray, Meter], None]:
    """What reads the elements behind a header, and nothing but them if it is in a ``.npz``."""

    def fill(out: np.ndarray, meter: Meter) -> None:
        with _reading(f"{name!r:.200} of {path}"), opened() as file:
            if _read_header(file, name) != head:
                raise ValueError("it was changed meanwhile")
            _read_into(file, out, head.order, meter)
            if isinstance(file, zipfile.ZipExtFile):
                file.read(1)  # its end, where the checksum is compared

    return fill


# --- one file --------------------------------------------------------------------------------


class NpzWriter:
    """A ``.npz`` file as `np.savez` writes it."""

    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path, "x", zipfile.ZIP_STORED)

    def put(
        self,
        name: str,
        form: Form,
        value: Any,
        meter: Meter,
        compression: str | None = None,  # noqa: ARG002  # there is none
    ) -> Encoding:
        """See `Writer`."""
        with self._zip.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as file:
            file.write(npy.header(form))
            for run in runs(value, form.order):
                file.write(run)
                meter.add(len(run))
        return "plain"

    def set_attributes(self, name: str, attributes: dict[Any, Any]) -> None:
        """There are none."""

    def describe(self, name: str, attributes: dict[str, Any]) -> None:
        """There are no groups."""

    def finish(self, index: bytes) -> None:
        """See `Writer`."""
        text = np.frombuffer(index, np.uint8)
        form = Form(text.dtype, text.shape, "C", "array")
        self.put(INDEX, form, text, Meter(None, "", 0))
        self._zip.close()

    def close(self) -> None:
        """See `Writer`."""
        self._zip.close()


class NpzReader:
    """A ``.npz`` file, or any zip file with ``.npy`` files in it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.skipped: list[str] = []
        with _reading(path):
            self._zip = zipfile.ZipFile(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if info.is_dir():
                continue
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                self._zip.close()
                raise CorruptEntryError(f"expected each name once in {path}, found {name!r:.200}")
            self._members[name] = info

    def index(self) -> bytes | None:
        """See `Reader`."""
        if INDEX not in self._members:
            return None
        found = self.array(INDEX)
        if found.dtype != np.uint8 or len(found.shape) != 1:
            return None  # an array that somebody calls so
        if found.nbytes > MAX_INDEX_BYTES:
            raise CorruptEntryError(
                f"expected an index in {self._path}, found {found.nbytes} bytes"
            )
        out = np.empty(found.shape, np.uint8)
        found.fill(out, Meter(None, "", 0))
        return out.tobytes()

    def names(self) -> list[str]:
        """See `Reader`."""
        return list(self._members)

    def array(self, name: str) -> Found:
        """See `Reader`."""
        info = named(self._members, name, self._path)

        def opened() -> IO[bytes]:
            return self._zip.open(info)

        if not info.filename.endswith(".npy"):
            return self._blob(info)
        with _reading(f"{name!r:.200} of {self._path}"):
            with opened() as file:
                head = _read_header(file, name)
                start = file.tell()
            if info.file_size != start + head.nbytes:
                raise ValueError(
                    f"expected {head.nbytes} bytes of elements, found {info.file_size - start}"
                )
        return Found(*head, fill=_filling(opened, self._path, name, head))

    def _blob(self, info: zipfile.ZipInfo) -> Found:
        """What is no array, as bytes."""

        def whole() -> bytes:
            with _reading(f"{info.filename!r:.200} of {self._path}"):
                if info.file_size > _MAX_BLOB_BYTES:
                    raise ValueError(f"more than {_MAX_BLOB_BYTES} bytes that are no array")
                return self._zip.read(info)

        return Found(np.dtype(np.uint8), (info.file_size,), "C", no_array, whole)

    def attributes(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """There are none."""
        return iter(())

    def close(self) -> None:
        """See `Reader`."""
        self._zip.close()
