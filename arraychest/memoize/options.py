"""How the results of a function are kept: its options, and the switch that turns caching off."""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import difflib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

from arraychest.errors import ArrayChestWarning

# What `verbose=` says.
verbose = logging.getLogger("arraychest.cache")


class Kept(NamedTuple):
    """What is known of a kept result, for `CacheOptions.validate`.

    Attributes
    ----------
    age
        Seconds since it was computed.
    seconds
        How long it took to compute.
    nbytes
        Bytes of its data.
    """

    age: float
    seconds: float
    nbytes: int


class CacheOptions(TypedDict, total=False):
    """The options of `Chest.cache`, which describes each."""

    ignore: Iterable[str]
    key: Callable[..., Any] | None
    version: Any
    helpers: bool
    ignore_state: Iterable[str]
    expires_after: float | dt.timedelta | None
    validate: Callable[[Kept], bool] | None
    mmap_mode: Literal["r", "c"] | None
    strict: bool
    enabled: bool
    verbose: int


# What each is where it is not given.
DEFAULTS: dict[str, Any] = {
    "ignore": (),
    "key": None,
    "version": None,
    "helpers": True,
    "ignore_state": (),
    "expires_after": None,
    "validate": None,
    "mmap_mode": None,
    "strict": False,
    "enabled": True,
    "verbose": 0,
}

_disabled: contextvars.ContextVar[bool] = contextvars.ContextVar("caching_disabled", default=False)


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """All options, those that were not given too.

    Raises
    ------
    TypeError, ValueError
        There is no such option, or it cannot have such a value.
    """
    for name in given:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"expected an option of a cached function, found {name!r}{hint}")
    asked = {**DEFAULTS, **given}
    after = asked["expires_after"]
    if isinstance(after, dt.timedelta):
        after = after.total_seconds()
    if after is not None and not after > 0:
        raise ValueError(f"expected expires_after to be positive, found {after}")
    asked["expires_after"] = after
    ignore, state = asked["ignore"], asked["ignore_state"]
    if isinstance(ignore, Iterable) and not isinstance(ignore, str):
        asked["ignore"] = tuple(ignore)
    if isinstance(state, str):
        raise TypeError(f"expected a list of names for ignore_state, found the string {state!r}")
    asked["ignore_state"] = tuple(state)
    if asked["mmap_mode"] not in (None, "r", "c"):
        raise ValueError(f'expected mmap_mode to be "r" or "c", found {asked["mmap_mode"]!r}')
    if asked["verbose"]:
        _make_heard()
    return asked


@contextlib.contextmanager
def caching_disabled() -> Iterator[None]:
    """Call cached functions as if nothing cached them, in this thread or task.

    Within the block they neither look for results nor keep any.

    Examples
    --------
    >>> import arraychest
    >>> chest = arraychest.Chest()
    >>> calls = []
    >>> @chest.cache
    ... def square(x):
    ...     calls.append(x)
    ...     return x * x
    >>> with arraychest.caching_disabled():
    ...     square(3), square(3)
    (9, 9)
    >>> calls
    [3, 3]
    """
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def is_disabled() -> bool:
    """Whether the caller is within `caching_disabled`."""
    return _disabled.get()


def say(message: str) -> None:
    """Warn; where warnings are errors the log has it, and the result is there all the same."""
    try:
        warnings.warn(message, ArrayChestWarning, stacklevel=4)
    except ArrayChestWarning:
        logging.getLogger("arraychest").warning("%s", message)


class _Stderr(logging.Handler):
    """Writes to whatever standard error is at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("[arraychest] %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(f"{self.format(record)}\n")


def _make_heard() -> None:
    """See to it that somebody hears what `verbose=` says, if the program has set up no logging."""
    if verbose.level == logging.NOTSET:
        verbose.setLevel(logging.INFO)
    at: logging.Logger | None = verbose
    while at is not None:
        if any(not isinstance(each, logging.NullHandler) for each in at.handlers):
            return
        at = at.parent if at.propagate else None
    verbose.addHandler(_Stderr())
