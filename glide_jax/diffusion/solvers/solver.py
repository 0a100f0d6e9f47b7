"""What a solver is, and the loop that drives all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.denoiser import Denoiser, Prediction
from glide_jax.diffusion.forward import Image, Level

# The images a solver carries along; the model sees the first.
State = tuple[Image, ...]
Noise = Callable[[Int[Array, ""] | int], Image]

# Tables are padded to a multiple of this, so that a compiled program serves any number of steps up to it.
_BUCKET = 128


class Row(NamedTuple):
    """One evaluation of the model; a plan stacks rows along a leading axis.

    Attributes:
        level: its noise level.
        input_scale: factor between the first image carried and the model's input.
        coefficients: the solver's, a pytree of arrays.
        churn: standard deviation of the noise added to the first image before; None if no row adds any.
    """

    level: Level
    input_scale: Float[Array, "*rows"]
    coefficients: Any
    churn: Float[Array, "*rows"] | None = None


class Start(NamedTuple):
    """How a run's starting point is scaled, in the solver's scaling of images.

    Attributes:
        noise_alone: factor of standard normal noise, for a run that starts from noise.
        image, noise: factors of a clean image and of the noise added to it, for a run that starts from an image.
    """

    noise_alone: float
    image: float
    noise: float


class Plan(NamedTuple):
    """All evaluations of one run, computed in float64 on the host.

    Attributes:
        rows: float64 arrays, each [evaluations, ...], in the order they run.
        start: how to scale the starting point.
    """

    rows: Row
    start: Start

    def __len__(self) -> int:
        return len(self.rows.level.t)

    def on_device(self) -> Row:
        """The rows in float32, padded at the end."""
        extra = -len(self) % _BUCKET
        return jax.tree.map(
            lambda column: np.pad(column, [(0, extra)] + [(0, 0)] * (column.ndim - 1)).astype(np.float32), self.rows
        )


class Solver(NamedTuple):
    """A sampler as a pure function from one evaluation to the next.

    Attributes:
        step: (state, row, prediction, noise) -> state; the first image of the final state is the result.
        images: the number of images in the state; all are initialised with the starting noise or noised image.
        noisy: whether `step` or churn needs standard normal noise; otherwise `step` gets None.
    """

    step: Callable[[State, Row, Prediction, Image | None], State]
    images: int = 1
    noisy: bool = False


class Carry(NamedTuple):
    """Everything passed from one evaluation to the next.

    Attributes:
        state: the solver's images.
        x_0: the last predicted clean image, for previews.
        memory: of a guidance which has one.
    """

    state: State
    x_0: Image
    memory: Any = None


def start(solver: Solver, x: Image, memory: Any = None) -> Carry:
    """The carry a run begins with.

    Args:
        solver: the sampler.
        x: starting noise or noised image, scaled by the plan's `Start`.
        memory: of a guidance which has one.
    """
    return Carry((x,) * solver.images, jnp.zeros_like(x), memory)


def run_steps(
    solver: Solver,
    denoise: Denoiser,
    noise: Noise,
    carry: Carry,
    rows: Row,
    first: Int[Array, ""] | int,
    end: Int[Array, ""] | int,
) -> Carry:
    """Runs rows `first` to `end` - 1 in one loop, whose length is not fixed by the compiled program.

    Args:
        solver: the sampler.
        denoise: the model, with guidance and thresholding.
        noise: row number -> standard normal noise.
        carry: from `start`, or from the rows before.
        rows: those of the whole run, each column [evaluations, ...].
        first, end: the rows to run; they may be traced.
    """

    def body(number: Int[Array, ""] | int, carry: Carry) -> Carry:
        row = jax.tree.map(lambda column: jax.lax.dynamic_index_in_dim(column, number, keepdims=False), rows)
        fresh = noise(number) if solver.noisy else None
        x, *others = carry.state
        if row.churn is not None:
            x = x + row.churn * fresh
        prediction, memory = denoise(row.input_scale * x, row.level, carry.memory)
        return Carry(solver.step((x, *others), row, prediction, fresh), prediction.x_0, memory)

    return jax.lax.fori_loop(first, end, body, carry)
