"""Several processes on one chest: one writes, any number read, and forks read what they inherit."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest, ChestInUseError, CorruptEntryError, ReadOnlyChestError
from arraychest.catalog.changes import ChangeFeed
from arraychest.files.place import Place
from arraychest.sharing.locks import LockFile
from tests.faults import Say, die, in_child, injected
from tests.support import IMPORT_ROOT, audit, run_python

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
SMALL = 40
BYTES = 8 * LARGE


def filled(number: float, size: int) -> np.ndarray:
    return np.full(size, float(number))


def idle(chest: Chest) -> None:
    """Wait until nothing is being written or removed."""
    writer = chest._engine.session.writer
    with writer.lock:
        writer.wait_idle()


def succeed(function: Callable[[Say], Any], **options: Any) -> Any:
    outcome = in_child(function, **options)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    return outcome.result


# --- fork ----------------------------------------------------------------------------------


def read_everything(chest: Chest, numbers: dict[Any, float]) -> None:
    assert set(chest) == set(numbers)
    assert len(chest) == len(numbers)
    for key, number in numbers.items():
        assert (chest[key] == number).all(), key
        assert key in chest
        chest.entry(key)
    repr(chest)


@pytest.mark.parametrize("temporary", [True, False])
def test_a_forked_child_reads_everything_and_writes_only_to_a_chest_with_a_path(path, temporary):
    with Chest(path=None if temporary else path, available_memory=4 * BYTES) as chest:
        numbers: dict[Any, float] = {}
        for number in range(12):
            chest[number] = filled(number, LARGE)
            chest["s", number] = filled(number, SMALL)
            numbers.update({number: number, ("s", number): number})
        chest["new"] = filled(5, SMALL)  # in RAM only
        numbers["new"] = 5
        del chest[3]
        del numbers[3]

        def child(say: Say) -> None:
            read_everything(chest, numbers)
            for action in (
                lambda: chest.__setitem__("x", filled(1, SMALL)),
                lambda: chest.__setitem__("x", filled(1, 9 * LARGE)),
                lambda: chest.__delitem__(0),
                lambda: chest.pop(0),
                chest.clear,
                chest.popitem,
                chest.flush,
                chest.compact,
                chest.drop,
                lambda: chest.spill("new"),
                lambda: chest.setdefault("x", filled(1, SMALL)),
                lambda: chest.update({"x": filled(1, SMALL)}),
            ):
                if not temporary:
                    break
                with pytest.raises(ReadOnlyChestError, match="forked"):
                    action()
            read_everything(chest, numbers)
            chest.close()
            assert chest.closed

        succeed(child)
        read_everything(chest, numbers)
        chest["after"] = filled(7, LARGE)
        chest.flush()
        assert os.path.isdir(chest.path)
        read_everything(chest, {**numbers, "after": 7})
        place = chest.path
    assert os.path.isdir(place) == (not temporary)
    if not temporary:
        audit(path)


@pytest.mark.parametrize("end", ["closed", "collected", "exit", "killed", "left alone"])
def test_the_end_of_a_forked_child_leaves_the_folder_to_its_parent(end):
    chest = Chest(available_memory=BYTES)
    for number in range(4):
        chest[number] = filled(number, LARGE)
    chest.flush()
    inherited = [chest]

    def child(say: Say) -> None:
        if end == "closed":
            inherited[0].close()
        elif end == "collected":
            inherited.clear()
            nonlocal chest
            del chest
            gc.collect()
        elif end == "exit":
            sys.exit(0)  # raises, and so on to os._exit
        elif end == "killed":
            die()

    in_child(child)
    assert os.path.isdir(chest.path)
    read_everything(chest, {number: number for number in range(4)})
    chest[9] = filled(9, LARGE)
    chest.flush()
    with pytest.raises(ChestInUseError):
        arraychest.open(chest.path, "a")
    place = chest.path
    chest.close()
    assert not os.path.exists(place)


def test_a_multiprocessing_fork_ends_normally_beside_its_parents_chest():
    with Chest(available_memory=BYTES) as chest:
        for number in range(4):
            chest[number] = filled(number, LARGE)

        def work(queue: Any) -> None:
            queue.put([float(chest[number][0]) for number in range(4)])

        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=work, args=(queue,))
        process.start()
        assert queue.get() == [0, 1, 2, 3]
        process.join(60)
        assert process.exitcode == 0
        queue.close()
        process.close()
        read_everything(chest, {number: number for number in range(4)})


@pytest.mark.slow
@pytest.mark.parametrize("temporary", [True, False])
def test_forks_while_the_writers_are_busy_read_what_was_there(path, temporary):
    """The locks, the catalog's connections and the values on their way out are in any state."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    stop = threading.Event()
    try:
        with Chest(path=None if temporary else path, available_memory=3 * BYTES) as chest:
            for number in range(10):
                chest["kept", number] = filled(number, LARGE if number % 2 else SMALL)

            def churn(name: int) -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    chest[name, number % 7] = filled(number, LARGE if number % 3 else SMALL)
                    chest.discard((name, (number + 3) % 7))
                    chest.get((name, (number + 5) % 7))
                    if number % 20 == 0:
                        chest.flush()

            threads = [threading.Thread(target=churn, args=(name,)) for name in range(2)]
            for thread in threads:
                thread.start()

            def child(say: Say) -> None:
                for number in range(10):
                    assert (chest["kept", number] == number).all()
                for key, array in chest.items():
                    assert (array == array[0]).all(), key
                    assert array.size in (LARGE, SMALL)
                if temporary:
                    with pytest.raises(ReadOnlyChestError):
                        chest["x"] = filled(1, SMALL)
                else:
                    chest["x"] = filled(1, SMALL)
                    del chest["kept", 0]
                    chest["kept", 0] = filled(0, LARGE)
                chest.close()

            try:
                for _ in range(25):
                    succeed(child)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            for number in range(10):
                assert (chest["kept", number] == number).all()
    finally:
        sys.setswitchinterval(before)
    if not temporary:
        audit(path)


