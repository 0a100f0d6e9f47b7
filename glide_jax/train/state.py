"""The training state and how a step changes it: optimizer, EMA weights, frozen parameters, steps that are skipped."""

from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from glide_jax.errors import GlideError
from glide_jax.models import Params
from glide_jax.train.config import OptimizerConfig, Trained
from glide_jax.train.muon import scale_by_muon, scale_to_rms

# {"step", "params", "ema", "opt", "skips"}: plain dicts of float32 arrays, but for the kernels that adapters leave
# frozen; step and counts are int32. The optimizer knows the trained parameters only. A step takes it `packing.Packed`.
State = dict[str, Any]
# {"count": updates skipped so far, "loss_ema": average of the finite losses; infinite before the first}.
Skips = dict[str, Array]

# Of the patterns that match a parameter's path the first decides whether it is trained; * also matches slashes.
RULES: dict[Trained, tuple[tuple[str, bool], ...]] = {
    "all": (("*", True),),
    "unet": (("text/*", False), ("*", True)),
    # The UNet's own projections of the text to keys and values learn with it (torch: encoder_kv).
    "text": (("text/*", True), ("unet/*/attn/text_kv/*", True), ("*", False)),
    "lora": (("lora/*", True), ("*", False)),
}

_LOSS_EMA_RATE = 0.01

# Root mean square of an update of AdamW's, to which Muon's is scaled.
_ADAM_RMS = 0.2
_OUTER = ("unet/input_conv/kernel", "unet/out_conv/kernel")
_OF_ADAPTERS = ("/down", "/up")


def learning_rate(config: OptimizerConfig, max_steps: int | None) -> optax.Schedule:
    """Learning rate as a function of the updates done: a linear warm-up, then constant or a cosine down to 0.

    Args:
        config: the optimizer.
        max_steps: where the cosine ends; None where it goes by time, as a factor beside (`share_left`).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    after = optax.constant_schedule(peak)
    if config.lr_schedule == "cosine" and max_steps is not None:
        after = optax.cosine_decay_schedule(peak, max(max_steps - warmup, 1))
    if not warmup:
        return after
    # The first update uses peak / warmup, not 0.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig,
    max_steps: int | None,
    matrices: PyTree[bool] | None = None,
    mesh: Mesh | AbstractMesh | None = None,
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) or Muon (`muon`).

    Args:
        config: the optimizer.
        max_steps: where a cosine ends, as in `learning_rate`.
        matrices: a tree like the parameters: whether Muon takes them.
        mesh: the devices that share Muon's work.
    """
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    rate = learning_rate(config, max_steps)
    if config.kind == "adamw":
        adamw = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            mu_dtype=config.mu_dtype,
            weight_decay=config.weight_decay,
        )
        return optax.chain(clip, adamw)
    muon = optax.chain(
        scale_by_muon(config.mu_dtype, mesh),
        scale_to_rms(_ADAM_RMS),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    nadamw = optax.nadamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.mu_dtype,
        weight_decay=config.weight_decay,
    )
    labels = jax.tree.map(lambda matrix: "muon" if matrix else "adam", matrices)
    return optax.chain(clip, optax.partition({"muon": muon, "adam": nadamw}, labels))


def is_for_muon(path: str) -> bool:
    """Whether Muon takes the parameter of that name: a kernel of hidden layers, or a matrix of an adapter."""
    return path.endswith(_OF_ADAPTERS) or (path.endswith("/kernel") and path not in _OUTER)


def share_left(config: OptimizerConfig, used: Float[Array, ""]) -> Float[Array, ""]:
    """The factor of the learning rate when a share `used` of a run's time is over: 1, or a cosine down to 0."""
    if config.lr_schedule == "constant":
        return jnp.ones_like(used)
    return (1 + jnp.cos(jnp.pi * jnp.clip(used, 0, 1))) / 2


def update_ema(
    config: OptimizerConfig, ema: PyTree[Array], params: PyTree[Array], updates: Int[Array, ""]
) -> PyTree[Array]:
    """ema <- d ema + (1 - d) params, after `updates` updates in all, in float32."""
    decay: Float[Array, ""] = jnp.float32(config.ema_decay)
    if config.ema_warmup:
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), ema, params)


def is_trained(path: str, trainable: Trained) -> bool:
    """Whether the parameter of that name ("unet/down/0/res/in_conv/kernel") is trained."""
    return next(trained for pattern, trained in RULES[trainable] if fnmatchcase(path, pattern))


def split(params: Params, trainable: Trained) -> tuple[Params, Params]:
    """The trained and the frozen part of a nested dict of parameters, each with only its own leaves.

    Raises:
        GlideError: nothing would be trained.
    """
    flat = flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if is_trained("/".join(path), trainable)}
    if not trained:
        raise GlideError(f"train.trainable={trainable} leaves nothing to train: this model has no text transformer")
    return unflatten_dict(trained), unflatten_dict({path: leaf for path, leaf in flat.items() if path not in trained})


def merge(*parts: Params) -> Params:
    """The nested dict that was split into `parts`."""
    return unflatten_dict({path: leaf for part in parts for path, leaf in flatten_dict(part).items()})


def no_skips() -> Skips:
    """The counters of a fresh run."""
    return {"count": jnp.int32(0), "loss_ema": jnp.float32(jnp.inf)}


def judge(
    skips: Skips, loss: Float[Array, ""], grad_norm: Float[Array, ""], spike_threshold: float
) -> tuple[Bool[Array, ""], Skips]:
    """Whether an update is good, and the counters after it.

    An update is skipped if its loss or gradient is not finite, or if `spike_threshold` is not 0 and the loss is
    that many times its average. The average takes in spikes too, so that a lasting change is no endless spike.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    average = skips["loss_ema"]
    good = finite & (loss <= spike_threshold * average) if spike_threshold else finite
    moved = jnp.where(jnp.isinf(average), loss, average + _LOSS_EMA_RATE * (loss - average))
    return good, {"count": skips["count"] + ~good, "loss_ema": jnp.where(finite, moved, average)}


def choose(good: Bool[Array, ""], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` if the update is good, else `old`, bit for bit; fused into the update, it moves no further memory."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
