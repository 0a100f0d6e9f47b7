"""AdamW, its learning rate over time, and the moving average of the weights."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from glide_jax.models import Params
from glide_jax.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, max_steps: int) -> optax.Schedule:
    """Rate as a function of the updates done: a linear warm-up, then constant or a cosine down to 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    after = optax.constant_schedule(peak)
    if config.lr_schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(max_steps - warmup, 1))
    if not warmup:
        return after
    # The first update uses peak / warmup, not 0.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, max_steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101)."""
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    rate = learning_rate(config, max_steps)
    adamw = optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.mu_dtype,
        weight_decay=config.weight_decay,
    )
    return optax.chain(clip, adamw)


def update_ema(config: OptimizerConfig, ema: Params, params: Params, updates: Int[Array, ""]) -> Params:
    """ema <- d ema + (1 - d) params, after `updates` updates in all, in float32."""
    decay: Float[Array, ""] = jnp.float32(config.ema_decay)
    if config.ema_warmup:
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), ema, params)
