"""On which file system a folder lies, and whether a chest is safe there.

What several processes rely on (SQLite's write-ahead log, the commit counter and the locks) is
memory and locks of one kernel.  On a file system that several hosts mount it does not hold between
them.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from arraychest.errors import FileSystemError
from arraychest.platform.folders import MOUNT_TABLE, mounted

# As Linux and macOS name them; what is behind macFUSE macOS does not say.
NETWORK = frozenset({
    "9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs",
    "gfs2", "glusterfs", "gpfs", "ibrix", "lustre", "macfuse", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "osxfuse", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "snfs", "vboxsf",
    "virtiofs", "vmhgfs", "webdav", "weka", "wekafs",
})  # fmt: skip

# Those in user space that store elsewhere.
_NETWORK_FUSE = re.compile(
    r"fuse\.(.*(ceph|gluster|sshfs|s3|gcsfs|gcsfuse|blobfuse|goofys|rclone|davfs|juicefs|curlftpfs"
    r"|cvmfs|moosefs|mfs|lizardfs|seaweed|hdfs|alluxio|vmhgfs|smb|afp|onedrive|google|dropbox).*)",
    re.IGNORECASE,
)


class FileSystem(NamedTuple):
    """A mounted file system.

    Attributes
    ----------
    kind
        Its type, as the kernel names it, such as ``"ext4"`` or ``"nfs4"``.
    mount_point
        Where it is mounted.
    """

    kind: str
    mount_point: str

    @property
    def is_memory(self) -> bool:
        """Whether what is written to it stays in RAM."""
        return self.kind in ("tmpfs", "ramfs")

    @property
    def is_network(self) -> bool:
        """Whether other hosts may mount it, too."""
        return self.kind in NETWORK or _NETWORK_FUSE.fullmatch(self.kind) is not None


def file_system_of(path: str, mounts: str = MOUNT_TABLE) -> FileSystem | None:
    """The file system that a path lies on, or would; None if the system does not say.

    Parameters
    ----------
    path
        Need not exist.
    mounts
        The table of what is mounted (proc(5)); tests have one of their own.
    """
    wanted = os.path.realpath(path)
    found = None
    for kind, mount_point in mounted(mounts):
        inside = wanted == mount_point or wanted.startswith(mount_point.rstrip("/") + "/")
        # The last one of a place covers those before.
        if inside and (found is None or len(mount_point) >= len(found.mount_point)):
            found = FileSystem(kind, mount_point)
    return found


def check_file_system(path: str, *, mounts: str = MOUNT_TABLE) -> None:
    """Refuse to write to a chest on a network file system.

    Raises
    ------
    FileSystemError
        It lies on one; nothing was touched.
    """
    found = file_system_of(path, mounts)
    if found is not None and found.is_network:
        raise FileSystemError(
            f"expected a local file system for {path}, found {found.kind} at {found.mount_point}: "
            "processes on other hosts would neither see each other's locks nor commits; pass "
            "allow_network=True if only one host uses the chest at a time"
        )
