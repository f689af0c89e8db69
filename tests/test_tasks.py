"""Tasks of one event loop, and threads, share a chest: whose is a transaction, whose a lock."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest, DeadlockError
from arraychest.sharing.contexts import current_context
from tests.faults import Say, in_child
from tests.support import audit

LARGE = arraychest.PACK_THRESHOLD // 8 + 10
SMALL = 40
BEFORE = {"small": 1, "large": 2, "gone": 3}


def filled(number: float, size: int = SMALL) -> np.ndarray:
    return np.full(size, float(number))


def contents(chest: Chest) -> dict[Any, float]:
    return {key: float(array[0]) for key, array in chest.items()}


@pytest.fixture(params=["named", "temporary"])
def chest(request: Any, path: str) -> Any:
    with Chest(path=path if request.param == "named" else None) as made:
        made["small"] = filled(1)
        made["large"] = filled(2, LARGE)
        made["gone"] = filled(3)
        yield made
        assert not made._engine.session.transactions.by_context
        assert made._index is made._engine.session.index.slots
        made._engine.session.resident.check()
    if request.param == "named":
        audit(path)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine; what hangs fails."""

    async def timed() -> Any:
        async with asyncio.timeout(20):
            return await main()

    return asyncio.run(timed())


class TestContexts:
    def test_is_one_for_a_task_and_what_it_awaits(self):
        async def awaited() -> Any:
            return current_context()

        async def main() -> None:
            mine = current_context()
            assert await awaited() is mine
            await asyncio.sleep(0)
            assert current_context() is mine
            assert await asyncio.create_task(awaited()) is not mine
            assert await asyncio.to_thread(current_context) is not mine
            assert (await asyncio.gather(awaited()))[0] is not mine

        run(main)

    def test_is_one_for_a_thread(self):
        mine = current_context()
        assert current_context() is mine
        assert contextvars.copy_context().run(current_context) is not mine
        with ThreadPoolExecutor(1) as pool:
            first, second = pool.submit(current_context), pool.submit(current_context)
            assert first.result() is second.result() is not mine
        assert current_context() is mine


