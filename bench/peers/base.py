"""What an adapter says of its peer, and the methods that workloads ask for."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.metadata
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

# What survives of values that were flushed, from nothing to all.
NOTHING, PROCESS_CRASH, POWER_LOSS = "none", "process crash", "power loss"
DURABILITIES = (NOTHING, PROCESS_CRASH, POWER_LOSS)

# Workloads in which those that sync what they write are compared with each other.
SYNCED = ("spill-write", "small")


class PeerMissingError(Exception):
    """A peer is not installed, or cannot do a workload."""


def load(name: str) -> Any:
    """Import a peer.

    Raises
    ------
    PeerMissingError
        It cannot be imported.
    """
    if name == "chest" and not hasattr(collections, "MutableMapping"):
        # chest 0.2.3 and its heapdict look for it where it was until Python 3.9.
        collections.MutableMapping = collections.abc.MutableMapping  # type: ignore[attr-defined]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerMissingError(
            f'{type(error).__name__}: {error} (pip install "arraychest[bench]")'
        ) from error


class Peer:
    """A store of arrays under string keys in a folder, with a memory budget where it has one.

    A peer has those of these methods that it can do:

    ``put(key, array)``, ``get(key)``, ``delete(key)``
        As a dict.
    ``flush()``
        What was put is on disk as `durability` says.
    ``reopen()``
        Forget what is in memory, and open what lies on disk; after a `flush`.
    ``bare()``
        The object itself, where it is a mapping: what is measured in nanoseconds is not called
        through an adapter.
    ``write_whole(array)``, ``open_whole()``
        One large array in chunks of the peer's own, and an object that is indexed to read of it.
    ``xarray_write(dataset, name, chunks)``, ``xarray_open(name)``
        A dataset of xarray, by name: as its values are, or compressed in chunks of this shape.
    ``memoise(function)``
        The function, its results kept on disk.
    ``reader()``
        A function from a key to its value in a process that only reads while another one writes.

    Parameters
    ----------
    folder
        An empty one.
    budget
        Bytes of values that may stay in memory.

    Attributes
    ----------
    name, package
        In tables; and what pip calls it, for its version.
    durability
        One of `DURABILITIES`: "none": a process that dies while it writes can leave half a value,
        or a store that does not open; "process crash": what was flushed is whole after it;
        "power loss": it has been synced, too.
    setup
        How it is set up, in a few words.
    shares
        By workload: the share of the values that it is given where all would take minutes.  Such
        a pair is measured in one round.
    bound
        Which of the methods are the object's own, bound when it is opened.
    cannot
        By workload: why not, where the methods do not tell.
    only
        Workloads that it is for, where it is another peer set up otherwise.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    durability: ClassVar[str] = NOTHING
    setup: ClassVar[str] = ""
    bound: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[dict[str, float]] = {}
    cannot: ClassVar[dict[str, str]] = {}
    only: ClassVar[tuple[str, ...] | None] = None
    # Whether it can compress what it stores.
    compresses: ClassVar[bool] = True

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget

    # What each has; the other methods are there or not.

    def flush(self) -> None:
        """Bring everything to disk."""

    def close(self) -> None:
        """Let go of it.  The files are removed by the caller."""

    @classmethod
    def version(cls) -> str:
        """Of the package that is installed.

        Raises
        ------
        PeerMissingError
            There is none.
        """
        try:
            return importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise PeerMissingError(
                f'{cls.package} is not installed (pip install "arraychest[bench]")'
            ) from error


_HEAD = struct.Struct("<HH")


def packed(array: np.ndarray) -> list[Any]:
    """An array as buffers for a store of bytes, without a copy of its data: form, and data."""
    form = ",".join((array.dtype.str, *map(str, array.shape))).encode()
    form += b" " * (-(len(form) + _HEAD.size) % 64)
    return [_HEAD.pack(len(form), 0) + form, array.data.cast("B")]


_forms: dict[bytes, tuple[np.dtype[Any], tuple[int, ...]]] = {}


def unpacked(buffer: Any, data: Any = None) -> np.ndarray | None:
    """The array that `packed` gave as one buffer, or as two: a view of it.

    None: there is only the form, and the data is another buffer.
    """
    (length, _) = _HEAD.unpack_from(buffer)
    start = _HEAD.size + length
    if data is None:
        if len(buffer) == start:
            return None
        data, at = buffer, start
    else:
        at = 0
    text = bytes(buffer[_HEAD.size : start])
    form = _forms.get(text)
    if form is None:
        dtype, *shape = text.decode().rstrip().split(",")
        form = _forms[text] = np.dtype(dtype), tuple(map(int, shape))
    return np.ndarray(form[1], form[0], data, at)
