"""Denoising diffusion implicit models (Song et al. 2020, arXiv:2010.02502)."""

import itertools
import math

from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import Table, terms


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
    """Runs the flow backwards, from a image to the noise that DDIM generates it from (Song et al. 2020, sec. 5.4).

    The image counts as already at the lowest level; each step takes eps where it is to go where it will be:
    x' = sqrt(abar') (x - sqrt(1 - abar) eps) / sqrt(abar) + sqrt(1 - abar') eps. x_0 is not thresholded.
    """
    table = Table(levels, "x", signal_scaled=True)
    x, eps = terms("x", "eps")
    upward = [levels.level(sigma) for sigma in levels.sigmas[::-1].tolist()]
    for here, after in itertools.pairwise([upward[0], *upward]):
        start = (x - here.sigma * eps) / here.alpha if after is not here else x
        table.evaluate(here, x=after.alpha * start + after.sigma * eps)
    return table.build()
