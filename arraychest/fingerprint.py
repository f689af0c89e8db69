"""What a call is, in bytes: equal for equal calls, in every process, and different for others.

**Values.**  A value is written down by an `Encoder`, arrays by their digests, and the whole is
hashed.  Type and bits count: 1, 1.0, True and ``np.int64(1)`` differ, and so do a list and a tuple,
0.0 and -0.0.  Sets have no order, dicts have theirs.  Whether two parts of a value are the same
object does not count.  A class or a builtin is its name; an object of a class that is not
registered is what pickle would take it apart into (`__reduce_ex__`), and this in turn, down to
values.  What is neither, such as a file or a lock, is refused.

**Functions.**  A function is its module, its qualified name and what runs:

- its code object, not its text, which may have been edited since it was imported: instructions,
  constants (type-exact), names and flags, and those of the functions within it.  Comments, layout,
  file name, line numbers and the text of the docstring do not count;
- its defaults, and what its closure holds, by content;
- the names that it reads as globals, and what they stand for: numbers, strings, bytes, None, dates,
  paths, and tuples and frozensets of them, by value; lists, dicts, sets, arrays and partials, by
  content where that can be told; a *helper*, which is a function or class of the same module, as a
  function, that is, with all that it reads in turn; anything else by kind and name;
- of a helper class: its methods, properties and constants, and its bases if they are of the same
  module;
- of what was decorated with `functools.wraps`: the wrapper, and the function that it wraps;
- Python's minor version.

Not looked at: what is read as an attribute (``module.function``, ``self.factor``), functions and
classes of other modules and their versions, the class of a global object, methods that are added
to a class later, builtins that were replaced, code that is made while the function runs, and the
rest of the world (files, environment, clocks, random numbers).
"""

from __future__ import annotations

import builtins
import copyreg
import datetime as dt
import dis
import functools
import hashlib
import inspect
import pathlib
import pickle
import struct
import sys
import types
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from arraychest.blocked import BlockedArray
from arraychest.compressed import CompressedArray
from arraychest.digests import array_digest, digest_of, dtype_text
from arraychest.errors import ValueTypeError
from arraychest.scalars import array_of_scalar
from arraychest.valuetree import MAX_DEPTH, Encoder

Digest = Callable[[Any], bytes]

_SIZE = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
_MISSING: Any = object()
_PYTHON = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"

# The text of a value is hashed whenever so many bytes have come together.
_FLUSH_BYTES = 1 << 20


class Elements(NamedTuple):
    """An iterator that was handed over, as what came out of it.

    Attributes
    ----------
    number
        Which of the iterators of the call it is: the same twice is not two alike.
    """

    number: int
    elements: list[Any]


def value_fingerprint(value: Any, digest: Digest = digest_of, prefix: bytes = b"") -> bytes:
    """What a value is, in 16 bytes.

    Parameters
    ----------
    value
        Anything that is told apart by its content, see above.
    digest
        Makes the digest of an ndarray without Python objects, or of a `LazyArray`.
    prefix
        What else counts; of one length wherever fingerprints are compared.

    Raises
    ------
    ValueTypeError
        There is something in it that cannot be told apart from others: an open file, a lock, a
        generator, a class made within a function, something that contains itself.

    Notes
    -----
    Some 2 us, and 0.3 us for each number, string or list; arrays as `digest_of`; objects that are
    taken apart as pickle does, some 10 us each.
    """
    encoder = _Prints(digest)
    encoder.out += prefix
    try:
        encoder.node(value)
    except RecursionError as error:
        raise ValueTypeError("expected a value less deeply nested, found no stack left") from error
    return encoder.hashed()


