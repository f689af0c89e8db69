"""Small values that go through in batches without slots, and what the index makes of them."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest.catalog.catalog import Catalog
from arraychest.engine.listing import listed
from arraychest.errors import SpillError
from arraychest.formats.form import describe
from arraychest.memory import memtable as index_module
from arraychest.memory.slot import Batch
from arraychest.storage.packs import Packs
from arraychest.storage.writing import Writer

SMALL = 16


def value(number: int) -> np.ndarray:
    return np.full(SMALL, number)


@pytest.fixture(autouse=True)
def _known_dtype():
    # The first array of a dtype takes the long way, which gives it a slot.
    describe(value(0).dtype)


@pytest.fixture
def reopened(path):
    """A chest of ten small values in the order of the alphabet, of which nothing was read."""
    with arraychest.open(path, "w") as chest:
        for number, key in enumerate("abcdefghij"):
            chest[key] = value(number)
    with arraychest.open(path) as chest:
        yield chest


def states(chest: arraychest.Chest) -> dict[str, set[str]]:
    """Which keys have a slot, a batch, a row, or are fresh."""
    index = chest._engine.session.index
    batches = {key for key, known in index.rows.items() if isinstance(known, Batch)}
    return {
        "slot": set(index.slots),
        "batch": batches,
        "row": set(index.rows) - batches,
        "fresh": set(chest._engine.session.resident.fresh),
    }


class TestWithoutSlots:
    def test_small_values_that_are_only_put_and_stored_get_no_slot(self, path):
        with arraychest.open(path) as chest:
            for number in range(100):
                chest[f"k{number}"] = value(number)
            assert len(states(chest)["fresh"]) == 100
            chest.flush()
            assert len(states(chest)["row"]) == 100
            assert not states(chest)["slot"]
            assert len(chest) == 100
            assert list(chest) == [f"k{number}" for number in range(100)]
            for number in range(100):
                assert chest[f"k{number}"][0] == number
            assert len(states(chest)["slot"]) == 100

    def test_an_array_that_the_user_still_holds_is_what_a_get_returns(self, path):
        held, dropped = value(1), value(2)
        with arraychest.open(path) as chest:
            chest["held"], chest["dropped"] = held, dropped
            del dropped
            chest.flush()
            assert states(chest)["row"] == {"held", "dropped"}
            assert chest["held"] is held
            assert chest["dropped"][0] == 2
            assert chest.memory_usage == 0

    def test_asking_for_a_key_gives_slots_to_its_batch_only(self, path, monkeypatch):
        monkeypatch.setattr(index_module, "BATCH_VALUES", 10)
        with arraychest.open(path) as chest:
            for number in range(30):
                chest[f"k{number}"] = value(number)
            assert chest["k15"][0] == 15
            assert states(chest)["slot"] == {f"k{number}" for number in range(10, 20)}
            assert list(chest) == [f"k{number}" for number in range(30)]
            chest.flush()
            chest._engine.session.resident.check()
            assert [chest[key][0] for key in chest] == list(range(30))

    def test_one_array_under_two_keys_is_charged_once_and_stored_twice(self, path):
        array = value(1)
        with arraychest.open(path) as chest:
            chest["a"] = chest["b"] = array
            assert chest.memory_usage == array.nbytes
            chest.flush()
            assert chest.memory_usage == 0
            chest._engine.session.resident.check()
        with arraychest.open(path, "r") as chest:
            assert {key: found[0] for key, found in chest.items()} == {"a": 1, "b": 1}

    def test_more_than_may_be_known_are_forgotten_and_found_again(self, path, monkeypatch):
        monkeypatch.setattr(index_module, "MAX_KNOWN", 50)
        held = value(7)
        with arraychest.open(path) as chest:
            chest._engine.session.index._most_known = 50
            chest["held"] = held
            for number in range(200):
                chest[f"k{number}"] = value(number)
            chest.flush()
            assert len(states(chest)["row"]) < 50
            assert chest["held"] is held
            chest["k3"] = value(-3)  # it is there, though the index does not know
            chest["new"] = value(0)
            assert len(chest) == 202
            assert list(chest) == ["held", *(f"k{number}" for number in range(200)), "new"]
            assert chest["k3"][0] == -3
            assert chest["k199"][0] == 199

    def test_popitem_takes_the_last_whatever_was_asked_for_before(self, path):
        with arraychest.open(path) as chest:
            for number, key in enumerate("abcde"):
                chest[key] = value(number)
            chest.flush()
            for key in "dbc":  # which get slots in this order
                assert key in chest
                chest[key]
            chest["f"] = value(5)
            chest["a"] = value(10)
            popped = [chest.popitem() for _ in range(6)]
            assert "".join(key for key, _ in popped) == "fedcba"
            assert [array[0] for _, array in popped] == [5, 4, 3, 2, 1, 10]
            with pytest.raises(KeyError):
                chest.popitem()


class TestPuttingIntoWhatWasReopened:
    def test_looks_up_nothing_until_it_must(self, reopened, monkeypatch):
        def refuse(*_: object) -> None:
            raise AssertionError("a look-up")

        monkeypatch.setattr(reopened._engine.session.index.stored.catalog, "find", refuse)
        for number, key in enumerate("cxey"):
            reopened[key] = value(100 + number)
        assert states(reopened)["fresh"] == set("cxey")

    def test_overwrites_in_place_and_appends_in_order(self, reopened, path):
        for number, key in enumerate("cxey"):
            reopened[key] = value(100 + number)
        assert len(reopened) == 12
        assert "".join(reopened) == "abcdefghijxy"
        assert "".join(reversed(reopened)) == "yxjihgfedcba"
        reopened._engine.session.resident.check()
        reopened.close()
        with arraychest.open(path, "r") as chest:
            assert "".join(chest) == "abcdefghijxy"
            found = "".join(f"{key}{array[0]} " for key, array in chest.items())
        assert found == "a0 b1 c100 d3 e102 f5 g6 h7 i8 j9 x101 y103 "

    def test_popitem_takes_the_last(self, reopened):
        reopened["c"], reopened["new"] = value(100), value(101)
        popped = [reopened.popitem() for _ in range(11)]
        assert [key for key, _ in popped] == ["new", *"jihgfedcba"]
        assert not reopened

    def test_keeps_the_key_that_was_put_first(self, path):
        with arraychest.open(path, "w") as chest:
            chest[np.int64(1)] = value(1)
            chest[True, "a"] = value(2)
        with arraychest.open(path) as chest:
            chest[1] = value(3)
            chest[2] = value(4)
            assert [type(key) for key in chest] == [np.int64, tuple, int]
            chest.flush()
        with arraychest.open(path, "r") as chest:
            assert [type(key) for key in chest] == [np.int64, tuple, int]
            assert chest[1][0] == 3

    def test_deleting_what_was_just_overwritten_deletes_both(self, reopened, path):
        reopened["c"] = value(100)
        del reopened["c"]
        assert "c" not in reopened
        assert len(reopened) == 9
        reopened["c"] = value(200)
        assert "".join(reopened) == "abdefghijc"
        reopened.close()
        with arraychest.open(path, "r") as chest:
            assert "".join(chest) == "abdefghijc"
            assert chest["c"][0] == 200

    def test_a_deletion_that_waits_does_not_come_back(self, reopened, path):
        del reopened["c"]
        reopened["c"] = value(100)
        reopened["d"] = value(101)
        reopened.flush()
        assert len(reopened) == 10
        assert "".join(reopened) == "abdefghijc"
        assert reopened["c"][0] == 100

    def test_reading_ahead_does_not_bring_the_old_value_back(self, reopened):
        reopened["c"] = value(100)
        assert reopened["a"][0] == 0
        assert reopened["b"][0] == 1  # the neighbour: rows are read ahead
        assert states(reopened)["row"] >= set("defghij")
        assert reopened["c"][0] == 100

    def test_frees_the_bytes_of_what_was_overwritten(self, reopened):
        before = reopened.stats().bytes_spilled
        for key in "abcdefghij":
            reopened[key] = value(100)
        reopened.flush()
        assert reopened.stats().bytes_spilled - before == 10 * value(0).nbytes
        assert reopened.compact() == 10 * 128
        assert all(reopened[key][0] == 100 for key in "abcdefghij")

    @pytest.fixture
    def batched(self, reopened):
        """c and e overwritten, x new: in a batch that nobody writes."""
        for number, key in enumerate("cxe"):
            reopened[key] = value(100 + number)
        assert len(reopened) == 11
        assert states(reopened)["batch"] == set("cxe")
        return reopened

    def right(self, chest: arraychest.Chest) -> bool:
        expected = {key: number for number, key in enumerate("abcdefghij")}
        expected |= {"c": 100, "x": 101, "e": 102}
        return [(key, array[0]) for key, array in chest.items()] == list(expected.items())

    def test_overwritten_values_need_no_slots(self, batched, path):
        assert "".join(batched) == "abcdefghijx"
        assert "".join(reversed(batched)) == "xjihgfedcba"
        batched.flush()
        assert states(batched)["row"] == set("cxe")
        assert not states(batched)["slot"]
        assert len(batched) == 11
        assert self.right(batched)
        assert batched.verify().ok
        batched.close()
        with arraychest.open(path, "r") as chest:
            assert self.right(chest)

    def test_a_listing_tells_that_they_are_in_ram(self, batched):
        found = {each.key: each.tier for each in listed(batched._engine)}
        assert "".join(found) == "abcdefghijx"
        assert {key for key, tier in found.items() if tier == "RAM"} == set("cxe")
        assert {each.key for each in listed(batched._engine, 4)} == set("abcd")

    def test_what_they_replace_may_be_moved_meanwhile(self, batched, path):
        store = batched._engine.session.open_store()
        (identity,) = store.catalog.pack_ids()
        batched._engine.session.compactor.compact_pack(identity)
        assert store.catalog.pack_ids() != {identity}
        batched.flush()
        # What was counted as dead is what was replaced.
        assert batched.compact() == 2 * 128
        assert batched.verify().ok
        assert self.right(batched)

    @pytest.mark.parametrize("deletes", [False, True])
    def test_what_they_replace_may_be_changed_by_others_meanwhile(self, batched, path, deletes):
        with arraychest.open(path) as other:
            other["c"] = value(50)
            del other["e"]
            if deletes:
                del other["c"]
            other.flush()
        batched.flush()
        assert [batched[key][0] for key in "cex"] == [100, 102, 101]
        assert len(batched) == len(list(batched)) == 11
        assert batched.verify().ok
        batched._engine.session.resident.check()

    def test_what_they_replace_may_have_had_a_file_of_its_own(self, path):
        with arraychest.open(path, "w", max_disk="1 GiB") as chest:
            chest["large"] = np.arange(100_000)
        with arraychest.open(path) as chest:
            file = chest.entry("large").file
        with arraychest.open(path) as chest:
            chest["large"] = value(7)
            chest.flush()
            assert not states(chest)["slot"]
            assert not os.path.exists(file)
            assert chest["large"][0] == 7
            assert chest.verify().ok

    def test_a_batch_that_cannot_be_committed_stays_and_replaces_later(self, batched, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise OSError(28, "no space")

        with monkeypatch.context() as broken:
            broken.setattr(Catalog, "commit", refuse)
            with pytest.raises(SpillError, match="no space"):
                batched.flush()
        assert self.right(batched)
        batched.flush()
        assert self.right(batched)
        # Two that were replaced, and three that were written for nothing.
        assert batched.compact() == 5 * 128

    def test_a_catalog_that_cannot_be_read_keeps_the_values_in_ram(self, reopened, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(5, "unreadable")

        reopened["c"], reopened["new"] = value(100), value(101)
        with monkeypatch.context() as broken:
            broken.setattr(reopened._engine.session.index.stored.catalog, "find_all", refuse)
            with pytest.raises(SpillError, match="unreadable"):
                reopened.flush()
            assert states(reopened)["fresh"] == {"c", "new"}
        reopened.flush()
        assert reopened["c"][0] == 100
        assert reopened["new"][0] == 101


class TestBesideAnotherChest:
    """Two chests on one folder, in which each knows what it has put without slots."""

    @pytest.mark.parametrize("by", ["the other", "itself"])
    def test_what_was_deleted_and_put_again_is_not_the_array_that_is_still_held(self, path, by):
        with arraychest.open(path) as chest, arraychest.open(path) as other:
            held = value(1)
            chest["x"] = held
            chest.flush()
            del other["x"]
            other.flush()
            assert len(chest) == 0
            putting = other if by == "the other" else chest
            putting["x"] = value(2)
            putting.flush()
            assert chest["x"][0] == other["x"][0] == 2
            assert held[0] == 1

    def test_keys_keep_their_order_when_they_are_stored(self, path):
        with arraychest.open(path) as chest, arraychest.open(path) as other:
            for each, key in ((chest, "a"), (other, "b")):
                each[key] = value(0)
                each.flush()
            assert "".join(chest) == "ab"
            chest["c"] = value(0)
            orders = ["".join(chest), "".join(reversed(chest))]
            chest.flush()
            assert ["".join(chest), "".join(reversed(chest))] == orders == ["abc", "cba"]


class TestMoreThanMayBeKnown:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr(index_module, "MAX_KNOWN", 8)

    def test_a_transaction_that_deletes_many(self, path):
        with arraychest.open(path) as chest:
            for number in range(40):
                chest[number] = value(number)
        with arraychest.open(path) as chest:
            with chest.transaction():
                for number in range(20):
                    del chest[number]
            assert len(chest) == 20
            assert list(chest) == list(range(20, 40))
            assert chest.verify().ok

    def test_popitem_takes_the_last(self, path):
        with arraychest.open(path) as chest:
            for number in range(12):
                chest[number] = value(number)
                chest[f"s{number}"] = np.int64(number)  # no array: it has a slot
            chest.flush()
            popped = [chest.popitem()[0] for _ in range(24)]
        expected = [key for number in range(12) for key in (number, f"s{number}")]
        assert popped == expected[::-1]


class TestABatchThatIsBeingWritten:
    @pytest.fixture
    def writing(self, path, monkeypatch):
        """A chest whose batch of a, b, c is being written until `go` is set; and a flush of it."""
        started, go = threading.Event(), threading.Event()
        append = Packs.append

        def slow(*arguments: object) -> object:
            started.set()
            assert go.wait(30)
            return append(*arguments)

        monkeypatch.setattr(Packs, "append", slow)
        with arraychest.open(path, "w") as chest:
            for number, key in enumerate("abc"):
                chest[key] = value(number)
            flush = threading.Thread(target=chest.flush)
            flush.start()
            assert started.wait(30)

            def finish() -> None:
                go.set()
                flush.join()
                chest.flush()
                chest._engine.session.resident.check()
                assert chest.memory_usage == 0

            yield chest, finish
            go.set()
            flush.join()

    def test_is_stored_whatever_is_asked_for_meanwhile(self, writing, path):
        chest, finish = writing
        assert states(chest)["batch"] == set("abc")
        assert chest["b"][0] == 1
        assert states(chest)["slot"] == set("abc")
        finish()
        assert [chest[key][0] for key in chest] == [0, 1, 2]

    def test_may_be_overwritten(self, writing, path):
        chest, finish = writing
        chest["b"] = value(10)
        finish()
        assert [chest[key][0] for key in chest] == [0, 10, 2]
        chest.close()
        with sqlite3.connect(path + "/catalog.sqlite") as catalog:
            assert catalog.execute("SELECT count(*) FROM entry").fetchone() == (3,)
        catalog.close()

    def test_may_be_deleted_and_put_again(self, writing, path):
        chest, finish = writing
        del chest["a"], chest["b"]
        chest["a"] = value(20)
        assert "".join(chest) == "ca"
        finish()
        assert "".join(chest) == "ca"
        chest.close()
        with arraychest.open(path, "r") as again:
            assert {key: array[0] for key, array in again.items()} == {"c": 2, "a": 20}

    def test_counts_and_comes_in_order(self, writing):
        chest, finish = writing
        chest["d"] = value(3)
        assert len(chest) == 4
        assert "".join(chest) == "abcd"
        assert set(chest.inmem) == set("abcd")
        finish()
        assert not chest.inmem


class Player:
    """A thread's share of the keys, what they should hold, and random operations on them."""

    KEYS = 120

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.model: dict[str, int] = {}
        self.refused = 0
        self.random = random.Random(seed * 100 + number)

    def play(self, chest: arraychest.Chest, rounds: int) -> None:
        for _ in range(rounds):
            key = f"{self.number}-{self.random.randrange(self.KEYS)}"
            self.random.choices(
                [self.put, self.get, self.delete, self.look, self.store], [45, 25, 18, 8, 4]
            )[0](chest, key)

    def put(self, chest: arraychest.Chest, key: str) -> None:
        number = self.random.randrange(1 << 40)
        try:
            chest[key] = np.full(self.random.choice((4, 16, 300)), number)
            self.model[key] = number
        except SpillError:
            self.refused += 1

    def get(self, chest: arraychest.Chest, key: str) -> None:
        found = chest.get(key)
        assert (None if found is None else int(found[0])) == self.model.get(key)

    def delete(self, chest: arraychest.Chest, key: str) -> None:
        found = chest.pop(key, None)
        assert (None if found is None else int(found[0])) == self.model.pop(key, None)
        chest.discard(f"{self.number}-absent")

    def look(self, chest: arraychest.Chest, key: str) -> None:
        assert (key in chest) == (key in self.model)
        assert {each for each in chest if each.startswith(f"{self.number}-")} == set(self.model)
        assert len(chest) >= len(self.model)

    def store(self, chest: arraychest.Chest, key: str) -> None:
        try:
            self.random.choice((chest.flush, chest.compact, lambda: chest.prefetch([])))()
            if key in self.model:
                chest.spill(key)
        except OSError:
            self.refused += 1


