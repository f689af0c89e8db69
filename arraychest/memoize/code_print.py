"""A code object as bytes that say what it does, and the names that it reads.

Instructions, constants (type-exact), names and flags count, and those of the functions within it.
Comments, layout, file name, line numbers and the text of the docstring do not.
"""

from __future__ import annotations

import dis
import inspect
import sys
import types
from typing import NamedTuple

from arraychest.arrays.digests import array_digest
from arraychest.memoize.value_print import ValuePrint


class Code(NamedTuple):
    """What is known of a code object, and of those within it.

    Attributes
    ----------
    code
        The object itself, so that its id stays its own.
    digest
        What it does.
    names
        The globals that it reads, sorted.
    recorded
        The globals and the variables of its closure of which it only calls methods that change
        them and return None, as ``CALLS.append``: what they hold cannot make any difference to it.
    appended
        The attributes of which it does only that, as ``self.calls.append``.
    examined
        The attributes that it reads otherwise.
    whole
        The globals of which it reads more than an attribute.
    attributes
        The names that it reads as attributes, and others.
    imports
        The modules that it imports when it runs.
    """

    code: types.CodeType
    digest: bytes
    names: tuple[str, ...]
    recorded: frozenset[str]
    appended: frozenset[str]
    examined: frozenset[str]
    whole: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]


_codes: dict[int, Code] = {}
_MAX_CODES = 2048

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CLOSURE = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})

# Methods of what `RECORDS` are that return None, whatever is in them.
_RECORDING = frozenset({"append", "appendleft", "extend", "extendleft", "add", "update", "clear"})

# From 3.14 on a flag says that the first constant is a docstring; before, it is one if it is text
# that no instruction uses.
_HAS_DOCSTRING = 0x4000000


class _Constants(ValuePrint):
    """Writes the constants of code down."""

    def code(self, code: types.CodeType) -> None:
        self.out += b"K" + code_print(code).digest


def code_print(code: types.CodeType) -> Code:
    """What a code object does and reads, those within it included."""
    known = _codes.get(id(code))
    if known is not None:
        return known
    inner = [code_print(each) for each in code.co_consts if type(each) is types.CodeType]
    names: set[str] = set()
    imports: set[str] = set()
    # What is done with a variable: whether that only changes it.
    recorded: set[str] = set()
    read: set[str] = set()
    appended: set[str] = set()
    examined: set[str] = set()
    whole: set[str] = set()
    first_is_used = False
    steps = list(dis.get_instructions(code))
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.opname in _GLOBAL:
            names.add(step.argval)
        if step.opname in _GLOBAL or step.opname in _CLOSURE:
            of_it = following is not None and following.opname in _ATTRIBUTE
            if not of_it:
                whole.add(step.argval)
            records = following is not None and of_it and following.argval in _RECORDING
            (recorded if records else read).add(step.argval)
        elif step.opname in _ATTRIBUTE:
            of_it = following is not None and following.opname in _ATTRIBUTE
            records = following is not None and of_it and following.argval in _RECORDING
            (appended if records else examined).add(step.argval)
        elif step.opname == "IMPORT_NAME":
            imports.add(step.argval)
        first_is_used |= step.opcode in dis.hasconst and step.arg == 0
    attributes = set(code.co_names)
    for each in inner:
        names.update(each.names)
        imports.update(each.imports)
        attributes.update(each.attributes)
        recorded |= each.recorded
        whole |= each.whole
        appended |= each.appended
        examined |= each.examined
        read |= {*each.names, *each.code.co_freevars} - each.recorded
    found = Code(
        code,
        _hashed(code, first_is_used=first_is_used),
        tuple(sorted(names)),
        frozenset(recorded - read),
        frozenset(appended - examined),
        frozenset(examined),
        frozenset(whole),
        frozenset(attributes),
        frozenset(imports),
    )
    if len(_codes) >= _MAX_CODES:
        _codes.clear()
    _codes[id(code)] = found
    return found


def _hashed(code: types.CodeType, *, first_is_used: bool) -> bytes:
    """A hash of what a code object does; a docstring does not count."""
    constants = list(code.co_consts)
    if not first_is_used and constants and type(constants[0]) is str and _has_docstring(code):
        constants[0] = None
    encoder = _Constants(array_digest)
    encoder.node((
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
        code.co_flags & ~_HAS_DOCSTRING, code.co_code, code.co_names, code.co_varnames,
        code.co_freevars, code.co_cellvars, code.co_exceptiontable, constants,
    ))  # fmt: skip
    return encoder.hashed()


def _has_docstring(code: types.CodeType) -> bool:
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & _HAS_DOCSTRING)
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")
