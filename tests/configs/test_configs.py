"""Every page of configs/, and the edge between ml_collections and the dataclasses."""

import importlib
import math
from pathlib import Path

import jax
import pytest

from glide_jax.config import default_config, from_ml_collections
from glide_jax.errors import GlideError
from glide_jax.models import Glide, ModelConfig
from glide_jax.train import RunConfig

PAGES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py"))
PUBLISHED = {
    "base": 385_030_726,
    "upsample": 398_361_286,
    "base-inpaint": 385_037_638,
    "upsample-inpaint": 398_368_198,
}


def page(name):
    return from_ml_collections(importlib.import_module(f"configs.{name}").get_config())


def parameters(config):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(Glide(config).abstract_params()))


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_a_valid_run(name):
    assert page(name).run_dir == f"runs/{name}"


FULL_PAGES = {
    "base64": "base",
    "upsample256": "upsample",
    "base64_inpaint": "base-inpaint",
    "upsample256_inpaint": "upsample-inpaint",
}


@pytest.mark.parametrize(("name", "kind"), FULL_PAGES.items())
def test_the_full_pages_are_the_published_models(name, kind):
    config = page(name)
    assert parameters(config.model) == PUBLISHED[kind]
    assert config.model == ModelConfig.published(kind)
    assert config.diffusion.noise_schedule == ("linear" if kind.startswith("upsample") else "squaredcos_cap_v2")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_parameter_counts_of_the_published_models(kind):
    assert parameters(ModelConfig.published(kind)) == PUBLISHED[kind]


def test_fine_tuning_defaults():
    base, upsample = page("base64"), page("upsample256")
    for config in (base, upsample):
        optimizer = config.train.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.ema_decay) == (1e-4, 0.0, 0.9999)
    assert (base.data.uncond_p, upsample.data.uncond_p) == (0.2, 0.0)


def test_the_defaults_of_the_page_are_those_of_the_dataclasses():
    assert from_ml_collections(default_config()) == RunConfig()


def test_a_changed_size_takes_its_own_channel_multipliers():
    config = default_config()
    config.model.image_size = 256
    assert from_ml_collections(config).model.channel_mult == (1, 1, 2, 2, 4, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch_size", "8", "train.batch_size cannot be '8': it takes int"),
        ("train.batch_size", True, "train.batch_size cannot be True"),
        ("train.remat", "some", "'none', 'full', 'dots'"),
        ("train", 3, "config.train is a group"),
        ("model.attention_resolutions", ("8",), "config.model.attention_resolutions cannot be"),
        ("model.image_size", 48, "model.channel_mult must be given"),
        ("model.dropout", 1.0, r"in \[0, 1\)"),
        ("train.optimizer.ema_decay", 1.0, "optimizer.ema_decay"),
        ("train.loss.kind", "l1", "loss.kind|'simple', 'hybrid'"),
        ("diffusion.noise_schedule", "cosine", "squaredcos_cap_v2"),
        ("parallel.fsdp", 0, "parallel.fsdp"),
    ],
)
def test_impossible_values_are_refused(key, value, message):
    config = default_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value}) if "." in key else config.__setattr__(key, value)
    with pytest.raises(GlideError, match=message) as caught:
        from_ml_collections(config)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_refused_with_the_nearest_name():
    config = default_config()
    with config.unlocked():
        config.train.batchsize = 8
    with pytest.raises(GlideError, match=r"config.train.batchsize is unknown; did you mean batch_size"):
        from_ml_collections(config)
