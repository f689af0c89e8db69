"""Whole chests to and from other formats: ``.npz``, a folder of ``.npy``, HDF5, Zarr.

An export holds every array as the format's own, under a name that people can read, so that any
program can open it.  What the format has no place for lies beside them in an *index* (see
`records`): the exact keys and their order, which values are scalars or value trees, and dtypes that
the format has not got.  With it an import gives the very chest back.

Of a file without an index, which another program wrote, names become keys: ``"a/b"`` is the array
``b`` in the group ``a``.  The attributes of an array or group (HDF5, Zarr) become a dict of their
own, under the key ``(name, "attributes")``; those of the whole file under ``("", "attributes")``.
An export gives a dict under such a key back as attributes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from arraychest.engine.commit import logger
from arraychest.engine.face import Face
from arraychest.errors import (
    AbsentKeyError,
    ArrayChestWarning,
    CorruptEntryError,
    PickleRefusedError,
    UnreadableValueError,
    ValueTypeError,
)
from arraychest.exchange import hdf5, npy, zarr3
from arraychest.exchange.arrays import Found, Reader, Writer, as_stored, check_fits, order_of
from arraychest.exchange.names import INDEX, Names
from arraychest.exchange.others import codec_of, described
from arraychest.exchange.records import Encoding, Kept, Record, decode, encode
from arraychest.formats.form import Form, Kind, form_text, parse_form
from arraychest.formats.tree import Tree
from arraychest.progress import Asked, Meter, measured
from arraychest.values.accept import Dumped, value_of
from arraychest.values.decoder import put_together
from arraychest.values.keys import encode_key
from arraychest.values.scalars import array_of_scalar, scalar_of

Format = Literal["npz", "npy", "hdf5", "zarr"]

# Larger arrays are not read into RAM, but part by part into their place in the chest.
STREAM_ABOVE = 256 << 20

_ENDINGS: dict[str, Format] = {
    ".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".he5": "hdf5", ".nc": "hdf5",
    ".zarr": "zarr", "": "npy",
}  # fmt: skip

_WRITERS: dict[Format, Callable[[str], Writer]] = {
    "npz": npy.NpzWriter,
    "npy": npy.FolderWriter,
    "hdf5": hdf5.Hdf5Writer,
    "zarr": zarr3.ZarrWriter,
}
_READERS: dict[Format, Callable[[str], Reader]] = {
    "npz": npy.NpzReader,
    "npy": npy.FolderReader,
    "hdf5": hdf5.Hdf5Reader,
    "zarr": zarr3.ZarrReader,
}

ATTRIBUTES = "attributes"


class _Planned(NamedTuple):
    """What is to be exported."""

    key: Any
    name: str
    nbytes: int


def export(
    chest: Face,
    path: str | os.PathLike[str],
    format: Format | None = None,  # noqa: A002  # what else
    *,
    keys: Iterable[Any] | None = None,
    overwrite: bool = False,
    allow_pickle: bool = False,
    progress: Asked = False,
) -> int:
    """See `Chest.export`."""
    target = os.path.abspath(os.fsdecode(path))
    format = format or _format_of_name(target)  # noqa: A001
    _check_format(format)
    _check_target(target, overwrite=overwrite)
    planned = _plan(chest, chest if keys is None else keys, allow_pickle=allow_pickle)
    folder, name = os.path.split(target)
    made = os.path.join(folder, f".{name[:100]}-{secrets.token_hex(4)}.part")
    total = sum(each.nbytes for each in planned)
    try:
        with measured(progress, "export", total) as meter:

            def write() -> int:
                _remove(made)  # what an attempt left for which there was no room
                meter.done = 0
                return _write(chest, _WRITERS[format](made), planned, meter)

            count = chest._engine.session.with_room(write)
        _check_target(target, overwrite=overwrite)
        _replace(made, target)
    finally:
        _remove(made)
    logger.info("exported %d values of %s to %s", count, chest.path, target)
    return count


def import_from(
    chest: Face,
    path: str | os.PathLike[str],
    format: Format | None = None,  # noqa: A002
    *,
    prefix: str = "",
    overwrite: bool = False,
    allow_pickle: bool = False,
    progress: Asked = False,
) -> int:
    """See `Chest.import_from`."""
    source = os.path.abspath(os.fsdecode(path))
    format = format or _format_of_content(source)  # noqa: A001
    _check_format(format)
    os.stat(source)  # FileNotFoundError, whatever the format
    with contextlib.closing(_READERS[format](source)) as reader:
        text = reader.index()
        records = [] if text is None else decode(text, source)
        named = {kept.name for record in records for kept in record.arrays}
        if text is not None:
            named.add(INDEX)
        foreign = [name for name in reader.names() if name not in named]
        extra = _attributes(reader, source) if text is None else {}
        wanted = [record.key for record in records] + foreign + list(extra)
        _check_keys([_prefixed(key, prefix) for key in wanted], chest, overwrite=overwrite)
        for record in records:
            if record.kind in ("pickle", "dump") and not allow_pickle:
                raise PickleRefusedError(_refusal(record.key, record.kind))

        def total() -> int:
            kept = sum(kept.form.nbytes for record in records for kept in record.arrays)
            return kept + sum(reader.array(name).nbytes for name in foreign)

        with measured(progress, "import", total) as meter, chest.transaction():
            for record in records:
                key = _prefixed(record.key, prefix)
                _import_record(chest, key, record, reader, meter, allow_pickle=allow_pickle)
            for name in foreign:
                found = reader.array(name)
                key = _prefixed(name, prefix)
                if found.whole is not None:
                    chest[key] = found.whole()
                    meter.add(found.nbytes)
                else:
                    form = Form(found.dtype, found.shape, found.order, "array")
                    form_text(*form)  # refused before anything is read
                    _import_array(chest, key, found, form, "plain", meter)
            for key, value in extra.items():
                chest[_prefixed(key, prefix)] = value
    if reader.skipped:
        warnings.warn(
            f"{source}: links are not followed: {', '.join(reader.skipped):.500}",
            ArrayChestWarning,
            stacklevel=3,
        )
    logger.info("imported %d values from %s to %s", len(wanted), source, chest.path)
    return len(wanted)


# --- what is written -------------------------------------------------------------------------


def _plan(chest: Face, keys: Iterable[Any], *, allow_pickle: bool) -> list[_Planned]:
    """Names and sizes of the values; refuses what cannot be exported before anything is written."""
    engine = chest._engine
    names = Names()
    planned = []
    # Each key once, as the chest has it.
    for key in dict.fromkeys(keys):
        row = engine.stored_row(key)
        if row is None:
            entry = chest.entry(key)
            kind, nbytes = entry.kind, entry.nbytes
        else:
            form = parse_form(row.form)
            kind, nbytes = form.kind, form.nbytes
        if not allow_pickle:
            if kind in ("pickle", "dump"):
                raise PickleRefusedError(_refusal(key, kind))
            if kind == "tree":
                _refuse_pickled_tree(key, engine.find(key))
        planned.append(_Planned(key, names.name(key), nbytes))
    return planned


def _refusal(key: Any, kind: Kind) -> str:
    what = "Python objects" if kind == "pickle" else "what a chest's own dump= has written"
    return (
        f"expected values that are not pickled, found {what} under key {key!r:.200}: "
        "allow_pickle=True takes them along"
    )


def _refuse_pickled_tree(key: Any, found: Any) -> None:
    if type(found) is Tree:
        # A type that is unknown here keeps nobody from taking the value along.
        with contextlib.suppress(UnreadableValueError):
            try:
                put_together(found.structure, found.parts, allow_pickle=False)
            except PickleRefusedError:
                raise PickleRefusedError(_refusal(key, "pickle")) from None


def _write(chest: Face, writer: Writer, planned: list[_Planned], meter: Meter) -> int:
    records = []
    names = {each.key: each.name for each in planned}
    attributes: dict[str, dict[Any, Any]] = {}
    try:
        for each in planned:
            before = meter.done
            try:
                record = _export_value(chest, writer, each.key, each.name, meter)
            except AbsentKeyError:
                continue  # deleted meanwhile
            records.append(record)
            meter.reach(before + each.nbytes)
            owner = _owner_of_attributes(each.key)
            if record.kind == "tree" and owner is None and not record.arrays:
                shown = described(chest, each.key)
                if shown:
                    writer.describe(each.name, shown)
            if record.kind == "tree" and owner is not None and owner in names:
                value = chest.get(each.key)
                if type(value) is dict:
                    attributes[names[owner]] = value
        written = {kept.name for record in records for kept in record.arrays}
        for name, value in attributes.items():
            if name in written:
                writer.set_attributes(name, value)
        writer.finish(encode(records))
    finally:
        writer.close()
    return len(records)


def _owner_of_attributes(key: Any) -> Any:
    """The key of the array that a dict is the attributes of; None if it is none's."""
    return key[0] if type(key) is tuple and len(key) == 2 and key[1] == ATTRIBUTES else None


