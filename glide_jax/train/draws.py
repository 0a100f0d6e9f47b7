"""The random numbers of a training step, as a function a test can replace."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.randomness import fold, keys_per_example, normal_per_example, stream_key, uniform_per_example


class Draws(NamedTuple):
    """What one batch needs.

    Attributes:
        t: original timestep of each picture, uniform over [0, T).
        noise: standard normal.
        dropout_keys: one key a picture, or None for no dropout.
        condition_keys: one key a picture, for masks and for spoiling small pictures.
    """

    t: Int[Array, " batch"]
    noise: Float[Array, "batch height width 3"]
    dropout_keys: PRNGKeyArray | None
    condition_keys: PRNGKeyArray


# (update number, global example indices, shape of one picture) -> draws.
DrawFn = Callable[[Int[Array, ""], Int[Array, " batch"], tuple[int, ...]], Draws]


def training_draws(seed: int, diffusion_steps: int) -> DrawFn:
    """Draws keyed by (seed, update, global example index): the same on any number of devices, and after a restart."""

    def draws(step: Int[Array, ""], index: Int[Array, " batch"], shape: tuple[int, ...]) -> Draws:
        uniform = uniform_per_example(fold(stream_key(seed, "t"), step), index)
        noise = normal_per_example(fold(stream_key(seed, "noise"), step), index, shape)
        dropout, condition = (
            keys_per_example(fold(stream_key(seed, stream), step), index) for stream in ("dropout", "condition")
        )
        return Draws(_to_timestep(uniform, diffusion_steps), noise, dropout, condition)

    return draws


def validation_draws(diffusion_steps: int) -> DrawFn:
    """Fixed draws, so that validation losses of any step and run compare: t goes evenly through [0, T) by index."""

    def draws(step: Int[Array, ""], index: Int[Array, " batch"], shape: tuple[int, ...]) -> Draws:
        # Multiples of the golden ratio fill [0, 1) evenly for any number of examples.
        uniform = jnp.mod(index.astype(jnp.float32) * 0.6180339887, 1.0)
        return Draws(
            _to_timestep(uniform, diffusion_steps),
            normal_per_example(stream_key(0, "validation"), index, shape),
            None,
            keys_per_example(stream_key(0, "validation condition"), index),
        )

    return draws


def _to_timestep(uniform: Float[Array, " batch"], diffusion_steps: int) -> Int[Array, " batch"]:
    return jnp.minimum((uniform * diffusion_steps).astype(jnp.int32), diffusion_steps - 1)
