"""Several changes as one: seen together, or not at all."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arraychest
from arraychest import AbsentKeyError, Chest, ReadOnlyChestError, SpillError, ValueTypeError
from tests.faults import RESERVING, Say, die, in_child, injected
from tests.support import audit

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
SMALL = 40


def filled(number: float, size: int = SMALL) -> np.ndarray:
    return np.full(size, float(number))


@pytest.fixture(params=["named", "temporary"])
def chest(request: Any, path: str) -> Any:
    with Chest(path=path if request.param == "named" else None) as made:
        made["small"] = filled(1)
        made["large"] = filled(2, LARGE)
        made["gone"] = filled(3)
        yield made
    if request.param == "named":
        audit(path)


def contents(chest: Chest) -> dict[Any, float]:
    return {key: float(array[0]) for key, array in chest.items()}


BEFORE = {"small": 1, "large": 2, "gone": 3}


class TestInside:
    def test_a_thread_sees_its_own_changes_and_others_do_not(self, chest):
        seen = {}

        def look() -> None:
            seen.update(contents(chest))
            assert "new" not in chest
            assert len(chest) == 3

        with chest.transaction():
            chest["small"] = filled(10)
            chest["new"] = filled(11, LARGE)
            del chest["gone"]
            assert contents(chest) == {"small": 10, "large": 2, "new": 11}
            assert list(reversed(chest)) == ["new", "large", "small"]
            assert len(chest) == 3
            assert "gone" not in chest
            with pytest.raises(AbsentKeyError):
                chest["gone"]
            with pytest.raises(AbsentKeyError):
                chest.entry("gone")
            with pytest.raises(AbsentKeyError):
                del chest["gone"]
            assert chest.entry("small").shape == (SMALL,)
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert seen == BEFORE
        assert contents(chest) == {"small": 10, "large": 2, "new": 11}

    def test_every_way_to_change_belongs_to_it(self, chest):
        with chest.transaction():
            assert chest.pop("gone")[0] == 3
            assert chest.setdefault("small", filled(7))[0] == 1
            assert chest.setdefault("set", filled(8))[0] == 8
            chest.update({"updated": filled(9, LARGE)}, named=filled(10))
            assert chest.popitem()[0] == "named"
            chest.discard("nothing")
            with chest.edit("large") as array:
                array[0] = 20
            with chest.create("created", 3) as array:
                array[:] = 21
            with chest.transaction():
                chest["inner"] = filled(12)
        after = {"small": 1, "large": 20, "set": 8, "updated": 9, "created": 21, "inner": 12}
        assert contents(chest) == after

    def test_a_value_may_be_put_and_deleted_again_and_again(self, chest):
        with chest.transaction():
            for number in range(5):
                chest["x"] = filled(number, LARGE if number % 2 else SMALL)
                del chest["x"]
                chest["x"] = filled(number + 100, SMALL if number % 2 else LARGE)
            assert chest["x"][0] == 104
        assert contents(chest) == {**BEFORE, "x": 104}

    def test_many_small_values(self, chest, monkeypatch):
        monkeypatch.setattr("arraychest.engine.transaction.BATCH_VALUES", 7)
        with chest.transaction():
            for number in range(50):
                chest[number] = filled(number)
            for number in range(0, 50, 2):
                del chest[number]
            assert [chest[number][0] for number in range(1, 50, 2)] == list(range(1, 50, 2))
        assert contents(chest) == {**BEFORE, **{n: n for n in range(1, 50, 2)}}
        chest.compact()
        assert contents(chest) == {**BEFORE, **{n: n for n in range(1, 50, 2)}}

    def test_kinds_of_values(self, chest):
        values = {
            "scalar": np.float32(3),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "strided": np.arange(20.0)[::3],
            "zero": np.empty((0, 3)),
            "nought": np.array(5),
            "dates": np.array(["2020-01-01"], "M8[D]"),
        }
        with chest.transaction():
            chest.update(values)
            for key, value in values.items():
                assert (chest[key] == value).all()
                assert type(chest[key]) is type(value)
        for key, value in values.items():
            assert (chest[key] == value).all()
            assert type(chest[key]) is type(value)

    def test_an_array_that_is_handed_over_is_frozen_as_ever(self, chest):
        small, large = filled(1), filled(2, LARGE)
        with chest.transaction():
            chest["a"], chest["b"] = small, large
        assert not small.flags.writeable
        assert not large.flags.writeable


class TestNothing:
    def test_after_an_exception(self, chest):
        view = chest["large"]
        with pytest.raises(ZeroDivisionError), chest.transaction():
            chest["small"] = filled(10)
            chest["new"] = filled(11, LARGE)
            del chest["large"]
            raise ZeroDivisionError
        assert contents(chest) == BEFORE
        assert (view == 2).all()

    def test_after_a_value_that_cannot_be_stored(self, chest):
        chest.flush()
        with pytest.raises(ValueTypeError):
            chest.update([("a", filled(1)), ("b", object())])
        expected = (
            BEFORE if chest.path and not chest._engine.session.temporary else {**BEFORE, "a": 1}
        )
        assert contents(chest) == expected

    @pytest.mark.parametrize("name", ["pwritev", RESERVING, "open"])
    def test_when_the_disk_fails(self, chest, name):
        chest.flush()

        def action(call: str, args: Any, go: Any) -> Any:
            if call == name:
                raise OSError(5, "injected")
            return go()

        with injected(action), pytest.raises(SpillError), chest.transaction():
            chest["small"] = filled(10)
            chest["new"] = filled(11, LARGE)
        assert contents(chest) == BEFORE
        with chest.transaction():
            chest["new"] = filled(12, LARGE)
        assert contents(chest) == {**BEFORE, "new": 12}

    def test_when_the_commit_fails(self, chest, monkeypatch):
        chest.flush()
        catalog = chest._engine.session.open_store().catalog
        real = catalog.commit

        def fail(**changes: Any) -> None:
            raise OSError(28, "injected")

        monkeypatch.setattr(catalog, "commit", fail)
        with pytest.raises(SpillError), chest.transaction():
            chest["small"] = filled(10)
            chest["new"] = filled(11, LARGE)
            del chest["gone"]
        monkeypatch.setattr(catalog, "commit", real)
        assert contents(chest) == BEFORE


def test_a_chest_that_is_closed_in_between_commits_nothing(path):
    chest = Chest(path=path)
    chest["x"] = filled(1)
    with pytest.raises(arraychest.ClosedChestError), chest.transaction():
        chest["x"] = filled(2, LARGE)
        chest.close()
    with Chest(path=path) as chest:
        assert contents(chest) == {"x": 1}
    audit(path)


def test_a_reader_has_none(path):
    Chest(path=path).close()
    with (
        arraychest.open(path, "r") as chest,
        pytest.raises(ReadOnlyChestError),
        chest.transaction(),
    ):
        pass


def test_other_chests_see_all_of_it_or_nothing(path):
    with Chest(path=path) as chest, Chest(path=path) as other:
        chest.update({"a": filled(0), "b": filled(0, LARGE)})
        stop = threading.Event()
        wrong = []

        def watch() -> None:
            while not stop.is_set():
                with (
                    other._engine.session.writer.lock
                ):  # one commit at most comes to pass meanwhile
                    pass
                a = other["a"][0]
                b = other["b"][0]
                if not a <= b:
                    wrong.append((a, b))

        thread = threading.Thread(target=watch)
        thread.start()
        for number in range(1, 60):
            with chest.transaction():
                chest["b"] = filled(number, LARGE)
                chest["a"] = filled(number)
        stop.set()
        thread.join()
        assert not wrong
        assert contents(other) == {"a": 59, "b": 59}
    audit(path)


def test_the_budget_sets_no_limit(path):
    with Chest(path=path, available_memory=8 * LARGE) as chest:
        with chest.transaction():
            for number in range(20):
                chest[number] = filled(number, LARGE)
                assert chest.memory_usage <= 8 * LARGE
        assert contents(chest) == {number: number for number in range(20)}


def test_an_update_from_another_chest_is_one(path, tmp_path):
    with Chest(path=path) as mine, Chest(path=tmp_path / "theirs") as theirs:
        mine["kept"] = filled(1)
        for number in range(5):
            theirs[number] = filled(number, LARGE)
            theirs["s", number] = filled(number)
        theirs.flush()
        theirs["new"] = filled(9)
        before = mine.stats().spills
        mine.update(theirs)
        assert contents(mine) == {"kept": 1, **contents(theirs)}
        assert os.stat(mine.key_to_filename(3)).st_nlink == 2
        assert mine.stats().spills >= before
    audit(path)
    audit(str(tmp_path / "theirs"))


def test_two_threads_have_one_each(path):
    with Chest(path=path) as chest:
        barrier = threading.Barrier(2)
        errors = []

        def work(name: str) -> None:
            try:
                with chest.transaction():
                    chest[name] = filled(1)
                    barrier.wait()
                    assert set(chest) == {name}
                    barrier.wait()
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert set(chest) == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_crash_at_any_file_operation_leaves_all_or_nothing(path, size):
    """The child dies before the N-th file operation, for every N."""
    survived = False
    for number in range(1, 200):
        with arraychest.open(path, "w") as chest:
            chest.update({"a": filled(0, size), "b": filled(0, size), "c": filled(0, size)})

        def child(say: Say, number: int = number) -> None:
            left = [number]

            def action(name: str, args: Any, call: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    die()
                return call()

            with Chest(path=path) as chest:
                with injected(action), chest.transaction():
                    chest["a"] = filled(1, size)
                    chest["new"] = filled(1, size)
                    del chest["c"]
                    chest["b"] = filled(1, size)
                left[0] = 1 << 30

        survived = not in_child(child).signal
        with Chest(path=path) as chest:
            after = contents(chest)
            assert after in (
                {"a": 0, "b": 0, "c": 0},
                {"a": 1, "b": 1, "new": 1},
            ), after
        audit(path)
        if survived:
            assert after == {"a": 1, "b": 1, "new": 1}
            break
    assert survived


KEYS = st.integers(0, 5)
SIZES = st.sampled_from([1, SMALL, LARGE])
CHANGES = st.lists(st.tuples(st.sampled_from(["put", "delete"]), KEYS, SIZES), max_size=8)


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(transactions=st.lists(st.tuples(CHANGES, st.booleans()), max_size=5), named=st.booleans())
def test_beside_a_dict(tmp_path_factory, transactions, named):
    path = str(tmp_path_factory.mktemp("model") / "chest") if named else None
    model: dict[int, tuple[int, int]] = {}
    with Chest(path=path) as chest:
        number = 0
        for changes, fails in transactions:
            inside = dict(model)
            try:
                with chest.transaction():
                    for what, key, size in changes:
                        number += 1
                        if what == "put":
                            chest[key] = filled(number, size)
                            inside[key] = number, size
                        elif key in inside:
                            del chest[key]
                            del inside[key]
                        assert dict.fromkeys(chest) == dict.fromkeys(inside)
                    for key, (value, size) in inside.items():
                        assert chest[key].tolist() == [value] * size
                    if fails:
                        raise ZeroDivisionError
                model = inside
            except ZeroDivisionError:
                pass
            assert set(chest) == set(model)
            for key, (value, size) in model.items():
                assert chest[key].tolist() == [value] * size
    if path is not None:
        with Chest(path=path) as chest:
            assert set(chest) == set(model)
        audit(path)


def test_a_key_that_was_deleted_and_put_again_is_deleted_for_everybody(path):
    """The row is that of the first deletion, which has not been committed yet."""
    with arraychest.Chest({"x": np.arange(3), "y": np.arange(3)}, path=path) as chest:
        with arraychest.open(path, "a") as other:
            del chest["x"]
            chest["x"] = np.arange(4)
            with chest.transaction():
                del chest["x"]
                chest["z"] = np.arange(5)
            assert set(other) == {"y", "z"}
            assert len(chest) == 2
        chest.flush()
        assert set(chest) == {"y", "z"}
    audit(path)
