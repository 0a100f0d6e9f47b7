"""Euler's and Heun's methods in sigma (Karras et al. 2022, arXiv:2206.00364), under k-diffusion's names."""

import math

import numpy as np

from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import LinearCombination, Table, terms


def ancestral_step(sigma: float, after: float, eta: float = 1.0) -> tuple[float, float]:
    """Splits the noise `after` a step into the level to step down to and the noise to add.

    up = min(after, eta after sqrt(1 - (after / sigma)^2)), down^2 + up^2 = after^2 (k-diffusion: get_ancestral_step).

    Returns:
        down, up.
    """
    up = min(after, eta * after * math.sqrt(1 - (after / sigma) ** 2))
    return math.sqrt(after**2 - up**2), up


def churned(
    levels: NoiseLevels, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> list[tuple[float, float, float]]:
    """The steps of a deterministic method with noise added before each (Karras et al. 2022, Algorithm 2).

    Args:
        levels: the levels.
        s_churn: the total amount, spread over the steps; 0 is off.
        s_tmin, s_tmax: the sigmas between which it applies.
        s_noise: standard deviation of the noise added.

    Returns:
        For each step, the raised sigma, the next sigma, and the standard deviation of the noise to add.
    """
    gamma = min(s_churn / len(levels), math.sqrt(2) - 1)
    steps = []
    for sigma, after in levels.steps:
        raised = sigma * (1 + gamma * (s_tmin <= sigma <= s_tmax))
        steps.append((raised, after, s_noise * math.sqrt(raised**2 - sigma**2)))
    return steps


def euler(
    levels: NoiseLevels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[Solver, Plan]:
    """x' = x + (sigma' - sigma) d with d = (x - x_0) / sigma; without churn it is DDIM with eta 0."""
    table = Table(levels, "x")
    x_0, direction = terms("x_0", "direction")
    for sigma, after, churn in churned(levels, s_churn, s_tmin, s_tmax, s_noise):
        table.evaluate(sigma, churn, x=x_0 + after * direction)
    return table.build()


def euler_ancestral(levels: NoiseLevels, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """Euler to the lower noise of `ancestral_step`, then fresh noise: DDIM with the same eta."""
    table = Table(levels, "x")
    x_0, direction, noise = terms("x_0", "direction", "noise")
    for sigma, after in levels.steps:
        down, up = ancestral_step(sigma, after, eta)
        table.evaluate(sigma, x=x_0 + down * direction + s_noise * up * noise)
    return table.build()


def heun(
    levels: NoiseLevels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[Solver, Plan]:
    """x' = x + (sigma' - sigma) (d(x) + d(x + (sigma' - sigma) d(x))) / 2, and Euler at the end (Algorithm 2)."""
    table = Table(levels, "x", "start", "slope")
    x, start, slope, x_0 = terms("x", "start", "slope", "x_0")
    for sigma, after, churn in churned(levels, s_churn, s_tmin, s_tmax, s_noise):
        d = (x - x_0) / sigma
        ahead = x + (after - sigma) * d
        if after == 0:
            table.evaluate(sigma, churn, x=ahead)
            continue
        table.evaluate(sigma, churn, x=ahead, start=x, slope=d)
        mean: LinearCombination = 0.5 * (slope + (x - x_0) / after)
        table.evaluate(after, x=start + (after - sigma) * mean)
    return table.build()


def dpm_2(
    levels: NoiseLevels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[Solver, Plan]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927): the slope at the geometric mean of both sigmas."""
    table = Table(levels, "x", "start")
    for sigma, after, churn in churned(levels, s_churn, s_tmin, s_tmax, s_noise):
        _midpoint(table, sigma, after, churn=churn)
    return table.build()


def dpm_2_ancestral(levels: NoiseLevels, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """`dpm_2` to the lower noise of `ancestral_step`, then fresh noise."""
    table = Table(levels, "x", "start")
    for sigma, after in levels.steps:
        down, up = ancestral_step(sigma, after, eta)
        _midpoint(table, sigma, down, s_noise * up)
    return table.build()


def _midpoint(table: Table, sigma: float, after: float, noise_std: float = 0.0, churn: float = 0.0) -> None:
    x, start, x_0, noise = terms("x", "start", "x_0", "noise")
    if after == 0:
        table.evaluate(sigma, churn, x=x_0 + noise_std * noise)
        return
    middle = float(np.sqrt(sigma * after))
    table.evaluate(sigma, churn, x=x + (middle - sigma) * ((x - x_0) / sigma), start=x)
    table.evaluate(middle, x=start + (after - sigma) * ((x - x_0) / middle) + noise_std * noise)
