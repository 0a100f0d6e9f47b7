"""One model's steps: which of them run, where guidance acts, and their gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.sample import Pipeline, SampleOptions
from glide_jax.tokenizer import GlideTokenizer
from tests.tiny.models import random_model


@pytest.fixture(scope="module")
def loaded():
    return random_model()


@pytest.mark.parametrize(
    ("num_steps", "strength", "run"), [(1, 0.5, 1), (2, 0.5, 1), (5, 0.5, 3), (9, 0.5, 5), (10, 0.3, 3), (10, 0.01, 1)]
)
def test_strength_is_the_share_of_steps_to_run(loaded, num_steps, strength, run):
    options = SampleOptions.of(num_steps=num_steps, strength=strength, schedule="trailing")
    assert len(loaded.stage.levels(options, from_image=True)) == run


def test_guidance_reaches_its_interval_s_upper_end_but_not_its_lower(loaded):
    options = {"num_steps": 4, "schedule": "karras", "sigma_max": 15.0, "guidance_scale": 10.0}

    def images(low, high):
        return Pipeline(loaded)("a cat", guidance_interval=(low, high), **options).images

    everywhere, nowhere = images(0.0, 1e4), images(0.0, 1e-4)
    np.testing.assert_array_equal(images(0.0, 15.0), everywhere)
    np.testing.assert_array_equal(images(15.0, 1e4), nowhere)
    assert (everywhere != nowhere).any()


def test_a_gradient_goes_through_the_whole_sampling(loaded):
    """The derivative of the sum of all pixels by a factor of the text, against finite differences."""
    stage, options = loaded.stage, SampleOptions.of(num_steps=3, guidance_scale=2.0, thresholding="none")
    tokens, mask = GlideTokenizer().padded(["a cat", ""], stage.model.config.text_ctx)
    text, against = (
        stage.model.encode_text(loaded.params, jnp.asarray(tokens[i : i + 1]), jnp.asarray(mask[i : i + 1]))
        for i in (0, 1)
    )

    @jax.jit
    def total(scale):
        scaled = jax.tree.map(lambda x: scale * x if x.dtype == jnp.float32 else x, text)
        seed, indices = jnp.int32(3), jnp.zeros(1, jnp.int32)
        return stage.generate(loaded.params, scaled, against, options, seed=seed, indices=indices).sum()

    slope = (total(1.01) - total(0.99)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(total))(1.0), slope, rtol=0.05)
