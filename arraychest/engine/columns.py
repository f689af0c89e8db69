"""Values as the store takes them: codes, forms and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arraychest.arrays import digests
from arraychest.catalog.record import Cost, Facts
from arraychest.engine.job import Job
from arraychest.formats import tree
from arraychest.formats.form import Form, Kind, form_text
from arraychest.formats.pack import PACK_THRESHOLD
from arraychest.formats.tree import Tree
from arraychest.memory.slot import Batch
from arraychest.values.keys import encode_key


def facts_of(generation: int, array: np.ndarray | Tree, cost: Cost | None) -> Facts | None:
    """What is known of a value that is stored now; None if nothing is."""
    parts = enumerate(array.parts, 1) if isinstance(array, Tree) else [(0, array)]
    found = {}
    for number, part in parts:
        # Whatever fits into a pack is digested as soon as it is looked up.
        if part.nbytes >= PACK_THRESHOLD and (digest := digests.known(part)) is not None:
            found[number] = digest
    return Facts(generation, found, cost) if found or cost is not None else None


def form_of_value(array: np.ndarray | Tree, kind: Kind) -> tuple[Form, str]:
    """A value's form, and its text for the catalog."""
    if isinstance(array, Tree):
        form = tree.form_of(array.nbytes)
        return form, form_text(*form)
    flags = array.flags
    order: Any = "C" if flags.c_contiguous or not flags.f_contiguous else "F"
    dtype, shape = array.dtype, array.shape
    return Form(dtype, shape, order, kind), form_text(dtype, shape, order, kind)


# What `Packs.append` takes, column by column.
Columns = tuple[
    list[bytes],
    Sequence[int],
    list[bytes | None],
    list[str],
    list[bytes] | list[np.ndarray],
    list[int],
]


def batch_columns(batch: Batch) -> Columns:
    """The values of a batch."""
    return columns(batch.keys, batch.places, batch.arrays, None)


def small_columns(job: Job) -> Columns:
    """The values of a job, which are small."""
    slots = job.slots
    kinds = None if set(job.kinds) == {"array"} else list(job.kinds)
    return columns([slot.key for slot in slots], [slot.seq for slot in slots], job.arrays, kinds)


def columns(
    keys: list[Any],
    seqs: Sequence[int],
    arrays: Sequence[np.ndarray | Tree],
    kinds: list[Kind] | None,
) -> Columns:
    """Values by their keys and places; `kinds` is None where all are arrays."""
    exact: list[bytes | None] = [None] * len(keys)
    codes = _codes_of_strings(keys) if set(map(type, keys)) == {str} else None
    if codes is None:
        pairs = [encode_key(key) for key in keys]
        codes = [pair.canonical for pair in pairs]
        exact = [pair.exact for pair in pairs]
    if kinds is None:
        plain: list[Any] = list(arrays)
        dtype, shape, nbytes = plain[0].dtype, plain[0].shape, plain[0].nbytes
        if (
            # Mostly all are of one form, which is then worked out once, and export their bytes.
            dtype.kind in "biufc"
            and all([array.dtype is dtype and array.shape == shape for array in plain])
            and all([array.flags.c_contiguous for array in plain])
        ):
            texts = [form_text(dtype, shape, "C", "array")] * len(keys)
            return codes, seqs, exact, texts, plain, [nbytes] * len(keys)
    each: list[Kind] = ["array"] * len(keys) if kinds is None else kinds
    forms = [form_of_value(array, kind) for array, kind in zip(arrays, each, strict=True)]
    texts = [text for _, text in forms]
    data = [
        array.tobytes() if isinstance(array, Tree) else array.tobytes(form.order)
        for array, (form, _) in zip(arrays, forms, strict=True)
    ]
    return codes, seqs, exact, texts, data, list(map(len, data))


def _codes_of_strings(keys: list[str]) -> list[bytes] | None:
    """The canonical codes of many str in a third of the time; None if there is a NUL in one."""
    codes = ("s" + "\0s".join(keys)).encode("utf-8", "surrogatepass").split(b"\0")
    return codes if len(codes) == len(keys) else None
