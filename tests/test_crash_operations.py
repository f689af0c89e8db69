"""A process that dies at any file operation of a change leaves all of the change, or nothing.

As `test_crash`, for what is one step however much it changes: transactions, updates, edits,
creations, moves of values that are written in place, compaction, sweeps; and beside a second
writer, which lives on.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import arraychest
from arraychest import Chest
from arraychest.platform.leases import HAS_LEASES
from tests.faults import Countdown, Say, die, in_child, injected
from tests.support import audit
from tests.test_crash import (
    LARGE,
    OPTIONS,
    SMALL,
    check_usable,
    filled,
    found_in,
    orphans,
    sampled,
)

BASE = {
    **{f"s{n}": (100.0 + n, SMALL + n) for n in range(6)},
    **{f"L{n}": (200.0 + n, LARGE + n) for n in range(4)},
}
THEIRS = {"t0": (300.0, SMALL), "T0": (301.0, LARGE), "s0": (302.0, SMALL), "L0": (303.0, LARGE)}

Model = dict[str, tuple[float, int]]
Change = dict[str, tuple[float, int] | None]


class Step(NamedTuple):
    """What is done as one step, and what it changes; None: the key goes."""

    act: Callable[[Chest, Path], object]
    change: Change


class Operation(NamedTuple):
    """Steps, and how the chest is opened for them."""

    steps: list[Step]
    options: dict[str, Any] = {}


def after(model: Model, change: Change) -> Model:
    return {key: value for key, value in {**model, **change}.items() if value is not None}


def put_all(chest: Any, change: Change) -> None:
    for key, value in change.items():
        if value is None:
            del chest[key]
        else:
            chest[key] = filled(*value)


MIXED: Change = {
    "L0": (400.0, LARGE), "new large": (401.0, LARGE), "s0": (402.0, SMALL), "L1": None,
    "new small": (403.0, SMALL), "s1": None, "s2": (404.0, LARGE), "L2": (405.0, SMALL),
}  # fmt: skip


def transaction(chest: Chest, other: Path) -> None:
    with chest.transaction():
        put_all(chest, MIXED)
        # Written, and not needed after all.
        chest["gone again"] = filled(1, LARGE)
        del chest["gone again"]
        chest["L0"] = filled(1, LARGE)
        chest["L0"] = filled(400, LARGE)


def failed_transaction(chest: Chest, other: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), chest.transaction():
        put_all(chest, MIXED)
        raise ZeroDivisionError


PUTS: Change = {key: value for key, value in MIXED.items() if value is not None}


def update(chest: Chest, other: Path) -> None:
    chest.update({key: filled(*value) for key, value in PUTS.items() if value is not None})


def link(chest: Chest, other: Path) -> None:
    with arraychest.open(other, "r") as source:
        chest.update(source)


def edit(key: str, number: float) -> Callable[[Chest, Path], None]:
    def act(chest: Chest, other: Path) -> None:
        with chest.edit(key) as array:
            array[:] = number

    return act


def failed_edit(key: str) -> Callable[[Chest, Path], None]:
    def act(chest: Chest, other: Path) -> None:
        with contextlib.suppress(ZeroDivisionError), chest.edit(key) as array:
            array[:] = 1
            raise ZeroDivisionError

    return act


def edit_two(chest: Chest, other: Path) -> None:
    with chest.transaction():
        edit("L0", 1)(chest, other)
        edit("s0", 1)(chest, other)
        edit("L0", 500)(chest, other)
        edit("s0", 501)(chest, other)


def create(key: str, number: float, size: int) -> Callable[[Chest, Path], None]:
    def act(chest: Chest, other: Path) -> None:
        with chest.create(key, size) as array:
            array[:] = number

    return act


def create_discarded(chest: Chest, other: Path) -> None:
    made = chest.create("L0", LARGE, fill=1)
    made.discard()
    with contextlib.suppress(ZeroDivisionError), chest.create("new", LARGE) as array:
        array[:] = 1
        raise ZeroDivisionError


def write_in_place(key: str, number: float) -> Callable[[Chest, Path], None]:
    def act(chest: Chest, other: Path) -> None:
        with chest.edit(key, in_place=True) as array:
            array[:] = number

    return act


def handle(chest: Chest, other: Path) -> None:
    chest["new"] = filled(600, LARGE)
    chest.handle("new").array()


def compact(chest: Chest, other: Path) -> None:
    chest.compact()


def flush(chest: Chest, other: Path) -> None:
    chest.flush()


def nothing(chest: Chest, other: Path) -> None:
    pass


OPERATIONS = {
    "transaction": Operation([Step(transaction, MIXED)]),
    "transaction that fails": Operation([Step(failed_transaction, {})]),
    "update": Operation([Step(update, PUTS)]),
    "update from a chest": Operation([Step(link, dict(THEIRS))]),
    "edit": Operation([
        Step(edit("s0", 500), {"s0": (500.0, SMALL)}),
        Step(edit("L0", 501), {"L0": (501.0, LARGE)}),
        Step(failed_edit("L1"), {}),
        Step(failed_edit("s1"), {}),
    ]),
    "edits in a transaction": Operation([
        Step(edit_two, {"L0": (500.0, LARGE), "s0": (501.0, SMALL)}),
    ]),
    "create": Operation([
        Step(create("new", 510, LARGE), {"new": (510.0, LARGE)}),
        Step(create("L0", 511, LARGE), {"L0": (511.0, LARGE)}),
        Step(create("s0", 512, SMALL), {"s0": (512.0, SMALL)}),
    ]),
    "create and discard": Operation([Step(create_discarded, {})]),
    "write in place": Operation(
        [
            Step(link, dict(THEIRS)),
            Step(write_in_place("s0", 520), {"s0": (520.0, SMALL)}),  # packed
            Step(write_in_place("L1", 521), {"L1": (521.0, LARGE + 1)}),
            Step(write_in_place("L0", 522), {"L0": (522.0, LARGE)}),  # shared with the other chest
            Step(flush, {}),
        ],
    ),
    "handle": Operation([Step(handle, {"new": (600.0, LARGE)})]),
    "compact": Operation([Step(compact, {}), Step(compact, {})]),
    "sweep": Operation([Step(nothing, {})]),
}  # fmt: skip

# Those that begin with a folder in which others have died.
_AFTER_CRASHES = ("sweep", "compact", "create and discard")


@pytest.fixture(scope="module", params=[None, "lz4"], ids=["plain", "compressed"])
def originals(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A chest with holes in its pack; the same after three crashes; and another chest.

    In one half of the tests all large values are compressed.
    """
    OPTIONS["compression"] = request.param
    root = tmp_path_factory.mktemp("originals")
    with arraychest.open(root / "base", "w", **OPTIONS) as chest:
        for key, value in BASE.items():
            chest[key] = filled(*value)
            chest["hole", key] = filled(1, SMALL)
        chest.flush()
        for key in BASE:
            del chest["hole", key]
    with arraychest.open(root / "other", "w", **OPTIONS) as chest:
        put_all(chest, dict(THEIRS))
    shutil.copytree(root / "base", root / "crashed")

    def dies_writing(say: Say) -> None:
        with arraychest.open(root / "crashed", **OPTIONS) as chest, chest.transaction():
            chest["L0"], chest["s0"] = filled(1, LARGE), filled(1, SMALL)
            chest.create("draft", LARGE)
            die()

    keeps_spares = OPTIONS["compression"] is None and HAS_LEASES

    def dies_removing(say: Say) -> None:
        def action(name: str, args: Any, call: Callable[[], Any]) -> Any:
            if name == "rename":
                die()
            return call()

        with injected(action), arraychest.open(root / "crashed", **OPTIONS) as chest:
            chest["L0"] = filled(BASE["L0"][0], BASE["L0"][1])
            chest.flush()
            die()  # what is compressed is not renamed

    def dies_with_spares(say: Say) -> None:
        with arraychest.open(root / "crashed", **OPTIONS) as chest:
            chest["L1"] = filled(BASE["L1"][0], BASE["L1"][1])
            chest.flush()
            while keeps_spares and not list((root / "crashed" / "spare").rglob("*.npy")):
                pass
            die()

    deaths = [dies_writing, dies_removing, dies_with_spares]
    if not keeps_spares:
        deaths.reverse()  # nothing of a compressed value is kept as a spare, to be left behind
    for dies in deaths:
        before = orphans(root / "crashed")
        assert in_child(dies).signal
        if dies is dies_writing:
            assert len(orphans(root / "crashed")) > len(before)
    assert orphans(root / "crashed")
    yield root
    OPTIONS.clear()


