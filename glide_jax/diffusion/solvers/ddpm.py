"""The reference's samplers: DDPM with learned variance, and DDIM."""

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import Prediction
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Row, Solver, Start, State
from glide_jax.diffusion.solvers.table import Table, terms


class Coefficients(NamedTuple):
    """The coefficients of one step (see `Schedule`)."""

    mean_x0: Float[Array, "*steps"]
    mean_xt: Float[Array, "*steps"]
    log_beta: Float[Array, "*steps"]
    posterior_log_variance: Float[Array, "*steps"]
    noisy: Float[Array, "*steps"]


def ddpm(levels: NoiseLevels) -> tuple[Solver, Plan]:
    """Ancestral steps of the process that has only these levels; the last step adds no noise."""
    process = levels.schedule.through(levels.alphas_cumprod[::-1], levels.timesteps[::-1])
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
    share = prediction.variance_share
    log_variance = share * c.log_beta + (1 - share) * c.posterior_log_variance
    mean = c.mean_x0 * prediction.x_0 + c.mean_xt * state[0]
    if prediction.gradient is not None:
        mean = mean + jnp.exp(log_variance) * prediction.gradient
    return (mean + c.noisy * jnp.exp(0.5 * log_variance) * noise,)


_DDPM = Solver(_step, noisy=True)


def ddim(levels: NoiseLevels, eta: float = 0.0) -> tuple[Solver, Plan]:
    """x' = sqrt(abar') x_0 + sqrt(1 - abar' - s^2) eps + s z (eq. 12; torch: ddim_sample).

    s = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar') (eq. 16), from the deterministic flow at `eta` 0 to
    ancestral noise at 1, and 0 at the last step. eps is derived again from the thresholded x_0, as GLIDE does.
    """
    table = Table(levels, "x", signal_scaled=True)
    x_0, eps, noise = terms("x_0", "direction", "noise")
    for sigma, after in levels.steps:
        abar, abar_after = 1 / (1 + sigma**2), 1 / (1 + after**2)
        variance = eta**2 * (1 - abar_after) / (1 - abar) * (1 - abar / abar_after)
        direction = math.sqrt(max(1 - abar_after - variance, 0.0))
        table.evaluate(sigma, x=math.sqrt(abar_after) * x_0 + direction * eps + math.sqrt(variance) * noise)
    return table.build()


def ddim_inversion(levels: NoiseLevels) -> tuple[Solver, Plan]:
    """Runs the flow backwards, from an image to the noise that DDIM generates it from (Song et al. 2020, sec. 5.4).

    The image is taken to be at the lowest level already; each step uses the eps at its start up to its end:
    x' = sqrt(abar') (x - sqrt(1 - abar) eps) / sqrt(abar) + sqrt(1 - abar') eps. x_0 is not thresholded.
    """
    table = Table(levels, "x", signal_scaled=True)
    x, eps = terms("x", "eps")
    upward = [levels.level(sigma) for sigma in levels.sigmas[::-1].tolist()]
    for here, after in itertools.pairwise([upward[0], *upward]):
        start = (x - here.sigma * eps) / here.alpha if after is not here else x
        table.evaluate(here, x=after.alpha * start + after.sigma * eps)
    return table.build()
