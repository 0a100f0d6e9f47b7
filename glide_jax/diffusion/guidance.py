"""Guidance: conditional and unconditional predictions become one that follows the condition harder.

A method is a small pytree: its class is what a compiled program fixes, its numbers are what the program takes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import GuidedNoise, Network, NoisePredictor, unguided
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.options import GuidanceOptions

# A network over a batch of 2B rows, the first B under the condition and the last B without it.
PairedNetwork = Callable[[Image, Float[Array, " rows"]], Float[Array, "rows height width 6"]]
Scalar = Float[Array, ""]


class Method(Protocol):
    """How two predictions become one; `renoises` if it says what noise to go on with, in place of what x_0 implies."""

    renoises: ClassVar[bool]

    @classmethod
    def of(cls, options: GuidanceOptions) -> Self:
        """The method with the numbers of `options`."""

    def memory(self, x: Image) -> Any:
        """What a run starts with; None for a method without memory."""

    def combine(
        self, x_t: Image, level: Level, eps_c: Image, eps_u: Image, memory: Any
    ) -> tuple[Image, Image | None, Any]:
        """The guided noise, the noise to go on with where it `renoises`, and the next memory."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassifierFree:
    """eps_u + scale (eps_c - eps_u) (Ho & Salimans 2022)."""

    renoises: ClassVar[bool] = False
    scale: Scalar

    @classmethod
    def of(cls, options: GuidanceOptions) -> Self:
        """The method with the numbers of `options`."""
        return cls(jnp.float32(options.guidance_scale))

    def memory(self, x: Image) -> None:
        """None is needed."""

    def combine(
        self, x_t: Image, level: Level, eps_c: Image, eps_u: Image, memory: Any
    ) -> tuple[Image, Image | None, Any]:
        """See `Method`."""
        return eps_u + self.scale * (eps_c - eps_u), eps_u if self.renoises else None, memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ManifoldConstrained(ClassifierFree):
    """CFG++: the same, going on with the unconditional noise (Chung et al. 2024)."""

    renoises: ClassVar[bool] = True


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptiveProjected:
    """APG (Sadat et al. 2024, Algorithm 1), on x_0: the update loses its part along the conditional prediction."""

    renoises: ClassVar[bool] = False
    scale: Scalar
    eta: Scalar
    momentum: Scalar
    norm_threshold: Scalar

    @classmethod
    def of(cls, options: GuidanceOptions) -> Self:
        """The method with the numbers of `options`."""
        limit = options.apg_norm_threshold or math.inf
        return cls(*map(jnp.float32, (options.guidance_scale, options.apg_eta, options.apg_momentum, limit)))

    def memory(self, x: Image) -> Image:
        """The running average of updates."""
        return jnp.zeros_like(x)

    def combine(
        self, x_t: Image, level: Level, eps_c: Image, eps_u: Image, memory: Image
    ) -> tuple[Image, Image | None, Image]:
        """See `Method`."""
        x0_c = (x_t - level.sigma * eps_c) / level.alpha
        average = level.sigma / level.alpha * (eps_u - eps_c) + self.momentum * memory
        update = average * jnp.minimum(1.0, self.norm_threshold / jnp.maximum(_length(average), 1e-12))
        unit = x0_c / jnp.maximum(_length(x0_c), 1e-12)
        parallel = (update * unit).sum(axis=(1, 2, 3), keepdims=True) * unit
        update = update - parallel + self.eta * parallel
        x_0 = x0_c + (self.scale - 1) * update
        return (x_t - level.alpha * x_0) / level.sigma, None, average


METHODS: dict[str, type[Method]] = {"cfg": ClassifierFree, "cfg++": ManifoldConstrained, "apg": AdaptiveProjected}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guidance:
    """A method, and what goes with any of them; what is None is not in the program.

    Attributes:
        method: how two predictions become one.
        rescale: how far the guided noise gets the standard deviation of the conditional one (Lin et al. 2023).
        interval: sigmas (low, high] between which to guide.
    """

    method: Method
    rescale: Scalar | None = None
    interval: tuple[Scalar, Scalar] | None = None


def guidance(options: GuidanceOptions) -> Guidance | None:
    """The guidance that `options` ask for; None evaluates the network under the condition alone."""
    if options.guidance_scale == 1 and options.guidance != "cfg++":
        return None
    low, high = options.guidance_interval
    return Guidance(
        METHODS[options.guidance].of(options),
        jnp.float32(options.guidance_rescale) if options.guidance_rescale else None,
        (jnp.float32(low), jnp.float32(high)) if (low, high) != (0.0, math.inf) else None,
    )


def initial_memory(guidance: Guidance | None, x: Image) -> Any:
    """What a guided run starts with: APG's average update, or nothing."""
    return None if guidance is None else guidance.method.memory(x)


def guided(guidance: Guidance | None, conditional: Network, paired: PairedNetwork) -> NoisePredictor:
    """Wraps a network in guidance.

    Args:
        guidance: what to do; None is `conditional` as it is.
        conditional: the network under the condition.
        paired: the same over twice the rows, under the condition and without it.
    """
    plain = unguided(conditional)
    if guidance is None:
        return plain

    def within(x_t: Image, level: Level, memory: Any) -> tuple[GuidedNoise, Any]:
        t = jnp.broadcast_to(level.t, (2 * x_t.shape[0],))
        with_condition, without = jnp.split(paired(jnp.concatenate([x_t, x_t]), t).astype(jnp.float32), 2)
        eps_c, variance = jnp.split(with_condition, 2, axis=-1)
        eps_u, _ = jnp.split(without, 2, axis=-1)
        eps, renoise, memory = guidance.method.combine(x_t, level, eps_c, eps_u, memory)
        if guidance.rescale is not None:
            eps = eps * (1 - guidance.rescale + guidance.rescale * _spread(eps_c) / _spread(eps))
        return GuidedNoise(eps, renoise, variance), memory

    if guidance.interval is None:
        return within
    low, high = guidance.interval

    def predict(x_t: Image, level: Level, memory: Any) -> tuple[GuidedNoise, Any]:
        sigma = level.sigma / level.alpha

        def outside() -> tuple[GuidedNoise, Any]:
            noise, _ = plain(x_t, level, memory)
            return noise._replace(renoise=noise.eps if guidance.method.renoises else None), memory

        return jax.lax.cond((sigma > low) & (sigma <= high), lambda: within(x_t, level, memory), outside)

    return predict


def _length(x: Image) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt(jnp.square(x).sum(axis=(1, 2, 3), keepdims=True))


def _spread(x: Image) -> Float[Array, "batch 1 1 1"]:
    return x.std(axis=(1, 2, 3), keepdims=True)
