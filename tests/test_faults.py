"""What the system refuses is an error that says so, and costs no value."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest, CorruptEntryError, SpillError
from arraychest.catalog.catalog import Catalog
from tests.faults import (
    RESERVING,
    Countdown,
    Failing,
    Say,
    in_child,
    injected,
    needs_fallocate,
    needs_spares,
    raising,
    reserved_to,
)
from tests.support import assert_identical, audit, fill_disk, run_python, start_program

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
SMALL = 40
BYTES = 8 * LARGE
HALF = 65_536  # elements of half a megabyte


def filled(number: float, size: int) -> np.ndarray:
    return np.full(size, float(number))


def right(chest: Any, numbers: dict[Any, float]) -> bool:
    return chest.keys() == numbers.keys() and all(
        (chest[key] == number).all() for key, number in numbers.items()
    )


ERRORS = [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EDQUOT]
WHICH = [errno.errorcode[number] for number in ERRORS]

# Where a spill can be refused: (name of the operation, whether a small value comes by it).
POINTS = {
    "reserving": lambda name, args: name == RESERVING,
    "writing": lambda name, args: name == "pwritev",
    "creating": lambda name, args: name == "open" and bool(args[1] & os.O_CREAT),
    "beginning": lambda name, args: name == "sql BEGIN" and "IMMEDIATE" in args[0],
    "inserting": lambda name, args: name == "sql INSERT",
    "committing": lambda name, args: name == "sql COMMIT",
}


def failing(number: int, point: str) -> Failing:
    """A fault that is to be switched on once the chest is open."""
    if point in ("beginning", "inserting", "committing") and number == errno.EDQUOT:
        number = errno.ENOSPC  # SQLite has one word for both
    fault = Failing(number, POINTS[point])
    fault.on = False
    return fault


# --- a spill that fails --------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("number", ERRORS, ids=WHICH)
@pytest.mark.parametrize("point", POINTS)
def test_a_failed_spill_keeps_the_value_is_told_with_its_cause_and_tried_again(
    path, point, number, size
):
    fault = failing(number, point)
    with injected(fault), arraychest.open(path, "w") as chest:
        fault.on = True
        chest["x"] = filled(1, size)
        with pytest.raises(SpillError) as caught:
            chest.flush()
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        if not point.endswith(("beginning", "inserting", "committing")):
            assert cause.errno == fault.number
        assert isinstance(caught.value, OSError)
        # Still there, in RAM and charged, and told once.
        assert (chest["x"] == 1).all()
        assert chest.memory_usage == 8 * size
        assert chest.entry("x").resident
        chest["y"] = filled(2, SMALL)
        with pytest.raises(SpillError):
            chest.spill("x")
        assert (chest["x"] == 1).all()
        fault.on = False
        chest.flush()
        assert chest.memory_usage == 0
        assert right(chest, {"x": 1, "y": 2})
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert right(chest, {"x": 1, "y": 2})


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("compression", [None, "lz4"])
@pytest.mark.parametrize("point", POINTS)
def test_a_failed_spill_of_a_value_tree_is_told_and_tried_again(path, point, compression, size):
    def value() -> Any:
        return [filled(1, size), {"a": None, "b": filled(2, size)}]

    fault = failing(errno.ENOSPC, point)
    with injected(fault), arraychest.open(path, "w", compression=compression) as chest:
        fault.on = True
        mine = value()
        chest["x"] = mine
        for spill in (chest.flush, lambda: chest.spill("x")):
            with pytest.raises(SpillError):
                spill()
            assert_identical(chest["x"], value())
            assert np.shares_memory(chest["x"][0], mine[0])
            assert chest.entry("x").resident
            assert chest.memory_usage > 16 * size
        with pytest.raises(SpillError), chest.transaction():
            chest["y"] = value()
        fault.on = False
        chest.flush()
        assert chest.memory_usage == 0
        assert_identical(chest["x"], value())
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert list(chest) == ["x"]
        assert_identical(chest["x"], value())


def test_a_failure_in_the_background_is_told_by_the_next_put_once(path):
    def failing(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if name == RESERVING and refusing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()

    refusing = True
    with arraychest.open(path, "w", 10 * BYTES) as chest, injected(failing):
        writer = chest._engine.session.writer
        for number in range(8):  # past the high watermark
            chest[number] = filled(number, LARGE)
        deadline = time.monotonic() + 30
        while writer.failures.untold is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        refusing = False
        with writer.lock:
            writer.wait_idle()
        with pytest.raises(SpillError, match="No space left") as caught:
            chest["told"] = filled(8, SMALL)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert "told" not in chest, "a put that raises has not stored its value"
        chest["told"] = filled(8, SMALL)
        assert right(chest, {**{number: number for number in range(8)}, "told": 8})
    audit(path)


def test_a_put_for_which_no_room_can_be_made_leaves_everything_as_it_was(path):
    fault = Failing(errno.ENOSPC, RESERVING)
    with arraychest.open(path, "w", 4 * BYTES) as chest, injected(fault):
        expected = {}
        for number in range(40):
            array = filled(number, LARGE)
            try:
                chest[number] = array
            except SpillError as error:
                assert error.__cause__.errno == errno.ENOSPC
                # The array is as it was, and may be put elsewhere.
                assert array.flags.writeable
            else:
                expected[number] = number
        assert 2 <= len(expected) <= 4
        assert chest.memory_usage <= 4 * BYTES
        with pytest.raises(SpillError):
            chest[0] = filled(100, 3 * LARGE)
        with pytest.raises(SpillError):
            chest["larger than the budget"] = filled(1, 5 * LARGE)
        assert right(chest, expected)
        # Deleting makes room without the disk.
        del chest[0]
        del chest[1]
        expected = {key: value for key, value in expected.items() if key > 1}
        with contextlib.suppress(SpillError):
            chest["tells the last failure"] = filled(1, SMALL)
            expected["tells the last failure"] = 1
        chest["new"] = filled(50, LARGE)
        expected["new"] = 50
        fault.on = False
        for number in range(60, 80):
            chest[number] = filled(number, LARGE)
            expected[number] = number
        assert right(chest, expected)
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert right(chest, expected)


def test_lowering_the_budget_on_a_full_disk_is_told(path):
    fault = Failing(errno.ENOSPC, RESERVING)
    with arraychest.open(path, "w", 10 * BYTES) as chest, injected(fault):
        for number in range(5):
            chest[number] = filled(number, LARGE)
        with pytest.raises(SpillError):
            chest.available_memory = BYTES
        assert right(chest, {number: number for number in range(5)})
        fault.on = False
        chest.available_memory = BYTES
        assert chest.memory_usage <= BYTES
        assert right(chest, {number: number for number in range(5)})


def test_one_value_that_cannot_be_stored_does_not_keep_others_from_it(path):
    def refuse_large(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if refusing and reserved_to(name, args) > 2 * BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return call()

    refusing = True
    with arraychest.open(path, "w", 20 * BYTES) as chest, injected(refuse_large):
        chest["too large"] = filled(1, 3 * LARGE)
        for number in range(5):
            chest[number] = filled(number, LARGE)
            chest["s", number] = filled(number, SMALL)
        with pytest.raises(SpillError, match="1 value"):
            chest.flush()
        assert [key for key in chest if chest.entry(key).resident] == ["too large"]
        refusing = False
        chest.flush()
        assert (chest["too large"] == 1).all()
    audit(path)


def test_small_values_stay_together_where_large_ones_are_tried_alone(path, monkeypatch):
    commits = []
    commit = Catalog.commit

    def counting(self: Catalog, **options: Any) -> None:
        commits.append(len(options["rows"]))
        commit(self, **options)

    def failing_once(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if refusing and name == RESERVING:
            refusing.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call()

    refusing = [True]
    monkeypatch.setattr(Catalog, "commit", counting)
    with arraychest.open(path, "w", 40 * BYTES) as chest:
        for number in range(5):
            chest["large", number] = filled(number, LARGE)
        for number in range(50):
            chest["small", number] = filled(number, SMALL)  # a tuple: it has a slot
        with injected(failing_once):
            chest.flush()
        assert sorted(commits) == [1, 1, 1, 1, 1, 50]
    audit(path)


@pytest.mark.parametrize("number", ERRORS, ids=WHICH)
def test_deletions_that_cannot_be_committed_are_told_and_done_later(path, number):
    with arraychest.open(path, "w") as chest:
        for key in range(6):
            chest[key] = filled(key, LARGE if key % 2 else SMALL)
    fault = failing(number, "committing")
    with injected(fault), arraychest.open(path) as chest:
        fault.on = True
        del chest[0], chest[1]
        with pytest.raises(SpillError):
            chest.flush()
        # Gone all the same, for whoever asks this chest.
        assert right(chest, {key: key for key in range(2, 6)})
        assert 1 not in chest
        chest[1] = filled(10, SMALL)
        with pytest.raises(SpillError):
            chest.flush()
        with arraychest.open(path, "r") as reader:
            assert right(reader, {key: key for key in range(6)})
        fault.on = False
        chest.flush()
        with arraychest.open(path, "r") as reader:
            assert right(reader, {**{key: key for key in range(2, 6)}, 1: 10})
    audit(path)


@pytest.mark.parametrize("point", POINTS)
def test_a_close_that_cannot_flush_leaves_the_chest_open_with_nothing_lost(path, point):
    fault = failing(errno.ENOSPC, point)
    with injected(fault):
        chest = arraychest.open(path, "w")
        fault.on = True
        for number in range(5):
            chest[number] = filled(number, LARGE)
        with pytest.raises(SpillError):
            chest.close()
        assert not chest.closed
        assert right(chest, {number: number for number in range(5)})
        chest[5] = filled(5, SMALL)
        with pytest.raises(SpillError):
            chest.close()
        fault.on = False
        chest.close()
    assert chest.closed
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert right(chest, {number: number for number in range(6)})


def test_a_close_that_can_only_not_be_noted_closes(path):
    """All is stored; that the end was clean is not, so that the next writer sweeps in vain."""
    fault = Failing(errno.ENOSPC, "sql BEGIN")
    fault.on = False
    with injected(fault):
        chest = arraychest.open(path, "w")
        chest["x"] = filled(1, LARGE)
        chest.flush()
        fault.on = True
        chest.close()
        assert fault.hits
    assert chest.closed
    with arraychest.open(path) as chest:
        assert right(chest, {"x": 1})
        chest["y"] = filled(2, LARGE)
    audit(path)


def test_a_temporary_chest_closes_on_a_full_disk():
    chest = Chest(available_memory=2 * BYTES)
    for number in range(5):
        chest[number] = filled(number, LARGE)
    # Reading and removing need no room.
    needs_none = ("close", "open", "stat", "fstat", "scandir", "unlink", "rmdir")
    with injected(Failing(errno.ENOSPC, lambda name, args: name not in needs_none)):
        chest.close()
    assert chest.closed


def test_a_file_that_cannot_be_removed_is_swept_by_the_next_writer(path):
    fault = Failing(errno.EIO, lambda name, args: name in ("unlink", "rename"))
    with arraychest.open(path, "w") as chest:
        for number in range(4):
            chest[number] = filled(number, LARGE)
        chest.flush()
        with injected(fault):
            del chest[0]
            chest[1] = filled(10, LARGE)
            chest.flush()
            with chest._engine.session.writer.lock:
                chest._engine.session.writer.wait_idle()
        assert fault.hits
    assert len(list(Path(path).rglob("*.npy"))) == 5
    with arraychest.open(path) as chest:
        assert right(chest, {1: 10, 2: 2, 3: 3})
        chest["more"] = filled(5, LARGE)
    audit(path)


# --- short writes --------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 63, 64, 65, 4096, 100_001])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_writes_that_take_few_bytes_at_a_time_are_gone_on_with(path, most, size):
    size = size if most > 65 else size // 8
    real = os.pwritev

    def short(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if name != "pwritev":
            return call()
        fd, buffers, offset = args
        taken, room = [], most
        for buffer in buffers:
            taken.append(buffer[:room])
            room -= len(taken[-1])
        return real(fd, taken, offset)

    # A value of half the threshold goes to a file of its own where nothing may stay in RAM.
    with arraychest.open(path, "w", 0 if size > SMALL else "1 MiB") as chest, injected(short):
        for number in range(3):
            chest[number] = np.arange(size) + number
        chest.flush()
        for number in range(3):
            assert (chest[number] == np.arange(size) + number).all()
    audit(path)


def test_a_write_that_takes_no_bytes_is_an_error_not_a_loop(path):
    def none(name: str, args: Any, call: Callable[[], Any]) -> Any:
        return 0 if name == "pwritev" and on else call()

    on = True
    with arraychest.open(path, "w") as chest, injected(none):
        chest["x"] = filled(1, LARGE)
        with pytest.raises(SpillError, match="no bytes"):
            chest.flush()
        on = False


@needs_fallocate
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve_is_written_to_all_the_same(path, number):
    with (
        arraychest.open(path, "w", BYTES) as chest,
        injected(Failing(number, RESERVING)),
    ):
        for key in range(4):
            chest[key] = filled(key, LARGE)
            chest["s", key] = filled(key, SMALL)
        chest.flush()
    audit(path)


def test_a_file_system_without_leases_is_written_to_all_the_same(path, monkeypatch):
    def refuse(fd: int, command: int, *args: Any) -> Any:
        if command == 1024:  # F_SETLEASE
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, *args)

    real = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with arraychest.open(path, "w", BYTES) as chest:
        for _ in range(3):
            for key in range(4):
                chest[key] = filled(key, LARGE)
            chest.flush()
        assert right(chest, {key: key for key in range(4)})
    audit(path)


# --- real disks ----------------------------------------------------------------------------


def test_a_disk_that_is_really_full_loses_nothing_and_is_no_signal(tiny_disk):
    def child(say: Say) -> None:
        expected: dict[Any, float] = {}
        chest = arraychest.open(tiny_disk / "chest", "w", 3 * 8 * HALF)
        failures = 0
        for number in range(40):
            for key, size in ((number, HALF), (("s", number), SMALL)):
                try:
                    chest[key] = filled(number, size)
                except SpillError as error:
                    assert isinstance(error.__cause__, OSError)
                    failures += 1
                else:
                    expected[key] = number
        assert failures > 10
        assert len(expected) > 10
        assert right(chest, expected)
        try:
            chest.close()
            raise AssertionError("there was no room to close")
        except SpillError:
            assert not chest.closed
        assert right(chest, expected)
        # Make room as a user would.
        for number in range(0, 40, 2):
            if number in expected:
                del chest[number]
                del expected[number]
        for _ in range(5):
            try:
                chest.flush()
                break
            except SpillError:
                continue
        assert right(chest, expected)
        chest.close()
        with arraychest.open(tiny_disk / "chest") as chest:
            assert right(chest, expected)
            chest.compact()
            assert right(chest, expected)

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    audit(str(tiny_disk / "chest"))


def test_a_chest_cannot_be_made_on_a_disk_that_is_full(tiny_disk):
    fill_disk(tiny_disk)
    with pytest.raises(OSError, match=r"full|No space|unable|I/O"):
        arraychest.open(tiny_disk / "chest", "w")
    (tiny_disk / "filler").unlink()
    with arraychest.open(tiny_disk / "chest", "w") as chest:
        chest["x"] = filled(1, SMALL)


def test_a_chest_on_a_full_disk_can_be_read_and_deleted_from(tiny_disk):
    with arraychest.open(tiny_disk / "chest", "w") as chest:
        for number in range(4):
            chest[number] = filled(number, LARGE)
    chest = arraychest.open(tiny_disk / "chest", "a")
    fill_disk(tiny_disk)
    assert right(chest, {number: number for number in range(4)})
    del chest[0]
    with contextlib.suppress(SpillError):
        chest.flush()
    assert 0 not in chest
    (tiny_disk / "filler").unlink()
    chest.close()
    with arraychest.open(tiny_disk / "chest", "r") as chest:
        assert right(chest, {number: number for number in range(1, 4)})


def test_values_larger_than_the_process_may_write_stay_in_ram(path):
    """RLIMIT_FSIZE: EFBIG where it can be told before, SIGXFSZ is ignored by Python."""

    def child(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * BYTES, 4 * BYTES))
        with arraychest.open(path, "w", 20 * BYTES) as chest:
            chest["large"] = filled(1, 5 * LARGE)
            chest["fits"] = filled(2, LARGE)
            chest["small"] = filled(3, SMALL)
            with pytest.raises(SpillError) as caught:
                chest.flush()
            assert caught.value.__cause__.errno == errno.EFBIG
            assert chest.entry("large").resident
            assert not chest.entry("fits").resident
            with pytest.raises(SpillError):
                chest["larger"] = filled(4, 21 * LARGE)
            assert right(chest, {"large": 1, "fits": 2, "small": 3})
            del chest["large"]

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    audit(path)


# --- descriptors ---------------------------------------------------------------------------


def _use_up_descriptors() -> list[int]:
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    return taken


def test_without_descriptors_spills_and_gets_fail_clearly_and_work_later(path):
    def child(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        chest = arraychest.open(path, "w", 20 * BYTES)
        chest["stored"] = filled(1, LARGE)
        chest["packed"] = filled(2, SMALL)
        chest.flush()
        chest["new"] = filled(3, LARGE)
        taken = _use_up_descriptors()
        for key in ("stored", "packed"):
            with pytest.raises(OSError, match="Too many open files") as caught:
                chest[key]
            assert not isinstance(caught.value, CorruptEntryError)
        with pytest.raises(SpillError) as told:
            chest.flush()
        assert told.value.__cause__.errno == errno.EMFILE
        assert (chest["new"] == 3).all()
        for fd in taken:
            os.close(fd)
        chest.flush()
        assert right(chest, {"stored": 1, "packed": 2, "new": 3})
        chest.close()

    outcome = in_child(child)
    assert not outcome.signal
    assert outcome.error is None, outcome.error
    audit(path)


def _descriptors() -> set[int]:
    open_ones = set()
    for fd in range(64):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            open_ones.add(fd)
    return open_ones


@pytest.mark.parametrize("left", range(12))
def test_a_chest_that_cannot_be_opened_for_want_of_descriptors_leaves_none_open(
    path, left, nothing_left_behind
):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, LARGE)

    def child(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        for mode in ("r", "a", None):
            taken = _use_up_descriptors()
            for fd in taken[:left]:
                os.close(fd)
            before = _descriptors()
            try:
                if mode is None:
                    with Chest(available_memory=0) as chest:
                        chest["x"] = filled(1, SMALL)
                else:
                    with arraychest.open(path, mode) as chest:
                        chest["x"]
            except OSError as error:
                assert not isinstance(error, CorruptEntryError | arraychest.ChestInUseError)
            assert _descriptors() == before
            for fd in taken[left:]:
                os.close(fd)
        with arraychest.open(path, "a") as chest:
            assert right(chest, {"x": 1})
        # A folder that could not be removed then is removed by the next temporary chest.
        with Chest(available_memory=0) as chest:
            chest["x"] = filled(1, SMALL)
        assert os.listdir(nothing_left_behind) == []

    outcome = in_child(child)
    assert not outcome.signal
    assert outcome.error is None, outcome.error


# --- reads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", ["open", "fstat", "pread"])
def test_a_read_error_is_told_as_it_is_and_the_value_is_read_later(path, name, size):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, size)
    for mode in ("r", "a"):
        fault = Failing(errno.EIO, name)
        with arraychest.open(path, mode) as chest, injected(fault):
            for _ in range(2):
                with pytest.raises(OSError, match="Input/output") as caught:
                    chest["x"]
                assert caught.value.errno == errno.EIO
                assert not isinstance(caught.value, CorruptEntryError)
            if mode == "a":
                with pytest.raises(OSError, match="Input/output"):
                    chest.pop("x")
            assert "x" in chest
            fault.on = False
            assert (chest["x"] == 1).all()


def test_a_read_error_in_the_catalog_is_told_and_the_value_is_read_later(path):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, LARGE)
    fault = Failing(errno.EIO, "sql SELECT")
    for mode in ("r", "a"):
        fault.on = False
        with injected(fault), arraychest.open(path, mode) as chest:
            fault.on = True
            for action in (lambda: chest["x"], lambda: list(chest), lambda: len(chest)):
                with pytest.raises((OSError, arraychest.ArrayChestError), match="I/O error"):
                    action()
            fault.on = False
            assert (chest["x"] == 1).all()
            assert list(chest) == ["x"]


def test_when_no_more_maps_can_be_made_a_value_is_read_instead(path, monkeypatch):
    with arraychest.open(path, "w") as chest:
        for number in range(3):
            chest[number] = filled(number, LARGE)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    for mmap_mode in ("r", "c"):
        with arraychest.open(path, "r", mmap_mode=mmap_mode) as chest:
            monkeypatch.setattr("arraychest.storage.reading.map_file", refuse)
            for number in range(3):
                array = chest[number]
                assert (array == number).all()
                assert array.flags.writeable == (mmap_mode == "c")
            monkeypatch.undo()


# --- threads and callbacks -----------------------------------------------------------------


def test_an_on_miss_that_raises_is_the_gets_own_error_and_harms_nothing(path):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, LARGE)
    calls: list[Any] = []

    def on_miss(key: Any) -> None:
        calls.append(key)
        if len(calls) == 1:
            raise LookupError("not today")

    with arraychest.open(path, "r", on_miss=on_miss) as chest:
        with pytest.raises(LookupError, match="not today"):
            chest["x"]
        assert (chest["x"] == 1).all()
        assert calls == ["x", "x"]


def test_an_on_overflow_that_raises_is_logged_and_the_value_stays_stored(path, caplog):
    def on_overflow(key: Any) -> None:
        raise RuntimeError(f"about {key}")

    with arraychest.open(path, "w", on_overflow=on_overflow) as chest:
        chest["x"] = filled(1, LARGE)
        chest.flush()
        assert not chest.entry("x").resident
    assert "on_overflow" in caplog.text
    audit(path)


def test_an_on_overflow_for_whose_put_there_is_no_room_does_not_wait_for_itself(path, caplog):
    def put(key: Any) -> None:
        if key != "told":
            chest["told"] = filled(0, 9 * LARGE // 10)

    with arraychest.open(path, "w", 3 * BYTES, on_overflow=put) as chest:
        for number in range(20):
            chest[number] = filled(number, LARGE)
        chest.flush()
        assert [key for key in chest if key != "told"] == list(range(20))
    audit(path)


def test_memory_that_cannot_be_had_for_a_copy_leaves_everything_as_it_was(path, monkeypatch):
    def refuse(array: np.ndarray, on_put: str) -> Any:
        raise MemoryError("no memory")

    with arraychest.open(path, "w", on_put="copy") as chest:
        chest["x"] = filled(1, LARGE)
        monkeypatch.setattr("arraychest.engine.put.array_to_keep", refuse)
        with pytest.raises(MemoryError):
            chest["x"] = filled(2, LARGE)
        monkeypatch.undo()
        assert right(chest, {"x": 1})


# --- linking -------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Chest]:
    with arraychest.open(tmp_path / "other", "w") as other:
        for number in range(3):
            other[number] = filled(number, LARGE)
            other["s", number] = filled(number, SMALL)
        other.flush()
        yield other


OTHERS = {key: number for number in range(3) for key in (number, ("s", number))}


@pytest.mark.parametrize(
    "number", [errno.EXDEV, errno.EPERM, errno.EMLINK], ids=errno.errorcode.get
)
def test_values_that_cannot_be_linked_are_copied(path, other, number):
    with arraychest.open(path, "w") as chest:
        with injected(Failing(number, "link")):
            chest.update(other)
        assert right(chest, OTHERS)
    audit(path)


@pytest.mark.parametrize("at", range(1, 40, 2))
def test_an_update_that_fails_halfway_leaves_old_values_or_new_ones(path, other, at):
    with arraychest.open(path, "w") as chest:
        for key in OTHERS:
            chest[key] = filled(100, LARGE)
        chest.flush()
        countdown = Countdown(at, raising(OSError(errno.EIO, os.strerror(errno.EIO))))
        with injected(countdown), contextlib.suppress(OSError):
            chest.update(other)
        for key, number in OTHERS.items():
            assert chest[key][0] in (100, number)
        chest.update(other)
        assert right(chest, OTHERS)
    with arraychest.open(path, "a") as chest:
        assert right(chest, OTHERS)
        chest["more"] = filled(1, LARGE)
    audit(path)
    audit_open(other)


def audit_open(chest: Chest) -> None:
    """Audit a chest that goes on."""
    path = chest.path
    chest.close()
    audit(str(path))


@needs_spares
def test_a_file_that_became_a_spare_while_it_was_linked_is_not_linked(path, other):
    """What was looked up before it was renamed would be overwritten under its new name."""
    link = os.link
    overwritten: list[str] = []

    def slow(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if name != "link" or overwritten:
            return call()
        # As if the kernel had looked the name up, and was then interrupted for long: the other
        # chest frees the value, keeps the file, and stores another value in it.
        Path(args[1]).parent.mkdir(exist_ok=True)
        fd = os.open(args[0], os.O_PATH | os.O_CLOEXEC)
        root = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
        del other[0]
        other.flush()
        try:
            # With a folder, so that it is linkat(2), which can follow links.
            link(f"/proc/self/fd/{fd}", args[1], src_dir_fd=root, follow_symlinks=True)
        finally:
            os.close(fd)
            os.close(root)
        other["new"] = filled(77, LARGE)
        other.flush()
        overwritten.append(args[0])
        return None

    with arraychest.open(path, "w") as chest:
        with injected(slow):
            chest.update({0: other[0] * 1})  # make sure that the chest works without
            chest.clear()
            chest.update(other)
        assert overwritten
        for key in set(OTHERS) - {0}:
            assert (chest[key] == OTHERS[key]).all()
        if 0 in chest:
            assert (chest[0] == 0).all()
        assert (other["new"] == 77).all()
    with arraychest.open(path, "r") as chest:
        assert 0 not in chest or (chest[0] == 0).all()


# --- SIGBUS --------------------------------------------------------------------------------


def test_nothing_is_written_through_a_map(path, monkeypatch):
    """On a full disk that is SIGBUS: a shared map of a value's file is never writable."""
    modes = []
    real = arraychest.platform.maps._mmap

    def spy(address: Any, nbytes: int, protection: int, flags: int, *rest: Any) -> Any:
        modes.append((nbytes, protection, flags))
        return real(address, nbytes, protection, flags, *rest)

    monkeypatch.setattr(arraychest.platform.maps, "_mmap", spy)
    for mmap_mode in ("r", "c"):
        with arraychest.open(path, "w", 2 * BYTES, mmap_mode=mmap_mode) as chest:
            for number in range(5):
                chest[number] = filled(number, LARGE)
                chest["s", number] = filled(number, SMALL)
            chest.flush()
            for key in chest:
                chest[key].sum()
    shared, writable = 1, 2
    sizes = {
        nbytes for nbytes, protection, flags in modes if flags & shared and protection & writable
    }
    # The commit counter's block is there before it is mapped.
    assert sizes == {32}


