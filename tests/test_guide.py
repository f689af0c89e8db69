"""The guides: every block of code in them is run, or at least read."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import metadata
from pathlib import Path

import pytest

import arraychest
from arraychest.cli import main
from tests.support import PRELOAD
from tests.support_docs import blocks, commands, prose, python_blocks, run_blocks
from tests.test_docs import README

ROOT = Path(__file__).parent.parent
FOLDER = Path(arraychest.__file__).parent / "guide"
GUIDES = sorted(FOLDER.glob("*.md"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, no_pool):
    monkeypatch.chdir(tmp_path)


def test_there_is_a_guide_for_each_use():
    uses = {
        "tutorial",
        "pipelines",
        "cached-functions",
        "out-of-core",
        "reopening",
        "dask",
        "xarray",
    }
    assert uses <= {guide.stem for guide in GUIDES}


def test_every_guide_is_in_the_navigation_of_the_site():
    script = ROOT / ".ci" / "reference"
    if not script.exists():
        pytest.skip("tested beside a wheel, without the script")
    sections = runpy.run_path(str(script), run_name="imported")["SECTIONS"]
    named = [name for names in sections.values() for name in names]
    assert sorted(named) == sorted(guide.stem for guide in GUIDES)


def test_the_readme_is_short():
    if README.exists():
        assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", [each for each in GUIDES if python_blocks(each)], ids=lambda guide: guide.stem
)
def test_the_python_blocks_of_a_guide_run_one_after_another(elsewhere, guide):
    run_blocks(guide, python_blocks(guide))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_block_of_a_guide_is_code_that_is_looked_at_or_marked_as_text(guide):
    for block in blocks(guide):
        assert block.language in ("python", "console", "text"), block.line
        if block.language == "console":
            assert all(commands(block)), block.line


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_has_one_title_and_its_links_lead_somewhere(guide):
    text = prose(guide)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (FOLDER / target).exists(), target


@pytest.mark.usefixtures("elsewhere")
def test_what_is_shown_of_a_terminal_is_what_tests_and_ci_run():
    """`test_docs` runs README's commands of arraychest, `test_dask_cluster` a worker."""
    shown = [
        words
        for file in [*GUIDES, README]
        for block in blocks(file)
        if block.language == "console"
        for words in commands(block)
        if file != README or words[0] != "arraychest"
    ]
    assert len(shown) >= 5
    extras = metadata("arraychest").get_all("Provides-Extra")
    arraychest.open("work.chest").close()
    for words in shown:
        if words[0] == "arraychest":
            more = ["--once"] if words[1] == "top" else []
            assert main([*words[1:], *more]) == 0
        elif words[:2] == ["dask", "worker"]:
            assert words[3:] == PRELOAD
        elif words[:2] == ["pip", "install"]:
            wanted = re.fullmatch(r"(?:\.|arraychest)\[([a-z,]+)\]", words[2])
            assert wanted is not None, words
            assert set(wanted[1].split(",")) <= set(extras)
        else:
            assert words in ([".ci/run"], ["eval", "$(arraychest completion bash)"]), words
