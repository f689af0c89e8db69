"""A forked child of a chest with a path reads what its parent has, and writes as any other process.

What the parent had in RAM at the fork, and had not stored, is read in the child and stored by the
parent.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest
from arraychest.errors import ReadOnlyChestError, SpillError
from tests.faults import Say, in_child
from tests.support import audit, run_python

SMALL, LARGE = 40, 9000


def filled(number: float, size: int = SMALL) -> np.ndarray:
    return np.full(size, float(number))


def succeed(function: Callable[[Say], Any], **options: Any) -> Any:
    outcome = in_child(function, **options)
    assert not outcome.signal, f"ended by signal {outcome.signal}"
    assert outcome.error is None, outcome.error
    return outcome.result


def told(chest: Any) -> dict[Any, tuple[float, int]]:
    """What a chest has, by every way of asking."""
    found = {key: (float(np.asarray(array).flat[0]), array.size) for key, array in chest.items()}
    assert len(chest) == len(found)
    assert set(chest) == set(chest.keys()) == set(found)
    assert list(reversed(list(chest))) == list(reversed(chest))
    for key in found:
        assert key in chest
        assert chest.entry(key).shape == (found[key][1],)
    return found


def told_elsewhere(path: str) -> dict[Any, tuple[float, int]]:
    """What is stored, as another process sees it."""
    with arraychest.open(path, "r") as chest:
        return told(chest)


def in_ram_and_stored(chest: Chest) -> dict[Any, tuple[float, int]]:
    """Values of both sizes that are stored, overwritten and deleted in RAM, or only in RAM."""
    for size in (SMALL, LARGE):
        for name in ("stored", "overwritten", "deleted", "deleted and put again"):
            chest[name, size] = filled(1, size)
    chest.flush()
    for size in (SMALL, LARGE):
        chest["overwritten", size] = filled(2, size)
        del chest["deleted", size]
        del chest["deleted and put again", size]
        chest["deleted and put again", size] = filled(2, size)
        chest["new", size] = filled(2, size)
    return {
        (name, size): (number, size)
        for name, number in (
            ("stored", 1.0), ("overwritten", 2.0), ("deleted and put again", 2.0), ("new", 2.0)
        )
        for size in (SMALL, LARGE)
    }  # fmt: skip


@pytest.fixture(params=["a", "w", "x"])
def chest(request, path):
    with arraychest.open(path, request.param) as opened:
        yield opened
    audit(path)


def test_a_child_has_what_its_parent_had_and_stores_only_its_own(chest, path):
    before = in_ram_and_stored(chest)

    def child(say: Say) -> None:
        assert told(chest) == before
        chest["child", SMALL] = filled(5)
        chest["child", LARGE] = filled(6, LARGE)
        mine = {("child", SMALL): (5.0, SMALL), ("child", LARGE): (6.0, LARGE)}
        assert told(chest) == before | mine
        chest.flush()
        assert told(chest) == before | mine
        stored = told_elsewhere(path)
        assert {key: stored[key] for key in mine} == mine
        assert not any(key[0] == "new" for key in stored)
        assert chest.verify().ok
        chest.close()

    succeed(child)
    both = before | {("child", SMALL): (5.0, SMALL), ("child", LARGE): (6.0, LARGE)}
    assert told(chest) == both
    chest.flush()
    assert told_elsewhere(path) == both


def test_a_child_changes_what_its_parent_has_in_ram(chest, path):
    before = in_ram_and_stored(chest)
    views = {key: chest[key] for key in before}

    def child(say: Say) -> None:
        for size in (SMALL, LARGE):
            chest["new", size] = filled(7, size)
            chest["deleted", size] = filled(7, size)
            del chest["overwritten", size]
            assert chest.pop(("stored", size))[0] == 1
            with chest.edit(("deleted and put again", size)) as array:
                array[:] = 8
        expected = {}
        for size in (SMALL, LARGE):
            expected["new", size] = expected["deleted", size] = (7.0, size)
            expected["deleted and put again", size] = (8.0, size)
        assert told(chest) == expected
        chest.flush()
        assert told(chest) == expected
        assert told_elsewhere(path) == expected
        for key, view in views.items():
            assert (view == before[key][0]).all()

    succeed(child)
    # The child's changes are newer than what was stored; what the parent stores now is newer still.
    chest.flush()
    expected = {key: value for key, value in before.items() if key[0] != "stored"}
    expected |= {("deleted", size): (7.0, size) for size in (SMALL, LARGE)}
    found = told(chest)
    assert found == told_elsewhere(path)
    for key in expected:
        if key[0] != "deleted":
            assert found[key] == before[key]
    assert not any(key[0] == "stored" for key in found)


def test_a_child_follows_what_its_parent_stores_after_the_fork(chest):
    before = in_ram_and_stored(chest)
    ready, proceed = os.pipe(), os.pipe()

    def child(say: Say) -> None:
        chest["child"] = filled(3)
        os.write(ready[1], b"x")
        assert os.read(proceed[0], 1) == b"x"
        expected = {key: (9.0, key[1]) for key in before if key[0] != "new"}
        expected |= {("deleted", size): (9.0, size) for size in (SMALL, LARGE)}
        assert told(chest) == expected | {"child": (3.0, SMALL)}
        chest.flush()
        assert told(chest) == expected | {"child": (3.0, SMALL)}

    def parent() -> None:
        os.read(ready[0], 1)
        for key in before:
            chest[key] = filled(9, key[1])
        for size in (SMALL, LARGE):
            chest["deleted", size] = filled(9, size)
        chest.flush()
        for size in (SMALL, LARGE):
            del chest["new", size]
        chest.flush()
        os.write(proceed[1], b"x")

    thread = threading.Thread(target=parent)
    thread.start()
    succeed(child)
    thread.join()
    for fd in (*ready, *proceed):
        os.close(fd)


def test_a_child_forgets_a_pack_that_its_parent_removes(path):
    with arraychest.open(path) as chest:
        for number in range(100):
            chest[number] = filled(number)
        chest.flush()
        (removed,) = chest._engine.session.store.catalog.pack_ids()
        ready, proceed = os.pipe(), os.pipe()

        def child(say: Say) -> None:
            os.write(ready[1], b"x")
            assert os.read(proceed[0], 1) == b"x"
            assert [chest[number][0] for number in range(90, 100)] == list(range(90, 100))
            assert not chest._engine.session.store.packs.has(removed)

        def parent() -> None:
            os.read(ready[0], 1)
            for number in range(90):
                del chest[number]
            chest.flush()
            chest.compact()
            os.write(proceed[1], b"x")

        thread = threading.Thread(target=parent)
        thread.start()
        succeed(child)
        thread.join()
        for fd in (*ready, *proceed):
            os.close(fd)


OPERATIONS: dict[str, Callable[[Chest], Any]] = {
    "clear": lambda chest: chest.clear(),
    "update": lambda chest: chest.update({("u", n): filled(n, LARGE) for n in range(3)}),
    "setdefault": lambda chest: chest.setdefault("d", filled(1)),
    "popitem": lambda chest: chest.popitem(),
    "append": lambda chest: chest.append("rows", np.ones(12)),
    "compact": lambda chest: chest.compact(),
    "repair": lambda chest: chest.repair(),
    "spill": lambda chest: chest.spill(("new", SMALL)),
    "handle": lambda chest: chest.handle(("new", LARGE)).array(),
    "larger than the budget": lambda chest: chest.__setitem__("huge", filled(1, 2 * LARGE)),
    "budget": lambda chest: setattr(chest, "available_memory", 1000),
}


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_whatever_a_child_does_first_is_done_and_told(path, operation):
    with arraychest.open(path, "w", 20 * LARGE * 8) as chest:
        in_ram_and_stored(chest)

        def child(say: Say) -> None:
            if operation == "larger than the budget":
                chest.available_memory = LARGE * 8
            OPERATIONS[operation](chest)
            here = told(chest)
            chest.flush()
            assert told(chest) == here
            chest["last"] = filled(4)
            chest.close()

        succeed(child)
        told(chest)
        chest.flush()
        assert told(chest)["last"] == (4.0, SMALL)
        assert chest.verify().ok
    audit(path)


def test_a_create_and_a_transaction_of_a_child(chest):
    in_ram_and_stored(chest)

    def child(say: Say) -> None:
        with chest.create("created", (LARGE,)) as array:
            array[:] = 3
        with chest.transaction():
            chest["a"] = filled(1)
            chest["b"] = filled(2, LARGE)
            del chest["stored", SMALL]
        with pytest.raises(ZeroDivisionError), chest.transaction():
            chest["a"] = filled(9)
            raise ZeroDivisionError

    succeed(child)
    found = told(chest)
    assert found["created"] == (3.0, LARGE)
    assert (found["a"], found["b"]) == ((1.0, SMALL), (2.0, LARGE))
    assert ("stored", SMALL) not in found


@pytest.mark.parametrize("block", ["transaction", "edit", "small edit", "create", "lock"])
def test_a_block_that_forks_is_the_parents(path, block):
    """The child leaves it, too, and ends nothing of the parent's."""
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1, LARGE)
        chest["s"] = filled(1)
        context: Any = {
            "transaction": chest.transaction,
            "edit": lambda: chest.edit("x"),
            "small edit": lambda: chest.edit("s"),
            "create": lambda: chest.create("c", (LARGE,)),
            "lock": lambda: chest.lock("x"),
        }[block]()

        def child(say: Say) -> None:
            chest["child"] = filled(5)
            context.__exit__(None, None, None)
            chest["child too"] = filled(6)
            chest.flush()
            assert told(chest)["child"] == (5.0, SMALL)

        array = context.__enter__()
        if block == "transaction":
            chest["t"] = filled(2, LARGE)
        elif block != "lock":
            array[:] = 2
        succeed(child)
        if block == "lock":
            # This thread is its holder, in whichever chest it asks.
            with arraychest.open(path) as other, ThreadPoolExecutor(1) as pool:
                asked = pool.submit(lambda: other.lock("x").acquire(blocking=False))
                assert not asked.result()
        context.__exit__(None, None, None)
        found = told(chest)
        assert found["child"] == (5.0, SMALL)
        assert found["child too"] == (6.0, SMALL)
        changed = {"transaction": "t", "edit": "x", "small edit": "s", "create": "c"}.get(block)
        if changed is not None:
            assert found[changed][0] == 2
    audit(path)


