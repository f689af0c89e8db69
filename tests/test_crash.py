"""A process that dies, or is interrupted, at any file operation leaves old values or new ones."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest
from tests.faults import Countdown, Say, die, in_child, injected, raising
from tests.support import audit

LARGE = arraychest.PACK_THRESHOLD // 8 + 500  # float64 elements: a file of its own
SMALL = 60
BUDGET = 6 * 8 * LARGE
HUGE = BUDGET // 8 + 100  # larger than the budget: goes straight to disk

ABSENT = "absent"


def filled(number: float, size: int) -> Any:
    """An array; of some numbers a value tree with the array in it."""
    array = np.full(size, float(number))
    return [number, {"array": array}] if number % 7 == 6 else array


# How the chests are opened; see `other`.
OPTIONS: dict[str, Any] = {}

Model = dict[str, tuple[float, int]]


class Script:
    """A sequence of steps, each with what it makes of the model of a chest.

    A value is told by the number that fills it and by its size.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, Callable[[Chest, Path], object], dict[str, Any]]] = []

    def put(self, key: str, number: float, size: int) -> None:
        def act(chest: Chest, other: Path) -> None:
            chest[key] = filled(number, size)

        self.steps.append(("put", act, {key: (number, size)}))

    def delete(self, key: str) -> None:
        def act(chest: Chest, other: Path) -> None:
            del chest[key]

        self.steps.append(("delete", act, {key: ABSENT}))

    def call(self, name: str) -> None:
        self.steps.append((name, lambda chest, other: getattr(chest, name)(), {}))

    def spill(self, key: str) -> None:
        self.steps.append(("spill", lambda chest, other: chest.spill(key), {}))

    def get(self, key: str) -> None:
        self.steps.append(("get", lambda chest, other: chest[key], {}))

    def link(self, linked: Model) -> None:
        def act(chest: Chest, other: Path) -> None:
            with arraychest.open(other, "r") as source:
                chest.update(source)

        self.steps.append(("link", act, dict(linked)))


OTHER: Model = {
    "linked large": (901.0, LARGE),
    "linked small": (902.0, SMALL),
    "L2": (903.0, LARGE),
}


def script() -> Script:
    s = Script()
    for n in range(8):
        s.put(f"s{n}", 100 + n, SMALL)
    for n in range(4):
        s.put(f"L{n}", 200 + n, LARGE)
    s.call("flush")
    for n in range(3):
        s.put(f"s{n}", 300 + n, SMALL + n)
    s.put("L0", 310, LARGE + 7)
    s.delete("s3")
    s.delete("L1")
    s.get("L3")
    s.get("s7")
    s.call("flush")
    s.put("big", 320, HUGE)
    s.put("L3", 330, LARGE)
    s.put("L1", 340, LARGE)
    s.link(OTHER)
    s.call("flush")
    s.put("big", 350, HUGE + 3)
    s.delete("L2")
    for n in range(4, 7):
        s.delete(f"s{n}")
    s.call("compact")
    s.put("s0", 360, SMALL)
    s.spill("s0")
    for n in range(9):
        s.put(f"m{n}", 400 + n, LARGE)
    s.put("s1", 370, SMALL)
    return s


STEPS = script().steps


