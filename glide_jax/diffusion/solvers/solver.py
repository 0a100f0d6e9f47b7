"""What a solver is, and the one loop that drives them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from glide_jax.diffusion.denoiser import Denoiser
from glide_jax.diffusion.forward import Image

# One evaluation's coefficients: a pytree of arrays; a plan stacks them along a leading axis.
Row = Any
Noise = Callable[[Int[Array, ""] | int], Image]

# Tables are padded to a multiple of this, so that one compiled program serves any number of steps up to it.
_BUCKET = 128


class Start(NamedTuple):
    """Factors of what a run starts from, as the solver scales its pictures.

    Attributes:
        noise_alone: of standard normal noise, where there is nothing else.
        picture, noise: of a clean picture and of the noise that hides it, where a run starts from a picture.
    """

    noise_alone: float
    picture: float
    noise: float


class Plan(NamedTuple):
    """All evaluations of one run, computed in float64 on the host.

    Attributes:
        rows: pytree of float64 arrays, each [evaluations, ...]: the coefficients in running order.
        start: how to scale what the run starts from.
    """

    rows: PyTree[Shaped[np.ndarray, "evaluations ..."]]
    start: Start

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.rows)[0])

    def on_device(self) -> PyTree[Shaped[np.ndarray, "padded ..."]]:
        """Rows in float32, with unused ones at the end."""
        extra = -len(self) % _BUCKET
        return jax.tree.map(
            lambda column: np.pad(column, [(0, extra)] + [(0, 0)] * (column.ndim - 1)).astype(np.float32), self.rows
        )


class Solver(NamedTuple):
    """A sampler as pure functions over a carry.

    Attributes:
        init: starting noise -> carry.
        step: (carry, row, denoise, noise) -> carry, with one call of `denoise(x, level)`; `noise()` draws fresh noise.
        finish: carry -> picture.
    """

    init: Callable[[Image], Any]
    step: Callable[[Any, Row, "StepDenoiser", Callable[[], Image]], Any]
    finish: Callable[[Any], Image]


class StepDenoiser:
    """A denoiser within one step: keeps the guidance's memory so that solvers need not thread it."""

    def __init__(self, denoise: Denoiser, carry: Any) -> None:
        self._denoise, self.carry = denoise, carry

    def __call__(self, x: Image, level: Any) -> Any:
        prediction, self.carry = self._denoise(x, level, self.carry)
        return prediction


def run_steps(
    solver: Solver,
    denoise: Denoiser,
    noise: Noise,
    carry: tuple[Any, Any],
    rows: Row,
    first: Int[Array, ""] | int,
    end: Int[Array, ""] | int,
) -> tuple[Any, Any]:
    """Runs rows `first` to `end` - 1 in one loop, whose length the compiled program does not fix.

    Args:
        solver: the method.
        denoise: the model, with guidance and thresholding.
        noise: row number -> standard normal noise.
        carry: (solver's carry, guidance's memory).
        rows: coefficients of the whole run, each [evaluations, ...].
        first, end: which of them; they may be traced.
    """

    def body(number: Int[Array, ""] | int, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        row = jax.tree.map(lambda column: jax.lax.dynamic_index_in_dim(column, number, keepdims=False), rows)
        stepper = StepDenoiser(denoise, carry[1])
        return solver.step(carry[0], row, stepper, lambda: noise(number)), stepper.carry

    return jax.lax.fori_loop(first, end, body, carry)
