"""Ctrl-C within `compact`, wherever CPython looks for signals there.

It does so behind a call, at the begin of a function and at a jump back.  Each attempt is a child of
its own; the n-th one is interrupted at the n-th of these places in arraychest's code.
"""

from __future__ import annotations

import dis
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from tests.faults import Say, in_child
from tests.support import audit

PACKAGE = os.path.dirname(arraychest.__file__)
CHECKS = ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")
FINALIZERS = ("__del__", "forget", "_forget")  # what is raised there reaches nobody

COUNT = 30
RIGHT = {number: float(number) for number in range(COUNT) if number % 3}


def interrupted(call: Callable[[], object], at: int) -> list[tuple[str, int]]:
    """Call it, and raise KeyboardInterrupt at a place; returns the places up to there."""
    places: list[tuple[str, int]] = []
    last: tuple[Any, str] = (None, "")

    def step(frame: Any, event: str, arg: Any) -> Any:
        nonlocal last
        previous, last = last, (frame, dis.opname[frame.f_code.co_code[frame.f_lasti]])
        if event == "opcode" and previous[0] is frame and previous[1] in CHECKS:
            places.append((frame.f_code.co_filename, frame.f_lineno))
            if len(places) == at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return step

    def enter(frame: Any, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name in FINALIZERS:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    sys.settrace(enter)
    try:
        call()
    except KeyboardInterrupt:
        assert at
    finally:
        sys.settrace(None)
    return places


def filled(number: float) -> np.ndarray:
    return np.full(100, float(number))


def with_holes(path: Path) -> arraychest.Chest:
    """A chest with a pack of which a third is dead, and that knows of some of the rest."""
    with arraychest.open(path, "w") as chest:
        for number in range(COUNT):
            chest[number] = filled(number)
        chest.flush()
    chest = arraychest.open(path, "a")
    for number in range(COUNT // 2):
        assert chest[number][0] == number
    for number in range(0, COUNT, 3):
        del chest[number]
    return chest


def numbers(chest: arraychest.Chest) -> dict[Any, float]:
    return {key: float(chest[key][-1]) for key in chest}


def attempt(path: Path, at: int) -> list[tuple[str, int]]:
    def child(say: Say) -> list[tuple[str, int]]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(10)
        chest = with_holes(path)
        places = interrupted(chest.compact, at)
        assert numbers(chest) == RIGHT
        assert chest.verify().findings == ()
        chest.compact()
        assert numbers(chest) == RIGHT
        with arraychest.open(path, "r") as other:
            assert numbers(other) == RIGHT
        chest.close()
        with arraychest.open(path, "a") as again:
            assert numbers(again) == RIGHT
            assert again.verify().findings == ()
            again.compact()
            assert numbers(again) == RIGHT
            assert not again._engine.session.store.packs.dead_bytes()
        return places

    outcome = in_child(child)
    where = f"interrupted at place {at}"
    assert not outcome.signal, f"{where}: it hangs, or ended by signal {outcome.signal}"
    assert outcome.error is None, f"{where}: {outcome.error}"
    audit(str(path))
    return list(map(tuple, outcome.result))


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="later Pythons do not trace each opcode of each first call"
)
@pytest.mark.parametrize(
    "most", [16, pytest.param(1000, marks=pytest.mark.stress)], ids=["some", "each line"]
)
def test_every_value_is_there_and_compaction_runs_again(tmp_path, most):
    by_line = defaultdict(list)
    for number, place in enumerate(attempt(tmp_path / "0", 0), 1):
        by_line[place].append(number)
    assert len(by_line) > 200
    chosen = [places[-1] for places in by_line.values()]
    random.Random(most).shuffle(chosen)
    # Half of them late, where the catalog is ahead of what memory knows.
    late = sorted(chosen)[len(chosen) // 2]
    later = [place for place in chosen if place >= late]
    for at in {*later[: most // 2], *chosen[: most - most // 2]}:
        attempt(tmp_path / str(at), at)
