"""Euler's and Heun's methods in sigma (Karras et al. 2022, arXiv:2206.00364), under k-diffusion's names."""

import math

import numpy as np

from glide_jax.diffusion.grid import Grid
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import Combination, Table, pictures


def ancestral_step(sigma: float, after: float, eta: float = 1.0) -> tuple[float, float]:
    """Splits the noise `after` a step into what is stepped down to and what is added anew.

    up = min(after, eta after sqrt(1 - (after / sigma)^2)), down^2 + up^2 = after^2 (k-diffusion: get_ancestral_step).

    Returns:
        down, up.
    """
    up = min(after, eta * after * math.sqrt(1 - (after / sigma) ** 2))
    return math.sqrt(after**2 - up**2), up


class Churn:
    """Raises the noise before each step of a deterministic method (Karras et al. 2022, Algorithm 2).

    Args:
        grid: the levels.
        s_churn: total amount, spread over the steps; 0 is off.
        s_tmin, s_tmax: sigmas between which it acts.
        s_noise: standard deviation of the noise added.
    """

    def __init__(self, grid: Grid, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> None:
        gamma = min(s_churn / len(grid), math.sqrt(2) - 1)
        raised = [sigma * (1 + gamma * (s_tmin <= sigma <= s_tmax)) for sigma in grid.sigmas]
        added = [s_noise * math.sqrt(hat**2 - sigma**2) for hat, sigma in zip(raised, grid.sigmas, strict=True)]
        self.initial_noise = added[0]
        # (raised sigma, next sigma, noise to add before the next step)
        self.steps = [
            (hat, after, next_noise)
            for hat, (_, after), next_noise in zip(raised, grid.steps, [*added[1:], 0.0], strict=True)
        ]


def euler(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[Solver, Plan]:
    """x' = x + (sigma' - sigma) d with d = (x - x_0) / sigma; without churn it is DDIM with eta 0."""
    table, churn = Table(grid, "x"), Churn(grid, s_churn, s_tmin, s_tmax, s_noise)
    x_0, direction, noise = pictures("x_0", "direction", "noise")
    for sigma, after, next_noise in churn.steps:
        table.evaluate(sigma, x=x_0 + after * direction + next_noise * noise)
    return table.build(churn.initial_noise)


def euler_ancestral(grid: Grid, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """Euler to the lower noise of `ancestral_step`, then fresh noise: DDIM with the same eta."""
    table = Table(grid, "x")
    x_0, direction, noise = pictures("x_0", "direction", "noise")
    for sigma, after in grid.steps:
        down, up = ancestral_step(sigma, after, eta)
        table.evaluate(sigma, x=x_0 + down * direction + s_noise * up * noise)
    return table.build()


def heun(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[Solver, Plan]:
    """x' = x + (sigma' - sigma) (d(x) + d(x + (sigma' - sigma) d(x))) / 2, and Euler at the end (Algorithm 2)."""
    table, churn = Table(grid, "x", "start", "slope"), Churn(grid, s_churn, s_tmin, s_tmax, s_noise)
    x, start, slope, x_0, noise = pictures("x", "start", "slope", "x_0", "noise")
    for sigma, after, next_noise in churn.steps:
        d = (x - x_0) / sigma
        ahead = x + (after - sigma) * d
        if after == 0:
            table.evaluate(sigma, x=ahead)
            continue
        table.evaluate(sigma, x=ahead, start=x, slope=d)
        mean: Combination = 0.5 * (slope + (x - x_0) / after)
        table.evaluate(after, x=start + (after - sigma) * mean + next_noise * noise)
    return table.build(churn.initial_noise)


def dpm_2(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[Solver, Plan]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927): the slope at the geometric mean of both sigmas."""
    table, churn = Table(grid, "x", "start"), Churn(grid, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, after, next_noise in churn.steps:
        _midpoint(table, sigma, after, next_noise)
    return table.build(churn.initial_noise)


def dpm_2_ancestral(grid: Grid, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """`dpm_2` to the lower noise of `ancestral_step`, then fresh noise."""
    table = Table(grid, "x", "start")
    for sigma, after in grid.steps:
        down, up = ancestral_step(sigma, after, eta)
        _midpoint(table, sigma, down, s_noise * up)
    return table.build()


def _midpoint(table: Table, sigma: float, after: float, noise_std: float) -> None:
    x, start, x_0, noise = pictures("x", "start", "x_0", "noise")
    if after == 0:
        table.evaluate(sigma, x=x_0 + noise_std * noise)
        return
    middle = float(np.sqrt(sigma * after))
    table.evaluate(sigma, x=x + (middle - sigma) * ((x - x_0) / sigma), start=x)
    table.evaluate(middle, x=start + (after - sigma) * ((x - x_0) / middle) + noise_std * noise)
