"""A chest from a stranger can only raise our errors: nothing else is read, written or run.

Each chest is opened and used in every way, in a child with 2 GiB of address space, beside files and
folders that are not its own.  What is defended against is a chest that was prepared beforehand, not
somebody who changes its folder while it is in use.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import resource
import shutil
import socket
import sqlite3
import struct
import sys
import tempfile
import time
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import (
    ArrayChestError,
    ChestFormatError,
    CorruptEntryError,
    PickleRefusedError,
    UnreadableValueError,
)
from arraychest.values import decoder, registry, taking_apart
from tests.faults import Say, in_child

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
VALUES: dict[Any, Any] = {
    "large": np.arange(LARGE, dtype=float),
    "large too": np.arange(LARGE, dtype=np.int64),
    "small": np.arange(30.0),
    ("a", 1): np.arange(12, dtype=np.int16).reshape(3, 4),
    5: np.float32(1.5),
    "text": np.str_("words"),
    "struct": np.zeros(3, [("a", "<i4"), ("b", "<f8")]),
    "tree": [1, {"a": np.arange(5), "b": (None, "text", {2.5})}, np.float32(1)],
    "large tree": {"a": np.arange(LARGE), "b": ["x" * 70_000, np.arange(LARGE, dtype=float)]},
}
ROOM = 2 << 30


# What `summed` keeps.
RESULTS = 2


def large_one(n: int) -> np.ndarray:
    return np.full(n, 3.0)


def sum_of(array: np.ndarray) -> float:
    return float(array.sum())


def summed(chest: Any) -> None:
    """A chain of cached functions, whose results are right."""
    made = chest.cache(large_one)(LARGE)
    assert chest.cache(sum_of)(made) == 3.0 * LARGE


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chest with a value file, a pack, a hole in it, and a folder of spares."""
    path = tmp_path_factory.mktemp("original") / "chest"
    with arraychest.open(path, "w") as chest:
        for key, value in VALUES.items():
            chest[key] = value.copy()
        # The catalog knows what was computed, and what it contains.
        summed(chest)
        chest["hole"] = np.arange(20.0)
        chest.flush()
        del chest["hole"]
    return path


