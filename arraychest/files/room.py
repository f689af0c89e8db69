"""Room on a full disk: what the chest itself holds in reserve is given up before anything fails."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from arraychest.files.names import RESERVE
from arraychest.files.spares import Spares
from arraychest.platform.space import reserve
from arraychest.sharing.open_folder import OpenFolder

T = TypeVar("T")

# Room for deletions.  The commit of one writes some 10 pages of the catalog (8 KiB each) to
# SQLite's log; a chest that is opened on a full disk takes as much again: the log's index (32 KiB)
# and the rows that begin and end the session.
RESERVE_BYTES = 256 << 10

# A full disk, or a user's share of it that is used up.
FULL = (errno.ENOSPC, errno.EDQUOT)
# SQLite says that only, where it is told EDQUOT and where the index of its log finds no room.
_MAYBE_FULL = (*FULL, errno.EIO)


class Room:
    """What a chest can give up on a full disk.  Safe from many threads.

    Parameters
    ----------
    chest
        The chest's folder.
    spares
        Those of this session, which find those of the others.

    Attributes
    ----------
    reserve_is_due
        Whether the reserve was given up and should be taken again.
    """

    def __init__(self, chest: OpenFolder, spares: Spares) -> None:
        self._chest = chest
        self._spares = spares
        # Whether this session has seen that all of the reserve is there.
        self._reserve_is_whole = self.reserve_is_due = False

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
        left = iter([self._spares.drop, self.drop_reserve] if frees else [self._spares.drop])
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
