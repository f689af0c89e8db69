"""What a chest is opened with: the options as a user gives them, checked and put together.

`ChestOptions` is stated once: signatures, type checkers and the errors for a misspelt option all
come from it.  What each option means, `Chest` says.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from arraychest.formats.compression import COMPRESS_ABOVE, Asked, Compression, parse_compression
from arraychest.parallel import default_threads
from arraychest.platform.maps import MmapMode
from arraychest.storage.folder import Mode
from arraychest.storage.quota import EvictBy, OnFull, Quota
from arraychest.units import parse_bytes
from arraychest.values.accept import OnPut, Own


class ChestOptions(TypedDict, total=False):
    """The options of `Chest` and `open`; `Chest` describes each."""

    mmap_mode: MmapMode
    on_put: OnPut
    allow_pickle: bool
    durable: bool
    on_miss: Callable[[Any], object] | None
    on_overflow: Callable[[Any], object] | None
    allow_network: bool
    checksums: bool | None
    max_disk: int | float | str | None
    on_full: OnFull
    evict_by: EvictBy
    compression: Asked
    compress_above: int | float | str
    compression_threads: int | None
    dump: Callable[[Any, Any], object] | None
    load: Callable[[Any], Any] | None
    key_to_filename: Callable[[Any], str] | None


# What each is where it is not given.
DEFAULTS: dict[str, Any] = {
    "mmap_mode": "r",
    "on_put": "freeze",
    "allow_pickle": False,
    "durable": False,
    "on_miss": None,
    "on_overflow": None,
    "allow_network": False,
    "checksums": None,
    "max_disk": None,
    "on_full": "refuse",
    "evict_by": "lru",
    "compression": "auto",
    "compress_above": COMPRESS_ABOVE,
    "compression_threads": None,
    "dump": None,
    "load": None,
    "key_to_filename": None,
}


class Options(NamedTuple):
    """How a chest was opened."""

    mode: Mode
    mmap_mode: MmapMode
    on_put: OnPut
    own: Own
    durable: bool
    on_miss: Callable[[Any], object] | None
    on_overflow: Callable[[Any], object] | None
    allow_network: bool
    checksums: bool
    quota: Quota | None
    compression: Compression
    key_to_filename: Callable[[Any], str] | None


def checked_options(mode: Mode, given: Mapping[str, Any], *, has_path: bool) -> Options:
    """The options of a chest, from those that were given.

    Raises
    ------
    TypeError
        One has a name that no option has; the message names the nearest one.
    ValueError
        One has a value that it cannot have.
    """
    check_names(given)
    asked = {**DEFAULTS, **given}
    _check_choice("mode", mode, ("r", "a", "w", "x"))
    if mode == "r" and not has_path:
        raise ValueError('expected a path with mode="r", found None')
    mmap_mode = asked["mmap_mode"]
    if mmap_mode == "r+":
        raise ValueError(
            'expected mmap_mode="r" or "c", found "r+": to write into a stored array use '
            "`with chest.edit(key, in_place=True) as array`"
        )
    _check_choice("mmap_mode", mmap_mode, ("r", "c"))
    _check_choice("on_put", asked["on_put"], ("freeze", "copy", "share"))
    return Options(
        mode,
        mmap_mode,
        asked["on_put"],
        Own(asked["allow_pickle"], asked["dump"], asked["load"]),
        asked["durable"],
        asked["on_miss"],
        asked["on_overflow"],
        asked["allow_network"],
        has_path if asked["checksums"] is None else asked["checksums"],
        _quota(asked),
        _compression(asked),
        asked["key_to_filename"],
    )


def _quota(asked: Mapping[str, Any]) -> Quota | None:
    _check_choice("on_full", asked["on_full"], ("refuse", "evict"))
    _check_choice("evict_by", asked["evict_by"], ("lru", "cost"))
    evicts = asked["on_full"] == "evict"
    if asked["max_disk"] is not None:
        return Quota(parse_bytes(asked["max_disk"]), evicts, asked["evict_by"])
    if evicts:
        raise ValueError('expected max_disk with on_full="evict", found None')
    return None


def _compression(asked: Mapping[str, Any]) -> Compression:
    how = parse_compression(asked["compression"])
    threads = asked["compression_threads"]
    if threads is not None and threads < 1:
        raise ValueError(f"expected compression_threads to be 1 or more, found {threads}")
    return Compression(how, parse_bytes(asked["compress_above"]), threads or default_threads())


def check_names(given: Iterable[str]) -> None:
    """Raise TypeError for an option that there is none of."""
    for name in given:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, [*DEFAULTS, "path", "mode", "available_memory"])
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"expected an option of a chest, found {name!r}{hint}")


def with_options(
    function: Callable[..., Any], named_by: type[Any], defaults: Mapping[str, Any]
) -> None:
    """Give a function that takes ``**options`` a signature that names each of them.

    Parameters
    ----------
    named_by
        The `TypedDict` of the options.
    defaults
        What each is where it is not given.
    """
    signature = inspect.signature(function)
    named = [
        each
        for each in signature.parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    hints = named_by.__annotations__
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name]
        )
        for name, default in defaults.items()
    ]
    signed: Any = function
    signed.__signature__ = signature.replace(parameters=[*named, *options])


def _check_choice(name: str, found: object, expected: tuple[str, ...]) -> None:
    if found not in expected:
        raise ValueError(f"expected {name} to be one of {', '.join(expected)}, found {found!r}")
