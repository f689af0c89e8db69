"""What a chest publishes, who may read it, and `arraychest top`."""

from __future__ import annotations

import errno
import fcntl
import gc
import io
import json
import math
import os
import pty
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from rich.console import Console

import arraychest
import arraychest.engine.counters
import arraychest.monitor.live
import arraychest.platform.space
from arraychest.cli import main, top
from arraychest.errors import ChestFormatError
from arraychest.monitor.published import PAGE_BYTES, Counts, Published, published
from tests.faults import RESERVING, in_child
from tests.support import IMPORT_ROOT, fill_disk, listing

LARGE = (200, 100)


def tell(chest):
    """Publish now."""
    chest._engine.session.live.due = 0.0
    chest._engine.session.tell_if_due()


def pages(path):
    folder = os.path.join(path, "live")
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


@pytest.fixture
def other(path, make_chest):
    """A chest that has published a page, and has an empty past."""
    chest = make_chest(path=path, available_memory="16 MiB")
    tell(chest)
    return chest


# --- what is published -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_is_watched_by_another_and_its_page_dies_with_it(path, capsys):
    code = """
        import sys, numpy as np, arraychest
        chest = arraychest.open(sys.argv[1], available_memory="2 MiB")
        print("open", flush=True)
        for number in range(10**9):
            chest["block", number % 20] = np.full((200, 1000), number % 20, "f4")
            chest["block", number * 7 % (min(number, 19) + 1)]
    """
    command = [sys.executable, "-c", "\n".join(each[8:] for each in code.splitlines()), path]
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": IMPORT_ROOT}
    )
    try:
        worker.stdout.readline()
        while not (published(path) and published(path)[0].counts.misses):
            assert worker.poll() is None
            time.sleep(0.02)
        assert main(["top", path, "--once"]) == 0
        shown = capsys.readouterr().out
        assert main(["top", path, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    finally:
        worker.kill()
        worker.communicate()
    (found,) = told["processes"]
    assert told["path"] == path
    assert found["pid"] == worker.pid
    assert found["mode"] == "a"
    assert found["budget"] == 2 << 20
    assert 0 < found["charged"] <= 2 << 20
    assert found["counts"]["spills"] > 0
    assert found["rates"]["bytes_spilled"] > 0
    assert 0 <= found["hit_rate"] <= 1
    assert found["busiest"][0]["key"].startswith("('block', ")
    assert f"{worker.pid}  python" in shown
    assert "2 MiB" in shown
    assert "('block', " in shown
    assert "\x1b" not in shown

    # It was killed: nobody believes its page, nobody complains, and the next writer removes it.
    (left,) = pages(path)
    assert published(path) == []
    with arraychest.open(path) as chest:
        assert chest.verify().ok
        assert pages(path) == [left]
        tell(chest)
        assert len(pages(path)) == 1
        assert pages(path) != [left]
        assert published(path)[0].pid == os.getpid()
    assert not os.path.exists(os.path.join(path, "live"))


def test_what_is_published_is_what_the_chest_has_done(path, make_chest):
    chest = make_chest(path=path, available_memory="16 MiB")
    for number in range(6):
        chest["large", number] = np.full(LARGE, number)
        chest["small", number] = np.full(3, number)
    chest["large", 0] = np.zeros(LARGE)
    del chest["large", 5]
    for _ in range(3):
        chest["large", 1]
    assert chest.get("absent") is None
    tell(chest)
    (told,) = published(path)
    assert told.pid == os.getpid()
    assert told.mode == "a"
    assert (told.budget, told.charged) == (16 << 20, chest.memory_usage)
    assert told.resident == 11
    assert (told.stored, told.stored_bytes) == (0, 0)
    assert told.counts == Counts(hits=3, absent=1, puts=13, deletes=1)
    assert told.before == Counts()
    assert told.hit_rate == 1.0
    assert told.busiest == (("('large', 1)", 3),)
    assert told.opened <= told.told <= time.time()

    chest.flush()
    for number in range(5):
        chest["large", number]
    chest["large", 2]
    tell(chest)
    (again,) = published(path)
    assert again.before == told.counts
    assert again.counts.misses == again.counts.faults == chest.stats().misses == 5
    assert again.counts.hits == chest.stats().hits == 4
    assert again.counts.bytes_spilled == chest.stats().bytes_spilled > 0
    assert again.hit_rate == 1 / 6
    assert again.rate("misses") == pytest.approx(5 / again.seconds)
    assert again.rate("puts") == 0
    assert (again.charged, again.resident) == (0, 0)
    assert again.stored == 11
    files = listing(path)
    assert again.stored_bytes == sum(
        size for name, size in files.items() if name.endswith((".npy", ".pack"))
    )


def test_puts_of_every_kind_are_counted(path, make_chest):
    chest = make_chest(path=path, available_memory="1 MiB")
    chest.update({"a": np.zeros(4), "b": np.zeros(LARGE)})  # in a transaction
    chest["c"] = np.zeros((1000, 1000))  # larger than the budget
    chest["d"] = np.float32(1)
    chest["a"] = np.ones(4)
    tell(chest)
    assert published(path)[0].counts.puts == 5


def test_a_short_program_publishes_nothing(path, make_chest):
    chest = make_chest(path=path)
    chest["x"] = np.zeros(LARGE)
    chest.flush()
    assert chest._engine.session.live.due > time.monotonic() - arraychest.monitor.live.SECONDS
    assert arraychest.Chest()._engine.session.live.due == math.inf
    chest._engine.session.live.publish(lambda: pytest.fail("it is not yet time"))


@pytest.mark.parametrize("call", ["get", "put", "commit"])
def test_a_page_is_written_by_whoever_comes_by_when_it_is_time(call, path, make_chest):
    chest = make_chest({"x": np.zeros(LARGE)}, path)
    chest._engine.session.live.due = 0.0
    if call == "get":
        assert chest.get("absent") is None
    elif call == "put":
        chest["y"] = np.zeros(LARGE)
    else:
        with chest._engine.session.committer.committing():
            pass
    assert len(published(path)) == 1
    assert chest._engine.session.live.due > time.monotonic()


def test_a_page_costs_the_same_however_many_keys_there_are(path, make_chest, monkeypatch):
    monkeypatch.setattr(arraychest.engine.counters, "_SLOTS", 10)
    monkeypatch.setattr(arraychest.engine.counters, "_ROWS", 7)
    chest = make_chest(path=path)
    chest.update({("k", number): np.full(4, number) for number in range(25)})
    for number in range(25):
        for _ in range(1 + number % 3):
            chest["k", number]
    expected = chest.stats().hits
    tell(chest)
    first = published(path)[0]
    assert first.counts.hits < expected
    assert first.stored is None
    for _ in range(4):
        tell(chest)
    told = published(path)[0]
    assert told.counts.hits == expected
    assert told.stored == 25
    assert told.stored_bytes == sum(
        size for name, size in listing(path).items() if name.endswith(".pack")
    )
    # Of the groups that were looked at before, the busiest ones are still known.
    assert {count for _, count in told.busiest} == {max(count for _, count in told.busiest)}


def test_a_reader_publishes_too(path, make_chest):
    make_chest({"x": np.zeros(LARGE)}, path).close()
    reader = make_chest(path=path, mode="r")
    reader["x"]
    tell(reader)
    (told,) = published(path)
    assert (told.mode, told.counts.misses, told.stored) == ("r", 1, 1)


def test_each_chest_has_a_page_which_goes_when_it_is_closed(path, other, make_chest):
    second = make_chest(path=path)
    tell(second)
    assert len(published(path)) == 2
    assert len(pages(path)) == 2
    other.close()
    assert len(published(path)) == 1
    second.close()
    assert not os.path.exists(os.path.join(path, "live"))
    second._engine.session.tell_if_due()
    assert published(path) == []


def test_a_dropped_chest_leaves_nothing(path, other):
    other.drop()
    assert not os.path.exists(path)


def test_a_page_that_somebody_removed_comes_again(path, other):
    os.unlink(os.path.join(path, "live", pages(path)[0]))
    os.rmdir(os.path.join(path, "live"))
    assert published(path) == []
    tell(other)
    assert len(published(path)) == 1


def test_a_folder_that_vanishes_while_a_page_is_made_is_made_again(path, make_chest, monkeypatch):
    chest = make_chest(path=path)
    with monkeypatch.context() as patch:
        patch.setattr(
            arraychest.monitor.live, "_sweep", lambda _: os.rmdir(os.path.join(path, "live"))
        )
        tell(chest)
    assert published(path) == []
    tell(chest)
    assert len(published(path)) == 1


@pytest.mark.parametrize("how", ["held", "gone"])
def test_a_page_that_is_swept_while_it_is_made_is_made_again(how, path, make_chest, monkeypatch):
    chest = make_chest(path=path)

    def lock(fd, kind):
        (name,) = pages(path)
        if how == "held":
            raise BlockingIOError
        os.unlink(os.path.join(path, "live", name))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lock)
        tell(chest)
    assert pages(path) == []
    tell(chest)
    assert len(published(path)) == 1


def test_long_keys_and_many_of_them_fit_on_a_page(path, other):
    keys = ["\U0001f600" * 500, ("x" * 1000,) * 50, b"y" * 500, *[("é" * 200, n) for n in range(9)]]
    for key in keys:
        other[key] = np.zeros(LARGE)
        other[key]
    tell(other)
    (told,) = published(path)
    assert len(told.busiest) == 8
    assert all(len(key) <= 80 for key, _ in told.busiest)


def test_a_forked_child_publishes_nothing_and_holds_no_page(path, other):
    def child(_):
        other._engine.session.tell_if_due()
        held = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                held.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                continue
        due = other._engine.session.live.due
        other.close()
        return [each for each in held if each.endswith(".page")], due

    outcome = in_child(child)
    assert outcome.result == ([], math.inf), outcome.error
    assert len(published(path)) == 1
    tell(other)
    assert len(published(path)) == 1


# --- where it cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["mkdir", "open", RESERVING, "pwrite"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_whatever_fails_the_chest_is_not_disturbed(what, number, path, make_chest, monkeypatch):
    chest = make_chest({"x": np.zeros(LARGE)}, path)

    class Failing:
        def __getattr__(self, name):
            return self.fail if name == what else getattr(os, name)

        def fail(self, *args, **kwargs):
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(arraychest.monitor.live, "os", Failing())
        patch.setattr(arraychest.platform.space, "os", Failing())
        tell(chest)
    assert chest._engine.session.live.due == math.inf
    assert published(path) == []
    chest["y"] = np.ones(LARGE)
    assert chest["y"].sum() == 20_000


def test_an_error_of_our_own_is_not_taken_for_one_of_the_commit(path, make_chest, monkeypatch):
    chest = make_chest(path=path)
    monkeypatch.setattr(arraychest.engine.counters.Account, "take", lambda *_: 1 / 0)
    chest._engine.session.live.due = 0.0
    chest.update({"x": np.zeros(LARGE)})
    assert chest._engine.session.live.due == math.inf
    assert chest["x"].shape == LARGE


def test_a_full_disk_ends_it_and_leaves_no_page(tiny_disk, make_chest):
    path = str(tiny_disk / "test.chest")
    chest = make_chest({"x": np.zeros(LARGE)}, path)
    chest.flush()
    fill_disk(tiny_disk)
    try:
        tell(chest)
        assert chest._engine.session.live.due == math.inf
        assert pages(path) == []
        assert chest["x"].shape == LARGE
    finally:
        os.unlink(tiny_disk / "filler")


def test_on_a_read_only_medium_nothing_is_published(tiny_disk):
    path = str(tiny_disk / "test.chest")
    arraychest.Chest({"x": np.zeros(LARGE)}, path).close()
    gc.collect()  # what is mapped to be written to keeps the medium busy
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    try:
        with arraychest.open(path, "r") as chest:
            chest._engine.session.live.due = 0.0
            assert chest["x"].shape == LARGE
            assert chest._engine.session.live.due == math.inf
            assert published(path) == []
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)


