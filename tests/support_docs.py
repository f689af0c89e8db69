"""Code in Markdown, run as a reader would who goes along: for the README and the guides."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import run_python

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ARROW = re.compile(r"#\s*->\s*(.*?)\s*$")
_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Block(NamedTuple):
    """One block of code: its first line, its language, its text."""

    line: int
    language: str
    text: str


def blocks(file: Path) -> list[Block]:
    """The blocks of code of a file, in their order."""
    text = file.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start()) + 2, match[1], match[2])
        for match in _BLOCK.finditer(text)
    ]


def prose(file: Path) -> str:
    """What is left of a file without its blocks of code."""
    return _BLOCK.sub("", file.read_text(encoding="utf-8"))


def python_blocks(file: Path) -> list[Block]:
    """Those that are programs, not sessions."""
    return [
        block
        for block in blocks(file)
        if block.language in ("python", "py") and ">>>" not in block.text
    ]


def commands(block: Block) -> list[list[str]]:
    """The commands of a block of a terminal, each behind a ``$``; it shows nothing else."""
    found = []
    for line in block.text.replace("\\\n", "").splitlines():
        assert line.startswith("$ "), f"line {block.line}: expected a command, found {line!r}"
        found.append(shlex.split(line[2:], comments=True))
    return found


def run_blocks(file: Path, found: list[Block]) -> None:
    """Run blocks one after another in one fresh interpreter, in the current folder.

    Where a statement's last line ends with ``# -> this``, its value, or what it assigns, must be
    shown by `repr` as this; ``...`` stands for anything.
    """
    program = ["from tests.support_docs import checked"]
    program += [f"exec(checked({text!r}, {line}, {str(file)!r}))" for line, _, text in found]
    run_python("\n".join(program), timeout=120, prefix=f"export PYTHONPATH={_paths()}")


def _paths() -> str:
    return shlex.quote(str(Path(__file__).parent.parent)) + ":$PYTHONPATH"


def checked(text: str, line: int, file: str) -> Any:
    """The code of a block, with each ``# ->`` made an assertion.

    Lines keep their numbers, so that an error says where it is in the file.
    """
    padded = "\n" * (line - 1) + text
    expected = {
        number: match[1]
        for number, each in enumerate(padded.splitlines(), 1)
        if (match := _ARROW.search(each))
    }
    tree = _Asserting(expected).visit(ast.parse(padded, file))
    assert not expected, f"{file}: no expression ends on these lines: {sorted(expected)}"
    # The name is found wherever the block defines functions.
    tree.body.insert(0, ast.parse("from tests.support_docs import shown as _shown").body[0])
    return compile(ast.fix_missing_locations(tree), file, "exec")


class _Asserting(ast.NodeTransformer):
    def __init__(self, expected: dict[int, str]) -> None:
        self._expected = expected

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        node.value = self._asserted(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        node.value = self._asserted(node)
        return node

    def _asserted(self, node: ast.Expr | ast.Assign) -> ast.expr:
        text = self._expected.pop(node.end_lineno or 0, None)
        if text is None:
            return node.value
        name = ast.Name("_shown", ast.Load())
        call = ast.Call(name, [node.value, ast.Constant(text)], [])
        return ast.copy_location(call, node.value)


def shown(value: Any, expected: str) -> Any:
    """The value; its `repr` must be as expected."""
    found = repr(value)
    same = doctest.OutputChecker().check_output(expected + "\n", found + "\n", _OPTIONS)
    assert same, f"expected {expected}, found {found}"
    return value
