"""Gradients of a batch, taken whole or in micro-batches one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from glide_jax.models import Params

# (params, batch) -> (mean loss, values of each example).
LossFn = Callable[[Params, Any], tuple[Array, PyTree[Array]]]


def accumulated_grads(loss_fn: LossFn, params: Params, batch: Any, steps: int) -> tuple[PyTree[Array], Params]:
    """Values of each example and the gradient of the batch's mean loss, in `steps` micro-batches of equal size.

    Only one micro-batch's activations are alive at a time; the gradients are summed in float32.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if steps == 1:
        grads, values = grad_fn(params, batch)
        return values, grads

    def add(total: Params, micro: Any) -> tuple[Params, PyTree[Array]]:
        grads, values = grad_fn(params, micro)
        return jax.tree.map(jnp.add, total, grads), values

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, values = jax.lax.scan(add, zeros, jax.tree.map(lambda x: _deal(x, steps), batch))
    return jax.tree.map(_gather, values), jax.tree.map(lambda x: x / steps, total)


def _deal(x: Shaped[Array, "batch ..."], steps: int) -> Shaped[Array, "steps micro ..."]:
    # Every steps-th example, not neighbours: a device then keeps the examples it has.
    return x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1)


def _gather(x: Shaped[Array, "steps micro ..."]) -> Shaped[Array, "batch ..."]:
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
