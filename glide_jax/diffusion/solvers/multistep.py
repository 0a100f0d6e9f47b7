"""Methods that use earlier steps: PLMS with its Runge-Kutta start, k-diffusion's LMS, UniPC."""

import math

import numpy as np
from numpy.polynomial.polynomial import Polynomial, polyfromroots

from glide_jax.diffusion.levels import HostLevel, NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import LinearCombination, Table, terms
from glide_jax.errors import GlideError

_HISTORY = ("eps_1", "eps_2", "eps_3")
# How much a step of `lms` may multiply errors of slopes; fourth order at even distances does by 6.7.
_MOST_AMPLIFIED = 20.0


def prk(levels: NoiseLevels, clean_up: bool = True) -> tuple[Solver, Plan]:
    """Pseudo Runge-Kutta of fourth order: four evaluations per step (Liu et al. 2022, arXiv:2202.09778).

    Like crowsonkb's fork of glide-text2im, it follows the raw noise prediction (x_0 is not thresholded on the way, and
    known pixels are not pasted into it), skips the noisiest level, and stops at the least noisy one, which leaves that
    level's noise in the image; `clean_up` replaces it by x_0 with one more evaluation.
    """
    return _pndm(levels, multistep=False, clean_up=clean_up)


def plms(levels: NoiseLevels, clean_up: bool = True) -> tuple[Solver, Plan]:
    """Pseudo linear multistep: eps' = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24, after three steps of `prk`."""
    return _pndm(levels, multistep=True, clean_up=clean_up)


def _pndm(levels: NoiseLevels, *, multistep: bool, clean_up: bool) -> tuple[Solver, Plan]:
    if len(levels) < 3:
        raise GlideError(f"plms and prk skip the first level and need at least 3 steps, not {len(levels)}")
    table = Table(levels, "x", "start", "sum", *_HISTORY, signal_scaled=True)
    x, start, total, eps, x_0 = terms("x", "start", "sum", "eps", "x_0")
    history = terms(*_HISTORY)
    # Positions in the levels, ascending in noise; the fork starts at the last but one.
    for step, position in enumerate(range(len(levels) - 2, 0, -1)):
        here, middle, after = (_between(levels, position - back) for back in (0, 0.5, 1))
        if multistep and step >= len(_HISTORY):
            mixed = (55 * eps - 59 * history[0] + 37 * history[1] - 9 * history[2]) / 24
            table.evaluate(here, x=_transfer(x, mixed, here, after), **_shifted(eps))
            continue
        table.evaluate(here, x=_transfer(x, eps, here, middle), start=x, sum=eps)
        table.evaluate(middle, x=_transfer(start, eps, here, middle), sum=total + 2 * eps)
        table.evaluate(middle, x=_transfer(start, eps, here, after), sum=total + 2 * eps)
        mixed = (total + eps) / 6
        table.evaluate(after, x=_transfer(start, mixed, here, after), **_shifted(mixed))
    if clean_up:
        table.evaluate(_between(levels, 0), x=x_0)
    return table.build()


def _shifted(newest: LinearCombination) -> dict[str, LinearCombination]:
    return dict(zip(_HISTORY, [newest, *terms(*_HISTORY[:-1])], strict=True))


def _transfer(x: LinearCombination, eps: LinearCombination, here: HostLevel, after: HostLevel) -> LinearCombination:
    """x' = alpha' (x - sigma eps) / alpha + sigma' eps (eq. 11; torch: pndm_transfer)."""
    return (after.alpha / here.alpha) * (x - here.sigma * eps) + after.sigma * eps


def _between(levels: NoiseLevels, position: float) -> HostLevel:
    """The level at a fractional position, with abar and t interpolated linearly between two, as the fork does."""
    positions = np.arange(len(levels))
    abar = float(np.interp(position, positions, levels.alphas_cumprod[::-1]))
    t = float(np.interp(position, positions, levels.timesteps[::-1]))
    return HostLevel(t, math.sqrt(abar), math.sqrt(1 - abar))


def lms(levels: NoiseLevels, order: int = 4) -> tuple[Solver, Plan]:
    """Linear multistep: x' = x + integral from sigma to sigma' of the polynomial through the last `order` slopes.

    Through fewer of them where the polynomial would be extrapolated far beyond levels that are close together, as in
    the last step of many, to sigma 0: k-diffusion's images are then more and more noise.
    """
    past = [f"slope_{k}" for k in range(1, order)]
    table = Table(levels, "x", *past)
    x, x_0, *slopes = terms("x", "x_0", *past)
    for i, (sigma, after) in enumerate(levels.steps):
        latest = [(x - x_0) / sigma, *slopes][: min(i + 1, order)]
        while sum(map(abs, weights := _weights(levels.sigmas[i::-1][: len(latest)], sigma, after))) > (
            _MOST_AMPLIFIED * (sigma - after)
        ):
            latest.pop()
        new = x
        for weight, slope in zip(weights, latest, strict=True):
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

    Corrects each step with the evaluation that the next one needs anyway, then predicts (Algorithms 1 and 2).

    A step is x' = e^-h x + (1 - e^-h) (x_0 + sum of rho_k D_k), with D_k the difference of x_0 to another evaluation
    over their distance in lambda, in units of h. The predictor uses the previous evaluation, the corrector also the
    next one.
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
