"""Leases: the kernel's word that nobody else can see a file.  Linux alone has them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat

from arraychest.platform.choice import PORTABLE

HAS_LEASES = hasattr(fcntl, "F_SETLEASE") and not PORTABLE


def take_lease(fd: int) -> None:
    """Take a write lease: until it is given back, whoever opens the file waits, or is refused.

    Raises
    ------
    OSError
        Somebody else can see the file, or the file system has no leases.
    """
    status = os.fstat(fd)
    if status.st_nlink != 1 or not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EAGAIN, "expected a file with one name")
    # Whoever opens the file while we hold the lease has a signal sent to us.  By default that is
    # SIGIO, which ends a process; SIGURG is ignored.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def end_lease(fd: int) -> None:
    """Give a lease back."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
