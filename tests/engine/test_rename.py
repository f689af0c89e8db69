"""A value gets another key: one step, no copy, and nothing else changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import AbsentKeyError, Chest, KeyTypeError
from tests.support import audit

VALUES: dict[str, Any] = {
    "small": np.arange(10),
    "large": np.arange(50_000.0),
    "tree": {"a": np.arange(20_000.0), "b": ["x", None]},
    "scalar": np.float32(2),
}


def equal(one: Any, other: Any) -> bool:
    with Chest({"x": one}) as mine, Chest({"x": other}) as theirs:
        return mine == theirs


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("state", ["in RAM", "flushed", "reopened"])
@pytest.mark.parametrize("named", [False, True])
def test_it_is_the_same_value(path, make_chest, name, state, named):
    if state == "reopened" and not named:
        pytest.skip("a temporary chest is not reopened")
    options = {"path": path} if named else {}
    chest = make_chest(**options)
    chest["before"] = np.zeros(2)
    chest[name] = VALUES[name]
    chest["after"] = np.ones(2)
    if state != "in RAM":
        chest.flush()
    if state == "reopened":
        chest.close()
        chest = make_chest(**options)
    chest.rename(name, ("new", 1))
    assert list(chest) == ["before", "after", ("new", 1)]
    assert equal(chest["new", 1], VALUES[name])
    assert name not in chest
    assert chest.verify().ok
    chest.rename(("new", 1), "third")
    chest.flush()
    assert equal(chest["third"], VALUES[name])
    assert chest.verify().ok
    assert chest.compact() >= 0
    assert chest.verify().ok
    chest.close()
    if named:
        audit(path)
        with Chest(path, mode="r") as chest:
            assert list(chest) == ["before", "after", "third"]
            assert equal(chest["third"], VALUES[name])
            assert chest.verify().ok


def test_its_bytes_are_not_copied(path):
    with Chest(path) as chest:
        chest["x"] = np.zeros(100_000)
        chest.flush()
        view = chest["x"]
        before = os.stat(chest.key_to_filename("x"))
        chest.rename("x", "y")
        file = chest.key_to_filename("y")
        assert os.stat(file).st_ino == before.st_ino
        assert os.stat(file).st_nlink == 1
        assert Path(file).name.startswith("y-")
        assert len(list(Path(path).glob("data/*/*"))) == 1
        assert not view.any()


def test_a_compressed_and_a_blocked_array(path):
    with Chest(path) as chest:
        chest.put("z", np.zeros((500, 500)), compression="zstd")
        chest.append("rows", np.ones((3, 4)))
        chest.flush()
        chest.rename("z", "packed")
        chest.rename("rows", "blocks")
        assert (chest.entry("packed").codec, chest.entry("blocks").codec) == ("zstd", "blocks")
        assert chest["blocks"][2].tolist() == [1, 1, 1, 1]
        assert chest.verify().ok
    audit(path)


def test_what_is_known_of_a_value_goes_with_it(path):
    with Chest(path) as chest:
        chest.put("x", np.zeros(100_000), expires_after=1000)
        chest.flush()
        chest.rename("x", "y")
        assert chest._engine.facts.cost_of("y").expires is not None


def test_keys_that_are_or_are_not_there(make_chest):
    chest = make_chest()
    chest["x"], chest["y"] = np.zeros(1), np.ones(2)
    with pytest.raises(AbsentKeyError):
        chest.rename("z", "w")
    with pytest.raises(ValueError, match="expected a key that is not in the chest, found 'y'"):
        chest.rename("x", "y")
    with pytest.raises(KeyTypeError):
        chest.rename("x", object())
    chest.rename("x", "x")
    assert list(chest) == ["x", "y"]
    chest.rename("x", "y", overwrite=True)
    assert list(chest) == ["y"]
    assert chest["y"].size == 1


def test_within_a_transaction_it_is_undone_with_it(path):
    with Chest(path) as chest:
        chest["x"] = np.zeros(100_000)
        chest["small"] = np.zeros(3)
        with pytest.raises(ZeroDivisionError), chest.transaction():
            chest.rename("x", "y")
            chest.rename("small", "other")
            assert set(chest) == {"y", "other"}
            raise ZeroDivisionError
        assert set(chest) == {"x", "small"}
        with chest.transaction():
            chest["put"] = np.ones(5)
            chest.rename("put", "moved")
            chest.rename("x", "y")
        assert set(chest) == {"small", "moved", "y"}
    audit(path)


def test_others_see_it_and_links_of_it_are_sound(path, tmp_path):
    with Chest(path) as one, Chest(path) as other:
        one["x"] = np.zeros(100_000)
        one.flush()
        assert other["x"].size == 100_000
        one.rename("x", "y")
        assert list(other) == ["y"]
        with Chest(tmp_path / "copy") as copy:
            copy.update(one)
            copy.flush()
            assert copy.verify().ok
            assert list(copy) == ["y"]


def test_a_new_catalog_has_the_key_that_the_file_says(path):
    with Chest(path) as chest:
        chest["x"] = np.zeros(100_000)
        chest.flush()
        chest.rename("x", "y")
    os.unlink(f"{path}/catalog.sqlite")
    arraychest.repair(path)
    with Chest(path, mode="r") as chest:
        assert list(chest) == ["x"]
        assert chest["x"].size == 100_000
        assert chest.verify().ok
