"""`Group`: the entries of a chest whose keys begin alike, as a mapping of its own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import numpy as np

from arraychest.dictionary import MISSING, Dictionary
from arraychest.engine.append import append
from arraychest.engine.drafts import Creation, edited
from arraychest.engine.engine import Engine
from arraychest.engine.entry import Entry
from arraychest.engine.face import Face
from arraychest.engine.handle import Handle, handle_of
from arraychest.engine.in_place import edited_in_place
from arraychest.engine.options import with_options
from arraychest.engine.update import copy_from
from arraychest.errors import AbsentKeyError
from arraychest.memoize.cached import Cached, P, R, cached
from arraychest.memoize.options import DEFAULTS as CACHE_DEFAULTS
from arraychest.memoize.options import CacheOptions
from arraychest.progress import Asked as ProgressAsked

if TYPE_CHECKING:
    from arraychest.sharing.locks import KeyLock


class _Prefix:
    """What keys begin with, and what they are called without it."""

    def __init__(self, prefix: Any) -> None:
        self.told = prefix
        self._text, self._start = "", ()
        if isinstance(prefix, str) and prefix.endswith("/"):
            self._text = prefix
            return
        self._start = prefix if isinstance(prefix, tuple) else (prefix,)
        if not self._start:
            raise ValueError("expected a prefix of one key or more, found ()")

    def outer(self, key: Any) -> Any:
        """The key with the prefix; raises TypeError where it can have none."""
        if self._text:
            if not isinstance(key, str):
                raise TypeError(
                    f"expected a str as a key of the group {self.told!r}, found "
                    f"{type(key).__name__}"
                )
            return self._text + key
        return (*self._start, *key) if isinstance(key, tuple) else (*self._start, key)

    def inner(self, key: Any) -> Any:
        """The key without the prefix; `MISSING` for one that has another."""
        if self._text:
            if isinstance(key, str) and key.startswith(self._text):
                return key[len(self._text) :]
            return MISSING
        count = len(self._start)
        if not isinstance(key, tuple) or len(key) <= count or key[:count] != self._start:
            return MISSING
        rest = key[count:]
        if len(rest) > 1:
            return rest
        # A tuple in this place would be taken for several keys.
        return MISSING if isinstance(rest[0], tuple) else rest[0]


class _Keys:
    """The keys of a group: those of its chest that begin with some prefixes, one after another."""

    def __init__(self, prefixes: Iterable[Any]) -> None:
        self._prefixes = list(map(_Prefix, prefixes))

    def outer(self, key: Any) -> Any:
        """The key with the prefixes; raises TypeError where it can have none."""
        for prefix in reversed(self._prefixes):
            key = prefix.outer(key)
        return key

    def known(self, key: Any) -> Any:
        """As `outer`, for reading: of what cannot be a key there is no value."""
        try:
            return self.outer(key)
        except TypeError:
            raise AbsentKeyError(key) from None

    def inner(self, key: Any) -> Any:
        """The key without the prefixes; `MISSING` for one that has others."""
        for prefix in self._prefixes:
            if key is not MISSING:
                key = prefix.inner(key)
        return key

    def inners(self, keys: Iterable[Any]) -> Iterator[Any]:
        """Of those keys that have the prefixes, what they are without them."""
        return (inner for key in keys if (inner := self.inner(key)) is not MISSING)


class Group(Dictionary):
    """Entries of a chest whose keys begin alike; `Chest.group` makes one.

    It is a mapping over the same chest, and holds nothing itself.  In the group a key is what
    follows the prefix; the methods that take a key are `Chest`'s, and so is what they cost, but:
    iteration looks at every key of the chest, and ``len`` does, too.  What a chest does as a whole
    is asked of ``group.chest``: its `stats`, which it does not count by key, `flush`, `verify`.

    Parameters
    ----------
    chest
        The chest, or another group.
    prefix
        As `Chest.group` takes it.

    Attributes
    ----------
    chest
        The chest that the entries are in.
    prefixes
        What the keys begin with there: the prefixes of the groups that this one is in, and its own.
    """

    def __init__(self, chest: Any, prefix: Any) -> None:
        is_group = isinstance(chest, Group)
        self.chest: Any = chest.chest if is_group else chest
        self.prefixes: tuple[Any, ...] = (*chest.prefixes, prefix) if is_group else (prefix,)
        self._keys = _Keys(self.prefixes)

    @property
    def _engine(self) -> Engine:
        return cast(Engine, self.chest._engine)

    path = property(attrgetter("chest.path"), doc="The chest's folder.")

    def group(self, prefix: Any) -> Group:
        """The entries of this group whose keys begin with `prefix`, in turn."""
        return Group(self, prefix)

    # --- keys --------------------------------------------------------------------------------

    def full_key(self, key: Any) -> Any:
        """The key under which the chest itself has the entry."""
        return self._keys.outer(key)

    # --- the mapping ---------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """The value of `key`; raises as the chest does."""
        return self.chest[self._keys.known(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Put a value into the chest."""
        self.chest[self.full_key(key)] = value

    def __delitem__(self, key: Any) -> None:
        """Remove a key from the chest.  Raises AbsentKeyError."""
        del self.chest[self._keys.known(key)]

    def __contains__(self, key: object) -> bool:
        """Whether the group has the key; reads no value."""
        try:
            return self.full_key(key) in self.chest
        except TypeError:
            return False

    def __iter__(self) -> Iterator[Any]:
        """The group's keys, in the order of their insertion.  O(keys of the chest)."""
        return self._keys.inners(iter(self.chest))

    def __reversed__(self) -> Iterator[Any]:
        """The group's keys, the last inserted first."""
        return self._keys.inners(reversed(self.chest))

    def __len__(self) -> int:
        """Number of keys.  O(keys of the chest)."""
        return sum(1 for _ in self)

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Remove a key and return its value, or `default` if there is none; one atomic step."""
        try:
            return self.chest.pop(self._keys.known(key))
        except AbsentKeyError:
            if default is MISSING:
                raise
            return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, which becomes `default` if there is none; one atomic step."""
        return self.chest.setdefault(self.full_key(key), default)

    def update(self, other: Any = (), /, **named: Any) -> None:
        """Put every value of another mapping, of pairs, and of keyword arguments.

        In a chest with a path this is a transaction.
        """
        keys = getattr(other, "keys", None)
        pairs = other if keys is None else ((key, other[key]) for key in keys())
        self.chest.update((self.full_key(key), value) for key, value in pairs)
        self.chest.update((self.full_key(key), value) for key, value in named.items())

    def __or__(self, other: Mapping[Any, Any]) -> Any:
        """A new temporary chest with the values of both; of a key in both, the other's."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return type(self.chest)(self) | other

    # --- what a chest has beside a mapping -------------------------------------------------------

    def put(self, key: Any, value: Any, **options: Any) -> None:
        """Put a value, as `Chest.put`."""
        self.chest.put(self.full_key(key), value, **options)

    def load(self, key: Any) -> Any:
        """The value as a plain array in RAM, as `Chest.load`."""
        return self.chest.load(self._keys.known(key))

    def entry(self, key: Any) -> Entry:
        """Shape, dtype, size and place of a value, as `Chest.entry`; it has the chest's key."""
        return cast(Entry, self.chest.entry(self._keys.known(key)))

    def edit(self, key: Any, *, in_place: bool = False) -> AbstractContextManager[np.ndarray]:
        """Change a value, as `Chest.edit`."""
        editor = edited_in_place if in_place else edited
        return editor(self._engine, self._keys.known(key))

    def create(
        self, key: Any, shape: Any, dtype: Any = float, order: Any = "C", fill: Any = None
    ) -> Creation:
        """Make an array on disk to be filled in place, as `Chest.create`."""
        return Creation(self._engine, self.full_key(key), shape, dtype, order, fill)

    def append(self, key: Any, array: np.ndarray, axis: int = 0) -> None:
        """Make a blocked array longer, as `Chest.append`."""
        append(self._engine, self.full_key(key), array, axis)

    def lock(self, key: Any) -> KeyLock:
        """A lock on a key, as `Chest.lock`."""
        return cast("KeyLock", self.chest.lock(self.full_key(key)))

    def handle(self, key: Any) -> Handle:
        """What stands for a stored value, as `Chest.handle`."""
        return handle_of(self._engine, self._keys.known(key))

    def to_dask(self, key: Any, chunks: Any = "auto") -> Any:
        """A dask array over a stored array, as `Chest.to_dask`."""
        return self.chest.to_dask(self._keys.known(key), chunks)

    # --- what a chest does with many values ------------------------------------------------------

    def copy_from(
        self,
        other: Any,
        keys: Iterable[Any],
        *,
        overwrite: bool = True,
        progress: ProgressAsked = False,
    ) -> None:
        """Put some values of another chest or group, as `Chest.copy_from`, under the group's keys.

        A value is linked if it has the same full key in both chests, and copied otherwise.
        """
        pairs = ((self.full_key(key), key) for key in keys)
        block = self.chest._changing()
        copy_from(self._engine, block, other, pairs, overwrite=overwrite, progress=progress)

    @overload
    def cache(self, func: Callable[P, R], **options: Unpack[CacheOptions]) -> Cached[P, R]: ...
    @overload
    def cache(
        self, func: None = None, **options: Unpack[CacheOptions]
    ) -> Callable[[Callable[P, R]], Cached[P, R]]: ...
    def cache(self, func: Callable[P, R] | None = None, **options: Unpack[CacheOptions]) -> Any:
        """Keep the results of a function, as `Chest.cache`, as entries of the group."""
        if func is None:
            return functools.partial(self.cache, **options)
        return cached(self._engine, self.chest._flights, self, func, **options)

    def plot(self, *, times: bool = False) -> Any:
        """Draw what of the group lies where, as `Chest.plot`; memory over time is the chest's."""
        plots = importlib.import_module("arraychest.show.plots")
        part = plots.Part(self.prefixes, self._keys.inner)
        return plots.plotted(self._engine, times=times, part=part)

    def transaction(self) -> AbstractContextManager[Any]:
        """Commit what is put in the block as one step, as `Chest.transaction`."""
        return cast(Face, self.chest).transaction()

    def export(self, path: Any, format: Any = None, **options: Any) -> int:  # noqa: A002
        """Write the group's values to a file, as `Chest.export`, under the chest's keys."""
        keys = options.pop("keys", None)
        wanted = [self.full_key(key) for key in (self if keys is None else keys)]
        return int(self.chest.export(path, format, keys=wanted, **options))

    def __repr__(self) -> str:
        prefixes = ", ".join(map(repr, self.prefixes))
        return f"<arraychest.Group {prefixes} of {self.chest!r}>"


with_options(Group.cache, CacheOptions, CACHE_DEFAULTS)