def count_operations(operation: Operation, root: Path, other: Path) -> int:
    countdown = Countdown(0)
    with injected(countdown):
        perform(operation, root, other, lambda thing: None)
    return countdown.count


def perform(operation: Operation, path: Path, other: Path, say: Callable[[Any], object]) -> None:
    with arraychest.open(path, "a", **OPTIONS, **operation.options) as chest:
        for step in operation.steps:
            say("begin")
            step.act(chest, other)
            if step is operation.steps[-1] and step.act is handle:
                chest.flush()
            say("end")


def may_be(operation: Operation, said: list[str]) -> list[Model]:
    """What the chest may hold after a crash: as the steps that came to an end left it, or as one
    more does.
    """
    models = [dict(BASE)]
    for step in operation.steps:
        models.append(after(models[-1], step.change))
    return models[said.count("end") : said.count("begin") + 1]


def unended_sessions(path: Path) -> int:
    catalog = sqlite3.connect(path / "catalog.sqlite")
    try:
        return int(catalog.execute("SELECT count(*) FROM session").fetchone()[0])
    finally:
        catalog.close()


def check_after(path: Path, models: list[Model]) -> None:
    with arraychest.open(path, "r") as chest:
        first = dict(found_in(chest))
        assert first in models
    with arraychest.open(path, "a") as chest:
        assert dict(found_in(chest)) == first
    # The audit tells an orphan from a living writer's file by the sessions that have not ended.
    assert unended_sessions(path) == 0
    assert orphans(path) == []
    audit(str(path))
    check_usable(path)


