"""`pipeline` and `scan`: more arrays than fit in the budget, got by popularity or in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.workload import ARRAY_BYTES, MIB, Arrays, Run, Step, Workload, expect, zipf


def _fill(peer: Any, made: Arrays, count: int) -> None:
    for number in range(count):
        peer.put(f"key_{number}", made.make(number))


def _read(peer: Any, made: Arrays, order: Sequence[int]) -> list[int]:
    found = [int(peer.get(f"key_{number}").sum()) for number in order]
    expect(found == [made.sum_of(number) for number in order], "wrong sums")
    return found


class Pipeline(Workload):
    name = "pipeline"
    title = "2 GiB through a budget of 256 MiB, then 240 skewed reads"
    steps = (
        Step("make and put all", limit=True),
        Step("read", nbytes=ARRAY_BYTES, limit=True),
        Step("in all", limit=True),
    )
    rounds = 3
    seconds = 160
    budget = (256 * MIB, 4 * MIB)
    # Who cannot reuse the space of what it takes back into memory writes more than once.
    disk = (8192 * MIB, 256 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        count = run.count(128, 12)
        order = zipf(count, run.count(240, 24))
        made = Arrays(run)
        run.warm(count * ARRAY_BYTES[0])
        run.settled()
        with run.time("in all"):
            # An array is made when it is put, as in a pipeline: else all would be in memory.
            with run.time("make and put all"):
                _fill(peer, made, count)
            with run.time("read", len(order)):
                found = _read(peer, made, order)
        run.answer(f"sums of {len(order)} of {count}", np.array(found, np.uint64))


class Scan(Workload):
    name = "scan"
    title = "Epochs over 512 MiB with a budget of 256 MiB"
    steps = (Step("epoch", limit=True),)
    rounds = 5
    seconds = 90
    budget = (256 * MIB, 4 * MIB)
    disk = (4096 * MIB, 128 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        count = run.count(32, 8)
        made = Arrays(run)
        run.warm(count * ARRAY_BYTES[0])
        run.settled()
        _fill(peer, made, count)
        order = list(range(count))
        # Not timed: what is still being written after the last put.
        _read(peer, made, order)
        for _ in range(run.pick(3, 2)):
            with run.time("epoch"):
                found = _read(peer, made, order)
        run.answer(f"sums of {count}", np.array(found, np.uint64))