def test_a_fork_during_a_write_has_the_value_and_the_parent_stores_it(path):
    reached, go_on = threading.Event(), threading.Event()

    def gate(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if name == "pwritev" and os.getpid() == parent:
            reached.set()
            assert go_on.wait(30)
        return call()

    parent = os.getpid()
    with arraychest.open(path, "w") as chest, injected(gate):
        chest["x"] = filled(1, LARGE)
        spilling = threading.Thread(target=lambda: chest.spill("x"))
        spilling.start()
        assert reached.wait(30)
        succeed(lambda say: read_everything(chest, {"x": 1}))
        go_on.set()
        spilling.join()
        read_everything(chest, {"x": 1})
    audit(path)


def test_a_child_of_a_forked_child_reads_too(path):
    with arraychest.open(path, "w", BYTES) as chest:
        for number in range(3):
            chest[number] = filled(number, LARGE)
        numbers = {number: number for number in range(3)}

        def child(say: Say) -> None:
            read_everything(chest, numbers)
            succeed(lambda say: read_everything(chest, numbers))
            read_everything(chest, numbers)

        succeed(child)
    audit(path)


def test_a_child_may_have_chests_of_its_own(path, tmp_path):
    with Chest(available_memory=BYTES) as chest:
        for number in range(3):
            chest[number] = filled(number, LARGE)

        def child(say: Say) -> str:
            with Chest(available_memory=BYTES) as mine:
                mine.update(chest)
                mine.flush()
                read_everything(mine, {number: number for number in range(3)})
                assert mine.path != chest.path
                place = str(mine.path)
            with arraychest.open(path, "w") as named:
                named.update(chest)
            return place

        assert not os.path.exists(succeed(child))
        read_everything(chest, {number: number for number in range(3)})
    with arraychest.open(path, "r") as named:
        read_everything(named, {number: number for number in range(3)})
    audit(path)


def test_a_child_sees_what_its_parent_wrote_after_the_fork_or_what_was_before(path):
    ready, proceed = os.pipe(), os.pipe()
    with arraychest.open(path, "w", 0) as chest:
        for number in range(6):
            chest[number] = filled(number, LARGE)
        chest.flush()

        def child(say: Say) -> None:
            os.write(ready[1], b"x")
            assert os.read(proceed[0], 1) == b"x"
            for number in range(6):
                try:
                    array = chest[number]
                except KeyError:
                    assert number == 1
                else:
                    assert array[0] in (number, number + 100)
                    assert (array == array[0]).all()

        def parent() -> None:
            os.read(ready[0], 1)
            for number in (0, 2, 4):
                chest[number] = filled(number + 100, LARGE)
            del chest[1]
            chest.flush()
            os.write(proceed[1], b"x")

        thread = threading.Thread(target=parent)
        # The thread starts its work once the child is there.
        thread.start()
        succeed(child)
        thread.join()
    for fd in (*ready, *proceed):
        os.close(fd)


@pytest.mark.slow
def test_a_fork_with_garbage_chests_about_does_not_hang(path):
    """The hooks around a fork hold every chest's locks, and may set off the collector."""

    def child(say: Say) -> None:
        gc.collect()
        before = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            for number in range(30):
                chest = Chest(available_memory=0)
                chest["x"] = filled(number, SMALL)
                cycle: list[Any] = [chest]
                cycle.append(cycle)
                del chest, cycle
                in_child(lambda say: None)
        finally:
            gc.set_threshold(*before)
        gc.collect()

    succeed(child)


# --- one writer ----------------------------------------------------------------------------

EMPTIER = """
    import sys, arraychest
    try:
        arraychest.open(sys.argv[1], "w")
    except arraychest.ChestInUseError as error:
        assert isinstance(error, BlockingIOError)
        print("refused:", error)
"""


def test_a_chest_in_use_is_neither_emptied_nor_dropped_wherever_that_is_tried(path):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, SMALL)
        with pytest.raises(ChestInUseError, match="nobody else"):
            arraychest.open(path, "w")
        said = run_python(EMPTIER, path).stdout
        assert said.startswith("refused")

        def child(say: Say) -> None:
            with pytest.raises(ChestInUseError):
                arraychest.open(path, "w")

        succeed(child)
        with arraychest.open(path, "a") as other:
            with pytest.raises(ChestInUseError):
                other.drop()
            other["y"] = filled(2, LARGE)
        chest["z"] = filled(3, LARGE)
    with arraychest.open(path, "a") as chest:
        read_everything(chest, {"x": 1, "y": 2, "z": 3})
    audit(path)


