"""Ctrl-C, SIGTERM and preemption notices as a question the loop asks between steps."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """While entered, a signal asks the run to stop after a checkpoint; a second Ctrl-C stops a lone process at once.

    Of several processes any may get the signal: JAX's preemption service, which catches SIGTERM, agrees with the
    others on the step after which all of them stop.

    Attributes:
        received: the signal that came, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupted = False  # by Ctrl-C
        self._alone = jax.process_count() == 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._receive if self._alone else _as_sigterm)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def stops(self, step: int) -> bool:
        """Whether to stop after `step`; asked once per step, with the same answer in all processes."""
        if not self._alone and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.received = signal.Signals(number)


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
