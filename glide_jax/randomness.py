"""Random numbers as a pure function of (seed, stream name, indices): there is nothing to carry, split or save.

Every random number is keyed by its purpose and by the example it belongs to, in training by the step too. So results do
not depend on the number of devices or where a run was interrupted, and samples do not depend on the batch size.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

# Named, because with others (JAX_DEFAULT_PRNG_IMPL=rbg) an example's numbers depend on its place in the batch.
_IMPLEMENTATION = "threefry2x32"


def stream_key(seed: int | Int[Array, ""], stream: str) -> PRNGKeyArray:
    """The root key of a named stream ("noise", "dropout", ...) for a seed in [0, 2^31)."""
    return jax.random.fold_in(jax.random.key(seed, impl=_IMPLEMENTATION), zlib.crc32(stream.encode()))


def fold(key: PRNGKeyArray, *indices: int | Int[Array, ""]) -> PRNGKeyArray:
    """Folds integers (step, example index, ...) into a key, in order; they may be traced."""
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def normal_per_example(
    key: PRNGKeyArray, examples: Int[Array, " batch"], shape: Sequence[int]
) -> Float[Array, "batch ..."]:
    """Standard normal float32 noise of `shape` for each example, keyed only by its global index."""
    return jax.vmap(lambda i: jax.random.normal(fold(key, i), tuple(shape), jnp.float32))(examples)


def keys_per_example(key: PRNGKeyArray, examples: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """A key for each example, derived only from its global index."""
    return jax.vmap(lambda i: fold(key, i))(examples)


def uniform_per_example(key: PRNGKeyArray, examples: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """A float32 number in [0, 1) for each example, keyed only by its global index."""
    return jax.vmap(lambda i: jax.random.uniform(fold(key, i), (), jnp.float32))(examples)
