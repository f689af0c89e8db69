"""The catalog: its format's version, what it refuses, and that it is opened lazily."""

from __future__ import annotations

import os
import sqlite3
import tracemalloc

import numpy as np
import pytest

import arraychest
from arraychest.catalog import connection as connection_module
from arraychest.catalog import schema
from arraychest.catalog.record import Cost, Facts
from arraychest.catalog.schema import FILE_NAME, FORMAT_VERSION
from arraychest.errors import ArrayChestError, ChestFormatError
from tests.support import assert_identical, audit


@pytest.fixture
def database(path):
    """The catalog of a chest with two values, as any SQLite client sees it."""
    with arraychest.Chest(path=path) as chest:
        chest["a"] = np.arange(5)
        chest[True] = np.arange(20_000)
    connection = sqlite3.connect(os.path.join(path, FILE_NAME), isolation_level=None)
    yield connection
    connection.close()


class TestFormat:
    def test_says_what_it_is_and_of_which_version(self, database):
        assert database.execute("PRAGMA application_id").fetchone() == (0x41436873,)
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT_VERSION,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_is_the_one_that_the_docstring_specifies(self, database):
        documented = schema.__doc__
        for table in ("entry", "pack", "digest", "cost", "meta"):
            for _, column, *_ in database.execute(f"PRAGMA table_info({table})"):
                assert f" {column} " in documented.replace("\n", " \n"), (table, column)

    def test_holds_keys_by_their_codes_in_the_order_of_insertion(self, database):
        rows = database.execute("SELECT key, exact, pack IS NULL FROM entry ORDER BY seq")
        assert rows.fetchall() == [(b"sa", None, 0), (b"i1", b"?1", 1)]

    def test_of_a_newer_version_is_refused_and_left_alone(self, database, path):
        database.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
        for mode in ("r", "a"):
            with pytest.raises(
                ChestFormatError, match=f"format {FORMAT_VERSION + 1}.*newer"
            ) as caught:
                arraychest.open(path, mode)
            assert isinstance(caught.value, ValueError)
            assert path in str(caught.value)
        assert database.execute("SELECT count(*) FROM entry").fetchone() == (2,)
        database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        with arraychest.open(path) as chest:
            assert_identical(chest["a"], np.arange(5))


