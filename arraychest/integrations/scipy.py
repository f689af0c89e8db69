"""SciPy's sparse arrays and matrices, in every format.

The components of bsr, coo, csc, csr and dia are arrays, which are mapped and not copied; dok and
lil hold Python objects, which are made anew.

SciPy's C code trusts indices: one out of bounds writes where it must not.  So all of them are read
and compared with the shape when a value is read, which costs a pass over the indices and none over
the data.  What this finds wrong is refused when the value is put, too.  Whether indices are sorted,
or without duplicates, is not stored: SciPy looks for itself when it needs to know.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from arraychest.errors import ValueTypeError
from arraychest.integrations import checks
from arraychest.values.registry import register

# What SciPy computes with; float16 and others can be stored all the same.
_KINDS = "biufc"


def _of_rows(value: Any) -> dict[str, Any]:
    data, indices = np.asarray(value.data), np.asarray(value.indices)
    used = int(value.indptr[-1])
    if used < len(indices):
        # What lies behind the last row is left over from a removal, and belongs to nothing.
        data, indices = data[:used], indices[:used]
    return {
        "shape": value.shape,
        "data": data,
        "indices": indices,
        "indptr": np.asarray(value.indptr),
    }


# No constructor takes components as they are: all look for the smallest dtype that the indices
# fit, and copy them where it is another.  So each value is made empty, and given them.


def _compressed(kind: type[Any]) -> Callable[[Any], Any]:
    is_csc = kind in (sparse.csc_array, sparse.csc_matrix)
    ndims = (1, 2) if kind is sparse.csr_array else (2,)

    def from_tree(tree: Any) -> Any:
        shape, data, indices, indptr = checks.fields(tree, "shape", "data", "indices", "indptr")
        checks.shape_of(shape, *ndims)
        checks.array(data, "data", ndim=1, kinds=_KINDS)
        _check_rows(
            indices, indptr, shape if len(shape) == 2 else (1, *shape), len(data), is_csc=is_csc
        )
        value = kind(shape)
        value.data, value.indices, value.indptr = data, indices, indptr
        return value

    return from_tree


def _bsr(kind: type[Any]) -> Callable[[Any], Any]:
    def from_tree(tree: Any) -> Any:
        shape, data, indices, indptr = checks.fields(tree, "shape", "data", "indices", "indptr")
        checks.shape_of(shape, 2)
        checks.array(data, "data", ndim=3, kinds=_KINDS)
        block = data.shape[1:]
        if 0 in block or shape[0] % block[0] or shape[1] % block[1]:
            raise ValueError(f"expected blocks that tile {shape}, found {block}")
        blocks = (shape[0] // block[0], shape[1] // block[1])
        _check_rows(indices, indptr, blocks, len(data), is_csc=False)
        _check_dimensions(shape, indices)
        value = kind(shape, blocksize=block)
        value.data, value.indices, value.indptr = data, indices, indptr
        return value

    return from_tree


def _check_rows(
    indices: Any, indptr: Any, shape: tuple[int, ...], nnz: int, *, is_csc: bool
) -> None:
    major, minor = reversed(shape) if is_csc else shape
    checks.index_array(indices, "indices")
    if len(indices) != nnz:
        raise ValueError(f"expected {nnz} indices, found {len(indices)}")
    checks.offsets(indptr, nnz, "indptr")
    if indptr.dtype != indices.dtype or len(indptr) != major + 1:
        raise ValueError(
            f"expected indptr of {indices.dtype} and length {major + 1}, found {indptr.dtype} and "
            f"{len(indptr)}"
        )
    _check_dimensions(shape, indices)
    checks.within(indices, 0, minor, "indices")


def _check_dimensions(shape: tuple[int, ...], *indices: np.ndarray) -> None:
    """That C code that counts in the dtype of the indices can count each dimension."""
    most = min([np.iinfo(each.dtype).max for each in indices])
    if max(shape, default=0) > most:
        raise ValueError(f"expected dimensions up to {most}, found {shape}")


def _of_coo(value: Any) -> dict[str, Any]:
    return {
        "shape": value.shape,
        "data": np.asarray(value.data),
        "coords": tuple(map(np.asarray, value.coords)),
        "canonical": bool(value.has_canonical_format) and _is_canonical(value.coords),
    }


def _coo(kind: type[Any]) -> Callable[[Any], Any]:
    ndims = () if kind is sparse.coo_array else (2,)

    def from_tree(tree: Any) -> Any:
        shape, data, coords, canonical = checks.fields(tree, "shape", "data", "coords", "canonical")
        checks.shape_of(shape, *ndims)
        checks.array(data, "data", ndim=1, kinds=_KINDS)
        checks.exactly(tuple, coords, "coords")
        if len(coords) != len(shape) or not coords:
            raise ValueError(f"expected {len(shape)} arrays of coords, found {len(coords)}")
        for each, size in zip(coords, shape, strict=True):
            checks.index_array(each, "coords")
            checks.within(each, 0, size, "coords")
            if each.dtype != coords[0].dtype:
                raise ValueError(f"expected coords of {coords[0].dtype}, found {each.dtype}")
        checks.same_length("data and coords", data, *coords)
        _check_dimensions(shape, *coords)
        if checks.exactly(bool, canonical, "canonical") and not _is_canonical(coords):
            raise ValueError("expected coords in canonical order, found another")
        value = kind(shape)
        value.data, value.coords, value.has_canonical_format = data, coords, canonical
        return value

    return from_tree


def _is_canonical(coords: tuple[np.ndarray, ...]) -> bool:
    """Whether coords are sorted, by the first of them or by the last, and none is there twice.

    Asked only where SciPy says so: an order that SciPy does not know of is left for it to find.
    Which of the two it sorts by depends on its version.
    """
    return _rises(coords) or _rises(coords[::-1])


def _rises(coords: tuple[np.ndarray, ...]) -> bool:
    rises = np.zeros(max(len(coords[0]) - 1, 0), bool)
    same = ~rises
    for each in coords:
        rises |= same & (each[1:] > each[:-1])
        same &= each[1:] == each[:-1]
    return bool(rises.all())


def _of_dia(value: Any) -> dict[str, Any]:
    return {
        "shape": value.shape,
        "data": np.asarray(value.data),
        "offsets": np.asarray(value.offsets),
    }


def _dia(kind: type[Any]) -> Callable[[Any], Any]:
    def from_tree(tree: Any) -> Any:
        shape, data, offsets = checks.fields(tree, "shape", "data", "offsets")
        checks.shape_of(shape, 2)
        checks.array(data, "data", ndim=2, kinds=_KINDS)
        checks.index_array(offsets, "offsets of diagonals")
        checks.same_length("diagonals and their offsets", data, offsets)
        _check_dimensions((*shape, *data.shape), offsets)
        # Its C code adds a dimension to an offset.
        most = np.iinfo(offsets.dtype).max - max(*shape, *data.shape)
        checks.within(offsets, -most, most + 1, "offsets of diagonals")
        if len(np.unique(offsets)) != len(offsets):
            raise ValueError("expected each diagonal once, found one twice")
        value = kind(shape)
        value.data, value.offsets = data, offsets
        return value

    return from_tree


def _of_dok(value: Any) -> dict[str, Any]:
    keys = list(value.keys())
    ndim = len(value.shape)
    return {
        "shape": value.shape,
        "coords": np.array(keys, np.int64).reshape(len(keys), ndim),
        "data": np.array(list(value.values()), value.dtype),
    }


def _dok(kind: type[Any]) -> Callable[[Any], Any]:
    ndims = (1, 2) if kind is sparse.dok_array else (2,)

    def from_tree(tree: Any) -> Any:
        shape, coords, data = checks.fields(tree, "shape", "coords", "data")
        checks.shape_of(shape, *ndims)
        checks.array(data, "data", ndim=1, kinds=_KINDS)
        checks.array(coords, "coords", ndim=2)
        if coords.dtype != np.dtype(np.int64) or coords.shape != (len(data), len(shape)):
            raise ValueError(
                f"expected coords of int64 and shape {(len(data), len(shape))}, found "
                f"{coords.dtype} and {coords.shape}"
            )
        _check_dimensions(shape, coords)
        for axis, size in enumerate(shape):
            checks.within(coords[:, axis], 0, size, "coords")
        value = kind(shape, dtype=data.dtype)
        keys = coords[:, 0].tolist() if len(shape) == 1 else map(tuple, coords.tolist())
        for key, element in zip(keys, data, strict=True):
            # Setting an item drops zeros, which may be there.
            value.setdefault(key, element)
        if len(value.keys()) != len(data):
            raise ValueError("expected each element once, found one twice")
        return value

    return from_tree


def _of_lil(value: Any) -> dict[str, Any]:
    if any(len(a) != len(b) for a, b in zip(value.rows, value.data, strict=True)):
        raise ValueError("expected as many elements as columns in each row, found others")
    indices = list(itertools.chain.from_iterable(value.rows))
    return {
        "shape": value.shape,
        "ends": np.cumsum([0, *map(len, value.rows)], dtype=np.int64),
        "indices": np.array(indices, np.int64),
        "data": np.array(list(itertools.chain.from_iterable(value.data)), value.dtype),
    }


def _lil(kind: type[Any]) -> Callable[[Any], Any]:
    def from_tree(tree: Any) -> Any:
        shape, ends, indices, data = checks.fields(tree, "shape", "ends", "indices", "data")
        checks.shape_of(shape, 2)
        checks.array(data, "data", ndim=1, kinds=_KINDS)
        _check_rows(indices, ends, shape, len(data), is_csc=False)
        value = kind(shape, dtype=data.dtype)
        columns, elements, bounds = indices.tolist(), data.tolist(), ends.tolist()
        for row, (start, end) in enumerate(itertools.pairwise(bounds)):
            value.rows[row] = columns[start:end]
            value.data[row] = elements[start:end]
        return value

    return from_tree


def _checked(
    kind: type[Any], to_tree: Callable[[Any], dict[str, Any]], from_tree: Callable[[Any], Any]
) -> Callable[[Any], dict[str, Any]]:
    """`to_tree`, refusing what would not be read again: anybody may set the components."""

    def checked(value: Any) -> dict[str, Any]:
        try:
            tree = to_tree(value)
            from_tree(tree)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise ValueTypeError(
                f"expected a valid {kind.__name__}, found one that SciPy may not compute with: "
                f"{error}"
            ) from error
        return tree

    return checked


def _register_all() -> None:
    formats: dict[str, tuple[Any, Any]] = {
        "bsr": (_of_rows, _bsr),
        "coo": (_of_coo, _coo),
        "csc": (_of_rows, _compressed),
        "csr": (_of_rows, _compressed),
        "dia": (_of_dia, _dia),
        "dok": (_of_dok, _dok),
        "lil": (_of_lil, _lil),
    }
    for name, (to_tree, maker) in formats.items():
        for suffix in ("array", "matrix"):
            kind = getattr(sparse, f"{name}_{suffix}")
            from_tree = maker(kind)
            register(
                kind,
                _checked(kind, to_tree, from_tree),
                from_tree,
                name=f"scipy.sparse.{kind.__name__}",
            )


_register_all()
