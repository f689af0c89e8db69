"""Blocked arrays under attack: crashes, a disk or system that refuses, hostile and damaged folders."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import shutil
import sqlite3
import zlib

import numpy as np
import pytest

import arraychest
from arraychest.engine.append import finish
from arraychest.engine.blocks import begin
from arraychest.errors import (
    ArrayChestError,
    CorruptEntryError,
    QuotaError,
    SpillError,
)
from arraychest.formats import manifest
from arraychest.values.keys import encode_key
from tests.engine.test_blocked import (
    HELD,
    HELD_CHUNKS,
    folder_of,
    folders,
    held,
    put_blocks,
    unfinished,
    write_blocks,
)
from tests.faults import Countdown, die, in_child, injected
from tests.support import audit, fill_disk

# --- crashes --------------------------------------------------------------------------------------


def is_block_work(name, args):
    """What happens to files of blocks and to the catalog, so that there are few places to die at."""
    return name.startswith("sql ") or name in (
        "write", "writev", "pwritev", "rename", "link", "unlink", "makedirs", "ftruncate"
    )  # fmt: skip


def test_after_a_crash_anywhere_in_an_append_the_value_is_old_or_new(tmp_path):
    array = np.arange(6.0)
    template = str(tmp_path / "template")
    with arraychest.open(template) as chest:
        chest.append("x", array)
        chest.flush()

    def append(path, action):
        with arraychest.open(path) as chest:
            with injected(action):
                chest.append("x", array + 10)
            os._exit(0)

    def count(say):
        path = str(tmp_path / "counted")
        shutil.copytree(template, path)
        with arraychest.open(path) as chest:
            action = Countdown(0, only=is_block_work)
            with injected(action):
                chest.append("x", array + 10)
        return action.count

    counted = in_child(count)
    assert counted.error is None, counted.error
    assert counted.result > 5
    seen = set()
    step = max(1, counted.result // 24)
    for at in range(1, counted.result + 1, step):
        path = str(tmp_path / f"c{at}")
        shutil.copytree(template, path)
        ended = in_child(
            lambda say, path=path, at=at: append(path, Countdown(at, die, only=is_block_work))
        )
        assert ended.signal == 9 or ended.error
        with arraychest.open(path) as chest:
            found = np.asarray(chest["x"]).tolist()
            assert found in (array.tolist(), [*array, *(array + 10)])
            seen.add(len(found))
            assert chest.verify().ok
            # Nobody can go on with it, or reads it: it is gone at once.
            assert unfinished(path) == []
            assert len(folders(path)) == 1
        audit(path)
        shutil.rmtree(path)
    assert seen == {6, 12}


def test_a_crash_between_the_name_and_the_row_leaves_what_the_next_writer_sweeps(path):
    def store(say):
        chest = arraychest.open(path)
        chest["old"] = np.zeros(2)
        chest.flush()
        writer = write_blocks(chest, "x", np.arange(4), ((2, 2),), "x")
        chest._engine.session.committer.place = lambda *args, **kwargs: die()
        say("written")
        finish(chest._engine, "x", writer)

    ended = in_child(store)
    assert ended.signal == 9
    assert len(folders(path)) == 1
    with arraychest.open(path) as chest:
        assert list(chest) == ["old"]
        chest["another"] = np.zeros(2)
        assert chest.verify().ok
    assert folders(path) == []
    assert unfinished(path) == []
    audit(path)


def test_what_was_given_up_is_removed_after_a_day(path):
    with arraychest.open(path) as chest:
        chest["x"] = np.zeros(2)
        writer = write_blocks(chest, "x", np.arange(4), ((2, 2),), "x", lambda index: index == (0,))
    with arraychest.open(path) as chest:
        assert writer.missing() == [(1,)]
        os.utime(writer.folder, (1, 1))
        with writer.held():
            chest.compact()
            assert writer.missing() == [(1,)]
        chest.compact()
        assert unfinished(path) == []
    # What a stranger may have laid there, too.
    place = f"{path}/unfinished"
    os.makedirs(place, exist_ok=True)
    os.symlink("/etc", f"{place}/left-1")
    os.mkfifo(f"{place}/left-2")
    with arraychest.open(path):
        assert unfinished(path) == []
    assert os.path.isdir("/etc")


# --- faults ---------------------------------------------------------------------------------------


def test_on_a_full_disk_the_value_is_the_old_one_and_nothing_is_left(tiny_disk):
    path = str(tiny_disk / "c")
    with arraychest.open(path) as chest:
        chest.append("x", np.zeros(4))
        writer = begin(chest._engine.session, "y", np.dtype("f8"), ((1 << 17,) * 9,), "y")
        with pytest.raises(SpillError, match="block"):
            for index in manifest.indices(writer.chunks):
                writer.write(index, np.ones(1 << 17))
        written = 9 - len(writer.missing())
        assert 0 < written < 9
        assert len(os.listdir(writer.folder)) == written
        with pytest.raises(SpillError):
            finish(chest._engine, "y", writer)
        assert len(writer.missing()) == 9 - written
        with pytest.raises(SpillError):
            chest.append("x", np.ones(1 << 20))
        assert chest["x"].shape == (4,)
        assert "y" not in chest
        assert unfinished(path) == [os.path.basename(writer.folder)]
        writer.discard()
        # Not even a manifest can be written.
        fill_disk(tiny_disk)
        with pytest.raises(SpillError):
            chest.append("x", np.ones(1))
        assert chest["x"].shape == (4,)
        (tiny_disk / "filler").unlink()
        chest.append("x", np.ones(1))
        assert chest["x"].shape == (5,)
        assert unfinished(path) == []
    audit(path)


@pytest.mark.parametrize("what", ["x", None])
def test_a_fault_at_any_operation_leaves_the_old_value_or_the_new_one(path, what):
    with arraychest.open(path) as chest:
        chest.append("x", np.zeros(4))
        put_blocks(chest, "y", np.arange(3.0), ((3,),))
        outcomes, given = set(), chest["y"]
        for number in (errno.ENOSPC, errno.EMFILE, errno.EIO):
            at = 0
            while True:
                at += 1

                def fail(number=number):
                    raise OSError(number, os.strerror(number))

                action = Countdown(
                    at,
                    fail,
                    only=lambda name, args: not name.startswith("sql ") and name != "close",
                )
                chest["x"] = given
                try:
                    with injected(action):
                        if what:
                            chest.append("x", np.ones(1))
                        else:
                            chest["x"] = given
                except (ArrayChestError, OSError) as error:
                    assert isinstance(error, ArrayChestError), error
                    outcomes.add("refused")
                    assert len(chest["x"]) == 3
                else:
                    outcomes.add("done")
                    assert len(chest["x"]) == (4 if what else 3)
                if not action.struck:
                    break
                assert at < 500
        assert outcomes == {"refused", "done"}
        chest.append("x", np.ones(1))
        del given
        assert chest.verify().ok
        chest.compact()
        gc.collect()
        chest.compact()
        assert unfinished(path) == []
    with arraychest.open(path):
        pass
    audit(path)


def test_out_of_descriptors_it_says_so_and_goes_on_later(path):
    array = np.arange(6.0)
    with arraychest.open(path) as chest:
        blocked = put_blocks(chest, "x", array, ((2, 4),))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(OSError, match="open files"):
                blocked[0]
            with pytest.raises(ArrayChestError):
                chest.append("x", array)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        np.testing.assert_array_equal(blocked, array)
        chest.append("x", array)
        assert len(chest["x"]) == 12


def test_more_than_max_disk_is_refused_and_the_blocks_stay(path):
    array = np.ones(100_000)
    with arraychest.open(path, max_disk="1 MiB", on_full="refuse") as chest:
        chest["old"] = np.zeros(50_000)
        chest.flush()
        with pytest.raises(QuotaError):
            finish(chest._engine, "x", write_blocks(chest, "x", array, ((50_000,) * 2,), "x"))
        writer = begin(chest._engine.session, "x", array.dtype, ((50_000,) * 2,), "x")
        assert writer.missing() == []
        with pytest.raises(QuotaError):
            chest.append("y", array)
        assert list(chest) == ["old"]
        assert unfinished(path) == [os.path.basename(writer.folder)]
        del chest["old"]
        chest.flush()
        finish(chest._engine, "x", writer)
        # One value is replaced by another that is as large.
        put_blocks(chest, "x", array + 1, ((100_000,),))
        chest.append("x", np.ones(10))
        assert len(chest["x"]) == 100_010
    audit(path)


def test_with_max_disk_others_are_evicted_for_it(path):
    with arraychest.open(path, max_disk="1 MiB", on_full="evict") as chest:
        for number in range(4):
            chest[number] = np.full(30_000, number)
        chest.flush()
        put_blocks(chest, "x", np.ones(60_000), ((30_000,) * 2,))
        assert len(chest) == 3
        np.testing.assert_array_equal(chest["x"], np.ones(60_000))
        for number in range(4, 8):
            chest[number] = np.full(30_000, number)
        chest.flush()
        assert "x" not in chest
        assert folders(path) == []
        assert unfinished(path) == []
    audit(path)


# --- hostile and damaged ones ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A chest with a blocked array under "x", plain, one under "z", compressed, and another."""
    path = str(tmp_path_factory.mktemp("intact") / "c")
    with arraychest.open(path, compression="lz4", compress_above=0) as chest:
        put_blocks(chest, "z", HELD, HELD_CHUNKS)
    with arraychest.open(path) as chest:
        put_blocks(chest, "x", HELD, HELD_CHUNKS)
        put_blocks(chest, "other", HELD + 1, HELD_CHUNKS)
    return path


