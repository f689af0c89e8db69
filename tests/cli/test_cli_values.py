"""The command line: single values, figures, and two chests; recorded as a user would see them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import uuid
from types import SimpleNamespace

import numpy as np
import pytest

import arraychest
from arraychest.cli import main
from tests.cli.test_cli import HOSTILE, printed
from tests.support import assert_identical

zarr = pytest.importorskip("zarr")

FIELD = np.add.outer(np.arange(300.0), np.arange(400.0) / 7).astype("f4")
NUMBERED = uuid.UUID(int=5)


@pytest.fixture(scope="module", autouse=True)
def zarrs_own_threads(tmp_path_factory):
    """Started before a test looks at what it leaves behind."""
    with zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1}):
        array = zarr.create_array(tmp_path_factory.mktemp("zarr") / "first", shape=8, dtype="i4")
        array[...] = 1
        assert array[...].sum() == 8
        yield


@pytest.fixture
def work(path):
    with arraychest.open(path) as chest:
        chest["slope"] = FIELD.copy()
        chest.put("packed", FIELD.copy(), compression="lz4")
        chest.append("blocked", FIELD.copy())
        chest["tile", 3] = np.arange(12).reshape(3, 4)
        chest[NUMBERED] = np.array([1.5, np.nan, np.inf])
        chest["tree"] = {"a": np.arange(3), "b": "x"}
        chest[HOSTILE] = np.arange(3)
    return path


def keys_of(path):
    with arraychest.open(path, "r") as chest:
        return list(chest)


# --- get --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["slope", "packed", "blocked"])
def test_a_get_shows_what_numpy_shows_of_the_corners(work, capsys, key):
    code, out, err = printed(capsys, "get", work, key)
    assert (code, err) == (0, "")
    head, _, text = out.partition("\n")
    assert head == "300x400 float32"
    assert text.rstrip("\n") == np.array2string(FIELD, threshold=6)


@pytest.mark.parametrize("index", ["0:10, ::2", "..., -1", "5", "[3, 1], 2:4", "::-7, None, 0"])
@pytest.mark.parametrize("key", ["slope", "packed", "blocked"])
def test_an_index_is_numpys(work, tmp_path, capsys, key, index):
    target = tmp_path / "part.npy"
    assert printed(capsys, "get", work, key, index, "-o", target) == (0, "", "")
    assert_identical(np.load(target), np.asarray(eval(f"FIELD[{index}]")), order=False)


@pytest.mark.parametrize("key", ["slope", "packed", "blocked"])
def test_an_array_is_written_whole(work, tmp_path, capsys, key):
    target = tmp_path / "whole.npy"
    assert printed(capsys, "get", work, key, "-o", target)[0] == 0
    assert_identical(np.load(target), FIELD)
    assert [each.name for each in tmp_path.glob("*whole*")] == ["whole.npy"]


def test_what_is_no_file_is_written_to_and_stays_what_it_is(work, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert printed(capsys, "get", work, "=('tile', 3)", "-o", pipe)[0] == 0
    data = os.read(read, 1 << 16)
    os.close(read)
    assert np.load(io.BytesIO(data)).shape == (3, 4)
    assert pipe.is_fifo()
    err = printed(capsys, "get", work, "slope", "-o", tmp_path / "nodir" / "x.npy")[2]
    assert "nodir/x.npy cannot be written: No such file" in err


def test_what_a_command_does_not_know_points_to_its_help(work, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["get", str(work), "slope", "3", "5"])
    assert ended.value.code == 2
    assert "unrecognized arguments: 5 (see arraychest get --help)" in capsys.readouterr().err


def test_keys_are_named_as_they_are_shown_or_as_literals(work, capsys):
    for text in ("=('tile', 3)", "('tile', 3)", "=('tile',3.0)"):
        found = json.loads(printed(capsys, "get", work, text, "--json")[1])
        assert found == {
            "shape": [3, 4],
            "dtype": "int64",
            "data": np.arange(12).reshape(3, 4).tolist(),
        }
    assert printed(capsys, "get", work, repr(NUMBERED))[1] == "3 float64\n[1.5 nan inf]\n"
    assert printed(capsys, "get", work, "tree")[1] == "{'a': array([0, 1, 2]), 'b': 'x'}\n"
    assert "[0 1 2]" in printed(capsys, "get", work, f"={HOSTILE!r}")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "expected a key of .*nope.*arraychest ls"),
        (["=("], "expected a Python literal"),
        (["=__import__('os')"], "expected a Python literal"),
        (["slope", "9999"], "out of bounds"),
        (["slope", "open('x')"], "expected an index such as"),
        (["slope", "0.5"], "expected an index such as"),
        (["tree", "0"], "expected an array under tree"),
        (["tree", "-o", "x.npy"], "expected an array of plain elements"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(
    work, capsys, monkeypatch, tmp_path, arguments, told
):
    monkeypatch.chdir(tmp_path)
    code, out, err = printed(capsys, "get", work, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("arraychest get: ")
    assert err.count("\n") == 1
    assert re.search(told, err), err
    assert not (tmp_path / "x.npy").exists()


def test_debug_shows_where_an_error_comes_from(work):
    with pytest.raises(arraychest.cli.errors.CommandError):
        main(["get", str(work), "nope", "--debug"])


# --- put --------------------------------------------------------------------------------------


def test_a_put_takes_what_numpy_blosc2_hdf5_and_zarr_have_written(tmp_path, capsys):
    import blosc2
    import h5py

    array = np.arange(20.0).reshape(4, 5)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "one.npz", only=array)
    np.savez(tmp_path / "two.npz", p=array, q=array[0])
    blosc2.asarray(array, urlpath=str(tmp_path / "a.b2nd"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ground/heights"] = array
    zarr.save_array(str(tmp_path / "a.zarr"), array)
    chest = tmp_path / "work.chest"
    sources = {
        "npy": "a.npy", "npz": "one.npz", "b2nd": "a.b2nd", "h5": "a.h5:/ground/heights",
        "zarr": "a.zarr", "=('k', 1)": "two.npz",
    }  # fmt: skip
    for key, file in sources.items():
        code, _, err = printed(capsys, "put", chest, key, tmp_path / file)
        assert (code, err) == (0, ""), err
    with arraychest.open(chest, "r") as found:
        assert list(found) == ["npy", "npz", "b2nd", "h5", "zarr", ("k", 1, "p"), ("k", 1, "q")]
        for key in list(found)[:6]:
            assert_identical(found[key], array)


def test_files_are_put_under_their_names_from_patterns_and_from_standard_input(
    tmp_path, capsys, monkeypatch
):
    for number in range(3):
        np.save(tmp_path / f"tile{number}.npy", np.full(4, number))
    chest = tmp_path / "work.chest"
    assert printed(capsys, "put", chest, "--each", tmp_path / "tile*.npy")[1].startswith("3 values")
    data = (tmp_path / "tile2.npy").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert printed(capsys, "put", chest, "stdin", "-", "--compression", "none")[1].startswith(
        "1 value put"
    )
    with arraychest.open(chest, "r") as found:
        assert list(found) == ["tile0", "tile1", "tile2", "stdin"]
        assert found["stdin"].tolist() == [2, 2, 2, 2]


def test_a_put_that_fails_leaves_nothing_and_makes_no_chest(tmp_path, capsys, work):
    np.save(tmp_path / "good.npy", np.arange(3))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00garbage")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for bad in ("bad.npy", "objects.npy", "none.npy"):
        code, _, err = printed(
            capsys, "put", tmp_path / "new", "--each", tmp_path / "good.npy", tmp_path / bad
        )
        assert code == 1
        assert err.count("\n") == 1
        assert not (tmp_path / "new").exists()
    before = keys_of(work)
    assert (
        printed(capsys, "put", work, "--each", tmp_path / "good.npy", tmp_path / "bad.npy")[0] == 1
    )
    assert keys_of(work) == before
    assert "expected KEY and FILE" in printed(capsys, "put", work, "key")[2]
    options = ["k", tmp_path / "good.npy", "--compression", "no"]
    assert "argument --compression: expected" in printed(capsys, "put", work, *options)[2]


def test_a_put_replaces_only_what_it_is_asked_to(tmp_path, capsys, work):
    file = tmp_path / "new.npy"
    np.save(file, np.arange(3))
    code, _, err = printed(capsys, "put", work, "slope", file)
    assert (code, err) == (1, "arraychest put: slope is there already; --overwrite replaces it\n")
    with arraychest.open(work, "r") as chest:
        assert chest["slope"].shape == (300, 400)
    assert printed(capsys, "put", work, "slope", file, "--overwrite")[0] == 0
    with arraychest.open(work, "r") as chest:
        assert chest["slope"].tolist() == [0, 1, 2]


def test_values_are_named_by_what_they_are(path, capsys):
    values = {
        "text": "hello", "none": None, "list": [1, np.zeros(3)], "dict": {"a": 1, "b": {2}},
        "masked": np.ma.masked_array([1, 2], [True, False]), "scalar": np.float32(2),
    }  # fmt: skip
    arraychest.Chest(values, path).close()
    lines = [line.split("\t") for line in printed(capsys, "ls", path)[1].splitlines()]
    types = ["str", "None", "list of 2", "dict of 2", "MaskedArray 2", "float32"]
    assert [line[2] for line in lines] == types
    records = json.loads(printed(capsys, "ls", path, "--json")[1])
    assert [record["type"] for record in records] == types
    out = printed(capsys, "info", path, "dict")[1]
    assert "  'a'  1\n" in out
    assert "  'b'  set of 1\n" in out
    told = json.loads(printed(capsys, "info", path, "list", "--json")[1])
    assert (told["type"], type(told["stored_bytes"])) == ("list of 2", int)


def test_a_tuple_matches_as_it_is_printed(path, capsys):
    arraychest.Chest(
        {("run", 1): np.zeros(1), ("run", 2): np.zeros(1), "x": np.zeros(1)}, path
    ).close()
    for glob, count in (("('run', 1)", 1), ("('run', *)", 2), ("run*", 2), ("*", 3)):
        assert len(printed(capsys, "ls", path, glob)[1].splitlines()) == count
    assert printed(capsys, "rm", path, "--match", "('run', *)", "--yes")[0] == 0
    assert keys_of(path) == ["x"]


# --- rm ---------------------------------------------------------------------------------------


def test_a_removal_asks_at_a_terminal_and_removes_all_or_nothing(work, capsys, monkeypatch):
    before = keys_of(work)
    answers = io.StringIO("n\nyes\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    assert printed(capsys, "rm", work, "slope") == (
        1, f"Remove 'slope' of {work}? [y/N] ", "arraychest rm: nothing was removed\n"
    )  # fmt: skip
    assert printed(capsys, "rm", work, "slope", "nope", "--yes")[0] == 1
    assert keys_of(work) == before
    assert printed(capsys, "rm", work, "slope", "--match", "*ed")[0] == 0
    assert keys_of(work) == [("tile", 3), NUMBERED, "tree", HOSTILE]
    assert printed(capsys, "rm", work, "--match", "no*")[0] == 1
    assert "expected keys to remove" in printed(capsys, "rm", work)[2]


# --- info and du ------------------------------------------------------------------------------


def test_a_chest_is_told_of_in_figures(work, capsys):
    told = json.loads(printed(capsys, "info", work, "--json")[1])
    assert (told["entries"], told["kinds"]) == (7, {"array": 5, "tree": 1, "blocked": 1})
    assert told["codecs"] == {"pack": 4, "npy": 1, "lz4": 1, "blocks": 1}
    assert told["disk_bytes"] > told["stored_bytes"] > FIELD.nbytes
    code, out, _ = printed(capsys, "info", work)
    assert code == 0
    assert "array 5, " in out


@pytest.mark.parametrize("key", ["slope", "packed", "blocked"])
def test_a_value_is_told_of_in_figures_and_a_picture(work, capsys, key):
    told = json.loads(printed(capsys, "info", work, key, "--json")[1])
    assert (told["shape"], told["dtype"], told["NaN"]) == ([300, 400], "float32", 0)
    assert (told["min"], told["max"]) == (FIELD.min(), FIELD.max())
    wide = FIELD.astype("f8")
    assert np.allclose([told["mean"], told["std"]], [wide.mean(), wide.std()], rtol=1e-12)
    lines = printed(capsys, "info", work, key)[1].splitlines()
    assert max(map(len, lines[-16:])) == 64
    assert lines[-16][0] != lines[-1][-1]  # from the least to the most
    assert "min" not in printed(capsys, "info", work, key, "--quick")[1]


def test_figures_leave_out_what_is_no_number(work, capsys):
    told = json.loads(printed(capsys, "info", work, repr(NUMBERED), "--json")[1])
    assert (told["min"], told["max"], told["NaN"], told["infinite"]) == (1.5, 1.5, 1, 1)
    assert "min" not in json.loads(printed(capsys, "info", work, "tree", "--json")[1])


def test_a_terminal_without_unicode_gets_plain_characters(work, capsys, monkeypatch):
    from arraychest.cli import about

    monkeypatch.setattr(about.sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    main(["info", str(work), "slope"])
    about.sys.stdout.flush()
    assert b"####" in about.sys.stdout.buffer.getvalue()


def test_sizes_are_summed_by_prefix_and_codec(path, capsys):
    arraychest.Chest(
        {"a/x": np.zeros(3), "a/y": np.zeros(5), "b": np.zeros(2), ("t", 1): 7}, path
    ).close()
    out = printed(capsys, "du", path)[1]
    rows = {line.split("\t")[0]: line.split("\t")[1:3] for line in out.splitlines()}
    assert rows["a/"] == ["2", "64 B"]
    assert rows["(no prefix)"] == ["1", "16 B"]
    assert rows["t"][0] == "1"
    assert rows["total"][0] == "4"
    (pack,) = json.loads(printed(capsys, "du", path, "--by", "codec", "--json")[1])
    assert (pack["codec"], pack["entries"]) == ("pack", 4)


# --- repair and compact -----------------------------------------------------------------------


def test_damage_is_mended_and_a_lost_catalog_made_anew(work, capsys):
    with arraychest.open(work, "r") as chest:
        file = chest.entry("slope").file
    with open(file, "r+b") as changed:
        changed.seek(5000)
        changed.write(b"\xff\xfe\xfd")
    assert printed(capsys, "verify", work)[0] == 1
    code, out, _ = printed(capsys, "repair", work)
    assert code == 0
    assert out.startswith("damaged\t'slope'\t")
    assert "quarantine" in out
    assert printed(capsys, "verify", work)[0] == 0
    os.unlink(f"{work}/catalog.sqlite")
    assert printed(capsys, "repair", work, "--json")[0] == 0
    assert "blocked" in keys_of(work)
    assert "nothing to mend" in printed(capsys, "repair", work)[1]


def test_holes_are_given_back(work, capsys):
    printed(capsys, "rm", work, "=('tile', 3)")
    assert "given back" in printed(capsys, "compact", work)[1]


@pytest.mark.parametrize("command", ["compact", "rm", "info", "du", "get", "repair", "verify"])
def test_a_wrong_path_makes_no_chest(tmp_path, capsys, command):
    more = ["x"] if command in ("rm", "get") else []
    code, out, err = printed(capsys, command, tmp_path / "nope", *more)
    assert (code, out) == (2 if command == "verify" else 1, "")
    assert err.count("\n") == 1
    assert not (tmp_path / "nope").exists()


# --- diff, cp and mv --------------------------------------------------------------------------


def test_two_chests_are_compared_value_by_value(work, tmp_path, capsys):
    other = tmp_path / "other.chest"
    assert printed(capsys, "cp", work, other) == (0, f"7 values copied to {other}\n", "")
    assert printed(capsys, "diff", work, other) == (0, "", "")
    with arraychest.open(other) as chest:
        del chest["slope"]
        with chest.edit("packed") as array:
            array[7, 7] = np.nan
        chest["tile", 3] = np.arange(12)
        chest["new"] = 1
    code, out, _ = printed(capsys, "diff", work, other)
    assert code == 1
    assert out.splitlines() == [
        "- slope", "~ packed\tother elements", "~ ('tile', 3)\t3x4 int64 and 12 int64", "+ new"
    ]  # fmt: skip
    assert "packed" not in printed(capsys, "diff", work, other, "--quick")[1]
    told = json.loads(printed(capsys, "diff", work, other, "--json")[1])
    assert told[1] == {"key": "'packed'", "what": "changed", "message": "other elements"}
    assert printed(capsys, "diff", work, tmp_path / "nope")[0] == 2


def test_some_values_are_copied_and_moved_linked_and_never_lost(work, tmp_path, capsys):
    other = tmp_path / "other.chest"
    assert printed(capsys, "cp", work, other, "slope", "blocked")[0] == 0
    with arraychest.open(work, "r") as one, arraychest.open(other, "r") as two:
        assert list(two) == ["slope", "blocked"]
        assert (two["blocked"][:] == one["blocked"][:]).all()
        assert os.path.samefile(one.entry("slope").file, two.entry("slope").file)
    code, _, err = printed(capsys, "mv", work, other, "--match", "s*")
    assert (code, "--overwrite" in err) == (1, True)
    assert "slope" in keys_of(work)
    assert printed(capsys, "mv", work, other, "--match", "s*", "--overwrite")[0] == 0
    assert "slope" not in keys_of(work)
    assert keys_of(other) == ["slope", "blocked"]
    assert printed(capsys, "cp", work, work)[0] == 1
    assert printed(capsys, "cp", work, tmp_path / "third", "nope")[0] == 1
    assert not (tmp_path / "third").exists()


def test_copying_from_a_chest_refuses_keys_that_it_has_not(work):
    with arraychest.open(work, "r") as one, arraychest.Chest() as two:
        with pytest.raises(arraychest.AbsentKeyError):
            two.copy_from(one, ["slope", "nope"])
        assert not two
        two["slope"] = 5
        two.copy_from(one, ["slope", ("tile", 3)], overwrite=False)
        assert two["slope"] == 5
        assert two["tile", 3].shape == (3, 4)


# --- as a whole -------------------------------------------------------------------------------


def test_every_command_tells_of_itself_with_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^    (\w+)\b", capsys.readouterr().out, re.MULTILINE))
    assert {
        "ls",
        "info",
        "get",
        "put",
        "rm",
        "export",
        "import",
        "du",
        "verify",
        "repair",
    } <= commands
    assert {"compact", "diff", "cp", "mv", "guide", "demo", "completion"} <= commands
    for command in commands - {"demo", "guide"}:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert "Example" in told, command
        assert "--debug" in told


def test_a_long_list_is_paged_at_a_terminal(work, capsys, monkeypatch):
    monkeypatch.setenv("PAGER", "cat")
    monkeypatch.setenv("LINES", "5")
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    paged = []
    monkeypatch.setattr("pydoc.pager", paged.append)
    printed(capsys, "ls", work)
    assert len(paged) == 1
    assert "slope" in paged[0]


def test_bash_completes_commands_and_options(capsys):
    script = printed(capsys, "completion", "bash")[1]
    for words, expected in (
        (["arraychest", "ver"], "verify"),
        (["arraychest", "ls", "--so"], "--sort"),
    ):
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _arraychest"
        found = subprocess.run(
            ["bash", "-c", f'{script}\n{asked}; echo "${{COMPREPLY[@]}}"'],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert (found.stdout.split(), found.stderr) == ([expected], "")
    assert "bashcompinit" in printed(capsys, "completion", "zsh")[1]
    assert "complete -c arraychest" in printed(capsys, "completion", "fish")[1]


def test_ctrl_c_in_a_put_leaves_the_chest_as_it_was(work, tmp_path, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    np.save(tmp_path / "first.npy", FIELD)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=interrupted)))
    before = keys_of(work)
    found = printed(capsys, "put", work, "--each", tmp_path / "first.npy", "-")
    assert found == (130, "", "arraychest put: interrupted\n")
    assert keys_of(work) == before
    with arraychest.open(work, "r") as chest:
        assert chest.verify().ok


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--bytes", "foo"),
        ("--bytes", "-3"),
        ("--entries", "-1"),
        ("--entries", "few"),
        ("--days", "-1"),
        ("--days", "nan"),
    ],
)
def test_reduce_names_the_flag_whose_value_is_wrong(flag, text, capsys, tmp_path):
    with arraychest.open(tmp_path / "x.chest") as chest:
        chest["a"] = np.zeros(3)
    with pytest.raises(SystemExit) as ended:
        main(["reduce", str(tmp_path / "x.chest"), f"{flag}={text}", "--everything"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {flag}: expected" in told
    assert repr(text) in told
    with arraychest.open(tmp_path / "x.chest", "r") as chest:
        assert list(chest) == ["a"]
