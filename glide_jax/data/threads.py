"""One function over many samples by threads, for work that is reading files."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from glide_jax import progress

_THREADS = 16
_CHUNK = 1000  # samples that a thread takes at a time: a future for each of ten million would take 20 GB
_BAR_FROM = 4000  # samples for a progress bar to be worth showing

T = TypeVar("T")


def map_samples(label: str, function: Callable[[int], T], runs: Sequence[range]) -> Iterator[T]:
    """The results of `function` for all numbers of some runs, in order, with a progress bar.

    An error or an interrupt ends it, after no more than the call that each thread is in.
    """
    stopped = threading.Event()

    def results(chunk: range) -> list[T]:
        return [function(number) for number in chunk if not stopped.is_set()]

    chunks = [run[at : at + _CHUNK] for run in runs for at in range(0, len(run), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            each = (result for found in pool.map(results, chunks) for result in found)
            yield from progress.tracked(label, each, sum(map(len, chunks)), _BAR_FROM)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
