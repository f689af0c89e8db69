"""The folder that a chest opened, held by a descriptor: a path may lead elsewhere a moment later.

Whatever a chest does to its files it does relative to this descriptor (``dir_fd=``), so that it
happens in the folder that was opened and in no other: one that was moved is followed, and what
lies at its old path now is never touched.  A folder that was removed, or emptied and used for
another chest, is known by its catalog: the file of that name is no longer the one that this chest
opened, and that one is held open, so that its number is given to no other file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from types import TracebackType
from typing import Self

from arraychest.errors import SpillError
from arraychest.platform.folders import path_of

CATALOG_NAME = "catalog.sqlite"

# With one slash, too, as `pathlib` writes it; one letter is a drive.  Before it names of caches may
# stand, as fsspec chains them.
_URL = re.compile(r"(?:[\w+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+:/")

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class OpenFolder:
    """A folder that is held open.

    Parameters
    ----------
    path
        Where it lies; a link to it will do.
    parent
        The open folder that `path` is relative to.

    Raises
    ------
    OSError
        It is not there, is no folder, or may not be read.

    Attributes
    ----------
    path
        Where it was found last, for people to read.
    fd
        Its descriptor; -1 once it is closed.
    """

    def __init__(self, path: str, parent: int | None = None) -> None:
        self.fd = -1
        self.path = path
        # Device and inode of the catalog, once it is known to be the chest's.
        self.identity: tuple[int, int] | None = None
        self.fd = os.open(path, _FLAGS, dir_fd=parent)

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def where(self) -> str:
        """Where the folder lies now, or where it was found last if nobody can say."""
        if self.fd >= 0 and not _leads_to(self.path, self.fd):
            self.path = where(self.fd, self.path)
        return self.path

    # --- is it still the chest's? ------------------------------------------------------------

    def identify(self) -> None:
        """Note which catalog is the chest's.  It must stay open from here on."""
        self.identity = self._found()

    def expect(self, inode: int) -> None:
        """Make sure that the catalog is the one with this number, in another process as well.

        The number of the device is another one on another host.

        Raises
        ------
        SpillError
            The folder holds another chest, or none.
        """
        found = self._found()
        if found is None or found[1] != inode:
            raise SpillError(self.lost())
        self.identity = found

    def check(self) -> None:
        """Make sure that the folder still holds the catalog that the chest opened; 2 to 3 us.

        Raises
        ------
        SpillError
            It was removed or replaced: nothing may be written here any more.
        OSError
            Nobody can say.
        """
        if self.identity is not None and self._found() != self.identity:
            raise SpillError(self.lost())

    def is_ours(self) -> bool:
        """Whether `check` raises nothing."""
        try:
            self.check()
        except OSError:
            return False
        return True

    def _found(self) -> tuple[int, int] | None:
        try:
            status = os.stat(CATALOG_NAME, dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                raise
            return None
        return status.st_dev, status.st_ino

    def lost(self) -> str:
        """What became of a folder for which `check` raises."""
        path = self.where()
        expected = f"expected {path} to be the folder that this chest opened"
        remedy = "values that are not stored stay in RAM; `drop` gives the chest up"
        if _leads_to(path, self.fd):
            inside = "its catalog was removed" if self._found() is None else "another chest in it"
            return f"{expected}, found that {inside}: {remedy}"
        if not os.path.lexists(path):
            return f"{expected}, found nothing there: it was removed; {remedy}"
        is_chest = os.path.lexists(f"{path}/{CATALOG_NAME}")
        found = "another chest" if is_chest else "something else"
        return f"{expected}, found {found} there: the folder was removed; {remedy}"

    # --- removing it -------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove what is in the folder, and then the folder, as far as that can be done."""
        with contextlib.suppress(OSError):
            fd = os.open(".", _FLAGS, dir_fd=self.fd)
            try:
                with os.scandir(fd) as entries:
                    found = [(each.name, each.is_dir(follow_symlinks=False)) for each in entries]
            finally:
                os.close(fd)
            for name, is_folder in found:
                with contextlib.suppress(OSError):
                    if is_folder:
                        shutil.rmtree(name, ignore_errors=True, dir_fd=self.fd)
                    else:
                        os.unlink(name, dir_fd=self.fd)
        with contextlib.suppress(OSError):
            # A link that leads here stays; it is the user's.
            path = os.path.realpath(self.where())
            if _leads_to(path, self.fd):
                os.rmdir(path)


def folder_at(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """The absolute path of a folder that a user named.

    Raises
    ------
    ValueError
        It is empty, which would be the working folder, or a URL.
    """
    told = os.fsdecode(path)
    if not told:
        raise ValueError('expected the path of a folder, found "": the working folder is "."')
    if _URL.match(told):
        raise ValueError(
            f"expected the path of a folder on this machine, found the URL {told!r:.200}: a chest "
            "lies on a local file system (a folder that has such a name is written ./NAME)"
        )
    return os.path.abspath(told)


def where(fd: int, path: str) -> str:
    """Where an open folder lies now, as far as the system can tell; otherwise `path`."""
    found = path_of(fd)
    return found if found is not None and _leads_to(found, fd) else path


def _leads_to(path: str, fd: int) -> bool:
    """Whether a path leads to the folder that is open."""
    try:
        there, here = os.stat(path), os.fstat(fd)
    except OSError:
        return False  # or the chest was closed meanwhile, and the descriptor with it
    return stat.S_ISDIR(there.st_mode) and os.path.samestat(there, here)