@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_what_lies_in_the_place_of_the_folder_leads_nowhere(
    kind, path, place, tmp_path, make_chest
):
    folder, elsewhere = os.path.join(path, "live"), tmp_path / "elsewhere"
    os.rmdir(folder)
    elsewhere.mkdir()
    page = place(page_of(json.dumps(GOOD).encode()), elsewhere / f"1-{'0' * 16}.page")
    if kind == "link":
        os.symlink(elsewhere, folder)
    elif kind == "file":
        open(folder, "wb").close()
    else:
        os.mkfifo(folder)
    before = listing(str(tmp_path))
    chest = make_chest(path=path)
    tell(chest)
    assert chest._engine.session.live.due == math.inf
    assert published(path) == []
    chest.close()
    assert os.path.lexists(folder)
    assert os.listdir(elsewhere) == [os.path.basename(page)]
    assert set(listing(str(tmp_path))) == set(before)


def test_the_folder_of_pages_belongs_to_a_chest(path, make_chest):
    os.makedirs(os.path.join(path, "live"))
    chest = make_chest({"x": np.zeros(3)}, path)
    tell(chest)
    assert len(published(path)) == 1


# --- pages of a stranger --------------------------------------------------------------------------


def page_of(text, *, crc=None, nbytes=None, magic=b"ARRLIVE1"):
    crc = zlib.crc32(text) if crc is None else crc
    nbytes = len(text) if nbytes is None else nbytes
    head = magic + nbytes.to_bytes(4, "little") + crc.to_bytes(4, "little")
    return (head + text).ljust(PAGE_BYTES, b"\0")


