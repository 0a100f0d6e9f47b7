"""What is packed comes out again, in place and bit for bit, whatever is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from glide_jax.models import Glide
from glide_jax.train.config import OptimizerConfig
from glide_jax.train.optimizer import is_for_muon, make_optimizer
from glide_jax.train.packing import Packing, initial_state
from glide_jax.train.state import merge, split
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
    assert (sum(x.size for x in jax.tree.leaves(params.small)), len(params.large), len(params.frozen)) == (
        sum(leaf.size for leaf, chosen in zip(trained, is_small, strict=True) if chosen),
        is_small.count(False),
        len(frozen),
    )


@pytest.mark.parametrize(("trainable", "small"), [("all", 2**12), ("text", 2**12), ("all", 0)])
def test_a_state_of_muon_has_second_moments_of_the_rest_only(trainable, small):
    packing = Packing(PARAMS, trainable, small, muon=True)
    optimizer = make_optimizer(OptimizerConfig(kind="muon"), 1, packing.matrices)
    packed = initial_state(packing.pack(jax.tree.map(jnp.asarray, PARAMS)), optimizer)
    packed["opt"] = jax.tree.map(lambda x: x + 1 if x.ndim else x, packed["opt"])
    state = packing.unpack_state(packed)
    moments = {name: optax.tree.get_all_with_path(state["opt"], name) for name in ("mu", "nu")}
    (_, muon), (_, adam) = sorted(moments["mu"], key=lambda found: "adam" in str(found[0]))
    kernels = {path for path in flatten_dict(split(PARAMS, trainable)[0]) if is_for_muon("/".join(path))}
    assert flatten_dict(muon).keys() == kernels
    assert flatten_dict(adam).keys() == flatten_dict(split(PARAMS, trainable)[0]).keys() - kernels
    ((_, second),) = moments["nu"]
    assert flatten_dict(second).keys() == flatten_dict(adam).keys()
    again = packing.pack_state(state)
    assert jax.tree.structure(again["opt"]) == jax.tree.structure(packed["opt"])
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again["opt"], packed["opt"])))
