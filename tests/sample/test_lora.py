"""Adapters added to weights: by any share, several at once, of both kinds."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.models import LoraConfig
from glide_jax.models.lora import fingerprint
from glide_jax.sample.lora import Adapters, merged
from tests.tiny.models import random_weights

SHAPES = {"dense": (4, 6), "conv": (3, 3, 4, 6), "other": (4, 4)}
PARAMS = jax.tree.map(jnp.asarray, random_weights(
    {name: {"kernel": jax.ShapeDtypeStruct(shape, np.float32)} for name, shape in SHAPES.items()}
))  # fmt: skip


def adapters(seed, scale, **options):
    """Of two of the layers."""
    config = LoraConfig(rank=2, alpha=3.0, **options)
    shapes = {name: {"down": (*shape[:-1], 2), "up": (2, shape[-1])} for name, shape in list(SHAPES.items())[:2]}
    shapes = {name: each | ({"magnitude": (6,)} if config.dora else {}) for name, each in shapes.items()}
    abstract = {name: {part: jax.ShapeDtypeStruct(shape, np.float32) for part, shape in each.items()}
                for name, each in shapes.items()}  # fmt: skip
    return Adapters("a", config, random_weights(abstract, seed, 1.0), "base", fingerprint(PARAMS), scale)


def change(each):
    """What it adds to each kernel, in float64."""
    changes = {}
    for name, thin in each.params.items():
        kernel = np.asarray(PARAMS[name]["kernel"], np.float64)
        whole = kernel + 1.5 * (thin["down"].astype(np.float64) @ thin["up"])
        if each.config.dora:
            axes = tuple(range(kernel.ndim - 1))
            whole = thin["magnitude"] * whole / np.sqrt((whole**2).sum(axes))
        changes[name] = each.scale * (whole - kernel)
    return changes


LORA, DORA, THIRD = adapters(1, 0.7), adapters(2, -0.5, dora=True), adapters(3, 2.0, dora=True)


@pytest.mark.parametrize("several", [[DORA], *permutations([LORA, DORA, THIRD])])
def test_changes_of_the_weights_that_were_given_add_up_in_any_order(several):
    whole = merged(PARAMS, several)
    for name in PARAMS:
        expected = PARAMS[name]["kernel"] + sum(change(each).get(name, 0.0) for each in several)
        np.testing.assert_allclose(whole[name]["kernel"], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_none_of_them_is_the_weights_that_were_given():
    nothing = merged(PARAMS, [adapters(1, 0.0), adapters(2, 0.0, dora=True)])
    assert jax.tree.all(jax.tree.map(np.array_equal, nothing, PARAMS))
