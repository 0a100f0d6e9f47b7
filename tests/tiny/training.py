"""Training the tiny base model: a batch, weights, and steps that a process compiles once for each configuration."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.data.transforms import Size
from glide_jax.models import Glide
from glide_jax.parallel import make_mesh, put_batch
from glide_jax.tokenizer import GlideTokenizer
from glide_jax.train.config import OptimizerConfig, RunConfig, TrainConfig
from glide_jax.train.program import Program
from tests.tiny.models import BASE, random_weights

MODEL = replace(BASE, dropout=0.1)
SIDE = MODEL.image_size
SQUARE = Size.square(SIDE)


def make_batch(size=8, first=0):
    tokens, mask = GlideTokenizer().padded([f"number {i}" for i in range(size)], MODEL.text_ctx)
    pixels = np.random.RandomState(first).randint(0, 256, (size, SIDE, SIDE, 3)).astype(np.uint8)
    index = np.arange(first, first + size, dtype=np.int32)
    return {"image": pixels, "tokens": tokens, "mask": mask, "index": index, "weight": np.ones(size, np.float32)}


def make_params(seed=0):
    """Weights of which no layer is zero: a fresh network's last layers are, and hold all gradients back."""
    return random_weights(Glide(MODEL).abstract_params(), seed)


def make_config(**changes):
    """With an eps that leaves Adam's update in proportion to the gradient: elsewhere it blows rounding up."""
    return TrainConfig(batch_size=8, optimizer=OptimizerConfig(learning_rate=1.0, eps=1.0), **changes)


def timed_config(**changes):
    """The same for a run that ends by time, with a cosine that does too."""
    config = make_config(**{"max_minutes": 7.0} | changes)
    return replace(config, optimizer=replace(config.optimizer, lr_schedule="cosine"))


@cache
def make_program(config):
    run = RunConfig(model=MODEL, train=config)
    return Program(run, make_mesh(run.parallel))


def compiled_step(config, size=SQUARE):
    """The step as a user runs it, for images of some size: it deletes the state it is given."""
    return _compiled_step(config, size)


@cache
def _compiled_step(config, size):
    return make_program(config).compile(size)


def make_state(config, params=None):
    """As a checkpoint holds it."""
    program = make_program(config)
    return program.packing.unpack_state(program.state_from(make_params() if params is None else params))


def updated(config, state, batch):
    """State and metrics after one update of a state that stays."""
    program = make_program(config)
    packed = jax.device_put(program.packing.pack_state(jax.tree.map(jnp.copy, state)), program.shardings)
    after, metrics = compiled_step(config)(packed, put_batch(batch, program.mesh))
    return program.packing.unpack_state(after), metrics
