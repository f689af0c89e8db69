"""Arrays as datasets of an HDF5 file, with h5py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from arraychest.errors import ArrayChestError, CorruptEntryError, ValueTypeError
from arraychest.exchange.arrays import (
    Found,
    chunks_of,
    integer_of,
    is_plain_number,
    named,
    no_array,
    plain_dtype,
    read_boxes,
    refuse_objects,
    write_boxes,
)
from arraychest.exchange.names import INDEX
from arraychest.exchange.records import MAX_INDEX_BYTES, Encoding
from arraychest.formats.form import Form
from arraychest.progress import Meter

_MAX_NDIM = 32

# HDF5 addresses the bytes of a chunk with 32 bits.
_MAX_CHUNK_BYTES = (1 << 32) - 1


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 takes h5py: pip install 'arraychest[hdf5]'") from error
    return h5py


def _is_native(dtype: np.dtype) -> bool:
    """Whether HDF5 has the elements of a dtype, and h5py gives them back."""
    if is_plain_number(dtype):
        return True
    if _has_long_double(dtype) or not dtype.itemsize:
        return False
    try:
        return bool(_h5py().h5t.py_create(dtype, logical=True).dtype == dtype)
    except (TypeError, ValueError, RuntimeError):
        return False


def _has_long_double(dtype: np.dtype) -> bool:
    if dtype.subdtype is not None:
        return _has_long_double(dtype.subdtype[0])
    if dtype.fields is not None:
        return any(_has_long_double(field[0]) for field in dtype.fields.values())
    return dtype.char in "gG"


class Hdf5Writer:
    """An HDF5 file that is being written."""

    def __init__(self, path: str) -> None:
        self._file = _h5py().File(path, "x")

    def put(
        self, name: str, form: Form, value: Any, meter: Meter, compression: str | None = None
    ) -> Encoding:
        """See `Writer`."""
        dtype, shape = form.dtype, form.shape
        encoding: Encoding = "plain"
        if len(shape) > _MAX_NDIM:
            encoding = "raw"
        elif dtype.kind in "mM":
            encoding, dtype = "int64", integer_of(dtype)
        elif not _is_native(dtype):
            encoding = "raw"
        chunks = None if encoding == "raw" else chunks_of(value)
        if chunks is not None:
            chunks = tuple(min(side, n) for side, n in zip(chunks, shape, strict=True))
            if not all(chunks) or np.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
                chunks = None
        if encoding == "raw":
            dtype, shape = np.dtype(np.uint8), (form.nbytes,)
        options: dict[str, Any] = {"chunks": chunks}
        if compression not in (None, "auto") and form.nbytes and shape:
            # What every HDF5 has, or every h5py.
            fast = compression in ("lz4", "blosclz")
            options |= {"compression": "lzf" if fast else "gzip", "shuffle": True}
        try:
            target = self._file.create_dataset(name, shape, np.dtype(dtype), **options)
        except ValueError:
            if dtype.names is None:
                raise
            # So many fields that they do not fit into a dataset's header.
            encoding, shape = "raw", (form.nbytes,)
            target = self._file.create_dataset(name, shape, np.uint8)
        write_boxes(target, value, form, encoding, chunks, meter)
        return encoding

    def set_attributes(self, name: str, attributes: dict[Any, Any]) -> None:
        """See `Writer`."""
        for key, value in attributes.items():
            # What HDF5 does not take is in the index all the same.
            with contextlib.suppress(TypeError, ValueError, OSError, RuntimeError):
                self._file[name].attrs[key] = value

    def describe(self, name: str, attributes: dict[str, Any]) -> None:
        """See `Writer`."""
        self._file.require_group(name)
        self.set_attributes(name, attributes)

    def finish(self, index: bytes) -> None:
        """See `Writer`."""
        self._file.create_dataset(INDEX, data=np.frombuffer(index, np.uint8))
        self._file.close()

    def close(self) -> None:
        """See `Writer`."""
        self._file.close()


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except ArrayChestError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, MemoryError) as error:
        raise CorruptEntryError(f"{what} cannot be read: {error!s:.300}") from error


class Hdf5Reader:
    """An HDF5 file; links that lead out of it, and to what lies outside, are not followed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._h5py = _h5py()
        with _reading(path):
            self._file = self._h5py.File(path, "r")
        self._nodes: dict[str, Any] = {}
        self._groups: dict[str, Any] = {"": self._file}
        self.skipped: list[str] = []
        try:
            with _reading(path):
                self._walk(self._file, "", {self._address(self._file)})
        except BaseException:
            self._file.close()
            raise

    def _address(self, node: Any) -> Any:
        return self._h5py.h5o.get_info(node.id).addr

    def _walk(self, group: Any, prefix: str, met: set[Any]) -> None:
        for key in group:
            if not isinstance(group.get(key, getlink=True), self._h5py.HardLink):
                self.skipped.append(prefix + key)
                continue
            node = group[key]
            if isinstance(node, self._h5py.Dataset):
                self._nodes[prefix + key] = node
            elif isinstance(node, self._h5py.Group):
                address = self._address(node)
                if address in met:
                    self.skipped.append(prefix + key)  # it has another name, or is a circle
                    continue
                met.add(address)
                self._groups[prefix + key] = node
                self._walk(node, f"{prefix}{key}/", met)

    def index(self) -> bytes | None:
        """See `Reader`."""
        node = self._nodes.get(INDEX)
        if node is None or node.dtype != np.uint8 or node.ndim != 1:
            return None
        if node.nbytes > MAX_INDEX_BYTES:
            raise CorruptEntryError(f"expected an index in {self._path}, found {node.nbytes} bytes")
        with _reading(self._path):
            return bytes(node[...].tobytes())

    def names(self) -> list[str]:
        """See `Reader`."""
        return list(self._nodes)

    def array(self, name: str) -> Found:
        """See `Reader`."""
        node = named(self._nodes, name, self._path)
        what = f"{name!r:.200} of {self._path}"
        with _reading(what):
            if node.is_virtual or node.external:
                raise ValueError("its elements lie in other files")
            if node.shape is None:
                return Found(np.dtype(np.uint8), (), "C", no_array, lambda: None)
            strings = self._h5py.check_string_dtype(node.dtype)
            if strings is not None and strings.length is None:
                return Found(np.dtype(np.uint64), node.shape, "C", no_array, _strings(node, what))
            dtype = plain_dtype(node.dtype)
            refuse_objects(dtype, name)
        return Found(dtype, node.shape, "C", _filling(node, what))

    def attributes(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """See `Reader`."""
        for name, node in [*self._groups.items(), *self._nodes.items()]:
            if not len(node.attrs):
                continue
            kept: dict[str, Any] = {}
            lost: list[str] = []
            for key in node.attrs:
                with _reading(f"attribute {key!r:.100} of {name!r:.200} of {self._path}"):
                    try:
                        kept[key] = self._plain(node.attrs[key])
                    except ValueTypeError:
                        lost.append(key)
            yield name, kept, lost

    def _plain(self, value: Any) -> Any:
        """An attribute without anything of h5py's."""
        if isinstance(value, self._h5py.Empty):
            return None
        if isinstance(value, str | bytes):
            return value
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind == "O" and isinstance(value, np.ndarray):
                found = value.tolist()
                if all(isinstance(each, str | bytes) for each in value.reshape(-1)):
                    return found
            elif not value.dtype.hasobject:
                if isinstance(value, np.ndarray):
                    return value.astype(plain_dtype(value.dtype), copy=True)
                return value
        raise ValueTypeError(f"an attribute of {type(value).__name__}")

    def close(self) -> None:
        """See `Reader`."""
        self._file.close()


def _filling(node: Any, what: str) -> Callable[[np.ndarray, Meter], None]:
    def fill(out: np.ndarray, meter: Meter) -> None:
        with _reading(what):
            read_boxes(node, out, node.chunks, meter)

    return fill


def _strings(node: Any, what: str) -> Callable[[], Any]:
    def whole() -> Any:
        with _reading(what):
            found = node.asstr("utf-8", "surrogateescape")[...]
            if isinstance(found, str):
                return found
            return np.array(found, dtype=np.dtypes.StringDType())

    return whole
