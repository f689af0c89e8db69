"""The folder of a blocked array: one file for each block, and the manifest that tells of them.

::

    manifest        JSON in UTF-8, a line feed, and the CRC-32 of the JSON as 8 hex digits
    0.3.npy         the block at 0 along the first dimension and 3 along the second, as it is
    0.4.b2nd        one that is compressed

The JSON is an object: ``key`` and ``exact``, the codes of the value's key in hex (see `keys`);
``seq``, ``form`` and ``stamp``, as the catalog's row has them; ``chunks``, the sizes of the blocks
along each dimension; ``blocks``, in C order of the blocks, three numbers for each: where its data
begin in its file (0: it is compressed), the size of the file, and its stamp.

A block's file ends as any value file does (see `formats.npy`), without a directory.  The stamp of
one that is not compressed is the CRC-32 of its data's checksums (see `checksums`), followed by 30
random bits.

A block is complete when it has its name.  The manifest is written last, and then the folder is
given the name that the catalog's row stands for: files can be written by any process on any host
that reaches the folder, and need no lock.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from arraychest.formats.form import Form, parse_form

NAME = "manifest"

# Some 10 million blocks: a stranger's may be of any size.
_MOST_BYTES = 1 << 28

# The sizes of the blocks along each dimension.
Chunks = tuple[tuple[int, ...], ...]


class Block(NamedTuple):
    """What a manifest knows of a block's file.

    Attributes
    ----------
    offset
        Where its data begin; 0: it is compressed.
    stored
        Its size, in bytes.
    stamp
        What its trailer has.
    """

    offset: int
    stored: int
    stamp: int


class Manifest(NamedTuple):
    """What the folder of a blocked array says of it; see above.

    Attributes
    ----------
    blocks
        int64, shape (number of blocks, 3): the fields of a `Block`.
    """

    key: bytes
    exact: bytes | None
    seq: int
    form: str
    stamp: int
    chunks: Chunks
    blocks: np.ndarray

    @property
    def grid(self) -> tuple[int, ...]:
        """How many blocks there are along each dimension."""
        return tuple(map(len, self.chunks))

    @property
    def stored(self) -> int:
        """Bytes of all blocks' files."""
        return int(self.blocks[:, 1].sum())

    def block(self, index: tuple[int, ...]) -> Block:
        """What is known of one block."""
        number = int(np.ravel_multi_index(index, self.grid)) if index else 0
        return Block(*map(int, self.blocks[number]))


def block_name(index: tuple[int, ...], offset: int) -> str:
    """The file of a block, in its folder."""
    return f"{'.'.join(map(str, index)) or 'all'}.{'npy' if offset else 'b2nd'}"


def indices(chunks: Chunks) -> Iterator[tuple[int, ...]]:
    """The place of each block, in C order."""
    return itertools.product(*(range(len(sizes)) for sizes in chunks))


def block_shape(chunks: Chunks, index: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one block."""
    return tuple(sizes[at] for sizes, at in zip(chunks, index, strict=True))


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest's file."""
    told = {
        "key": manifest.key.hex(),
        "exact": None if manifest.exact is None else manifest.exact.hex(),
        "seq": manifest.seq,
        "form": manifest.form,
        "stamp": manifest.stamp,
        "chunks": manifest.chunks,
        "blocks": manifest.blocks.reshape(-1).tolist(),
    }
    data = json.dumps(told, separators=(",", ":")).encode()
    return data + f"\n{zlib.crc32(data):08x}".encode()


def decode(data: bytes) -> Manifest:
    """The manifest that a file holds, which may have been written by anybody.

    Raises
    ------
    ValueError
        It is none, or what it says cannot be.
    """
    text, _, checksum = data.rpartition(b"\n")
    if checksum != f"{zlib.crc32(text):08x}".encode():
        raise ValueError("expected a manifest's checksum, found another: it is damaged")
    try:
        told = json.loads(text)
        chunks = tuple(tuple(sizes) for sizes in told["chunks"])
        blocks = np.array(told["blocks"], np.int64).reshape(-1, 3)
        exact = told["exact"]
        found = Manifest(
            bytes.fromhex(told["key"]),
            None if exact is None else bytes.fromhex(exact),
            told["seq"],
            told["form"],
            told["stamp"],
            chunks,
            blocks,
        )
        numbers = [found.seq, found.stamp, *itertools.chain(*chunks)]
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise ValueError("expected numbers")
        form = parse_form(found.form)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a manifest, found none: {error!r:.200}") from error
    check(found, form)
    return found


def check(manifest: Manifest, form: Form) -> None:
    """Refuse a manifest that does not fit together.

    Raises
    ------
    ValueError
        It does not.
    """
    sums = tuple(map(sum, manifest.chunks))
    if form.kind != "blocked" or form.order != "C" or sums != form.shape:
        raise ValueError(f"expected blocks of an array of shape {form.shape}, found {sums}")
    count = math.prod(manifest.grid)
    if len(manifest.blocks) != count or (manifest.blocks < 0).any():
        raise ValueError(f"expected {count} blocks, found {len(manifest.blocks)}")


def read(folder_fd: int) -> Manifest:
    """The manifest in an open folder.

    Raises
    ------
    OSError
        There is none.
    ValueError
        It is damaged, or no file.
    """
    fd = open_in(folder_fd, NAME)
    try:
        status = os.fstat(fd)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("expected a manifest, found something that is no file")
        if size > _MOST_BYTES:
            raise ValueError(f"expected a manifest of {_MOST_BYTES} bytes at most, found {size}")
        data = bytearray()
        while len(data) < size:
            part = os.pread(fd, size - len(data), len(data))
            if not part:
                break
            data += part
        return decode(bytes(data))
    finally:
        os.close(fd)


def open_folder(path: str, parent: int | None = None) -> int:
    """Open a folder of blocks, in the open folder `parent`; raises OSError where it is none, or a
    link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, dir_fd=parent)


def open_in(folder_fd: int, name: str) -> int:
    """Open a file of an open folder; no link is followed."""
    flags: Any = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=folder_fd)


def make_in(folder_fd: int, name: str) -> int:
    """Make a file in an open folder, to be written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o666, dir_fd=folder_fd)
