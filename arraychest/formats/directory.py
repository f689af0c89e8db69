"""The directory: what a value file says of the values in it, should the catalog be lost.

It lies in front of each batch of values in a pack, and behind the data in a ``.npy`` file.  Nothing
reads it but `verify` and `repair`.  It holds the values' checksums, too (see `checksums`).

Layout, little-endian: the eight bytes ``ACHESTDR``; the stamp of its file (8 bytes); its own size
in bytes and the `zlib.crc32` of what follows (4 bytes each); the number of values (8 bytes); then
six columns of integers: generations, places in the order of insertion (of a value that had none
yet the highest there was), sizes in bytes, lengths of the canonical codes, lengths of the exact
codes (-1: none), numbers of the forms; the number of forms (8 bytes) and the column of their
lengths; then the canonical codes, the exact codes and the forms end to end; then how many bytes of
checksums each value has (8 bytes; 0 where there are none), and the checksums end to end.

A column is its first value and its step (8 bytes each); where the steps are not all the same, the
step is `_UNEVEN`, and each value follows in 8 bytes.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_HEAD = struct.Struct("<8sQII")
MAGIC = b"ACHESTDR"
HEAD_BYTES = _HEAD.size
_PAIR = struct.Struct("<qq")
_COUNT = struct.Struct("<q")
_UNEVEN = -(1 << 63)


class Listed(NamedTuple):
    """What a directory says of one value."""

    generation: int
    seq: int
    nbytes: int
    key: bytes
    exact: bytes | None
    form: str
    sums: bytes


def encode(
    stamp: int,
    generations: Sequence[int],
    seqs: Sequence[int],
    sizes: Sequence[int],
    codes: Sequence[bytes],
    exacts: Sequence[bytes | None],
    forms: Sequence[str],
    sums: bytes,
) -> bytes:
    """The directory of these values, column by column.  Some 0.2 us a value.

    `sums` are the values' checksums end to end, equally many of each, or none.
    """
    if forms.count(forms[0]) == len(forms):
        texts, numbers = [forms[0].encode()], _even(0, 0)
    else:
        known = {form: at for at, form in enumerate(dict.fromkeys(forms))}
        texts = [form.encode() for form in known]
        numbers = _column([known[form] for form in forms])
    if exacts.count(None) == len(exacts):
        exact_lengths = _even(-1, 0)
    else:
        exact_lengths = _column([-1 if exact is None else len(exact) for exact in exacts])
    body = b"".join([
        _COUNT.pack(len(codes)),
        _column(generations),
        _column(seqs),
        _column(sizes),
        _column(list(map(len, codes))),
        exact_lengths,
        numbers,
        _COUNT.pack(len(texts)),
        _column(list(map(len, texts))),
        *codes,
        *filter(None, exacts),
        *texts,
        _COUNT.pack(len(sums) // len(codes)),
        sums,
    ])  # fmt: skip
    return _HEAD.pack(MAGIC, stamp, HEAD_BYTES + len(body), zlib.crc32(body)) + body


def size_of(head: bytes, stamp: int) -> int | None:
    """Size in bytes of the directory of the file `stamp` that begins so; None if none does."""
    if len(head) < HEAD_BYTES:
        return None
    magic, found, size, _ = _HEAD.unpack_from(head)
    return int(size) if magic == MAGIC and found == stamp and size >= HEAD_BYTES else None


def decode(data: bytes, stamp: int, most: int) -> list[Listed] | None:
    """What a directory says; None if it is damaged, another file's, or lists more than `most`."""
    if size_of(data, stamp) != len(data) or _HEAD.unpack_from(data)[3] != zlib.crc32(
        data[HEAD_BYTES:]
    ):
        return None
    reader = _Reader(data, HEAD_BYTES)
    try:
        count = reader.count(most)
        generations, seqs, sizes, lengths, exact_lengths, numbers = (
            reader.column(count) for _ in range(6)
        )
        form_lengths = reader.column(reader.count(count))
        codes = list(map(reader.take, lengths))
        exacts = [None if length < 0 else reader.take(length) for length in exact_lengths]
        texts = [reader.take(length).decode() for length in form_lengths]
        forms = [texts[number] for number in numbers]
        (length,) = _COUNT.unpack(reader.take(_COUNT.size))
        sums = [reader.take(length) for _ in range(count)]
    except (struct.error, ValueError, IndexError):
        return None
    columns = zip(generations, seqs, sizes, codes, exacts, forms, sums, strict=True)
    return [Listed._make(row) for row in columns]


def find_all(data: bytes, stamp: int, most: int) -> list[tuple[int, int, list[Listed]]]:
    """``(start, end, values)`` of each sound directory in the bytes of a pack.

    They are looked for, and not followed from one to the next: one that is damaged hides no other.
    """
    mark = MAGIC + stamp.to_bytes(8, "little")
    found = []
    at = data.find(mark)
    while at >= 0:
        size = size_of(data[at : at + HEAD_BYTES], stamp)
        listed = None if size is None else decode(data[at : at + size], stamp, most)
        if size is not None and listed is not None:
            found.append((at, at + size, listed))
        at = data.find(mark, at + 1)
    return found


def _even(first: int, step: int) -> bytes:
    return _PAIR.pack(first, step)


def _column(values: Sequence[int]) -> bytes:
    first = values[0]
    if len(values) == 1:
        return _even(first, 0)
    if isinstance(values, range):
        return _even(first, values.step)
    array = np.array(values, "<i8")
    step = int(array[1]) - first
    if (np.diff(array) == step).all():
        return _even(first, step)
    return _PAIR.pack(first, _UNEVEN) + array.tobytes()


class _Reader:
    """Takes one thing after another off a directory; ValueError where it is not there."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, count: int) -> bytes:
        end = self._at + count
        if count < 0 or end > len(self._data):
            raise ValueError(f"expected {count} more bytes")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def count(self, most: int) -> int:
        (count,) = _COUNT.unpack(self.take(_COUNT.size))
        if not 0 < count <= most:
            raise ValueError(f"expected at most {most} values, found {count}")
        return int(count)

    def column(self, count: int) -> Sequence[int]:
        first, step = _PAIR.unpack(self.take(_PAIR.size))
        if step != _UNEVEN:
            steps: Iterable[int] = itertools.repeat(step, count - 1)
            return list(itertools.accumulate(steps, initial=first))
        values: list[int] = np.frombuffer(self.take(8 * count), "<i8").tolist()
        return values
