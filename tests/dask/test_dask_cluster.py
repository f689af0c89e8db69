"""Workers of real clusters that spill through a chest.

Each test runs a program of its own: dask starts threads that outlive a cluster.  What it prints
is looked at here, and that it leaves neither a process nor a file behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import IMPORT_ROOT, PRELOAD, run_python, start_program

pytest.importorskip("distributed")

# What every program begins with.
_HEAD = """
import asyncio, glob, json, logging, os, signal, sys, threading, time
import numpy as np
import dask, dask.array as da
import distributed
from distributed import Client, LocalCluster, Nanny, Scheduler, Worker, get_worker, wait
from distributed.core import Status
from arraychest.dask import WorkerChest

FOLDER = sys.argv[1]
QUIET = {"dashboard_address": None, "local_directory": FOLDER}


def expected(n):
    x = np.arange(n * n).reshape(n, n) % 1009 + 0.5
    return ((x + x.T) - x.mean(0)).std()


def lazy(n, chunk):
    x = da.arange(n * n, chunks=chunk * n).reshape(n, n).rechunk((chunk, chunk)) % 1009 + 0.5
    return ((x + x.T) - x.mean(0)).std()


def about(dask_worker):
    data = dask_worker.data
    return {
        "kind": type(data).__name__,
        "folder": data._files.folder,
        "writes": data.cumulative_metrics["disk-write", "count"],
        "reads": data.cumulative_metrics["disk-read", "count"],
        "status": dask_worker.status.name,
        "pid": os.getpid(),
    }


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


