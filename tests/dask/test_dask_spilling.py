"""How results leave a worker's RAM: when, in what order, and what happens where they cannot."""

from __future__ import annotations

import logging
import threading
import time
import types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.config
from dask.sizeof import sizeof
from distributed.metrics import context_meter

from arraychest.dask import WorkerChest, settings
from arraychest.errors import ValueTypeError
from tests.dask.support import (
    LARGE,
    Gate,
    Unpicklable,
    check,
    large,
    let_go,
    spill_all,
    written,
)
from tests.support import fill_disk, listing

# --- the target -------------------------------------------------------------------------------


def test_the_least_recently_used_leave_first(make):
    value = "x" * 100
    weight = sizeof(value)
    data = make(target=2 * weight)
    for key in "ab":
        data[key] = key * 100
    assert data.spilled_total == (0, 0)
    assert data["a"] == "a" * 100  # used now
    data["c"] = "c" * 100
    assert list(data.fast) == ["a", "c"]
    assert list(data.slow) == ["b"]
    assert data.spilled_total.memory == weight
    data.flush()
    assert data["b"] == "b" * 100  # and is in RAM again, in the place of another
    assert list(data.fast) == ["c", "b"]
    assert data.spilled_total.memory == weight
    data.flush()
    disk = data.spilled_total.disk
    del data["c"]
    assert list(data.slow) == ["a"]  # a deletion brings nothing back
    del data["a"]
    assert data.spilled_total.memory == 0
    assert 0 < data.spilled_total.disk < disk  # b's file is there still
    del data["b"]
    assert data.spilled_total == (0, 0)


