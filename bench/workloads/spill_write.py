"""`spill-write`: incompressible arrays to disk, put and flushed."""

from __future__ import annotations

from typing import Any

from bench.workload import ARRAY_BYTES, MIB, Arrays, Run, Step, Workload


class SpillWrite(Workload):
    name = "spill-write"
    title = "Arrays of 16 MiB, put and flushed"
    needs = ("put", "get", "flush")
    steps = (Step("array", nbytes=ARRAY_BYTES, limit=True, stores=True),)
    rounds = 5
    seconds = 90
    budget = (256 * MIB, 2 * MIB)
    disk = (1800 * MIB, 32 * MIB)
    durable = True

    def play(self, peer: Any, run: Run) -> None:
        count = run.count(40, 6)
        made = Arrays(run)
        # All of them first: what is written while the next one is made would not be seen.
        arrays = [made.make(number) for number in range(count)]
        run.settled()
        run.warm(count * ARRAY_BYTES[0])
        with run.time("array", count):
            for number, array in enumerate(arrays):
                peer.put(f"key_{number}", array)
            peer.flush()
        run.measure_disk()
        del arrays, array
        if hasattr(peer, "reopen"):
            peer.reopen()
        for number in range(0, count, 3):
            made.check(peer.get(f"key_{number}"), number)
