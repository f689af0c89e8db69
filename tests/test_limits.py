"""Every operation where the system refuses something: it succeeds, or fails and loses nothing.

A disk with little room left, one without inodes, a process that may write no large file or open no
more files, a medium that cannot be written to, and a folder that is taken away.  How much is left is
varied, so that the refusal strikes each phase: data, pack, log of the catalog, and what comes after.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest.errors import AbsentKeyError, ArrayChestError
from tests.faults import Say, in_child
from tests.support import audit, fill_disk

pytestmark = pytest.mark.usefixtures("each_codec")

LARGE, SMALL = 12_500, 100  # elements: 100,000 bytes, 800 bytes
PAGE = 4096

# What an operation makes of the keys it changes: the number that fills the value, None: no such key.
After = dict[Any, float | None]


def filled(number: float, size: int) -> np.ndarray:
    return np.full(size, float(number))


def before() -> dict[Any, float]:
    return {**{n: n for n in range(4)}, **{("s", n): n for n in range(20)}}


def fresh(path: Path) -> arraychest.Chest:
    """A chest with large and small values that are stored, and holes where others were."""
    shutil.rmtree(path, ignore_errors=True)
    with arraychest.open(path, "w", "8 MiB") as chest:
        for key, number in before().items():
            chest[key] = filled(number, LARGE if type(key) is int else SMALL)
        for number in range(30):
            chest["gone", number] = filled(number, SMALL)
        chest.flush()
        for number in range(10):
            del chest["gone", number]
        chest.flush()
        for number in range(10, 30):
            del chest["gone", number]
    return arraychest.open(path, "a", "8 MiB")


# --- the operations --------------------------------------------------------------------------------


def put_large(chest: arraychest.Chest) -> None:
    chest["new"] = filled(7, LARGE)
    chest.flush()


def put_trees(chest: arraychest.Chest) -> None:
    chest["T"] = [filled(7, LARGE), {"a": [None, "x" * 100_000]}]
    for number in range(50):
        chest["t", number] = [filled(number, SMALL), {"a": number}]
    chest.flush()


def overwrite_large(chest: arraychest.Chest) -> None:
    chest[0] = filled(-1, LARGE)
    chest.flush()


def put_larger_than_the_budget(chest: arraychest.Chest) -> None:
    chest.available_memory = 1000
    chest["new"] = filled(7, LARGE)


def put_small(chest: arraychest.Chest) -> None:
    for number in range(300):
        chest["m", number] = filled(number, SMALL)
    chest.flush()


def delete(chest: arraychest.Chest) -> None:
    chest.discard(1)
    chest.discard(("s", 1))
    chest.flush()


def edit_large(chest: arraychest.Chest) -> None:
    with chest.edit(2) as array:
        array[:] = -2


def edit_small(chest: arraychest.Chest) -> None:
    with chest.edit(("s", 2)) as array:
        array[:] = -2


def create(chest: arraychest.Chest) -> None:
    with chest.create("c", (LARGE,), float) as array:
        array[:] = 5


def transaction(chest: arraychest.Chest) -> None:
    with chest.transaction():
        chest["t"] = filled(8, LARGE)
        chest["u"] = filled(9, SMALL)
        chest.discard(3)


def update(chest: arraychest.Chest) -> None:
    chest.update({"t": filled(8, LARGE), "u": filled(9, SMALL), 3: filled(-3, LARGE)})


def update_from_a_chest(chest: arraychest.Chest) -> None:
    with arraychest.open(f"{chest.path}.other", "r") as other:
        chest.update(other)


def write_in_place(chest: arraychest.Chest) -> None:
    with chest.edit(0, in_place=True) as array:
        array[:] = -1


def compact(chest: arraychest.Chest) -> None:
    chest.compact()


def verify(chest: arraychest.Chest) -> None:
    assert chest.verify().ok


def repair(chest: arraychest.Chest) -> None:
    chest.repair()


def lock(chest: arraychest.Chest) -> None:
    with chest.lock("k"):
        pass


def hand_out(chest: arraychest.Chest) -> None:
    with chest.lock("k"):
        chest.handle(0)
        chest.prefetch([0, ("s", 0)])


OPERATIONS: dict[Callable[[arraychest.Chest], None], After] = {
    put_large: {"new": 7},
    put_trees: {"T": 7, **{("t", number): number for number in range(50)}},
    overwrite_large: {0: -1},
    put_larger_than_the_budget: {"new": 7},
    put_small: {("m", number): number for number in range(300)},
    delete: {1: None, ("s", 1): None},
    edit_large: {2: -2},
    edit_small: {("s", 2): -2},
    create: {"c": 5},
    transaction: {"t": 8, "u": 9, 3: None},
    update: {"t": 8, "u": 9, 3: -3},
    update_from_a_chest: {"o": 1, ("o", "s"): 2},
    write_in_place: {0: -1},
    compact: {},
    verify: {},
    repair: {},
    lock: {},
    hand_out: {},
}
ATOMIC = (transaction, update, update_from_a_chest)

operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)


def number_of(chest: arraychest.Chest, key: Any) -> float | None:
    try:
        array = chest[key]
    except AbsentKeyError:
        return None
    if type(array) is list:
        array, _ = array
    assert (array == array[0]).all(), f"a torn value of {key}"
    return float(array[0])


def check(chest: arraychest.Chest, operation: Callable[..., None], *, done: bool) -> None:
    """Each key has its old value or its new one; all the new ones if it is done."""
    old: After = dict(before())
    new = OPERATIONS[operation]
    for key in old.keys() | new.keys():
        found = number_of(chest, key)
        if key not in new:
            assert found == old[key], f"{key} was lost"
        elif done:
            assert found == new[key], f"{key} was not stored"
        else:
            assert found in (old.get(key), new[key]), f"{key} has neither value"
    if operation in ATOMIC:
        changed = {number_of(chest, key) == new[key] for key in new}
        assert len(changed) == 1, "a part of it"


def attempt(chest: arraychest.Chest, operation: Callable[..., None]) -> bool:
    """Whether it succeeded; it may raise nothing but our own errors and the system's."""
    try:
        operation(chest)
    except (ArrayChestError, OSError) as error:
        assert str(error).strip(), "an error without a word"
        check(chest, operation, done=False)
        return False
    check(chest, operation, done=True)
    return True


