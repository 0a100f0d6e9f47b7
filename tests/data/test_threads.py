import time

import pytest

from glide_jax.data.threads import map_samples


def test_results_are_in_the_order_of_the_runs():
    runs = [range(3), range(5000, 7500), range(0)]
    assert list(map_samples("squares", lambda i: i * i, runs)) == [i * i for run in runs for i in run]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("damaged")])
def test_an_error_ends_it_after_a_call_a_thread(error):
    calls = []

    def slow(i):
        calls.append(i)
        if i == 20:
            raise error
        time.sleep(0.001)

    with pytest.raises(type(error)):
        list(map_samples("slow", slow, [range(200_000)]))
    assert len(calls) < 10_000


def test_an_interrupted_consumer_ends_it_too():
    calls = []
    results = map_samples("slow", lambda i: calls.append(i) or time.sleep(0.001), [range(20_000)])
    next(results)
    results.close()
    before = len(calls)
    time.sleep(0.01)
    assert len(calls) == before < 20_000
