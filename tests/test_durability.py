"""What a power cut leaves: with ``durable=True`` each value that was flushed, complete.

A chest is worked with while every file operation is watched, and after each one it is noted what a
power cut at this moment may leave of the folder:

- the bytes of a file: those of its last fsync, the present ones, or any mixture of the two and of
  zeros, of either length;
- each name in a folder: whatever it has stood for since the folder's last fsync (so that a file may
  be there or not, a rename may have happened, or half of it, an unlink may be undone);
- the catalog, which C code writes: a copy of it as each commit left it, since with
  ``synchronous=FULL`` a commit that has returned is on stable storage.

Folders in such states are then built, all of them or a sample, and opened.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import arraychest
from arraychest import Chest
from arraychest.platform import leases
from tests.faults import Say, in_child, injected
from tests.support import audit
from tests.test_crash import LARGE, SMALL, array_in, filled, orphans

pytestmark = pytest.mark.usefixtures("each_codec")

ABSENT = None
ANYTHING = "anything"
Value = Any  # (number, size), ABSENT or ANYTHING
# What each key may be; a chest may be as any one of several of these says.
Promise = tuple[dict[str, frozenset[Value]], ...]

# What a name stands for: a file's or a folder's identity, or nothing.
Binding = int | str | None

_CATALOG = ("catalog.sqlite", "catalog.sqlite-wal")


class Cut(NamedTuple):
    """What a power cut behind one operation may leave.

    Attributes
    ----------
    operation
        Which one it was, for people.
    catalog
        The catalog's files as the last commit left them.
    promise
        What the chest must hold.
    names
        By folder and name, what it may stand for.
    contents
        By file, what was synced last and what it holds.
    """

    operation: str
    catalog: dict[str, bytes]
    promise: Promise
    names: dict[str, dict[str, tuple[Binding, ...]]]
    contents: dict[int, tuple[bytes, bytes]]


class Disk:
    """Watches a folder; an action for `injected`.

    Parameters
    ----------
    top
        The folder that the chest lies in, as ``chest``.
    syncs
        Whether fsync does anything.
    """

    def __init__(self, top: Path, *, syncs: bool = True) -> None:
        self.top = str(top)
        self.root = str(top / "chest")
        self.cuts: list[Cut] = []
        self._syncs = syncs
        self._lock = threading.RLock()
        self._promise: Promise = ({},)
        self._catalog: dict[str, bytes] = {}
        # Never closed while SQLite has the file open: that would let go of its locks.
        self._catalog_fd = -1
        self._identities: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._names: dict[str, dict[str, tuple[Binding, ...]]] = {self.top: {}}
        self._contents: dict[int, tuple[bytes, bytes]] = {}

    def close(self) -> None:
        if self._catalog_fd >= 0:
            os.close(self._catalog_fd)

    def promise(self, promise: Promise) -> None:
        with self._lock:
            self._promise = promise
            self._note("a promise")

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name.startswith("sql"):
            # Waiting for a lock of SQLite's with ours in hand would be a deadlock; who commits
            # waits for nobody.
            if name != "sql COMMIT":
                result = call()
                with self._lock:
                    self._note_catalog()
                    self._note(name)
                return result
            with self._lock:
                result = call()
                self._note_catalog()
                self._note(name)
            return result
        with self._lock:
            if name in ("fsync", "fdatasync"):
                path = os.readlink(f"/proc/self/fd/{args[0]}")
                if self._syncs:
                    self._sync(path)
                    self._note(f"{name} {path}")
                return None
            try:
                return call()
            finally:
                self._note(f"{name} {args[:2]}")

    def _note_catalog(self) -> None:
        path = f"{self.root}/{_CATALOG[0]}"
        if self._catalog_fd < 0:
            if not os.path.exists(path):
                return
            self._catalog_fd = os.open(path, os.O_RDONLY)
        size = os.fstat(self._catalog_fd).st_size
        files = {_CATALOG[0]: os.pread(self._catalog_fd, size, 0)}
        if os.path.exists(f"{self.root}/{_CATALOG[1]}"):
            files[_CATALOG[1]] = Path(self.root, _CATALOG[1]).read_bytes()
        if files != self._catalog:
            self._catalog = files

    def _sync(self, path: str) -> None:
        self._look()
        if path in self._names:
            self._names[path] = {
                name: bindings[-1:] for name, bindings in self._names[path].items()
            }
            return
        # `_look` knows no number of a file without a name.
        number = self._identities.get(os.lstat(path).st_ino) if os.path.exists(path) else None
        if number is not None:
            current = self._contents[number][1]
            self._contents[number] = current, current

    def _look(self) -> None:
        """Bring what is known up to what the folder is."""
        seen: dict[int, int] = {}
        self._look_at(self.top, seen)
        # The system gives the number of a file that is gone to the next one.
        self._identities = seen

    def _look_at(self, folder: str, seen: dict[int, int]) -> None:
        names = self._names.setdefault(folder, {})
        there: dict[str, Binding] = dict.fromkeys(names)
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            entries = []
        for entry in entries:
            if entry.name.startswith(_CATALOG[0]):
                continue
            if entry.is_dir(follow_symlinks=False):
                there[entry.name] = entry.path
            else:
                there[entry.name] = self._look_into(entry, seen)
        for name, binding in there.items():
            before = names.get(name, (None,))
            names[name] = before if before[-1] == binding else (*before, binding)
        for binding in there.values():
            if isinstance(binding, str):
                self._look_at(binding, seen)

    def _look_into(self, entry: os.DirEntry[str], seen: dict[int, int]) -> int:
        inode = entry.inode()
        number = seen.get(inode) or self._identities.get(inode)
        if number is None:
            number = next(self._numbers)
            self._contents[number] = b"", b""
        if inode not in seen:
            seen[inode] = number
            synced, before = self._contents[number]
            current = Path(entry.path).read_bytes()
            self._contents[number] = synced, before if before == current else current
        return number

    def _note(self, operation: str) -> None:
        before = self.cuts[-1] if self.cuts else None
        self._look()
        names = {
            folder: {name: known for name, known in inside.items() if known != (None,)}
            for folder, inside in self._names.items()
        }
        cut = Cut(operation, self._catalog, self._promise, names, dict(self._contents))
        if before is None or before[1:] != cut[1:]:
            self.cuts.append(cut)


class _NoLeases:
    """`fcntl`, where every lease is granted: to read a leased file would break the lease.

    Nobody else sees these files, so that nothing is lost by it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(fcntl, name)

    @staticmethod
    def fcntl(fd: int, command: int, argument: Any = 0) -> Any:
        return 0 if command == fcntl.F_SETLEASE else fcntl.fcntl(fd, command, argument)


