"""``arraychest get``, ``put`` and ``rm``: single values."""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

import arraychest
from arraychest.arrays.lazy import LazyArray
from arraychest.cli.errors import CommandError
from arraychest.cli.keys import HELP, chosen_keys, find_key, parse_index, parse_key
from arraychest.cli.printing import counted, key_text, readable
from arraychest.formats.compression import parse_compression

# What is read of an array at a time that is not at hand as a whole.
_SLAB_BYTES = 64 << 20

# More numbers than these are no text that anybody reads.
_MOST_PRINTED = 1_000_000


def add_commands(commands: Any) -> None:
    """Add the parsers to the subparsers of the command line."""
    get = commands.add_parser(
        "get",
        help="print a value, or write an array to a .npy file",
        description="Prints a value, as NumPy does; of a large array only its corners are read. "
        "An index reads, and decompresses, no more than it asks for.",
        epilog="Examples:\n"
        "  arraychest get work.chest slope\n"
        "  arraychest get work.chest slope '100:200, :50' -o window.npy\n"
        "  arraychest get work.chest \"=('tile', 3)\" --json\n"
        "  arraychest get work.chest slope -o - | other-program",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    get.add_argument("path", metavar="PATH", help="the chest's folder")
    get.add_argument("key", metavar="KEY", help=HELP)
    get.add_argument("index", nargs="?", metavar="SLICE", help="which part: '0:10, ::2, ..., 3'")
    get.add_argument("-o", "--output", metavar="FILE", help="a .npy file; - is standard output")
    get.add_argument("--json", action="store_true", help="as one JSON document")
    get.set_defaults(run=_get)

    put = commands.add_parser(
        "put",
        help="store the contents of a file",
        description="Stores an array under a key: from a .npy, .npz or .b2nd file, a dataset of an "
        "HDF5 file (FILE:DATASET), a Zarr array, or .npy from standard input (-). Of a .npz of "
        "several arrays each is stored under KEY/NAME. The chest is made if there is none; all is "
        "stored, or nothing. What is there already is replaced only with --overwrite.",
        epilog="Examples:\n"
        "  arraychest put work.chest slope slope.npy\n"
        "  arraychest put work.chest \"=('tile', 3)\" tile3.npy --compression zstd\n"
        "  arraychest put work.chest heights model.h5:/ground/heights\n"
        "  arraychest put work.chest --each 'tiles/*.npy'      # keys: the files' names\n"
        "  other-program | arraychest put work.chest x -",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    put.add_argument("path", metavar="PATH", help="the chest's folder")
    put.add_argument("what", nargs="+", metavar="KEY FILE", help="a key and a file; see --each")
    put.add_argument(
        "--each", action="store_true", help="only files, or patterns, stored under their names"
    )
    put.add_argument(
        "--compression", metavar="NAME", help="auto, lz4, zstd, ...; none: as they are"
    )
    put.add_argument("--overwrite", action="store_true", help="replace values that are there")
    put.set_defaults(run=_put)

    rm = commands.add_parser(
        "rm",
        help="remove values",
        description="Removes values; all that are named, or none. At a terminal it asks first.",
        epilog="Examples:\n"
        "  arraychest rm work.chest slope aspect\n"
        "  arraychest rm work.chest --match 'tmp/*' --yes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rm.add_argument("path", metavar="PATH", help="the chest's folder")
    rm.add_argument("keys", nargs="*", metavar="KEY", help=HELP)
    rm.add_argument("--match", action="append", metavar="GLOB", help="all keys that match")
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask")
    rm.set_defaults(run=_remove)


# --- get --------------------------------------------------------------------------------------


def _get(arguments: argparse.Namespace) -> int:
    with arraychest.open(arguments.path, "r") as chest:
        key = find_key(chest, arguments.key)
        value = chest[key]
        is_array = isinstance(value, np.ndarray | LazyArray | np.generic)
        if arguments.index is not None:
            if not is_array or isinstance(value, np.generic):
                raise CommandError(
                    f"expected an array under {readable(arguments.key)}, of which there are parts, "
                    f"found {type(value).__name__}"
                )
            try:
                value = value[parse_index(arguments.index)]
            except IndexError as error:
                raise CommandError(
                    f"expected an index of an array of shape {value.shape}, found "
                    f"{arguments.index!r}: {error}"
                ) from error
        if arguments.output is not None:
            if not is_array or value.dtype.hasobject:
                raise CommandError(
                    f"expected an array of plain elements to write as .npy, found "
                    f"{type(value).__name__} (arraychest export writes values of any type)"
                )
            _save(value, arguments.output)
            return 0
        if arguments.json:
            print(json.dumps(_as_json(value), indent=1))
        elif is_array:
            shape = "x".join(map(str, np.shape(value))) or "-"
            print(f"{shape} {value.dtype}")
            print(_corners(value))
        else:
            print(readable(repr(value)))
    return 0


def _as_json(value: Any) -> Any:
    if not isinstance(value, np.ndarray | LazyArray | np.generic):
        return {"repr": repr(value)}
    if np.size(value) > _MOST_PRINTED:
        raise CommandError(
            f"expected {_MOST_PRINTED} elements at most as JSON, found {np.size(value)} "
            "(a SLICE, or -o FILE)"
        )
    data = np.asarray(value)
    plain = data.tolist() if data.dtype.kind in "biufU" else np.vectorize(str)(data).tolist()
    return {"shape": list(data.shape), "dtype": str(data.dtype), "data": plain}


def _corners(value: Any) -> str:
    """What NumPy shows of an array, of which no more is read than that."""
    if np.size(value) > 1000:
        for axis, n in enumerate(value.shape):
            if n > 7:
                # One more than is shown on both sides stands for what is left out.
                at = [0, 1, 2, 3, n - 3, n - 2, n - 1]
                value = value[(*[slice(None)] * axis, at)]
    return np.array2string(np.asarray(value), threshold=6)


def _save(value: Any, output: str) -> None:
    if output == "-":
        _write_npy(value, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    if os.path.lexists(output) and not os.path.isfile(output):
        # A device, a pipe: it is written to, and stays what it is.
        with open(output, "wb") as file:
            _write_npy(value, file)
        return
    folder = os.path.dirname(os.path.abspath(output))
    try:
        fd, unfinished = tempfile.mkstemp(dir=folder, prefix=".arraychest-", suffix=".npy")
    except OSError as error:
        raise CommandError(f"{readable(output)} cannot be written: {error.strerror}") from error
    try:
        with open(fd, "wb") as file:
            _write_npy(value, file)
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, output)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_npy(value: Any, file: BinaryIO) -> None:
    """As `numpy.save`, a slab at a time; also to a pipe, for which NumPy's own would seek."""
    array: Any = value if isinstance(value, LazyArray) else np.asarray(value)
    turned = isinstance(array, np.ndarray) and array.flags.fnc
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": turned,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_2_0(file, header)
    flat = array.T if turned else array
    if not flat.ndim:
        file.write(np.asarray(flat).tobytes())
        return
    for part in _slabs(flat):
        slab = np.ascontiguousarray(flat[part])
        if slab.nbytes:
            file.write(slab.reshape(-1).view(np.uint8).data)


def _slabs(array: Any) -> Iterator[slice]:
    """Parts along the first dimension, of some megabytes each."""
    rows = array.shape[0]
    step = max(1, _SLAB_BYTES // max(array.dtype.itemsize * array.size // max(rows, 1), 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


# --- put --------------------------------------------------------------------------------------


def _put(arguments: argparse.Namespace) -> int:
    pairs = list(_pairs(arguments))
    asked = arguments.compression is not None
    codec = None if arguments.compression == "none" else arguments.compression
    try:
        parse_compression(codec)
    except ValueError as error:
        raise CommandError(f"argument --compression: {error}, or none") from error
    is_new = not os.path.lexists(arguments.path)
    chest = arraychest.open(arguments.path, on_put="share")
    count = 0
    try:
        with chest.transaction():
            for key, file in pairs:
                for suffix, array in _sources(file):
                    name = _below(key, suffix) if suffix else key
                    if not arguments.overwrite and name in chest:
                        raise CommandError(
                            f"{key_text(name)} is there already; --overwrite replaces it"
                        )
                    _store(chest, name, array, codec, asked=asked)
                    count += 1
    except BaseException as error:
        if is_new:
            chest.drop()
        if isinstance(error, ImportError):
            raise CommandError(str(error)) from error
        raise
    finally:
        chest.close()
    print(f"{counted(count)} put into {readable(arguments.path)}")
    return 0


def _below(key: Any, name: str) -> Any:
    if isinstance(key, str):
        return f"{key}/{name}"
    return (*key, name) if isinstance(key, tuple) else (key, name)


def _pairs(arguments: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    if not arguments.each:
        if len(arguments.what) != 2:
            raise CommandError(
                f"expected KEY and FILE, found {len(arguments.what)} arguments (--each takes files "
                "only, and stores them under their names)"
            )
        yield parse_key(arguments.what[0]), arguments.what[1]
        return
    for pattern in arguments.what:
        there = pattern == "-" or os.path.lexists(pattern)
        files = [pattern] if there else sorted(glob.glob(pattern))
        if not files:
            raise CommandError(f"expected files, found none for {readable(pattern)}")
        for file in files:
            yield os.path.splitext(os.path.basename(file.rstrip("/")))[0], file


def _store(chest: arraychest.Chest, key: Any, array: Any, codec: Any, *, asked: bool) -> None:
    large = not isinstance(array, np.ndarray) and array.size * array.dtype.itemsize > _SLAB_BYTES
    if large and array.ndim and not asked:
        with chest.create(key, array.shape, array.dtype) as out:
            for part in _slabs(array):
                out[part] = array[part]
        return
    whole = array if isinstance(array, np.ndarray) else np.asarray(array[...])
    if asked:
        chest.put(key, whole, compression=codec)
    else:
        chest.put(key, whole)


def _sources(file: str) -> Iterator[tuple[str, Any]]:
    """What a file holds: names, of one array ``""``, and arrays or what can be sliced as one."""
    if file == "-":
        data = sys.stdin.buffer.read()
        yield "", _loaded(lambda: np.load(io.BytesIO(data), allow_pickle=False), "standard input")
        return
    path, _, dataset = file.partition(":")
    if dataset and not os.path.lexists(file):
        yield "", _dataset(path, dataset)
    elif os.path.isdir(file):
        zarr = _package("zarr")
        yield "", _loaded(lambda: zarr.open_array(file, mode="r"), file)
    elif file.endswith((".b2nd", ".b2frame")):
        blosc2 = _package("blosc2")
        yield "", _loaded(lambda: blosc2.open(file, mode="r"), file)
    else:
        found = _loaded(lambda: np.load(file, mmap_mode="r", allow_pickle=False), file)
        if isinstance(found, np.ndarray):
            yield "", np.asarray(found)
            return
        with found:
            for name in found.files:
                yield (name if len(found.files) > 1 else ""), found[name]


def _dataset(path: str, dataset: str) -> Any:
    h5py = _package("h5py")
    os.stat(path)
    with _loaded(lambda: h5py.File(path, "r"), path) as file:
        found = file.get(dataset)
        if not isinstance(found, h5py.Dataset):
            raise CommandError(f"expected a dataset {dataset!r} in {path}, found none")
        return found[...]


def _loaded(load: Callable[[], Any], file: str) -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, TypeError, RuntimeError) as error:
        raise CommandError(
            f"expected an array in {readable(file)}, found what cannot be read: {error}"
        ) from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = {"h5py": "hdf5", "zarr": "zarr"}.get(name, name)
        raise CommandError(f"{error}: pip install 'arraychest[{extra}]'") from error


# --- rm ---------------------------------------------------------------------------------------


def _remove(arguments: argparse.Namespace) -> int:
    if not (arguments.keys or arguments.match):
        raise CommandError("expected keys to remove, or --match GLOB, found none")
    # Read first: a wrong path makes no chest.
    with arraychest.open(arguments.path, "r") as chest:
        keys = chosen_keys(chest, arguments.keys, arguments.match)
    what = readable(repr(keys[0])) if len(keys) == 1 else counted(len(keys))
    if not arguments.yes and sys.stdin.isatty():
        print(f"Remove {what} of {readable(arguments.path)}? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was removed")
    with arraychest.open(arguments.path, "a") as chest, chest.transaction():
        for key in keys:
            chest.discard(key)
    print(f"removed {what}")
    return 0
