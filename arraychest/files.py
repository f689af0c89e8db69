"""Every change to a chest's folder but the catalog's own: reserve, write, sync, unlink.

A value's file is written once, before the catalog names it, and never again while anything can
see it.  Space is reserved first (`os.posix_fallocate`), so that a full disk is a clean ENOSPC and
nothing half-written stays; nothing is ever written through a map, where a full disk is SIGBUS.

A file that the catalog no longer names may be kept as a *spare* and overwritten for the next
value of about its size: its pages are already in the page cache and its blocks on the disk, which
makes a spill some two to three times as fast.  It is kept only when the kernel itself says that
nobody in any process can still see it: it was renamed out of reach first, it has one name, and a
write lease on it is granted, which the kernel does only for a file that no one else has open or
mapped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from arraychest.errors import ChestFormatError
from arraychest.locks import ATTACHED, PRIVATE, LockFile, hold_folder, is_at

T = TypeVar("T")
# Whatever exports its bytes in one piece: bytes, memoryviews, contiguous arrays.
Buffers = Sequence[Any]
# Writes them one after another at an offset.
Put = Callable[[int, Buffers], None]

DATA, PACKS, SPARE, QUARANTINE = "data", "packs", "spare", "quarantine"
# A file whose blocks nobody uses: room for the commit of a deletion where the disk is full.
RESERVE = "reserve"
# Folders of blocks of which no row tells: being written, or out of use and not removed yet.
UNFINISHED = "unfinished"
BLOCKS = ".blocks"
_LEFT = "left-"
# Begun by somebody who holds it until it is a value, and whom nobody can go on for.
ONCE = "once-"
# Of those being written, one that nobody has written to for so long was given up.
_GIVEN_UP_SECONDS = 24 * 3600
_PRIVATE_PREFIX = "arraychest-"

# NONBLOCK and NOFOLLOW: a stranger's chest may hold a pipe or a link in the place of a file.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW

# Spares kept at most, in bytes: enough for what one burst of spills frees and takes again.
SPARE_BYTES = 512 << 20

# Room for deletions.  The commit of one writes some 10 pages of the catalog (8 KiB each) to
# SQLite's log; a chest that is opened on a full disk takes as much again: the log's index (32 KiB)
# and the rows that begin and end the session.
RESERVE_BYTES = 256 << 10

# Reserved at a time where the size is not known before: in steps it is written three times as fast
# as unreserved.
_STEP = 16 << 20

# Buffers that one call takes.
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")

_NO_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}

# A full disk, or a user's share of it that is used up.
FULL = (errno.ENOSPC, errno.EDQUOT)
# SQLite says that only, where it is told EDQUOT and where the index of its log finds no room.
_MAYBE_FULL = (*FULL, errno.EIO)


class Files:
    """The value files of one chest.  Safe from many threads.

    Parameters
    ----------
    root
        The chest's folder.
    durable
        Whether a write returns only once file and folder are on stable storage.
    chest
        The chest's folder, where `root` is a folder of blocks within it.
    """

    def __init__(self, root: str, *, durable: bool, chest: str | None = None) -> None:
        self.root = root
        self._chest = root if chest is None else chest
        self.durable = durable
        self._lock = threading.Lock()
        # The session's, whose spares lie in a folder of their own.
        self.session = 0
        self._spares: list[tuple[int, str]] = []
        self.most_spare_bytes = SPARE_BYTES
        self._spare_bytes = 0
        # Files that may be there without a row that names them: each goes in before it is made or
        # unlinked, and out once it is named, or gone.  What an error or an interrupt leaves in
        # here is why the next writer has to sweep.
        self.loose: set[str] = set()
        # Folders that files were removed from since they were synced, if that is asked for: until
        # then a power cut may bring the files back.
        self._thinned: set[str] = set()
        # Whether this session has seen that all of the reserve is there, and whether it gave it up.
        self._reserve_is_whole = self.reserve_is_due = False

    def make_folders(self) -> None:
        """Create the folders that a chest has from the start."""
        for name in (self.root, self.path(DATA), self.path(PACKS), self.path(SPARE)):
            os.makedirs(name, exist_ok=True)

    def path(self, name: str) -> str:
        """Where a file of this chest lies."""
        return f"{self.root}/{name}"

    # --- room on a full disk ---------------------------------------------------------------

    def with_room(self, action: Callable[[], T], *, frees: bool = False) -> T:
        """Do `action`; where the disk is full, give up what is held in reserve and do it again.

        Everything that writes for a chest goes through here: first the spares of all its sessions
        are given up, and then, for what makes room itself, the reserve.

        Parameters
        ----------
        action
            Leaves nothing behind where it raises OSError.
        frees
            Whether it makes room, as the commit of a deletion does.

        Raises
        ------
        OSError
            It failed for another reason, or there is nothing left to give up.
        """
        left = iter([self.drop_spares, self.drop_reserve] if frees else [self.drop_spares])
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno not in _MAYBE_FULL:
                    raise
                if any(drop() for drop in left):
                    continue
                if error.errno not in FULL:
                    raise
                others = "other files on this disk have to be removed to make room"
                hint = others if frees else f"entries of the chest or {others}"
                raise OSError(error.errno, f"{error.strerror}; {hint}", error.filename) from error

    def hold_reserve(self) -> None:
        """Take room for deletions, as much of it as there is.  Raises nothing."""
        if self._reserve_is_whole:
            return
        path = f"{self._chest}/{RESERVE}"
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(path, flags, 0o666)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    self._reserve_is_whole = True  # a stranger's: it stays as it is
                    return
                with contextlib.suppress(OSError):
                    self.with_room(functools.partial(reserve, fd, 0, RESERVE_BYTES))
                    self._reserve_is_whole = True
                    return
                for nbytes in (RESERVE_BYTES // 2, RESERVE_BYTES // 4):
                    with contextlib.suppress(OSError):
                        reserve(fd, 0, nbytes)
                        return
            finally:
                os.close(fd)
            os.unlink(path)

    def drop_reserve(self) -> bool:
        """Give the room for deletions back; False if there was none."""
        self._reserve_is_whole = False
        try:
            os.unlink(f"{self._chest}/{RESERVE}")
        except OSError:
            return False
        self.reserve_is_due = True
        return True

    # --- writing ---------------------------------------------------------------------------

    def write(self, name: str, buffers: Buffers) -> int:
        """Write a new file of these buffers and return its size in bytes.

        Raises
        ------
        OSError
            Nothing of the file is left.
        """
        nbytes = sum(map(len, buffers))
        self.loose.add(name)
        # Not a closure, here and below: clearing the frames of an error leaves what closures hold.
        self.with_room(functools.partial(self._write_over_spare, name, buffers, nbytes))
        return nbytes

    def _write_over_spare(self, name: str, buffers: Buffers, nbytes: int) -> None:
        spare = self._take_spare(nbytes)
        try:
            self._write(name, buffers, nbytes, spare)
        except FileNotFoundError:
            if spare is None:
                raise
            # Another session has given up all spares.
            self._write(name, buffers, nbytes, None)

    def _write(self, name: str, buffers: Buffers, nbytes: int, spare: str | None) -> None:
        path = self.path(name)
        fd = None if spare is None else self._open_spare(spare)
        if fd is None:
            spare = None
            fd = self._create(name)
        try:
            try:
                size = os.fstat(fd).st_size if spare else 0
                if size > nbytes:
                    os.ftruncate(fd, nbytes)
                elif size < nbytes:
                    reserve(fd, size, nbytes - size)
                write_all(fd, buffers, list(map(len, buffers)), 0)
                if self.durable:
                    os.fsync(fd)
                if spare:
                    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            finally:
                os.close(fd)
            if spare:
                _make_parent_and(os.rename, spare, path)
                self._thinned.add(os.path.dirname(spare))
                self.loose.discard(spare)
            if self.durable:
                self._sync_folder(path)
        except BaseException:
            with contextlib.suppress(OSError):
                if spare:
                    self._unlink(spare)
                self._unlink(path)
                self.loose.discard(name)
            raise

    def stream(self, name: str, produce: Callable[[Put], int]) -> int:
        """Write a new file of which nobody knows the size yet, and return it in bytes.

        Parameters
        ----------
        produce
            Is given what writes buffers at an offset, and returns the size.

        Raises
        ------
        OSError
            Nothing of the file is left; so it is with whatever `produce` raises.
        """
        self.loose.add(name)
        path = self.path(name)
        fd = self.with_room(lambda: self._create(name))
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
                    self.with_room(lambda: reserve(fd, reserved, more))
                    reserved += more
            self.with_room(functools.partial(write_all, fd, buffers, sizes, at))

        try:
            try:
                nbytes = produce(put)
                os.ftruncate(fd, nbytes)
                if self.durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if self.durable:
                self._sync_folder(path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._unlink(path)
                self.loose.discard(name)
            raise
        return nbytes

    def create(self, name: str, nbytes: int, source: str | None) -> int:
        """Make a file with its space reserved, and return a descriptor to read and write it.

        Parameters
        ----------
        source
            The path of a file whose first bytes are its first bytes: shared with it where the
            file system can, copied otherwise.  None: zero bytes.

        Raises
        ------
        OSError
            Nothing of the file is left.
        """
        return self.with_room(lambda: self._create_reserved(name, nbytes, source))

    def _create_reserved(self, name: str, nbytes: int, source: str | None) -> int:
        self.loose.add(name)
        fd = self._create(name, os.O_RDWR)
        try:
            if source is None or not _clone(source, fd, nbytes):
                reserve(fd, 0, nbytes)
                if source is not None:
                    _copy(source, fd, nbytes)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                self._unlink(self.path(name))
                self.loose.discard(name)
            raise
        return fd

    def sync(self, name: str, fd: int) -> None:
        """Put a file that was made by `create` on stable storage, if that is asked for."""
        if self.durable:
            os.fsync(fd)
            self._sync_folder(self.path(name))

    def _create(self, name: str, access: int = os.O_WRONLY) -> int:
        flags = access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

        def create(path: str) -> int:
            return os.open(path, flags, 0o666)

        try:
            return _make_parent_and(create, self.path(name))
        except OSError:
            self.loose.discard(name)
            raise

    def _open_spare(self, spare: str) -> int | None:
        """Open a spare and hold a lease on it, so that nobody can come to see it while it is
        written; None, and it is gone, if somebody does.
        """
        fd = None
        try:
            fd = os.open(spare, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            _lease(fd)
        except OSError:
            if fd is not None:
                os.close(fd)
            with contextlib.suppress(OSError):
                self._unlink(spare)
            return None
        return fd

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
        return self.with_room(functools.partial(self._append, name, at, buffers, sizes))

    def _append(self, name: str, at: int, buffers: Buffers, sizes: Sequence[int]) -> int:
        path = self.path(name)
        nbytes = sum(sizes)
        if at:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        else:
            self.loose.add(name)
            fd = self._create(name)
        try:
            reserve(fd, at, nbytes)
            write_all(fd, buffers, sizes, at)
            if self.durable:
                os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                # No row names what lies behind `at`, so no view can reach it.
                os.ftruncate(fd, at)
                if not at:
                    self._unlink(path)
                    self.loose.discard(name)
            raise
        finally:
            os.close(fd)
        if self.durable and not at:
            self._sync_folder(path)
        return at + nbytes

    def may_append(self, name: str, at: int, head: bytes) -> bool:
        """Whether a file is there that begins with `head`, is `at` bytes long at least, and has
        no second name: another chest counts on what lies behind our end.
        """
        try:
            fd = os.open(self.path(name), READ_FLAGS)
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

    def link(self, source: str, name: str) -> None:
        """Give the file at the path `source` a name in this chest, too.

        Raises
        ------
        OSError
            EXDEV where it lies on another file system.
        """
        path = self.path(name)
        self.loose.add(name)
        try:
            self.with_room(lambda: _make_parent_and(os.link, source, path))
        except OSError:
            self.loose.discard(name)
            raise
        if self.durable:
            try:
                fd = os.open(path, READ_FLAGS)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self._sync_folder(path)
            except OSError:
                self.remove([name], keep_spares=False)
                raise

    def remove(self, names: Iterable[str], *, keep_spares: bool = True) -> None:
        """Unlink files that no row names any more, or keep them as spares.

        Raises nothing: a file that cannot be removed is an orphan, which the next writer sweeps.
        """
        names = list(names)
        self.loose.update(names)
        for name in names:
            with contextlib.suppress(OSError):
                if name.endswith(BLOCKS):
                    self._remove_blocks(name)
                    continue
                # Compressed files are of any size, and are not written over others.
                may_spare = keep_spares and name.startswith(DATA) and name.endswith(".npy")
                if not (may_spare and self._keep_as_spare(name)):
                    self._unlink(self.path(name))
                self.loose.discard(name)

    def _remove_blocks(self, name: str) -> None:
        """Move a folder of blocks out of reach, and remove it once nobody reads it."""
        path = self.path(name)
        left = self.path(f"{UNFINISHED}/{_LEFT}{os.path.basename(name)}")
        with contextlib.suppress(FileNotFoundError):
            _make_parent_and(os.rename, path, left)
            self._thinned.add(os.path.dirname(path))
        self.loose.discard(name)
        # With it what could not be removed before.
        self.remove_unfinished()

    def remove_unfinished(self, *, all_of_them: bool = False) -> None:
        """Remove what is out of use and was still read then, and what was given up.

        Parameters
        ----------
        all_of_them
            Also what somebody may go on to write.

        Raises nothing.
        """
        given_up = time.time() - _GIVEN_UP_SECONDS
        entries = []
        with contextlib.suppress(OSError):
            entries = _entries(self.path(UNFINISHED))
        for entry in entries:
            with contextlib.suppress(OSError):
                last = entry.stat(follow_symlinks=False).st_mtime
                if all_of_them or entry.name.startswith((_LEFT, ONCE)) or last < given_up:
                    _remove_unless_held(entry.path)

    def adopt_blocks(self, folder: str, name: str) -> None:
        """Give a finished folder of blocks its name as a value.

        Raises
        ------
        OSError
            It has the name it had.
        """
        path = self.path(name)
        self.loose.add(name)
        try:
            if self.durable:
                sync_folder(folder)
            self.with_room(lambda: _make_parent_and(os.rename, folder, path))
        except OSError:
            self.loose.discard(name)
            raise
        if self.durable:
            self._sync_folder(path)

    def _unlink(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._thinned.add(os.path.dirname(path))
        self.loose.discard(path)

    def _keep_as_spare(self, name: str) -> bool:
        path = self.path(name)
        size = os.lstat(path).st_size
        with self._lock:
            if self._spare_bytes + size > self.most_spare_bytes:
                return False
            self._spare_bytes += size
        spare = self.path(f"{SPARE}/{self.session:x}/{os.path.basename(name)}")
        kept = False
        self.loose.add(spare)
        try:
            # Out of reach first: from here on nobody can open it by the name the catalog gave.
            _make_parent_and(os.rename, path, spare)
            self._thinned.add(os.path.dirname(path))
            kept = _is_unseen(spare)
            if not kept:
                self._unlink(spare)
        finally:
            with self._lock:
                if kept:
                    self._spares.append((size, spare))
                else:
                    self._spare_bytes -= size
        return True

    def _take_spare(self, nbytes: int) -> str | None:
        """The spare closest in size, within a factor of two, or None."""
        with self._lock:
            fitting = [spare for spare in self._spares if nbytes <= 2 * spare[0] <= 4 * nbytes]
            if not fitting:
                return None
            best = min(fitting, key=lambda spare: abs(spare[0] - nbytes))
            self._spares.remove(best)
            self._spare_bytes -= best[0]
        return best[1]

    def drop_spares(self) -> bool:
        """Give the spares' space back, whichever session keeps them; False if there were none.

        A session that has lost a spare like this writes a new file instead.
        """
        found = self._drop_own_spares()
        with contextlib.suppress(OSError):
            for folder in _entries(f"{self._chest}/{SPARE}"):
                if not folder.is_dir(follow_symlinks=False):
                    continue
                for name in _files_in(folder.path):
                    with contextlib.suppress(OSError):
                        os.unlink(f"{folder.path}/{name}")
                        found = True
        return found

    def _drop_own_spares(self) -> bool:
        with self._lock:
            spares, self._spares, self._spare_bytes = self._spares, [], 0
        for _, path in spares:
            with contextlib.suppress(OSError):
                self._unlink(path)
        return bool(spares)

    def end_session(self) -> None:
        """Give the spares' space and their folder back."""
        self._drop_own_spares()
        self.remove_spare_folder(self.session)

    def remove_spare_folder(self, session: int) -> None:
        """Remove the folder of a session's spares, if none is in it."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path(f"{SPARE}/{session:x}"))
            self._thinned.add(self.path(SPARE))

    def sync_removals(self) -> None:
        """Let no power cut bring back what was removed, if that is asked for.

        Raises
        ------
        OSError
            It may.
        """
        folders, self._thinned = self._thinned, set()
        if self.durable:
            for folder in sorted(folders):
                with contextlib.suppress(FileNotFoundError):
                    sync_folder(folder)

    def names(self) -> Iterator[str]:
        """Every file in the chest's folders of values, relative to its own.

        As deep as files of ours lie, and no deeper; no link is followed.
        """
        for top in (DATA, SPARE):
            for entry in _entries(self.path(top)):
                if entry.is_dir(follow_symlinks=False):
                    for value in _entries(entry.path):
                        is_folder = value.is_dir(follow_symlinks=False)
                        # A folder of blocks is a value as a file is.
                        if not is_folder or value.name.endswith(BLOCKS):
                            yield f"{top}/{entry.name}/{value.name}"
                else:
                    yield f"{top}/{entry.name}"
        for file in _files_in(self.path(PACKS)):
            yield f"{PACKS}/{file}"

    def _sync_folder(self, path: str) -> None:
        # The folder may be new itself: its own name lies in its parent.
        folder = os.path.dirname(path)
        while True:
            sync_folder(folder)
            if folder == self.root:
                return
            folder = os.path.dirname(folder)


def _remove_unless_held(path: str) -> None:
    """Remove a folder of blocks, unless somebody reads or writes it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(path)  # a stranger's
        return
    try:
        if hold_folder(fd, shared=False) and is_at(fd, path):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files_in(folder: str) -> Iterator[str]:
    for entry in _entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            yield entry.name


