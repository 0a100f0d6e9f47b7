"""Denoising diffusion implicit models (Song et al. 2020, arXiv:2010.02502)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image, Level, to_columns
from glide_jax.diffusion.schedules import Schedule
from glide_jax.diffusion.solvers.solver import Plan, Solver, StepDenoiser


class Row(NamedTuple):
    """Coefficients of one step."""

    level: Level
    next_alpha: Float[Array, "*steps"]
    direction: Float[Array, "*steps"]
    noise_std: Float[Array, "*steps"]


def plan(schedule: Schedule, eta: float = 0.0) -> Plan:
    """Steps down a respaced schedule; `eta` in [0, 1] goes from the deterministic flow to ancestral noise.

    noise_std = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar') (eq. 16), which is 0 at the last step.
    """
    abar, after = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    variance = eta**2 * (1 - after) / (1 - abar) * (1 - abar / after)
    columns = (np.sqrt(after), np.sqrt(np.maximum(1 - after - variance, 0.0)), np.sqrt(variance))
    level = Level(*(column[::-1] for column in Level.table(schedule)))
    return Plan(Row(level, *to_columns(*(column[::-1] for column in columns))))


def step(x: Image, row: Row, denoise: StepDenoiser, noise: Callable[[], Image]) -> Image:
    """x' = sqrt(abar') x_0 + sqrt(1 - abar' - s^2) eps + s z (eq. 12; torch: ddim_sample).

    eps is derived again from the thresholded x_0, as GLIDE does.
    """
    x_0 = denoise(x, row.level).x_0
    eps = (x - row.level.alpha * x_0) / row.level.sigma
    return row.next_alpha * x_0 + row.direction * eps + row.noise_std * noise()


DDIM = Solver(init=lambda x: x, step=step, finish=lambda x: x)
