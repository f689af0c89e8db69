"""What the documentation shows is run: docstrings' examples, and the README's code blocks."""

from __future__ import annotations

import doctest
import gc
import importlib
import os
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import arraychest
from arraychest.cli import main
from tests.support_docs import blocks, commands, prose, python_blocks, run_blocks

PACKAGE = Path(arraychest.__file__).parent
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "arraychest.")
    if not name.endswith("__main__")
)

# Beside the tests, wherever they are run from.
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pool: None) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["arraychest", *MODULES])
def test_the_examples_in_docstrings_are_true(elsewhere, name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("arraychest"):
            raise
        pytest.skip(f"needs {error.name}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    gc.collect()
    assert not results.failed


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    module = importlib.import_module("arraychest.chest")
    assert any(test.examples for test in finder.find(module))


SESSIONS = [
    (block.line, block.text)
    for block in (blocks(README) if README.exists() else [])
    if block.language in ("pycon", "python", "py", "") and ">>>" in block.text
]


@pytest.mark.slow
@pytest.mark.parametrize("readme", [README] if README.exists() else [])
def test_the_readmes_python_blocks_run_one_after_another(elsewhere, readme):
    """In one fresh interpreter, in an empty folder, as a reader would who goes along."""
    run_blocks(readme, python_blocks(readme))


@pytest.mark.parametrize("line", [line for line, _ in SESSIONS])
def test_a_readme_session_shows_what_it_prints(elsewhere, line):
    text = dict(SESSIONS)[line]
    test = doctest.DocTestParser().get_doctest(text, {}, f"README:{line}", str(README), line)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test)
    gc.collect()
    assert not runner.summarize(verbose=False).failed


@pytest.mark.parametrize("readme", [README] if README.exists() else [])
def test_files_that_the_readme_links_to_exist(readme):
    text = prose(readme)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            # The guides lie in the package, wherever that is installed.
            places = (readme.parent, PACKAGE.parent)
            assert any((place / target).exists() for place in places), target


@pytest.mark.usefixtures("elsewhere")
def test_the_readmes_commands_run():
    with arraychest.open("work.chest") as chest:
        chest["slope"] = np.arange(60_000.0).reshape(200, 300)
    arraychest.open("yesterday.chest").close()
    os.mkdir("tiles")
    np.save("tiles/a.npy", np.arange(3))
    found = [
        words
        for block in blocks(README)
        if block.language == "console"
        for words in commands(block)
        if words[0] == "arraychest"
    ]
    assert {words[1] for words in found} >= {"ls", "info", "get", "put", "cp", "diff", "export"}
    for words in found:
        more = ["--once"] if words[1] == "top" else []
        assert main([*words[1:], *more]) == (words[1] == "diff"), words
    assert np.load("window.npy").shape == (100, 50)
