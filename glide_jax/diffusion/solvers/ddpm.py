"""Ancestral sampling with the learned variance (Ho et al. 2020, Algorithm 2; Nichol & Dhariwal 2021, eq. 15)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image, Level, to_columns
from glide_jax.diffusion.schedules import Schedule
from glide_jax.diffusion.solvers.solver import Plan, Solver, StepDenoiser


class Row(NamedTuple):
    """Coefficients of one step (see `Schedule`)."""

    level: Level
    mean_x0: Float[Array, "*steps"]
    mean_xt: Float[Array, "*steps"]
    log_beta: Float[Array, "*steps"]
    posterior_log_variance: Float[Array, "*steps"]
    noisy: Float[Array, "*steps"]


def plan(schedule: Schedule) -> Plan:
    """Steps down a respaced schedule, the last one free of noise."""
    noisy = np.arange(len(schedule.betas)) > 0
    columns = (
        schedule.posterior_mean_coef1,
        schedule.posterior_mean_coef2,
        np.log(schedule.betas),
        schedule.posterior_log_variance_clipped,
        noisy,
    )
    level = Level(*(column[::-1] for column in Level.table(schedule)))
    return Plan(Row(level, *to_columns(*(column[::-1] for column in columns))))


def step(x: Image, row: Row, denoise: StepDenoiser, noise: Callable[[], Image]) -> Image:
    """x' = c_1 x_0 + c_2 x + exp(log_variance / 2) z (torch: p_sample)."""
    prediction = denoise(x, row.level)
    log_variance = prediction.variance * row.log_beta + (1 - prediction.variance) * row.posterior_log_variance
    mean = row.mean_x0 * prediction.x_0 + row.mean_xt * x
    return mean + row.noisy * jnp.exp(0.5 * log_variance) * noise()


DDPM = Solver(init=lambda x: x, step=step, finish=lambda x: x)
