"""A chest's own `dump` and `load`, and its own names of files."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest.catalog.record import Row
from arraychest.errors import AbsentKeyError, CorruptEntryError, SpillError, UnreadableValueError
from arraychest.storage.file_names import value_name
from tests.support import assert_identical, audit, run_python

LONG = arraychest.PACK_THRESHOLD // 8 + 8


def dump_text(value: Any, file: Any) -> None:
    file.write("first line\r\nsecond\n\ud800")
    print(repr(value), end="", file=file)


def load_text(file: Any) -> Any:
    lines = file.read()
    assert lines.startswith("first line\r\nsecond\n\ud800")
    return eval(lines.partition("\ud800")[2])  # what the test wrote


def dump_binary(value: Any, file: Any) -> None:
    file.writelines([b"\0\xff", repr(value).encode()])


def load_binary(file: Any) -> Any:
    assert file.read(2) == b"\0\xff"
    return eval(file.read())


def dump_wrapped(value: Any, file: Any) -> None:
    with io.TextIOWrapper(file, "utf-8", newline="") as text:  # which closes the file
        csv.writer(text).writerow(map(repr, value))


def load_wrapped(file: Any) -> Any:
    with io.TextIOWrapper(file, "utf-8", newline="") as text:
        return [eval(each) for each in next(csv.reader(text))]


WAYS: dict[str, tuple[Callable[[Any, Any], object], Callable[[Any], Any]]] = {
    "json": (json.dump, json.load),
    "pickle": (pickle.dump, pickle.load),
    "text": (dump_text, load_text),
    "binary": (dump_binary, load_binary),
    "wrapped": (dump_wrapped, load_wrapped),
    "lines": (
        lambda value, file: file.writelines([json.dumps(value), "\n"]),
        lambda file: json.loads(next(iter(file))),
    ),
}


class TestDump:
    @pytest.mark.parametrize("mmap_mode", ["r", "c"])
    @pytest.mark.parametrize("way", WAYS)
    def test_values_come_back_as_load_reads_them_from_every_tier(
        self, way, mmap_mode, path, make_chest
    ):
        dump, load = WAYS[way]
        small = [1, 2.5, None, "text\u20ac", [True, "a\r\nb"], {"b": 1, "a": 2}]
        values = {"small": small, "large": ["x" * 100_000, "\u20ac" * 10_000]}
        options = {"dump": dump, "load": load, "mmap_mode": mmap_mode}
        chest = make_chest(path=path, **options)
        chest.update(values)
        chest["again"] = small
        small.append("not stored")
        for _ in range(3):
            assert chest["again"] == small[:-1]
            assert chest["large"] == values["large"]
            assert chest.load("again") == small[:-1]
            found = chest["again"]
            found.clear()
            assert chest["again"] == small[:-1]
            chest.flush()
        entry = chest.entry("large")
        assert (entry.kind, entry.shape, entry.dtype) == ("dump", (), np.dtype(object))
        assert chest.verify().ok
        with pytest.raises(UnreadableValueError, match="load="):
            chest.handle("again").array()
        with chest.transaction():
            chest["t"] = ["t"]
            assert chest["t"] == ["t"]
            assert chest.load("t") == ["t"]
        assert chest.pop("t") == ["t"]
        chest.close()
        with arraychest.open(path, "r", load=load, mmap_mode=mmap_mode) as reader:
            assert reader["again"] == small[:-1]
            assert dict(reader)["large"] == values["large"]
        audit(path)

    def test_arrays_and_numpy_scalars_are_not_dumped(self, make_chest):
        def fail(*_: Any) -> Any:
            raise AssertionError

        chest = make_chest(dump=fail, load=fail)
        values = {"array": np.arange(3), "large": np.arange(LONG), "scalar": np.float32(1)}
        chest.update({key: value.copy() for key, value in values.items()})
        for _ in range(2):
            for key, value in values.items():
                assert_identical(chest[key], value)
            chest.flush()
        with pytest.raises(AssertionError):
            chest["x"] = None

    def test_without_load_those_values_only_cannot_be_read(self, path, make_chest):
        with arraychest.Chest(path=path, dump=json.dump, load=json.load) as chest:
            chest["dumped"], chest["array"] = {"a": 1}, np.arange(3)
        for options in ({}, {"dump": json.dump}, {"allow_pickle": True}):
            chest = make_chest(path=path, **options)
            for get in (chest.__getitem__, chest.load, chest.get, chest.pop):
                with pytest.raises(UnreadableValueError, match=r"dumped.*load="):
                    get("dumped")
            assert_identical(chest["array"], np.arange(3))
            assert list(chest) == ["dumped", "array"]
            assert chest.verify().ok
            chest.compact()
            chest.close()
        chest = make_chest(path=path, load=json.load)
        assert chest["dumped"] == {"a": 1}
        chest["tree"] = [1]  # without `dump` it is taken apart
        chest.flush()
        assert (chest["tree"], chest.entry("tree").kind) == ([1], "tree")

    def test_in_ram_without_load_is_as_on_disk(self, make_chest):
        chest = make_chest(dump=json.dump)
        chest["x"] = [1]
        for _ in range(2):
            with pytest.raises(UnreadableValueError):
                chest["x"]
            chest.flush()

    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    def test_what_dump_raises_the_put_raises_and_nothing_changes(self, budget, make_chest):
        chest = make_chest(dump=json.dump, load=json.load, available_memory=budget)
        chest["x"] = [1]
        for bad in ({1, 2}, object(), [np.arange(3)]):
            with pytest.raises(TypeError, match="serializable"):
                chest["x"] = bad
            with chest.transaction(), pytest.raises(TypeError, match="serializable"):
                chest["y"] = bad
        with pytest.raises(TypeError):
            chest.update({"z": {1}})
        assert dict(chest) == {"x": [1]}

    @pytest.mark.parametrize("error", [KeyError("k"), AbsentKeyError("k"), OSError(5), EOFError()])
    def test_what_load_raises_is_a_corrupt_entry_and_no_absent_key(self, error, make_chest):
        def fail(file: Any) -> Any:
            raise error

        chest = make_chest(dump=json.dump, load=fail)
        chest["x"] = [1]
        for _ in range(2):
            for get in (
                lambda: chest["x"],
                lambda: chest.get("x"),
                lambda: chest.setdefault("x", 2),
                lambda: chest.pop("x", None),
                lambda: list(chest.values()),
            ):
                with pytest.raises(CorruptEntryError, match="load=") as caught:
                    get()
                assert caught.value.__cause__ is error
            assert list(chest) == ["x"]
            chest.flush()

    def test_between_chests_they_are_linked_and_copied(self, make_chest):
        options = {"dump": json.dump, "load": json.load}
        one, other, none = make_chest(**options), make_chest(**options), make_chest()
        one["small"], one["large"] = [1], ["x" * 100_000]
        for _ in range(2):
            other.update(one)
            assert dict(other) == dict(one)
            one.flush()
        none.update(one)
        with pytest.raises(UnreadableValueError):
            none["small"]

    def test_dump_may_use_the_chest(self, make_chest):
        chest = make_chest(
            dump=lambda value, file: json.dump([value, sorted(chest)], file),
            load=lambda file: (json.load(file), len(chest)),
        )
        chest["a"] = 1
        chest["b"] = 2
        assert chest["b"] == ([2, ["a"]], 2)


# --- names of files --------------------------------------------------------------------------------

HOSTILE = [
    "..", ".", "", "/", "../../../victim", "/etc/passwd", "a/b", "a\0b", "a\nb", "\n", "a\r\nb ",
    "x" * 10_000, "\U0001f600" * 200, "\ud800", "\udcff/..", "a" * 119 + "\u20ac", " . - ", "-rf",
    "name.npy", "con", "C:\\x", "\u202egpj.exe", "\u0301", "\x7f", "%s{0}", "a" * 119 + "- b",
]  # fmt: skip


def values() -> dict[Any, Any]:
    return {"array": np.arange(LONG), "tree": [np.arange(LONG), None], "small": np.arange(3)}


class TestNames:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("compression", [None, "lz4"])
    @pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
    def test_that_are_hostile_stay_in_the_folder_and_are_found_again(
        self, name, compression, path, tmp_path
    ):
        (tmp_path / "victim").write_bytes(b"precious")
        before = set(os.listdir(tmp_path))
        options = {"compression": compression, "key_to_filename": lambda key: name}
        with arraychest.Chest(path=path, **options) as chest:
            chest.update(values())
            for key in values():
                chest["put", key] = values()[key]
            chest.flush()
            with chest.edit("array") as array:
                array[0] = 7
            with chest.create("made", LONG) as array:
                array[:] = 1
            for key in ("array", "tree", "made"):
                file = chest.key_to_filename(key)
                assert os.path.dirname(os.path.dirname(file)) == os.path.join(path, "data")
                assert os.path.isfile(file)
                assert len(os.path.basename(os.fsencode(file))) <= 160
            assert chest.verify().ok
        audit(path)
        assert set(os.listdir(tmp_path)) - before == {os.path.basename(path)}
        assert (tmp_path / "victim").read_bytes() == b"precious"
        # By those who do not know the function.
        with arraychest.open(path) as chest:
            assert chest["array"][0] == 7
            assert_identical(chest["tree"], values()["tree"])
            assert_identical(chest["put", "small"], values()["small"])
            assert chest.verify().ok
            chest.repair()
            for key in list(chest):
                chest[key] = [np.zeros(LONG)]
            chest.flush()
        audit(path)

    def test_are_what_the_function_says_and_of_the_key(self, path):
        keys = ["temperature", ("a", 1), 3, "\u00e9t\u00e9 1", "x" * 200]
        with arraychest.Chest(path=path, key_to_filename=lambda key: f"field {key}") as chest:
            for key in keys:
                chest[key] = np.arange(LONG)
            chest.flush()
            for key in keys:
                base = os.path.basename(chest.key_to_filename(key))
                assert base.startswith(f"field {key}"[:120])
                assert base.endswith(".npy")
                assert_identical(np.load(chest.key_to_filename(key)), np.arange(LONG))
        run_python(
            """
            import sys, numpy as np, arraychest
            with arraychest.open(sys.argv[1]) as chest:
                for key in chest:
                    assert chest[key].sum() == np.arange(len(chest[key])).sum()
                handle = chest.handle(3)
                assert handle.array()[1] == 1
                chest["new"] = np.zeros(10_000)
                chest.flush()
                assert "new-" in chest.key_to_filename("new"), chest.key_to_filename("new")
                chest[3] = np.ones(10_000)
            """,
            path,
        )
        audit(path)

    def test_that_are_the_same_for_all_keys_get_different_files(self, path):
        with arraychest.Chest(path=path, key_to_filename=lambda key: "same") as chest:
            for at in range(20):
                chest[at] = np.full(LONG, at)
            chest.flush()
            assert len({chest.key_to_filename(at) for at in range(20)}) == 20
            for at in range(20):
                assert chest[at][5] == at

    @pytest.mark.parametrize("budget", ["1 GiB", 0])
    @pytest.mark.parametrize("size", [3, LONG])
    def test_that_are_none_or_no_str_are_the_puts_own_error(self, size, budget, make_chest):
        def name(key: Any) -> Any:
            if key == "raise":
                raise ZeroDivisionError
            return {"none": None, "bytes": b"x", "path": 3}.get(key, "good")

        chest = make_chest(key_to_filename=name, available_memory=budget)
        chest["x"] = np.zeros(size)
        mine = np.zeros(size)
        for key in ("none", "bytes", "path"):
            with pytest.raises(TypeError, match="expected key_to_filename to return a str"):
                chest[key] = mine
        with pytest.raises(ZeroDivisionError):
            chest["raise"] = mine
        mine[0] = 1
        assert list(chest) == ["x"]
        chest.flush()

    def test_that_fail_only_when_a_value_is_written_keep_it_in_ram(self, make_chest):
        bad: list[bool] = []

        def name(key: Any) -> str:
            if bad:
                raise ZeroDivisionError
            return "good"

        chest = make_chest(key_to_filename=name)
        chest["x"] = np.zeros(LONG)
        bad.append(True)
        with pytest.raises(SpillError) as caught:
            chest.flush()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert chest.entry("x").resident
        bad.clear()
        chest.flush()
        assert not chest.entry("x").resident

    def test_that_a_transaction_is_refused_leave_nothing_behind(self, path):
        def name(key: Any) -> str:
            if key == "bad":
                raise ZeroDivisionError
            return "good"

        with arraychest.Chest(path=path, key_to_filename=name) as chest:
            with pytest.raises(ZeroDivisionError), chest.transaction():
                chest["x"] = np.zeros(LONG)
                chest["bad"] = np.zeros(LONG)
            with chest.transaction():
                chest["y"] = np.zeros(LONG)
                with pytest.raises(ZeroDivisionError):
                    chest["bad"] = np.zeros(LONG)
            with pytest.raises(ZeroDivisionError):
                chest.create("bad", LONG)
            assert list(chest) == ["y"]
        audit(path)

    def test_go_with_linked_values_and_leave_no_orphans(self, path, make_chest, tmp_path):
        one = make_chest(path=path, key_to_filename=lambda key: f"one {key}")
        one["array"], one["tree"] = np.arange(LONG), [np.arange(LONG)]
        one.flush()
        to = str(tmp_path / "other.chest")
        with arraychest.Chest(path=to, key_to_filename=lambda key: f"two {key}") as other:
            other.update(one)
            other["own"] = np.arange(LONG)
            other.flush()
            assert_identical(other["array"], np.arange(LONG))
            assert_identical(other["tree"], [np.arange(LONG)])
            with other.edit("array") as array:
                array[0] = 5
            del other["tree"]
            other.flush()
            assert other["array"][0] == 5
            assert os.path.basename(other.key_to_filename("array")).startswith("two array-")
            assert other.verify().ok
        audit(to)
        assert_identical(one["array"], np.arange(LONG))

    def test_of_a_lost_catalog_are_told_by_the_files(self, path):
        with arraychest.Chest(path=path, key_to_filename=lambda key: f"n\u00e4me {key}") as chest:
            chest.update(values())
            chest["\n"] = np.arange(LONG)
        names = {file for _, _, files in os.walk(os.path.join(path, "data")) for file in files}
        os.unlink(os.path.join(path, "catalog.sqlite"))
        arraychest.repair(path)
        with arraychest.open(path) as chest:
            assert set(chest) == {*values(), "\n"}
            for key, value in values().items():
                assert_identical(chest[key], value)
            assert chest.verify().ok
            left = {file for _, _, files in os.walk(os.path.join(path, "data")) for file in files}
            assert left == names
        audit(path)

    def test_of_characters_that_this_python_does_not_know_are_found(self):
        # Written by a Python with a newer Unicode, to which they are printable.
        row = Row(b"sx", 0, None, "3 C <f8\n\U0003ffff \u0378", 0x12, None, 128, 200, 7)
        assert value_name(row) == "data/12/\U0003ffff \u0378-12.npy"
        for stem in ("../../x", "a\0b", "x" * 5000, "\u20ac" * 100, "a\n/../b"):
            name = value_name(row._replace(form="3 C <f8\n" + stem))
            assert name.count("/") == 2
            assert "\0" not in name
            assert len(os.fsencode(name)) < 200

    def test_in_a_temporary_chest(self, make_chest):
        chest = make_chest(key_to_filename=str)
        chest["x"] = np.zeros(LONG)
        assert chest.key_to_filename("x") is None
        chest.spill("x")
        assert os.path.basename(chest.key_to_filename("x")).startswith("x-")
        with pytest.raises(AbsentKeyError):
            chest.key_to_filename("y")
