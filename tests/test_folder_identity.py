"""A chest writes into the folder that it opened, and into no other, whatever becomes of its path."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import (
    ArrayChestError,
    ArrayChestWarning,
    Chest,
    ClosedChestError,
    CorruptEntryError,
    SpillError,
)
from arraychest.catalog import connection
from tests.faults import Say, in_child
from tests.support import run_python

LARGE, SMALL = np.arange(50_000.0), np.arange(3.0)
BLOCKS = np.ones((40, 50))


def filled(path: str | os.PathLike[str], n: float = 1.0, **options: Any) -> Chest:
    """A chest with a value of each kind, all stored."""
    chest = arraychest.open(path, "a", on_put="copy", **options)
    chest.update(a=LARGE + n, s=SMALL + n, gone=LARGE - n)
    chest.put("z", np.zeros(100_000) + n, compression="zstd")
    chest.append("b", BLOCKS + n)
    chest.flush()
    del chest["gone"]  # its file may be kept for the next value
    chest.flush()
    return chest


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and size of each file of a chest that only a change to the chest changes."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            if not name.startswith(("catalog.sqlite", "commits", "locks")):
                status = os.stat(os.path.join(where, name))
                found[os.path.join(where, name)] = (status.st_ino, status.st_size)
    return found


def holds(path: Path, n: float) -> None:
    """Whether a chest has the values of `filled`, and nothing else."""
    with arraychest.open(path, "r") as chest:
        assert set(chest) == {"a", "s", "z", "b"}
        assert chest["a"][0] == chest["s"][0] == chest["z"][0] == n
        assert np.asarray(chest["b"])[0, 0] == 1 + n
        assert chest.verify().ok, chest.verify()


def overwritten(chest: Chest) -> None:
    chest.update(a=LARGE, s=SMALL)


def created(chest: Chest) -> None:
    with chest.create("new", (1000,), "f8") as array:
        array[:] = 1


def edited(chest: Chest) -> None:
    with chest.edit("a") as array:
        array[0] = -1


def in_transaction(chest: Chest) -> None:
    with chest.transaction():
        chest["a"] = LARGE - 5
        del chest["s"]


def cached(chest: Chest) -> None:
    assert chest.cache(lambda n: np.full(20_000, n))(3)[0] == 3


CHANGES: dict[str, Callable[[Chest], Any]] = {
    "overwrite": overwritten,
    "new key": lambda chest: chest.update(new=LARGE, other=SMALL),
    "delete": lambda chest: chest.pop("a"),
    "clear": lambda chest: chest.clear(),
    "append": lambda chest: chest.append("b", BLOCKS),
    "append to a new key": lambda chest: chest.append("c", BLOCKS),
    "create": created,
    "edit": edited,
    "transaction": in_transaction,
    "compressed": lambda chest: chest.put("z", np.ones(100_000), compression="zstd"),
    "cached": cached,
    "repair": lambda chest: chest.repair(),
    "lock": lambda chest: chest.lock("a").__enter__().release(),
    "update": lambda chest: chest.update({"x": chest["a"]}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "c"


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Chests that a test leaves are closed within it."""
    yield
    gc.collect()


def give_up(chest: Chest) -> None:
    """Each end of a chest whose folder is gone: it is given up by `drop`."""
    for step in (chest.flush, chest.compact, chest.close, chest.close):
        with contextlib.suppress(SpillError):
            step()
    if not chest.closed:
        chest.drop()
    assert chest.closed


@pytest.mark.parametrize("what", CHANGES)
def test_a_chest_never_touches_another_one_at_its_path(folder, what):
    old = filled(folder)
    shutil.rmtree(folder)
    new = filled(folder, 2)
    before = snapshot(folder)
    with contextlib.suppress(ArrayChestError):
        CHANGES[what](old)
    give_up(old)
    assert snapshot(folder) == before
    new["late"] = LARGE
    del new["late"]
    new.close()
    holds(folder, 2)


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_was_removed_is_not_made_again(folder, what):
    chest = filled(folder)
    shutil.rmtree(folder)
    with contextlib.suppress(ArrayChestError):
        CHANGES[what](chest)
    give_up(chest)
    assert not folder.exists()


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_was_emptied_and_used_again_is_another_chest(folder, what):
    """The folder itself is the same one: its descriptor leads to the new chest."""
    old = filled(folder)
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    new = filled(folder, 2)
    before = snapshot(folder)
    with contextlib.suppress(ArrayChestError):
        CHANGES[what](old)
    give_up(old)
    assert snapshot(folder) == before
    new.close()
    holds(folder, 2)


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_was_moved_is_followed(folder, what):
    moved = folder.parent / "moved"
    with filled(folder) as chest, filled(folder.parent / "same") as same:
        folder.rename(moved)
        for each in (chest, same):
            CHANGES[what](each)
            each.flush()
            each.compact()
        assert chest.path == str(moved)
        assert not folder.exists()
    assert not folder.exists()
    with arraychest.open(moved) as one, arraychest.open(folder.parent / "same") as two:
        assert list(one) == list(two)
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
        assert one.verify().ok, one.verify()


