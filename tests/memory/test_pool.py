"""The resident set: accounting of buffers, the order of leaving, its invariants."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arraychest
from arraychest.arrays.ownership import owned_bytes, owner_of
from arraychest.memory.pool import TOGETHER_BYTES, Pool, Slot

LARGE = arraychest.PACK_THRESHOLD


def slot(key: object, version: int = 0) -> Slot:
    made = Slot(key, version, None)
    made.version = version
    return made


def replace(resident: Pool, each: Slot, array: np.ndarray) -> None:
    """As a put does it: in one step where that can be, otherwise in two."""
    version = each.version + 1
    if resident.replace(each, array, array.nbytes, version, array):
        assert each.version == version
        assert each.value is array
        assert not array.flags.writeable
    else:
        resident.remove(each)
        resident.add(each, array)


class Lender:
    def __init__(self) -> None:
        self.array = np.zeros(10)
        self.__array_interface__ = self.array.__array_interface__


class TestOwners:
    def test_an_array_that_owns_its_buffer_is_its_own_owner(self):
        array = np.zeros(10)
        assert owner_of(array) is array
        assert owned_bytes(array) == 80

    def test_the_owner_of_views_of_views_is_the_last_base(self):
        array = np.zeros((10, 10))
        view = array[1:].T[::2][1:].view("i8")[..., ::3]
        assert owner_of(view) is array
        # A subclass or a read-only view in between changes nothing.
        assert owner_of(np.broadcast_to(array, (3, 10, 10))[1]) is array

    @pytest.mark.parametrize(
        ("make", "nbytes"),
        [
            (lambda: bytes(80), 80),
            (lambda: bytearray(80), 80),
            (lambda: memoryview(bytearray(80)), 80),
            (lambda: memoryview(bytearray(80))[8:], 80),
            (lambda: mmap.mmap(-1, 4096), 4096),
            (lambda: np.zeros(20)[10:].data, 160),
        ],
        ids=["bytes", "bytearray", "memoryview", "part of a memoryview", "mmap", "array's memory"],
    )
    def test_other_owners_weigh_the_whole_of_their_buffer(self, make, nbytes):
        array = np.frombuffer(make(), np.uint8)[:8]
        assert owned_bytes(owner_of(array)) == nbytes

    def test_an_owner_by_the_array_interface_weighs_what_it_says(self):
        assert owned_bytes(owner_of(np.asarray(Lender()))) == 80

    def test_maps_of_value_files_weigh_nothing(self, make_chest):
        chest = make_chest()
        for size in (10, LARGE):
            chest["x"] = np.zeros(size)
            chest.spill("x")
            view = chest["x"][2:]
            if owner_of(view) is not view.base:
                continue
            assert owned_bytes(owner_of(view)) == 0

    @pytest.mark.parametrize("dtype", ["M8[s]", [("a", "M8[s]"), ("b", "U3")], "V3", "U4"], ids=str)
    def test_dtypes_that_export_no_buffer_weigh_what_they_hold(self, dtype):
        array = np.zeros(5, dtype)
        assert owned_bytes(owner_of(array[1:])) == array.nbytes
        scalar = array[0]
        inner = np.asarray(array[0:1].reshape(()))
        assert owned_bytes(owner_of(inner)) == array.nbytes
        assert owned_bytes(scalar) in (array.itemsize, 0)


class TestAccounting:
    def test_a_shared_buffer_is_charged_once_until_the_last_leaves(self):
        resident = Pool()
        base = np.zeros(100)
        slots = [slot(at, at) for at in range(5)]
        for at, each in enumerate(slots):
            assert resident.weight(base[at:]) == (0 if at else 800)
            resident.add(each, base[at:])
            assert resident.charged == 800
            resident.check()
        for each in slots[:-1]:
            resident.remove(each)
            assert resident.charged == 800
            resident.check()
        resident.remove(slots[-1])
        assert (resident.charged, resident.count) == (0, 0)
        resident.check()

    @pytest.mark.parametrize("sizes", [(10, 20), (10, LARGE), (LARGE, 10), (LARGE, LARGE + 1)])
    def test_replacing_changes_the_charge_and_keeps_the_count(self, sizes):
        resident = Pool()
        each = slot("x", 1)
        resident.add(each, np.zeros(sizes[0]))
        array = np.zeros(sizes[1])
        replace(resident, each, array)
        assert (resident.charged, resident.count) == (array.nbytes, 1)
        assert each.array is array
        replace(resident, each, array)
        resident.check()
        assert resident.slots() == [each]

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["put", "remove", "victims", "hit"]),
                st.integers(0, 5),
                st.integers(0, 4),
            ),
            max_size=60,
        )
    )
    def test_adds_up_after_any_sequence(self, steps):
        resident = Pool()
        bases = [np.zeros(50), np.zeros(LARGE), np.zeros((4, LARGE)), np.zeros(0)]
        slots = [slot(at) for at in range(6)]
        for version, (what, at, which) in enumerate(steps):
            each = slots[at]
            if what == "put":
                array = bases[which][:] if which < 4 else np.zeros(20 * at)
                each.version = version
                if each.array is None:
                    resident.add(each, array)
                else:
                    replace(resident, each, array)
            elif what == "remove" and each.array is not None:
                resident.remove(each)
            elif what == "hit":
                each.hits += 1
            else:
                found = resident.victims(set(), 1000, 3, small=bool(which % 2))
                assert len(found) <= 3
                assert len(set(found)) == len(found)
                assert all(one.array is not None for one in found)
            resident.check()
            assert set(resident.slots()) == {one for one in slots if one.array is not None}


class TestVictims:
    def fill(self, sizes: list[int]) -> tuple[Pool, list[Slot]]:
        resident = Pool()
        slots = [slot(at, at + 1) for at in range(len(sizes))]
        for each, size in zip(slots, sizes, strict=True):
            resident.add(each, np.zeros(size, np.uint8))
        return resident, slots

    def test_are_the_oldest_that_were_not_used(self):
        resident, slots = self.fill([LARGE] * 5)
        slots[0].hits += 1
        slots[1].hits += 3
        for expected in (2, 3, 4):
            (found,) = resident.victims(set(), 1 << 40, 1, small=True)
            assert found is slots[expected]
            resident.remove(found)
        # Spared once, not for good.
        (found,) = resident.victims(set(), 1 << 40, 1, small=True)
        assert found is slots[0]

    def test_are_several_large_or_small_up_to_the_bytes_wanted(self):
        resident, slots = self.fill([100] * 10 + [LARGE] * 2)
        assert resident.victims(set(), 350, 99, small=True) == slots[:4]
        assert len(resident.victims(set(), 1 << 40, 3, small=True)) == 3
        assert resident.victims(set(), 1 << 40, 99, small=False) == slots[10:]
        assert resident.victims(set(), 1, 99, small=False) == [slots[10]]

    def test_are_as_many_large_ones_as_are_committed_together(self):
        resident, slots = self.fill([TOGETHER_BYTES // 2 - 1] * 4 + [2 * TOGETHER_BYTES])
        assert resident.victims(set(), 1 << 40, 99, small=False) == slots[:3]
        assert resident.victims(set(slots[:4]), 1 << 40, 99, small=False) == slots[4:]

    def test_leave_out_what_is_being_written_or_unfit(self):
        resident, slots = self.fill([100] * 4)
        slots[0].writing = slots[0].version
        found = resident.victims({slots[1]}, 1 << 40, 99, small=True)
        assert set(found) == {slots[2], slots[3]}
        assert resident.victims(set(slots), 1 << 40, 99, small=True) == []
        assert Pool().victims(set(), 1, 1, small=True) == []

    def test_of_a_set_in_which_all_were_used_are_still_found(self):
        resident, slots = self.fill([LARGE] * 3)
        for each in slots:
            each.hits += 1
        assert resident.victims(set(), 1, 1, small=True)
