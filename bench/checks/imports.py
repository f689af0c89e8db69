"""`import`: what ``import arraychest`` adds to ``import numpy``, each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import arraychest
from bench.checks.harness import OURS, Bench, Contestant, Figures, Floor, Row
from bench.peers.base import PeerMissingError

_CODE = """
import collections, collections.abc, sys, time
collections.MutableMapping = collections.abc.MutableMapping
start = time.perf_counter()
import numpy
middle = time.perf_counter()
try:
    __import__(sys.argv[1])
except ImportError as error:
    sys.exit(str(error))
print(middle - start, time.perf_counter() - middle)
"""

# In ms.
_FLOOR = Floor(50, of_ratio=False)


def environment(bench: Bench) -> dict[str, str]:
    """The environment for a fresh interpreter that imports the same arraychest.

    Compiled modules are kept in the bench's own folder, from the round that does not count on: an
    installed package has its own, and a checkout has none where Python was told not to write any.
    """
    assert arraychest.__file__ is not None
    places = [str(Path(arraychest.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "PYTHONPYCACHEPREFIX": str(bench.folder / "compiled"),
    }
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def run(bench: Bench) -> list[Row]:
    def import_of(module: str) -> Contestant:
        def run(folder: Path) -> Figures:
            done = subprocess.run(
                [sys.executable, "-c", _CODE, module],
                cwd=folder,
                env=environment(bench),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                if module == OURS:
                    raise RuntimeError(done.stderr)
                raise PeerMissingError(done.stderr.strip())
            numpy_alone, added = (1000 * float(word) for word in done.stdout.split())
            return {"numpy": numpy_alone, "added": added}

        return Contestant(module, run)

    samples = bench.interleave([import_of(name) for name in (OURS, "zict", "cachetools", "chest")])
    ours = samples[OURS, "added"]
    rows = [Row("import", "over import numpy", "ms", ours, floor=_FLOOR)]
    rows.append(
        Row("import", "over import numpy", "ms", ours, "import numpy", samples[OURS, "numpy"])
    )
    rows += [
        Row("import", "over import numpy", "ms", ours, f"import {name}", samples[name, "added"])
        for name in ("zict", "cachetools", "chest")
        if (name, "added") in samples
    ]
    return rows
