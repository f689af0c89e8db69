"""Options of cached functions: what cannot be kept, what is still good, and how results come."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import pickle
import time
import warnings
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import ArrayChestWarning, Chest, Kept
from arraychest.cli import main
from arraychest.memoize.options import CacheOptions
from tests.support import run_python

SIZES = (100, 100_000)  # a value in a pack, and one with a file of its own


class TestAResultThatCannotBeKept:
    def test_is_returned_with_one_warning(self, make_chest, path):
        chest = make_chest(path=path)
        calls = []

        @chest.cache
        def opaque(x: int) -> object:
            calls.append(x)
            return object()

        with pytest.warns(ArrayChestWarning, match="result of .*opaque cannot be kept") as told:
            found = [opaque(1), opaque(1), opaque(2)]
        assert all(type(each) is object for each in found)
        assert len(told) == 1
        assert calls == [1, 1, 2]
        assert not len(chest)

    def test_of_a_coroutine_is_returned(self, chest):
        @chest.cache
        async def opaque() -> object:
            return object()

        with pytest.warns(ArrayChestWarning, match="cannot be kept"):
            assert type(asyncio.run(opaque())) is object

    def test_is_returned_where_warnings_are_errors(self, chest):
        @chest.cache
        def opaque() -> object:
            return object()

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert type(opaque()) is object


class TestSwitches:
    def test_nothing_is_looked_for_or_kept_where_caching_is_disabled(self, chest):
        calls = []

        @chest.cache
        def twice(x: int) -> int:
            calls.append(x)
            return 2 * x

        assert twice(1) == 2
        with arraychest.caching_disabled():
            assert twice(1) == 2
            assert twice(2) == 4
        assert calls == [1, 1, 2]
        assert twice(1) == 2
        assert calls == [1, 1, 2]
        assert len(chest) == 1

    def test_a_function_that_is_not_enabled_is_called(self, chest):
        class Untold:
            __slots__ = ("file",)

        @chest.cache(enabled=False)
        def length(x: object) -> int:
            return 5

        # Not even its arguments are looked at.
        assert length(Untold()) == 5
        assert not len(chest)

    def test_signatures_name_every_option(self, chest):
        assert set(CacheOptions.__annotations__) <= set(inspect.signature(chest.cache).parameters)
        with pytest.raises(TypeError, match="did you mean 'ignore_state'"):
            chest.cache(lambda: 1, ignorestate=["x"])


class TestValidation:
    def test_is_told_age_time_and_size(self, chest):
        told: list[Kept] = []

        def good(kept: Kept) -> bool:
            told.append(kept)
            return kept.age < 3600

        @chest.cache(validate=good)
        def ramp(n: int) -> Any:
            time.sleep(0.01)
            return np.arange(float(n))

        ramp(50), ramp(50)
        chest.flush()
        assert ramp.check(50)
        assert len(told) == 2
        for kept in told:
            assert 0 <= kept.age < 60
            assert 0.01 <= kept.seconds < 10
            assert kept.nbytes == 400
        assert ramp.stats().hits == 1

    def test_decides_whether_a_result_is_computed_again(self, chest):
        good = [True]

        @chest.cache(validate=lambda kept: good[0])
        def now() -> int:
            return time.perf_counter_ns()

        first = now()
        assert now() == first
        good[0] = False
        assert not now.check()
        assert now() > first


class TestPrivateResults:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("stored", [False, True])
    def test_are_writable_and_nobody_elses(self, chest, size, stored):
        @chest.cache(mmap_mode="c")
        def zeros(n: int) -> dict[str, Any]:
            return {"x": np.zeros(n), "y": [np.ones(3)]}

        zeros(size)
        if stored:
            chest.flush()
        mine = zeros(size)
        mine["x"][:] = 7
        mine["y"][0][0] = 7
        again = zeros(size)
        assert not again["x"].any()
        assert again["y"][0].tolist() == [1, 1, 1]
        assert not chest[zeros.key(size)]["x"].flags.writeable

    def test_of_pandas_can_be_changed(self, chest):
        pandas = pytest.importorskip("pandas")

        @chest.cache(mmap_mode="c")
        def table() -> Any:
            return pandas.DataFrame({"a": np.zeros(10_000), "b": np.ones(10_000)})

        table()
        chest.flush()
        mine = table()
        mine.iloc[0, 0] = 5
        mine["b"] += 1
        assert float(table().iloc[0, 0]) == 0

    def test_read_only_ones_of_a_chest_with_private_arrays(self, make_chest):
        chest = make_chest(mmap_mode="c")

        @chest.cache(mmap_mode="r")
        def zeros() -> Any:
            return np.zeros(100)

        zeros()
        assert not zeros().flags.writeable


def test_equal_frames_are_one_call_however_their_columns_lie_together(chest):
    pandas = pytest.importorskip("pandas")

    @chest.cache
    def total(frame: Any) -> float:
        return 1.0

    columns = {
        "a": [1.0, 2.0], "b": [1, 2], "c": ["x", "y"], "d": [3.0, 4.0],
        "e": pandas.to_datetime(["2020-01-01", "2021-01-01"]),
        "f": pandas.array([1, None], dtype="Int64"),
    }  # fmt: skip
    whole = pandas.DataFrame(columns)
    for order in ("abcdef", "fedcba", "dacebf"):
        other = pandas.DataFrame(index=whole.index)
        for name in order:
            other[name] = columns[name]
        assert total.key(other[list(columns)]) == total.key(whole)
    assert total.key(whole[["b", "a"]]) != total.key(whole[["a", "b"]])


def test_a_handle_passes_a_result_on(path, make_chest):
    chest = make_chest(path=path)
    calls = []

    @chest.cache
    def ramp(n: int) -> Any:
        calls.append(n)
        return np.arange(float(n))

    handle = ramp.handle(100_000)
    assert calls == [100_000]
    assert ramp.handle(100_000).array()[7] == 7
    assert calls == [100_000]
    sent = pickle.dumps(handle)
    assert len(sent) < 1000
    run_python(
        "import sys, pickle\n"
        "handle = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "assert handle.array().sum() == sum(range(100_000))",
        sent.hex(),
    )


def test_what_a_function_says_goes_through_logging(chest, caplog):
    @chest.cache(verbose=1)
    def one() -> int:
        return 1

    with caplog.at_level(logging.INFO, "arraychest.cache"):
        one()
    assert [record.name for record in caplog.records] == ["arraychest.cache"] * 2
    assert "is computed" in caplog.records[0].getMessage()


class TestReduce:
    @pytest.fixture
    def results(self, path):
        with Chest(path) as chest:

            @chest.cache
            def ramp(n: int) -> Any:
                return np.full(20_000, float(n))

            chest["mine"] = np.zeros(20_000)
            for n in range(5):
                ramp(n)
            chest.flush()
            for n, key in enumerate(list(chest)):
                os.utime(chest.key_to_filename(key), (1e9 + n, 1e9 + n))
            yield chest, ramp

    def test_removes_what_was_not_used_for_longest_first(self, results):
        chest, ramp = results
        assert chest.reduce(entries=3) == 2
        assert [ramp.check(n) for n in range(5)] == [False, False, True, True, True]
        assert chest.reduce(entries=3) == 0
        assert chest.reduce(bytes="200 kB") == 2
        assert [ramp.check(n) for n in range(5)] == [False] * 4 + [True]
        assert "mine" in chest
        assert chest.reduce(entries=0) == 1
        assert list(chest) == ["mine"]

    def test_by_age(self, results):
        chest, ramp = results
        os.utime(chest.key_to_filename(ramp.key(3)))
        assert chest.reduce(age=3600) == 4
        assert ramp.check(3)

    def test_of_everything(self, results):
        chest, _ = results
        assert chest.reduce(entries=5, everything=True) == 1
        assert "mine" not in chest

    def test_limits_are_checked(self, results):
        chest, _ = results
        for wrong in ({"entries": -1}, {"age": -1}, {"bytes": "-1"}):
            with pytest.raises(ValueError, match="expected"):
                chest.reduce(**wrong)
        assert len(chest) == 6

    def test_as_a_command(self, results, path, capsys):
        chest, _ = results
        chest.close()
        assert main(["reduce", path, "--entries", "4"]) == 0
        assert capsys.readouterr().out == "1 entry removed\n"
        assert main(["reduce", path, "--days", "1", "--everything"]) == 0
        assert capsys.readouterr().out == "5 entries removed\n"
        assert main(["reduce", path]) == 1
        assert "expected --bytes, --entries or --days" in capsys.readouterr().err
