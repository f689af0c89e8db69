"""Every change to a chest's folder but the catalog's own: reserve, write, sync, unlink.

Files are named relative to the folder, and found by its descriptor (see `open_folder`).

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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from arraychest.errors import ChestFormatError
from arraychest.sharing.interrupts import Lock
from arraychest.sharing.locks import ATTACHED, PRIVATE, LockFile, hold_folder, is_at
from arraychest.sharing.open_folder import OpenFolder

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
    folder
        The chest's, or a folder of blocks within it.
    durable
        Whether a write returns only once file and folder are on stable storage.
    chest
        The chest's, where `folder` is a folder of blocks.
    """

    def __init__(
        self, folder: OpenFolder, *, durable: bool, chest: OpenFolder | None = None
    ) -> None:
        self.folder = folder
        self._chest = folder if chest is None else chest
        self.durable = durable
        self._lock = Lock()
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
        for name in (DATA, PACKS, SPARE):
            self.make_folder(name)

    def make_folder(self, name: str) -> None:
        """Create a folder, and those above it, unless they are there already."""
        for end in (at for at, each in enumerate(name + "/") if each == "/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name[:end], dir_fd=self.folder.fd)

    def path(self, name: str) -> str:
        """Where a file of this chest was found last, for people to read."""
        return f"{self.folder.path}/{name}"

    def open(self, name: str, flags: int = READ_FLAGS) -> int:
        """Open a file of this chest; one that is made follows the umask."""
        return os.open(name, flags, 0o666, dir_fd=self.folder.fd)

    def stat(self, name: str) -> os.stat_result:
        """What the system says of a file; no link is followed."""
        return os.stat(name, dir_fd=self.folder.fd, follow_symlinks=False)

    def touch(self, name: str) -> None:
        """Note that a file is used now."""
        os.utime(name, dir_fd=self.folder.fd, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name."""
        try:
            self.stat(name)
        except OSError:
            return False
        return True

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in a folder that is made if it is missing."""
        fd = self.folder.fd
        self._make_parent_and(lambda: os.rename(old, new, src_dir_fd=fd, dst_dir_fd=fd), new)

    def _make_parent_and(self, action: Callable[[], T], name: str) -> T:
        """Do `action`; where the folder of `name` is missing, make it and do it again."""
        try:
            return action()
        except FileNotFoundError:
            self.make_folder(os.path.dirname(name))
            return action()

    # --- room on a full disk ---------------------------------------------------------------

    def with_room(self, action: Callable[[], T], *, frees: bool = False) -> T:
        """Do `action`; where the disk is full, give up what is held in reserve and do it again.

        Everything that writes for a chest goes through here.  It first gives up the spares of all
        the chest's sessions, and then, for an action that makes room itself, the reserve.

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
        with contextlib.suppress(OSError):
            self._chest.check()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(RESERVE, flags, 0o666, dir_fd=self._chest.fd)
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
            os.unlink(RESERVE, dir_fd=self._chest.fd)

    def drop_reserve(self) -> bool:
        """Give the room for deletions back; False if there was none."""
        self._reserve_is_whole = False
        try:
            self._chest.check()
            os.unlink(RESERVE, dir_fd=self._chest.fd)
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
        self.folder.check()
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
                self.rename(spare, name)
                self._thinned.add(os.path.dirname(spare))
                self.loose.discard(spare)
            if self.durable:
                self._sync_folder(name)
        except BaseException:
            with contextlib.suppress(OSError):
                if spare:
                    self._unlink(spare)
                self._unlink(name)
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
        self.folder.check()
        self.loose.add(name)
        fd = self.with_room(lambda: self._create(name, os.O_RDWR))
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
                nbytes = produce(put, fd)
                os.ftruncate(fd, nbytes)
                if self.durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if self.durable:
                self._sync_folder(name)
        except BaseException:
            with contextlib.suppress(OSError):
                self._unlink(name)
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
        self.folder.check()
        return self.with_room(lambda: self._create_reserved(name, nbytes, source))

    def _create_reserved(self, name: str, nbytes: int, source: str | None) -> int:
        other = None if source is None else self.open(source)
        try:
            self.loose.add(name)
            fd = self._create(name, os.O_RDWR)
            try:
                if other is None or not _clone(other, fd, nbytes):
                    reserve(fd, 0, nbytes)
                    if other is not None:
                        _copy(other, fd, nbytes)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    self._unlink(name)
                raise
        finally:
            if other is not None:
                os.close(other)
        return fd

    def sync(self, name: str, fd: int) -> None:
        """Put a file that was made by `create` on stable storage, if that is asked for."""
        if self.durable:
            os.fsync(fd)
            self._sync_folder(name)

    def _create(self, name: str, access: int = os.O_WRONLY) -> int:
        flags = access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

        try:
            return self._make_parent_and(lambda: self.open(name, flags), name)
        except OSError:
            self.loose.discard(name)
            raise

    def _open_spare(self, spare: str) -> int | None:
        """Open a spare and hold a lease on it, so that nobody can come to see it while it is
        written; None, and it is gone, if somebody does.
        """
        fd = None
        try:
            fd = self.open(spare, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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
        self.folder.check()
        return self.with_room(functools.partial(self._append, name, at, buffers, sizes))

    def _append(self, name: str, at: int, buffers: Buffers, sizes: Sequence[int]) -> int:
        nbytes = sum(sizes)
        if at:
            fd = self.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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
                    self._unlink(name)
            raise
        finally:
            os.close(fd)
        if self.durable and not at:
            self._sync_folder(name)
        return at + nbytes

    def may_append(self, name: str, at: int, head: bytes) -> bool:
        """Whether a file is there that begins with `head`, is `at` bytes long at least, and has
        no second name: another chest counts on what lies behind our end.
        """
        try:
            fd = self.open(name)
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

    def link(self, source: Files, source_name: str, name: str) -> None:
        """Give a file of another chest a name in this one, too.

        Raises
        ------
        OSError
            EXDEV where it lies on another file system.
        """
        theirs, ours = source.folder.fd, self.folder.fd
        self.folder.check()
        self.loose.add(name)
        try:
            self.with_room(
                lambda: self._make_parent_and(
                    lambda: os.link(source_name, name, src_dir_fd=theirs, dst_dir_fd=ours), name
                )
            )
        except OSError:
            self.loose.discard(name)
            raise
        if self.durable:
            try:
                fd = self.open(name)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self._sync_folder(name)
            except OSError:
                self.remove([name], keep_spares=False)
                raise

    def remove(self, names: Iterable[str], *, keep_spares: bool = True) -> None:
        """Unlink files that no row names any more, or keep them as spares.

        Raises nothing: a file that cannot be removed is an orphan, which the next writer sweeps.
        """
        names = list(names)
        self.loose.update(names)
        if not self.folder.is_ours():
            return
        for name in names:
            with contextlib.suppress(OSError):
                if name.endswith(BLOCKS):
                    self._remove_blocks(name)
                    continue
                # Compressed files are of any size, and are not written over others.
                may_spare = keep_spares and name.startswith(DATA) and name.endswith(".npy")
                if not (may_spare and self._keep_as_spare(name)):
                    self._unlink(name)
                self.loose.discard(name)

    def _remove_blocks(self, name: str) -> None:
        """Move a folder of blocks out of reach, and remove it once nobody reads it."""
        with contextlib.suppress(FileNotFoundError):
            self.rename(name, f"{UNFINISHED}/{_LEFT}{os.path.basename(name)}")
            self._thinned.add(os.path.dirname(name))
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
        entries: list[tuple[str, bool]] = []
        with contextlib.suppress(OSError):
            self.folder.check()
            entries = self._entries(UNFINISHED)
        for each, _ in entries:
            with contextlib.suppress(OSError):
                last = self.stat(f"{UNFINISHED}/{each}").st_mtime
                if all_of_them or each.startswith((_LEFT, ONCE)) or last < given_up:
                    self._remove_unless_held(f"{UNFINISHED}/{each}")

    def _remove_unless_held(self, name: str) -> None:
        """Remove a folder of blocks, unless somebody reads or writes it."""
        root = self.folder.fd
        try:
            fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            os.unlink(name, dir_fd=root)  # a stranger's
            return
        try:
            if hold_folder(fd, shared=False) and is_at(fd, name, root):
                shutil.rmtree(name, ignore_errors=True, dir_fd=root)
        finally:
            os.close(fd)

    def adopt_blocks(self, unfinished: str, name: str) -> None:
        """Give a finished folder of blocks its name as a value.

        Raises
        ------
        OSError
            It has the name it had.
        """
        self.folder.check()
        self.loose.add(name)
        try:
            if self.durable:
                sync_folder(unfinished, self.folder.fd)
            self.with_room(lambda: self.rename(unfinished, name))
        except OSError:
            self.loose.discard(name)
            raise
        if self.durable:
            self._sync_folder(name)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.folder.fd)
        self._thinned.add(os.path.dirname(name))
        self.loose.discard(name)

    def _keep_as_spare(self, name: str) -> bool:
        size = self.stat(name).st_size
        with self._lock:
            if self._spare_bytes + size > self.most_spare_bytes:
                return False
            self._spare_bytes += size
        spare = f"{SPARE}/{self.session:x}/{os.path.basename(name)}"
        kept = False
        self.loose.add(spare)
        try:
            # Out of reach first: from here on nobody can open it by the name the catalog gave.
            self.rename(name, spare)
            self._thinned.add(os.path.dirname(name))
            kept = self._is_unseen(spare)
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
        if not self._chest.is_ours():
            return found
        files = Files(self._chest, durable=False)
        with contextlib.suppress(OSError):
            for name in files.spares():
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._chest.fd)
                    found = True
        return found

    def spares(self) -> Iterator[str]:
        """The spares of all sessions."""
        for session, is_folder in self._entries(SPARE):
            for name, is_nested in self._entries(f"{SPARE}/{session}") if is_folder else ():
                if not is_nested:
                    yield f"{SPARE}/{session}/{name}"

    def _drop_own_spares(self) -> bool:
        is_ours = self.folder.is_ours()
        with self._lock:
            spares, self._spares, self._spare_bytes = self._spares, [], 0
        if is_ours:
            for _, name in spares:
                with contextlib.suppress(OSError):
                    self._unlink(name)
        return bool(spares)

    def end_session(self) -> None:
        """Give the spares' space and their folder back."""
        self._drop_own_spares()
        self.remove_spare_folder(self.session)

    def remove_spare_folder(self, session: int) -> None:
        """Remove the folder of a session's spares, if none is in it."""
        with contextlib.suppress(OSError):
            self.folder.check()
            os.rmdir(f"{SPARE}/{session:x}", dir_fd=self.folder.fd)
            self._thinned.add(SPARE)

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
                    sync_folder(folder, self.folder.fd)

    def names(self) -> Iterator[str]:
        """Every file in the chest's folders of values, relative to its own.

        As deep as files of ours lie, and no deeper; no link is followed.
        """
        for top in (DATA, SPARE):
            for entry, is_folder in self._entries(top):
                if not is_folder:
                    yield f"{top}/{entry}"
                    continue
                for value, inside in self._entries(f"{top}/{entry}"):
                    # A folder of blocks is a value as a file is.
                    if not inside or value.endswith(BLOCKS):
                        yield f"{top}/{entry}/{value}"
        for file, is_folder in self._entries(PACKS):
            if not is_folder:
                yield f"{PACKS}/{file}"

    def links(self) -> Iterator[str]:
        """The links that lie where folders of values do."""
        for top in (DATA, SPARE):
            for name, _ in self._entries(top):
                try:
                    status = self.stat(f"{top}/{name}")
                except FileNotFoundError:
                    continue  # a session that ends removes its folder of spares
                if stat.S_ISLNK(status.st_mode):
                    yield f"{top}/{name}"

    def _entries(self, name: str) -> list[tuple[str, bool]]:
        """What is in a folder of this chest, and which of it are folders; no link is followed."""
        try:
            fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return []
        try:
            with os.scandir(fd) as found:
                return [(each.name, each.is_dir(follow_symlinks=False)) for each in found]
        finally:
            os.close(fd)

    def _sync_folder(self, name: str) -> None:
        """Put the name of a file on stable storage, and those of the folders that it lies in."""
        # A folder may be new itself: its own name lies in its parent.
        while name:
            name = os.path.dirname(name)
            sync_folder(name or ".", self.folder.fd)

    def _is_unseen(self, name: str) -> bool:
        """Whether nobody but the caller can see a file: no other name, descriptor or map of it.

        The kernel grants a write lease only for a file that nobody else has open, and a map keeps
        its file open, also one made before a fork (fcntl(2), "Leases").
        """
        if not hasattr(fcntl, "F_SETLEASE"):
            return False
        try:
            # A stranger's chest may hold a pipe, or a link to a file of ours, in its place.
            fd = self.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
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


def check_folders(folder: OpenFolder) -> None:
    """Refuse a chest of which a folder is a link, which would lead elsewhere what we do in it.

    Opening a file refuses a link in its last place only (``O_NOFOLLOW``).

    Raises
    ------
    ChestFormatError
        A folder of values is a link.
    """
    files = Files(folder, durable=False)
    for top in (DATA, PACKS, SPARE, QUARANTINE, UNFINISHED):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(files.stat(top).st_mode):
                raise ChestFormatError(f"expected a folder at {files.path(top)}, found a link")
    for name in files.links():
        raise ChestFormatError(f"expected a folder at {files.path(name)}, found a link")


def sync_folder(folder: str, parent: int | None = None) -> None:
    """Put the names in a folder on stable storage; it lies in the open folder `parent`."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# linux/fs.h: share the blocks of another file.
_FICLONE = 0x40049409


def _clone(source: int, fd: int, nbytes: int) -> bool:
    """Let an empty file share the first `nbytes` bytes of another; False where that cannot be.

    A write to a shared block needs room for a block of its own, and through a map it is SIGBUS
    where there is none: so only where there is room for all of them.
    """
    try:
        free = os.fstatvfs(fd)
        if free.f_bavail * free.f_frsize < 2 * nbytes:
            return False
        fcntl.ioctl(fd, _FICLONE, source)
        os.ftruncate(fd, nbytes)
    except OSError:
        return False
    return True


def _copy(source: int, fd: int, nbytes: int) -> None:
    """Copy the first `nbytes` bytes of a file, inside the kernel."""
    left = min(nbytes, os.fstat(source).st_size)
    while left > 0:
        count = os.sendfile(fd, source, None, left)
        if not count:
            raise OSError(errno.EIO, "the file ended while it was copied")
        left -= count


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


def make_private_folder() -> tuple[OpenFolder, LockFile]:
    """A new folder for a temporary chest, and the lock that marks it as in use.

    It lies where `tempfile` puts things: set ``TMPDIR`` to have it elsewhere.  Folders whose
    owner died without removing them are removed on the way.
    """
    parent = tempfile.gettempdir()
    for name in os.listdir(parent):
        if name.startswith(_PRIVATE_PREFIX):
            _remove_if_abandoned(os.path.join(parent, name))
    while True:
        path = tempfile.mkdtemp(prefix=_PRIVATE_PREFIX, dir=parent)
        try:
            folder = OpenFolder(path)
        except FileNotFoundError:
            continue
        except BaseException:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # without descriptors nothing else can be done
            raise
        try:
            held = LockFile(folder)
            if held.try_take(ATTACHED) and held.try_take(PRIVATE) and held.has_name:
                return folder, held
            # Another process took it for abandoned, between the lock's making and its taking.
            held.close()
            folder.close()
        except FileNotFoundError:
            folder.close()
        except BaseException:
            folder.remove()
            folder.close()
            raise


def _remove_if_abandoned(path: str) -> None:
    with contextlib.suppress(OSError, ChestFormatError), OpenFolder(path) as folder:
        # Not made where it is missing: such a folder is being made.
        held = LockFile(folder, create=False)
        try:
            if held.owner == os.getuid() and held.try_take(ATTACHED):
                folder.remove()
        finally:
            held.close()