def other_chest(path: Path) -> None:
    shutil.rmtree(f"{path}.other", ignore_errors=True)
    with arraychest.open(f"{path}.other", "w") as other:
        other["o"] = filled(1, LARGE)
        other["o", "s"] = filled(2, SMALL)


def survived(child: Callable[[Say], Any]) -> Any:
    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    return outcome.result


def again(chest: arraychest.Chest, operation: Callable[..., None], path: Path) -> None:
    """The system refuses nothing any more: work goes on, and nothing is left behind."""
    chest.available_memory = "8 MiB"
    for _ in range(5):  # what was noted as failed in the background is told once
        if attempt(chest, operation):
            break
    else:
        raise AssertionError("it still fails")
    chest.close()
    with arraychest.open(path, "a") as reopened:
        check(reopened, operation, done=True)
        assert reopened.verify().ok
    audit(str(path))


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.slow
@operations
def test_a_disk_with_little_room(tiny_disk, operation):
    path = tiny_disk / "chest"

    def child(say: Say) -> list[bool]:
        fared = []
        other_chest(path)
        for pages in (0, 1, 2, 3, 4, 6, 9, 16, 24, 28, 40, 400):
            chest = fresh(path)
            fill_disk(tiny_disk, left=pages * PAGE)
            fared.append(attempt(chest, operation))
            os.unlink(tiny_disk / "filler")
            again(chest, operation, path)
        return fared

    fared = survived(child)
    assert fared[-1], "room enough for it"


@pytest.mark.sampled(4)
@operations
def test_a_disk_without_inodes(tiny_disk, operation):
    path = tiny_disk / "chest"

    def child(say: Say) -> None:
        other_chest(path)
        for left in range(4):
            chest = fresh(path)
            fillers = tiny_disk / "fillers"
            fillers.mkdir()
            with contextlib.suppress(OSError):
                for number in range(1000):
                    (fillers / str(number)).touch()
            for number in range(left):
                (fillers / str(number)).unlink()
            attempt(chest, operation)
            shutil.rmtree(fillers)
            again(chest, operation, path)

    survived(child)


@pytest.mark.sampled(3)
@operations
def test_a_process_that_may_write_no_large_files(tmp_path, operation):
    path = tmp_path / "chest"

    def child(say: Say) -> None:
        other_chest(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for nbytes in (0, 10_000, 40_000, 60_000, 99_000, 101_000):
            chest = fresh(path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
            try:
                attempt(chest, operation)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            again(chest, operation, path)

    survived(child)


@pytest.mark.sampled(4)
@operations
def test_a_process_without_descriptors(tmp_path, operation):
    path = tmp_path / "chest"

    def child(say: Say) -> None:
        other_chest(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for more in range(6):
            chest = fresh(path)
            # Values that were got before need none.
            for key in before():
                chest[key]
            if operation in ATOMIC:
                # What a failed one is asked for afterwards is not there.
                assert "t" not in chest
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
            try:
                with contextlib.suppress(ArrayChestError, OSError):
                    operation(chest)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            check(chest, operation, done=False)
            again(chest, operation, path)

    survived(child)


def test_a_medium_that_is_read_only_is_read(tiny_disk):
    path = tiny_disk / "chest"
    fresh(path).close()
    gc.collect()  # what is mapped to be written to keeps the medium busy
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with arraychest.open(path, "r") as chest:
        check(chest, verify, done=True)
    for mode in ("a", "w"):
        with pytest.raises(OSError, match=r"[Rr]ead-only|readonly"):
            arraychest.open(path, mode)
    with pytest.raises(OSError, match=r"[Rr]ead-only"):
        arraychest.open(tiny_disk / "new", "a")
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    with arraychest.open(path, "a") as chest:
        check(chest, verify, done=True)


@pytest.mark.sampled(2)
@operations
def test_a_folder_that_is_removed_under_a_chest(tmp_path, operation):
    path = tmp_path / "chest"

    def child(say: Say) -> None:
        other_chest(path)
        chest = fresh(path)
        chest["unsaved"] = filled(6, LARGE)
        mapped = chest[0], chest["s", 0]
        shutil.rmtree(path)
        with contextlib.suppress(ArrayChestError, OSError):
            operation(chest)
        # What was in memory, or mapped, is still there; what is not is told.
        assert mapped[0][-1] == 0
        assert mapped[1][-1] == 0
        assert number_of(chest, "unsaved") == 6
        for key in before():
            with contextlib.suppress(ArrayChestError, OSError):
                assert number_of(chest, key) in (
                    None,
                    before()[key],
                    OPERATIONS[operation].get(key),
                )
        with contextlib.suppress(ArrayChestError, OSError):
            chest.close()

    survived(child)