class _Prints(Encoder):
    """Writes values down as what they are, not to be read again.

    Further tags: ``a`` array, by its digest; ``o`` array of objects; ``G`` NumPy scalar, by its
    array's digest; ``C`` what has a name; ``M`` bound method; ``P`` partial; ``F`` function; ``K``
    code; ``O`` other object; ``N`` array of a subclass; ``E`` set of a subclass; ``~`` iterator;
    ``y`` mapping proxy.
    """

    keeps_aliases = False

    def __init__(self, digest: Digest = digest_of) -> None:
        super().__init__()
        self._digest = digest
        self._whole = self.out
        self._hash: Any = None

    def hashed(self) -> bytes:
        """The hash of all that was written, 16 bytes."""
        if self._hash is None:
            return hashlib.blake2b(self.out, digest_size=16).digest()
        self._hash.update(self.out)
        return bytes(self._hash.digest())

    def text(self, text: str) -> None:
        """Write a short text."""
        data = text.encode("utf-8", "surrogatepass")
        self.out += _SIZE.pack(len(data)) + data

    # --- what the encoder leaves open ------------------------------------------------------

    def array(self, array: Any, depth: int) -> None:
        """Encode an ndarray or a `LazyArray`."""
        if not array.dtype.hasobject:
            digest = self._digest(array)
            self.out += b"a" + _SIZE.pack(len(digest)) + digest
            return
        self._begin(array)
        self.out += b"o"
        self.text(dtype_text(array.dtype))
        self.node(array.shape, depth)
        self._run(array.reshape(-1).tolist(), _deeper(depth))
        self._open.discard(id(array))

    def long(self, tag: bytes, data: bytes) -> None:
        """Encode many bytes."""
        self.out += tag + array_digest(np.frombuffer(data, np.uint8))

    def _scalar(self, value: np.generic, depth: int) -> None:
        dtype = value.dtype
        if dtype.hasobject or type(value) is not dtype.type:
            self._unusual(value, depth)
        elif dtype.names is not None or dtype.char in "gG":  # some bytes mean nothing
            self.out += b"G" + array_digest(array_of_scalar(value))
        else:
            try:
                super()._scalar(value, depth)
            except ValueTypeError:
                self.out += b"G" + array_digest(array_of_scalar(value))

    def _begin(self, value: Any) -> bool:
        identity = id(value)
        if identity in self._open:
            raise _refused(value, "it contains itself")
        self._open.add(identity)
        if self.out is self._whole and len(self.out) > _FLUSH_BYTES:
            self._flush()
        return True

    def _flush(self) -> None:
        # It is the same object that those who call this are writing to.
        if self._hash is None:
            self._hash = hashlib.blake2b(digest_size=16)
        self._hash.update(self.out)
        self.out.clear()

    def other(self, value: Any, depth: int) -> None:
        """Encode what is no value tree."""
        kind = type(value)
        if isinstance(value, type):
            self.named(value)
            return
        if kind is types.FunctionType:
            self.function(value, depth)
            return
        if kind is types.ModuleType:
            self.out += b"C"
            self.text(value.__name__)
            self.text(_version(value.__name__))
            return
        if kind is types.CodeType:
            self.out += b"K" + _code(value).digest
            return
        if kind in _DESCRIPTORS:
            self.named(value.__objclass__)
            self.text(value.__name__)
            return
        if isinstance(value, np.ufunc):
            self._ufunc(value)
            return
        if kind is types.BuiltinFunctionType and _has_name(value):
            self.named(value, _version(value.__module__ or value.__self__.__name__))
            return
        deeper = _deeper(depth)
        self._begin(value)
        if kind in (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType):
            self.out += b"M"
            self.node(value.__self__, deeper)
            if kind is types.MethodType:
                self.node(value.__func__, deeper)
            else:
                self.text(value.__name__)
        elif kind is functools.partial:
            self.out += b"P"
            self.node(value.func, deeper)
            self.node(value.args, deeper)
            self.node(sorted(value.keywords.items()), deeper)
        elif kind is types.MappingProxyType:
            self.out += b"y"
            self.node(dict(value), deeper)
        elif kind is Elements:
            self.out += b"~" + _NUMBER.pack(value.number)
            self.node(value.elements, deeper)
        elif isinstance(value, np.ndarray):
            self._subclass(value, deeper)
        elif isinstance(value, set | frozenset):
            # As pickle takes it apart it would be a list in the order of the hashes.
            self.out += b"E"
            self.named(kind)
            self._set(value, deeper)
            self._state(getattr(value, "__dict__", None), deeper)
        else:
            self._reduced(value, deeper)
        self._open.discard(id(value))

    def function(self, function: types.FunctionType, depth: int) -> None:  # noqa: ARG002
        """Encode a function."""
        self.out += b"F" + _print_of(function).digest()

    def named(self, value: Any, version: str = "") -> None:
        """Encode what is known by its name alone."""
        if isinstance(value, type) and "<locals>" in value.__qualname__:
            raise _refused(value, "its class was made within a function")
        self.out += b"C"
        self.text(_name(value))
        self.text(version)

    def _ufunc(self, value: np.ufunc) -> None:
        # Those of SciPy and others have no module, but are pickled by their names.
        for module in ("numpy", "scipy.special"):
            if getattr(sys.modules.get(module), value.__name__, None) is value:
                self.out += b"C"
                self.text(f"{module}.{value.__name__}")
                self.text(_version(module))
                return
        try:
            module = pickle.whichmodule(value, value.__name__)  # type: ignore[attr-defined]
        except pickle.PicklingError:  # from 3.14 on; before, it named `__main__`
            raise _refused(value, "it is of no module") from None
        if getattr(sys.modules.get(module), value.__name__, None) is not value:
            raise _refused(value, "it is of no module")
        self.out += b"C"
        self.text(f"{module}.{value.__name__}")
        self.text(_version(module))

    def _subclass(self, value: np.ndarray, depth: int) -> None:
        # Not as pickle takes it apart: that depends on the order in memory.
        self.out += b"N"
        self.named(type(value))
        if isinstance(value, np.ma.MaskedArray):
            parts = (np.ma.getdata(value), np.ma.getmaskarray(value), value.fill_value)
            self.node(tuple(map(np.asarray, parts)), depth)
            self.node(value.hardmask, depth)
            return
        self.node(value.view(np.ndarray), depth)
        self._state(getattr(value, "__dict__", None), depth)

    def _reduced(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is object:
            raise _refused(value, "one object is like the other")
        try:
            reduce = copyreg.dispatch_table.get(kind)
            reduced: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise _refused(value, str(error)) from error
        self.out += b"O"
        self.named(kind)
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None) or pickle.whichmodule(value, reduced)  # type: ignore[attr-defined]
            self.text(f"{module}.{reduced}")
            self.text(_version(module))
            return
        parts: list[Any] = [*reduced, *[None] * 4]
        make, given, state, elements, items, setter = parts[:6]
        if _has_name(make):
            self.named(make)
        else:
            self.node(make, depth)
        self.node(given, depth)
        self._state(state, depth)
        # They are iterators, which are there once.
        self.node(None if elements is None else list(elements), depth)
        self.node(None if items is None else list(items), depth)
        if setter is not None:
            self.named(setter)

    def _state(self, state: Any, depth: int) -> None:
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
            self.out += b"2"  # of an object with slots: two dicts
            self._state(state[0], depth)
            self._state(state[1], depth)
        elif type(state) is dict and all(type(name) is str for name in state):
            # In which order attributes were assigned does not count.
            self.out += b"1"
            names = sorted(state)
            self._run(names, depth)
            self._run([state[name] for name in names], depth)
        else:
            self.out += b"0"
            self.node(state, depth)