# --- what is done while it is watched --------------------------------------------------------


class Work:
    """A chest that is worked with, and what it has to hold after a power cut at any moment."""

    def __init__(self, disk: Disk, other: Path) -> None:
        self.disk = disk
        self.other = other
        # What each key may be; the last one is what it is now.
        self._may: dict[str, list[Value]] = {}
        self.chest: Chest

    def _promise(self) -> None:
        self.disk.promise(({key: frozenset(values) for key, values in self._may.items()},))

    def put(self, key: str, number: float, size: int) -> None:
        self._may.setdefault(key, [ABSENT]).append((number, size))
        self._promise()
        self.chest[key] = filled(number, size)

    def delete(self, key: str) -> None:
        self._may[key].append(ABSENT)
        self._promise()
        del self.chest[key]

    def flushed(self, act: Callable[[], object] | None = None) -> None:
        """Flush, or do what flushes: from here on the last values are there."""
        (self.chest.flush if act is None else act)()
        self._may = {key: values[-1:] for key, values in self._may.items()}
        self._promise()

    def whole(self, act: Callable[[], object], change: dict[str, Value]) -> None:
        """Do one step, of a chest that is flushed: all of it is there afterwards, or nothing."""
        before = {key: frozenset(values) for key, values in self._may.items()}
        for key, value in change.items():
            before.setdefault(key, frozenset([ABSENT]))
            self._may[key] = [value]
        after = {key: frozenset(values) for key, values in self._may.items()}
        self.disk.promise((before, after))
        act()
        self.disk.promise((after,))

    def in_place(self, key: str, number: float, size: int) -> None:
        self._may[key] = [ANYTHING]
        self._promise()
        with self.chest.edit(key, in_place=True) as array:
            array[:] = number
        self._may[key] = [ANYTHING, (number, size)]
        self._promise()


