"""The optimizer: AdamW, or Muon for the kernels, and its learning rate."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, PyTree

from glide_jax.train.config import OptimizerConfig
from glide_jax.train.muon import scale_by_muon, scale_to_rms

# Root mean square of AdamW's updates, which Muon's are scaled to.
_ADAM_RMS = 0.2
_OUTER = ("unet/input_conv/kernel", "unet/out_conv/kernel")
_OF_ADAPTERS = ("/down", "/up")


def learning_rate(config: OptimizerConfig, max_steps: int | None) -> optax.Schedule:
    """Learning rate as a function of the number of updates: a linear warm-up, then constant or a cosine down to 0.

    Args:
        config: the optimizer.
        max_steps: where the cosine ends; None if it goes by time, which `share_left` then provides as a factor.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    after = optax.constant_schedule(peak)
    if config.lr_schedule == "cosine" and max_steps is not None:
        after = optax.cosine_decay_schedule(peak, max(max_steps - warmup, 1))
    if not warmup:
        return after
    # The first update uses peak / warmup, not 0.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig,
    max_steps: int | None,
    matrices: PyTree[bool] | None = None,
    mesh: Mesh | AbstractMesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, then AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) or Muon (`muon`).

    Its `update` takes the gradient's `global_norm` as `norm`, if it is known.

    Args:
        config: the optimizer.
        max_steps: where a cosine ends, as for `learning_rate`.
        matrices: a tree like the parameters, true where Muon is used.
        mesh: the devices to share Muon's work.
    """
    clip = _clip(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    rate = learning_rate(config, max_steps)
    adam = partial(
        optax.adamw,
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.mu_dtype,
        weight_decay=config.weight_decay,
    )
    if config.kind == "adamw":
        return optax.chain(clip, adam())
    muon = optax.chain(
        scale_by_muon(config.mu_dtype, mesh),
        scale_to_rms(_ADAM_RMS),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    labels = jax.tree.map(lambda matrix: "muon" if matrix else "adam", matrices)
    return optax.chain(clip, optax.partition({"muon": muon, "adam": adam(nesterov=True)}, labels))


def global_norm(tree: PyTree[Array]) -> Float[Array, ""]:
    """The root of the sum of all squares, as `optax.tree.norm`.

    Rows are summed first and their sums only once they are one array: otherwise a GPU ends the sum of each parameter in
    a kernel of its own, one in seven of a training step's.
    """
    rows = [jnp.square(jnp.atleast_1d(leaf)).sum(axis=-1).reshape(-1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(rows)).sum())


def _clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` for a norm that may be known already."""

    def update(
        grads: PyTree[Array],
        state: optax.EmptyState,
        _: PyTree[Array] | None = None,
        *,
        norm: Float[Array, ""] | None = None,
        **__: Any,
    ) -> tuple[PyTree[Array], optax.EmptyState]:
        factor = jnp.minimum(1.0, max_norm / (global_norm(grads) if norm is None else norm))
        return jax.tree.map(lambda grad: factor * grad, grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def is_for_muon(path: str) -> bool:
    """Whether Muon is used for the parameter of that name: a hidden layer's kernel, or a matrix of an adapter."""
    return path.endswith(_OF_ADAPTERS) or (path.endswith("/kernel") and path not in _OUTER)


def share_left(config: OptimizerConfig, used: Float[Array, ""]) -> Float[Array, ""]:
    """Factor of the learning rate once a share `used` of a run's time is over: 1, or a cosine down to 0."""
    if config.lr_schedule == "constant":
        return jnp.ones_like(used)
    return (1 + jnp.cos(jnp.pi * jnp.clip(used, 0, 1))) / 2
