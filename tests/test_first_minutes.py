"""What one types first: a path, an option, a key that is not quite right, Tab, and operators."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import arraychest
from arraychest import AbsentKeyError, Chest
from arraychest.engine.options import ChestOptions


class TestOpening:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_path_as_the_first_argument_is_the_folder(self, path, kind):
        with Chest(kind(path)) as chest:
            chest["x"] = np.arange(3)
            assert chest.path == os.path.abspath(path)
        with Chest(path, mode="r") as chest:
            assert chest["x"].tolist() == [0, 1, 2]

    def test_a_mapping_is_what_it_starts_with(self):
        with Chest({"x": np.arange(3)}) as chest:
            assert chest.path is None
            assert list(chest) == ["x"]

    def test_two_paths_and_other_things_are_refused(self, path):
        with pytest.raises(TypeError, match="expected one path"):
            Chest(path, path)
        with pytest.raises(TypeError, match="expected a path, or a mapping as data, found list"):
            Chest([1, 2])
        assert not os.path.exists(path)

    @pytest.mark.parametrize("told", ["", "s3://bucket/x", "https://example.org/a.chest"])
    def test_what_is_no_folder_here_is_refused(self, told, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="expected the path of a folder"):
            Chest(told)
        assert not os.listdir(tmp_path)

    def test_its_type_is_chest_and_subclasses_are_themselves(self, path):
        class Mine(Chest):
            pass

        for made, kind in ((Chest(), Chest), (Chest(path), Chest), (Mine(), Mine)):
            with made:
                assert type(made) is kind


class TestOptions:
    @pytest.mark.parametrize("function", [Chest, arraychest.open])
    def test_a_signature_names_every_option(self, function):
        parameters = inspect.signature(function).parameters
        assert set(ChestOptions.__annotations__) <= set(parameters)
        kinds = {each.kind for each in parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert parameters["on_put"].default == "freeze"
        # What is not given is what the signature says.
        with Chest() as chest:
            assert chest._engine.session.options.on_put == "freeze"

    def test_a_subclass_has_its_own(self):
        class Mine(Chest):
            def __init__(self, only: str) -> None:
                super().__init__(only)

        assert list(inspect.signature(Mine).parameters) == ["only"]

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [("mmapmode", "mmap_mode"), ("available_mem", "available_memory"), ("onput", "on_put")],
    )
    def test_a_misspelt_one_is_told_the_right_one(self, wrong, right, path):
        with pytest.raises(TypeError, match=rf"found '{wrong}'; did you mean '{right}'\?"):
            arraychest.open(path, **{wrong: "r"})
        assert not os.path.exists(path)

    def test_one_that_is_like_none_is_named(self):
        with pytest.raises(TypeError, match=r"expected an option of a chest, found 'xyzzy'$"):
            Chest(xyzzy=1)

    @pytest.mark.slow
    def test_a_type_checker_sees_them(self, tmp_path):
        file = tmp_path / "program.py"
        file.write_text(
            "import arraychest\n"
            'arraychest.open("x", on_put="copy", max_disk="1 GiB")\n'
            'arraychest.Chest("x", mmap_mod="r")\n'
            'arraychest.open("x", on_put="cpy")\n'
        )
        command = [sys.executable, "-m", "mypy", "--no-incremental", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        lines = [line.split(":")[1] for line in done.stdout.splitlines() if ": error" in line]
        assert lines == ["3", "4"], done.stdout + done.stderr

    def test_only_public_names_are_listed(self):
        public = {name for name in dir(arraychest) if not name.startswith("__")}
        assert public == set(arraychest.__all__)


class TestKeys:
    def test_an_absent_one_names_those_that_are_near(self):
        with Chest({"temperature": np.zeros(3), "pressure": np.zeros(3), 5: np.zeros(3)}) as chest:
            with pytest.raises(AbsentKeyError) as caught:
                chest["temprature"]
            assert str(caught.value) == "'temprature'; did you mean 'temperature'?"
            with pytest.raises(AbsentKeyError) as caught:
                chest["xyzzy"]
            assert str(caught.value) == "'xyzzy'"
            again = pickle.loads(pickle.dumps(caught.value))
            assert (type(again), again.args) == (AbsentKeyError, ("xyzzy",))

    def test_that_of_a_closed_or_large_chest_names_none(self):
        with Chest({f"key {n}": np.zeros(1) for n in range(2000)}) as chest:
            with pytest.raises(AbsentKeyError) as caught:
                chest["kei 5"]
            assert str(caught.value) == "'kei 5'"
        with Chest({"key": np.zeros(1)}) as chest, pytest.raises(AbsentKeyError) as caught:
            chest["kei"]
        assert str(caught.value) == "'kei'"

    def test_tab_offers_them(self):
        with Chest({"slope": np.arange(3), 5: np.arange(4), ("a", 1): np.arange(5)}) as chest:
            assert chest._ipython_key_completions_() == ["slope", 5, ("a", 1)]


class TestOperators:
    def test_reversed_views(self):
        with Chest({n: np.full(2, n) for n in range(4)}) as chest:
            assert list(reversed(chest.keys())) == [3, 2, 1, 0]
            assert [(key, value[0]) for key, value in reversed(chest.items())] == [
                (3, 3), (2, 2), (1, 1), (0, 0)
            ]  # fmt: skip
            assert [value[0] for value in reversed(chest.values())] == [3, 2, 1, 0]

    def test_or_makes_a_new_chest(self, path):
        with Chest(path) as chest:
            chest["a"], chest["b"] = np.zeros(3), np.zeros(100_000)
            chest.flush()
            with chest | {"b": np.ones(2), "c": np.ones(3)} as both:
                assert type(both) is Chest
                assert both.path != chest.path
                assert list(both) == ["a", "b", "c"]
                assert both["b"].tolist() == [1, 1]
            with {"b": np.ones(2), "c": np.ones(3)} | chest as both:
                assert list(both) == ["b", "c", "a"]
                assert both["b"].size == 100_000
            assert list(chest) == ["a", "b"]
            with pytest.raises(TypeError, match="unsupported operand"):
                chest | [1]

    def test_or_in_place_updates(self, path):
        with Chest(path) as chest:
            same = chest
            chest |= {"x": np.ones(2)}
            chest |= [("y", np.ones(3))]
            assert chest is same
            assert list(chest) == ["x", "y"]
