"""`reload`: stored arrays, opened again: to the first element, and all of each."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from bench.workload import ARRAY_BYTES, MIB, Arrays, Run, Step, Workload, expect


class Reload(Workload):
    name = "reload"
    title = "Stored arrays of 16 MiB, reopened"
    needs = ("put", "get", "reopen")
    steps = (
        Step("first element", limit=True),
        Step("all elements", nbytes=ARRAY_BYTES, limit=True),
    )
    rounds = 5
    seconds = 60
    # Room for all of them: whoever keeps what was read may.
    budget = (1024 * MIB, 32 * MIB)
    disk = (1200 * MIB, 32 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        count = run.count(20, 4)
        made = Arrays(run)
        keys = [f"key_{number}" for number in range(count)]
        for number, key in enumerate(keys):
            peer.put(key, made.make(number))
        peer.flush()
        peer.reopen()
        run.settled()
        # Not timed: what the first one of a process pays once.
        peer.get(keys[0])[0, 0]
        kept = []
        for number, key in enumerate(keys[1:], 1):
            start = perf_counter()
            array = peer.get(key)
            first = array[0, 0]
            run.add("first element", perf_counter() - start)
            expect(first == number, f"{key} begins with {first}")
            # As a user does; to let go of it is no part of this.
            kept.append(array)
        del kept, array
        peer.reopen()
        for number, key in enumerate(keys):
            start = perf_counter()
            total = int(peer.get(key).sum())
            run.add("all elements", perf_counter() - start)
            expect(total == made.sum_of(number), f"{key} differs")