def test_a_row_that_reaches_behind_the_end_of_its_file_is_told_and_no_signal(path):
    with arraychest.open(path, "w") as chest:
        chest["large"] = filled(1, LARGE)
        chest["small"] = filled(2, SMALL)

    def child(say: Say) -> None:
        for file in [*Path(path).rglob("*.npy"), *Path(path).rglob("*.pack")]:
            os.truncate(file, 100)
        for mode in ("r", "a"):
            with arraychest.open(path, mode) as chest:
                for key in ("large", "small"):
                    with pytest.raises(CorruptEntryError):
                        chest[key].sum()

    outcome = in_child(child)
    assert outcome.signal != signal.SIGBUS
    assert outcome.error is None, outcome.error


def test_a_locked_catalog_is_waited_for_and_then_told(path, monkeypatch):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, LARGE)
    monkeypatch.setattr("arraychest.catalog.connection._BUSY_SECONDS", 0.01)
    with arraychest.open(path) as chest:
        chest["y"] = filled(2, LARGE)
        chest.flush()
        intruder = sqlite3.connect(path + "/catalog.sqlite", isolation_level=None)
        intruder.execute("BEGIN IMMEDIATE")
        chest["z"] = filled(3, LARGE)
        with pytest.raises(SpillError, match="locked"):
            chest.flush()
        assert (chest["z"] == 3).all()
        intruder.execute("ROLLBACK")
        intruder.close()
        chest.flush()
    audit(path)


