"""Named chests across openings, the end of temporary ones, and what a chest tells of itself."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sqlite3
import threading
import weakref

import numpy as np
import pytest

import arraychest
from arraychest.errors import ChestFormatError, ChestInUseError, ReadOnlyChestError
from tests.faults import RESERVING
from tests.support import assert_identical, audit, listing, run_python

SMALL, LARGE = 100, 20_000


def value(seed: int, size: int = SMALL) -> np.ndarray:
    return np.arange(seed, seed + size, dtype=np.float64)


def fill(path: str) -> None:
    with arraychest.Chest(path=path) as chest:
        chest["small"] = value(1)
        chest["large"] = value(2, LARGE)


class TestModes:
    def test_a_opens_or_creates(self, path):
        for at in range(3):
            with arraychest.open(path) as chest:
                assert len(chest) == at
                chest[at] = value(at)
            audit(path)

    def test_a_fills_an_empty_folder_that_is_there(self, tmp_path):
        fill(str(tmp_path))
        audit(str(tmp_path))

    def test_r_needs_a_chest(self, path, tmp_path):
        with pytest.raises(FileNotFoundError):
            arraychest.open(path, "r")
        assert not os.path.exists(path)
        with pytest.raises(ChestFormatError):
            arraychest.open(str(tmp_path), "r")
        assert os.listdir(tmp_path) == []
        with pytest.raises(ValueError, match="path"):
            arraychest.Chest(mode="r")

    def test_r_changes_nothing(self, path, make_chest):
        fill(path)
        before = listing(path)
        with arraychest.open(path, "r") as chest:
            other = make_chest({"small": value(3)})
            other.flush()
            for change in (
                lambda: chest.__setitem__("x", value(1)),
                lambda: chest.__setitem__("x", value(1, LARGE)),
                lambda: chest.__delitem__("small"),
                lambda: chest.pop("small"),
                lambda: chest.popitem(),
                lambda: chest.setdefault("x", value(1)),
                lambda: chest.update({"x": value(1)}),
                lambda: chest.update(other),
                lambda: chest.clear(),
                lambda: chest.discard("small"),
                lambda: chest.spill("small"),
                lambda: chest.flush(),
                lambda: chest.compact(),
                lambda: chest.drop(),
            ):
                with pytest.raises(ReadOnlyChestError, match="mode") as caught:
                    change()
                assert isinstance(caught.value, PermissionError)
            assert_identical(chest.setdefault("small", value(9)), value(1))
            chest.prefetch(["small", "large"])
            chest.available_memory = 0
            assert list(chest) == ["small", "large"]
        assert {
            name: size for name, size in listing(path).items() if "-" not in name[-5:]
        } == before

    def test_w_starts_empty_and_old_views_stay(self, path):
        fill(path)
        with arraychest.open(path, "r") as chest:
            views = [chest["small"], chest["large"]]
            with arraychest.open(path, "w") as new:
                assert list(new) == []
                new["small"] = value(7)
                new["large"] = value(8, LARGE)
        for view, expected in zip(views, (value(1), value(2, LARGE)), strict=True):
            assert_identical(view, expected)
        audit(path)
        with arraychest.open(path, "r") as chest:
            assert_identical(chest["large"], value(8, LARGE))

    def test_x_must_not_be_there(self, path, tmp_path):
        with arraychest.open(path, "x") as chest:
            chest["x"] = value(0)
        with pytest.raises(FileExistsError):
            arraychest.open(path, "x")
        (tmp_path / "note.txt").write_text("mine")
        with pytest.raises(FileExistsError):
            arraychest.open(str(tmp_path), "x")

    @pytest.mark.parametrize("mode", ["r", "a", "w", "x"])
    def test_every_mode_leaves_a_folder_or_file_of_somebody_else_alone(self, mode, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "note.txt").write_text("mine")
        with pytest.raises((ChestFormatError, FileExistsError)):
            arraychest.open(folder, mode)
        assert os.listdir(folder) == ["note.txt"]
        file = tmp_path / "file"
        file.write_text("mine")
        with pytest.raises(OSError, match=r"folder|exists|chest") as caught:
            arraychest.open(file, mode)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
        assert file.read_text() == "mine"

    @pytest.mark.parametrize("mode", ["r", "a", "w", "x"])
    def test_every_mode_leaves_another_programs_database_alone(self, mode, tmp_path):
        database = sqlite3.connect(tmp_path / "catalog.sqlite")
        database.execute("CREATE TABLE mine(x)")
        database.execute("INSERT INTO mine VALUES (1)")
        database.commit()
        database.close()
        before = listing(str(tmp_path))
        with pytest.raises((ChestFormatError, FileExistsError)):
            arraychest.open(tmp_path, mode)
        assert listing(str(tmp_path)) == before
        database = sqlite3.connect(tmp_path / "catalog.sqlite")
        assert database.execute("SELECT x FROM mine").fetchall() == [(1,)]
        database.close()

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"mode": "rw"}, ValueError),
            ({"mode": None}, ValueError),
            ({"mmap_mode": "r+"}, ValueError),
            ({"mmap_mode": "w"}, ValueError),
            ({"on_put": "borrow"}, ValueError),
            ({"available_memory": "much"}, ValueError),
            ({"available_memory": True}, TypeError),
            ({"available_memory": [1]}, TypeError),
            ({"data": [1, 2]}, TypeError),
            ({"nonsense": 1}, TypeError),
        ],
        ids=str,
    )
    def test_bad_arguments_are_refused_before_anything_is_made(self, options, error, path):
        with pytest.raises(error):
            arraychest.Chest(path=path, **options)
        assert not os.path.exists(path)

    def test_a_constructor_that_fails_lets_go_of_the_folder(self, path):
        with pytest.raises(TypeError) as caught:
            arraychest.Chest({"good": value(1), "bad": object()}, path=path)
        with arraychest.open(path) as chest:
            assert list(chest) in ([], ["good"])
        del caught

    def test_a_path_may_be_bytes_like_pathlib_or_relative(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with arraychest.Chest(path=tmp_path / "a") as chest:
            assert chest.path == str(tmp_path / "a")
        with arraychest.Chest(path="b") as chest:
            chest["x"] = value(1)
            monkeypatch.chdir("/")
            chest.flush()
            assert_identical(chest["x"], value(1))
            assert chest.path == str(tmp_path / "b")
        with arraychest.Chest(path=os.fsencode(tmp_path / "\udcff?#%")) as chest:
            chest["x"] = value(1)
        with arraychest.open(tmp_path / "\udcff?#%", "r") as chest:
            assert_identical(chest["x"], value(1))


class TestWriters:
    def test_one_that_would_empty_the_folder_is_refused(self, path):
        with arraychest.open(path) as chest:
            chest["x"] = value(1)
            with pytest.raises(ChestInUseError, match="nobody else") as caught:
                arraychest.open(path, "w")
            assert isinstance(caught.value, BlockingIOError)
            assert_identical(chest["x"], value(1))
            program = f"import arraychest; arraychest.open({path!r}, 'w')"
            done = run_python(program, check=False)
            assert "ChestInUseError" in done.stderr
        with arraychest.open(path) as chest:
            assert_identical(chest["x"], value(1))

    def test_readers_see_what_was_flushed_beside_a_writer(self, path):
        with arraychest.open(path) as chest:
            chest["a"] = value(1)
            chest["b"] = value(2, LARGE)
            with arraychest.open(path, "r") as reader, arraychest.open(path, "r") as second:
                assert len(reader) == 0
                chest.flush()
                assert list(reader) == ["a", "b"]
                assert_identical(reader["a"], value(1))
                assert_identical(second["b"], value(2, LARGE))
                chest["c"] = value(3)
                del chest["b"]
                chest["a"] = value(4, LARGE)
                chest.flush()
                assert_identical(reader["c"], value(3))
                assert "b" not in reader
                assert len(reader) == 2
                assert_identical(second["a"], value(4, LARGE))

    def test_a_reader_of_values_that_change_under_it_gets_one_or_the_other(self, path):
        with arraychest.open(path) as chest:
            for at in range(20):
                chest[at] = np.full(LARGE if at % 2 else SMALL, 0.0)
            chest.flush()
            with arraychest.open(path, "r") as reader:
                stop = threading.Event()
                errors: list[BaseException] = []

                def read() -> None:
                    try:
                        while not stop.wait(0.0005):
                            for at in range(20):
                                found = reader.get(at)
                                assert found is None or (found == found[0]).all()
                    except BaseException as error:
                        errors.append(error)

                thread = threading.Thread(target=read)
                thread.start()
                for turn in range(1, 15):
                    for at in range(20):
                        if turn % 5 == 4:
                            del chest[at]
                        else:
                            chest[at] = np.full(LARGE if (at + turn) % 2 else SMALL, float(turn))
                    chest.flush()
                    if turn % 4 == 0:
                        chest.compact()
                stop.set()
                thread.join()
                assert not errors


class TestUncleanEnd:
    KILLED = """
        import os, sys, numpy, arraychest
        chest = arraychest.Chest(path=sys.argv[1])
        for at in range(20):
            chest["flushed", at] = numpy.full(100, at)
            chest["large", at] = numpy.full(20_000, at)
        chest.flush()
        chest["lost"] = numpy.zeros(100)
        del chest["flushed", 0]
        os._exit(1)
    """

    def test_what_was_flushed_is_there_and_orphans_are_swept(self, path):
        run_python(self.KILLED, path, check=False)
        for name in ("data/00/orphan-ffffff.npy", "packs/fffffff.pack", "spare/1/x-1.npy"):
            os.makedirs(os.path.dirname(os.path.join(path, name)), exist_ok=True)
            with open(os.path.join(path, name), "wb") as file:
                file.write(b"left")
        with arraychest.open(path, "r") as chest:
            assert len(chest) == 40  # the deletion was not flushed
        with arraychest.open(path) as chest:
            assert "lost" not in chest
            for at in range(20):
                assert_identical(chest["flushed", at], np.full(100, at))
                assert_identical(chest["large", at], np.full(20_000, at))
            assert not os.path.exists(os.path.join(path, "data/00/orphan-ffffff.npy"))
            assert os.listdir(os.path.join(path, "spare")) == []
        audit(path)

    def test_a_temporary_folder_left_behind_is_removed_by_the_next(self, nothing_left_behind):
        done = run_python(
            """
            import os, numpy, arraychest
            chest = arraychest.Chest(available_memory=0)
            chest["x"] = numpy.zeros(100)
            print(chest.path, flush=True)
            os._exit(1)
            """,
            check=False,
        )
        left = done.stdout.strip()
        assert os.path.isdir(left)
        with arraychest.Chest(available_memory=0) as chest:
            chest["x"] = value(1)
            assert not os.path.exists(left)


class TestTheEnd:
    def test_of_a_temporary_chest_that_is_closed_or_dropped(self):
        for end in ("close", "drop"):
            chest = arraychest.Chest()
            assert chest.path is None
            chest["x"] = value(1)
            assert chest.path is None
            chest.flush()
            folder = chest.path
            view = chest["x"]
            assert os.path.isdir(folder)
            getattr(chest, end)()
            assert not os.path.exists(folder)
            assert_identical(view, value(1))

    def test_of_a_temporary_chest_that_nobody_holds_any_more(self):
        chest = arraychest.Chest(available_memory=0)
        chest["x"], chest["y"] = value(1), value(2, LARGE)
        folder, view, watched = chest.path, chest["y"], weakref.ref(chest)
        del chest
        gc.collect()
        assert watched() is None
        assert not os.path.exists(folder)
        assert_identical(view, value(2, LARGE))

    def test_of_a_named_chest_that_nobody_holds_any_more_loses_nothing(self, path):
        chest = arraychest.Chest(path=path)
        chest["x"] = value(1)
        del chest
        gc.collect()
        with arraychest.open(path) as chest:
            assert_identical(chest["x"], value(1))

    def test_of_the_interpreter(self, path, nothing_left_behind):
        done = run_python(
            """
            import sys, threading, numpy, arraychest
            named = arraychest.Chest(path=sys.argv[1], available_memory="1 MiB")
            private = arraychest.Chest(available_memory="1 MiB")
            for at in range(200):
                named[at] = numpy.full(5_000, at)
                private[at] = numpy.full(5_000, at)
            view = private[0]
            print(private.path)
            """,
            path,
        )
        assert done.stderr == ""
        assert not os.path.exists(done.stdout.strip())
        with arraychest.open(path, "r") as chest:
            assert len(chest) == 200
            assert all(chest[at][-1] == at for at in range(200))
        audit(path)

    def test_of_an_interpreter_that_fails(self, path):
        done = run_python(
            """
            import sys, numpy, arraychest
            chest = arraychest.Chest(path=sys.argv[1])
            private = arraychest.Chest(available_memory=0)
            chest["x"] = private["x"] = numpy.arange(5)
            raise RuntimeError("on purpose")
            """,
            path,
            check=False,
        )
        assert "on purpose" in done.stderr
        with arraychest.open(path, "r") as chest:
            assert_identical(chest["x"], np.arange(5))

    def test_drop_removes_a_named_chest(self, path):
        fill(path)
        with arraychest.open(path) as chest:
            view = chest["large"]
            chest["dirty"] = value(1)
            chest.drop()
            assert chest.closed
        assert not os.path.exists(path)
        assert_identical(view, value(2, LARGE))
        fill(path)

    def test_close_that_fails_keeps_the_chest_open_with_nothing_lost(self, path, monkeypatch):
        chest = arraychest.open(path)
        chest["x"] = value(1)

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(f"os.{RESERVING}", full)
        with pytest.raises(arraychest.SpillError) as caught:
            chest.close()
        assert isinstance(caught.value, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert not chest.closed
        assert_identical(chest["x"], value(1))
        monkeypatch.undo()
        chest.close()
        with arraychest.open(path, "r") as chest:
            assert_identical(chest["x"], value(1))

    def test_no_thread_before_the_first_spill_and_none_after_close(self, path):
        before = set(threading.enumerate())
        chest = arraychest.Chest(path=path)
        chest["x"] = value(1)
        chest["x"]
        del chest["x"]
        assert set(threading.enumerate()) == before
        chest["x"] = value(1)
        chest.flush()
        chest.close()
        assert set(threading.enumerate()) == before

    def test_with_closes_also_after_an_exception(self, path):
        with pytest.raises(RuntimeError), arraychest.Chest(path=path) as chest:
            chest["x"] = value(1)
            raise RuntimeError
        assert chest.closed
        with arraychest.open(path, "r") as chest:
            assert_identical(chest["x"], value(1))


class TestForkedChild:
    def test_reads_and_removes_nothing_and_writes_to_no_temporary_chest(self, path):
        done = run_python(
            """
            import os, sys, numpy, arraychest, gc
            named = arraychest.Chest(path=sys.argv[1])
            private = arraychest.Chest()
            for chest in (named, private):
                chest["resident"] = numpy.arange(5)
                chest["stored"] = numpy.arange(7)
                chest["large"] = numpy.arange(20_000)
                chest.spill("stored")
                chest.spill("large")
            view = named["large"]
            child = os.fork()
            if not child:
                try:
                    for chest in (named, private):
                        assert chest["resident"].tolist() == list(range(5))
                        assert chest["stored"].tolist() == list(range(7))
                        assert chest["large"][-1] == 19_999
                        assert len(chest) == 3 and list(chest) == ["resident", "stored", "large"]
                    for change in (
                        lambda: private.__setitem__("x", numpy.zeros(3)),
                        lambda: private.__setitem__("resident", numpy.zeros(3)),
                        lambda: private.__delitem__("stored"),
                        lambda: private.flush(),
                        lambda: private.clear(),
                        lambda: private.drop(),
                        lambda: named.drop(),
                    ):
                        try:
                            change()
                        except (arraychest.ReadOnlyChestError, arraychest.ChestInUseError):
                            pass
                        else:
                            raise AssertionError("a child changed what is its parent's alone")
                    assert view[5] == 5
                    named.close()
                    del private, chest
                    gc.collect()
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                sys.exit(0)  # through atexit
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            for chest in (named, private):
                assert os.path.isdir(chest.path)
                assert chest["large"][-1] == 19_999
                chest["after"] = numpy.arange(3)
                chest.flush()
            try:
                arraychest.open(sys.argv[1], "w")
            except arraychest.ChestInUseError:
                pass
            else:
                raise AssertionError("the child let go of the parent's lock")
            """,
            path,
        )
        assert done.stderr == ""
        with arraychest.open(path, "r") as chest:
            assert list(chest) == ["resident", "stored", "large", "after"]
        audit(path)

    def test_while_the_parent_spills_does_not_hang(self, path):
        done = run_python(
            """
            import os, sys, numpy, arraychest
            chest = arraychest.Chest(path=sys.argv[1], available_memory="1 MiB")
            children = []
            for at in range(300):
                chest[at] = numpy.full(5_000, at)
                if at % 30 == 29:
                    child = os.fork()
                    if not child:
                        ok = all(chest[key][0] == key for key in range(at + 1))
                        os._exit(not ok)
                    children.append(child)
            assert all(os.waitpid(child, 0)[1] == 0 for child in children)
            """,
            path,
        )
        assert done.stderr == ""
        with arraychest.open(path, "r") as chest:
            assert all(chest[at][-1] == at for at in range(300))


class TestUpdateFromAChest:
    @pytest.fixture
    def theirs(self, tmp_path, make_chest):
        theirs = make_chest(path=tmp_path / "theirs")
        for at in range(5):
            theirs["small", at] = value(at)
            theirs["large", at] = value(at, LARGE)
        theirs.flush()
        theirs["resident"] = value(9)
        return theirs

    def test_links_files_and_copies_nothing(self, theirs, path):
        with arraychest.Chest(path=path) as mine:
            mine.update(theirs)
            assert list(mine) == list(theirs)
            assert mine == theirs
            for key in theirs:
                if key != "resident":
                    inodes = {os.stat(each.key_to_filename(key)).st_ino for each in (mine, theirs)}
                    assert len(inodes) == 1
            assert not mine.inmem
        theirs.drop()
        audit(path)
        with arraychest.open(path, "r") as mine:
            assert_identical(mine["large", 4], value(4, LARGE))
            assert_identical(mine["small", 4], value(4))
            assert_identical(mine["resident"], value(9))

    @pytest.mark.parametrize("overwrite", [True, False])
    def test_replaces_or_keeps_what_is_there(self, theirs, path, overwrite):
        with arraychest.Chest(path=path) as mine:
            for key in (("small", 1), ("large", 1), "resident", "mine"):
                mine[key] = value(50)
            mine.spill(("large", 1))
            mine.update(theirs, overwrite=overwrite)
            assert list(mine)[:4] == [("small", 1), ("large", 1), "resident", "mine"]
            assert_identical(mine["mine"], value(50))
            for key in (("small", 1), ("large", 1), "resident"):
                assert_identical(mine[key], theirs[key] if overwrite else value(50))
            assert_identical(mine["small", 2], value(2))
        audit(path)

    def test_each_goes_on_alone_afterwards(self, theirs, path):
        with arraychest.Chest(path=path) as mine:
            mine.update(theirs)
            for chest, seed in ((mine, 100), (theirs, 200)):
                for at in range(5):
                    chest["small", at] = value(seed + at)
                    chest["large", at] = value(seed + at, LARGE)
                    chest["new", at] = value(seed + at)
                chest.flush()
                chest.compact()
            for chest, seed in ((mine, 100), (theirs, 200)):
                for kind, size in (("small", SMALL), ("large", LARGE), ("new", SMALL)):
                    for at in range(5):
                        assert_identical(chest[kind, at], value(seed + at, size))
        audit(path)
        theirs.close()
        audit(theirs.path)

    def test_keeps_the_order_and_types_of_the_keys(self, make_chest, path):
        theirs = make_chest()
        keys = [True, 2.0, "a", ("b", 1), b"c"]
        for at, key in enumerate(keys):
            theirs[key] = value(at)
            if at % 2:
                theirs.spill(key)
        with arraychest.Chest(path=path) as mine:
            mine[2] = value(7)
            mine.update(theirs)
        with arraychest.open(path, "r") as mine:
            assert [repr(key) for key in mine] == ["2", "True", "'a'", "('b', 1)", "b'c'"]
            assert_identical(mine[2.0], value(1))

    def test_copies_where_files_cannot_be_linked(self, theirs, path, monkeypatch):
        def refuse(*_, **__):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr("os.link", refuse)
        with arraychest.Chest(path=path) as mine:
            mine.update(theirs)
            assert list(mine) == list(theirs)
            assert mine == theirs
        audit(path)

    def test_of_itself_changes_nothing(self, theirs):
        before = list(theirs)
        theirs.update(theirs)
        assert list(theirs) == before

    def test_of_a_closed_chest_or_into_one_leaves_nothing_behind(self, theirs, make_chest):
        closed = make_chest()
        closed.close()
        with pytest.raises(arraychest.ClosedChestError):
            closed.update(theirs)
        assert closed.path is None
        with pytest.raises(arraychest.ClosedChestError):
            theirs.update(closed)

    def test_of_what_the_other_opened_read_only(self, theirs, path):
        theirs.close()
        with arraychest.open(theirs.path, "r") as reader, arraychest.Chest(path=path) as mine:
            mine.update(reader)
            assert len(mine) == 11
        audit(path)


class TestWhatAChestTells:
    def test_an_entry_in_ram_in_a_pack_and_in_a_file(self, path, make_chest):
        chest = make_chest(path=path)
        chest["x"] = value(1).reshape(4, 25)
        entry = chest.entry("x")
        assert entry == arraychest.Entry(
            kind="array", shape=(4, 25), dtype=np.dtype("f8"), nbytes=800, stored_bytes=0,
            codec=None, file=None, generation=None, resident=True,
        )  # fmt: skip
        assert chest.key_to_filename("x") is None
        chest.spill("x")
        entry = chest.entry("x")
        assert (entry.codec, entry.stored_bytes, entry.resident) == ("pack", 800, False)
        chest["x"] = value(2, LARGE)
        assert chest.entry("x").resident
        first = entry.generation
        chest.move_to_disk("x")
        entry = chest.entry("x")
        assert (entry.codec, entry.nbytes) == ("npy", 8 * LARGE)
        assert entry.stored_bytes == os.path.getsize(entry.file) >= 8 * LARGE
        assert entry.generation != first
        assert entry.file == chest.key_to_filename("x")
        assert chest.stats().misses == 0  # no data was read

    def test_statistics_count_what_happened(self, make_chest):
        chest = make_chest(available_memory="64 MiB")
        chest["a"], chest["b"] = value(1), value(2, LARGE)
        chest["a"], chest["a"]
        assert "c" not in chest
        chest.get("c")
        stats = chest.stats()
        assert (stats.hits, stats.misses, stats.absent, stats.spills) == (2, 0, 1, 0)
        assert (stats.resident, stats.charged) == (2, 800 + 8 * LARGE)
        assert stats.charged == chest.memory_usage
        assert stats.budget == chest.available_memory == 64 << 20
        chest.flush()
        stats = chest.stats()
        assert (stats.spills, stats.bytes_spilled) == (2, 800 + 8 * LARGE)
        assert (stats.resident, stats.charged) == (0, 0)
        gc.collect()
        chest["b"]
        chest["b"]
        stats = chest.stats()
        assert (stats.hits, stats.misses, stats.faults) == (3, 1, 1)
        assert stats.bytes_faulted >= 8 * LARGE

    def test_inmem_is_a_read_only_mapping_of_what_is_resident(self, chest):
        chest["a"], chest["b"] = value(1), value(2)
        chest.spill("a")
        inmem = chest.inmem
        assert list(inmem) == ["b"]
        assert_identical(inmem["b"], value(2))
        with pytest.raises(TypeError):
            inmem["c"] = value(3)

    def test_the_repr_says_where_how_many_and_how_much(self, path, make_chest):
        chest = make_chest(available_memory="64 MiB")
        assert "temporary" in repr(chest)
        chest["a"], chest["b"] = value(1), value(2, LARGE)
        for part in ("2 values", "2 resident", "157 KiB of 64 MiB", "0 B stored"):
            assert part in repr(chest)
        chest.flush()
        assert chest.path in repr(chest)
        assert "0 resident (0 B of 64 MiB)" in repr(chest)
        named = make_chest(path=path)
        assert path in repr(named)
        named.close()
        assert path in repr(named)
        assert "closed" in repr(named)

    def test_prefetch_maps_one_key_or_a_list_all_or_none(self, chest):
        for at in range(3):
            chest[at] = value(at, LARGE)
        chest["t", 1] = value(7)
        chest.flush()
        gc.collect()
        chest.prefetch([0, 1])
        chest.prefetch(("t", 1))
        misses = chest.stats().misses
        chest[0], chest[1], chest["t", 1]
        assert chest.stats().misses == misses
        with pytest.raises(KeyError):
            chest.prefetch([2, "absent"])
        assert chest.stats().misses == misses

    def test_on_miss_and_on_overflow_are_told_the_key(self, make_chest):
        missed, spilled = [], []
        chest = make_chest(
            available_memory=10_000, on_miss=missed.append, on_overflow=spilled.append
        )
        chest["a"] = value(1)
        chest["large"] = value(1, LARGE)
        assert spilled == ["large"]
        chest.flush()
        assert sorted(spilled) == ["a", "large"]
        gc.collect()
        assert missed == []
        chest["a"], chest["a"], chest["large"]
        assert missed == ["a", "large"]
        with pytest.raises(KeyError):
            chest["absent"]
        assert missed == ["a", "large"]

    def test_on_miss_is_called_once_for_a_value_that_is_no_array(self, make_chest):
        missed = []
        chest = make_chest(on_miss=missed.append)
        chest["array"] = value(1)
        chest["scalar"] = np.float32(2)
        chest["tree"] = {"a": [1, "b"]}
        chest["none"] = None
        chest["large tree"] = {"a": value(1, LARGE)}
        keys = sorted(chest)
        chest.flush()
        gc.collect()
        chest.prefetch(keys)
        assert sorted(missed) == keys
        for _ in range(3):
            assert chest["scalar"] == 2
            assert chest["tree"] == {"a": [1, "b"]}
            assert chest["none"] is None
            assert_identical(chest["array"], value(1))
            assert_identical(chest["large tree"]["a"], value(1, LARGE))
        assert sorted(missed) == keys
        assert chest["tree"] is not chest["tree"]
        # What takes its place is told again, and so is what moved to another pack.
        chest["tree"] = "new"
        chest.flush()
        del chest["none"]
        chest.compact()
        missed.clear()
        assert chest["tree"] == "new"
        assert chest["tree"] == "new"
        assert missed == ["tree"]
        assert chest["scalar"] == 2
        assert missed.count("scalar") <= 1

    def test_what_on_miss_raises_the_get_raises_and_the_value_stays(self, make_chest):
        fail = True

        def on_miss(key: object) -> None:
            if fail:
                raise RuntimeError("not now")

        chest = make_chest(on_miss=on_miss)
        chest["a"] = value(1)
        chest.flush()
        gc.collect()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not now"):
                chest["a"]
        fail = False
        assert_identical(chest["a"], value(1))

    @pytest.mark.parametrize("budget", [0, "64 MiB"])
    def test_what_on_overflow_raises_is_logged_and_nothing_else(self, make_chest, budget, caplog):
        def on_overflow(key: object) -> None:
            raise RuntimeError("not now")

        chest = make_chest(on_overflow=on_overflow, available_memory=budget)
        chest["a"] = value(1)
        chest["b"] = value(1, LARGE)
        chest.flush()
        assert_identical(chest["a"], value(1))
        chest.close()  # the callback comes after the commit, for which alone a flush waits
        assert caplog.text.count("not now") >= 2

    def test_discard_is_quiet_about_an_absent_key(self, chest):
        chest["a"] = value(1)
        chest.discard("a")
        chest.discard("a")
        assert len(chest) == 0


class TestSmallValues:
    def test_share_packs_and_leave_holes_that_compact_gives_back(self, path):
        with arraychest.Chest(path=path) as chest:
            for at in range(1000):
                chest[at] = value(at)
            chest.flush()
            files = {chest.key_to_filename(at) for at in range(1000)}
            assert len(files) == 1
            views = {at: chest[at] for at in range(0, 1000, 7)}
            for at in range(0, 1000, 3):
                del chest[at]
            chest.flush()
            assert chest.compact() >= 334 * 800
            assert chest.compact() == 0
            assert not os.path.exists(files.pop())
            for at, view in views.items():
                assert_identical(view, value(at))
            for at in range(1000):
                assert (at in chest) == bool(at % 3)
                if at % 3:
                    assert_identical(chest[at], value(at))
            stored = sum(size for name, size in listing(path).items() if name.endswith(".pack"))
            assert stored <= 1.1 * 666 * 832
        audit(path)

    def test_are_compacted_by_themselves_past_a_share_of_dead_bytes(self, path):
        with arraychest.Chest(path=path) as chest:
            for turn in range(10):
                for at in range(200):
                    chest[at] = value(turn)
                chest.flush()
        audit(path)
        stored = sum(size for name, size in listing(path).items() if name.endswith(".pack"))
        assert stored <= 3 * 200 * 832

    @pytest.mark.parametrize("shapes", [[(0,)], [(0, 5), (10,)], [(3, 0), (0,), ()]])
    def test_of_no_bytes_survive_the_deletion_of_their_neighbours(self, path, shapes):
        with arraychest.Chest(path=path) as chest:
            chest["neighbour"] = value(1)
            for shape in shapes:
                chest[shape] = np.ones(shape)
        for _ in range(2):
            with arraychest.open(path) as chest:
                chest.discard("neighbour")
                chest.flush()
                chest.compact()
                for shape in shapes:
                    assert_identical(chest[shape], np.ones(shape))
            audit(path)

    def test_go_on_in_the_last_pack_after_reopening(self, path):
        for at in range(5):
            with arraychest.open(path) as chest:
                chest[at] = value(at)
        with arraychest.open(path, "r") as chest:
            assert len({chest.key_to_filename(at) for at in range(5)}) == 1
        audit(path)


class TestManyViews:
    @pytest.mark.slow
    def test_of_20_000_files_live_at_once_under_256_descriptors(self):
        run_python(
            """
            import numpy, arraychest
            count, size = 20_000, 64 * 1024
            chest = arraychest.Chest(available_memory="32 MiB")
            array = numpy.zeros(size, numpy.uint8)
            for at in range(count):
                array = array.copy()
                array[:8] = numpy.frombuffer(at.to_bytes(8, "little"), numpy.uint8)
                chest[at] = array
            del array
            chest.flush()
            assert chest.entry(0).codec == "npy"
            views = [chest[at] for at in range(count)]
            assert all(not view.flags.owndata for view in views)
            for at, view in enumerate(views):
                assert int.from_bytes(view[:8].tobytes(), "little") == at
            """,
            prefix="ulimit -n 256",
            timeout=300,
        )

    @pytest.mark.slow
    def test_of_200_000_small_values_live_at_once_under_256_descriptors(self):
        run_python(
            """
            import numpy, arraychest
            count = 200_000
            chest = arraychest.Chest(available_memory="32 MiB")
            for at in range(count):
                chest[at] = numpy.array([at, at + 1])
            chest.flush()
            views = [chest[at] for at in range(count)]
            assert all(view[0] == at for at, view in enumerate(views))
            """,
            prefix="ulimit -n 256",
            timeout=300,
        )


def test_a_chest_that_was_copied_or_moved_is_the_same(path, tmp_path):
    fill(path)
    shutil.copytree(path, tmp_path / "copy")
    shutil.move(path, tmp_path / "moved")
    for name in ("copy", "moved"):
        with arraychest.open(tmp_path / name) as chest:
            assert_identical(chest["large"], value(2, LARGE))
            chest["new"] = value(3)
        audit(str(tmp_path / name))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_durable_chests_hold_the_same(path, size):
    with arraychest.Chest(path=path, durable=True) as chest:
        for at in range(5):
            chest[at] = value(at, size)
            chest.flush()
        del chest[0]
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert_identical(chest[4], value(4, size))
