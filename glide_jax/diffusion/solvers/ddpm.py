"""Ancestral sampling with the learned variance (Ho et al. 2020, Algorithm 2; Nichol & Dhariwal 2021, eq. 15)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.grid import Grid
from glide_jax.diffusion.schedules import Schedule
from glide_jax.diffusion.solvers.solver import Plan, Solver, Start, StepDenoiser


class Row(NamedTuple):
    """Coefficients of one step (see `Schedule`)."""

    level: Level
    mean_x0: Float[Array, "*steps"]
    mean_xt: Float[Array, "*steps"]
    log_beta: Float[Array, "*steps"]
    posterior_log_variance: Float[Array, "*steps"]
    noisy: Float[Array, "*steps"]


def ddpm(grid: Grid) -> tuple[Solver, Plan]:
    """Steps down the process that has only these levels, the last step free of noise."""
    process = Schedule.from_alphas_cumprod(
        grid.alphas_cumprod[::-1], grid.timesteps[::-1], grid.schedule.diffusion_steps
    )
    level: Any = (process.timesteps, np.sqrt(process.alphas_cumprod), np.sqrt(1 - process.alphas_cumprod))
    columns: Any = (
        process.posterior_mean_coef1,
        process.posterior_mean_coef2,
        np.log(process.betas),
        process.posterior_log_variance_clipped,
        np.arange(len(grid)) > 0,
    )
    rows = Row(Level(*(column[::-1] for column in level)), *(column[::-1] for column in columns))
    return _DDPM, Plan(rows, Start(1.0, float(rows.level.alpha[0]), float(rows.level.sigma[0])))


def _step(x: Image, row: Row, denoise: StepDenoiser, noise: Callable[[], Image]) -> Image:
    """x' = c_1 x_0 + c_2 x + variance g + exp(log_variance / 2) z, g a guiding gradient (torch: p_sample)."""
    prediction = denoise(x, row.level)
    log_variance = prediction.variance * row.log_beta + (1 - prediction.variance) * row.posterior_log_variance
    mean = row.mean_x0 * prediction.x_0 + row.mean_xt * x
    if prediction.gradient is not None:
        mean = mean + jnp.exp(log_variance) * prediction.gradient
    return mean + row.noisy * jnp.exp(0.5 * log_variance) * noise()


_DDPM = Solver(init=lambda x: x, step=_step, finish=lambda x: x)
