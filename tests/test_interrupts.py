"""Ctrl-C within whatever changes or reads a chest, wherever CPython looks for signals there.

Each attempt is a child of its own with a fresh chest; in it the n-th place of an operation is
interrupted.  Then the chest goes on: each key has its old or its new value, of several that change
together all or none; later puts, a flush, another chest and a reopened one agree with what this one
says; `verify` finds nothing; and nothing hangs.
"""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import arraychest
from tests.faults import Say, in_child
from tests.interrupting import Place, interrupted
from tests.support import audit

SMALL, LARGE = 100, 20_000

# What is stored, and what is in RAM only, when an operation begins; numbers fill the arrays.
STORED = {"large 1": 1, "large 2": 2, "small 1": 3, "small 2": 4, "tree": 5, "blocks": 10}
IN_RAM = {"put large": 6, "put small": 7, "put tree": 8}
BEFORE = {**STORED, **IN_RAM}


def value(key: str, number: int) -> Any:
    array = np.full(LARGE if "large" in key else SMALL, number)
    return {"a": array, "b": [np.full(LARGE, number), "text"]} if "tree" in key else array


def number_of(chest: arraychest.Chest, key: str) -> int | None:
    found = chest.get(key)
    if found is None:
        return None
    arrays = [found["a"], found["b"][0]] if isinstance(found, dict) else [found]
    return sum({int(number) for array in arrays for number in np.unique(np.asarray(array))})


class Operation(NamedTuple):
    """What is done, what has changed then, and the chest's options.

    Attributes
    ----------
    call
        Does it.
    after
        The number of each key that it changes; None for one that it deletes.
    together
        Whether all of them change, or none.
    options
        Beside those that all chests have here.
    """

    call: Callable[[arraychest.Chest], object]
    after: dict[str, int | None] = {}
    together: bool = False
    options: dict[str, Any] = {}


def put(key: str, **options: Any) -> Operation:
    return Operation(
        lambda chest: chest.__setitem__(key, value(key, 50)), {key: 50}, options=options
    )


def get(key: str, **options: Any) -> Operation:
    return Operation(lambda chest: chest[key], options=options)


def delete(key: str) -> Operation:
    return Operation(lambda chest: chest.__delitem__(key), {key: None})


def transaction(chest: arraychest.Chest) -> None:
    with chest.transaction():
        chest["large 1"], chest["small 1"] = value("large 1", 50), value("small 1", 50)
        del chest["small 2"]


def edit(chest: arraychest.Chest) -> None:
    with chest.edit("large 1") as array:
        array[:] = 50


def create(chest: arraychest.Chest) -> None:
    with chest.create("large new", (LARGE,), "i8") as array:
        array[:] = 50


def cached(chest: arraychest.Chest) -> None:
    @chest.cache
    def computed(x: int) -> np.ndarray:
        return np.full(SMALL, x)

    assert computed(3)[0] == 3
    assert computed(3)[0] == 3


OPERATIONS: dict[str, Operation] = {
    "put a small new one": put("new"),
    "put a large new one": put("large new"),
    "put a tree": put("tree new"),
    "put over a small one in RAM": put("put small"),
    "put over a large one in RAM": put("put large"),
    "put over a stored small one": put("small 1"),
    "put over a stored large one": put("large 1"),
    "put over a stored tree": put("tree"),
    "put one larger than the budget": put("large new", available_memory=4 * LARGE),
    "put where room has to be made": put("large new", available_memory=26 * LARGE),
    "put in a chest with a quota": put(
        "large new", max_disk=10 * 8 * LARGE, available_memory=4 * LARGE
    ),
    "set a default": Operation(lambda chest: chest.setdefault("new", value("", 50)), {"new": 50}),
    "get a small one in RAM": get("put small"),
    "get a large one in RAM": get("put large"),
    "get a tree in RAM": get("put tree"),
    "get a stored small one": get("small 1"),
    "get a stored large one": get("large 1"),
    "get a stored tree": get("tree"),
    "get a compressed one": get("large 1", compression="lz4"),
    "get what is not there": Operation(lambda chest: chest.get("nothing")),
    "flush": Operation(lambda chest: chest.flush()),
    "spill a small one": Operation(lambda chest: chest.spill("put small")),
    "spill a large one": Operation(lambda chest: chest.spill("put large")),
    "delete one in RAM": delete("put small"),
    "delete a large one in RAM": delete("put large"),
    "delete a stored small one": delete("small 1"),
    "delete a stored large one": delete("large 1"),
    "delete and flush": Operation(
        lambda chest: (chest.__delitem__("large 1"), chest.flush()), {"large 1": None}
    ),
    "pop": Operation(lambda chest: chest.pop("small 1"), {"small 1": None}),
    "pop the last one": Operation(lambda chest: chest.popitem(), {"put tree": None}),
    "clear": Operation(lambda chest: chest.clear(), dict.fromkeys(BEFORE)),
    "transaction": Operation(
        transaction, {"large 1": 50, "small 1": 50, "small 2": None}, together=True
    ),
    "update": Operation(
        lambda chest: chest.update({"large 1": value("large 1", 50), "new": value("new", 50)}),
        {"large 1": 50, "new": 50},
        together=True,
    ),
    "edit": Operation(edit, {"large 1": 50}),
    "create": Operation(create, {"large new": 50}),
    "append": Operation(
        lambda chest: chest.append("blocks", np.full(LARGE, 40)), {"blocks": 50}
    ),
    "append to nothing": Operation(
        lambda chest: chest.append("large new", np.full(LARGE, 50)), {"large new": 50}
    ),
    "compact": Operation(lambda chest: chest.compact()),
    "close": Operation(lambda chest: chest.close()),
    "iterate": Operation(lambda chest: list(chest)),
    "iterate over values": Operation(lambda chest: list(chest.values())),
    "count and look": Operation(lambda chest: (len(chest), "small 1" in chest, repr(chest))),
    "a cached call": Operation(cached),
}  # fmt: skip


