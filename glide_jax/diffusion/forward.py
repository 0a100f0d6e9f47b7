"""The forward process: how images are noised, what a noise level is, and how predictions are read."""

from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.schedules import PredictionType, Schedule

Image = Float[Array, "batch height width channels"]


def to_columns(*tables: np.ndarray) -> list[Any]:
    """Host tables as float32: NumPy arrays in the place of traced ones, hence typed Any."""
    return [np.asarray(table, np.float32) for table in tables]


class Level(NamedTuple):
    """A noise level, as the model sees it (t) and as formulas do: x_t = alpha x_0 + sigma eps.

    Because alpha and sigma, from float64 tables, are carried along with t, a solver may ask for any level, including
    levels between timesteps.

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
        """One level per image, shaped to broadcast over [batch, height, width, channels]."""
        return type(self)(*(column.reshape(-1, 1, 1, 1) for column in self))


class Readout(NamedTuple):
    """Reads a network's prediction for a noisy image: eps, or v = alpha eps - sigma x_0 (Salimans & Ho 2022).

    Each quantity has its own formula, because going from v to x_0 by way of the noise would divide by alpha, which is
    nearly 0 at high noise.

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
        """What the network would predict if `x_0` were the clean image."""
        _, alpha, sigma = self.level
        if self.prediction_type == "epsilon":
            return (self.x_t - alpha * x_0) / sigma
        return (alpha * self.x_t - x_0) / sigma

    @property
    def slope(self) -> Float[Array, "..."]:
        """How much x_0 falls when the prediction rises by 1: sigma / alpha, or sigma."""
        _, alpha, sigma = self.level
        return sigma / alpha if self.prediction_type == "epsilon" else sigma


def q_sample(x_0: Image, noise: Image, level: Level) -> Image:
    """x_t = alpha x_0 + sigma noise, with one level per image (torch: q_sample)."""
    level = level.per_image()
    return level.alpha * x_0 + level.sigma * noise
