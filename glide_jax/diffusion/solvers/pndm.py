"""Pseudo numerical methods (Liu et al. 2022, arXiv:2202.09778) as in crowsonkb's fork of glide-text2im.

They follow the raw noise prediction: x_0 is never thresholded on the way, and known pixels are not pasted into it.
"""

import math

import numpy as np

from glide_jax.diffusion.levels import HostLevel, NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.table import LinearCombination, Table, terms
from glide_jax.errors import GlideError

_HISTORY = ("eps_1", "eps_2", "eps_3")


def prk(levels: NoiseLevels, clean_up: bool = True) -> tuple[Solver, Plan]:
    """Pseudo Runge-Kutta of fourth order: four evaluations a step.

    As the fork does, it skips the noisiest level and stops at the least noisy, which leaves that level's noise in the
    image; `clean_up` takes x_0 there with one evaluation more.
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
    # Positions in the levels, ascending in noise: the last but one is where the fork starts.
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
