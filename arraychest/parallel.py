"""Work on many parts of one array, on a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from arraychest.platform.memory import cores

T = TypeVar("T")
R = TypeVar("R")

# More gain little beside a disk, and each has a chunk in hand.
_MOST_THREADS = 4


def default_threads() -> int:
    """One for each core that this process may run on, up to four."""
    return min(cores(), _MOST_THREADS)


def in_order(function: Callable[[T], R], items: Iterable[T], nthreads: int) -> Iterator[R]:
    """``map`` on threads: the results in their order, `nthreads` more than was asked for at most.

    What a call raises is raised in its place; then, and where the iterator is closed early, the
    calls under way are waited for.
    """
    if nthreads < 2:
        yield from map(function, items)
        return
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(nthreads, thread_name_prefix="arraychest-chunk") as pool:
        try:
            for item in items:
                try:
                    begun.append(pool.submit(function, item))
                except RuntimeError:
                    # No more threads, or the interpreter is exiting.
                    while begun:
                        yield begun.popleft().result()
                    yield function(item)
                    continue
                if len(begun) > nthreads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
