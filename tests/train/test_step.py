"""One step: what moves, in which type; bfloat16 beside float32, micro-batches beside the whole, random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glide_jax.errors import GlideError
from glide_jax.train.config import TrainConfig
from glide_jax.train.step import training_noise, validation_noise
from tests.tiny.training import make_batch, make_config, make_params, make_program, make_state, timed_config, updated

FLOAT32, BFLOAT16 = make_config(), make_config(dtype="bfloat16")


def gradients(config):
    """Adam's first moment after one update is the clipped gradient, but for a factor."""
    after, _ = updated(config, make_state(config), make_batch())
    return [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(optax.tree.get(after["opt"], "mu"))]


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_bfloat16_gradients_point_where_float32_ones_do():
    half, single = gradients(BFLOAT16), gradients(FLOAT32)
    assert 0.999 <= cosine(np.concatenate(half), np.concatenate(single)) < 1.0
    # A key's bias shifts all scores alike: its gradient is rounding alone.
    largest = max(np.linalg.norm(b) for b in single)
    worst = min(cosine(a, b) for a, b in zip(half, single, strict=True) if np.linalg.norm(b) > 1e-2 * largest)
    assert worst >= 0.99


def test_bfloat16_training_keeps_a_float32_state_that_moves():
    before = make_state(BFLOAT16)
    after, _ = updated(BFLOAT16, before, make_batch())
    for tree in ("params", "ema", "opt"):
        assert {leaf.dtype for leaf in jax.tree.leaves(after[tree]) if leaf.ndim} == {jnp.dtype("float32")}
    old, ema, new = (
        tree["unet"]["down"]["0"]["res"]["in_conv"]["kernel"]
        for tree in (before["params"], after["ema"], after["params"])
    )
    assert (old != new).mean() > 0.5
    # The decay of the first update is (1 + 1) / (10 + 1).
    np.testing.assert_allclose(ema, 2 / 11 * old + 9 / 11 * new, atol=1e-6)


def test_dropout_differs_from_update_to_update_and_example_to_example():
    state = make_state(FLOAT32)
    losses = [updated(FLOAT32, state, make_batch() | {"index": np.arange(8, dtype=np.int32) + i})[1] for i in (0, 8)]
    later = updated(FLOAT32, state | {"step": jnp.int32(5)}, make_batch())[1]
    assert len({float(metrics["loss"]) for metrics in (*losses, later)}) == 3


def test_validation_counts_real_images_only():
    program = make_program(FLOAT32)
    validate, params = program.validation_step, program.state_from(make_params())["params"]

    def validated(*weights):
        return validate(params, make_batch() | {"weight": np.array(weights + (0.0,) * 6, np.float32)})

    (total, count), (first, one), (second, _) = validated(1.0, 1.0), validated(1.0, 0.0), validated(0.0, 1.0)
    assert (count, one) == (2, 1)
    np.testing.assert_allclose(total, first + second, rtol=1e-5)


def test_four_micro_batches_equal_the_whole_batch():
    configs = [make_config(gradient_accumulation_steps=steps) for steps in (1, 4)]
    (whole, expected), (split, metrics) = (updated(config, make_state(config), make_batch()) for config in configs)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    assert int(split["step"]) == int(whole["step"]) == 1
    for tree in ("params", "ema"):
        for a, b in zip(jax.tree.leaves(split[tree]), jax.tree.leaves(whole[tree]), strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_a_cosine_over_time_ends_at_zero_by_the_latest_clock():
    state = make_state(timed_config())

    def moved(*used):
        """How far a weight goes, and the share of the time that the step took for true."""
        after, metrics = updated(timed_config(), state, make_batch() | {"used": np.float32(used)})
        old, new = (np.float64(tree["params"]["unet"]["input_conv"]["kernel"]) for tree in (state, after))
        return new - old, float(metrics["time_used"])

    (whole, begun), (half, late), (none, over) = moved(*[0] * 8), moved(0, 0.25, 0.5, *[0.0] * 5), moved(*[1.25] * 8)
    assert (begun, late, over) == (0, 0.5, 1.25)
    assert np.abs(whole).max() > 1e-4
    np.testing.assert_allclose(half, whole / 2, atol=1e-3 * np.abs(whole).max())
    assert np.abs(none).max() == 0


def test_a_batch_that_does_not_divide_is_refused():
    refusal = r"batch_size 8 cannot be split into train.gradient_accumulation_steps=3 equal micro-batches: use 6 or 9$"
    with pytest.raises(GlideError, match=refusal):
        TrainConfig(batch_size=8, gradient_accumulation_steps=3)


SHAPE = (4, 4, 3)


def test_random_numbers_of_an_example_do_not_depend_on_its_batch():
    noise_fn = jax.jit(training_noise(3, 1000), static_argnums=2)
    together = noise_fn(jnp.int32(7), jnp.arange(5, 9), SHAPE)
    alone = noise_fn(jnp.int32(7), jnp.array([6]), SHAPE)
    np.testing.assert_array_equal(together.noise[1], alone.noise[0])
    assert together.t[1] == alone.t[0]
    np.testing.assert_array_equal(
        jax.random.key_data(together.dropout_keys)[1], jax.random.key_data(alone.dropout_keys)[0]
    )


def test_seed_step_and_example_all_matter():
    def first(seed, step, example):
        return training_noise(seed, 1000)(jnp.int32(step), jnp.array([example]), SHAPE).noise[0, 0, 0, 0]

    assert len({float(first(*case)) for case in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


def test_every_timestep_comes_equally_often():
    t = np.asarray(training_noise(0, 10)(jnp.int32(0), jnp.arange(20_000), ()).t)
    counts = np.bincount(t, minlength=10)
    assert len(counts) == 10  # the last timestep too
    np.testing.assert_allclose(counts, 2000, atol=200)


def test_logit_normal_timesteps_are_those_of_a_squashed_normal():
    t = np.asarray(training_noise(0, 1000, "logit_normal")(jnp.int32(0), jnp.arange(20_000), ()).t)
    quartile = 1000 / (1 + np.exp(0.6745))  # where a quarter of a standard normal ends, at -0.6745
    np.testing.assert_allclose(np.quantile(t, [0.25, 0.5, 0.75]), [quartile, 500, 1000 - quartile], atol=8)
    assert (t.min(), t.max()) >= (0, 900)


def test_validation_noise_cover_the_timesteps_evenly_and_never_changes():
    noise_fn = validation_noise(1000)
    first, again = (noise_fn(jnp.int32(step), jnp.arange(64), SHAPE) for step in (0, 5))
    np.testing.assert_array_equal(first.noise, again.noise)
    assert np.abs(np.histogram(first.t, bins=8, range=(0, 1000))[0] - 8).max() <= 1
    far = noise_fn(jnp.int32(0), 10**6 + jnp.arange(64), ())
    assert np.abs(np.histogram(far.t, bins=8, range=(0, 1000))[0] - 8).max() <= 1
    assert len({*far.t.tolist()}) == 64
    assert first.dropout_keys is None
