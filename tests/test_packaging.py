"""What the package says of itself, without network and without building it."""

from __future__ import annotations

import importlib
import json
import os
import re
import tomllib
from pathlib import Path

import pytest

import arraychest

PACKAGE = Path(arraychest.__file__).parent
# Beside the tests, wherever they are run from.
ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]


def test_the_version_is_read_from_the_package():
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "arraychest/__init__.py"
    text = (PACKAGE / "__init__.py").read_text()
    assert re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE) == [arraychest.__version__]


def test_all_is_every_extra_that_is_for_users():
    (every,) = EXTRAS["all"]
    named = set(re.match(r"arraychest\[(.*)\]$", every)[1].split(","))
    assert named == set(EXTRAS) - {"all", "test", "bench", "docs"}


@pytest.mark.parametrize("package", ["ml_dtypes", "pandas", "scipy", "xarray"])
def test_an_integration_has_an_extra_of_its_package(package):
    text = (PACKAGE / "integrations" / f"{package}.py").read_text()
    assert re.search(rf"^(import|from) {package}\b", text, re.MULTILINE)
    assert [name_of(each) for each in EXTRAS[package]] == [package]


def test_the_tests_have_every_package_that_users_may_have():
    wanted = {
        name_of(each)
        for extra in set(EXTRAS) - {"all", "test", "bench", "docs"}
        for each in EXTRAS[extra]
    }
    assert wanted <= {name_of(each) for each in EXTRAS["test"]}


def test_types_and_guides_are_within_what_is_built():
    targets = PYPROJECT["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["packages"] == ["arraychest"]
    assert {"/arraychest", "/tests", "/bench", "/README.md", "/LICENSE"} <= set(
        targets["sdist"]["include"]
    )
    assert (PACKAGE / "py.typed").exists()
    assert list((PACKAGE / "guide").glob("*.md"))


@pytest.mark.parametrize("script", PROJECT["scripts"].values())
def test_a_script_is_a_function_that_exists(script):
    module, _, function = script.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    """What ``.ci/quick oldest`` installs is what the lower bounds say, each of them."""
    wanted = [*PROJECT["dependencies"], *EXTRAS["test"]]
    allowed = {}
    for each in wanted:
        name, _, version = each.partition(">=")
        name = re.sub(r"\[.*\]", "", name)
        if not name.startswith(("mypy", "ruff", "types-")):
            allowed[name] = [int(part) for part in version.split(".")]
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pinned.pop("distributed") == pinned["dask"]
    assert pinned.keys() == allowed.keys()
    for name, version in pinned.items():
        parts = [int(part) for part in version.split(".")]
        bound = allowed[name]
        assert parts[: len(bound)] == bound, name
        assert not any(parts[len(bound) :]), name


def test_the_classifiers_name_what_is_supported_and_tested():
    classifiers = PROJECT["classifiers"]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(classifiers), re.MULTILINE)
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert f"python: {json.dumps(versions)}" in workflow
    systems = [each for each in classifiers if each.startswith("Operating System")]
    assert systems == ["Operating System :: MacOS", "Operating System :: POSIX :: Linux"]
    assert "os: [ubuntu-latest, macos-latest]" in workflow
    assert os.access(ROOT / ".ci" / "quick", os.X_OK)
