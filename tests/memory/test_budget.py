"""The limit from host, cgroups and rlimits, the budget made of it, and what keeps to it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import arraychest
from arraychest.memory import budget
from arraychest.memory.budget import Budget, MemoryReading, read_memory
from tests.support import assert_identical, named, run_python

GIB, MIB = 1 << 30, 1 << 20
HOST = psutil.virtual_memory().total

V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "36 30 0:33 {root} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
OTHERS = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "37 30 0:34 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


class Tree:
    """A ``/proc`` and ``/sys`` of our own."""

    def __init__(self, root: Path, membership: str, mounts: str) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(membership)
        (root / "proc/self/mountinfo").write_text(OTHERS + mounts)

    def group(self, path: str, limit: object, usage: int, cache: int = 0) -> None:
        """A version 2 group."""
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 7\n")

    def group_v1(self, path: str, limit: int, usage: int, cache: int = 0) -> None:
        folder = self.root / "sys/fs/cgroup/memory" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"inactive_file 3\ntotal_inactive_file {cache}\n")

    def read(self) -> MemoryReading:
        return read_memory(root=str(self.root))


class TestReason:
    """Whoever wonders about a budget, in a container say, can ask where it comes from."""

    def test_of_a_container_names_the_file_that_limits_it(self, tmp_path):
        tree = Tree(tmp_path, "0::/user/app\n", V2_MOUNT.format(root="/"))
        tree.group("user", 300 * MIB, 0)
        tree.group("user/app", 200 * MIB, 10 * MIB)
        file = f"{tmp_path}/sys/fs/cgroup/user/app/memory.max"
        assert tree.read().source == f"the cgroup's {file}"
        reason = f"60% of 200 MiB, the cgroup's {file}"
        assert Budget(None, tree.read).reason == reason
        tree.group("user/app", 200 * MIB, 100 * MIB)
        assert Budget(None, tree.read).reason == f"{reason}, less 40 MiB that others need now"
        assert Budget("25%", tree.read).reason == (
            f"available_memory=25% of 200 MiB, the cgroup's {file}"
        )
        assert Budget(0.25, tree.read).reason.startswith("available_memory=0.25 of 200 MiB")

    def test_of_a_size_is_that_it_was_asked_for(self):
        assert Budget("2 GiB").reason == "available_memory='2 GiB'"
        assert Budget(1000).reason == "available_memory=1000"

    def test_without_a_container_is_the_machine(self, tmp_path):
        reading = read_memory(root=str(tmp_path))
        assert reading.source == "the memory of this machine"

    def test_an_rlimit_is_named(self):
        done = run_python(
            """
            import resource
            import arraychest
            resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
            print(arraychest.Chest(available_memory=None).stats().budget_reason)
            """
        )
        assert done.stdout.startswith("60% of 3 GiB, RLIMIT_AS (ulimit)")


class TestReadMemory:
    def test_of_this_machine_makes_sense(self):
        reading = read_memory()
        assert 0 < reading.limit <= HOST
        assert 0 <= reading.available <= reading.limit

    def test_without_any_cgroup_is_the_hosts(self, tmp_path):
        assert read_memory(root=str(tmp_path)).limit == HOST

    def test_takes_the_least_of_nested_version_2_groups(self, tmp_path):
        tree = Tree(tmp_path, "0::/user/app/job\n", V2_MOUNT.format(root="/"))
        tree.group("user", 300 * MIB, 100 * MIB)
        tree.group("user/app", "max", 50 * MIB)
        tree.group("user/app/job", 400 * MIB, 50 * MIB)
        assert tree.read()[:2] == (300 * MIB, 200 * MIB)
        tree.group("user/app/job", 200 * MIB, 50 * MIB)
        assert tree.read()[:2] == (200 * MIB, 150 * MIB)
        # What is least free is not what is least.
        tree.group("user", 300 * MIB, 290 * MIB)
        assert tree.read()[:2] == (200 * MIB, 10 * MIB)

    def test_counts_the_cache_that_the_kernel_would_drop_as_free(self, tmp_path):
        tree = Tree(tmp_path, "0::/job\n", V2_MOUNT.format(root="/"))
        tree.group("job", 200 * MIB, 190 * MIB, cache=100 * MIB)
        assert tree.read()[:2] == (200 * MIB, 110 * MIB)

    def test_takes_the_least_of_nested_version_1_groups(self, tmp_path):
        membership = (
            "12:cpu,cpuacct:/docker/x\n7:memory:/docker/x\n1:name=systemd:/docker/x\n0::/\n"
        )
        tree = Tree(tmp_path, membership, V1_MOUNT.format(root="/"))
        tree.group_v1("docker/x", 9223372036854771712, 5 * MIB)
        assert tree.read().limit == HOST
        tree.group_v1("docker", 150 * MIB, 50 * MIB, cache=10 * MIB)
        tree.group_v1("", 9223372036854771712, 5 * MIB)
        assert tree.read()[:2] == (150 * MIB, 110 * MIB)

    def test_finds_its_group_inside_a_container(self, tmp_path):
        tree = Tree(tmp_path, "0::/docker/abc/job\n", V2_MOUNT.format(root="/docker/abc"))
        tree.group("", 300 * MIB, 0)
        tree.group("job", 200 * MIB, 0)
        assert tree.read()[:2] == (200 * MIB, 200 * MIB)

    @pytest.mark.parametrize("path", ["/", "/../../other", "/docker/abcdef", "/gone"])
    def test_inside_a_container_at_least_the_mounts_own_limit_counts(self, tmp_path, path):
        tree = Tree(tmp_path, f"0::{path}\n", V2_MOUNT.format(root="/docker/abc"))
        tree.group("", 300 * MIB, 100 * MIB)
        assert tree.read()[:2] == (300 * MIB, 200 * MIB)

    def test_reads_both_versions_side_by_side(self, tmp_path):
        tree = Tree(
            tmp_path,
            "7:memory:/a\n0::/b\n",
            V1_MOUNT.format(root="/")
            + V2_MOUNT.format(root="/").replace("cgroup rw,nosuid", "u rw"),
        )
        tree.group_v1("a", 400 * MIB, 0)
        folder = tmp_path / "sys/fs/u/b"
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{350 * MIB}\n")
        (folder / "memory.current").write_text("0\n")
        assert tree.read()[:2] == (350 * MIB, 350 * MIB)

    def test_is_never_negative_and_survives_nonsense(self, tmp_path):
        tree = Tree(
            tmp_path, "0::/job\nnonsense\n7:memory\n::\n", V2_MOUNT.format(root="/") + "x\n"
        )
        tree.group("job", 100 * MIB, 200 * MIB)
        assert tree.read()[:2] == (100 * MIB, 0)
        tree.group("job", "many", 200)
        assert tree.read().limit == HOST
        (tmp_path / "sys/fs/cgroup/job/memory.max").write_bytes(b"\xff\xfe")
        assert tree.read().limit == HOST

    @pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
    def test_takes_rlimits_into_account(self, name):
        done = run_python(
            """
            import resource, sys
            from arraychest.memory.budget import read_memory
            read_memory()
            name = getattr(resource, sys.argv[1])
            resource.setrlimit(name, (3 << 30, resource.RLIM_INFINITY))
            reading = read_memory()
            print(reading.limit, reading.available)
            """,
            name,
        )
        limit, available = map(int, done.stdout.split())
        assert limit == min(3 * GIB, read_memory().limit)
        assert 0 < available < 3 * GIB

    def test_an_infinite_rlimit_is_none(self):
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
        assert read_memory().limit > 0


def reader(limit: int, available: int) -> SimpleNamespace:
    state = SimpleNamespace(limit=limit, available=available, readings=0)

    def read() -> MemoryReading:
        state.readings += 1
        return MemoryReading(state.limit, state.available)

    state.read = read
    return state


class TestBudget:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            (0, 0),
            (1, 1),
            (12345, 12345),
            (np.int64(12345), 12345),
            (5e6, 5_000_000),
            ("2 GiB", 2 * GIB),
            ("100", 100),
            (0.5, 2 * GIB),
            (1.0, 4 * GIB),
            ("50%", 2 * GIB),
            (" 12.5 % ", GIB // 2),
            ("100%", 4 * GIB),
        ],
    )
    def test_is_bytes_a_size_or_a_share_of_the_limit(self, size, expected):
        made = Budget(size, reader(4 * GIB, GIB).read)
        assert made.bytes == expected
        assert 0 <= made.low <= made.high <= made.bytes

    @pytest.mark.parametrize(
        "size", ["", "much", "%", "x%", "0%", "-5%", "101%", "nan%", "inf%", -1, -0.5, float("nan"),
                 float("inf"), "1 XiB"]
    )  # fmt: skip
    def test_refuses_bad_values(self, size, path):
        with pytest.raises(ValueError, match="expected"):
            Budget(size)
        with pytest.raises(ValueError, match="expected"):
            arraychest.Chest(path=path, available_memory=size)
        assert not os.path.exists(path)

    @pytest.mark.parametrize("size", [True, [], {}, b"1", 1j, object()], ids=named)
    def test_refuses_bad_types(self, size):
        with pytest.raises(TypeError, match="available_memory"):
            Budget(size)

    def test_that_is_fixed_reads_no_memory(self):
        state = reader(4 * GIB, GIB)
        made = Budget("1 GiB", state.read)
        for charged in range(10):
            made.refresh(charged)
        assert state.readings == 0
        assert made.bytes == GIB

    def test_adapts_to_what_others_leave_and_keeps_a_reserve(self):
        state = reader(10 * GIB, 9 * GIB)
        made = Budget(None, state.read)
        assert made.bytes < 10 * GIB * 0.7
        state.available = 2 * GIB
        made._next_reading = 0
        made.refresh(charged=0)
        assert made.bytes <= 2 * GIB - 10 * GIB * 0.05

    def test_shrinks_when_others_take_memory_and_grows_back(self, monkeypatch):
        monkeypatch.setattr(budget, "REFRESH_SECONDS", 0)
        state = reader(10 * GIB, 9 * GIB)
        made = Budget(None, state.read)
        sizes = [made.bytes]
        for available in (5 * GIB, 3 * GIB, GIB, 0, GIB, 3 * GIB, 5 * GIB, 9 * GIB):
            state.available = available
            made.refresh(charged=GIB)
            sizes.append(made.bytes)
        assert sizes[:5] == sorted(sizes[:5], reverse=True)
        assert sizes[4:] == sorted(sizes[4:])
        assert sizes[4] < GIB  # the reserve is taken out of what we hold
        assert sizes[4] > 0
        assert sizes[-1] == sizes[0]

    def test_what_we_hold_ourselves_does_not_count_as_taken_by_others(self, monkeypatch):
        monkeypatch.setattr(budget, "REFRESH_SECONDS", 0)
        state = reader(10 * GIB, 6 * GIB)
        made = Budget(None, state.read)
        before = made.bytes
        state.available -= 2 * GIB
        made.refresh(charged=2 * GIB)
        assert made.bytes == before

    def test_reads_memory_at_a_bounded_rate(self, monkeypatch):
        now = SimpleNamespace(seconds=100.0)
        monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now.seconds))
        state = reader(10 * GIB, 9 * GIB)
        monkeypatch.setattr(budget, "read_memory", lambda: state.read())
        with arraychest.Chest() as chest:
            for at in range(2000):
                now.seconds += 0.001
                chest[at] = np.zeros(10)
                chest[at % 7]
            assert 2 <= state.readings <= 2 + 2 / budget.REFRESH_SECONDS

    def test_the_one_function_that_reads_memory_can_be_replaced(self, monkeypatch):
        monkeypatch.setattr(budget, "REFRESH_SECONDS", 0)
        state = reader(GIB, GIB)
        monkeypatch.setattr(budget, "read_memory", lambda: state.read())
        with arraychest.Chest() as chest, arraychest.Chest(available_memory=0.25) as other:
            assert other.available_memory == GIB // 4
            before = chest.available_memory
            assert before < GIB
            state.available = 150 * MIB
            assert chest.available_memory < before
            state.available = GIB
            assert chest.available_memory == before


class TestAChestUnderPressure:
    def test_of_a_real_process_shrinks_spills_and_grows_back(self, monkeypatch):
        """A ballast process takes memory of a machine of 512 MiB, and gives it back."""
        program = """
