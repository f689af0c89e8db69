"""The index of an export: what its arrays alone do not say.

It is a text in JSON: an object with ``"format"``: ``"arraychest"``, ``"version"``: 1, and
``"entries"``, a list in the order of the keys.  Each entry is an object:

=============  ===================================================================================
``key``        the key's canonical code in hexadecimal (see `keys`)
``exact``      its exact code, where that says more
``kind``       what the value is: ``"array"``, ``"scalar"``, ``"tree"``, ``"pickle"``, ``"dump"``
``structure``  of a tree: the structure around its arrays in base64 (see `arraychest.values`)
``arrays``     a list of the arrays that the value consists of; each is an object with ``name``,
               ``form`` (see `form.form_text`) and ``encoding``
=============  ===================================================================================

The encoding says how an array lies in the file: ``"plain"``, with its own dtype and shape;
``"int64"``, times as whole numbers of their unit; ``"raw"``, all its bytes, in the order of the
form, as one dimension of uint8.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from arraychest.errors import CorruptEntryError
from arraychest.exchange.names import INDEX
from arraychest.formats.form import Form, Kind, form_text, parse_form
from arraychest.values.keys import decode_key, encode_key

Encoding = Literal["plain", "int64", "raw"]

# A stranger's file may hold anything: an index of a million keys takes some 200 MB.
MAX_INDEX_BYTES = 1 << 30

_VERSION = 1


class Kept(NamedTuple):
    """One array of an export."""

    name: str
    form: Form
    encoding: Encoding


class Record(NamedTuple):
    """One value of an export."""

    key: Any
    kind: Kind
    structure: bytes
    arrays: tuple[Kept, ...]


def encode(records: Sequence[Record]) -> bytes:
    """The text of the index."""
    entries = []
    for record in records:
        code = encode_key(record.key)
        entry: dict[str, Any] = {"key": code.canonical.hex()}
        if code.exact is not None:
            entry["exact"] = code.exact.hex()
        entry["kind"] = record.kind
        if record.kind == "tree":
            entry["structure"] = base64.b64encode(record.structure).decode()
        entry["arrays"] = [
            {"name": kept.name, "form": form_text(*kept.form), "encoding": kept.encoding}
            for kept in record.arrays
        ]
        entries.append(entry)
    # One entry on each line, for people and for `diff`.
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    head = json.dumps({"format": INDEX, "version": _VERSION})
    return f'{head[:-1]}, "entries": [\n{lines}\n]}}\n'.encode()


def decode(text: bytes, where: str) -> list[Record]:
    """The records of an index, which anybody may have written.

    Raises
    ------
    CorruptEntryError
        It is none, or one of a newer version.
    """
    try:
        found = json.loads(text)
        if found["format"] != INDEX or found["version"] != _VERSION:
            raise ValueError(f"format {found['format']!r:.40}, version {found['version']!r:.40}")
        return [_record(entry) for entry in found["entries"]]
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        binascii.Error,
    ) as error:
        raise CorruptEntryError(
            f"expected the index of an export in {where}, found something else: {error!s:.200}"
        ) from error


def _record(entry: dict[str, Any]) -> Record:
    exact = entry.get("exact")
    key = decode_key(bytes.fromhex(entry["key"]), None if exact is None else bytes.fromhex(exact))
    kind = entry["kind"]
    arrays = tuple(_kept(each) for each in entry["arrays"])
    if kind not in get_args(Kind) or (kind != "tree" and len(arrays) != 1):
        raise ValueError(f"kind {kind!r:.40} of {len(arrays)} arrays")
    if any((kept.form.kind == "scalar") != (kind == "scalar") for kept in arrays):
        raise ValueError(f"kind {kind!r:.40} of arrays of another")
    structure = base64.b64decode(entry["structure"], validate=True) if kind == "tree" else b""
    return Record(key, kind, structure, arrays)


def _kept(each: dict[str, Any]) -> Kept:
    name, encoding = each["name"], each["encoding"]
    form = parse_form(each["form"])
    if type(name) is not str or encoding not in get_args(Encoding) or form.dtype.hasobject:
        raise ValueError(f"{name!r:.100} as {encoding!r:.40}")
    return Kept(name, form, encoding)
