"""A chest beside a plain dict: whatever is done to both, they hold the same."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

import arraychest
from arraychest.engine import deletions, flusher
from arraychest.files import files, place, room, spares, writing
from arraychest.formats import pack
from arraychest.memory import memtable, stored_keys, views
from arraychest.platform import space
from tests.faults import RESERVING
from tests.support import assert_identical, audit

# Equal keys of different types among them.
KEYS = st.sampled_from(
    [1, True, 1.0, "1", "a", "b", "c/d", ("c", "d"), b"a", None, 2.5, "", (1, ("x",)), 7, 8, 9]
)
# Without `explain`, which traces every line, and without the database of earlier failures: what
# background threads do differs from run to run.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)

# Elements of one byte: nothing, packed, at the threshold, files of their own.
SIZES = st.sampled_from([0, 1, 64, 1000, 5000, (1 << 16) - 1, 1 << 16, 100_000])
# Bytes: nothing fits, next to nothing, a few values, all.
BUDGETS = st.sampled_from([0, 3000, 150_000, 400_000, 1 << 30])

# Constants that hide whole branches from a small test, and small ones instead.
NARROW = [
    (views, "MAX_KEPT_VIEWS", 2),
    (memtable, "MAX_KNOWN", 3),
    (stored_keys, "_PAGE", 2),
    (memtable, "BATCH_VALUES", 2),
    (flusher, "BATCH_VALUES", 2),
    (deletions, "_MOST_ENTRIES", 2),
    (pack, "PACK_BYTES", 2000),
]


def copy_of(value: Any) -> Any:
    if type(value) is list:
        return [copy_of(each) for each in value]
    return value.copy(order="A") if isinstance(value, np.ndarray) else value


class FaultyOs:
    """The module `os` as `arraychest.files` sees it, whose writes fail on command."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if self.failing.get(name):

            def fail(*args: Any, **options: Any) -> Any:
                if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                    return os.open(*args, **options)  # to read, which needs no room
                raise OSError(self.failing[name], os.strerror(self.failing[name]))

            return fail
        return getattr(os, name)


