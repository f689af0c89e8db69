"""Folders that others use, too: a group's, a read-only one, layers, and one that is synchronised."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import arraychest
from tests.support import IMPORT_ROOT, audit
from tests.test_folder_identity import AS_NOBODY

as_root = pytest.mark.skipif(os.getuid() != 0, reason="it takes root to mount or to be another")


@as_root
def test_two_users_of_a_group_use_a_chest_at_once(tmp_path_factory):
    """Each sees at once what the other commits, waits for the other's locks, and deletes its values."""
    root = Path(os.path.realpath("/var/tmp")) / f"arraychest-test-{os.getpid()}"
    root.mkdir()
    before = os.umask(0o002)
    try:
        os.chown(root, -1, 1234)
        os.chmod(root, 0o2775)
        with arraychest.open(root / "c", "w", "1 MiB") as ours:
            ours["ours"] = np.full(50_000, 1.0)
            ours["small"] = np.arange(3)
            ours.flush()
            other = subprocess.Popen(
                [sys.executable, "-c", AS_NOBODY + THE_OTHER, str(root / "c"), "1234"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": IMPORT_ROOT},
            )
            assert other.stdin is not None
            assert other.stdout is not None
            with other:
                assert other.stdout.readline() == "1.0 3\n"
                assert ours["theirs"][0] == 2
                assert "small" not in ours
                ours["ours"] = np.full(50_000, 3.0)
                ours.flush()
                with ours.lock("counter"):
                    other.stdin.write("go on\n")
                    other.stdin.flush()
                    ours["counter"] = np.array(41)
                    ours.flush()
                assert other.stdout.readline() == "3.0 42\n"
                assert ours["counter"] == 42
                del ours["theirs"]
                ours.flush()
            assert other.returncode == 0
            assert ours.verify().ok
        audit(str(root / "c"))
    finally:
        os.umask(before)
        shutil.rmtree(root)


THE_OTHER = """
with arraychest.open(sys.argv[1], "a", "1 MiB") as chest:
    first = chest["ours"][0], len(chest["small"])
    chest["theirs"] = np.full(50_000, 2.0)
    del chest["small"]
    chest.flush()
    print(*first, flush=True)
    sys.stdin.readline()
    with chest.lock("counter"):
        chest["counter"] = chest["counter"] + 1
        chest.flush()
    print(chest["ours"][0], chest["counter"], flush=True)
"""


def filled(path: Path) -> Path:
    with arraychest.open(path, "w") as chest:
        chest["large"] = np.arange(50_000.0)
        chest["small"] = np.arange(5)
        chest["edited"] = np.zeros(50_000)
    return path


@as_root
def test_a_read_only_mount_is_read_and_refused_to_writers(tiny_disk):
    path = filled(tiny_disk / "chest")
    gc.collect()  # a map that may be written to keeps the disk from becoming read-only
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with arraychest.open(path, "r") as chest:
        assert chest["large"].sum() == 1_249_975_000
        assert list(chest["small"]) == [0, 1, 2, 3, 4]
        assert chest.verify().ok
    for mode in ("a", "w"):
        with pytest.raises(OSError, match=r'mode="r"|[Rr]ead-only'):
            arraychest.open(path, mode)


@pytest.fixture
def layers(tiny_disk: Path) -> Iterator[tuple[Path, Path]]:
    """A folder as a container sees it, and the layer below it that comes from an image."""
    below, merged = tiny_disk / "below", tiny_disk / "merged"
    for name in ("below", "above", "work", "merged"):
        (tiny_disk / name).mkdir()
    filled(below / "chest")
    options = f"lowerdir={below},upperdir={tiny_disk}/above,workdir={tiny_disk}/work"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"an overlay cannot be mounted here: {mounted.stderr.decode()}")
    try:
        yield merged, below
    finally:
        subprocess.run(["umount", "-l", str(merged)], check=True)


@as_root
def test_a_chest_of_an_images_layer_is_written_to_in_the_container_alone(layers):
    merged, below = layers
    with (
        arraychest.open(merged / "chest", "a", "1 MiB") as chest,
        arraychest.open(merged / "chest", "a") as other,
    ):
        chest["new"] = np.ones(50_000)
        with chest.edit("edited") as array:
            array[:] = 7
        del chest["large"]
        chest.flush()
        assert other["new"].sum() == 50_000
        assert other["edited"][-1] == 7
        assert "large" not in other
        with other.lock("new"):
            pass
        assert chest.verify().ok
    audit(str(merged / "chest"))
    with arraychest.open(below / "chest", "r") as image:
        assert set(image) == {"large", "small", "edited"}
        assert not image["edited"].any()


def test_what_a_synchronising_program_leaves_beside_our_files_harms_nothing(tmp_path):
    path = filled(tmp_path / "chest")
    left = [
        path / "catalog (conflicted copy).sqlite",
        path / ".syncthing.catalog.sqlite.tmp",
        path / "packs" / "a (conflicted copy).pack",
        next((path / "data").iterdir()) / "x.sync-conflict-20260101-120000.npy",
    ]
    for each in left:
        each.write_bytes(b"of another program")
    with arraychest.open(path, "a") as chest:
        chest["more"] = np.ones(50_000)
        chest.flush()
        assert chest["large"].sum() == 1_249_975_000
    with arraychest.open(path, "r") as chest:
        assert chest["more"].sum() == 50_000
        assert {"large", "small", "edited", "more"} == set(chest)
        chest.verify()


def test_a_copy_of_a_closed_chest_is_a_chest_of_its_own(tmp_path):
    path = filled(tmp_path / "chest")
    shutil.copytree(path, tmp_path / "copy")
    with arraychest.open(tmp_path / "copy") as copy, arraychest.open(path) as chest:
        copy["large"] = np.zeros(10)
        copy.flush()
        assert chest["large"].sum() == 1_249_975_000
        assert copy.verify().ok
        assert chest.verify().ok