@pytest.fixture
def top(original: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with the chest, and with what must stay as it is: ``victim`` and ``victims``."""
    # In memory, where that can be: what is synced here is soon thrown away.
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    made = Path(tempfile.mkdtemp(prefix="hostile-", dir=parent))
    shutil.copytree(original, made / "chest")
    make_victims(made, original)
    yield made
    shutil.rmtree(made)


def make_victims(top: Path, original: Path) -> None:
    (top / "victim").write_bytes(b"precious" * 1000)
    shutil.copytree(original, top / "victims")
    for folder in ("data", "packs"):  # what a link in the place of a folder would find
        for file in (original / folder).rglob("*.*"):
            shutil.copy(file, top / "victims" / file.name)


def victims(top: Path) -> dict[str, Any]:
    """What must not change."""
    found = {}
    for path in sorted([top / "victim", top / "victims", *(top / "victims").rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else sorted(os.listdir(path))
        found[str(path)] = content, status.st_mtime_ns, status.st_mode
    return found


# --- using a chest in every way --------------------------------------------------------------


class Tried:
    """Counts what was tried, and what of it was refused."""

    def __init__(self) -> None:
        self.count = self.refused = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.count += 1
        try:
            yield
        except (ArrayChestError, OSError):
            self.refused += 1


def touch(value: Any) -> None:
    """Read a value's first and last bytes."""
    if isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            touch(each)
    if isinstance(value, np.ndarray) and value.size and value.ndim and not value.dtype.hasobject:
        repr(value[(0,) * value.ndim])
        repr(value[(-1,) * value.ndim])


def some_keys(chest: Any) -> list[Any]:
    keys = list(VALUES)
    for number, key in enumerate(chest):
        if number >= 20:
            break
        if key not in keys:
            keys.append(key)
    return keys


def read_all(chest: Any, tried: Tried) -> list[Any]:
    keys = list(VALUES)
    with tried():
        len(chest)
    with tried():
        keys = some_keys(chest)
    with tried():
        next(reversed(chest), None)
    for key in keys:
        with tried():
            touch(chest[key])
        with tried():
            chest.__contains__(key)
        with tried():
            chest.entry(key)
        with tried():
            chest.handle(key).array()
    with tried():
        repr(chest)
        chest.stats()
    with tried():
        chest.cache(large_one).check(LARGE)
        chest.cache(large_one)(LARGE)
    return keys


def change_all(chest: Any, keys: list[Any], tried: Tried) -> None:
    keys = [*keys, "new"]
    with tried():
        chest.prefetch(keys)
    for number, key in enumerate(keys):
        match number % 5:
            case 0:
                with tried():
                    chest[key] = np.full(40, 1.0)
            case 1:
                with tried():
                    chest[key] = np.full(LARGE, 2.0)
            case 2:
                with tried():
                    del chest[key]
            case 3:
                with tried(), chest.edit(key) as array:
                    array[...] = array
                with tried():
                    chest["a tree", number] = [np.full(40, 1.0), {"a": np.full(LARGE, 2.0)}]
            case 4:
                with tried():
                    chest.pop(key)
    with tried():
        chest.flush()
    with tried(), chest.transaction():
        chest["in one", 1] = np.full(LARGE, 3.0)
        chest["in one", 2] = np.full(8, 3.0)
    with tried(), chest.create("made", LARGE) as array:
        array[:] = 4
    with tried():
        chest.compact()


def use(path: Path, mine: Path, *, everything: bool = True) -> Tried:
    """Do with a chest whatever can be done with one."""
    tried = Tried()
    with tried(), arraychest.open(path, "r") as chest:
        read_all(chest, tried)
    with tried(), arraychest.open(mine) as own:
        with tried(), arraychest.open(path, "r") as chest:
            own.update(chest)
        for key in own:
            with tried():
                touch(own[key])
    if everything:
        with tried(), arraychest.open(path, "a", mmap_mode="c", durable=True) as chest:
            read_all(chest, tried)
        with tried(), arraychest.open(path, "a") as chest:
            for key in chest:
                with tried(), chest.edit(key, in_place=True) as array:
                    array[...] = array
        with tried(), arraychest.open(mine, durable=True) as own:
            with tried(), arraychest.open(path, "a") as chest:
                own.update(chest)
            with tried():
                own.compact()
    with tried(), arraychest.open(path, "a", 200_000) as chest:
        change_all(chest, read_all(chest, tried), tried)
    if everything:
        with tried(), arraychest.open(path, "a") as chest:
            change_all(chest, read_all(chest, tried), tried)
        for by in ("lru", "cost"):
            with (
                tried(),
                arraychest.open(
                    path, "a", max_disk=4 * LARGE * 8, on_full="evict", evict_by=by
                ) as chest,
            ):
                for number in range(4):
                    with tried():
                        chest["much", number] = np.full(LARGE, 5.0)
                        chest.flush()
        with tried(), arraychest.open(path, "a") as chest:
            chest.clear()
        with tried():
            arraychest.open(path, "w").close()
        with tried():
            arraychest.open(path, "a").drop()
    return tried


def limited(seconds: float, work: Callable[[Say], Any]) -> Any:
    """Do something in a child with little memory and time, that must end by itself."""

    def child(say: Say) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return work(say)

    outcome = in_child(child, seconds=seconds)
    assert not outcome.signal, f"ended by signal {outcome.signal}: {outcome.said[-1:]}"
    assert outcome.error is None, f"{outcome.said[-1:]}: {outcome.error}"
    return outcome.result


def check(top: Path, *, refused: bool = False, everything: bool = True) -> None:
    """Use the chest in every way; afterwards its neighbours are as before.

    Parameters
    ----------
    refused
        Whether it must not even be opened.
    everything
        As `use` has it.
    """
    before = victims(top)

    def child(say: Say) -> None:
        if refused:
            for mode in ("r", "a", "w"):
                with pytest.raises((ChestFormatError, OSError)):
                    arraychest.open(top / "chest", mode).close()
        use(top / "chest", top / "mine", everything=everything)
        # Our own chest is sound, whatever was taken over.
        with arraychest.open(top / "mine") as own:
            for key in list(own):
                touch(own[key])
            own["after"] = np.ones(3)
            own.clear()
        with arraychest.open(top / "mine", "r") as own:
            assert list(own) == []

    limited(60, child)
    assert victims(top) == before
    assert {entry.name for entry in top.iterdir()} <= {"chest", "mine", "victim", "victims"}


def test_a_sound_chest_is_refused_nothing(top):
    before = victims(top)

    def child(say: Say) -> tuple[int, int]:
        tried = use(top / "chest", top / "mine")
        return tried.count, tried.refused

    count, refused = limited(60, child)
    assert count > 80
    assert refused < 30  # such as edits of a scalar, and gets of what was deleted
    assert victims(top) == before


# --- folders and files in the place of others --------------------------------------------------


def one_of(folder: Path, kind: str) -> str:
    return next(str(file.relative_to(folder)) for file in sorted(folder.rglob(f"*.{kind}")))


def place(top: Path, name: str) -> Path:
    """The path of what a name stands for, emptied."""
    folder = top / "chest"
    name = {"VALUE": one_of(folder, "npy"), "PACK": one_of(folder, "pack")}.get(name, name)
    name = name.replace("XX", one_of(folder, "npy").split("/")[1])
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("to", ["victims", "../victims", "nothing"])
@pytest.mark.parametrize(
    "name", ["data", "packs", "spare", "quarantine", "data/XX", "data/ff", "spare/1", "spare/2"]
)
def test_a_link_in_the_place_of_a_folder_is_refused(top, name, to):
    path = place(top, name)
    path.symlink_to(to if to.startswith("..") else top / to)
    check(top, refused=True)


def link(path: Path, top: Path) -> None:
    path.symlink_to(top / "victim")


def link_to_alike(path: Path, top: Path) -> None:
    path.symlink_to(top / "victims" / path.name)


def link_to_nothing(path: Path, top: Path) -> None:
    path.symlink_to(top / "made by us")


def hard_link(path: Path, top: Path) -> None:
    alike = top / "victims" / path.name
    os.link(alike if alike.is_file() else top / "victim", path)


def pipe(path: Path, top: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, top: Path) -> None:
    (path / "within").mkdir(parents=True)


def bound_socket(path: Path, top: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is at most 108 characters long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path, top: Path) -> None:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # as /dev/zero


def empty(path: Path, top: Path) -> None:
    path.touch()


def sparse(path: Path, top: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 42)


KINDS = [
    link, link_to_alike, link_to_nothing, hard_link, pipe, folder, bound_socket, device, empty,
    sparse,
]  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "name",
    [
        "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "catalog.sqlite-journal",
        "locks", "commits", "VALUE", "PACK",
    ],
)  # fmt: skip
def test_something_else_in_the_place_of_a_file_leads_nowhere(top, name, kind):
    path = place(top, name)
    before = victims(top)
    kind(path, top)
    if kind is hard_link:
        before = victims(top)
    check(top)
    if kind is not hard_link:
        assert victims(top) == before


@pytest.mark.parametrize("name", ["catalog.sqlite", "catalog.sqlite-wal"])
def test_a_linked_catalog_is_not_even_read(top, name):
    path = place(top, name)
    path.symlink_to(top / "victims" / "catalog.sqlite")
    check(top, refused=True)


# --- the catalog -----------------------------------------------------------------------------


def sql(top: Path, *statements: str) -> None:
    connection = sqlite3.connect(top / "chest" / "catalog.sqlite", isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement.replace("VICTIM", str(top / "victim")))
    finally:
        connection.close()


SCHEMAS = {
    "trigger": ["CREATE TRIGGER t AFTER INSERT ON entry BEGIN DELETE FROM entry; END"],
    "view": ["CREATE VIEW v AS SELECT 1"],
    "view of a name of ours": [
        "DROP TABLE change", "CREATE VIEW change AS SELECT 1 n, 2 session, NULL keys, NULL gone",
    ],
    "endless view": [
        "DROP TABLE change",
        "CREATE VIEW change AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
        "SELECT n, 2 session, NULL keys, NULL gone FROM r",
    ],
    "table": ["CREATE TABLE more(a)"],
    "check": [
        "DROP TABLE change",
        "CREATE TABLE change(n INTEGER PRIMARY KEY, session INTEGER NOT NULL, keys BLOB, gone BLOB,"
        " CHECK (length(hex(randomblob(400000000))) > 0))",
    ],
    "default": [
        "DROP TABLE session",
        "CREATE TABLE session(number INTEGER PRIMARY KEY DEFAULT (abs(-9223372036854775808)))",
    ],
    "generated column": [
        "DROP TABLE session",
        "CREATE TABLE session(number INTEGER PRIMARY KEY, "
        "more TEXT AS (hex(randomblob(400000000))) VIRTUAL)",
    ],
    "indexed expression": ["CREATE INDEX more ON entry(hex(zeroblob(100000)))"],
    "collation": [
        "DROP TABLE meta",
        "CREATE TABLE meta(name TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, value) WITHOUT ROWID",
    ],
    "full text": ["CREATE VIRTUAL TABLE more USING fts5(a)"],
}  # fmt: skip


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_a_catalog_of_another_schema_is_refused(top, statements):
    try:
        sql(top, *statements)
    except sqlite3.OperationalError as error:
        pytest.skip(str(error))  # a library without FTS
    before = victims(top)

    def child(say: Say) -> None:
        for mode in ("r", "a"):
            with pytest.raises(ChestFormatError, match=r"catalog\.sqlite"):
                arraychest.open(top / "chest", mode)

    limited(20, child)
    assert victims(top) == before