def test_what_exceeds_the_target_alone_leaves_at_once(make):
    data = make(target=LARGE // 2)
    data["small"] = b"x" * 1000
    data["x"] = large(1)
    assert list(data.fast) == ["small"]
    assert list(data.slow) == ["x"]
    data["y"] = [large(2)]
    assert data["y"][0][0] == 2  # is made anew at each get: it has no room in RAM
    assert list(data.fast) == ["small"]


def test_evicting_what_was_read_back_writes_nothing(data):
    for number in range(5):
        data[number] = [large(number)]
    spill_all(data)
    files = listing(data._files.folder)
    for _ in range(3):
        for number in range(5):
            assert data[number][0][0] == number
        assert len(data.fast) == 5
        spill_all(data)
    assert written(data) == 5
    assert listing(data._files.folder).keys() == files.keys()


def test_target_and_limits_come_from_dasks_configuration(tmp_path):
    limit = 1000
    with dask.config.set({"distributed.worker.memory.target": 0.6}):
        assert settings.target(None, limit) == 600
        assert settings.target(0.25, limit) == 250
        assert settings.target("1 kiB", limit) == 1024
        assert settings.target(None, None) > 1 << 60
        with dask.config.set({"arraychest.worker.target": 0.5}):
            assert settings.target(None, limit) == 500
            assert settings.target("2 kiB", limit) == 2048
    with dask.config.set({"distributed.worker.memory.target": False}):
        assert settings.target(None, limit) > 1 << 60
    assert settings.max_spill(None) is None
    assert settings.max_spill("1 MB") == 1_000_000
    with dask.config.set({"distributed.worker.memory.max-spill": "2 MB"}):
        assert settings.max_spill(None) == 2_000_000
        assert settings.max_spill(False) is None
        with dask.config.set({"arraychest.worker.max-spill": 5}):
            assert settings.max_spill(None) == 5
        with dask.config.set({"arraychest.worker.max-spill": False}):
            assert settings.max_spill(None) is None
    # Between where dask spills and where it pauses.
    assert settings.release_limit(None) is None
    assert settings.release_limit(1000) == 750
    with dask.config.set({"distributed.worker.memory.pause": False}):
        assert 700 < settings.release_limit(1000) < 950


@pytest.mark.parametrize(
    ("named", "ours"),
    [
        ("auto", None),
        (None, None),
        (False, None),
        ("zlib", "zlib"),
        ("lz4", "lz4"),
        ("zstd", "zstd"),
        ("blosclz", "blosclz"),
        ("snappy", "lz4"),
    ],
)
def test_results_are_compressed_as_dask_is_configured(named, ours):
    with dask.config.set({"distributed.worker.memory.spill-compression": named}):
        assert settings.compression(None) == ours
        assert settings.compression("zstd") == "zstd"
        assert settings.compression(False) is None
        with dask.config.set({"arraychest.worker.compression": "lz4hc"}):
            assert settings.compression(None) == "lz4hc"
        with dask.config.set({"arraychest.worker.compression": False}):
            assert settings.compression(None) is None


def test_a_codec_that_there_is_none_of_is_refused():
    with dask.config.set({"distributed.worker.memory.spill-compression": "blob"}):
        with pytest.raises(ValueError, match=r"'snappy' or one of 'blosclz', .* found 'blob'"):
            settings.compression(None)
        assert settings.compression(False) is None


@pytest.mark.parametrize("kind", [np.asarray, lambda array: [array]], ids=["array", "list"])
@pytest.mark.parametrize(("named", "most"), [("zlib", 500_000), ("auto", 51 << 20)])
def test_what_dask_compresses_takes_as_little_of_the_disk(make, kind, named, most):
    with dask.config.set({"distributed.worker.memory.spill-compression": named}):
        data = make()
    data["x"] = kind(np.ones(50 << 20, "u1"))
    spill_all(data)
    assert data.spilled_total.disk < most
    assert data.spilled_total.memory >= 50 << 20
    let_go(data)
    assert np.all(data["x"] == np.ones(50 << 20, "u1"))


def test_options_have_defaults_where_dasks_configuration_was_replaced(tmp_path):
    kept = dask.config.config.pop("arraychest")
    try:
        assert settings.option("target") is None
        assert settings.max_spill(None) is None
        assert settings.compression(None) is None
        WorkerChest(str(tmp_path)).close()
    finally:
        dask.config.config["arraychest"] = kept


class Worker:
    """What a chest asks of its worker."""

    def __init__(self, limit: int, memory: int = 1000) -> None:
        self.memory_manager = types.SimpleNamespace(memory_limit=limit)
        self.monitor = types.SimpleNamespace(get_process_memory=lambda: memory)
        self.extensions: dict[str, Any] = {}
        self.state = types.SimpleNamespace(tasks={}, executing=set())


def test_a_second_attach_changes_nothing(make):
    data = make(target=0.5)
    worker, other = Worker(1000), Worker(9000)
    data.attach(worker)
    memory = worker.monitor.get_process_memory
    for again in (worker, other):
        data.attach(again)
    assert data.target == 500
    assert worker.monitor.get_process_memory is memory  # looked at through one of ours, not two
    assert memory() == 1000
    assert worker.extensions == {"arraychest": data}
    assert other.extensions == {}


# --- what goes wrong --------------------------------------------------------------------------


def test_what_cannot_be_pickled_and_exceeds_the_target_is_refused(make):
    data = make(target=1000)
    data["x"] = 1
    with pytest.raises(TypeError, match=r"^Failed to pickle 'bad'$") as caught:
        data["bad"] = Unpicklable(2000)
    reason = caught.value.__cause__
    assert isinstance(reason, ValueTypeError)
    assert "found 'Unpicklable', which raised ZeroDivisionError('not me')" in str(reason)
    assert isinstance(reason.__cause__, ZeroDivisionError)
    assert list(data) == ["x"]


def test_what_cannot_be_pickled_stays_and_others_leave(make, caplog):
    data = make(target=1000)
    with caplog.at_level(logging.ERROR, "distributed.spill"):
        data["bad"] = bad = Unpicklable(400)
        data["x"] = "x" * 300
        data["y"] = "y" * 500
        assert list(data.fast) == ["bad"] or list(data.fast) == ["bad", "y"]
        spilled = [*data.slow]
        assert "x" in spilled
        while len(data.fast) > 1:
            assert data.evict() > 0
        assert data.evict() == -1
        assert data.evict() == -1
    assert data["bad"] is bad
    assert len(caplog.records) == 1  # said once
    assert "Failed to pickle 'bad'" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    del data["bad"]
    data["bad"] = Unpicklable(1)
    assert data.evict() == -1
    data["bad"] = 3
    assert data.evict() > 0


def test_max_spill(make, caplog):
    data = make(target=2 * LARGE, max_spill=3 * LARGE + 10_000)
    for number in range(8):
        data[number] = large(number)
    assert list(data.slow) == [0, 1, 2]
    assert data.evict() == -1
    assert "max-spill is reached" in caplog.text
    data[1]  # its file still counts
    assert data.evict() == -1
    del data[1]
    assert data.evict() == LARGE
    assert list(data.slow) == [0, 2, 3]
    for number in list(data):
        assert (data[number] == number).all()


def test_a_full_disk_keeps_results_in_ram(make, tiny_disk, caplog):
    data = make(tiny_disk, target=LARGE)
    for number in range(12):
        data[number] = large(number)
    assert 2 <= len(data.slow) <= 8
    assert "stays in RAM" in caplog.text
    assert data.evict() == -1
    for number in range(12):
        assert (data[number] == number).all()
    check(data)
    # As soon as there is room they leave.
    for number in list(data.slow):
        del data[number]
    until = time.monotonic() + 5
    while data.evict() < 0 and time.monotonic() < until:
        time.sleep(0.01)  # the files go a moment later
    data["new"] = large(99)
    assert len(data.fast) < 12 - 2
    for number in list(data):
        assert (data[number] == (99 if number == "new" else number)).all()


def test_a_disk_that_is_full_from_the_start(make, tiny_disk):
    fill_disk(tiny_disk)
    data = make(tiny_disk, target=LARGE)
    for number in range(4):
        data[number] = large(number)
    assert len(data.fast) == 4
    (tiny_disk / "filler").unlink()
    assert data.evict() > 0
    data[4] = large(4)
    assert len(data.slow) >= 3
    assert (data[0] == 0).all()


def test_a_folder_that_was_taken_away(make, tmp_path, caplog):
    import shutil

    folder = tmp_path / "worker"
    folder.mkdir()
    data = make(folder)
    data["x"] = large(1)
    data["y"] = large(2)
    assert data.evict() > 0
    found = data["x"]
    # Until nothing is left: the thread that writes may be at work.
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    assert (found == 1).all()
    data.evict()
    assert (data["y"] == 2).all()
    data.close()
    data.clear()


# --- what is being written --------------------------------------------------------------------


def test_a_put_does_not_wait_for_what_it_spills(make, monkeypatch):
    data = make(target=20 * LARGE)
    gate = Gate(data, monkeypatch)
    for number in range(21):
        data[number] = large(number)
    assert gate.began.wait(20)
    assert list(data.slow) == [0]
    assert written(data) == 0
    assert (data[0] == 0).all()
    data[21] = large(21)
    assert list(data.slow) == [0, 1]
    assert data.spilled_total == (2 * LARGE, 2 * LARGE)
    gate.open.set()
    data.flush()
    assert written(data) == 2
    assert data.spilled_total.memory == 2 * LARGE < data.spilled_total.disk
    let_go(data)
    assert (data[1] == 1).all()


def test_what_cannot_be_referred_to_weakly_is_found_while_it_is_written(data, monkeypatch):
    gate = Gate(data, monkeypatch)
    data["x"] = value = [large(1)]
    assert data.evict() > 0
    assert gate.began.wait(20)
    assert data["x"] is value
    gate.open.set()
    data.flush()
    assert data["x"] is not value


@pytest.mark.parametrize("replaced", [False, True])
def test_a_result_is_deleted_while_it_is_written(data, monkeypatch, replaced):
    gate = Gate(data, monkeypatch)
    for key in "xyz":
        data[key] = [large(1)]
        assert data.evict() > 0
    assert gate.began.wait(20)
    for key in "xy":  # one is being written, the other waits
        if replaced:
            data[key] = [large(2)]
        else:
            del data[key]
    assert data._files.waiting_bytes == pytest.approx(LARGE, rel=0.01)
    gate.open.set()
    check(data)
    assert written(data) == 1
    if replaced:
        spill_all(data)
        assert data["x"][0][0] == data["y"][0][0] == 2
    else:
        assert list(data) == ["z"]


def test_a_put_waits_where_much_waits_to_be_written(make, monkeypatch):
    data = make(target=LARGE)
    gate = Gate(data, monkeypatch)
    data[0] = large(0)
    data[1] = large(1)
    ended = threading.Event()

    def put() -> None:
        for number in range(2, 6):
            data[number] = large(number)
        ended.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert not ended.wait(0.2)
    assert len(data.slow) == 1
    gate.open.set()
    thread.join()
    assert len(data.fast) == 1


def test_what_could_not_be_written_is_in_ram_again_and_leaves_first(data, monkeypatch, caplog):
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")
    for key in "abc":
        data[key] = large(ord(key))
    assert data.evict() == LARGE
    assert list(data.fast) == ["b", "c"]
    gate.open.set()
    data.flush()
    assert list(data.fast) == ["a", "b", "c"]
    assert data.spilled_total == (0, 0)
    assert "result 'a' could not be spilled, and stays in RAM: no more" in caplog.text
    assert data.evict() == -1  # known at once from now on
    gate.error = None
    assert data.evict() == LARGE
    assert list(data.slow) == ["a"]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("gone", [None, "b", "c"])
def test_results_that_could_not_be_written_come_back_in_their_order(data, monkeypatch, gone):
    gate = Gate(data, monkeypatch)
    keys = [*"abcdefg"]
    for key in keys:
        data[key] = large(ord(key))
    gate.error = OSError("no more")
    for _ in range(5):
        assert data.evict() == LARGE
    assert list(data.fast) == [*"fg"]
    if gone is not None:
        del data[gone]
        keys.remove(gone)
    gate.open.set()
    data.flush()
    assert list(data.fast) == keys
    assert data.spilled_total == (0, 0)
    gate.error = None
    assert data.evict() == LARGE
    assert list(data.slow) == ["a"]


def test_it_is_closed_while_it_writes(make, monkeypatch):
    data = make()
    gate = Gate(data, monkeypatch)
    for key in "xy":
        data[key] = [large(1)]
        assert data.evict() > 0
    assert gate.began.wait(20)
    timer = threading.Timer(0.1, gate.open.set)
    timer.start()
    data.close()
    timer.join()
    assert data["y"][0][0] == 1  # nobody has written it
    data.clear()


def test_results_larger_than_the_target_wait_for_each_other(make, monkeypatch):
    data = make(target=LARGE // 2)
    gate = Gate(data, monkeypatch)
    data[0] = large(0)
    ended = threading.Event()

    def put() -> None:
        data[1] = large(1)
        ended.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert not ended.wait(0.2)
    gate.open.set()
    thread.join()
    assert list(data.slow) == [0, 1]


def test_without_a_further_thread_results_are_written_all_the_same(data, monkeypatch):
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for key in "xyz":
        data[key] = large(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert data.evict() == LARGE
        check(data)
    assert written(data) == 1
    assert data.evict() == LARGE
    data.flush()
    assert written(data) == 2


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupt_while_the_thread_starts(data, monkeypatch, before):
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if not before:
            start(self)
        raise KeyboardInterrupt

    data["x"] = [large(1)]
    data["y"] = [large(2)]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.evict()
    data.flush()
    assert data["x"][0][0] == 1
    spill_all(data)
    check(data)
    assert written(data) == 2


def test_what_breaks_the_thread_leaves_nobody_waiting(data, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda about: told.set())
    discard = data._files._discard
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")

    def broken(number: int) -> None:
        monkeypatch.setattr(data._files, "_discard", discard)
        discard(number)
        raise MemoryError

    monkeypatch.setattr(data._files, "_discard", broken)
    for key in "xyz":
        data[key] = large(1)
        data.evict()
    assert gate.began.wait(20)
    del data["x"]  # its thread breaks
    gate.error = None
    gate.open.set()
    data.flush()
    assert told.wait(20)
    assert list(data.slow) == ["y", "z"]


@pytest.mark.slow
def test_many_small_results_wait(data, monkeypatch):
    monkeypatch.setattr(data._files, "_store", lambda number, taken: 1)
    monkeypatch.setattr(data._files, "_discard", lambda number: None)
    count = 20_000
    data._files._thread = threading.current_thread()  # nobody writes yet
    for number in range(count):
        data[number] = number
    while data.fast:
        data.evict()
    data._files._thread = None
    data.flush()
    assert written(data) == count
    data.clear()


def test_those_that_cannot_be_pickled_are_passed_over_however_many(data, caplog):
    for number in range(1200):
        data[number] = Unpicklable()
    data["x"] = 1
    assert data.evict() == sizeof(1)
    assert list(data.slow) == ["x"]
    assert data.evict() == -1
    assert len(caplog.records) == 1200


def test_bytes_that_are_not_in_ram_are_not_counted_as_leaving_it(data, monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(LARGE // 8))
    data["file"] = np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r"))
    data["x"] = large(1)
    spill_all(data)
    let_go(data)
    gate = Gate(data, monkeypatch)
    data["view"] = data["x"][8:]
    data["list"] = [data["x"][9:], large(2)]
    while data.fast:
        assert data.evict() > 0
    assert data._files.waiting_bytes > 2.9 * LARGE
    assert data._files.waiting_memory == pytest.approx(LARGE, rel=0.01)
    gate.open.set()
    data.flush()
    assert data._files.waiting_memory == data._files.waiting_bytes == 0


def test_a_key_is_there_at_every_moment(data, monkeypatch):
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")
    gate.open.set()
    data["x"] = large(1)
    ends = threading.Event()
    missed = []

    def look() -> None:
        while not ends.is_set():
            if "x" not in data or len(data) != 1 or list(data) != ["x"]:
                missed.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(200):
        data.evict()
    ends.set()
    thread.join()
    assert not missed


def test_results_are_written_before_dask_sees_that_the_process_has_much(make, monkeypatch):
    data = make()
    data._spill_limit = 64 * LARGE
    resident = 30 * LARGE
    monkeypatch.setattr("arraychest.dask.worker.resident_bytes", lambda: (resident, 0))
    for number in range(8):
        data[number] = large(number)
    assert not data.slow
    resident = 66 * LARGE
    data["x"] = large(9)
    assert 6 <= len(data.slow) <= 8
    assert data._files.waiting_bytes <= max(0, len(data.slow) - 2) * LARGE
    resident = 30 * LARGE
    data["y"] = large(9)
    assert data.keys() - data.slow.keys() >= {"x", "y"}


# --- whose writes they are ------------------------------------------------------------------------


def test_what_was_written_belongs_to_who_let_it_leave_ram(data, monkeypatch):
    gate = Gate(data, monkeypatch)
    told: list[tuple[str, str, float, str]] = []

    def listen(who: str) -> Any:
        return context_meter.add_callback(lambda *figures: told.append((who, *figures)))

    for key in "abc":
        data[key] = large()
    with listen("monitor"):
        data.evict()
    with listen("somebody else"):
        assert gate.began.wait(20)
        data["d"] = 1
        gate.open.set()
        data.flush()
    data.evict()
    data.flush()
    # The one that was told of has ended when its result is written.
    found = [each for each in told if each[1] == "disk-write"]
    assert [(who, label, unit) for who, label, _, unit in found] == [
        ("monitor", "disk-write", unit) for unit in ("seconds", "count", "bytes")
    ]
    assert found[1][2] == 1
    assert found[2][2] == pytest.approx(LARGE, rel=0.01)
    assert written(data) == 2
