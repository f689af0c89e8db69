"""Cached functions in other processes: what stands for one in a pickle, and what becomes of it."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import pickle
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple


class Temporary(NamedTuple):
    """What stands for a temporary chest, or a group of one, in another process."""

    kind: type[Any]
    token: bytes
    prefixes: tuple[Any, ...] = ()


# The temporary chests of functions that were pickled here, also where this is a forked child of
# the process that did; and what stands for the chests of other processes.
temporary: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()
_stand_ins: dict[type[Any], Any] = {}

# Whether a function is being pickled by its value.
by_value: contextvars.ContextVar[bool] = contextvars.ContextVar("by_value", default=False)


def again(chest: Any, func: Callable[..., Any], options: dict[str, Any]) -> Any:
    """The cached function in the process that unpickles it."""
    if isinstance(chest, Temporary):
        known, prefixes = temporary.get(chest.token), chest.prefixes
        chest = _stand_in(chest.kind) if known is None else known
        for prefix in prefixes:
            chest = chest.group(prefix)
    return chest.cache(func, **options)


def _stand_in(kind: type[Any]) -> Any:
    """A chest that keeps nothing, as another process's temporary one cannot be written to."""
    if kind not in _stand_ins:
        made = kind()
        made._engine.session.keep_nothing()
        _stand_ins[kind] = made
    return _stand_ins[kind]


def of_main(name: str, pickled: bytes | None, why_not: str) -> Any:
    """The cached function of this name of the script that runs here, or the one that was sent."""
    found = attribute("__main__", name)
    if getattr(type(found), "is_cached", False):
        return found
    if pickled is None:
        raise AttributeError(
            f"expected a cached function {name} in the script that runs in this process, found "
            f"none; it was not sent by its value, too: {why_not}"
        )
    return again(*pickle.loads(pickled))  # noqa: S301  # as trusted as what it came in


def pickled_by_value(parts: tuple[Any, ...]) -> tuple[bytes | None, str]:
    """What `again` takes, pickled by cloudpickle; or None, and why it could not be."""
    cloudpickle = None
    for name in ("cloudpickle", "joblib.externals.cloudpickle"):
        if cloudpickle is None:
            with contextlib.suppress(ImportError):
                cloudpickle = importlib.import_module(name)
    if cloudpickle is None:
        return None, "cloudpickle is not installed where it was pickled"
    token = by_value.set(True)
    try:
        return cloudpickle.dumps(parts), ""
    except Exception as error:  # whatever the reduction of any object that the function uses raises
        return None, f"{type(error).__name__}: {error}"
    finally:
        by_value.reset(token)


def attribute(module: str, name: str) -> Any:
    """What a module has under a name, maybe that of an attribute of a class; None if nothing."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
