"""What the tests of xarray's datasets share."""

from __future__ import annotations

import pytest

xr = pytest.importorskip("xarray")

from arraychest.xarray import save  # noqa: E402

# Before 2025 xarray had dates of nanoseconds only, and compared no strings of StringDType.
OTHER_DATES = STRINGDTYPE = hasattr(getattr(xr, "coders", None), "CFDatetimeCoder")


def opened(path, **options):
    return xr.open_dataset(path, engine="arraychest", **options)


def roundtrip(dataset, path, **options):
    save(dataset, path, mode="w", **options)
    return opened(path)


def check_same(found, right):
    """Equal in values, attributes, dtypes, the order of names, and the kind of each index."""
    xr.testing.assert_identical(found.load(), right.compute())
    assert list(found.variables) == list(right.variables)
    assert list(found.coords) == list(right.coords)
    for name, variable in right.variables.items():
        assert found[name].dtype == variable.dtype, name
        assert type(found[name].variable) is type(variable), name
    assert list(found.xindexes) == list(right.xindexes)
    for name, index in right.xindexes.items():
        assert type(found.xindexes[name]) is type(index), name
        if hasattr(index, "index"):
            assert type(found.indexes[name]) is type(right.indexes[name]), name
            assert found.indexes[name].identical(right.indexes[name]), name
            assert found.indexes[name].dtype == right.indexes[name].dtype, name
