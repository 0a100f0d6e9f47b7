"""Progress display: a bar with rate and time left on a terminal, occasional plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_PLAIN_INTERVAL = 30.0
# A phase shorter than this gets no line.
_PLAIN_DELAY = 0.5

T = TypeVar("T")

# The display on the terminal, and the phases in progress, the innermost last.
_live: Progress | None = None
_phases: list[str] = []


class Bar:
    """A running task; `update` advances it and replaces the figures shown next to it."""

    def __init__(
        self, progress: Progress | None, label: str, total: int, start: int, deadline: float, quiet: bool
    ) -> None:
        self._progress, self._label, self._total, self._quiet = progress, label, total, quiet
        self._done, self._first, self._figures = start, start, ""
        self._begun = self._last_line = time.monotonic()
        self._deadline = deadline
        if progress is not None:
            self._task = progress.add_task(label, total=total, completed=start, figures="", deadline=deadline)

    def update(self, advance: int = 1, figures: str = "") -> Self:
        """Advances by `advance` units and shows `figures` ("loss 0.05  41 images/s"), by default the previous ones."""
        self._done += advance
        self._figures = figures or self._figures
        if self._progress is not None:
            self._progress.update(self._task, advance=advance, figures=self._figures)
        elif not self._quiet and (time.monotonic() - self._last_line > _PLAIN_INTERVAL or self._done >= self._total):
            self._last_line = time.monotonic()
            rate = (self._done - self._first) / max(self._last_line - self._begun, 1e-9)
            left = (self._total - self._done) / rate if rate else float("inf")
            left = min(left, max(self._deadline - self._last_line, 0.0))
            _say(f"{self._label} {self._done}/{self._total}  {self._figures}  {_time(left)} left")
        return self


def _time(seconds: float) -> str:
    """As "40 s", "12 min" or "7 h 26 min"."""
    if not seconds < 100 * 3600:
        return "days"
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def bar(
    label: str, total: int, start: int = 0, *, deadline: float = float("inf"), quiet: bool = False
) -> Iterator[Bar]:
    """A bar on standard error from `start` to `total`; if that is not a terminal, plain lines 30 s apart.

    The task ends at `deadline` (by `time.monotonic()`) if that comes first. `quiet` shows nothing, for all but one of
    several processes.
    """
    with _display(quiet) as progress:
        yield Bar(progress, label, total, start, deadline, quiet)


def tracked(label: str, items: Iterable[T], total: int, shown_from: int = 0) -> Iterator[T]:
    """Iterates over the items, with a bar if there are at least `shown_from`."""
    if total < shown_from:
        yield from items
        return
    with bar(label, total) as shown:
        for item in items:
            yield item
            shown.update()


@contextmanager
def phase(label: str, *, quiet: bool = False) -> Iterator[None]:
    """Shows the elapsed time of something whose duration is unknown ("compiling").

    If standard error is not a terminal: a line at the beginning, then one every 30 s. `quiet` shows nothing.
    """
    _phases.append(label)
    try:
        with _display(quiet, transient=True) as progress:
            if progress is not None:
                progress.add_task(label, total=None, figures="", deadline=float("inf"))
                yield
            elif quiet:
                yield
            else:
                with _lines(label):
                    yield
    finally:
        _phases.pop()


def doing() -> str:
    """The label of the innermost phase; "" if there is none."""
    return _phases[-1] if _phases else ""


def console() -> Console:
    """Standard output; on a terminal with a display, what prints above it."""
    return _live.console if _live is not None and sys.stdout.isatty() else Console()


def stop() -> None:
    """Removes the display from the terminal for good, before the process ends."""
    if _live is not None:
        _live.stop()


@contextmanager
def _lines(label: str) -> Iterator[None]:
    # In a thread, because the phase may be a single call.
    over, begun = threading.Event(), time.monotonic()

    def speak() -> None:
        if over.wait(_PLAIN_DELAY):
            return
        _say(label)
        while not over.wait(_PLAIN_INTERVAL):
            _say(f"{label}: {time.monotonic() - begun:.0f} s")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _display(quiet: bool, transient: bool = False) -> Iterator[Progress | None]:
    """The display on the terminal, or None if there is to be none; tasks added to an existing one are removed.

    A `transient` one disappears as a whole.
    """
    global _live  # noqa: PLW0603 - a terminal has room for one
    terminal = Console(stderr=True)
    if quiet or not terminal.is_terminal:
        yield None
    elif (live := _live) is not None:
        before = set(live.task_ids)
        yield live
        for task in set(live.task_ids) - before:
            live.remove_task(task)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            _Counted(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            _Left(),
        )
        with Progress(*columns, console=terminal, transient=transient) as _live:
            try:
                yield _live
            finally:
                _live = None


class _Counted(MofNCompleteColumn):
    """Empty for a phase, which has nothing to count."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """Time left according to the rate or until the deadline, whichever is less."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        left = task.fields["deadline"] - time.monotonic()
        if left < (float("inf") if task.time_remaining is None else task.time_remaining):
            minutes, seconds = divmod(max(int(left), 0), 60)
            return Text(f"< {minutes}:{seconds:02}", style="progress.remaining")
        return Text("< ").append_text(super().render(task))