class TestTransactions:
    @pytest.mark.parametrize("size", [SMALL, LARGE])
    @pytest.mark.parametrize("fails", [False, True])
    def test_another_task_neither_sees_nor_joins_it(self, chest, size, fails):
        async def first(begun: asyncio.Event, done: asyncio.Event) -> None:
            with chest.transaction():
                chest["small"] = filled(10, size)
                chest["own"] = filled(11, size)
                del chest["gone"]
                begun.set()
                await done.wait()
                assert contents(chest)["own"] == 11
                assert chest["small"][0] == 10
                assert "gone" not in chest
                assert "put" not in chest or chest["put"][0] == 20
                if fails:
                    raise ZeroDivisionError

        async def second(begun: asyncio.Event, done: asyncio.Event) -> None:
            await begun.wait()
            assert contents(chest) == BEFORE
            assert list(reversed(chest)) == ["gone", "large", "small"]
            assert len(chest) == 3
            assert "own" not in chest
            assert chest.get("own") is None
            assert chest["small"][0] == 1
            chest["put"] = filled(20, size)
            chest["popped"] = filled(21, size)
            assert chest.pop("popped")[0] == 21
            assert chest.setdefault("set", filled(22))[0] == 22
            chest.update({"updated": filled(23, LARGE)})
            with chest.edit("large") as array:
                array[:] = 24
            chest.flush()
            chest.compact()
            assert "own" not in chest
            done.set()

        async def main() -> list[Any]:
            events = asyncio.Event(), asyncio.Event()
            return await asyncio.gather(first(*events), second(*events), return_exceptions=True)

        failed, other = run(main)
        assert other is None
        assert isinstance(failed, ZeroDivisionError) == fails
        after = {"small": 1, "large": 24, "gone": 3, "put": 20, "set": 22, "updated": 23}
        if not fails:
            after |= {"small": 10, "own": 11}
            del after["gone"]
        assert contents(chest) == after

    def test_what_another_task_clears_and_pops_is_not_the_transactions(self, chest):
        async def main() -> None:
            with chest.transaction():
                chest["own"] = filled(11)

                async def other() -> None:
                    assert chest.popitem()[0] == "gone"
                    chest.clear()
                    assert len(chest) == 0

                await asyncio.create_task(other())
                assert contents(chest) == {"own": 11}
            assert contents(chest) == {"own": 11}

        run(main)

    def test_many_tasks_have_one_each(self, chest):
        async def work(number: int) -> None:
            with chest.transaction():
                chest["mine", number] = filled(number, LARGE if number % 3 else SMALL)
                await asyncio.sleep(0)
                chest["shared"] = filled(number)
                await asyncio.sleep(0)
                assert chest["shared"][0] == number
                others = [key for key in chest if type(key) is tuple and key[1] % 2 == 1]
                assert others == ([("mine", number)] if number % 2 else [])
                await asyncio.sleep(0.001)
                if number % 2:
                    raise ZeroDivisionError

        async def main() -> list[Any]:
            return await asyncio.gather(*map(work, range(20)), return_exceptions=True)

        ends = run(main)
        assert [type(end) for end in ends] == [type(None), ZeroDivisionError] * 10
        expected = {**BEFORE, **{("mine", n): n for n in range(0, 20, 2)}}
        last = contents(chest)
        assert last.pop("shared") % 2 == 0
        assert last == expected

    @pytest.mark.parametrize("how", ["task", "group", "gather", "thread", "callback"])
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("fails", [False, True])
    def test_what_is_started_within_it_is_not_in_it(self, chest, how, late, fails):
        """Each of them runs in a copy of the context of the task that the transaction is of."""
        ended = threading.Event()

        def put() -> None:
            assert "own" not in chest or ended.is_set()
            chest["child"] = filled(5)

        async def put_in_task() -> None:
            if late:
                while not ended.is_set():
                    await asyncio.sleep(0.001)
            put()

        def put_in_thread() -> None:
            if late:
                assert ended.wait(20)
            put()

        async def main() -> None:
            loop = asyncio.get_running_loop()
            started: list[Any] = []
            try:
                with chest.transaction():
                    chest["own"] = filled(4)
                    if how == "task":
                        started.append(asyncio.create_task(put_in_task()))
                    elif how == "gather":
                        started.append(asyncio.gather(put_in_task()))
                    elif how == "thread":
                        started.append(asyncio.create_task(asyncio.to_thread(put_in_thread)))
                    elif how == "callback":
                        future = loop.create_future()
                        started.append(future)
                        wait = 0.05 if late else 0
                        loop.call_later(wait, lambda: (put(), future.set_result(None)))
                    elif late:
                        started.append(asyncio.create_task(put_in_task()))
                    else:
                        async with asyncio.TaskGroup() as group:
                            group.create_task(put_in_task())
                    if not late:
                        await asyncio.gather(*started)
                        assert "child" in chest  # committed by another
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            finally:
                ended.set()
            await asyncio.gather(*started)

        run(main)
        after = {**BEFORE, "child": 5}
        assert contents(chest) == (after if fails else {**after, "own": 4})

    def test_a_cancelled_task_rolls_back(self, chest):
        async def work() -> None:
            with chest.transaction():
                chest["own"] = filled(4, LARGE)
                del chest["small"]
                await asyncio.sleep(60)

        async def main() -> None:
            task = asyncio.create_task(work())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work(), 0.01)
            assert contents(chest) == BEFORE

        run(main)

    def test_contexts_by_hand(self, chest):
        """As other event loops run their tasks, in turns, in one thread."""
        first, second = contextvars.Context(), contextvars.copy_context()
        one, two = chest.transaction(), chest.transaction()
        first.run(one.__enter__)
        second.run(two.__enter__)
        first.run(chest.__setitem__, "one", filled(1))
        second.run(chest.__setitem__, "two", filled(2, LARGE))
        copied = first.copy()
        assert first.run(list, chest) == [*BEFORE, "one"]
        assert second.run(list, chest) == [*BEFORE, "two"]
        assert copied.run(list, chest) == list(BEFORE)
        assert list(chest) == list(BEFORE)
        first.run(one.__exit__, None, None, None)
        copied.run(chest.__setitem__, "copied", filled(3))
        second.run(two.__exit__, ValueError, ValueError(), None)
        assert contents(chest) == {**BEFORE, "one": 1, "copied": 3}

    def test_an_end_in_another_context_is_the_end(self, chest):
        """As of an asynchronous generator that its loop closes, in a task of its own."""

        async def values() -> Any:
            with chest.transaction():
                chest["own"] = filled(4)
                yield 1
                yield 2

        async def main() -> None:
            generator = values()
            assert await anext(generator) == 1
            await asyncio.create_task(generator.aclose())
            assert contents(chest) == BEFORE
            chest["after"] = filled(5)

        run(main)
        assert contents(chest) == {**BEFORE, "after": 5}

    def test_a_generator_lends_it_to_whoever_runs_it(self, chest):
        def changes() -> Iterator[None]:
            with chest.transaction():
                chest["own"] = filled(4)
                yield

        running = changes()
        next(running)
        assert contents(chest) == {**BEFORE, "own": 4}
        chest["lent"] = filled(5)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(contents, chest).result() == BEFORE
        running.close()
        assert contents(chest) == BEFORE

    def test_one_that_is_left_behind_is_rolled_back(self, chest):
        def changes() -> Iterator[None]:
            with chest.transaction():
                chest["own"] = filled(4)
                yield

        running = changes()
        next(running)
        with pytest.raises(RuntimeError, match="ended first"), chest.transaction():
            chest["inner"] = filled(5)
            running.close()
        del running
        assert contents(chest) == BEFORE

    def test_inner_ones_are_of_the_same_task(self, chest):
        async def inner() -> None:
            with chest.transaction():
                chest["inner"] = filled(5)
                await asyncio.sleep(0)

        async def main() -> None:
            with pytest.raises(ZeroDivisionError), chest.transaction():
                await inner()
                assert "inner" in chest
                await asyncio.create_task(inner_of_a_task())
                raise ZeroDivisionError

        async def inner_of_a_task() -> None:
            assert "inner" not in chest
            with chest.transaction():
                chest["other"] = filled(6)

        run(main)
        assert contents(chest) == {**BEFORE, "other": 6}

    def test_each_chest_has_its_own(self, chest):
        with Chest() as other:

            async def main() -> None:
                with pytest.raises(ZeroDivisionError), chest.transaction():
                    chest["own"] = filled(4)
                    other["other"] = chest["own"] * 2
                    with other.transaction():
                        other["second"] = filled(9, LARGE)
                    chest.update(other)
                    await asyncio.sleep(0)
                    raise ZeroDivisionError

            run(main)
            assert contents(other) == {"other": 8, "second": 9}
            assert other._index is other._engine.session.index.slots
        assert contents(chest) == BEFORE

    def test_threads_of_a_pool_have_none_left_over(self, chest):
        def fail() -> None:
            with chest.transaction():
                chest["own"] = filled(4)
                raise ZeroDivisionError

        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError):
                pool.submit(fail).result()
            pool.submit(chest.__setitem__, "after", filled(5)).result()
        assert contents(chest) == {**BEFORE, "after": 5}

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_whatever_ends_it_is_undone(self, chest, error):
        with pytest.raises(error), chest.transaction():
            chest["own"] = filled(4)
            raise error
        assert contents(chest) == BEFORE

    def test_a_forked_child_leaves_its_parents_alone(self, chest, path):
        chest.flush()

        def child(say: Say) -> None:
            say("own" in chest)
            try:
                manager.__exit__(ValueError, ValueError(), None)
            except ValueError:
                say("undone")
            os._exit(0)

        manager = chest.transaction()
        manager.__enter__()
        chest["own"] = filled(4, LARGE)
        in_child(child)
        assert chest["own"][0] == 4  # its file is there
        manager.__exit__(None, None, None)
        assert contents(chest) == {**BEFORE, "own": 4}

    def test_cached_coroutines_within(self, chest):
        calls = []

        @chest.cache(version=1)
        async def double(number: int) -> np.ndarray:
            calls.append(number)
            await asyncio.sleep(0.002)
            return filled(2 * number)

        async def transaction(number: int, fails: bool) -> None:
            with chest.transaction():
                assert (await double(number))[0] == 2 * number
                assert (await double(number))[0] == 2 * number
                if fails:
                    raise ZeroDivisionError

        async def main() -> None:
            ends = await asyncio.gather(
                transaction(1, True), transaction(2, False), return_exceptions=True
            )
            assert [type(end) for end in ends] == [ZeroDivisionError, type(None)]
            assert sorted(calls) == [1, 2]
            assert (await double(1))[0] == 2
            assert (await double(2))[0] == 4
            assert sorted(calls) == [1, 1, 2]

        run(main)


