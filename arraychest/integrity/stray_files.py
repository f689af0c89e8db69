"""Files that no row of the catalog names: left by a crash, or of somebody else."""

from __future__ import annotations

import contextlib
from typing import Any

from arraychest.engine.engine import Engine
from arraychest.files.names import SPARE
from arraychest.integrity.survey import Survey
from arraychest.storage.file_names import generation_of
from arraychest.storage.sweeping import sessions


def find_stray_files(survey: Survey, engine: Engine) -> None:
    """Find the files without a row that no session writes, or removes, at this moment."""
    store, catalog = survey.store, survey.catalog
    present = list(store.files.names())

    def without_row(names: list[str]) -> list[str]:
        alive, _ = sessions(store, catalog)
        alive.add(store.catalog.changes.session)
        named = catalog.file_generations() | catalog.pack_ids()
        leaving = {name for number in alive for name in catalog.changes.gone_files(number)}
        left = []
        for name in names:
            generation = generation_of(name)
            if generation is not None:
                writer = generation >> 32
                if name.startswith(SPARE):
                    writer = int(name.split("/")[1], 16)
                if generation in named and not name.startswith(SPARE):
                    continue
                if writer in alive or name in leaving:
                    continue
            if store.files.exists(name):
                left.append(name)
        return left

    suspects = without_row(present)
    if not suspects:
        return
    # While nobody commits, or removes what a commit has put out of use.
    held: Any = contextlib.nullcontext()
    if engine.session.is_writer():
        held = engine.session.committer.committing()
    with held:
        suspects = without_row(suspects)
    for name in suspects:
        if generation_of(name) is None:
            survey.find("unknown file", None, name, "expected files of values only")
        else:
            survey.find("orphan", None, name, "expected a row that names it, found none")