def copied(originals: Path, name: str, to: Path) -> tuple[Path, Path]:
    """Fresh copies of the chest to be changed, and of the other one, whose files are linked."""
    kind = "crashed" if name in _AFTER_CRASHES else "base"
    # On a slow machine the one that died had time to publish its page.
    shutil.copytree(originals / kind, to / "chest", ignore=shutil.ignore_patterns("live"))
    shutil.copytree(originals / "other", to / "other")
    return to / "chest", to / "other"


def crash_at(number: int, name: str, originals: Path, to: Path, *, late: bool) -> bool:
    """Change a chest in a child that dies at an operation; False if it never came."""
    operation = OPERATIONS[name]
    path, other = copied(originals, name, to)

    def child(say: Say) -> str:
        with injected(Countdown(number, die, after=late)):
            perform(operation, path, other, say)
        return "survived"

    outcome = in_child(child)
    assert outcome.error is None, outcome.error
    check_after(path, may_be(operation, outcome.said))
    with arraychest.open(other, "r") as chest:
        assert dict(found_in(chest)) == THEIRS
    audit(str(other))
    shutil.rmtree(to)
    return outcome.result != "survived"


def everywhere(
    crash: Callable[..., bool], name: str, originals: Path, to: Path, *, late: bool
) -> None:
    """Crash at every operation.  Threads make their number vary a little: until none came."""
    total = count_operations(OPERATIONS[name], *copied(originals, name, to / "counted"))
    number, kills, crashed = 0, 0, True
    while crashed or number < total:
        number += 1
        assert number < 4 * total
        crashed = crash(number, name, originals, to / f"{number}", late=late)
        kills += crashed
    print(f"{name}: {kills} kills survived")