ROWS = {
    "gone: upwards": "INSERT INTO change VALUES (900, 77, NULL, CAST('../victim' AS BLOB))",
    "gone: from the root": "INSERT INTO change VALUES (900, 77, NULL, CAST('VICTIM' AS BLOB))",
    "gone: through a folder": "INSERT INTO change VALUES (900, 77, NULL, "
    "CAST('data/00/../../../victims/x-1.npy' AS BLOB))",
    "gone: NULs": "INSERT INTO change VALUES (900, 77, NULL, zeroblob(100000))",
    "gone: text": "INSERT INTO change VALUES (900, 77, NULL, '../victim')",
    "gone: no names": "INSERT INTO change VALUES (900, 77, NULL, x'ff00fe00')",
    "keys: far too many": "INSERT INTO change VALUES (900, 77, x'ffffffff', NULL)",
    "keys: far too long": "INSERT INTO change VALUES (900, 77, x'01000000ffffffff', NULL)",
    "keys: none of ours": "INSERT INTO change VALUES (900, 77, x'0100000002000000ffff', NULL)",
    "change: the last": "INSERT INTO change VALUES (9223372036854775807, 1, NULL, NULL)",
    "change: the first": "INSERT INTO change VALUES (-9223372036854775808, 1, NULL, NULL)",
    "change: of a word": "INSERT INTO change VALUES (900, 'word', 5, 1.5)",
    "session: huge": "INSERT INTO session VALUES (9223372036854775807)",
    "session: negative": "INSERT INTO session VALUES (-9223372036854775808)",
    "session: of another program's lock": "INSERT INTO session VALUES (4294967295)",
    "last session: huge": "UPDATE meta SET value = 9223372036854775807 WHERE name = 'session'",
    "last session: the last": "UPDATE meta SET value = 2147483645 WHERE name = 'session'",
    "last session: negative": "UPDATE meta SET value = -5 WHERE name = 'session'",
    "last session: a word": "UPDATE meta SET value = 'five' WHERE name = 'session'",
    "last session: bytes": "UPDATE meta SET value = x'05' WHERE name = 'session'",
    "last session: nothing": "UPDATE meta SET value = NULL WHERE name = 'session'",
    "no meta": "DELETE FROM meta",
    "pack: huge": "UPDATE pack SET bytes = 9223372036854775807, live = 9223372036854775807",
    "pack: far": "UPDATE pack SET bytes = 1 << 49, live = 1 << 49",
    "pack: negative": "UPDATE pack SET bytes = -1, live = -9223372036854775808",
    "pack: empty": "UPDATE pack SET bytes = 0, live = 0",
    "pack: of another number": "UPDATE pack SET id = -1",
    "pack: many": "INSERT INTO pack SELECT value, 1, 64, 0, 0, 64 FROM json_each('[1,2,3,4,5,-7]')",
    "pack: at the end of numbers": "INSERT INTO pack VALUES (9223372036854775807, 1, 64, 64, 0, 64)",
    "pack: none": "DELETE FROM pack",
    "seq: the last": "UPDATE entry SET seq = 9223372036854775807 WHERE seq = 3",
    "seq: nearly the last": "UPDATE entry SET seq = 4611686018427387904 WHERE seq = 3",
    "seq: negative": "UPDATE entry SET seq = seq - 1000",
    "seq: a word": "UPDATE entry SET seq = 'word' WHERE seq = 3",
    "gen: huge": "UPDATE entry SET gen = 9223372036854775807",
    "gen: negative": "UPDATE entry SET gen = -gen",
    "gen: a path": "UPDATE entry SET gen = '../../../victim'",
    "gen: all the same": "UPDATE entry SET gen = 4294967296",
    "offset: all the same": "UPDATE entry SET offset = 64",
    "stored: far": "UPDATE entry SET stored = 1 << 49",
    "stored: a pack's": "UPDATE entry SET stored = 65536, form = '8192 C <f8'",
    "all in a pack": "UPDATE entry SET pack = (SELECT id FROM pack)",
    "none in a pack": "UPDATE entry SET pack = NULL",
    "form: bytes": "UPDATE entry SET form = x'ff'",
    "form: no text": "UPDATE entry SET form = CAST(x'ff4320fe' AS TEXT)",
    "form: long": "UPDATE entry SET form = hex(zeroblob(3000000))",
    "exact: long": "UPDATE entry SET exact = zeroblob(3000000)",
    "exact: another key": "UPDATE entry SET exact = CAST('sother' AS BLOB)",
    "key: in other words": "UPDATE entry SET key = CAST('i005' AS BLOB) WHERE key = CAST('i5' AS BLOB)",
    "key: text": "UPDATE entry SET key = 'ssmall' WHERE key = CAST('ssmall' AS BLOB)",
    "key: a number": "UPDATE entry SET key = 7 WHERE key = CAST('ssmall' AS BLOB)",
    "key: empty": "UPDATE entry SET key = x'' WHERE key = CAST('ssmall' AS BLOB)",
    "key: long": "UPDATE entry SET key = zeroblob(3000000) WHERE key = CAST('ssmall' AS BLOB)",
    "in place: all": "INSERT INTO in_place SELECT gen FROM entry",
    "in place: huge": "INSERT INTO in_place VALUES (1 << 62)",
    **{f"digest: {name}": f"UPDATE digest SET digest = {value}" for name, value in {
        "nothing": "x''", "short": "x'78'", "long": "zeroblob(3000000)", "text": "'xxxxxxxxxxxxxxxxx'",
        "no text": "CAST(x'fffefdfcff' AS TEXT)", "a number": "7", "another function's": "zeroblob(17)",
    }.items()},
    "digest: of no part": "UPDATE digest SET part = -1",
    "digest: of a word": "UPDATE digest SET part = 'word'",
    "digest: of nobody": "INSERT INTO digest VALUES (9223372036854775807, 0, zeroblob(17))",
    "digest: many": "INSERT INTO digest SELECT e.gen, value, zeroblob(17) FROM entry e, "
    "json_each('[1,2,3,4,5,-7]')",
    **{f"cost: {name}": f"UPDATE cost SET seconds = {value}" for name, value in {
        "infinite": "9e999", "negative": "-1e300", "a word": "'word'", "bytes": "x'ff'",
        "no text": "CAST(x'fffe' AS TEXT)", "huge": "1.7e308", "a whole number": "1 << 62",
    }.items()},
    **{f"cost: expires {name}": f"UPDATE cost SET expires = {value}" for name, value in {
        "at the end": "9e999", "before all": "-9e999", "a word": "'word'", "bytes": "x'ff'",
        "no text": "CAST(x'fffe' AS TEXT)", "long": "zeroblob(3000000)",
    }.items()},
    "cost: of nobody": "INSERT INTO cost VALUES (-5, 1.0, 2.0, 3.0)",
    "renamed: of all": "INSERT INTO renamed SELECT gen, x'00' FROM entry",
    "expiry: of all": "INSERT INTO expiry SELECT 1.0, key FROM entry",
    "expiry: no key": "INSERT INTO expiry VALUES (1.0, x'00'), ('x', 'y')",
    "cost: of all": "INSERT OR REPLACE INTO cost SELECT gen, 1e299, -1.0, 'x' FROM entry",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("statement", ROWS.values(), ids=ROWS)
def test_a_row_made_by_hand_is_told_and_does_no_harm(top, statement):
    sql(top, statement)
    check(top)


FACTS = {name: statement for name, statement in ROWS.items() if name.startswith(("digest", "cost"))}


@pytest.mark.parametrize("statement", FACTS.values(), ids=FACTS)
def test_facts_made_by_hand_lead_to_no_wrong_result(top, statement):
    sql(top, statement)
    with arraychest.open(top / "chest", "r") as chest:
        summed(chest)
        assert chest.cache(sum_of)(np.zeros(LARGE)) == 0.0
    with arraychest.open(top / "chest", "a") as chest:
        summed(chest)
        # What is wrong is not what an array contains.
        assert chest.cache(sum_of).key(chest["large"]) == chest.cache(sum_of).key(VALUES["large"])
        assert chest.cache(sum_of)(chest["large"]) == VALUES["large"].sum()
        chest.compact()
        summed(chest)
        assert chest.verify().ok
        assert chest.repair().ok
        summed(chest)


FORMS = [
    "", " ", "30 C", "30 C ", "30 C |O", "30 Cp |O", "30 Cs |O", "30 Cp <f8", "30 Q <f8",
    "30 Cx <f8", "-30 C <f8", "-1,-30 C <f8", "1" + "0" * 30 + " C <f8", "9" * 5000 + " C <f8",
    "4294967296,4294967296 C <f8", "2305843009213693952,15,2 C <f8",
    "0,9223372036854775807,9223372036854775807 C <f8", "9223372036854775807,4 C |S0",
    "9223372036854775807,4 C |V0", "1," * 64 + "30 C <f8", "1," * 200_000 + "1 C <f8", "30 C <q77",
    "1 C <U2147483647", "1 C <U99999999999", "1 C |V2147483647", "30 C <M8[99999999999999Y]",
    "30 C f8,O", "30 C i4,(2147483647,)f8", "30 C __import__('os').system('false')", "30 C T",
    "15 C T", "30 Ca <f8", "- Cs <f8", "30 Cs <f8", "60 Cs <U1", "1_0 C <f8", "٣ C <f8",
    "30 C [('a', '|O')]", "30 C [('a', '<f8', (-1,))]", "30 C [('a', '<f4'), ('a', '<f4')]",
    "1 C [('a', '<f8', (2147483647, 2147483647))]", "1 C [('a', '|V2147483647'), ('b', '|V9')]",
    "1 C " + "[('a', " * 60 + "'<f8'" + ")]" * 60, "1 C " + "[" * 5000 + "]" * 5000,
    "30 C [((1, 2), '<f8')]", "30 C [__import__('os').system('false')]", "30 C [('a','<f8'),]*9**9",
    "30 C [1,2,3]", "30 C []", "30 C [()]", "30 C [('', '<f8')]", "30 C [('a\\x00b', '<f8')]",
    "30 Ca [('a', '<f8')]", "1 Ca [('a', '|i1'), ('b', '<f8')]", "30 C [" + "('a','<f8')," * 40_000 + "]",
    "30 C a8", "30 C \ud800".encode("utf-8", "replace").decode(), "30 C <f8\0<f8", "8192 C <f8",
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(len(FORMS)), ids=lambda number: repr(FORMS[number][:30]))
def test_a_form_made_by_hand_is_told_and_never_evaluated(top, number):
    connection = sqlite3.connect(top / "chest" / "catalog.sqlite")
    with connection:
        connection.execute("UPDATE entry SET form = ?", (FORMS[number],))
    connection.close()
    check(top, everything=False)


def rollback_journal(database: Path, named: Path) -> bytes:
    """A journal that asks to be played back, of a transaction over several databases."""
    page = int.from_bytes(database.read_bytes()[16:18], "big")
    pages = database.stat().st_size // page
    head = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 7, pages, 512, page)
    name = bytes(named)
    # The number of the page that is never used, the name, its length and sum, and the magic.
    lock_page = struct.pack(">I", (1 << 30) // page + 1)
    tail = struct.pack(">II", len(name), sum(name) & 0xFFFFFFFF)
    return head.ljust(512, b"\0") + lock_page + name + tail + bytes.fromhex("d9d505f920a163d7")


def test_a_rollback_journal_has_no_file_removed(top):
    """SQLite removes the file that such a journal names, wherever it lies."""
    doomed = top / "victims" / "named"
    doomed.write_bytes(b"precious")
    bare = top / "bare.sqlite"
    with contextlib.closing(sqlite3.connect(bare)) as connection:
        connection.execute("CREATE TABLE t(a)")
    Path(f"{bare}-journal").write_bytes(rollback_journal(bare, doomed))
    with contextlib.closing(sqlite3.connect(bare)) as connection:
        connection.execute("SELECT * FROM t").fetchall()
    if doomed.exists():
        pytest.skip(f"SQLite {sqlite3.sqlite_version} removes no file that a journal names")
    bare.unlink()
    doomed.write_bytes(b"precious")
    catalog = top / "chest" / "catalog.sqlite"
    journal = Path(f"{catalog}-journal")
    journal.write_bytes(rollback_journal(catalog, doomed))
    check(top, refused=True)
    # And where there is no catalog yet that it could belong to.
    data = journal.read_bytes()
    for size in (0, 50, 4096):
        shutil.rmtree(top / "chest", ignore_errors=True)
        (top / "chest").mkdir()
        catalog.write_bytes(bytes(size))
        journal.write_bytes(data)
        check(top)
    assert doomed.read_bytes() == b"precious"


def test_a_catalog_that_was_not_finished_is_made_anew_beside_its_journal(top):
    """A crash while the very first page is made leaves both."""
    shutil.rmtree(top / "chest")
    (top / "chest").mkdir()
    catalog = top / "chest" / "catalog.sqlite"
    with contextlib.closing(sqlite3.connect(catalog)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert catalog.stat().st_size >= 100
    Path(f"{catalog}-journal").write_bytes(rollback_journal(catalog, top / "victim"))
    with arraychest.open(top / "chest") as chest:
        chest["x"] = np.ones(3)
    with arraychest.open(top / "chest", "r") as chest:
        assert list(chest) == ["x"]
    assert (top / "victim").exists()


def test_folders_nested_without_end_are_left_alone(top):
    here = os.open(top / "chest" / "data", os.O_RDONLY)
    try:
        for _ in range(3000):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
    finally:
        os.close(here)
    sql(top, "INSERT INTO session VALUES (77)")

    def child(say: Say) -> None:
        with arraychest.open(top / "chest") as chest:
            assert len(chest) == len(VALUES) + RESULTS

    limited(20, child)
    remove_deep(top / "chest" / "data" / "d")


def remove_deep(folder: Path) -> None:
    """Remove folders that are too deep for `shutil.rmtree`."""
    aside = folder.parent / "aside"
    while True:
        inner = folder / "d"
        if not inner.exists():
            folder.rmdir()
            return
        inner.rename(aside)
        folder.rmdir()
        aside.rename(folder)


# --- chance ----------------------------------------------------------------------------------

NUMBERS = [
    0, 1, -1, 2, 63, 64, 65, 4096, 65536, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 49, 1 << 50, 1 << 62,
    (1 << 63) - 1, -(1 << 63), -(1 << 32), 1.5, -0.0, 1e308, float("inf"),
]  # fmt: skip
WORDS = [
    "", "x", "../../victim", "/etc/passwd", "30 C <f8", "C", "data/00/x-1.npy", "a\0b", "9" * 400,
    "- C |O", "- Cp |O", "1 C [('a', '<f8', (3,))]", "٣",
]  # fmt: skip


def any_value(rng: random.Random) -> Any:
    match rng.randrange(8):
        case 0:
            return None
        case 1 | 2 | 3:
            return rng.choice(NUMBERS)
        case 4:
            return rng.choice(WORDS)
        case 5:
            return rng.choice(WORDS).encode()
        case 6:
            return rng.randbytes(rng.choice((1, 4, 8, 9, 200)))
        case _:
            return rng.choice(b"sibfFcC?-({nUdtDZlPxMmru").to_bytes(1, "big") + rng.randbytes(
                rng.choice((0, 1, 4, 8, 16, 40))
            )


COLUMNS = {
    "entry": ("key", "seq", "exact", "form", "gen", "pack", "offset", "stored", "stamp"),
    "pack": ("id", "stamp", "bytes", "live", "sealed"),
    "in_place": ("gen",),
    "change": ("n", "session", "keys", "gone"),
    "digest": ("gen", "part", "digest"),
    "cost": ("gen", "seconds", "expires", "at"),
    "expiry": ("expires", "key"),
    "renamed": ("gen", "key"),
    "session": ("number",),
    "meta": ("name", "value"),
}


def mutate_rows(chest: Path, rng: random.Random) -> None:
    connection = sqlite3.connect(chest / "catalog.sqlite")
    try:
        for _ in range(rng.choice((1, 1, 2, 4))):
            table = rng.choice(["entry", "entry", *COLUMNS])
            with contextlib.suppress(sqlite3.Error, OverflowError):
                if rng.random() < 0.3:
                    row = [any_value(rng) for _ in COLUMNS[table]]
                    marks = ",".join("?" * len(row))
                    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)
                else:
                    column, first = rng.choice(COLUMNS[table]), COLUMNS[table][0]
                    keys = connection.execute(f"SELECT {first} FROM {table}").fetchall()
                    chosen = keys if rng.random() < 0.2 else keys and [rng.choice(keys)]
                    for (key,) in chosen:
                        connection.execute(
                            f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {first} = ?",
                            (any_value(rng), key),
                        )
        connection.commit()
    finally:
        connection.close()


def mutate_bytes(file: Path, rng: random.Random, parts: tuple[slice, ...]) -> None:
    data = bytearray(file.read_bytes())
    where = range(len(data))[rng.choice(parts)] or range(len(data))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.choice(where)
        size = rng.choice((1, 8, 64, 512, 4096))
        match rng.randrange(5):
            case 0:
                new = bytes([data[at] ^ 1 << rng.randrange(8)])
            case 1:
                new = rng.randbytes(1)
            case 2:
                new = struct.pack(">I", rng.choice((0, 1, 255, 65535, (1 << 32) - 1)))
            case 3:
                other = rng.choice(where)
                new = bytes(data[other : other + size])
            case _:
                new = bytes(size)
        new = new[: len(data) - at]
        data[at : at + len(new)] = new
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    file.write_bytes(data)


EVERYWHERE = (slice(None),)
ENDS = (slice(0, 128), slice(-64, None), slice(None))
# The header, the schema and the first pages of tables; then anything.
PAGES = (slice(0, 100), slice(100, 200), slice(0, 8192), slice(8192, None), slice(None))


def mutate(chest: Path, rng: random.Random) -> str:
    """Change something in a chest's folder; returns what."""
    kind = rng.choice(("rows", "rows", "rows", "catalog", "catalog", "value", "pack", "cache"))
    match kind:
        case "rows":
            mutate_rows(chest, rng)
        case "catalog":
            mutate_bytes(chest / "catalog.sqlite", rng, PAGES)
        case "value":
            mutate_bytes(chest / one_of(chest, "npy"), rng, ENDS)
        case "pack":
            mutate_bytes(chest / one_of(chest, "pack"), rng, ENDS)
        case _:
            (chest / "commits").write_bytes(rng.randbytes(rng.choice((0, 8, 23, 24, 100))))
            mutate_rows(chest, rng)
    return kind


def fuzz(top: Path, original: Path, seeds: range) -> tuple[int, int]:
    """Use chests that were changed at random; returns what was tried, and what was refused."""

    def child(say: Say) -> tuple[int, int]:
        count = refused = 0
        wrong: list[str] = []
        for seed in seeds:
            rng = random.Random(seed)
            shutil.copytree(original, top / "chest")
            say((seed, mutate(top / "chest", rng)))
            try:
                tried = use(top / "chest", top / "mine", everything=seed % 16 == 0)
                count += tried.count
                refused += tried.refused
            except Exception:
                wrong.append(f"seed {seed}: {traceback.format_exc()}")
            for folder in ("chest", "mine"):
                shutil.rmtree(top / folder, ignore_errors=True)
        assert not wrong, f"{len(wrong)} went wrong:\n" + "\n".join(wrong[:8])
        return count, refused

    return limited(30 + len(seeds) / 2, child)


def fuzzed(top: Path, original: Path, seeds: range) -> tuple[int, int]:
    shutil.rmtree(top / "chest", ignore_errors=True)
    before = victims(top)
    count, refused = fuzz(top, original, seeds)
    assert victims(top) == before
    assert {entry.name for entry in top.iterdir()} <= {"chest", "mine", "victim", "victims"}
    return count, refused


@pytest.mark.slow
def test_chance_finds_no_way_out(top, original):
    count, refused = fuzzed(top, original, range(200))
    assert 0 < refused < count


@pytest.mark.stress
def test_chance_finds_no_way_out_for_longer(top, original):
    """``HOSTILE_INPUTS`` inputs from ``HOSTILE_FIRST`` on."""
    first = int(os.environ.get("HOSTILE_FIRST", "1000"))
    most = int(os.environ.get("HOSTILE_INPUTS", "200000"))
    tried = refused = 0
    for start in range(first, first + most, 500):
        count, no = fuzzed(top, original, range(start, min(start + 500, first + most)))
        tried, refused = tried + count, refused + no
    print(f"{most} chests, {tried} operations tried, {refused} refused")


# --- value trees -------------------------------------------------------------------------------------


def u4(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def text(data: bytes) -> bytes:
    return u4(len(data)) + data


def one(node: bytes, tag: bytes = b"l") -> bytes:
    """A container of one node."""
    return tag + u4(1) + b"*" + node


def key(node: bytes) -> bytes:
    """A dict with one key."""
    return b"d" + u4(1) + b"*" + node + u4(1) + b"*-"


def references(count: int, of_each: int) -> bytes:
    """Tuples, each of the one before, as often as asked: of few bytes much, or deep, to hash."""
    links = b"".join(b"t" + u4(of_each) + b"*" + (b"m" + u4(n)) * of_each for n in range(1, count))
    return b"l" + u4(count + 1) + b"*t" + u4(0) + links + key(b"m" + u4(count))


MOST = (1 << 32) - 1
BOMB = b"cposix\nsystem\n(S'touch /tmp/arraychest-was-here'\ntR."
NAMES = [
    b"os.system", b"builtins.eval", b"posix", b"", b".", b"\0", b"\xff\xfe", b"planted.Thing",
    b"planted", b"x" * 100_000, b"arraychest.Chest", b"numpy", b"numpy.nothing", b"..planted",
    b"tests.faults.die",
]  # fmt: skip
STRUCTURES: dict[str, bytes] = {
    "nothing": b"",
    "no tag": b"\0",
    "two values": b"--",
    **{f"count {tag!r} of {kind!r}": tag + u4(MOST) + kind for tag in (b"l", b"t", b"e", b"z", b"d")
       for kind in (b"*", b"f", b"i", b"s", b"?", b"")},
    **{f"a count that fits {kind!r}": b"l" + u4(1 << 20) + kind + bytes(1 << 20)
       for kind in (b"*", b"f", b"i", b"s", b"?")},
    **{f"length {tag!r}": tag + u4(MOST) + b"x" for tag in (b"s", b"b", b"I", b"k", b"g", b"p", b"R")},
    **{f"half a number {tag!r}": tag + b"\1\2\3" for tag in (b"f", b"i", b"c", b"a", b"m", b"S", b"l")},
    **{f"deep {node[:1]!r}": node * 200_000 + b"-" for node in (
        b"l" + u4(1) + b"*", b"t" + u4(1) + b"*", b"z" + u4(1) + b"*", b"d" + u4(1) + b"*",
        b"x", b"r", b"h", b"R" + text(b"x"))},
    **{f"part {tag!r} {number}": tag + u4(number) for tag in (b"a", b"S", b"B") for number in (9, MOST)},
    "strings of negative length": b"l" + u4(2) + b"s" + u4(MOST, MOST) + b"xx",
    "bad text": b"s" + text(b"\xff\xfe"),
    "bad text of a part": b"S" + u4(0),
    "text of floats": b"S" + u4(1),
    "itself": one(b"m" + u4(0)),
    "itself in a tuple": one(one(b"m" + u4(1), b"t")),
    "itself as a key": key(b"m" + u4(0)),
    "an unborn one": one(b"m" + u4(7)),
    "no such reference": b"m" + u4(MOST),
    "a list as a key": key(b"l" + u4(0)),
    "a dict in a set": one(b"d" + u4(0, 0), b"e"),
    "an array as a key": key(b"a" + u4(1)),
    # From 3.12 on it has a hash.
    **({"a slice in a frozenset": one(b"x---", b"z")} if sys.version_info < (3, 12) else {}),
    "a key twice": b"d" + u4(2) + b"*11" + u4(2) + b"*--",
    "keys without values": b"d" + u4(1) + b"*1" + u4(0),
    "much to hash": references(60, 2),
    "more to hash": references(20, 40),
    "deep to hash": references(300_000, 1),
    "deep to hash in a set": references(99, 1) + b"",
    "a range of nothing": b"r---",
    "a range without step": b"r" + 3 * (b"i" + bytes(8)),
    "a range of strings": b"r" + 3 * (b"s" + text(b"a")),
    "a slice of itself": one(b"xm" + u4(0) + b"--"),
    "a time of nothing": b"h-",
    "a time of a date": b"hk" + text(b"d2020-01-01"),
    "a zone elsewhere": b"k" + text(b"Z" + b"".join(
        struct.pack(">I", len(part)) + part for part in (b"z../../etc/passwd", b"0", b"2020-01-01T00:00"))),
    "a zone with a long name": b"k" + text(b"Z" + b"".join(
        struct.pack(">I", len(part)) + part for part in (b"z" + b"x" * 10_000, b"0", b"2020-01-01"))),
    "a key's code of a tuple": b"k" + text(b"("),
    "a key's code of a str": b"k" + text(b"sx"),
    "a time delta without end": b"k" + text(b"l" + b"f" * 5000),
    "a scalar of objects": b"g" + text(b"- Cs |O") + text(bytes(8)),
    "a scalar of too few bytes": b"g" + text(b"- Cs <f8") + text(bytes(7)),
    "a scalar of many": b"g" + text(b"4294967296,4294967296 Cs <f8") + text(bytes(8)),
    "a scalar that is code": b"g" + text(b"- Cs [__import__('os').system('false')]") + text(bytes(8)),
    "an array in place of a scalar": b"g" + text(b"- C <f8") + text(bytes(8)),
    "a long int": b"I" + text(b"\x7f" * (1 << 20)),
    **{f"registered {name[:20]!r}": b"R" + text(name) + b"-" for name in NAMES},
    "registered, deep": b"".join(b"R" + text(b"x") for _ in range(50)) + b"-",
    "pickled": b"p" + text(BOMB) + u4(0),
    "pickled, long": b"P" + u4(2, 0),
    "pickled with many buffers": b"p" + text(BOMB) + u4(MOST),
    "pickled with no such buffer": b"p" + text(BOMB) + u4(1, 77),
    "pickled in a registered one": b"R" + text(b"os.system") + b"p" + text(BOMB) + u4(0),
}  # fmt: skip


def parts() -> list[Any]:
    return [np.full(9, 255, np.uint8), np.arange(3.0), np.frombuffer(BOMB, np.uint8)]


def put_together(structure: bytes) -> bool:
    """Whether it is a value; otherwise one of the errors that a get may raise was raised."""
    try:
        decoder.put_together(structure, parts(), allow_pickle=False)
    except (CorruptEntryError, PickleRefusedError, UnreadableValueError) as error:
        assert len(str(error)) < 1000
        return False
    return True


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that must not be imported because a file names it."""
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("planted")
def test_structures_made_by_hand_are_told_and_run_nothing():
    def child(say: Say) -> None:
        registry.of_name("numpy.x")  # what is installed may look what it knows
        modules = set(sys.modules)
        for name, structure in STRUCTURES.items():
            say(name)
            began = time.monotonic()
            good = put_together(structure)
            assert not good or name in ("a long int", "deep to hash in a set"), name
            assert time.monotonic() - began < 5, name
        new = {name.partition(".")[0] for name in set(sys.modules) - modules}
        assert new <= {"zoneinfo", "_zoneinfo"}, new
        assert not os.path.exists("/tmp/arraychest-was-here")

    limited(60, child)


GOOD = [
    None, [1, 2.5, -(2**70), True, "text", b"bytes", ..., 1j], {"a": [1.0, 2.0], "b": (1, 2), 3: {4}},
    [frozenset({(1, "x")}), slice(1, None), range(3), np.float32(1), np.str_("x")],
    [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.time(1), dt.timedelta(1), Path("/x"), uuid.UUID(int=1)],
    [np.arange(3), {"again": [np.arange(3.0)]}, "y" * 70_000], [[], (), [[]], {}, set()],
]  # fmt: skip


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    bad = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(bad) + 1)
        match rng.randrange(7):
            case 0 | 1:
                bad[at : at + 1] = bytes([rng.choice(b"-01.iIfcsSbBkhgarxltezdRpPm*\0\1\2\xff")])
            case 2:
                bad[at : at + 1] = rng.randbytes(1)
            case 3:
                bad[at : at + 4] = u4(rng.choice((0, 1, 2, 3, 255, 65_536, MOST)))
            case 4:
                del bad[at:]
            case 5:
                cut = sorted(rng.choices(range(len(other) + 1), k=2))
                bad[at : at + rng.randrange(8)] = other[slice(*cut)]
            case _:
                del bad[at : at + rng.randrange(8)]
    return bytes(bad)


def fuzz_structures(seeds: range) -> tuple[int, int]:
    """Returns how many of the structures were values all the same, and how many were not."""

    def child(say: Say) -> tuple[int, int]:
        good = [taking_apart.take_apart(value, allow_pickle=True).structure for value in GOOD]
        good.append(taking_apart.take_apart([object()], allow_pickle=True).structure)
        fared = [0, 0]
        for seed in seeds:
            rng = random.Random(seed)
            bad = mutated(rng.choice(good), rng.choice(good), rng)
            if seed % 500 == 0:
                say(seed)
            fared[put_together(bad)] += 1
        return fared[1], fared[0]

    return limited(30 + len(seeds) / 500, child)


def test_chance_finds_no_way_out_of_structures():
    values, refused = fuzz_structures(range(20_000))
    assert values > 1000
    assert refused > 1000


@pytest.mark.stress
def test_chance_finds_no_way_out_of_structures_for_longer():
    for start in range(100_000, 2_000_000, 100_000):
        fuzz_structures(range(start, start + 100_000))


def tree_bytes(
    structure: bytes,
    table: list[tuple[bytes, int, int, int]],
    behind: bytes = b"",
    count: int | None = None,
) -> bytes:
    """A value tree with a head made by hand: of each part its form, place, size, and a flag."""
    head = u4(len(table) if count is None else count)
    for form, start, nbytes, flag in table:
        head += text(form) + struct.pack("<QQB", start, nbytes, flag)
    head += structure
    data = struct.pack("<4sII", b"ATr1", len(head), zlib.crc32(head)) + head
    return data.ljust(4096, b"\0") + behind


A = b"a" + u4(0)
TABLES: dict[str, bytes] = {
    "too short": b"ATr1",
    "no magic": b"XXXX" + bytes(5000),
    "a head without end": struct.pack("<4sII", b"ATr1", MOST, 0) + bytes(5000),
    "another checksum": tree_bytes(b"-", [])[:8] + b"1234" + tree_bytes(b"-", [])[12:],
    "many parts": tree_bytes(A, [(b"1 C <f8", 4096, 8, 0)], bytes(64), MOST),
    "a form without end": tree_bytes(A, [(b"9" * 60_000 + b" C <f8", 4096, 8, 0)], bytes(70_000)),
    "beyond the end": tree_bytes(A, [(b"1 C <f8", 1 << 40, 8, 0)], bytes(64)),
    "across the end": tree_bytes(A, [(b"131072 C <f8", 4096, 1 << 20, 0)], bytes(64)),
    "at the end of the world": tree_bytes(A, [(b"1 C <f8", (1 << 64) - 64, 8, 0)], bytes(64)),
    "of a size that wraps": tree_bytes(A, [(b"1 C <f8", 4096, (1 << 64) - 64, 0)], bytes(64)),
    "in the head": tree_bytes(A, [(b"1 C <f8", 0, 8, 0)], bytes(64)),
    "between two elements": tree_bytes(A, [(b"1 C <f8", 4097, 8, 0)], bytes(64)),
    "overlapping": tree_bytes(A, [(b"16 C <f8", 4096, 128, 0)] * 2, bytes(256)),
    "one before another": tree_bytes(
        A, [(b"1 C <f8", 4160, 8, 0), (b"1 C <f8", 4096, 8, 0)], bytes(256)
    ),
    "of another size": tree_bytes(A, [(b"2 C <f8", 4096, 8, 0)], bytes(64)),
    "of objects": tree_bytes(A, [(b"1 C |O", 4096, 8, 0)], bytes(64)),
    "of pickled objects": tree_bytes(A, [(b"1 Cp |O", 4096, 8, 0)], bytes(64)),
    "a tree of a tree": tree_bytes(A, [(b"64 Ct |u1", 4096, 64, 0)], bytes(64)),
    "of code": tree_bytes(A, [(b"1 C [__import__('os')]", 4096, 8, 0)], bytes(64)),
    "of much": tree_bytes(A, [(b"4294967296,4294967296 C <f8", 4096, 8, 0)], bytes(64)),
    "of nothing, much": tree_bytes(A, [(b"0,9223372036854775807,99 C <f8", 4096, 0, 0)], bytes(64)),
    "compressed garbage": tree_bytes(A, [(b"1000 C <f8", 4096, 3000, 1)], bytes(range(250)) * 20),
    "compressed nothing": tree_bytes(A, [(b"1000 C <f8", 4096, 0, 1)], bytes(64)),
    "compressed, of much": tree_bytes(A, [(b"4294967296,99999 C <f8", 4096, 3000, 1)], bytes(3000)),
    "compressed text": tree_bytes(b"S" + u4(0), [(b"1000 C |u1", 4096, 3000, 1)], b"b2frame" * 700),
    "a flag of no meaning": tree_bytes(A, [(b"1 C <f8", 4096, 8, 77)], bytes(64)),
    "no structure": tree_bytes(b"", [(b"1 C <f8", 4096, 8, 0)], bytes(64)),
}  # fmt: skip


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("size", ["small", "large"])
def test_trees_made_by_hand_are_told_and_run_nothing(tmp_path, size):
    trees = {**TABLES}
    for name, structure in STRUCTURES.items():
        if len(structure) < 3000:
            trees["structure: " + name] = tree_bytes(structure, [])
    forged = {
        name: data.ljust(arraychest.PACK_THRESHOLD, b"\0") if size == "large" else data
        for name, data in trees.items()
    }
    path = tmp_path / "chest"
    with arraychest.open(path, "w", compression=None) as chest:
        for name, data in forged.items():
            chest[name] = np.frombuffer(data, np.uint8).copy()
        chest["good"] = [1, np.arange(3)]
    connection = sqlite3.connect(path / "catalog.sqlite")
    connection.execute(r"UPDATE entry SET form = replace(form, ' C |u1', ' Ct |u1')")
    connection.commit()
    connection.close()

    def child(say: Say) -> None:
        for mode, mmap_mode in (("r", "r"), ("r", "c"), ("a", "r")):
            with arraychest.open(path, mode, mmap_mode=mmap_mode) as chest:
                for name in forged:
                    say((mmap_mode, name))
                    for get in (
                        chest.__getitem__,
                        chest.load,
                        lambda name: chest.handle(name).array(),
                    ):
                        with contextlib.suppress(
                            CorruptEntryError, PickleRefusedError, UnreadableValueError
                        ):
                            found = get(name)
                            touch(found)
                            assert name.removeprefix("structure: ") in (
                                "deep to hash in a set",
                                "of nothing, much",
                                "a long int",
                            ), found
                    assert chest.entry(name).kind == "tree"
                assert chest["good"][1].tolist() == [0, 1, 2]
                if mode == "a":
                    chest.verify()
                    chest.compact()
                    for name in forged:
                        chest[name] = [name]
                    chest.flush()

    limited(120, child)


@pytest.mark.slow
def test_damaged_files_of_trees_are_told_and_run_nothing(tmp_path):
    _damaged_trees(tmp_path, 300)


@pytest.mark.stress
def test_thousands_of_damaged_files_of_trees_are_told_and_run_nothing(tmp_path):
    _damaged_trees(tmp_path, 10_000)


def _damaged_trees(tmp_path: Path, count: int) -> None:
    path = tmp_path / "chest"
    value = {"a": np.linspace(0, 1, LARGE), "b": [1, {"c": "x" * 70_000}], "d": np.arange(9)}
    other = [np.linspace(0, 1, LARGE), np.arange(LARGE), "y" * 9]
    for compression in (None, "lz4"):
        with arraychest.open(path, "w", compression=compression) as chest:
            chest["x"], chest["y"] = value, other
            chest.flush()
            files = [Path(chest.key_to_filename(name)) for name in "xy"]
        data, theirs = (file.read_bytes() for file in files)

        def child(say: Say, data: bytes = data, theirs: bytes = theirs) -> list[int]:
            fared = [0, 0]
            for seed in range(count):
                rng = random.Random(seed)
                bad = bytearray(data)
                # Where the head is, or anywhere.
                where = rng.choice((600, len(data)))
                for _ in range(rng.choice((1, 1, 3))):
                    at = rng.randrange(where)
                    match rng.randrange(4):
                        case 0:
                            bad[at] ^= 1 << rng.randrange(8)
                        case 1:
                            bad[at : at + 9] = theirs[at : at + 9]
                        case 2:
                            bad[at : at + 4] = u4(rng.choice((0, MOST, 1 << 20)))
                        case _:
                            cut = rng.randrange(200)
                            bad[at : at + cut] = bytes(cut)
                del bad[len(data) :]
                bad.extend(data[len(bad) :])
                files[0].unlink()  # never written over: others may have it mapped
                files[0].write_bytes(bad)
                with arraychest.open(path, "r") as chest:
                    try:
                        found = chest.load("x")
                        assert found["b"][0] == 1
                        assert found["d"].shape == (9,)
                        fared[1] += 1
                    except CorruptEntryError as error:
                        assert "'x'" in str(error)
                        fared[0] += 1
                    assert chest.verify().ok == (bad == data) or where == 600
            return fared

        told, right = limited(60 + count / 10, child)
        assert told > count / 10
        assert right > count / 20