def rewritten(path, key, change):
    """Write what a manifest says anew, with a right checksum."""
    file = f"{folder_of(path, key)}/manifest"
    with open(file, "rb") as opened:
        told = json.loads(opened.read().rpartition(b"\n")[0])
    told = change(told)
    text = told if isinstance(told, bytes) else json.dumps(told, separators=(",", ":")).encode()
    with open(file, "wb") as opened:
        opened.write(text + f"\n{zlib.crc32(text):08x}".encode())


def edited(**changes):
    return lambda path, key: rewritten(path, key, lambda told: {**told, **changes})


def in_catalog(sql):
    def change(path, key):
        with contextlib.closing(sqlite3.connect(f"{path}/catalog.sqlite")) as connection:
            done = connection.execute(sql, (encode_key(key).canonical,))
            assert done.rowcount == 1
            connection.commit()

    return change


def block_of(path, key, at):
    names = sorted(name for name in os.listdir(folder_of(path, key)) if name != "manifest")
    return f"{folder_of(path, key)}/{names[at]}"


def replaced(make, name=None):
    def change(path, key):
        place = block_of(path, key, 1) if name is None else f"{folder_of(path, key)}/{name}"
        os.unlink(place)
        make(place)

    return change


def swapped(path, key):
    one, other = block_of(path, key, 0), block_of(path, key, 1)
    os.rename(one, one + "~")
    os.rename(other, one)
    os.rename(one + "~", other)


