"""`python -m bench` runs, reads back what it stored, and prints its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "bench").is_dir(), reason="bench/ is part of the checkout only"
)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("rich")
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_one_workload_prints_its_rows_and_leaves_no_files(tmp_path):
    figures, files = tmp_path / "figures.json", tmp_path / "files"
    done = bench("hits", "--scale=small", "--rounds=1", "--json", figures, "--dir", files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "get, resident" in done.stdout
    document = json.loads(figures.read_text(encoding="utf-8"))
    measures = {row["measure"] for row in document["rows"]}
    assert {"get, resident", "get, mapped", "put 1 KiB, new key"} <= measures
    assert not document["broken"]
    assert not list(files.iterdir())


def test_an_unknown_workload_is_refused():
    done = bench("no-such-workload")
    assert done.returncode == 2
    assert "spill-write" in done.stderr
