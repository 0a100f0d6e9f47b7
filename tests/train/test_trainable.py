"""Exactly which parameters are trained, and what a frozen one costs."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from glide_jax.errors import GlideError
from glide_jax.models import Glide, ModelConfig
from glide_jax.train.config import TrainConfig
from glide_jax.train.trainable import merge, split
from tests.tiny.training import MODEL, make_batch, make_config, make_state, updated


def names(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_sets_of_the_published_base_model():
    params = Glide(ModelConfig.published("base")).abstract_params()
    sizes = {trainable: [count(part) for part in split(params, trainable)] for trainable in ("all", "unet", "text")}
    assert sizes["all"] == [385_030_726, 0]
    # The reference's groups: 308.3 M of UNet, 76.7 M of text transformer.
    assert sizes["unet"] == [308_334_918, 76_695_808]
    # 25 attention blocks of 384, 576 and 768 channels, each with a projection of 512 to twice its channels.
    blocks = {384: 3 + 4, 576: 3 + 4, 768: 3 + 1 + 4}
    projections = sum(n * (512 + 1) * 2 * channels for channels, n in blocks.items())
    assert sizes["text"] == [76_695_808 + projections, 308_334_918 - projections]


def test_names_of_the_sets():
    params = Glide(MODEL).abstract_params()
    everything = names(params)
    assert names(split(params, "unet")[0]) == {name for name in everything if name.startswith("unet/")}
    projections = {name for name in everything if "/text_kv/" in name}
    assert len(projections) == 2 * 4  # kernel and bias of one block down, one in the middle, two up
    assert names(split(params, "text")[0]) == {name for name in everything if name.startswith("text/")} | projections


@pytest.mark.parametrize("trainable", ["all", "unet", "text"])
def test_parts_make_the_whole_again(trainable):
    params = Glide(MODEL).abstract_params()
    assert merge(*split(params, trainable)) == params


def test_only_the_trained_part_moves_and_has_optimizer_state():
    config = make_config(trainable="text")
    state = make_state(config)
    trained = names(split(state["params"], "text")[0])
    assert names(optax.tree.get(state["opt"], "mu")) == names(optax.tree.get(state["opt"], "nu")) == trained
    after, _ = updated(config, state, make_batch())
    for tree in ("params", "ema"):
        same = jax.tree.map(np.array_equal, state[tree], after[tree])
        moved = {name for name in names(same) if not leaf_at(same, name)}
        # A key's bias shifts all scores alike, so that it may have no gradient at all.
        assert moved <= trained
        assert {name for name in trained if not name.endswith("bias")} <= moved


def leaf_at(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def test_impossible_choices_are_refused():
    with pytest.raises(GlideError, match=r"train.trainable 'decoder' is unknown: use all, unet, text"):
        TrainConfig(trainable="decoder")
    params = Glide(replace(MODEL, xf_width=0)).abstract_params()
    with pytest.raises(GlideError, match="no text transformer"):
        split(params, "text")