def test_children_of_children(path):
    with arraychest.open(path, "w") as chest:
        expected = in_ram_and_stored(chest)

        def child(say: Say) -> None:
            chest["child"] = filled(1)  # not stored when it forks
            succeed(grandchild)
            assert told(chest) == expected | {"child": (1.0, SMALL), "grandchild": (2.0, SMALL)}
            chest.close()

        def grandchild(say: Say) -> None:
            assert told(chest) == expected | {"child": (1.0, SMALL)}
            chest["grandchild"] = filled(2)
            chest.close()
            assert set(told_elsewhere(path)).isdisjoint({"child", ("new", SMALL)})

        succeed(child)
        assert told(chest) == expected | {"child": (1.0, SMALL), "grandchild": (2.0, SMALL)}
    audit(path)


@pytest.mark.slow
@pytest.mark.parametrize("writes", ["before", "after", "never"])
def test_a_child_outlives_its_parent(path, writes):
    """SQLite's last user removes its log: the child is one, from the moment of the fork on."""
    code = f"""
        import os, sys, numpy as np, arraychest
        chest = arraychest.open(sys.argv[1], "w")
        chest["stored"] = np.ones(40)
        chest.flush()
        chest["in RAM"] = np.ones(40)
        ready, proceed, done = os.pipe(), os.pipe(), os.pipe()
        if os.fork():
            if {writes!r} == "before":
                os.read(ready[0], 1)
            chest.close()
            os.write(proceed[1], b"x")
            os.close(done[1])
            assert os.read(done[0], 9) == b"well", "the child failed"
        else:
            if {writes!r} == "before":
                chest["child"] = np.ones(9000)
                chest.flush()
                os.write(ready[1], b"x")
            os.read(proceed[0], 1)
            assert (chest["in RAM"] == 1).all() and (chest["stored"] == 1).all()
            if {writes!r} != "never":
                chest["child, later"] = np.ones(40)
                chest["stored"] = np.zeros(9000)
            chest.close()
            os.write(done[1], b"well")
            os._exit(0)
    """
    run_python(code, path)
    with arraychest.open(path) as chest:
        found = told(chest)
        assert found["in RAM"] == (1.0, 40)
        assert ("child" in found) == (writes == "before")
        assert ("child, later" in found) == (writes != "never")
        assert found["stored"] == ((1.0, 40) if writes == "never" else (0.0, 9000))
    audit(path)