@pytest.mark.parametrize("failing", [False, True], ids=["", "failing"])
@pytest.mark.parametrize(
    ("rounds", "sessions"),
    [(300, 2), pytest.param(4000, 8, marks=pytest.mark.stress)],
    ids=["short", "long"],
)
@pytest.mark.parametrize("known", [60, 100_000])
def test_many_threads_see_their_own_small_values(
    path, monkeypatch, known, rounds, sessions, failing
):
    monkeypatch.setattr(index_module, "BATCH_VALUES", 10)
    monkeypatch.setattr(index_module, "_MOST_FRESH", 30)
    monkeypatch.setattr(index_module, "_FEW", 5)
    monkeypatch.setattr(index_module, "MAX_KNOWN", known)
    disk_is_full = failing

    def fill(of: type, name: str, often: float) -> None:
        do = getattr(of, name)

        def sometimes(*arguments: Any, **options: Any) -> Any:
            if disk_is_full and random.random() < often:
                raise OSError(errno.ENOSPC, "full")
            return do(*arguments, **options)

        monkeypatch.setattr(of, name, sometimes)

    fill(Packs, "append", 0.1)
    fill(Writer, "write", 0.1)
    fill(Catalog, "commit", 0.05)
    players = [Player(number, seed=rounds + known) for number in range(4)]
    for _ in range(sessions):
        with arraychest.open(path, available_memory=20_000) as chest:
            disk_is_full = failing
            with ThreadPoolExecutor(len(players)) as pool:
                list(pool.map(lambda player, chest=chest: player.play(chest, rounds), players))
            disk_is_full = False
            expected = {key: number for each in players for key, number in each.model.items()}
            assert len(chest) == len(expected)
            chest._engine.session.resident.check()
        with arraychest.open(path, "r") as chest:
            assert {key: int(array[0]) for key, array in chest.items()} == expected
    if failing:
        assert any(player.refused for player in players)


