"""A full disk: what the chest holds in reserve is given up before anything is refused.

Each test has a disk of eight megabytes of its own, fills it, and runs in a child, as a fault of the
kind "written through a map" would be a signal.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest.errors import SpillError
from arraychest.files.names import RESERVE
from arraychest.files.room import RESERVE_BYTES
from tests.faults import Say, in_child, needs_spares
from tests.support import audit, fill_disk

LARGE, SMALL = 12_500, 100  # elements: 100,000 bytes, 800 bytes


def filled(number: float, size: int = LARGE) -> np.ndarray:
    return np.full(size, float(number))


def new(path: Path, **options: Any) -> arraychest.Chest:
    return arraychest.open(path, "w", "2 MiB", compression=None, **options)


def in_a_child(child: Callable[[Say], Any]) -> Any:
    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    return outcome.result


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def spare_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in (path / "spare").rglob("*.npy"))


def numbers(chest: Any) -> dict[Any, float]:
    return {key: number_of(chest[key]) for key in chest}


def number_of(value: Any) -> float:
    while type(value) is list:
        value = value[0]
    return float(np.asarray(value).flat[-1])


def with_spares(path: Path) -> arraychest.Chest:
    """A chest of 20 values, as many spares, and a disk without a free byte."""
    chest = new(path)
    for number in range(40):
        chest[number] = filled(number)
    chest.flush()
    for number in range(20):
        del chest[number]
    chest.flush()
    with chest._engine.session.writer.lock:
        chest._engine.session.writer.wait_idle()  # a flush does not wait for what it put out of use
    assert spare_bytes(path) > 10 * 8 * LARGE
    fill_disk(path.parent)
    assert free(path.parent) == 0
    return chest


def put_small(chest: arraychest.Chest) -> None:
    for number in range(500):
        chest["s", number] = filled(number, SMALL)
    chest.flush()


def put_another_size(chest: arraychest.Chest) -> None:
    chest["new"] = filled(7, 3 * LARGE)
    chest.flush()


def put_compressed(chest: arraychest.Chest) -> None:
    chest.put("new", np.random.default_rng(0).random(3 * LARGE), compression="lz4")
    chest.flush()


def put_a_tree(chest: arraychest.Chest) -> None:
    chest["new"] = [filled(7, 3 * LARGE), {"a": "x" * 100}]
    chest.flush()


def create(chest: arraychest.Chest) -> None:
    with chest.create("new", (3 * LARGE,), float) as array:
        array[:] = 5


def edit(chest: arraychest.Chest) -> None:
    with chest.edit(30) as array:
        array[:] = 5


def append(chest: arraychest.Chest) -> None:
    chest.append("new", filled(1).reshape(10, -1))
    chest.append("new", filled(2).reshape(10, -1))


def transaction(chest: arraychest.Chest) -> None:
    with chest.transaction():
        chest["new"] = filled(7, 3 * LARGE)
        del chest[30]


def put_larger_than_the_budget(chest: arraychest.Chest) -> None:
    chest.available_memory = 1000
    chest["new"] = filled(7, 3 * LARGE)


def export(chest: arraychest.Chest) -> None:
    chest.export(f"{chest.path}/../out.npz", keys=[30, 31])


def export_hdf5(chest: arraychest.Chest) -> None:
    pytest.importorskip("h5py")
    chest.export(f"{chest.path}/../out.h5", keys=[30, 31])


def export_a_folder(chest: arraychest.Chest) -> None:
    chest.export(f"{chest.path}/../out", "npy", keys=[30, 31])


OPERATIONS = (
    put_small, put_another_size, put_compressed, put_a_tree, create, edit, append, transaction,
    put_larger_than_the_budget, export, export_hdf5, export_a_folder,
)  # fmt: skip


@needs_spares
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
def test_whatever_finds_no_room_gives_up_all_spares_first(tiny_disk, operation):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        chest = with_spares(path)
        operation(chest)
        assert spare_bytes(path) < 2 * 8 * LARGE, "more than what it replaced"
        chest.flush()
        chest.close()
        with arraychest.open(path, "r") as again:
            assert {key: float(key) for key in range(32, 40)}.items() <= numbers(again).items()
            assert again.verify().ok

    in_a_child(child)


@needs_spares
def test_spares_of_another_session_are_given_up_and_it_goes_on(tiny_disk):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        theirs = with_spares(path)
        with arraychest.open(path, "a", compression=None) as mine:
            mine["mine"] = filled(7, 3 * LARGE)
            mine.flush()
            assert spare_bytes(path) == 0
        for number in range(5):
            theirs["theirs", number] = filled(number)
        theirs.flush()
        theirs.close()
        with arraychest.open(path, "r") as again:
            found = numbers(again)
        assert found["mine"] == 7
        assert found["theirs", 4] == 4

    in_a_child(child)


def test_a_spare_that_goes_while_it_is_written_is_written_anew(tmp_path, monkeypatch):
    with arraychest.open(tmp_path / "chest", "w", compression=None) as chest:
        for number in range(4):
            chest[number] = filled(number)
        chest.flush()
        for number in range(4):
            del chest[number]
        chest.flush()
        spares = chest._engine.session.store.files.spares
        opened = spares.open

        def open_and_lose(spare: str) -> int | None:
            fd = opened(spare)
            for each in (tmp_path / "chest" / "spare").rglob("*.npy"):
                each.unlink()
            return fd

        monkeypatch.setattr(spares, "open", open_and_lose)
        chest["new"] = filled(7)
        chest.flush()
        assert numbers(chest) == {"new": 7}
    audit(str(tmp_path / "chest"))


# --- what was told is not told again ---------------------------------------------------------------


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_a_flush_that_succeeded_leaves_no_failure_for_the_next_put(tiny_disk, size):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        chest = new(path)
        chest["first"] = filled(1)
        chest.flush()
        fill_disk(tiny_disk)
        for number in range(8):
            chest[number] = filled(number, size)
        with pytest.raises(SpillError):
            chest.flush()
        os.unlink(tiny_disk / "filler")
        chest.flush()
        assert chest._engine.session.writer.failures.untold is None
        for number in range(100):
            chest["later", number] = filled(number, SMALL)
        chest.flush()
        chest.flush()
        chest.close()

    in_a_child(child)


def test_values_that_find_room_once_deletions_are_committed_are_no_failure(tiny_disk):
    """They fail first, within the very flush that stores them at last."""
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        chest = new(path)
        for number in range(20):
            chest[number] = filled(number)
        chest.flush()
        fill_disk(tiny_disk)
        for number in range(10):
            del chest[number]
        chest["new"] = filled(7, 3 * LARGE)
        chest.flush()
        for number in range(10):
            chest["later", number] = filled(number, SMALL)
        chest.close()
        with arraychest.open(path, "r") as again:
            assert numbers(again)["new"] == 7

    in_a_child(child)


# --- no byte is free ------------------------------------------------------------------------------


def reserve_of(path: Path) -> int:
    try:
        status = os.stat(path / RESERVE)
    except FileNotFoundError:
        return 0
    return min(status.st_size, 512 * status.st_blocks)


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("reopened", [False, True], ids=["open", "reopened"])
def test_with_no_byte_free_deletions_are_committed(tiny_disk, size, reopened):
    path = tiny_disk / "chest"
    count = 30 if size == LARGE else 2000

    def child(say: Say) -> None:
        chest = new(path)
        for number in range(count):
            chest[number] = filled(number, size)
        chest.flush()
        if reopened:
            chest.close()
        assert reserve_of(path) == RESERVE_BYTES
        fill_disk(tiny_disk)
        if reopened:
            chest = arraychest.open(path, "a", "2 MiB", compression=None)
        assert free(tiny_disk) == 0 or reopened
        for number in range(0, count, 2):
            del chest[number]
        chest.flush()
        right = {number: float(number) for number in range(1, count, 2)}
        with arraychest.open(path, "r") as other:
            assert numbers(other) == right
        if size == LARGE:
            for number in range(1, 6, 2):  # one at a time
                del chest[number], right[number]
                chest.flush()
            # There is room now, of which the reserve is taken back first.
            chest["new"], right["new"] = filled(7), 7.0
            chest.flush()
            del chest[7], right[7]
            chest.flush()
            assert reserve_of(path) == RESERVE_BYTES
        chest.close()
        with arraychest.open(path, "r") as again:
            assert numbers(again) == right
            assert again.verify().ok

    in_a_child(child)


def test_with_no_byte_free_a_chest_is_emptied_and_filled_again(tiny_disk):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        chest = new(path)
        for number in range(25):
            chest[number] = filled(number)
        for number in range(1000):
            chest["s", number] = filled(number, SMALL)
        chest.flush()
        fill_disk(tiny_disk)
        chest.clear()
        chest.flush()
        assert len(chest) == 0
        for number in range(20):
            chest[number] = filled(number)
        chest.flush()
        chest.close()
        with arraychest.open(path, "r") as again:
            assert numbers(again) == {number: float(number) for number in range(20)}

    in_a_child(child)


def test_more_deletions_than_the_reserve_takes_at_once_are_committed_in_parts(tiny_disk):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        chest = new(path)
        # Long keys, so that they lie on many pages of the catalog.
        keys = [f"{number:03d}" + "k" * 20_000 for number in range(16)]
        for number, key in enumerate(keys):
            chest[key] = filled(number)
        chest.flush()
        fill_disk(tiny_disk)
        for key in keys[::2]:
            del chest[key]
        chest.flush()
        with arraychest.open(path, "r") as other:
            assert list(other) == keys[1::2]
        chest.close()

    in_a_child(child)


@needs_spares
def test_two_sessions_delete_in_turn_from_one_reserve(tiny_disk):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        one = new(path)
        for number in range(30):
            one[number] = filled(number)
        one.flush()
        two = arraychest.open(path, "a", "2 MiB", compression=None)
        two["two"] = filled(7)
        two.flush()
        for number in range(6):
            fill_disk(tiny_disk)
            chest = (one, two)[number % 2]
            del chest[number]
            chest.flush()
        one.close()
        two.close()
        with arraychest.open(path, "r") as again:
            assert numbers(again) == {**{n: float(n) for n in range(6, 30)}, "two": 7.0}

    in_a_child(child)


def test_what_is_refused_for_want_of_room_says_what_makes_room(tiny_disk):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        chest = new(path)
        chest["first"] = filled(1, SMALL)  # too small a chest to keep a reserve
        chest.flush()
        assert reserve_of(path) == 0
        fill_disk(tiny_disk)
        chest["new"] = filled(7)
        with pytest.raises(SpillError, match="entries of the chest or other files") as caught:
            chest.flush()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        del chest["new"]
        del chest["first"]
        with pytest.raises(SpillError, match="other files on this disk"):
            chest.flush()
        os.unlink(tiny_disk / "filler")
        chest.close()

    in_a_child(child)


def test_the_reserve_is_kept_by_chests_that_are_not_small_and_have_no_quota(tmp_path):
    def reserve(name: str, count: int, **options: Any) -> int:
        with new(tmp_path / name, **options) as chest:
            for number in range(count):
                chest[number] = filled(number)
            chest.flush()
            assert chest.verify().ok
        audit(str(tmp_path / name))
        return reserve_of(tmp_path / name)

    assert reserve("small", 3) == 0
    assert reserve("large", 20) == RESERVE_BYTES
    assert reserve("bounded", 20, max_disk="100 MiB") == 0
    with arraychest.open(tmp_path / "large", "r") as chest:
        assert chest.verify().ok
    os.unlink(tmp_path / "large" / "catalog.sqlite")
    arraychest.repair(tmp_path / "large")
    with arraychest.open(tmp_path / "large", "r") as chest:
        assert len(chest) == 20
    with new(tmp_path / "large"):
        assert reserve_of(tmp_path / "large") == 0


def test_a_link_in_the_place_of_the_reserve_is_left_alone(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for make in (os.symlink, os.link):
        with new(tmp_path / "chest") as chest:
            make(victim, tmp_path / "chest" / RESERVE)
            for number in range(20):
                chest[number] = filled(number)
        assert victim.read_bytes() == b"precious"
