"""arraychest beside its peers and the machine's own limit, measured in one run.

Run from the repository's root: ``python -m bench --help``; the peers are the extra ``bench``.

Every pair of a workload (`bench.workloads`) and a peer (`bench.peers`) is played in a fresh
process (`bench.one`), round by round, each round begun by another peer (`bench.race`).  A workload
warms up and times its steps, and checks what it reads; what it answers has to be what all others
answer.  `bench.report` judges:

- the best peer is the best of those that promise at least what arraychest does: where values are
  stored to stay, they survive as much; where size counts, they take no more of the disk;
- the limit is the same bytes moved by bare system calls.  Where it is more than that (an index in
  memory, a log that is read to be opened), it is shown and not judged;
- memory is anonymous memory beyond what the workload's own data took before it began: pages of
  mapped files are the kernel's.

`bench.checks` are figures of arraychest by itself, with a floor for some, in one process.

A peer is added as a class in `bench.peers` with the methods that it can do; a workload as a class
in `bench.workloads`.  Results of full runs are kept in ``bench/results/``, as ``--json`` writes
them; the guide carries the table of the newest (``--markdown``), and README.md a few rows of it.
"""
