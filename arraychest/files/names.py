"""What lies where in a chest's folder."""

from __future__ import annotations

import os

DATA, PACKS, SPARE, QUARANTINE = "data", "packs", "spare", "quarantine"
# A file whose blocks nobody uses: room for the commit of a deletion where the disk is full.
RESERVE = "reserve"
# A page for each chest that is open; see `monitor`.
LIVE = "live"
# Folders of blocks of which no row tells: being written, or out of use and not removed yet.
UNFINISHED = "unfinished"
BLOCKS = ".blocks"
# Begun by somebody who holds it until it is a value, and whom nobody can go on for.
ONCE = "once-"

# NONBLOCK and NOFOLLOW: a stranger's chest may hold a pipe or a link in the place of a file.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
