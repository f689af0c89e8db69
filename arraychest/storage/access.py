"""Who else may use the folder of a chest, and who may change its catalog now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from arraychest.sharing.locks import ATTACHED, COMMIT, SESSION, LockFile
from arraychest.sharing.locks import PACK as PACK_BYTE


class Access:
    """The locks that one chest has on its folder.

    Parameters
    ----------
    locks
        The folder's; None: read only.
    shared
        Whether other processes may use the folder.

    Attributes
    ----------
    locks
        As given; None from a fork on, in the child.
    """

    def __init__(self, locks: LockFile | None, *, shared: bool) -> None:
        self.locks = locks
        self._shared = shared

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all others, in this process and elsewhere, from changing the catalog."""
        if self.locks is None or not self._shared:
            yield
            return
        with self.locks.holding(COMMIT):
            yield

    def attached(self) -> None:
        """Let others attach to the folder, too."""
        if self.locks is not None and self._shared:
            self.locks.take(ATTACHED, shared=True)

    def detach_others(self) -> bool:
        """Keep others from attaching; False if one is attached."""
        return self.locks is not None and self.locks.try_take(ATTACHED)

    def hold_session(self, session: int) -> None:
        """Show others that a session lives."""
        if self.locks is not None and self._shared:
            self.locks.take(SESSION + session)

    def claim_pack(self, identity: int) -> bool:
        """Keep other processes from appending to a pack; False if one of them does."""
        if self.locks is None or not self._shared:
            return True
        return 0 < identity < PACK_BYTE and self.locks.try_take(PACK_BYTE + identity)

    def unclaim_pack(self, identity: int) -> None:
        """Undo `claim_pack`."""
        if self.locks is not None and self._shared:
            self.locks.let_go(PACK_BYTE + identity)

    def close(self) -> None:
        """Let go of all locks; in a forked child they stay with the parent's opening."""
        if self.locks is not None:
            self.locks.close()

    def become_reader(self) -> None:
        """In a forked child: the locks are the parent's, which keeps them."""
        self.close()
        self.locks = None
