"""The rules of the house: what a folder may import, and that no imports run in a circle.

An import counts wherever it stands: at the top, for types only, in a function, or by name.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import arraychest
from tests.support import run_python

ROOT = Path(arraychest.__file__).parent

# The rooms, which are the folders and modules of the package, floor by floor from the ground.  A
# room imports rooms of lower floors only.  "" is the package itself.
FLOORS = (
    {"errors", "platform", "progress", "text", "units"},
    {"markup", "parallel", "sharing"},
    {"catalog", "files", "formats"},
    {"arrays", "monitor"},
    {"values"},
    {"dictionary", "memory", "storage"},
    {"engine"},
    {"exchange", "integrity", "memoize", "show"},
    {"group", "integrations"},
    {"chest"},
    {""},
    {"cli", "dask", "xarray"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# How large a module and a function may be, in lines that are neither blank nor only comment or
# docstring, and how many methods a class may have.  A face has those of a dict or an array.
MOST_LINES, MOST_LINES_OF_FUNCTION, MOST_METHODS = 400, 60, 30
FACES = {"Chest", "LazyArray"}

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


def lines_of_code(text: str) -> set[int]:
    """Numbers of the lines that are neither blank nor only comment or docstring."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_doc = token.type == tokenize.STRING and token.start[0] in docs
        if token.string.strip() and token.type != tokenize.COMMENT and not is_doc:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def too_large(text: str) -> list[str]:
    """What of a module is larger than it may be."""
    lines, found = lines_of_code(text), []
    if len(lines) > MOST_LINES:
        found.append(f"{len(lines)} lines of code")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            count = len(lines & set(range(first, (node.end_lineno or 0) + 1)))
            if count > MOST_LINES_OF_FUNCTION:
                found.append(f"{node.name}: {count} lines of code")
        elif isinstance(node, ast.ClassDef) and node.name not in FACES:
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            methods = {each.name for each in node.body if isinstance(each, functions)}
            if len(methods) > MOST_METHODS:
                found.append(f"{node.name}: {len(methods)} methods")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "arraychest")
def test_a_module_a_function_and_a_class_are_small_enough_to_read(module):
    assert not too_large(MODULES[module].read_text())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 400, []),
        ("x = 1\n" * 401, ["401 lines of code"]),
        ("# a comment\n\n" * 401, []),
        ("def f():\n    '''a\n\n    b'''\n" + "    x = 1\n" * 59, []),
        ("def f():\n" + "    x = 1\n" * 60, ["f: 61 lines of code"]),
        (
            "class C:\n" + "".join(f"    def f{n}(self): ...\n" for n in range(31)),
            ["C: 31 methods"],
        ),
        ("class Chest:\n" + "".join(f"    def f{n}(self): ...\n" for n in range(31)), []),
    ],
    ids=range(7),
)
def test_what_is_too_large_is_found(text, found):
    assert too_large(text) == found


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
