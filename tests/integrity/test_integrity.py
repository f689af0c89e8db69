"""Verify finds what is wrong, and nothing else; repair mends it, and says what it did."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest, ChestFormatError, ChestInUseError, CorruptEntryError
from arraychest.formats import checksums
from arraychest.integrity.salvage import read_sealed
from tests.faults import Say, die, in_child
from tests.support import audit, listing, run_python

LARGE = 40_000
HUGE = 400_000


def values() -> dict[Any, Any]:
    """Values of each codec and kind, by key."""
    made: dict[Any, Any] = {("small", n): np.full(100, n) for n in range(200)}
    made |= {("large", n): np.full(LARGE, n) for n in range(3)}
    made["huge"] = np.arange(float(HUGE))
    made["fortran"] = np.asfortranarray(np.arange(float(LARGE)).reshape(200, 200))
    made["scalar"] = np.float32(1.5)
    made["structured"] = np.zeros(5, [("a", "<i4"), ("b", ">f8")])
    made[1] = np.arange(7, dtype=">u2")
    return made


VALUES = values()


def same(mine: Any, other: Any) -> bool:
    return mine.dtype == other.dtype and np.array_equal(mine, other)


@pytest.fixture(scope="module", params=[None, "lz4"], ids=["plain", "compressed"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A chest of all these values; in one half of the tests the large ones are compressed."""
    path = tmp_path_factory.mktemp("made") / "chest"
    with arraychest.open(path, "w", compression=request.param) as chest:
        for key, value in values().items():
            chest[key] = value
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "chest"))


def file_of(folder: Path, key: Any) -> Path:
    with arraychest.open(folder, "r") as chest:
        return Path(chest.key_to_filename(key))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def sql(folder: Path, *statements: str) -> list[Any]:
    connection = sqlite3.connect(folder / "catalog.sqlite")
    try:
        with connection:
            return [connection.execute(each).fetchall() for each in statements]
    finally:
        connection.close()


def mended(folder: Path, *, lost: set[Any] = frozenset(), action: str | None = None) -> Any:
    """Repair; then all is well, and there is every value but the `lost`."""
    with arraychest.open(folder) as chest:
        report = chest.repair()
        assert not report.ok
        assert all(finding.action for finding in report.findings), str(report)
        if action is not None:
            assert any(action in finding.action for finding in report.findings), str(report)
        again = chest.verify()
        assert again.ok, str(again)
        assert again.unchecked == 0
        assert set(chest) == set(VALUES) - lost
        for key in chest:
            assert same(chest[key], VALUES[key])
    with arraychest.open(folder, "r") as chest:
        assert chest.verify().ok
        assert set(chest) == set(VALUES) - lost
    audit(str(folder))
    return report


# --- nothing is wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "a"])
def test_of_a_sound_chest_nothing_is_found(folder, mode):
    before = listing(str(folder / "data")), listing(str(folder / "packs"))
    with arraychest.open(folder, mode) as chest:
        report = chest.verify()
        assert report.ok, str(report)
        assert (report.entries, report.unchecked, report.holes) == (len(VALUES), 0, 0)
        files = [entry for entry in map(chest.entry, chest) if entry.codec != "pack"]
        assert report.nbytes > sum(entry.stored_bytes for entry in files)
        quick = chest.verify(read_data=False)
        assert quick.ok
        assert quick.nbytes < report.nbytes
    assert (listing(str(folder / "data")), listing(str(folder / "packs"))) == before


def test_a_chest_without_entries_or_folder_is_sound(path):
    with Chest() as chest:
        assert chest.verify() == ((), 0, 0, 0, 0)
        chest["x"] = np.zeros(LARGE)
        chest.spill("x")
        chest["y"] = np.zeros(3)
        chest.spill("y")
        assert chest.verify()[1] == 2
        assert chest.verify().ok
        assert chest.repair().ok
    with Chest(path=path) as chest:
        assert chest.verify().ok


