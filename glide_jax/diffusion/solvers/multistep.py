"""Multistep methods: k-diffusion's LMS, and UniPC."""

import math

import numpy as np
from numpy.polynomial.polynomial import Polynomial, polyfromroots

from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import Table, terms


def lms(levels: NoiseLevels, order: int = 4) -> tuple[Solver, Plan]:
    """Linear multistep: x' = x + integral from sigma to sigma' of the polynomial through the last `order` slopes."""
    past = [f"slope_{k}" for k in range(1, order)]
    table = Table(levels, "x", *past)
    x, x_0, *slopes = terms("x", "x_0", *past)
    for i, (sigma, after) in enumerate(levels.steps):
        latest = [(x - x_0) / sigma, *slopes][: min(i + 1, order)]
        new = x
        for weight, slope in zip(_weights(levels.sigmas[i::-1][: len(latest)], sigma, after), latest, strict=True):
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


def unipc(levels: NoiseLevels) -> tuple[Solver, Plan]:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867) on x_0, of second order, with B(h) = e^h - 1 ("bh2").

    Corrects each step with the evaluation that the next one makes anyway, then predicts (Algorithms 1 and 2).

    A step is x' = e^-h x + (1 - e^-h) (x_0 + sum of rho_k D_k), with D_k the difference of x_0 to another evaluation
    over their distance in lambda, in units of h. The predictor knows the evaluation before, the corrector also the one
    ahead.
    """
    table = Table(levels, "x", "start", "last", "before")
    x, start, last, before, x_0 = terms("x", "start", "last", "before", "x_0")
    corrected, h_last, h_before = x, 0.0, 0.0
    for i, (sigma, after) in enumerate(levels.steps):
        if i:
            ahead_weight, past_weight = _corrector(h_last, h_before)
            mixed = last + ahead_weight * (x_0 - last) + past_weight * (last - before)
            corrected = math.exp(-h_last) * start + -math.expm1(-h_last) * mixed
        h = math.log(sigma / after) if after else math.inf
        mixed = x_0 + (h / (2 * h_last)) * (x_0 - last) if h_last and after else x_0
        predicted = math.exp(-h) * corrected + -math.expm1(-h) * mixed
        table.evaluate(sigma, x=predicted, start=corrected, last=x_0, before=last)
        h_last, h_before = h, h_last
    return table.build()


def _corrector(h: float, h_before: float) -> tuple[float, float]:
    """Weights of x_0(ahead) - x_0 and x_0 - x_0(before) that match the first two moments of the integral (eq. 11)."""
    if not h_before:
        return 0.5, 0.0
    first = (math.expm1(-h) / -h - 1) / math.expm1(-h)
    second = 2 * ((math.expm1(-h) / -h - 1) / -h - 0.5) / math.expm1(-h)
    r = -h_before / h
    past = (first - second) / (1 - r)
    return first - past, past / -r
