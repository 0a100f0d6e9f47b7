"""The forward process: how images are noised, what a noise level is, and what predictions say of a noised image."""

from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.schedules import PredictionType, Schedule

Image = Float[Array, "batch height width channels"]


def to_columns(*tables: np.ndarray) -> list[Any]:
    """Tables of the host as float32: still NumPy where traced arrays will stand, hence typed Any."""
    return [np.asarray(table, np.float32) for table in tables]


class Level(NamedTuple):
    """A noise level, as the model and as the formulas see it; x_t = alpha x_0 + sigma eps.

    Carrying alpha and sigma beside t, from float64 tables, lets any solver ask for any level, between timesteps too.

    Attributes:
        t: original timestep, possibly fractional.
        alpha: sqrt(abar_t).
        sigma: sqrt(1 - abar_t).
    """

    t: Float[Array, "*steps"]
    alpha: Float[Array, "*steps"]
    sigma: Float[Array, "*steps"]

    @classmethod
    def table(cls, schedule: Schedule) -> Self:
        """The level of every step of a schedule, ascending, as float32."""
        abar = schedule.alphas_cumprod
        return cls(*to_columns(schedule.timesteps, np.sqrt(abar), np.sqrt(1 - abar)))

    def at(self, index: Int[Array, "*batch"]) -> Self:
        """The levels at some steps of a table."""
        return type(self)(*(jnp.asarray(column)[index] for column in self))

    def per_image(self) -> Self:
        """One level an image, shaped to broadcast over [batch, height, width, channels]."""
        return type(self)(*(column.reshape(-1, 1, 1, 1) for column in self))


class Readout(NamedTuple):
    """What a network's prediction at a noisy image says: eps, or v = alpha eps - sigma x_0 (Salimans & Ho 2022).

    Each comes by its own formula. The way from v to x_0 by the noise would divide by alpha, which at high noise is
    nearly 0.

    Attributes:
        prediction_type: which of the two the network predicts.
        x_t: the noisy images.
        level: their noise, shaped to broadcast over them.
    """

    prediction_type: PredictionType
    x_t: Image
    level: Level

    def x_0(self, predicted: Image) -> Image:
        """The clean image: (x_t - sigma eps) / alpha, or alpha x_t - sigma v."""
        _, alpha, sigma = self.level
        if self.prediction_type == "epsilon":
            return (self.x_t - sigma * predicted) / alpha
        return alpha * self.x_t - sigma * predicted

    def eps(self, predicted: Image) -> Image:
        """The noise: eps, or alpha v + sigma x_t."""
        if self.prediction_type == "epsilon":
            return predicted
        return self.level.alpha * predicted + self.level.sigma * self.x_t

    def prediction_of(self, x_0: Image) -> Image:
        """What the network would have predicted if it took `x_0` for the clean image."""
        _, alpha, sigma = self.level
        if self.prediction_type == "epsilon":
            return (self.x_t - alpha * x_0) / sigma
        return (alpha * self.x_t - x_0) / sigma

    @property
    def slope(self) -> Float[Array, "..."]:
        """By how much x_0 falls as the prediction rises by 1: sigma / alpha, or sigma."""
        _, alpha, sigma = self.level
        return sigma / alpha if self.prediction_type == "epsilon" else sigma


def q_sample(x_0: Image, noise: Image, level: Level) -> Image:
    """x_t = alpha x_0 + sigma noise, with one level an image (torch: q_sample)."""
    level = level.per_image()
    return level.alpha * x_0 + level.sigma * noise