def of_another(path, key):
    shutil.copy(block_of(path, "other", 1), block_of(path, "x", 1))
    if key != "x":
        shutil.copy(block_of(path, "other", 1), block_of(path, key, 1))


def folder_replaced(make):
    def change(path, key):
        place = folder_of(path, key)
        away = f"{path}-{key}-away"
        os.rename(place, away)
        make(place, away)

    return change


def flipped(path, key):
    place = block_of(path, key, 1)
    with open(place, "r+b") as file:
        file.seek(os.path.getsize(place) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 255]))


def truncated(path, key):
    os.truncate(block_of(path, key, 1), 200)


def grown(path, key):
    with open(block_of(path, key, 1), "ab") as file:
        file.write(bytes(10))


DEEP = b"[" * 200_000 + b"]" * 200_000
DAMAGES = {
    "manifest missing": replaced(lambda place: None, "manifest"),
    "manifest empty": replaced(lambda place: open(place, "w").close(), "manifest"),
    "manifest a folder": replaced(os.mkdir, "manifest"),
    "manifest a pipe": replaced(os.mkfifo, "manifest"),
    "manifest a link": replaced(lambda place: os.symlink("/etc/passwd", place), "manifest"),
    "deep": lambda path, key: rewritten(path, key, lambda told: DEEP),
    "deep within": lambda path, key: rewritten(
        path, key, lambda told: b'{"chunks":' + DEEP + b',"blocks":[]}'
    ),
    "no object": lambda path, key: rewritten(path, key, lambda told: [1]),
    "no number": lambda path, key: rewritten(path, key, lambda told: b'{"chunks":[[NaN]]}'),
    "long number": lambda path, key: rewritten(
        path, key, lambda told: b'{"chunks":[[' + b"9" * 9999 + b"]]}"
    ),
    "huge chunks": edited(chunks=[[1 << 61, 1 << 61], [50]]),
    "chunks that add up": edited(chunks=[[(1 << 61), 60 - (1 << 61)], [50]]),
    "other chunks": edited(chunks=[[35, 25], [50]]),
    "chunks of text": edited(chunks=["ab", [50]]),
    "true chunks": edited(chunks=[[True, 59], [50]]),
    "too few blocks": edited(blocks=[128, 10, 10]),
    "half a block": edited(blocks=[128, 10]),
    "negative blocks": edited(blocks=[-1, -1, -1] * 2),
    "huge blocks": edited(blocks=[1 << 62] * 6),
    "larger blocks": edited(blocks=[1 << 70] * 6),
    "blocks of nothing": edited(blocks=[0, 0, 0] * 2),
    "floats": edited(blocks=[0.5, 1e300, 2] * 2),
    "another shape": edited(form="10,300 Cb <f8"),
    "another dtype": edited(form="60,50 Cb <i8"),
    "no form": edited(form=None),
    "another stamp": edited(stamp=7),
    "another key": edited(key="00"),
    "no key": edited(key=5),
    "block missing": replaced(lambda place: None),
    "block empty": replaced(lambda place: open(place, "w").close()),
    "block truncated": truncated,
    "block grown": grown,
    "block a folder": replaced(os.mkdir),
    "block a pipe": replaced(os.mkfifo),
    "block a link": replaced(lambda place: os.symlink("/etc/passwd", place)),
    "blocks swapped": swapped,
    "block of another": of_another,
    "block flipped": flipped,
    "folder missing": folder_replaced(lambda place, away: None),
    "folder a file": folder_replaced(lambda place, away: open(place, "w").close()),
    "folder a link": folder_replaced(lambda place, away: os.symlink(away, place)),
    "folder a pipe": folder_replaced(lambda place, away: os.mkfifo(place)),
    "folder of another": folder_replaced(
        lambda place, away: shutil.copytree(folder_of(os.path.dirname(os.path.dirname(
            os.path.dirname(place))), "other"), place)
    ),
    "row of a plain array": in_catalog(
        "UPDATE entry SET form = replace(form, 'Cb', 'C') WHERE key = ?"
    ),
    "row of an array elsewhere": in_catalog("UPDATE entry SET offset = 128 WHERE key = ?"),
    "row of a compressed array": in_catalog("UPDATE entry SET offset = 0 WHERE key = ?"),
    "row of a larger one": in_catalog("UPDATE entry SET stored = stored + 1 WHERE key = ?"),
    "row of another stamp": in_catalog("UPDATE entry SET stamp = stamp + 1 WHERE key = ?"),
}  # fmt: skip
# What only verify finds: checksums of plain data are not compared at each read.
SILENT = {("block flipped", "x"), ("row of a larger one", "x"), ("row of a larger one", "z")}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_what_is_damaged_is_found_out_and_repaired(intact, tmp_path, damage):
    path = str(tmp_path / "c")
    shutil.copytree(intact, path)
    for key in ("x", "z"):
        DAMAGES[damage](path, key)

    def look(say):
        with arraychest.open(path, "a") as chest:
            for key in ("x", "z"):
                try:
                    found = np.asarray(chest[key])
                except CorruptEntryError as error:
                    assert repr(key) in str(error), error
                else:
                    assert (damage, key) in SILENT, f"{key} was not found out"
                    if damage != "block flipped":
                        np.testing.assert_array_equal(found, HELD)
            # Nobody makes the truth of it, where it is taken over.
            keys = {"x", "z"}
            for key in ("x", "z") if damage != "row of a larger one" else ():
                with contextlib.suppress(ArrayChestError):
                    chest["copy", key] = chest[key]
                    keys.add(("copy", key))
                with contextlib.suppress(ArrayChestError):
                    chest.append(key, HELD)
            report = chest.verify()
            assert keys <= {each.key for each in report.findings}, report
            gc.collect()
            assert held(path) == 0
            chest.repair()
            for key in ("x", "z"):
                if key in chest:
                    np.testing.assert_array_equal(chest[key], HELD)
                chest[key] = np.ones(3)
            np.testing.assert_array_equal(chest["other"], HELD + 1)
            chest.flush()
            assert chest.verify().ok, chest.verify()

    done = in_child(look, seconds=30)
    assert not done.signal
    assert done.error is None, done.error
    audit(path)


