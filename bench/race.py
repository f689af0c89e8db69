"""Runs the pairs of workload and peer, each in a fresh process, interleaved over rounds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import LIMIT, OURS, OURS_DURABLE, PEERS
from bench.peers.base import Peer, PeerMissingError
from bench.workload import Workload, anonymous_bytes

_SAMPLE_SECONDS = 0.02

# A turn that takes longer has hung.
_TIMEOUT_SECONDS = 240

# What it means that a peer has not a method.
_LACKS = {
    "put": "keeps no values on disk",
    "get": "keeps no values on disk",
    "delete": "deletes nothing",
    "reopen": "cannot be opened again",
    "bare": "is no mapping in memory",
    "write_whole": "has no arrays in chunks",
    "open_whole": "has no arrays in chunks",
    "memoise": "memoises no functions",
    "reader": "not for readers beside a writer",
    "dask_worker": "no mapping for a worker of dask",
    "dask_stored": "dask has no way to store an array in it",
}

# A peer is played in one round if its turn takes longer than this, and so many times as long as
# arraychest's.
_SLOW_SECONDS = 8
_SLOW_TIMES = 3

# And in one round if each of its steps takes so many times as long as arraychest's.
_FAR_TIMES = 3

# Room that is left on a disk beside what a workload needs.
_SPARE_BYTES = 1 << 30


class TurnFailedError(Exception):
    """A turn ended without figures: the message says why."""


@dataclass
class Outcome:
    """What is known of one peer at one workload after all rounds.

    Attributes
    ----------
    steps
        By step: one figure for each round, the median of what was measured in it.
    anon
        Bytes, one for each round: the most anonymous memory beyond the workload's own data.
    disk
        Bytes: the most that its files took.
    share
        Of the values, where it was given fewer.
    turn_seconds
        How long each of its processes ran.
    """

    durability: str
    setup: str
    version: str
    share: float = 1
    steps: dict[str, list[float]] = field(default_factory=dict)
    anon: list[int] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)
    turn_seconds: list[float] = field(default_factory=list)


@dataclass
class Race:
    """All outcomes of one workload."""

    workload: Workload
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Runner:
    """Starts the processes, and ends them when it is left.

    Parameters
    ----------
    folder
        Where files go; removed by the caller.
    small
        The scale.  The small one judges nothing, and runs as many turns at once as there are cores.
    rounds
        How many, or None for what each workload says.
    peers
        Names of those that run.
    say
        Takes a line on what is going on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        small: bool,
        rounds: int | None,
        peers: list[str],
        say: Callable[[str], object],
    ) -> None:
        self._folder = folder
        self._small = small
        self._rounds = rounds
        self._peers = peers
        self._say = say
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            for pid in self._running:
                _kill_group(pid)

    def run(self, workload: Workload) -> Race:
        """One workload with all its peers."""
        race = Race(workload)
        start = time.perf_counter()
        free = shutil.disk_usage(self._folder).free
        turns = (os.cpu_count() or 1) if self._small else 1
        need = turns * workload.disk[self._small] + _SPARE_BYTES
        if free < need:
            race.skipped = dict.fromkeys(
                self._peers, f"needs {need / 1e9:.1f} GB of disk, found {free / 1e9:.1f} free"
            )
            return race
        playing = []
        for name in self._peers:
            why = _why_not(PEERS[name], workload)
            if why is None:
                playing.append(name)
            else:
                race.skipped[name] = why
        with self._fresh_folder() as shared:
            try:
                self._turn(workload, "-", shared)
            except PeerMissingError as missing:
                race.skipped |= dict.fromkeys(playing, str(missing))
                return race
            except TurnFailedError as failed:
                race.failed["what they share"] = str(failed)
                return race
            answers: dict[str, tuple[int, str]] = {}
            rounds = self._rounds or (1 if self._small else workload.rounds)
            for number in range(rounds):
                names = self._order(race, playing, number)
                # Who asks for so many rounds, gets them.
                if self._rounds is None and number:
                    wanted = sum(_usual_seconds(race, name) for name in names)
                    if time.perf_counter() - start + wanted > workload.seconds:
                        break
                self._round(race, number, names, shared, answers)
        race.seconds = time.perf_counter() - start
        return race

    def _order(self, race: Race, playing: list[str], number: int) -> list[str]:
        """Who plays a round, and in which order."""
        # Each starts a round in turn, so that none always runs behind the same neighbour.
        start = number % max(len(playing), 1)
        return [
            name
            for name in playing[start:] + playing[:start]
            if number == 0 or not (self._slow(race, name) or _far_behind(race, name))
        ]

    def _slow(self, race: Race, name: str) -> bool:
        """Whether one turn of a peer tells enough, and more would take too long."""
        if name == OURS or name not in race.outcomes:
            return False
        known, usual = _usual_seconds(race, name), _usual_seconds(race, OURS)
        return race.workload.name in PEERS[name].shares or (
            known > _SLOW_SECONDS and known > _SLOW_TIMES * usual
        )

    def _round(
        self,
        race: Race,
        number: int,
        names: list[str],
        shared: Path,
        answers: dict[str, tuple[int, str]],
    ) -> None:
        def turn(name: str) -> tuple[str, Any]:
            if name in race.failed or name in race.skipped:
                return name, None
            self._say(f"round {number + 1}: {name}")
            try:
                return name, self._turn(race.workload, name, shared)
            except (PeerMissingError, TurnFailedError) as error:
                return name, error

        if self._small:
            pool = ThreadPoolExecutor(os.cpu_count() or 1)
            try:
                found = list(pool.map(turn, names))
            except BaseException:
                # Else the pool would wait for what runs, and start what waits.
                self.__exit__()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        else:
            found = [turn(name) for name in names]
        for name, result in found:
            if isinstance(result, PeerMissingError):
                race.skipped[name] = str(result)
            elif isinstance(result, TurnFailedError):
                race.failed[name] = str(result)
                race.outcomes.pop(name, None)
            elif result is not None:
                _take(race, name, result, answers)

    def _turn(self, workload: Workload, name: str, shared: Path) -> dict[str, Any]:
        start = time.perf_counter()
        with self._fresh_folder() as folder:
            command = [sys.executable, "-m", "bench.one", workload.name, name]
            command += ["small" if self._small else "full", str(folder), str(shared)]
            with open(self._folder / f"stderr-{threading.get_ident()}", "w+b") as errors:
                with self._lock:
                    if self._ended:
                        raise TurnFailedError("stopped")
                    # A session of its own: with it end the processes that it has started.
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env=_environment(self._folder),
                        start_new_session=True,
                    )
                    self._running.add(process.pid)
                try:
                    peak = _watched(process)
                    assert process.stdout is not None
                    lines = process.stdout.read().decode().splitlines()
                finally:
                    _kill_group(process.pid)
                    process.wait()
                    with self._lock:
                        self._running.discard(process.pid)
                    if process.stdout is not None:
                        process.stdout.close()
                errors.seek(0)
                complaint = errors.read().decode(errors="replace").strip()
        try:
            result: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise TurnFailedError(
                f"expected a line of JSON, found exit code {process.returncode}\n{complaint}"
            ) from None
        if "missing" in result:
            raise PeerMissingError(result["missing"])
        if "error" in result:
            raise TurnFailedError(result["error"])
        result["turn_seconds"] = time.perf_counter() - start
        result["anon"] = max(
            max(peak, result.get("anon_most", 0)) - result.get("anon_before", 0), 0
        )
        return result

    @contextmanager
    def _fresh_folder(self) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _usual_seconds(race: Race, name: str) -> float:
    """How long a turn of a peer takes; 0 if that is not known."""
    outcome = race.outcomes.get(name)
    return max(outcome.turn_seconds, default=0.0) if outcome else 0.0