@pytest.fixture(params=[False, True], ids=["before", "after"])
def late(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the child dies behind the operation, instead of before it."""
    return request.param


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_at_a_sampled_file_operation_leaves_all_or_nothing(tmp_path, originals, name, late):
    total = count_operations(OPERATIONS[name], *copied(originals, name, tmp_path / "counted"))
    for number in sampled(total, 5)[late::2]:
        crash_at(number, name, originals, tmp_path / f"{number}", late=late)


@pytest.mark.stress
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_at_every_file_operation_leaves_all_or_nothing(tmp_path, originals, name, late):
    everywhere(crash_at, name, originals, tmp_path, late=late)


# --- beside a writer that lives on -----------------------------------------------------------


BESIDE = ["transaction", "update from a chest", "edit", "create", "write in place", "compact"]


def crash_beside(number: int, name: str, originals: Path, to: Path, *, late: bool) -> bool:
    """As `crash_at`, while another process has the chest open, and goes on with it."""
    operation = OPERATIONS[name]
    path, other = copied(originals, name, to)

    def victim(say: Say) -> None:
        with injected(Countdown(number, die, after=late)):
            perform(operation, path, other, say)
        say("survived")

    def survivor(say: Say) -> bool:
        # The victim is forked first: it must not inherit a chest, which it could only read.
        go, said = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.read(go[0], 1)
            try:
                victim(Say(said[1]))
            finally:
                os._exit(0)
        os.close(said[1])
        with arraychest.open(path) as chest:
            chest["ours, before"] = filled(1, LARGE)
            chest["ours, small"] = filled(2, SMALL)
            chest.flush()
            os.write(go[1], b".")
            with open(said[0], "rb") as pipe:
                told = [str(thing) for thing in _messages(pipe.read())]
            os.waitpid(pid, 0)
            ours = {"ours, before": (1.0, LARGE), "ours, small": (2.0, SMALL)}
            models = [{**model, **ours} for model in may_be(operation, told)]
            # Seen at once, without opening anew; and the dead keep nobody out.
            found = dict(found_in(chest))
            assert found in models, [sorted(found.items() ^ model.items()) for model in models]
            for key in ("s0", "L0", "new"):
                with chest.lock(key):
                    pass
            with chest.edit("L0") as array:
                array[:] = 3
            chest["s0"] = filled(4, SMALL)
            chest.flush()
            chest.compact()
            found.update({"L0": (3.0, found["L0"][1]), "s0": (4.0, SMALL)})
            assert dict(found_in(chest)) == found
            # What the dead one left is swept by whoever opens, while we live.
            with arraychest.open(path) as third:
                assert dict(found_in(third)) == found
            assert dict(found_in(chest)) == found
        check_after(path, [found])
        return "survived" in told

    outcome = in_child(survivor)
    assert outcome.error is None, outcome.error
    assert not outcome.signal
    shutil.rmtree(to)
    return not outcome.result


def _messages(data: bytes) -> Iterator[Any]:
    while data:
        size = int.from_bytes(data[:4], "little")
        yield pickle.loads(data[4 : 4 + size])
        data = data[4 + size :]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", BESIDE)
def test_a_crash_beside_a_living_writer_leaves_all_or_nothing(tmp_path, originals, name, late):
    total = count_operations(OPERATIONS[name], *copied(originals, name, tmp_path / "counted"))
    for number in sampled(total, 7)[late::2]:
        crash_beside(number, name, originals, tmp_path / f"{number}", late=late)


@pytest.mark.stress
@pytest.mark.parametrize("name", BESIDE)
def test_a_crash_anywhere_beside_a_living_writer_leaves_all_or_nothing(
    tmp_path, originals, name, late
):
    everywhere(crash_beside, name, originals, tmp_path, late=late)