def test_a_writer_that_was_killed_leaves_the_chest_to_the_next(path):
    code = """
        import sys, numpy as np, arraychest
        chest = arraychest.open(sys.argv[1], "w", 300_000)
        for number in range(10):
            chest[number] = np.full(9000, float(number))
            chest["s", number] = np.full(40, float(number))
        chest.flush()
        print("flushed", flush=True)
        number = 0
        while True:
            number += 1
            chest[number % 10] = np.full(9000, number * 10.0 + number % 10)
            chest["s", number % 10] = np.full(40, number * 10.0 + number % 10)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), path],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "flushed\n"
        with arraychest.open(path, "r") as reader:
            for _ in range(20):
                for number in range(10):
                    assert reader[number][0] % 10 == number
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with arraychest.open(path, "a") as chest:
        assert len(chest) == 20
        for number in range(10):
            for key, size in ((number, 9000), (("s", number), 40)):
                array = chest[key]
                assert array.shape == (size,)
                assert (array == array[0]).all()
                assert array[0] % 10 == number
        chest["x"] = filled(1, LARGE)
    audit(path)


def test_a_reader_in_another_process_reads_beside_the_writer(path):
    code = """
        import sys, arraychest
        with arraychest.open(sys.argv[1], "r") as chest:
            assert len(chest) == 2
            assert (chest["large"] == 1).all() and (chest["small"] == 2).all()
            try:
                chest["x"] = chest["small"]
            except arraychest.ReadOnlyChestError:
                print("read")
    """
    with arraychest.open(path, "w") as chest:
        chest["large"] = filled(1, LARGE)
        chest["small"] = filled(2, SMALL)
        chest.flush()
        assert run_python(code, path).stdout == "read\n"
        chest["x"] = filled(3, LARGE)
    audit(path)


@pytest.mark.usefixtures("resource_tracker")
def test_a_spawned_child_opens_the_chest_by_its_path(path):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(4, LARGE)
        chest.flush()
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            assert pool.apply(_first, (path, "x")) == 4
            pool.close()
            pool.join()


def _first(path: str, key: str) -> float:
    with arraychest.open(path, "r") as chest:
        return float(chest[key][0])


def test_two_processes_that_make_temporary_chests_at_once_both_have_one(monkeypatch):
    """One may take the other's folder for abandoned while its lock is made."""
    real = LockFile.try_take
    once = threading.Event()

    def slow(self: LockFile, byte: int) -> bool:
        if not once.is_set():
            once.set()
            # Our lock file is there, and not locked yet.
            run_python("import arraychest.files.private as f; f.make_private_folder()[1].close()")
        return real(self, byte)

    monkeypatch.setattr(LockFile, "try_take", slow)
    with Chest(available_memory=0) as chest:
        chest["x"] = filled(1, SMALL)
        assert once.is_set()
        assert os.path.isdir(chest.path)
        assert (chest["x"] == 1).all()
    with Chest(available_memory=0) as chest:  # sweeps what the child left
        chest["x"] = filled(1, SMALL)


