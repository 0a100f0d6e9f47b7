"""Conditioning of training examples: augmented low-resolution inputs, inpainting masks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from glide_jax.randomness import keys_per_example
from glide_jax.train import augment
from glide_jax.train.config import ConditioningConfig, MaskConfig

# One operation at a time they take a hundred programs.
condition = jax.jit(augment.condition, static_argnums=(0, 1))
random_masks = jax.jit(augment.random_masks, static_argnums=(0, 2))

KEYS = keys_per_example(jax.random.key(0), jnp.arange(64))
SMALL = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (64, 8, 8, 3)), jnp.float32)
LARGE = jnp.zeros((64, 16, 16, 3))
MODEL = ModelConfig(
    image_size=16, num_channels=64, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), super_res=True,
    low_res_size=8, xf_width=0,
)  # fmt: skip


def small(**options):
    return condition(ConditioningConfig(**options), MODEL, None, LARGE, SMALL, KEYS).low_res


def test_images_are_left_alone_by_default():
    given = condition(ConditioningConfig(), MODEL, None, LARGE, SMALL, KEYS)
    np.testing.assert_array_equal(given.low_res, SMALL)
    assert given.inpaint_image is None
    assert given.inpaint_mask is None


def test_noise_is_as_strong_as_said_and_differs_between_images():
    added = np.asarray(small(low_res_noise=0.5) - SMALL).std((1, 2, 3))
    assert added.max() < 0.6
    assert 0.15 < added.mean() < 0.35  # evenly from 0 to 0.5
    assert added.std() > 0.05


def test_the_blur_is_gaussian():
    sigma = jnp.linspace(0.3, 1.5, 64).reshape(64, 1, 1, 1)
    ours = jax.jit(augment._blur)(SMALL, sigma)
    for row in (0, 31, 63):
        expected = SMALL[row]
        for axis in (0, 1):
            expected = gaussian_filter1d(expected, float(sigma[row, 0, 0, 0]), axis=axis, mode="nearest", radius=3)
        np.testing.assert_allclose(ours[row], expected, atol=1e-5)


def test_blurred_images_are_smoother():
    rough = np.abs(np.diff(small(low_res_blur=1.5), axis=1)).mean((1, 2, 3))
    assert (rough <= np.abs(np.diff(SMALL, axis=1)).mean((1, 2, 3)) + 1e-6).all()
    assert rough.std() > 0.05


def test_an_inpainting_model_sees_the_image_and_where_it_is_known():
    model = ModelConfig(image_size=16, num_channels=64, channel_mult=(1,), attention_resolutions=(), inpaint=True)
    images = jnp.asarray(np.random.RandomState(1).uniform(-1, 1, (64, 16, 16, 3)), jnp.float32)
    given = condition(ConditioningConfig(), model, None, images, None, KEYS)
    np.testing.assert_array_equal(given.inpaint_image, images)
    assert given.inpaint_mask.shape == (64, 16, 16, 1)
    assert 0.2 < float(given.inpaint_mask.mean()) < 0.9


@pytest.mark.parametrize("options", [{"low_res_blur": 9.0}, {"low_res_blur": -1.0}, {"low_res_noise": -0.1}])
def test_impossible_strengths_are_refused(options):
    with pytest.raises(GlideError, match=r"conditioning\.low_res"):
        ConditioningConfig(**options)


@cache
def masks(config, count=400, size=(32, 32)):
    keys = keys_per_example(jax.random.key(0), jnp.arange(count))
    return np.asarray(random_masks(config, keys, size))


def test_kinds_come_in_their_shares():
    sampled = masks(MaskConfig())
    assert sampled.shape == (400, 32, 32, 1)
    assert set(np.unique(sampled)) == {0.0, 1.0}
    known = sampled.mean((1, 2, 3))
    assert abs((known == 0).mean() - 0.15) < 0.05
    assert abs((known == 1).mean() - 0.05) < 0.03
    assert 0.3 < known[(known > 0) & (known < 1)].mean() < 0.9


def test_a_share_of_one_kind_alone():
    assert masks(MaskConfig(0, 0, 1, 0), 8).max() == 0
    assert masks(MaskConfig(0, 0, 0, 2), 8).min() == 1
    for config in (MaskConfig(1, 0, 0, 0), MaskConfig(0, 1, 0, 0)):
        known = masks(config, 60).mean((1, 2, 3))
        assert known.max() < 1
        assert known.min() > 0
        assert known.std() > 0.05


def test_one_rectangle_is_a_rectangle():
    """Of those with a single hole: its pixels fill their own bounding box."""
    filled = 0
    for mask in masks(MaskConfig(1, 0, 0, 0), 60):
        rows, columns = (np.flatnonzero((mask[..., 0] == 0).any(axis)) for axis in (1, 0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        filled += (box == 0).all()
    assert filled > 10


def test_masks_of_another_shape_are_the_squares_stretched():
    square, high = masks(MaskConfig()), masks(MaskConfig(), size=(64, 16))
    stretched = high.reshape(400, 32, 2, 16).mean(2).repeat(2, axis=2)
    assert np.abs(stretched - square[..., 0]).mean() < 0.05


def test_a_mask_depends_on_its_key_alone():
    together = masks(MaskConfig())
    for i in range(6):
        alone = random_masks(MaskConfig(), keys_per_example(jax.random.key(0), jnp.arange(i, i + 1)), (32, 32))
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize(
    ("shares", "message"), [((0, 0, 0, 0), "shares must not all be 0"), ((1, -1, 1, 1), "strokes must")]
)
def test_impossible_shares_are_refused(shares, message):
    with pytest.raises(GlideError, match=rf"^train\.conditioning\.masks.*{message}"):
        MaskConfig(*shares)