_DESCRIPTORS = frozenset({
    types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType,
})  # fmt: skip


def _deeper(depth: int) -> int:
    if depth == 0:
        raise ValueTypeError(f"expected a value nested at most {MAX_DEPTH} deep, found one deeper")
    return depth - 1


def _refused(value: Any, why: str) -> ValueTypeError:
    what = value if isinstance(value, type) else type(value)
    return ValueTypeError(
        f"expected what can be told apart by its content, found {_name(what)}: {why}; leave the "
        'parameter out with ignore=["its name"], or say with key= what makes two calls the same'
    )


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    if module is None:
        module = getattr(getattr(value, "__self__", None), "__name__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return f"{_module_name(module)}.{name}"


def _module_name(module: Any) -> Any:
    # What `multiprocessing` calls a script's module in a child that it spawns.
    return "__main__" if module == "__mp_main__" else module


def _has_name(value: Any) -> bool:
    if isinstance(value, type):
        return True
    if type(value) is types.FunctionType:
        return "<" not in value.__qualname__
    return type(value) is types.BuiltinFunctionType and (
        value.__self__ is None or type(value.__self__) is types.ModuleType
    )


def _version(module: str | None) -> str:
    package = (module or "").partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "")
    return version if isinstance(version, str) else ""


# --- code ---------------------------------------------------------------------------------------


class _Code(NamedTuple):
    """What is known of a code object; it is kept beside, so that its id stays its own."""

    code: types.CodeType
    digest: bytes
    names: tuple[str, ...]


_codes: dict[int, _Code] = {}
_MAX_CODES = 2048

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

# From 3.14 on a flag says that the first constant is a docstring; before, it is one if it is text.
_HAS_DOCSTRING = 0x4000000


