"""Arrays as a group of Zarr, in its third format; groups of the second are read, too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from arraychest.errors import ArrayChestError, CorruptEntryError, PickleRefusedError
from arraychest.exchange.arrays import (
    Found,
    box_shape,
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

# Of arrays that have no chunks of their own.
_CHUNK_BYTES = 16 << 20


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError("Zarr takes zarr: pip install 'arraychest[zarr]'") from error
    return zarr


class ZarrWriter:
    """A group that is being written."""

    def __init__(self, path: str) -> None:
        self._group = _zarr().create_group(path, zarr_format=3)

    def put(
        self, name: str, form: Form, value: Any, meter: Meter, compression: str | None = None
    ) -> Encoding:
        """See `Writer`."""
        dtype, shape, chunks = form.dtype, form.shape, chunks_of(value)
        encoding: Encoding = "plain"
        if dtype.kind in "mM":
            encoding, dtype = "int64", integer_of(dtype)
        elif not is_plain_number(dtype):
            encoding, dtype, shape, chunks = "raw", np.dtype(np.uint8), (form.nbytes,), None
        # What is written at a time of raw bytes is a chunk, too.
        if chunks is None:
            chunks = box_shape(shape, dtype.itemsize, most=_CHUNK_BYTES)
        target = self._make(name, shape, dtype, chunks, compression)
        write_boxes(target, value, form, encoding, chunks, meter)
        return encoding

    def _make(
        self,
        name: str,
        shape: Any,
        dtype: np.dtype,
        chunks: tuple[int, ...],
        compression: str | None = "auto",
    ) -> Any:
        compressors: Any = compression
        if compression not in (None, "auto"):
            codecs = _zarr().codecs
            compressors = codecs.BloscCodec(cname=compression, shuffle="shuffle")
        return self._group.create_array(
            name,
            shape=shape,
            # Of two C types of one size, such as long and long long, Zarr knows one.
            dtype=np.dtype(dtype.str),
            chunks=chunks,
            compressors=compressors,
            # Otherwise a chunk of -0.0 would be left out, and come back as 0.0.
            config={"write_empty_chunks": True},
        )

    def set_attributes(self, name: str, attributes: dict[Any, Any]) -> None:
        """See `Writer`."""
        fit = {}
        for key, value in attributes.items():
            # What JSON does not hold is in the index all the same.
            with contextlib.suppress(TypeError, ValueError):
                json.dumps({key: value}, allow_nan=False)
                if isinstance(key, str):
                    fit[key] = value
        self._group[name].attrs.update(fit)

    def describe(self, name: str, attributes: dict[str, Any]) -> None:
        """See `Writer`."""
        self._group.require_group(name)
        self.set_attributes(name, attributes)

    def finish(self, index: bytes) -> None:
        """See `Writer`."""
        text = np.frombuffer(index, np.uint8)
        self._make(INDEX, text.shape, text.dtype, text.shape)[...] = text

    def close(self) -> None:
        """Nothing is open."""


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except ArrayChestError:
        raise
    # Whatever a codec, or Zarr's parser of metadata, makes of a stranger's bytes.
    except Exception as error:
        raise CorruptEntryError(f"{what} cannot be read: {error!s:.300}") from error


class ZarrReader:
    """A group, or an array, in a folder."""

    def __init__(self, path: str) -> None:
        zarr = _zarr()
        self._path = path
        self.skipped: list[str] = []
        # A link may lead to what the folder's author could not read.
        for folder, folders, files in os.walk(path):
            for name in [*folders, *files]:
                if os.path.islink(os.path.join(folder, name)):
                    raise CorruptEntryError(f"expected no links in {path}, found {name!r:.200}")
        self._nodes: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        with _reading(path):
            root = zarr.open(path, mode="r")
            if isinstance(root, zarr.Array):
                stem = os.path.splitext(os.path.basename(path.rstrip("/")))[0]
                self._nodes[stem] = root
                return
            self._groups[""] = root
            for name, node in sorted(root.members(max_depth=None), key=lambda each: each[0]):
                (self._nodes if isinstance(node, zarr.Array) else self._groups)[name] = node

    def index(self) -> bytes | None:
        """See `Reader`."""
        node = self._nodes.get(INDEX)
        if node is None or node.dtype != np.uint8 or node.ndim != 1:
            return None
        if node.nbytes > MAX_INDEX_BYTES:
            raise CorruptEntryError(f"expected an index in {self._path}, found {node.nbytes} bytes")
        self._check_codecs(node, INDEX)
        with _reading(self._path):
            return bytes(np.asarray(node[...]).tobytes())

    def names(self) -> list[str]:
        """See `Reader`."""
        return list(self._nodes)

    def array(self, name: str) -> Found:
        """See `Reader`."""
        node = named(self._nodes, name, self._path)
        what = f"{name!r:.200} of {self._path}"
        with _reading(what):
            self._check_codecs(node, name)
            dtype, shape = node.dtype, tuple(node.shape)
            refuse_objects(dtype, name)
            if dtype.kind == "T":
                return Found(np.dtype(np.uint64), shape, "C", no_array, _whole(node, what))
            dtype = plain_dtype(dtype)
        return Found(dtype, shape, "C", _filling(node, what))

    def _check_codecs(self, node: Any, name: str) -> None:
        """Raise PickleRefusedError where reading would unpickle."""
        known = node.metadata.to_dict()
        for told in ("attributes", "dimension_names"):
            known.pop(told, None)
        if "pickle" in json.dumps(known, default=repr).lower():
            raise PickleRefusedError(
                f"expected an array that is not pickled, found {name!r:.200} of {self._path}: "
                "reading it would run code"
            )

    def attributes(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """See `Reader`."""
        for name, node in [*self._groups.items(), *self._nodes.items()]:
            with _reading(f"attributes of {name!r:.200} of {self._path}"):
                found = node.attrs.asdict()
            if found:
                yield name, found, []

    def close(self) -> None:
        """Nothing is open."""


def _filling(node: Any, what: str) -> Callable[[np.ndarray, Meter], None]:
    def fill(out: np.ndarray, meter: Meter) -> None:
        with _reading(what):
            read_boxes(node, out, node.shards or node.chunks, meter)

    return fill


def _whole(node: Any, what: str) -> Callable[[], Any]:
    def whole() -> Any:
        with _reading(what):
            return np.asarray(node[...])

    return whole