Script = Callable[[Work], None]


def plain(work: Work) -> None:
    """Values with files of their own and packed ones; overwritten, deleted, their files reused."""
    for n in range(3):
        work.put(f"L{n}", 100 + n, LARGE)
        work.put(f"s{n}", 200 + n, SMALL)
    work.flushed()
    work.put("L0", 110, LARGE)
    work.put("s0", 210, SMALL)
    work.delete("L1")
    work.delete("s1")
    work.flushed()
    work.put("L3", 120, LARGE)  # into a file that was freed
    work.put("L2", 121, SMALL)
    work.put("s2", 221, LARGE)
    work.flushed()
    work.flushed(work.chest.close)


def steps(work: Work) -> None:
    """What is done as one step."""
    chest = work.chest
    for n in range(3):
        work.put(f"L{n}", 100 + n, LARGE)
        work.put(f"s{n}", 200 + n, SMALL)
    work.flushed()

    def transaction() -> None:
        with chest.transaction():
            chest["L0"], chest["s0"] = filled(303, LARGE), filled(301, SMALL)
            chest["new"] = filled(307, LARGE)  # a value tree
            del chest["L1"], chest["s1"]

    def edit(key: str, number: float) -> Callable[[], None]:
        def act() -> None:
            with chest.edit(key) as array:
                array[:] = number

        return act

    def create() -> None:
        with chest.create("born", LARGE) as array:
            array[:] = 320

    work.whole(
        transaction,
        {"L0": (303, LARGE), "s0": (301, SMALL), "new": (307, LARGE), "L1": ABSENT, "s1": ABSENT},
    )
    work.whole(edit("L0", 310), {"L0": (310, LARGE)})
    work.whole(edit("s0", 311), {"s0": (311, SMALL)})
    work.whole(create, {"born": (320, LARGE)})
    work.flushed(chest.close)


def moves(work: Work) -> None:
    """What is linked from elsewhere, what compaction moves, and mode "w"."""
    chest = work.chest
    for n in range(6):
        work.put(f"s{n}", 200 + n, SMALL)
    work.put("L0", 100, LARGE)
    work.flushed()
    work.delete("s1")
    work.delete("s3")
    work.flushed(chest.compact)

    def link() -> None:
        with arraychest.open(work.other, "r") as source:
            chest.update(source)

    work.whole(link, {"T0": (400, LARGE), "t0": (401, SMALL), "L0": (402, LARGE)})
    work.flushed(chest.close)


def in_place(work: Work) -> None:
    """Values that are written to through maps: what was there at a flush is there."""
    chest = work.chest
    work.put("L0", 100, LARGE)
    work.put("s0", 200, SMALL)
    work.flushed()
    work.in_place("L0", 101, LARGE)
    work.flushed()
    work.in_place("s0", 201, SMALL)
    work.flushed()
    work.put("L1", 102, LARGE)
    work.flushed()
    work.in_place("L0", 103, LARGE)
    work.flushed(chest.close)


