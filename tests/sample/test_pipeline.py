"""Sampling from a small model: same pictures in any batch, no recompilation, guidance off at scale 1."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.models import Glide, ModelConfig
from glide_jax.sample import LoadedModel, Pipeline, SampleOptions, Stage

CONFIG = ModelConfig(
    image_size=16, num_channels=32, num_res_blocks=1, channel_mult=(1, 1), attention_resolutions=(8,),
    num_head_channels=16, dropout=0.0, text_ctx=8, xf_width=32, xf_layers=1, xf_heads=2,
)  # fmt: skip


def random_weights(model):
    """Weights without zero layers, so that text and time reach the output."""
    leaves, tree = jax.tree.flatten(model.abstract_params())
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


@pytest.fixture(scope="module")
def loaded():
    model = Glide(CONFIG)
    return LoadedModel(Stage(model, DiffusionConfig()), random_weights(model))


def draw(loaded, prompts, batch_size=4, **options):
    return Pipeline(loaded, batch_size)(prompts, **({"num_steps": 4, "seed": 3} | options)).images


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_picture_is_the_same_in_any_batch(loaded, sampler):
    prompts = ["a cat", "a dog", "a hat", "a cup", "a pear"]
    reference = draw(loaded, prompts, batch_size=5, sampler=sampler).astype(int)
    for size in (1, 2):
        images = draw(loaded, prompts, batch_size=size, sampler=sampler).astype(int)
        assert (np.abs(images - reference) <= 1).mean() > 0.999
    assert reference.std() > 5
    assert (reference[0] != reference[1]).any()


def test_new_prompts_seeds_and_scales_do_not_recompile(loaded):
    draw(loaded, ["a cat", "a dog"], guidance_scale=2.0)
    chunks = loaded.stage._chunk._cache_size()
    draw(loaded, ["a hat", "a bee"], guidance_scale=5.0, seed=9)
    assert loaded.stage._chunk._cache_size() == chunks


def test_progress_counts_every_step_once_and_changes_nothing(loaded):
    done = []
    options = SampleOptions(num_steps=23)
    arguments = (loaded.params, ["a cat"], [0], options)
    with_progress = loaded.stage.sample(*arguments, seed=0, on_steps=done.append)
    assert sum(done) == 23
    assert len(done) > 5
    np.testing.assert_allclose(with_progress, loaded.stage.sample(*arguments, seed=0), atol=1e-4)


def test_scale_one_is_no_guidance(loaded):
    plain = draw(loaded, ["a cat"], guidance_scale=1.0).astype(int)
    assert np.abs(draw(loaded, ["a cat"], guidance_scale=1.0 + 1e-6).astype(int) - plain).max() <= 1


def test_an_upsampler_is_refused_where_a_base_is_due(loaded):
    model = Glide(replace(CONFIG, super_res=True, low_res_size=8))
    with pytest.raises(GlideError, match="upsampler"):
        Pipeline(LoadedModel(Stage(model, DiffusionConfig()), model.abstract_params()))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one prompt"),
        ("a cat", {"num_images": 0}, "num_images"),
        ("a cat", {"seed": -1}, "seed"),
        ("a cat", {"num_steps": 0}, "num_steps"),
        ("a cat", {"num_steps": 1001}, "at most 1000"),
        ("a cat", {"eta": 2.0}, "eta"),
        ("a cat", {"sampler": "ddimm"}, "did you mean ddim"),
    ],
)
def test_impossible_requests_are_refused(loaded, prompts, options, message):
    with pytest.raises(GlideError, match=message):
        Pipeline(loaded)(prompts, **options)
