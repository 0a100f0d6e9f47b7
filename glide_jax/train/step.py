"""The training step: (state, batch) -> (state, metrics), one compiled program with donated state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.diffusion.forward import Level, q_sample
from glide_jax.diffusion.losses import LossConfig, Losses, training_losses
from glide_jax.diffusion.schedules import Schedule
from glide_jax.models import Glide, Params
from glide_jax.train.accumulation import accumulated_grads
from glide_jax.train.conditioning import ConditioningConfig, condition
from glide_jax.train.config import TrainConfig
from glide_jax.train.draws import DrawFn, Draws
from glide_jax.train.optimizer import update_ema
from glide_jax.train.skips import choose, judge, no_skips
from glide_jax.train.trainable import Trainable, merge, split

# {"step", "params", "ema", "opt", "skips"}: plain dicts of float32 arrays; step and counts are int32. The optimizer
# knows the trained parameters only.
State = dict[str, Any]
# image and low_res uint8 (or float32 in [-1, 1]), tokens int32, mask bool, index int32 (see glide_jax.data).
DeviceBatch = dict[str, Array]
Metrics = dict[str, Array]
Gather = Callable[[Params], Params]

QUARTILES = 4


def init_state(
    model: Glide, optimizer: optax.GradientTransformation, key: PRNGKeyArray, trainable: Trainable = "all"
) -> State:
    """A fresh training state; to be called under jit with the shardings it is to live in."""
    return state_from_params(model.init(key), optimizer, trainable)


def state_from_params(params: Params, optimizer: optax.GradientTransformation, trainable: Trainable = "all") -> State:
    """A training state that starts from given weights."""
    # A copy, because two entries of a donated state must not share a buffer.
    ema = jax.tree.map(jnp.copy, params)
    opt = optimizer.init(split(params, trainable)[0])
    return {"step": jnp.int32(0), "params": params, "ema": ema, "opt": opt, "skips": no_skips()}


def batch_losses(
    model: Glide,
    schedule: Schedule,
    config: LossConfig,
    drawn: Draws,
    params: Params,
    batch: DeviceBatch,
    conditioning: ConditioningConfig | None = None,
) -> Losses:
    """Losses of each picture of a batch, with t, noise, dropout, masks and the like as `drawn`."""
    x_0 = _as_float(batch["image"])
    low_res = _as_float(batch["low_res"]) if "low_res" in batch else None
    x_t = q_sample(x_0, drawn.noise, Level.table(schedule).at(drawn.t))
    text = model.encode_text(params, batch["tokens"], batch["mask"])
    given = condition(conditioning or ConditioningConfig(), model.config, text, x_0, low_res, drawn.condition_keys)
    output = model(params, x_t, drawn.t.astype(jnp.float32), given, drawn.dropout_keys)
    return training_losses(config, schedule, output, x_0, x_t, drawn.noise, drawn.t)


def _as_they_are(params: Params) -> Params:
    return params


def make_train_step(
    model: Glide,
    schedule: Schedule,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    draws: DrawFn,
    gather: Gather = _as_they_are,
) -> Callable[[State, DeviceBatch], tuple[State, Metrics]]:
    """The step as a function to jit with `donate_argnums=0`; `gather` brings split weights together for use.

    `state["step"]` counts batches, skipped ones too; learning rate and moving average count updates.
    """

    def train_step(state: State, batch: DeviceBatch) -> tuple[State, Metrics]:
        params, frozen = split(state["params"], config.trainable)

        def mean_loss(params: Params, micro: DeviceBatch) -> tuple[Array, tuple[Losses, Array]]:
            drawn = draws(state["step"], micro["index"], micro["image"].shape[1:])
            whole = gather(merge(params, frozen))
            losses = batch_losses(model, schedule, config.loss, drawn, whole, micro, config.conditioning)
            return losses.total.mean(), (losses, drawn.t)

        (losses, t), grads = accumulated_grads(mean_loss, params, batch, config.gradient_accumulation_steps)
        loss, grad_norm = losses.total.mean(), optax.tree.norm(grads)
        good, skips = judge(state["skips"], loss, grad_norm, config.loss_spike_threshold)
        step = state["step"] + 1
        updates, opt = optimizer.update(grads, state["opt"], params)
        ema, frozen_ema = split(state["ema"], config.trainable)
        new_params = optax.apply_updates(params, updates)
        new_ema = update_ema(config.optimizer, ema, new_params, step - skips["count"])
        params, ema, opt = choose(good, (new_params, new_ema, opt), (params, ema, state["opt"]))
        whole = merge(params, frozen)
        metrics = {"loss": loss, "grad_norm": grad_norm, "param_norm": optax.tree.norm(whole)}
        metrics |= _parts(config.loss, losses) | _by_quartile(losses.mse, t, schedule.diffusion_steps)
        metrics["skipped_updates"] = skips["count"]
        return {"step": step, "params": whole, "ema": merge(ema, frozen_ema), "opt": opt, "skips": skips}, metrics

    return train_step


def _parts(config: LossConfig, losses: Losses) -> Metrics:
    parts = {"mse": losses.mse.mean()}
    return parts | ({"vlb": losses.vlb.mean()} if config.kind == "hybrid" else {})


def _by_quartile(mse: Float[Array, " batch"], t: Int[Array, " batch"], diffusion_steps: int) -> Metrics:
    """Sums of the noise loss and counts by quarter of [0, T); the first quarter has the least noise."""
    one_hot = jax.nn.one_hot(t * QUARTILES // diffusion_steps, QUARTILES)
    return {"mse_by_quartile": mse @ one_hot, "count_by_quartile": one_hot.sum(0)}


def make_validation_step(
    model: Glide, schedule: Schedule, draws: DrawFn, gather: Gather = _as_they_are
) -> Callable[[Params, DeviceBatch], tuple[Array, Array]]:
    """Sum of the noise loss over a batch's pictures of weight 1, and how many they are."""

    def validation_step(params: Params, batch: DeviceBatch) -> tuple[Array, Array]:
        drawn = draws(jnp.int32(0), batch["index"], batch["image"].shape[1:])
        losses = batch_losses(model, schedule, LossConfig("simple"), drawn, gather(params), batch)
        return (losses.mse * batch["weight"]).sum(), batch["weight"].sum()

    return validation_step


def _as_float(pixels: Array) -> Array:
    return pixels.astype(jnp.float32) / 127.5 - 1.0 if pixels.dtype == jnp.uint8 else pixels
