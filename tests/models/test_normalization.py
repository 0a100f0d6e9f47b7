"""Group norm, modulation and swish, and their gradient, against the formula differentiated by JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.models.layers import GroupNorm
from glide_jax.models.normalization import normalize

GROUPS = 4


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def textbook(x, scale, shift, swish, groups=GROUPS):
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y = ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale[:, None, None] + shift[:, None, None]
    return y * jax.nn.sigmoid(y) if swish else y


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_and_gradients_are_the_textbooks(dtype, swish):
    x = jnp.asarray(3 + draw(0, 2, 8, 6, 12), dtype)
    inputs = x.astype(jnp.float32), 1 + draw(1, 2, 12), draw(2, 2, 12)
    weight = draw(3, *x.shape)

    def ours(x, scale, shift):
        y = normalize(x.astype(dtype), scale, shift, groups=GROUPS, epsilon=1e-5, swish=swish, dtype=dtype)
        assert y.dtype == dtype
        return (y.astype(jnp.float32) * weight).sum(), y

    def exact(x, scale, shift):
        y = textbook(x, scale, shift, swish)
        return (y * weight).sum(), y

    (found, expected) = (jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(*inputs) for f in (ours, exact))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for mine, true in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), true, atol=tolerance * np.abs(true).max())


# What rounds to bfloat16 here is off by up to 1/16; the results are of size 1.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-5), (jnp.bfloat16, 2e-2)])
def test_it_is_exact_far_from_zero(dtype, tolerance):
    x = jnp.asarray(30 + draw(0, 1, 8, 8, 64), dtype)
    groups = np.asarray(x, np.float64).reshape(64, 32, 2)
    expected = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-5)
    ours = GroupNorm(64, 32, dtype)(x)
    np.testing.assert_allclose(ours.astype(jnp.float32), expected.reshape(x.shape), atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_image_of_one_colour_gives_numbers(dtype):
    norm = GroupNorm(12, 4, dtype)
    # The difference of the mean of squares and the square of the mean is negative here.
    x = jnp.full((1, 7, 9, 12), 5555, dtype)
    y, gradient = jax.value_and_grad(lambda x: norm(x, swish=True).astype(jnp.float32).mean())(x)
    assert abs(y) < 0.5
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_modulation_multiplies_and_adds_before_swish():
    norm, x, scale, shift = GroupNorm(8, 4, jnp.float32), draw(0, 2, 4, 4, 8), draw(1, 2, 8), draw(2, 2, 8)
    norm.scale[...], norm.bias[...] = 1 + draw(3, 8), draw(4, 8)
    expected = jax.nn.silu(norm(x) * (1 + scale[:, None, None]) + shift[:, None, None])
    np.testing.assert_allclose(norm(x, (scale, shift), swish=True), expected, atol=1e-5)


def test_its_gradient_can_be_differentiated_again():
    x, scale, shift = draw(0, 1, 4, 4, 8), draw(1, 1, 8), draw(2, 1, 8)
    ours = partial(normalize, groups=GROUPS, epsilon=1e-5, swish=True, dtype=jnp.float32)

    def penalty(f, x):
        return jnp.square(jax.grad(lambda x: f(x, scale, shift).sum())(x)).sum()

    found = jax.grad(partial(penalty, ours))(x)
    expected = jax.grad(partial(penalty, partial(textbook, swish=True)))(x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
