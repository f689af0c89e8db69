"""The folder of a chest, or a folder of blocks within it: its files by their names.

Files are named relative to the folder, and found by its descriptor (see `open_folder`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

from arraychest.errors import ChestFormatError
from arraychest.files.names import (
    BLOCKS,
    DATA,
    FOLDER_FLAGS,
    PACKS,
    QUARANTINE,
    READ_FLAGS,
    SPARE,
    UNFINISHED,
)
from arraychest.platform.space import sync
from arraychest.sharing.open_folder import OpenFolder

T = TypeVar("T")


class Place:
    """A folder whose files are found by name.  Safe from many threads.

    Parameters
    ----------
    folder
        The chest's, or a folder of blocks within it.
    durable
        Whether names are put on stable storage.

    Attributes
    ----------
    loose
        Files that may be there without a row that names them: each goes in before it is made or
        unlinked, and out once it is named, or gone.  What an error or an interrupt leaves in here
        is why the next writer has to sweep.
    thinned
        Folders that files were removed from since `sync_removals`: until then a power cut may
        bring the files back.
    """

    def __init__(self, folder: OpenFolder, *, durable: bool = False) -> None:
        self.folder = folder
        self.durable = durable
        self.loose: set[str] = set()
        self.thinned: set[str] = set()

    def path(self, name: str) -> str:
        """Where a file was found last, for people to read."""
        return f"{self.folder.path}/{name}"

    def open(self, name: str, flags: int = READ_FLAGS) -> int:
        """Open a file; one that is made follows the umask."""
        return os.open(name, flags, 0o666, dir_fd=self.folder.fd)

    def create(self, name: str, access: int = os.O_WRONLY) -> int:
        """Make a file that is not there yet, and the folder that it lies in, and open it."""
        flags = access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return self.make_parent_and(lambda: self.open(name, flags), name)
        except OSError:
            self.loose.discard(name)
            raise

    def stat(self, name: str) -> os.stat_result:
        """What the system says of a file; no link is followed."""
        return os.stat(name, dir_fd=self.folder.fd, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name."""
        try:
            self.stat(name)
        except OSError:
            return False
        return True

    def touch(self, name: str) -> None:
        """Note that a file is used now."""
        os.utime(name, dir_fd=self.folder.fd, follow_symlinks=False)

    def make_folder(self, name: str) -> None:
        """Create a folder, and those above it, unless they are there already."""
        for end in (at for at, each in enumerate(name + "/") if each == "/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name[:end], dir_fd=self.folder.fd)

    def make_parent_and(self, action: Callable[[], T], name: str) -> T:
        """Do `action`; where the folder of `name` is missing, make it and do it again."""
        try:
            return action()
        except FileNotFoundError:
            self.make_folder(os.path.dirname(name))
            return action()

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in a folder that is made if it is missing."""
        fd = self.folder.fd
        self.make_parent_and(lambda: os.rename(old, new, src_dir_fd=fd, dst_dir_fd=fd), new)

    def link(self, source: Place, source_name: str, name: str) -> None:
        """Give a file of another folder a name in this one, too."""
        theirs, ours = source.folder.fd, self.folder.fd
        self.make_parent_and(
            lambda: os.link(source_name, name, src_dir_fd=theirs, dst_dir_fd=ours), name
        )

    def unlink(self, name: str) -> None:
        """Remove a file, unless it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.folder.fd)
        self.thinned.add(os.path.dirname(name))
        self.loose.discard(name)

    # --- on stable storage -------------------------------------------------------------------

    def sync_name(self, name: str) -> None:
        """Put the name of a file on stable storage, and those of the folders that it lies in."""
        # A folder may be new itself: its own name lies in its parent.
        while name:
            name = os.path.dirname(name)
            sync_folder(name or ".", self.folder.fd)

    def sync_removals(self) -> None:
        """Let no power cut bring back what was removed, if that is asked for.

        Raises
        ------
        OSError
            It may.
        """
        folders, self.thinned = self.thinned, set()
        if self.durable:
            for folder in sorted(folders):
                with contextlib.suppress(FileNotFoundError):
                    sync_folder(folder, self.folder.fd)

    # --- what is there -----------------------------------------------------------------------

    def entries(self, name: str) -> list[tuple[str, bool]]:
        """What is in a folder of this one, and which of it are folders; no link is followed."""
        try:
            fd = self.open(name, FOLDER_FLAGS)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return []
        try:
            with os.scandir(fd) as found:
                return [(each.name, each.is_dir(follow_symlinks=False)) for each in found]
        finally:
            os.close(fd)

    def names(self) -> Iterator[str]:
        """Every file in the chest's folders of values, relative to its own.

        As deep as files of ours lie, and no deeper; no link is followed.
        """
        for top in (DATA, SPARE):
            for entry, is_folder in self.entries(top):
                if not is_folder:
                    yield f"{top}/{entry}"
                    continue
                for value, inside in self.entries(f"{top}/{entry}"):
                    # A folder of blocks is a value as a file is.
                    if not inside or value.endswith(BLOCKS):
                        yield f"{top}/{entry}/{value}"
        for file, is_folder in self.entries(PACKS):
            if not is_folder:
                yield f"{PACKS}/{file}"

    def links(self) -> Iterator[str]:
        """The links that lie where folders of values do."""
        for top in (DATA, SPARE):
            for name, _ in self.entries(top):
                try:
                    status = self.stat(f"{top}/{name}")
                except FileNotFoundError:
                    continue  # a session that ends removes its folder of spares
                if stat.S_ISLNK(status.st_mode):
                    yield f"{top}/{name}"


def check_folders(folder: OpenFolder) -> None:
    """Refuse a chest of which a folder is a link, which would lead elsewhere what we do in it.

    Opening a file refuses a link in its last place only (``O_NOFOLLOW``).

    Raises
    ------
    ChestFormatError
        A folder of values is a link.
    """
    place = Place(folder)
    for top in (DATA, PACKS, SPARE, QUARANTINE, UNFINISHED):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(place.stat(top).st_mode):
                raise ChestFormatError(f"expected a folder at {place.path(top)}, found a link")
    for name in place.links():
        raise ChestFormatError(f"expected a folder at {place.path(name)}, found a link")


def sync_folder(folder: str, parent: int | None = None) -> None:
    """Put the names in a folder on stable storage; it lies in the open folder `parent`."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent)
    try:
        sync(fd)
    finally:
        os.close(fd)
