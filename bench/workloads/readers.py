"""`readers`: four processes that read, and one that writes meanwhile."""

from __future__ import annotations

import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.workload import MIB, Run, Step, Workload, WrongAnswerError, expect

_KEYS = 256
_WORDS = 8192  # 64 KiB each
_PAUSE_SECONDS = 0.002
# A fork would inherit threads and open stores.
_processes = multiprocessing.get_context("spawn")


class Readers(Workload):
    name = "readers"
    title = "Four readers beside a writer of 64 KiB arrays"
    needs = ("put", "get", "flush", "reader")
    steps = (Step("get, all readers together"), Step("put and flush"))
    rounds = 3
    seconds = 60
    budget = (64 * MIB, 64 * MIB)
    disk = (512 * MIB, 256 * MIB)
    durable = True

    def play(self, peer: Any, run: Run) -> None:
        for key in range(_KEYS):
            peer.put(f"key_{key}", _value(key, 0))
        peer.flush()
        peer.close()
        run.settled()
        count = run.pick(4, 2)
        gate, stop = _processes.Barrier(count + 1), _processes.Event()
        results: Any = _processes.Queue()
        seconds = 2.0 if not run.small else 0.3
        common = (peer.name, str(run.folder), gate)
        writer = _processes.Process(target=_told, args=(_write, results, *common, stop))
        readers = [
            _processes.Process(target=_told, args=(_read, results, *common, seconds))
            for _ in range(count)
        ]
        for process in (writer, *readers):
            process.start()
        # Those that are left when one breaks end with the session.
        rates = [_result(results) for _ in readers]
        stop.set()
        writes = _result(results)
        for process in (writer, *readers):
            process.join(10)
            expect(process.exitcode == 0, f"a process ended with {process.exitcode}")
        expect(writes, "nothing was written meanwhile")
        run.add("get, all readers together", 1 / sum(rates))
        run.add("put and flush", statistics.median(writes))


def _result(results: Any) -> Any:
    found = results.get(timeout=60)
    if isinstance(found, str):
        raise WrongAnswerError(found)
    return found


def _told(work: Callable[..., Any], results: Any, *arguments: Any) -> None:
    """Put what the work returns, or how it broke, where the others' process waits for it."""
    try:
        results.put(work(*arguments))
    except BaseException:
        results.put(traceback.format_exc())


def _value(key: int, turn: int) -> np.ndarray:
    return np.full(_WORDS, turn * _KEYS + key)


def _peer(name: str, folder: str) -> Any:
    from bench.peers import PEERS

    return PEERS[name](Path(folder), 64 * MIB)


def _read(name: str, folder: str, gate: Any, seconds: float) -> float:
    get = _peer(name, folder).reader()
    keys = [f"key_{key}" for key in range(_KEYS)]
    seen = [int(get(key)[0]) for key in keys]
    gate.wait(60)
    gets = 0
    start = perf_counter()
    while perf_counter() - start < seconds:
        for at, key in enumerate(keys):
            array = get(key)
            first = int(array[0])
            expect(first >= seen[at], f"{key} went back in time")
            seen[at] = first
        expect(first % _KEYS == at and array[-1] == first, f"{key} is of two values")
        gets += _KEYS
    took = perf_counter() - start
    expect(max(seen) >= _KEYS, "nothing new was seen")
    return gets / took


def _write(name: str, folder: str, gate: Any, stop: Any) -> list[float]:
    peer = _peer(name, folder)
    gate.wait(60)
    turn, times = 0, []
    while not stop.is_set():
        turn += 1
        key = turn * 7 % _KEYS
        array = _value(key, turn)
        start = perf_counter()
        peer.put(f"key_{key}", array)
        peer.flush()
        times.append(perf_counter() - start)
        time.sleep(_PAUSE_SECONDS)
    peer.close()
    return times