def test_a_lock_on_a_folder_that_is_being_dropped_is_no_lock(path, monkeypatch):
    chest = arraychest.open(path, "w")
    chest["x"] = filled(1, SMALL)
    real = LockFile.try_take

    def slow(self: LockFile, byte: int) -> bool:
        monkeypatch.undo()
        chest.drop()  # between our opening of the lock file and our locking it
        return real(self, byte)

    monkeypatch.setattr(LockFile, "try_take", slow)
    with pytest.raises((ChestInUseError, FileNotFoundError)):
        arraychest.open(path, "a")
    with arraychest.open(path, "x") as again:
        again["y"] = filled(2, SMALL)
        with pytest.raises(ChestInUseError):
            arraychest.open(path, "w")
    audit(path)


# --- readers and recycled files ------------------------------------------------------------


def inode(chest: Chest, key: Any) -> int:
    return os.stat(chest.key_to_filename(key)).st_ino


@pytest.fixture
def recycler(path: str) -> Any:
    """A chest that stores each value at once, and that nobody looks at."""
    with arraychest.open(path, "w", 0) as chest:
        chest["a"] = filled(0, LARGE)
        if not recycles(chest):
            pytest.skip("this file system grants no leases")
        yield chest
    audit(path)


def recycles(chest: Chest, key: str = "a") -> bool:
    """Whether the file of a value is used again for the one after the next."""
    before = inode(chest, key)
    chest[key] = filled(1, LARGE)
    idle(chest)
    chest[key] = filled(2, LARGE)
    return before == inode(chest, key)


def test_the_file_of_a_value_that_nobody_sees_is_used_again(recycler):
    assert all(recycles(recycler) for _ in range(3))


