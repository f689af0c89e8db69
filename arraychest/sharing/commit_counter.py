"""The commit counter: eight bytes in shared, mapped memory that change with every commit.

The processes that use one chest map the same small file, so that whoever has looked something up
learns from one read of memory, without a call to SQLite or to the system, whether it may have
changed since.

Layout: four words of 8 bytes, in the machine's order.  Word 0 is twice the number of the last
commit, plus 1 while the next one is under way.  Word 1 is the highest place in the order of
insertion that any process has taken.  Word 2 is the layout's version.  Word 3 is 1 more than the
bytes of all value files that the catalog names, or 0 where nobody has counted them; each commit
keeps it up.  The file is a cache of what the catalog says, and is set right by whoever attaches
while nobody else does.
"""

from __future__ import annotations

import errno
import os
import stat

import numpy as np

from arraychest.errors import ChestFormatError
from arraychest.platform.folders import NO_FILE
from arraychest.platform.maps import map_file
from arraychest.platform.space import reserve
from arraychest.sharing.open_folder import OpenFolder

FILE_NAME = "commits"
_WORDS = 4
_VERSION = 2


class CommitCounter:
    """The commit counter of one chest, and how far this process has read.

    Parameters
    ----------
    words
        The words, as a memoryview of unsigned 64-bit integers.

    Attributes
    ----------
    words
        ``words[0]`` is what a get compares with `seen_word`: that costs some 40 ns.
    seen, seen_word
        The last commit whose changes this process knows, and word 0 when it was the last.
    """

    __slots__ = ("seen", "seen_word", "words")

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.seen = self.seen_word = 0

    def saw(self, commit: int) -> None:
        """Note that this process knows of every commit up to this one."""
        self.seen, self.seen_word = commit, 2 * commit

    def reset(self, commit: int, place: int) -> None:
        """Set what the catalog says.  The caller is the only one attached."""
        words = self.words
        words[0], words[1], words[2], words[3] = 2 * commit, place, _VERSION, 0

    def begin(self, commit: int) -> None:
        """Commit number `commit` is under way.  The caller holds the lock on commits."""
        self.words[0] = 2 * commit - 1

    def end(self, commit: int) -> None:
        """Commit number `commit` is the last one there is."""
        self.words[0] = 2 * commit

    @property
    def is_committing(self) -> bool:
        """Whether a commit is under way, or its writer died in it."""
        return bool(self.words[0] & 1)

    @property
    def stored(self) -> int | None:
        """Bytes of all value files that the catalog names; None: not counted."""
        known = self.words[3]
        return known - 1 if known else None

    @stored.setter
    def stored(self, nbytes: int | None) -> None:
        """Set by whoever holds the lock on commits."""
        self.words[3] = 0 if nbytes is None or nbytes < 0 else nbytes + 1

    def take_places(self, least: int, count: int) -> int:
        """Take `count` places in the order of insertion above `least`; returns the first.

        The caller holds the lock on numbers.
        """
        first = max(self.words[1], least) + 1
        self.words[1] = first + count - 1
        return int(first)


def unmoved() -> CommitCounter:
    """The counter of a chest that nobody else commits to: it never moves."""
    return CommitCounter(memoryview(bytearray(8 * _WORDS)).cast("Q"))


def open_counter(folder: OpenFolder, *, writable: bool) -> CommitCounter:
    """The commit counter of the chest in a folder.

    Parameters
    ----------
    writable
        Whether this process commits; the file is made where it is missing.

    Raises
    ------
    ChestFormatError
        Something else lies in the file's place.
    FileNotFoundError
        It is missing, and this process may not make it.
    """
    path = os.path.join(folder.path, FILE_NAME)
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    flags |= os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    try:
        fd = os.open(FILE_NAME, flags, 0o666, dir_fd=folder.fd)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise ChestFormatError(f"expected a file at {path}, found something else") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ChestFormatError(f"expected a file with one name at {path}, found another")
        nbytes = 8 * _WORDS
        if status.st_size < nbytes:
            if not writable:
                raise FileNotFoundError(errno.ENOENT, "expected a commit counter", path)
            # Its block is taken now: a store into a hole of a full disk would be a bus error.
            reserve(fd, 0, nbytes)
        base = map_file(fd, nbytes, "r+" if writable else "r")
    finally:
        os.close(fd)
    return CommitCounter(base.view(np.uint64).data)
