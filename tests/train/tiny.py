"""The smallest model with every kind of layer, and a batch for it."""

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.models import Glide, ModelConfig
from glide_jax.tokenizer import GlideTokenizer
from glide_jax.train.config import OptimizerConfig, TrainConfig
from glide_jax.train.draws import training_draws
from glide_jax.train.optimizer import make_optimizer
from glide_jax.train.step import make_train_step, state_from_params

SIDE = 8
MODEL = ModelConfig(
    image_size=SIDE, num_channels=32, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(8,),
    num_head_channels=16, dropout=0.1, text_ctx=8, xf_width=32, xf_layers=1, xf_heads=2,
)  # fmt: skip
SCHEDULE = Schedule.from_config(DiffusionConfig())


def make_batch(size=8, first=0):
    tokens, mask = GlideTokenizer().padded([f"number {i}" for i in range(size)], MODEL.text_ctx)
    pixels = np.random.RandomState(first).randint(0, 256, (size, SIDE, SIDE, 3)).astype(np.uint8)
    index = np.arange(first, first + size, dtype=np.int32)
    return {"image": pixels, "tokens": tokens, "mask": mask, "index": index}


def make_params(seed=0):
    """Fresh weights moved a little, because a fresh network's last layers are zero and hold all gradients back."""
    params = jax.jit(Glide(MODEL).init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    random = np.random.RandomState(seed)
    return tree.unflatten([np.asarray(x) + 0.05 * random.standard_normal(x.shape).astype(np.float32) for x in leaves])


def make_config(**changes):
    """With an eps that leaves Adam's update in proportion to the gradient: elsewhere it blows rounding up."""
    return TrainConfig(batch_size=8, optimizer=OptimizerConfig(learning_rate=1.0, eps=1.0), **changes)


def make_step(config):
    """The step, not yet jitted, and its optimizer."""
    optimizer = make_optimizer(config.optimizer, config.max_steps)
    return make_train_step(Glide(MODEL), SCHEDULE, config, optimizer, training_draws(0, 1000)), optimizer


def make_state(config, optimizer, params):
    return state_from_params(jax.tree.map(jnp.array, params), optimizer, config.trainable)
