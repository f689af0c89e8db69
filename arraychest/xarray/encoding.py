"""How values are stored: what an ``encoding`` asks for, packed and unpacked by xarray's own coders.

xarray packs numbers (``scale_factor`` and the like) and times (``units``) by the CF conventions;
nothing of that is done here.  What is packed is unpacked when a dataset is opened, and nothing else
is: a variable whose attributes only look as if it were packed comes back as it was.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from xarray.coding.times import CFDatetimeCoder

from arraychest.formats.compression import Asked, parse_compression
from arraychest.formats.manifest import Chunks
from arraychest.storage.block_writer import regular

# What CF packs numbers by, and times.
NUMBERS = ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
TIMES = ("dtype", "units", "calendar", "_FillValue", "missing_value")
_CHUNKS = ("chunks", "chunksizes")
_COMPRESSION = ("compression", "zlib", "complevel", "shuffle", "compressor", "compressors")
# What netCDF4, h5netcdf and zarr take beside these, and a chest does without.
_IGNORED = (
    "blosc_shuffle", "char_dim_name", "chunked_array_type", "compression_opts", "contiguous",
    "coordinates", "endian", "fill_value", "filters", "fletcher32", "grid_mapping",
    "least_significant_digit", "object_codec", "original_shape", "preferred_chunks",
    "quantize_mode", "serializer", "shards", "significant_digits", "source", "szip",
    "szip_coding", "szip_pixels_per_block", "unlimited_dims", "zstd",
)  # fmt: skip
_CODECS = {"gzip": "zlib"}


@dataclass
class Storage:
    """How one variable is stored.

    Attributes
    ----------
    packing
        What the CF coders are told; empty: the values are stored as they are.
    chunks
        The sizes of the blocks; None: one block, or those of the dask array.
    compression
        As `Chest.put` takes it; only where `is_compression_told`.
    """

    packing: dict[str, Any] = field(default_factory=dict)
    chunks: Chunks | None = None
    compression: Asked = None
    is_compression_told: bool = False


def storage_of(name: Hashable, variable: xr.Variable, asked: Mapping[str, Any] | None) -> Storage:
    """What the encoding of a variable asks for.

    Parameters
    ----------
    asked
        What the user gave as ``encoding=`` for it; None: its own ``encoding`` says how numbers are
        packed, and nothing else, as the rest of it describes another file.

    Raises
    ------
    ValueError
        `asked` has a name that no encoding has, or a value that makes no sense.
    """
    if asked is None:
        found = Storage()
        if variable.dtype.kind in "iuf":
            found.packing = _packing(variable, variable.encoding, NUMBERS)
        return found
    known = {*NUMBERS, *TIMES, *_CHUNKS, *_COMPRESSION, *_IGNORED}
    if unknown := [each for each in asked if each not in known]:
        raise ValueError(
            f"expected the encoding of the variable {name!r:.200} to have names such as "
            f"{', '.join((*NUMBERS, 'units', 'calendar', 'chunks', 'compression'))}, found "
            f"{', '.join(map(repr, unknown))}"
        )
    taken = {each: value for each, value in asked.items() if each in (*_CHUNKS, *_COMPRESSION)}
    found = Storage(chunks=_chunks(name, variable, taken))
    ignored = [each for each in asked if each in _IGNORED]
    kind = variable.dtype.kind if isinstance(variable.dtype, np.dtype) else "O"
    packing = NUMBERS if kind in "biufc" else TIMES if kind in "mM" else ()
    found.packing = _packing(variable, asked, packing)
    ignored += [
        each
        for each in asked
        if each in (*NUMBERS, *TIMES) and each not in packing and asked[each] is not None
    ]
    if kind in "biufcmM":
        ignored += _compression(name, asked, found)
    else:
        ignored += [each for each in asked if each in _COMPRESSION]
    if ignored:
        warnings.warn(
            f"save ignores {', '.join(map(repr, ignored))} in the encoding of the variable "
            f"{name!r:.200}: a chest has no such setting for {variable.dtype}",
            stacklevel=5,
        )
    return found


def _packing(
    variable: xr.Variable, encoding: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    found = {name: encoding[name] for name in names if encoding.get(name) is not None}
    dtype = found.get("dtype")
    if dtype is not None:
        try:
            found["dtype"] = np.dtype(dtype)
        except TypeError:
            found.pop("dtype")
        if set(found) == {"dtype"} and found["dtype"] == variable.dtype:
            return {}
    return found


def _chunks(name: Hashable, variable: xr.Variable, asked: Mapping[str, Any]) -> Chunks | None:
    told = next((asked[each] for each in _CHUNKS if asked.get(each) is not None), None)
    if told is None:
        return None
    sides = (told,) * variable.ndim if isinstance(told, int) else told
    try:
        sizes = tuple(
            n if side in (None, -1) else int(side)
            for side, n in zip(sides, variable.shape, strict=True)
        )
    except (TypeError, ValueError):
        sizes = (0,)
    if (
        any(size <= 0 < n for size, n in zip(sizes, variable.shape, strict=False))
        or len(sizes) != variable.ndim
    ):
        raise ValueError(
            f"expected chunks of the variable {name!r:.200} as {variable.ndim} sizes above 0, one "
            f"for each of the dimensions {variable.dims}, found {told!r:.200}"
        )
    return regular(variable.shape, sizes) if variable.ndim else None


def _compression(name: Hashable, asked: Mapping[str, Any], found: Storage) -> list[str]:
    """Take over how to compress; returns the names of what has no counterpart."""
    ignored = []
    level, codec = asked.get("complevel"), None
    for each in ("compressors", "compressor", "compression"):
        if each not in asked:
            continue
        codec = asked[each]
        if isinstance(codec, tuple | list) and not codec:
            codec = None
        if codec is None:
            found.is_compression_told = True
        elif isinstance(codec, str) or type(codec).__name__ == "CParams":
            codec = _CODECS.get(codec, codec) if isinstance(codec, str) else codec
            _check_codec(name, codec)
            found.compression, found.is_compression_told = codec, True
        else:
            ignored.append(each)
    if asked.get("zlib") and not isinstance(codec, str):
        found.compression, found.is_compression_told = "zlib", True
    if level is not None and isinstance(found.compression, str) and found.compression != "auto":
        found.compression = _with_level(name, found.compression, level)
    elif level is not None:
        ignored.append("complevel")
    # A codec always goes with Blosc2's shuffling, as netCDF4's zlib does by default.
    if "shuffle" in asked and not (asked["shuffle"] and found.compression is not None):
        ignored.append("shuffle")
    return ignored


def _check_codec(name: Hashable, codec: Any) -> None:
    try:
        parse_compression(codec)
    except ValueError as error:
        raise ValueError(f"compression of the variable {name!r:.200}: {error}") from error


def _with_level(name: Hashable, codec: str, level: Any) -> Any:
    import blosc2

    if not isinstance(level, int) or not 0 <= level <= 9:
        raise ValueError(
            f"expected complevel of the variable {name!r:.200} from 0 to 9, found {level!r:.200}"
        )
    return blosc2.CParams(codec=blosc2.Codec[codec.upper()], clevel=level)


# Packing, and back.


def packed(name: Hashable, variable: xr.Variable, packing: Mapping[str, Any]) -> xr.Variable:
    """The variable as the CF conventions pack it; one of dask stays lazy."""
    plain = xr.Variable(variable.dims, variable._data, variable.attrs, dict(packing), fastpath=True)
    return xr.conventions.encode_cf_variable(plain, name=name)


@dataclass(frozen=True)
class Decoding:
    """What `xarray.open_dataset` was told about unpacking.

    None: what `save` packed is unpacked.  True: every variable is, by its attributes.  False: none.
    """

    mask_and_scale: bool | None = None
    decode_times: Any = None
    decode_timedelta: Any = None
    use_cftime: bool | None = None
    decode_coords: Any = None


def unpacked(
    name: Hashable, variable: xr.Variable, told: Mapping[str, Any], decoding: Decoding
) -> xr.Variable:
    """A stored variable as it was, lazily; `told` is its description.

    Parameters
    ----------
    told
        ``"packed"`` is ``"numbers"``, ``"times"`` or ``"cftime"``, or is missing.
    """
    kind = told.get("packed")

    def choice(asked: Any) -> Any:
        return kind is not None if asked is None else asked

    scale, times, spans = map(
        choice, (decoding.mask_and_scale, decoding.decode_times, decoding.decode_timedelta)
    )
    if decoding.decode_times is False and decoding.decode_timedelta is None:
        spans = False
    if not (scale or times or spans):
        return variable
    options: dict[str, Any] = {"decode_times": times, "decode_timedelta": spans}
    if times is True:
        wanted = kind == "cftime" if decoding.use_cftime is None else decoding.use_cftime
        options |= _times(wanted or None, told.get("unit"))
    if spans is True:
        options["decode_timedelta"] = _span_coder(told.get("unit"))
    return xr.conventions.decode_cf_variable(
        name,
        variable,
        concat_characters=False,
        mask_and_scale=bool(scale),
        decode_endianness=False,
        **options,
    )


def with_coordinates(dataset: xr.Dataset, asked: Any) -> xr.Dataset:
    """The coordinates that `xarray.open_dataset` was asked for by ``decode_coords=``.

    None: those that were saved.  False: those with a dimension's name.  Else also the variables
    that attributes name as coordinates by the CF conventions.
    """
    if asked is None:
        return dataset
    if asked is False:
        return dataset.reset_coords([n for n in dataset.coords if n not in dataset.xindexes])
    variables, attrs, names = xr.conventions.decode_cf_variables(
        dict(dataset.variables), dataset.attrs, concat_characters=False, mask_and_scale=False,
        decode_times=False, decode_coords=asked, decode_timedelta=False,
    )  # fmt: skip
    found = dataset.set_coords([name for name in names if name in dataset.variables])
    found.attrs = dict(attrs)
    for name, variable in variables.items():
        found[name].attrs = variable.attrs
        found[name].encoding = variable.encoding
    return found


def _times(use_cftime: bool | None, unit: str | None) -> dict[str, Any]:
    """What makes xarray decode times to cftime, or to dates of NumPy in this unit."""
    if "time_unit" not in inspect.signature(CFDatetimeCoder).parameters:  # before 2025.1
        return {"use_cftime": use_cftime}
    options: dict[str, Any] = {} if unit is None else {"time_unit": unit}
    return {"decode_times": CFDatetimeCoder(use_cftime=use_cftime, **options)}


def _span_coder(unit: str | None) -> Any:
    coders: Any = getattr(xr, "coders", None)
    if unit is None or not hasattr(coders, "CFTimedeltaCoder"):
        return True
    return coders.CFTimedeltaCoder(time_unit=unit)
