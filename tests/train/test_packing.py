"""What is packed comes out again, in place and bit for bit, whatever is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.models import Glide
from glide_jax.train.packing import Packing, initial_state
from glide_jax.train.state import make_optimizer, merge, split
from tests.tiny.models import BASE, random_weights
from tests.tiny.training import make_config

PARAMS = random_weights(Glide(BASE).abstract_params())


@pytest.mark.parametrize("small", [0, 2**12, 2**30])
@pytest.mark.parametrize("trainable", ["all", "unet", "text"])
def test_a_state_is_the_same_after_packing_and_unpacking(trainable, small):
    params = jax.tree.map(jnp.asarray, PARAMS)
    trained, frozen = split(params, trainable)
    optimizer = make_optimizer(make_config().optimizer, 1)
    opt = jax.tree.map(lambda x: x + 1 if x.ndim else x, optimizer.init(trained))
    ema = merge(jax.tree.map(jnp.negative, trained), frozen)
    state = {"step": jnp.int32(3), "params": params, "ema": ema, "opt": opt}
    packing = Packing(PARAMS, trainable, small)
    packed = packing.pack_state(state)
    found = packing.unpack_state(packed)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, state)))
    fresh = initial_state(packing.pack(params), optimizer)
    assert jax.tree.structure(fresh["opt"]) == jax.tree.structure(packed["opt"])
    trained, frozen = map(jax.tree.leaves, (trained, frozen))
    is_small = [4 * leaf.size < small for leaf in trained]
    params = packed["params"]
    assert (params.small.size, len(params.large), len(params.frozen)) == (
        sum(leaf.size for leaf, chosen in zip(trained, is_small, strict=True) if chosen),
        is_small.count(False),
        len(frozen),
    )
