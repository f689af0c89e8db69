"""SIGINT at a chosen place of a call: wherever CPython looks for signals.

It does so behind a call, at the begin of a function and at a jump back.  `interrupted` runs a
function under `sys.settrace` or `sys.monitoring`, counts these places in whatever Python code it
runs, and raises the signal at one of them.  The signal is a real one, so that the handler counts
that is installed then.
"""

from __future__ import annotations

import dis
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType
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

    def visit(frame: Any, where: int) -> None:
        nonlocal last
        code = frame.f_code
        previous, last = last, (frame, dis.opname[code.co_code[where]])
        if previous[0] is frame and previous[1] in CHECKS:
            places.append(Place(code.co_filename, frame.f_lineno, where))
            if len(places) == at:
                stop()
                signal.raise_signal(signal.SIGINT)

    told = False
    stop = _monitored(visit) if hasattr(sys, "monitoring") else _traced(visit)
    try:
        call()
    except KeyboardInterrupt:
        told = True
    finally:
        stop()
    return places, told


def _is_apart(code: CodeType) -> bool:
    return code.co_name in FINALIZERS or code.co_filename.startswith(_APART)


def _traced(visit: Callable[[Any, int], None]) -> Callable[[], None]:
    """Visit each instruction of this thread; returns what ends that."""

    def step(frame: Any, event: str, arg: Any) -> Any:
        if event == "opcode":
            visit(frame, frame.f_lasti)
        return step

    def enter(frame: Any, event: str, arg: Any) -> Any:
        if _is_apart(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    sys.settrace(enter)
    return lambda: sys.settrace(None)


def _monitored(visit: Callable[[Any, int], None]) -> Callable[[], None]:
    """As `_traced`, from Python 3.12 on: there not every frame that is traced tells of opcodes."""
    monitoring: Any = vars(sys)["monitoring"]
    tool, event = monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION
    thread = threading.get_ident()

    def instruction(code: CodeType, where: int) -> Any:
        if _is_apart(code):
            return monitoring.DISABLE
        if threading.get_ident() == thread:
            visit(sys._getframe(1), where)
        return None

    def stop() -> None:
        if monitoring.get_tool(tool) is not None:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)

    monitoring.use_tool_id(tool, "interrupts")
    monitoring.register_callback(tool, event, instruction)
    monitoring.set_events(tool, event)
    return stop