@pytest.fixture(scope="module", params=[None, "lz4"], ids=["plain", "compressed"])
def other(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A chest whose values are linked; it decides whether all large values are compressed."""
    OPTIONS["compression"] = request.param
    path = tmp_path_factory.mktemp("other") / "chest"
    with arraychest.open(path, "w", **OPTIONS) as chest:
        for key, (number, size) in OTHER.items():
            chest[key] = filled(number, size)
    yield path
    OPTIONS.clear()


def work(path: Path, other: Path, say: Callable[[Any], object]) -> None:
    """The workload: opens, does every step and closes; tells each begin and each end."""
    chest = arraychest.open(path, "a", BUDGET, **OPTIONS)
    for number, (_, act, _) in enumerate(STEPS):
        say(("begin", number))
        act(chest, other)
        say(("end", number))
    say(("begin", len(STEPS)))
    chest.close()
    say(("end", len(STEPS)))


def possible(begun: int, ended: set[int]) -> dict[str, set[Any]]:
    """What each key may have after a crash, when the steps up to `begun` had begun."""
    may: dict[str, set[Any]] = {}
    state: dict[str, Any] = {}
    for number in range(min(begun + 1, len(STEPS))):
        name, _, changes = STEPS[number]
        for key, value in changes.items():
            may.setdefault(key, {ABSENT}).add(value)
            if number in ended:
                state[key] = value
        if name in ("flush", "compact") and number in ended:
            may = {key: {value} for key, value in state.items()}
    if len(STEPS) in ended:
        may = {key: {value} for key, value in state.items()}
    return may


def array_in(value: Any) -> np.ndarray:
    """The array that `filled` made, or that is in the tree that it made."""
    if type(value) is not list:
        return np.asarray(value)
    number, inner = value
    array = np.asarray(inner["array"])
    assert number == array[0]
    return array


def found_in(chest: Any) -> Iterator[tuple[str, Any]]:
    for key in chest:
        array = array_in(chest[key])
        assert array.ndim == 1, key
        assert array.dtype == np.float64, key
        assert array.size, key
        assert (array == array[0]).all(), f"{key}: a mixture"
        yield key, (float(array[0]), array.size)


def check_content(chest: Chest, may: dict[str, set[Any]]) -> None:
    found = dict(found_in(chest))
    assert len(chest) == len(found)
    for key, values in may.items():
        assert found.get(key, ABSENT) in values, f"{key}: {found.get(key, ABSENT)} not in {values}"
    assert found.keys() <= may.keys()


def orphans(path: Path) -> list[str]:
    """Files in a chest's folder that its catalog does not name."""
    with sqlite3.connect(path / "catalog.sqlite") as catalog:
        own = {row[0] for row in catalog.execute("SELECT gen FROM entry WHERE pack IS NULL")}
        packs = {row[0] for row in catalog.execute("SELECT id FROM pack")}
        used = {row[0] for row in catalog.execute("SELECT pack FROM entry WHERE pack NOT NULL")}
    catalog.close()
    assert used <= packs
    left = []
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_dir() or len(relative.parts) == 1:
            continue
        if relative.parts[0] == "data":
            known = int(file.stem.rpartition("-")[2], 16) in own
        else:
            known = relative.parts[0] == "packs" and int(file.stem, 16) in packs
        if not known:
            left.append(str(relative))
    return left


def check_usable(path: Path) -> None:
    """Whether a chest takes, keeps, deletes and compacts as any other."""
    with arraychest.open(path, "a", BUDGET, **OPTIONS) as chest:
        before = dict(found_in(chest))
        chest["after large"] = filled(1, LARGE)
        chest["after small"] = filled(2, SMALL)
        chest.flush()
        for key in ("s0", "L0"):
            chest[key] = filled(3, SMALL)
        chest.compact()
        after = dict(found_in(chest))
    assert after == {
        **before,
        "after large": (1.0, LARGE),
        "after small": (2.0, SMALL),
        "s0": (3.0, SMALL),
        "L0": (3.0, SMALL),
    }
    audit(str(path))
    with arraychest.open(path, "a", BUDGET, **OPTIONS) as chest:
        assert dict(found_in(chest)) == after
        chest.clear()
    with arraychest.open(path, "r") as chest:
        assert list(chest) == []


def check_after(path: Path, told: list[Any]) -> None:
    if not (path / "catalog.sqlite").exists():
        assert not any(what == "end" for what, _ in told)
        return
    begun = max((number for what, number in told if what == "begin"), default=-1)
    ended = {number for what, number in told if what == "end"}
    may = possible(begun, ended)
    try:
        with arraychest.open(path, "r") as chest:
            check_content(chest, may)
    except arraychest.ChestFormatError:
        assert begun < 0  # died while the chest was being made
    with arraychest.open(path, "a", BUDGET, **OPTIONS) as chest:
        check_content(chest, may)
    assert orphans(path) == []
    check_usable(path)


def count_operations(path: Path, other: Path) -> int:
    countdown = Countdown(0)
    with injected(countdown):
        work(path, other, lambda thing: None)
    return countdown.count


def crash_at(number: int, path: Path, other: Path, *, after: bool = False) -> bool:
    """Run the workload in a child that dies at an operation; False if it never came."""
    countdown = Countdown(number, die, after=after)

    def child(say: Say) -> str:
        with injected(countdown):
            work(path, other, say)
        return "survived"

    outcome = in_child(child)
    assert outcome.error is None, outcome.error
    check_after(path, outcome.said)
    return outcome.result != "survived"


def sampled(total: int, count: int) -> list[int]:
    return sorted({1 + round(step * (total - 1) / (count - 1)) for step in range(count)})


def test_the_workload_without_a_crash_leaves_what_the_model_says(tmp_path, other):
    told: list[Any] = []
    work(tmp_path / "chest", other, told.append)
    check_after(tmp_path / "chest", told)


@pytest.mark.slow
def test_a_crash_before_a_sampled_file_operation_leaves_old_values_or_new_ones(tmp_path, other):
    total = count_operations(tmp_path / "counted", other)
    assert total > 150
    for number in sampled(total, 15):
        crash_at(number, tmp_path / f"{number}", other)


@pytest.mark.stress
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_every_file_operation_leaves_old_values_or_new_ones(tmp_path, other, after):
    total = count_operations(tmp_path / "counted", other)
    number = 0
    crashed = True
    # Threads make the number of operations vary a little: go on until none came.
    while crashed or number < total:
        number += 1
        assert number < 4 * total
        crashed = crash_at(number, tmp_path / f"{number}", other, after=after)


@pytest.mark.slow
def test_a_crash_during_recovery_loses_nothing(tmp_path, other):
    path = tmp_path / "chest"
    total = count_operations(tmp_path / "counted", other)
    countdown = Countdown(total * 2 // 3, die)

    def first(say: Say) -> None:
        with injected(countdown):
            work(path, other, say)

    told = in_child(first).said
    for number in range(1, 200):

        def again(say: Say, number: int = number) -> bool:
            countdown = Countdown(number, die)
            with injected(countdown):
                arraychest.open(path, "a", BUDGET, **OPTIONS).close()
            return True

        if in_child(again).result:
            break
    else:
        pytest.fail("opening never came to an end")
    check_after(path, told)


@pytest.mark.slow
def test_a_crash_while_a_chest_is_emptied_leaves_a_chest_that_opens(tmp_path):
    for number in range(1, 200):
        path = tmp_path / f"{number}"
        with arraychest.open(path) as chest:
            chest["large"], chest["small"] = filled(1, LARGE), filled(2, SMALL)

        def child(say: Say, path: Path = path, number: int = number) -> bool:
            with injected(Countdown(number, die)):
                arraychest.open(path, "w").close()
            return True

        done = in_child(child).result
        with arraychest.open(path) as chest:
            found = dict(found_in(chest))
            assert found in ({}, {"large": (1.0, LARGE), "small": (2.0, SMALL)})
        assert orphans(path) == []
        if done:
            break
    else:
        pytest.fail("opening never came to an end")


def test_a_private_folder_whose_owner_crashed_is_removed_by_the_next_temporary_chest(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def child(say: Say) -> None:
        chest = Chest(available_memory=BUDGET)
        chest["a"] = filled(1, LARGE)
        chest.spill("a")
        say(chest.path)
        die()

    (left,) = in_child(child).said
    assert Path(left).is_dir()
    with Chest() as chest:
        chest["a"] = filled(1, LARGE)
        chest.spill("a")
        assert not Path(left).exists()
    assert os.listdir(tmp_path) == []


# --- KeyboardInterrupt ---------------------------------------------------------------------


def interrupted_work(path: Path, other: Path, countdown: Countdown) -> None:
    """The workload, interrupted once; then the same chest object goes on.

    A step that was interrupted, and each value that was not flushed by then, is old or new.
    """
    # What failed in a writer is told at a later put or flush, once.
    expected = (KeyboardInterrupt, arraychest.SpillError)
    chest = None
    with injected(countdown):
        while chest is None:
            try:
                chest = arraychest.open(path, "a", BUDGET, **OPTIONS)
            except expected:
                assert countdown.struck
        state: dict[str, set[Any]] = {}
        for name, act, changes in STEPS:
            failed = False
            for _ in range(3):
                try:
                    act(chest, other)
                    break
                except expected as error:
                    assert countdown.struck, error
                    failed = True
                except KeyError:
                    # A delete that was interrupted behind its effect.
                    assert failed
                    assert name == "delete"
                    break
            else:
                pytest.fail(f"{name} failed three times")
            state.update({key: {value} for key, value in changes.items()})
            try:
                check_content(chest, state)
            except KeyboardInterrupt:
                check_content(chest, state)
        for _ in range(3):
            try:
                chest.close()
                break
            except expected:
                assert countdown.struck
        assert chest.closed
    with arraychest.open(path, "r") as chest:
        check_content(chest, state)
    with arraychest.open(path, "a", BUDGET, **OPTIONS) as chest:
        check_content(chest, state)
    assert orphans(path) == []
    check_usable(path)


def interrupt_at(number: int, path: Path, other: Path, after: bool, where: str) -> bool:
    def chosen(name: str, args: Any) -> bool:
        in_main = threading.current_thread() is threading.main_thread()
        return in_main == (where == "main")

    countdown = Countdown(number, raising(KeyboardInterrupt), after=after, only=chosen)

    def child(say: Say) -> bool:
        try:
            interrupted_work(path, other, countdown)
        finally:
            say((countdown.struck, countdown.names[number - 1 : number]))
        return countdown.struck

    outcome = in_child(child, seconds=30)
    assert outcome.error is None, f"at operation {number} {outcome.said}: {outcome.error}"
    assert not outcome.signal
    return outcome.result


def test_an_interrupted_read_of_the_catalog_keeps_no_old_snapshot(tmp_path):
    def reads_a_pack(name: str, args: Any) -> bool:
        return name == "sql SELECT" and "WHERE pack" in args[0]

    countdown = Countdown(1, raising(KeyboardInterrupt), after=True, only=reads_a_pack)
    with injected(countdown), arraychest.open(tmp_path / "chest", "a", BUDGET) as chest:
        for number in range(40):
            chest[number] = filled(number, SMALL)
        chest.flush()
        del chest[0]
        with pytest.raises(KeyboardInterrupt) as caught:
            chest.compact()
        with arraychest.open(tmp_path / "chest", "a", BUDGET) as other:
            other[1] = filled(-1, SMALL)
        assert chest[1][0] == -1
        del caught  # whose frames held the statement
        chest.compact()
        assert [chest[number][0] for number in range(2, 40)] == list(range(2, 40))
        assert chest.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("where", ["main", "writer"])
def test_an_interrupt_at_a_sampled_file_operation_leaves_the_chest_working(
    tmp_path, other, where, after
):
    for number in range(1 + after, 600, 43):
        if not interrupt_at(number, tmp_path / f"{number}", other, after, where):
            break
    else:
        pytest.fail("the workload never came to an end")


@pytest.mark.stress
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("where", ["main", "writer"])
def test_an_interrupt_at_every_file_operation_leaves_the_chest_working(
    tmp_path, other, where, after
):
    for number in range(1, 1000):
        if not interrupt_at(number, tmp_path / f"{number}", other, after, where):
            break
    else:
        pytest.fail("the workload never came to an end")


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
def test_an_error_at_any_sampled_file_operation_loses_nothing(tmp_path, other, number):
    """As with an interrupt, but the system refuses, in whichever thread."""
    for at in range(1, 600, 31):

        def child(say: Say, at: int = at) -> bool:
            countdown = Countdown(at, raising(OSError(number, os.strerror(number))))
            sql = Countdown(0)

            def action(name: str, args: Any, call: Any) -> Any:
                # SQLite has its own words for it: see test_faults.
                return (sql if name.startswith("sql") else countdown)(name, args, call)

            try:
                faulty_work(tmp_path / f"{at}", other, action, countdown)
            finally:
                say((countdown.struck, countdown.names[at - 1 : at]))
            return countdown.struck

        outcome = in_child(child, seconds=30)
        assert outcome.error is None, f"at operation {at} {outcome.said}: {outcome.error}"
        if not outcome.result:
            break
    else:
        pytest.fail("the workload never came to an end")


def faulty_work(path: Path, other: Path, action: Any, countdown: Countdown) -> None:
    chest = None
    state: dict[str, set[Any]] = {}
    with injected(action):
        while chest is None:
            try:
                chest = arraychest.open(path, "a", BUDGET, **OPTIONS)
            except OSError:
                assert countdown.struck
        for name, act, changes in STEPS:
            for _ in range(3):
                try:
                    act(chest, other)
                    break
                except OSError:
                    assert countdown.struck
            else:
                pytest.fail(f"{name} failed three times")
            state.update({key: {value} for key, value in changes.items()})
            try:
                check_content(chest, state)
            except OSError:
                assert countdown.struck
                check_content(chest, state)
        for _ in range(3):
            try:
                chest.close()
                break
            except OSError:
                assert countdown.struck
        assert chest.closed
    with arraychest.open(path, "a", BUDGET, **OPTIONS) as chest:
        check_content(chest, state)
    assert orphans(path) == []
    check_usable(path)
