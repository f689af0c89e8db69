"""What an inspection found, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from arraychest.markup import facts_card
from arraychest.text import amount
from arraychest.units import format_bytes

Kind = Literal[
    "catalog",
    "corrupt row",
    "missing file",
    "wrong size",
    "foreign file",
    "damaged",
    "overlap",
    "pack record",
    "orphan",
    "unknown file",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes
    ----------
    kind
        ``"catalog"``: SQLite says that its database is damaged.  ``"corrupt row"``: what the
        catalog says of a value cannot be, or its file says otherwise.  ``"missing file"``: a row,
        or a pack's record, without a file.  ``"wrong size"``, ``"foreign file"``: the file is not
        the one that was written.  ``"damaged"``: bytes have changed since.  ``"overlap"``: two
        values in one place.  ``"pack record"``: the catalog's sums over a pack are wrong.
        ``"orphan"``: a file without a row.  ``"unknown file"``: one that arraychest does not write.
    key
        The key whose value it is about; None if it is about no single one, or the key is lost.
    file
        Relative to the chest.
    start, nbytes
        Which bytes of the file: all pieces from the first damaged one to the last.
    message
        What was expected, and what was found.
    action
        What `repair` did about it; None: nothing.
    """

    kind: Kind
    key: Any
    file: str | None
    start: int
    nbytes: int
    message: str
    action: str | None = None
    # The row as it is in the catalog.
    _raw: tuple[Any, ...] | None = None

    def __str__(self) -> str:
        who = "" if self.key is None else f" of key {self.key!r}"
        done = "" if self.action is None else f": {self.action}"
        return f"{self.kind}{who}, {self.file or 'catalog'}: {self.message}{done}"


# Findings that a card shows.
_MOST_SHOWN = 50


class Report(NamedTuple):
    """What `Chest.verify` or `Chest.repair` found.

    Attributes
    ----------
    findings
        All that is not as it should be; none if all is well.
    entries
        Values that were looked at.
    nbytes
        Bytes that were read.
    unchecked
        Values without a checksum that could be trusted: they were stored with ``checksums=False``,
        or they are edited in place, or were when the editor's process died.
    holes
        Bytes of packs that no value uses; `Chest.compact` gives them back.
    """

    findings: tuple[Finding, ...]
    entries: int
    nbytes: int
    unchecked: int
    holes: int

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        lines = [
            f"{amount(self.entries, 'value')}, {amount(self.nbytes, 'byte')} read, "
            f"{self.unchecked:,} without checksum, {amount(len(self.findings), 'finding')}"
        ]
        return "\n".join([*lines, *map(str, self.findings)])

    def _repr_html_(self) -> str:
        """What was found, as notebooks show it."""
        checked = f"{amount(self.entries, 'value')}, {format_bytes(self.nbytes)} read"
        facts = [
            ("Without checksum", f"{self.unchecked:,}"),
            ("Holes", format_bytes(self.holes)),
        ]
        for each in self.findings[:_MOST_SHOWN]:
            where = repr(each.key) if each.key is not None else each.file or ""
            facts.append((each.kind, " · ".join(filter(None, [where, each.message, each.action]))))
        if len(self.findings) > _MOST_SHOWN:
            facts.append(("...", f"{len(self.findings) - _MOST_SHOWN} more"))
        kind = "All is well" if self.ok else amount(len(self.findings), "finding")
        return facts_card(kind, checked, facts)