def test_every_value_has_its_checksum_in_its_file(folder):
    with Chest(path=folder, mode="r") as chest:
        assert chest.verify().unchecked == 0
    for file in folder.glob("data/*/*.npy"):
        with file.open("rb") as opened:
            sealed = read_sealed(opened.fileno(), file.stat().st_size)
        assert sealed is not None
        assert sealed.listed is not None
        data = file.read_bytes()[sealed.end - sealed.listed.nbytes : sealed.end]
        assert len(sealed.listed.sums) == 4 * -(-len(data) // (1 << 20))
        assert sealed.listed.sums == checksums.of_buffers([data])


def test_a_temporary_chest_has_checksums_where_they_are_asked_for(nothing_left_behind):
    with Chest() as chest:
        chest["x"] = np.arange(float(LARGE))
        chest.spill("x")
        report = chest.verify()
        assert (report.ok, report.unchecked) == (True, 1)
    with Chest(checksums=True) as chest:
        chest["x"] = np.arange(float(LARGE))
        chest.spill("x")
        assert chest.verify().unchecked == 0
        flip(Path(chest.key_to_filename("x")), 5000)
        (finding,) = chest.verify().findings
        assert (finding.kind, finding.key) == ("damaged", "x")
        chest.repair()
        assert "x" not in chest
        chest["x"] = np.zeros(3)
        assert (chest["x"] == 0).all()


def test_a_chest_without_checksums_gets_them_with_new_values(path):
    with Chest(path=path, checksums=False) as chest:
        chest["x"] = np.arange(float(LARGE))
        chest["small"] = np.arange(3)
    with Chest(path=path) as chest:
        assert chest.verify().unchecked == 2
        chest["x"] = np.zeros(LARGE)
        chest["small"] = np.zeros(3)
        chest.flush()
        assert chest.verify().unchecked == 0


def test_what_a_killed_process_flushed_is_checked(path):
    run_python(
        """
        import os, sys, numpy, arraychest
        chest = arraychest.open(sys.argv[1])
        for n in range(5):
            chest["large", n] = numpy.full(40_000, n)
            chest["small", n] = numpy.full(10, n)
        chest.flush()
        os._exit(1)
        """,
        path,
        check=False,
    )
    with Chest(path=path) as chest:
        report = chest.verify()
        assert report.ok
        assert report.unchecked == 0
        flip(Path(chest.key_to_filename(("large", 3))), 1000)
        assert [finding.key for finding in chest.verify().findings] == [("large", 3)]


def test_one_damaged_value_of_a_pack_is_found_alone(path):
    with Chest(path=path) as chest:
        for n in range(100):
            chest[n] = np.full(40, n)
        chest.flush()
        (pack,) = Path(path).glob("packs/*.pack")
        data = pack.read_bytes()
        flip(pack, data.index(np.full(40, 57).tobytes()) + 100)
        (finding,) = chest.verify().findings
        assert (finding.kind, finding.key) == ("damaged", 57)


def test_what_is_written_in_place_is_no_finding(path):
    with Chest(path=path) as chest:
        chest["x"] = np.zeros(LARGE)
        with chest.edit("x", in_place=True) as array:
            array[7] = 5
            report = chest.verify()
            assert report.ok
            assert report.unchecked == 1
            array[8] = 6
            assert chest.repair().ok
            assert chest["x"][8] == 6
        report = chest.verify()
        assert report.ok
        assert report.unchecked == 0
        flip(Path(chest.key_to_filename("x")), 5000)
        assert not chest.verify().ok


def test_an_editor_that_dies_leaves_a_value_without_checksums(path):
    with Chest(path=path) as chest:
        chest["x"] = np.zeros(LARGE)

    def child(say: Say) -> None:
        chest = Chest(path=path)
        with chest.edit("x", in_place=True) as array:
            array[7] = 5
            die()

    in_child(child)
    for _ in range(2):
        with Chest(path=path) as chest:
            report = chest.verify()
            assert report.ok
            assert report.unchecked == 1
            assert chest["x"][6:9].tolist() == [0, 5, 0]
    with Chest(path=path) as chest:
        with chest.edit("x", in_place=True) as array:
            array[8] = 6
        report = chest.verify()
        assert report.ok
        assert report.unchecked == 0
        assert chest["x"][6:9].tolist() == [0, 5, 6]


@pytest.mark.parametrize("how", ["edit", "create", "transaction", "link", "compact"])
def test_values_that_came_in_other_ways_have_checksums(folder, path, how):
    with Chest(path=path) as chest:
        if how == "edit":
            chest.update({"x": np.zeros(LARGE), "y": np.zeros(3)})
            for key in ("x", "y"):
                with chest.edit(key) as array:
                    array[1] = 5
        elif how == "create":
            with chest.create("x", LARGE) as array:
                array[:] = 3
            with chest.create("y", 3) as array:
                array[:] = 3
        elif how == "transaction":
            with chest.transaction():
                chest["x"] = np.zeros(LARGE)
                chest["y"] = np.zeros(3)
        elif how == "link":
            with arraychest.open(folder, "r") as other:
                chest.update(other)
        else:
            for n in range(100):
                chest[n] = np.full(100, n)
            chest.flush()
            for n in range(0, 100, 2):
                del chest[n]
            chest.compact()
        report = chest.verify()
        assert report.ok, str(report)
        assert report.unchecked == 0
        keys = list(chest)
    os.unlink(os.path.join(path, "catalog.sqlite"))
    arraychest.repair(path)
    with Chest(path=path) as chest:
        assert set(keys) <= set(chest)
        assert chest.verify().ok


# --- damage to values ------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99999])
def test_a_flipped_bit_is_found_and_located(folder, share):
    file = file_of(folder, "huge")
    size = file.stat().st_size
    compressed = file.suffix == ".b2nd"
    at = int(share * (size - 600 if compressed else 8 * HUGE))
    flip(file, at)
    with arraychest.open(folder, "r") as chest:
        (finding,) = chest.verify().findings
        assert (finding.kind, finding.key) == ("damaged", "huge")
        assert finding.file == str(file.relative_to(folder))
        assert finding.start <= at < finding.start + finding.nbytes
        assert finding.nbytes <= 1 << 20
    mended(folder, lost={"huge"}, action="quarantine/")
    assert (folder / "quarantine" / file.name).stat().st_size == size


@pytest.mark.parametrize("back", range(1, 150, 13))
def test_a_flipped_bit_behind_the_data_is_found(folder, back):
    file = file_of(folder, ("large", 1))
    flip(file, file.stat().st_size - back)
    with arraychest.open(folder, "r") as chest:
        (finding,) = chest.verify().findings
        assert finding.key == ("large", 1)
    mended(folder, lost={("large", 1)})


def test_damage_to_a_pack_is_told_of_the_values_near_it_only(folder):
    with arraychest.open(folder, "r") as chest:
        pack = Path(chest.key_to_filename(("small", 100)))
    offsets = {
        offset: (offset + stored, "small" in str(key))
        for offset, stored, key in sql(folder, "SELECT offset, stored, key FROM entry WHERE pack")[
            0
        ]
    }
    start = sorted(offsets)[100]
    flip(pack, start + 5)
    with arraychest.open(folder, "r") as chest:
        findings = chest.verify().findings
        assert {finding.kind for finding in findings} == {"damaged"}
        lost = {finding.key for finding in findings}
        assert 1 <= len(lost) <= 2 + 4096 // 800
        assert any(finding.start == start for finding in findings)
    mended(folder, lost=lost)
    kept = [np.load(file) for file in (folder / "quarantine").iterdir()]
    assert len(kept) == len(lost)
    changed = [array for array in kept if len(np.unique(array)) > 1]
    assert len(changed) <= 1


def test_a_damaged_directory_of_a_pack_loses_no_value(folder):
    pack = file_of(folder, ("small", 1))
    flip(pack, 64 + 40)
    report = mended(folder, action="another pack")
    assert [finding.key for finding in report.findings] == [None]


def _truncate(file: Path) -> None:
    with open(file, "rb+") as opened:
        opened.truncate(1000)


def _extend(file: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(b"more")


def _replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _replace_by_link(file: Path) -> None:
    moved = file.rename(file.parent.parent.parent / "elsewhere")
    file.symlink_to(moved)


def _replace_by_noise(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (Path.unlink, "missing file"),
        (_truncate, "wrong size"),
        (_extend, "wrong size"),
        (_replace_by_link, "foreign file"),
        (_replace_by_noise, "foreign file"),
    ],
)
def test_a_file_that_is_not_the_one_that_was_written(folder, damage, kind):
    damage(file_of(folder, ("large", 2)))
    with arraychest.open(folder, "r") as chest:
        (finding,) = chest.verify(read_data=False).findings
        assert (finding.kind, finding.key) == (kind, ("large", 2))
    mended(folder, lost={("large", 2)})


def test_two_files_that_were_swapped(folder):
    one, two = (file_of(folder, ("large", n)) for n in (0, 1))
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    with arraychest.open(folder, "r") as chest:
        assert {finding.key for finding in chest.verify().findings} == {("large", 0), ("large", 1)}
    mended(folder, lost={("large", 0), ("large", 1)})


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _replace_by_noise])
def test_a_pack_that_is_not_the_one_that_was_written(folder, damage):
    packed = {key for key, value in VALUES.items() if np.asarray(value).nbytes < 64 * 1024}
    damage(file_of(folder, ("small", 1)))
    with arraychest.open(folder) as chest:
        findings = chest.verify().findings
        assert findings
        assert {finding.key for finding in findings} <= packed | {None}
        chest.repair()
        assert chest.verify().ok
        for key in set(VALUES) - packed:
            assert same(chest[key], VALUES[key])
        for key in set(chest) & packed:
            assert same(chest[key], VALUES[key])
        chest["new"] = np.arange(5)
    audit(str(folder))


