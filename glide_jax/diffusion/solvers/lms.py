"""Linear multistep in sigma, as k-diffusion's (an Adams-Bashforth method of variable step)."""

import numpy as np
from numpy.polynomial.polynomial import Polynomial, polyfromroots

from glide_jax.diffusion.grid import Grid
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import Table, pictures


def lms(grid: Grid, order: int = 4) -> tuple[Solver, Plan]:
    """x' = x + integral from sigma to sigma' of the polynomial through the last `order` slopes."""
    past = [f"slope_{k}" for k in range(1, order)]
    table = Table(grid, "x", *past)
    x, x_0, *slopes = pictures("x", "x_0", *past)
    for i, (sigma, after) in enumerate(grid.steps):
        latest = [(x - x_0) / sigma, *slopes][: min(i + 1, order)]
        new = x
        for weight, slope in zip(_weights(grid.sigmas[i::-1][: len(latest)], sigma, after), latest, strict=True):
            new = new + weight * slope
        shifted = dict(zip(past, [(x - x_0) / sigma, *slopes], strict=False))
        table.evaluate(sigma, x=new, **shifted)
    return table.build()


def _weights(nodes: np.ndarray, start: float, end: float) -> list[float]:
    """Integrals from `start` to `end` of the Lagrange polynomials of `nodes`."""
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = Polynomial(polyfromroots(others) / np.prod(node - others))
        weights.append(float(basis.integ(lbnd=start)(end)))
    return weights
