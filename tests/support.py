"""What several test modules need: exact comparison, an audit of a folder, a subprocess."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import arraychest
from arraychest.formats import manifest
from arraychest.platform.folders import path_of

# The folder that `arraychest` was imported from, for subprocesses.
IMPORT_ROOT = str(Path(arraychest.__file__).parent.parent)


# A worker's options: what the documentation shows, and what a test starts one with.
PRELOAD = ["--preload", "arraychest.dask.preload"]


def assert_identical(found: Any, expected: Any, *, order: bool = True) -> None:
    """Same type, dtype in every detail, shape, order in memory, and value bit by bit.

    A compressed array is as good as the array that it decompresses to.  So it is in lists, tuples
    and dicts; what else is no array is the same if it is equal.
    """
    if not isinstance(expected, np.ndarray | np.generic):
        assert type(found) is type(expected)
        if type(expected) in (list, tuple):
            assert len(found) == len(expected)
            for each, other in zip(found, expected, strict=True):
                assert_identical(each, other, order=order)
        elif type(expected) is dict:
            assert list(found) == list(expected)
            for key, other in expected.items():
                assert_identical(found[key], other, order=order)
        else:
            assert found == expected
        return
    if type(found) is arraychest.CompressedArray:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        found = np.asarray(found)
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    assert found.dtype.type is expected.dtype.type
    assert repr(found.dtype) == repr(expected.dtype)
    assert found.dtype.isalignedstruct == expected.dtype.isalignedstruct
    assert found.shape == expected.shape
    if isinstance(expected, np.str_ | np.bytes_):
        # NumPy's comparison overlooks NULs at the end.
        assert len(found) == len(expected)
        assert found[:] == expected[:]
    if order and isinstance(expected, np.ndarray):
        for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS"):
            if expected.flags.c_contiguous or expected.flags.f_contiguous:
                assert found.flags[flag] == expected.flags[flag], flag
    assert_same_elements(np.asarray(found), np.asarray(expected))


def assert_same_elements(found: np.ndarray, expected: np.ndarray) -> None:
    """Element by element: NaN equals NaN, and -0.0 is not 0.0; padding does not count."""
    assert found.shape == expected.shape
    if expected.dtype.names is not None:
        for name in expected.dtype.names:
            assert_same_elements(found[name], expected[name])
    elif expected.dtype.hasobject:
        assert found.tolist() == expected.tolist()
    elif expected.dtype.char in "gG":  # long doubles have bytes that mean nothing
        assert np.array_equal(found, expected, equal_nan=True)
        assert np.array_equal(np.signbit(found.real), np.signbit(expected.real))
    else:
        assert found.tobytes() == expected.tobytes()


def named(value: Any) -> str:
    """What a parameter is called: the same in every process, which each name their own tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:40]


def listing(folder: str) -> dict[str, int]:
    """Every file and folder below a folder, and its size in bytes."""
    return {
        os.path.relpath(os.path.join(top, name), folder): os.path.getsize(os.path.join(top, name))
        for top, folders, names in os.walk(folder)
        for name in [*folders, *names]
    }


def audit(path: str) -> None:
    """Assert that a closed chest's folder is sound: rows, packs and files tell the same story."""
    catalog = os.path.join(path, "catalog.sqlite")
    connection = sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT gen, pack, offset, stored FROM entry").fetchall()
        packs = connection.execute("SELECT id, bytes, live FROM pack").fetchall()
        (unclean,) = connection.execute("SELECT count(*) FROM session").fetchone()
    finally:
        connection.close()
    files = {
        os.path.relpath(os.path.join(folder, name), path)
        for top in ("data", "packs", "spare")
        for folder, _, names in os.walk(os.path.join(path, top))
        for name in names
    }
    # A folder of blocks is one value, and nothing is in it that its manifest does not name.
    blocked: dict[str, dict[str, int]] = {}
    for name in [name for name in files if ".blocks/" in name]:
        files.remove(name)
        folder, _, block = name.rpartition("/")
        size = os.path.getsize(os.path.join(path, name))
        blocked.setdefault(folder, {})[block] = size
    files.update(blocked)
    own = {os.path.splitext(name.rpartition("-")[2])[0]: name for name in files if "data" in name}
    ends = {identity: nbytes for identity, nbytes, _ in packs}
    live = dict.fromkeys(ends, 0)
    for generation, pack, offset, stored in rows:
        if pack is None:
            name = own.pop(f"{generation:x}")
            if offset == 1:
                assert name.endswith(".blocks")
                assert sum(blocked[name].values()) == stored
                told = manifest.decode(Path(path, name, manifest.NAME).read_bytes())
                assert len(blocked[name]) == len(told.blocks) + 1
            else:
                assert os.path.getsize(os.path.join(path, name)) == stored
            files.remove(name)
        else:
            assert pack in ends, f"a row names pack {pack:x}, which does not exist"
            assert offset % 64 == 0
            assert offset + stored <= ends[pack]
            live[pack] += max(64, -(-stored // 64) * 64)
    assert live == {identity: nbytes for identity, _, nbytes in packs}
    for identity in ends:
        name = f"packs/{identity:x}.pack"
        assert os.path.getsize(os.path.join(path, name)) >= ends[identity]
        files.remove(name)
    # What was written and thrown away, and could not be removed, is for the next writer to sweep.
    assert unclean or not files, f"orphans: {files}"


@contextlib.contextmanager
def hears_interrupts() -> Iterator[None]:
    """What is started or forked within this hears Ctrl-C, as a program in the foreground does.

    A shell lets what it starts in the background ignore SIGINT, and every child inherits that.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    # Python installs handlers in its main thread only.
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def start_program(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program that hears Ctrl-C; the options are those of `subprocess.Popen`."""
    with hears_interrupts():
        return subprocess.Popen(command, **options)


def where_is(fd: int) -> str:
    """What a descriptor is of: a path, or how the system names what has none.  OSError if closed."""
    if sys.platform == "linux":
        return os.readlink(f"/proc/self/fd/{fd}")
    status = os.fstat(fd)
    return path_of(fd) or f"{stat.S_IFMT(status.st_mode):o}:[{status.st_ino}]"


def run_python(
    code: str, *arguments: str, timeout: float = 120, prefix: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter; `prefix` goes before it in the shell, as ``ulimit``."""
    environment = {**os.environ, "PYTHONPATH": IMPORT_ROOT, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    if prefix:
        command = ["bash", "-c", f'{prefix}; exec "$@"', "bash", *command]
    with hears_interrupts():
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def fill_disk(disk: Path, *, left: int = 0) -> None:
    """Fill a disk with a file called ``filler``, but for so many bytes."""
    fd = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(4096))
        os.ftruncate(fd, max(0, os.fstat(fd).st_size - left))
    finally:
        os.close(fd)
