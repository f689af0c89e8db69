"""Many strings as two arrays: their characters in UTF-8, and where each begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from arraychest.integrations import checks

# Strings that are looked at together: enough to amortise each call, few enough that the copies
# in between take no memory to speak of.
_TOGETHER = 1 << 16

# Python's str may hold halves of surrogate pairs, which UTF-8 proper has no bytes for.
_ERRORS = "surrogatepass"


def pack(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 of all strings end to end, and the offsets of their ends, after a 0."""
    lengths = np.zeros(len(strings) + 1, np.int64)
    parts = []
    for start in range(0, len(strings), _TOGETHER):
        some = strings[start : start + _TOGETHER]
        joined = "".join(some)
        part = joined.encode("utf-8", _ERRORS)
        parts.append(part)
        if len(part) == len(joined):
            each = [len(one) for one in some]
        else:
            each = [len(one.encode("utf-8", _ERRORS)) for one in some]
        lengths[start + 1 : start + 1 + len(some)] = each
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum(lengths)


def unpack(data: np.ndarray, offsets: np.ndarray) -> Iterator[list[str]]:
    """The strings again, some at a time.

    Raises
    ------
    ValueError, TypeError
        These are no such arrays.
    """
    checks.array(data, "characters", ndim=1)
    if data.dtype != np.dtype(np.uint8):
        raise ValueError(f"expected characters of uint8, found {data.dtype}")
    checks.offsets(offsets, len(data), "offsets of strings")
    for start in range(0, len(offsets) - 1, _TOGETHER):
        bounds = offsets[start : start + _TOGETHER + 1].tolist()
        raw = data[bounds[0] : bounds[-1]].tobytes()
        pairs = [(a - bounds[0], b - bounds[0]) for a, b in itertools.pairwise(bounds)]
        if raw.isascii():
            joined = raw.decode("ascii")
            yield [joined[a:b] for a, b in pairs]
        else:
            yield [raw[a:b].decode("utf-8", _ERRORS) for a, b in pairs]