def test_a_get_never_raises_after_a_repair(folder):
    rng = random.Random(5)
    files = [*(folder / "data").rglob("*.npy"), *(folder / "packs").iterdir()]
    for file in files:
        if rng.random() < 0.5:
            flip(file, rng.randrange(file.stat().st_size))
    with arraychest.open(folder) as chest:
        chest.repair()
        for key, value in chest.items():
            assert same(value, VALUES[key])
        assert chest.verify().ok


# --- damage to rows --------------------------------------------------------------------------

LARGE_1 = (
    "key = (SELECT key FROM entry WHERE instr(CAST(key AS TEXT), 'large') ORDER BY seq LIMIT 1)"
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "change",
    [
        "gen = gen + (5 << 32)",
        "form = '4 C <f8'",
        "form = 'nonsense'",
        "form = NULL + 1",
        "offset = offset + 64",
        "offset = 'x'",
        "offset = -1",
        "stored = stored - 1",
        "stored = NULL + 1",
        "stored = 1 << 62",
        "stamp = stamp + 1",
        "stamp = NULL",
        "stamp = 'text'",
        "pack = 77",
        "key = x'00'",
        "key = 'text'",
        "key = x'73616263'",
        "gen = 'text'",
        "exact = 'text'",
        # As a flipped bit makes it of a number's type, or of a character.
        *(
            f"{column} = CAST(x'ff80' AS TEXT)"
            for column in ("key", "exact", "form", "gen", "pack", "offset", "stored", "stamp")
        ),
    ],
)
def test_a_row_that_was_tampered_with_is_found(folder, change):
    # NOT NULL columns take no NULL; 'NULL + 1' is one.
    try:
        sql(folder, f"UPDATE entry SET {change} WHERE {LARGE_1}")
    except sqlite3.IntegrityError:
        pytest.skip("SQLite refuses it")
    with arraychest.open(folder, "r") as chest:
        assert not chest.verify().ok
    with arraychest.open(folder) as chest:
        report = chest.repair()
        again = chest.verify()
        assert again.ok, f"{report}\n{again}"
        found = dict(chest)
    assert len(VALUES) - 1 <= len(found) <= len(VALUES)
    assert all(key in VALUES and same(found[key], VALUES[key]) for key in found)
    audit(str(folder))


