import itertools
import zlib
from collections import Counter

import numpy as np
import pytest

from glide_jax.data.order import Order, generator


def epoch_of(order, size, epoch):
    return [order[example] for example in range(epoch * size, (epoch + 1) * size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 64, 65, 1000])
def test_every_epoch_holds_every_sample_once(size):
    order = Order(size, seed=1)
    for epoch in (0, 1, 10**9):
        assert sorted(epoch_of(order, size, epoch)) == list(range(size))


def test_epochs_and_seeds_give_different_orders():
    orders = [tuple(epoch_of(Order(50, seed), 50, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_the_order_never_changes():
    # A change here would make every interrupted run resume with other data.
    assert [Order(2352, seed=0)[example] for example in (0, 1, 2, 2351, 2352, 10**12)] == [
        790, 1358, 1123, 1466, 141, 551
    ]  # fmt: skip


def test_positions_are_spread_evenly_over_the_samples():
    size, epochs = 10, 1000
    order = Order(size, seed=7)
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[range(size), epoch_of(order, size, epoch)] += 1
    expected = epochs / size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 81 + 5 * np.sqrt(2 * 81)  # 81 degrees of freedom


def test_small_sets_come_in_every_order():
    counts = Counter(tuple(epoch_of(Order(4, seed), 4, 0)) for seed in range(2400))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert max(counts.values()) < 3 * min(counts.values())


def test_neighbours_do_not_stay_neighbours():
    order = np.array(epoch_of(Order(5000, seed=3), 5000, 0))
    assert (np.abs(np.diff(order)) == 1).mean() < 0.002
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05


def test_a_huge_set_needs_no_table():
    order = Order(5 * 10**9, seed=0)
    numbers = [order[example] for example in range(10**15, 10**15 + 1000)]
    assert len(set(numbers)) == 1000
    assert min(numbers) < 10**8 < 4.9 * 10**9 < max(numbers) < 5 * 10**9


def numbers(*key):
    return generator(*key).random(64).tolist()


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1])
def test_a_generator_is_that_of_its_key_and_counter(seed):
    key = seed << 32 | zlib.crc32(b"crop")
    expected = np.random.Generator(np.random.Philox(key=key, counter=(10**15 + 7) << 128))
    assert numbers(seed, "crop", 10**15 + 7) == expected.random(64).tolist()


def test_seeds_streams_and_examples_never_share_numbers():
    keys = [(seed, stream, g) for seed in (0, 1, 2**31 - 1) for stream in ("crop", "hflip") for g in (0, 1, 10**15)]
    found = [number for key in keys for number in numbers(*key)]
    assert len(set(found)) == len(found) == 64 * 18


def test_the_first_numbers_of_consecutive_examples_are_uniform():
    first = np.array([generator(0, "uncond", g).random() for g in range(2000)])
    np.testing.assert_allclose(np.quantile(first, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.08
