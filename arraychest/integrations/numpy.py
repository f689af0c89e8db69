"""NumPy's own: masked arrays, arrays of `StringDType`, record arrays, matrices.

All but the strings are views of arrays that are mapped.  Those are stored as UTF-8 and made anew
when they are read: NumPy has no string array over foreign memory.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import numpy as np

from arraychest.errors import ValueTypeError
from arraychest.integrations import checks, text
from arraychest.values.registry import register


def _of_masked(value: Any) -> dict[str, Any]:
    mask = np.ma.getmask(value)
    return {
        "data": np.ma.getdata(value),
        # As the data is a view: neither is taken over, nor frozen, without the other.
        "mask": None if mask is np.ma.nomask else mask.view(),
        # The property makes a default one where there is none.
        "fill_value": value._fill_value,
        "hard_mask": bool(value.hardmask),
        "info": dict(value._optinfo),
    }


def _masked(tree: Any) -> np.ma.MaskedArray:
    data, mask, fill, hard, info = checks.fields(
        tree, "data", "mask", "fill_value", "hard_mask", "info"
    )
    if not isinstance(data, np.ndarray) or isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"expected masked data as an array, found {checks.shown(data)}")
    checks.exactly(bool, hard, "hard_mask")
    checks.exactly(dict, info, "info")
    dtype = np.ma.make_mask_descr(data.dtype)
    if mask is not None:
        checks.array(mask, "a mask")
        if mask.dtype != dtype or mask.shape != data.shape:
            raise ValueError(
                f"expected a mask of {dtype} and shape {data.shape}, found {mask.dtype} and "
                f"{mask.shape}"
            )
    value: Any = np.ma.MaskedArray(
        data, mask=np.ma.nomask if mask is None else mask, copy=False, hard_mask=hard
    )
    if fill is not None:
        checks.array(fill, "a fill value", ndim=0)
        if fill.dtype != data.dtype:
            raise ValueError(f"expected a fill value of {data.dtype}, found {fill.dtype}")
        # Setting the property would convert it; it is written to when it is set again.
        value._fill_value = fill.copy()
    value._optinfo.update(info)
    return cast(np.ma.MaskedArray, value)


def _of_strings(array: np.ndarray) -> dict[str, Any]:
    dtype: Any = array.dtype
    has_na = hasattr(dtype, "na_object")
    na = dtype.na_object if has_na else None
    is_nan = type(na) is float and math.isnan(na)
    if has_na and not (na is None or is_nan or type(na) is str):
        raise ValueTypeError(
            f"expected a StringDType whose na_object is None, nan or a string, found {na!r}: use "
            "array.astype(np.dtypes.StringDType(na_object=None))"
        )
    order: Literal["C", "F"] = (
        "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
    )
    strings = array.ravel(order).tolist()
    missing = None
    if has_na and type(na) is not str:
        # Nothing else that such an array holds is no str.  Where the missing are strings, they are
        # missing again once they are assigned.
        flags = np.fromiter((type(one) is not str for one in strings), bool, len(strings))
        if flags.any():
            missing = flags
            strings = ["" if type(one) is not str else one for one in strings]
    data, offsets = text.pack(strings)
    return {
        "shape": array.shape,
        "order": order,
        "coerce": bool(dtype.coerce),
        "na": (na,) if has_na else (),
        "characters": data,
        "offsets": offsets,
        "missing": missing,
    }


def _strings(tree: Any) -> np.ndarray:
    shape, order, coerce, na, data, offsets, missing = checks.fields(
        tree, "shape", "order", "coerce", "na", "characters", "offsets", "missing"
    )
    checks.shape_of(shape)
    checks.exactly(bool, coerce, "coerce")
    checks.exactly(tuple, na, "what stands for missing strings")
    if order != "C" and order != "F":
        raise ValueError(f"expected C or F as order, found {checks.shown(order)}")
    options: dict[str, Any] = {"coerce": coerce}
    if na:
        (options["na_object"],) = na
        if type(na[0]) is float and math.isnan(na[0]):
            options["na_object"] = np.nan
        elif na[0] is not None and type(na[0]) is not str:
            raise ValueError(f"expected None, nan or a string, found {checks.shown(na[0])}")
    checks.array(offsets, "offsets of strings", ndim=1)
    checks.size_of(shape, len(offsets) - 1)
    flat: np.ndarray = np.empty(len(offsets) - 1, np.dtypes.StringDType(**options))
    done = 0
    for some in text.unpack(data, offsets):
        flat[done : done + len(some)] = some
        done += len(some)
    if missing is not None:
        checks.array(missing, "what is missing", ndim=1, kinds="b")
        if not na or type(na[0]) is str or len(missing) != len(flat):
            raise ValueError("expected as many strings, of which some may be missing")
        flat[missing] = options["na_object"]
    return flat.reshape(shape, order=order)


def _of_records(array: np.recarray) -> np.ndarray:
    return array.view(_plain(array.dtype), np.ndarray)


def _records(tree: Any) -> np.recarray:
    # Makes records of a structured dtype by itself.
    return checks.array(tree, "records").view(np.recarray)


def _of_record(scalar: np.record) -> np.ndarray:
    array: np.ndarray = np.array(scalar)
    return array.view(_plain(array.dtype)).copy()


def _record(tree: Any) -> np.record:
    array = checks.array(tree, "a record", ndim=0, kinds="V")
    if array.dtype.names is None:
        raise ValueError(f"expected a record of fields, found {array.dtype}")
    # A copy: a record is a view of its array, and a scalar is a value of its own.
    record: Any = array.copy().view(np.dtype((np.record, array.dtype)))[()]
    return cast(np.record, record)


def _plain(dtype: np.dtype) -> np.dtype:
    """The dtype that a `.npy` header can tell: elements are not `np.record` but `np.void`."""
    return dtype if dtype.names is None else np.dtype((np.void, dtype))


def _of_matrix(value: np.matrix) -> np.ndarray:
    return value.view(np.ndarray)


def _matrix(tree: Any) -> np.matrix:
    return checks.array(tree, "a matrix", ndim=2).view(np.matrix)


def _of_masked_constant(_: Any) -> None:
    return None


def _masked_constant(tree: Any) -> Any:
    if tree is not None:
        raise ValueError(f"expected nothing, found {checks.shown(tree)}")
    return np.ma.masked


register(np.ma.MaskedArray, _of_masked, _masked, name="numpy.ma.MaskedArray")
register(type(np.ma.masked), _of_masked_constant, _masked_constant, name="numpy.ma.masked")
# The class of dtypes stands for arrays.
_STRINGS: Any = np.dtypes.StringDType

register(_STRINGS, _of_strings, _strings, name="numpy.dtypes.StringDType")
register(np.recarray, _of_records, _records, name="numpy.recarray")
register(np.record, _of_record, _record, name="numpy.record")
register(np.matrix, _of_matrix, _matrix, name="numpy.matrix")
