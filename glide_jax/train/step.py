"""The training step: (state, batch) -> (state, metrics), one compiled program with donated state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from glide_jax.diffusion.forward import Level, q_sample
from glide_jax.diffusion.losses import LossConfig, Losses, training_losses
from glide_jax.diffusion.schedules import Schedule
from glide_jax.models import Conditioning, Glide, Params
from glide_jax.train.config import OptimizerConfig
from glide_jax.train.draws import DrawFn
from glide_jax.train.optimizer import update_ema

# {"step", "params", "ema", "opt"}: plain dicts of float32 arrays, the step and optimizer counts int32.
State = dict[str, Any]
# image and low_res uint8 (or float32 in [-1, 1]), tokens int32, mask bool, index int32 (see glide_jax.data).
DeviceBatch = dict[str, Array]
Metrics = dict[str, Array]


def init_state(model: Glide, optimizer: optax.GradientTransformation, key: PRNGKeyArray) -> State:
    """A fresh training state; to be called under jit with the shardings it is to live in."""
    return state_from_params(model.init(key), optimizer)


def state_from_params(params: Params, optimizer: optax.GradientTransformation) -> State:
    """A training state that starts from given weights."""
    # A copy, because two entries of a donated state must not share a buffer.
    ema = jax.tree.map(jnp.copy, params)
    return {"step": jnp.int32(0), "params": params, "ema": ema, "opt": optimizer.init(params)}


def batch_losses(
    model: Glide,
    schedule: Schedule,
    config: LossConfig,
    draws: DrawFn,
    params: Params,
    step: Array,
    batch: DeviceBatch,
) -> Losses:
    """Losses of each picture of a batch, with t, noise and dropout from `draws`."""
    x_0 = _as_float(batch["image"])
    low_res = _as_float(batch["low_res"]) if "low_res" in batch else None
    drawn = draws(step, batch["index"], x_0.shape[1:])
    x_t = q_sample(x_0, drawn.noise, Level.table(schedule).at(drawn.t))
    conditioning = Conditioning(model.encode_text(params, batch["tokens"], batch["mask"]), low_res)
    output = model(params, x_t, drawn.t.astype(jnp.float32), conditioning, drawn.dropout_keys)
    return training_losses(config, schedule, output, x_0, x_t, drawn.noise, drawn.t)


def make_train_step(
    model: Glide,
    schedule: Schedule,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    optimizer_config: OptimizerConfig,
    draws: DrawFn,
) -> Callable[[State, DeviceBatch], tuple[State, Metrics]]:
    """The step as a function to jit with `donate_argnums=0`."""

    def train_step(state: State, batch: DeviceBatch) -> tuple[State, Metrics]:
        def mean_loss(params: Params) -> tuple[Array, Losses]:
            losses = batch_losses(model, schedule, loss, draws, params, state["step"], batch)
            return losses.total.mean(), losses

        (value, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        step = state["step"] + 1
        ema = update_ema(optimizer_config, state["ema"], params, step)
        metrics = {"loss": value, "mse": losses.mse.mean(), "grad_norm": optax.tree.norm(grads)}
        if loss.kind == "hybrid":
            metrics["vlb"] = losses.vlb.mean()
        return {"step": step, "params": params, "ema": ema, "opt": opt}, metrics

    return train_step


def make_validation_step(
    model: Glide, schedule: Schedule, draws: DrawFn
) -> Callable[[Params, DeviceBatch], tuple[Array, Array]]:
    """Sum of the noise loss over a batch's pictures of weight 1, and how many they are."""

    def validation_step(params: Params, batch: DeviceBatch) -> tuple[Array, Array]:
        losses = batch_losses(model, schedule, LossConfig("simple"), draws, params, jnp.int32(0), batch)
        return (losses.mse * batch["weight"]).sum(), batch["weight"].sum()

    return validation_step


def _as_float(pixels: Array) -> Array:
    return pixels.astype(jnp.float32) / 127.5 - 1.0 if pixels.dtype == jnp.uint8 else pixels
