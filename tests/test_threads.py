"""Many threads on one chest: every get is a value that somebody put, whole, and nobody waits."""

from __future__ import annotations

import ast
import gc
import importlib
import os
import pickle
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest, ClosedChestError, SpillError
from arraychest.catalog.changes import ChangeFeed
from tests.faults import RESERVING, injected, raising
from tests.support import assert_identical, audit

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
SMALL = 40

# A wait that is over at once unless something hangs, which then fails instead of blocking.
PATIENCE = 30


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def filled(number: float, size: int) -> np.ndarray:
    return np.full(size, float(number))


def run(*jobs: Callable[[], Any]) -> list[Any]:
    """Run each job in a thread of its own; what one raises, this raises."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        try:
            start.wait(PATIENCE)
            results[number] = jobs[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


class Background:
    """A job in a thread, to be waited for."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None

        def work() -> None:
            try:
                self.result = job()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def wait(self) -> Any:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "a thread hangs"
        if self.error is not None:
            raise self.error
        return self.result


class Gate:
    """An action that stops the chosen operations until it is opened."""

    def __init__(self, chosen: Callable[[str, tuple[Any, ...]], bool]) -> None:
        self._chosen = chosen
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE), "nothing came to the gate"

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if self._chosen(name, args) and not self._open.is_set():
            self.reached.set()
            assert self._open.wait(PATIENCE), "nobody opened the gate"
        return call()


def writer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("arraychest")]


# --- everything at once --------------------------------------------------------------------