def test_a_parent_that_closes_at_once_leaves_its_log_to_the_child(path):
    for turn in range(10):
        chest = arraychest.open(path)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                chest[turn] = filled(turn)
                chest.close()
                status = 0
            finally:
                os._exit(status)
        chest.close()
        assert os.waitpid(pid, 0)[1] == 0
    assert set(told_elsewhere(path)) == set(range(10))


def test_a_parent_that_closes_later_leaves_its_log_to_a_child_that_has_written(path):
    chest = arraychest.open(path)
    has_written, is_closed = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            chest["before"] = filled(1)
            chest.flush()
            os.write(has_written[1], b"x")
            os.read(is_closed[0], 1)
            chest["after"] = filled(2)
            chest.flush()
            assert set(told_elsewhere(path)) == {"before", "after"}
            chest.close()
            status = 0
        finally:
            os._exit(status)
    os.read(has_written[0], 1)
    chest.close()
    os.write(is_closed[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (*has_written, *is_closed):
        os.close(fd)
    assert set(told_elsewhere(path)) == {"before", "after"}


def test_a_child_of_a_child_that_has_closed_the_chest_opens_it_anew(path):
    # SQLite goes on in it, too, as if it held the locks of the first process.
    chest = arraychest.open(path)
    chest["first"] = filled(1)
    chest.flush()
    has_opened, is_closed, is_done = os.pipe(), os.pipe(), os.pipe()

    def grandchild() -> None:
        with arraychest.open(path) as again:
            again["before"] = filled(2)
            again.flush()
            os.write(has_opened[1], b"x")
            os.read(is_closed[0], 1)
            again["after"] = filled(3)
            again.flush()
            assert set(told_elsewhere(path)) == {"first", "child", "before", "after"}
        os.write(is_done[1], b"x")

    pid = os.fork()
    if pid == 0:
        try:
            chest["child"] = filled(1)
            chest.close()
            if os.fork() == 0:
                grandchild()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.read(has_opened[0], 1)
    chest.close()
    arraychest.open(path).close()
    os.write(is_closed[1], b"x")
    os.close(is_done[1])
    assert os.read(is_done[0], 1) == b"x"
    for fd in (*has_opened, *is_closed, is_done[0]):
        os.close(fd)
    assert set(told_elsewhere(path)) == {"first", "child", "before", "after"}


def _put(number: int) -> int:
    _shared["chest"][number] = filled(number, LARGE if number % 2 else SMALL)
    return os.getpid()


_shared: dict[str, Any] = {}


@pytest.mark.parametrize("kind", ["process", "pool", "short-lived", "executor"])
def test_what_pools_of_forks_put_is_there(path, kind):
    """No flush: as at the end of any process, what was put is stored."""
    fork = multiprocessing.get_context("fork")
    with arraychest.open(path, "w") as chest:
        chest["parent"] = filled(1)
        _shared["chest"] = chest
        try:
            if kind == "process":
                processes = [fork.Process(target=_put, args=(n,)) for n in range(6)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
                    assert process.exitcode == 0
            elif kind == "executor":
                with ProcessPoolExecutor(2, mp_context=fork) as executor:
                    list(executor.map(_put, range(6)))
            else:
                with fork.Pool(2, maxtasksperchild=1 if kind == "short-lived" else None) as pool:
                    pool.map(_put, range(6), chunksize=1)
                    pool.close()
                    pool.join()
        finally:
            _shared.clear()
        assert {"parent", *range(6)} == set(told(chest))
    audit(path)


@pytest.mark.parametrize("end", ["closed", "collected", "exit", "left"])
def test_the_end_of_a_child_that_wrote_leaves_the_parent_attached(path, end):
    opened = [arraychest.open(path, "w")]
    opened[0]["parent"] = filled(1)

    def child(say: Say) -> None:
        opened[0]["child"] = filled(2)
        opened[0].flush()
        if end == "closed":
            opened[0].close()
        elif end == "collected":
            opened.clear()
            gc.collect()
        elif end == "exit":
            sys.exit(0)

    in_child(child)
    with pytest.raises(arraychest.ChestInUseError):
        arraychest.open(path, "w")
    chest = opened.pop()
    assert told(chest) == {"parent": (1.0, SMALL), "child": (2.0, SMALL)}
    chest.close()
    with arraychest.open(path, "a") as again:  # sweeps the child's session, if it was left
        assert len(again) == 2
    audit(path)


def test_a_child_of_a_reader_reads(path):
    with arraychest.open(path, "w") as chest:
        chest["x"] = filled(1)
    with arraychest.open(path, "r") as reader:

        def child(say: Say) -> None:
            assert told(reader) == {"x": (1.0, SMALL)}
            with pytest.raises(ReadOnlyChestError, match="mode"):
                reader["y"] = filled(1)
            with pytest.raises(ReadOnlyChestError, match="mode"):
                del reader["x"]

        succeed(child)


@pytest.mark.parametrize("becomes", ["gone", "empty", "another"])
def test_a_child_does_not_write_to_a_folder_that_took_the_place_of_its_own(path, becomes):
    def parent(say: Say) -> None:  # what it leaves open ends with it
        chest = arraychest.open(path, "w")
        chest["x"] = filled(1)
        chest.flush()
        chest["in RAM"] = filled(1)
        succeed(lambda say: child(chest))
        say("refused")
        os._exit(0)

    def child(chest: Chest) -> None:
        shutil.rmtree(path)
        if becomes == "empty":
            os.mkdir(path)
        elif becomes == "another":
            with arraychest.open(path, "w") as other:
                other["theirs"] = filled(3)
        listed = {str(each) for each in Path(path).rglob("*")}
        with pytest.raises(SpillError):
            chest["y"] = filled(2)
        assert (chest["in RAM"] == 1).all()
        assert "y" not in chest
        new = {str(each) for each in Path(path).rglob("*")} - listed
        assert {name.rpartition("sqlite")[2] for name in new} <= {"-shm", "-wal"}  # of reading it

    assert in_child(parent).said == ["refused"]
    if becomes == "another":
        assert told_elsewhere(path) == {"theirs": (3.0, SMALL)}


def test_a_quota_holds_for_parent_and_child_together(path):
    with Chest(path=path, max_disk="1 MiB", compression=None) as chest:
        chest["x"] = np.zeros(60_000)

        def child(say: Say) -> None:
            chest["y"] = np.zeros(60_000)
            chest.flush()
            with pytest.raises(SpillError):
                chest["z"] = np.ones(60_000)
            chest.close()

        chest.flush()
        succeed(child)
        with pytest.raises(SpillError):
            chest["z"] = np.ones(60_000)
        assert set(chest) == {"x", "y"}
    audit(path)


def test_parent_and_children_write_the_same_keys_from_threads(path):
    """Forks at any moment of puts, deletions, flushes and compactions."""
    with arraychest.open(path, "w", 4 * LARGE * 8) as chest:
        stop = threading.Event()

        def churn(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                key = int(rng.integers(12))
                size = SMALL if rng.random() < 0.5 else LARGE
                chest[key] = filled(key, size)
                chest.discard(int(rng.integers(12)))
                chest.get(int(rng.integers(12)))
                if rng.random() < 0.05:
                    chest.flush()
                if rng.random() < 0.02:
                    chest.compact()

        def child(say: Say) -> None:
            for number in range(15):
                chest[number] = filled(number, LARGE if number % 2 else SMALL)
                chest.discard((number + 5) % 12)
            for key, array in chest.items():
                assert type(key) is tuple or (array == key).all()
            chest["child", os.getpid()] = filled(1)
            chest.close()

        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                succeed(child)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert sum(type(key) is tuple for key in chest) == 8
        assert chest.verify().ok
    audit(path)