async def soon(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)
"""


def environment(**more: str) -> dict[str, str]:
    # Warnings of dask, tornado and psutil are theirs, and no error.
    found = {name: text for name, text in os.environ.items() if name != "PYTHONWARNINGS"}
    places = [IMPORT_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**found, "PYTHONPATH": os.pathsep.join(places), **more}


def members(session: int) -> list[psutil.Process]:
    """Processes that were started below one, itself included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def sessions() -> Iterator[list[int]]:
    """Sessions of processes that must have ended with the test; what has not is ended."""
    started: list[int] = []
    yield started
    end = time.monotonic() + 10
    left = [process for session in started for process in members(session)]
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = [process for session in started for process in members(session)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not left, f"processes left behind: {left}"


def run(sessions: list[int], tmp_path: Path, code: str, **more: str) -> str:
    """Run a program to its end, and look at what it leaves; returns what it printed."""
    folder = tmp_path / "scratch"
    folder.mkdir(exist_ok=True)
    program = tmp_path / "program.py"
    body = textwrap.indent(textwrap.dedent(code), "    ")
    program.write_text(f"{_HEAD}\n\nif __name__ == '__main__':\n{body}")
    process = start_program(
        [sys.executable, str(program), str(folder)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    sessions.append(process.pid)
    try:
        output, _ = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        for member in members(process.pid):
            member.kill()
        output, _ = process.communicate()
        raise AssertionError(output) from None
    assert process.returncode == 0, output
    assert "done" in output, output
    assert leftovers(folder) == [], output
    assert leftovers(Path(os.environ["TMPDIR"])) == [], output
    return output


def leftovers(folder: Path) -> list[str]:
    """What dask's own locks are not."""
    found = [path for path in folder.rglob("*") if path.name not in ("purge.lock", "global.lock")]
    return [str(path) for path in found if path.name != "dask-scratch-space"]


# --- clusters of processes --------------------------------------------------------------------


@pytest.mark.slow
def test_workers_have_their_own_folders_and_limits(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        """
        dask.config.set({"distributed.worker.memory.target": 0.05})
        with LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="600 MB", data=(WorkerChest, {}), **QUIET
        ) as cluster, Client(cluster) as client:
            assert np.isclose(lazy(4000, 1000).compute(), expected(4000))
            one, other = client.run(about).values()
            print(one, other)
            assert one["kind"] == other["kind"] == "WorkerChest"
            assert one["folder"] != other["folder"]
            assert one["pid"] != other["pid"]
            assert one["writes"] > 0 and other["writes"] > 0
            assert one["reads"] > 0 and other["reads"] > 0
            assert os.path.isdir(one["folder"]) and os.path.isdir(other["folder"])
            targets = client.run(lambda dask_worker: dask_worker.data.target)
            assert set(targets.values()) == {30_000_000}

            # Without a shared folder blocks stay with the workers that have computed them.
            y = da.arange(8_000_000, chunks=1_000_000).persist()
            wait(y)
            homes = list(client.who_has(y).values())
            assert len(homes) == 8 and all(len(home) == 1 for home in homes)
            assert {name for home in homes for name in home} == set(targets)
            assert sum(client.run(lambda dask_worker: len(dask_worker.data.slow)).values()) > 0
            assert int(y.sum().compute()) == 8_000_000 * 7_999_999 // 2

            # A dataset's variables are written by the workers, and read by them.
            import arraychest.xarray, xarray
            path = os.path.join(FOLDER, os.pardir, "dataset.chest")
            x = da.arange(10_000, chunks=1000).reshape(100, 100)
            arraychest.xarray.save(xarray.Dataset({"x": (("j", "i"), x)}), path)
            opened = xarray.open_dataset(path, engine="arraychest", chunks={})
            assert int(opened.x.sum()) == sum(range(10_000))
            writers = client.run(lambda: "arraychest.storage.block_writer" in sys.modules)
            assert all(writers.values())
        assert not os.path.exists(one["folder"])
        print("done")
        """,
    )


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        """
        dask.config.set({
            "distributed.scheduler.allowed-failures": 10, "arraychest.worker.target": "30 MB"
        })
        with LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="600 MB", silence_logs=50,
            preload="arraychest.dask.preload", **QUIET,
        ) as cluster, Client(cluster) as client:
            future = client.compute(lazy(4000, 1000))
            victim = None
            def has_spilled():
                global victim
                spilled = [about for about in client.run(about).values() if about["writes"] > 2]
                victim = spilled[0] if spilled else None
                return spilled
            until(has_spilled)
            assert not future.done()
            os.kill(victim["pid"], signal.SIGKILL)
            assert np.isclose(future.result(timeout=60), expected(4000))
            # The nanny removes what the dead worker left, and starts another.
            until(lambda: not os.path.exists(victim["folder"]))
            until(lambda: len(client.scheduler_info()["workers"]) == 2)
            now = list(client.run(about).values())
            assert [about["kind"] for about in now] == ["WorkerChest"] * 2
            assert victim["pid"] not in [about["pid"] for about in now]
        print("done")
        """,
    )


# How much memory three tasks have at one moment, the machine decides as well.
@pytest.mark.stress
def test_reading_more_than_the_worker_may_have_neither_pauses_nor_ends_it(sessions, tmp_path):
    # dask's own mapping is ended four times over this, and the computation fails.
    output = run(
        sessions,
        tmp_path,
        """
        def make(number):
            return np.full(4 << 20, number)

        def total(arrays):
            return sum(int(array.sum()) for _ in range(3) for array in arrays)

        with LocalCluster(
            n_workers=1, threads_per_worker=3, memory_limit="600 MB",
            data=(WorkerChest, {"target": "100 MB"}), **QUIET,  # what is in RAM is not the question
        ) as cluster, Client(cluster) as client:
            arrays = client.map(make, range(40))
            wait(arrays)
            pid = [about["pid"] for about in client.run(about).values()]
            # 512 MiB of maps in each of three threads.
            totals = [client.submit(total, arrays[10 * part : 10 * part + 16]) for part in range(3)]
            right = [3 * (4 << 20) * sum(range(40)[10 * part : 10 * part + 16]) for part in range(3)]
            assert client.gather(totals) == right
            assert [about["pid"] for about in client.run(about).values()] == pid
            assert [about["writes"] for about in client.run(about).values()] < [45]
        print("done")
        """,
    )
    assert "Pausing" not in output
    assert "Restarting" not in output


@pytest.mark.slow
def test_tasks_may_write_to_what_they_are_given(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        """
        def make(number):
            return np.full(1 << 20, number)

        def change(array):
            array += 100  # nobody's business but this task's
            return array

        with LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="1 GB",
            data=(WorkerChest, {"target": "20 MB"}), **QUIET,
        ) as cluster, Client(cluster) as client:
            arrays = client.map(make, range(20))
            wait(arrays)
            changed = client.map(change, arrays[:10])
            sums = client.gather(client.map(np.sum, changed))
            assert [int(total) for total in sums] == [(n + 100) << 20 for n in range(10)]
        print("done")
        """,
    )


# --- one worker in this process ---------------------------------------------------------------


def worker_program(body: str, options: str = "", config: str = "{}") -> str:
    head = f"""
        async def main():
            dask.config.set({config})
            async with Scheduler(dashboard_address=None, port=0) as s:
                async with Worker(
                    s.address, nthreads=1, local_directory=FOLDER, {options}
                ) as a, Client(s.address, asynchronous=True) as c:
    """
    tail = """
            assert not os.path.exists(a.local_directory)
            print("done")

        asyncio.run(main())
    """
    inner = textwrap.indent(textwrap.dedent(body), " " * 12)
    return textwrap.dedent(head) + inner + textwrap.dedent(tail)


@pytest.mark.slow
def test_the_configured_target_is_kept(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        worker_program(
            """
            x, y = c.submit(lambda: "x" * 500, key="x"), c.submit(lambda: "y" * 500, key="y")
            await wait([x, y])
            assert set(a.data.memory) == {"x", "y"}
            z = c.submit(lambda: "z" * 500, key="z")
            await wait(z)
            assert set(a.data) == {"x", "y", "z"}
            assert len(a.data.memory) == 2 and set(a.data.disk) < {"x", "y"}
            (spilled,) = a.data.disk
            a.data.flush()
            assert await {"x": x, "y": y}[spilled] == spilled * 500
            assert spilled in a.data.memory and len(a.data.disk) == 1
            # The scheduler and its dashboard are told how much that is.
            a.data.flush()
            await a.heartbeat()
            ws = s.workers[a.address]
            assert ws.metrics["spilled_bytes"]["memory"] == a.data.spilled_total.memory > 500
            assert ws.metrics["spilled_bytes"]["disk"] == a.data.spilled_total.disk > 500
            assert ws.memory.spilled > 0
            await c.close()
            """,
            options='data=WorkerChest, memory_limit="2000 B"',
            config="""{
                "distributed.worker.memory.target": 0.6,
                "distributed.worker.memory.spill": False,
                "distributed.worker.memory.pause": False,
            }""",
        ),
    )


@pytest.mark.slow
def test_spilling_begins_at_one_threshold_and_ends_at_another(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        """
        class C:
            def __sizeof__(self):
                return 0

        async def spills(c, s, target, spilled):
            dask.config.set({"distributed.worker.memory.target": target})
            options = {"nthreads": 1, "local_directory": FOLDER, "memory_limit": "1000 MB"}
            async with Worker(s.address, data=WorkerChest, **options) as a:
                # The chest looks for its worker when the first result comes.
                await wait(c.submit(C, pure=False))
                a.monitor.get_process_memory = lambda: 50_000_000 * len(a.data.fast)
                few = [c.submit(C, pure=False) for _ in range(10)]
                await wait(few)
                await asyncio.sleep(0.1)
                assert not a.data.disk
                more = [c.submit(C, pure=False) for _ in range(5)]
                await wait(more)
                await soon(lambda: len(a.data.disk) >= spilled)
                await asyncio.sleep(0.1)
                assert len(a.data.disk) == spilled, len(a.data.disk)

        async def main():
            dask.config.set({
                "distributed.worker.memory.spill": 0.7,
                "distributed.worker.memory.pause": False,
                "distributed.worker.memory.monitor-interval": "10ms",
            })
            async with Scheduler(dashboard_address=None, port=0) as s:
                async with Client(s.address, asynchronous=True) as c:
                    for target, spilled in [(False, 1), (0.7, 1), (0.4, 7)]:
                        await spills(c, s, target, spilled)
            print("done")

        asyncio.run(main())
        """,
    )


@pytest.mark.slow
def test_a_worker_closes_while_results_wait_to_be_written(sessions, tmp_path):
    found = run(
        sessions,
        tmp_path,
        """
        logging.getLogger("distributed").addHandler(logging.StreamHandler(sys.stdout))
        options = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "4 GiB", **QUIET}
        for processes in (False, True):
            with LocalCluster(
                data=(WorkerChest, {"target": "1 GiB"}), processes=processes, **options
            ) as cluster, Client(cluster) as c:
                few = [c.submit(lambda i: np.full(1 << 18, i, "u1"), i) for i in range(100)]
                wait(few)
                c.run(lambda dask_worker: [dask_worker.data.evict() for _ in few] and None)
            workers = os.path.join(FOLDER, "dask-scratch-space", "worker-*")
            until(lambda: not glob.glob(workers))
            time.sleep(0.3)  # a thread that went on would make it anew
            print(glob.glob(workers))
        print("done")
        """,
    )
    assert "Failed to remove" not in found
    assert found.count("[]") == 2


@pytest.mark.slow
def test_results_that_cannot_be_pickled(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        worker_program(
            """
            class Bad:
                def __init__(self, size):
                    self.size = size

                def __sizeof__(self):
                    return self.size

                def __getstate__(self):
                    raise ZeroDivisionError("not me")

            # Larger than the target: the task fails, and the worker goes on.
            large = c.submit(Bad, 100_000_000_000, key="large")
            await wait(large)
            assert large.status == "error"
            try:
                await large
            except TypeError as error:
                assert str(error) == "Failed to pickle 'large'", error
                assert "expected a result that pickle" in str(error.__cause__)
                assert isinstance(error.__cause__.__cause__, ZeroDivisionError)
            else:
                raise AssertionError("it was kept")
            assert "large" not in a.data
            # Smaller: it stays in RAM, whatever the memory monitor asks for.
            small = c.submit(Bad, 256, key="small")
            await wait(small)
            a.monitor.get_process_memory = lambda: 990_000_000 if a.data.fast else 0
            await asyncio.sleep(0.1)
            assert small.status == "finished" and "small" in a.data.fast
            a.monitor.get_process_memory = lambda: 0
            assert await c.submit(sum, [1, 2]) == 3
            """,
            options='data=WorkerChest, memory_limit="1000 MB"',
            config="""{
                "distributed.worker.memory.spill": 0.7,
                "distributed.worker.memory.pause": False,
                "distributed.worker.memory.monitor-interval": "10ms",
            }""",
        ),
    )


@pytest.mark.slow
def test_the_worker_is_paused_while_it_spills_and_looks_at_its_loop(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        worker_program(
            """
            class Slow:
                def __reduce__(self):
                    time.sleep(0.02)
                    return Slow, ()

            def memory():
                # High from when all are there until all have left.
                return 10 * 2**30 if len(a.data) >= 60 and a.data.fast else 0

            gaps, seen = [0.0], set()
            async def watch():
                last = time.monotonic()
                while True:
                    await asyncio.sleep(0)
                    now = time.monotonic()
                    gaps.append(now - last)
                    last = now
                    seen.add(a.status)

            a.data.attach(a)  # as the first result does
            a.monitor.get_process_memory = memory
            watching = asyncio.create_task(watch())
            futures = c.map(lambda _: Slow(), range(60), pure=False)
            await wait(futures)
            await soon(lambda: len(a.data.slow) == 60)
            await soon(lambda: a.status == Status.running)
            watching.cancel()
            assert Status.paused in seen
            # Of 1.2 seconds or more: dask lets go of the loop every half a second.
            assert 0.4 < max(gaps) < 1, max(gaps)
            """,
            options='data=WorkerChest, memory_limit="10 GiB"',
            config="""{
                "distributed.worker.memory.target": False,
                "distributed.worker.memory.spill": 0.6,
                "distributed.worker.memory.pause": 0.9,
                "distributed.worker.memory.monitor-interval": "10ms",
            }""",
        ),
    )


@pytest.mark.slow
def test_what_prometheus_reads(sessions, tmp_path):
    pytest.importorskip("prometheus_client")
    run(
        sessions,
        tmp_path,
        worker_program(
            """
            from tornado.httpclient import AsyncHTTPClient

            arrays = c.map(lambda n: np.full(100_000, n), range(10), pure=False)
            await wait(arrays)
            assert len(a.data.slow) == 8
            a.data.flush()
            await c.gather(arrays)
            response = await AsyncHTTPClient().fetch(f"http://localhost:{a.http_server.port}/metrics")
            found = {}
            for line in response.body.decode().splitlines():
                if not line.startswith("#"):
                    name, figure = line.rsplit(" ", 1)
                    found[name] = float(figure)
            assert found['dask_worker_tasks{state="disk"}'] == 8, found
            assert found['dask_worker_tasks{state="memory"}'] == 2
            disk = a.data.spilled_total.disk
            assert found['dask_worker_memory_bytes{type="spilled"}'] == disk > 6_400_000
            assert found['dask_worker_spill_count_total{activity="disk-write"}'] == 8
            assert found['dask_worker_spill_bytes_total{activity="disk-write"}'] == disk
            assert found['dask_worker_spill_count_total{activity="memory-read"}'] == 2
            assert found['dask_worker_spill_time_seconds_total{activity="disk-write"}'] > 0
            """,
            options='data=(WorkerChest, {"target": "1.7 MB"}), memory_limit="1 GB", '
            'dashboard=False, dashboard_address=":0"',
        ),
    )


@pytest.mark.slow
def test_seconds_and_bytes_on_disk_belong_to_what_has_caused_them(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        worker_program(
            """
            def disk(worker, what):
                found = {}
                for name, value in worker.digests_total.items():
                    if type(name) is tuple and what in name:
                        assert value > 0
                        *names, label, unit = name
                        names = [each for each in names if each not in s.extensions["spans"].spans]
                        found.setdefault("-".join(names), {})[unit] = value
                return found

            make = lambda n: np.full(100_000, n)  # 0.8 MB, of 1.7 MB
            first = c.map(make, range(6), key=[f"make-{n}" for n in range(6)], workers=[a.address])
            await wait(first)
            a.data.flush()
            await soon(lambda: disk(a, "disk-write").get("execute-make", {}).get("count") == 4)
            assert list(disk(a, "disk-write")) == ["execute-make"]
            assert 4 * 800_000 < disk(a, "disk-write")["execute-make"]["bytes"] < 4 * 810_000

            # A task reads what it needs: that is its own, too.
            await c.submit(np.sum, first[0], key="total-0", workers=[a.address])
            assert list(disk(a, "disk-read")) == ["execute-total"]
            assert disk(a, "disk-read")["execute-total"]["count"] == 1

            # Results of another worker push out what was there.
            async with Worker(
                s.address, nthreads=1, local_directory=FOLDER,
                data=(WorkerChest, {"target": "1.7 MB"}), memory_limit="1 GB",
            ) as b:
                other = c.map(make, range(6, 9), key=[f"here-{n}" for n in range(6, 9)], workers=[b.address])
                await wait(other)
                await soon(lambda: disk(b, "disk-write").get("execute-here", {}).get("count") == 1)
                # Both of its kinds: what a task needs from elsewhere, and what others get from it.
                needs = [*first[:4], other[0]]
                await c.submit(lambda *x: 1, *needs, key="all-0", workers=[b.address])
                b.data.flush()
                await soon(lambda: disk(b, "disk-write").get("gather-dep", {}).get("count"))
                found = disk(b, "disk-write")
                assert set(found) <= {"execute-here", "gather-dep", "execute-all"}, found
                assert found["gather-dep"]["bytes"] > 800_000
                assert "get-data" in disk(a, "disk-read")
                total = sum(each["count"] for each in found.values())
                assert total == b.data.cumulative_metrics["disk-write", "count"]
                del other, needs

            # What the memory monitor lets go.
            last = c.map(make, range(20, 22), key=["last-0", "last-1"], workers=[a.address])
            await wait(last)
            a.monitor.get_process_memory = lambda: 990_000_000 if a.data.fast else 0
            await soon(lambda: disk(a, "disk-write").get("memory-monitor", {}).get("bytes"))
            a.data.flush()
            await soon(lambda: sum(
                each["count"] for each in disk(a, "disk-write").values()
            ) == a.data.cumulative_metrics["disk-write", "count"])
            assert {"execute-make", "memory-monitor"} <= set(disk(a, "disk-write"))
            assert set(disk(a, "disk-write")) <= {"execute-make", "execute-last", "memory-monitor"}
            a.monitor.get_process_memory = lambda: 0
            # The scheduler is told.
            await a.heartbeat()
            told = {name[-3:] for name in s.cumulative_worker_metrics if type(name) is tuple}
            assert ("memory-monitor", "disk-write", "bytes") in told
            assert ("make", "disk-write", "seconds") in told
            """,
            options='data=(WorkerChest, {"target": "1.7 MB"}), memory_limit="1 GB"',
            config="""{
                "distributed.worker.memory.spill": 0.7,
                "distributed.worker.memory.pause": False,
                "distributed.worker.memory.monitor-interval": "10ms",
            }""",
        ),
    )


@pytest.mark.slow
def test_a_read_that_pushes_results_out_of_ram_is_its_task(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        worker_program(
            """
            make = lambda n: [np.full(100_000, n)]  # is in RAM once it is read
            futures = c.map(make, range(2), key=["make-0", "make-1"])
            await wait(futures)
            await wait(c.submit(lambda: [np.full(100_000, 7)], key="other-0"))
            a.data.flush()
            print(list(a.data.fast), list(a.data.slow))
            await soon(lambda: a.digests_total)
            new = c.submit(lambda: [np.full(100_000, 7)], key="new-0")
            await wait(new)
            a.data.flush()
            await asyncio.sleep(0.1)
            before = a.data.cumulative_metrics["disk-write", "count"]
            # What is in RAM has no file; "new" leaves for what is read.
            (absent,) = [f for f in futures if f.key in a.data.slow][:1]
            await c.submit(lambda x: 1, absent, key="reader-0")
            a.data.flush()
            after = a.data.cumulative_metrics["disk-write", "count"]
            assert after > before
            def counted():
                return sum(value for name, value in a.digests_total.items()
                    if type(name) is tuple and name[-3:] == ("reader", "disk-write", "count"))
            await soon(lambda: counted() == after - before)
            """,
            options='data=(WorkerChest, {"target": "1.7 MB"}), memory_limit="1 GB"',
        ),
    )


@pytest.mark.slow
def test_the_preload_works_where_dasks_configuration_was_replaced(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        """
        async def main():
            del dask.config.config["arraychest"]
            async with Scheduler(dashboard_address=None, port=0) as s:
                async with Worker(
                    s.address, memory_limit="1 GB", local_directory=FOLDER, nthreads=1,
                    preload="arraychest.dask.preload",
                ) as a:
                    assert type(a.data) is WorkerChest and a.data.target == 600_000_000
            print("done")

        asyncio.run(main())
        """,
    )


def test_a_worker_with_the_preload_imports_nothing_that_takes_long():
    run_python(
        """
        import asyncio, sys, tempfile, warnings
        import numpy as np
        warnings.simplefilter("ignore")  # dask's are its own
        from distributed import Scheduler, Worker

        async def main(folder):
            async with Scheduler(dashboard_address=":0", port=0, dashboard=False) as s:
                async with Worker(
                    s.address, memory_limit="1 GB", local_directory=folder, nthreads=1,
                    preload="arraychest.dask.preload", dashboard=False, dashboard_address=":0",
                ) as a:
                    for number in range(3):
                        a.data[number] = np.full(100_000, number)
                        a.data["list", number] = [np.full(100_000, number)]
                    while a.data.fast:
                        assert a.data.evict() > 0
                    a.data.flush()
                    assert a.data[2][0] == 2
                    assert a.data["list", 1][0][0] == 1

        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(folder))
        found = {"dask.array", "pandas", "scipy", "xarray", "blosc2"} & set(sys.modules)
        assert not found, found
        assert "arraychest.dask.worker" in sys.modules
        """
    )


@pytest.mark.slow
def test_the_preload_leaves_what_was_chosen(sessions, tmp_path):
    run(
        sessions,
        tmp_path,
        """
        async def main():
            async with Scheduler(dashboard_address=None, port=0) as s:
                options = {
                    "local_directory": FOLDER, "nthreads": 1, "preload": "arraychest.dask.preload"
                }
                async with Worker(s.address, data=dict, memory_limit="1 GB", **options) as a:
                    assert type(a.data) is dict
                async with Worker(s.address, memory_limit=0, **options) as a:
                    assert type(a.data) is dict
                given = (WorkerChest, {"target": 5})
                async with Worker(s.address, data=given, memory_limit="1 GB", **options) as a:
                    assert type(a.data) is WorkerChest and a.data.target == 5
                async with Worker(s.address, memory_limit="1 GB", **options) as a:
                    assert a.data is a.state.data is a.memory_manager.data
                    assert type(a.data) is WorkerChest and a.data.target == 600_000_000
                    assert a.data._max_spill is None
                with dask.config.set({
                    "arraychest.worker": {"target": "5 MB", "max-spill": "1 GB", "compression": "lz4"}
                }):
                    async with Worker(s.address, memory_limit=0, **options) as a:
                        assert type(a.data) is WorkerChest and a.data.target == 5_000_000
                        assert a.data._max_spill == 10**9 and a.data._files.compression == "lz4"
            print("done")

        asyncio.run(main())
        """,
    )


# --- from the shell ---------------------------------------------------------------------------


def start(
    sessions: list[int], log: Path, *command: str, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    program = "import sys; from dask.__main__ import main; sys.exit(main())"
    with open(log, "wb") as file:
        process = start_program(
            [sys.executable, "-c", program, *command],
            env=environment(**(env or {})),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    sessions.append(process.pid)
    return process


def wait_for(pattern: str, log: Path, seconds: float = 30) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(pattern, log.read_text())
        if found:
            return found.group(1)
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("nanny", [True, False], ids=["nanny", "no nanny"])
def test_a_cluster_from_the_shell(sessions, tmp_path, nanny):
    folder = tmp_path / "shell"
    folder.mkdir()
    logs = [tmp_path / f"{name}.log" for name in ("scheduler", "worker", "second")]
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes = [
        start(sessions, logs[0], *scheduler, env={"DASK_TEMPORARY_DIRECTORY": str(folder)})
    ]
    try:
        address = wait_for(r"Scheduler at:\s+(tcp://\S+)", logs[0])
        worker = [
            "worker", address, "--nthreads", "1", "--memory-limit", "600 MB", "--no-dashboard",
            "--local-directory", str(folder),
        ]  # fmt: skip
        if nanny:
            options = PRELOAD
            env = {}
        else:
            options = ["--no-nanny"]
            env = {"DASK_DISTRIBUTED__WORKER__PRELOAD": '["arraychest.dask.preload"]'}
        env |= {
            "DASK_ARRAYCHEST__WORKER__MAX_SPILL": "2 GB",
            "DASK_ARRAYCHEST__WORKER__TARGET": "30 MB",
        }
        processes.append(start(sessions, logs[1], *worker, *options, env=env))
        wait_for(r"(Registered to)", logs[1])
        output = run(
            sessions,
            tmp_path,
            f"""
            with Client("{address}") as client:
                assert np.isclose(lazy(4000, 1000).compute(), expected(4000))
                (found,) = client.run(about).values()
                assert found["kind"] == "WorkerChest" and found["writes"] > 5
                limits = client.run(lambda dask_worker: dask_worker.data._max_spill)
                assert list(limits.values()) == [2 * 10**9]
                # Something is spilled when the worker ends.
                kept = client.persist(da.ones(10_000_000, chunks=1_000_000) + 1)
                wait(kept)
                until(lambda: glob.glob(found["folder"] + "/data/*/*.npy"))
                print("pid", found["pid"])
                print("folder", found["folder"])
            print("done")
            """,
        )
        pid = int(re.search(r"pid (\d+)", output).group(1))
        left = Path(re.search(r"folder (.+)", output).group(1))
        assert left.is_dir()
        if nanny:
            stop(processes.pop())
            assert "Traceback" not in logs[1].read_text()
        else:
            # Nobody cleans up after it, but the next worker.
            os.kill(pid, signal.SIGKILL)
            processes.pop().wait(10)
            assert left.is_dir()
            processes.append(start(sessions, logs[2], *worker, "--no-nanny"))
            wait_for(r"(Registered to)", logs[2])
            stop(processes.pop())
        assert not left.exists()
    finally:
        for process in processes[::-1]:
            stop(process)
    assert leftovers(folder) == []


# --- stored arrays larger than the worker ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("data", ["None", "WorkerChest"])
def test_a_worker_adds_up_stored_arrays_larger_than_its_memory(sessions, tmp_path, data):
    # Of pages that stay mapped the worker would be paused, and never go on.
    run(
        sessions,
        tmp_path,
        f"""
        import arraychest
        from arraychest.dask import store

        KEYS = "plain", "blocked", "compressed", "compressed blocks"
        LIMIT, MORE, ROWS = 300 << 20, 70 << 20, 100
        shape, chunks = (9_000, 6_000), (1_500, 1_000)  # 216 MB in blocks of 6 MB
        # The half of it is noise: compressed, it is still larger than what is allowed.
        x = np.random.default_rng(0).integers(0, 1 << 14, shape).astype(np.float32)
        right = x.sum(dtype=np.float64)
        with arraychest.open(FOLDER + "/chest", compression=None) as chest:
            chest.update({{("packed", at): x[at] for at in range(ROWS)}})
            chest["plain"] = x
            with dask.config.set(scheduler="threads"):
                store(da.from_array(x, chunks), chest, "blocked")
        with arraychest.open(FOLDER + "/chest", compression="lz4") as chest:
            chest["compressed"] = x
            with dask.config.set(scheduler="threads"):
                store(da.from_array(x, chunks), chest, "compressed blocks")
            chest.flush()
            kinds = {{key: chest.entry(key).codec for key in chest}}
            assert chest.entry("compressed").stored_bytes > MORE
            print(set(kinds.values()))
            assert set(kinds.values()) == {{"npy", "pack", "blocks", "lz4"}}
        packed = x[:ROWS].sum(dtype=np.float64)
        del x

        def watch(dask_worker):
            def look():
                while not dask_worker.arraychest_stop.wait(0.005):
                    found = dask_worker.monitor.get_process_memory()
                    dask_worker.arraychest_most = max(dask_worker.arraychest_most, found)
                    dask_worker.arraychest_seen.add(dask_worker.status.name)
            dask_worker.arraychest_stop = threading.Event()
            dask_worker.arraychest_most = 0
            dask_worker.arraychest_seen = set()
            dask_worker.arraychest_first = dask_worker.monitor.get_process_memory()
            threading.Thread(target=look, daemon=True).start()

        def looked(dask_worker):
            dask_worker.arraychest_stop.set()
            more = dask_worker.arraychest_most - dask_worker.arraychest_first
            return more, dask_worker.arraychest_seen

        options = {{"data": {data}}} if {data} is not None else {{}}
        with LocalCluster(
            n_workers=1, threads_per_worker=2, memory_limit=LIMIT, **options, **QUIET
        ) as cluster, Client(cluster) as client, arraychest.open(FOLDER + "/chest", "r") as chest:
            first = list(cluster.scheduler.workers)
            # What the worker imports counts before.
            warm = [chest.to_dask(key, chunks).blocks[0, 0].sum() for key in KEYS]
            client.gather(client.compute(warm))
            client.run(watch)

            def total(y, right):
                future = client.compute(y.sum(dtype=np.float64))
                until(future.done)
                assert np.isclose(future.result(), right), (future.result(), right)

            for key in KEYS:
                total(chest.to_dask(key, chunks), right)
            for key in KEYS[1:]:  # those that a get reads lazily
                total(da.from_array(chest[key], chunks), right)
            total(chest.to_dask("plain", chunks)[100:8000:3, 5:-7] * 0, 0)
            rows = [chest.to_dask(("packed", at)) for at in range(ROWS)]
            total(da.concatenate(rows), packed)
            (found,) = client.run(looked).values()
            print(found)
            more, seen = found
            assert seen == {{"running"}}
            assert more < MORE
            assert list(cluster.scheduler.workers) == first
        import shutil
        shutil.rmtree(FOLDER + "/chest")
        print("done")
        """,
    )
