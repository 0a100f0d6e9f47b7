import gc
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from glide_jax.data.prefetch import Prefetcher
from glide_jax.errors import GlideError


def squares(stop=None, tasks=3, delay=0.0):
    """Job i is a list that its tasks fill with i * i; later tasks of a job end first."""
    numbers = iter(int, None) if stop is None else range(stop)
    for i, _ in enumerate(numbers):
        result = [None] * tasks

        def task(row, result=result, i=i):
            time.sleep(delay * (tasks - row))
            result[row] = i * i

        yield result, [lambda row=row, task=task: task(row) for row in range(tasks)]


def open_squares(stop=None, threads=3, depth=2, stall_seconds=5.0, **job):
    return Prefetcher(squares(stop, **job), threads=threads, depth=depth, stall_seconds=stall_seconds)


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("data-")]


@pytest.mark.parametrize(("threads", "depth"), [(1, 1), (3, 2), (4, 20)])
def test_results_are_whole_and_in_order(threads, depth):
    results = list(open_squares(stop=10, threads=threads, depth=depth, delay=0.001))
    assert results == [[i * i] * 3 for i in range(10)]
    assert not loading_threads()


def test_jobs_without_tasks_are_ready_at_once():
    assert list(open_squares(stop=3, tasks=0)) == [[], [], []]


def test_work_goes_on_ahead_of_the_consumer():
    begun = []

    def jobs():
        for i in range(100):
            yield i, [lambda i=i: begun.append(i)]

    prefetcher = Prefetcher(jobs(), threads=1, depth=3, stall_seconds=5.0)
    assert next(prefetcher) == 0
    deadline = time.monotonic() + 5.0
    while len(begun) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.01)
    assert begun == [0, 1, 2, 3]
    prefetcher.close()


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1), TimeoutError("disk"), GlideError("no data")])
def test_an_error_in_a_thread_is_raised_at_its_turn(error):
    def fail():
        raise error

    def jobs():
        yield "good", [lambda: None]
        yield "bad", [lambda: None, fail]
        yield from squares()

    prefetcher = Prefetcher(jobs(), threads=2, depth=2, stall_seconds=30.0)
    assert next(prefetcher) == "good"
    with pytest.raises(type(error)) as caught:
        next(prefetcher)
    assert caught.value is error
    assert not loading_threads()
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_a_loader_that_stands_still_raises_within_the_stated_time():
    hold = threading.Event()
    prefetcher = Prefetcher(iter([("never", [hold.wait])]), threads=1, depth=1, stall_seconds=0.05)
    begun = time.monotonic()
    with pytest.raises(GlideError, match=r"no batch for 0\.05 s"):
        next(prefetcher)
    assert time.monotonic() - begun < 3.0
    hold.set()


def test_close_ends_the_threads_and_drops_waiting_work():
    prefetcher = open_squares(threads=2, depth=50, delay=0.01)
    next(prefetcher)
    begun = time.monotonic()
    prefetcher.close()
    assert time.monotonic() - begun < 1.0
    assert not loading_threads()
    prefetcher.close()


def test_threads_end_when_the_iterator_is_dropped():
    prefetcher = open_squares()
    next(prefetcher)
    assert len(loading_threads()) == 3
    del prefetcher
    gc.collect()
    deadline = time.monotonic() + 5.0
    while loading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loading_threads()


def test_a_process_ends_while_its_loader_hangs():
    program = """
        import threading
        from glide_jax.data.prefetch import Prefetcher
        never = threading.Event()
        jobs = iter([(1, []), (2, [never.wait]), (3, [never.wait])])
        prefetcher = Prefetcher(jobs, threads=1, depth=3, stall_seconds=100.0)
        assert next(prefetcher) == 1
        raise SystemExit(3)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=90, check=False)
    assert done.returncode == 3
