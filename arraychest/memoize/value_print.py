"""A value as bytes that say what it contains: equal for equal values, in every process.

Arrays are written down by their digests.  Type and bits count: 1, 1.0, True and ``np.int64(1)``
differ, and so do a list and a tuple, 0.0 and -0.0.  Sets have no order, dicts have theirs.  Whether
two parts of a value are the same object does not count.  A class or a builtin is its name; an
object of a class that is not registered is what pickle would take it apart into (`__reduce_ex__`),
and this in turn, down to values.  What is neither, such as a file or a lock, is refused.

What a function or a class of the user does, `fingerprint` says.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import os
import pickle
import struct
import sys
import sysconfig
import types
import warnings
import weakref
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from arraychest.arrays.digests import array_digest, digest_of, dtype_text
from arraychest.errors import ValueTypeError
from arraychest.values.encoder import Encoder
from arraychest.values.limits import MAX_DEPTH
from arraychest.values.scalars import array_of_scalar

Digest = Callable[[Any], bytes]

SIZE = struct.Struct("<I")
NUMBER = struct.Struct("<Q")

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


class ValuePrint(Encoder):
    """Writes values down as what they are, not to be read again.

    Further tags: ``a`` array, by its digest; ``o`` array of objects; ``G`` NumPy scalar, by its
    array's digest; ``C`` what has a name; ``M`` bound method; ``P`` partial; ``F`` function; ``K``
    code; ``O`` other object; ``N`` array of a subclass; ``E`` set of a subclass; ``~`` iterator;
    ``y`` mapping proxy; ``V`` memoryview; ``e`` member of an Enum; ``v`` `np.vectorize`; ``p``
    property and such; ``w`` what wraps a function.
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

    def taken(self) -> bytes:
        """The hash of what was written since this was last asked for, 16 bytes."""
        found = self.hashed()
        self._hash = None
        self.out.clear()
        return found

    def text(self, text: str) -> None:
        """Write a short text."""
        data = text.encode("utf-8", "surrogatepass")
        self.out += SIZE.pack(len(data)) + data

    # --- what the encoder leaves open ------------------------------------------------------

    def array(self, array: Any, depth: int) -> None:
        """Encode an ndarray or a `LazyArray`."""
        if not array.dtype.hasobject:
            digest = self._digest(array)
            self.out += b"a" + SIZE.pack(len(digest)) + digest
            return
        self._begin(array)
        self.out += b"o"
        self.text(dtype_text(array.dtype))
        self.node(array.shape, depth)
        self._run(array.reshape(-1).tolist(), deeper(depth))
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
            raise refused(value, "it contains itself")
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
        elif kind is types.FunctionType:
            self.function(value, depth)
        elif kind is types.CodeType:
            self.code(value)
        elif kind is types.ModuleType:
            self.out += b"C"
            self.text(value.__name__)
            self.text(version_of(value.__name__))
        elif kind in DESCRIPTORS:
            self.named(value.__objclass__)
            self.text(value.__name__)
        elif isinstance(value, np.ufunc):
            self._ufunc(value)
        elif kind is types.BuiltinFunctionType and has_name(value):
            self.named(value, version_of(value.__module__ or value.__self__.__name__))
        else:
            inner = deeper(depth)
            self._begin(value)
            self._taken_apart(value, inner)
            self._open.discard(id(value))

    def _taken_apart(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType):
            self.out += b"M"
            self.node(value.__self__, depth)
            if kind is types.MethodType:
                self.node(value.__func__, depth)
            else:
                self.text(value.__name__)
        elif kind is functools.partial:
            self.out += b"P"
            self.node(value.func, depth)
            self.node(value.args, depth)
            self.node(sorted(value.keywords.items()), depth)
        elif kind is types.MappingProxyType:
            self.out += b"y"
            self.node(dict(value), depth)
        elif kind is memoryview:
            self.out += b"V"
            self.node((value.format, value.shape, value.tobytes()), depth)
        elif kind is Elements:
            self.out += b"~" + NUMBER.pack(value.number)
            self.node(value.elements, depth)
        elif isinstance(value, np.ndarray):
            self._subclass(value, depth)
        elif isinstance(value, set | frozenset):
            # As pickle takes it apart it would be a list in the order of the hashes.
            self.out += b"E"
            self.named(kind)
            self._set(value, depth)
            self._state(getattr(value, "__dict__", None), depth)
        elif isinstance(value, enum.Enum):
            self.out += b"e"
            self.named(kind)
            self.node(value._name_, depth)
            # A plain object stands for nothing but its member.
            if type(value._value_) is not object:
                self.node(value._value_, depth)
        elif kind is np.vectorize:
            self.out += b"v"
            # Without the ufunc that it makes at its first call.
            self._state(
                {name: each for name, each in vars(value).items() if name != "_ufunc"}, depth
            )
        elif kind in PARTS:
            self.out += b"p"
            self.named(kind)
            for part in PARTS[kind]:
                self.node(getattr(value, part), depth)
        elif (wrapped := wrapped_by(value)) is not None and not has_state(value):
            self.out += b"w"
            self.named(kind)
            self.node(wrapped, depth)
        else:
            self._reduced(value, depth)

    def _left_out(self, kind: type) -> frozenset[str]:
        """The attributes of objects of a class that do not count."""
        return computed_by(kind)

    def function(self, function: types.FunctionType, depth: int) -> None:
        """Encode a function."""
        raise NotImplementedError

    def code(self, code: types.CodeType) -> None:
        """Encode a code object."""
        raise NotImplementedError

    def named(self, value: Any, version: str = "") -> None:
        """Encode what is known by its name alone."""
        if isinstance(value, type) and "<locals>" in value.__qualname__:
            raise refused(value, "its class was made within a function")
        self.out += b"C"
        self.text(name_of(value))
        self.text(version)

    def _ufunc(self, value: np.ufunc) -> None:
        # Those of SciPy and others have no module, but are pickled by their names.
        for module in ("numpy", "scipy.special"):
            if getattr(sys.modules.get(module), value.__name__, None) is value:
                self.out += b"C"
                self.text(f"{module}.{value.__name__}")
                self.text(version_of(module))
                return
        try:
            module = pickle.whichmodule(value, value.__name__)  # type: ignore[attr-defined]
        except pickle.PicklingError:  # from 3.14 on; before, it named `__main__`
            raise refused(value, "it is of no module") from None
        if getattr(sys.modules.get(module), value.__name__, None) is not value:
            raise refused(value, "it is of no module")
        self.out += b"C"
        self.text(f"{module}.{value.__name__}")
        self.text(version_of(module))

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
            raise refused(value, "one object is like the other")
        try:
            reduced = _taken_apart(value)
        except Exception as error:
            raise refused(value, str(error)) from error
        self.out += b"O"
        self.named(kind)
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None) or pickle.whichmodule(value, reduced)  # type: ignore[attr-defined]
            self.text(f"{module}.{reduced}")
            self.text(version_of(module))
            return
        parts: list[Any] = [*reduced, *[None] * 4]
        make, given, state, elements, items, setter = parts[:6]
        if has_name(make):
            self.named(make)
        else:
            self.node(make, depth)
        self.node(given, depth)
        self._state(state, depth, self._left_out(kind))
        # They are iterators, which are there once.
        self.node(None if elements is None else list(elements), depth)
        self.node(None if items is None else list(items), depth)
        if setter is not None:
            self.named(setter)

    def _state(self, state: Any, depth: int, without: Collection[str] = ()) -> None:
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
            self.out += b"2"  # of an object with slots: two dicts
            self._state(state[0], depth, without)
            self._state(state[1], depth, without)
        elif type(state) is dict and all(type(name) is str for name in state):
            # In which order attributes were assigned does not count.
            self.out += b"1"
            names = sorted(state)
            if without:
                names = [name for name in names if name not in without]
            self._run(names, depth)
            self._run([state[name] for name in names], depth)
        else:
            self.out += b"0"
            self.node(state, depth)