@pytest.mark.parametrize(
    "change",
    ["gen = gen + (5 << 32)", "form = 'nonsense'", "key = x'73616263'", "form = '4 C <f8'"],
)
def test_a_row_that_its_file_knows_better_is_restored(folder, change):
    sql(folder, f"UPDATE entry SET {change} WHERE {LARGE_1}")
    mended(folder, action="restored")


def test_a_row_that_was_deleted_by_hand_is_restored_from_its_file(folder):
    sql(folder, f"DELETE FROM entry WHERE {LARGE_1}")
    with arraychest.open(folder, "r") as chest:
        assert [finding.kind for finding in chest.verify().findings] == ["orphan"]
    mended(folder, action="restored")


@pytest.mark.parametrize("change", ["live = live + 64", "live = 0", "bytes = bytes - 64"])
def test_a_wrong_pack_record(folder, change):
    sql(folder, f"UPDATE pack SET {change}")
    with arraychest.open(folder, "r") as chest:
        assert not chest.verify().ok or "bytes" in change
    with arraychest.open(folder) as chest:
        chest.repair()
        assert chest.verify().ok


def test_overlapping_values(folder):
    (rows,) = sql(folder, "SELECT key, offset FROM entry WHERE pack ORDER BY offset LIMIT 3")
    connection = sqlite3.connect(folder / "catalog.sqlite")
    with connection:
        connection.execute("UPDATE entry SET offset = ? WHERE key = ?", (rows[1][1], rows[2][0]))
    connection.close()
    with arraychest.open(folder, "r") as chest:
        assert {finding.kind for finding in chest.verify().findings} & {"overlap", "corrupt row"}
    with arraychest.open(folder) as chest:
        chest.repair()
        assert chest.verify().ok
        for key, value in chest.items():
            assert same(value, VALUES[key])


