"""Writing a blocked array: block by block, by any thread, process or host, in no order.

The blocks lie in a folder of which no row tells, until `engine.blocks` makes it the value of a
key.  A block is written under another name first, and is complete once it has its own; of two that
are written for one place the first stays.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.errors import CorruptEntryError, SpillError, ValueTypeError
from arraychest.files.files import Files
from arraychest.files.names import READ_FLAGS, UNFINISHED
from arraychest.files.writing import Put
from arraychest.formats import b2nd, blosc, checksums, manifest, npy
from arraychest.formats.compression import Compression
from arraychest.formats.form import Form
from arraychest.formats.manifest import Block, Chunks
from arraychest.platform.folders import NO_FILE
from arraychest.platform.space import sync
from arraychest.sharing.locks import hold_folder, is_at
from arraychest.sharing.open_folder import OpenFolder


class BlockWriter:
    """The blocks of an array that is not a value yet.

    It pickles to a few hundred bytes.  Safe from many threads and processes.

    Parameters
    ----------
    chest
        The chest's folder.
    token
        The name of the blocks' folder: who gives the same one goes on with the same blocks.
    dtype, chunks
        Those of the array.
    compression
        How each block is compressed, if it is worth while.
    durable
        Whether a block is on stable storage once it is written.
    told
        Where the chest's folder lies and the number of its catalog, for another process, which
        opens it once it is needed.
    """

    def __init__(
        self,
        chest: OpenFolder | None,
        token: str,
        dtype: np.dtype,
        chunks: Chunks,
        compression: Compression,
        *,
        durable: bool,
        told: tuple[str, int] | None = None,
    ) -> None:
        self.dtype = dtype
        self.chunks = chunks
        #: The blocks' folder, relative to the chest's.
        self.name = f"{UNFINISHED}/{token}"
        self._chest, self._told_chest = chest, told
        self._token = token
        self._durable = durable
        self._compression = compression
        if self.nbytes >= compression.above:
            # It is the array that is large; each block of it is looked at.
            self._compression = compression._replace(above=0)
        # What blocks that were taken over are known to be.
        self._known: dict[tuple[int, ...], Block] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(map(sum, self.chunks))

    @property
    def nbytes(self) -> int:
        """Bytes of the array in RAM."""
        return Form(self.dtype, self.shape, "C", "blocked").nbytes

    @property
    def stamp(self) -> int:
        """What tells the value that the blocks become from others: 62 bits."""
        digest = hashlib.blake2b(self._token.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 2

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (
            self._where(),
            self._token,
            self.dtype,
            self.chunks,
            self._compression,
            self._durable,
        )

    def _where(self) -> tuple[str, int]:
        """Where the chest's folder lies, and the number of its catalog."""
        chest = self._chest
        if chest is not None and chest.identity is not None:
            self._told_chest = chest.where(), chest.identity[1]
        assert self._told_chest is not None
        return self._told_chest

    @property
    def folder(self) -> str:
        """Where the blocks lie."""
        return f"{self._where()[0]}/{self.name}"

    def _opened(self) -> OpenFolder:
        """The chest's folder.

        Raises
        ------
        SpillError
            It is not there any more, or another chest is.
        """
        chest = self._chest
        if chest is None or chest.fd < 0:
            path, inode = self._where()
            try:
                chest = OpenFolder(path)
            except OSError as error:
                raise SpillError(f"expected a chest at {path}, found none: {error}") from error
            chest.expect(inode)
            self._chest = chest
        try:
            chest.check()
        except SpillError:
            raise
        except OSError as error:
            raise SpillError(f"{chest.path} cannot be looked at: {error}") from error
        return chest

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Keep others from removing the blocks, which nobody is writing for a moment.

        Gives a descriptor of their folder.

        Raises
        ------
        SpillError
            There is no such folder, and none can be made.
        """
        try:
            fd = self._hold()
        except SpillError:
            raise
        except OSError as error:
            raise SpillError(f"{self.folder} cannot be written to: {error}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _hold(self) -> int:
        chest = self._opened()
        files = Files(chest, durable=False)
        while True:
            files.with_room(functools.partial(files.make_folder, self.name))
            try:
                fd = manifest.open_folder(self.name, chest.fd)
            except FileNotFoundError:
                continue  # somebody has found that it was given up
            try:
                if hold_folder(fd) and is_at(fd, self.name, chest.fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            # It is being removed, which takes as long as it takes to remove some files.
            time.sleep(1e-3)

    def write(self, index: tuple[int, ...], block: Any) -> None:
        """Write a block; nothing happens if it is there already.

        Raises
        ------
        ValueTypeError
            It is no plain array of the dtype and the shape that the block has.
        SpillError
            It could not be written; nothing of it is left.
        """
        if self.has(index):
            return
        array = self._checked(index, block)
        with self.held() as fd, OpenFolder(".", fd) as folder:
            files = Files(folder, durable=self._durable, chest=self._chest)
            own = f"writing-{secrets.token_hex(8)}"
            try:
                offset = self._write(files, own, array)
                name = manifest.block_name(index, offset)
                files.with_room(lambda: _publish(fd, own, name))
                if self._durable:
                    sync(fd)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(own, dir_fd=fd)
                raise SpillError(
                    f"block {index} could not be stored in {self.folder}: {error}"
                ) from error

    def _checked(self, index: tuple[int, ...], block: Any) -> np.ndarray:
        shape = manifest.block_shape(self.chunks, index)
        if type(block) is not np.ndarray:
            if isinstance(block, np.ma.MaskedArray) or not hasattr(block, "__array__"):
                raise ValueTypeError(
                    f"expected block {index} to be a plain array, found {type(block).__name__}"
                )
            block = np.asarray(block)
        if block.dtype != self.dtype or block.shape != shape:
            raise ValueTypeError(
                f"expected block {index} to be of shape {shape} and dtype {self.dtype}, found "
                f"{block.shape} and {block.dtype}"
            )
        return np.asarray(block, order="C")

    def _write(self, files: Files, name: str, array: np.ndarray) -> int:
        """Write a block's file; returns where its data begin, 0 if they are compressed."""
        form = Form(self.dtype, array.shape, "C", "array")
        choice = self._compression.choice(array, "array", None)
        if choice is None:
            head, body = npy.header(form), npy.payload(array, form)
            stamp = zlib.crc32(checksums.of_buffers(body))
            stamp = stamp << 30 | secrets.randbits(30)
            end = len(head) + form.nbytes
            files.write(name, [head, *body, npy.trailer(stamp, end, 0)])
            return len(head)
        layout, stamp = blosc.layout_of(array, choice), secrets.randbits(62)

        def produce(put: Put, _: int) -> int:
            end = b2nd.write(array, layout, self._compression.nthreads, put, stamp)
            put(end, [npy.trailer(stamp, end, 0)])
            return end + npy.TRAILER_BYTES

        files.stream(name, produce)
        return 0

    def has(self, index: tuple[int, ...]) -> bool:
        """Whether a block is there already."""
        files = Files(self._opened(), durable=False)
        return any(files.exists(f"{self.name}/{name}") for _, name in _names_of(index))

    def missing(self) -> list[tuple[int, ...]]:
        """The places of the blocks that are not there yet, in C order.  Lists the folder once."""
        try:
            with OpenFolder(self.name, self._opened().fd) as folder:
                present = set(os.listdir(folder.fd))
        except FileNotFoundError:
            present = set()
        return [
            index
            for index in manifest.indices(self.chunks)
            if present.isdisjoint(manifest.block_name(index, offset) for offset in (0, 1))
        ]

    def take(self, array: BlockedArray, only: Iterable[tuple[int, ...]] | None = None) -> None:
        """Let the blocks of another array be those at the same places, or `only` some of them.

        They are linked, and copied where that cannot be.  Called in `held`.

        Raises
        ------
        SpillError
            Some are missing.  That others lie in their place is found by `collected`.
        """
        source = array.blocks
        with self.held() as folder:
            files = Files(self._opened(), durable=False)
            for index in manifest.indices(array.chunks) if only is None else only:
                self._known[index] = known = source.manifest.block(index)
                name = manifest.block_name(index, known.offset)
                take = functools.partial(self._take_block, name, source.fd, folder)
                try:
                    files.with_room(take)
                except OSError as error:
                    raise SpillError(
                        f"block {index} of {source.path} could not be taken over: {error}"
                    ) from error

    def _take_block(self, name: str, source: int, folder: int) -> None:
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            self._copy(name, source, folder)

    def _copy(self, name: str, source_fd: int, folder: int) -> None:
        own = f"writing-{secrets.token_hex(8)}"
        fd = manifest.open_in(source_fd, name)
        try:
            with (
                open(fd, "rb", closefd=False) as source,
                os.fdopen(manifest.make_in(folder, own), "wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
                if self._durable:
                    copy.flush()
                    sync(copy.fileno())
            os.rename(own, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(own, dir_fd=folder)
            raise
        finally:
            os.close(fd)

    def collected(self, folder: int) -> np.ndarray:
        """What lies in the folder, which is open, as `Manifest.blocks` has it.

        Raises
        ------
        SpillError
            A block is missing.
        CorruptEntryError
            What lies in its place was not written by this, or is damaged.  It is removed, so that
            it is missing for who goes on.
        """
        found = np.empty((sum(1 for _ in manifest.indices(self.chunks)), 3), np.int64)
        for number, index in enumerate(manifest.indices(self.chunks)):
            found[number] = self._told(index, folder)
        return found

    def tidy(self, folder: int, blocks: np.ndarray) -> None:
        """Remove what somebody left who wrote a block twice from a finished folder that is open."""
        kept = {manifest.NAME}
        for index, (offset, _, _) in zip(manifest.indices(self.chunks), blocks, strict=True):
            kept.add(manifest.block_name(index, offset))
        with contextlib.suppress(OSError):
            for name in set(os.listdir(folder)) - kept:
                os.unlink(name, dir_fd=folder)

    def _told(self, index: tuple[int, ...], folder: int) -> Block:
        form = Form(self.dtype, manifest.block_shape(self.chunks, index), "C", "array")
        for kind, name in _names_of(index):
            try:
                found = self._read_end(name, folder, kind, form)
            except FileNotFoundError:
                continue
            if found is None or found != self._known.get(index, found):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise CorruptEntryError(
                    f"expected a block of {form.nbytes} bytes in {self.folder}/{name}, found "
                    "something else"
                )
            return found
        raise SpillError(f"expected block {index} in {self.folder}, found none: it was not written")

    def _read_end(self, name: str, folder: int, kind: int, form: Form) -> Block | None:
        """What the file of a block says of it; None if it is none."""
        try:
            fd = os.open(name, READ_FLAGS, dir_fd=folder)
        except OSError as error:
            if error.errno in NO_FILE:
                return None
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            size = status.st_size
            tail = os.pread(fd, npy.TRAILER_BYTES, max(size - npy.TRAILER_BYTES, 0))
            stamp, end = npy.parse_trailer(tail, size) or (None, 0)
            if stamp is None or (kind and end - form.nbytes != len(npy.header(form))):
                return None
            return Block(end - form.nbytes if kind else 0, size, stamp)
        finally:
            os.close(fd)

    def discard(self) -> None:
        """Remove the blocks."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.name, ignore_errors=True, dir_fd=self._opened().fd)

    def __dask_tokenize__(self) -> Any:
        return "arraychest-blocks", self._where(), self._token


def _publish(folder: int, own: str, name: str) -> None:
    """Give a block that is complete its own name, unless there is one of that name."""
    try:
        os.link(own, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.unlink(own, dir_fd=folder)
    except FileExistsError:
        os.unlink(own, dir_fd=folder)
    except OSError:
        # A file system without links.
        os.rename(own, name, src_dir_fd=folder, dst_dir_fd=folder)


def _names_of(index: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """The names that a block's file may have: of a plain one, and of a compressed one."""
    for offset in (1, 0):
        yield offset, manifest.block_name(index, offset)


def _unpickled(
    told: tuple[str, int],
    token: str,
    dtype: np.dtype,
    chunks: Chunks,
    compression: Compression,
    durable: bool,
) -> BlockWriter:
    return BlockWriter(None, token, dtype, chunks, compression, durable=durable, told=told)


def regular(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Chunks:
    """Chunks of these sizes, the last ones of what is left; of nothing one of size 0."""
    return tuple(
        tuple(min(size, n - at) for at in range(0, n, max(size, 1))) or (0,)
        for n, size in zip(shape, sizes, strict=True)
    )


def slices(chunks: Chunks, index: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a block lies in the array."""
    found = []
    for sizes, at in zip(chunks, index, strict=True):
        end = next(itertools.islice(itertools.accumulate(sizes), at, None))
        found.append(slice(end - sizes[at], end))
    return tuple(found)
