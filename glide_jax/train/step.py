"""The training step, (state, batch) -> (state, metrics): one compiled program with donated state."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from glide_jax.diffusion.forward import Level, q_sample
from glide_jax.diffusion.losses import LossConfig, Losses, training_losses
from glide_jax.diffusion.schedules import Schedule
from glide_jax.models import Conditioning, EncodedText, Glide, Params
from glide_jax.randomness import fold, keys_per_example, normal_per_example, stream_key, uniform_per_example
from glide_jax.train.augment import condition
from glide_jax.train.config import ConditioningConfig, TrainConfig
from glide_jax.train.distill import Teacher
from glide_jax.train.optimizer import global_norm, learning_rate, share_left
from glide_jax.train.packing import Packing
from glide_jax.train.state import State, choose, judge, merge, split, update_ema

# image and low_res uint8 (or float32 in [-1, 1]), tokens int32, mask bool, index int32 (see glide_jax.data); if a run
# ends by time also "used" float32 [batch], the share of the time that is over by the clock of each row's process.
DeviceBatch = dict[str, Array]
Metrics = dict[str, Array]
Gather = Callable[[Any], Params]
# (params, batch) -> (mean loss, values of each example).
LossFn = Callable[[Params, Any], tuple[Array, PyTree[Array]]]

QUARTILES = 4
_GOLDEN = np.uint32(round((5**0.5 - 1) / 2 * 2**32))


class StepNoise(NamedTuple):
    """The random numbers of one batch.

    Attributes:
        t: original timestep of each image in [0, T).
        noise: standard normal.
        dropout_keys: one key per image, or None for no dropout.
        condition_keys: one key per image, for masks and conditioning augmentation.
    """

    t: Int[Array, " batch"]
    noise: Float[Array, "batch height width 3"]
    dropout_keys: PRNGKeyArray | None
    condition_keys: PRNGKeyArray


# (step, global example indices, shape of one image) -> random numbers; a function so that a test can replace it.
NoiseFn = Callable[[Int[Array, ""], Int[Array, " batch"], tuple[int, ...]], StepNoise]


def training_noise(
    seed: int, diffusion_steps: int, timesteps: Literal["uniform", "logit_normal"] = "uniform"
) -> NoiseFn:
    """Noise keyed by (seed, step, global example index): the same on any number of devices, and after a restart."""

    def noise_fn(step: Int[Array, ""], index: Int[Array, " batch"], shape: tuple[int, ...]) -> StepNoise:
        uniform = uniform_per_example(fold(stream_key(seed, "t"), step), index)
        if timesteps == "logit_normal":
            uniform = jax.nn.sigmoid(jax.scipy.special.ndtri(uniform))
        noise = normal_per_example(fold(stream_key(seed, "noise"), step), index, shape)
        dropout, condition = (
            keys_per_example(fold(stream_key(seed, stream), step), index) for stream in ("dropout", "condition")
        )
        return StepNoise(_to_timestep(uniform, diffusion_steps), noise, dropout, condition)

    return noise_fn


def validation_noise(diffusion_steps: int) -> NoiseFn:
    """The same noise each time, so that validation losses compare across steps and runs; t covers [0, T) evenly."""

    def noise_fn(step: Int[Array, ""], index: Int[Array, " batch"], shape: tuple[int, ...]) -> StepNoise:
        # Multiples of the golden ratio, in 2^-32, fill [0, 1) evenly for any number of examples.
        uniform = (index.astype(jnp.uint32) * _GOLDEN >> 8).astype(jnp.float32) / 2**24
        return StepNoise(
            _to_timestep(uniform, diffusion_steps),
            normal_per_example(stream_key(0, "validation"), index, shape),
            None,
            keys_per_example(stream_key(0, "validation condition"), index),
        )

    return noise_fn


def _to_timestep(uniform: Float[Array, " batch"], diffusion_steps: int) -> Int[Array, " batch"]:
    return jnp.minimum((uniform * diffusion_steps).astype(jnp.int32), diffusion_steps - 1)


def batch_losses(
    model: Glide,
    schedule: Schedule,
    config: LossConfig,
    random: StepNoise,
    params: Params,
    batch: DeviceBatch,
    conditioning: ConditioningConfig | None = None,
    teacher: Teacher | None = None,
) -> Losses:
    """Losses of each image in a batch, with the given random numbers; a teacher, if any, provides the target."""
    x_0 = _as_float(batch["image"])
    low_res = _as_float(batch["low_res"]) if "low_res" in batch else None
    x_t = q_sample(x_0, random.noise, Level.table(schedule).at(random.t))

    def conditioned(text: EncodedText | None, rows: int = 1) -> Conditioning:
        images = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), (x_0, low_res, random.condition_keys))
        return condition(conditioning or ConditioningConfig(), model.config, text, *images)

    given = conditioned(model.encode_text(params, batch["tokens"], batch["mask"]))
    output = model(params, x_t, random.t.astype(jnp.float32), given, random.dropout_keys)
    noise = random.noise
    if teacher is not None:
        x_0, noise = teacher.target(params, batch["tokens"], batch["mask"], conditioned, x_t, random.t)
    return training_losses(config, schedule, output, x_0, x_t, noise, random.t)


def _as_float(pixels: Array) -> Array:
    return pixels.astype(jnp.float32) / 127.5 - 1.0 if pixels.dtype == jnp.uint8 else pixels


def _as_they_are(params: Params) -> Params:
    return params


def make_train_step(
    model: Glide,
    schedule: Schedule,
    config: TrainConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    noise_fn: NoiseFn,
    packing: Packing,
    gather: Gather = _as_they_are,
    arrange: Gather = _as_they_are,
    teacher: Teacher | None = None,
) -> Callable[[State, DeviceBatch], tuple[State, Metrics]]:
    """The step, to be jitted with `donate_argnums=0`: from packed state to packed state.

    `gather` brings sharded weights together for use, and `arrange` brings gradients into the weights' layout; `teacher`
    is that of `config.distill`. `state["step"]` counts all batches, including skipped ones; learning rate and EMA
    decay go by updates.
    """

    rates = learning_rate(config.optimizer, config.cosine_steps)

    def train_step(state: State, batch: DeviceBatch) -> tuple[State, Metrics]:
        trained, frozen = split(packing.unpack(state["params"]), config.trained)

        def mean_loss(trained: Params, micro: DeviceBatch) -> tuple[Array, tuple[Losses, Array]]:
            random = noise_fn(state["step"], micro["index"], micro["image"].shape[1:])
            if teacher is not None:
                random = random._replace(t=teacher.timesteps(random.t))
            whole = gather(merge(trained, frozen))
            losses = batch_losses(model, schedule, config.loss, random, whole, micro, config.conditioning, teacher)
            return losses.total.mean(), (losses, random.t)

        (losses, t), grads = accumulated_grads(mean_loss, trained, batch, config.gradient_accumulation_steps)
        packed = packing.pack(arrange(grads))
        loss, grad_norm = losses.total.mean(), global_norm(packed)
        good, skips = judge(state["skips"], loss, grad_norm, config.loss_spike_threshold)
        step = state["step"] + 1
        old = state["params"].trained, state["ema"].trained, state["opt"]
        updates, opt = optimizer.update(packed, old[2], old[0], norm=grad_norm)
        rate = rates(state["step"] - state["skips"]["count"])
        if config.max_minutes:
            # One number for all processes, whose clocks differ. Updates are proportional to the learning rate.
            used = batch["used"].max()
            left = share_left(config.optimizer, used)
            updates, rate = jax.tree.map(lambda x: left * x, (updates, rate))
        new = optax.apply_updates(old[0], updates)
        ema = update_ema(config.optimizer, old[1], new, step - skips["count"])
        new, ema, opt = choose(good, (new, ema, opt), old)
        params, ema = (x._replace(frozen=state[name].frozen) for name, x in (("params", new), ("ema", ema)))
        metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "param_norm": global_norm(new)}
        metrics |= {"mse": losses.mse.mean()} | _by_quartile(losses.mse, t, schedule.diffusion_steps)
        if config.loss.kind == "hybrid":
            metrics["vlb"] = losses.vlb.mean()
        if config.max_minutes:
            metrics["time_used"] = used
        metrics["skipped_updates"] = skips["count"]
        return {"step": step, "params": params, "ema": ema, "opt": opt, "skips": skips}, metrics

    return train_step


def _by_quartile(mse: Float[Array, " batch"], t: Int[Array, " batch"], diffusion_steps: int) -> Metrics:
    """Sums of the noise loss, and counts, for each quarter of [0, T); the first has the least noise."""
    one_hot = jax.nn.one_hot(t * QUARTILES // diffusion_steps, QUARTILES)
    return {"mse_by_quartile": (mse[:, None] * one_hot).sum(0), "count_by_quartile": one_hot.sum(0)}


def accumulated_grads(loss_fn: LossFn, params: Params, batch: Any, steps: int) -> tuple[PyTree[Array], Params]:
    """Per-example values and the gradient of the batch's mean loss, computed in `steps` micro-batches of equal size.

    Only one micro-batch's activations are alive at a time; the gradients are summed in float32.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if steps == 1:
        grads, values = grad_fn(params, batch)
        return values, grads

    def add(total: Params, micro: Any) -> tuple[Params, PyTree[Array]]:
        grads, values = grad_fn(params, micro)
        return jax.tree.map(jnp.add, total, grads), values

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, values = jax.lax.scan(add, zeros, jax.tree.map(lambda x: _to_micro(x, steps), batch))
    return jax.tree.map(_from_micro, values), jax.tree.map(lambda x: x / steps, total)


def _to_micro(x: Shaped[Array, "batch ..."], steps: int) -> Shaped[Array, "steps micro ..."]:
    # Every steps-th example rather than neighbours, so that each device keeps the examples it has.
    return x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1)


def _from_micro(x: Shaped[Array, "steps micro ..."]) -> Shaped[Array, "batch ..."]:
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def make_validation_step(
    model: Glide, schedule: Schedule, noise_fn: NoiseFn, gather: Gather = _as_they_are
) -> Callable[[Params, DeviceBatch], tuple[Array, Array]]:
    """Sum of the noise loss over a batch's images of weight 1, and their number."""

    def validation_step(params: Params, batch: DeviceBatch) -> tuple[Array, Array]:
        random = noise_fn(jnp.int32(0), batch["index"], batch["image"].shape[1:])
        losses = batch_losses(model, schedule, LossConfig("simple"), random, gather(params), batch)
        return (losses.mse * batch["weight"]).sum(), batch["weight"].sum()

    return validation_step