def _code(code: types.CodeType) -> _Code:
    """The digest of a code object, and which globals it reads, those within it included."""
    known = _codes.get(id(code))
    if known is not None:
        return known
    names: set[str] = set()
    first_is_used = False
    for step in dis.get_instructions(code):
        if step.opname in _GLOBAL:
            names.add(step.argval)
        first_is_used |= step.opcode in dis.hasconst and step.arg == 0
    constants = list(code.co_consts)
    for each in constants:
        if type(each) is types.CodeType:
            names.update(_code(each).names)
    if not first_is_used and constants and type(constants[0]) is str and _has_docstring(code):
        constants[0] = None
    encoder = _Prints(array_digest)
    encoder.node((
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
        code.co_flags & ~_HAS_DOCSTRING, code.co_code, code.co_names, code.co_varnames,
        code.co_freevars, code.co_cellvars, code.co_exceptiontable, constants,
    ))  # fmt: skip
    found = _Code(code, encoder.hashed(), tuple(sorted(names)))
    if len(_codes) >= _MAX_CODES:
        _codes.clear()
    _codes[id(code)] = found
    return found


def _has_docstring(code: types.CodeType) -> bool:
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & _HAS_DOCSTRING)
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


# --- functions ----------------------------------------------------------------------------------


class _Watched:
    """What a function was found to be, and what tells that it is so still.

    Attributes
    ----------
    digest
        Of all that does not change unless something below does.
    names
        Names in the dicts of modules and classes, and what they stood for.
    functions
        Functions, and their code, defaults and defaults of keywords.
    cells
        Cells of closures, and what they held.
    live
        What may change without notice, whether it must be told by its content, and where it is.
    """

    __slots__ = ("cells", "digest", "functions", "live", "names")

    def __init__(self) -> None:
        self.digest = b""
        self.names: list[tuple[Mapping[str, Any], str, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.live: list[tuple[Any, bool, str]] = []

    def holds(self) -> bool:
        """Whether nothing was rebound since."""
        missing = _MISSING
        for mapping, name, value in self.names:
            if mapping.get(name, missing) is not value:
                return False
        for function, code, defaults, keywords in self.functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                return False
        return all(_held_by(cell) is value for cell, value in self.cells) if self.cells else True


def _held_by(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


class _Functions(_Prints):
    """Writes functions down with all that they reach.

    A name that is read as a global is written down once, after all else: what stands for it may be
    reached from itself.

    Parameters
    ----------
    watched
        Where to note what was looked at, and to leave what may change without notice; None to
        write down all there is.
    has_code
        Whether code counts, and what it reaches, or names alone.
    """

    def __init__(
        self, watched: _Watched | None = None, *, helpers: bool = True, has_code: bool = True
    ) -> None:
        super().__init__(digest_of)
        self._watched = watched
        self._helpers = helpers
        self._has_code = has_code
        # The functions that are being written down, each within the one before.
        self._path: list[int] = []
        # Globals by (module, name, whether the module is that of the function that reads them, id
        # of the dict); classes by (module, qualified name, id).
        self._wanted: dict[tuple[str, str, bool, int], dict[str, Any]] = {}
        self._classes: dict[tuple[str, str, int], type] = {}
        self._seen: set[Any] = set()

    def hashed(self) -> bytes:
        """The hash of all that was written, and of the globals that it reads."""
        while self._wanted or self._classes:
            wanted, self._wanted = self._wanted, {}
            classes, self._classes = self._classes, {}
            for key in sorted(wanted):
                self._global(wanted[key], *key[:3])
            for each in sorted(classes):
                self._class(classes[each])
        return super().hashed()

    def root(self, function: Any, *, defaults: bool, lenient: bool) -> None:
        """Write down the function that it is all about."""
        kind = type(function)
        if kind is types.FunctionType:
            self.function(function, MAX_DEPTH, defaults=defaults, lenient=lenient)
        elif kind is types.MethodType:
            self.out += b"M"
            self.root(function.__func__, defaults=defaults, lenient=lenient)
            self._live(function.__self__, MAX_DEPTH, strict=True)
        elif kind is functools.partial:
            self.out += b"P"
            self.root(function.func, defaults=defaults, lenient=lenient)
            keywords = sorted(function.keywords.items())
            self._live((function.args, keywords), MAX_DEPTH, strict=True)
        elif (wrapped := _wrapped_by(function)) is not None:
            self.out += b"w"
            self.named(kind)
            self.root(wrapped, defaults=defaults, lenient=lenient)
        elif isinstance(function, type):
            self._named_class(function, function.__module__)
        elif isinstance(function, np.ufunc) or _has_name(function):
            self.node(function)
        else:
            self._live(function, MAX_DEPTH, strict=True)
            self._named_class(kind, kind.__module__)

    def function(
        self,
        function: types.FunctionType,
        depth: int,
        *,
        defaults: bool = True,
        lenient: bool = False,
        helper: bool = False,
    ) -> None:
        """Encode a function.

        Parameters
        ----------
        lenient
            Whether defaults that cannot be told by their content are told by their kind.
        helper
            Whether this holds for what its closure has, too.
        """
        if id(function) in self._path:
            # One that its own closure has, so many levels up.
            self.out += b"@" + _SIZE.pack(len(self._path) - self._path.index(id(function)))
            return
        deeper = _deeper(depth)
        self._path.append(id(function))
        self.out += b"F"
        self.text(_name(function))
        if self._has_code:
            self.out += _code(function.__code__).digest
            held = [_held_by(cell) for cell in function.__closure__ or ()]
            self._closure(function, held, deeper, lenient=helper)
            if defaults:
                self._defaults(function, deeper, lenient=lenient or helper)
            wrapped = _wrapped_by(function)
            if wrapped is not None and not any(each is wrapped for each in held):
                self.out += b"w"
                self.function(wrapped, deeper, lenient=lenient, helper=helper)
            self._reads(function)
            if self._watched is not None:
                self._watched.functions.append(
                    (function, function.__code__, function.__defaults__, function.__kwdefaults__)
                )
        self._path.pop()

    def _closure(
        self, function: types.FunctionType, held: list[Any], depth: int, *, lenient: bool
    ) -> None:
        for name, cell, value in zip(
            function.__code__.co_freevars, function.__closure__ or (), held, strict=True
        ):
            if self._watched is not None:
                self._watched.cells.append((cell, value))
            if value is _MISSING:
                self.out += b"-"
            elif name == "__class__" and isinstance(value, type):
                self.text(_name(value))
            elif type(value) is types.FunctionType:
                self.function(value, depth, helper=lenient)
            else:
                where = f"in the closure of {_name(function)}, as {name}"
                self._live(value, depth, strict=not lenient, where=where)

    def _defaults(self, function: types.FunctionType, depth: int, *, lenient: bool) -> None:
        keywords = function.__kwdefaults__ or {}
        self.out += _SIZE.pack(len(function.__defaults__ or ()))
        for value in function.__defaults__ or ():
            self._live(value, depth, strict=not lenient)
        for name in sorted(keywords):
            self.text(name)
            if self._watched is not None:
                self._watched.names.append((keywords, name, keywords[name]))
            self._live(keywords[name], depth, strict=not lenient)

    def _reads(self, function: types.FunctionType) -> None:
        spaces = function.__globals__
        module = str(spaces.get("__name__"))
        own = function.__module__ == module
        for name in _code(function.__code__).names:
            key = module, name, own, id(spaces)
            if key not in self._seen:
                self._seen.add(key)
                self._wanted[key] = spaces

    def _global(self, spaces: dict[str, Any], module: str, name: str, own: bool) -> None:
        value = spaces.get(name, _MISSING)
        if value is _MISSING and name not in vars(builtins):
            self.out += b"?"  # not there, or not yet
        self.out += b"n"
        self.text(_module_name(module))
        self.text(name)
        if self._watched is not None:
            self._watched.names.append((spaces, name, value))
        if value is not _MISSING:
            self._bound(value, module if own else None)

    def _bound(self, value: Any, module: str | None) -> None:
        """Write down what a name stands for, in a module if that is the reading function's own."""
        kind = type(value)
        if _is_constant(value):
            self.out += b"="
            self.node(value)
            return
        if module is not None:
            inner = _wrapped_by(value)
            if kind is types.FunctionType:
                if self._helpers and value.__module__ == module:
                    self.function(value, MAX_DEPTH, helper=True)
                    return
            elif isinstance(value, type):
                self._named_class(value, module)
                return
            elif inner is not None:
                self.out += b"w"
                self.text(_name(kind))
                self._bound(inner, module)
                return
            elif kind in (staticmethod, classmethod, functools.cached_property, property):
                self.text(kind.__name__)
                for part in ("__func__", "func", "fget", "fset", "fdel"):
                    if (each := getattr(value, part, None)) is not None:
                        self._bound(each, module)
                return
            elif kind in _CONTENT:
                self._live(value, MAX_DEPTH, strict=False)
                return
        self.out += b"."
        self.text(_name(kind))
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            self.text(_name(value))
        elif kind is types.ModuleType or isinstance(value, np.ufunc):
            self.text(value.__name__)

    def _named_class(self, kind: type, module: str) -> None:
        self.out += b"C"
        self.text(_name(kind))
        key = kind.__module__, kind.__qualname__, id(kind)
        if (
            self._helpers
            and self._has_code
            and kind.__module__ == module
            and type(vars(kind)) is types.MappingProxyType
            and key not in self._seen
        ):
            self._seen.add(key)
            self._classes[key] = kind

    def _class(self, kind: type) -> None:
        self.out += b"T"
        self.text(_name(kind))
        for base in kind.__bases__:
            self._named_class(base, kind.__module__)
        attributes = vars(kind)
        for name in sorted(set(attributes) - _UNREAD):
            value = attributes[name]
            self.text(name)
            if self._watched is not None:
                self._watched.names.append((attributes, name, value))
            self._bound(value, kind.__module__)

    # --- what may change without notice ----------------------------------------------------

    def _live(self, value: Any, depth: int, *, strict: bool, where: str = "") -> None:
        """Write down a value; later, if it may change without that being noticed."""
        if _is_constant(value):
            self.out += b"="
            self.node(value, depth)
        elif self._watched is not None:
            self.out += b"~"
            self._watched.live.append((value, strict, where))
        else:
            self.content(value, depth, strict=strict, where=where)

    def content(self, value: Any, depth: int, *, strict: bool, where: str) -> None:
        """Write down the content of a value; unless `strict`, its kind if it has none.

        Raises
        ------
        ValueTypeError
            It has none; the message says `where` this is.
        """
        if strict:
            try:
                self.node(value, depth)
            except ValueTypeError as error:
                if where:
                    raise ValueTypeError(f"{where}: {error}") from error
                raise
            return
        out, opened, path = self.out, set(self._open), list(self._path)
        wanted, classes, seen = dict(self._wanted), dict(self._classes), set(self._seen)
        self.out = bytearray()
        try:
            self.node(value, depth)
        except ValueTypeError:
            self._open, self._path = opened, path
            self._wanted, self._classes, self._seen = wanted, classes, seen
            self.out = out
            self.out += b"."
            self.text(_name(type(value)))
        else:
            found, self.out = self.out, out
            out += b"=" + _NUMBER.pack(len(found)) + found


# Of the attributes of a class: what says where it was made, or follows from the others.
_UNREAD = frozenset({
    "__module__", "__qualname__", "__dict__", "__weakref__", "__doc__", "__firstlineno__",
    "__static_attributes__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__classcell__",
})  # fmt: skip

# What has content, and may change.
_CONTENT = frozenset({
    list, dict, set, bytearray, tuple, frozenset, np.ndarray, BlockedArray, CompressedArray,
    functools.partial, dt.datetime, dt.time,
})  # fmt: skip

_CONSTANT = frozenset({
    type(None), bool, int, float, complex, str, bytes, type(...), range, dt.date, dt.timedelta,
    uuid.UUID, pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath,
    pathlib.WindowsPath,
})  # fmt: skip


def _is_constant(value: Any) -> bool:
    """Whether a value cannot change, and has content that can be told."""
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(_is_constant, value))
    return kind in _CONSTANT or (
        isinstance(value, np.generic) and kind is value.dtype.type and kind is not np.void
    )


def _wrapped_by(function: Any) -> types.FunctionType | None:
    """What `functools.wraps` has noted, if it is a function."""
    # Not by `getattr`: many an object has attributes of any name.
    try:
        attributes = object.__getattribute__(function, "__dict__")
    except AttributeError:
        return None
    wrapped = attributes.get("__wrapped__") if isinstance(attributes, dict) else None
    if wrapped is None or type(wrapped) is types.FunctionType:
        return wrapped
    return _wrapped_by(wrapped)


class FunctionPrint:
    """What a function is, looked at anew whenever one of the things that it depends on changed.

    Parameters
    ----------
    func
        A function, method, partial, builtin, class or other callable.
    version
        If given, what says when the function's results are others: then only it, module and
        qualified name count (and the object of a bound method, the arguments of a partial).
    helpers
        Whether functions and classes of the same module count that it reads by name.
    defaults
        Whether its own defaults count.  They need not where they are part of the arguments, as
        `Parameters` has them.

    Raises
    ------
    ValueTypeError
        It is a generator function: its results cannot be stored.

    Notes
    -----
    Safe from any thread.
    """

    __slots__ = ("_defaults", "_helpers", "_version", "_watched", "func")

    # Whether defaults that cannot be told by their content are told by their kind.
    _lenient = True

    def __init__(
        self, func: Any, *, version: Any = None, helpers: bool = True, defaults: bool = True
    ) -> None:
        if _makes_generators(func):
            raise ValueTypeError(
                f"expected a function whose results can be stored, found {_name(func)}, which "
                "makes generators: let it return a list or an array"
            )
        self.func = func
        self._version = version
        self._helpers = helpers
        self._defaults = defaults
        self._watched: _Watched | None = None

    def digest(self) -> bytes:
        """What the function is now, in 16 bytes.

        Raises
        ------
        ValueTypeError
            Its closure, the object that it is bound to, or an argument of a partial cannot be
            told by its content.

        Notes
        -----
        About a microsecond, if nothing was rebound and it depends on nothing that can change
        without that; what can (lists, dicts, arrays that are not frozen) is looked at each time.
        The first time, some 100 us for each function.
        """
        watched = self._watched
        if watched is None or not watched.holds():
            watched = self._look()
            self._watched = watched
        if not watched.live:
            return watched.digest
        encoder = _Functions(helpers=self._helpers)
        encoder.out += watched.digest
        try:
            for value, strict, where in watched.live:
                encoder.content(value, MAX_DEPTH, strict=strict, where=where)
            return encoder.hashed()
        except RecursionError as error:
            raise _too_deep(self.func) from error

    def _look(self) -> _Watched:
        watched = _Watched()
        has_code = self._version is None
        encoder = _Functions(watched, helpers=self._helpers, has_code=has_code)
        encoder.text(_PYTHON if has_code else "")
        try:
            encoder.node(self._version)
            encoder.root(self.func, defaults=self._defaults, lenient=self._lenient)
            watched.digest = encoder.hashed()
        except RecursionError as error:
            raise _too_deep(self.func) from error
        return watched


def function_fingerprint(func: Any, *, version: Any = None, helpers: bool = True) -> bytes:
    """What a function is, in 16 bytes; `FunctionPrint` says it again for less.

    Raises
    ------
    ValueTypeError
        As `FunctionPrint` and its `digest` raise it.
    """
    return FunctionPrint(func, version=version, helpers=helpers).digest()


def _too_deep(func: Any) -> ValueTypeError:
    return ValueTypeError(
        f"expected helpers of {_name(func)} less deeply nested, found no stack left"
    )


_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def _makes_generators(func: Any) -> bool:
    while True:
        if type(func) is functools.partial:
            func = func.func
        elif type(func) is types.MethodType:
            func = func.__func__
        elif type(func) is types.FunctionType and func.__code__.co_flags & _GENERATOR:
            return True
        elif (wrapped := _wrapped_by(func)) is not None:
            # A wrapper that is none itself may have made a list of it.
            if type(func) is types.FunctionType:
                return False
            func = wrapped
        else:
            return False


# The prints of functions that were arguments, by id; each has its function, whose id stays its own.
# Of those only that are there for good: others come and go, and may hold arrays.
_prints: dict[int, FunctionPrint] = {}
_MAX_PRINTS = 1024


def _print_of(function: types.FunctionType) -> FunctionPrint:
    found = _prints.get(id(function))
    if found is None:
        found = _Argument(function)
        if function.__closure__ is None and "<locals>" not in function.__qualname__:
            if len(_prints) >= _MAX_PRINTS:
                _prints.clear()
            _prints[id(function)] = found
    return found


class _Argument(FunctionPrint):
    """A function that is a value: it may make generators, and its defaults must be told."""

    __slots__ = ()
    _lenient = False

    def __init__(self, func: types.FunctionType) -> None:
        self.func = func
        self._version = self._watched = None
        self._helpers = self._defaults = True