def test_one_transaction_begins_as_another_ends(path, monkeypatch):
    """The end of one must not lead the other past what it has changed itself."""
    with Chest({"x": filled(1)}, path=path) as chest:
        chest.flush()
        assert chest["x"][0] == 1  # a get finds it at hand from here on
        begun, proceed = threading.Event(), threading.Event()
        real = chest._engine.session.transactions.end
        found = []

        def work() -> None:
            with chest.transaction():
                chest["x"] = filled(2)
                begun.set()
                assert proceed.wait(20)
                found.append(float(chest["x"][0]))

        thread = threading.Thread(target=work)

        def end(*changes: Any) -> Any:
            was_last = real(*changes)
            monkeypatch.undo()
            thread.start()
            begun.wait(0.3)  # it can only begin once the first one has ended
            return was_last

        monkeypatch.setattr(chest._engine.session.transactions, "end", end)
        with chest.transaction():
            pass
        assert begun.wait(20)
        proceed.set()
        thread.join(20)
        assert found == [2]
        assert chest["x"][0] == 2


def test_others_see_a_commit_at_once_or_not_at_all(path):
    """Within one chest: each transaction counts both up."""
    with Chest(path=path) as chest:
        chest.update({"a": filled(0), "b": filled(0, LARGE)})
        stop = threading.Event()
        wrong = []

        def watch() -> None:
            while not stop.is_set():
                a = chest["a"][0]
                b = chest["b"][0]
                if a > b:
                    wrong.append((a, b))

        threads = [threading.Thread(target=watch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 60):
            with chest.transaction():
                chest["a"] = filled(number)
                chest["b"] = filled(number, LARGE)
                if number % 7 == 0:
                    chest["b"] = filled(number, LARGE)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong


class TestMemory:
    def test_what_an_open_transaction_keeps_is_charged(self, chest):
        before = chest.memory_usage
        with pytest.raises(ZeroDivisionError), chest.transaction():
            for number in range(20):
                chest[number] = filled(number)
            assert chest.memory_usage == before + 20 * SMALL * 8
            chest[3] = filled(3, 2 * SMALL)
            del chest[4]
            assert chest.memory_usage == before + 20 * SMALL * 8
            shared = chest[5]
            chest["again"] = shared
            assert chest.memory_usage == before + 20 * SMALL * 8  # each buffer once
            chest._engine.session.resident.check()
            raise ZeroDivisionError
        assert chest.memory_usage == before
        chest._engine.session.resident.check()
        with chest.transaction():
            chest["x"] = filled(1)
        assert chest.memory_usage == before

    def test_it_stays_within_the_budget_beside_others(self, path):
        budget = 1 << 20
        with Chest(path=path, available_memory=budget) as chest:
            size = 2000
            managers = []
            for number in range(12):
                context = contextvars.Context()
                manager = chest.transaction()
                context.run(manager.__enter__)
                managers.append((number, context, manager))
            for count in range(20):
                for number, context, _ in managers:
                    context.run(chest.__setitem__, (number, count), filled(count, size))
                    assert chest.memory_usage <= budget
                chest["outside", count] = filled(count, size)
                assert chest.memory_usage <= budget
            chest["large"] = filled(1, 100_000)
            assert chest.memory_usage <= budget
            for number, context, manager in managers:
                error = ValueError() if number % 2 else None
                context.run(manager.__exit__, type(error) if error else None, error, None)
            assert len(chest) == 6 * 20 + 20 + 1
            assert all(chest[4, count][0] == count for count in range(20))
        audit(path)


class TestLocks:
    def test_a_task_waits_for_another_while_the_loop_goes_on(self, chest):
        order = []

        async def work(name: str) -> None:
            async with chest.lock("small"):
                order.append(name)
                value = chest["small"][0]
                await asyncio.sleep(0.01)
                with chest.edit("small") as array:
                    array[:] = value + 1
                order.append(name)

        async def main() -> None:
            await asyncio.gather(*map(work, "abc"))

        run(main)
        assert order[::2] == order[1::2]
        assert chest["small"][0] == 4

    @pytest.mark.parametrize("held", ["lock", "edit"])
    @pytest.mark.parametrize("wanted", ["lock", "edit", "append"])
    def test_a_task_that_would_block_its_own_thread_is_told(self, chest, held, wanted):
        async def holder(begun: asyncio.Event, done: asyncio.Event) -> None:
            with getattr(chest, held)("small"):
                begun.set()
                await done.wait()

        async def main() -> None:
            begun, done = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(holder(begun, done))
            await begun.wait()
            with pytest.raises(DeadlockError, match="async with"):
                if wanted == "append":
                    chest.append("small", filled(1))
                else:
                    with getattr(chest, wanted)("small"):
                        pass
            assert not chest.lock("small").acquire(blocking=False)
            done.set()
            await task
            with getattr(chest, "lock" if wanted == "append" else wanted)("small"):
                pass

        run(main)

    def test_a_cancelled_wait_and_a_cancelled_holder_leave_it_free(self, chest):
        async def holder() -> None:
            async with chest.lock("x"):
                await asyncio.sleep(60)

        async def main() -> None:
            first, second = asyncio.create_task(holder()), asyncio.create_task(holder())
            await asyncio.sleep(0.01)
            second.cancel()
            first.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            async with chest.lock("x"):
                pass

        run(main)
        assert chest.lock("x").acquire(blocking=False)

    def test_a_task_waits_for_a_thread(self, chest):
        taken, proceed = threading.Event(), threading.Event()
        order = []

        def work() -> None:
            with chest.lock("x"):
                taken.set()
                assert proceed.wait(20)
                order.append("thread")

        async def main() -> None:
            thread = threading.Thread(target=work)
            thread.start()
            while not taken.is_set():
                await asyncio.sleep(0.001)
            asyncio.get_running_loop().call_later(0.02, proceed.set)
            async with chest.lock("x"):
                order.append("task")
            thread.join()

        run(main)
        assert order == ["thread", "task"]

    def test_one_that_a_worker_thread_took_is_waited_for_in_that_thread(self, chest):
        """The task of the worker has ended; whoever has the lock now lets go of it."""

        def take() -> Any:
            lock = chest.lock("x")
            lock.acquire()
            return lock

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(1) as pool:
                lock = await loop.run_in_executor(pool, contextvars.copy_context().run, take)
                gc.collect()
                again = loop.run_in_executor(pool, contextvars.copy_context().run, take)
                await asyncio.sleep(0.02)
                assert not again.done()
                lock.release()
                (await again).release()

        run(main)

    def test_other_contexts_of_a_thread_hold_it_on_their_own(self, chest):
        first, second = contextvars.Context(), contextvars.Context()
        lock = chest.lock("x")
        first.run(lock.acquire)
        assert first.run(lock.acquire)
        with pytest.raises(DeadlockError):
            second.run(chest.lock("x").acquire)
        lock.release()
        assert not second.run(chest.lock("x").acquire, False)
        lock.release()
        other = chest.lock("x")
        assert second.run(other.acquire)
        other.release()

    def test_one_that_waits_for_the_loop_to_end_is_not_waited_for(self, chest):
        async def main() -> None:
            with pytest.raises(DeadlockError, match="started the loop"):
                async with chest.lock("x"):
                    pass
            async with chest.lock("y"):
                pass

        with chest.lock("x"):
            run(main)
        assert chest.lock("x").acquire(blocking=False)