@pytest.mark.parametrize("mode", ["r", "a"])
class TestRefused:
    def refuse(self, path, mode):
        with pytest.raises(ChestFormatError) as caught:
            arraychest.open(path, mode)
        assert isinstance(caught.value, ArrayChestError)

    def test_another_programs_database(self, tmp_path, mode):
        connection = sqlite3.connect(tmp_path / FILE_NAME)
        connection.execute("PRAGMA application_id = 1234")
        connection.execute("CREATE TABLE entry(key)")
        connection.commit()
        connection.close()
        self.refuse(tmp_path, mode)

    @pytest.mark.parametrize(
        "content", [b"not a database " * 500, b"SQLite format 3\0" + b"\xff" * 5000]
    )
    def test_what_is_no_database(self, tmp_path, mode, content):
        (tmp_path / FILE_NAME).write_bytes(content)
        self.refuse(tmp_path, mode)
        assert (tmp_path / FILE_NAME).read_bytes() == content

    def test_a_database_with_other_tables_under_our_name(self, tmp_path, mode):
        connection = sqlite3.connect(tmp_path / FILE_NAME)
        connection.execute(f"PRAGMA application_id = {0x41436873}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("CREATE TABLE other(x)")
        connection.commit()
        connection.close()
        with pytest.raises((ArrayChestError, OSError)), arraychest.open(tmp_path, mode) as chest:
            list(chest)
            chest["x"]

    def test_values_whose_catalog_is_gone(self, database, path, mode):
        database.close()
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(os.path.join(path, FILE_NAME + suffix)):
                os.unlink(os.path.join(path, FILE_NAME + suffix))
        before = sorted(os.listdir(path))
        self.refuse(path, mode)
        assert sorted(os.listdir(path)) == before


class TestOpening:
    COUNT = 30_000

    @pytest.fixture
    def large(self, path):
        with arraychest.Chest(path=path, available_memory="64 MiB") as chest:
            for at in range(self.COUNT):
                chest[at] = np.array([at])
        return path

    @pytest.mark.parametrize("mode", ["r", "a"])
    def test_reads_no_rows(self, large, mode, monkeypatch):
        statements: list[str] = []
        connect = connection_module._connect

        def traced(*arguments, **options):
            connection = connect(*arguments, **options)
            connection.set_trace_callback(statements.append)
            return connection

        monkeypatch.setattr(connection_module, "_connect", traced)
        tracemalloc.start()
        try:
            with arraychest.open(large, mode) as chest:
                _, peak = tracemalloc.get_traced_memory()
                opening = list(statements)
                assert int(chest[self.COUNT // 2][0]) == self.COUNT // 2
                assert "absent" not in chest
                assert len(chest) == self.COUNT
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20
        scans = [each for each in opening if "FROM entry" in each and "max(seq)" not in each]
        assert not scans

    def test_and_looking_at_the_first_key_reads_a_page_at_most(self, large):
        with arraychest.open(large, "r") as chest:
            assert next(iter(chest)) == 0
            assert next(reversed(chest)) == self.COUNT - 1
            assert len(chest._index) < self.COUNT // 4

    def test_iterates_in_order_over_many_pages_while_keys_come_and_go(self, large):
        with arraychest.open(large) as chest:
            seen = []
            for key in chest:
                seen.append(key)
                if type(key) is not int:
                    continue
                if key % 2:
                    del chest[key]
                if key % 1000 == 0:
                    chest["new", key] = np.zeros(3)
                    chest.flush()
            assert [key for key in seen if type(key) is int] == list(range(self.COUNT))
            rest = [*range(0, self.COUNT, 2), *(("new", key) for key in range(0, self.COUNT, 1000))]
            assert list(chest) == rest
            assert list(reversed(chest)) == rest[::-1]
            assert len(chest) == len(rest)
        audit(large)


def test_a_chest_of_an_unfinished_creation_is_created_anew(path):
    with arraychest.open(path):
        pass
    os.truncate(os.path.join(path, FILE_NAME), 0)
    with arraychest.open(path) as chest:
        chest["x"] = np.arange(3)
    with arraychest.open(path, "r") as chest:
        assert_identical(chest["x"], np.arange(3))


class TestFacts:
    def test_are_what_was_put_and_nothing_else(self, path):
        facts = Facts(7, {0: b"x" * 17, 3: b"y" * 17}, Cost(1.5, None, 2e9))
        with arraychest.Chest(path=path) as chest:
            catalog = chest._engine.session.open_store().catalog
            catalog.commit(facts=[facts, Facts(8, {}, Cost(0.0, None))])
            assert catalog.facts.of(7) == facts
            assert catalog.facts.of(8) == Facts(8, {}, Cost(0.0, None))
            assert catalog.facts.of(9) == Facts(9, {}, None)
            assert catalog.facts.costs() == {7: Cost(1.5, None, 2e9), 8: Cost(0.0, None)}
            catalog.commit(forgotten=[7])
            assert catalog.facts.of(7) == Facts(7, {}, None)
            assert catalog.facts.costs() == {8: Cost(0.0, None)}
            catalog.commit(forgotten=[8])

    def test_of_what_is_gone_are_not_added(self, path):
        with arraychest.Chest(path=path) as chest:
            chest["a"] = np.arange(20_000)
            chest.flush()
            row = chest._engine.stored_row("a")
            catalog = chest._engine.session.open_store().catalog
            for code, generation in ((row.key, row.generation + 1), (b"sb", row.generation)):
                catalog.facts.add_digest(code, generation, 0, b"x" * 17)
                assert not catalog.facts.of(generation).digests
            catalog.facts.add_digest(row.key, row.generation, 0, b"x" * 17)
            assert catalog.facts.of(row.generation).digests == {0: b"x" * 17}

    def test_of_what_is_written_in_place_go_and_do_not_come_back(self, path):
        with arraychest.Chest(path=path) as chest:
            chest["a"] = np.arange(20_000)
            chest.flush()
            row = chest._engine.stored_row("a")
            store = chest._engine.session.open_store()
            store.catalog.facts.add_digest(row.key, row.generation, 0, b"x" * 17)
            with chest._engine.session.committer.committing():
                store.note_written_in_place(row)
            store.catalog.facts.add_digest(row.key, row.generation, 0, b"x" * 17)
            assert not store.catalog.facts.of(row.generation).digests
            assert store.catalog.facts.is_written_in_place(row.generation)
            assert store.catalog.facts.may_have_changed(row.key, row.generation)
            chest["a"] = np.arange(20_000)
            chest.flush()
            new = chest._engine.stored_row("a")
            assert not store.catalog.facts.is_written_in_place(row.generation)
            assert store.catalog.facts.may_have_changed(row.key, row.generation)
            assert not store.catalog.facts.may_have_changed(new.key, new.generation)

    def test_of_many_values_cost_no_look_at_each(self, path):
        with arraychest.Chest(path=path) as chest:
            for number in range(3000):
                chest[number] = np.arange(3)
            chest.flush()
        connection = sqlite3.connect(os.path.join(path, FILE_NAME))
        try:
            for sql in (
                "SELECT part, digest FROM digest WHERE gen = 1",
                "SELECT seconds, expires FROM cost WHERE gen = 1",
                "SELECT 1 FROM entry WHERE key = x'00' AND gen = 1",
            ):
                plan = str(connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall())
                assert "SEARCH" in plan
                assert "SCAN" not in plan
        finally:
            connection.close()