def test_a_record_of_a_pack_that_is_not_there(folder):
    sql(folder, "INSERT INTO pack VALUES (999, 1, 640, 0, 1, 64)")
    mended(folder)


# --- files without rows ----------------------------------------------------------------------


def test_an_older_file_of_a_key_is_moved_away(folder):
    file = file_of(folder, ("large", 0))
    copy = folder / "data" / "07" / f"{file.name.rpartition('-')[0]}-{(1 << 32) + 0x9907:x}.npy"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(file, copy)
    report = mended(folder, action="moved to quarantine/")
    assert [finding.kind for finding in report.findings] == ["orphan"]
    assert not copy.exists()


def test_a_file_that_is_none_of_ours_is_told_and_left_alone(folder):
    stranger = folder / "data" / "notes.txt"
    stranger.write_text("mine")
    with arraychest.open(folder) as chest:
        (finding,) = chest.repair().findings
        assert finding.kind == "unknown file"
        assert finding.action is None
    assert stranger.read_text() == "mine"


def test_a_file_from_the_quarantine_can_be_put_back(folder):
    file = file_of(folder, "huge")
    data = file.read_bytes()
    flip(file, 5000)
    mended(folder, lost={"huge"})
    file.write_bytes(data)
    mended(folder, action="restored")


# --- beside others ---------------------------------------------------------------------------


