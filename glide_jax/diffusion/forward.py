"""The forward process: how images are noised, and what a noise level is."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.schedules import Schedule

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


def as_noise_prediction(
    schedule: Schedule,
    output: Float[Array, "batch height width 6"],
    x_t: Image,
    t: Float[Array, " batch"],
) -> Float[Array, "batch height width 6"]:
    """A network's output with the noise in its first three channels, whatever `schedule.prediction_type` it has.

    Of v the noise is alpha v + sigma x_t. Between two timesteps log(sigma / alpha) is linear in t, as in
    `Schedule.sigma_to_t`.

    Args:
        schedule: the full schedule that the network was trained on.
        output: what it gave.
        x_t: noised images; t: their original timesteps in [0, T), possibly fractional.
    """
    if schedule.prediction_type == "epsilon":
        return output
    ratio = jnp.exp(jnp.interp(t, *to_columns(schedule.timesteps, np.log(schedule.sigmas)))).reshape(-1, 1, 1, 1)
    alpha = jax.lax.rsqrt(1 + ratio * ratio)
    v, variance = jnp.split(output, 2, axis=-1)
    return jnp.concatenate([alpha * v + alpha * ratio * x_t, variance], axis=-1)


def q_sample(x_0: Image, noise: Image, level: Level) -> Image:
    """x_t = alpha x_0 + sigma noise, with one level an image (torch: q_sample)."""
    level = level.per_image()
    return level.alpha * x_0 + level.sigma * noise