def check_folders(root: str) -> None:
    """Refuse a chest of which a folder is a link, which would lead elsewhere what we do in it.

    Opening a file refuses a link in its last place only (``O_NOFOLLOW``).

    Raises
    ------
    ChestFormatError
        A folder of values is a link.
    """
    for top in (DATA, PACKS, SPARE, QUARANTINE, UNFINISHED):
        path = f"{root}/{top}"
        if os.path.islink(path):
            raise ChestFormatError(f"expected a folder at {path}, found a link")
    for top in (DATA, SPARE):
        for entry in _entries(f"{root}/{top}"):
            if entry.is_symlink():
                raise ChestFormatError(f"expected a folder at {entry.path}, found a link")


def sync_folder(folder: str) -> None:
    """Put the names in a folder on stable storage."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# linux/fs.h: share the blocks of another file.
_FICLONE = 0x40049409


def _clone(source: str, fd: int, nbytes: int) -> bool:
    """Let an empty file share the first `nbytes` bytes of another; False where that cannot be.

    A write to a shared block needs room for a block of its own, and through a map it is SIGBUS
    where there is none: so only where there is room for all of them.
    """
    try:
        free = os.fstatvfs(fd)
        if free.f_bavail * free.f_frsize < 2 * nbytes:
            return False
        other = os.open(source, READ_FLAGS)
        try:
            fcntl.ioctl(fd, _FICLONE, other)
        finally:
            os.close(other)
        os.ftruncate(fd, nbytes)
    except OSError:
        return False
    return True


def _copy(source: str, fd: int, nbytes: int) -> None:
    """Copy the first `nbytes` bytes of a file, inside the kernel."""
    other = os.open(source, READ_FLAGS)
    try:
        left = min(nbytes, os.fstat(other).st_size)
        while left > 0:
            count = os.sendfile(fd, other, None, left)
            if not count:
                raise OSError(errno.EIO, "the file ended while it was copied", source)
            left -= count
    finally:
        os.close(other)


def open_draft(root: str, name: str) -> int:
    """Open a value file that another process is making, to read and write it."""
    return os.open(f"{root}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def reserve(fd: int, offset: int, nbytes: int) -> None:
    """Make sure that `nbytes` bytes can be written at `offset`, where the file system can say so.

    Raises
    ------
    OSError
        ENOSPC, EFBIG or EDQUOT: nothing was written.
    """
    if nbytes <= 0:
        return
    try:
        os.posix_fallocate(fd, offset, nbytes)
    except OSError as error:
        if error.errno not in _NO_RESERVE:
            raise


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


def _make_parent_and(action: Callable[..., T], *paths: str) -> T:
    """Do `action`; where the last path's folder is missing, make it and do it again."""
    try:
        return action(*paths)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(paths[-1]), exist_ok=True)
        return action(*paths)


