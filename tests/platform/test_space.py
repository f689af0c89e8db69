"""Space that is reserved, blocks that are copied, and folders that are found, each in every way."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from arraychest.platform import choice, cloning, folders, memory, pages, space


@pytest.fixture(params=[False, True], ids=["own", "portable"])
def portable(request, monkeypatch) -> bool:
    """Whether the way is taken that every POSIX system has."""
    if request.param:
        monkeypatch.setattr(space, "HAS_FALLOCATE", False)
        monkeypatch.setattr(cloning, "HAS_SENDFILE", False)
        monkeypatch.setattr(cloning, "IS_LINUX", False)
        monkeypatch.setattr(folders, "IS_LINUX", False)
        monkeypatch.setattr(pages, "_HAS_FADVISE", False)
        monkeypatch.setattr(pages, "IS_LINUX", False)
    return bool(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


# --- space ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("portable")
def test_what_is_reserved_has_its_blocks_and_what_was_there_stays(file):
    os.write(file, b"abc")
    space.reserve(file, 3, 3_000_000)
    status = os.fstat(file)
    assert status.st_size == 3_000_003
    assert status.st_blocks * 512 >= 3_000_003
    assert os.pread(file, 5, 0) == b"abc\0\0"
    assert not any(os.pread(file, 3_000_000, 3))
    space.reserve(file, 0, 10)
    space.reserve(file, 5, 0)
    assert os.fstat(file).st_size == 3_000_003
    assert os.pread(file, 3, 0) == b"abc"


@pytest.mark.usefixtures("portable")
def test_more_than_there_is_room_for_is_refused_at_once(tiny_disk):
    fd = os.open(tiny_disk / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"abc")
        began = time.monotonic()
        for nbytes in (10 << 20, 1 << 50):
            with pytest.raises(OSError, match=r"No space|too large") as caught:
                space.reserve(fd, 3, nbytes)
            assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert time.monotonic() - began < 5
        os.ftruncate(fd, 3)
        assert os.statvfs(tiny_disk).f_bavail * 4096 > 7 << 20
    finally:
        os.close(fd)


def test_a_write_of_zeros_that_fails_leaves_the_file_as_it_was(file, monkeypatch):
    monkeypatch.setattr(space, "HAS_FALLOCATE", False)
    os.write(file, b"abc")
    left = [2]

    def pwrite(fd: int, data: Any, at: int) -> int:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(fd, data, at)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="quota"):
        space.reserve(file, 3, 5 << 20)
    assert os.fstat(file).st_size == 3


class FakeMac:
    """`fcntl.fcntl` as macOS has it, as far as it is asked for here."""

    def __init__(self, *, refuses: dict[int, int]) -> None:
        self.refuses = refuses
        self.calls: list[tuple[int, Any]] = []

    def fcntl(self, fd: int, command: int, argument: Any = 0) -> Any:
        self.calls.append((command, argument))
        flags = struct.unpack_from("I", argument)[0] if command == 42 else command
        if flags in self.refuses:
            raise OSError(self.refuses[flags], os.strerror(self.refuses[flags]))
        return 0


@pytest.mark.parametrize(
    ("refuses", "outcome"),
    [
        ({}, "in one piece"),
        ({6: errno.ENOSPC}, "in any pieces"),
        ({6: errno.ENOTSUP, 4: errno.ENOTSUP}, "zeros"),
        ({6: errno.ENOSPC, 4: errno.ENOSPC}, "refused"),
    ],
)
def test_macos_is_asked_as_its_manual_says(file, monkeypatch, refuses, outcome):
    """There is no macOS here: what it would be told is compared with fcntl(2) there."""
    mac = FakeMac(refuses=refuses)
    monkeypatch.setattr(space, "HAS_FALLOCATE", False)
    monkeypatch.setattr(space, "IS_MACOS", True)
    monkeypatch.setattr(fcntl, "fcntl", mac.fcntl)
    os.write(file, b"abc")
    if outcome == "refused":
        with pytest.raises(OSError, match="No space"):
            space.reserve(file, 1, 100_000)
        assert os.fstat(file).st_size == 3
        return
    space.reserve(file, 1, 100_000)
    assert os.fstat(file).st_size == 100_001
    assert len(mac.calls) == (2 if outcome == "in any pieces" else 1)
    # fstore_t: flags, F_PEOFPOSMODE, offset 0 and the bytes beyond the end.
    command, argument = mac.calls[-1]
    assert (command, len(argument)) == (42, 32)
    flags, mode, offset, length, _ = struct.unpack("=Iiqqq", argument)
    assert (mode, offset, length) == (3, 0, 100_001 - 3)
    assert flags == (4 if outcome == "in any pieces" else 6)
    assert (os.fstat(file).st_blocks * 512 > 100_000) == (outcome == "zeros")


def test_macos_is_asked_to_empty_the_disks_own_memory(file, monkeypatch):
    synced = []
    monkeypatch.setattr(space, "IS_MACOS", True)
    monkeypatch.setattr(os, "fsync", synced.append)
    for refuses, expected in (({}, []), ({51: errno.ENOTSUP}, [file])):
        mac = FakeMac(refuses=refuses)
        monkeypatch.setattr(fcntl, "fcntl", mac.fcntl)
        space.sync(file)
        assert mac.calls == [(51, 0)]
        assert synced == expected
    mac = FakeMac(refuses={51: errno.EIO})
    monkeypatch.setattr(fcntl, "fcntl", mac.fcntl)
    with pytest.raises(OSError, match="Input/output"):
        space.sync(file)


# --- copies --------------------------------------------------------------------------------


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("nbytes", [0, 10, 3_000_000, 5_000_000])
def test_a_copy_has_the_first_bytes_of_a_file(tmp_path, file, nbytes):
    data = os.urandom(4_000_000)
    os.write(file, data)
    copy = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    try:
        cloning.copy(file, copy, nbytes)
        assert os.pread(copy, 9_000_000, 0) == data[:nbytes]
    finally:
        os.close(copy)


@pytest.mark.usefixtures("portable")
def test_a_clone_is_a_new_file_whether_or_not_blocks_are_shared(tmp_path, file):
    os.write(file, b"x" * 10_000)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fd, has_bytes = cloning.clone(file, 5_000, folder, "clone")
        assert os.fstat(fd).st_size == (5_000 if has_bytes else 0)
        os.close(fd)
        with pytest.raises(FileExistsError):
            cloning.clone(file, 5_000, folder, "clone")
        with pytest.raises(FileNotFoundError):
            cloning.clone(file, 5_000, folder, "missing/clone")
    finally:
        os.close(folder)


# --- folders -------------------------------------------------------------------------------


@pytest.mark.usefixtures("portable")
def test_an_open_folder_is_found_wherever_it_was_moved(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a file").touch()
    (tmp_path / "c" / "a link").symlink_to(tmp_path / "a")
    fd = os.open(tmp_path / "a" / "b", os.O_RDONLY)
    try:
        assert folders.path_of(fd) == os.path.realpath(tmp_path / "a" / "b")
        os.rename(tmp_path / "a" / "b", tmp_path / "c" / "moved")
        assert folders.path_of(fd) == os.path.realpath(tmp_path / "c" / "moved")
        os.rmdir(tmp_path / "c" / "moved")
        gone = folders.path_of(fd)
        assert gone is None or not os.path.exists(gone)
    finally:
        os.close(fd)
    root = os.open("/", os.O_RDONLY)
    try:
        assert folders.path_of(root) == "/"
    finally:
        os.close(root)


@pytest.mark.usefixtures("portable")
def test_what_is_mounted_is_told():
    found = list(folders.mounted())
    assert found
    assert all([kind and os.path.isabs(place) for kind, place in found])


# --- memory --------------------------------------------------------------------------------


@pytest.mark.usefixtures("portable")
def test_what_is_in_ram_is_about_what_psutil_says(monkeypatch):
    monkeypatch.setattr(pages, "_resident_bytes", pages._resident_by_psutil)
    monkeypatch.setattr(pages, "_anonymous_bytes", pages._anonymous_by_psutil)
    rss = psutil.Process().memory_info().rss
    resident, of_files = pages.resident_bytes()
    assert abs(resident - rss) < rss / 4
    assert 0 <= of_files <= resident
    anonymous = pages.anonymous_bytes()
    assert anonymous is None or 0 < anonymous < rss


def test_the_ways_to_ask_for_memory_agree():
    if not choice.IS_LINUX:
        pytest.skip("the own way is another one")
    for own, portable in (
        (pages._resident_by_statm()[0], pages._resident_by_psutil()[0]),
        (pages._anonymous_by_status(), pages._anonymous_by_psutil()),
    ):
        assert own is not None
        assert portable is not None
        assert abs(own - portable) < own / 4


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    assert 1 <= memory.cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(memory, "PORTABLE", True)
    assert memory.cores() == os.cpu_count()
