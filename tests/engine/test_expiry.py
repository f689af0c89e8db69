"""Values that are good for a time: afterwards their keys are absent, everywhere."""

from __future__ import annotations

import datetime as dt
import os
import time
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import AbsentKeyError, Chest
from arraychest.engine import expiry, session
from tests.support import audit, run_python

SIZES = {"packed": 10, "file": 20_000}


class Clock:
    """The time of day, which a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    import arraychest.catalog.catalog
    import arraychest.chest
    import arraychest.memoize.cached

    for module in (
        session, expiry, arraychest.chest, arraychest.catalog.catalog, arraychest.memoize.cached
    ):  # fmt: skip
        if hasattr(module, "time"):
            monkeypatch.setattr(module, "time", made)
    return made


def is_absent(chest: Any, key: Any, others: list[Any]) -> None:
    assert key not in chest
    assert list(chest) == others
    assert list(reversed(chest)) == others[::-1]
    assert len(chest) == len(others)
    assert [k for k, _ in chest.items()] == others
    assert chest.get(key) is None
    with pytest.raises(AbsentKeyError):
        chest[key]
    with pytest.raises(AbsentKeyError):
        chest.entry(key)
    with pytest.raises(AbsentKeyError):
        chest.load(key)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("state", ["in RAM", "flushed", "read", "reopened"])
@pytest.mark.parametrize("named", [False, True])
def test_what_has_expired_is_absent(clock, path, make_chest, size, state, named):
    if state == "reopened" and not named:
        pytest.skip("a temporary chest is not reopened")
    options = {"path": path} if named else {}
    chest = make_chest(**options)
    chest["stays"] = np.ones(size)
    chest.put("goes", np.zeros(size), expires_after=100)
    chest["last"] = np.ones(3)
    if state != "in RAM":
        chest.flush()
    if state == "read":
        chest["goes"], chest["goes"]
    if state == "reopened":
        chest.close()
        chest = make_chest(**options)
    assert "goes" in chest
    assert chest["goes"].size == size
    assert list(chest) == ["stays", "goes", "last"]
    clock.ahead = 101
    is_absent(chest, "goes", ["stays", "last"])
    chest.flush()
    chest["goes"] = np.ones(2)
    assert list(chest) == ["stays", "last", "goes"]
    clock.ahead = 10_000
    assert chest["goes"].size == 2
    chest.close()
    if named:
        audit(path)
        with Chest(path) as chest:
            assert list(chest) == ["stays", "last", "goes"]
            assert chest.verify().ok


def test_its_room_is_given_back(clock, path):
    with Chest(path) as chest:
        chest.put("x", np.zeros(100_000), expires_after=5)
        chest.flush()
        file = chest.key_to_filename("x")
        clock.ahead = 6
        assert "x" not in chest
        chest.flush()
        with pytest.raises(FileNotFoundError):
            open(file).close()
        rows = chest._engine.session.open_store().catalog.database.read("SELECT * FROM expiry")
        assert rows == []


def test_pop_and_popitem_and_setdefault(clock, make_chest):
    chest = make_chest()
    chest["a"] = np.zeros(1)
    chest.put("b", np.zeros(2), expires_after=5)
    clock.ahead = 6
    assert chest.pop("b", None) is None
    assert chest.popitem()[0] == "a"
    chest.put("c", np.zeros(3), expires_after=dt.timedelta(seconds=5))
    clock.ahead = 20
    assert chest.setdefault("c", np.ones(4)).size == 4


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_reader_hides_what_it_may_not_delete(clock, path, size):
    with Chest(path) as chest:
        chest["stays"] = np.zeros(size)
        chest.put("goes", np.zeros(size), expires_after=50)
        chest.flush()
        with Chest(path, mode="r") as reader:
            assert reader["goes"].size == size
            clock.ahead = 60
            is_absent(reader, "goes", ["stays"])
            chest["goes"] = np.ones(size)
            chest.flush()
            assert reader["goes"][0] == 1
            assert list(reader) == ["stays", "goes"]
    with Chest(path, mode="r") as reader:
        assert len(reader) == 2


def test_others_know_of_what_was_put_and_touched(clock, path):
    with Chest(path) as one, Chest(path) as other:
        one.put("x", np.zeros(10), expires_after=50)
        one["y"] = np.zeros(10)
        one.flush()
        assert other["x"].size == other["y"].size == 10
        one.touch("x", expires_after=200)
        one.touch("y", expires_after=30)
        clock.ahead = 60
        assert list(other) == ["x"]
        assert list(one) == ["x"]
        one.touch("x")
        clock.ahead = 100_000
        assert "x" in other
        assert "x" in one


def test_a_touch_of_what_is_in_ram_or_gone(clock, make_chest):
    chest = make_chest()
    chest["x"] = np.zeros(10)
    chest.touch("x", expires_after=10)
    with pytest.raises(AbsentKeyError):
        chest.touch("y", expires_after=10)
    with chest.transaction(), pytest.raises(RuntimeError, match="transaction"):
        chest.touch("x")
    clock.ahead = 11
    with pytest.raises(AbsentKeyError):
        chest.touch("x", expires_after=10)
    assert not len(chest)


def test_what_is_overwritten_does_not_expire(clock, path):
    with Chest(path) as chest:
        for size in SIZES.values():
            for first in (lambda: None, chest.flush):
                chest.put(size, np.zeros(size), expires_after=5)
                first()
                chest[size] = np.ones(size)
                clock.ahead += 10
                assert chest[size][0] == 1
                chest.flush()
                assert chest[size][0] == 1


def test_in_a_transaction(clock, path):
    with Chest(path) as chest:
        with chest.transaction():
            chest.put("x", np.zeros(10), expires_after=5)
            chest.put("y", np.zeros(100_000), expires_after=5)
            chest["z"] = np.zeros(5)
        assert list(chest) == ["x", "y", "z"]
        clock.ahead = 6
        assert list(chest) == ["z"]


def test_results_of_cached_functions_expire_as_any_others(clock, path):
    with Chest(path) as chest:

        @chest.cache(expires_after=50)
        def ramp(n: int) -> Any:
            return np.arange(float(n))

        ramp(5)
        assert len(chest) == 1
        clock.ahead = 60
        assert not ramp.check(5)
        assert len(chest) == 0
        ramp(5)
        assert len(chest) == 1


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(wrong):
    with Chest() as chest:
        with pytest.raises(ValueError, match="expected expires_after to be positive"):
            chest.put("x", np.zeros(3), expires_after=wrong)
        assert not len(chest)


def test_another_process_sees_it_go_in_time(path):
    with Chest(path) as chest:
        chest.put("x", np.zeros(10), expires_after=0.5)
        chest.flush()
        run_python(
            "import sys, time, arraychest\n"
            "with arraychest.open(sys.argv[1]) as chest:\n"
            "    until = time.monotonic() + 20\n"
            "    while 'x' in chest:\n"
            "        assert time.monotonic() < until\n"
            "        time.sleep(0.02)\n"
            "    assert not len(chest)",
            path,
        )
        assert "x" not in chest


def test_a_new_catalog_forgets_when_values_expire(path, clock):
    with Chest(path) as chest:
        chest.put("x", np.zeros(10), expires_after=5)
    os.unlink(f"{path}/catalog.sqlite")
    assert not arraychest.repair(path).ok
    clock.ahead = 10
    with Chest(path, mode="r") as chest:
        assert "x" in chest


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_copy_is_good_as_long_as_the_value(path, tmp_path, clock, size, stored):
    with Chest(path) as chest, Chest(tmp_path / "a") as one, Chest(tmp_path / "b") as other:
        chest.put("x", np.zeros(size), expires_after=50)
        chest["stays"] = np.zeros(size)
        if stored:
            chest.flush()
        one.update(chest)
        other.copy_from(chest, ["x", "stays"])
        for each in (one, other):
            assert list(each) == ["x", "stays"]
        clock.ahead = 60
        for each in (chest, one, other):
            is_absent(each, "x", ["stays"])
