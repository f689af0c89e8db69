"""Calls go down: a module imports only modules of lower rank, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import arraychest
from tests.support import run_python

ROOT = Path(arraychest.__file__).parent

# Packages stand for all their modules, among which there is no order.
RANKS = {
    "errors": 0,
    "contexts": 0,
    "units": 0,
    "progress": 0,
    "history": 0,
    "text": 0,
    "keys": 1,
    "entry": 1,
    "scalars": 1,
    "registry": 1,
    "mapping": 1,
    "opened": 1,
    "locks": 2,
    "checksums": 1,
    "selection": 0,
    "chunkwise": 0,
    "lazy": 1,
    "chunkgrid": 1,
    "compressed": 2,
    "manifest": 2,
    "blocked": 3,
    "parallel": 1,
    "filesystem": 1,
    "quota": 1,
    "codecs": 2,
    "valuetree": 4,
    "blocks": 4,
    "budget": 2,
    "files": 3,
    "catalog": 2,
    "counter": 2,
    "compression": 3,
    "slot": 4,
    "summing": 4,
    "live": 3,
    "folder": 4,
    "resident": 5,
    "values": 6,
    "digests": 6,
    "value_print": 7,
    "origins": 7,
    "loader": 7,
    "code_print": 8,
    "reached": 9,
    "fingerprint": 10,
    "arguments": 11,
    "state_watch": 11,
    "store": 8,
    "index": 8,
    "following": 9,
    "eviction": 9,
    "committer": 10,
    "spill": 11,
    "assembly": 11,
    "account": 11,
    "session": 12,
    "tiers": 13,
    "transaction": 14,
    "handle": 14,
    "integrity": 14,
    "linking": 15,
    "listing": 15,
    "memoize": 15,
    "mutation": 15,
    "appending": 15,
    "rebuild": 15,
    "mending": 15,
    "chest": 16,
    "display": 17,
    "plots": 17,
    "exchange": 17,
    "": 17,  # the package itself
    "cli": 18,
    "dask": 18,
    "xarray": 19,
    "integrations": 18,
    "__main__": 19,
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def part_of(module: str) -> str:
    """The name under which a module, told without the package's own, is ranked."""
    return module.split(".")[0]


def imported_by(file: Path, *, at_once: bool = False) -> Iterator[tuple[str, int]]:
    """Our modules that a file imports and on which line, also where a function does, unless only
    those are asked for that it imports `at_once`.
    """
    here = name_of(file)
    package = here.split(".") if file.name == "__init__.py" else here.split(".")[:-1]
    known = {name_of(each) for each in modules()}
    tree = ast.parse(file.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "arraychest":
                    yield alias.name.partition(".")[2], node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = ".".join(part for part in package[: len(package) - node.level + 1] if part)
                module = ".".join(part for part in (base, module) if part)
            elif module.split(".")[0] == "arraychest":
                module = module.partition(".")[2]
            else:
                continue
            for alias in node.names:
                inner = ".".join(part for part in (module, alias.name) if part)
                yield (inner if inner in known else module), node.lineno


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_modules_of_lower_rank(file):
    mine = part_of(name_of(file))
    assert mine in RANKS, f"{mine} has no rank: give it one above all that it imports"
    for module, line in imported_by(file):
        theirs = part_of(module)
        if theirs == mine and "." in module + name_of(file):
            continue  # within one package
        assert RANKS[theirs] < RANKS[mine], f"{file}:{line}: {mine} imports {theirs}"


def test_every_rank_belongs_to_a_module():
    present = {part_of(name_of(file)) for file in modules()}
    assert set(RANKS) - present <= {"cli", "dask", "xarray", "__main__"}


def test_the_modules_of_a_package_do_not_import_each_other_in_a_circle():
    graph = {
        name_of(file): {module for module, _ in imported_by(file, at_once=True)}
        for file in modules()
    }

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        visit(module, ())


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
