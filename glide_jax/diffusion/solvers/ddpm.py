"""Ancestral sampling with the learned variance (Ho et al. 2020, Algorithm 2; Nichol & Dhariwal 2021, eq. 15)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import Prediction
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.schedules import Schedule
from glide_jax.diffusion.solvers.solver import Plan, Row, Solver, Start, State


class Coefficients(NamedTuple):
    """Of one step (see `Schedule`)."""

    mean_x0: Float[Array, "*steps"]
    mean_xt: Float[Array, "*steps"]
    log_beta: Float[Array, "*steps"]
    posterior_log_variance: Float[Array, "*steps"]
    noisy: Float[Array, "*steps"]


def ddpm(levels: NoiseLevels) -> tuple[Solver, Plan]:
    """Steps down the process that has only these levels, the last step free of noise."""
    process = Schedule.from_alphas_cumprod(
        levels.alphas_cumprod[::-1], levels.timesteps[::-1], levels.schedule.diffusion_steps
    )
    alphas, sigmas = np.sqrt(process.alphas_cumprod)[::-1], np.sqrt(1 - process.alphas_cumprod)[::-1]
    level: Any = (process.timesteps[::-1], alphas, sigmas)
    scale: Any = np.ones(len(levels))
    columns: Any = (
        process.posterior_mean_coef1,
        process.posterior_mean_coef2,
        np.log(process.betas),
        process.posterior_log_variance_clipped,
        np.arange(len(levels)) > 0,
    )
    coefficients = Coefficients(*(column[::-1] for column in columns))
    return _DDPM, Plan(Row(Level(*level), scale, coefficients), Start(1.0, float(alphas[0]), float(sigmas[0])))


def _step(state: State, row: Row, prediction: Prediction, noise: Image | None) -> State:
    """x' = c_1 x_0 + c_2 x + variance g + exp(log_variance / 2) z, g a guiding gradient (torch: p_sample)."""
    c = row.coefficients
    log_variance = prediction.variance * c.log_beta + (1 - prediction.variance) * c.posterior_log_variance
    mean = c.mean_x0 * prediction.x_0 + c.mean_xt * state[0]
    if prediction.gradient is not None:
        mean = mean + jnp.exp(log_variance) * prediction.gradient
    return (mean + c.noisy * jnp.exp(0.5 * log_variance) * noise,)


_DDPM = Solver(_step, noisy=True)
