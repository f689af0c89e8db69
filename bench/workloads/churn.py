"""`churn`: put and delete at constant size for a minute; neither speed nor disk use may drift."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from bench.workload import MIB, Run, Step, Workload, expect

# Words of 8 bytes: what comes again and again, 1.2 MiB in all.
_SIZES = [512] * 12 + [8192] * 3 + [131072]
_LIVE = 64 * len(_SIZES)


class Churn(Workload):
    name = "churn"
    title = "Put one, delete the oldest, for a minute: 4 KiB to 1 MiB each"
    needs = ("put", "get", "delete", "flush", "reopen")
    # A minute each: the fastest of those that promise the same.  A limit there is none: a log gives
    # no space back.
    peers = ("arraychest", "lmdb", "diskcache")
    steps = (
        Step("put and delete"),
        Step("last third by first", unit="×", judged=False, at_most=1.2),
        Step("disk at the end by then", unit="×", judged=False, at_most=1.2),
    )
    rounds = 1
    budget = (16 * MIB, 16 * MIB)
    disk = (1024 * MIB, 256 * MIB)
    durable = True

    def play(self, peer: Any, run: Run) -> None:
        pool = {size: np.arange(size, dtype=np.int64) for size in set(_SIZES)}
        run.settled()

        def put(number: int) -> None:
            array = pool[_SIZES[number % len(_SIZES)]].copy()
            array[0] = number
            peer.put(f"key_{number}", array)

        live = run.pick(_LIVE, _LIVE // 8)
        for number in range(live):
            put(number)
        peer.flush()
        number = live
        took, disk = [], []
        third = 0.3 if run.small else 20
        for _ in range(3):
            before, start = number, perf_counter()
            while (now := perf_counter()) - start < third:
                for _each in range(len(_SIZES)):
                    put(number)
                    peer.delete(f"key_{number - live}")
                    number += 1
                # As much as a crash may cost.
                peer.flush()
            took.append((now - start) / (number - before))
            disk.append(run.measure_disk())
        run.add("put and delete", sum(took) / len(took))
        run.add("last third by first", took[-1] / took[0])
        run.add("disk at the end by then", disk[-1] / max(disk[0], 1))
        peer.reopen()
        for at in range(number - live, number, 7):
            array = peer.get(f"key_{at}")
            expect(array[0] == at and array[-1] == len(array) - 1, f"key_{at} differs")
        for at in range(live, number - live, max((number - 2 * live) // 100, 1)):
            expect(_absent(peer, f"key_{at}"), f"key_{at} is there after its deletion")


def _absent(peer: Any, key: str) -> bool:
    try:
        peer.get(key)
    except KeyError:
        return True
    return False
