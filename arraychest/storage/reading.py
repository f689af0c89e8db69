"""From a catalog row to the value: what lies in the file is tested, mapped and shown as an array.

Nothing a file holds is trusted before its size and its stamp are those that the row tells.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pickle
import stat
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.arrays.compressed import CompressedArray
from arraychest.catalog.record import Pack, RawRow, Row
from arraychest.errors import CorruptEntryError, PickleRefusedError
from arraychest.files.files import Files
from arraychest.files.names import READ_FLAGS
from arraychest.formats import manifest, npy, pack, tree
from arraychest.formats.b2nd import CheckedReader
from arraychest.formats.form import Form, parse_form
from arraychest.formats.frame import Layout
from arraychest.parallel import default_threads
from arraychest.platform.maps import MmapMode, map_file
from arraychest.platform.pages import will_read
from arraychest.sharing.locks import hold_folder
from arraychest.sharing.open_folder import OpenFolder, where
from arraychest.storage.file_names import file_name, pack_name, value_name
from arraychest.storage.frame_of import FrameOf
from arraychest.storage.unreadable import UNREADABLE, what_to_raise
from arraychest.values.accept import Dumped, copied
from arraychest.values.keys import decode_key
from arraychest.values.scalars import scalar_of

# A pack's map reaches so far from the start, beyond the end of the file while the pack grows: one
# map then serves all its values.  Pages beyond the end are never touched.
_PACK_MAP_BYTES = pack.PACK_BYTES + (8 << 20)

# Packs kept mapped; one map serves 64 MiB of small values.
_MAX_PACK_MAPS = 1024


@functools.lru_cache(maxsize=4096)
def _sized_form(text: str) -> tuple[Form, int]:
    """A form, and how many bytes it takes: to work that out takes a third of a look at a value."""
    form = parse_form(text)
    return form, form.nbytes


def frame_shape(form: Form) -> tuple[int, ...]:
    """The shape of the array in a frame: a frame knows C order only."""
    return form.shape[::-1] if form.order == "F" else form.shape


class Loader:
    """Faults in the values of one chest folder.  Safe from many threads.

    Parameters
    ----------
    files
        The folder's.
    packs
        What is known of the packs, by id.
    allow_pickle
        Whether arrays of Python objects are read.
    mmap_mode
        What `load` gives: read-only arrays, or private and writable ones.
    nthreads
        How many threads decompress many chunks.
    keep
        Whether what a read has opened stays at hand for the next one: the last blocks of a blocked
        array, and the pages of a compressed one.  Where the process is watched by what it has in
        RAM, as a dask worker is, they would count.
    """

    def __init__(
        self,
        files: Files,
        packs: dict[int, Pack],
        *,
        allow_pickle: bool,
        mmap_mode: MmapMode,
        nthreads: int = 1,
        keep: bool = True,
    ) -> None:
        self._files = files
        self.packs = packs
        self.allow_pickle = allow_pickle
        self._mode = mmap_mode
        self._nthreads = nthreads
        self._keep = keep
        self._private = mmap_mode == "c"
        self._maps: dict[int, tuple[np.ndarray, int]] = {}

    def forget_pack(self, identity: int) -> None:
        """Let go of the map of a pack that is gone."""
        self._maps.pop(identity, None)

    def mapped_value(self, raw: RawRow) -> Any:
        """A packed value whose pack is already mapped far enough; None if it is not.

        Does no I/O, so that it may be called under the chest's lock.
        """
        _, _, _, text, _, identity, offset, stored, _ = raw
        known = self._maps.get(cast(int, identity))
        if known is None or offset + stored > known[1]:
            return None
        try:
            form, nbytes = _sized_form(text)
            if nbytes != stored or offset < pack.HEADER_BYTES:
                return None  # `load` says what is wrong
            # Without a row: what is compressed has a file of its own.
            return self._value(pack.view(known[0], form, offset), form, packed=True)
        except (ValueError, TypeError):
            return None

    def load(self, row: Row, key: Any) -> Any:
        """The value of a row: a view of a map, a NumPy scalar, or a `CompressedArray`, which is
        decompressed where `mmap_mode` asks for an array that can be written to; or what
        `values.value_of` makes the value of.

        Raises
        ------
        CorruptEntryError
            The file is missing, or is not the one that the row describes.
        PickleRefusedError
            It needs pickle, and this chest does without.
        OSError
            It could not be read.
        """
        name = file_name(row)
        path, folder = self._files.path(name), self._files.folder.fd
        try:
            form = parse_form(row.form)
        except ValueError as error:
            raise CorruptEntryError(f"catalog row of key {key!r}: {error}") from error
        if form.kind == "pickle" and not self.allow_pickle:
            raise PickleRefusedError(
                f"the value of key {key!r} in {path} is an array of Python objects, stored with "
                "pickle: open the chest with allow_pickle=True if you trust who wrote it"
            )
        try:
            if row.is_frame:
                compressed = self._open_frame(path, row, form, key, name, folder)
                return compressed if self._mode == "r" else np.asarray(compressed)
            if row.is_blocked:
                return self._open_blocks(path, row, form, key, name, folder)
            if row.pack is None:
                return self._load_file(path, row, form, key, name, folder)
            array = pack.view(self.pack_base(path, row, form, key), form, row.offset)
            return self._value(array, form, packed=True, row=row, key=key)
        except UNREADABLE as error:
            told = what_to_raise(error, f"the value of key {key!r} in {path}", self._files.folder)
            if told is None:
                raise
            raise told from error

    def check_file(self, fd: int, row: Row, key: Any) -> None:
        """Raise CorruptEntryError unless an open file is the one of a plain array's row."""
        path = self._files.path(value_name(row))
        end = self._end_of_data(fd, path, row, key)
        nbytes = parse_form(row.form).nbytes
        if row.offset < 0 or end - row.offset != nbytes:
            raise CorruptEntryError(
                f"expected {nbytes} bytes of data for key {key!r} in {path}, found "
                f"{end - row.offset}"
            )

    def _end_of_data(self, fd: int, path: str, row: Row, key: Any) -> int:
        """Where the data end in the file of a value, which is the one that its row tells of."""
        status = os.fstat(fd)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode) or size != row.stored:
            raise CorruptEntryError(
                f"expected {row.stored} bytes for key {key!r} in {path}, found {size}"
            )
        tail = os.pread(fd, npy.TRAILER_BYTES, max(size - npy.TRAILER_BYTES, 0))
        stamp, end = npy.parse_trailer(tail, size) or (None, 0)
        if stamp is None or stamp != row.stamp:
            raise CorruptEntryError(
                f"expected the file of key {key!r} in {path}, found one written elsewhere, "
                "or another entry's"
            )
        return end

    def _open_frame(
        self, path: str, row: Row, form: Form, key: Any, name: str, folder: int
    ) -> CompressedArray:
        fd = os.open(name, READ_FLAGS, dir_fd=folder)
        try:
            end = self._end_of_data(fd, path, row, key)
            assert row.stamp is not None, "it is the one in the trailer"
            data = self._map(fd, row.stored, "r")[:end]
        finally:
            os.close(fd)
        found = self._compressed(data, form, row.stamp, path, key)
        place = path, form, key, row.stored, row.stamp
        found.reader.again = _frame_again, place
        return found

    def _compressed(
        self, data: np.ndarray, form: Form, stamp: int, path: str, key: Any
    ) -> CompressedArray:
        turned = form.order == "F"
        try:
            checked = CheckedReader(data, form.dtype, frame_shape(form), stamp, self._nthreads)
        except ValueError as error:
            raise CorruptEntryError(
                f"the compressed array of key {key!r} in {path}: {error}"
            ) from error
        chunks = checked.layout.chunks[::-1] if turned else checked.layout.chunks
        reader = FrameOf(checked, key, path, data, keep=self._keep)
        return CompressedArray(reader, form.dtype, form.shape, chunks, transposed=turned)

    def _open_blocks(
        self, path: str, row: Row, form: Form, key: Any, name: str, folder: int
    ) -> BlockedArray:
        # Lazy and read-only whatever the mode: it may be larger than RAM, and shares its files.
        loader = Loader(
            self._files,
            {},
            allow_pickle=False,
            mmap_mode="r",
            nthreads=self._nthreads,
            keep=self._keep,
        )
        blocks = _BlocksOf(loader, form, key, path, name, folder, keep=self._keep)
        found = blocks.manifest
        if found.form.partition("\n")[0] != row.form.partition("\n")[0] or (
            found.key,
            found.stamp,
        ) != (row.key, row.stamp):
            raise CorruptEntryError(
                f"expected the manifest of key {key!r} in {path}, found one written elsewhere, "
                "or another entry's"
            )
        return BlockedArray(blocks, form.dtype, form.shape, found.chunks)

    def layout(self, row: Row, key: Any) -> Layout:
        """How a compressed value lies in its file; of one in Fortran order, its transpose.

        Raises as `load`.
        """
        loader = Loader(self._files, {}, allow_pickle=False, mmap_mode="r")
        value = loader.load(row, key)
        assert isinstance(value, CompressedArray)
        reader = value.reader
        assert isinstance(reader, FrameOf)
        return reader.layout

    def _load_file(self, path: str, row: Row, form: Form, key: Any, name: str, folder: int) -> Any:
        fd = os.open(name, READ_FLAGS, dir_fd=folder)
        try:
            end = self._end_of_data(fd, path, row, key)
            if form.kind == "pickle":
                data = os.pread(fd, max(end - row.offset, 0), row.offset)
                try:
                    array = npy.unpickle(data, form)
                except (pickle.UnpicklingError, EOFError) as error:
                    raise CorruptEntryError(
                        f"expected pickled objects for key {key!r} in {path}: {error}"
                    ) from error
                array.setflags(write=self._private)
                return array
            if not 0 <= row.offset <= end or form.nbytes != end - row.offset:
                raise CorruptEntryError(
                    f"expected {form.nbytes} bytes of data for key {key!r} in {path}, found "
                    f"{end - row.offset}"
                )
            # Of all values only an array can be edited in place.
            steady = not self._private and form.kind != "array"
            base = self._map(fd, row.stored, self._mode, steady=steady)
        finally:
            os.close(fd)
        view = pack.view(base, form, row.offset)
        return self._value(view, form, packed=False, row=row, key=key)

    def _value(
        self,
        array: np.ndarray,
        form: Form,
        *,
        packed: bool,
        row: Row | None = None,
        key: Any = None,
    ) -> Any:
        if form.kind == "scalar":
            return scalar_of(array)
        if form.kind == "dump":
            return Dumped(array)
        # All values of a pack share one map, which is read-only.
        array = copied(array) if packed and self._private else array
        if form.kind != "tree":
            return array

        def opened(data: np.ndarray, part: Form) -> Any:
            if row is None or row.stamp is None:
                raise ValueError("expected a value without compressed arrays, found one")
            path = self._files.path(file_name(row))
            compressed = self._compressed(data, part, row.stamp, path, key)
            return compressed if self._mode != "c" else np.asarray(compressed)

        return tree.parse(array, opened)

    def _map(self, fd: int, size: int, mode: MmapMode, *, steady: bool = True) -> np.ndarray:
        try:
            return map_file(fd, size, mode, steady=steady)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
        # As many maps as the system allows (vm.max_map_count) are alive: read it instead.
        copy = np.empty(size, np.uint8)
        at = 0
        while at < size:
            count = os.preadv(fd, [copy.data[at:]], at)
            if not count:
                raise OSError(errno.EIO, "the file ended while it was read")
            at += count
        copy.flags.writeable = mode == "c"
        return copy

    def pack_base(self, path: str, row: Row, form: Form, key: Any) -> np.ndarray:
        """The bytes of a mapped pack, as far as `row` reaches at least."""
        identity = cast(int, row.pack)
        if not is_packed_well(row, form):
            raise CorruptEntryError(
                f"expected {form.nbytes} bytes, less than {pack.PACK_THRESHOLD}, for key {key!r} "
                f"in {path}, found {row.stored} at {row.offset}"
            )
        fd = self._files.open(pack_name(identity))
        try:
            status = os.fstat(fd)
            stamp = None
            if stat.S_ISREG(status.st_mode):
                stamp = pack.stamp_of(os.pread(fd, pack.HEADER_BYTES, 0))
            known = self.packs.get(identity)
            if known is None or stamp is None or stamp != known.stamp:
                raise CorruptEntryError(
                    f"expected the pack of key {key!r} in {path}, found something else"
                )
            if row.offset + row.stored > status.st_size:
                raise CorruptEntryError(
                    f"expected key {key!r} at bytes {row.offset} to {row.offset + row.stored} of "
                    f"{path}, found {status.st_size} bytes in all"
                )
            held = self._maps.get(identity)
            mapped = max(_PACK_MAP_BYTES, status.st_size)
            base = map_file(fd, mapped, steady=True) if held is None else held[0]
        finally:
            os.close(fd)
        if len(self._maps) >= _MAX_PACK_MAPS:
            self._maps.clear()
        if identity in self.packs:  # not moved elsewhere meanwhile
            self._maps[identity] = base, status.st_size
        return base

    def packed_bytes(self, rows: Sequence[Row]) -> list[bytes]:
        """The bytes of values of one pack, as they lie in it; its file is opened once for all.

        Raises
        ------
        CorruptEntryError
            A row, or what lies there, is not what it should be.
        OSError
            It could not be read.
        """
        found = []
        base = None
        # The one that reaches farthest first: its map holds all.
        farthest = max(rows, key=lambda row: row.offset + row.stored)
        for row in (farthest, *rows):
            form = parse_form(row.form)  # refuses what is left of a row that is corrupt
            key = decode_key(row.key, row.exact)
            path = self._files.path(pack_name(cast(int, row.pack)))
            if base is None or not is_packed_well(row, form):
                base = self.pack_base(path, row, form, key)
            try:
                array = pack.view(base, form, row.offset)
            except (TypeError, ValueError) as error:
                raise CorruptEntryError(f"the value of key {key!r} in {path}: {error}") from error
            found.append(array.tobytes(form.order))
        return found[1:]

    def prefetch(self, row: Row) -> None:
        """Ask the kernel to read a value ahead; a hint that cannot fail."""
        if row.is_blocked:
            return  # what of it will be read is not known
        with contextlib.suppress(OSError):
            fd = self._files.open(file_name(row))
            try:
                will_read(fd, row.offset, row.stored)
            finally:
                os.close(fd)


