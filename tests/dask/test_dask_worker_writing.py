"""How a `WorkerChest` writes what leaves RAM, and what it does where that fails; no cluster."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.config
from dask.sizeof import sizeof
from distributed.utils import RateLimiterFilter

from arraychest.dask import settings
from tests.dask.workers import (
    LARGE,
    Gate,
    Unpicklable,
    check,
    large,
    let_go,
    spill_all,
    written,
)
from tests.support import fill_disk, listing, run_python

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


# --- what goes wrong --------------------------------------------------------------------------


def test_what_cannot_be_pickled_and_exceeds_the_target_is_refused(make):
    data = make(target=1000)
    data["x"] = 1
    with pytest.raises(TypeError, match="Failed to pickle 'bad'") as caught:
        data["bad"] = Unpicklable(2000)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
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
    # It is logged once in a while, whichever test had it before.
    RateLimiterFilter.reset_timer("distributed.spill.arraychest")
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


def test_several_that_could_not_be_written_are_back_in_the_order_of_their_use(data, monkeypatch):
    gate = Gate(data, monkeypatch)
    gate.error = OSError("no more")
    for key in "abcde":
        data[key] = large(ord(key))
    for _ in "abc":
        assert data.evict() == LARGE
    assert list(data.fast) == ["d", "e"]
    gate.open.set()
    data.flush()
    assert list(data.fast) == ["a", "b", "c", "d", "e"]
    assert (data["b"] == large(ord("b"))).all()  # used now
    gate.error = None
    while data.fast:
        assert data.evict() == LARGE
    data.flush()
    assert list(data.slow) == ["a", "c", "d", "e", "b"]


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


# --- from other threads -----------------------------------------------------------------------


@pytest.mark.slow
def test_threads_may_read_while_results_come_and_go(make):
    data = make(target=4 * LARGE)
    for number in range(8):
        data[number] = large(number)
    failures: list[BaseException] = []
    ends = threading.Event()

    def read() -> None:
        random = np.random.default_rng(threading.get_ident())
        try:
            while not ends.is_set():
                number = int(random.integers(8))
                if not (data[number] == number).all():
                    raise AssertionError(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(100):
        data["new", turn] = large(turn) if turn % 2 else [large(turn)]
        data.evict()
        if turn > 3:
            del data["new", turn - 3]
    ends.set()
    for thread in threads:
        thread.join()
    assert not failures


# --- compression --------------------------------------------------------------------------------

SPILL = "distributed.worker.memory.spill-compression"


@pytest.mark.parametrize(
    ("asked", "ours", "expected"),
    [
        ("auto", None, None),
        (False, None, None),
        (None, None, None),
        ("zlib", None, "zlib"),
        ("zstd", None, "zstd"),
        ("snappy", None, "lz4"),
        ("zlib", "zstd", "zstd"),
        ("auto", "lz4", "lz4"),
    ],
)
def test_dasks_compression_is_used_unless_ours_overrules_it(asked, ours, expected):
    with dask.config.set({SPILL: asked, "arraychest.worker.compression": ours}):
        assert settings.compression(None) == expected
        assert settings.compression("blosclz") == "blosclz"


def test_a_codec_that_is_not_there_is_refused(make):
    with (
        dask.config.set({SPILL: "middle-out"}),
        pytest.raises(ValueError, match=r"spill-compression.*found 'middle-out'"),
    ):
        make()


@pytest.mark.parametrize("kind", [bytes, np.frombuffer])
def test_what_compresses_takes_little_of_the_disk(make, kind):
    with dask.config.set({SPILL: "zlib"}):
        data = make()
    data["x"] = kind(bytes(10 << 20))
    spill_all(data)
    assert data.spilled_total.disk < 100_000
    let_go(data)
    assert memoryview(data["x"]).nbytes == 10 << 20


def test_it_works_where_dasks_configuration_was_replaced(make):
    with dask.config.set(config={}):
        before = dict(dask.config.config)
        dask.config.config.clear()
        try:
            data = make(target=None, max_spill=None)
            assert settings.target(None, 1000) == 600
            data["x"] = large()
            spill_all(data)
        finally:
            dask.config.config.update(before)


# --- who caused it ------------------------------------------------------------------------------


class FakeTask:
    state, span_id = "executing", "span"


class FakeWorker:
    """What a `WorkerChest` asks its worker for."""

    class monitor:  # as the worker's attribute
        get_process_memory = staticmethod(lambda: 0)

    def __init__(self) -> None:
        self.memory_manager = type("Manager", (), {"memory_limit": 1 << 40})
        self.state = type("State", (), {"tasks": {("f", 1): FakeTask()}})
        self.loop = self
        self.extensions: dict[str, object] = {}
        self.told: dict[tuple[object, ...], float] = {}

    def add_callback(self, function, *arguments):
        function(*arguments)

    def digest_metric(self, name, value):
        self.told[name] = self.told.get(name, 0) + value


def test_seconds_and_bytes_belong_to_what_caused_the_write(make):
    data, worker = make(target="1 MiB"), FakeWorker()
    data.attach(worker)
    data[("f", 1)] = np.ones(LARGE)  # more than the target
    data.flush()
    label = ("execute", "span", "f", "disk-write")
    assert worker.told[*label, "count"] == 1
    assert worker.told[*label, "bytes"] >= 8 * LARGE
    assert worker.told[*label, "seconds"] > 0
    data["unknown"] = large()
    worker.state.tasks["fetched"] = type("Task", (), {"state": "flight", "span_id": None})
    data["fetched"] = np.ones(LARGE)
    data.flush()
    assert worker.told["gather-dep", "disk-write", "count"] >= 1
    before = sum(value for name, value in worker.told.items() if name[-1] == "count")
    while data.fast:
        assert data.evict() >= 0
    data.flush()
    now = sum(value for name, value in worker.told.items() if name[-1] == "count")
    assert worker.told.get(("memory-monitor", "disk-write", "count"), 0) == now - before
    assert data.cumulative_metrics["disk-write", "count"] == now


def test_it_is_attached_once(make):
    data, worker, other = make(target=None), FakeWorker(), FakeWorker()
    data.attach(worker)
    watched = worker.monitor.get_process_memory
    data.attach(worker)
    data.attach(other)
    assert worker.monitor.get_process_memory is watched  # not wrapped twice
    assert worker.extensions == {"arraychest": data}
    assert other.extensions == {}
    assert data.target == int((1 << 40) * 0.6)


def test_what_is_in_ram_can_be_looked_at_while_others_get(data):
    for number in range(100):
        data[number] = large(number)
    seen = []
    for key in data.fast:
        _ = data[99 - key]  # which changes the order
        seen.append(key)
    assert seen == list(range(100))
    spill_all(data)
    assert not data.fast
    for key in data.slow:
        data.discard(key)
    assert len(data) == 0


def test_the_preload_imports_no_more_than_a_worker_needs():
    run_python("""
        import sys
        import distributed
        before = set(sys.modules)
        import arraychest.dask.preload
        new = {name for name in set(sys.modules) - before}
        unwanted = {"dask.array", "dask.dataframe", "pandas", "scipy", "xarray", "blosc2"}
        assert not new & unwanted, new & unwanted
        from arraychest.dask import WorkerChest, store  # and then dask.array is
        assert "dask.array" in sys.modules
    """)