GOOD = {
    "pid": 7, "process": "p", "mode": "a", "opened": 1.5, "told": 2, "budget": 3, "charged": 4,
    "resident": 5, "stored_bytes": None, "stored": 6, "counts": Counts()._asdict(),
    "before": Counts()._asdict(), "seconds": 0.5, "busiest": [["'k'", 2]],
}  # fmt: skip

WRONG = {
    "pid": [-1, 1 << 63, "7", None, True, 1.0],
    "mode": ["z", "", None, []],
    "process": [None, 3, "x" * 81],
    "told": [math.nan, math.inf, -1, 1e300, "2", True],
    "stored": ["6", -1],
    "counts": [None, {}, [], {**Counts()._asdict(), "hits": "many"}],
    "busiest": [None, {}, [3], [[3, 3]], [["k", "k"]], [["k"]], [["k", 1, 2]]],
    "seconds": [[], -0.5],
}


@pytest.fixture
def place(path, make_chest):
    """Puts a page with a good name into a chest, locked as by a living owner."""
    make_chest(path=path).close()
    folder = os.path.join(path, "live")
    os.mkdir(folder)
    held = []

    def put(data, name=None):
        file = os.path.join(folder, name or f"{len(held)}-{len(held):016x}.page")
        held.append(os.open(file, os.O_RDWR | os.O_CREAT))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
        os.write(held[-1], data)
        return file

    yield put
    for fd in held:
        os.close(fd)


