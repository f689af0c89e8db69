"""`max_disk`: what does not fit is refused, or the least recently used entries make room."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sqlite3
import threading
import time
import types
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest.catalog.record import Cost
from arraychest.errors import QuotaError, SpillError
from arraychest.storage import eviction
from tests.faults import Say, in_child
from tests.support import audit

LARGE = 100_000  # bytes of a value with a file of its own
QUOTA = 1 << 20
BUDGET = "64 MiB"


def large(number: int) -> np.ndarray:
    return np.full(LARGE // 8, number)


def small(number: int) -> np.ndarray:
    return np.full(128, number)


def on_disk(path: str | os.PathLike[str]) -> int:
    """Bytes of all value files, whatever they are called."""
    nbytes = 0
    for top, _, names in os.walk(path):
        for name in names:
            if name.endswith((".npy", ".pack")):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    nbytes += os.stat(os.path.join(top, name)).st_size
    return nbytes


def counted(path: str) -> None:
    """What the processes keep count of is what is there."""
    with arraychest.open(path, "a", max_disk="1 TiB") as chest:
        chest["counted"] = large(0)
        chest.flush()
        store = chest._engine.session.open_store()
        assert store.counter.stored == store.catalog.stored_bytes()
        del chest["counted"]


def settle() -> None:
    """Let the clock of the file system tick."""
    time.sleep(0.02)


# --- refused ---------------------------------------------------------------------------------------


def test_a_put_that_does_not_fit_is_refused_and_nothing_is_lost(path):
    with arraychest.Chest(path=path, available_memory=BUDGET, max_disk=QUOTA) as chest:
        chest["first"] = large(0)
        chest.flush()
        refused = None
        for number in range(20):
            try:
                chest[number] = large(number)
            except QuotaError:
                refused = number
                break
        assert refused == 9, "ten of 100,000 bytes fit into 1 MiB"
        with pytest.raises(QuotaError, match=r"max_disk=1 MiB on disk, found .* 98.* KiB more"):
            chest["again"] = large(1)
        assert "again" not in chest
        assert chest[refused - 1][0] == refused - 1
        chest.flush()
        # Overwriting takes no more room, and deleting gives it back.
        chest[3] = large(-3)
        chest.flush()
        del chest[4]
        chest["again"] = large(1)
    assert on_disk(path) <= QUOTA
    with arraychest.open(path, "r") as chest:
        assert set(chest) == {"first", 0, 1, 2, 3, 5, 6, 7, 8, "again"}
        assert chest[3][0] == -3
        assert chest.verify().ok
    audit(path)


def test_what_is_refused_late_stays_in_memory(path):
    with contextlib.closing(
        arraychest.Chest(available_memory="1 MiB", max_disk="512 KiB")
    ) as chest:
        kept = []
        with pytest.raises(QuotaError):
            for number in range(200):
                chest[number] = large(number)
                kept.append(number)
        assert 10 < len(kept) < 20
        assert all(chest[number][-1] == number for number in kept)
        assert on_disk(chest.path) <= 512 << 10


def test_a_value_larger_than_all_is_refused_in_both_modes(path):
    for on_full in ("refuse", "evict"):
        with arraychest.Chest(path=path, max_disk=QUOTA, on_full=on_full) as chest:
            chest["a"] = large(1)
            chest.flush()
            with pytest.raises(QuotaError):
                chest["huge"] = np.zeros(2 * QUOTA, np.uint8)
                chest.flush()
            assert chest["a"][0] == 1
            chest.discard("huge")


def test_a_transaction_that_does_not_fit_changes_nothing(path):
    with arraychest.Chest(path=path, max_disk=QUOTA) as chest:
        chest["a"] = large(1)
        chest.flush()
        before = on_disk(path)
        with pytest.raises(QuotaError):
            chest.update({number: large(number) for number in range(20)})
        assert list(chest) == ["a"]
        assert on_disk(path) == before
        with pytest.raises(QuotaError), chest.transaction():
            for number in range(50_000):
                chest["s", number] = small(number)
        assert list(chest) == ["a"]
    audit(path)


def test_an_array_is_created_or_edited_only_if_it_fits(path):
    with arraychest.Chest(path=path, max_disk=QUOTA) as chest:
        with pytest.raises(QuotaError):
            chest.create("huge", (2 * QUOTA,), np.uint8)
        with chest.create("a", (6 * QUOTA // 10,), np.uint8) as array:
            array[:] = 1
        with pytest.raises(QuotaError), chest.create("b", (6 * QUOTA // 10,), np.uint8):
            pass
        with chest.edit("a") as array:
            array[:] = 2
        assert chest["a"][-1] == 2
        assert list(chest) == ["a"]
    audit(path)


# --- evicted ---------------------------------------------------------------------------------------


def test_the_least_recently_used_entries_make_room(path):
    with arraychest.Chest(path=path, max_disk=QUOTA, on_full="evict") as chest:
        for number in range(10):
            chest[number] = large(number)
            chest.flush()
            settle()
        view = chest[1]  # by its first get from disk
        for number in range(10, 15):
            settle()
            chest[0]  # by gets of the view that the first one has mapped
            chest[number] = large(number)
            chest.flush()
            assert on_disk(path) <= QUOTA
        left = set(chest)
        assert {0, *range(10, 15)} <= left
        assert 2 not in left
        assert len(left) >= 9
        assert chest.stats().evictions == 15 - len(left)
        assert (view == 1).all(), "a view outlives its entry"
        assert all(chest[key][0] == key for key in left)
        assert chest.verify().ok
    counted(path)
    audit(path)


def test_uses_are_remembered_after_reopening(path):
    with arraychest.Chest(path=path, max_disk=QUOTA, on_full="evict") as chest:
        for number in range(10):
            chest[number] = large(number)
            chest.flush()
            settle()
    options: dict[str, Any] = {"max_disk": QUOTA, "on_full": "evict"}
    with arraychest.open(path, "r", **options) as reader:
        assert reader[0][0] == 0
    settle()
    with arraychest.open(path, "a", **options) as chest:
        for number in range(10, 13):
            chest[number] = large(number)
            chest.flush()
        assert 0 in chest
        assert 1 not in chest


def test_small_values_make_room_by_packs(path):
    quota = 4 << 20
    with arraychest.Chest(
        path=path, available_memory="1 MiB", max_disk=quota, on_full="evict"
    ) as chest:
        for number in range(20_000):
            chest[number] = small(number)
            if number % 1000 == 0:
                chest.flush()
        chest.flush()
        assert on_disk(path) <= quota
        assert 500 < len(chest) <= 4096
        assert chest[19_999][0] == 19_999
        assert all(chest[key][0] == key for key in chest)
    counted(path)
    audit(path)


def test_a_transaction_makes_room_for_itself(path):
    with arraychest.Chest(path=path, max_disk=QUOTA, on_full="evict") as chest:
        chest.update({number: large(number) for number in range(8)})
        settle()
        chest.update({number: large(number) for number in range(8, 14)})
        assert set(range(8, 14)) <= set(chest)
        assert on_disk(path) <= QUOTA
        with chest.create("c", (QUOTA // 2,), np.uint8) as array:
            array[:] = 1
        assert on_disk(path) <= QUOTA


def test_fresh_values_are_never_evicted(path):
    """What was just overwritten in RAM has an old row, which may be evicted in no case."""
    with arraychest.Chest(
        path=path, available_memory=BUDGET, max_disk=QUOTA, on_full="evict"
    ) as chest:
        for number in range(10):
            chest[number] = large(number)
        chest.flush()
        for number in range(5):
            chest[number] = large(-number)
        chest["new"] = np.zeros(4 * LARGE, np.uint8)
        chest.flush()
        assert "new" in chest
        for number in range(5):
            assert number not in chest or chest[number][0] == -number
        assert on_disk(path) <= QUOTA
    audit(path)


# --- shared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_full", ["refuse", "evict"])
def test_processes_share_one_limit(path, on_full):
    options: dict[str, Any] = {"max_disk": QUOTA, "on_full": on_full, "available_memory": BUDGET}
    with arraychest.Chest(path=path, **options) as chest:
        for number in range(6):
            chest[number] = large(number)
        chest.flush()
        # The clock of a file system may stand still for as long as six values take.
        os.utime(chest.key_to_filename(0), (1, 1))

        def other(say: Say) -> int:
            refused = 0
            with arraychest.open(path, "a", **options) as mine:
                for number in range(100, 108):
                    try:
                        mine[number] = large(number)
                        mine.flush()
                    except QuotaError:
                        refused += 1
                        mine.discard(number)
            return refused

        outcome = in_child(other)
        assert outcome.error is None, outcome.error
        assert on_disk(path) <= QUOTA
        if on_full == "refuse":
            assert outcome.result == 4
            assert set(chest) == {*range(6), *range(100, 104)}
        else:
            assert outcome.result == 0
            assert set(range(100, 108)) <= set(chest)
            assert 0 not in chest
    counted(path)
    audit(path)


def test_the_count_of_bytes_stays_right_and_is_counted_anew_after_a_death(path):
    choose = random.Random(3)
    options: dict[str, Any] = {"max_disk": "1 GiB", "available_memory": "1 MiB"}
    with arraychest.open(path, "a", **options) as one, arraychest.open(path, "a", **options) as two:
        for turn in range(300):
            chest = choose.choice((one, two))
            key = choose.randrange(30)
            what = choose.random()
            if what < 0.4:
                chest[key] = large(turn)
            elif what < 0.7:
                chest[key] = small(turn)
            elif what < 0.8:
                chest.discard(key)
            elif what < 0.9:
                chest.flush()
            elif what < 0.95:
                chest.compact()
            elif key in chest:
                with contextlib.suppress(KeyError), chest.edit(key) as array:
                    array[:] = turn
        one.flush()
        two.flush()
        store = two._engine.session.open_store()
        assert store.counter.stored == store.catalog.stored_bytes()
        # As a writer leaves it that dies between its commit and saying so.
        store.counter.stored = 17
        store.counter.words[0] += 1
        one["x"] = large(1)
        one.flush()
        two["y"] = large(1)
        two.flush()
        with two._engine.session.writer.lock:
            store.catalog.database.end_snapshot()
        assert store.counter.stored == store.catalog.stored_bytes()
    audit(path)


def test_many_threads_evict_at_once(path):
    errors: list[BaseException] = []
    with arraychest.Chest(
        path=path, available_memory="1 MiB", max_disk=4 * QUOTA, on_full="evict"
    ) as chest:

        def work(seed: int) -> None:
            choose = random.Random(seed)
            try:
                for _ in range(300):
                    key = choose.randrange(80)
                    if choose.random() < 0.5:
                        chest[key] = large(key)
                    else:
                        value = chest.get(key)
                        assert value is None or (value == key).all()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        chest.flush()
        assert on_disk(path) <= 4 * QUOTA
        assert chest.stats().evictions > 0
    audit(path)


# --- arguments -------------------------------------------------------------------------------------


def test_the_quota_goes_with_a_pickled_chest(path):
    with arraychest.Chest({"a": large(1)}, path=path, max_disk="150 kB") as chest:
        chest.flush()
        with pickle.loads(pickle.dumps(chest)) as other:
            other["a"]
            with pytest.raises(QuotaError):
                other["b"] = large(2)
                other.flush()
            other.discard("b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_disk": "much"}, "size"),
        ({"max_disk": -1}, "0 bytes or more"),
        ({"max_disk": 1, "on_full": "drop"}, "on_full"),
        ({"on_full": "evict"}, "max_disk"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        arraychest.Chest(**options)


def test_the_error_is_one_that_a_full_disk_raises_too():
    assert issubclass(QuotaError, SpillError)
    assert arraychest.QuotaError is QuotaError


# --- by cost, and by age ---------------------------------------------------------------------------

HOUR = 3600.0


def put_costly(chest: Any, key: Any, value: np.ndarray, cost: Cost | None) -> None:
    chest._engine.put_any(key, value, cost=cost)
    chest.flush()


def age(chest: Any, seconds: dict[Any, float]) -> None:
    """Let the files of values have been used so long ago."""
    now = time.time()
    for key, ago in seconds.items():
        os.utime(chest.entry(key).file, (now - ago, now - ago))


def facts(path: str) -> list[int]:
    """How many rows the catalog has of digests and costs; each is of an entry."""
    with contextlib.closing(sqlite3.connect(os.path.join(path, "catalog.sqlite"))) as db:
        for table in ("digest", "cost"):
            sql = f"SELECT count(*) FROM {table} WHERE gen NOT IN (SELECT gen FROM entry)"
            assert db.execute(sql).fetchone() == (0,)
        return [
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("digest", "cost")
        ]


def filled(path: str, by: str, costs: dict[Any, Cost | None], ages: dict[Any, float]) -> set[Any]:
    """What is left of ten values after three more were put."""
    options: dict[str, Any] = {"max_disk": QUOTA, "on_full": "evict", "evict_by": by}
    with arraychest.Chest(path=path, **options) as chest:
        for number in range(10):
            put_costly(chest, number, large(number), costs.get(number))
        age(chest, {number: ages.get(number, HOUR) for number in range(10)})
    # Costs and ages are on disk: they are not this process's memory.
    with arraychest.open(path, "a", **options) as chest:
        for number in range(10, 13):
            put_costly(chest, number, large(number), Cost(100.0))
        left = set(chest)
        assert chest.verify().ok
    facts(path)
    counted(path)
    audit(path)
    assert {10, 11, 12} <= left
    assert 7 <= len(left) <= 10
    return left


def test_by_cost_the_cheap_ones_go_first(path):
    costs: dict[Any, Cost | None] = {number: Cost(10.0) for number in range(10)}
    costs |= {3: Cost(0.01), 7: Cost(0.02), 8: Cost(0.03), 9: Cost(0.04)}
    left = filled(path, "cost", costs, {})
    assert left >= {0, 1, 2, 4, 5, 6}
    assert 3 not in left


def test_by_age_costs_do_not_count(path):
    costs: dict[Any, Cost | None] = {number: Cost(10.0**number) for number in range(10)}
    left = filled(path, "lru", costs, {number: HOUR * (number + 1) for number in range(10)})
    assert left >= {0, 1, 2, 3, 4, 5}
    assert 9 not in left


def test_by_cost_age_counts_too(path):
    costs: dict[Any, Cost | None] = {number: Cost(1.0) for number in range(10)}
    ages = {0: 1000 * HOUR, 1: 900 * HOUR, 2: 800 * HOUR, 3: 700 * HOUR}
    left = filled(path, "cost", costs, ages)
    assert left >= {4, 5, 6, 7, 8, 9}
    assert 0 not in left


def test_by_cost_what_is_dear_outlives_what_is_young(path):
    costs: dict[Any, Cost | None] = {number: Cost(0.001) for number in range(10)}
    costs[5] = Cost(1000.0)
    assert 5 in filled(path, "cost", costs, {5: 100 * HOUR})


def test_by_cost_what_nobody_timed_counts_as_cheap(path):
    costs: dict[Any, Cost | None] = {number: Cost(5.0) for number in range(10)}
    costs |= {2: None, 4: None, 6: None, 8: None}
    left = filled(path, "cost", costs, {})
    assert left >= {0, 1, 3, 5, 7, 9}
    assert len(left & {2, 4, 6, 8}) < 4


@pytest.mark.parametrize("by", ["lru", "cost"])
def test_what_has_expired_goes_first(path, by, monkeypatch):
    # For who evicts it is half an hour later: a get would find nothing of it.
    ahead = types.SimpleNamespace(time=lambda: time.time() + HOUR / 2)
    monkeypatch.setattr(eviction, "time", ahead)
    costs: dict[Any, Cost | None] = {number: Cost(1.0, time.time() + HOUR) for number in range(10)}
    costs |= {number: Cost(1e6, time.time() + 60.0) for number in (4, 5, 6, 7)}
    ages = dict.fromkeys((4, 5, 6, 7), 0.0)  # dear, used just now, and good for nothing
    left = filled(path, by, costs, ages)
    assert left >= {0, 1, 2, 3, 8, 9}
    assert not left >= {4, 5, 6, 7}


@pytest.mark.parametrize("by", ["lru", "cost"])
def test_by_cost_packs_go_as_a_whole(path, by):
    quota = 4 << 20
    options: dict[str, Any] = {"max_disk": quota, "on_full": "evict", "evict_by": by}
    with arraychest.Chest(path=path, available_memory="1 MiB", **options) as chest:
        # Two kinds of small values, in packs of their own.
        for kind, seconds in (("dear", 100.0), ("cheap", 1e-6)):
            for number in range(1000):
                chest._engine.put_any((kind, number), small(number), cost=Cost(seconds))
            chest.flush()
        settle()
        for number in range(30):
            put_costly(chest, number, large(number), Cost(1.0))
        assert on_disk(path) <= quota
        assert chest.verify().ok
        assert all(chest[key] is not None for key in chest)
    facts(path)
    counted(path)
    audit(path)


def ramp(n: int) -> np.ndarray:
    return np.arange(float(n))


def total(array: np.ndarray) -> float:
    return float(array.sum())


def test_results_that_were_evicted_are_computed_again(path):
    options: dict[str, Any] = {"max_disk": QUOTA, "on_full": "evict", "evict_by": "cost"}
    with arraychest.Chest(path=path, **options) as chest:
        made, summed = chest.cache(ramp), chest.cache(total)
        for _ in range(2):
            for n in range(20):
                size = LARGE // 8 + n
                assert summed(made(size)) == size * (size - 1) / 2
                assert on_disk(path) <= QUOTA
        assert made.stats().misses > 20
        assert chest.verify().ok
    assert sum(facts(path)) > 0
    audit(path)


def test_nothing_else_than_lru_and_cost(path):
    with pytest.raises(ValueError, match="evict_by"):
        arraychest.Chest(path=path, max_disk=QUOTA, on_full="evict", evict_by="size")  # type: ignore[arg-type]
    with arraychest.Chest(path=path, max_disk=QUOTA, on_full="evict", evict_by="cost") as chest:
        assert pickle.loads(pickle.dumps(chest))._arguments["evict_by"] == "cost"
