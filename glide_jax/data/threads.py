"""Applies a function to many samples in threads, for work that mostly reads files."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from glide_jax import progress

_THREADS = 16
_CHUNK = 1000  # the most samples a thread takes at a time; a future for each would take 2 KB
_BAR_FROM = 4000  # samples; with fewer, no progress bar

T = TypeVar("T")


def map_samples(label: str, function: Callable[[int], T], runs: Sequence[range]) -> Generator[T, None, None]:
    """The results of `function` for all numbers in the ranges, in order, with a progress bar.

    An error or an interrupt ends it as soon as each thread has finished its current call.
    """
    stopped = threading.Event()

    def results(chunk: range) -> list[T]:
        return [function(number) for number in chunk if not stopped.is_set()]

    total = sum(map(len, runs))
    size = min(_CHUNK, total // _THREADS + 1)
    chunks = [run[at : at + size] for run in runs for at in range(0, len(run), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            each = (result for found in pool.map(results, chunks) for result in found)
            yield from progress.tracked(label, each, total, _BAR_FROM)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
