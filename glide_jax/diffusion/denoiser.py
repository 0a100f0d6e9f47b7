"""What a solver asks of a model: x_0 and noise at a level, with guidance and thresholding already applied."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.options import ThresholdingOptions

# A network under fixed conditions: (x_t, t) -> [batch, height, width, 6].
Network = Callable[[Image, Float[Array, " batch"]], Float[Array, "batch height width 6"]]
# Applied to every predicted x_0: thresholding, pasting of known pixels.
ProcessX0 = Callable[[Image], Image]
# (x_t, t) -> gradient with respect to x_t of how well it fits a guidance signal.
Gradient = Callable[[Image, Float[Array, " batch"]], Image]


class Prediction(NamedTuple):
    """A model's view of a noisy image.

    Attributes:
        x_0: the clean image, after thresholding and pasting.
        eps: the noise as predicted, consistent with x_0 only where nothing was thresholded or pasted.
        direction: the noise to continue with: the one consistent with x_0 and x_t or, under CFG++, the unconditional
            one.
        variance_share: as in `Estimate`.
        gradient: of a guidance signal with respect to x_t; None without one.
    """

    x_0: Image
    eps: Image
    direction: Image
    variance_share: Image
    gradient: Image | None = None


class Estimate(NamedTuple):
    """What a guided network predicts for a noisy image.

    Attributes:
        x_0: the clean image.
        eps: the noise.
        renoise: the noise to continue with; None to derive it from x_0 after processing.
        variance_share: share of log beta (1) against the clipped posterior log-variance (0) in the learned variance.
    """

    x_0: Image
    eps: Image
    renoise: Image | None
    variance_share: Image


class Estimator(Protocol):
    """A guided network; `memory` is that of a guidance method with state."""

    def __call__(self, x_t: Image, level: Level, memory: Any) -> tuple[Estimate, Any]:
        """Returns the estimate and the next memory."""


class Denoiser(Protocol):
    """Predicts at one level for the whole batch; `memory` is that of a guidance method with state."""

    def __call__(self, x_t: Image, level: Level, memory: Any) -> tuple[Prediction, Any]:
        """Returns the prediction and the next memory."""


def denoiser(estimate: Estimator, process_x0: ProcessX0, gradient: Gradient | None = None) -> Denoiser:
    """Turns estimates into predictions by applying `process_x0` (torch: p_mean_variance)."""

    def denoise(x_t: Image, level: Level, memory: Any) -> tuple[Prediction, Any]:
        raw, memory = estimate(x_t, level, memory)
        x_0 = process_x0(raw.x_0)
        direction = (x_t - level.alpha * x_0) / level.sigma if raw.renoise is None else raw.renoise
        slope = None if gradient is None else gradient(x_t, jnp.broadcast_to(level.t, x_t.shape[:1]))
        return Prediction(x_0, raw.eps, direction, raw.variance_share, slope), memory

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


_AS_GLIDE = ThresholdingOptions()


def threshold(x_0: Image, options: ThresholdingOptions = _AS_GLIDE) -> Image:
    """Brings x_0 into the range of images."""
    if options.thresholding == "none":
        return x_0
    if options.thresholding == "static":
        return jnp.clip(x_0, -1.0, 1.0)
    size = jnp.quantile(jnp.abs(x_0), options.dynamic_thresholding_ratio, axis=(1, 2, 3), keepdims=True)
    limit = jnp.maximum(size, 1.0)
    return jnp.clip(x_0, -limit, limit) / limit


def paste(x_0: Image, known: Image, mask: Float[Array, "batch height width 1"]) -> Image:
    """Puts known pixels (mask 1) in place of predicted ones (torch: the inpainting notebook's denoised_fn)."""
    return mask * known + (1 - mask) * x_0
