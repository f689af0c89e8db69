"""Numba and arrays that lie on disk: it compiles for an ndarray, and is told how to get one.

Numba asks for this module itself, by the entry point ``numba_extensions``.
"""

from __future__ import annotations

from typing import Any

from arraychest.arrays.lazy import LazyArray


def register() -> None:
    """Have Numba say what to call where it is given a lazy array."""
    from numba.core.typing.typeof import typeof_impl

    def typeof(array: LazyArray, _: Any) -> Any:
        raise TypeError(
            f"expected an ndarray for a function that Numba compiles, found "
            f"{type(array).__name__}: chest.load(key), or np.asarray(array), reads it whole"
        )

    typeof_impl.register(LazyArray)(typeof)
