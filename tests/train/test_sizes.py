"""Models of other sizes than the published ones train and sample by configuration alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from glide_jax.models import ModelConfig
from glide_jax.parallel import ParallelConfig, make_mesh
from glide_jax.sample import Inputs, SampleOptions, Stage
from glide_jax.train import RunConfig
from glide_jax.train.program import Program
from tests.tiny.training import make_config

SMALL = ModelConfig(
    image_size=128, num_channels=32, num_res_blocks=1, channel_mult=(1, 1), attention_resolutions=(),
    num_head_channels=16, dropout=0.0, text_ctx=4, xf_width=16, xf_layers=1, xf_heads=1, resblock_updown=False,
    super_res=True, low_res_size=64,
)  # fmt: skip
SIZES = {
    "96": replace(SMALL, image_size=96, super_res=False, low_res_size=0),
    "256 to 512": replace(SMALL, image_size=512, low_res_size=256, channel_mult=(1, 1, 1, 1, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_one_update_and_one_picture(name):
    model = SIZES[name]
    program = Program(RunConfig(model=model, train=replace(make_config(), batch_size=1)), make_mesh(ParallelConfig()))
    random = np.random.RandomState(0)
    batch = {
        key: random.randint(0, 256, leaf.shape).astype(leaf.dtype) for key, leaf in program.abstract_batch().items()
    }
    assert batch["image"].shape == (1, model.image_size, model.image_size, 3)
    state, metrics = program.compile()(program.fresh_state(), batch)
    assert np.isfinite(float(metrics["loss"]))
    low_res = random.uniform(-1, 1, (1, model.low_res_size, model.low_res_size, 3)) if model.super_res else None
    picture = Stage(program.model, program.config.diffusion).sample(
        state["params"], Inputs(["a cat"], [0], low_res=low_res), SampleOptions.of(num_steps=1, guidance_scale=1.0)
    )
    assert picture.shape == (1, model.image_size, model.image_size, 3)
    assert np.isfinite(jax.device_get(picture)).all()