class Churn:
    """Threads that do everything a chest offers, and check each value they get.

    A value is filled with one number, a multiple of 1000 plus the number of its key, and its size
    follows from that number: a value that is another's, torn or misshapen shows.
    """

    KEYS = 24

    def __init__(self, chest: Chest, rounds: int) -> None:
        self.chest = chest
        self.rounds = rounds
        self.gets = 0

    @staticmethod
    def value(key: int, ticket: int) -> Any:
        number = 1000 * ticket + key
        size = (SMALL, LARGE, 3 * SMALL, LARGE + 1000)[number % 4] + number % 7
        array = filled(number, size)
        # Of some a value tree with the array in it.
        return [number, (array, str(number))] if ticket % 3 == 0 else array

    def verify(self, key: int, found: Any) -> None:
        array = found[1][0] if type(found) is list else found
        number = int(array[0])
        expected = self.value(key, number // 1000)
        assert type(found) is type(expected) or type(expected) is np.ndarray
        if type(found) is list:
            assert (found[0], found[1][1]) == (number, str(number))
            expected = expected[1][0]
        assert number % 1000 == key
        assert array.shape == expected.shape
        assert (array == number).all()
        self.gets += 1

    def mutate(self, seed: int) -> None:
        chest, choose = self.chest, random.Random(seed)
        for ticket in range(1 + seed * self.rounds, 1 + (seed + 1) * self.rounds):
            key = choose.randrange(self.KEYS)
            what = choose.randrange(12)
            if what < 5:
                chest[key] = self.value(key, ticket)
            elif what < 7:
                chest.discard(key)
            elif what == 7:
                found = chest.pop(key, None)
                if found is not None:
                    self.verify(key, found)
            elif what == 8:
                self.verify(key, chest.setdefault(key, self.value(key, ticket)))
            elif what == 9:
                try:
                    del chest[key]
                except KeyError:
                    continue
            elif what == 10:
                chest.update({key: self.value(key, ticket)}, overwrite=bool(ticket % 2))
            else:
                try:
                    chest.spill(key)
                except KeyError:
                    continue

    def read(self, seed: int) -> None:
        chest, choose = self.chest, random.Random(seed)
        held = []
        for _ in range(self.rounds):
            key = choose.randrange(self.KEYS)
            found = chest.get(key)
            if found is not None:
                self.verify(key, found)
                held.append((key, found))
            if key in chest:
                try:
                    chest.entry(key)
                    chest.prefetch([key])
                except KeyError:
                    continue
            if len(held) > 20:
                # Views stay what they were, whatever became of their keys.
                for old in held:
                    self.verify(*old)
                held.clear()

    def survey(self) -> None:
        chest = self.chest
        for number in range(self.rounds // 12):
            keys = list(chest)
            assert len(keys) == len(set(keys))
            assert set(keys) <= set(range(self.KEYS))
            for key, array in chest.items():
                self.verify(key, array)
            assert 0 <= len(chest) <= self.KEYS
            stats = chest.stats()
            assert stats.charged >= 0
            repr(chest)
            dict(chest.inmem)
            assert len(list(reversed(chest))) <= self.KEYS
            if number % 3 == 0:
                chest.flush()
            elif number % 3 == 1:
                chest.compact()
            else:
                chest.available_memory = (2 + number % 5) * 8 * LARGE

    def run(self) -> None:
        jobs: list[Callable[[], Any]] = []
        for seed in range(3):
            jobs += [lambda seed=seed: self.mutate(seed), lambda seed=seed: self.read(seed)]
        run(*jobs, self.survey)
        assert self.gets > self.rounds


def churn(path: Path, rounds: int, **options: Any) -> None:
    with arraychest.open(path, "w", 4 * 8 * LARGE, **options) as chest:
        work = Churn(chest, rounds)
        work.run()
        kept = {key: array.copy() for key, array in chest.items()}
        assert len(chest) == len(kept)
        with chest._engine.session.writer.lock:
            chest._engine.session.resident.check()
    audit(str(path))
    with arraychest.open(path, "r") as chest:
        assert chest.keys() == kept.keys()
        for key, array in kept.items():
            work.verify(key, chest[key])
            assert_identical(chest[key], array)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("mmap_mode", ["r", "c"])
def test_each_get_is_a_value_that_some_put_wrote(tmp_path, mmap_mode):
    churn(tmp_path / "chest", 300, mmap_mode=mmap_mode)


@pytest.mark.usefixtures("hasty")
def test_small_packs_that_come_and_go_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("arraychest.formats.pack.PACK_BYTES", 4096)
    churn(tmp_path / "chest", 300)


@pytest.mark.stress
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("pack_bytes", [4096, 64 << 20])
@pytest.mark.parametrize("repeat", range(4))
def test_each_get_is_a_value_that_some_put_wrote_for_longer(
    tmp_path, monkeypatch, pack_bytes, repeat
):
    monkeypatch.setattr("arraychest.formats.pack.PACK_BYTES", pack_bytes)
    churn(tmp_path / "chest", 3000)


@pytest.mark.usefixtures("hasty")
def test_threads_that_put_different_keys_lose_none(tmp_path):
    def put(first: int) -> None:
        for number in range(first, first + 150):
            chest[number] = filled(number, SMALL if number % 3 else LARGE)

    with arraychest.open(tmp_path / "chest", "w", 10 * 8 * LARGE) as chest:
        run(*(lambda first=first: put(first) for first in range(0, 600, 150)))
        assert set(chest) == set(range(600))
        for number in range(600):
            assert (chest[number] == number).all()
    audit(str(tmp_path / "chest"))


@pytest.mark.usefixtures("hasty")
def test_of_threads_that_pop_the_same_keys_one_has_each(tmp_path):
    keys = range(200)
    with arraychest.open(tmp_path / "chest", "w", 100 * 8 * SMALL) as chest:
        for key in keys:
            chest[key] = filled(key, SMALL)

        def pop() -> list[int]:
            return [key for key in keys if chest.pop(key, None) is not None]

        popped = run(pop, pop, pop)
        assert sorted(key for had in popped for key in had) == list(keys)
        assert len(chest) == 0


@pytest.mark.usefixtures("hasty")
def test_of_threads_that_set_the_same_defaults_all_get_the_same(tmp_path):
    with arraychest.open(tmp_path / "chest", "w", 10 * 8 * SMALL) as chest:

        def fill(number: int) -> list[float]:
            return [float(chest.setdefault(key, filled(number, SMALL))[0]) for key in range(100)]

        one, *others = run(*(lambda number=number: fill(number) for number in range(4)))
        assert all(other == one for other in others)


@pytest.mark.usefixtures("hasty")
def test_what_is_deleted_and_put_anew_meanwhile_is_there_when_its_thread_looks(tmp_path):
    """Each thread has a key of its own, so that it knows what it must find."""

    def work(key: str) -> None:
        for number in range(120):
            chest[key] = filled(number, LARGE if number % 5 == 0 else SMALL)
            if number % 7 == 0:
                chest.spill(key)
            assert (chest[key] == number).all()
            assert key in chest
            if number % 3 == 0:
                del chest[key]
                assert key not in chest
                assert chest.get(key) is None
                with pytest.raises(KeyError):
                    chest[key]

    with arraychest.open(tmp_path / "chest", "w", 3 * 8 * LARGE) as chest:
        run(*(lambda key=key: work(key) for key in "abcde"))
    # And in a chest whose index is not complete.
    with arraychest.open(tmp_path / "chest", "a", 3 * 8 * LARGE) as chest:
        run(*(lambda key=key: work(key) for key in "abcde"))
    audit(str(tmp_path / "chest"))


def test_a_pack_dropped_while_the_packs_are_read_again_stays_dropped(tmp_path, monkeypatch):
    with arraychest.open(tmp_path / "chest", "w") as chest:
        for number in range(10):
            chest[number] = filled(number, SMALL)
        chest.flush()
        store = chest._engine.session.open_store()
        real = store.catalog.packs

        def read_then_compacted() -> Any:
            found = real()
            monkeypatch.setattr(store.catalog, "packs", real)
            del chest[3]
            chest.compact()
            return found

        (before,) = [known.id for known in real()]
        monkeypatch.setattr(store.catalog, "packs", read_then_compacted)
        store.packs.reread()
        assert not store.packs.has(before)
        assert (chest[4] == 4).all()
    audit(str(tmp_path / "chest"))


# --- faulting in ---------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "stored"
    with arraychest.open(path, "w") as chest:
        for number in range(4):
            chest["large", number] = filled(number, LARGE)
            chest["small", number] = filled(number, SMALL)
    return path


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("size", ["large", "small"])
def test_threads_that_fault_the_same_key_load_it_once(stored, size, mode):
    loads = []
    gate = Gate(lambda name, args: name == "open" and "stored" in str(args[0]))

    def on_miss(key: Any) -> None:
        loads.append(key)

    with arraychest.open(stored, mode, on_miss=on_miss) as chest, injected(gate):
        key = (size, 1)
        first = Background(lambda: chest[key])
        gate.wait()
        others = [Background(lambda: chest[key]) for _ in range(4)]
        gate.open()
        array = first.wait()
        assert all(other.wait() is array for other in others)
        assert loads == [key]
        assert chest.stats().faults == 1


def test_after_a_load_that_failed_the_next_thread_loads(stored):
    calls = []

    def on_miss(key: Any) -> None:
        calls.append(key)
        if len(calls) == 1:
            reached.set()
            assert go_on.wait(PATIENCE)
            raise RuntimeError("no luck")

    reached, go_on = threading.Event(), threading.Event()
    with arraychest.open(stored, "r", on_miss=on_miss) as chest:
        first = Background(lambda: chest["large", 1])
        assert reached.wait(PATIENCE)
        second = Background(lambda: chest["large", 1])
        go_on.set()
        with pytest.raises(RuntimeError, match="no luck"):
            first.wait()
        assert (second.wait() == 1).all()
        assert len(calls) == 2


@pytest.mark.parametrize("size", ["large", "small"])
def test_while_one_value_is_read_others_are_got_put_and_deleted(stored, size):
    gate = Gate(lambda name, args: name == "open" and "stored" in str(args[0]))
    with arraychest.open(stored, "a", on_miss=lambda key: None) as chest:
        chest[size, 2]
        other = "small" if size == "large" else "large"
        chest[other, 3]
        with injected(gate):
            blocked = Background(lambda: chest[size, 1])
            gate.wait()

            def proceed() -> None:
                assert (chest[size, 2] == 2).all()
                assert (chest[other, 3] == 3).all()
                chest["new"] = filled(5, SMALL)
                assert (chest["new"] == 5).all()
                del chest["new"]
                assert "new" not in chest
                assert chest.entry((size, 1)).nbytes
                assert len(chest) == 8
                assert len(list(chest)) == 8

            Background(proceed).wait()
            gate.open()
            assert (blocked.wait() == 1).all()


def test_a_value_overwritten_while_it_is_read_comes_back_old_or_new(stored):
    gate = Gate(lambda name, args: name == "pread")
    with arraychest.open(stored, "a") as chest, injected(gate):
        reader = Background(lambda: chest["large", 1])
        gate.wait()
        chest["large", 1] = filled(9, LARGE)
        gate.open()
        assert reader.wait()[0] in (1, 9)
        assert (chest["large", 1] == 9).all()


def test_a_value_whose_file_goes_while_it_is_read_comes_back_new(stored):
    gate = Gate(lambda name, args: name == "open" and "data" in str(args[0]) and not args[1] & 3)
    with arraychest.open(stored, "a") as chest, injected(gate):
        reader = Background(lambda: chest["large", 1])
        gate.wait()
        chest["large", 1] = filled(9, LARGE)
        chest.flush()
        with chest._engine.session.writer.lock:
            chest._engine.session.writer.wait_idle()  # until the old file is gone
        gate.open()
        assert (reader.wait() == 9).all()


def test_a_value_deleted_while_it_is_read_is_absent_or_what_it_was(stored):
    gate = Gate(lambda name, args: name == "open" and "data" in str(args[0]) and not args[1] & 3)
    with arraychest.open(stored, "a") as chest, injected(gate):
        reader = Background(lambda: chest.get(("large", 1)))
        gate.wait()
        del chest["large", 1]
        chest.flush()
        gate.open()
        found = reader.wait()
        assert found is None or (found == 1).all()


# --- writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_while_a_value_is_written_others_are_got_put_and_deleted(tmp_path, size):
    gate = Gate(lambda name, args: name == "pwritev")
    with arraychest.open(tmp_path / "chest", "w") as chest:
        chest["stored"] = filled(1, LARGE)
        chest.flush()
        with injected(gate):
            chest["written"] = filled(2, size)
            spilling = Background(lambda: chest.spill("written"))
            gate.wait()

            def proceed() -> None:
                # The value on its way out is still in RAM.
                assert (chest["written"] == 2).all()
                assert (chest["stored"] == 1).all()
                chest["new"] = filled(3, SMALL)
                assert (chest.pop("new") == 3).all()
                assert len(chest) == 2
                assert set(chest) == {"stored", "written"}

            Background(proceed).wait()
            gate.open()
            spilling.wait()
        assert (chest["written"] == 2).all()
    audit(str(tmp_path / "chest"))


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", ["overwritten", "deleted", "deleted and put anew"])
def test_what_befalls_a_value_while_it_is_written_is_what_counts(tmp_path, how, size):
    gate = Gate(lambda name, args: name == "pwritev")
    path = tmp_path / "chest"
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(0, size)
        chest.flush()
        with injected(gate):
            chest["x"] = filled(1, size)
            spilling = Background(lambda: chest.spill("x"))
            gate.wait()
            if how != "overwritten":
                del chest["x"]
            if how != "deleted":
                chest["x"] = filled(2, size)
            gate.open()
            spilling.wait()
        if how == "deleted":
            assert "x" not in chest
        else:
            assert (chest["x"] == 2).all()
        chest.flush()
        if how == "deleted":
            assert "x" not in chest
        else:
            assert (chest["x"] == 2).all()
    audit(str(path))
    with arraychest.open(path, "r") as chest:
        assert ("x" in chest) == (how != "deleted")


KINDS: dict[str, Callable[[int], Any]] = {
    "array": lambda size: np.arange(float(size)),
    "tree": lambda size: [np.arange(float(size))],
    "no array": lambda size: "x" * size,
    "scalar": lambda size: np.str_("x" * size),
    "dump": lambda size: Path("x" * size),
    "objects": lambda size: np.array([None] * size),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("size", [3, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_value_of_another_kind_that_is_put_before_one_is_written_is_what_counts(
    make_chest, caplog, first, second, size
):
    options: dict[str, Any] = {"allow_pickle": True}
    if "dump" in (first, second):
        options.update(dump=pickle.dump, load=pickle.load)
    chest = make_chest(**options)
    committer = chest._engine.session.committer
    open_store = committer.open_store
    gate = Gate(lambda name, args: True)
    # After it was picked, and before it is taken apart into what is written.
    committer.open_store = lambda: gate("open_store", (), open_store)
    chest["x"] = KINDS[first](size)
    spilling = Background(lambda: chest.spill("x"))
    gate.wait()
    chest["x"] = KINDS[second](size)
    gate.open()
    spilling.wait()
    chest.spill("x")
    # Nothing had failed that the next put or flush would tell of.
    assert "spill failed" not in caplog.text
    for _ in range(2):
        assert_identical(chest["x"], KINDS[second](size))
        assert "x" not in chest.inmem
        chest.flush()
    assert chest.verify().ok
    assert chest.memory_usage == 0


def test_a_flush_returns_only_once_what_is_being_written_is_committed(tmp_path):
    gate = Gate(lambda name, args: name == "pwritev")
    path = tmp_path / "chest"
    with arraychest.open(path, "w") as chest, injected(gate):
        chest["x"] = filled(1, LARGE)
        spilling = Background(lambda: chest.spill("x"))
        gate.wait()
        flushing = Background(chest.flush)
        gate.open()
        flushing.wait()
        with arraychest.open(path, "r") as reader:
            assert (reader["x"] == 1).all()
        spilling.wait()


def test_puts_before_the_budget_is_reached_wait_for_no_write(tmp_path):
    gate = Gate(lambda name, args: name == "pwritev")
    with arraychest.open(tmp_path / "chest", "w", 10 * 8 * LARGE) as chest, injected(gate):
        for number in range(9):  # the writers start at the high watermark and are stopped
            chest[number] = filled(number, LARGE)
        gate.wait()
        chest["last"] = filled(9, SMALL)
        putting = Background(lambda: chest.update({"over": filled(9, 2 * LARGE)}))
        assert chest.memory_usage <= 10 * 8 * LARGE
        gate.open()
        putting.wait()
        assert (chest["over"] == 9).all()


# --- threads of our own --------------------------------------------------------------------


def test_there_is_no_thread_before_the_first_spill_and_none_after_close(tmp_path):
    before = threading.active_count()
    chest = arraychest.open(tmp_path / "chest", "w", "64 MiB")
    for number in range(50):
        chest[number] = filled(number, SMALL)
        chest[number]
    assert threading.active_count() == before
    chest.flush()
    chest["x"] = filled(1, LARGE)
    chest.close()
    assert threading.active_count() == before


def test_no_thread_of_ours_is_a_daemon(tmp_path):
    gate = Gate(lambda name, args: name == "pwritev")
    with arraychest.open(tmp_path / "chest", "w") as chest, injected(gate):
        chest["x"] = filled(1, LARGE)
        spilling = Background(lambda: chest.spill("x"))
        gate.wait()
        (thread,) = writer_threads()
        assert not thread.daemon
        gate.open()
        spilling.wait()


# --- close ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temporary", [True, False])
def test_many_threads_may_close_at_once(tmp_path, temporary):
    path = None if temporary else tmp_path / "chest"
    chest = Chest(path=path, available_memory=3 * 8 * LARGE)
    for number in range(9):
        chest[number] = filled(number, LARGE)
    run(*[chest.close] * 5)
    assert chest.closed
    assert not writer_threads()
    if path is not None:
        audit(str(path))
        with arraychest.open(path, "r") as reader:
            assert len(reader) == 9


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("temporary", [True, False])
def test_a_close_under_full_use_ends_every_use_with_a_clear_error(tmp_path, temporary):
    path = None if temporary else tmp_path / "chest"
    for repeat in range(5):
        chest = Chest(path=path, available_memory=3 * 8 * LARGE)
        done: dict[Any, int] = {}

        def use(name: int, chest: Chest = chest, done: dict[Any, int] = done) -> None:
            try:
                for number in range(100_000):
                    size = (SMALL, LARGE, 4 * LARGE)[number % 3]
                    chest[name, number % 9] = filled(number, size)
                    done[name, number % 9] = number
                    found = chest[name, (number + 1) % 9] if number > 9 else None
                    assert found is None or (found == found[0]).all()
                    if number % 10 == 0:
                        list(chest)
                        chest.entry((name, 0))
                        chest.compact()
                    if number == 12:
                        busy.release()
            except ClosedChestError:
                return

        busy = threading.Semaphore(0)
        users = [Background(lambda name=name: use(name)) for name in range(4)]
        for _ in range(4):
            assert busy.acquire(timeout=PATIENCE)
        chest.close()
        for user in users:
            user.wait()
        assert not writer_threads(), repeat
        if path is not None:
            audit(str(path))
            with arraychest.open(path, "r") as reader:
                for key, number in done.items():
                    assert reader[key][0] in (number, number + 9)
    # Folders of temporary chests are looked for by the fixture that every test has.


def test_a_get_under_way_when_the_chest_is_closed_gives_the_value_or_a_clear_error(stored):
    reached, go_on = threading.Event(), threading.Event()

    def on_miss(key: Any) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)

    chest = arraychest.open(stored, "a", on_miss=on_miss)
    getting = Background(lambda: chest["large", 1])
    assert reached.wait(PATIENCE)
    chest.close()
    go_on.set()
    try:
        assert (getting.wait() == 1).all()
    except ClosedChestError:
        pass


@pytest.mark.parametrize("temporary", [True, False])
def test_a_close_waits_for_a_value_that_is_written_by_its_putting_thread(tmp_path, temporary):
    path = None if temporary else tmp_path / "chest"
    gate = Gate(lambda name, args: name == "pwritev" and args[2] == 0)
    chest = Chest(path=path, available_memory=1000)
    with injected(gate):
        putting = Background(lambda: chest.update({"x": filled(1, LARGE)}))
        gate.wait()
        closing = Background(chest.close)
        gate.open()
        try:
            putting.wait()
            put = True
        except ClosedChestError:
            put = False
        closing.wait()
    if path is not None:
        audit(str(path))
        with arraychest.open(path, "r") as reader:
            assert ("x" in reader) == put


def test_what_is_deleted_during_the_last_flush_of_a_close_stays_deleted(stored, monkeypatch):
    chest = arraychest.open(stored)
    chest["new"] = filled(1, SMALL)
    flush = chest._engine.session.writer.flush

    def flush_and_delete() -> None:
        flush()
        if ("large", 1) in chest:
            del chest["large", 1]

    monkeypatch.setattr(chest._engine.session.writer, "flush", flush_and_delete)
    chest.close()
    with arraychest.open(stored, "r") as reader:
        assert ("large", 1) not in reader
        assert "new" in reader
    audit(str(stored))


def test_an_entry_asked_for_while_the_chest_is_closed_makes_no_new_folder(stored, monkeypatch):
    chest = arraychest.open(stored)
    parse = arraychest.engine.engine.parse_form

    def closing_parse(text: str) -> Any:
        chest.close()
        return parse(text)

    monkeypatch.setattr("arraychest.engine.engine.parse_form", closing_parse)
    try:
        assert chest.entry(("large", 1)).file.startswith(str(stored))
    except ClosedChestError:
        pass
    assert chest.path == str(stored)


# --- garbage collection --------------------------------------------------------------------


def make_garbage(folder: Path, number: int) -> None:
    """A chest in a reference cycle, with values in RAM and writers at work."""
    for path in (None, folder / f"{number}"):
        chest = Chest(path=path, available_memory=3 * 8 * LARGE)
        for key in range(6):
            chest[key] = filled(key, LARGE)
        cycle = [chest]
        cycle.append(cycle)  # type: ignore[arg-type]


@pytest.mark.slow
def test_chests_may_be_collected_in_any_thread(tmp_path):
    """In one that uses another chest, in that chest's writers, and with every allocation."""
    gc.collect()
    before = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        with Chest(available_memory=3 * 8 * LARGE) as other:

            def work(first: int) -> None:
                for number in range(first, first + 6):
                    make_garbage(tmp_path, number)
                    for key in range(8):
                        other[first, key] = filled(number, LARGE if key % 2 else SMALL)
                        other.get((first, (key + 3) % 8))
                    other.flush()
                    list(other.items())

            run(*(lambda first=first: work(first) for first in range(0, 24, 6)))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    for thread in writer_threads():
        thread.join(PATIENCE)
    for number in range(24):
        with arraychest.open(tmp_path / f"{number}", "r") as chest:
            assert len(chest) == 6


@pytest.mark.slow
def test_a_chest_collected_in_its_own_writer_is_closed(tmp_path):
    collected = threading.Event()

    def on_overflow(key: Any) -> None:
        gone.wait(PATIENCE)
        gc.collect()
        collected.set()

    gone = threading.Event()
    chest = arraychest.open(tmp_path / "chest", "w", 3 * 8 * LARGE, on_overflow=on_overflow)
    for key in range(3):
        chest[key] = filled(key, LARGE)
    engine = weakref.ref(chest._engine)
    cycle: list[Any] = [chest]
    cycle.append(cycle)
    del chest, cycle
    gone.set()
    assert collected.wait(PATIENCE)
    # The other writer may be the one that collects, and starts a thread that closes.
    while threads := writer_threads():
        threads[0].join(PATIENCE)
    gc.collect()
    assert engine() is None or engine().closed
    with arraychest.open(tmp_path / "chest", "a") as again:
        assert len(again) == 3


@pytest.mark.slow
def test_a_chest_collected_amid_a_commit_to_its_folder_is_closed(tmp_path, monkeypatch):
    """What is collected must not be waited for: it waits for the commit that goes on."""
    begin = ChangeFeed.begin_session

    def begin_and_collect(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        return begin(*args, **kwargs)

    gc.collect()
    with arraychest.open(tmp_path / "chest", "a") as other:
        lost = arraychest.open(tmp_path / "chest", "a")
        lost["lost"] = filled(1, SMALL)
        cycle: list[Any] = [lost]
        cycle.append(cycle)
        other["other"] = filled(2, SMALL)
        del lost, cycle
        monkeypatch.setattr(ChangeFeed, "begin_session", begin_and_collect)
        other.flush()
        while threads := writer_threads():
            threads[0].join(PATIENCE)
        assert set(other) == {"lost", "other"}


def test_iterating_keeps_the_chest_alive(stored):
    keys = iter(arraychest.open(stored, "r"))
    gc.collect()
    assert len(list(keys)) == 8
    assert len(list(arraychest.open(stored, "r").items())) == 8
    backwards = reversed(arraychest.open(stored, "r"))
    gc.collect()
    assert len(list(backwards)) == 8


# --- threads that cannot be started --------------------------------------------------------


def test_without_threads_the_caller_writes_itself(tmp_path, monkeypatch):
    refuse = raising(RuntimeError("can't start new thread"))
    monkeypatch.setattr(threading.Thread, "start", lambda self: refuse())
    path = tmp_path / "chest"
    with arraychest.open(path, "w", 3 * 8 * LARGE) as chest:
        for number in range(12):
            chest[number] = filled(number, LARGE)
            chest["small", number] = filled(number, SMALL)
        assert chest.memory_usage <= 3 * 8 * LARGE
        del chest[0]
        chest.spill(11)
        chest.flush()
        assert chest.memory_usage == 0
        chest.compact()
        chest["last"] = filled(1, SMALL)
    audit(str(path))
    monkeypatch.undo()
    with arraychest.open(path, "r") as chest:
        assert len(chest) == 24
        assert all((chest[number] == number).all() for number in range(1, 12))


def test_room_that_the_caller_made_itself_is_no_failure(tmp_path, monkeypatch):
    """An old failure, told already, must not come up again."""
    path = tmp_path / "chest"

    def failing(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == RESERVING:
            raise OSError(28, os.strerror(28))
        return call()

    with arraychest.open(path, "w", 3 * 8 * LARGE) as chest:
        chest["a"] = filled(1, LARGE)
        with injected(failing), pytest.raises(SpillError):
            chest.flush()
        monkeypatch.setattr(
            threading.Thread, "start", lambda self: raising(RuntimeError("no thread"))()
        )
        for number in range(12):
            chest[number] = filled(number, LARGE)
        monkeypatch.undo()
        assert len(chest) == 13


def test_the_parser_of_another_thread_is_in_the_way(chest, monkeypatch):
    # NumPy parses, too, when this is imported.
    importlib.import_module("arraychest.integrations.numpy")
    literal_eval = ast.literal_eval
    failures = [SystemError("AST constructor recursion depth mismatch")] * 3

    def busy(text):
        if failures:
            raise failures.pop()
        return literal_eval(text)

    monkeypatch.setattr(ast, "literal_eval", busy)
    array = np.zeros(3, [("of this test alone", "i4")])
    chest["x"] = array
    assert not failures
    assert np.array_equal(chest["x"], array)
    failures += [SystemError("AST constructor recursion depth mismatch")] * 1000
    with pytest.raises(TypeError, match="parser"):
        chest["y"] = np.zeros(3, [("of this test, too", "i4")])
    assert list(chest) == ["x"]


def test_a_flush_waits_for_deletions_that_another_thread_commits(make_chest, tmp_path):
    chest = make_chest(path=tmp_path / "chest")
    chest.update({number: np.zeros(10) for number in range(5)})
    chest.flush()
    store = chest._engine.session.store
    began, may_go_on, done = threading.Event(), threading.Event(), threading.Event()
    commit = store.commit

    def slow(*arguments, **options):
        began.set()
        assert may_go_on.wait(30)
        return commit(*arguments, **options)

    store.commit = slow
    del chest[3]
    first = threading.Thread(target=chest.flush)
    first.start()
    assert began.wait(30)
    second = threading.Thread(target=lambda: (chest.flush(), done.set()))
    second.start()
    assert not done.wait(0.2)
    may_go_on.set()
    assert done.wait(30)
    first.join()
    second.join()
    with arraychest.open(chest.path, "r") as reader:
        assert list(reader) == [0, 1, 2, 4]
