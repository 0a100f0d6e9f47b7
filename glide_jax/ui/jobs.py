"""Work in a thread of its own: it tells how far it is, and can be stopped."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import numpy as np

# One request at a time has the accelerator; the next waits until a stopped one has really ended.
_DEVICE = threading.Lock()
_PATIENCE = 0.1

T = TypeVar("T")
Images = list[np.ndarray]
Report = Callable[[int, Images], None]


class Stopped(Exception):
    """Raised in the thread at work when nobody wants the result any more."""


class Progress(NamedTuple):
    """Image evaluations done, and the uint8 images as predicted by then; None before the first report."""

    done: int = 0
    images: Images | None = None


class Worker(Generic[T]):
    """Work in a thread of its own.

    Args:
        work: does it; it calls its argument now and then with the evaluations just done and the images by now.
        interval: seconds between signs of life where there is no news.

    Attributes:
        thread: where it runs.
    """

    def __init__(self, work: Callable[[Report], T], interval: float = 1.0) -> None:
        self._work, self._interval = work, interval
        self._news: queue.Queue[Progress | None] = queue.Queue()
        self._stop = threading.Event()
        self._done = 0
        self._future: Future[T] = Future()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def progress(self) -> Generator[Progress, None, None]:
        """Starts the work and follows it to its end; closing this iterator stops the work.

        Raises:
            Exception: whatever the work raised.
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
        """What the work returned, once `progress` is through."""
        return self._future.result()

    def _run(self) -> None:
        try:
            while not _DEVICE.acquire(timeout=_PATIENCE):
                self._check()
            try:
                self._check()
                self._future.set_result(self._work(self._report))
            finally:
                _DEVICE.release()
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
