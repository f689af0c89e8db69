"""The command line: what is printed, to a terminal and to a pipe, and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import arraychest
from arraychest.cli import main

HOSTILE = "\x1b[2Jgone\n\u202e[red]"


@pytest.fixture
def full(path):
    with arraychest.open(path) as chest:
        chest["slope"] = np.zeros((300, 400))
        chest["small"] = np.arange(3, dtype="i2")
        chest["tree", 1] = {"a": np.arange(4), "b": None}
        chest[HOSTILE] = np.float32(2)
    return path


def printed(capsys, *arguments):
    code = main([str(each) for each in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_list_has_a_line_for_each_value_and_no_control_characters(full, capsys):
    code, out, err = printed(capsys, "ls", full)
    lines = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines[0][:6] == ["slope", "300x400", "float64", "938 KiB", "938 KiB", "npy"]
    assert re.fullmatch(r"\d+ (s|min)", lines[0][6])
    assert lines[1][:3] == ["small", "3", "int16"]
    assert lines[2][:3] == ["('tree', 1)", "-", "dict of 2"]
    assert lines[3][0] == repr(HOSTILE)
    assert "\x1b" not in out
    assert len(lines) == 4


def test_an_empty_key_is_listed(path, capsys):
    arraychest.Chest({"": np.arange(3)}, path).close()
    assert printed(capsys, "ls", path)[1].startswith("''\t3\t")


def test_a_list_is_sorted_filtered_and_turned(full, capsys):
    assert printed(capsys, "ls", full, "s*")[1].split("\t")[0] == "slope"
    _, out, _ = printed(capsys, "ls", full, "s*", "--sort", "size", "--reverse")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["small", "slope"]
    _, out, _ = printed(capsys, "ls", full, "--sort", "key")
    assert [line.split("\t")[0] for line in out.splitlines()] == sorted(
        ["slope", "small", "('tree', 1)", repr(HOSTILE)]
    )
    assert printed(capsys, "ls", full, "no*") == (0, "", "")


def test_a_list_as_json_tells_bytes_and_the_exact_keys(full, capsys):
    found = json.loads(printed(capsys, "ls", full, "--json")[1])
    assert [each["key"] for each in found] == list(
        map(repr, ["slope", "small", ("tree", 1), HOSTILE])
    )
    assert (found[0]["nbytes"], found[0]["shape"], found[0]["kind"]) == (
        960_000,
        [300, 400],
        "array",
    )
    assert os.path.getsize(found[0]["file"]) == found[0]["stored_bytes"]


def test_a_terminal_gets_a_table_in_which_keys_are_no_markup(full, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = printed(capsys, "ls", full)
    assert "shape" in out.splitlines()[0]
    assert "[red]" in out
    assert "\x1b[2J" not in out


def test_verify_finds_nothing_in_a_sound_chest_and_damage_in_another(full, capsys):
    code, out, _ = printed(capsys, "verify", full)
    assert (code, out) == (0, f"{full}: all is as it was written\n")
    with arraychest.open(full, "r") as chest:
        file = chest.entry("slope").file
    with open(file, "r+b") as damaged:
        damaged.seek(5000)
        damaged.write(b"\x01")
    assert printed(capsys, "verify", full, "--quick")[0] == 0
    code, out, _ = printed(capsys, "verify", full)
    assert code == 1
    assert out.split("\t")[:2] == ["damaged", "'slope'"]
    code, out, _ = printed(capsys, "verify", full, "--json")
    assert code == 1
    assert [each["key"] for each in json.loads(out)["findings"]] == ["'slope'"]


def test_reading_commands_make_no_chest(tmp_path, capsys):
    for command in ("ls", "verify"):
        code, out, err = printed(capsys, command, tmp_path / "absent")
        assert (code, out) == (2 if command == "verify" else 1, "")
        assert err.startswith(f"arraychest {command}: ")
        assert len(err.splitlines()) == 1
    assert not os.listdir(tmp_path)


def test_guides_are_listed_and_printed(capsys):
    code, out, _ = printed(capsys, "guide")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert code == 0
    assert {"pipelines", "out-of-core", "reopening", "file-format", "questions"} <= set(names)
    for name in names:
        assert printed(capsys, "guide", name)[1].startswith("# ")
    code, _, err = printed(capsys, "guide", "pipeline")
    assert code == 1
    assert "pipelines" in err


def test_export_and_import_are_commands(full, tmp_path, capsys):
    assert printed(capsys, "export", full, tmp_path / "all.npz")[0] == 0
    assert printed(capsys, "import", tmp_path / "other.chest", tmp_path / "all.npz")[0] == 0
    with arraychest.open(tmp_path / "other.chest", "r") as chest:
        assert list(chest) == ["slope", "small", ("tree", 1), HOSTILE]


def test_a_closed_pipe_is_no_error(full):
    with arraychest.open(full) as chest:
        chest.update({f"key {number:050}": 0 for number in range(3000)})
    listing = subprocess.Popen(
        [sys.executable, "-m", "arraychest", "ls", full],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    listing.stdout.readline()
    listing.stdout.close()
    assert listing.stderr.read() == b""
    listing.stderr.close()
    listing.wait()


def test_keys_and_guides_are_completed(path, capsys):
    arraychest.Chest({"slope": np.zeros(3), ("run", 1): np.zeros(3)}, path).close()
    assert printed(capsys, "completion", "--keys", path)[1].splitlines() == ["slope", "('run', 1)"]
    assert printed(capsys, "completion")[0] == 1
    script = printed(capsys, "completion", "bash")[1]
    assert "tutorial" in script
    program = f"""{script}
arraychest() {{ {sys.executable} -m arraychest "$@"; }}
COMP_WORDS=(arraychest get {path} "$1"); COMP_CWORD=3; _arraychest
printf '%s\\n' "${{COMPREPLY[@]}}"
COMP_WORDS=(arraychest guide tut); COMP_CWORD=2; _arraychest
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", program, "bash", "sl"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["slope", "tutorial"], done.stderr