def _is_unseen(path: str) -> bool:
    """Whether nobody but the caller can see the file: no other name, descriptor or map of it.

    The kernel grants a write lease only for a file that nobody else has open, and a map keeps its
    file open, also one made before a fork (fcntl(2), "Leases").
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # A stranger's chest may hold a pipe, or a link to a file of ours, in the place of a file.
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _lease(fd)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _lease(fd: int) -> None:
    """Take a write lease: until it is given back, whoever opens the file waits, or is refused.

    That `_is_unseen` was true is not enough to write: whoever had looked up the file's name
    before the rename, but not opened it yet, would see it then.

    Raises
    ------
    OSError
        Somebody else can see the file.
    """
    status = os.fstat(fd)
    if status.st_nlink != 1 or not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EAGAIN, "expected a file with one name")
    # Whoever opens the file while we hold the lease has a signal sent to us.  By default that is
    # SIGIO, which ends a process; SIGURG is ignored.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def make_private_folder() -> tuple[str, LockFile]:
    """A new folder for a temporary chest, and the lock that marks it as in use.

    It lies where `tempfile` puts things: set ``TMPDIR`` to have it elsewhere.  Folders whose
    owner died without removing them are removed on the way.
    """
    parent = tempfile.gettempdir()
    for name in os.listdir(parent):
        if name.startswith(_PRIVATE_PREFIX):
            _remove_if_abandoned(os.path.join(parent, name))
    while True:
        root = tempfile.mkdtemp(prefix=_PRIVATE_PREFIX, dir=parent)
        try:
            held = LockFile(root)
            if held.try_take(ATTACHED) and held.try_take(PRIVATE) and held.has_name:
                return root, held
            # Another process took it for abandoned, between the lock's making and its taking.
            held.close()
        except FileNotFoundError:
            continue
        except BaseException:
            remove_folder(root)
            with contextlib.suppress(OSError):
                os.rmdir(root)  # without descriptors nothing else can be done
            raise


def _remove_if_abandoned(root: str) -> None:
    with contextlib.suppress(OSError, ChestFormatError):
        # Not made where it is missing: such a folder is being made.
        held = LockFile(root, create=False)
        try:
            if held.owner == os.getuid() and held.try_take(ATTACHED):
                remove_folder(root)
        finally:
            held.close()


def remove_folder(root: str) -> None:
    """Remove a folder and what is in it, as far as it can be removed."""
    shutil.rmtree(root, ignore_errors=True)