import sys
for line in sys.stdin:
    ballast = bytearray(b"x") * (int(line) << 20)
    print(len(ballast), flush=True)
"""
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as ballast:

            def hold(mebibytes: int) -> None:
                ballast.stdin.write(f"{mebibytes}\n")
                ballast.stdin.flush()
                ballast.stdout.readline()

            def read() -> MemoryReading:
                taken = psutil.Process(ballast.pid).memory_info().rss
                return MemoryReading(512 * MIB, max(0, 512 * MIB - taken - chest_bytes()))

            held: list[arraychest.Chest] = []

            def chest_bytes() -> int:
                return held[0].memory_usage if held else 0

            monkeypatch.setattr(budget, "REFRESH_SECONDS", 0)
            monkeypatch.setattr(budget, "read_memory", read)
            hold(1)
            with arraychest.Chest() as chest:
                held.append(chest)
                roomy = chest.available_memory
                for at in range(100):
                    chest[at] = np.full(MIB // 8, float(at))
                assert chest.memory_usage >= 100 * MIB
                hold(400)
                tight = chest.available_memory
                assert tight < roomy - 100 * MIB
                chest["one more"] = np.zeros(MIB // 8)
                assert chest.memory_usage <= tight + MIB
                hold(1)
                assert chest.available_memory > tight + 100 * MIB
                for at in range(100):
                    assert chest[at][0] == at
                held.clear()
            ballast.stdin.close()

    @pytest.mark.parametrize("size", [100, 3_000, 20_000])
    @pytest.mark.parametrize("on_put", ["freeze", "copy"])
    def test_never_holds_more_than_the_budget_and_one_value(self, size, on_put, make_chest):
        nbytes = 8 * size
        chest = make_chest(available_memory=20 * nbytes, on_put=on_put)
        for at in range(200):
            chest[at % 90] = np.full(size, float(at))
            assert chest.memory_usage <= 20 * nbytes
        for at in range(110, 200):
            assert chest[at % 90][-1] == at

    def test_never_holds_more_while_many_threads_put(self, make_chest):
        size = 2_000
        chest = make_chest(available_memory=20 * 8 * size)
        most = 0
        stop = threading.Event()
        errors: list[BaseException] = []

        def watch() -> None:
            nonlocal most
            while not stop.wait(0.0005):  # a watcher that spins keeps all others waiting
                most = max(most, chest.memory_usage)

        def put(name: int) -> None:
            try:
                for at in range(100):
                    chest[name, at % 30] = np.full(size * (1 + at % 2), float(at))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=put, args=(name,)) for name in range(6)]
        watcher = threading.Thread(target=watch)
        for thread in (watcher, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
        assert not errors
        assert 0 < most <= chest.available_memory + 2 * 8 * size
        for name in range(6):
            for at in range(70, 100):
                assert chest[name, at % 30][0] == at

    @pytest.mark.parametrize("budget_bytes", [0, 1000])
    def test_a_value_larger_than_the_budget_goes_straight_to_disk(self, make_chest, budget_bytes):
        chest = make_chest(available_memory=budget_bytes)
        chest["small"] = np.zeros(10)
        before = chest.memory_usage
        for at in range(3):
            chest["x"] = np.full(20_000, float(at))
            assert chest.memory_usage == before
            assert not chest.entry("x").resident
            assert_identical(chest["x"], np.full(20_000, float(at)))
        chest["packed?"] = np.zeros(200)
        assert chest.memory_usage == before
        assert list(chest) == ["small", "x", "packed?"]

    def test_lowering_the_budget_spills_before_it_returns(self, make_chest):
        chest = make_chest(available_memory="64 MiB")
        for at in range(50):
            chest[at] = np.full(1000 if at % 2 else 20_000, float(at))
        for size in ("2 MiB", 500_000, 1000, 0):
            chest.available_memory = size
            assert chest.memory_usage <= chest.available_memory
        assert chest.memory_usage == 0
        chest.available_memory = "64 MiB"
        for at in range(50):
            assert chest[at][0] == at
        chest.available_memory = "10%"
        chest.available_memory = None
        for bad in ("much", -1, True):
            before = chest.available_memory
            with pytest.raises((ValueError, TypeError)):
                chest.available_memory = bad
            assert abs(chest.available_memory - before) <= before // 2

    def test_spills_what_was_not_used_first(self, make_chest):
        chest = make_chest(available_memory="64 MiB")
        for at in range(20):
            chest[at] = np.full(1000, float(at))
        for at in range(5):
            chest[at]
        chest.available_memory = 16 * 8000
        assert set(range(5)) <= set(chest.inmem)
