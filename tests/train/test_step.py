"""The train step as one program: bfloat16 against float32, donated state, one compilation, averages that move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.losses import LossConfig
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.models import Glide, ModelConfig
from glide_jax.tokenizer import GlideTokenizer
from glide_jax.train.config import OptimizerConfig, TrainConfig
from glide_jax.train.draws import training_draws, validation_draws
from glide_jax.train.optimizer import make_optimizer
from glide_jax.train.step import batch_losses, make_train_step, make_validation_step, state_from_params
from tests.parity.recipe import golden_params

SCHEDULE = Schedule.from_config(DiffusionConfig())
DRAWS = training_draws(0, 1000)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
CONFIG = ModelConfig(
    image_size=16, num_channels=64, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(8,),
    num_head_channels=16, dropout=0.0, text_ctx=24, xf_width=32, xf_layers=1, xf_heads=2,
)  # fmt: skip


def make_batch(size=4, first=0):
    tokens, mask = GlideTokenizer().padded(["a corgi", "", "a red bicycle", "an oil painting"][:size], 24)
    pixels = np.random.RandomState(0).randint(0, 256, (size, 16, 16, 3)).astype(np.uint8)
    index = np.arange(first, first + size, dtype=np.int32)
    return jax.tree.map(jnp.asarray, {"image": pixels, "tokens": tokens, "mask": mask, "index": index})


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, golden_params(Glide(CONFIG), "tiny/base"))


def model_of(dtype):
    return Glide(CONFIG, dtype=dtype)


def gradients(dtype, params):
    def mean_loss(params):
        batch = make_batch()
        drawn = DRAWS(jnp.int32(0), batch["index"], (16, 16, 3))
        return batch_losses(model_of(dtype), SCHEDULE, LossConfig("simple"), drawn, params, batch).total.mean()

    return [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(jax.jit(jax.grad(mean_loss))(params))]


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_bfloat16_gradients_point_where_float32_ones_do(params):
    half, single = gradients("bfloat16", params), gradients("float32", params)
    assert cosine(np.concatenate(half), np.concatenate(single)) >= 0.999
    worst = min(cosine(a, b) for a, b in zip(half, single, strict=True) if np.linalg.norm(b) > 1e-4)
    assert 0.99 <= worst < 1.0


def test_bfloat16_training_keeps_float32_state_that_moves(params):
    optimizer = make_optimizer(OPTIMIZER, 10)
    config = TrainConfig(optimizer=OptimizerConfig(learning_rate=1e-3, ema_decay=0.9999, ema_warmup=False))
    step = jax.jit(make_train_step(model_of("bfloat16"), SCHEDULE, config, optimizer, DRAWS))
    state = state_from_params(params, optimizer)
    after, _ = step(state, make_batch())
    for tree in ("params", "ema", "opt"):
        assert {leaf.dtype for leaf in jax.tree.leaves(after[tree]) if leaf.ndim} == {jnp.dtype("float32")}
    kernel = ("unet", "down", "0", "res", "in_conv", "kernel")
    before, average, new = (_leaf(tree, kernel) for tree in (params, after["ema"], after["params"]))
    np.testing.assert_allclose(average - before, 1e-4 * (new - before), rtol=0.1, atol=3e-8)
    assert (average != before).mean() > 0.5


def _leaf(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_state_is_donated_and_one_program_serves_all_steps(params):
    optimizer = make_optimizer(OPTIMIZER, 10)
    config = TrainConfig(optimizer=OPTIMIZER)
    step = jax.jit(make_train_step(model_of("float32"), SCHEDULE, config, optimizer, DRAWS), donate_argnums=0)
    state = state_from_params(jax.tree.map(jnp.copy, params), optimizer)
    losses = []
    for i in range(3):
        before = state
        state, metrics = step(state, make_batch(first=4 * i))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert int(state["step"]) == 3
    assert len(set(losses)) == 3
    assert metrics["grad_norm"] > 0


def test_validation_counts_real_pictures_only(params):
    model = model_of("float32")
    validate = jax.jit(make_validation_step(model, SCHEDULE, validation_draws(1000)))
    batch = make_batch()
    total, count = validate(params, batch | {"weight": jnp.array([1.0, 1.0, 0.0, 0.0])})
    first, one = validate(params, batch | {"weight": jnp.array([1.0, 0.0, 0.0, 0.0])})
    second, _ = validate(params, batch | {"weight": jnp.array([0.0, 1.0, 0.0, 0.0])})
    assert (count, one) == (2, 1)
    np.testing.assert_allclose(total, first + second, rtol=1e-5)