# Of a blocked array so many blocks stay open.
_MAX_OPEN_BLOCKS = 64


class _BlocksOf:
    """Opens the blocks of an array, and says whose they are where it cannot.

    It reads them by the folder's descriptor, which a lock is held on: whoever removes the folder
    moves it away first, and removes the files once nobody holds it.
    """

    fd = -1

    def __init__(
        self,
        loader: Loader,
        form: Form,
        key: Any,
        path: str,
        name: str | None = None,
        folder: int | None = None,
        *,
        keep: bool,
    ) -> None:
        self._loader = loader
        self._most_open = _MAX_OPEN_BLOCKS if keep else 0
        self._form = form
        self._key = key
        self._path = path
        # Without a lock, which a fork might find taken: what two threads miss both open.
        self._open: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.fd = manifest.open_folder(path if name is None else name, folder)
        if not hold_folder(self.fd):
            raise FileNotFoundError(errno.ENOENT, "it is being removed", path)
        self.manifest = manifest.read(self.fd)
        manifest.check(self.manifest, form)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def path(self) -> str:
        """Where the folder lies, as far as the system can tell."""
        return where(self.fd, self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.path, self._form, self._key, self.manifest.stamp)

    def block(self, index: tuple[int, ...]) -> Any:
        # Taken out and put back as the last one that was used.
        found = self._open.pop(index, None)
        if found is None:
            found = self._load(index)
        self._open[index] = found
        if len(self._open) > self._most_open:
            with contextlib.suppress(KeyError):
                self._open.popitem(last=False)
        return found

    def _load(self, index: tuple[int, ...]) -> Any:
        known = self.manifest.block(index)
        name = manifest.block_name(index, known.offset)
        path = f"{self._path}/{name}"
        form = self._form._replace(
            shape=manifest.block_shape(self.manifest.chunks, index), kind="array"
        )
        row = Row(b"", 0, None, "", 0, None, known.offset, known.stored, known.stamp)
        load = self._loader._load_file if known.offset else self._loader._open_frame
        try:
            return load(path, row, form, self._key, name, self.fd)
        except UNREADABLE as error:
            told = what_to_raise(error, f"a block of the value of key {self._key!r} in {path}")
            if told is None:
                raise
            raise told from error


