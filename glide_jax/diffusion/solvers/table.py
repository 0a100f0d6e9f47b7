"""Solvers that are linear in their pictures, written as formulas and run as a table of coefficients.

All of k-diffusion's methods, DDIM, PLMS and UniPC combine a few pictures (the point x, what the model said there, what
it said before, noise) with numbers that depend on the noise levels alone. A method therefore computes its numbers once,
in float64 on the host, by ordinary arithmetic on named pictures:

    x, x_0 = pictures("x", "x_0")
    table.evaluate(sigma, x=x + (sigma_next - sigma) * (x - x_0) / sigma)

which means: evaluate the model at x and noise sigma, then replace x. One step function, compiled once, runs any table.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Array, Float

from glide_jax.diffusion.denoiser import follow_gradient
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.grid import Grid, HostLevel
from glide_jax.diffusion.solvers.solver import Plan, Solver, Start, StepDenoiser

# What an evaluation gives beside the pictures kept: see `Prediction`, and fresh noise.
_OUTPUTS = ("x_0", "eps", "direction")
_NOISE = "noise"


class Combination:
    """A linear combination of named pictures."""

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


def pictures(*names: str) -> list[Combination]:
    """The pictures of these names, to compute with."""
    return [Combination({name: 1.0}) for name in names]


class Row(NamedTuple):
    """One evaluation: where, and what becomes of the pictures.

    Attributes:
        level: noise level of the evaluation.
        input_scale: factor from the first picture to what the model sees.
        matrix: from the pictures kept, the outputs used and the noise, in this order, to the pictures kept.
    """

    level: Level
    input_scale: Float[Array, "*rows"]
    matrix: Float[Array, "*rows pictures sources"]


class Table:
    """Collects the evaluations of one run.

    Args:
        grid: levels, which also say how sigma maps to timesteps.
        kept: names of the pictures that are carried; the model is evaluated at the first, and all start as noise.
        signal_scaled: whether that picture is sqrt(abar) x_0 + sqrt(1 - abar) eps, as the model sees it, and not
            x_0 + sigma eps.
    """

    def __init__(self, grid: Grid, *kept: str, signal_scaled: bool = False) -> None:
        self._grid, self._kept, self._signal_scaled = grid, kept, signal_scaled
        self._levels: list[HostLevel] = []
        self._updates: list[dict[str, Combination]] = []

    def evaluate(self, at: float | HostLevel, **updates: Combination) -> None:
        """Evaluates the model at the first picture and a sigma or a level, then replaces pictures, all at once.

        Args:
            at: where.
            **updates: new values, in terms of the old ones, of "x_0", "eps", "direction" and "noise".
        """
        self._levels.append(at if isinstance(at, HostLevel) else self._grid.level(at))
        self._updates.append(updates)

    def build(self, initial_noise: float = 0.0) -> tuple[Solver, Plan]:
        """The method and its plan.

        Args:
            initial_noise: standard deviation of noise to add to the first picture before anything else.
        """
        named = {name for updates in self._updates for new in updates.values() for name in new.weights}
        outputs = tuple(name for name in _OUTPUTS if name in named)
        noisy = any(new.weights.get(_NOISE) for updates in self._updates for new in updates.values())
        sources = [*self._kept, *outputs, *([_NOISE] if noisy else [])]
        matrices: Any = np.zeros((len(self._updates), len(self._kept), len(sources)))
        for matrix, updates in zip(matrices, self._updates, strict=True):
            for row, name in zip(matrix, self._kept, strict=True):
                new = updates.get(name, Combination({name: 1.0}))
                row[:] = [new.weights.get(source, 0.0) for source in sources]
        level: Any = HostLevel(*np.array(self._levels).T)
        scale: Any = np.ones(len(matrices)) if self._signal_scaled else level.alpha
        if self._signal_scaled:
            start = Start(1.0, float(level.alpha[0]), float(level.sigma[0]))
        else:
            # Alone, noise gets the spread of a noised picture of unit variance: what a model is trained to expect.
            sigma = math.hypot(self._grid.sigmas[0], initial_noise)
            start = Start(math.hypot(1.0, sigma), 1.0, sigma)
        return _linear(len(self._kept), outputs, noisy), Plan(Row(Level(*level), scale, matrices), start)


@cache
def _linear(kept: int, outputs: tuple[str, ...], noisy: bool) -> Solver:
    """One solver for all tables of this shape, so that they share one compiled program."""

    def step(
        state: tuple[Image, ...], row: Row, denoise: StepDenoiser, noise: Callable[[], Image]
    ) -> tuple[Image, ...]:
        prediction = follow_gradient(denoise(row.input_scale * state[0], row.level), row.level)
        sources = [*state, *(getattr(prediction, name) for name in outputs), *([noise()] if noisy else [])]
        return tuple(sum(row.matrix[i, j] * source for j, source in enumerate(sources)) for i in range(kept))

    return Solver(init=lambda x: (x,) * kept, step=step, finish=lambda state: state[0])
