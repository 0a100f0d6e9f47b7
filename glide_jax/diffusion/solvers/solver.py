"""What a solver is, and the one loop that drives them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.denoiser import Denoiser, Prediction
from glide_jax.diffusion.forward import Image, Level

# The images that a solver carries; the model sees the first.
State = tuple[Image, ...]
Noise = Callable[[Int[Array, ""] | int], Image]

# Tables are padded to a multiple of this, so that one compiled program serves any number of steps up to it.
_BUCKET = 128


class Row(NamedTuple):
    """One evaluation of the model; a plan stacks them along a leading axis.

    Attributes:
        level: its noise level.
        input_scale: factor from the first image carried to what the model sees.
        coefficients: of the solver, a pytree of arrays.
        churn: standard deviation of noise added to the first image before; None if no row adds any.
    """

    level: Level
    input_scale: Float[Array, "*rows"]
    coefficients: Any
    churn: Float[Array, "*rows"] | None = None


class Start(NamedTuple):
    """Factors of what a run starts from, as the solver scales its images.

    Attributes:
        noise_alone: of standard normal noise, where there is nothing else.
        image, noise: of a clean image and of the noise added to it, where a run starts from an image.
    """

    noise_alone: float
    image: float
    noise: float


class Plan(NamedTuple):
    """All evaluations of one run, computed in float64 on the host.

    Attributes:
        rows: float64 arrays, each [evaluations, ...], in running order.
        start: how to scale what the run starts from.
    """

    rows: Row
    start: Start

    def __len__(self) -> int:
        return len(self.rows.level.t)

    def on_device(self) -> Row:
        """Rows in float32, with unused ones at the end."""
        extra = -len(self) % _BUCKET
        return jax.tree.map(
            lambda column: np.pad(column, [(0, extra)] + [(0, 0)] * (column.ndim - 1)).astype(np.float32), self.rows
        )


class Solver(NamedTuple):
    """A sampler as a pure function from one evaluation to the next.

    Attributes:
        step: (state, row, prediction, noise) -> state; the last state's first image is the result.
        images: how many images the state has; all start as the starting noise or noised image.
        noisy: whether `step` or churn takes standard normal noise; else `step` gets None.
    """

    step: Callable[[State, Row, Prediction, Image | None], State]
    images: int = 1
    noisy: bool = False


class Carry(NamedTuple):
    """What goes from one evaluation to the next.

    Attributes:
        state: the solver's images.
        x_0: the last predicted clean image, for previews.
        memory: of a guidance which has one.
    """

    state: State
    x_0: Image
    memory: Any = None


def start(solver: Solver, x: Image, memory: Any = None) -> Carry:
    """What a run begins with.

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
    """Runs rows `first` to `end` - 1 in one loop, whose length the compiled program does not fix.

    Args:
        solver: the sampler.
        denoise: the model, with guidance and thresholding.
        noise: row number -> standard normal noise.
        carry: of `start`, or of the rows before.
        rows: of the whole run, each column [evaluations, ...].
        first, end: which of them; they may be traced.
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
