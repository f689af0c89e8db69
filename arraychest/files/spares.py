"""Spares: files that the catalog no longer names, kept to be overwritten by the next values.

A spare's pages are already in the page cache and its blocks on the disk, which makes a spill of
about its size some two to three times as fast.  A file is kept only when the kernel itself says
that nobody in any process can still see it: it was renamed out of reach first, it has one name,
and a write lease on it is granted, which the kernel does only for a file that no one else has open
or mapped.  Where the system has no leases there are no spares.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from arraychest.files.names import SPARE
from arraychest.files.place import Place
from arraychest.platform.leases import HAS_LEASES, end_lease, take_lease
from arraychest.sharing.interrupts import Lock
from arraychest.sharing.open_folder import OpenFolder

# Spares kept at most, in bytes: enough for what one burst of spills frees and takes again.
SPARE_BYTES = 512 << 20


class Spares:
    """The spares of one session.  Safe from many threads.

    Parameters
    ----------
    place
        Where the values' files lie.
    chest
        The chest's folder, where the spares of all its sessions are.

    Attributes
    ----------
    session
        Its number; its spares lie in a folder of their own.
    most_bytes
        Bytes that are kept at most.
    """

    def __init__(self, place: Place, chest: OpenFolder) -> None:
        self._place = place
        self._chest = chest
        self.session = 0
        self.most_bytes = SPARE_BYTES
        self._lock = Lock()
        self._spares: list[tuple[int, str]] = []
        self._bytes = 0

    def keep(self, name: str) -> bool:
        """Take over a file that no row names any more; False if there are enough spares already.

        One that somebody can still see is unlinked.
        """
        if not HAS_LEASES:
            return False
        place = self._place
        size = place.stat(name).st_size
        with self._lock:
            if self._bytes + size > self.most_bytes:
                return False
            self._bytes += size
        spare = f"{SPARE}/{self.session:x}/{os.path.basename(name)}"
        kept = False
        place.loose.add(spare)
        try:
            # Out of reach first: from here on nobody can open it by the name the catalog gave.
            place.rename(name, spare)
            place.thinned.add(os.path.dirname(name))
            kept = self._is_unseen(spare)
            if not kept:
                place.unlink(spare)
        finally:
            with self._lock:
                if kept:
                    self._spares.append((size, spare))
                else:
                    self._bytes -= size
        return True

    def take(self, nbytes: int) -> str | None:
        """The spare closest in size, within a factor of two, or None."""
        with self._lock:
            fitting = [spare for spare in self._spares if nbytes <= 2 * spare[0] <= 4 * nbytes]
            if not fitting:
                return None
            best = min(fitting, key=lambda spare: abs(spare[0] - nbytes))
            self._spares.remove(best)
            self._bytes -= best[0]
        return best[1]

    def open(self, spare: str) -> int | None:
        """Open a spare and hold a lease on it, so that nobody can come to see it while it is
        written; None, and it is gone, if somebody does.
        """
        # That it was unseen when it was kept is not enough: whoever had looked up the file's name
        # before the rename, but not opened it yet, would see what is written.
        fd = None
        try:
            fd = self._place.open(spare, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            take_lease(fd)
        except OSError:
            if fd is not None:
                os.close(fd)
            with contextlib.suppress(OSError):
                self._place.unlink(spare)
            return None
        return fd

    def drop(self) -> bool:
        """Give the spares' space back, whichever session keeps them; False if there were none.

        A session that has lost a spare like this writes a new file instead.
        """
        found = self._drop_own()
        if not self._chest.is_ours():
            return found
        with contextlib.suppress(OSError):
            for name in self._of_all_sessions():
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._chest.fd)
                    found = True
        return found

    def _of_all_sessions(self) -> Iterator[str]:
        chest = Place(self._chest)
        for session, is_folder in chest.entries(SPARE):
            for name, is_nested in chest.entries(f"{SPARE}/{session}") if is_folder else ():
                if not is_nested:
                    yield f"{SPARE}/{session}/{name}"

    def _drop_own(self) -> bool:
        is_ours = self._place.folder.is_ours()
        with self._lock:
            spares, self._spares, self._bytes = self._spares, [], 0
        if is_ours:
            for _, name in spares:
                with contextlib.suppress(OSError):
                    self._place.unlink(name)
        return bool(spares)

    def end(self) -> None:
        """Give the spares' space and their folder back."""
        self._drop_own()
        self.remove_folder(self.session)

    def remove_folder(self, session: int) -> None:
        """Remove the folder of a session's spares, if none is in it."""
        with contextlib.suppress(OSError):
            self._place.folder.check()
            os.rmdir(f"{SPARE}/{session:x}", dir_fd=self._place.folder.fd)
            self._place.thinned.add(SPARE)

    def _is_unseen(self, name: str) -> bool:
        """Whether nobody but the caller can see a file: no other name, descriptor or map of it.

        The kernel grants a write lease only for a file that nobody else has open, and a map keeps
        its file open, also one made before a fork (fcntl(2), "Leases").
        """
        try:
            # A stranger's chest may hold a pipe, or a link to a file of ours, in its place.
            fd = self._place.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            take_lease(fd)
            end_lease(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True