def test_two_folders_that_were_swapped_keep_their_chests(folder):
    other = folder.parent / "d"
    one, two = filled(folder), filled(other, 2)
    folder.rename(folder.parent / "aside")
    other.rename(folder)
    (folder.parent / "aside").rename(other)
    one["mine"], two["mine"] = LARGE + 1, LARGE + 2
    one.close()
    two.close()
    for path, n in ((other, 1), (folder, 2)):
        with arraychest.open(path, "r") as chest:
            assert chest["mine"][0] == chest["a"][0] == n
            assert chest.verify().ok


def test_a_link_that_was_switched_leads_no_chest_elsewhere(folder):
    first, second = folder.parent / "first", folder.parent / "second"
    first.mkdir()
    folder.symlink_to(first)
    chest = filled(folder)
    assert chest.path == str(folder)
    filled(second, 2).close()
    before = snapshot(second)
    folder.unlink()
    folder.symlink_to(second)
    chest["new"] = LARGE
    chest.close()
    assert snapshot(second) == before
    holds(second, 2)
    with arraychest.open(first, "r") as chest:
        assert "new" in chest


def test_drop_of_a_moved_chest_removes_it_where_it_is(folder):
    moved = folder.parent / "moved"
    chest = filled(folder)
    folder.rename(moved)
    folder.mkdir()
    (folder / "thesis").write_text("mine")
    chest.drop()
    assert not moved.exists()
    assert (folder / "thesis").read_text() == "mine"


def test_a_chest_that_is_reached_by_a_link_is_dropped_and_the_link_stays(folder):
    real = folder.parent / "real"
    real.mkdir()
    folder.symlink_to(real)
    filled(folder).drop()
    assert not real.exists()
    assert folder.is_symlink()