def _far_behind(race: Race, name: str) -> bool:
    """Whether a peer is so much slower in each step that one turn of it tells enough.

    The time goes to those that are near, whose ratios a single round would tell by chance.
    """
    outcome, ours = race.outcomes.get(name), race.outcomes.get(OURS)
    if name in (OURS, OURS_DURABLE, LIMIT) or outcome is None or ours is None:
        return False
    common = [
        (_median(outcome.steps[step.name]), _median(ours.steps[step.name]))
        for step in race.workload.steps
        if step.judged and outcome.steps.get(step.name) and ours.steps.get(step.name)
    ]
    return bool(common) and all(theirs > _FAR_TIMES * mine for theirs, mine in common)


def _why_not(peer: type[Peer], workload: Workload) -> str | None:
    """Why a peer cannot do a workload; None if it can."""
    if workload.name in peer.cannot:
        return peer.cannot[workload.name]
    if peer.only is not None and workload.name not in peer.only:
        return f"only for {' and '.join(peer.only)}"
    if workload.peers is not None and peer.name not in workload.peers:
        return "of those that can, only a few are given the time"
    # `put`, `get` and `delete` may be bound methods of the peer's own object.
    has = {*dir(peer), *peer.bound}
    for method in workload.needs:
        if method not in has:
            return _LACKS[method]
    try:
        peer.version()
    except PeerMissingError as missing:
        return str(missing)
    return None


def _take(
    race: Race, name: str, result: Mapping[str, Any], answers: dict[str, tuple[int, str]]
) -> None:
    """Add the figures of a turn, unless its answers differ from those of others."""
    for answer, found in result["answers"].items():
        known, by = answers.setdefault(answer, (found, name))
        if known != found:
            race.failed[name] = f"{answer}: found another answer than {by}"
            race.outcomes.pop(name, None)
            return
    peer = PEERS[name]
    outcome = race.outcomes.get(name)
    if outcome is None:
        outcome = race.outcomes[name] = Outcome(
            peer.durability, peer.setup, peer.version(), peer.shares.get(race.workload.name, 1)
        )
    for step, figures in result["seconds"].items():
        outcome.steps.setdefault(step, []).append(_median(figures))
    outcome.anon.append(result["anon"])
    outcome.disk.append(result["disk"])
    outcome.turn_seconds.append(round(result["turn_seconds"], 3))


def _median(figures: list[float]) -> float:
    ordered = sorted(figures)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _watched(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and tell the most anonymous memory that was seen.

    From outside: a thread of its own process would take the interpreter's lock from what is timed.
    Its line is short, so that it never waits for it to be read.
    """
    peak = 0
    give_up = time.monotonic() + _TIMEOUT_SECONDS
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        if time.monotonic() > give_up:
            raise TurnFailedError(f"took longer than {_TIMEOUT_SECONDS} s")
        time.sleep(_SAMPLE_SECONDS)
    return peak


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _environment(folder: Path) -> dict[str, str]:
    # Peers put files of their own where these say.
    return {**os.environ, "TMPDIR": str(folder), "MPLCONFIGDIR": str(folder / "matplotlib")}
