"""What a solver may ask of a model: x_0 and noise at a level, with guidance and thresholding already inside."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image, Level

# A network under fixed conditions: (x_t, t) -> [batch, height, width, 6].
Network = Callable[[Image, Float[Array, " batch"]], Float[Array, "batch height width 6"]]
# Applied to every prediction of x_0: thresholding, pasting of known pixels.
ProcessX0 = Callable[[Image], Image]
# (x_t, t) -> gradient in x_t of how well it fits a guidance signal.
Gradient = Callable[[Image, Float[Array, " batch"]], Image]


class Prediction(NamedTuple):
    """A model's view of a noisy image.

    Attributes:
        x_0: the clean image, after thresholding and pasting.
        eps: the noise as predicted, consistent with x_0 only where nothing was thresholded or pasted.
        direction: the noise to go on with: the one that makes x_0 and x_t agree, or, under CFG++, the unconditional.
        variance: share of log beta (1) against the clipped posterior log-variance (0) in the learned variance.
        gradient: of a guidance signal about the image, in x_t; None without one.
    """

    x_0: Image
    eps: Image
    direction: Image
    variance: Image
    gradient: Image | None = None


class GuidedNoise(NamedTuple):
    """What guidance makes of a network's outputs.

    Attributes:
        eps: the noise that x_0 is computed from.
        renoise: the noise to go on with; None to derive it from x_0.
        variance: fraction in [-1, 1], as the network gives it.
    """

    eps: Image
    renoise: Image | None
    variance: Image


class NoisePredictor(Protocol):
    """A network with guidance; `memory` is that of a guidance which has one."""

    def __call__(self, x_t: Image, level: Level, memory: Any) -> tuple[GuidedNoise, Any]:
        """Predicts, and returns the next memory."""


class Denoiser(Protocol):
    """Prediction at one level for the whole batch; `memory` is that of a guidance which has one."""

    def __call__(self, x_t: Image, level: Level, memory: Any) -> tuple[Prediction, Any]:
        """Predicts, and returns the next memory."""


def unguided(network: Network) -> NoisePredictor:
    """A network as it is."""

    def predict(x_t: Image, level: Level, memory: Any) -> tuple[GuidedNoise, Any]:
        output = network(x_t, jnp.broadcast_to(level.t, x_t.shape[:1])).astype(jnp.float32)
        eps, variance = jnp.split(output, 2, axis=-1)
        return GuidedNoise(eps, None, variance), memory

    return predict


def denoiser(predict: NoisePredictor, process_x0: ProcessX0, gradient: Gradient | None = None) -> Denoiser:
    """Turns noise into a prediction: x_0 = (x_t - sigma eps) / alpha, then `process_x0` (torch: p_mean_variance)."""

    def denoise(x_t: Image, level: Level, memory: Any) -> tuple[Prediction, Any]:
        noise, memory = predict(x_t, level, memory)
        x_0 = process_x0((x_t - level.sigma * noise.eps) / level.alpha)
        direction = (x_t - level.alpha * x_0) / level.sigma if noise.renoise is None else noise.renoise
        slope = None if gradient is None else gradient(x_t, jnp.broadcast_to(level.t, x_t.shape[:1]))
        return Prediction(x_0, noise.eps, direction, (noise.variance + 1) / 2, slope), memory

    return denoise


def follow_gradient(prediction: Prediction, level: Level) -> Prediction:
    """Moves the noise along the gradient, eps - sigma g, and x_0 with it (Dhariwal & Nichol 2021, Algorithm 2).

    torch: condition_score. DDPM shifts its mean instead (torch: condition_mean).
    """
    if prediction.gradient is None:
        return prediction
    shift = level.sigma * prediction.gradient
    return prediction._replace(
        x_0=prediction.x_0 + level.sigma / level.alpha * shift,
        eps=prediction.eps - shift,
        direction=prediction.direction - shift,
        gradient=None,
    )
