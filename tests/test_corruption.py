"""Whatever is done to the files, an entry is right or a `CorruptEntryError`, and nothing else."""

from __future__ import annotations

import copy
import os
import random
import shutil
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import ChestFormatError, CorruptEntryError
from arraychest.values import equality
from arraychest.values.keys import encode_key
from tests.faults import Say, in_child

LARGE = arraychest.PACK_THRESHOLD // 8 + 10

VALUES: dict[Any, Any] = {
    "large": np.arange(LARGE, dtype=float),
    "large twin": -np.arange(LARGE, dtype=float),
    "large other": np.arange(2 * LARGE, dtype=np.int64).reshape(2, LARGE),
    "small": np.arange(30.0),
    "small twin": -np.arange(30.0),
    "small other": np.arange(12, dtype=np.int16).reshape(3, 4),
    "empty": np.zeros((0, 3)),
    "scalar": np.float32(1.5),
    "text": np.str_("words"),
    "large tree": [1, np.arange(LARGE, dtype=float), {"a": np.arange(3)}],
    "small tree": [None, {"a": np.arange(3)}, "text"],
}
LARGE_KEYS = [key for key in VALUES if str(key).startswith("large")]
SMALL_KEYS = [key for key in VALUES if key not in LARGE_KEYS]


@pytest.fixture(scope="module", params=[None, "lz4"], ids=["plain", "compressed"])
def original(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A chest of all these values; in one half of the tests the large ones are compressed."""
    path = tmp_path_factory.mktemp("original") / "chest"
    with arraychest.open(path, "w", compression=request.param) as chest:
        for key, value in VALUES.items():
            chest[key] = copy.deepcopy(value)
    return path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "chest"))


def file_of(folder: Path, key: Any) -> Path:
    with arraychest.open(folder, "r") as chest:
        return Path(chest.key_to_filename(key))


def got(chest: Any, key: Any) -> Any:
    """A value, read whole."""
    found = chest[key]
    return np.asarray(found) if type(found) is arraychest.CompressedArray else found


def same(found: Any, expected: Any) -> bool:
    if not isinstance(expected, np.ndarray | np.generic):
        return type(found) is type(expected) and equality.same(found, expected)
    return (
        type(found) is type(expected)
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and bool(np.all(found == expected))
    )


def check(folder: Path, damaged: set[Any], *, may_be_right: bool = False) -> None:
    """Read everything, and repair what is damaged, in a child that must not crash."""
    outcome = in_child(lambda say: _check(folder, damaged, may_be_right))
    assert outcome.error is None, outcome.error
    assert not outcome.signal, f"ended by signal {outcome.signal}"


def _check(folder: Path, damaged: set[Any], may_be_right: bool) -> None:
    bystander = folder.parent / "bystander"
    bystander.write_bytes(b"not ours")
    for mode in ("r", "a"):
        with arraychest.open(folder, mode) as chest:
            assert set(chest) == VALUES.keys()
            for key, expected in VALUES.items():
                assert key in chest
                if key not in damaged:
                    assert same(got(chest, key), expected), key
                    continue
                for _ in range(2):
                    try:
                        found = got(chest, key)
                    except CorruptEntryError as error:
                        assert repr(key) in str(error)
                        assert str(folder) in str(error)
                    else:
                        assert may_be_right, f"{key} was not found out"
                        assert same(found, expected), key
    # Half of them deleted, half overwritten; and twice, to use what was given back.
    with arraychest.open(folder, "a", 10 * LARGE) as chest:
        left = dict(VALUES)
        for number, key in enumerate(sorted(damaged, key=str)):
            if number % 2:
                with pytest.raises(CorruptEntryError) if not may_be_right else _nothing():
                    chest.pop(key)
                if key in chest:
                    del chest[key]
                del left[key]
            else:
                chest[key] = left[key] = np.full(3 * LARGE, 7.0)
        chest.flush()
        for key, expected in left.items():
            assert same(got(chest, key), expected), key
        for number in range(4):
            chest["more", number] = left["more", number] = np.full(LARGE + number, 8.0)
            chest["less", number] = left["less", number] = np.full(8 + number, 9.0)
        chest.flush()
        for number in range(4):
            chest["more", number] = left["more", number] = np.full(LARGE + number, 10.0)
            chest.flush()
        chest.compact()
    with arraychest.open(folder, "r") as chest:
        assert set(chest) == left.keys()
        for key, expected in left.items():
            assert same(got(chest, key), expected), key
    assert bystander.read_bytes() == b"not ours"


class _nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> bool:
        return bool(error[0]) and issubclass(error[0], CorruptEntryError)


Damage = Callable[[Path], object]


def _truncate(by: int) -> Damage:
    return lambda file: os.truncate(file, max(0, file.stat().st_size - by))


def _to(size: int) -> Damage:
    return lambda file: os.truncate(file, size)


def _extend(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more")


def _instead(make: Damage) -> Damage:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def _link_outside(file: Path) -> None:
    outside = (
        file.parents[2] / "bystander"
        if file.parent.name == "packs"
        else file.parents[3] / "bystander"
    )
    outside.write_bytes(b"not ours")
    file.symlink_to(outside)


def _link_to_copy(file: Path) -> None:
    # The very bytes, behind a link: still no file of the chest's own.
    copy = file.parent.parent / "copy"
    file.rename(copy)
    file.symlink_to(copy)


def _socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(file.parent)  # a socket's path is at most 108 characters long
        try:
            server.bind(file.name)
        finally:
            os.chdir(here)


def _foreign_npy(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.arange(LARGE, dtype=float))


def _same_size(byte: bytes) -> Damage:
    def damage(file: Path) -> None:
        file.write_bytes(byte * file.stat().st_size)

    return damage


ANY_FILE: dict[str, Damage] = {
    "emptied": _to(0),
    "cut to a byte": _to(1),
    "cut to its header": _to(64),
    "cut to a page": _to(4096),
    "deleted": lambda file: file.unlink(),
    "a directory": _instead(lambda file: file.mkdir()),
    "a full directory": _instead(lambda file: (file / "within").mkdir(parents=True)),
    "a pipe": _instead(os.mkfifo),
    "a socket": _instead(_socket),
    "a link to elsewhere": _instead(_link_outside),
    "a link to its copy": _link_to_copy,
    "a link to itself": _instead(lambda file: file.symlink_to(file)),
    "a link to nothing": _instead(lambda file: file.symlink_to(file.parent / "nothing")),
    "a device": _instead(lambda file: os.mknod(file, 0o666 | 0o020000, os.makedev(1, 5))),
    "foreign": _foreign_npy,
    "zeros": _same_size(b"\0"),
    "ones": _same_size(b"\xff"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("damage", ANY_FILE.values(), ids=ANY_FILE)
def test_a_damaged_value_file_is_told_and_the_rest_stays_readable(folder, damage):
    damage(file_of(folder, "large"))
    check(folder, {"large"})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("damage", ANY_FILE.values(), ids=ANY_FILE)
def test_a_damaged_pack_is_told_and_the_rest_stays_readable(folder, damage):
    pack = file_of(folder, "small")
    size = pack.stat().st_size
    damage(pack)
    # Values at the front of a pack that was cut behind them are whole.
    front = pack.is_file() and pack.stat().st_size in range(64, size)
    longer = damage is ANY_FILE["cut to a page"]  # it is shorter than a page
    check(folder, set(SMALL_KEYS), may_be_right=front or longer)


@pytest.mark.parametrize("by", [1, 8, 31, 32, 33, 4096, 8 * LARGE])
def test_a_value_file_cut_short_anywhere_is_told(folder, by):
    _truncate(by)(file_of(folder, "large"))
    check(folder, {"large"})


@pytest.mark.parametrize("by", [1, 40, 64, 300])
def test_values_behind_the_end_of_a_pack_are_told(folder, by):
    _truncate(by)(file_of(folder, "small"))
    check(folder, set(SMALL_KEYS), may_be_right=True)


def test_a_pack_that_was_cut_short_is_not_gone_on_with(folder):
    """Appending would fill what is lost with zeros, which would be read as values."""
    file = file_of(folder, "small")
    os.truncate(file, 64)
    with arraychest.open(folder) as chest:
        chest["new"] = np.arange(1000.0)
        chest.flush()
        for key in ("small", "small twin", "small other"):
            with pytest.raises(CorruptEntryError):
                chest[key]
        assert same(got(chest, "new"), np.arange(1000.0))
    assert file.stat().st_size == 64


def test_a_pack_replaced_by_another_file_is_not_written_to(folder):
    file = file_of(folder, "small")
    file.write_bytes(b"x" * 100_000)
    with arraychest.open(folder) as chest:
        chest["new"] = np.arange(10.0)
    assert file.read_bytes() == b"x" * 100_000
    with arraychest.open(folder, "r") as chest:
        assert same(got(chest, "new"), np.arange(10.0))


def test_an_extended_value_file_is_told(folder):
    _extend(file_of(folder, "large"))
    check(folder, {"large"})


def test_an_extended_pack_is_what_an_interrupted_append_leaves_and_harmless(folder):
    _extend(file_of(folder, "small"))
    check(folder, set())


@pytest.mark.parametrize("twin", ["large twin", "large other"], ids=["same shape", "other shape"])
def test_two_swapped_value_files_are_told(folder, twin):
    one, two = file_of(folder, "large"), file_of(folder, twin)
    aside = folder / "data" / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    check(folder, {"large", twin})


def test_a_value_file_copied_over_another_is_told(folder):
    shutil.copy(file_of(folder, "large twin"), file_of(folder, "large"))
    check(folder, {"large"})


def test_a_value_file_of_the_same_key_from_another_chest_is_told(folder, original, tmp_path):
    with arraychest.open(tmp_path / "second", "w") as chest:
        chest["large"] = VALUES["large"] + 1
    shutil.copy(file_of(tmp_path / "second", "large"), file_of(folder, "large"))
    check(folder, {"large"})


def test_a_pack_from_another_chest_is_told(folder, tmp_path):
    with arraychest.open(tmp_path / "second", "w") as chest:
        for key in SMALL_KEYS:
            chest[key] = VALUES[key].copy()
    shutil.copy(file_of(tmp_path / "second", "small"), file_of(folder, "small"))
    check(folder, set(SMALL_KEYS))


@pytest.mark.parametrize("at", [-32, -25, -24, -17, -16, -9])
def test_a_flipped_byte_in_the_trailer_is_told(folder, at):
    file = file_of(folder, "large")
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)
    check(folder, {"large"})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("at", range(0, 128, 9))
def test_a_flipped_byte_in_an_npy_header_changes_nothing_here(folder, at):
    """Shape and dtype come from the catalog; the header is for `np.load`."""
    file = file_of(folder, "large")
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)
    if file.suffix == ".b2nd":
        check(folder, {"large"})  # Blosc2 would believe it
        return
    with arraychest.open(folder, "r") as chest:
        assert same(got(chest, "large"), VALUES["large"])


@pytest.mark.parametrize("at", [0, 15, 16, 24, 31])
def test_a_flipped_byte_in_a_pack_header_is_told(folder, at):
    file = file_of(folder, "small")
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)
    check(folder, set(SMALL_KEYS))


@pytest.mark.parametrize("name", ["data", "packs"])
def test_a_whole_folder_that_is_gone_is_told(folder, name):
    shutil.rmtree(folder / name)
    check(folder, set(LARGE_KEYS if name == "data" else SMALL_KEYS))


@pytest.mark.parametrize("name", ["data", "packs"])
def test_a_file_in_the_place_of_a_folder_is_told_by_gets(folder, name):
    shutil.rmtree(folder / name)
    (folder / name).write_bytes(b"file")
    with arraychest.open(folder, "r") as chest:
        for key in LARGE_KEYS if name == "data" else SMALL_KEYS:
            with pytest.raises(CorruptEntryError, match=r"large|small|empty|scalar|text"):
                chest[key]


def test_a_link_in_a_strangers_chest_never_has_us_write_outside(folder, tmp_path):
    """A freed file may be overwritten for the next value: never the target of a link."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 100_000)
    for key in ("large", "small"):
        file = file_of(folder, key)
        file.unlink()
        file.symlink_to(victim)
    with arraychest.open(folder, "a", 100) as chest:
        del chest["large"]
        chest["small"] = np.ones(4)
        chest.flush()
        for number in range(5):
            chest[number] = np.full(LARGE, float(number))
            chest["s", number] = np.full(10, float(number))
        chest.flush()
        with pytest.raises((CorruptEntryError, OSError)):
            chest.compact()  # what else lived in the pack cannot be moved
        assert all(same(got(chest, number), np.full(LARGE, float(number))) for number in range(5))
    assert victim.read_bytes() == b"precious" * 100_000


def test_a_linked_lock_file_in_a_strangers_chest_is_not_written_to(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / "locks").unlink()
    (folder / "locks").symlink_to(victim)
    with pytest.raises(ChestFormatError, match="locks"):
        arraychest.open(folder)
    assert victim.read_bytes() == b"precious"
    with arraychest.open(folder, "r") as chest:
        assert same(got(chest, "large"), VALUES["large"])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_something_else_as_lock_file_is_told(folder, make):
    (folder / "locks").unlink()
    make(folder / "locks")
    with pytest.raises(ChestFormatError, match="locks"):
        arraychest.open(folder)


# --- the catalog ---------------------------------------------------------------------------


def _random_page(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for at in range(4096, len(data), 7):
        data[at] ^= 0x5A
    file.write_bytes(data)


def _other_database(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE entry(key, value)")
    connection.close()


def _sql(*statements: str) -> Damage:
    def damage(file: Path) -> None:
        connection = sqlite3.connect(file)
        try:
            for statement in statements:
                connection.execute(statement)
            connection.commit()
        finally:
            connection.close()

    return damage


CATALOGS: dict[str, Damage] = {
    "cut to a byte": _to(1),
    "cut to half a header": _to(50),
    "cut to a page": _to(4096),
    "garbage": lambda file: file.write_bytes(os.urandom(20_000)),
    "text": lambda file: file.write_text("no database " * 1000),
    "flipped pages": _random_page,
    "another database": _other_database,
    "a newer format": _sql("PRAGMA user_version = 99"),
    "no tables": _sql("DROP TABLE entry", "DROP TABLE pack", "DROP TABLE meta"),
    "no entries' table": _sql("DROP TABLE entry"),
    "no packs' table": _sql("DROP TABLE pack"),
    "other columns": _sql("DROP TABLE entry", "CREATE TABLE entry(a, b)"),
    "fewer columns of packs": _sql("DROP TABLE pack", "CREATE TABLE pack(id)"),
    "words in packs": _sql(
        "DROP TABLE pack",
        "CREATE TABLE pack(id, stamp, bytes, live, sealed)",
        "INSERT INTO pack VALUES('one', NULL, 2.5, x'00', 'no')",
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("damage", CATALOGS.values(), ids=CATALOGS)
def test_a_damaged_catalog_is_an_error_of_ours_and_nothing_is_touched(folder, damage, mode):
    damage(folder / "catalog.sqlite")
    values = sorted((folder / "data").rglob("*")) + sorted((folder / "packs").rglob("*"))

    def child(say: Say) -> str:
        try:
            with arraychest.open(folder, mode) as chest:
                for key in list(chest):
                    chest[key]
                len(chest)
        except (ChestFormatError, CorruptEntryError) as error:
            assert str(folder) in str(error)
            return "told"
        return "nothing"

    outcome = in_child(child)
    assert outcome.error is None, outcome.error
    assert outcome.result == "told", outcome
    assert sorted((folder / "data").rglob("*")) + sorted((folder / "packs").rglob("*")) == values


@pytest.mark.parametrize("damage", ["garbage", "text"])
def test_a_damaged_catalog_can_be_started_anew_with_mode_w(folder, damage):
    CATALOGS[damage](folder / "catalog.sqlite")
    with arraychest.open(folder, "w") as chest:
        assert len(chest) == 0
        chest["x"] = np.ones(3)
    with arraychest.open(folder, "r") as chest:
        assert dict(chest).keys() == {"x"}


@pytest.mark.parametrize("mode", ["r", "a", "w", "x"])
def test_another_programs_database_is_never_touched(folder, mode):
    """Nor is what lies beside it, whatever the mode."""
    _other_database(folder / "catalog.sqlite")
    before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    with pytest.raises((ChestFormatError, FileExistsError)):
        arraychest.open(folder, mode)
    after = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    lock = folder / "locks"
    assert {**before, lock: b""} == {**after, lock: b""}


def _form(descr: str = "'<f8'", shape: str = "(30,)", order: str = "'C'", kind: str = "'array'",
          aligned: str = "False") -> str:  # fmt: skip
    return f"({descr}, {shape}, {order}, {kind}, {aligned})"


HOSTILE_FORMS = {
    "empty": "",
    "words": "once upon a time",
    "a call": "__import__('os').system('false')",
    "brackets": "(" * 100_000,
    "matched brackets": "(" * 50_000 + ")" * 50_000,
    "lists": "[" * 90 + "]" * 90,
    "signs": "-" * 200_000 + "1",
    "inversions": "~" * 200_000 + "1",
    "sums": "1" + "+1" * 200_000,
    "a dict of dicts": "{1:" * 5000 + "1" + "}" * 5000,
    "a large number": "9" * 100_000,
    "two megabytes": "'" + "x" * (2 << 20) + "'",
    "NUL": "\0",
    "surrogates": "'\\ud800'",
    "too few": "('<f8', (30,))",
    "a number": "7",
    "negative shape": _form(shape="(-30,)"),
    "huge shape": _form(shape="(10**30,)"),
    "huge literal shape": _form(shape="(1000000000000000000000000000000,)"),
    "overflowing shape": _form(shape="(4294967296, 4294967296)"),
    "overflowing to the size": _form(shape="(2305843009213693952, 15, 2)"),
    "shape of a bool": _form(shape="(True, 30)"),
    "shape of a float": _form(shape="(30.0,)"),
    "shape of a list": _form(shape="[30]"),
    "shape of strings": _form(shape="('30',)"),
    "a thousand dimensions": _form(shape="(" + "1," * 1000 + ")"),
    "65 dimensions": _form(shape="(30," + "1," * 64 + ")"),
    "zero and huge": _form(shape="(0, 9223372036854775807, 9223372036854775807)"),
    "no bytes, huge shape": _form(descr="'|S0'", shape="(9223372036854775807, 4)"),
    "void, huge shape": _form(descr="'|V0'", shape="(9223372036854775807, 4)"),
    "object": _form(descr="'|O'", shape="(30,)"),
    "object as a scalar": _form(descr="'|O'", shape="()", kind="'scalar'"),
    "object in a struct": _form(descr="[('a', '|O')]", shape="(30,)"),
    "object as pickle": _form(descr="'|O'", shape="(30,)", kind="'pickle'"),
    "floats as pickle": _form(kind="'pickle'"),
    "unknown kind": _form(kind="'exec'"),
    "unknown order": _form(order="'K'"),
    "larger": _form(shape="(31,)"),
    "smaller": _form(shape="(29,)"),
    "wider": _form(descr="'<f16'"),
    "dtype of a number": _form(descr="5"),
    "dtype None": _form(descr="None"),
    "unknown dtype": _form(descr="'<q77'"),
    "huge dtype": _form(descr="'<U2147483647'", shape="(1,)"),
    "too huge dtype": _form(descr="'<U99999999999'", shape="(1,)"),
    "huge sub-array": _form(descr="[('a', '<f8', (2147483647, 2147483647))]", shape="(1,)"),
    "negative sub-array": _form(descr="[('a', '<f8', (-1,))]", shape="(30,)"),
    "nested structs": _form(descr="[('a', " * 60 + "'<f8'" + ")]" * 60, shape="(30,)"),
    "fields of one name": _form(descr="[('a', '<f4'), ('a', '<f4')]"),
    "aligned without fields": _form(aligned="True"),
    "a string as fields": _form(descr="'f8,O'", shape="(1,)"),
    "StringDType": _form(descr="'T'", shape="(15,)"),
    "text scalar of no text": _form(descr="'<U1'", shape="(60,)", kind="'scalar'"),
    "bool": _form(descr="'|b1'", shape="(240,)"),
    "scalar of many": _form(kind="'scalar'"),
    "dates": _form(descr="'<M8[99999999999999Y]'"),
    "titles": _form(descr="[((1, 2), '<f8')]"),
}  # fmt: skip


def tamper(folder: Path, key: Any, /, **columns: Any) -> None:
    connection = sqlite3.connect(folder / "catalog.sqlite")
    try:
        for column, value in columns.items():
            connection.execute(
                f"UPDATE entry SET {column} = ? WHERE key = ?", (value, encode_key(key).canonical)
            )
        connection.commit()
    finally:
        connection.close()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", HOSTILE_FORMS.values(), ids=HOSTILE_FORMS)
def test_a_hostile_form_is_told_and_never_evaluated(folder, form):
    def child(say: Say) -> None:
        for key in ("small", "large"):
            tamper(folder, key, form=form)
        with arraychest.open(folder, "a") as chest:
            for key in ("small", "large"):
                for action in (chest.__getitem__, chest.entry):
                    try:
                        found = action(key)
                    except CorruptEntryError as error:
                        assert repr(key) in str(error)
                    except arraychest.PickleRefusedError:
                        assert form == HOSTILE_FORMS["object as pickle"]
                    else:
                        # Bytes of the same number under another name are not memory of others.
                        assert action != chest.__getitem__ or found.nbytes <= 240
                        assert action != chest.__getitem__ or key == "small"
            for key in VALUES.keys() - {"small", "large"}:
                assert same(got(chest, key), VALUES[key])
            del chest["large"]
            chest["small"] = np.ones(5)
            chest.flush()
            chest.compact()
        with arraychest.open(folder, "r") as chest:
            assert same(got(chest, "small"), np.ones(5))
            assert "large" not in chest

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error


NUMBERS = {
    "zero": 0, "one": 1, "minus one": -1, "63": 63, "65": 65, "a page": 4096, "2**31": 1 << 31,
    "2**62": 1 << 62, "most": (1 << 63) - 1, "least": -(1 << 63), "text": "x", "a float": 1.5,
    "bytes": b"\x00", "infinite": float("inf"),
}  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("column", ["gen", "pack", "offset", "stored", "stamp"])
@pytest.mark.parametrize("key", ["small", "large"])
def test_a_hostile_number_in_a_row_is_told(folder, key, column, number):
    if (key, column, number) == ("large", "offset", 0) and file_of(folder, key).suffix == ".b2nd":
        pytest.skip("so it is")

    def child(say: Say) -> None:
        tamper(folder, key, **{column: number})
        for mode in ("r", "a"):
            with arraychest.open(folder, mode) as chest:
                try:
                    found = chest[key]
                except CorruptEntryError as error:
                    assert repr(key) in str(error)
                else:
                    # A packed value is found by its place alone.
                    assert key == "small"
                    assert found.shape == VALUES[key].shape
                    assert found.dtype == VALUES[key].dtype
                    assert column in ("gen", "stamp") or (column, number) == ("offset", 4096), found
                    assert same(found, VALUES[key])
                for other in VALUES.keys() - {key}:
                    assert same(got(chest, other), VALUES[other])
                chest.stats()
                repr(chest)
        with arraychest.open(folder, "a") as chest:
            chest[key] = np.ones(9)
            chest.flush()
            del chest[key]
            chest.flush()
            chest.compact()
            for other in VALUES.keys() - {key}:
                assert same(got(chest, other), VALUES[other])
        with arraychest.open(folder, "r") as chest:
            assert set(chest) == VALUES.keys() - {key}

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error


@pytest.mark.parametrize("pack", [1, 1 << 40, -5])
def test_a_row_that_names_a_missing_pack_is_told_and_can_be_deleted(folder, pack):
    tamper(folder, "small", pack=pack)
    with arraychest.open(folder) as chest:
        with pytest.raises(CorruptEntryError, match="small"):
            chest["small"]
        del chest["small"]
        chest.flush()
        assert "small" not in chest
        assert same(got(chest, "small twin"), VALUES["small twin"])


def test_rows_whose_packed_values_overlap_stay_within_the_pack(folder):
    tamper(folder, "small", offset=64)
    with arraychest.open(folder) as chest:
        assert chest["small"].shape == (30,)


HOSTILE_KEYS = {
    "empty": b"", "no tag": b"\xff\xfe", "cut tuple": b"(\x05\x00\x00\x00s", "long": b"(\xff\xff\xff\xffs",
    "bad UTF-8": b"s\xff\xff", "no number": b"izz", "huge number": b"i" + b"f" * 100_000,
    "cut float": b"f\x00", "cut UUID": b"Uxyz", "no date": b"d9999-99-99", "no time": b"tnever",
    "far time": b"u" + b"f" * 40, "far delta": b"l" + b"f" * 40, "nested": b"(" * 500,
    "deep": b"", "unknown path": b"PEvil\x00x", "no path": b"P", "bad scalar": b"n<q77\x00abc",
    "object scalar": b"n|O\x00" + struct.pack("<Q", 0xDEADBEEF), "huge scalar": b"n<U999999999\x00a",
    "void scalar": b"nV8\x00abcdefgh", "cut scalar": b"n<f8\x00abc", "no scalar": b"n",
    "zone folder": b"ZAmerica\x000\x002020-01-01", "zone path": b"Z../../etc/passwd\x000\x002020-01-01",
    "no zone": b"Z", "bad bool": b"?7", "bad ratio": b"r1/0",
}  # fmt: skip


def _deep() -> bytes:
    code = b"-"
    for _ in range(2000):
        code = b"(" + struct.pack("<I", len(code)) + code
    return code


HOSTILE_KEYS["deep"] = _deep()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("where", ["key", "exact"])
@pytest.mark.parametrize("code", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS)
def test_an_undecodable_key_is_told_and_does_no_harm(folder, code, where):
    def child(say: Say) -> None:
        tamper(folder, "small", **{where: code})
        for mode in ("r", "a"):
            with arraychest.open(folder, mode) as chest:
                try:
                    list(chest)
                    list(reversed(chest))
                except CorruptEntryError as error:
                    assert str(folder) in str(error)
                for key in VALUES.keys() - {"small"}:
                    assert same(got(chest, key), VALUES[key])
                assert len(chest) == len(VALUES)
        with arraychest.open(folder, "a") as chest:
            chest["new"] = np.ones(3)
            del chest["large"]
            chest.flush()
        with arraychest.open(folder, "r") as chest:
            assert same(got(chest, "new"), np.ones(3))

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error


@pytest.mark.parametrize("seq", [0, -1, "x", 1.5, (1 << 63) - 1, -(1 << 63), b"x"], ids=str)
def test_a_hostile_place_in_the_order_does_no_harm_to_others(folder, seq):
    def child(say: Say) -> None:
        tamper(folder, "small", seq=seq)
        for mode in ("r", "a"):
            try:
                with arraychest.open(folder, mode) as chest:
                    for key in VALUES.keys() - {"small"}:
                        assert same(got(chest, key), VALUES[key])
                    for action in (lambda: list(chest), lambda: chest["small"]):
                        try:
                            action()
                        except CorruptEntryError as error:
                            assert str(folder) in str(error)
            except ChestFormatError as error:
                assert str(folder) in str(error)

    outcome = in_child(child)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error


def test_a_pickle_that_was_damaged_is_told(tmp_path):
    path = tmp_path / "chest"
    with arraychest.open(path, "w", allow_pickle=True) as chest:
        chest["x"] = np.array([{"a": 1}, None, "text"], dtype=object)
    file = file_of(path, "x")
    data = bytearray(file.read_bytes())
    data[130:150] = b"\xff" * 20  # behind the header
    file.write_bytes(data)
    with (
        arraychest.open(path, "r", allow_pickle=True) as chest,
        pytest.raises(CorruptEntryError, match="'x'"),
    ):
        chest["x"]


def test_a_strangers_pickle_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'run'}",)

    path = tmp_path / "chest"
    with arraychest.open(path, "w", allow_pickle=True) as chest:
        chest["x"] = np.array([Evil()], dtype=object)
    with arraychest.open(path) as chest, pytest.raises(arraychest.PickleRefusedError):
        chest["x"]
    assert not (tmp_path / "run").exists()


# --- compressed values, damaged at random ----------------------------------------------------------


def _damaged(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """A file of the same size with bytes flipped, bytes of another in it, or its parts moved."""
    bad = bytearray(data)
    kind = generator.randrange(4)
    start, end = sorted(generator.sample(range(len(data)), 2))
    if kind == 0:
        for _ in range(generator.choice([1, 1, 1, 2, 10])):
            bad[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == 1:
        bad[start:end] = other[start:end].ljust(end - start, b"\0")
    elif kind == 2:
        bad[start:end] = bytes(end - start)
    else:
        bad[:] = bad[end:] + bad[start:end] + bad[:start]
    return bytes(bad)


def _damage_many(root: Path, codec: str, count: int) -> None:
    shape = (150, 300)
    array = (1000 * np.add.outer(np.sin(np.arange(150) / 9), np.arange(300) / 7)).astype("f8")
    array += np.random.default_rng(0).integers(0, 9, shape)
    with arraychest.open(root, "w", compression=codec) as chest:
        chest["x"], chest["other"] = array.copy(), -array
    file, other = file_of(root, "x"), file_of(root, "other")
    data, others = file.read_bytes(), other.read_bytes()

    def child(say: Say) -> dict[str, int]:
        generator = random.Random(codec)
        fared = {"told by the get": 0, "told by the read": 0, "right": 0}
        for _ in range(count):
            bad = _damaged(data, others, generator)
            file.unlink()  # never written over: others may have it mapped
            file.write_bytes(bad)
            with arraychest.open(root, "r") as chest:
                try:
                    found = chest["x"]
                except CorruptEntryError as error:
                    assert "'x'" in str(error)
                    fared["told by the get"] += 1
                    continue
                i, j = generator.randrange(100), generator.randrange(200)
                for part in ((slice(i, i + 40), slice(j, j + 80)), (i,), ...):
                    try:
                        read = found[part]
                    except CorruptEntryError as error:
                        assert "'x'" in str(error)
                        fared["told by the read"] += 1
                        break
                    assert read.tobytes() == array[part].tobytes(), "other values"
                else:
                    fared["right"] += 1  # nobody had to read what was damaged
                assert chest.verify().ok == (bad == data)
        return fared

    outcome = in_child(child, seconds=600)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    told = outcome.result["told by the get"] + outcome.result["told by the read"]
    assert told > 0.8 * count
    assert all(outcome.result.values())


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_damaged_compressed_files_are_told(tmp_path, codec):
    _damage_many(tmp_path / "chest", codec, 300)


@pytest.mark.stress
@pytest.mark.parametrize("codec", ["lz4", "zstd", "blosclz", "zlib", "lz4hc"])
def test_thousands_of_damaged_compressed_files_are_told(tmp_path, codec):
    _damage_many(tmp_path / "chest", codec, 3000)