SCRIPTS: dict[str, Script] = {
    "plain": plain,
    "steps": steps,
    "moves": moves,
    "in place": in_place,
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chest to link from, none of which was ever synced."""
    path = tmp_path_factory.mktemp("other") / "chest"
    with arraychest.open(path, "w") as chest:
        chest["T0"], chest["t0"] = filled(400, LARGE), filled(401, SMALL)
        chest["L0"] = filled(402, LARGE)
    return path


def cuts_of(
    name: str, top: Path, other: Path, *, durable: bool = True, syncs: bool = True
) -> list[Cut]:
    """Work with a chest, and return what a power cut may leave behind each operation."""
    top.mkdir()
    disk = Disk(top, syncs=syncs)
    try:
        with pytest.MonkeyPatch.context() as patch, injected(disk):
            patch.setattr(leases, "fcntl", _NoLeases())
            work = Work(disk, other)
            work.chest = arraychest.open(top / "chest", "a", "64 MiB", durable=durable)
            try:
                SCRIPTS[name](work)
            finally:
                work.chest.close()
    finally:
        disk.close()
    return disk.cuts


# --- what a power cut leaves -----------------------------------------------------------------


# What may be in a file that was written to since it was synced.
VARIANTS = ("old", "new", "cut short", "zeros at the end", "zeros at the start", "0", "1", "2")


def content(synced: bytes, current: bytes, variant: str) -> bytes:
    """One of the things that may be in a file; a digit is the seed of a mixture, block by block.

    What was synced and not written to since is there in any case.
    """
    size = min(len(synced), len(current))
    same = np.frombuffer(synced[:size], np.uint8) == np.frombuffer(current[:size], np.uint8)
    start = size if same.all() else int(same.argmin())
    end = len(current)
    if len(synced) == end and not same.all():
        end -= int(same[::-1].argmin())
    kept, old, new = current[:start], synced[start:end], current[start:end]
    half = len(new) // 2
    match variant:
        case "old":
            return synced
        case "new":
            return current
        case "cut short":
            return kept + new[:half] + synced[start + half :]
        case "zeros at the end":
            return kept + new[:half].ljust(len(new), b"\0") + current[end:]
        case "zeros at the start":
            return kept + bytes(half) + new[half:] + current[end:]
    rng = random.Random(variant)
    blocks = [kept]
    for at in range(0, len(new), 4096):
        fresh = new[at : at + 4096]
        stale = old[at : at + len(fresh)].ljust(len(fresh), b"\0")
        blocks.append(rng.choice((fresh, stale, bytes(len(fresh)))))
    return b"".join(blocks) + current[end:]


State = tuple[tuple[str, Any], ...]


def states_of(cut: Cut, limit: int, seed: random.Random) -> Iterator[State]:
    """The states of the folder that a power cut may leave: all, or so many of them."""
    spots: list[tuple[str, str]] = []
    options: list[Sequence[Any]] = []
    for folder, names in cut.names.items():
        for name, bindings in names.items():
            spots.append((folder, name))
            options.append(sorted(set(bindings), key=bindings.index))
    reachable = {binding for each in options for binding in each if isinstance(binding, int)}
    for number in sorted(reachable):
        spots.append(("", str(number)))
        synced, current = cut.contents[number]
        options.append(VARIANTS if synced != current else ("new",))
    total = 1
    for each in options:
        total *= len(each)
    chosen: Iterator[tuple[Any, ...]] | list[tuple[Any, ...]]
    if total <= limit:
        chosen = itertools.product(*options)
    else:
        # The oldest and the newest of everything, one thing of each at a time, and others.
        chosen = [tuple(each[0] for each in options), tuple(each[-1] for each in options)]
        chosen += [tuple(seed.choice(each) for each in options) for _ in range(max(0, limit - 2))]
    for state in chosen:
        yield tuple(zip(spots, state, strict=True))


def build(cut: Cut, state: State, top: str, to: Path) -> None:
    """Make the folder that the state describes."""
    chosen = dict(state)
    made: dict[int, Path] = {}

    def fill(folder: str, target: Path) -> None:
        target.mkdir()
        for name in cut.names.get(folder, {}):
            binding = chosen[folder, name]
            if isinstance(binding, str):
                fill(binding, target / name)
            elif binding in made:
                os.link(made[binding], target / name)
            elif binding is not None:
                made[binding] = target / name
                data = content(*cut.contents[binding], chosen["", str(binding)])
                (target / name).write_bytes(data)

    fill(top, to)
    if (to / "chest").is_dir():
        for name, data in cut.catalog.items():
            (to / "chest" / name).write_bytes(data)


def may_be(found: dict[str, Value], promise: Promise) -> bool:
    return any(
        all(
            ANYTHING in allowed or found.get(key, ABSENT) in allowed
            for key, allowed in each.items()
        )
        and found.keys() <= each.keys()
        for each in promise
    )


def contents(chest: Chest) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key in chest:
        array = array_in(chest[key])
        whole = array.size and (array == array[0]).all()
        found[key] = (float(array[0]), array.size) if whole else "a mixture"
    return found


def check(path: Path, promise: Promise) -> None:
    """Whether a chest is what it has to be after a power cut."""
    if not (path / "catalog.sqlite").exists():
        assert may_be({}, promise), "the chest is gone"
        return
    for mode in ("r", "a"):
        try:
            with arraychest.open(path, mode) as chest:
                found = contents(chest)
                assert len(chest) == len(found)
                assert may_be(found, promise), f"{found} is none of {promise}"
        except arraychest.ChestFormatError:
            assert may_be({}, promise), "the chest cannot be opened"
            return
    assert orphans(path) == []
    audit(str(path))


def losses(cuts: list[Cut], top: Path, limit: int, seed: int, most: int) -> tuple[int, list[str]]:
    """Build states and open them, in a child that must not crash.

    Parameters
    ----------
    limit
        States of one cut at most.
    most
        States in all, at most.

    Returns
    -------
    tuple[int, list[str]]
        How many there were, and what was wrong with them.
    """
    rng = random.Random(seed)
    every = [(cut, state) for cut in cuts for state in states_of(cut, limit, rng)]
    seen = set()
    different = []
    for cut, state in every:
        told = (id(cut.catalog), id(cut.promise), state)
        if told not in seen:
            seen.add(told)
            different.append((cut, state))
    if len(different) > most:
        different = rng.sample(different, most)

    def child(say: Say) -> list[str]:
        wrong = []
        for cut, state in different:
            say(cut.operation)
            try:
                build(cut, state, str(top), top.parent / "state")
                check(top.parent / "state" / "chest", cut.promise)
            except Exception as error:
                wrong.append(f"{cut.operation}: {type(error).__name__}: {error}")
            finally:
                shutil.rmtree(top.parent / "state")
        return wrong

    outcome = in_child(child, seconds=3600)
    assert not outcome.signal, f"ended by signal {outcome.signal} after {outcome.said[-1:]}"
    assert outcome.error is None, outcome.error
    return len(different), outcome.result


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_power_cut_loses_nothing_that_was_flushed(tmp_path, other, name):
    cuts = cuts_of(name, tmp_path / "disk", other)
    count, wrong = losses(cuts, tmp_path / "disk", limit=6, seed=1, most=60)
    assert count >= 40
    assert not wrong, (len(wrong), wrong[:5])


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_flushed(tmp_path, other, name, seed):
    cuts = cuts_of(name, tmp_path / "disk", other)
    count, wrong = losses(cuts, tmp_path / "disk", limit=24, seed=seed, most=2000)
    print(f"{name}: {len(cuts)} moments, {count} states")
    assert not wrong, (len(wrong), wrong[:5])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("how", ["durable=False", "an fsync that does nothing"])
def test_a_power_cut_is_found_out_where_nothing_is_synced(tmp_path, other, name, how):
    """These tests can fail."""
    lazy = {"durable": False} if how == "durable=False" else {"syncs": False}
    cuts = cuts_of(name, tmp_path / "disk", other, **lazy)
    _, wrong = losses(cuts, tmp_path / "disk", limit=2, seed=1, most=20)
    assert wrong
