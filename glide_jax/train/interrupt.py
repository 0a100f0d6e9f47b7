"""Ctrl-C, SIGTERM and preemption notices: the loop asks for them between steps, or they end the process at once."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from glide_jax import progress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGACTION_BYTES = 1024  # no system's struct sigaction is larger


class Stopped(Exception):
    """A signal arrived during a wait that it may cut short."""


class Interrupt:
    """While entered, a signal asks the run to stop after a checkpoint; a second Ctrl-C stops a lone process at once.

    With several processes, any of them may get the signal: JAX's preemption service catches SIGTERM and makes all
    processes agree on the step after which to stop.

    Attributes:
        received: the signal that came, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupted = False  # by Ctrl-C
        self._waiting = False
        self._alone = jax.process_count() == 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # signals are the main thread's
        for number in SIGNALS if self._alone else (signal.SIGINT,):
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

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surrounds a wait of the main thread, say for data: a signal to a single-process run ends it by `Stopped`."""
        self._waiting = True
        try:
            if self.received:
                raise Stopped
            yield
        finally:
            self._waiting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.received = signal.Signals(number)
        if self._waiting:
            raise Stopped


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def ending_at_once(last: Callable[[], str], signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Inside, a signal ends this process with exit code 128 + its number, whatever the main thread is doing.

    Compiling is a single call that can take minutes, during which Python runs no signal handler, so a thread answers. A
    second Ctrl-C does not wait for `last`.

    Args:
        last: called in that thread: does what remains to be done, and returns what to print after "stopped by SIGTERM".
        signals: the signals answered, if this is the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    actions = {number: (signal.getsignal(number), _action(number)) for number in signals}
    thread = threading.Thread(target=_listen, args=(reader, last, signals), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, _leave_to_thread)
    try:
        yield
    finally:
        for number, (handler, action) in actions.items():
            signal.signal(number, handler)
            _set_action(number, action)  # JAX's preemption service sets a handler unknown to Python
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()  # forever, if a signal came
        os.close(reader)


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    pass


def _listen(reader: int, last: Callable[[], str], signals: Sequence[signal.Signals]) -> None:
    ending: threading.Thread | None = None
    while byte := os.read(reader, 1):
        number = signal.Signals(byte[0])
        if number not in signals:
            continue
        if ending is None:
            ending = threading.Thread(target=_end, args=(number, last), daemon=True)
            ending.start()
        elif number == signal.SIGINT:
            os._exit(128 + number)
    if ending is not None:
        ending.join()


def _end(number: signal.Signals, last: Callable[[], str]) -> None:
    try:
        said = f"stopped by {number.name} {last()}"
        progress.stop()
        print(said, flush=True)
    except Exception as error:  # whatever it is, the process ends
        print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(128 + number)


def _action(number: int) -> ctypes.Array[ctypes.c_char]:
    """The process's action on a signal, as the operating system has it."""
    action = ctypes.create_string_buffer(_SIGACTION_BYTES)
    ctypes.CDLL(None).sigaction(number, None, action)
    return action


def _set_action(number: int, action: ctypes.Array[ctypes.c_char]) -> None:
    ctypes.CDLL(None).sigaction(number, action, None)