def test_beside_writers_nothing_is_found(path):
    stop = threading.Event()
    errors = []

    def churn(chest: Chest, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                key = rng.randrange(30)
                size = rng.choice([5, 300, 9000, LARGE])
                if rng.random() < 0.3:
                    chest.discard(key)
                else:
                    chest[key] = np.full(size, key)
                if rng.random() < 0.1:
                    chest.flush()
        except Exception as error:
            errors.append(error)

    with Chest(path=path, available_memory="4 MiB") as one, Chest(path=path) as two:
        threads = [
            threading.Thread(target=churn, args=(chest, seed))
            for seed, chest in enumerate([one, two])
        ]
        for thread in threads:
            thread.start()
        try:
            for chest in (one, two) * 4:
                report = chest.verify()
                assert report.ok, str(report)
                assert chest.repair().ok
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not errors
    audit(path)
    with arraychest.open(path, "r") as chest:
        assert chest.verify().ok


def test_others_see_what_a_repair_took_away_and_restored(folder):
    flip(file_of(folder, ("large", 1)), 700)
    sql(folder, "DELETE FROM entry WHERE instr(CAST(key AS TEXT), 'huge')")
    with arraychest.open(folder) as chest, arraychest.open(folder) as other:
        assert "huge" not in other
        view = other["large", 1]
        before = view.copy() if type(view) is np.ndarray else None
        chest.repair()
        assert ("large", 1) not in other
        assert same(other["huge"], VALUES["huge"])
        if before is not None:
            assert np.array_equal(view, before)
        else:
            with pytest.raises(CorruptEntryError, match="checksum"):
                view.copy()
        assert len(other) == len(chest) == len(VALUES) - 1


def test_a_reader_verifies_and_repairs_nothing(folder):
    flip(file_of(folder, "huge"), 3000)
    with arraychest.open(folder, "r") as chest:
        assert not chest.verify().ok
        with pytest.raises(PermissionError):
            chest.repair()
        assert "huge" in chest


# --- the catalog itself ----------------------------------------------------------------------


def lose(folder: Path) -> None:
    (folder / "catalog.sqlite").unlink()


def empty(folder: Path) -> None:
    (folder / "catalog.sqlite").write_bytes(b"")


def noise(folder: Path) -> None:
    file = folder / "catalog.sqlite"
    file.write_bytes(os.urandom(file.stat().st_size))


def halve(folder: Path) -> None:
    file = folder / "catalog.sqlite"
    with open(file, "rb+") as opened:
        opened.truncate(file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [lose, empty, noise, halve])
def test_a_lost_catalog_is_made_anew_from_the_files(folder, damage):
    damage(folder)
    report = arraychest.repair(folder)
    assert report.findings[0].kind == "catalog"
    with arraychest.open(folder) as chest:
        assert list(chest) == list(VALUES)
        for key in chest:
            assert same(chest[key], VALUES[key])
            assert isinstance(chest[key], type(VALUES[key]) | arraychest.CompressedArray)
        report = chest.verify()
        assert report.ok, str(report)
        assert report.unchecked == 0
        chest["new"] = np.zeros(3)
        chest[("large", 0)] = np.zeros(LARGE)
    audit(str(folder))


def test_without_a_catalog_opening_says_what_helps(folder):
    lose(folder)
    with pytest.raises(ChestFormatError, match=r"arraychest\.repair"):
        arraychest.open(folder)
    noise_at = folder / "catalog.sqlite"
    noise_at.write_bytes(os.urandom(20_000))
    with pytest.raises(ChestFormatError):
        arraychest.open(folder)


def test_of_a_key_the_newest_value_counts(path):
    with Chest(path=path) as chest:
        for round_ in range(3):
            for n in range(20):
                chest[n] = np.full(LARGE if (n + round_) % 3 == 0 else 50, 100 * round_ + n)
            chest.flush()
    os.unlink(os.path.join(path, "catalog.sqlite"))
    arraychest.repair(path)
    with Chest(path=path) as chest:
        assert list(chest) == list(range(20))
        for n in range(20):
            assert (chest[n] == 200 + n).all()
    audit(path)


def test_what_was_never_sealed_does_not_come_back(path):
    run_python(
        """
        import os, sys, numpy, arraychest
        chest = arraychest.open(sys.argv[1])
        chest["x"] = numpy.zeros(40_000)
        chest.flush()
        creation = chest.create("y", 40_000)
        creation.array[:] = 5
        os._exit(1)
        """,
        path,
        check=False,
    )
    os.unlink(os.path.join(path, "catalog.sqlite"))
    for suffix in ("-wal", "-shm"):
        if os.path.exists(os.path.join(path, "catalog.sqlite" + suffix)):
            os.unlink(os.path.join(path, "catalog.sqlite" + suffix))
    arraychest.repair(path)
    with Chest(path=path) as chest:
        assert list(chest) == ["x"]
        assert chest.verify().ok


def test_a_chest_in_use_is_not_rebuilt(folder):
    with arraychest.open(folder), pytest.raises(ChestInUseError):
        arraychest.repair(folder)


def test_a_sound_chest_is_left_as_it_is_by_a_repair_of_its_folder(folder):
    assert arraychest.repair(folder).ok
    assert not (folder / "quarantine").exists()


def test_what_is_no_chest_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ChestFormatError):
        arraychest.repair(tmp_path)
    with pytest.raises(FileNotFoundError):
        arraychest.repair(tmp_path / "absent")
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_catalog_of_another_format_is_not_replaced(folder):
    sql(folder, "PRAGMA user_version = 99")
    with pytest.raises(ChestFormatError, match="99"):
        arraychest.repair(folder)