DESCRIPTORS = frozenset({
    types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType,
})  # fmt: skip


def deeper(depth: int) -> int:
    """How many levels are left within a level, of which so many are left."""
    if depth == 0:
        raise ValueTypeError(f"expected a value nested at most {MAX_DEPTH} deep, found one deeper")
    return depth - 1


def refused(value: Any, why: str) -> ValueTypeError:
    """The error of a value that cannot be told by its content."""
    what = value if isinstance(value, type) else type(value)
    return ValueTypeError(
        f"expected what can be told apart by its content, found {name_of(what)}: {why}; leave the "
        'parameter out with ignore=["its name"], or say with key= what makes two calls the same'
    )


def name_of(value: Any) -> str:
    """The module and the qualified name of a function or class."""
    module = getattr(value, "__module__", None)
    if module is None:
        module = getattr(getattr(value, "__self__", None), "__name__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return f"{module_name(module)}.{name}"


def module_name(module: Any) -> Any:
    """The name of a module, which is the same in the processes that a script starts."""
    # What `multiprocessing` calls a script's module in a child that it spawns.
    return "__main__" if module == "__mp_main__" else module


def has_name(value: Any) -> bool:
    """Whether a class, function or builtin is known by its module and name."""
    if isinstance(value, type):
        return True
    if type(value) is types.FunctionType:
        return "<" not in value.__qualname__
    return type(value) is types.BuiltinFunctionType and (
        value.__self__ is None or type(value.__self__) is types.ModuleType
    )


def version_of(module: str | None) -> str:
    """The version of the package that a module belongs to; "" if it says none."""
    package = (module or "").partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "")
    return version if isinstance(version, str) else ""


