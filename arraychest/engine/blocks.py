"""From blocks to a value: a finished folder is given its name, and a row that stands for it.

So a blocked array is there at once, when it is complete, and until then the key has its old value.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from typing import Any

import numpy as np

from arraychest.arrays.blocked import BlockedArray
from arraychest.catalog.record import BLOCKED_OFFSET, Row
from arraychest.engine.session import Session
from arraychest.errors import ArrayChestError, SpillError, ValueTypeError
from arraychest.files.names import ONCE
from arraychest.formats import manifest
from arraychest.formats.compression import How
from arraychest.formats.form import describe, form_text
from arraychest.formats.manifest import Chunks, Manifest
from arraychest.platform.space import sync
from arraychest.storage.block_writer import BlockWriter
from arraychest.storage.file_names import value_name
from arraychest.values.keys import encode_key


def begin(
    session: Session,
    key: Any,
    dtype: np.dtype,
    chunks: Chunks,
    what: str | None = None,
    how: How | None = None,
) -> BlockWriter:
    """The writer of an array that will be the value of a key.

    Parameters
    ----------
    what
        Names what is written: who begins the same once more goes on with the blocks that are there.
        None: it is begun anew.
    how
        How to compress each block; None: as the chest does.

    Raises
    ------
    ValueTypeError, KeyTypeError
        Nothing was begun.
    """
    if dtype.hasobject:
        raise ValueTypeError(f"expected a dtype of plain elements, found {dtype}")
    describe(dtype)
    code = encode_key(key).canonical
    token = ONCE + secrets.token_hex(16)
    if what is not None:
        told = repr((code, form_text(dtype, (), "C", "array"), chunks, what))
        token = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    store = session.open_store()
    compression = session.saver.compression
    if how is not None:
        compression = compression._replace(how=how)
    return BlockWriter(store.folder, token, dtype, chunks, compression, durable=store.files.durable)


def assembled(session: Session, key: Any, writer: BlockWriter) -> Row:
    """Give the blocks the name of a value, and return the row that stands for it, to be committed.

    O(blocks): each file's end is read.  The row's stamp is the writer's.

    Raises
    ------
    SpillError, CorruptEntryError
        A block is missing, or could not be read.  The blocks stay where they are.
    QuotaError
        The same, as they are more than the chest may take.
    """
    # It may be that all were there, and nobody has written one.
    with writer.held() as folder:
        return _assembled(session, key, writer, folder)


def _assembled(session: Session, key: Any, writer: BlockWriter, folder: int) -> Row:
    store = session.open_store()
    code = encode_key(session.saver.stored_key(key))
    text = form_text(writer.dtype, writer.shape, "C", "blocked") + session.saver.named(key)
    try:
        blocks, stamp = writer.collected(folder), writer.stamp
        place = session.index.puts
        told = Manifest(code.canonical, code.exact, place, text, stamp, writer.chunks, blocks)
        data = manifest.encode(told)
        stored = told.stored + len(data)
        session.room.reserve_for(key, stored)
        row = Row(
            code.canonical,
            place,
            code.exact,
            text,
            store.generations.new(),
            None,
            BLOCKED_OFFSET,
            stored,
            stamp,
        )
        durable = store.files.durable
        store.files.with_room(lambda: _write_manifest(folder, data, durable=durable))
        store.files.adopt_blocks(writer.name, value_name(row))
        writer.tidy(folder, blocks)
    except ArrayChestError:
        raise
    except OSError as error:
        raise SpillError(f"the blocks of key {key!r} could not be stored: {error}") from error
    return row


def _write_manifest(folder: int, data: bytes, *, durable: bool) -> None:
    # What an attempt left that failed behind this point, or a stranger.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(manifest.NAME, dir_fd=folder)
    with os.fdopen(manifest.make_in(folder, manifest.NAME), "wb") as file:
        file.write(data)
        file.flush()
        if durable:
            sync(file.fileno())


def taken_over(session: Session, key: Any, value: BlockedArray) -> Row:
    """The row that stands for the blocks of another value, to be committed under this key.

    The files are linked where they can be.

    Raises
    ------
    SpillError
        They could not be; nothing of it is left.
    """
    writer = begin(session, key, value.dtype, value.chunks)
    try:
        with writer.held():
            writer.take(value)
            return assembled(session, key, writer)
    except BaseException:
        writer.discard()
        raise