def _export_value(chest: Face, writer: Writer, key: Any, name: str, meter: Meter) -> Record:
    """Write one value; of a tree its arrays, which are numbered below its name."""
    engine = chest._engine
    found = engine.find(key)
    if type(found) is Tree:
        arrays = tuple(
            _export_array(writer, f"{name}/{at}", part, meter, codec_of(chest, key, part))
            for at, part in enumerate(found.parts)
        )
        return Record(key, "tree", found.structure, arrays)
    if type(found) is Dumped:
        return Record(key, "dump", b"", (_export_array(writer, name, found.data, meter),))
    value = value_of(found, key, engine.session.options.own)
    if isinstance(value, np.generic):
        array = array_of_scalar(value)
        return Record(
            key, "scalar", b"", (_export_array(writer, name, array, meter, kind="scalar"),)
        )
    if value.dtype.hasobject:
        data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
        return Record(key, "pickle", b"", (_export_array(writer, name, data, meter),))
    codec = codec_of(chest, key, value)
    return Record(key, "array", b"", (_export_array(writer, name, value, meter, codec),))


def _export_array(
    writer: Writer,
    name: str,
    value: Any,
    meter: Meter,
    codec: str | None = "auto",
    kind: Kind = "array",
) -> Kept:
    form = Form(value.dtype, tuple(value.shape), order_of(value), kind)
    return Kept(name, form, writer.put(name, form, value, meter, codec))


