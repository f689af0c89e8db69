"""SIGINT at a chosen place of a call: wherever CPython looks for signals.

It does so behind a call, at the begin of a function and at a jump back.  `interrupted` runs a
function under `sys.settrace`, counts these places in whatever Python code it runs, and raises the
signal at one of them.  It is a real one, so that the handler counts that is installed then.
"""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

# At the begin of each instruction that follows one of these the signal comes.
CHECKS = ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")

# What Python raises in a finalizer it prints, and nobody catches it.
FINALIZERS = frozenset({"__del__", "forget", "_forget", "_remove", "remove", "finalize"})

# Modules that are imported at the first use, and the tests' own code.
_APART = ("<frozen", "<string>", os.path.dirname(os.path.abspath(__file__)))


class Place(NamedTuple):
    """An instruction, which may be run many times."""

    file: str
    line: int
    instruction: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


def interrupted(call: Callable[[], object], at: int) -> tuple[list[Place], bool]:
    """Call it, and raise SIGINT at the n-th place.

    Returns the places up to there, and whether the caller was told with KeyboardInterrupt.  With 0
    there is no signal, and these are all the places.
    """
    places: list[Place] = []
    last: tuple[Any, str] = (None, "")

    def step(frame: Any, event: str, arg: Any) -> Any:
        nonlocal last
        code, where = frame.f_code, frame.f_lasti
        previous, last = last, (frame, dis.opname[code.co_code[where]])
        if event == "opcode" and previous[0] is frame and previous[1] in CHECKS:
            places.append(Place(code.co_filename, frame.f_lineno, where))
            if len(places) == at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return step

    def enter(frame: Any, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_name in FINALIZERS or code.co_filename.startswith(_APART):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    told = False
    sys.settrace(enter)
    try:
        call()
    except KeyboardInterrupt:
        told = True
    finally:
        sys.settrace(None)
    return places, told