def test_a_handle_is_given_while_a_compaction_moves_the_value(path, monkeypatch):
    """Its pack is gone from the catalog before the slot is told where the value lies now."""
    with arraychest.open(path, "w") as chest:
        chest.update({number: np.full(100, number) for number in range(20)})
        chest.flush()
        handles = []
        started = threading.Event()
        moved = index_module.Index.moved
        asking = threading.Thread(target=lambda: handles.append(chest.handle(19)))

        def slow(self: index_module.Index, *arguments: object) -> None:
            chest._engine.session.writer.lock.release()
            if not started.is_set():
                asking.start()
                started.set()
            asking.join(0.2)  # it waits until the slot is told
            chest._engine.session.writer.lock.acquire()
            moved(self, *arguments)

        monkeypatch.setattr(index_module.Index, "moved", slow)
        for number in range(19):
            del chest[number]
        chest.flush()
        chest.compact()
        assert started.wait(30)  # the writer may be compacting by itself
        asking.join(30)
        assert [handle.array().tolist() for handle in handles] == [[19] * 100]


def test_a_handle_finds_a_value_that_a_compaction_has_moved(path):
    with arraychest.open(path, "w") as chest:
        chest.update({number: np.full(100, number) for number in range(20)})
        chest.flush()
        handle = chest.handle(19)
        gone = chest.handle(3)
        for number in range(19):
            del chest[number]
        chest.compact()
        assert handle.array().tolist() == [19] * 100
        with pytest.raises(arraychest.AbsentKeyError):
            gone.array()
        chest[19] = np.zeros(3)
        chest.compact()
        with pytest.raises(arraychest.AbsentKeyError):
            handle.array()
        assert chest.handle(19).array().tolist() == [0] * 3
