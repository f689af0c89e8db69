"""New value files: reserve, write, sync.

A value's file is written once, before the catalog names it, and never again while anything can
see it.  Space is reserved first, so that a full disk is a clean ENOSPC and nothing half-written
stays; nothing is ever written through a map, where a full disk is SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

from arraychest.files.place import Place
from arraychest.files.room import Room
from arraychest.files.spares import Spares
from arraychest.platform.cloning import clone, copy
from arraychest.platform.leases import end_lease
from arraychest.platform.space import reserve, sync

# Whatever exports its bytes in one piece: bytes, memoryviews, contiguous arrays.
Buffers = Sequence[Any]
# Writes them one after another at an offset.
Put = Callable[[int, Buffers], None]

# Reserved at a time where the size is not known before: in steps it is written three times as fast
# as unreserved.
_STEP = 16 << 20

# Buffers that one call takes.
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")


class Writing:
    """Writes the files of one chest.  Safe from many threads.

    Parameters
    ----------
    place
        Where the files lie; whether they are put on stable storage is asked for there.
    room
        On a full disk.
    spares
        Files that may be overwritten.
    """

    def __init__(self, place: Place, room: Room, spares: Spares) -> None:
        self._place = place
        self._room = room
        self._spares = spares

    def write(self, name: str, buffers: Buffers) -> int:
        """Write a new file of these buffers and return its size in bytes.

        Raises
        ------
        OSError
            Nothing of the file is left.
        """
        nbytes = sum(map(len, buffers))
        self._place.folder.check()
        self._place.loose.add(name)
        # Not a closure, here and below: clearing the frames of an error leaves what closures hold.
        self._room.with_room(functools.partial(self._write_over_spare, name, buffers, nbytes))
        return nbytes

    def _write_over_spare(self, name: str, buffers: Buffers, nbytes: int) -> None:
        spare = self._spares.take(nbytes)
        try:
            self._write(name, buffers, nbytes, spare)
        except FileNotFoundError:
            if spare is None:
                raise
            # Another session has given up all spares.
            self._write(name, buffers, nbytes, None)

    def _write(self, name: str, buffers: Buffers, nbytes: int, spare: str | None) -> None:
        place = self._place
        fd = None if spare is None else self._spares.open(spare)
        if fd is None:
            spare = None
            fd = place.create(name)
        try:
            try:
                size = os.fstat(fd).st_size if spare else 0
                if size > nbytes:
                    os.ftruncate(fd, nbytes)
                elif size < nbytes:
                    reserve(fd, size, nbytes - size)
                write_all(fd, buffers, list(map(len, buffers)), 0)
                if place.durable:
                    sync(fd)
                if spare:
                    end_lease(fd)
            finally:
                os.close(fd)
            if spare:
                place.rename(spare, name)
                place.thinned.add(os.path.dirname(spare))
                place.loose.discard(spare)
            if place.durable:
                place.sync_name(name)
        except BaseException:
            with contextlib.suppress(OSError):
                if spare:
                    place.unlink(spare)
                place.unlink(name)
            raise

    def stream(self, name: str, produce: Callable[[Put, int], int]) -> int:
        """Write a new file of which nobody knows the size yet, and return it in bytes.

        Parameters
        ----------
        produce
            Is given what writes buffers at an offset, and a descriptor to read what is written;
            returns the size.

        Raises
        ------
        OSError
            Nothing of the file is left; so it is with whatever `produce` raises.
        """
        place, with_room = self._place, self._room.with_room
        place.folder.check()
        place.loose.add(name)
        fd = with_room(lambda: place.create(name, os.O_RDWR))
        reserved = 0

        def put(at: int, buffers: Buffers) -> None:
            nonlocal reserved
            sizes = list(map(len, buffers))
            more = at + sum(sizes) - reserved
            if more > 0:
                try:
                    reserve(fd, reserved, max(more, _STEP))
                    reserved += max(more, _STEP)
                except OSError:
                    with_room(lambda: reserve(fd, reserved, more))
                    reserved += more
            with_room(functools.partial(write_all, fd, buffers, sizes, at))

        try:
            try:
                nbytes = produce(put, fd)
                os.ftruncate(fd, nbytes)
                if place.durable:
                    sync(fd)
            finally:
                os.close(fd)
            if place.durable:
                place.sync_name(name)
        except BaseException:
            with contextlib.suppress(OSError):
                place.unlink(name)
            raise
        return nbytes

    def create(self, name: str, nbytes: int, source: str | None) -> int:
        """Make a file with its space reserved, and return a descriptor to read and write it.

        Parameters
        ----------
        source
            A file of this chest whose first bytes are its first bytes: shared with it where the
            file system can, copied otherwise.  None: zero bytes.

        Raises
        ------
        OSError
            Nothing of the file is left.
        """
        self._place.folder.check()
        return self._room.with_room(lambda: self._create_reserved(name, nbytes, source))

    def _create_reserved(self, name: str, nbytes: int, source: str | None) -> int:
        place = self._place
        other = None if source is None else place.open(source)
        try:
            place.loose.add(name)
            fd, is_clone = self._new(name, nbytes, other)
            try:
                if not is_clone:
                    reserve(fd, 0, nbytes)
                    if other is not None:
                        copy(other, fd, nbytes)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    place.unlink(name)
                raise
        finally:
            if other is not None:
                os.close(other)
        return fd

    def _new(self, name: str, nbytes: int, other: int | None) -> tuple[int, bool]:
        place = self._place
        if other is None:
            return place.create(name, os.O_RDWR), False
        try:
            return place.make_parent_and(lambda: clone(other, nbytes, place.folder.fd, name), name)
        except OSError:
            place.loose.discard(name)
            raise

    def sync(self, name: str, fd: int) -> None:
        """Put a file that was made by `create` on stable storage, if that is asked for."""
        if self._place.durable:
            sync(fd)
            self._place.sync_name(name)

    def append(self, name: str, at: int, buffers: Buffers, sizes: Sequence[int]) -> int:
        """Write behind the first `at` bytes of a file and return its new size.

        The file is created when `at` is 0.

        Parameters
        ----------
        sizes
            Bytes of each buffer.

        Raises
        ------
        OSError
            The first `at` bytes are as they were.
        """
        self._place.folder.check()
        return self._room.with_room(functools.partial(self._append, name, at, buffers, sizes))

    def _append(self, name: str, at: int, buffers: Buffers, sizes: Sequence[int]) -> int:
        place = self._place
        nbytes = sum(sizes)
        if at:
            fd = place.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        else:
            place.loose.add(name)
            fd = place.create(name)
        try:
            reserve(fd, at, nbytes)
            write_all(fd, buffers, sizes, at)
            if place.durable:
                sync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                # No row names what lies behind `at`, so no view can reach it.
                os.ftruncate(fd, at)
                if not at:
                    place.unlink(name)
            raise
        finally:
            os.close(fd)
        if place.durable and not at:
            place.sync_name(name)
        return at + nbytes

    def may_append(self, name: str, at: int, head: bytes) -> bool:
        """Whether a file is there that begins with `head`, is `at` bytes long at least, and has
        no second name: another chest counts on what lies behind our end.
        """
        try:
            fd = self._place.open(name)
        except OSError:
            return False
        try:
            status = os.fstat(fd)
            return (
                stat.S_ISREG(status.st_mode)
                and status.st_nlink == 1
                and status.st_size >= at
                and os.pread(fd, len(head), 0) == head
            )
        finally:
            os.close(fd)


def write_all(fd: int, buffers: Buffers, sizes: Sequence[int], offset: int) -> None:
    """Write the buffers one after another at `offset`, however few bytes one call takes.

    Parameters
    ----------
    sizes
        Bytes of each buffer.
    """
    for at in range(0, len(buffers), _MOST_BUFFERS):
        group: Buffers = buffers[at : at + _MOST_BUFFERS]
        left = sum(sizes[at : at + _MOST_BUFFERS])
        while left:
            written = os.pwritev(fd, group, offset)
            if written == 0:
                raise OSError(errno.EIO, "the file system took no bytes")
            offset += written
            left -= written
            if left:
                group = _behind(group, written)


def _behind(buffers: Buffers, nbytes: int) -> Buffers:
    """What lies behind the first `nbytes` bytes of the buffers."""
    rest: list[memoryview] = []
    for buffer in buffers:
        view: memoryview = memoryview(buffer)
        if nbytes < view.nbytes:
            rest.append(view.cast("B")[nbytes:])
        nbytes = max(0, nbytes - view.nbytes)
    return rest


def open_draft(root: str, name: str) -> int:
    """Open a value file that another process is making, to read and write it."""
    return os.open(f"{root}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