def test_a_parent_that_was_renamed_and_another_working_folder(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    chest = filled("c")
    monkeypatch.chdir("/")
    (tmp_path / "p").rename(tmp_path / "q")
    overwritten(chest)
    handle = chest.handle("a")
    assert handle.path == str(tmp_path / "q" / "c")
    assert pickle.loads(pickle.dumps(handle)).array()[0] == 0
    assert os.path.isfile(chest.entry("a").file)
    blocks = pickle.loads(pickle.dumps(chest["b"]))
    np.testing.assert_array_equal(blocks, BLOCKS + 1)
    chest.close()
    assert not (tmp_path / "p").exists()
    with arraychest.open(tmp_path / "q" / "c", "r") as again:
        assert again["a"][0] == 0


def test_another_process_uses_a_moved_chest_beside_this_one(folder):
    moved = folder.parent / "moved"
    with filled(folder) as chest:
        folder.rename(moved)
        chest["mine"] = SMALL
        chest.flush()
        run_python(
            "import sys, arraychest, numpy as np\n"
            "with arraychest.open(sys.argv[1]) as chest:\n"
            "    assert chest['mine'][1] == 1\n"
            "    chest['theirs'] = np.arange(9)\n"
            "    chest['a'] = np.full(50_000, 7.0)\n",
            str(moved),
        )
        assert chest["theirs"].size == 9
        assert chest["a"][0] == 7
        chest["later"] = LARGE
    with arraychest.open(moved, "r") as chest:
        assert {"mine", "theirs", "later"} <= set(chest)
        assert chest.verify().ok


def test_another_process_rebuilt_the_chest(folder):
    chest = filled(folder)
    run_python(
        "import sys, shutil, arraychest, numpy as np\n"
        "shutil.rmtree(sys.argv[1])\n"
        "with arraychest.open(sys.argv[1]) as chest:\n"
        "    chest.update(a=np.full(50_000, 9.0), s=np.full(3, 9.0))\n",
        str(folder),
    )
    before = snapshot(folder)
    chest["a"], chest["s"] = LARGE, SMALL
    with pytest.raises(SpillError, match="another chest"):
        chest.flush()
    assert chest["a"][1] == 1
    with pytest.raises(SpillError):
        chest.close()
    assert not chest.closed
    assert chest["s"][1] == 1
    chest.drop()
    assert snapshot(folder) == before
    with arraychest.open(folder, "r") as new:
        assert new["a"][0] == new["s"][0] == 9
        assert new.verify().ok


@pytest.mark.parametrize("value", [LARGE, SMALL], ids=["large", "small"])
def test_what_happened_is_said_and_the_values_stay(folder, value):
    chest = filled(folder)
    mapped = chest["a"]
    shutil.rmtree(folder)
    assert mapped[0] == chest["a"][0] == 1  # a map goes on
    chest["new"] = value
    for step in (chest.flush, chest.close, chest.close):
        with pytest.raises(SpillError, match="nothing there") as caught:
            step()
        assert str(folder) in str(caught.value)
    assert chest.path == str(folder)
    np.testing.assert_array_equal(chest["new"], value)
    with pytest.raises(CorruptEntryError, match="nothing there"):
        np.asarray(chest["z"])
    chest.drop()
    assert chest.closed


def test_a_chest_with_nothing_to_store_closes_though_its_folder_is_gone(folder):
    chest = filled(folder)
    shutil.rmtree(folder)
    chest.close()
    assert chest.closed
    assert not folder.exists()


def test_a_chest_that_nobody_closed_warns(folder):
    chest = filled(folder)
    shutil.rmtree(folder)
    chest["new"] = SMALL
    kept = [chest]
    del chest
    with pytest.warns(ArrayChestWarning, match="nothing there"):
        kept.clear()
    assert not folder.exists()


def test_at_exit_it_warns_and_ends(folder):
    done = run_python(
        "import sys, shutil, warnings, arraychest, numpy as np\n"
        "warnings.simplefilter('default')\n"
        "chest = arraychest.open(sys.argv[1])\n"
        "chest['a'] = np.arange(3)\n"
        "chest.flush()\n"
        "shutil.rmtree(sys.argv[1])\n"
        "chest['b'] = np.arange(50_000)\n",
        str(folder),
    )
    assert "ArrayChestWarning" in done.stderr
    assert not folder.exists()


@pytest.mark.slow
def test_a_cell_of_a_notebook_runs_twice(folder):
    chest = None
    for n in range(4):
        shutil.rmtree(folder, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ArrayChestWarning)  # of the one before
            chest = arraychest.open(folder, on_put="copy")
            gc.collect()
        chest["x"], chest["s"] = LARGE + n, SMALL + n
        if n % 2:
            chest.flush()
    chest.close()
    with arraychest.open(folder, "r") as again:
        assert again["x"][0] == again["s"][0] == 3
        assert again.verify().ok


def test_two_chests_of_one_process_in_one_folder_that_moves(folder):
    moved = folder.parent / "moved"
    with filled(folder) as one, arraychest.open(folder) as two:
        folder.rename(moved)
        one["x"] = LARGE
        one.flush()
        two["y"] = two["x"] + 1
        two.flush()
        assert one["y"][0] == 1
    with arraychest.open(moved) as chest:
        assert {"x", "y"} <= set(chest)


def test_each_chest_of_a_folder_that_was_replaced_is_given_up(folder):
    chests = [filled(folder), arraychest.open(folder)]
    has_put, is_replaced = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            chests[0]["child"] = LARGE
            chests[0].flush()
            os.write(has_put[1], b"x")
            os.read(is_replaced[0], 1)
            chests[0]["late"] = SMALL
            give_up(chests[0])  # though its parent has the folder that was removed, too
            status = 0
        finally:
            os._exit(status)
    os.read(has_put[0], 1)
    shutil.rmtree(folder)
    filled(folder, 2).close()
    before = snapshot(folder)
    os.write(is_replaced[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for number, chest in enumerate(chests):
        chest["late"] = LARGE + number
        give_up(chest)
    for fd in (*has_put, *is_replaced):
        os.close(fd)
    assert snapshot(folder) == before
    holds(folder, 2)


def test_a_get_that_a_close_overtakes_says_that_the_chest_is_closed(folder):
    filled(folder).close()
    for key in ("a", "z", "b"):
        chest = arraychest.open(folder, on_miss=lambda _: chest.close())
        with pytest.raises(ClosedChestError):
            chest[key]


def test_a_lock_keeps_its_chest_open_and_says_if_that_was_closed(folder):
    lock = arraychest.open(folder).lock("a")
    gc.collect()
    with lock:
        pass
    chest = arraychest.open(folder)
    lock = chest.lock("a")
    with lock:
        chest.close()
    with pytest.raises(ClosedChestError):
        lock.acquire()
    with pytest.raises(ClosedChestError):
        lock.acquire(blocking=False)


def test_children_follow_a_folder_that_is_moved_before_and_while_they_write(folder):
    chest = filled(folder)
    names = [folder, *(folder.with_name(name) for name in ("m1", "m2", "m3"))]

    def change(number: int) -> None:
        with chest.edit("a") as array, chest.lock("s"):
            os.rename(names[number], names[number + 1])
            array[number] = -1
        with chest.transaction():
            chest["large", number] = LARGE
            chest["small", number] = SMALL
        chest.append("b", BLOCKS)

    def in_a_child_of_it(say: Say) -> None:
        change(2)
        chest.close()

    def in_a_first_child(say: Say) -> None:
        change(1)
        outcome = in_child(in_a_child_of_it)
        assert outcome.error is None, outcome.error
        chest["last"] = SMALL
        chest.close()

    change(0)
    filled(folder, 2).close()
    before = snapshot(folder)
    outcome = in_child(in_a_first_child)
    assert outcome.error is None, outcome.error
    assert list(chest["a"][:3]) == [-1, -1, -1]
    assert len(chest["b"]) == 4 * len(BLOCKS)
    chest.close()
    with arraychest.open(names[-1], "r") as again:
        assert {("large", 2), ("small", 2), ("large", 0), "last"} <= set(again)
        assert again.verify().ok
    assert snapshot(folder) == before
    holds(folder, 2)
    assert sorted(os.listdir(folder.parent)) == ["c", "m3"]


def test_a_folder_that_is_moved_while_its_catalog_is_opened_is_followed(folder, monkeypatch):
    chest = filled(folder)
    connect = connection._connect
    moved = folder.with_name("moved")

    def moves(uri: str) -> Any:
        monkeypatch.setattr(connection, "_connect", connect)
        os.rename(folder, moved)
        return connect(uri)

    def in_a_child(say: Say) -> None:
        monkeypatch.setattr(connection, "_connect", moves)
        chest["child"] = LARGE
        assert chest.path == str(moved)
        chest.close()

    outcome = in_child(in_a_child)
    assert outcome.error is None, outcome.error
    assert chest["child"][-1] == LARGE[-1]
    chest.close()
    assert os.listdir(folder.parent) == ["moved"]


def test_a_reader_goes_on_in_the_folder_that_it_opened(folder):
    filled(folder).close()
    with arraychest.open(folder, "r") as reader:
        folder.rename(folder.parent / "moved")
        filled(folder, 2).close()
        assert reader["a"][0] == reader["z"][0] == 1
        assert reader.path == str(folder.parent / "moved")


def test_a_temporary_chest_whose_folder_was_cleaned_keeps_its_values(nothing_left_behind):
    with Chest(available_memory="1 MiB", on_put="copy") as chest:
        chest["a"] = LARGE
        chest.spill("a")
        view = chest["a"]
        shutil.rmtree(chest.path)
        chest["b"] = LARGE
        with pytest.raises(SpillError, match="nothing there"):
            chest.spill("b")
        np.testing.assert_array_equal(chest["b"], view)
    assert os.listdir(nothing_left_behind) == []


def test_a_temporary_chest_that_lost_its_catalog_only_is_removed(nothing_left_behind):
    with Chest(available_memory="1 MiB", on_put="copy") as chest:
        chest["a"] = LARGE
        chest.spill("a")
        os.unlink(f"{chest.path}/catalog.sqlite")
        chest["b"] = LARGE
        with pytest.raises(SpillError, match="catalog was removed"):
            chest.spill("b")
    assert os.listdir(nothing_left_behind) == []


def test_the_writer_of_blocks_makes_no_folder(folder):
    from arraychest.engine.blocks import begin

    chest = filled(folder)
    writer = begin(chest._engine.session, "w", np.dtype("f8"), ((2,),), "what")
    elsewhere = pickle.loads(pickle.dumps(writer))
    elsewhere.write((0,), np.ones(2))
    assert not writer.missing()
    shutil.rmtree(folder)
    new = filled(folder, 2)
    before = snapshot(folder)
    for each in (writer, elsewhere, pickle.loads(pickle.dumps(writer))):
        with pytest.raises(SpillError):
            each.write((0,), np.ones(2))
        each.discard()
    assert snapshot(folder) == before
    assert not (folder / "unfinished").exists() or not os.listdir(folder / "unfinished")
    give_up(chest)
    new.close()


def test_values_of_two_chests_have_different_generations(tmp_path):
    with filled(tmp_path / "a") as one, filled(tmp_path / "b") as two:
        assert one.entry("a").generation != two.entry("a").generation


@pytest.mark.parametrize("told", ["", b"", "s3://bucket/x", "file:///x", "memory://x", "https://x/y",
                                  "simplecache::s3://bucket/x", Path("s3://bucket/x")])  # fmt: skip
def test_what_is_no_folder_is_refused(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = "expected the path of a folder"
    for mode in ("r", "a", "w", "x"):
        with pytest.raises(ValueError, match=expected):
            arraychest.open(told, mode)
        with pytest.raises(ValueError, match=expected):
            Chest(path=told, mode=mode)
    with pytest.raises(ValueError, match=expected):
        arraychest.repair(told)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("told", ["./s3:/x", "a:b", "x::y", "c/d:e"])
def test_names_with_colons_are_folders(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arraychest.open(told).close()
    assert os.path.isfile(f"{told}/catalog.sqlite")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_all_files_follow_the_umask(folder, umask):
    before = os.umask(umask)
    try:
        with filled(folder) as chest:
            modes = _modes(folder)
        modes |= _modes(folder)
        with arraychest.open(folder) as chest:
            edited(chest)
            chest.repair()
            modes |= _modes(folder)
    finally:
        os.umask(before)
    assert {each[1:] for each in modes} == {("d", 0o777 & ~umask), ("f", 0o666 & ~umask)}, modes


def _modes(folder: Path) -> set[tuple[str, str, int]]:
    found = set()
    for where, _, names in os.walk(folder):
        found.add((where, "d", stat.S_IMODE(os.stat(where).st_mode) & 0o777))
        for name in names:
            mode = stat.S_IMODE(os.stat(os.path.join(where, name)).st_mode)
            found.add((name, "f", mode))
    return found


AS_NOBODY = """
import os, sys
import arraychest, blosc2, numpy as np, psutil
arraychest.Chest({"a": np.arange(50_000)}, available_memory=0).close()  # whatever is imported later
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534); os.umask(0o002)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="it takes root to become somebody else")
class TestSomebodyElse:
    @pytest.fixture
    def shared(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        root = Path(os.path.realpath("/var/tmp")) / f"arraychest-test-{os.getpid()}"
        root.mkdir()
        yield root
        shutil.rmtree(root)

    def test_a_member_of_the_group_writes(self, shared):
        os.chown(shared, -1, 1234)
        os.chmod(shared, 0o2775)
        before = os.umask(0o002)
        try:
            filled(shared / "c").close()
        finally:
            os.umask(before)
        run_python(
            AS_NOBODY + "with arraychest.open(sys.argv[1], on_put='copy') as chest:\n"
            "    chest['a'] = np.full(50_000, 5.0); chest['s'] = np.full(3, 5.0)\n"
            "    chest.append('b', np.ones((2, 50)))\n"
            "    del chest['z']\n",
            str(shared / "c"),
            "1234",
        )
        with arraychest.open(shared / "c") as chest:
            assert chest["a"][0] == chest["s"][0] == 5
            assert chest["b"].shape == (42, 50)
            chest["more"] = LARGE
            chest.flush()
            assert chest.verify().ok

    def test_what_may_not_be_written_fails_at_once(self, shared):
        filled(shared / "c").close()
        os.chmod(shared, 0o755)
        run_python(
            AS_NOBODY + "for mode in 'aw':\n"
            "    try:\n"
            "        arraychest.open(sys.argv[1], mode)\n"
            "    except PermissionError as error:\n"
            "        assert 'mode=\"r\"' in str(error), error\n"
            "    else:\n"
            "        raise AssertionError(mode)\n",
            str(shared / "c"),
            "65534",
        )
        holds(shared / "c", 1)
