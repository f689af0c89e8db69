"""Keys and indices as they are written on a command line.

A text is the key that is this str; else the key that Python shows so (a UUID, a date, a path).
Behind ``=`` it is a Python literal: ``=('tile', 3)``, ``=7``, ``=b'x'``, ``=frozenset({1, 2})``.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Sequence
from typing import Any

import arraychest
from arraychest.cli.errors import CommandError
from arraychest.cli.printing import key_text, readable
from arraychest.exchange import names

HELP = "a key as `arraychest ls` shows it; =LITERAL is Python's, as in =('tile', 3)"


def parse_key(text: str) -> Any:
    """The key that a new value is given: a str, or the literal behind ``=``."""
    if not text.startswith("="):
        return text
    try:
        return _literal(ast.parse(text[1:].strip(), mode="eval").body)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise CommandError(
            f"expected a Python literal behind =, such as =('tile', 3), found {text[1:]!r:.100}: "
            f"{error}"
        ) from error


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(map(_literal, node.elts))
    is_set = isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset"
    if isinstance(node, ast.Call) and is_set and len(node.args) <= 1 and not node.keywords:
        elements = [each for part in node.args for each in getattr(part, "elts", ())]
        return frozenset(map(_literal, elements))
    return ast.literal_eval(node)


def find_key(chest: arraychest.Chest, text: str) -> Any:
    """The key of a chest that is written so.

    Raises
    ------
    CommandError
        There is none.
    """
    key = parse_key(text)
    try:
        if key in chest:
            return key
    except TypeError as error:
        raise CommandError(f"expected a key, found {text!r:.100}: {error}") from error
    if type(key) is str:
        for other in chest:
            if type(other) is not str and repr(other) == text:
                return other
    raise CommandError(
        f"expected a key of {chest.path}, found none that is written {readable(text)} "
        f"(arraychest ls {chest.path} shows them all)"
    )


def chosen_keys(
    chest: arraychest.Chest, texts: Sequence[str], globs: Sequence[str] | None
) -> list[Any]:
    """The keys that are written so, and those that match, each once.

    Raises
    ------
    CommandError
        One of the texts is no key, or nothing matches.
    """
    found = [find_key(chest, text) for text in texts]
    if globs:
        matching = [key for key in chest if matches(key, globs)]
        if not matching:
            raise CommandError(f"expected keys that match {', '.join(globs)}, found none")
        found += matching
    return list(dict.fromkeys(found))


def matches(key: Any, globs: Sequence[str]) -> bool:
    """Whether a key, as it is, as it is shown or as an export names it, matches a pattern."""
    exact = key if isinstance(key, str) else repr(key)
    told = {exact, key_text(key), names.readable(key)}
    # As they are: in the text of a tuple or a list no bracket begins a set of characters.
    return any(
        glob in told or any(fnmatch.fnmatchcase(text, glob) for text in told) for glob in globs
    )


def parse_index(text: str) -> Any:
    """An index of NumPy's, such as ``0:10, ::2, ..., 3``.

    Raises
    ------
    CommandError
        It is none.
    """
    try:
        subscript: Any = ast.parse(f"_[{text}]", mode="eval").body
        return _index(subscript.slice)
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError) as error:
        raise CommandError(f"expected an index such as '0:10, ::2', found {text!r:.100}") from error


def _index(node: Any) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(map(_index, node.elts))
    if isinstance(node, ast.Slice):
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if part is None else _number(part) for part in parts))
    found = ast.literal_eval(node)
    if found is None or found is ... or type(found) in (int, bool):
        return found
    if type(found) is list:
        return [each if type(each) is bool else int(each) for each in found]
    raise ValueError(f"{found!r}")


def _number(node: Any) -> int:
    found = ast.literal_eval(node)
    if type(found) is not int:
        raise ValueError(f"{found!r}")
    return found
