"""Ctrl-C and SIGTERM as a flag the loop reads between updates, so that a run always ends with a checkpoint."""

import signal
from types import FrameType
from typing import Self


class Interrupt:
    """While entered, the first signal sets `received`; a second Ctrl-C stops at once.

    Attributes:
        received: the signal that came, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
