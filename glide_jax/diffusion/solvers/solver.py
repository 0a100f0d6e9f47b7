"""What a solver is, and the one loop that drives them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from glide_jax.diffusion.denoiser import Denoiser
from glide_jax.diffusion.forward import Image

# One step's coefficients: a pytree of scalars; a plan stacks them along a leading axis of steps.
Row = Any
Noise = Callable[[Int[Array, ""]], Image]


class Plan(NamedTuple):
    """All steps of one run, computed in float64 on the host.

    Attributes:
        rows: pytree of float32 arrays, each [steps, ...]: the coefficients of every step in running order.
        initial_scale: standard deviation of the starting noise.
    """

    rows: Row
    initial_scale: float = 1.0

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.rows)[0])

    def padded(self, multiple: int) -> tuple[Row, Bool[np.ndarray, " steps"]]:
        """Rows repeated to a multiple of `multiple`, and which of them are real."""
        extra = -len(self) % multiple
        rows = jax.tree.map(lambda column: np.concatenate([column, np.repeat(column[-1:], extra, axis=0)]), self.rows)
        return rows, np.arange(len(self) + extra) < len(self)


class Solver(NamedTuple):
    """A sampler as pure functions over a carry.

    Attributes:
        init: starting noise -> carry.
        step: (carry, row, denoise, noise) -> carry; `denoise(x, level)` predicts, `noise()` draws this step's noise.
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
    first: Int[Array, ""],
    active: Bool[Array, " steps"],
) -> tuple[Any, Any]:
    """Runs consecutive steps by one `lax.scan`.

    Args:
        solver: the method.
        denoise: the model, with guidance and thresholding.
        noise: step number, counted from the start of the run -> standard normal noise.
        carry: (solver's carry, guidance's memory).
        rows: coefficients of these steps, each [steps, ...].
        first: number of the first of them.
        active: False for padding, which leaves the carry as it is.
    """

    def body(carry: tuple[Any, Any], xs: tuple[Row, Array, Array]) -> tuple[tuple[Any, Any], None]:
        row, number, is_active = xs

        def take(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            stepper = StepDenoiser(denoise, carry[1])
            return solver.step(carry[0], row, stepper, lambda: noise(number)), stepper.carry

        return jax.lax.cond(is_active, take, lambda carry: carry, carry), None

    numbers = first + jnp.arange(len(active))
    return jax.lax.scan(body, carry, (rows, numbers, active))[0]