def test_a_good_page_of_a_living_owner_is_read(path, place):
    place(page_of(json.dumps(GOOD).encode()))
    (told,) = published(path)
    assert (told.pid, told.told, told.stored, told.stored_bytes) == (7, 2.0, 6, None)
    assert told.busiest == (("'k'", 2),)
    assert told.hit_rate is None


def test_a_page_that_is_not_as_it_should_be_is_left_out(path, place):
    good = json.dumps(GOOD).encode()
    bad = [
        b"",
        good,
        page_of(good)[:-1],
        page_of(good) + b"\0",
        page_of(good, magic=b"ARRLIVE2"),
        page_of(good, crc=1),
        page_of(good.ljust(PAGE_BYTES - 16), nbytes=0xFFFFFFFF),
        page_of(good, nbytes=PAGE_BYTES - 15),
        page_of(good[:-1]),
        page_of(b"[" * 16_000),
        page_of(b'{"pid": ' + b"9" * 10_000 + b"}"),
        page_of(b"null"),
        page_of("é".encode()),
    ]
    for name, values in WRONG.items():
        bad += [page_of(json.dumps({**GOOD, name: value}).encode()) for value in values]
    for name in GOOD:
        bad.append(page_of(json.dumps({k: v for k, v in GOOD.items() if k != name}).encode()))
    for data in bad:
        place(data)
    assert published(path) == []
    place(page_of(good), "nothing.page")
    assert published(path) == []
    place(page_of(good))
    assert len(published(path)) == 1


def test_nothing_but_a_file_is_opened_as_a_page_or_swept(path, place, make_chest, tmp_path):
    mine = place(page_of(json.dumps(GOOD).encode()))
    names = [f"{number}-{'a' * 16}.page" for number in range(4)]
    folder = os.path.dirname(mine)
    os.mkfifo(os.path.join(folder, names[0]))
    os.symlink(mine, os.path.join(folder, names[1]))
    os.symlink(tmp_path / "made by us", os.path.join(folder, names[2]))
    os.mkdir(os.path.join(folder, names[3]))
    with open(os.path.join(folder, "notes.txt"), "wb") as notes:
        notes.write(bytes(PAGE_BYTES))
    assert [told.pid for told in published(path)] == [7]
    before = pages(path)
    chest = make_chest(path=path)
    tell(chest)
    assert len(published(path)) == 2
    chest.close()
    assert pages(path) == before
    assert not os.path.lexists(tmp_path / "made by us")


