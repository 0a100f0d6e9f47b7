"""Keyed randomness: names, order and example indices decide, batches do not."""

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.randomness import fold, normal_per_example, stream_key, uniform_per_example


def test_streams_and_seeds_are_apart():
    keys = {tuple(jax.random.key_data(stream_key(s, n)).tolist()) for s in (0, 1) for n in ("noise", "t", "dropout")}
    assert len(keys) == 6


def test_a_traced_seed_gives_the_same_key():
    traced = jax.jit(lambda seed: jax.random.key_data(stream_key(seed, "noise")))(jnp.int32(5))
    np.testing.assert_array_equal(traced, jax.random.key_data(stream_key(5, "noise")))


def test_folding_is_ordered():
    key = stream_key(0, "x")
    assert (jax.random.key_data(fold(key, 1, 2)) != jax.random.key_data(fold(key, 2, 1))).any()


def test_examples_are_independent_of_their_batch():
    key = stream_key(0, "noise")
    batch = normal_per_example(key, jnp.array([3, 8, 5]), (6, 6, 3))
    np.testing.assert_array_equal(batch[1], normal_per_example(key, jnp.array([8]), (6, 6, 3))[0])
    uniform = uniform_per_example(key, jnp.arange(1000))
    assert 0 <= uniform.min() < uniform.max() < 1
    np.testing.assert_allclose(uniform.mean(), 0.5, atol=0.05)


def test_another_default_of_jax_changes_nothing():
    expected = normal_per_example(stream_key(0, "noise"), jnp.arange(2), (3,))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(normal_per_example(stream_key(0, "noise"), jnp.arange(2), (3,)), expected)
