"""Guidance: conditional and unconditional predictions are combined into one that follows the condition more closely.

It works on the network's own predictions, of noise or of v. For a combination this makes no difference, because each is
an affine function of the other; for rescaling it does, and Lin et al. rescale v.
A method is a small pytree: a compiled program is specific to its class, and takes its numbers as input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import Estimate, Estimator, Network
from glide_jax.diffusion.forward import Image, Level, Readout
from glide_jax.diffusion.options import GuidanceOptions
from glide_jax.diffusion.schedules import PredictionType

# A network over 2B rows: the first B with the condition, the last B without it.
PairedNetwork = Callable[[Image, Float[Array, " rows"]], Float[Array, "rows height width 6"]]
Scalar = Float[Array, ""]

# Relative error of a level's sigma in float32, at most.
_ROUNDING = 1e-5


class Method(Protocol):
    """How two predictions become one; one that `renoises` also chooses the noise to continue with."""

    renoises: ClassVar[bool]

    @classmethod
    def of(cls, options: GuidanceOptions) -> Self:
        """The method with the numbers of `options`."""

    def memory(self, x: Image) -> Any:
        """The state a run starts with; None for a method without state."""

    def combine(
        self, at: Readout, conditional: Image, unconditional: Image, memory: Any
    ) -> tuple[Image, Image | None, Any]:
        """The guided prediction, the one whose noise to continue with if it `renoises`, and the next memory."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + scale (conditional - unconditional) (Ho & Salimans 2022)."""

    renoises: ClassVar[bool] = False
    scale: Scalar

    @classmethod
    def of(cls, options: GuidanceOptions) -> Self:
        """The method with the numbers of `options`."""
        return cls(jnp.float32(options.guidance_scale))

    def memory(self, x: Image) -> None:
        """None is needed."""

    def combine(
        self, at: Readout, conditional: Image, unconditional: Image, memory: Any
    ) -> tuple[Image, Image | None, Any]:
        """See `Method`."""
        guided = unconditional + self.scale * (conditional - unconditional)
        return guided, unconditional if self.renoises else None, memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ManifoldConstrained(ClassifierFree):
    """CFG++: the same, but continuing with the unconditional noise (Chung et al. 2024)."""

    renoises: ClassVar[bool] = True


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptiveProjected:
    """APG (Sadat et al. 2024, Algorithm 1), on x_0: the update loses its component along the conditional prediction."""

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
        """The sum of updates so far, decayed by the momentum at each step; a negative one makes it alternate."""
        return jnp.zeros_like(x)

    def combine(
        self, at: Readout, conditional: Image, unconditional: Image, memory: Image
    ) -> tuple[Image, Image | None, Image]:
        """See `Method`."""
        x0_c = at.x_0(conditional)
        total = at.slope * (unconditional - conditional) + self.momentum * memory
        update = total * jnp.minimum(1.0, self.norm_threshold / jnp.maximum(_length(total), 1e-12))
        unit = x0_c / jnp.maximum(_length(x0_c), 1e-12)
        parallel = (update * unit).sum(axis=(1, 2, 3), keepdims=True) * unit
        update = update - parallel + self.eta * parallel
        return at.prediction_of(x0_c + (self.scale - 1) * update), None, total


METHODS: dict[str, type[Method]] = {"cfg": ClassifierFree, "cfg++": ManifoldConstrained, "apg": AdaptiveProjected}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guidance:
    """A method, and options that work with any method; those that are None add nothing to the program.

    Attributes:
        method: how two predictions become one.
        rescale: how far to bring the guided prediction's standard deviation to the conditional one's (Lin et al. 2023).
        interval: the sigmas (low, high] at which to guide.
    """

    method: Method
    rescale: Scalar | None = None
    interval: tuple[Scalar, Scalar] | None = None


