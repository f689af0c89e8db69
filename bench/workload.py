"""What a workload is, and what it is given in the process that runs it with one peer."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

MIB = 1 << 20

# How much more page cache is warmed than a peer fills.  With exactly as much, one write in twenty
# met pages of the host's and took 45 ms instead of 3.
_WARM_BEYOND = 512 * MIB


class WrongAnswerError(Exception):
    """What was read back is not what was stored."""


def expect(right: object, what: str) -> None:
    """Raise `WrongAnswerError` unless `right` is true."""
    if not right:
        raise WrongAnswerError(what)


@dataclass(frozen=True)
class Step:
    """One thing that a workload measures of each peer; less is better.

    Attributes
    ----------
    unit
        "s" (seconds for each of what `name` says), "B" (bytes), "×" (a ratio) or "" (a number).
    nbytes
        Bytes that each of them moves, at the full and the small scale, where a table shows GB/s.
    judged
        Whether arraychest should be the best in it.
    limit
        Whether what the limit does in it are bare system calls, so that it is judged, too.
    stores
        Whether it ends on disk, so that it is something else where that is synced.
    at_most
        A bound for arraychest's own figure.
    """

    name: str
    unit: str = "s"
    nbytes: tuple[int, int] | None = None
    judged: bool = True
    limit: bool = False
    stores: bool = False
    at_most: float | None = None


class Workload:
    """One workload: what it needs of a peer, how it is played, and what it measures.

    Attributes
    ----------
    name, title
        For the command line; for people.
    needs
        Methods that a peer must have.
    peers
        Names of those that run where not all may.
    steps
        What is measured, by name.
    rounds, seconds
        At the full scale, where the user says nothing, and as long as they fit in `seconds`: the
        first one is played to its end in any case.
    budget
        Bytes of values that a peer may keep in memory, at the full and the small scale.
    disk
        Most bytes that one peer puts on disk, at the full and the small scale.
    durable
        Whether it is about values that should survive: peers that promise less than arraychest
        are then shown and not compared.
    sized
        Whether a peer whose files are larger than arraychest's is shown and not compared.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("put", "get")
    peers: ClassVar[tuple[str, ...] | None] = None
    steps: ClassVar[tuple[Step, ...]]
    rounds: ClassVar[int] = 3
    seconds: ClassVar[float] = 100
    budget: ClassVar[tuple[int, int]] = (256 * MIB, 8 * MIB)
    disk: ClassVar[tuple[int, int]] = (1 << 30, 64 * MIB)
    durable: ClassVar[bool] = False
    sized: ClassVar[bool] = False

    def prepare(self, folder: Path, *, small: bool) -> None:
        """Make what is slow to make, once for all peers, in `folder`."""

    def play(self, peer: Any, run: Run) -> None:
        """Run it with one peer: time its steps, check and tell what was read."""
        raise NotImplementedError


@dataclass
class Run:
    """One turn of one peer at one workload.

    Attributes
    ----------
    folder
        The peer's files.
    shared
        What `Workload.prepare` made.
    small
        Whether only to show that everything runs.
    share
        Of the values, where the peer is too slow for all.
    """

    folder: Path
    shared: Path
    small: bool
    share: float = 1
    seconds: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    anon_before: int = 0
    anon_most: int = 0
    disk: int = 0

    def pick(self, full: int, small: int) -> int:
        """A number that depends on the scale."""
        return small if self.small else full

    def count(self, full: int, small: int, *, least: int = 4) -> int:
        """How many values: depends on the scale and on the peer's share."""
        return max(int(self.pick(full, small) * self.share), least)

    @contextmanager
    def time(self, step: str, count: int = 1) -> Iterator[None]:
        """Time the block, in which something is done so many times."""
        start = perf_counter()
        yield
        self.add(step, (perf_counter() - start) / count)
        self.measure_memory()

    def add(self, step: str, figure: float) -> None:
        """A figure of a step."""
        self.seconds.setdefault(step, []).append(figure)

    def answer(self, name: str, value: Any) -> None:
        """Tell what was read: all peers must say the same under the same name."""
        self.answers[name] = zlib.crc32(np.ascontiguousarray(value).data.cast("B"))

    def settled(self) -> None:
        """What is in memory by now is the workload's own data, and not the peer's doing."""
        self.anon_before = anonymous_bytes(os.getpid())

    def measure_memory(self) -> None:
        """Note what is in memory now: who looks from outside may miss what is short."""
        self.anon_most = max(self.anon_most, anonymous_bytes(os.getpid()))

    def measure_disk(self) -> int:
        """Note what the peer's files take now; the most of all times is told."""
        found = disk_bytes(self.folder)
        self.disk = max(self.disk, found)
        return found

    def warm(self, nbytes: int) -> None:
        """As `warm_disk`; not at the small scale, which judges nothing."""
        if not self.small:
            warm_disk(self.shared, nbytes)


def warm_disk(folder: Path, nbytes: int) -> None:
    """Make the next pages of the page cache warm ones: write that many bytes and more, and remove
    them.
    """
    block = np.full(2 * MIB, 1, np.uint64).data.cast("B")
    path = folder / f"warm-{os.getpid()}"
    with open(path, "wb", buffering=0) as file:
        file.writelines(block for _ in range(0, nbytes + _WARM_BEYOND, len(block)))
    path.unlink()


class Arrays:
    """Different incompressible arrays of 16 MiB (1 MiB at the small scale), each a copy of one of
    a few with its number as the first element.
    """

    def __init__(self, run: Run) -> None:
        random = np.random.default_rng(20)
        self.shape = (run.pick(1024, 64), 2048)
        self._pool = [random.integers(0, 1 << 64, self.shape, np.uint64) for _ in range(4)]
        for array in self._pool:
            array[0, 0] = 0
        self._sums = [int(array.sum()) for array in self._pool]

    def make(self, number: int) -> np.ndarray:
        array = self._pool[number % len(self._pool)].copy()
        array[0, 0] = number
        return array

    def sum_of(self, number: int) -> int:
        """Modulo 2^64, as NumPy sums them."""
        return (self._sums[number % len(self._pool)] + number) % (1 << 64)

    def check(self, array: np.ndarray, number: int) -> None:
        expect(np.array_equal(array, self.make(number)), f"array {number} differs")


ARRAY_BYTES = (16 * MIB, MIB)


def anonymous_bytes(pid: int) -> int:
    """Of a process and those that it has started: memory that no file backs, in RAM; 0 when it is
    gone.

    Pages of mapped files are the kernel's, which takes them back as it needs them.
    """
    total = 0
    with suppress(OSError):
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    total = int(line.split()[1]) * 1024
                    break
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                total += sum(anonymous_bytes(int(child)) for child in file.read().split())
    return total


def disk_bytes(folder: Path) -> int:
    """Bytes of disk that the files in a folder take."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            # It may write meanwhile.
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(top, name)).st_blocks * 512
    return total


def zipf(count: int, draws: int, seed: int = 7) -> Sequence[int]:
    """Numbers below `count`, the second most wanted half as often as the first, and so on."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, count + 1)
    drawn: list[int] = random.permutation(count)[
        random.choice(count, draws, p=weights / weights.sum())
    ].tolist()
    return drawn