class ChestMachine(RuleBasedStateMachine):
    """Everything one thread can do to a chest."""

    narrow = False
    named = True

    handed_out = Bundle("handed_out")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="model-")
        self.path = os.path.join(self.folder, "test.chest") if self.named else None
        self.model: dict[Any, Any] = {}
        self.faults = FaultyOs()
        self.stamp = 0
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []
        self.undo = contextlib.ExitStack()
        for module in (files, place, room, space, spares, writing):
            self.replace(module, "os", self.faults)
        if self.narrow:
            for module, name, value in NARROW:
                self.replace(module, name, value)

    def replace(self, module: Any, name: str, value: Any) -> None:
        self.undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    @initialize(
        budget=BUDGETS,
        on_put=st.sampled_from(["freeze", "copy", "share"]),
        mmap_mode=st.sampled_from(["r", "c"]),
        compression=st.sampled_from(["auto", "lz4", "zstd"]),
    )
    def open(self, budget, on_put, mmap_mode, compression):
        self.options = {
            "on_put": on_put,
            "mmap_mode": mmap_mode,
            "available_memory": budget,
            "compression": compression,
        }
        self.chest = arraychest.Chest(path=self.path, **self.options)

    # --- values ----------------------------------------------------------------------------

    def new_value(self, size: int, shape: str) -> Any:
        """A value that no other one equals (unless it is of no or one byte)."""
        self.stamp += 1
        array = np.random.default_rng(self.stamp).integers(0, 256, size, dtype=np.uint8)
        if shape == "scalar":
            return np.int64(self.stamp)
        if shape == "fortran" and size % 2 == 0:
            return np.asfortranarray(array.reshape(2, -1))
        if shape == "view":
            return np.concatenate([array, array])[:size]
        if shape == "tree":
            return [self.stamp, array, "x" * (size % 50), array[size // 2 :], array]
        if shape == "no array":
            return [None, self.stamp]
        return array

    def put(self, put: Any, key: Any, value: Any) -> bool:
        """Whether the put did not fail, which it may only while writes fail."""
        try:
            put(key, value)
        except arraychest.SpillError:
            assert self.faults.failing or self.recovering
            return False
        return True

    recovering = False

    shapes = st.sampled_from(["plain", "plain", "fortran", "view", "scalar", "tree", "no array"])

    # --- rules -----------------------------------------------------------------------------

    @rule(key=KEYS, size=SIZES, shape=shapes)
    def set(self, key, size, shape):
        value = self.new_value(size, shape)
        expected = copy_of(value)
        if self.put(self.chest.__setitem__, key, value):
            self.model[key] = expected
        self.recovering = bool(self.faults.failing)

    @rule(key=KEYS, other=KEYS)
    def set_what_was_got(self, key, other):
        if other not in self.model:
            return
        if self.put(self.chest.__setitem__, key, self.chest[other]):
            self.model[key] = self.model[other]

    @rule(target=handed_out, key=KEYS)
    def get(self, key):
        if key not in self.model:
            with pytest.raises(KeyError):
                self.chest[key]
            return multiple()
        found = self.chest[key]
        assert_identical(found, self.model[key])
        return found, self.model[key]

    @rule(view=handed_out)
    def a_view_is_as_it_was(self, view):
        found, expected = view
        assert_identical(found, expected)

    @rule(key=KEYS)
    def write_to_what_was_got(self, key):
        if key not in self.model:
            return
        found = self.chest[key]
        if type(found) is list:
            found[0] = "another"
            found, *_ = [each for each in found if isinstance(each, np.ndarray)] or [np.empty(0)]
        if not found.ndim:
            return
        if self.options["mmap_mode"] == "c":
            found[...] = 77
        elif found.size:
            with pytest.raises(ValueError, match="read-only"):
                found[...] = 77
        assert_identical(self.chest[key], self.model[key])

    @rule(key=KEYS)
    def delete(self, key):
        if key in self.model:
            del self.model[key]
            del self.chest[key]
        else:
            with pytest.raises(KeyError):
                del self.chest[key]

    @rule(key=KEYS)
    def discard(self, key):
        self.model.pop(key, None)
        self.chest.discard(key)

    @rule(key=KEYS)
    def pop(self, key):
        found = self.chest.pop(key, None)
        if key in self.model:
            assert_identical(found, self.model.pop(key))
        else:
            assert found is None

    @rule()
    def popitem(self):
        if not self.model:
            with pytest.raises(KeyError):
                self.chest.popitem()
            return
        key, value = self.chest.popitem()
        expected_key, expected = self.model.popitem()
        assert (type(key), key) == (type(expected_key), expected_key)
        assert_identical(value, expected)

    @rule(key=KEYS, size=SIZES)
    def setdefault(self, key, size):
        value = self.new_value(size, "plain")
        expected = copy_of(value)
        try:
            found = self.chest.setdefault(key, value)
        except arraychest.SpillError:
            assert self.faults.failing or self.recovering
            return
        assert_identical(found, self.model.setdefault(key, expected))

    @rule(pairs=st.lists(st.tuples(KEYS, SIZES, shapes), max_size=5), overwrite=st.booleans())
    def update(self, pairs, overwrite):
        if self.faults.failing or self.recovering:
            return  # part of it would be put
        new = [(key, self.new_value(size, shape)) for key, size, shape in pairs]
        for key, value in new:
            if overwrite or key not in self.model:
                self.model[key] = copy_of(value)
        self.chest.update(new, overwrite=overwrite)

    @rule(
        pairs=st.lists(st.tuples(KEYS, SIZES, shapes), max_size=5),
        overwrite=st.booleans(),
        flushed=st.booleans(),
    )
    def update_from_another_chest(self, pairs, overwrite, flushed):
        if self.faults.failing or self.recovering:
            return
        with arraychest.Chest(available_memory=100_000) as other:
            copied: dict[Any, Any] = {}
            for key, size, shape in pairs:
                value = self.new_value(size, shape)
                copied[key] = copy_of(value)
                other[key] = value
            if flushed:
                other.flush()
            self.chest.update(other, overwrite=overwrite)
            # It goes on with its own packs, which must not show here.
            for key in list(copied)[:2]:
                other[key] = self.new_value(1000, "plain")
            other.flush()
        for key, value in copied.items():
            if overwrite or key not in self.model:
                self.model[key] = value

    @rule(changes=st.lists(st.tuples(st.sampled_from(["del", "set", "get", "spill"]), SIZES)))
    def iterate_while_changing(self, changes):
        """A key that is there throughout comes exactly once, in order."""
        before = list(self.model)
        gone = set()
        seen = []
        changes = iter(changes)
        for key in self.chest:
            seen.append(key)
            assert key in self.model
            what, size = next(changes, ("get", 0))
            if what == "del":
                del self.chest[key]
                del self.model[key]
                gone.add(key)
            elif what == "set":
                value = self.new_value(size, "plain")
                if self.put(self.chest.__setitem__, key, value):
                    self.model[key] = copy_of(value)
            elif what == "spill" and not self.faults.failing:
                self.chest.spill(key)
            else:
                assert_identical(self.chest[key], self.model[key])
        assert seen == before

    @rule(key=KEYS)
    def spill(self, key):
        if key not in self.model:
            with pytest.raises(KeyError):
                self.chest.spill(key)
            return
        try:
            self.chest.spill(key)
        except arraychest.SpillError:
            assert self.faults.failing or self.recovering
            assert key in self.chest.inmem
        else:
            assert key not in self.chest.inmem

    @rule(keys=st.lists(KEYS, max_size=4))
    def prefetch(self, keys):
        if all(key in self.model for key in keys):
            self.chest.prefetch(keys)
        else:
            with pytest.raises(KeyError):
                self.chest.prefetch(keys)

    @rule(budget=BUDGETS)
    def resize_the_budget(self, budget):
        try:
            self.chest.available_memory = budget
        except arraychest.SpillError:
            assert self.faults.failing or self.recovering
        else:
            if not self.faults.failing:
                assert self.chest.memory_usage <= budget
        self.options["available_memory"] = budget
        assert self.chest.available_memory == budget

    @rule()
    def flush(self):
        try:
            self.chest.flush()
        except arraychest.SpillError as error:
            assert self.faults.failing or self.recovering
            assert isinstance(error.__cause__, OSError)
        else:
            self.recovering = bool(self.faults.failing)
            assert self.chest.memory_usage == 0
            assert not self.chest.inmem

    @rule()
    def compact(self):
        try:
            self.chest.compact()
        except OSError:
            assert self.faults.failing or self.recovering
        else:
            # What a failed spill wrote in vain may lie before what was moved.
            if not self.faults.failing and self.chest.compact():
                assert self.chest.compact() == 0

    @precondition(lambda self: not self.faults.failing)
    @rule(
        call=st.sampled_from([RESERVING, "pwritev", "open"]),
        number=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EMFILE]),
    )
    def let_writes_fail(self, call, number):
        self.faults.failing[call] = number

    @rule()
    def let_writes_succeed(self):
        self.recovering = self.recovering or bool(self.faults.failing)
        self.faults.failing.clear()

    @precondition(lambda self: self.named)
    @rule(mmap_mode=st.sampled_from(["r", "c"]))
    def reopen(self, mmap_mode):
        self.let_writes_succeed()
        self.flush()  # a write that was under way may still fail
        self.recovering = False
        self.chest.close()
        audit(self.path)
        self.options["mmap_mode"] = mmap_mode
        with arraychest.open(self.path, "r") as chest:
            assert list(chest) == list(self.model)
            for key, value in self.model.items():
                assert_identical(chest[key], value)
        self.chest = arraychest.Chest(path=self.path, **self.options)

    # --- invariants ------------------------------------------------------------------------

    @invariant()
    def keys_are_the_same(self):
        assert len(self.chest) == len(self.model)
        assert [(type(key), key) for key in self.chest] == [(type(key), key) for key in self.model]
        assert list(reversed(self.chest)) == list(reversed(self.model))
        for key in ("a", 1.0, "absent", ("c", "d")):
            assert (key in self.chest) == (key in self.model)

    @invariant()
    def what_is_resident_adds_up(self):
        writer = self.chest._engine.session.writer
        with writer.lock:
            writer.resident.check()
        inmem = self.chest.inmem
        assert inmem.keys() <= self.model.keys()
        for key, value in inmem.items():
            assert_identical(value, self.model[key])

    @invariant()
    def values_are_the_same(self):
        # One each time: looking at all would make everything a hit.
        for at, (key, value) in enumerate(self.model.items()):
            if at == self.stamp % max(len(self.model), 1):
                assert_identical(self.chest[key], value)

    def teardown(self):
        try:
            if not hasattr(self, "chest"):
                return
            self.let_writes_succeed()
            for key, value in self.model.items():
                assert_identical(self.chest[key], value)
            self.flush()  # a write that was under way may still fail
            self.chest.close()
            if self.named:
                audit(self.path)
                with arraychest.open(self.path, "r") as chest:
                    assert list(chest) == list(self.model)
                    for key, value in self.model.items():
                        assert_identical(chest[key], value)
        finally:
            self.undo.close()
            if hasattr(self, "chest"):
                self.chest.close()
            shutil.rmtree(self.folder)


def steps(examples: int) -> settings:
    stress = settings.default.max_examples > 100
    return settings(
        max_examples=examples * (20 if stress else 1),
        stateful_step_count=40,
        phases=PHASES,
    )


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("named", [False, True], ids=["temporary", "named"])
def test_a_chest_is_a_dict_whatever_happens(narrow, named):
    machine = type("Machine", (ChestMachine,), {"narrow": narrow, "named": named})
    run_state_machine_as_test(machine, settings=steps(40 if named else 25))


@pytest.mark.stress
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_a_chest_is_a_dict_over_long_runs(narrow):
    machine = type("Machine", (ChestMachine,), {"narrow": narrow})
    long = settings(max_examples=300, stateful_step_count=300, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=long)
