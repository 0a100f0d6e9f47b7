import contextlib
import threading
import time

import numpy as np
import pytest

from glide_jax.ui.worker import Stopped, Turns, Worker


def concurrently(*calls):
    """What each call returns, all begun at once."""
    results = [None] * len(calls)

    def run(i):
        results[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def ended(job):
    job.thread.join(10)
    return not job.thread.is_alive()


def image(value):
    return [np.full((2, 2, 3), value, np.uint8)]


def test_reports_come_in_order_and_add_up():
    def work(report):
        for value in range(5):
            report(2, image(value))
        return "done"

    job = Worker(work)
    news = list(job.progress())
    assert [each.done for each in news] == [2, 4, 6, 8, 10]
    assert [each.images[0][0, 0, 0] for each in news] == [0, 1, 2, 3, 4]
    assert job.result == "done"


def test_there_is_a_sign_of_life_while_there_is_no_news():
    ready = threading.Event()
    job = Worker(lambda report: ready.wait(10), interval=0.05)
    progress = job.progress()
    assert next(progress).done == next(progress).done == 0
    ready.set()
    list(progress)


def test_a_stop_ends_the_work_at_its_next_report():
    reported, go_on = [], threading.Event()

    def work(report):
        for value in range(100):
            report(1, image(value))
            reported.append(value)
            go_on.wait(10)

    job = Worker(work)
    progress = job.progress()
    next(progress)
    progress.close()
    go_on.set()
    assert ended(job)
    assert reported == [0]


def test_what_the_work_raises_is_raised():
    def work(report):
        raise ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError, match="oh"):
        list(Worker(work).progress())


def test_one_has_the_device_at_a_time_and_a_waiting_one_can_be_stopped():
    inside, most, lock = [0], [0], threading.Lock()

    def work(report):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.1)
        with lock:
            inside[0] -= 1

    concurrently(*[lambda: list(Worker(work).progress()) for _ in range(3)])
    assert most[0] == 1

    release = threading.Event()
    first, second = Worker(lambda report: release.wait(10), interval=0.05), Worker(work, interval=0.05)
    holding, waiting = first.progress(), second.progress()
    next(holding), next(waiting)
    waiting.close()
    assert ended(second)
    release.set()
    list(holding)


def test_turns_come_in_the_order_they_were_asked_for_and_who_gives_up_holds_nobody_up():
    turns, had = Turns(), []

    def ask(number):
        def give_up():
            if number == 3:
                raise Stopped

        with contextlib.suppress(Stopped), turns.mine(give_up):
            had.append(number)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(8)]
    with turns.mine():
        for number, thread in enumerate(threads):
            thread.start()
            if number == 3:
                thread.join(10)
            waiting = 1 + number + (number < 3)
            while len(turns._queue) < waiting:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert had == [0, 1, 2, 4, 5, 6, 7]