def prepared(path: Path, operation: Operation) -> arraychest.Chest:
    options = {"on_put": "copy", **operation.options}
    with arraychest.open(path, "w", **{**options, "available_memory": "64 MiB"}) as chest:
        chest.update({k: value(k, number) for k, number in STORED.items() if k != "blocks"})
        chest.append("blocks", np.full(LARGE, STORED["blocks"]))
        chest["hole"] = value("small", 9)
        chest.flush()
        del chest["hole"]
    chest = arraychest.open(path, "a", **options)
    for key, number in IN_RAM.items():
        chest[key] = value(key, number)
    return chest


def check(chest: arraychest.Chest, path: Path, operation: Operation) -> None:
    """Raise AssertionError where the chest is not as it should be, and close it."""
    after = operation.after
    if chest.closed:
        chest = arraychest.open(path)
    now = {key: number_of(chest, key) for key in {**BEFORE, **after}}
    for key, number in now.items():
        before = BEFORE.get(key)
        assert number in (before, after.get(key, before)), f"{key!r} is {number}"
    if operation.together:
        assert len({now[key] == number for key, number in after.items()}) == 1, f"a half: {now}"
    for key in ("later small", "later large", "large 2", "small 2", "put small", "new"):
        chest[key], now[key] = value(key, 60), 60
    chest.update({"in an update": value("small", 61)})
    now["in an update"] = 61
    with chest.transaction():
        chest["in a transaction"] = value("small", 62)
    now["in a transaction"] = 62
    with chest.edit("later large") as array:
        array[:] = 63
    now["later large"] = 63
    del chest["later small"]
    now["later small"] = None
    chest.flush()
    for key, number in now.items():
        assert number_of(chest, key) == number, f"afterwards {key!r} is not {number}"
    there = {key for key, number in now.items() if number is not None}
    # A cached function keeps what it returned under a key of its own.
    assert {key for key in chest if key in now} == there
    with arraychest.open(path, "r") as other:
        for key, number in now.items():
            assert number_of(other, key) == number, f"in another chest {key!r} is not {number}"
    chest.compact()
    chest.close()
    with arraychest.open(path) as again:
        for key, number in now.items():
            assert number_of(again, key) == number, f"reopened, {key!r} is not {number}"
        found = again.verify().findings
        assert not found, found
        again.compact()
    audit(str(path))


def attempt(path: Path, operation: Operation, at: int) -> list[Place]:
    """Interrupt an operation at a place; returns the places up to there."""

    def child(say: Say) -> list[Place]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Other packages' callbacks of the garbage collector: CPython itself drops what they raise.
        gc.callbacks.clear()
        chest = prepared(path, operation)
        places, told = interrupted(lambda: operation.call(chest), at)
        say(places)
        if at and len(places) >= at:
            assert told, "the interrupt was swallowed"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        check(chest, path, operation)
        return places

    outcome = in_child(child, seconds=10)
    places = [Place(*place) for place in outcome.said[0]] if outcome.said else []
    where = f"interrupted at place {at}, {places[-1] if places else 'which is not known'}"
    assert not outcome.signal, f"{where}: it ended by signal {outcome.signal}"
    assert outcome.error is None, f"{where}: {outcome.error}"
    return places


def chosen(places: list[Place], most: int | None) -> list[int]:
    """Numbers of places to try: all, or some, each instruction once and late ones as well."""
    if most is None:
        return list(range(1, len(places) + 1))
    last = {place: number for number, place in enumerate(places, 1)}
    return sorted(random.Random(len(places)).sample(sorted(last.values()), min(most, len(last))))


@pytest.mark.parametrize(
    "most",
    [
        2,
        pytest.param(6, marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.stress),
    ],
    ids=["few", "some", "all"],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_leaves_old_values_or_new_ones_and_a_chest_that_goes_on(tmp_path, name, most):
    operation = OPERATIONS[name]
    places = attempt(tmp_path / "0", operation, 0)
    # A get of what is in RAM calls nothing.
    assert places or name in ("get a small one in RAM", "get a large one in RAM")
    for at in chosen(places, most):
        attempt(tmp_path / str(at), operation, at)
