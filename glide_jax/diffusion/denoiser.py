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


class Prediction(NamedTuple):
    """A model's view of a noisy picture.

    Attributes:
        x_0: the clean picture, after thresholding and pasting.
        eps: the noise as predicted, consistent with x_0 only where nothing was thresholded or pasted.
        variance: share of log beta (1) against the clipped posterior log-variance (0) in the learned variance.
    """

    x_0: Image
    eps: Image
    variance: Image


class Denoiser(Protocol):
    """Prediction at one level for the whole batch; `carry` is the memory of a guidance that has one."""

    def __call__(self, x_t: Image, level: Level, carry: Any) -> tuple[Prediction, Any]:
        """Predicts, and returns the next carry."""


def clip_x0(x_0: Image) -> Image:
    """Static thresholding: clips to the range of pictures, [-1, 1]."""
    return jnp.clip(x_0, -1.0, 1.0)


def denoiser(network: Network, process_x0: ProcessX0 = clip_x0) -> Denoiser:
    """Turns a (guided) network into a denoiser: x_0 = (x_t - sigma eps) / alpha, then `process_x0`.

    torch: p_mean_variance.
    """

    def denoise(x_t: Image, level: Level, carry: Any) -> tuple[Prediction, Any]:
        output = network(x_t, jnp.broadcast_to(level.t, x_t.shape[:1])).astype(jnp.float32)
        eps, fraction = jnp.split(output, 2, axis=-1)
        x_0 = process_x0((x_t - level.sigma * eps) / level.alpha)
        return Prediction(x_0, eps, (fraction + 1) / 2), carry

    return denoise