def holder(path: str, how: str) -> subprocess.Popen[bytes]:
    """Another process that sees the file of "a" in some way, and says so."""
    code = f"""
import mmap, os, sys, numpy as np, arraychest
chest = arraychest.open({path!r}, "r")
how = {how!r}
if how == "view":
    seen = chest["a"]
elif how == "slice":
    seen = chest["a"][5:9]
    chest.close()
else:
    fd = os.open(chest.key_to_filename("a"), os.O_RDWR if how == "writable" else os.O_RDONLY)
    if how == "map":
        seen = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        os.close(fd)
    elif how == "private map":
        seen = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
        os.close(fd)
print("seen", flush=True)
sys.stdin.readline()
if how in ("view", "slice"):
    print(set(seen.tolist()))
elif how.endswith("map"):
    print(set(np.frombuffer(seen, np.float64, {LARGE}, 128).tolist()))
else:
    data = os.pread(fd, 1 << 24, 0)
    print(set(np.frombuffer(data, np.float64, {LARGE}, 128).tolist()))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"seen\n"
    return process


@pytest.mark.parametrize("how", ["view", "slice", "map", "private map", "open", "writable"])
def test_a_file_that_another_process_sees_is_never_written_to(recycler, path, how):
    recycler["a"] = filled(7, LARGE)
    idle(recycler)
    process = holder(path, how)
    try:
        seen = inode(recycler, "a")
        for number in range(6):
            recycler["a"] = filled(10 + number, LARGE)
            idle(recycler)
            assert inode(recycler, "a") != seen
            recycler["b", number] = filled(20 + number, LARGE)
            assert inode(recycler, ("b", number)) != seen
        said, _ = process.communicate(b"\n", timeout=60)
        assert said == b"{7.0}\n"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert recycles(recycler)


def test_a_file_that_a_forked_child_still_sees_is_never_written_to(recycler):
    recycler["a"] = filled(7, LARGE)
    idle(recycler)
    views = [recycler["a"]]
    ready, proceed = os.pipe(), os.pipe()

    def child(say: Say) -> float:
        os.write(ready[1], b"x")
        os.read(proceed[0], 1)
        (view,) = views
        assert (view == view[0]).all()
        return float(view[0])

    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(in_child(child)))
    thread.start()
    os.read(ready[0], 1)
    seen = inode(recycler, "a")
    views.clear()
    for number in range(5):
        recycler["a"] = filled(10 + number, LARGE)
        idle(recycler)
        assert inode(recycler, "a") != seen
    os.write(proceed[1], b"x")
    thread.join()
    assert result[0].error is None, result[0].error
    assert result[0].result == 7
    for fd in (*ready, *proceed):
        os.close(fd)


def test_a_file_with_a_second_name_is_never_written_to(recycler, tmp_path):
    recycler["a"] = filled(7, LARGE)
    idle(recycler)
    kept = tmp_path / "kept.npy"
    os.link(recycler.key_to_filename("a"), kept)
    for number in range(5):
        recycler["a"] = filled(10 + number, LARGE)
        idle(recycler)
        recycler["b", number] = filled(20 + number, LARGE)
    assert (np.load(kept) == 7).all()


def test_a_file_that_gets_a_second_name_as_a_spare_is_never_written_to(recycler, tmp_path):
    recycler["a"] = filled(7, LARGE)
    idle(recycler)
    recycler["a"] = filled(8, LARGE)
    idle(recycler)
    spares = list(Path(recycler.path, "spare").glob("*/*"))
    assert spares
    for number, spare in enumerate(spares):
        os.link(spare, tmp_path / f"{number}")
    contents = [(tmp_path / f"{number}").read_bytes() for number in range(len(spares))]
    for number in range(5):
        recycler["b", number] = filled(20 + number, LARGE)
    for number, content in enumerate(contents):
        assert (tmp_path / f"{number}").read_bytes() == content


class Interrupted:
    """A reader's `open` that the kernel interrupts between look-up and opening.

    The name is looked up at once; the file is opened when `proceed` was called, by then whatever
    became of it.
    """

    def __init__(self, interlude: Callable[[], object]) -> None:
        self._interlude = interlude
        self.error: OSError | None = None
        self.times = 0

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name != "open" or "/data/" not in str(args[0]) or args[1] & 3 or self.times:
            return call()
        self.times += 1
        fd = os.open(args[0], os.O_PATH | os.O_CLOEXEC)
        try:
            self._interlude()
            return os.open(f"/proc/self/fd/{fd}", args[1] & ~os.O_NOFOLLOW)
        except OSError as error:
            self.error = error
            raise
        finally:
            os.close(fd)


@pytest.mark.parametrize("when", ["freed", "overwritten", "overwritten twice"])
def test_a_reader_that_was_interrupted_while_it_opened_has_an_old_or_new_value(
    recycler, path, when
):
    recycler["a"] = filled(7, LARGE)
    idle(recycler)

    def interlude() -> None:
        recycler["a"] = filled(8, LARGE)
        idle(recycler)
        if when != "freed":
            recycler["b"] = filled(9, LARGE)
        if when == "overwritten twice":
            del recycler["b"]
            recycler.flush()
            idle(recycler)
            recycler["c"] = filled(10, LARGE)

    interrupted = Interrupted(interlude)
    with arraychest.open(path, "r") as reader, injected(interrupted):
        view = reader["a"]
        assert interrupted.times == 1
        assert view[0] in (7, 8)
        copy = view.copy()
        for number in range(5):
            recycler["d", number] = filled(20 + number, LARGE)
            assert (view == copy).all()


def test_a_reader_that_opens_while_a_spare_is_written_has_the_new_value(recycler, path):
    recycler["a"] = filled(7, LARGE)
    idle(recycler)
    writing, go_on = threading.Event(), threading.Event()

    def interlude() -> None:
        recycler["a"] = filled(8, LARGE)
        idle(recycler)
        thread.start()
        assert writing.wait(30)

    interrupted = Interrupted(interlude)
    main = threading.current_thread()

    def action(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if threading.current_thread() is main:
            return interrupted(name, args, call)
        if name == "pwritev":
            writing.set()
            assert go_on.wait(30)
        return call()

    thread = threading.Thread(target=lambda: recycler.__setitem__("b", filled(9, LARGE)))
    with arraychest.open(path, "r") as reader, injected(action):
        view = reader["a"]
        go_on.set()
        thread.join()
        assert interrupted.times == 1
        assert isinstance(interrupted.error, BlockingIOError), "the lease was not held"
        assert (view == 8).all()


def churn_beside_readers(path: str, rounds: int, readers: int) -> None:
    """A writer that recycles as often as it can, and readers that look for a wrong value."""
    keys = 6
    with arraychest.open(path, "w", 2 * BYTES) as chest:
        for key in range(keys):
            chest[key] = filled(key, LARGE)
            chest["s", key] = filled(key, SMALL)

    def read(say: Say, seed: int) -> int:
        choose = random.Random(seed)
        gets = 0
        held: list[tuple[Any, float, np.ndarray]] = []
        while os.path.exists(go_on):
            with arraychest.open(path, "r", mmap_mode=choose.choice("rc")) as reader:
                for _ in range(40):
                    key = choose.randrange(keys)
                    what: Any = key if choose.random() < 0.8 else ("s", key)
                    array = reader[what]
                    assert array.shape == ((LARGE,) if what == key else (SMALL,))
                    number = float(array[0])
                    assert number % 10 == key, "another key's value"
                    held.append((what, number, array))
                    gets += 1
                for what, number, array in held:
                    assert (array == number).all(), f"{what} has changed"
            del held[: choose.randrange(len(held))]
        return gets

    go_on = path + ".go"
    Path(go_on).touch()
    results: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: results.append(in_child(lambda say: read(say, seed)))
        )
        for seed in range(readers)
    ]
    for thread in threads:
        thread.start()
    try:
        with arraychest.open(path, "a", 2 * BYTES) as chest:
            inodes = []
            for number in range(1, rounds):
                key = number % keys
                chest[key] = filled(10 * number + key, LARGE)
                chest["s", key] = filled(10 * number + key, SMALL)
                if number % 3 == 0:
                    chest.flush()
                    inodes.append(inode(chest, key))
                if number % 50 == 0:
                    chest.compact()
    finally:
        os.unlink(go_on)
        for thread in threads:
            thread.join()
    for outcome in results:
        assert not outcome.signal, f"ended by signal {outcome.signal}"
        assert outcome.error is None, outcome.error
        assert outcome.result > 0
    assert len(set(inodes)) < len(inodes), "nothing was recycled"
    audit(path)


@pytest.mark.slow
def test_readers_beside_a_churning_writer_never_see_a_wrong_value(path):
    churn_beside_readers(path, rounds=600, readers=3)


@pytest.mark.stress
@pytest.mark.parametrize("readers", [1, 2, 6])
def test_readers_beside_a_churning_writer_never_see_a_wrong_value_for_longer(path, readers):
    churn_beside_readers(path, rounds=12_000, readers=readers)


def test_views_of_another_process_outlive_the_chest(path):
    with arraychest.open(path, "w") as chest:
        chest["a"] = filled(7, LARGE)
        chest["s"] = filled(8, SMALL)
        chest.flush()
        ready, proceed = os.pipe(), os.pipe()

        def child(say: Say) -> None:
            with arraychest.open(path, "r") as reader:
                views = reader["a"], reader["s"]
                os.write(ready[1], b"x")
                os.read(proceed[0], 1)
                assert (views[0] == 7).all()
                assert (views[1] == 8).all()
                with pytest.raises((KeyError, OSError, CorruptEntryError)):
                    reader["b"]
            assert (views[0] == 7).all()

        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(in_child(child)))
        thread.start()
        os.read(ready[0], 1)
        chest.drop()
        os.write(proceed[1], b"x")
        thread.join()
        assert result[0].error is None, result[0].error
        assert not result[0].signal
        for fd in (*ready, *proceed):
            os.close(fd)


def test_a_lease_that_is_broken_does_not_end_the_writer(recycler):
    """Opening a leased file sends its holder a signal, by default SIGIO, which would end it."""
    recycler["a"] = filled(7, LARGE)
    idle(recycler)
    recycler["a"] = filled(8, LARGE)
    idle(recycler)
    opened = []

    def action(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if name == "pwritev" and not opened:
            for file in Path(recycler.path, "spare").glob("*/*"):
                code = (
                    "import os, sys\n"
                    "try:\n    os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)\n"
                    "except BlockingIOError:\n    print('leased')"
                )
                said = subprocess.run(
                    [sys.executable, "-c", code, str(file)], capture_output=True, check=True
                )
                opened.append(said.stdout)
        return call()

    with injected(action):
        recycler["b"] = filled(9, LARGE)
    assert b"leased\n" in opened
    assert (recycler["b"] == 9).all()


@pytest.mark.parametrize("again", ["put", "transaction", "absent"])
@pytest.mark.parametrize("theirs", ["overwrite", "delete", "compact"])
@pytest.mark.parametrize("size", [10, 40_000], ids=["small", "large"])
def test_a_deletion_not_yet_committed_beside_what_another_chest_does_to_the_key(
    path, again, theirs, size
):
    with Chest(path=path) as mine, Chest(path=path) as other:
        for key in ("x", "y", "z"):
            mine[key] = np.full(size, 1)
        mine.flush()
        assert (other["x"] == 1).all()
        del mine["x"]
        if again == "put":
            mine["x"] = np.full(size, 2)
        if theirs == "overwrite":
            other["x"] = np.full(size, 3)
        elif theirs == "delete":
            del other["x"]
        else:
            del other["y"]
            other.compact()
        other.flush()
        assert "z" in mine  # it looks what the other has done
        if again == "transaction":
            with mine.transaction():
                mine["x"] = np.full(size, 2)
        mine.flush()
        mine.flush()
        assert ("x" in other) == (again != "absent")
        if again != "absent":
            assert (other["x"] == 2).all()
            other["x"] = np.full(size, 4)
            other.flush()
            assert (mine["x"] == 4).all()
        assert mine.verify().ok
    audit(path)


@pytest.mark.parametrize("told", [True, False], ids=["told which keys", "too many keys"])
@pytest.mark.parametrize(
    ("size", "again"),
    # No commit comes between what is written to a pack and its own.
    [(10, "put"), (10, "absent"), (40_000, "put"), (40_000, "transaction"), (40_000, "absent")],
)
def test_a_deletion_of_what_is_written_for_the_first_time_beside_anothers_put(
    path, size, again, told, monkeypatch
):
    if not told:
        monkeypatch.setattr(arraychest.catalog.changes, "_MOST_TOLD", 0)
    reached, go_on = threading.Event(), threading.Event()

    def gate(name: str, args: Any, call: Callable[[], Any]) -> Any:
        if name == "pwritev" and not reached.is_set():
            reached.set()
            assert go_on.wait(60)
        return call()

    def put_by_other(number: int) -> None:
        other["x"] = np.full(40_000, number)
        other.flush()
        assert "y" not in mine  # it looks what the other has done

    with Chest(path=path) as mine, Chest(path=path) as other:
        with injected(gate), ThreadPoolExecutor(1) as pool:
            mine["x"] = np.full(size, 1)
            writing = pool.submit(mine.spill, "x")
            assert reached.wait(60)
            del mine["x"]
            put_by_other(2)
            assert "x" not in mine
            if again == "transaction":
                with mine.transaction():
                    mine["x"] = np.full(size, 3)
                put_by_other(4)
                assert (mine["x"] == 4).all()
                assert mine["x"].size == 40_000
            elif again == "put":
                mine["x"] = np.full(size, 5)
            go_on.set()
            writing.result()
        mine.flush()
        expected = {"transaction": 4, "put": 5}.get(again)
        for chest in (mine, other):
            assert ("x" in chest) == (expected is not None)
            assert len(chest) == (expected is not None)
            assert expected is None or (chest["x"] == expected).all()
        # With the session of whoever wrote a file that nobody names, it would be an orphan.
        other.close()
        assert mine.verify().ok
        mine["x"] = np.full(size, 6)
        mine.flush()
        assert mine.verify().ok
        assert (mine["x"] == 6).all()
    audit(path)


@pytest.mark.slow
def test_a_child_forked_beside_threads_that_open_and_close_chests_can_open_one(path, tmp_path):
    with arraychest.open(path, "w") as chest:
        chest["a"] = filled(1, SMALL)
    stop = threading.Event()

    def churn(number: int) -> None:
        while not stop.is_set():
            with arraychest.open(tmp_path / f"other{number}", "a") as other:
                other["b"] = filled(2, SMALL)
                other.flush()
                other.verify()

    def read(say: Say) -> float:
        with arraychest.open(path, "r") as reader:
            return float(reader["a"][0])

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        # Every fifth child waited for good when a fork did not wait for SQLite.
        outcomes = [in_child(read, seconds=20) for _ in range(60)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {(outcome.result, outcome.error) for outcome in outcomes} == {(1.0, None)}


def test_a_commit_while_a_chest_is_being_opened_is_not_taken_for_known(path, monkeypatch):
    """What was read of the packs before it would be written back over it."""
    last_commit = ChangeFeed.last_commit
    late = []
    with Chest(path=path) as first:
        first["x"] = np.zeros(40)
        first.flush()

        def after_a_commit(changes: ChangeFeed) -> int:
            if not late:
                late.append(True)
                first["x"] = np.ones(40)
                first.flush()
            return last_commit(changes)

        monkeypatch.setattr(ChangeFeed, "last_commit", after_a_commit)
        with Chest(path=path) as second:
            assert late
            second["x"] = np.full(40, 2.0)
            second.flush()
            assert second.verify().ok, str(second.verify())
        assert (first["x"] == 2).all()
    audit(path)


# Each opens the catalog's file once more in a process that has it open.
LOOKS = {
    "a": lambda path: arraychest.open(path).close(),
    "r": lambda path: arraychest.open(path, "r").close(),
    "w": lambda path: arraychest.open(path, "w").close(),
    "repair": arraychest.repair,
}


def look_at(path: str, look: str) -> None:
    refused = pytest.raises(ChestInUseError) if look in ("w", "repair") else nullcontext()
    with refused:
        LOOKS[look](path)


@pytest.mark.parametrize("look", LOOKS)
def test_who_looks_at_a_catalog_that_is_open_leaves_its_locks_alone(path, look):
    # SQLite's locks belong to the process, which loses all of them with any descriptor of the file:
    # the other process would take itself for the last one, and remove the log.
    other = """
        import sys
        import arraychest

        with arraychest.open(sys.argv[1]) as chest:
            chest["theirs"] = 1
            chest.flush()
            print(flush=True)
            sys.stdin.read()
    """
    with arraychest.open(path) as chest:
        chest["mine"] = np.ones(3)
        chest.flush()
        command = [sys.executable, "-c", textwrap.dedent(other), path]
        environment = {**os.environ, "PYTHONPATH": IMPORT_ROOT}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            look_at(path, look)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                look_at(path, look)
            assert len(os.listdir("/proc/self/fd")) == before
            process.communicate()
        assert process.returncode == 0
        chest["late"] = np.ones(3)
        chest.flush()
        done = run_python("import arraychest, sys; print(*arraychest.open(sys.argv[1], 'r'))", path)
        assert set(done.stdout.split()) == {"mine", "theirs", "late"}
    left = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    assert not [each for each in left if each.startswith(path)]


def test_a_folder_of_spares_that_goes_while_a_chest_is_opened_is_no_error(path, monkeypatch):
    arraychest.open(path).close()
    os.makedirs(f"{path}/spare/1")
    entries = Place.entries

    def entries_then_gone(files, name):
        found = entries(files, name)
        if name == "spare" and found:
            os.rmdir(f"{path}/spare/1")
        return found

    monkeypatch.setattr(Place, "entries", entries_then_gone)
    arraychest.open(path, "r").close()
    assert not os.path.exists(f"{path}/spare/1")