def test_a_chest_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError):
        published(tmp_path / "absent")
    with pytest.raises(ChestFormatError, match="no catalog"):
        published(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        published(tmp_path / "file")


# --- top -----------------------------------------------------------------------------------------


def test_top_of_no_chest_is_one_line(tmp_path, capsys):
    for options in ([], ["--json"], ["--once"]):
        assert main(["top", str(tmp_path), *options]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("arraychest top: ")
        assert len(told.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_top_says_that_nobody_uses_a_chest(path, make_chest, capsys):
    make_chest(path=path).close()
    assert main(["top", path]) == 0
    # Lines are wrapped, according to how long the path is.
    assert "nobody has it open" in " ".join(capsys.readouterr().out.split())
    assert main(["top", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["processes"] == []


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "soon", "1e9"])
def test_an_interval_is_a_number_of_seconds(interval, path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["top", path, "--interval", interval])
    assert caught.value.code == 2
    assert "seconds" in capsys.readouterr().err


def test_what_a_stranger_tells_reaches_no_terminal_as_it_is(path, place, capsys):
    evil = "\x1b[2J\u202e[red]"
    told = {
        **GOOD,
        "told": time.time(),
        "process": "\x1b[red]",
        "busiest": [[evil, 3], ["\ud800", 2]],
    }
    place(page_of(json.dumps(told).encode()))
    for options in (["--once"], ["--json"]):
        assert main(["top", path, *options]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\u202e" not in out
    assert main(["top", path]) == 0
    assert capsys.readouterr().out.count("[red]") == 2  # in each place as text


def shown(told, width, now=1000.0):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(top.frame("work.chest", told, now, width))
    return console.file.getvalue().splitlines()


def some(**changed):
    told = Published(
        pid=12345, process="a-program-of-a-long-name.py", mode="a", opened=0.0, told=999.5,
        budget=2 << 30, charged=1 << 30, resident=3, stored_bytes=3 << 40, stored=4,
        counts=Counts(hits=30, misses=10, puts=50, bytes_spilled=1 << 30, bytes_faulted=1 << 29),
        before=Counts(), seconds=0.5, busiest=(("'k'", 30),),
    )  # fmt: skip
    return told._replace(**changed)


@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_has_a_line_for_each_process_and_fits(width):
    lines = shown([some(), some(pid=2, charged=4 << 30)], width)
    assert all(len(line) <= width for line in lines)
    (line,) = [line for line in lines if "12345" in line]
    for cell in ("1 GiB", "2 GiB", "3 TiB", "75%", "100"):
        assert cell in line
    assert "━" in line
    assert any("60" in line and "'k'" in line for line in lines)


def test_of_a_process_that_has_long_told_nothing_no_rates_are_shown():
    (line,) = [line for line in shown([some(told=880.0)], 120) if "12345" in line]
    assert "75%" not in line
    assert "2 min ago" in line
    (line,) = [line for line in shown([some(stored_bytes=None, budget=0)], 120) if "12345" in line]
    assert "counting" in line


def test_top_shows_frames_until_somebody_leaves(path, other, monkeypatch, capsys):
    waited = []

    def wait(seconds):
        waited.append(seconds)
        tell(other)
        if len(waited) == 3:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(top, "_is_left", wait)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["top", path, "--interval", "0.2"]) == 0
    assert waited == [0.2] * 3
    assert "budget" in capsys.readouterr().out


def test_q_leaves_and_the_terminal_is_as_it_was(monkeypatch):
    import termios

    master, slave = pty.openpty()
    with open(slave) as keys:
        monkeypatch.setattr(sys, "stdin", keys)
        before = termios.tcgetattr(slave)
        with top._single_keys():
            assert not termios.tcgetattr(slave)[3] & termios.ICANON
            os.write(master, b"x")
            assert not top._is_left(0.05)
            os.write(master, b"q")
            assert top._is_left(60)
        assert termios.tcgetattr(slave) == before
    os.close(master)
