"""Learning rates, clipping and the moving average against hand arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glide_jax.errors import GlideError
from glide_jax.train.config import OptimizerConfig, TrainConfig
from glide_jax.train.optimizer import learning_rate, make_optimizer, update_ema


def rates(config, max_steps, at):
    schedule = learning_rate(config, max_steps)
    return np.array([schedule(step) for step in at])


def test_warmup_rises_from_the_first_update_to_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    np.testing.assert_allclose(rates(config, 100, range(6)), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rtol=1e-6)


def test_cosine_goes_from_peak_to_zero():
    config = OptimizerConfig(learning_rate=2.0, lr_schedule="cosine")
    np.testing.assert_allclose(rates(config, 100, (0, 50, 100)), [2.0, 1.0, 0.0], atol=1e-6)


def test_first_update_is_a_clipped_adamw_step():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0, eps=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.array([2.0, -1.0])}
    updates, _ = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    clipped = np.array([0.6, 0.8])
    # With bias correction the first moments are g and g^2, from which AdamW's first step follows.
    expected = -0.1 * (clipped / (clipped + 1.0) + 0.5 * np.array([2.0, -1.0]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)


def test_ema_is_a_float32_average_with_warm_up():
    config = OptimizerConfig(ema_decay=0.9)
    ema = {"w": jnp.float32(0.0)}
    expected = 0.0
    for updates in range(1, 100):
        ema = update_ema(config, ema, {"w": jnp.float32(1.0)}, jnp.int32(updates))
        decay = min(0.9, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay)
        np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)


def test_ema_moves_by_less_than_bfloat16_could_hold():
    ema = {"w": jnp.float32(1.0)}
    config = OptimizerConfig(ema_decay=0.9999, ema_warmup=False)
    moved = update_ema(config, ema, {"w": jnp.float32(1.001)}, jnp.int32(1))["w"]
    assert moved > 1.0
    assert moved.astype(jnp.bfloat16) == 1.0


def test_optimizer_state_is_float32():
    state = make_optimizer(OptimizerConfig(), 10).init({"w": jnp.zeros(3)})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {jnp.dtype("float32")}
    assert optax.tree.get(state, "nu")["w"].shape == (3,)


@pytest.mark.parametrize("bad", [{"b2": 1.0}, {"learning_rate": -1.0}, {"lr_schedule": "step"}, {"ema_decay": 1.0}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(GlideError, match=next(iter(bad))):
        OptimizerConfig(**bad)


def test_float16_is_refused_with_the_way_out():
    with pytest.raises(GlideError, match="bfloat16"):
        TrainConfig(dtype="float16")