# What is made of functions, and the attributes that hold them.
PARTS: dict[Any, tuple[str, ...]] = {
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
    functools.partialmethod: ("func", "args", "keywords"),
}


def wrapped_by(function: Any) -> types.FunctionType | None:
    """What `functools.wraps` has noted, if it is a function."""
    # Not by `getattr`: many an object has attributes of any name.
    try:
        attributes = object.__getattribute__(function, "__dict__")
    except AttributeError:
        return None
    wrapped = attributes.get("__wrapped__") if isinstance(attributes, dict) else None
    if wrapped is None or type(wrapped) is types.FunctionType:
        return wrapped
    return wrapped_by(wrapped)


def has_state(wrapper: Any) -> bool:
    """Whether a wrapper is more than what it wraps: an object of a class of the user's."""
    return type(wrapper) is np.vectorize or is_users(type(wrapper).__module__)


def computed_by(kind: type) -> frozenset[str]:
    """The attributes of an object that follow from the others: those of `cached_property`."""
    known = _computed.get(kind)
    if known is None:
        known = _computed[kind] = frozenset(
            name
            for each in kind.__mro__
            for name, value in vars(each).items()
            if isinstance(value, functools.cached_property)
        )
    return known


_computed: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def is_users(module: Any) -> bool:
    """Whether a module is the user's own, and not one that is installed, or Python's.

    What an installed one does changes with its version; what the user's does changes with each
    edit.
    """
    if type(module) is not str or module.partition(".")[0] in _INSTALLED:
        return False
    if module in ("__main__", "__mp_main__"):
        return True  # whatever started it: a worker runs functions of somebody else's script
    found = sys.modules.get(module) or sys.modules.get(module.partition(".")[0])
    file = getattr(found, "__file__", None)
    if file is None:
        # Of Python's own some have none; nor have a notebook, and modules that are made.
        return getattr(getattr(found, "__spec__", None), "origin", None) not in (
            "built-in",
            "frozen",
        )
    return is_users_origin(file)


_INSTALLED = frozenset({"arraychest", *sys.builtin_module_names})


@functools.lru_cache(4096)
def is_users_origin(file: str | None) -> bool:
    """Whether a module that comes of a file is the user's own."""
    if file is None or file in ("built-in", "frozen"):
        return False
    file = os.path.abspath(file)
    if not {"site-packages", "dist-packages"}.isdisjoint(file.split(os.sep)):
        return False
    return not any(
        file.startswith(os.path.join(folder, ""))
        for name, folder in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib")
    )


def _taken_apart(value: Any) -> Any:
    """What pickle would take an object apart into; raises what that raises."""
    reduce = copyreg.dispatch_table.get(type(value))
    if reduce is not None:
        return reduce(value)
    if type(value).__module__ != "itertools":
        return value.__reduce_ex__(4)
    with warnings.catch_warnings():  # Python 3.12 and 3.13 say that later ones cannot
        warnings.simplefilter("ignore", DeprecationWarning)
        return value.__reduce_ex__(4)
