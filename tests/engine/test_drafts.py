"""Changing values on disk: edits of a copy and in place, arrays born on disk, private views."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import arraychest
from arraychest import (
    AbsentKeyError,
    Chest,
    CorruptEntryError,
    DeadlockError,
    ReadOnlyChestError,
    SpillError,
    ValueTypeError,
)
from tests.faults import COPYING, RESERVING, Say, die, in_child, injected, needs_ficlone
from tests.support import audit, run_python

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
SMALL = 40


def filled(number: float, size: int = SMALL) -> np.ndarray:
    return np.full(size, float(number))


@pytest.fixture(params=["named", "temporary"])
def chest(request: Any, path: str) -> Any:
    with Chest(path=path if request.param == "named" else None) as made:
        yield made
    if request.param == "named":
        audit(path)


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def size(request: Any) -> int:
    return request.param


# --- edit ----------------------------------------------------------------------------------


class TestEdit:
    @pytest.mark.parametrize("tier", ["resident", "stored", "viewed"])
    def test_what_is_written_is_the_value_from_the_end_on(self, chest, size, tier):
        chest["x"] = filled(1, size)
        if tier != "resident":
            chest.flush()
        held = chest["x"] if tier == "viewed" else None
        with chest.edit("x") as array:
            assert array.flags.writeable
            array[1] = 5
            array += 1
            assert (chest["x"] == 1).all()
        assert chest["x"][1] == 6
        assert chest["x"][0] == 2
        assert not chest["x"].flags.writeable
        if held is not None:
            assert (held == 1).all()

    def test_what_a_writer_keeps_reaches_nobody(self, chest, size):
        chest["x"] = filled(1, size)
        chest.flush()
        with chest.edit("x") as array:
            part = array[2:]
            array[0] = 2
        after = chest["x"].copy()
        if size == LARGE:
            part[0] = 99  # a view that was taken before; NumPy has no way to find it
            assert (chest["x"] == after).all()
            assert (np.load(chest.key_to_filename("x")) == after).all()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3

    def test_an_exception_leaves_the_old_value_and_no_file(self, chest, size):
        chest["x"] = filled(1, size)
        chest.flush()
        with pytest.raises(ZeroDivisionError), chest.edit("x") as array:
            array[:] = 2
            raise ZeroDivisionError
        assert (chest["x"] == 1).all()
        with chest.edit("x") as array:
            array[:] = 3
        assert (chest["x"] == 3).all()

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_the_layout_stays(self, chest, order, size):
        chest["x"] = np.ones((2, size), order=order)
        chest.flush()
        with chest.edit("x") as array:
            array[1, 1] = 2
        assert chest["x"].flags[f"{order}_CONTIGUOUS"]
        assert chest["x"].sum() == 2 * size + 1

    def test_the_place_in_the_order_stays(self, chest, size):
        for key in "abc":
            chest[key] = filled(1, size)
        with chest.edit("b") as array:
            array[0] = 2
        assert list(chest) == ["a", "b", "c"]

    def test_what_cannot_be_edited_is_told(self, chest):
        with pytest.raises(AbsentKeyError), chest.edit("nothing"):
            pass
        chest["scalar"] = np.float64(1)
        with pytest.raises(ValueTypeError, match="array of plain elements"), chest.edit("scalar"):
            pass

    def test_a_reader_edits_nothing(self, path):
        with Chest(path=path) as chest:
            chest["x"] = filled(1)
        with (
            arraychest.open(path, "r") as chest,
            pytest.raises(ReadOnlyChestError),
            chest.edit("x"),
        ):
            pass

    @pytest.mark.parametrize("name", [RESERVING, COPYING, "pwritev", "open"])
    def test_a_disk_that_fails_leaves_the_old_value(self, chest, name):
        chest["x"] = filled(1, LARGE)
        chest.flush()

        def action(call: str, args: Any, go: Any) -> Any:
            if call == name:
                raise OSError(28, "injected")
            return go()

        with pytest.raises((SpillError, OSError)), injected(action), chest.edit("x") as array:
            array[:] = 2
        assert (chest["x"] == 1).all()
        with chest.edit("x") as array:
            array[:] = 3
        assert (chest["x"] == 3).all()

    def test_threads_wait_for_each_other(self, chest, size):
        chest["x"] = np.zeros(size)

        def work() -> None:
            for _ in range(10):
                with chest.edit("x") as array:
                    now = array[0]
                    time.sleep(0.0005)
                    array[:] = now + 1

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (chest["x"] == 30).all()


def count_up(path: str, rounds: int) -> None:
    with Chest(path=path) as chest:
        for _ in range(rounds):
            with chest.edit("x") as array:
                array += 1


@pytest.mark.slow
@pytest.mark.usefixtures("resource_tracker")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_edit_lose_nothing(path, size, method):
    with Chest(path=path) as chest:
        chest["x"] = np.zeros(size)
        chest.flush()
        context = multiprocessing.get_context(method)
        workers = [context.Process(target=count_up, args=(path, 12)) for _ in range(3)]
        for worker in workers:
            worker.start()
        count_up(path, 12)
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        assert (chest["x"] == 48).all()
    audit(path)


@pytest.mark.slow
def test_a_crash_at_any_file_operation_of_an_edit_leaves_the_old_value_or_the_new(path, size):
    for number in range(1, 200):
        with arraychest.open(path, "w") as chest:
            chest["x"] = filled(1, size)

        def child(say: Say, number: int = number) -> None:
            left = [number]

            def action(name: str, args: Any, call: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    die()
                return call()

            with Chest(path=path) as chest:
                with injected(action), chest.edit("x") as array:
                    array[:] = 2
                left[0] = 1 << 30

        survived = not in_child(child).signal
        with Chest(path=path) as chest:
            found = set(chest["x"].tolist())
            assert found in ({1.0}, {2.0})
            # A dead editor keeps nobody out.
            with chest.lock("x"):
                pass
        audit(path)
        if survived:
            assert found == {2.0}
            return
    raise AssertionError("never survived")


# --- create --------------------------------------------------------------------------------


class TestCreate:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["f4", ">i8", "M8[D]", "U3", [("a", "i4"), ("b", "f8")]])
    def test_is_filled_in_place(self, chest, order, dtype):
        expected = np.zeros((30, 50), dtype, order=order)
        with chest.create("x", (30, 50), dtype, order) as array:
            assert array.dtype == expected.dtype
            assert array.flags[f"{order}_CONTIGUOUS"]
            assert "x" not in chest
            assert (array == expected).all()
            array[3] = expected[3] = np.ones(50, "i1").astype(dtype) if dtype != "M8[D]" else 3
        found = chest["x"]
        assert found.dtype == expected.dtype
        assert found.flags[f"{order}_CONTIGUOUS"]
        assert (found == expected).all()
        assert not found.flags.writeable

    @pytest.mark.parametrize("shape", [(), 0, (0, 3), 1, (2, 0), 7, np.int64(4)])
    def test_shapes(self, chest, shape):
        with chest.create("x", shape) as array:
            array[...] = 3
        assert chest["x"].shape == np.empty(shape).shape
        assert (chest["x"] == 3).all()

    def test_fill(self, chest):
        with chest.create("x", 5, int, fill=7) as array:
            array[0] = 1
        assert chest["x"].tolist() == [1, 7, 7, 7, 7]

    def test_larger_than_the_budget(self, path):
        with Chest(path=path, available_memory=1000) as chest:
            with chest.create("x", 100_000) as array:
                array[:] = 1
                assert chest.memory_usage == 0
            assert chest["x"].sum() == 100_000

    def test_an_exception_leaves_nothing(self, chest):
        chest["x"] = filled(1, LARGE)
        with pytest.raises(ZeroDivisionError), chest.create("x", 5):
            raise ZeroDivisionError
        assert chest["x"].shape == (LARGE,)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            (("x", 5, object), ValueTypeError),
            (("x", -1), ValueError),
            (("x", (1 << 40, 1 << 40)), ValueError),
            (("x", 5, "f8", "A"), ValueError),
            (("x", "abc"), (TypeError, ValueError)),
            (("x", 5, "nothing"), TypeError),
            (([], 5), TypeError),
            (("x", 1 << 50, "u1"), SpillError),
        ],
    )
    def test_what_cannot_be_is_told(self, chest, arguments, error):
        with pytest.raises(error):
            chest.create(*arguments)
        assert len(chest) == 0

    def test_a_fill_that_does_not_fit_leaves_nothing(self, chest):
        with pytest.raises(ValueError, match="broadcast"):
            chest.create("x", 5, fill=[1, 2])

    def test_it_is_sealed_once(self, chest):
        creation = chest.create("x", 3)
        creation.array[:] = 2
        creation.seal()
        creation.discard()
        with pytest.raises(ValueError, match="sealed or discarded"):
            creation.seal()
        assert (chest["x"] == 2).all()

    def test_views_that_are_kept_reach_nobody(self, chest):
        with chest.create("x", LARGE) as array:
            part = array[1:]
        part[0] = 9
        assert (chest["x"] == 0).all()


def fill_part(data: bytes, start: int, stop: int) -> None:
    with pickle.loads(data) as array:
        array[start:stop] = np.arange(start, stop)


@pytest.mark.slow
@pytest.mark.usefixtures("resource_tracker")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_fill_parts(path, method):
    count = 30_000
    with Chest(path=path) as chest:
        creation = chest.create("x", count, np.int64)
        with creation:
            data = pickle.dumps(creation)
            assert len(data) < 1000
            context = multiprocessing.get_context(method)
            cuts = [(start, start + count // 3) for start in range(0, count, count // 3)]
            workers = [context.Process(target=fill_part, args=(data, *cut)) for cut in cuts]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(60)
                assert worker.exitcode == 0
        assert (chest["x"] == np.arange(count)).all()
        with pytest.raises(AbsentKeyError):
            pickle.loads(data)
    audit(path)


def test_sealing_waits_for_open_parts_and_not_for_dead_ones(path):
    with Chest(path=path) as chest:
        creation = chest.create("x", LARGE)
        part = pickle.loads(pickle.dumps(creation))

        def child(say: Say) -> None:
            inherited = pickle.loads(pickle.dumps(creation))
            inherited.array[0] = 5
            die()

        in_child(child)
        thread = threading.Thread(target=creation.seal)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        part.array[1] = 6
        part.close()
        thread.join(30)
        assert chest["x"][:3].tolist() == [5, 6, 0]
        part.close()
    audit(path)


def test_a_forked_child_fills_its_part_and_seals_nothing(path):
    with Chest(path=path) as chest:
        with chest.create("x", LARGE) as array:

            def child(say: Say) -> None:
                array[5] = 7

            assert in_child(child).error is None
        assert chest["x"][5] == 7
    audit(path)


def test_a_creator_that_dies_leaves_nothing_behind(path):
    with Chest(path=path) as chest:
        chest["kept"] = filled(1, LARGE)

    def child(say: Say) -> None:
        chest = Chest(path=path)
        chest.create("x", LARGE).array[:] = 1
        die()

    in_child(child)
    with Chest(path=path) as chest:
        assert list(chest) == ["kept"]
    audit(path)


# --- edit(key, in_place=True) --------------------------------------------------------------


class TestInPlace:
    @pytest.mark.parametrize("tier", ["resident", "stored", "viewed"])
    def test_what_is_written_is_the_value_at_once(self, chest, size, tier):
        chest["x"] = filled(1, size)
        chest["y"] = filled(2, size)
        if tier != "resident":
            chest.flush()
        if tier == "viewed":
            chest["x"]
        with chest.edit("x", in_place=True) as array:
            array[2] = 5
            assert chest["x"][2] == 5
            chest.flush()
            chest.compact()
            array[3] = 6
            assert chest["x"][2:5].tolist() == [5, 6, 1]
        assert chest["x"][2:5].tolist() == [5, 6, 1]
        assert not chest["x"].flags.writeable
        assert list(chest) == ["x", "y"]
        assert (chest["y"] == 2).all()

    def test_the_file_stays_and_the_generation_is_new(self, chest, path):
        chest["x"] = filled(1, LARGE)
        chest.flush()
        before, token = chest.entry("x"), chest.handle("x").token
        inode = os.stat(before.file).st_ino
        with chest.edit("x", in_place=True) as array:
            array[2] = 5
        after = chest.entry("x")
        assert os.stat(after.file).st_ino == inode
        assert after.generation != before.generation
        assert chest.handle("x").token != token
        assert not os.path.exists(before.file)
        report = chest.verify()
        assert report.ok
        # A temporary chest has no checksums.
        assert report.unchecked == (0 if chest.entry("x").file.startswith(path) else 1)

    def test_it_is_there_after_reopening_and_for_others_at_once(self, path, size):
        with Chest(path=path) as chest, Chest(path=path) as other:
            chest["x"] = filled(1, size)
            chest.flush()
            held = other["x"]
            with chest.edit("x", in_place=True) as array:
                array[2] = 5
                assert other["x"][2] == 5
            assert other["x"][2:4].tolist() == [5, 1]
            assert held[2] == (5 if size == LARGE else 1)
            with other.edit("x", in_place=True) as array:
                array[3] = 6
            assert chest["x"][2:5].tolist() == [5, 6, 1]
        with arraychest.open(path, "r") as chest:
            assert chest["x"][2:5].tolist() == [5, 6, 1]
        audit(path)

    @pytest.mark.parametrize("named", [True, False])
    def test_a_value_put_under_another_key_is_not_written_to(self, named, path, size):
        with Chest(path=path if named else None, compression=None) as chest:
            chest["x"] = filled(1, size)
            chest.flush()
            chest["y"] = chest["x"]
            with chest.transaction():
                chest["z"] = chest["x"]
            with chest.edit("x", in_place=True) as array:
                chest["w"] = chest["x"]
                chest["v"] = array
                shown = array.view()
                shown.setflags(write=False)
                chest["u"] = shown
                array[:] = 2
                assert {int(chest[key].max()) for key in "yzwuv"} == {1}
                chest.flush()
                array[:] = 3
            assert (chest["x"] == 3).all()
            assert {int(chest[key].max()) for key in "yzwuv"} == {1}

    def test_what_the_editor_keeps_is_written_to_no_more(self, chest, size):
        chest["x"] = filled(1, size)
        with chest.edit("x", in_place=True) as array:
            kept, part = array, array[1:]
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 9
        part[:] = 9
        assert (chest["x"] == 1).all()

    @pytest.mark.parametrize("how", ["put", "delete", "edit by another process"])
    def test_what_was_replaced_meanwhile_stays_replaced(self, path, size, how):
        with Chest(path=path) as chest:
            chest["x"] = filled(1, size)
            with chest.edit("x", in_place=True) as array:
                if how == "put":
                    chest["x"] = filled(2, size)
                elif how == "delete":
                    del chest["x"]
                else:
                    with Chest(path=path) as other:
                        other["x"] = filled(2, size)
                for number in range(5):
                    array[:] = 9
                    chest[number] = filled(number, size)
                    chest.flush()
                array[:] = 10
            assert "x" not in chest if how == "delete" else (chest["x"] == 2).all()
            for number in range(5):
                assert (chest[number] == number).all()
            assert chest.verify().ok
        audit(path)

    def test_an_exception_undoes_nothing(self, chest, size):
        chest["x"] = filled(1, size)
        with pytest.raises(ZeroDivisionError), chest.edit("x", in_place=True) as array:
            array[2] = 5
            raise ZeroDivisionError
        assert chest["x"][2:4].tolist() == [5, 1]
        with chest.edit("x", in_place=True) as array:
            array[3] = 6
        assert chest["x"][2:4].tolist() == [5, 6]

    def test_other_editors_wait(self, path, size):
        with Chest(path=path) as chest:
            chest["x"] = filled(0, size)
            chest.flush()

            def child(say: Say) -> None:
                for _ in range(20):
                    with chest.edit("x", in_place=True) as array:
                        array += 1

            def work() -> None:
                for number in range(20):
                    with chest.edit("x", in_place=number % 2 == 0) as array:
                        array += 1

            with ThreadPoolExecutor(2) as pool:
                jobs = [pool.submit(work) for _ in range(2)]
                in_child(child)
                for job in jobs:
                    job.result()
            assert (chest["x"] == 60).all()
            assert chest.verify().ok
        audit(path)

    def test_within_another_edit_of_the_key_it_is_refused(self, chest):
        chest["x"] = filled(1)
        with (
            chest.edit("x", in_place=True),
            pytest.raises(DeadlockError),
            chest.edit("x", in_place=True),
        ):
            pass

    def test_within_a_transaction_it_is_refused(self, chest):
        chest["x"] = filled(1)
        with chest.transaction():
            with pytest.raises(ValueError, match="rolled back"), chest.edit("x", in_place=True):
                pass
            chest["y"] = filled(2)
        assert set(chest) == {"x", "y"}

    @pytest.mark.parametrize("value", [np.float64(3), [1, np.arange(LARGE)], "text"])
    def test_what_is_no_array_is_refused(self, chest, value):
        chest["x"] = value
        with pytest.raises(ValueTypeError), chest.edit("x", in_place=True):
            pass
        assert type(chest["x"]) is type(value)

    def test_a_blocked_array_is_refused(self, chest):
        chest.append("x", filled(1, LARGE))
        with pytest.raises(ValueTypeError, match="BlockedArray"), chest.edit("x", in_place=True):
            pass

    def test_an_absent_key_is_told(self, chest):
        with pytest.raises(AbsentKeyError), chest.edit("x", in_place=True):
            pass

    def test_a_reader_cannot(self, path):
        with Chest(path=path) as chest:
            chest["x"] = filled(1, LARGE)
        with (
            arraychest.open(path, "r") as chest,
            pytest.raises(ReadOnlyChestError),
            chest.edit("x", in_place=True),
        ):
            pass

    def test_a_linked_value_is_shared_no_longer(self, path, tmp_path):
        other = str(tmp_path / "other")
        with Chest(path=path) as chest:
            chest["x"] = filled(1, LARGE)
        with Chest(path=path) as chest, Chest(path=other) as copy:
            copy.update(chest)
            assert os.stat(copy.key_to_filename("x")).st_nlink == 2
            with chest.edit("x", in_place=True) as array:
                array[:] = 2
                assert (copy["x"] == 1).all()
                copy.update(chest)
                array[:] = 3
                assert (copy["x"] == 2).all()
            assert (chest["x"] == 3).all()
        audit(path)
        audit(other)

    def test_what_is_written_is_synced_with_durable(self, path, monkeypatch):
        with Chest(path=path, durable=True) as chest:
            chest["x"] = filled(1, LARGE)
            chest.flush()
            inode = os.stat(chest.key_to_filename("x")).st_ino
            synced = []
            real = os.fsync
            monkeypatch.setattr(
                os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))
            )
            with chest.edit("x", in_place=True) as array:
                array[0] = 5
            assert inode in synced

    def test_a_file_that_is_gone_is_told(self, path):
        with Chest(path=path) as chest:
            chest["x"] = filled(1, LARGE)
            chest.flush()
            os.unlink(chest.key_to_filename("x"))
            with pytest.raises(CorruptEntryError), chest.edit("x", in_place=True):
                pass

    def test_an_end_that_cannot_be_committed_is_told_and_loses_nothing(self, path):
        def action(name: str, args: Any, call: Any) -> Any:
            if name == "link":
                raise OSError(errno.EIO, "injected")
            return call()

        with Chest(path=path) as chest:
            chest["x"] = filled(1, LARGE)
            chest.flush()
            with (
                injected(action),
                pytest.raises(SpillError),
                chest.edit("x", in_place=True) as array,
            ):
                array[0] = 5
            assert chest["x"][:2].tolist() == [5, 1]
            assert chest.verify().ok
            with chest.edit("x", in_place=True) as array:
                array[1] = 6
            assert chest["x"][:2].tolist() == [5, 6]
        audit(path)

    def test_the_name_of_the_mode_that_it_replaces_is_told(self, path):
        with pytest.raises(ValueError, match="in_place=True"):
            Chest(path=path, mmap_mode="r+")
        assert not os.path.exists(path)

    def test_in_a_group(self, chest):
        group = chest.group("g")
        group["x"] = filled(1, LARGE)
        with group.edit("x", in_place=True) as array:
            array[0] = 5
        assert group["x"][:2].tolist() == [5, 1]


class Observed(RuleBasedStateMachine):
    """Both modes beside a model: the tier of a value never shows."""

    mode = "r"

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, list[float]] = {}
        self.held: list[tuple[np.ndarray, list[float], int]] = []
        self.number = 0.0
        self.chest: Chest | None = None

    @initialize(named=st.booleans())
    def open(self, named: bool) -> None:
        import tempfile

        self.folder = tempfile.mkdtemp(prefix="observed-")
        self.path = os.path.join(self.folder, "chest") if named else None
        self.chest = Chest(path=self.path, mmap_mode=self.mode, available_memory=20 * LARGE)

    @rule(key=st.integers(0, 4), size=st.sampled_from([3, SMALL, LARGE]))
    def put(self, key: int, size: int) -> None:
        self.number += 1
        self.chest[key] = filled(self.number, size)
        self.model[key] = [self.number] * size

    @rule(key=st.integers(0, 4))
    def get(self, key: int) -> None:
        if key not in self.model:
            assert key not in self.chest
            return
        array = self.chest[key]
        assert array.tolist() == self.model[key]
        assert array.flags.writeable == (self.mode != "r")
        self.held.append((array, list(self.model[key]), key))

    @precondition(lambda self: self.mode != "r" and self.held)
    @rule(at=st.integers(0, 50))
    def write(self, at: int) -> None:
        array, expected, _ = self.held[at % len(self.held)]
        self.number += 1
        array[at % len(array)] = self.number
        expected[at % len(array)] = self.number

    @rule(key=st.integers(0, 4))
    def edit(self, key: int) -> None:
        if key not in self.model:
            return
        self.number += 1
        with self.chest.edit(key) as array:
            array[-1] = self.number
        self.model[key] = [*self.model[key][:-1], self.number]

    @rule(key=st.integers(0, 4))
    def edit_in_place(self, key: int) -> None:
        if key not in self.model:
            return
        self.number += 1
        # What was handed out of it may change with it.
        self.held = [item for item in self.held if item[2] != key]
        with self.chest.edit(key, in_place=True) as array:
            array[-1] = self.number
        self.model[key] = [*self.model[key][:-1], self.number]

    @rule(key=st.integers(0, 4), size=st.sampled_from([3, LARGE]))
    def create(self, key: int, size: int) -> None:
        self.number += 1
        with self.chest.create(key, size, fill=self.number) as array:
            array[0] = -self.number
        self.model[key] = [-self.number, *[self.number] * (size - 1)]

    @rule(key=st.integers(0, 4))
    def delete(self, key: int) -> None:
        if key in self.model:
            del self.chest[key], self.model[key]

    @rule(key=st.integers(0, 4))
    def spill(self, key: int) -> None:
        if key in self.model:
            self.chest.spill(key)

    @rule()
    def flush(self) -> None:
        self.chest.flush()

    @rule()
    def compact(self) -> None:
        self.chest.compact()

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @precondition(lambda self: self.path is not None)
    @rule()
    def reopen(self) -> None:
        self.chest.close()
        self.chest = Chest(path=self.path, mmap_mode=self.mode, available_memory=20 * LARGE)

    @invariant()
    def views_hold(self) -> None:
        for array, expected, _ in self.held:
            assert array.tolist() == expected
        if self.chest is not None:
            assert set(self.chest) == set(self.model)

    def teardown(self) -> None:
        import shutil

        if self.chest is not None:
            for key, expected in self.model.items():
                assert self.chest[key].tolist() == expected
            self.held.clear()
            self.chest.close()
            if self.path is not None:
                audit(self.path)
            shutil.rmtree(self.folder)


MODEL = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _case(mmap_mode: str) -> type:
    machine = type(f"Observed_{mmap_mode}", (Observed,), {"mode": mmap_mode})
    machine.TestCase.settings = MODEL
    return machine.TestCase


TestReadOnly = _case("r")
TestPrivate = _case("c")


# --- handles, locks, pickles ---------------------------------------------------------------


class TestHandle:
    def test_gives_the_value_in_another_process(self, chest, size):
        chest["x"] = np.arange(size, dtype="f4")
        data = pickle.dumps(chest.handle("x"))
        assert len(data) < 1000
        done = run_python(
            """
            import pickle, sys, numpy
            handle = pickle.loads(bytes.fromhex(sys.argv[1]))
            array = handle.array()
            print(handle.shape, handle.dtype, str(array.sum()), array.flags.writeable)
            print(numpy.asarray(handle, "f8").dtype, handle.array("c").flags.writeable)
            """,
            data.hex(),
        )
        total = str(np.arange(size, dtype="f4").sum())
        assert done.stdout == f"({size},) float32 {total} False\nfloat64 True\n"

    def test_stands_for_this_value_only(self, chest, size):
        chest["x"] = filled(1, size)
        handle = chest.handle("x")
        assert (handle.array() == 1).all()
        held = handle.array()
        chest["x"] = filled(2, size)
        chest.flush()
        chest.compact()
        with chest._engine.session.writer.lock:  # the old file goes after the commit
            chest._engine.session.writer.wait_idle()
        if size == LARGE:
            with pytest.raises(AbsentKeyError):
                handle.array()
        assert (held == 1).all()
        assert (chest.handle("x").array() == 2).all()

    def test_of_no_value_is_told(self, chest):
        with pytest.raises(AbsentKeyError):
            chest.handle("nothing")

    def test_with_a_mode_that_is_none_is_told(self, chest):
        chest["x"] = filled(1)
        with pytest.raises(ValueError, match="mmap_mode"):
            chest.handle("x").array("r+")

    def test_a_reader_gives_one(self, path, size):
        with Chest(path=path) as chest:
            chest["x"] = filled(1, size)
        with arraychest.open(path, "r") as chest:
            assert (pickle.loads(pickle.dumps(chest.handle("x"))).array() == 1).all()


def put_from_elsewhere(chest: Chest, key: str) -> float:
    with chest:
        chest[key] = filled(7, LARGE)
        return float(chest["x"][0])


class TestPickle:
    @pytest.mark.slow
    @pytest.mark.usefixtures("resource_tracker")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_chest_goes_by_its_path(self, path, method):
        with Chest(path=path, available_memory="64 MiB", mmap_mode="c") as chest:
            chest["x"] = filled(3, LARGE)
            assert len(pickle.dumps(chest)) < 1000
            with multiprocessing.get_context(method).Pool(2) as pool:
                calls = [(chest, key) for key in "abc"]
                assert pool.starmap(put_from_elsewhere, calls) == [3.0] * 3
                pool.close()
                pool.join()
            assert set(chest) == {"x", "a", "b", "c"}
            again = pickle.loads(pickle.dumps(chest))
            assert again["a"].flags.writeable
            again.close()
        audit(path)

    def test_a_temporary_one_does_not(self):
        with Chest() as chest, pytest.raises(TypeError, match="temporary"):
            pickle.dumps(chest)

    def test_a_reader_stays_one(self, path):
        Chest(path=path).close()
        with (
            arraychest.open(path, "r") as chest,
            pickle.loads(pickle.dumps(chest)) as again,
            pytest.raises(ReadOnlyChestError),
        ):
            again["x"] = filled(1)


def is_free(lock: arraychest.KeyLock) -> bool:
    """Whether another thread could take a lock."""

    def take() -> bool:
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return taken

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(take).result(30)


class TestLock:
    @pytest.mark.parametrize("outer", ["lock", "edit"])
    @pytest.mark.parametrize("inner", ["lock", "edit", "append"])
    def test_its_holder_may_take_it_again(self, chest, outer, inner):
        chest["x"] = filled(1)
        chest.append("blocks", filled(1))
        key = "blocks" if (outer, inner) == ("lock", "append") else "x"
        with getattr(chest, outer)(key) as held:
            if outer == "edit":
                held[0] = 2
            if outer == "edit" and inner != "lock":
                with pytest.raises(DeadlockError, match="within another one"):
                    if inner == "append":
                        chest.append(key, filled(1))
                    else:
                        chest.edit(key).__enter__()
            elif inner == "append":
                chest.append(key, filled(2))
            else:
                with getattr(chest, inner)(key) as again:
                    if inner == "edit":
                        again[0] = 2
                    with chest.lock(key), chest.lock(key):
                        pass
            assert not is_free(chest.lock(key))
            assert is_free(chest.lock("other"))
        assert is_free(chest.lock(key))
        if "edit" in (outer, inner):
            assert chest["x"][0] == 2
        elif inner == "append":
            assert len(chest[key]) == 2 * SMALL

    def test_one_object_may_be_taken_again_and_is_released_as_often(self, chest):
        lock = chest.lock("x")
        with lock, lock:
            assert lock.acquire()
            lock.release()
            assert not is_free(chest.lock("x"))
        with pytest.raises(RuntimeError, match="held"):
            lock.release()
        lock.acquire()
        lock.acquire()
        lock.release()
        assert not is_free(chest.lock("x"))
        lock.release()
        assert is_free(lock)

    def test_two_chests_on_a_folder_have_one(self, path):
        with Chest({"x": filled(1)}, path=path) as chest, Chest(path=path) as other:
            chest.flush()
            with chest.lock("x"), other.edit("x") as array:
                array[:] = 2
                with pytest.raises(DeadlockError):
                    chest.edit("x").__enter__()
                assert not is_free(other.lock("x"))
            assert is_free(chest.lock("x"))

    def test_an_edit_within_an_edit_of_another_key(self, chest):
        chest.update({"x": filled(1), "y": filled(2)})
        with chest.edit("x") as x, chest.edit("y") as y:
            x[:], y[:] = 3, 4
        assert (chest["x"][0], chest["y"][0]) == (3, 4)

    def test_after_an_edit_that_failed_it_may_be_edited(self, chest):
        chest["x"] = filled(1)
        with chest.lock("x"):
            with pytest.raises(ZeroDivisionError), chest.edit("x"):
                raise ZeroDivisionError
            with chest.edit("x") as array:
                array[:] = 2
        assert chest["x"][0] == 2

    def test_who_forgets_it_lets_go(self, chest):
        chest.lock("x").acquire()
        assert is_free(chest.lock("x"))
        with chest.lock("x"):
            chest.lock("x").acquire()
            assert not is_free(chest.lock("x"))
        assert is_free(chest.lock("x"))

    def test_keeps_others_out_and_lets_them_in(self, chest):
        order = []
        with chest.lock("x"):
            other = chest.lock("x")
            assert not is_free(other)

            def work() -> None:
                with other:
                    order.append("other")

            thread = threading.Thread(target=work)
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
            order.append("mine")
            with chest.lock("y"):
                pass
        thread.join(30)
        assert order == ["mine", "other"]

    def test_equal_keys_have_one(self, chest):
        with chest.lock(1):
            assert not is_free(chest.lock(True))
            assert not is_free(chest.lock(np.int64(1)))
            assert is_free(chest.lock("1"))

    def test_misuse_is_told(self, chest):
        with pytest.raises(RuntimeError, match="held"):
            chest.lock("x").release()
        with pytest.raises(TypeError):
            chest.lock([])

    def test_a_holder_that_dies_lets_go(self, path):
        with Chest(path=path) as chest:

            def child(say: Say) -> None:
                other = Chest(path=path)
                other.lock("x").acquire()
                die()

            in_child(child)
            assert chest.lock("x").acquire(blocking=False)

    def test_a_forked_child_holds_nothing_of_its_parents(self, path):
        with Chest(path=path) as chest:
            lock = chest.lock("x")
            lock.acquire()
            ready, proceed = os.pipe(), os.pipe()
            child = os.fork()
            if not child:
                os.write(ready[1], b"x")
                os.read(proceed[0], 1)
                os._exit(0)
            os.read(ready[0], 1)
            lock.release()
            assert chest.lock("x").acquire(blocking=False)
            os.write(proceed[1], b"x")
            os.waitpid(child, 0)
            for fd in (*ready, *proceed):
                os.close(fd)

    def test_waiting_costs_no_processor_time(self, chest):
        with chest.lock("x"):
            used = []

            def work() -> None:
                before = time.thread_time()
                with chest.lock("x"):
                    used.append(time.thread_time() - before)

            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(0.3)
        thread.join(30)
        assert used[0] < 0.1


@pytest.mark.parametrize("what", ["deleted", "another dtype"])
def test_an_edit_of_what_others_overwrite_meanwhile_has_the_value_that_it_got(
    path, monkeypatch, what
):
    """A put does not wait for an editor: the file may go, or be another, before it is copied."""
    with arraychest.Chest({"x": filled(3, LARGE)}, path=path) as chest:
        chest.flush()
        chest["x"]
        with arraychest.open(path, "a") as other:
            real = arraychest.storage.mapped_files.MappedFiles.create

            def create(self: Any, *args: Any) -> Any:
                *others, source = args
                assert source is not None
                if what == "deleted":
                    del other["x"]
                    other.flush()
                else:
                    other["x"] = np.full(LARGE, 7, np.uint64)
                    other.flush()
                    # As if it had been looked up after it was overwritten.
                    source = other._engine.stored_row("x")
                return real(self, *others, source)

            monkeypatch.setattr(arraychest.storage.mapped_files.MappedFiles, "create", create)
            with chest.edit("x") as array:
                assert array.dtype == np.float64
                assert (array == 3).all()
                array += 1
            assert (other["x"] == 4).all()
    audit(path)


# --- blocks shared with another file ----------------------------------------------------------------


FICLONE = 0x40049409  # linux/fs.h


def edit_a_stored_value(path):
    with arraychest.open(path, "w") as chest:
        chest["x"] = np.arange(20_000.0)
        chest.flush()
        with chest.edit("x") as array:
            array[0] = -1
        assert chest["x"][0] == -1
        assert (chest["x"][1:] == np.arange(1.0, 20_000.0)).all()
        assert chest.verify().ok


@needs_ficlone
def test_an_edit_shares_blocks_where_the_file_system_can(tmp_path, monkeypatch):
    """No file system at hand can: a stand-in copies what the kernel would share."""
    cloned = []

    def clone(fd: int, request: int, source: int) -> int:
        assert request == FICLONE
        os.pwrite(fd, os.pread(source, os.fstat(source).st_size, 0), 0)
        cloned.append(source)
        return 0

    def no_copy(*args: object) -> int:
        raise AssertionError("copied, too")

    monkeypatch.setattr("fcntl.ioctl", clone)
    monkeypatch.setattr("os.sendfile", no_copy)
    edit_a_stored_value(tmp_path / "chest")
    assert cloned


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSPC])
def test_an_edit_copies_where_blocks_cannot_be_shared(tmp_path, monkeypatch, refusal):
    def refuse(fd: int, request: int, source: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    edit_a_stored_value(tmp_path / "chest")


def test_blocks_are_not_shared_where_writing_to_them_could_find_no_room(tmp_path, monkeypatch):
    """A write through a map to a shared block is SIGBUS on a full disk."""

    def clone(fd: int, request: int, source: int) -> int:
        raise AssertionError("shared")

    little = os.statvfs_result((4096, 4096, 100, 70, 70, 100, 100, 100, 0, 255))
    monkeypatch.setattr("fcntl.ioctl", clone)
    with arraychest.open(tmp_path / "chest", "w") as chest:
        chest["x"] = np.arange(20_000.0)  # 160,000 bytes; 280 KiB are free, not twice as much
        chest.flush()
        with monkeypatch.context() as patch:
            patch.setattr("os.fstatvfs", lambda fd: little)
            with chest.edit("x") as array:
                array[0] = -1
        assert chest["x"][1] == 1
