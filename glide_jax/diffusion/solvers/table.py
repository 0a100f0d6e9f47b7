"""Solvers that are linear in their images, written as formulas and run as tables of coefficients.

All of k-diffusion's methods, DDIM, PLMS and UniPC combine a few images (the point x, the model's predictions there
and earlier, noise) with coefficients that depend only on the noise levels. A method therefore computes its coefficients
once, in float64 on the host, by ordinary arithmetic on named images:

    x, x_0 = terms("x", "x_0")
    table.evaluate(sigma, x=x + (sigma_next - sigma) * (x - x_0) / sigma)

which means: evaluate the model at x and noise sigma, then replace x. A single compiled step function runs any table.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import numpy as np

from glide_jax.diffusion.denoiser import Prediction, follow_gradient
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.levels import HostLevel, NoiseLevels
from glide_jax.diffusion.solvers.solver import Plan, Row, Solver, Start, State

# What an evaluation provides besides the images kept: see `Prediction`, and fresh noise.
_OUTPUTS = ("x_0", "eps", "direction")
_NOISE = "noise"


class LinearCombination:
    """A linear combination of named images."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def __add__(self, other: Self) -> Self:
        names = [*self.weights, *(name for name in other.weights if name not in self.weights)]
        return type(self)({name: self.weights.get(name, 0.0) + other.weights.get(name, 0.0) for name in names})

    def __rmul__(self, factor: float) -> Self:
        return type(self)({name: factor * weight for name, weight in self.weights.items()})

    def __sub__(self, other: Self) -> Self:
        return self + -1.0 * other

    def __truediv__(self, divisor: float) -> Self:
        return (1 / divisor) * self


def terms(*names: str) -> list[LinearCombination]:
    """The images with these names, to compute with."""
    return [LinearCombination({name: 1.0}) for name in names]


class Table:
    """Collects the evaluations of a run.

    Args:
        levels: the noise levels, which also define how sigma maps to timesteps.
        kept: names of the images carried along; the model is evaluated at the first, and all start as noise.
        signal_scaled: whether that image is sqrt(abar) x_0 + sqrt(1 - abar) eps, as the model sees it, and not
            x_0 + sigma eps.
    """

    def __init__(self, levels: NoiseLevels, *kept: str, signal_scaled: bool = False) -> None:
        self._levels, self._kept, self._signal_scaled = levels, kept, signal_scaled
        self._visited: list[HostLevel] = []
        self._churn: list[float] = []
        self._updates: list[dict[str, LinearCombination]] = []

    def evaluate(self, at: float | HostLevel, churn: float = 0.0, /, **updates: LinearCombination) -> None:
        """Evaluates the model at the first image and a sigma or level, then replaces images, all at once.

        Args:
            at: the sigma or level.
            churn: standard deviation of the noise added to the first image before.
            **updates: new values, in terms of the old ones, of "x_0", "eps", "direction" and "noise".
        """
        self._visited.append(at if isinstance(at, HostLevel) else self._levels.level(at))
        self._churn.append(churn)
        self._updates.append(updates)

    def build(self) -> tuple[Solver, Plan]:
        """The solver and its plan.

        Raises:
            ValueError: an image or output that does not exist, or one evaluation's noise used for churn and again.
        """
        known = {*self._kept, *_OUTPUTS, _NOISE}
        for updates, added in zip(self._updates, self._churn, strict=True):
            used = {name for new in updates.values() for name, weight in new.weights.items() if weight}
            if unknown := (updates.keys() - set(self._kept)) | (used - known):
                raise ValueError(f"{sorted(unknown)} is not among the images kept and the outputs, {sorted(known)}")
            if added and _NOISE in used:
                raise ValueError("one evaluation has one noise: it is either churn or part of an update")
        named = {name for updates in self._updates for new in updates.values() for name in new.weights}
        outputs = tuple(name for name in _OUTPUTS if name in named)
        noisy = any(new.weights.get(_NOISE) for updates in self._updates for new in updates.values())
        sources = [*self._kept, *outputs, *([_NOISE] if noisy else [])]
        matrices: Any = np.zeros((len(self._updates), len(self._kept), len(sources)))
        for matrix, updates in zip(matrices, self._updates, strict=True):
            for row, name in zip(matrix, self._kept, strict=True):
                new = updates.get(name, LinearCombination({name: 1.0}))
                row[:] = [new.weights.get(source, 0.0) for source in sources]
        level: Any = HostLevel(*np.array(self._visited).T)
        scale: Any = np.ones(len(matrices)) if self._signal_scaled else level.alpha
        churn: Any = np.array(self._churn) if any(self._churn) else None
        if self._signal_scaled:
            start = Start(1.0, float(level.alpha[0]), float(level.sigma[0]))
        else:
            # Noise alone gets the spread of a noised image of unit variance, which a model is trained to expect.
            sigma = float(self._levels.sigmas[0])
            start = Start(math.hypot(1.0, sigma), 1.0, sigma)
        plan = Plan(Row(Level(*level), scale, matrices, churn), start)
        return _linear(len(self._kept), outputs, noisy, churn is not None), plan


@cache
def _linear(images: int, outputs: tuple[str, ...], noisy: bool, churned: bool) -> Solver:
    """One solver for all tables of this shape, so that they share one compiled program."""

    def step(state: State, row: Row, prediction: Prediction, noise: Image | None) -> State:
        followed = follow_gradient(prediction, row.level)
        sources = [*state, *(getattr(followed, name) for name in outputs), *([noise] if noisy else [])]
        matrix = row.coefficients
        return tuple(sum(matrix[i, j] * source for j, source in enumerate(sources)) for i in range(images))

    return Solver(step, images, noisy or churned)
