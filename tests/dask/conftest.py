"""Fixtures for the tests of `WorkerChest`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make chests that keep all in RAM until told otherwise, and check their books at the end."""
    from arraychest.dask import WorkerChest
    from tests.dask.workers import check

    made: list[Any] = []

    def make(folder: object = tmp_path, **options: Any) -> Any:
        options = {"target": "1 TiB", "max_spill": False, **options}
        made.append(WorkerChest(str(folder), **options))
        return made[-1]

    yield make
    for data in made:
        check(data)
        data.close()
        assert not os.path.exists(data._files.folder)


@pytest.fixture
def data(make: Callable[..., Any]) -> Any:
    return make()