def test_the_c_library_reports_a_map_that_cannot_be_made(tmp_path):
    file = tmp_path / "empty"
    file.touch()
    fd = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid"):
            arraychest.platform.maps._Map(fd, 0, "r", steady=False)
    finally:
        os.close(fd)
    assert ctypes.get_errno() in (0, errno.EINVAL)


def test_a_failure_that_waits_to_be_told_keeps_no_array(path):
    fault = failing(errno.EIO, "writing")
    gc.collect()
    gc.disable()  # what only a cycle holds stays
    try:
        with injected(fault), arraychest.open(path, "w", 4 * LARGE * 8) as chest:
            fault.on = True
            arrays = [filled(number, LARGE) for number in range(4)]
            kept = [weakref.ref(array) for array in arrays]
            for number in range(4):
                chest[number] = arrays.pop()
            with chest._engine.session.writer.lock:
                chest._engine.session.writer.wait_idle()
            assert chest._engine.session.writer.failures.untold is not None
            fault.on = False
            for number in range(4):
                del chest[number]
            assert all(each() is None for each in kept)
    finally:
        gc.enable()


def test_children_hear_ctrl_c_though_the_tests_do_not(monkeypatch):
    """As where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = "import signal; signal.raise_signal(signal.SIGINT)"
        assert "KeyboardInterrupt" in run_python(code, check=False).stderr
        with start_program([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as started:
            assert started.wait() == -signal.SIGINT
        outcome = in_child(lambda say: signal.raise_signal(signal.SIGINT))
        assert "KeyboardInterrupt" in (outcome.error or "")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