def guidance(options: GuidanceOptions) -> Guidance | None:
    """The guidance that `options` ask for; None means evaluating the network with the condition only."""
    if options.guidance_scale == 1 and options.guidance != "cfg++":
        return None
    low, high = options.guidance_interval
    return Guidance(
        METHODS[options.guidance].of(options),
        jnp.float32(options.guidance_rescale) if options.guidance_rescale else None,
        (jnp.float32(low), jnp.float32(high)) if (low, high) != (0.0, math.inf) else None,
    )


def initial_memory(guidance: Guidance | None, x: Image) -> Any:
    """The state a guided run starts with: APG's average update, or nothing."""
    return None if guidance is None else guidance.method.memory(x)


class _Output(NamedTuple):
    """A network's output, guided or not: an `Estimate` in terms of what it predicts.

    Attributes:
        predicted: the noise, or v.
        renoise: the prediction whose noise to continue with; None to derive it from x_0.
        variance: the network's output, in [-1, 1].
    """

    predicted: Image
    renoise: Image | None
    variance: Image


_Outputs = Callable[[Readout, Any], tuple[_Output, Any]]


def guided(
    guidance: Guidance | None,
    conditional: Network,
    paired: PairedNetwork,
    prediction_type: PredictionType = "epsilon",
) -> Estimator:
    """Wraps a network in guidance.

    Args:
        guidance: the guidance; None leaves `conditional` as it is.
        conditional: the network with the condition.
        paired: the same over twice the rows, with and without the condition.
        prediction_type: what it predicts.
    """
    outputs = _plain(conditional) if guidance is None else _guided(guidance, _plain(conditional), paired)

    def estimate(x_t: Image, level: Level, memory: Any) -> tuple[Estimate, Any]:
        at = Readout(prediction_type, x_t, level)
        (predicted, renoise, variance), memory = outputs(at, memory)
        renoise = None if renoise is None else at.eps(renoise)
        return Estimate(at.x_0(predicted), at.eps(predicted), renoise, (variance + 1) / 2), memory

    return estimate


def _plain(conditional: Network) -> _Outputs:
    def outputs(at: Readout, memory: Any) -> tuple[_Output, Any]:
        output = conditional(at.x_t, jnp.broadcast_to(at.level.t, at.x_t.shape[:1])).astype(jnp.float32)
        predicted, variance = jnp.split(output, 2, axis=-1)
        return _Output(predicted, None, variance), memory

    return outputs


def _guided(guidance: Guidance, plain: _Outputs, paired: PairedNetwork) -> _Outputs:
    def within(at: Readout, memory: Any) -> tuple[_Output, Any]:
        t = jnp.broadcast_to(at.level.t, (2 * at.x_t.shape[0],))
        with_condition, without = jnp.split(paired(jnp.concatenate([at.x_t, at.x_t]), t).astype(jnp.float32), 2)
        own, variance = jnp.split(with_condition, 2, axis=-1)
        other, _ = jnp.split(without, 2, axis=-1)
        predicted, renoise, memory = guidance.method.combine(at, own, other, memory)
        if guidance.rescale is not None:
            rescale = guidance.rescale
            predicted = predicted * (1 - rescale + rescale * _spread(own) / _spread(predicted))
        return _Output(predicted, renoise, variance), memory

    if guidance.interval is None:
        return within
    low, high = guidance.interval

    def outputs(at: Readout, memory: Any) -> tuple[_Output, Any]:
        sigma = at.level.sigma / at.level.alpha

        def outside() -> tuple[_Output, Any]:
            output, _ = plain(at, memory)
            return output._replace(renoise=output.predicted if guidance.method.renoises else None), memory

        # A level that is one of the ends in float64 may be beside it in float32.
        at_low, at_high = (jnp.abs(sigma - end) <= _ROUNDING * sigma for end in (low, high))
        inside = (sigma > low) & ~at_low & ((sigma <= high) | at_high)
        return jax.lax.cond(inside, lambda: within(at, memory), outside)

    return outputs


def _length(x: Image) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt(jnp.square(x).sum(axis=(1, 2, 3), keepdims=True))


def _spread(x: Image) -> Float[Array, "batch 1 1 1"]:
    return x.std(axis=(1, 2, 3), keepdims=True)