# --- what is read ----------------------------------------------------------------------------


def _prefixed(key: Any, prefix: str) -> Any:
    if not prefix:
        return key
    if type(key) is str:
        return prefix + key
    owner = _owner_of_attributes(key)
    return (prefix + owner, ATTRIBUTES) if type(owner) is str else (prefix, key)


def _check_keys(keys: list[Any], chest: Face, *, overwrite: bool) -> None:
    met = set()
    for key in keys:
        encode_key(key)
        if key in met:
            raise CorruptEntryError(f"expected each key once, found {key!r:.200} twice")
        met.add(key)
        if not overwrite and key in chest:
            raise ValueTypeError(
                f"expected keys that are not in the chest, found {key!r:.200}: overwrite=True "
                "replaces its value, prefix= keeps both"
            )


def _attributes(reader: Reader, source: str) -> dict[Any, Any]:
    """The attributes of a stranger's arrays and groups, by the keys they are given."""
    found: dict[Any, Any] = {}
    lost: list[str] = []
    for name, kept, left in reader.attributes():
        if kept:
            found[name, ATTRIBUTES] = kept
        lost += [f"{name}:{each}" for each in left]
    if lost:
        warnings.warn(
            f"{source}: attributes that a chest cannot keep: {', '.join(lost):.500}",
            ArrayChestWarning,
            stacklevel=4,
        )
    return found


def _import_record(
    chest: Face, key: Any, record: Record, reader: Reader, meter: Meter, *, allow_pickle: bool
) -> None:
    own = chest._engine.session.options.own
    if record.kind == "array":
        (kept,) = record.arrays
        found = reader.array(kept.name)
        _import_array(chest, key, found, kept.form, kept.encoding, meter)
        return
    parts = [_whole(reader, kept, meter) for kept in record.arrays]
    if record.kind == "tree":
        pickled = allow_pickle and own.allow_pickle
        try:
            chest[key] = put_together(record.structure, parts, allow_pickle=pickled)
        except (CorruptEntryError, PickleRefusedError, UnreadableValueError) as error:
            raise type(error)(f"the value of key {key!r:.200}: {error}") from error
    elif record.kind == "scalar":
        try:
            scalar = scalar_of(parts[0])
        except ValueError as error:  # characters that are none
            raise CorruptEntryError(f"the value of key {key!r:.200}: {error}") from error
        if not isinstance(scalar, np.generic):
            raise CorruptEntryError(
                f"expected a scalar for key {key!r:.200}, found {parts[0].shape}"
            )
        chest[key] = scalar
    elif record.kind == "dump":
        chest[key] = value_of(Dumped(parts[0]), key, own)
    elif own.allow_pickle:
        chest[key] = _unpickled(parts[0], key)
    else:
        raise PickleRefusedError(
            f"the value of key {key!r:.200} holds Python objects: open the chest with "
            "allow_pickle=True"
        )


