"""The pack codec: many small arrays end to end, 64-byte aligned, served by one map.

Layout: a header of 64 bytes (``arraychest pack`` and a line feed, then 1, the format, and the
pack's stamp, each as 8 bytes, little-endian, then zeros); then each value's bytes, in C or Fortran
order as its form says, from a multiple of 64 on.  What lies where is in the catalog alone; a pack
only ever grows, and a value once in it is never rewritten.
"""

from __future__ import annotations

import struct

import numpy as np

from arraychest.formats.form import Form

ALIGN = 64
HEADER_BYTES = 64
_HEADER = struct.Struct("<16sQQ32x")
_MAGIC = b"arraychest pack\n"
_VERSION = 1

# Values below this many bytes are packed.  Measured (put, flush, reopen, get; ratio of pack to a
# file each): 1 KiB 0.05, 16 KiB 0.1, 64 KiB 0.4, 256 KiB 0.8, 1 MiB 1.0.  Above 64 KiB a hole that
# only compaction can reclaim weighs more than what the pack saves.
PACK_THRESHOLD = 64 * 1024

# A pack is closed at this size: small enough to be rewritten in a blink, large enough that a
# million arrays of 1 KiB need 16 maps.
PACK_BYTES = 64 << 20


def aligned(nbytes: int) -> int:
    """Bytes that a value takes in a pack: rounded up to where the next one starts.

    One of no bytes takes a place, too, or a pack that holds nothing else would count as empty.
    """
    return (nbytes + ALIGN - 1) & -ALIGN or ALIGN


def header(stamp: int) -> bytes:
    """The first bytes of a pack."""
    return _HEADER.pack(_MAGIC, _VERSION, stamp)


def stamp_of(head: bytes) -> int | None:
    """The stamp of the pack that starts with these bytes; None if it is no pack."""
    if len(head) != HEADER_BYTES:
        return None
    magic, version, stamp = _HEADER.unpack(head)
    return int(stamp) if magic == _MAGIC and version == _VERSION else None


def view(base: np.ndarray, form: Form, offset: int) -> np.ndarray:
    """The value at `offset` of a mapped file (`base`: its bytes, uint8), without a copy."""
    return np.ndarray(form.shape, form.dtype, base, offset, order=form.order)
