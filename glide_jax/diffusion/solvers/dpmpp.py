"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095) and its stochastic forms, under k-diffusion's names.

With lambda = -log sigma and h = lambda' - lambda, the flow of x_0 + sigma eps is solved exactly for a fixed x_0 by
x' = e^-h x + (1 - e^-h) x_0; the methods differ in the x_0 they use, and in the noise they add.
"""

import math

from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.solvers.euler import ancestral_step
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import LinearCombination, Table, terms


def _flow(x: LinearCombination, x_0: LinearCombination, sigma: float, after: float) -> LinearCombination:
    """x' for a fixed x_0."""
    return (after / sigma) * x + (1 - after / sigma) * x_0


def dpmpp_2m(levels: NoiseLevels) -> tuple[Solver, Plan]:
    """Two-step method (Algorithm 2): x_0 + (h / 2 h_last) (x_0 - last); first order at the ends."""
    table = Table(levels, "x", "last")
    x, last, x_0 = terms("x", "last", "x_0")
    h_last = 0.0
    for sigma, after in levels.steps:
        h = math.log(sigma / after) if after else math.inf
        extrapolated = x_0 if not (h_last and after) else x_0 + (h / (2 * h_last)) * (x_0 - last)
        table.evaluate(sigma, x=_flow(x, extrapolated, sigma, after), last=x_0)
        h_last = h
    return table.build()


def dpmpp_2s_ancestral(levels: NoiseLevels, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """Single-step method (Algorithm 1 with r = 1/2) to the lower noise of `ancestral_step`, then fresh noise."""
    table = Table(levels, "x", "start")
    x, start, x_0, noise = terms("x", "start", "x_0", "noise")
    for sigma, after in levels.steps:
        down, up = ancestral_step(sigma, after, eta)
        fresh = s_noise * up * noise
        if down == 0:
            table.evaluate(sigma, x=x_0 + fresh)
            continue
        middle = math.sqrt(sigma * down)
        table.evaluate(sigma, x=_flow(x, x_0, sigma, middle), start=x)
        table.evaluate(middle, x=_flow(start, x_0, sigma, down) + fresh)
    return table.build()


def dpmpp_sde(levels: NoiseLevels, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """Stochastic single-step method: both stages of a step share one Brownian path, as in k-diffusion.

    The first stage goes to sigma_s = sigma e^(-h / 2), the second over the whole step with x_0(s).
    The path runs in sigma, so that the step's noise is sqrt(w) z_1 + sqrt(1 - w) z_2 with
    w = (sigma - sigma_s) / (sigma - sigma'), where z_1 is the first stage's.
    """
    table = Table(levels, "x", "start", "z")
    x, start, z, x_0, noise = terms("x", "start", "z", "x_0", "noise")
    for sigma, after in levels.steps:
        if after == 0:
            table.evaluate(sigma, x=x_0)
            continue
        middle = math.sqrt(sigma * after)
        down, up = ancestral_step(sigma, middle, eta)
        table.evaluate(sigma, x=_flow(x, x_0, sigma, down) + s_noise * up * noise, start=x, z=noise)
        down, up = ancestral_step(sigma, after, eta)
        share = (sigma - middle) / (sigma - after)
        path = math.sqrt(share) * z + math.sqrt(1 - share) * noise
        table.evaluate(middle, x=_flow(start, x_0, sigma, down) + s_noise * up * path)
    return table.build()


def _sde_step(
    x: LinearCombination, x_0: LinearCombination, sigma: float, after: float, eta: float, s_noise: float
) -> tuple[LinearCombination, float]:
    """First-order step of the SDE with noise eta, x' = (1 - g) x_0 + g x + s z, and H = (1 + eta) h with g = e^-H."""
    [noise] = terms("noise")
    h = math.log(sigma / after)
    decay = math.exp(-(1 + eta) * h)
    spread = s_noise * after * math.sqrt(-math.expm1(-2 * eta * h))
    return decay * x + (1 - decay) * x_0 + spread * noise, (1 + eta) * h


def dpmpp_2m_sde(levels: NoiseLevels, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """Stochastic two-step method (k-diffusion's "midpoint"); eta 0 is `dpmpp_2m`, except for the last step."""
    table = Table(levels, "x", "last")
    x, last, x_0 = terms("x", "last", "x_0")
    h_last = 0.0
    for sigma, after in levels.steps:
        if after == 0:
            table.evaluate(sigma, x=x_0)
            continue
        h = math.log(sigma / after)
        new, total = _sde_step(x, x_0, sigma, after, eta, s_noise)
        if h_last:
            new = new + (-math.expm1(-total) / 2 * h / h_last) * (x_0 - last)
        table.evaluate(sigma, x=new, last=x_0)
        h_last = h
    return table.build()


def dpmpp_3m_sde(levels: NoiseLevels, eta: float = 1.0, s_noise: float = 1.0) -> tuple[Solver, Plan]:
    """Stochastic three-step method, with divided differences of the last three x_0."""
    table = Table(levels, "x", "last", "before")
    x, last, before, x_0 = terms("x", "last", "before", "x_0")
    past: list[float] = []
    for sigma, after in levels.steps:
        if after == 0:
            table.evaluate(sigma, x=x_0)
            continue
        h = math.log(sigma / after)
        new, total = _sde_step(x, x_0, sigma, after, eta, s_noise)
        phi_2 = 1 + math.expm1(-total) / total
        if past:
            r_0 = past[-1] / h
            slope = (x_0 - last) / r_0
            if past[:-1]:
                r_1 = past[-2] / h
                bend = (slope - (last - before) / r_1) / (r_0 + r_1)
                new = new - (phi_2 / total - 0.5) * bend
                slope = slope + r_0 * bend
            new = new + phi_2 * slope
        table.evaluate(sigma, x=new, last=x_0, before=last)
        past.append(h)
    return table.build()
