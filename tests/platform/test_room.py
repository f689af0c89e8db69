"""What differs between systems is named in one folder, and nothing else needs Linux."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arraychest
from tests.support import run_python

ROOT = Path(arraychest.__file__).parent
ELSEWHERE = [each for each in sorted(ROOT.rglob("*.py")) if each.parent.name != "platform"]

# Of `os`, `mmap`, `select`, `signal` and `socket`: what Linux has and macOS does not.
LINUX_ONLY = {
    "copy_file_range", "eventfd", "fdatasync", "getrandom", "getxattr", "listxattr",
    "memfd_create", "pidfd_open", "posix_fadvise", "posix_fallocate", "preadv2", "removexattr",
    "sched_getaffinity", "sched_setaffinity", "sched_setscheduler", "sendfile", "setns",
    "setxattr", "splice", "timerfd_create", "unshare", "epoll", "mremap", "sigtimedwait",
    "O_TMPFILE", "O_PATH", "O_DIRECT", "O_NOATIME",
}  # fmt: skip
LINUX_ONLY_CONSTANTS = ("POSIX_FADV_", "MADV_")
# Modules whose calls differ from system to system, and files that only Linux has.
MODULES = {"fcntl", "resource"}
FOLDERS = ("/proc/", "/sys/", "/dev/shm")


def named(source: str) -> Iterator[tuple[int, str]]:
    """What a text names that only some systems have, and on which line."""
    tree = ast.parse(source)
    texts = {
        id(node.value)  # docstrings and comments may speak of it
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name in MODULES:
                    yield node.lineno, each.name
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in LINUX_ONLY or name.startswith(LINUX_ONLY_CONSTANTS):
                yield node.lineno, name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            told = node.value in LINUX_ONLY or node.value.startswith(FOLDERS)
            if told and id(node) not in texts:
                yield node.lineno, node.value


@pytest.mark.parametrize("file", ELSEWHERE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_but_platform_names_what_only_some_systems_have(file):
    assert list(named(file.read_text())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os, fcntl", ["fcntl"]),
        ("from fcntl import flock", ["fcntl"]),
        ("os.posix_fallocate(1, 2, 3)", ["posix_fallocate"]),
        ("getattr(os, 'sendfile')", ["sendfile"]),
        ("open(f'/proc/self/{name}')", ["/proc/self/"]),
        ("mmap.MADV_DONTNEED", ["MADV_DONTNEED"]),
        ("def f():\n    '''/proc/self is not read.'''", []),
        ("os.open('x', os.O_RDONLY, dir_fd=3)", []),
    ],
)
def test_it_is_found_wherever_it_stands(source, found):
    assert [name for _, name in named(source)] == found


THE_MAIN_JOB = """
    import fcntl, mmap, os, sys
    gone = {gone!r}
    for name in [*gone, *(each for each in dir(os) if each.startswith(("POSIX_FADV", "SCHED_")))]:
        if hasattr(os, name):
            delattr(os, name)
    for name in [each for each in dir(fcntl) if each.startswith(("F_OFD", "F_SETLEASE", "F_GETLEASE",
                 "F_SETSIG", "F_GETSIG", "F_NOTIFY", "F_SETPIPE", "F_GETPIPE", "F_ADD_SEALS", "DN_"))]:
        delattr(fcntl, name)
    for name in ("MADV_REMOVE", "MADV_HUGEPAGE", "MADV_DONTFORK", "MADV_POPULATE_READ"):
        if hasattr(mmap, name):
            delattr(mmap, name)

    import numpy as np
    import arraychest
    path = sys.argv[1]
    with arraychest.open(path, "w", "1 MiB") as chest, arraychest.open(path, "a") as other:
        for number in range(8):
            chest[number] = np.full(100_000, float(number))  # 800 kB each: most are spilled
        chest["small"] = np.arange(5)
        chest.flush()
        assert [other[number].sum() for number in range(8)] == [100_000 * n for n in range(8)]
        with chest.edit(3) as array:
            array[0] = -1.0
        for number in range(4):
            del other[number + 4]
        chest[9] = np.ones(100_000)
        chest.flush()
        assert chest[3][0] == -1.0 and other[9].sum() == 100_000 and len(other) == 6
        with chest.create("new", (1000,), "f8") as array:
            array[:] = 2
        with chest.lock("new"), other.lock("small"):
            assert other["new"].sum() == 2000
        chest.prefetch([0, 1])
        assert chest.verify().ok
    with arraychest.Chest(available_memory="1 MiB") as temporary:
        temporary["x"] = np.zeros(1_000_000)
        temporary.flush()
        assert temporary["x"].sum() == 0
    with arraychest.open(path, "r", durable=True) as chest:
        assert sorted(map(str, chest)) == ["0", "1", "2", "3", "9", "new", "small"]
"""


@pytest.mark.parametrize("portable", [False, True])
def test_the_main_job_is_done_without_what_only_linux_has(tmp_path, monkeypatch, portable):
    if portable:
        monkeypatch.setenv("ARRAYCHEST_PLATFORM", "posix")
    # `os` finds where it is by itself; the standard library has no need of the rest.
    gone = sorted(LINUX_ONLY & set(dir(os)) - {"fdatasync"})
    assert "posix_fallocate" in gone or sys.platform != "linux"
    run_python(THE_MAIN_JOB.replace("{gone!r}", repr(gone)), tmp_path / "chest")


def test_an_unknown_platform_that_is_asked_for_is_told(monkeypatch):
    monkeypatch.setenv("ARRAYCHEST_PLATFORM", "plan9")
    done = run_python("import arraychest", check=False)
    assert 'expected ARRAYCHEST_PLATFORM to be "posix"' in done.stderr


@pytest.mark.parametrize("system", ["win32", "cygwin", "emscripten"])
def test_another_system_is_refused_in_one_sentence_at_the_first_line(system):
    done = run_python(
        f"""
        import sys
        sys.platform = {system!r}
        before = set(sys.modules)
        try:
            import arraychest
        except ImportError as error:
            print(error)
        assert "numpy" not in sys.modules and "fcntl" not in set(sys.modules) - before
        """
    )
    assert done.stdout.strip() == (
        "arraychest needs Linux or macOS: on Windows it runs in WSL (the Windows Subsystem for "
        "Linux)"
    )
