"""Folders of blocks of which no row tells: those being written, and those out of use."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time

from arraychest.files.names import FOLDER_FLAGS, ONCE, UNFINISHED
from arraychest.files.place import Place, sync_folder
from arraychest.files.room import Room
from arraychest.sharing.locks import hold_folder, is_at

_LEFT = "left-"
# Of those being written, one that nobody has written to for so long was given up.
_GIVEN_UP_SECONDS = 24 * 3600


class Unfinished:
    """A chest's folders of blocks that are not values yet, or no longer.

    Parameters
    ----------
    place
        The chest's.
    room
        On a full disk.
    """

    def __init__(self, place: Place, room: Room) -> None:
        self._place = place
        self._room = room

    def adopt(self, unfinished: str, name: str) -> None:
        """Give a finished folder of blocks its name as a value.

        Raises
        ------
        OSError
            It has the name it had.
        """
        place = self._place
        place.folder.check()
        place.loose.add(name)
        try:
            if place.durable:
                sync_folder(unfinished, place.folder.fd)
            self._room.with_room(lambda: place.rename(unfinished, name))
        except OSError:
            place.loose.discard(name)
            raise
        if place.durable:
            place.sync_name(name)

    def take_back(self, name: str) -> None:
        """Move a folder of blocks out of reach, and remove it once nobody reads it."""
        place = self._place
        with contextlib.suppress(FileNotFoundError):
            place.rename(name, f"{UNFINISHED}/{_LEFT}{os.path.basename(name)}")
            place.thinned.add(os.path.dirname(name))
        place.loose.discard(name)
        # With it what could not be removed before.
        self.remove()

    def remove(self, *, all_of_them: bool = False) -> None:
        """Remove what is out of use and was still read then, and what was given up.

        Parameters
        ----------
        all_of_them
            Also what somebody may go on to write.

        Raises nothing.
        """
        place = self._place
        given_up = time.time() - _GIVEN_UP_SECONDS
        entries: list[tuple[str, bool]] = []
        with contextlib.suppress(OSError):
            place.folder.check()
            entries = place.entries(UNFINISHED)
        for each, _ in entries:
            with contextlib.suppress(OSError):
                last = place.stat(f"{UNFINISHED}/{each}").st_mtime
                if all_of_them or each.startswith((_LEFT, ONCE)) or last < given_up:
                    self._remove_unless_held(f"{UNFINISHED}/{each}")

    def _remove_unless_held(self, name: str) -> None:
        """Remove a folder of blocks, unless somebody reads or writes it."""
        root = self._place.folder.fd
        try:
            fd = self._place.open(name, FOLDER_FLAGS)
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
