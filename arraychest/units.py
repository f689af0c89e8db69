"""Byte sizes as people write them: ``"4 GiB"`` is ``4 * 2**30``, ``"4 GB"`` is ``4 * 10**9``."""

from __future__ import annotations

import re

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgtp])(i?))?b?\s*", re.IGNORECASE)


def parse_bytes(size: int | float | str) -> int:
    """Number of bytes that a size stands for.

    Parameters
    ----------
    size
        A number of bytes, or a string such as ``"4 GiB"``, ``"512k"``, ``"1.5GB"``.  As for
        dask, ``KiB`` means 1024 bytes, ``kB`` and ``k`` mean 1000.

    Raises
    ------
    ValueError
        The string is no size, or the number is negative or not finite.

    Examples
    --------
    >>> parse_bytes("2 GiB"), parse_bytes("1.5k"), parse_bytes(4096)
    (2147483648, 1500, 4096)
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is None:
            raise ValueError(f'expected a size such as "4 GiB" or 4096, found {size!r}')
        step = 1024 if match[3] else 1000
        return int(float(match[1]) * step ** _POWERS[(match[2] or "").lower()])
    if not 0 <= size < float("inf"):
        raise ValueError(f"expected a size of 0 bytes or more, found {size!r}")
    return int(size)


def format_bytes(size: float) -> str:
    """A size in bytes for people, to three figures.

    Examples
    --------
    >>> format_bytes(0), format_bytes(2**31), format_bytes(1536), format_bytes(123_456_789)
    ('0 B', '2 GiB', '1.5 KiB', '118 MiB')
    """
    value = float(size)
    units = ["PiB", "TiB", "GiB", "MiB", "KiB", "B"]
    while abs(value) >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.3g} {units[-1]}"
