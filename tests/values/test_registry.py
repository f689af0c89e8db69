"""Types that packages bring along by an entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

import arraychest
from arraychest.values import registry
from tests.support import run_python

MODULE = """
import arraychest

class Length:
    def __init__(self, metres):
        self.metres = metres

def register_types():
    arraychest.register(Length, lambda length: length.metres, Length, name="lengths.Length")
"""


def install(folder: Path, entry: str) -> None:
    """A package `lengths`, as pip would have installed it."""
    folder.mkdir()
    (folder / "lengths.py").write_text(MODULE)
    metadata = folder / "lengths-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\nlengths = {entry}\n")


@pytest.mark.slow
def test_a_packages_entry_point_registers_its_types(tmp_path, path):
    install(tmp_path / "site", "lengths:register_types")
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import arraychest\n"
    run_python(f"""
        {start.strip()}
        from lengths import Length
        with arraychest.Chest({{"x": [Length(3.5)]}}, path={str(path)!r}):
            pass
    """)
    # Who reads has not imported the package: the name alone finds it.
    run_python(f"""
        {start.strip()}
        with arraychest.open({str(path)!r}, "r") as chest:
            (length,) = chest["x"]
        assert type(length).__module__ == "lengths" and length.metres == 3.5
    """)
    with (
        arraychest.open(path, "r") as chest,
        pytest.raises(arraychest.UnreadableValueError, match=r"lengths\.Length"),
    ):
        chest["x"]


def test_an_entry_point_that_fails_is_logged_and_keeps_nobody_from_anything(tmp_path):
    install(tmp_path / "site", "lengths:no_such_function")
    run_python(f"""
        import sys; sys.path.insert(0, {str(tmp_path / "site")!r})
        import logging
        records = []
        handler = logging.Handler()
        handler.emit = records.append
        logging.getLogger("arraychest").addHandler(handler)
        import arraychest
        chest = arraychest.Chest({{"x": [1]}})
        try:
            chest["y"] = object()
        except TypeError as error:
            assert "arraychest.register" in str(error)
        assert chest["x"] == [1]
        assert any("lengths" in record.getMessage() for record in records)
    """)


@pytest.mark.parametrize("kind", [3, "int", None])
def test_what_is_no_type_is_refused(kind):
    with pytest.raises(TypeError, match="expected a type"):
        arraychest.register(kind, str, str)


def test_a_name_belongs_to_one_type_and_both_functions_go_together():
    class One:
        pass

    class Other:
        pass

    arraychest.register(One, lambda _: None, lambda _: One(), name="test_registry.One")
    with pytest.raises(ValueError, match="no other type"):
        arraychest.register(Other, lambda _: None, lambda _: Other(), name="test_registry.One")
    with pytest.raises(TypeError, match="both"):
        arraychest.register(Other, lambda _: None)
    with pytest.raises(TypeError, match="no dataclass"):
        arraychest.register(Other)
