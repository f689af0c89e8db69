"""Which stored value an array is, so that what it contains is computed once for all processes.

An array that a chest handed out is known by itself: as the object that it is, for as long as it
lives.  A view of it is another array.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from arraychest.arrays import digests
from arraychest.arrays.lazy import LazyArray
from arraychest.arrays.ownership import owner_of
from arraychest.platform.maps import is_map


class Source(Protocol):
    """Where digests of stored arrays are kept."""

    def find_digest(self, generation: int, part: int) -> bytes | None:
        """What a stored array contains; None if nobody has said."""

    def is_written_in_place(self, code: bytes, generation: int) -> bool:
        """Whether the file of this value of a key is written to, or may have been."""

    def record_digest(self, origin: Origin, digest: bytes) -> None:
        """Keep what it contains, where that can be done."""


class Origin(NamedTuple):
    """Where an array is stored.

    Attributes
    ----------
    source
        Gives the chest, as long as it is there.
    code, generation
        The canonical code of the value's key, and its generation.
    part
        Which array in it; see `record.Facts`.
    dtype, shape
        Those of the array, which a user can assign to.
    """

    source: Callable[[], Source | None]
    code: bytes
    generation: int
    part: int
    dtype: np.dtype
    shape: tuple[int, ...]


_origins: dict[int, tuple[weakref.ref[Any], Origin]] = {}


def note(
    array: np.ndarray | LazyArray,
    source: Callable[[], Source | None],
    code: bytes,
    generation: int,
    part: int,
) -> None:
    """An array is this stored value.  Some 1 us."""
    origin = Origin(source, code, generation, part, array.dtype, array.shape)
    note_again(array, origin)


def note_again(array: np.ndarray | LazyArray, origin: Origin) -> None:
    """An array is what another was: the same, decompressed."""
    identity = id(array)

    def forget(
        gone: weakref.ref[Any],
        origins: dict[int, tuple[weakref.ref[Any], Origin]] = _origins,
    ) -> None:
        # `origins` as a default: at interpreter exit the module's names may be gone before.
        known = origins.get(identity)
        if known is not None and known[0] is gone:
            del origins[identity]

    _origins[identity] = weakref.ref(array, forget), origin


def of(array: np.ndarray | LazyArray) -> Origin | None:
    """Where an array is stored; None if no chest has handed it out."""
    known = _origins.get(id(array))
    return known[1] if known is not None and known[0]() is array else None


def digest_of(array: np.ndarray | LazyArray) -> bytes:
    """What an array contains (see `digests`): known, recorded where it is stored, or computed now.

    Notes
    -----
    Some 1 us for a read-only array that was asked for before, 10 for one whose chest knows it; else
    its bytes are read, at the speed of memory.  May be called from any thread, without a lock.
    """
    digest = digests.known(array)
    origin = of(array)
    if origin is None:
        if digest is None:
            digest = digests.array_digest(array)
            digests.remember(array, digest)
        return digest
    source = origin.source()
    if _may_have_changed(array, origin, source):
        return digests.array_digest(array)
    if digest is not None:
        return digest
    recorded = None
    trusted = source is not None and _is_as_stored(array, origin)
    if trusted and source is not None:
        recorded = source.find_digest(origin.generation, origin.part)
        # Made by another hash function, or by nobody who knows how.
        if recorded is not None and (len(recorded) != _SIZE or recorded[:1] != _letter()):
            recorded = None
    digest = digests.array_digest(array) if recorded is None else recorded
    if trusted and source is not None and recorded is None:
        source.record_digest(origin, digest)
    digests.remember(array, digest)
    return digest


# Bytes of a digest.
_SIZE = 17


@functools.cache
def _letter() -> bytes:
    """What digests begin with that are made here."""
    return digests.array_digest(np.empty(0, np.uint8))[:1]


def _may_have_changed(array: np.ndarray | LazyArray, origin: Origin, source: Source | None) -> bool:
    """Whether an editor may have written into the file that an array is a map of.

    That the array is read-only says nothing of other maps.  Of a chest that is closed nobody can
    say.
    """
    if isinstance(array, LazyArray) or not is_map(owner_of(array)):
        return False
    return source is None or source.is_written_in_place(origin.code, origin.generation)


def _is_as_stored(array: np.ndarray | LazyArray, origin: Origin) -> bool:
    """Whether an array that came out of a chest is still what it was then."""
    if isinstance(array, LazyArray):
        return True
    owner = owner_of(array)
    return not (
        array.flags.writeable
        or (isinstance(owner, np.ndarray) and owner.flags.writeable)
        or array.dtype is not origin.dtype
        or array.shape != origin.shape
    )
