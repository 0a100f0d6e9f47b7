"""Guidance: conditional and unconditional predictions become one that follows the condition harder."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import GuidedNoise, Network, NoisePredictor, unguided
from glide_jax.diffusion.forward import Image, Level
from glide_jax.errors import GlideError

# A network over a batch of 2B rows, the first B under the condition and the last B without it.
PairedNetwork = Callable[[Image, Float[Array, " rows"]], Float[Array, "rows height width 6"]]


@dataclass(frozen=True)
class GuidanceOptions:
    """How hard and in what way the caption is followed.

    Attributes:
        guidance_scale: 1 follows the caption plainly, more follows it harder; 0 not at all.
        guidance: "cfg" (Ho & Salimans 2022, arXiv:2207.12598); "cfg++", with a scale in [0, 1] and the unconditional
            noise to go on with (Chung et al. 2024, arXiv:2406.08070; ddim, euler and euler_ancestral only); or "apg",
            adaptive projected guidance, which does without the over-saturation of high scales (Sadat et al. 2024,
            arXiv:2410.02416).
        guidance_rescale: 0 to 1, how far the guided noise gets the spread of the conditional one (Lin et al. 2023,
            arXiv:2305.08891).
        guidance_interval: sigmas (low, high] between which to guide; outside, the caption is followed plainly and at
            half the cost (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        apg_eta: share kept of the part of the update parallel to the prediction.
        apg_momentum: of the average of updates; negative pushes away from earlier ones.
        apg_norm_threshold: greatest length of an update, over a whole picture; 0 is none.
    """

    guidance_scale: float = 3.0
    guidance: Literal["cfg", "cfg++", "apg"] = "cfg"
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, math.inf)
    apg_eta: float = 0.0
    apg_momentum: float = -0.5
    apg_norm_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.guidance not in ("cfg", "cfg++", "apg"):
            raise GlideError(f"guidance {self.guidance!r} is unknown: use cfg, cfg++ or apg")
        if self.guidance == "cfg++" and not 0 <= self.guidance_scale <= 1:
            raise GlideError(f"with guidance cfg++, guidance_scale must be in [0, 1], not {self.guidance_scale}")
        if not 0 <= self.guidance_rescale <= 1:
            raise GlideError(f"guidance_rescale must be in [0, 1], not {self.guidance_rescale}")
        if not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise GlideError(f"guidance_interval must ascend from at least 0, not {self.guidance_interval}")
        if self.apg_norm_threshold < 0:
            raise GlideError(f"apg_norm_threshold must be at least 0, not {self.apg_norm_threshold}")

    @property
    def method(self) -> "Method":
        """What a compiled program fixes."""
        if self.guidance_scale == 1 and self.guidance != "cfg++":
            return Method("none")
        return Method(self.guidance, self.guidance_rescale > 0, self.guidance_interval != (0.0, math.inf))

    @property
    def strengths(self) -> "Strengths":
        """What a compiled program takes as arguments."""
        numbers = (
            self.guidance_scale,
            self.guidance_rescale,
            *self.guidance_interval,
            self.apg_eta,
            self.apg_momentum,
            self.apg_norm_threshold or math.inf,
        )
        return Strengths(*(jnp.float32(number) for number in numbers))


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


def initial_memory(method: Method, x: Image) -> Any:
    """What a guided run starts with: APG's average update, or nothing."""
    return jnp.zeros_like(x) if method.kind == "apg" else None


def guided(method: Method, strengths: Strengths, conditional: Network, paired: PairedNetwork) -> NoisePredictor:
    """Wraps a network in guidance.

    Args:
        method, strengths: of `GuidanceOptions`.
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
