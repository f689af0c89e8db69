"""Long work says how far it has come, stops where that is safe, and the user is warned."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import ArrayChestWarning, Progress, SpillError, progress
from arraychest.engine import opening
from arraychest.memory import budget
from arraychest.progress import Meter, measured
from arraychest.sharing.mounts import FileSystem
from tests.faults import RESERVING, injected
from tests.support import assert_identical, audit

LARGE = 400_000  # elements of three megabytes


def values() -> dict[Any, Any]:
    made: dict[Any, Any] = {("small", n): np.full(100, n) for n in range(400)}
    made |= {("large", n): np.full(LARGE, float(n)) for n in range(3)}
    made["noise"] = np.random.default_rng(0).random(LARGE)
    made["tree"] = {"a": np.arange(10), "b": [1, None]}
    return made


@pytest.fixture
def often(monkeypatch):
    """Each `add` is reported."""
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)


@pytest.fixture
def filled(path):
    """A closed chest with values of each codec, and packs with holes."""
    with arraychest.open(path, "w", compression=None) as chest:
        chest.update(values())
        for n in range(0, 400, 2):
            del chest["small", n]
        chest.flush()
        chest.put("framed", np.tile(np.arange(1000.0), 400), compression="zstd")
    return path


def compact(chest, tmp_path, told):
    chest.compact(progress=told)


def verify(chest, tmp_path, told):
    chest.verify(progress=told)


def repair(chest, tmp_path, told):
    chest.repair(progress=told)


def repair_closed(chest, tmp_path, told):
    chest.close()
    arraychest.repair(chest.path, progress=told)


def update_from_a_dict(chest, tmp_path, told):
    chest.update({"new": np.zeros(LARGE), "newer": np.ones(10)}, progress=told)


def update_from_a_chest(chest, tmp_path, told):
    with arraychest.open(tmp_path / "other.chest", compression=None) as other:
        other.update({"new": np.zeros(LARGE), "newer": np.ones(10)})
        other.flush()
        chest.update(other, progress=told)


def export(chest, tmp_path, told):
    chest.export(tmp_path / "out.npz", progress=told)


def import_again(chest, tmp_path, told):
    with arraychest.Chest({"new": np.zeros(LARGE), "newer": np.ones(10)}) as other:
        other.export(tmp_path / "in", overwrite=True)
    chest.import_from(tmp_path / "in", progress=told)


WORK = {
    verify: "verify",
    repair: "repair",
    repair_closed: "repair",
    compact: "compact",
    update_from_a_dict: "update",
    update_from_a_chest: "update",
    export: "export",
    import_again: "import",
}
each_work = pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)


@each_work
def test_work_tells_how_far_it_has_come_and_ends_with_all(work, filled, tmp_path, often):
    told: list[Progress] = []
    threads = set()

    def note(now):
        told.append(now)
        threads.add(threading.current_thread())

    with arraychest.open(filled, compression=None) as chest:
        work(chest, tmp_path, note)
    assert {type(each) for each in told} == {Progress}
    assert {each.what for each in told} == {WORK[work]}
    done = [each.done for each in told]
    assert done[0] == 0
    assert done == sorted(done)
    assert all(each.done <= each.total for each in told)
    assert len(told) > 2
    assert told[-1].done == told[-1].total > 0
    assert threads == {threading.current_thread()}


class Cancelled(Exception):
    pass


@pytest.mark.sampled(3)
@each_work
@pytest.mark.parametrize(
    "error",
    [Cancelled(), ValueError("mine"), OSError("mine"), KeyError("mine"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_what_a_report_raises_stops_the_work_and_leaves_the_chest_sound(
    work, error, filled, tmp_path, often
):
    reports = 0

    def stop(now):
        nonlocal reports
        reports += 1
        if reports == 2:
            raise error

    with arraychest.open(filled, compression=None) as chest:
        with pytest.raises(type(error)) as caught:
            work(chest, tmp_path, stop)
        assert caught.value is error
    assert reports == 2
    assert sorted(os.listdir(tmp_path)) in (
        ["test.chest"],
        ["in", "test.chest"],
        ["other.chest", "test.chest"],
    )
    audit(filled)
    expected = {k: v for k, v in values().items() if k[0] != "small" or k[1] % 2}
    with arraychest.open(filled, "r") as chest:
        assert chest.verify().ok
        assert list(chest) == [*expected, "framed"]
        for key, value in expected.items():
            assert_identical(chest[key], value)


def test_one_large_value_is_told_of_while_it_is_read(path, often):
    for compression in (None, "lz4"):
        done = []
        with arraychest.open(path, "w", compression=compression) as chest:
            chest["x"] = np.random.default_rng(0).random(1_500_000)
            chest.flush()
            chest.verify(progress=lambda now, done=done: done.append(now.done))
        assert len({each for each in done if 0 < each < done[-1]}) > 3


def test_reports_come_ten_times_a_second_at_most(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    told = []
    with measured(told.append, "work", 1000) as meter:
        for _ in range(1000):
            clock.now += 0.002
            meter.add(1)
    assert 18 <= len(told) <= 22
    assert told[0] == (0, 1000, "work")
    assert told[-1] == (1000, 1000, "work")


def test_a_total_that_is_not_known_is_zero_and_one_too_small_grows():
    told = []
    meter = Meter(told.append, "x", 0)
    meter.add(5)
    meter = Meter(told.append, "x", 3)
    meter.add(5)
    assert told == [(5, 0, "x"), (5, 5, "x")]


def test_true_draws_a_bar_on_standard_error(filled, capsys):
    with arraychest.open(filled) as chest:
        assert chest.verify(progress=True).ok
        chest.update(iter([("new", np.zeros(3))]), progress=True)
    shown = capsys.readouterr()
    assert not shown.out
    assert "verify" in shown.err
    assert "update" in shown.err


def test_false_and_none_show_nothing_and_all_else_is_refused(filled, capsys):
    with arraychest.open(filled) as chest:
        chest.verify(progress=False)
        chest.verify(progress=None)
        with pytest.raises(TypeError, match="expected progress"):
            chest.verify(progress="yes")
    assert capsys.readouterr() == ("", "")


def test_update_still_puts_values_that_are_called_progress(chest):
    array = np.arange(3)
    chest.update({"x": 1}, progress=array)
    assert_identical(chest["progress"], array)
    chest.update(progress=True)
    assert chest["progress"] is True
    chest.update((), progress=None)
    assert chest["progress"] is None
    told = []
    chest.update({"x": 2, "progress": 4}, progress=told.append)
    assert (chest["x"], chest["progress"]) == (2, 4)
    assert told
    chest.update([("x", 3)], progress=False)
    assert (chest["x"], chest["progress"]) == (3, 4)


# --- warnings ----------------------------------------------------------------------------------


def spill_failing(path: str, times: int) -> int:
    """Puts past the high watermark, of which the first spills fail; returns how many did."""
    size = arraychest.PACK_THRESHOLD // 8 + 10
    failed = 0

    def refusing(name, args, call):
        nonlocal failed
        if name == RESERVING and failed < times:
            failed += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()

    with arraychest.open(path, "w", 80 * size) as chest, contextlib.ExitStack() as stack:
        # So that the folder is there, and what fails is a spill.
        chest["before"] = np.zeros(3)
        chest.flush()
        stack.enter_context(injected(refusing))
        for number in range(8):
            chest[number] = np.full(size, float(number))
        with chest._engine.session.writer.lock:
            chest._engine.session.writer.wait_idle()
        with pytest.raises(SpillError):
            chest["told"] = np.zeros(3)
        assert all((chest[number] == number).all() for number in range(8))
    audit(path)
    return failed


def test_a_spill_that_fails_in_the_background_is_warned_of_once(path, caplog):
    with pytest.warns(ArrayChestWarning, match="stay in RAM.*No space left") as caught:
        assert spill_failing(path, 2) >= 1
    assert len(caught) == 1
    assert issubclass(ArrayChestWarning, UserWarning)
    assert caplog.text.count("spill failed") == 1


def test_where_warnings_are_errors_a_failed_spill_ends_no_thread(path, caplog):
    with caplog.at_level(logging.WARNING, "arraychest"):
        assert spill_failing(path, 2) >= 1
    assert "spill failed" in caplog.text


def test_who_waits_for_a_spill_is_given_the_error_and_no_warning(path, recwarn):
    def refusing(name, args, call):
        if name == RESERVING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()

    with arraychest.open(path, "w") as chest:
        with injected(refusing):
            chest["x"] = np.zeros(10)
            with pytest.raises(SpillError):
                chest.flush()
        assert not recwarn.list


def test_scarce_memory_is_warned_of_once(monkeypatch, path):
    gib = 1 << 30
    monkeypatch.setattr(budget, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(budget, "_FLOOR_BYTES", 1 << 20)
    left = SimpleNamespace(available=8 * gib)
    reading = lambda: budget.MemoryReading(10 * gib, left.available)  # noqa: E731
    monkeypatch.setattr(budget, "read_memory", reading)
    with arraychest.open(path, "w") as chest:
        chest["before"] = np.zeros(200_000)
        left.available = gib
        with pytest.warns(  # noqa: PT031
            ArrayChestWarning, match="memory is scarce: expected up to 6 GiB"
        ) as seen:
            for number in range(20):
                chest[number] = np.zeros(20_000)
            with chest._engine.session.writer.lock:
                chest._engine.session.writer.wait_idle()
        assert len(seen) == 1


def test_a_budget_that_was_given_is_never_scarce():
    assert not budget.Budget("1 MiB").is_scarce


def test_a_network_file_system_is_warned_of_where_the_chest_is_opened(monkeypatch, path):
    monkeypatch.setattr(opening, "file_system_of", lambda _: FileSystem("nfs4", "/home"))
    with pytest.warns(ArrayChestWarning, match="nfs4 at /home") as caught:
        arraychest.open(path, allow_network=True).close()
    assert [each.filename for each in caught] == [__file__]
    with pytest.raises(ArrayChestWarning):
        arraychest.open(path, allow_network=True)
    arraychest.open(path, "r", allow_network=True).close()


def test_the_log_tells_who_asks_for_it_and_nobody_else(filled, caplog, capfd):
    with caplog.at_level(logging.INFO, "arraychest"), arraychest.open(filled) as chest:
        chest.repair()
    told = [(each.levelname, each.getMessage().split()[0]) for each in caplog.records]
    assert told == [("INFO", "opened"), ("INFO", "repaired"), ("INFO", "closed")]
    handlers = logging.getLogger("arraychest").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
    assert capfd.readouterr().err == ""
