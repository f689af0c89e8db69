"""One turn of one peer at one workload, in a process of its own; prints one line of JSON.

Started by `bench.race`: ``python -m bench.one WORKLOAD PEER SCALE FOLDER SHARED``; with ``-`` as
the peer, what the workload's peers share is made.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any


def main() -> int:
    name, peer_name, scale, folder, shared = sys.argv[1:]
    small = scale == "small"
    result: dict[str, Any]
    try:
        from bench.workloads import RACES

        workload = RACES[name]()
        if peer_name == "-":
            workload.prepare(Path(shared), small=small)
            result = {}
        else:
            result = _turn(workload, peer_name, Path(folder), Path(shared), small)
    except BaseException as error:
        # Told, and not raised: the others still run.  A peer's own missing packages are no fault.
        from bench.peers.base import PeerMissingError

        if isinstance(error, PeerMissingError):
            result = {"missing": str(error)}
        else:
            result = {"error": traceback.format_exc()}
    # The last line; what a peer prints comes before it.
    print("\n" + json.dumps(result), flush=True)
    return 0


def _turn(workload: Any, name: str, folder: Path, shared: Path, small: bool) -> dict[str, Any]:
    from bench.peers import PEERS
    from bench.workload import Run, anonymous_bytes

    # What peers say of their own future is not for the readers of a table.
    warnings.simplefilter("ignore")
    run = Run(folder, shared, small, PEERS[name].shares.get(workload.name, 1))
    run.anon_before = anonymous_bytes(os.getpid())
    peer = PEERS[name](folder, workload.budget[small])
    # The garbage of one step is not collected in another: it is what dicts of 100,000 cost.
    gc.collect()
    gc.freeze()
    try:
        workload.play(peer, run)
        run.measure_disk()
        run.measure_memory()
    finally:
        peer.close()
    return {
        "seconds": run.seconds,
        "answers": run.answers,
        "anon_before": run.anon_before,
        "anon_most": run.anon_most,
        "disk": run.disk,
    }


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Peers' threads and finalisers have nothing more to say.
    os._exit(code)
