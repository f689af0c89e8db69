"""Progress of long work: a bar on standard error, or a function of the caller's that is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

# Seconds between two reports.
_INTERVAL = 0.1


class Progress(NamedTuple):
    """How far long work has come.

    Attributes
    ----------
    done, total
        Bytes that are done, and bytes in all.  While it is not known how many there are, `total`
        is 0.
    what
        What is being done, such as ``"verify"``.
    """

    done: int
    total: int
    what: str


# What ``progress=`` takes: False or None, nothing; True, a bar; a function, which is called.
Asked = bool | Callable[[Progress], object] | None


def is_asked(progress: object) -> bool:
    """Whether a value is one that ``progress=`` takes."""
    return progress is None or isinstance(progress, bool) or callable(progress)


class _Stopped(BaseException):
    """Carries what a report raised past everybody who would take it for a failure of the work."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Meter:
    """Counts the bytes that are done, and reports them from time to time.

    Parameters
    ----------
    report
        What is told; None: nobody.
    what, total
        See `Progress`.

    Attributes
    ----------
    done, total
        See `Progress`; may be set, and are reported with the next `add`.
    """

    __slots__ = ("_next", "_report", "_what", "done", "total")

    def __init__(self, report: Callable[[Progress], object] | None, what: str, total: int) -> None:
        self._report = report
        self._what = what
        self._next = 0.0
        self.done = 0
        self.total = total

    def add(self, nbytes: int) -> None:
        """Count bytes that are done.  Some 0.1 us, but for a report ten times a second.

        To be called where the work may be stopped: whatever a report raises leaves the block of
        `measured`, past all ``except`` clauses for `Exception`.
        """
        self.done += nbytes
        if self._report is not None and time.monotonic() >= self._next:
            self.tell()

    def reach(self, done: int) -> None:
        """Count up to so many bytes in all."""
        self.add(max(0, done - self.done))

    def tell(self) -> None:
        """Report now."""
        if self._report is None:
            return
        # Others may have added to the work since it was measured.
        total = max(self.total, self.done) if self.total else 0
        try:
            self._report(Progress(self.done, total, self._what))
        except BaseException as error:
            raise _Stopped(error) from None
        self._next = time.monotonic() + _INTERVAL


# Of work that nobody is told about.
SILENT = Meter(None, "", 0)


@contextlib.contextmanager
def measured(progress: Asked, what: str, total: Callable[[], int] | int = 0) -> Iterator[Meter]:
    """A meter for the work of a block; at its end all is reported as done.

    Parameters
    ----------
    progress
        As every ``progress=`` takes it.
    what, total
        See `Progress`; a function for the total is called only if somebody is told.

    Raises
    ------
    TypeError
        `progress` is none of these.
    BaseException
        What the caller's function has raised, as it was raised.
    """
    if not is_asked(progress):
        raise TypeError(
            f"expected progress to be True, False, None or a function, found {progress!r:.100}"
        )
    if progress is None or progress is False:
        yield Meter(None, what, 0)
        return
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(_bar(what)) if progress is True else progress
        meter = Meter(report, what, total() if callable(total) else total)
        try:
            meter.tell()
            yield meter
            meter.done = meter.total = max(meter.total, meter.done)
            meter.tell()
        except _Stopped as stopped:
            _raise(stopped.error)


def _raise(error: BaseException) -> NoReturn:
    raise error


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[Progress], object]]:
    # Here: it takes longer to import than the package itself.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        # At the end the time that it took in all.
        TimeRemainingColumn(elapsed_when_finished=True),
    ]
    # Drawn by the thread that works: a thread of its own would be one more to end.
    with Bars(*columns, console=Console(stderr=True), auto_refresh=False) as bars:
        task = bars.add_task(what, total=None)

        def show(now: Progress) -> None:
            bars.update(task, completed=now.done, total=now.total or None, refresh=True)

        yield show
