"""Any Python object as arrays of bytes that need no copy, and back.

Pickle protocol 5: what a value's arrays, frames and other buffers hold is not copied into the
pickle, but stored beside it and mapped back.  This is only for a folder that no other process reads
or writes: loading a pickle runs code.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from distributed.metrics import context_meter
from distributed.protocol import dask_deserialize, dask_serialize

from arraychest.errors import ValueTypeError


class Pickled(NamedTuple):
    """An object as a chest takes it.

    Attributes
    ----------
    parts
        The pickle, and behind it each buffer; uint8, of one dimension.
    writable
        For each buffer one byte: whether it was.
    """

    parts: list[np.ndarray]
    writable: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum([part.nbytes for part in self.parts])


def taken(value: Any) -> np.ndarray | Pickled:
    """A result as the chest takes it; an array that lies in one piece is not copied.

    Raises
    ------
    ValueTypeError
        It cannot be pickled.
    """
    if type(value) is np.ndarray and _is_plain(value):
        return value if value.flags.forc else np.ascontiguousarray(value)
    with context_meter.meter("serialize", "seconds"):
        return pickled(value)


def _is_plain(array: np.ndarray) -> bool:
    # Of NumPy's own dtypes.  A broadcast array is small in RAM, and would be large on disk.
    dtype = array.dtype
    own = dtype.kind in "biufcmMSU" and dtype.isbuiltin != 2 and dtype.metadata is None
    return own and array.nbytes > 0 and (array.flags.forc or 0 not in array.strides)


def pickled(value: Any) -> Pickled:
    """Take an object apart; its buffers are not copied, and must not change until they are stored.

    Raises
    ------
    ValueTypeError
        It cannot be pickled; what the object has raised is the cause of this.
    """
    buffers: list[pickle.PickleBuffer] = []
    # Functions and classes by name, also those of `__main__`: this process reads it again.
    for kind in (_Pickler, _ByValuePickler, _DaskPickler):
        file = io.BytesIO()
        try:
            kind(file, protocol=5, buffer_callback=buffers.append).dump(value)
            break
        except Exception as error:
            buffers.clear()
            if kind is _DaskPickler:
                raise ValueTypeError(
                    "expected a result that pickle, cloudpickle or dask can serialize, found "
                    f"{type(value).__name__!r:.200}, which raised {error!r:.200}: return another "
                    "type, or register it with distributed.protocol.dask_serialize"
                ) from error
    data = file.getbuffer()
    raws = [buffer.raw() for buffer in buffers]
    parts = [_as_array(data), *[_as_array(raw) for raw in raws]]
    return Pickled(parts, bytes([not raw.readonly for raw in raws]))


def unpickled(stored: Pickled) -> Any:
    """The object; its buffers are those of the parts, which it keeps alive."""
    data, *buffers = stored.parts
    for buffer, may_write in zip(buffers, stored.writable, strict=True):
        buffer.setflags(write=bool(may_write))
    return pickle.loads(data.data, buffers=buffers)  # noqa: S301  # our own


def _reduced(array: Any) -> Any:
    """Leave an array out of the pickle in whatever order its elements lie."""
    if type(array) is not np.ndarray or array.flags.forc or array.dtype.hasobject:
        return NotImplemented
    if 0 in array.strides:
        # Repeated along an axis, as all of dask's blocks of ones are: large in name only.
        once = tuple([slice(None) if stride else slice(1) for stride in array.strides])
        return np.broadcast_to, (array[once], array.shape)
    # NumPy would write it into the pickle, to be copied twice more.
    return np.ascontiguousarray(array).__reduce_ex__(5)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return _reduced(obj)


class _ByValuePickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        reduced = _reduced(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class _DaskPickler(_ByValuePickler):
    """For what pickle cannot take, and dask has a way of its own for, as an open HDF5 file."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray | np.generic | str | bytes):
            try:
                serialize = dask_serialize.dispatch(type(obj))
                return dask_deserialize.dispatch(type(obj)), serialize(obj)
            except TypeError:
                pass
        return super().reducer_override(obj)


def _as_array(buffer: Any) -> np.ndarray:
    if not len(buffer):
        return np.empty(0, np.uint8)
    return np.frombuffer(buffer, np.uint8)
