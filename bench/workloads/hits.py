"""`hits`: gets and overwrites of what is in memory."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from bench.workload import MIB, Run, Step, Workload, expect

_KEYS = 1000
_WORDS = 512  # of 8 bytes: 4 KiB


class Hits(Workload):
    name = "hits"
    title = "1,000 arrays of 4 KiB in RAM"
    needs = ("bare",)
    steps = (Step("get"), Step("overwrite"))
    rounds = 5
    seconds = 35
    budget = (512 * MIB, 512 * MIB)
    disk = (64 * MIB, 64 * MIB)

    def play(self, peer: Any, run: Run) -> None:
        of = peer.bare()
        random = np.random.default_rng(4)
        keys = [f"key-{number}" for number in range(_KEYS)]
        run.settled()
        for number, key in enumerate(keys):
            of[key] = np.full(_WORDS, number)
        order = [keys[at] for at in random.permutation(np.repeat(np.arange(_KEYS), 20))]
        for key in order[::97]:
            expect(f"key-{of[key][0]}" == key, key)
        for loop in range(run.pick(8, 2)):
            start = perf_counter()
            for key in order:
                of[key]
            if loop:  # the first warms up
                run.add("get", (perf_counter() - start) / len(order))
        for loop in range(run.pick(8, 2)):
            new = [(key, np.full(_WORDS, number + loop)) for number, key in enumerate(keys)]
            start = perf_counter()
            for key, array in new:
                of[key] = array
            if loop:
                run.add("overwrite", (perf_counter() - start) / len(keys))
        for key, array in new:
            expect(of[key][-1] == array[0], f"{key} after the overwrite")
