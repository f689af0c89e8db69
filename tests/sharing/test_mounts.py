"""Which file system a folder lies on, and that a network's is refused."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

import arraychest
from arraychest import Chest, FileSystemError
from arraychest.engine import opening
from arraychest.sharing import mounts as filesystem
from arraychest.sharing.mounts import FileSystem, check_file_system, file_system_of

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /tmp rw - tmpfs tmpfs rw
31 22 0:40 / /home rw,relatime - nfs4 server:/home rw,vers=4.2
32 31 8:2 / /home/me/fast rw - xfs /dev/nvme0n1p1 rw
33 22 0:41 / /mnt/with\040space rw - cifs //server/share rw
34 22 0:42 /part /data rw shared:7 master:3 - fuse.sshfs host:/ rw
35 22 0:43 / /covered rw - nfs server:/x rw
36 22 8:3 / /covered rw - btrfs /dev/sdb rw
37 22 0:44 / /homestead rw - ext4 /dev/sdc rw
broken line
38 22 0:45 / /s3 rw - fuse.s3fs s3fs rw
39 22 0:46 / /ntfs rw - fuseblk /dev/sdd rw
"""


@pytest.fixture
def mounts(tmp_path):
    file = tmp_path / "mountinfo"
    file.write_text(TABLE.lstrip())
    return str(file)


@pytest.mark.parametrize(
    ("path", "kind", "mount_point", "network"),
    [
        ("/var/chest", "ext4", "/", False),
        ("/", "ext4", "/", False),
        ("/home", "nfs4", "/home", True),
        ("/home/me/chest", "nfs4", "/home", True),
        ("/home/me/fast/chest", "xfs", "/home/me/fast", False),
        ("/home/me/faster", "nfs4", "/home", True),
        ("/mnt/with space/chest", "cifs", "/mnt/with space", True),
        ("/data/a/b/c", "fuse.sshfs", "/data", True),
        ("/covered/x", "btrfs", "/covered", False),
        ("/homestead/x", "ext4", "/homestead", False),
        ("/s3/x", "fuse.s3fs", "/s3", True),
        ("/ntfs/x", "fuseblk", "/ntfs", False),
    ],
)
def test_the_innermost_and_last_mount_counts(mounts, path, kind, mount_point, network):
    found = file_system_of(path, mounts)
    assert found == FileSystem(kind, mount_point)
    assert found.is_network == network
    if not network:
        check_file_system(path, mounts=mounts)
        return
    with pytest.raises(FileSystemError, match=kind) as caught:
        check_file_system(path, mounts=mounts)
    assert mount_point in str(caught.value)
    assert "allow_network" in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_link_leads_to_where_the_folder_lies(mounts, tmp_path):
    (tmp_path / "link").symlink_to("/home/me")
    assert file_system_of(str(tmp_path / "link" / "chest"), mounts) == FileSystem("nfs4", "/home")


def test_without_a_table_nothing_is_refused(tmp_path):
    assert file_system_of("/anywhere", str(tmp_path / "absent")) is None
    check_file_system("/anywhere", mounts=str(tmp_path / "absent"))


def test_this_machine_says_where_the_tests_lie(tmp_path):
    found = file_system_of(str(tmp_path))
    assert found is None or os.path.ismount(found.mount_point)


@pytest.fixture
def on_nfs(monkeypatch):
    monkeypatch.setattr(filesystem, "file_system_of", lambda *_: FileSystem("nfs4", "/home"))
    assert opening.check_file_system is check_file_system


def test_a_chest_on_a_network_file_system_is_written_to_only_if_asked(on_nfs, path):
    for mode in ("a", "w", "x"):
        with pytest.raises(FileSystemError):
            arraychest.open(path, mode)
        assert not os.path.exists(path)
    with arraychest.open(path, allow_network=True) as chest:
        chest["x"] = np.arange(3)
        again = pickle.loads(pickle.dumps(chest))
        assert (again["x"] == np.arange(3)).all()
        again.close()
    with arraychest.open(path, "r") as chest:
        assert (chest["x"] == np.arange(3)).all()
    with Chest() as chest:
        chest["x"] = np.zeros(3)
        chest.spill("x")
