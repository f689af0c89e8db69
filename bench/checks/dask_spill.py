"""`dask-spill`: what a limit of memory adds to what dask computes, beside dask's own spilling.

An x of four times what a worker may use, and what is made of it; terrain over time.  Each turn is
a cluster of one worker of two threads in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.checks.harness import OURS, Bench, Floor, Row
from bench.peers import LIMIT, PEERS
from bench.peers.base import load
from bench.workload import Run
from bench.workloads.dask import PAUSES, Dask

_NAME = "dask-spill"
_DEFAULT = "dask SpillBuffer"
_UNLIMITED = "no limit"
_ZICT = "zict"


def run(bench: Bench) -> list[Row]:
    load("distributed")
    race = Dask(side=19_600)
    peers = {OURS: OURS, _DEFAULT: _DEFAULT, _UNLIMITED: LIMIT, _ZICT: _ZICT}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in peers}
    # A turn takes a minute.
    for number in range(bench.pick(min(bench.rounds, 2), 1)):
        names = list(peers)
        for name in names[number % 3 :] + names[: number % 3]:
            if name == _ZICT and number:
                continue  # it takes several times as long
            bench.say(f"round {number + 1}: {name}")
            for step, figures in _turn(bench, race, peers[name]).items():
                found[name].setdefault(step, []).extend(figures)
    rows = []
    for title in race.titles:
        base = float(np.median(found[_UNLIMITED][title]))
        ours, theirs = (
            [max(0.0, seconds - base) for seconds in found[name][title]]
            for name in (OURS, _DEFAULT)
        )
        floor = None if bench.small or "terrain" in title else Floor(0.5)
        rows += [
            Row(_NAME, title, "s", found[OURS][title], other, found[other][title])
            for other in (_DEFAULT, _ZICT, _UNLIMITED)
        ]
        rows.append(Row(_NAME, f"{title}: added by the limit", "s", ours, _DEFAULT, theirs, floor))
    ours, theirs = ([sum(found[name][PAUSES])] for name in (OURS, _DEFAULT))
    floor = None if bench.small or theirs[0] else Floor(0, of_ratio=False)
    return [*rows, Row(_NAME, PAUSES, "", ours, _DEFAULT, theirs, floor)]


def _turn(bench: Bench, race: Dask, name: str) -> dict[str, list[float]]:
    peer = PEERS[name]
    with bench.fresh_folder() as folder:
        files, own = folder / "files", folder / "own"
        files.mkdir()
        own.mkdir()
        run = Run(files, folder, bench.small)
        made = peer(Path(own), race.budget[bench.small])
        try:
            race.play(made, run)
        finally:
            made.close()
    return run.seconds
