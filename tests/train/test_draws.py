"""Random numbers of training: keyed by (seed, update, example), uniform over all of [0, T)."""

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.train.draws import training_draws, validation_draws

SHAPE = (4, 4, 3)


def test_draws_of_an_example_do_not_depend_on_its_batch():
    draws = jax.jit(training_draws(3, 1000), static_argnums=2)
    together = draws(jnp.int32(7), jnp.arange(5, 9), SHAPE)
    alone = draws(jnp.int32(7), jnp.array([6]), SHAPE)
    np.testing.assert_array_equal(together.noise[1], alone.noise[0])
    assert together.t[1] == alone.t[0]
    np.testing.assert_array_equal(
        jax.random.key_data(together.dropout_keys)[1], jax.random.key_data(alone.dropout_keys)[0]
    )


def test_seed_step_and_example_all_matter():
    def first(seed, step, example):
        return training_draws(seed, 1000)(jnp.int32(step), jnp.array([example]), SHAPE).noise[0, 0, 0, 0]

    assert len({float(first(*case)) for case in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


def test_every_timestep_is_drawn_equally_often():
    t = np.asarray(training_draws(0, 10)(jnp.int32(0), jnp.arange(20_000), ()).t)
    counts = np.bincount(t, minlength=10)
    assert len(counts) == 10  # the last timestep too
    np.testing.assert_allclose(counts, 2000, atol=200)


def test_validation_draws_cover_the_timesteps_evenly_and_never_change():
    draws = validation_draws(1000)
    first, again = (draws(jnp.int32(step), jnp.arange(64), SHAPE) for step in (0, 5))
    np.testing.assert_array_equal(first.noise, again.noise)
    assert np.abs(np.histogram(first.t, bins=8, range=(0, 1000))[0] - 8).max() <= 1
    assert first.dropout_keys is None
