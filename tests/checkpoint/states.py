"""A small training state with what a real one has: several dtypes, optax's tuples, empty nodes, odd bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glide_jax.parallel import ParallelConfig, make_mesh, state_shardings, with_shardings


def tiny_state(seed: int = 0, width: int = 8):
    """Parameters, EMA, optimizer state and step, no two leaves equal."""
    key = jax.random.key(seed)
    params = {
        "unet": {
            "kernel": jax.random.normal(key, (3, 3, 4, width)),
            "bias": jnp.array([jnp.inf, -0.0, 1e-45]),
        },
        "text": {"embedding": jax.random.normal(jax.random.fold_in(key, 1), (16, width)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype=jnp.bfloat16))
    return {
        "params": params,
        "ema": jax.tree.map(lambda x: x + 1, params),
        "opt": optimizer.init(params),
        "step": jnp.int32(seed),
    }


def abstract(tree, **axes: int):
    """What `tree` is restored into: all devices, laid out as ParallelConfig(**axes), every array split."""
    mesh = make_mesh(ParallelConfig(**axes))
    return with_shardings(tree, state_shardings(tree, mesh, min_bytes=0))


def assert_same_bits(actual, expected) -> None:
    """Equal trees, dtypes and bytes."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
