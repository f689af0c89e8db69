"""Temporary chests spill to a disk, not into memory."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import arraychest
from arraychest.sharing import temporary
from arraychest.sharing.mounts import FileSystem
from arraychest.sharing.temporary import temporary_folder


@pytest.fixture
def lies(monkeypatch) -> Callable[[dict[str, str]], None]:
    """Says on which kind of file system each folder lies; those not named are ext4."""

    def say(kinds: dict[str, str]) -> None:
        def found(path: str) -> FileSystem:
            return FileSystem(kinds.get(str(path), "ext4"), str(path))

        monkeypatch.setattr(temporary, "file_system_of", found)

    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setattr(temporary, "_told", set())
    return say


def test_a_folder_on_a_disk_is_used_as_it_is(lies):
    lies({})
    assert temporary_folder() == "/tmp"


def test_var_tmp_takes_the_place_of_a_tmp_that_is_memory(lies):
    lies({"/tmp": "tmpfs"})
    assert temporary_folder() == "/var/tmp"


def test_then_come_the_users_cache_and_the_working_folder(lies, monkeypatch, tmp_path):
    cache, here = tmp_path / "cache", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path))
    lies({"/tmp": "tmpfs", "/var/tmp": "tmpfs"})
    assert temporary_folder() == str(here)  # there is no cache folder
    cache.mkdir()
    assert temporary_folder() == str(cache)
    lies({"/tmp": "tmpfs", "/var/tmp": "ramfs", str(cache): "nfs4"})
    assert temporary_folder() == str(here)


def test_where_all_is_memory_it_is_used_and_told_once(lies, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    lies({"/tmp": "tmpfs", "/var/tmp": "tmpfs", str(tmp_path): "tmpfs"})
    with pytest.warns(arraychest.ArrayChestWarning, match="set TMPDIR"):
        assert temporary_folder() == "/tmp"
    assert temporary_folder() == "/tmp"


@pytest.mark.parametrize("how", ["TMPDIR", "tempfile.tempdir"])
def test_a_folder_that_was_chosen_is_used_and_told_once(lies, monkeypatch, tmp_path, how):
    folder = str(tmp_path)
    if how == "TMPDIR":
        monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    lies({folder: "tmpfs"})
    with pytest.warns(arraychest.ArrayChestWarning, match=r"memory itself \(tmpfs\)"):
        assert temporary_folder() == folder
    assert temporary_folder() == folder


def test_tmp_that_was_chosen_is_used(lies, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/")
    lies({"/tmp": "tmpfs"})
    with pytest.warns(arraychest.ArrayChestWarning):
        assert temporary_folder() == "/tmp"


def test_a_warning_that_is_an_error_fails_nothing(lies, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lies({str(tmp_path): "tmpfs"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert temporary_folder() == str(tmp_path)


def test_a_chest_on_a_real_tmpfs_says_so_and_works(tiny_disk, monkeypatch):
    monkeypatch.setattr(temporary, "_told", set())
    monkeypatch.setenv("TMPDIR", str(tiny_disk))
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    with arraychest.Chest(available_memory=0) as chest:
        with pytest.warns(arraychest.ArrayChestWarning, match=str(tiny_disk)):
            chest["x"] = np.arange(10_000.0)  # is larger than the budget: stored at once
        assert Path(str(chest.path)).parent == tiny_disk
        assert chest["x"].sum() == 49_995_000
    assert os.listdir(tiny_disk) == []
