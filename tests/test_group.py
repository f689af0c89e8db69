"""A group is a mapping over a part of a chest, and is taken wherever a chest is."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest

from arraychest import AbsentKeyError, Chest, Group
from tests.support import run_python


@pytest.fixture(params=["run", ("run", 7), "run/", "run/a/"], ids=str)
def prefix(request):
    return request.param


def test_it_has_the_keys_that_begin_so_and_no_others():
    keys = [("run", 1), ("run", "a", 2), ("run",), ("walk", 1), "run", "run/1", ("run", (1, 2)), 5]
    with Chest({key: np.full(1, n) for n, key in enumerate(keys)}) as chest:
        run = chest.group("run")
        assert list(run) == [1, ("a", 2)]
        assert list(reversed(run)) == [("a", 2), 1]
        assert len(run) == 2
        assert run["a", 2][0] == 1
        assert 1 in run
        assert "run" not in run
        assert [] not in run
        for key in run:
            assert run[key] is chest[run.full_key(key)]
        names = chest.group("run/")
        assert list(names) == ["1"]
        assert 1 not in names
        with pytest.raises(AbsentKeyError):
            names[1]
        with pytest.raises(TypeError, match="expected a str as a key of the group 'run/'"):
            names[1] = np.zeros(3)


def test_what_is_put_into_it_is_in_the_chest(prefix, path):
    with Chest(path) as chest:
        group = chest.group(prefix)
        group["x"] = np.zeros(3)
        group.update({"y": np.ones(2)}, z=np.ones(1))
        chest["other"] = np.zeros(1)
        assert list(group) == ["x", "y", "z"]
        assert list(chest)[:3] == [group.full_key(key) for key in group]
        del group["y"]
        assert group.pop("x").size == 3
        assert group.pop("x", None) is None
        with pytest.raises(AbsentKeyError):
            del group["x"]
        assert group.popitem()[0] == "z"
        with pytest.raises(AbsentKeyError):
            group.popitem()
        assert list(chest) == ["other"]
        group["v"] = np.zeros(1)
        group.clear()
        assert list(chest) == ["other"]


def test_groups_of_groups(path):
    with Chest(path) as chest:
        inner = chest.group("run").group(("a", 1))
        inner["x"] = np.arange(3)
        assert list(chest) == [("run", "a", 1, "x")]
        assert inner.chest is chest
        assert list(inner) == ["x"]
        assert inner.full_key("x") == ("run", "a", 1, "x")
        texts = chest.group("run/").group("a/")
        texts["x"] = np.arange(3)
        assert "run/a/x" in chest


def test_it_does_what_a_chest_does_with_a_key(prefix, path):
    with Chest(path) as chest:
        group = chest.group(prefix)
        group.put("x", np.zeros((1000, 1000)), compression="zstd")
        chest.spill(group.full_key("x"))
        assert group.entry("x").codec == "zstd"
        assert group.entry("x").file == chest.key_to_filename(group.full_key("x"))
        assert type(group.load("x")) is np.ndarray
        with group.create("y", 5) as array:
            array[:] = 2
        with group.edit("y") as array:
            array[0] = 1
        assert group["y"].tolist() == [1, 2, 2, 2, 2]
        with group.lock("y"), group.transaction():
            group["z"] = np.zeros(2)
        group.append("rows", np.zeros((2, 3)))
        chest.flush()
        assert group.handle("y").array().tolist() == [1, 2, 2, 2, 2]
        assert set(group) == {"x", "y", "z", "rows"}
        with group | {"w": np.ones(2)} as both:
            assert set(both) == {"x", "y", "z", "rows", "w"}
        assert group == dict(group.items())
        assert "Group" in repr(group)


def test_a_chest_copies_from_a_group_what_the_group_calls_by_that_key(prefix, path):
    with Chest(path) as chest, Chest({"kept": np.array([3])}) as target:
        group = chest.group(prefix)
        chest["x"], group["x"], group["kept"] = np.array([1]), np.array([2]), np.array([4])
        chest.flush()
        target.copy_from(group, ["kept", "x"], overwrite=False)
        assert {key: value.tolist() for key, value in target.items()} == {"kept": [3], "x": [2]}
        target.copy_from(group, ["kept"])
        assert target["kept"].tolist() == [4]
        with pytest.raises(AbsentKeyError, match="y"):
            target.copy_from(group, ["x", "y"])


def test_a_group_copies_from_a_chest_and_from_another_group(prefix, path, tmp_path):
    with Chest(path) as chest, Chest(tmp_path / "other") as other:
        other.put("x", np.arange(20_000), expires_after=3600)
        other["y"] = np.array([2])
        other.group(prefix)["z"] = np.arange(30_000)
        other.flush()
        group = chest.group(prefix)
        group["y"] = chest["x"] = np.array([1])
        told = []
        group.copy_from(other, ["x", "y"], overwrite=False, progress=told.append)
        assert told[-1].done == told[-1].total == 160_008
        assert list(group) == ["y", "x"]
        assert group["y"].tolist() == chest["x"].tolist() == [1]
        assert np.array_equal(group["x"], np.arange(20_000))
        # A copy is good as long as what it is a copy of.
        assert chest._engine.facts.cost_of(group.full_key("x")).expires is not None
        group.copy_from(other.group(prefix), ["z"])
        chest.flush()
        # Its full key is the same in both chests: so it is linked.
        theirs = other.entry(other.group(prefix).full_key("z")).file
        assert Path(group.entry("z").file).samefile(theirs)
        chest.group("elsewhere").copy_from(group, ["z"])
        assert np.array_equal(chest["elsewhere", "z"], np.arange(30_000))
        with pytest.raises(AbsentKeyError, match="nothing"):
            group.copy_from(other, ["y", "nothing"])
        assert group["y"].tolist() == [1]


def test_a_group_keeps_the_results_of_functions_as_its_own_entries(prefix, path):
    with Chest(path) as chest:
        group = chest.group(prefix)
        calls = []

        @group.cache(ignore_state=["calls"])
        def squared(x):
            calls.append(x)
            return x**2

        chest["other"] = np.zeros(1)
        assert [squared(n) for n in (2, 3, 2)] == [4, 9, 4]
        assert calls == [2, 3]
        assert [group.full_key(key) for key in group] == [squared.key(2), squared.key(3)]
        assert all(key in chest for key in [squared.key(2), squared.key(3)])
        assert squared.check(2)
        assert squared.entry(3).stored_bytes
        assert squared.handle(3).array() == 9
        # What the chest caches itself is another matter.
        assert chest.cache(squared.func)(2) == 4
        assert calls == [2, 3, 2]
        assert squared.invalidate(2)
        assert not squared.check(2)
        assert squared.clear() == 1
        assert not group
        assert len(chest) == 2
    assert inspect.signature(Group.cache) == inspect.signature(Chest.cache)


def tripled(x):
    return 3 * x


@pytest.mark.parametrize("named", [True, False])
def test_a_function_that_a_group_caches_goes_to_another_process(prefix, named, path):
    with Chest(path if named else None) as chest:
        group = chest.group(prefix).group("deeper/")
        cached = group.cache(tripled)
        assert cached(np.arange(3)).tolist() == [0, 3, 6]
        again = pickle.loads(pickle.dumps(cached))
        assert again.key(np.arange(3)) == cached.key(np.arange(3))
        assert again.check(np.arange(3))
        if named:
            assert pickle.loads(pickle.dumps(group)).full_key("x") == group.full_key("x")
            again._chest.chest.close()
    if not named:
        # Of another process's temporary chest nothing is kept, and all is computed.
        text = f"import pickle; print(pickle.loads({pickle.dumps(cached)!r})(4))"
        assert run_python(text).stdout.strip() == "12"


def test_an_empty_prefix_is_refused():
    with Chest() as chest:
        with pytest.raises(ValueError, match="expected a prefix of one key or more"):
            chest.group(())
        assert isinstance(chest.group(""), Group)
