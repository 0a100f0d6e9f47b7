"""Guidance: turns conditional predictions into stronger ones."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import Network
from glide_jax.diffusion.forward import Image

# A network over a batch of 2B rows, the first B under the condition and the last B without it.
PairedNetwork = Callable[[Image, Float[Array, " rows"]], Float[Array, "rows height width 6"]]


def classifier_free(network: PairedNetwork, scale: Float[Array, ""]) -> Network:
    """eps = eps_uncond + scale (eps_cond - eps_uncond) (Ho & Salimans 2022, arXiv:2207.12598); scale 1 is no guidance.

    Both halves see the same x_t; the learned variance stays the conditional one.
    """

    def guided(x_t: Image, t: Float[Array, " batch"]) -> Float[Array, "batch height width 6"]:
        output = network(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
        conditional, unconditional = jnp.split(output, 2)
        eps_c, variance = jnp.split(conditional, 2, axis=-1)
        eps_u, _ = jnp.split(unconditional, 2, axis=-1)
        return jnp.concatenate([eps_u + scale * (eps_c - eps_u), variance], axis=-1)

    return guided
