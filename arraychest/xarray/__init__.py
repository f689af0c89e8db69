"""Datasets of xarray in a chest: `save`, and ``xarray.open_dataset(path, engine="arraychest")``.

Each variable is an entry ``("variable", name)``, stored and compressed as any array is; of a dask
array its blocks.  The entry ``"dataset"`` says what they are: dimensions, attributes, and which of
them are coordinates; without it there is no dataset.  One commit puts them all.
"""

from arraychest.xarray.backend import ArrayChestBackend
from arraychest.xarray.saving import save

__all__ = ["ArrayChestBackend", "save"]
