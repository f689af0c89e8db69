"""Names of the files that values lie in, relative to the chest: from a row to its file, and back.

A name ends with a generation, so that no two files ever have the same one.
"""

from __future__ import annotations

import re

from arraychest.catalog.record import Row
from arraychest.files.names import DATA, PACKS, SPARE
from arraychest.values.file_stems import file_stem, harmless_stem

_VALUE_NAME = re.compile(
    rf"(?:{DATA}/[0-9a-f]{{2}}/[^/]*-([0-9a-f]{{1,16}})\.(?:npy|b2nd|blocks)"
    rf"|{PACKS}/([0-9a-f]{{1,16}})\.pack"
    rf"|{SPARE}/[0-9a-f]{{1,8}}/[^/]*-([0-9a-f]{{1,16}})\.npy)",
)


def value_name(row: Row) -> str:
    """The file of a value that has one of its own, or its folder of blocks."""
    generation = row.generation
    kind = "b2nd" if row.is_frame else "blocks" if row.is_blocked else "npy"
    # Whatever a stranger's catalog calls a file, it is in this folder.
    stem = file_stem(row.key) if row.stem is None else harmless_stem(row.stem)
    return f"{DATA}/{generation & 255:02x}/{stem}-{generation:x}.{kind}"


def pack_name(identity: int) -> str:
    """The file of a pack."""
    return f"{PACKS}/{identity:x}.pack"


def file_name(row: Row) -> str:
    """The file that holds a value, be it a pack or the value's own."""
    return value_name(row) if row.pack is None else pack_name(row.pack)


def generation_of(name: str) -> int | None:
    """The generation in the name of a file; None if the file is no value's, pack's or spare's."""
    found = _VALUE_NAME.fullmatch(name)
    return None if found is None else int(next(filter(None, found.groups())), 16)
