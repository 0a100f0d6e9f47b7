"""Guidance: conditional and unconditional predictions become one that follows the condition harder."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import GuidedNoise, Network, NoisePredictor, unguided
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.options import GuidanceOptions

# A network over a batch of 2B rows, the first B under the condition and the last B without it.
PairedNetwork = Callable[[Image, Float[Array, " rows"]], Float[Array, "rows height width 6"]]


class Method(NamedTuple):
    """The static part of `GuidanceOptions`; kind "none" evaluates the network under the condition alone."""

    kind: Literal["none", "cfg", "cfg++", "apg"]
    rescales: bool = False
    has_interval: bool = False


class Strengths(NamedTuple):
    """The numbers of `GuidanceOptions`."""

    scale: Float[Array, ""]
    rescale: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    apg_eta: Float[Array, ""]
    apg_momentum: Float[Array, ""]
    apg_norm_threshold: Float[Array, ""]


def method_of(options: GuidanceOptions) -> Method:
    """What a compiled program fixes of the options."""
    if options.guidance_scale == 1 and options.guidance != "cfg++":
        return Method("none")
    return Method(options.guidance, options.guidance_rescale > 0, options.guidance_interval != (0.0, math.inf))


def strengths_of(options: GuidanceOptions) -> Strengths:
    """What a compiled program takes of the options as arguments."""
    numbers = (
        options.guidance_scale,
        options.guidance_rescale,
        *options.guidance_interval,
        options.apg_eta,
        options.apg_momentum,
        options.apg_norm_threshold or math.inf,
    )
    return Strengths(*(jnp.float32(number) for number in numbers))


def initial_memory(method: Method, x: Image) -> Any:
    """What a guided run starts with: APG's average update, or nothing."""
    return jnp.zeros_like(x) if method.kind == "apg" else None


def guided(method: Method, strengths: Strengths, conditional: Network, paired: PairedNetwork) -> NoisePredictor:
    """Wraps a network in guidance.

    Args:
        method, strengths: of `method_of` and `strengths_of`.
        conditional: the network under the condition.
        paired: the same over twice the rows, under the condition and without it; unused for method "none".
    """
    plain = unguided(conditional)
    if method.kind == "none":
        return plain

    def predict(x_t: Image, level: Level, memory: Any) -> tuple[GuidedNoise, Any]:
        t = jnp.broadcast_to(level.t, (2 * len(x_t),))
        with_condition, without = jnp.split(paired(jnp.concatenate([x_t, x_t]), t).astype(jnp.float32), 2)
        eps_c, variance = jnp.split(with_condition, 2, axis=-1)
        eps_u, _ = jnp.split(without, 2, axis=-1)
        if method.kind == "apg":
            eps, memory = _projected(strengths, x_t, level, eps_c, eps_u, memory)
        else:
            eps = eps_u + strengths.scale * (eps_c - eps_u)
        if method.rescales:
            eps = eps * (1 - strengths.rescale + strengths.rescale * _spread(eps_c) / _spread(eps))
        return GuidedNoise(eps, eps_u if method.kind == "cfg++" else None, variance), memory

    if not method.has_interval:
        return predict

    def predict_within(x_t: Image, level: Level, memory: Any) -> tuple[GuidedNoise, Any]:
        sigma = level.sigma / level.alpha

        def outside() -> tuple[GuidedNoise, Any]:
            noise, _ = plain(x_t, level, memory)
            return noise._replace(renoise=noise.eps if method.kind == "cfg++" else None), memory

        inside = (sigma > strengths.low) & (sigma <= strengths.high)
        return jax.lax.cond(inside, lambda: predict(x_t, level, memory), outside)

    return predict_within


def _projected(
    strengths: Strengths, x_t: Image, level: Level, eps_c: Image, eps_u: Image, average: Image
) -> tuple[Image, Image]:
    """APG (Sadat et al. 2024, Algorithm 1), on x_0: the update loses its part along the conditional prediction."""
    x0_c = (x_t - level.sigma * eps_c) / level.alpha
    average = level.sigma / level.alpha * (eps_u - eps_c) + strengths.apg_momentum * average
    update = average * jnp.minimum(1.0, strengths.apg_norm_threshold / jnp.maximum(_length(average), 1e-12))
    unit = x0_c / jnp.maximum(_length(x0_c), 1e-12)
    parallel = (update * unit).sum(axis=(1, 2, 3), keepdims=True) * unit
    update = update - parallel + strengths.apg_eta * parallel
    x_0 = x0_c + (strengths.scale - 1) * update
    return (x_t - level.alpha * x_0) / level.sigma, average


def _length(x: Image) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt(jnp.square(x).sum(axis=(1, 2, 3), keepdims=True))


def _spread(x: Image) -> Float[Array, "batch 1 1 1"]:
    return x.std(axis=(1, 2, 3), keepdims=True)
