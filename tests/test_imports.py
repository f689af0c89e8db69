"""The rules of the house: what a folder may import, and that no imports run in a circle.

An import counts wherever it stands: at the top, for types only, in a function, or by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import arraychest
from tests.support import run_python

ROOT = Path(arraychest.__file__).parent

# The rooms, which are the folders and modules of the package, floor by floor from the ground.  A
# room imports rooms of lower floors only.  "" is the package itself.
FLOORS = (
    {"platform"},
    {"errors", "parallel", "progress", "text", "units"},
    {"formats", "markup"},
    {"arrays"},
    {"sharing", "values"},
    {"catalog", "dictionary", "files"},
    {"memory", "monitor"},
    {"storage"},
    {"engine"},
    {"exchange", "group", "integrity", "show"},
    {"memoize"},
    {"integrations"},
    {"chest"},
    {""},
    {"cli", "dask"},
    {"xarray"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Which rooms do not know each other, whatever their floors are.
APART = [("storage", "memory")]

BY_NAME = {"importlib.import_module", "import_module", "__import__"}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def module_in(package: str, name: str) -> str:
    """The module that ``from package import name`` imports."""
    inner = f"{package}.{name}".lstrip(".")
    return inner if inner in MODULES else package


def imports_of(source: str, package: str = "") -> Iterator[tuple[str, int]]:
    """Our modules that a text imports, without the package's own name, and on which line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "arraychest":
                    yield alias.name.partition(".")[2], node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(["arraychest", *filter(None, above), *filter(None, [base])])
            if base.partition(".")[0] == "arraychest":
                for alias in node.names:
                    yield module_in(base.partition(".")[2], alias.name), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME and node.args:
            first = node.args[0]
            # Of a text that is put together its beginning tells the folder.
            text = first.values[0] if isinstance(first, ast.JoinedStr) else first
            if isinstance(text, ast.Constant) and str(text.value).startswith("arraychest."):
                name = str(text.value).partition(".")[2]
                yield (name.rpartition(".")[0] if text is not first else name), node.lineno


def imports_in(module: str) -> list[tuple[str, int]]:
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return list(imports_of(file.read_text(), package))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "arraychest")
def test_a_room_imports_rooms_of_lower_floors_only(module):
    room = room_of(module)
    assert room in FLOOR, f"{room} has no floor: give it one above all that it imports"
    for target, line in imports_in(module):
        other = room_of(target)
        if other != room:
            assert FLOOR[other] < FLOOR[room], f"{MODULES[module]}:{line}: {room} imports {other}"
            assert (room, other) not in APART, f"{MODULES[module]}:{line}: {room} imports {other}"


def test_every_room_that_has_a_floor_is_there():
    # In the wheel's environment optional parts are missing as packages, not as modules.
    assert set(FLOOR) == {room_of(module) for module in MODULES}


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {target for target, _ in imports_in(module)} - {module} for module in MODULES}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import arraychest.chest", ["chest"]),
        ("from arraychest.engine import engine, commit", ["engine.engine", "engine.commit"]),
        ("from arraychest import Chest", [""]),
        ("from . import locks", ["sharing.locks"]),
        ("from .. import errors", ["errors"]),
        ("def f():\n    from arraychest.chest import Chest", ["chest"]),
        ("if TYPE_CHECKING:\n    import arraychest.chest", ["chest"]),
        ("importlib.import_module('arraychest.chest')", ["chest"]),
        ("importlib.import_module(f'arraychest.dask.{name}')", ["dask"]),
        ("import numpy, arraychests", []),
    ],
)
def test_an_import_counts_wherever_it_stands(source, found):
    assert [module for module, _ in imports_of(source, "sharing")] == found


def test_every_folder_says_what_lives_there():
    for module, file in MODULES.items():
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text())), module


def test_importing_arraychest_imports_nothing_that_is_slow_or_optional():
    run_python("""
        import sys
        import numpy, psutil, sqlite3
        before = set(sys.modules)
        import arraychest
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        unwanted = {"blosc2", "rich", "matplotlib", "dask", "hypothesis", "pytest", "ndindex",
                    "numexpr", "requests", "msgpack"}
        assert not new & unwanted, new & unwanted
        assert not unwanted & {name.split(".")[0] for name in sys.modules}
    """)


def test_every_public_name_is_there_and_documented():
    for name in arraychest.__all__:
        public = getattr(arraychest, name)
        assert isinstance(public, int) or public.__doc__, name