def _unpickled(data: np.ndarray, key: Any) -> Any:
    try:
        return pickle.loads(data.tobytes())  # noqa: S301  # asked for twice
    except Exception as error:
        raise CorruptEntryError(
            f"expected pickled objects for key {key!r:.200}, found something else: {error!r:.200}"
        ) from error


def _whole(reader: Reader, kept: Kept, meter: Meter) -> np.ndarray:
    found = reader.array(kept.name)
    check_fits(found, kept.form, kept.encoding, kept.name)
    return _filled(found, kept.form, kept.encoding, meter)


def _filled(found: Found, form: Form, encoding: Encoding, meter: Meter) -> np.ndarray:
    out: np.ndarray = np.ndarray(form.shape, form.dtype, order=form.order)
    found.fill(as_stored(out, form, encoding), meter)
    return out


def _import_array(
    chest: Face, key: Any, found: Found, form: Form, encoding: Encoding, meter: Meter
) -> None:
    check_fits(found, form, encoding, str(key))
    if form.nbytes <= STREAM_ABOVE:
        chest[key] = _filled(found, form, encoding, meter)
        return
    # Its room is reserved first: what a file claims to hold is no more than what there is.
    with chest.create(key, form.shape, form.dtype, form.order) as out:
        found.fill(as_stored(out, form, encoding), meter)


# --- files -----------------------------------------------------------------------------------


def _check_format(format: object) -> None:  # noqa: A002
    if format not in get_args(Format):
        raise ValueError(
            f"expected format to be one of {', '.join(get_args(Format))}, found {format!r}"
        )


def _format_of_name(target: str) -> Format:
    ending = os.path.splitext(target)[1].lower()
    if ending not in _ENDINGS:
        raise ValueError(
            f"expected a name that ends in .npz, .h5, .hdf5 or .zarr, or in nothing for a folder "
            f"of .npy files, found {os.path.basename(target)!r}: format= says what it is to be"
        )
    return _ENDINGS[ending]


def _format_of_content(source: str) -> Format:
    if os.path.isdir(source):
        is_zarr = any(
            os.path.lexists(os.path.join(source, name))
            for name in ("zarr.json", ".zgroup", ".zarray")
        )
        return "zarr" if is_zarr else "npy"
    with open(source, "rb") as file:
        head = file.read(8)
    if head.startswith(b"PK"):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    raise CorruptEntryError(
        f"expected a .npz, .npy or HDF5 file, or a folder, found {head!r} at the beginning of "
        f"{source}"
    )


def _check_target(target: str, *, overwrite: bool) -> None:
    """Raise FileExistsError where the target must not be replaced."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"expected nothing at {target}, found something: overwrite=True")
    # Whole folders are removed only if they are known to be an export.
    if os.path.isdir(target) and not os.path.islink(target):
        marks = (INDEX + ".json", os.path.join(INDEX, "zarr.json"))
        known = any(os.path.lexists(os.path.join(target, mark)) for mark in marks)
        if not known and os.listdir(target):
            raise FileExistsError(f"expected an export at {target}, found another folder")


def _replace(made: str, target: str) -> None:
    """Give a file or folder its name; an older one goes once the new one is there."""
    if not os.path.isdir(target) or os.path.islink(target):
        if os.path.isdir(made) and os.path.lexists(target):
            os.unlink(target)
        os.rename(made, target)
        return
    # No folder can be renamed over another one that is not empty.
    old = made + ".old"
    os.rename(target, old)
    try:
        os.rename(made, target)
    except BaseException:
        os.rename(old, target)
        raise
    _remove(old)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
