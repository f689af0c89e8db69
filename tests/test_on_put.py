"""What becomes of the caller's array, for every kind of array, base and owner (promise 8)."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest.errors import SpillError
from tests.faults import RESERVING
from tests.support import assert_identical

N = 1000
NBYTES = 8 * N
BUDGETS = {"resident": "64 MiB", "direct": 0}


def owner() -> np.ndarray:
    return np.arange(float(N))


def mapped(access: int) -> np.ndarray:
    held = mmap.mmap(-1, NBYTES, access=access)
    return np.frombuffer(held, float)


class Interface:
    """A foreign object that lends its buffer by the array interface."""

    def __init__(self) -> None:
        self.buffer = bytearray(NBYTES)
        address = np.frombuffer(self.buffer, np.uint8).ctypes.data
        self.__array_interface__ = {
            "shape": (N,), "typestr": "<f8", "data": (address, False), "version": 3,
        }  # fmt: skip


# How each array is made, and whether what it shows is all its own: then it can be handed over.
KINDS: dict[str, tuple[Callable[[], np.ndarray], bool]] = {
    "owner": (owner, True),
    "owner in Fortran order": (lambda: np.ones((10, N // 10), order="F"), True),
    "owner without dimensions": (lambda: np.array(1.0), True),
    "owner of nothing": (lambda: np.ones((0, 3)), True),
    "sole view by reshape": (lambda: owner().reshape(10, -1), True),
    "sole view by transpose": (lambda: owner().reshape(10, -1).T, True),
    "sole view by dtype": (lambda: owner().view("u1"), True),
    "slice of a base that is gone": (lambda: owner()[10:], False),
    "every other element": (lambda: owner()[::2], False),
    "broadcast": (lambda: np.broadcast_to(owner(), (3, N)), False),
    "of bytes": (lambda: np.frombuffer(bytes(NBYTES), float), True),
    "of a bytearray": (lambda: np.frombuffer(bytearray(NBYTES), float), False),
    "of a memoryview": (lambda: np.frombuffer(memoryview(bytearray(NBYTES)), float), False),
    "of a memoryview of an array": (lambda: np.frombuffer(memoryview(owner()), float), False),
    "of a writable mmap": (lambda: mapped(mmap.ACCESS_WRITE), False),
    "of the array interface": (lambda: np.asarray(Interface()), False),
    "read-only owner": (lambda: frozen(owner()), True),
    "read-only view": (lambda: frozen(owner()[5:]), False),
}


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def base_of(array: np.ndarray) -> Any:
    return array if array.base is None else array.base


@pytest.fixture(params=BUDGETS)
def budget(request) -> Any:
    return BUDGETS[request.param]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKindOfArray:
    def test_frozen_is_never_written_to_unnoticed(self, kind, budget, make_chest):
        array = KINDS[kind][0]()
        expected = array.copy()
        chest = make_chest(available_memory=budget)
        chest["x"] = array
        try:
            array[...] = 99
        except ValueError:
            pass  # it fails loudly
        assert_identical(chest["x"], expected, order=False)
        chest.flush()
        assert_identical(chest["x"], expected, order=False)

    def test_frozen_is_treated_the_same_whatever_the_budget(self, kind, make_chest):
        flags = set()
        for budget in BUDGETS.values():
            array = KINDS[kind][0]()
            make_chest(available_memory=budget)["x"] = array
            flags.add(array.flags.writeable)
        assert len(flags) == 1

    def test_handed_over_is_not_copied_and_cannot_be_written_to(self, kind, make_chest):
        make, is_owner = KINDS[kind]
        array = make()
        before = array.flags.writeable
        chest = make_chest(available_memory="64 MiB")
        chest["x"] = array
        if array.size:
            assert np.shares_memory(chest["x"], array) == is_owner
        assert array.flags.writeable == (before and not is_owner)

    def test_copied_stays_the_callers_own(self, kind, budget, make_chest):
        array = KINDS[kind][0]()
        expected = array.copy()
        writable = array.flags.writeable
        chest = make_chest(available_memory=budget, on_put="copy")
        chest["x"] = array
        assert array.flags.writeable == writable
        assert not np.shares_memory(chest["x"], array)
        if writable:
            array[...] = 99
        assert_identical(chest["x"], expected, order=False)

    def test_shared_is_not_copied_and_comes_back_read_only(self, kind, budget, make_chest):
        array = KINDS[kind][0]()
        writable = array.flags.writeable
        chest = make_chest(available_memory=budget, on_put="share")
        chest["x"] = array
        assert array.flags.writeable == writable
        if array.size and budget:
            assert np.shares_memory(chest["x"], array)
        assert not chest["x"].flags.writeable
        assert_identical(chest["x"], array.copy(), order=False)
        chest.flush()
        assert not chest["x"].flags.writeable
        assert_identical(chest["x"], array.copy(), order=False)

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("on_put", ["freeze", "copy", "share"])
    def test_is_charged_what_it_keeps_alive_and_let_go_after_storing(
        self, kind, on_put, make_chest
    ):
        array = KINDS[kind][0]()
        chest = make_chest(available_memory="64 MiB", on_put=on_put)
        chest["x"] = array
        if on_put == "share" or KINDS[kind][1]:
            expected = array.nbytes if array.base is None else NBYTES
            assert chest.memory_usage == expected or array.size == 0
        else:
            assert chest.memory_usage == array.nbytes
        chest["y"] = array
        shared = on_put == "share" or (on_put == "freeze" and KINDS[kind][1])
        assert chest.memory_usage == (expected if shared else 2 * array.nbytes)
        chest.flush()
        assert chest.memory_usage == 0
        watched = weakref.ref(base_of(array)) if array.base is None else None
        before = sys.getrefcount(array)
        del array
        gc.collect()
        if watched is not None:
            assert watched() is None, before

    @pytest.mark.parametrize("on_put", ["freeze", "copy", "share"])
    def test_is_untouched_when_the_put_is_refused(self, kind, on_put, make_chest, path):
        array = KINDS[kind][0]()
        writable = array.flags.writeable
        expected = array.copy()
        for budget in BUDGETS.values():
            chest = make_chest(available_memory=budget, on_put=on_put)
            with pytest.raises(TypeError):
                chest[object()] = array
            with pytest.raises(TypeError):
                chest[[]] = array
            chest.close()
            with pytest.raises(ValueError, match="closed"):
                chest["x"] = array
        with arraychest.Chest(path=path):
            pass
        chest = make_chest(path=path, mode="r", on_put=on_put)
        with pytest.raises(PermissionError):
            chest["x"] = array
        assert array.flags.writeable == writable
        assert_identical(array, expected, order=False)


def test_a_put_that_cannot_make_room_leaves_the_array_writable(make_chest, monkeypatch):
    monkeypatch.setattr(f"os.{RESERVING}", full)
    chest = make_chest(available_memory=NBYTES * 3)
    kept = [chest.setdefault(at, owner()) for at in range(2)]
    for size in (2 * N, 10 * N):
        array = np.arange(float(size))
        with pytest.raises(SpillError) as caught:
            chest["x"] = array
        assert isinstance(caught.value.__cause__, OSError)
        array[0] = 1
        assert "x" not in chest
    assert [chest[at] is array for at, array in enumerate(kept)] == [True, True]
    monkeypatch.undo()
    chest["x"] = array
    assert_identical(chest["x"], array)


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


class TestReusedBuffer:
    @pytest.mark.parametrize("size", [10, 20_000])
    def test_fails_loudly_instead_of_storing_the_same_bytes_everywhere(
        self, size, budget, make_chest
    ):
        chest = make_chest(available_memory=budget)
        buffer = np.empty(size)

        def fill() -> None:
            for at in range(3):
                buffer[:] = at
                chest[at] = buffer

        with pytest.raises(ValueError, match="read-only"):
            fill()
        assert list(chest) == [0]

    def test_by_way_of_views_stores_what_was_there(self, budget, make_chest):
        chest = make_chest(available_memory=budget)
        buffer = np.empty((2, N))
        for at in range(6):
            buffer[at % 2] = at
            chest[at] = buffer[at % 2]
        assert [chest[at][0] for at in range(6)] == list(range(6))
        chest.flush()
        assert [chest[at][-1] for at in range(6)] == list(range(6))

    def test_of_a_reshaped_array_that_is_kept_is_not_taken_for_a_sole_view(self, chest):
        base = owner()
        view = base.reshape(10, -1)
        chest["x"] = view
        base[0] = 99
        assert chest["x"][0, 0] == 0
        other = view[:]
        chest["y"] = other
        base[1] = 99
        assert chest["y"][0, 1] == 1
        held = [owner().reshape(10, -1)]
        witness = held[0].base
        chest["z"] = held[0]
        witness[0] = 99
        assert chest["z"][0, 0] == 0

    def test_of_a_base_that_only_a_weak_reference_or_a_buffer_still_reaches(self, chest):
        view = owner().reshape(10, -1)
        lent = memoryview(view.base)
        chest["x"] = view
        lent[0] = 99
        assert chest["x"][0, 0] == 0
        view = owner().reshape(10, -1)
        weak = weakref.ref(view.base)
        chest["y"] = view
        if np.shares_memory(chest["y"], view):
            with pytest.raises(ValueError, match="read-only"):
                weak()[0] = 99


class TestSharing:
    def test_charges_a_buffer_once_however_many_keys_share_it(self, make_chest):
        chest = make_chest(available_memory="64 MiB", on_put="share")
        base = np.zeros((100, N))
        for at in range(100):
            chest[at] = base[at]
        assert chest.memory_usage == base.nbytes
        for at in range(99):
            del chest[at]
        assert chest.memory_usage == base.nbytes
        chest[99] = owner()
        assert chest.memory_usage == NBYTES

    def test_charges_the_base_that_a_small_view_keeps_alive(self, make_chest):
        base = np.zeros(100 * N)
        chest = make_chest(available_memory="64 MiB", on_put="share")
        chest["x"] = base[:1]
        assert chest.memory_usage == base.nbytes

    def test_of_frozen_arrays_under_many_keys_charges_them_once(self, chest):
        array = owner()
        for at in range(10):
            chest[at] = array
        assert chest.memory_usage == NBYTES
        chest.spill(0)
        assert chest.memory_usage == NBYTES
        assert_identical(chest[0], owner())
        chest.flush()
        assert chest.memory_usage == 0

    def test_spills_a_shared_base_when_the_budget_wants_it(self, make_chest):
        chest = make_chest(available_memory=4 * NBYTES, on_put="share")
        for at in range(20):
            base = np.full((2, N), float(at))
            chest[at, 0], chest[at, 1] = base
            assert chest.memory_usage <= 4 * NBYTES + base.nbytes
        chest.available_memory = 0
        assert chest.memory_usage == 0
        assert [chest[at, 1][0] for at in range(20)] == list(range(20))


class TestFreezing:
    def test_a_small_view_does_not_keep_a_large_base_alive(self, chest):
        base = np.zeros(100 * N)
        watched = weakref.ref(base)
        chest["x"] = base[:1]
        del base
        assert watched() is None
        assert chest.memory_usage == 8

    def test_a_packed_value_of_a_chest_goes_into_another_without_a_copy(self, make_chest):
        one, other = make_chest(), make_chest()
        one["x"] = np.arange(10)
        one.spill("x")
        view = one["x"]
        other["x"] = view
        other["resident"] = view
        assert np.shares_memory(other["x"], view)
        assert other.memory_usage == 0  # a map of a clean file
        del one["x"]
        one.close()
        other.flush()
        assert_identical(other["x"], np.arange(10))

    def test_a_value_whose_file_may_be_edited_is_copied_into_another(self, make_chest):
        one, other = make_chest(), make_chest()
        one["x"] = np.arange(20_000)
        one.spill("x")
        view = one["x"]
        other["x"] = view
        assert not np.shares_memory(other["x"], view)
        with one.edit("x", in_place=True) as array:
            array[:] = 7
        assert_identical(other["x"], np.arange(20_000))
        one.close()
        other.flush()
        assert_identical(other["x"], np.arange(20_000))

    @pytest.mark.parametrize("size", [10, 20_000])
    def test_a_private_view_that_is_put_again_is_not_written_to_unnoticed(self, size, make_chest):
        one, other = make_chest(mmap_mode="c"), make_chest()
        one["x"] = np.arange(size)
        one.flush()
        view = one["x"]
        other["x"] = view
        try:
            view[:] = 99
        except ValueError:
            pass  # it fails loudly
        assert_identical(other["x"], np.arange(size))
        assert_identical(one["x"], np.arange(size))

    def test_putting_what_was_got_under_the_same_key_changes_nothing(self, chest):
        chest["x"] = owner()
        for _ in range(3):
            chest["x"] = chest["x"]
            assert_identical(chest["x"], owner())
            chest.spill("x")
            chest["x"] = chest["x"]
            assert_identical(chest["x"], owner())

    def test_a_resident_get_gives_the_very_array(self, chest):
        array = owner()
        chest["x"] = array
        assert np.shares_memory(chest["x"], array)
        assert chest["x"] is chest["x"]

    def test_a_spilled_array_that_is_still_alive_is_given_back(self, chest):
        array = owner()
        chest["x"] = array
        got = chest["x"]
        chest.spill("x")
        assert np.shares_memory(chest["x"], got)
        del array, got
        gc.collect()
        assert_identical(chest["x"], owner())


def test_a_shared_value_that_nobody_holds_is_let_go_of_once_it_is_stored():
    seen = []
    with arraychest.Chest(
        available_memory="1 MiB",
        on_put="share",
        on_overflow=lambda key: seen.append(chest._engine.session.index.slots[key].view),
    ) as chest:
        for number in range(4):
            chest[number] = np.full(100_000, number)
        chest.flush()
    assert seen == [None] * 4
