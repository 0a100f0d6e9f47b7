"""What training examples are conditioned on: spoilt small pictures, known parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from glide_jax.randomness import keys_per_example
from glide_jax.train.conditioning import ConditioningConfig, _blur, condition

KEYS = keys_per_example(jax.random.key(0), jnp.arange(64))
SMALL = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (64, 8, 8, 3)), jnp.float32)
LARGE = jnp.zeros((64, 16, 16, 3))
MODEL = ModelConfig(
    image_size=16, num_channels=64, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), super_res=True,
    low_res_size=8, xf_width=0,
)  # fmt: skip


def small(**options):
    return condition(ConditioningConfig(**options), MODEL, None, LARGE, SMALL, KEYS).low_res


def test_pictures_are_left_alone_by_default():
    given = condition(ConditioningConfig(), MODEL, None, LARGE, SMALL, KEYS)
    np.testing.assert_array_equal(given.low_res, SMALL)
    assert given.inpaint_image is None
    assert given.inpaint_mask is None


def test_noise_is_as_strong_as_said_and_differs_between_pictures():
    added = np.asarray(small(low_res_noise=0.5) - SMALL).std((1, 2, 3))
    assert added.max() < 0.6
    assert 0.15 < added.mean() < 0.35  # evenly from 0 to 0.5
    assert added.std() > 0.05


def test_the_blur_is_gaussian():
    sigma = jnp.linspace(0.3, 1.5, 64).reshape(64, 1, 1, 1)
    ours = _blur(SMALL, sigma)
    for row in (0, 31, 63):
        expected = SMALL[row]
        for axis in (0, 1):
            expected = gaussian_filter1d(expected, float(sigma[row, 0, 0, 0]), axis=axis, mode="nearest", radius=3)
        np.testing.assert_allclose(ours[row], expected, atol=1e-5)


def test_blurred_pictures_are_smoother():
    rough = np.abs(np.diff(small(low_res_blur=1.5), axis=1)).mean((1, 2, 3))
    assert (rough <= np.abs(np.diff(SMALL, axis=1)).mean((1, 2, 3)) + 1e-6).all()
    assert rough.std() > 0.05


def test_an_inpainting_model_sees_the_picture_and_where_it_is_known():
    model = ModelConfig(image_size=16, num_channels=64, channel_mult=(1,), attention_resolutions=(), inpaint=True)
    pictures = jnp.asarray(np.random.RandomState(1).uniform(-1, 1, (64, 16, 16, 3)), jnp.float32)
    given = condition(ConditioningConfig(), model, None, pictures, None, KEYS)
    np.testing.assert_array_equal(given.inpaint_image, pictures)
    assert given.inpaint_mask.shape == (64, 16, 16, 1)
    assert 0.2 < float(given.inpaint_mask.mean()) < 0.9


@pytest.mark.parametrize("options", [{"low_res_blur": 9.0}, {"low_res_blur": -1.0}, {"low_res_noise": -0.1}])
def test_impossible_strengths_are_refused(options):
    with pytest.raises(GlideError, match=r"conditioning\.low_res"):
        ConditioningConfig(**options)
