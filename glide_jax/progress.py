"""Rich progress bars: rate and time left on a terminal, plain occasional lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL = 30.0

T = TypeVar("T")


class Bar:
    """One running task; `update` moves it on and replaces the figures shown beside it."""

    def __init__(self, progress: Progress | None, label: str, total: int, start: int, quiet: bool = False) -> None:
        self._progress, self._label, self._total, self._quiet = progress, label, total, quiet
        self._done, self._first, self._figures = start, start, ""
        self._begun = self._last_line = time.monotonic()
        if progress is not None:
            self._task = progress.add_task(label, total=total, completed=start, figures="")

    def update(self, advance: int = 1, figures: str = "") -> Self:
        """Advances by `advance` units and shows `figures` ("loss 0.05  41 images/s"), by default those shown before."""
        self._done += advance
        self._figures = figures or self._figures
        if self._progress is not None:
            self._progress.update(self._task, advance=advance, figures=self._figures)
        elif not self._quiet and (time.monotonic() - self._last_line > _PLAIN_INTERVAL or self._done >= self._total):
            self._last_line = time.monotonic()
            rate = (self._done - self._first) / max(self._last_line - self._begun, 1e-9)
            left = (self._total - self._done) / rate if rate else float("inf")
            line = f"{self._label} {self._done}/{self._total}  {self._figures}  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
        return self


@contextmanager
def bar(label: str, total: int, start: int = 0, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar on standard error from `start` to `total`; plain lines, 30 s apart, where that is no terminal.

    `quiet` shows nothing: one process speaks for all.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Bar(None, label, total, start, quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, label, total, start)


def tracked(label: str, items: Iterable[T], total: int, shown_from: int = 0) -> Iterator[T]:
    """The items, with a bar beside them if there are at least `shown_from`."""
    if total < shown_from:
        yield from items
        return
    with bar(label, total) as shown:
        for item in items:
            yield item
            shown.update()
