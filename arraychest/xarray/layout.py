"""Where the parts of a dataset lie in a chest, and what the chest says of each.

The entry ``"dataset"`` describes the root dataset: a dict of its attributes, its coordinates, which
of them have an index, and of each variable its dimensions, attributes and kind.  The variable's
values lie under ``("variable", name)``, or block by block under ``("variable", name, block)``.  The
keys of a group, a dataset within a tree, are the same ones, prefixed by ``("group", path)``.

Each save puts the root's entry anew, also where only a group changes.  So whoever opens a dataset
can tell that another one has taken its place meanwhile.
"""

from __future__ import annotations

import posixpath
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from arraychest.chest import Chest
from arraychest.engine.handle import Handle
from arraychest.errors import AbsentKeyError, ChestFormatError
from arraychest.formats.manifest import Chunks

ROOT = "/"
_DATASET = "dataset"
_GROUP = "group"
_VARIABLE = "variable"

EXPECTED = "expected a dataset that arraychest.xarray.save has stored"

# What lies under a variable's keys.
ARRAY = "array"  # one array, plain, compressed or blocked
STRINGS = "strings"  # arrays of StringDType, one for each block
OBJECTS = "objects"  # trees of Python objects, one for each block
VALUE = "value"  # an extension array of pandas
INDEX = "index"  # what tells an index, of which this and other coordinates are made
PICKLED = "pickled"  # an array of Python objects, pickled


@dataclass(frozen=True)
class Node:
    """The place of one dataset: the root, or a group by its path."""

    path: str = ROOT

    def key(self, *rest: Any) -> Any:
        """The key of a part of this dataset."""
        if self.path != ROOT:
            return (_GROUP, self.path, *rest)
        return rest if len(rest) > 1 else rest[0]

    @property
    def description(self) -> Any:
        """The key of what describes the dataset."""
        return self.key(_DATASET)

    def variable(self, name: Hashable, block: tuple[int, ...] | None = None) -> Any:
        """The key of a variable, or of one block of it."""
        return self.key(_VARIABLE, name, *([] if block is None else [block]))

    def variable_of(self, key: Any) -> tuple[Hashable, bool]:
        """The name of the variable that a key belongs to, and whether there is one."""
        if isinstance(key, tuple) and self.path != ROOT:
            key = key[2:] if key[:2] == (_GROUP, self.path) else ()
        if isinstance(key, tuple) and len(key) in (2, 3) and key[0] == _VARIABLE:
            return key[1], True
        return None, False

    def is_within(self, path: str) -> bool:
        """Whether it is the dataset at a path, or lies below it."""
        return path == ROOT or self.path == path or self.path.startswith(f"{path}/")


def node_at(group: str | None) -> Node:
    """The node of a group's path, as a user writes it: ``"a/b"``, ``"/a/b/"``, None for the root.

    Raises
    ------
    TypeError
        It is no str.
    """
    if group is None:
        return Node()
    if not isinstance(group, str):
        raise TypeError(f"expected the path of a group as a str, found {type(group).__name__}")
    return Node(posixpath.normpath(f"/{group.strip('/')}"))


def node_of(key: Any) -> Node | None:
    """The dataset that a key of a chest is a part of; None if it is none."""
    if key == _DATASET:
        return Node()
    if isinstance(key, tuple) and len(key) >= 3 and key[0] == _GROUP and isinstance(key[1], str):
        return Node(key[1])
    if isinstance(key, tuple) and len(key) in (2, 3) and key[0] == _VARIABLE:
        return Node()
    return None


def nodes_in(chest: Chest) -> list[Node]:
    """The datasets of a chest, in the order in which they were first saved; O(keys)."""
    found = dict.fromkeys(map(node_of, chest))
    return [node for node in found if node is not None and node.description in chest]


def saved(chest: Chest) -> Any:
    """What tells the datasets that are there from others that were saved; None: there are none."""
    try:
        return chest.handle(Node().description).token
    except AbsentKeyError:
        return None


def description_of(chest: Chest, node: Node) -> dict[str, Any]:
    """What a chest says of a dataset.

    Raises
    ------
    ChestFormatError
        There is no such dataset, or the entry is no description.
    """
    found = chest.get(node.description)
    where = chest.path if node.path == ROOT else f"the group {node.path} of {chest.path}"
    if found is None:
        raise ChestFormatError(f"{EXPECTED} in {where}, found none")
    if type(found) is not dict or type(found.get("variables")) is not dict:
        raise ChestFormatError(f"{EXPECTED} in {where}, found something else")
    return found


def handle_of(chest: Chest, node: Node, name: Hashable, block: Any = None) -> Handle:
    """The handle of a variable or of one of its blocks; ChestFormatError if it is missing."""
    try:
        return chest.handle(node.variable(name, block))
    except AbsentKeyError:
        raise ChestFormatError(
            f"expected the variable {name!r:.200} in {chest.path}, found none"
        ) from None


def blocks_of(shape: Iterable[int], chunks: Chunks | None) -> Chunks:
    """The chunks of a variable; one block where none are told."""
    return tuple((int(n),) for n in shape) if chunks is None else chunks
