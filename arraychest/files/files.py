"""Every change to a chest's folder but the catalog's own, as one object.

What it does is done by its parts: `place` finds files by name, `room` makes room on a full disk,
`spares` keeps files to overwrite, `writing` writes new ones, and `unfinished` has the folders of
blocks that are not values.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from arraychest.files.names import BLOCKS, DATA, PACKS, READ_FLAGS, SPARE
from arraychest.files.place import Place
from arraychest.files.room import Room
from arraychest.files.spares import Spares
from arraychest.files.unfinished import Unfinished
from arraychest.files.writing import Buffers, Put, Writing
from arraychest.platform.space import sync
from arraychest.sharing.open_folder import OpenFolder

T = TypeVar("T")


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

    Attributes
    ----------
    loose
        As `Place.loose`.
    """

    def __init__(
        self, folder: OpenFolder, *, durable: bool, chest: OpenFolder | None = None
    ) -> None:
        self.folder = folder
        self.durable = durable
        chest = folder if chest is None else chest
        self.place = Place(folder, durable=durable)
        self.spares = Spares(self.place, chest)
        self.room = Room(chest, self.spares)
        self.unfinished = Unfinished(self.place, self.room)
        self._writing = Writing(self.place, self.room, self.spares)
        self.loose = self.place.loose

    # --- by name: see `Place` ----------------------------------------------------------------

    def path(self, name: str) -> str:
        """Where a file of this chest was found last, for people to read."""
        return self.place.path(name)

    def open(self, name: str, flags: int = READ_FLAGS) -> int:
        """Open a file of this chest; one that is made follows the umask."""
        return self.place.open(name, flags)

    def stat(self, name: str) -> os.stat_result:
        """What the system says of a file; no link is followed."""
        return self.place.stat(name)

    def touch(self, name: str) -> None:
        """Note that a file is used now."""
        self.place.touch(name)

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name."""
        return self.place.exists(name)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in a folder that is made if it is missing."""
        self.place.rename(old, new)

    def make_folder(self, name: str) -> None:
        """Create a folder, and those above it, unless they are there already."""
        self.place.make_folder(name)

    def make_folders(self) -> None:
        """Create the folders that a chest has from the start."""
        for name in (DATA, PACKS, SPARE):
            self.place.make_folder(name)

    def names(self) -> Iterator[str]:
        """Every file in the chest's folders of values, relative to its own."""
        return self.place.names()

    # --- writing: see `Writing` and `Room` ---------------------------------------------------

    def with_room(self, action: Callable[[], T], *, frees: bool = False) -> T:
        """Do `action`; where the disk is full, give up what is held in reserve and do it again."""
        return self.room.with_room(action, frees=frees)

    def write(self, name: str, buffers: Buffers) -> int:
        """Write a new file of these buffers and return its size in bytes."""
        return self._writing.write(name, buffers)

    def stream(self, name: str, produce: Callable[[Put, int], int]) -> int:
        """Write a new file of which nobody knows the size yet, and return it in bytes."""
        return self._writing.stream(name, produce)

    def create(self, name: str, nbytes: int, source: str | None) -> int:
        """Make a file with its space reserved, and return a descriptor to read and write it."""
        return self._writing.create(name, nbytes, source)

    def sync(self, name: str, fd: int) -> None:
        """Put a file that was made by `create` on stable storage, if that is asked for."""
        self._writing.sync(name, fd)

    def append(self, name: str, at: int, buffers: Buffers, sizes: Sequence[int]) -> int:
        """Write behind the first `at` bytes of a file and return its new size."""
        return self._writing.append(name, at, buffers, sizes)

    def may_append(self, name: str, at: int, head: bytes) -> bool:
        """Whether a file is there that may be appended to at this place."""
        return self._writing.may_append(name, at, head)

    def link(self, source: Files, source_name: str, name: str) -> None:
        """Give a file of another chest a name in this one, too.

        Raises
        ------
        OSError
            EXDEV where it lies on another file system.
        """
        self.folder.check()
        self.loose.add(name)
        try:
            self.with_room(lambda: self.place.link(source.place, source_name, name))
        except OSError:
            self.loose.discard(name)
            raise
        if self.durable:
            try:
                fd = self.open(name)
                try:
                    sync(fd)
                finally:
                    os.close(fd)
                self.place.sync_name(name)
            except OSError:
                self.remove([name], keep_spares=False)
                raise

    def hold_reserve(self) -> None:
        """Take room for deletions, as much of it as there is.  Raises nothing."""
        self.room.hold_reserve()

    def drop_reserve(self) -> bool:
        """Give the room for deletions back; False if there was none."""
        return self.room.drop_reserve()

    def adopt_blocks(self, unfinished: str, name: str) -> None:
        """Give a finished folder of blocks its name as a value."""
        self.unfinished.adopt(unfinished, name)

    # --- removing ----------------------------------------------------------------------------

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
                    self.unfinished.take_back(name)
                    continue
                # Compressed files are of any size, and are not written over others.
                may_spare = keep_spares and name.startswith(DATA) and name.endswith(".npy")
                if not (may_spare and self.spares.keep(name)):
                    self.place.unlink(name)
                self.loose.discard(name)

    def remove_unfinished(self, *, all_of_them: bool = False) -> None:
        """Remove folders of blocks that are out of use, and those that were given up."""
        self.unfinished.remove(all_of_them=all_of_them)

    def end_session(self) -> None:
        """Give the spares' space and their folder back."""
        self.spares.end()

    def remove_spare_folder(self, session: int) -> None:
        """Remove the folder of a session's spares, if none is in it."""
        self.spares.remove_folder(session)

    def sync_removals(self) -> None:
        """Let no power cut bring back what was removed, if that is asked for.

        Raises
        ------
        OSError
            It may.
        """
        self.place.sync_removals()
