"""Muon (Jordan et al. 2024), at the scale of Liu et al. 2025 (arXiv:2502.16982).

Each momentum matrix is replaced by an approximation of the nearest orthogonal matrix.
"""

import math
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from glide_jax.parallel.mesh import AXES

_DECAY = 0.95
_EPS = 1e-8
_ITERATIONS = 5
# f(s) = a s + b s^3 + c s^5 takes singular values in (0, 1] to about 1, small ones quickly.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def scale_by_muon(mu_dtype: str = "float32", mesh: Mesh | AbstractMesh | None = None) -> optax.GradientTransformation:
    """`optax.contrib.scale_by_muon` with the same state, made for many kernels and devices: matrices of one shape are
    stacked.

    Otherwise a step of a small model would launch thousands of kernels, and every device would do all of the work. The
    last axis of a parameter is the output; all others together are the input.

    Args:
        mu_dtype: type the momentum is stored in.
        mesh: the devices that share the matrices.
    """

    def init(params: PyTree[Array]) -> optax.contrib.MuonState:
        momentum = optax.tree.zeros_like(params, dtype=mu_dtype)
        return optax.contrib.MuonState(jnp.int32(0), momentum, jnp.array(_COEFFICIENTS))

    def update(grads: PyTree[Array], state: Any, _: PyTree[Array] | None = None) -> tuple[PyTree[Array], Any]:
        count = optax.safe_increment(state.count)
        momentum = optax.tree.update_moment(grads, state.mu, _DECAY, 1)
        # Nesterov's look-ahead, with the momentum's bias towards its initial zeros corrected.
        ahead = optax.tree.bias_correction(momentum, _DECAY, optax.safe_increment(count))
        here = optax.tree.bias_correction(grads, _DECAY, count)
        nesterov = jax.tree.map(lambda m, g: _DECAY * m + (1 - _DECAY) * g, ahead, here)
        leaves, structure = jax.tree.flatten(nesterov)
        if mesh is not None and mesh.size > 1:
            leaves = _by_shape(leaves, mesh)
        else:  # On a CPU, batched products are no faster than single ones, and slower to compile.
            leaves = jax.lax.platform_dependent(leaves, cpu=_each_alone, default=_by_shape)
        kept = optax.tree.cast(momentum, mu_dtype)
        return jax.tree.unflatten(structure, leaves), state._replace(count=count, mu=kept)

    return optax.GradientTransformation(init, update)


def scale_to_rms(rms: float) -> optax.GradientTransformation:
    """Scales orthogonal updates to this root mean square, whatever their shape (arXiv:2502.16982, section 2.2)."""

    def scale(update: Array) -> Array:
        outputs = update.shape[-1]
        return update * (rms * math.sqrt(max(update.size // outputs, outputs)))

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


def _each_alone(leaves: list[Array]) -> list[Array]:
    return [orthogonal(leaf.reshape(-1, leaf.shape[-1])).reshape(leaf.shape) for leaf in leaves]


def _by_shape(leaves: list[Array], mesh: Mesh | AbstractMesh | None = None) -> list[Array]:
    places = defaultdict(list)
    for place, leaf in enumerate(leaves):
        places[leaf.size // leaf.shape[-1], leaf.shape[-1]].append(place)
    done = list(leaves)
    for shape, alike in places.items():
        stack = jnp.stack([leaves[place].reshape(shape) for place in alike])
        stack = orthogonal(stack) if mesh is None else _shared(stack, mesh)
        for place, matrix in zip(alike, stack, strict=True):
            done[place] = matrix.reshape(leaves[place].shape)
    return done


def _shared(stack: Float[Array, "count rows columns"], mesh: Mesh | AbstractMesh) -> Float[Array, "count rows columns"]:
    """`orthogonal` with whole matrices shared out over devices, so that none of its iterations communicates."""
    missing = -len(stack) % mesh.size
    padded = jnp.pad(stack, ((0, missing), (0, 0), (0, 0)))
    padded = jax.lax.with_sharding_constraint(padded, NamedSharding(mesh, PartitionSpec(AXES)))
    whole = jax.lax.with_sharding_constraint(orthogonal(padded), NamedSharding(mesh, PartitionSpec()))
    return whole[: len(stack)]


def orthogonal(matrices: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch rows columns"]:
    """Approximates U V^T of each U S V^T: the singular values become about 0.7 to 1.2 (Newton-Schulz iterations)."""
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]

    def iterate(_: Any, x: Array) -> Array:
        gram = x @ x.mT if wide else x.mT @ x
        polynomial = b * gram + c * gram @ gram
        return a * x + (polynomial @ x if wide else x @ polynomial)

    norm = jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
    result: Array = jax.lax.fori_loop(0, _ITERATIONS, iterate, matrices / (norm + _EPS))
    return result
