"""How much memory the process may use: the host's, what its cgroups allow, and its rlimits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

from arraychest.platform.choice import PORTABLE


class MemoryReading(NamedTuple):
    """What may be used in all, and what of it is free now, in bytes.

    Attributes
    ----------
    limit, available
        Bytes.
    source
        What limits it, for people to read.
    """

    limit: int
    available: int
    source: str = "the memory of this machine"


def memory_readings(root: str = "/") -> Iterator[MemoryReading]:
    """Everything that limits this process, the host first.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are found; tests put a tree of their own there.
    """
    # Not before it is needed: a fifth of what the import of all of arraychest takes.
    import psutil

    host = psutil.virtual_memory()
    yield MemoryReading(host.total, host.available)
    if not (PORTABLE and root == "/"):
        yield from _of_cgroups(root)
    yield from _of_rlimits()


def _of_rlimits() -> Iterator[MemoryReading]:
    for name, used in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
        number = getattr(resource, name, None)
        soft = resource.RLIM_INFINITY if number is None else resource.getrlimit(number)[0]
        if soft != resource.RLIM_INFINITY:
            import psutil

            free = soft - getattr(psutil.Process().memory_info(), used, 0)
            yield MemoryReading(soft, free, f"{name} (ulimit)")


def _of_cgroups(root: str) -> Iterator[MemoryReading]:
    """Limit and free bytes of every memory cgroup that the process is in, innermost first.

    Linux has them: a container's limit is one.
    """
    for line in _lines(os.path.join(root, "proc/self/cgroup")):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            mounts = _mounts(root, "cgroup2", "")
        elif "memory" in controllers.split(","):
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
            mounts = _mounts(root, "cgroup", "memory")
        else:
            continue
        for mount, mount_root in mounts:
            # Inside a container the path may start with the container's own, which is the mount.
            inner = os.path.relpath(path, mount_root) if path.startswith(mount_root) else "."
            parts = [part for part in inner.split("/") if part not in (".", "..", "")]
            for depth in range(len(parts), -1, -1):
                yield from _of_cgroup(os.path.join(mount, *parts[:depth]), *names)


def _of_cgroup(folder: str, limit: str, usage: str, cache: str) -> Iterator[MemoryReading]:
    file = os.path.join(folder, limit)
    try:
        most = int(next(_lines(file)))
        used = int(next(_lines(os.path.join(folder, usage))))
    except (StopIteration, ValueError):
        return  # "max", or no such controller here
    if most >= 1 << 60:
        return  # version 1 says so of a group without a limit
    for line in _lines(os.path.join(folder, "memory.stat")):
        name, _, value = line.partition(" ")
        if name == cache:
            # Page cache that the kernel drops before it would refuse memory.
            used -= int(value)
    yield MemoryReading(most, most - used, f"the cgroup's {file}")


def _mounts(root: str, kind: str, controller: str) -> Iterator[tuple[str, str]]:
    """Where a cgroup hierarchy is mounted, and which of its groups the mount shows."""
    for line in _lines(os.path.join(root, "proc/self/mountinfo")):
        fields, _, tail = line.partition(" - ")
        words, tail_words = fields.split(" "), tail.split(" ")
        if (
            len(words) > 4
            and tail_words[0] == kind
            and (not controller or controller in tail_words[-1].split(","))
        ):
            yield os.path.join(root, words[4].lstrip("/")), words[3]


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from (line.rstrip("\n") for line in file)
    except OSError:
        return


def cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity") and not PORTABLE:
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
