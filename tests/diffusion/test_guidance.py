"""Classifier-free guidance on a network whose output is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.denoiser import denoiser
from glide_jax.diffusion.forward import Level
from glide_jax.diffusion.guidance import classifier_free


def paired_network(x, t):
    """Noise 1 + t and variance 0.5 under the condition, noise 0.2 and variance -0.5 without it."""
    given = jnp.arange(len(x)) < len(x) // 2
    eps = jnp.where(given, 1.0 + t, 0.2)[:, None, None, None] * jnp.ones_like(x)
    return jnp.concatenate([eps, jnp.where(given, 0.5, -0.5)[:, None, None, None] * jnp.ones_like(x)], axis=-1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_noise_and_conditional_variance(scale):
    x, t = jnp.zeros((2, 4, 4, 3)), jnp.array([0.0, 7.0])
    output = classifier_free(paired_network, jnp.float32(scale))(x, t)
    for row, conditional in enumerate([1.0, 8.0]):
        np.testing.assert_allclose(output[row, ..., :3], 0.2 + scale * (conditional - 0.2), rtol=1e-6)
    np.testing.assert_array_equal(output[..., 3:], 0.5)


def test_a_denoiser_solves_for_x0_and_thresholds_it():
    level = Level(jnp.float32(500.0), jnp.float32(0.6), jnp.float32(0.8))
    x_t = jnp.full((1, 2, 2, 3), 0.5).at[..., 0].set(3.0)

    def network(x, t):
        assert t.shape == (1,)
        return jnp.concatenate([jnp.full_like(x, 0.25), jnp.full_like(x, -1.0)], axis=-1)

    prediction, carry = denoiser(network)(x_t, level, "memory")
    assert carry == "memory"
    np.testing.assert_allclose(prediction.x_0[..., 1:], (0.5 - 0.8 * 0.25) / 0.6, rtol=1e-6)
    np.testing.assert_array_equal(prediction.x_0[..., 0], 1.0)
    np.testing.assert_array_equal(prediction.eps, 0.25)
    np.testing.assert_array_equal(prediction.variance, 0.0)