def test_a_manifest_of_which_a_byte_was_changed_is_never_believed(intact, tmp_path):
    path = str(tmp_path / "c")
    shutil.copytree(intact, path)
    file = f"{folder_of(path, 'x')}/manifest"
    with open(file, "rb") as opened:
        data = opened.read()
    with arraychest.open(path) as chest:
        for at in range(len(data)):
            with open(file, "wb") as opened:
                opened.write(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
            with pytest.raises(CorruptEntryError):
                chest["x"]
            if at % 40 == 0:
                with open(file, "wb") as opened:
                    opened.write(data[:at])
                with pytest.raises(CorruptEntryError):
                    chest["x"]
        text = data.rpartition(b"\n")[0]
        for at in range(len(text)):
            # Whoever changes it knows the checksum, too.
            changed = text[:at] + bytes([text[at] ^ (1 << at % 8)]) + text[at + 1 :]
            with open(file, "wb") as opened:
                opened.write(changed + f"\n{zlib.crc32(changed):08x}".encode())
            try:
                found = np.asarray(chest["x"])
            except CorruptEntryError:
                continue
            np.testing.assert_array_equal(found, HELD)
        with open(file, "wb") as opened:
            opened.write(data)
        np.testing.assert_array_equal(chest["x"], HELD)


def test_a_chest_that_has_lost_its_catalog_is_rebuilt_with_its_blocks(intact, tmp_path):
    path = str(tmp_path / "c")
    shutil.copytree(intact, path)
    os.unlink(block_of(path, "z", 0))
    for name in os.listdir(path):
        if name.startswith("catalog"):
            os.unlink(f"{path}/{name}")
    arraychest.repair(path)
    with arraychest.open(path) as chest:
        assert set(chest) == {"x", "other"}
        np.testing.assert_array_equal(chest["x"], HELD)
        assert chest.verify().ok
        chest.append("x", HELD[:2])
    assert any(name.startswith("z-") for name in os.listdir(f"{path}/quarantine"))
    audit(path)
