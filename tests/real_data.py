"""Measured data that packages ship, tiled to any size: what compresses as real arrays do."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import numpy as np
import pytest

# Rows by which each copy is turned on beside the one before: few, and they come to no whole turn.
_ROLLED = 37


def _tiled(tile: np.ndarray, nbytes: int) -> np.ndarray:
    """Copies of a picture in rows and columns, of about so many bytes.

    Each is a little brighter, and turned down a little farther than the one beside it: no row goes
    on with what it began with, which a codec would find.
    """
    side = max(round((nbytes / tile.nbytes) ** 0.5), 1)
    rolled = [np.roll(tile, _ROLLED * column, axis=0) for column in range(side)]
    rows = [
        np.concatenate(
            [each + tile.dtype.type(3 * row + column) for column, each in enumerate(rolled)], axis=1
        )
        for row in range(side)
    ]
    return np.ascontiguousarray(np.concatenate(rows, axis=0))


def terrain(nbytes: int) -> np.ndarray:
    """Heights in metres, int16: Matplotlib's elevation model of the Jacksboro fault."""
    cbook = pytest.importorskip("matplotlib.cbook")
    with cbook.get_sample_data("jacksboro_fault_dem.npz") as model:
        return _tiled(model["elevation"].astype(np.int16), nbytes)


def slope(nbytes: int) -> np.ndarray:
    """Steepness of the same ground, float32: a field derived from measurements."""
    heights = terrain(nbytes // 2).astype(np.float32)
    down, across = np.gradient(heights, np.float32(90), np.float32(73))
    return np.hypot(down, across).astype(np.float32)


def photographs(nbytes: int) -> np.ndarray:
    """A stack of pictures in colour, uint8: scikit-learn's temple and flower in turn."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = datasets.load_sample_images().images
    count = max(round(nbytes / images[0].nbytes), 1)
    return np.stack([images[number % len(images)] for number in range(count)])


def scan(nbytes: int) -> np.ndarray:
    """A magnetic resonance scan, uint16, as a stack of slices: Matplotlib's, a little brighter each
    time.
    """
    cbook = pytest.importorskip("matplotlib.cbook")
    with cbook.get_sample_data("s1045.ima.gz", asfileobj=True) as file:
        # It is unpacked already by some versions of Matplotlib.
        data = file.read()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    slice_ = np.frombuffer(data, np.uint16).reshape(256, 256)
    count = max(round(nbytes / slice_.nbytes), 1)
    return np.stack([slice_ + np.uint16(number % 8) for number in range(count)])


FIELDS: dict[str, Callable[[int], np.ndarray]] = {
    "terrain int16": terrain,
    "slope float32": slope,
    "photographs uint8": photographs,
    "scan uint16": scan,
}
