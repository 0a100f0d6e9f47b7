"""Work in a separate thread that reports progress and can be stopped."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import numpy as np

_PATIENCE = 0.1

T = TypeVar("T")
Images = list[np.ndarray]
Report = Callable[[int, Images], None]


class Stopped(Exception):
    """Raised in the working thread when its result is no longer wanted."""


class Turns:
    """A lock that is acquired in the order of requests, which `threading.Lock` does not guarantee."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def mine(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the lock; while waiting it calls `check` from time to time, which may raise."""
        me = object()
        with self._changed:
            self._queue.append(me)
        try:
            with self._changed:
                while self._queue[0] is not me:
                    self._changed.wait(_PATIENCE)
                    check()
            yield
        finally:
            with self._changed:
                self._queue.remove(me)
                self._changed.notify_all()


# One request at a time uses the accelerator; the next waits until a stopped one has really ended.
DEVICE = Turns()


class Progress(NamedTuple):
    """Image evaluations done, and the current prediction of the images in uint8; None before the first report."""

    done: int = 0
    images: Images | None = None


class Worker(Generic[T]):
    """Runs work in a separate thread.

    Args:
        work: the work; it calls its argument from time to time with the evaluations just done and the current images.
        interval: seconds between reports without news.

    Attributes:
        thread: the thread.
    """

    def __init__(self, work: Callable[[Report], T], interval: float = 1.0) -> None:
        self._work, self._interval = work, interval
        self._news: queue.Queue[Progress | None] = queue.Queue()
        self._stop = threading.Event()
        self._done = 0
        self._future: Future[T] = Future()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def progress(self) -> Generator[Progress, None, None]:
        """Starts the work and follows it to the end; closing this iterator stops the work.

        Raises:
            Exception: any that the work raised.
        """
        self.thread.start()
        latest: Progress | None = Progress()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    latest = self._news.get(timeout=self._interval)
                if latest is None:
                    break
                yield latest
        finally:
            self._stop.set()
        self._future.result()

    @property
    def result(self) -> T:
        """The work's result, once `progress` has ended."""
        return self._future.result()

    def _run(self) -> None:
        try:
            with DEVICE.mine(self._check):
                self._check()
                self._future.set_result(self._work(self._report))
        except BaseException as error:
            self._future.set_exception(error)
        self._news.put(None)

    def _report(self, done: int, images: Images) -> None:
        self._check()
        self._done += done
        self._news.put(Progress(self._done, images))

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped
