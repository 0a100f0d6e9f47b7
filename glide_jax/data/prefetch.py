"""Work done by threads ahead of the one who needs it, in order."""

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Generic, Self, TypeVar

from glide_jax.errors import GlideError

T = TypeVar("T")
Task = Callable[[], None]
_Queue = queue.SimpleQueue[tuple["Future[None]", Task] | None]


class Prefetcher(Generic[T]):
    """Iterates over the results of jobs in order, while threads work on the next jobs.

    A job is a result and the tasks that must run before it is returned. An error in a task is raised by `__next__` at
    its turn. The threads are daemons, and they also end when the iterator is garbage-collected.

    Args:
        jobs: taken one at a time in the consumer's thread; may be infinite.
        threads: at least one.
        depth: results being prepared at any time, at least one.
        stall_seconds: how long `__next__` waits before it raises `GlideError`.
    """

    def __init__(
        self, jobs: Iterator[tuple[T, Sequence[Task]]], *, threads: int, depth: int, stall_seconds: float
    ) -> None:
        self._jobs, self._stall_seconds = jobs, stall_seconds
        self._tasks: _Queue = queue.SimpleQueue()
        self._ahead: deque[tuple[T, list[Future[None]]]] = deque()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"data-{i}", daemon=True) for i in range(threads)
        ]
        self._stop = weakref.finalize(self, _stop, self._tasks, threads)
        for thread in self._threads:
            thread.start()
        for _ in range(depth):
            self._begin()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._ahead or not self._stop.alive:
            self.close()
            raise StopIteration
        result, futures = self._ahead.popleft()
        try:
            self._wait(futures)
            self._begin()
        except BaseException:
            self.close()
            raise
        return result

    def close(self) -> None:
        """Drops pending tasks and ends the threads, waiting at most a second for running ones."""
        self._stop()
        self._ahead.clear()
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _wait(self, futures: Sequence[Future[None]]) -> None:
        done, unfinished = wait(futures, self._stall_seconds, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        if unfinished:
            raise GlideError(
                f"the data loader gave no batch for {self._stall_seconds:g} s; "
                "check the disk that holds the shards, or raise data.stall_seconds"
            )

    def _begin(self) -> None:
        job = next(self._jobs, None)
        if job is None:
            return
        result, tasks = job
        futures: list[Future[None]] = [Future() for _ in tasks]
        self._ahead.append((result, futures))
        for future, task in zip(futures, tasks, strict=True):
            self._tasks.put((future, task))


def _work(tasks: _Queue) -> None:
    while (item := tasks.get()) is not None:
        future, task = item
        try:
            task()
        except BaseException as error:  # errors in a thread must not be lost
            future.set_exception(error)
        else:
            future.set_result(None)
        del item, future, task  # so that an idle thread does not keep a batch alive


def _stop(tasks: _Queue, threads: int) -> None:
    while not tasks.empty():
        try:
            tasks.get_nowait()
        except queue.Empty:
            break
    for _ in range(threads):
        tasks.put(None)