def test_an_open_chest_tells_that_its_catalog_is_damaged(folder):
    size = (folder / "catalog.sqlite").stat().st_size
    with arraychest.open(folder) as chest:
        with open(folder / "catalog.sqlite", "rb+") as file:
            file.seek(8192 * 2)
            file.write(os.urandom(size - 8192 * 2))
        report = chest.verify()
        assert "catalog" in {finding.kind for finding in report.findings}
        assert all(finding.action for finding in chest.repair().findings)


def flips(folder: Path, rounds: int, seed: int) -> Iterator[Path]:
    rng = random.Random(seed)
    whole = (folder / "catalog.sqlite").read_bytes()
    for _ in range(rounds):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 10, 1000])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield _restored(folder, bytes(data))


def _restored(folder: Path, catalog: bytes) -> Path:
    work = folder.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work, copy_function=os.link)
    (work / "catalog.sqlite").unlink()
    (work / "catalog.sqlite").write_bytes(catalog)
    # Each chest appends to packs and locks files of its own.
    for name in ("locks", "commits"):
        (work / name).unlink()
    return work


def in_quarantine(folder: Path, value: Any) -> bool:
    files = (folder / "quarantine").glob("*.npy")
    return any(same(np.load(file, allow_pickle=True), value) for file in files)


def _attack(folder: Path, rounds: int, seed: int) -> tuple[int, int]:
    """Damaged catalogs that were mended, and values that were lost although their files are whole.

    A flip inside a row may change a key or its place, which nothing can tell from the truth where
    the value lies in a pack whose directory agrees.
    """
    lost = 0
    for work in flips(folder, rounds, seed):
        try:
            arraychest.repair(work)
        except ChestFormatError as error:
            assert "format" in str(error)  # the version's own bytes
            continue
        with arraychest.open(work) as chest:
            assert chest.verify().ok
            for key in VALUES:
                if key not in chest:
                    # What a flipped checksum says is damaged is put aside, and no more.
                    lost += not in_quarantine(work, VALUES[key])
                else:
                    assert same(chest[key], VALUES[key])
    return rounds, lost


@pytest.mark.slow
def test_flipped_bits_in_the_catalog_are_mended(folder):
    _, lost = _attack(folder, 25, 1)
    assert lost == 0


@pytest.mark.stress
def test_flipped_bits_in_the_catalog_are_mended_for_longer(folder):
    rounds, lost = _attack(folder, 1500, 2)
    print(f"{rounds} damaged catalogs repaired, {lost} values lost")
    assert lost == 0


def test_an_unclean_end_sweeps_nothing_where_the_catalog_is_damaged(path):
    run_python(
        """
        import os, sys, numpy, arraychest
        chest = arraychest.open(sys.argv[1])
        for n in range(300):
            chest[n] = numpy.full(9000, n)
        chest.flush()
        chest["x"] = numpy.zeros(5)
        chest._engine.session.open_store().catalog.database._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os._exit(1)
        """,
        path,
        check=False,
    )
    file = os.path.join(path, "catalog.sqlite")
    with open(file, "rb+") as opened:
        opened.seek(8192 * 3)
        opened.write(bytes(4096))
    before = listing(os.path.join(path, "data"))
    with pytest.raises((ChestFormatError, CorruptEntryError, OSError)):
        arraychest.open(path)
    assert listing(os.path.join(path, "data")) == before
    arraychest.repair(path)
    with Chest(path=path) as chest:
        for n in range(300):
            assert (chest[n] == n).all()


def test_the_report_reads_well(folder):
    flip(file_of(folder, "huge"), 3000)
    with arraychest.open(folder) as chest:
        text = str(chest.verify())
        assert "huge" in text
        assert "damaged" in text
        assert str(chest.repair()).count("\n") == 1


# --- what is known beside the values -----------------------------------------------------------


def made_of(n: int) -> np.ndarray:
    return np.full(n, 1.5)


def sum_of(array: np.ndarray) -> float:
    return float(array.sum())


def facts_of_nobody(folder: Path) -> list[Any]:
    """Rows of `digest` and `cost` that are of no value."""
    statements = [
        f"SELECT * FROM {table} WHERE gen NOT IN (SELECT gen FROM entry)"
        for table in ("digest", "cost")
    ]
    return [row for rows in sql(folder, *statements) for row in rows]


