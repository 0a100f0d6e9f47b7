"""The training state and how a step changes it: trained parameters, EMA weights, skipped steps."""

from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, PyTree

from glide_jax.models import Params
from glide_jax.train.config import OptimizerConfig, Trained

# {"step", "params", "ema", "opt", "skips"}: plain dicts of float32 arrays, except for the kernels that adapters leave
# frozen and the first moments; step and counts are int32. The optimizer holds the trained parameters only. A step takes
# it `packing.Packed`.
State = dict[str, Any]
# {"count": updates skipped so far, "loss_ema": running average of the finite losses, infinite before the first}.
Skips = dict[str, Array]

# The first pattern that matches a parameter's path decides whether it is trained; * also matches slashes.
RULES: dict[Trained, tuple[tuple[str, bool], ...]] = {
    "all": (("*", True),),
    "unet": (("text/*", False), ("*", True)),
    # The UNet's own projections of the text to keys and values are trained with it (torch: encoder_kv).
    "text": (("text/*", True), ("unet/*/attn/text_kv/*", True), ("*", False)),
    "lora": (("lora/*", True), ("*", False)),
}

_LOSS_EMA_RATE = 0.01


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
    """The trained and the frozen part of a nested dict of parameters."""
    flat = flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if is_trained("/".join(path), trainable)}
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
    """Whether to apply an update, and the counters after it.

    An update is skipped if its loss or gradient is not finite, or if `spike_threshold` is not 0 and the loss is
    that many times its average. Spikes enter the average too, so that a lasting change does not stay a spike forever.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    average = skips["loss_ema"]
    good = finite & (loss <= spike_threshold * average) if spike_threshold else finite
    moved = jnp.where(jnp.isinf(average), loss, average + _LOSS_EMA_RATE * (loss - average))
    return good, {"count": skips["count"] + ~good, "loss_ema": jnp.where(finite, moved, average)}


def choose(good: Bool[Array, ""], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` if the update is good, else `old`, bit for bit; fused into the update, it costs no memory traffic."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
