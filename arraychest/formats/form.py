"""The form of a value: dtype, shape, order and kind, as one line of text."""

from __future__ import annotations

import ast
import functools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from arraychest.errors import CorruptEntryError, ValueTypeError

# What the bytes of a value are: an array's elements; those of a NumPy scalar; a pickled array of
# Python objects; a value tree (see `tree`); what a user's own `dump` has written; an array's
# elements in a folder of many files (see `manifest`).
Kind = Literal["array", "scalar", "pickle", "tree", "dump", "blocked"]

# A form's text longer than this is not parsed: a real structured dtype of hundreds of fields
# takes some 20 kB, Python's parser needs memory in proportion, and NumPy time with its square.
_MAX_FORM_TEXT = 1 << 17

# So often a literal is read that the parser gave up for another thread's sake.
_TRIES = 20


class Form(NamedTuple):
    """What is needed to make an array of bytes, without the bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    kind: Kind

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def form_text(dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"], kind: Kind) -> str:
    """A form as the catalog stores it: ``"3,4 C <f8"``.  It is short, as each row has one.

    The sizes of the dimensions, ``-`` if there are none; the order, followed by ``s`` for a NumPy
    scalar, ``p`` for pickled objects, ``t`` for a value tree, ``d`` for what a user's ``dump`` has
    written, ``b`` for an array in many files, and ``a`` for an aligned structured dtype; and what
    NumPy writes as ``descr`` into a ``.npy`` header, without the quotes of a plain string.  In a
    row and in a directory a line feed may follow, and what the chest's user calls the file
    (``key_to_filename=``).

    Raises
    ------
    ValueTypeError
        NumPy's format would bring this dtype back as another.
    """
    _, descr = DESCRIBED.get(id(dtype)) or describe(dtype)
    sizes = ",".join(map(str, shape)) or "-"
    return f"{sizes} {order}{_KIND_LETTERS[kind]}{'a' * dtype.isalignedstruct} {descr}"


_KIND_LETTERS: dict[Kind, str] = {
    "array": "", "scalar": "s", "pickle": "p", "tree": "t", "dump": "d", "blocked": "b"
}  # fmt: skip
_KINDS: dict[str, Kind] = {letter: kind for kind, letter in _KIND_LETTERS.items()}


# Dtypes without Python objects that were found good, by identity: NumPy calls dtypes equal that
# differ in alignment, metadata or scalar type.  The dtype is kept beside its description, so that
# its id stays its own.
DESCRIBED: dict[int, tuple[np.dtype, str]] = {}
_MAX_DESCRIBED = 1024


def describe(dtype: np.dtype) -> tuple[np.dtype, str]:
    """The dtype, and its ``descr`` as the text that a ``.npy`` header would hold.

    Raises
    ------
    ValueTypeError
        NumPy's format would bring this dtype back as another.
    """
    known = DESCRIBED.get(id(dtype))
    if known is not None:
        return known
    refusal = f"dtype {dtype!r} would not come back the same from a .npy file"
    if _has_metadata(dtype):
        raise ValueTypeError(
            f"{refusal}: its metadata would be lost; use array.astype(plain_dtype)"
        )
    try:
        if dtype.names is not None:
            descr = repr(dtype.descr)
        elif np.dtype(dtype.str).char != dtype.char and dtype.kind in "iufc":
            # Two C types of one size, such as long and long long: the same bytes, another name.
            descr = dtype.char if dtype.isnative else dtype.str
        else:
            descr = dtype.str
        letters = "p" * dtype.hasobject + "a" * dtype.isalignedstruct
        same = _form(f"- C{letters} {descr}").dtype
    except (ValueError, TypeError, SyntaxError) as error:
        hint = "; use array.astype(np.str_)" if dtype.kind == "T" else ""
        raise ValueTypeError(f"{refusal}: {error}{hint}") from error
    told = dtype
    if dtype.names is None and dtype.kind in "biufcmM" and dtype.isnative:
        # zarr says "<f8" where this machine's own order would do: nothing that anybody sees.
        told = dtype.newbyteorder("=")
    if same != dtype or same.type is not dtype.type or repr(same) != repr(told):
        hint = "view it as a plain dtype of the same size, such as array.view(np.uint16)"
        if dtype.names is not None:
            hint = "use array.astype(np.dtype(array.dtype.descr))"
        elif dtype.kind == "T":
            hint = "use array.astype(np.str_)"
        raise ValueTypeError(f"{refusal} but as {same!r}; {hint}")
    if not dtype.hasobject:
        if len(DESCRIBED) >= _MAX_DESCRIBED:
            DESCRIBED.clear()
        DESCRIBED[id(dtype)] = dtype, descr
    return dtype, descr


def _has_metadata(dtype: np.dtype) -> bool:
    if dtype.subdtype is not None:
        return _has_metadata(dtype.subdtype[0])
    fields = () if dtype.fields is None else dtype.fields.values()
    return dtype.metadata is not None or any(_has_metadata(field[0]) for field in fields)


# Warning: where warnings are errors, NumPy's of deprecated names of dtypes.
_REFUSALS = (
    ValueError, TypeError, LookupError, SyntaxError, MemoryError, RecursionError, Warning,
)  # fmt: skip


@functools.lru_cache(maxsize=4096)
def parse_form(text: str) -> Form:
    """The form that a text of the catalog stands for.

    Raises
    ------
    CorruptEntryError
        The text is no form; it may have been written by anybody.
    """
    try:
        return _form(text)
    except _REFUSALS as error:
        raise CorruptEntryError(
            f'expected a form such as "3,4 C <f8", found {text[:200]!r}'
        ) from error


def literal(text: str) -> Any:
    """What Python's literal `text` means.

    Raises
    ------
    ValueError, TypeError, SyntaxError, RecursionError, MemoryError
        It is none.
    """
    for _ in range(_TRIES):
        try:
            return ast.literal_eval(text)
        except SystemError:
            # Another thread parses, too: CPython counts the depth of both as one, up to 3.12
            # (python/cpython#106905), and says so.
            continue
    raise ValueError("expected to read a literal, found the interpreter's parser at work elsewhere")


def _form(text: str) -> Form:
    if len(text) > _MAX_FORM_TEXT:
        raise ValueError(f"{len(text)} characters")
    sizes, letters, descr = text.partition("\n")[0].split(" ", 2)
    shape = () if sizes == "-" else tuple(map(int, sizes.split(",")))
    order: Any = letters[:1]
    aligned = letters.endswith("a")
    kind = _KINDS[letters[1:].removesuffix("a")]
    meant: Any = literal(descr) if descr.startswith("[") else descr
    dtype: Any = npy_format.descr_to_dtype(meant)
    if aligned:
        fields = [(*dtype.fields[name], None) for name in dtype.names or ()]
        parts: Any = {
            "names": list(dtype.names or ()),
            "formats": [field[0] for field in fields],
            "offsets": [field[1] for field in fields],
            "titles": [field[2] for field in fields],
            "itemsize": dtype.itemsize,
        }
        dtype = np.dtype(parts, align=True)
    if not (
        all(n >= 0 for n in shape)
        and len(shape) <= 64
        and (order == "C" or order == "F")
        and dtype.subdtype is None
        and dtype.hasobject == (kind == "pickle")
    ):
        raise ValueError(text[:200])
    return Form(dtype, shape, order, kind)