def _elsewhere(path: str) -> tuple[OpenFolder, Loader]:
    """What reads files of a folder that another process has told of."""
    folder = OpenFolder(path)
    threads = default_threads()
    files = Files(folder, durable=False)
    loader = Loader(files, {}, allow_pickle=False, mmap_mode="r", nthreads=threads, keep=False)
    return folder, loader


def _frame_again(path: str, form: Form, key: Any, stored: int, stamp: int) -> Any:
    """The reader of a compressed array that was pickled by its place.

    Raises
    ------
    CorruptEntryError
        Its file is gone, or another lies there.
    """
    try:
        folder, loader = _elsewhere(os.path.dirname(path))
        row = Row(b"", 0, None, "", 0, None, 0, stored, stamp)
        return loader._open_frame(path, row, form, key, os.path.basename(path), folder.fd).reader
    except OSError as error:
        raise CorruptEntryError(
            f"expected the compressed array of key {key!r} in {path}, found none: {error}"
        ) from error


def _opened_again(path: str, form: Form, key: Any, stamp: int) -> _BlocksOf:
    """The blocks of an array that was pickled.

    Raises
    ------
    CorruptEntryError
        They are gone, or others lie there.
    """
    try:
        _, loader = _elsewhere(path)
        found = _BlocksOf(loader, form, key, path, keep=False)
    except (OSError, ValueError) as error:
        raise CorruptEntryError(
            f"expected the blocks of key {key!r} in {path}, found none: {error}"
        ) from error
    if found.manifest.stamp != stamp:
        raise CorruptEntryError(f"expected the blocks of key {key!r} in {path}, found others")
    return found


def is_packed_well(row: Row, form: Form) -> bool:
    """Whether size and place of a row are such as a packed value of this form has."""
    return (
        form.nbytes == row.stored < pack.PACK_THRESHOLD
        and row.offset >= pack.HEADER_BYTES
        and row.offset % pack.ALIGN == 0
    )
