"""Fixtures: chests of workers, made as dask makes them, and without a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.dask.support import MakeChest, check

if TYPE_CHECKING:
    from arraychest.dask import WorkerChest


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeChest]:
    """Make chests that keep all in RAM until told otherwise, and check their books at the end."""
    from arraychest.dask import WorkerChest

    made: list[WorkerChest] = []

    def make(folder: object = tmp_path, **options: Any) -> WorkerChest:
        options = {"target": "1 TiB", "max_spill": False, **options}
        made.append(WorkerChest(str(folder), **options))
        return made[-1]

    yield make
    for data in made:
        check(data)
        data.close()
        assert not os.path.exists(data._files.folder)


@pytest.fixture
def data(make: MakeChest) -> WorkerChest:
    return make()