@pytest.fixture
def computed(path: str) -> Path:
    """A chest with results, whose digests and costs are known."""
    with Chest(path=path) as chest:
        for n in range(3):
            chest.cache(sum_of)(chest.cache(made_of)(LARGE + n))
        chest["x"] = np.full(LARGE, 2.0)
        chest.flush()
        chest.cache(sum_of)(chest["x"])
    assert len(sql(Path(path), "SELECT * FROM digest")[0]) == 4
    assert len(sql(Path(path), "SELECT * FROM cost")[0]) == 7
    return Path(path)


def test_a_repair_leaves_no_facts_of_what_is_gone(computed):
    file = file_of(computed, "x")
    file.unlink()
    with arraychest.open(computed) as chest:
        assert not chest.repair().ok
        assert "x" not in chest
        assert chest.verify().ok
        assert chest.cache(sum_of).func(chest.cache(made_of)(LARGE)) == 1.5 * LARGE
    assert not facts_of_nobody(computed)
    assert len(sql(computed, "SELECT * FROM digest")[0]) == 3
    audit(str(computed))


def test_a_result_that_is_damaged_is_told_and_computed_again(computed):
    with arraychest.open(computed) as chest:
        file = Path(chest.cache(made_of).entry(LARGE).file)
        key = chest.cache(made_of).key(LARGE)
    flip(file, 20_000)
    with arraychest.open(computed) as chest:
        (finding,) = chest.verify().findings
        assert (finding.kind, finding.key) == ("damaged", key)
        chest.repair()
        assert not chest.cache(made_of).check(LARGE)
        assert (chest.cache(made_of)(LARGE) == 1.5).all()
        assert chest.cache(sum_of)(chest.cache(made_of)(LARGE)) == 1.5 * LARGE
        assert chest.verify().ok
    assert not facts_of_nobody(computed)


def test_a_catalog_made_anew_knows_the_results_and_not_what_they_cost(computed):
    (computed / "catalog.sqlite").unlink()
    arraychest.repair(computed)
    with arraychest.open(computed) as chest:
        assert chest.cache(made_of).check(LARGE)
        assert chest.cache(sum_of)(chest.cache(made_of)(LARGE)) == 1.5 * LARGE
        assert chest.cache(made_of).stats().seconds_saved == 0.0
    assert not facts_of_nobody(computed)


@pytest.mark.parametrize(
    "how", ["delete", "overwrite", "pop", "clear", "clear a function", "transaction", "mode w"]
)
def test_facts_go_with_their_values(computed, how):
    with arraychest.open(computed, "w" if how == "mode w" else "a") as chest:
        match how:
            case "delete":
                for key in list(chest):
                    del chest[key]
            case "overwrite":
                for key in list(chest):
                    chest[key] = np.zeros(LARGE)
            case "pop":
                while chest:
                    chest.popitem()
            case "clear":
                chest.clear()
            case "clear a function":
                chest.cache(made_of).clear()
                chest.cache(sum_of).clear()
                del chest["x"]
            case "transaction":
                with chest.transaction():
                    for key in list(chest):
                        del chest[key]
                    chest["y"] = np.ones(3)
    assert sql(computed, "SELECT * FROM digest", "SELECT * FROM cost") == [[], []]
    audit(str(computed))


def test_facts_stay_where_values_are_moved(computed):
    before = sql(computed, "SELECT * FROM digest", "SELECT * FROM cost")
    with arraychest.open(computed) as chest:
        for n in range(200):
            chest["small", n] = np.full(50, n)
        chest.flush()
        for n in range(0, 200, 2):
            del chest["small", n]
        chest.compact()
        assert chest.verify().ok
    assert sql(computed, "SELECT * FROM digest", "SELECT * FROM cost") == before


def test_a_chest_that_takes_over_values_asks_for_facts_of_its_own(computed, tmp_path):
    with arraychest.open(computed) as chest, Chest(path=tmp_path / "other") as other:
        other.update(chest)
        assert other.cache(made_of).check(LARGE)
        assert other.cache(sum_of)(other.cache(made_of)(LARGE)) == 1.5 * LARGE
        assert other.cache(sum_of)(other["x"]) == 2.0 * LARGE
    assert not facts_of_nobody(tmp_path / "other")
