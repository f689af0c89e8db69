"""Memory while the demo's layers are computed: sampled, journalled, and shown as progress."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, Self

import arraychest
from arraychest.platform.pages import anonymous_bytes
from arraychest.units import format_bytes

# Between two looks at memory, seconds.  A peak of one tile's temporaries lasts about as long.
SAMPLE_SECONDS = 0.01


class Sample(NamedTuple):
    """One look at memory: seconds since the start, and bytes."""

    seconds: float
    resident: int
    spilled: int
    anonymous: int | None


class Journal(NamedTuple):
    """What happened while the layers were computed.

    Attributes
    ----------
    samples
        Looks at memory, in order.
    starts
        Second at which the work on some layers began, and their names.
    put
        Bytes put into the chest.
    arrays
        How many arrays those were.
    stats
        The chest's own account.
    """

    samples: list[Sample]
    starts: list[tuple[float, str]]
    put: int
    arrays: int
    stats: arraychest.Stats


class Sampler:
    """Looks at a chest and at this process's memory every `SAMPLE_SECONDS`, in a thread.

    Attributes
    ----------
    samples
        What it saw; one from the start on.
    """

    def __init__(self, chest: arraychest.Chest) -> None:
        self._chest = chest
        self._began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="arraychest-demo-sampler")
        self.samples: list[Sample] = []
        self.look()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def look(self) -> Sample:
        """Take a sample now."""
        stats = self._chest.stats()
        sample = Sample(self.elapsed(), stats.charged, stats.bytes_spilled, anonymous_bytes())
        self.samples.append(sample)
        return sample

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


class Progress:
    """Lines of text and, on a terminal, two live bars below them: the work, and the budget."""

    def __init__(self, budget: int) -> None:
        self._live: Any = None
        # Blosc2 brings rich along; should it stop doing so, the lines alone will do.
        with contextlib.suppress(ImportError):
            from rich import progress

            self._live = progress.Progress(
                progress.TextColumn("  {task.description:<22}"),
                progress.BarColumn(bar_width=24),
                progress.TextColumn("{task.fields[note]}"),
                transient=True,
            )
            if not self._live.console.is_terminal:
                self._live = None
        if self._live is not None:
            self._work = self._live.add_task("", total=1, note="")
            self._ram = self._live.add_task(
                f"budget of {format_bytes(budget)}", total=budget, note=""
            )

    def show(self, title: str, share: float, sample: Sample) -> None:
        """Move the bars."""
        if self._live is None:
            return
        self._live.update(
            self._work,
            description=title,
            completed=share,
            note=f"{share:4.0%}  {sample.seconds:.0f} s",
        )
        self._live.update(
            self._ram,
            completed=sample.resident,
            note=f"{format_bytes(sample.resident)} in RAM, {format_bytes(sample.spilled)} spilled",
        )

    def line(self, text: str) -> None:
        """Print a line, above the bars."""
        if self._live is None:
            print(text, flush=True)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
