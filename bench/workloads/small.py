"""`small`: 100,000 arrays of 1 KiB: put, got after reopening, overwritten, deleted."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.workload import MIB, Run, Step, Workload, expect

_WORDS = 128  # of 8 bytes: 1 KiB


class Small(Workload):
    name = "small"
    title = "100,000 arrays of 1 KiB"
    needs = ("put", "get", "delete", "flush", "reopen")
    steps = (
        Step("put and flush", stores=True),
        Step("get, reopened"),
        Step("overwrite and flush", stores=True),
        Step("delete and flush", stores=True),
        Step("disk for 1 KiB", unit="B", judged=False, at_most=1.2 * 1024),
    )
    rounds = 3
    seconds = 80
    budget = (64 * MIB, 64 * MIB)
    disk = (1024 * MIB, 128 * MIB)
    durable = True

    def play(self, peer: Any, run: Run) -> None:
        count = run.count(100_000, 2_000, least=50)
        random = np.random.default_rng(8)
        words = random.integers(0, 1 << 64, (count, _WORDS), np.uint64)
        words[:, 0] = np.arange(count)
        # Each an array of its own: a row would keep all of them.
        pairs = [(f"key_{number:06}", row.copy()) for number, row in enumerate(words)]
        del words
        run.settled()
        run.warm(2 * count * _WORDS * 8)
        with run.time("put and flush", count):
            for key, array in pairs:
                peer.put(key, array)
            peer.flush()
        run.add("disk for 1 KiB", run.measure_disk() / count)

        peer.reopen()
        drawn = [pairs[at][0] for at in random.integers(0, count, max(count // 5, 50))]
        with run.time("get, reopened", len(drawn)):
            firsts = [peer.get(key)[0] for key in drawn]
        expect([f"key_{first:06}" for first in firsts] == drawn, "wrong values")
        run.answer(f"firsts of {count}", np.array(firsts))
        for key, array in pairs[::499]:
            expect(np.array_equal(peer.get(key), array), f"{key} differs")
        del firsts

        changed = [pairs[at] for at in random.permutation(count)[: count // 2]]
        changed = [(key, array + np.uint64(1)) for key, array in changed]
        with run.time("overwrite and flush", len(changed)):
            for key, array in changed:
                peer.put(key, array)
            peer.flush()
        gone = [key for key, _ in changed[: len(changed) // 2]]
        with run.time("delete and flush", len(gone)):
            for key in gone:
                peer.delete(key)
            peer.flush()

        peer.reopen()
        for key, array in changed[len(gone) :: 97]:
            expect(np.array_equal(peer.get(key), array), f"{key} after the overwrite")
        for key in gone[::97]:
            expect(_absent(peer, key), f"{key} is there after its deletion")


def _absent(peer: Any, key: str) -> bool:
    try:
        peer.get(key)
    except (KeyError, OSError, ValueError):
        # Stores of files have no file; tensorstore calls it a ValueError.
        return True
    return False
