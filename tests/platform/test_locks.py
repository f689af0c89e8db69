"""Locks on bytes: those that belong to an opening, and those made of what belongs to a process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arraychest.platform import locks
from arraychest.platform.locks import ByteLocks, open_byte_locks
from tests.faults import Say, in_child

KINDS = [True, False] if locks.HAS_OPENING_LOCKS else [False]

Open = Callable[[], ByteLocks]


@pytest.fixture(params=KINDS, ids=lambda kind: "of an opening" if kind else "of a process")
def opened(request, tmp_path, monkeypatch) -> Iterator[Open]:
    """What opens the same lock file anew; all are closed at the end."""
    monkeypatch.setattr(locks, "HAS_OPENING_LOCKS", request.param)
    folder = os.open(tmp_path, os.O_RDONLY)
    found: list[ByteLocks] = []

    def open_again() -> ByteLocks:
        found.append(open_byte_locks(folder, "locks", create=True))
        return found[-1]

    yield open_again
    for each in found:
        each.close()
    os.close(folder)
    assert not locks._shared_files


def elsewhere(opened: Open, act: Callable[[ByteLocks], Any]) -> Any:
    """What `act` returns in another process, of an opening of its own."""
    outcome = in_child(lambda say: act(opened()))
    assert outcome.error is None, outcome.error
    return outcome.result


def is_free(opened: Open, byte: int) -> bool:
    """Whether neither this process nor another one would be refused."""
    mine = opened()
    there = elsewhere(opened, lambda other: other.try_take(byte))
    here = mine.try_take(byte)
    mine.close()
    assert here == there
    return here


@contextlib.contextmanager
def in_thread(act: Callable[[], object]) -> Iterator[threading.Event]:
    """Run `act` in a thread; the event tells that it has ended."""
    ended = threading.Event()

    def run() -> None:
        act()
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    yield ended
    thread.join(20)
    assert not thread.is_alive()


def test_two_openings_exclude_each_other_in_one_process_and_in_two(opened):
    one, two = opened(), opened()
    one.take(5, shared=False)
    assert one.try_take(5)
    assert not two.try_take(5)
    assert two.try_take(6)
    assert not elsewhere(opened, lambda other: other.try_take(5) or other.try_take(6))
    assert elsewhere(opened, lambda other: other.try_take(7))
    one.let_go(5)
    assert two.try_take(5)
    assert not is_free(opened, 5)


def test_a_shared_lock_keeps_out_who_wants_it_alone(opened):
    one, two = opened(), opened()
    one.take(1, shared=True)
    two.take(1, shared=True)
    elsewhere(opened, lambda other: other.take(1, shared=True))
    assert not one.try_take(1)  # the other opening has it
    two.let_go(1)
    assert not is_free(opened, 1)
    assert one.try_take(1)
    with in_thread(lambda: two.take(1, shared=True)) as ended:
        assert not ended.wait(0.05)
        one.take(1, shared=True)
        assert ended.wait(10)
    one.let_go(1)
    assert not is_free(opened, 1)
    two.let_go(1)
    assert is_free(opened, 1)


def test_closing_one_opening_lets_go_of_its_locks_and_of_no_others(opened):
    one, two = opened(), opened()
    one.take(1, shared=False)
    two.take(2, shared=False)
    opened().close()
    assert not is_free(opened, 1)
    two.close()
    two.close()
    assert not is_free(opened, 1)
    assert is_free(opened, 2)
    one.close()
    assert is_free(opened, 1)


def test_is_held_tells_of_others_and_not_of_oneself(opened):
    one, two = opened(), opened()
    one.take(100, shared=False)
    one.take(200, shared=True)
    assert not one.is_held(0, 1000)
    assert two.is_held(0, 1000)
    assert [two.is_held(at, 1) for at in (99, 100, 101, 200)] == [False, True, False, True]
    assert two.is_held(50, 51)
    assert not two.is_held(50, 50)
    found = elsewhere(
        opened, lambda other: [other.is_held(at, 9) for at in (92, 91, 100, 101, 200)]
    )
    assert found == [True, False, True, False, True]


def test_bytes_lie_far_apart(opened):
    one = opened()
    for byte in (0, 1 << 32, (1 << 60) + 12345, 1 << 62):
        one.take(byte, shared=False)
        assert not is_free(opened, byte)
        assert is_free(opened, byte + 1)


def test_who_waits_has_the_lock_once_its_holder_lets_go(opened):
    one, two = opened(), opened()
    one.take(1, shared=False)
    with in_thread(lambda: two.take(1, shared=False)) as ended:
        assert not ended.wait(0.05)
        one.let_go(1)
        assert ended.wait(10)
    assert not one.try_take(1)
    with in_thread(lambda: one.take(1, shared=False)) as ended:
        assert not ended.wait(0.05)
        two.close()
        assert ended.wait(10)


def test_a_process_that_dies_lets_go(opened):
    ours = opened()

    def child(say: Say) -> None:
        theirs = opened()
        theirs.take(1, shared=False)
        say("held")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child).said == ["held"]
    assert ours.try_take(1)


def test_a_forked_child_has_none_of_its_parents_locks_and_cannot_let_go_of_them(opened):
    ours = opened()
    ours.take(1, shared=False)

    def child(say: Say) -> None:
        ours.close()
        again = opened()
        say(again.try_take(1))
        again.close()

    assert in_child(child).said == [False]
    assert not is_free(opened, 1)


def test_an_interrupt_while_one_waits_leaves_no_lock(opened):
    one, two = opened(), opened()
    for holder in ("here", "elsewhere"):
        started, stop = threading.Event(), os.pipe()
        if holder == "here":
            one.take(1, shared=False)
        else:
            pid = os.fork()
            if not pid:
                theirs = opened()
                theirs.take(1, shared=False)
                os.write(stop[1], b"x")
                time.sleep(20)
                os._exit(0)
            os.read(stop[0], 1)

        def interrupt(started: threading.Event = started) -> None:
            started.wait()
            time.sleep(0.05)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            started.set()
            two.take(1, shared=False)
        thread.join()
        if holder == "here":
            one.let_go(1)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for end in stop:
            os.close(end)
        assert is_free(opened, 1)


def test_two_processes_whose_threads_wait_for_each_other_are_no_deadlock(opened):
    """A kernel that knows processes only refuses to wait: another thread can let go."""
    to_child, to_parent = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            mine = opened()
            mine.take(2, shared=False)
            os.write(to_parent[1], b"2")
            os.read(to_child[0], 1)
            with in_thread(lambda: opened().take(1, shared=False)) as ended:
                assert not ended.wait(0.1)
                os.write(to_parent[1], b"w")
                assert ended.wait(10)
            mine.let_go(2)
            status = 0
        finally:
            os._exit(status)
    try:
        ours = opened()
        ours.take(1, shared=False)
        os.read(to_parent[0], 1)
        with in_thread(lambda: opened().take(2, shared=False)) as ended:
            assert not ended.wait(0.1)
            os.write(to_child[1], b"1")
            os.read(to_parent[0], 1)
            time.sleep(0.05)
            ours.let_go(1)
            assert ended.wait(10)
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for end in (*to_child, *to_parent):
            os.close(end)


def test_openings_of_many_threads_at_once_share_one_descriptor(opened):
    if locks.HAS_OPENING_LOCKS:
        pytest.skip("each has its own")
    barrier = threading.Barrier(8)
    found: list[ByteLocks] = []

    def act() -> None:
        barrier.wait()
        found.append(opened())

    threads = [threading.Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.fd for each in found}) == 1
    assert found[0].try_take(1)
    assert not any([each.try_take(1) for each in found[1:]])


def test_another_name_of_the_file_is_refused_without_letting_go(opened, tmp_path):
    one = opened()
    one.take(1, shared=False)
    (tmp_path / "chest").mkdir()
    os.link(tmp_path / "locks", tmp_path / "chest" / "locks")
    with open_folder(tmp_path / "chest") as folder, pytest.raises(OSError, match="one name"):
        open_byte_locks(folder, "locks", create=True)
    os.unlink(tmp_path / "chest" / "locks")
    assert not is_free(opened, 1)


@contextlib.contextmanager
def open_folder(path: Any) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_that_was_removed_and_made_anew_is_another_one(opened, tmp_path):
    one = opened()
    one.take(1, shared=False)
    os.unlink(tmp_path / "locks")
    assert is_free(opened, 1)
    assert os.fstat(one.fd).st_nlink == 0


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_it_does_what_the_table_says(opened, seed):
    """Many openings in one process, and another process as a witness, against a table."""
    chance = random.Random(seed)
    openings = [opened() for _ in range(4)]
    table: dict[tuple[int, int], bool] = {}
    for _ in range(120):
        at, byte = chance.randrange(4), chance.randrange(3)
        others = [kind for (who, what), kind in table.items() if what == byte and who != at]
        action = chance.choice(["try", "shared", "let go", "close", "ask"])
        if action == "try":
            assert openings[at].try_take(byte) == (not others)
            if not others:
                table[at, byte] = False
        elif action == "shared" and all(others):
            openings[at].take(byte, shared=True)
            table[at, byte] = True
        elif action == "let go":
            openings[at].let_go(byte)
            table.pop((at, byte), None)
        elif action == "close" and chance.random() < 0.3:
            openings[at].close()
            openings[at] = opened()
            table = {where: kind for where, kind in table.items() if where[0] != at}
        elif action == "ask":
            assert openings[at].is_held(byte, 1) == bool(others)
    held = [{what for (_, what) in table} >= {byte} for byte in range(3)]
    alone = [
        any(not kind for (_, what), kind in table.items() if what == byte) for byte in range(3)
    ]

    def witness(other: ByteLocks) -> Any:
        return [[other.is_held(byte, 1), not other.try_take(byte)] for byte in range(3)]

    assert elsewhere(opened, witness) == [[each, each] for each in held]
    assert all(each or not kind for each, kind in zip(held, alone, strict=True))


def test_no_increment_is_lost_by_many_threads_of_many_processes(opened, tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def increment() -> None:
        mine = opened()
        for _ in range(50):
            mine.take(1, shared=False)
            count.write_text(str(int(count.read_text()) + 1))
            mine.let_go(1)

    def child(say: Say) -> None:
        threads = [threading.Thread(target=increment) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    processes = [threading.Thread(target=in_child, args=(child,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert int(count.read_text()) == 3 * 4 * 50
